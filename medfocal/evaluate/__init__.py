"""How many lesions are found at how many false candidates, with intervals, from anybody's masks or probabilities."""

from medfocal.evaluate.cases import CaseResult, evaluate_case
from medfocal.evaluate.folders import evaluate_files
from medfocal.evaluate.pooled import evaluate_cases
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.readers import Reader, compare_readers, find_readers
from medfocal.evaluate.results import Evaluation, write_evaluation

__all__ = [
    "CaseResult",
    "Evaluation",
    "Protocol",
    "Reader",
    "compare_readers",
    "evaluate_case",
    "evaluate_cases",
    "evaluate_files",
    "find_readers",
    "write_evaluation",
]
