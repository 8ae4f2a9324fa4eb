"""Reading a whole dataset as training would, and naming everything that is wrong with it; `repair` repairs a copy."""

from medfocal.data.check.cases import CaseReport
from medfocal.data.check.dataset import DatasetReport, check_dataset, print_dataset_report, write_dataset_report
from medfocal.data.check.findings import SEVERITIES, Finding, Kind, Severity
from medfocal.data.check.limits import CheckLimits

__all__ = [
    "SEVERITIES",
    "CaseReport",
    "CheckLimits",
    "DatasetReport",
    "Finding",
    "Kind",
    "Severity",
    "check_dataset",
    "print_dataset_report",
    "write_dataset_report",
]
