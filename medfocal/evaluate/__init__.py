"""How many lesions are found at how many false candidates, with intervals, from anybody's masks or probabilities."""

from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.compare import PairedComparison, compare_tables, write_comparison
from medfocal.evaluate.judge import CaseOutcome, HitRuleCurve, Verdict, hit_rule_curve, judge
from medfocal.evaluate.measure import Measurement, Reading, measure_pairs
from medfocal.evaluate.pairs import Pair, find_pairs
from medfocal.evaluate.pooled import evaluate_cases, evaluate_files, evaluate_measured
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.published import published_figures
from medfocal.evaluate.readers import Reader, compare_readers, find_readers
from medfocal.evaluate.results import Evaluation, write_evaluation
from medfocal.evaluate.surface import SurfaceDistances, surface_distances, surface_figures
from medfocal.evaluate.table import CaseTable

__all__ = [
    "CaseOutcome",
    "CaseTable",
    "Evaluation",
    "HitRuleCurve",
    "Measurement",
    "Pair",
    "PairedComparison",
    "Protocol",
    "Reader",
    "Reading",
    "SurfaceDistances",
    "Verdict",
    "compare_readers",
    "compare_tables",
    "evaluate_case",
    "evaluate_cases",
    "evaluate_files",
    "evaluate_measured",
    "find_pairs",
    "find_readers",
    "hit_rule_curve",
    "judge",
    "measure_pairs",
    "published_figures",
    "surface_distances",
    "surface_figures",
    "write_comparison",
    "write_evaluation",
]
