"""Using a trained model: window inference, candidates, masks on the native grid."""

from medfocal.infer.ensemble import Ensemble, load_models
from medfocal.infer.predict import Prediction, predict, predict_case
from medfocal.model import load_model

__all__ = ["Ensemble", "Prediction", "load_model", "load_models", "predict", "predict_case"]
