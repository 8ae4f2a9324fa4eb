"""Using a trained model: window inference, candidates, masks on the native grid."""

from medfocal.infer.predict import Prediction, predict, predict_case
from medfocal.model import load_model

__all__ = ["Prediction", "load_model", "predict", "predict_case"]
