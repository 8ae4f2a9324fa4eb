"""The report of an evaluation: one self-contained HTML page, and the curves of a training run."""

from medfocal.report.figures import write_curves
from medfocal.report.page import write_report
from medfocal.report.pictures import CaseImages

__all__ = ["CaseImages", "write_curves", "write_report"]
