"""How many lesions are found at how many false candidates, with intervals, from anybody's masks or probabilities."""

from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.judge import CaseOutcome, Verdict, judge
from medfocal.evaluate.measure import Measurement, Reading, measure_pairs
from medfocal.evaluate.pooled import evaluate_cases, evaluate_files, evaluate_measured
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.readers import Reader, compare_readers, find_readers
from medfocal.evaluate.results import Evaluation, write_evaluation
from medfocal.evaluate.table import CaseTable

__all__ = [
    "CaseOutcome",
    "CaseTable",
    "Evaluation",
    "Measurement",
    "Protocol",
    "Reader",
    "Reading",
    "Verdict",
    "compare_readers",
    "evaluate_case",
    "evaluate_cases",
    "evaluate_files",
    "evaluate_measured",
    "find_readers",
    "judge",
    "measure_pairs",
    "write_evaluation",
]
