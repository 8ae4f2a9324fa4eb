"""What a hospital needs around prediction: DICOM in through a gate."""

from medfocal.serve.gate import Gate, Refusal, Series, find_series
from medfocal.serve.series import read_series

__all__ = ["Gate", "Refusal", "Series", "find_series", "read_series"]
