"""Prediction: windows over whole cases, candidates and masks."""

from medfocal.infer.ensemble import load_models
from medfocal.infer.export import Exported, Format, export_model
from medfocal.infer.many import PredictSettings, predict
from medfocal.infer.predict import Prediction, predict_case
from medfocal.infer.predictor import Candidate, Found, Predictor, load_model

__all__ = [
    "Candidate",
    "Exported",
    "Format",
    "Found",
    "PredictSettings",
    "Prediction",
    "Predictor",
    "export_model",
    "load_model",
    "load_models",
    "predict",
    "predict_case",
]
