"""Prediction: windows over whole cases, candidates and masks."""

from medfocal.infer.ensemble import load_models
from medfocal.infer.many import PredictSettings, predict
from medfocal.infer.predict import Prediction, predict_case
from medfocal.model import load_model

__all__ = ["PredictSettings", "Prediction", "load_model", "load_models", "predict", "predict_case"]
