"""The rows of cases.csv, lesions.csv and candidates.csv, made when they are asked for.

Ten thousand cases have hundreds of thousands of rows; made one case at a time they need no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medfocal.evaluate.judge import CaseOutcome, Verdict
from medfocal.evaluate.overlap import voxel_dice
from medfocal.evaluate.table import SURFACE_FIGURES, Parts

Row = dict[str, Any]

_SIZE = ("num_voxels", "volume_ml", "equivalent_diameter_mm", "longest_diameter_mm", "axial_diameter_mm")
_PLACE = ("i", "j", "k", "x_mm", "y_mm", "z_mm")
COUNTED = (
    "num_lesions",
    "num_detected_lesions",
    "num_ignored_lesions",
    "num_candidates",
    "num_true_candidates",
    "num_false_candidates",
    "num_double_candidates",
    "num_ignored_candidates",
    "num_split_lesions",
    "num_merging_candidates",
    "num_hit_missed_lesions",
)
CASE_COLUMNS = (
    "case",
    "patient",
    *COUNTED,
    "voxel_dice",
    "reference_volume_ml",
    "predicted_volume_ml",
    "volume_difference_ml",
    *SURFACE_FIGURES,
)
LESION_COLUMNS = (
    *("case", "patient", "lesion"),
    *_SIZE,
    *_PLACE,
    *("ignored", "detected", "candidate", "num_hits", "overlap_voxels", "iou", "dice", "confidence"),
    *SURFACE_FIGURES,
)
CANDIDATE_COLUMNS = (
    *("case", "patient", "candidate", "confidence", "above_threshold", "verdict", "lesion", "num_hits"),
    "overlap_voxels",
    *_SIZE,
    *_PLACE,
)


class Rows(Sequence[Row]):
    """Rows of one kind of all cases, made on the fly."""

    def __init__(
        self,
        outcomes: Sequence[CaseOutcome],
        threshold: float,
        make: Callable[[CaseOutcome, float], list[Row]],
        lengths: Sequence[int],
    ) -> None:
        self._outcomes = outcomes
        self._threshold = threshold
        self._make = make
        self._ends = np.cumsum(lengths) if len(lengths) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[Row]:
        for outcome in self._outcomes:
            yield from self._make(outcome, self._threshold)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            message = f"there are {len(self)} rows, got index {index}"
            raise IndexError(message)
        case = int(np.searchsorted(self._ends, place, side="right"))
        start = int(self._ends[case - 1]) if case else 0
        return self._make(self._outcomes[case], self._threshold)[place - start]


def case_rows(outcomes: Sequence[CaseOutcome], threshold: float) -> Rows:
    """Rows of cases.csv."""
    return Rows(outcomes, threshold, lambda outcome, at: [case_row(outcome, at)], [1] * len(outcomes))


def lesion_rows(outcomes: Sequence[CaseOutcome], threshold: float) -> Rows:
    """Rows of lesions.csv, ignored lesions among them."""
    return Rows(outcomes, threshold, _lesion_rows, [len(outcome.table.lesions) for outcome in outcomes])


def candidate_rows(outcomes: Sequence[CaseOutcome], threshold: float) -> Rows:
    """Rows of candidates.csv, those below the threshold among them."""
    return Rows(outcomes, threshold, _candidate_rows, [len(outcome.table.candidates) for outcome in outcomes])


def case_row(outcome: CaseOutcome, threshold: float) -> Row:
    """Count one case at a threshold."""
    table = outcome.table
    above = table.candidates.confidence >= threshold
    verdict = outcome.candidate_verdict[above]
    # The predicted mask at the threshold is all voxels of the candidates that count.
    num_predicted = int((table.candidates.num_voxels - table.candidates.ignored_voxels)[above].sum())
    num_reference = int((table.lesions.num_voxels - table.lesions.ignored_voxels).sum())
    pairs = above[table.overlaps.candidate - 1]
    num_shared = int((table.overlaps.num_voxels - table.pair_ignored_voxels)[pairs].sum())
    num_true, num_false = int((verdict == Verdict.TRUE).sum()), int((verdict == Verdict.FALSE).sum())
    reference_ml, predicted_ml = (count * table.voxel_volume_ml for count in (num_reference, num_predicted))
    surface = table.surface if table.surface_threshold == threshold else {}
    hits = _counted_hits(outcome, threshold)
    is_missed = ~detected(outcome, threshold) & ~outcome.lesion_ignored
    return {
        "case": table.case,
        "patient": table.patient,
        "num_lesions": int((~outcome.lesion_ignored).sum()),
        "num_detected_lesions": int((detected(outcome, threshold) & ~outcome.lesion_ignored).sum()),
        "num_ignored_lesions": int(outcome.lesion_ignored.sum()),
        "num_candidates": num_true + num_false,
        "num_true_candidates": num_true,
        "num_false_candidates": num_false,
        "num_double_candidates": int((verdict == Verdict.DOUBLE).sum()),
        "num_ignored_candidates": int((verdict == Verdict.IGNORED).sum()),
        "num_split_lesions": int((_num_hits(hits.lesion, len(table.lesions)) > 1).sum()),
        "num_merging_candidates": int((_num_hits(hits.candidate, len(table.candidates)) > 1).sum()),
        "num_hit_missed_lesions": int(((_num_hits(hits.lesion, len(table.lesions)) > 0) & is_missed).sum()),
        "voxel_dice": voxel_dice(num_shared, num_reference, num_predicted),
        "reference_volume_ml": reference_ml,
        "predicted_volume_ml": predicted_ml,
        "volume_difference_ml": predicted_ml - reference_ml,
        **{name: surface.get(name, math.nan) for name in SURFACE_FIGURES},
    }


def detected(outcome: CaseOutcome, threshold: float) -> NDArray[np.bool_]:
    """Whether each lesion is found by a candidate at or above the threshold; NaN compares as no."""
    return np.asarray(outcome.lesion_confidence >= threshold)


def pair_surface(outcome: CaseOutcome) -> NDArray[np.float64]:
    """Surface figures of each lesion with the candidate that finds it, (lesions, figures); NaN where there are none."""
    table = outcome.table
    found = np.full((len(table.lesions), len(SURFACE_FIGURES)), math.nan)
    if table.pair_surface is not None:
        rows = table.overlaps.rows_of(np.arange(1, len(found) + 1), outcome.lesion_candidate)
        found[rows >= 0] = table.pair_surface[rows[rows >= 0]]
    return found


def pair_overlap(outcome: CaseOutcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU and Dice of each lesion with its candidate, (lesions,) each; NaN where no candidate finds it."""
    table = outcome.table
    has = outcome.lesion_candidate > 0
    shared = outcome.lesion_overlap_voxels.astype(np.float64)
    own = table.lesions.num_voxels.astype(np.float64)
    other = np.full(len(own), math.nan)
    other[has] = table.candidates.num_voxels[outcome.lesion_candidate[has] - 1]
    return shared / (own + other - shared), 2 * shared / (own + other)


class _Hits(NamedTuple):
    lesion: NDArray[np.int64]
    candidate: NDArray[np.int64]


def _counted_hits(outcome: CaseOutcome, threshold: float) -> _Hits:
    """Hits of candidates at or above the threshold with lesions that count."""
    sure = outcome.table.candidates.confidence[outcome.hit_candidate - 1] >= threshold
    kept = sure & ~outcome.lesion_ignored[outcome.hit_lesion - 1]
    return _Hits(outcome.hit_lesion[kept], outcome.hit_candidate[kept])


def _num_hits(numbers: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.bincount(numbers, minlength=size + 1)[1:].astype(np.int64)


def _lesion_rows(outcome: CaseOutcome, threshold: float) -> list[Row]:
    table = outcome.table
    found = detected(outcome, threshold)
    iou, dice = pair_overlap(outcome)
    hits = _num_hits(_counted_hits(outcome, threshold).lesion, len(table.lesions))
    surface = pair_surface(outcome)
    return [
        {
            "case": table.case,
            "patient": table.patient,
            "lesion": row + 1,
            **_measures(table.lesions, row),
            "ignored": bool(outcome.lesion_ignored[row]),
            "detected": None if outcome.lesion_ignored[row] else bool(found[row]),
            "candidate": int(outcome.lesion_candidate[row]) or None,
            "num_hits": int(hits[row]),
            "overlap_voxels": int(outcome.lesion_overlap_voxels[row]),
            "iou": float(iou[row]),
            "dice": float(dice[row]),
            "confidence": float(outcome.lesion_confidence[row]),
            **dict(zip(SURFACE_FIGURES, surface[row].tolist(), strict=True)),
        }
        for row in range(len(table.lesions))
    ]


def _candidate_rows(outcome: CaseOutcome, threshold: float) -> list[Row]:
    table = outcome.table
    hits = _num_hits(outcome.hit_candidate[~outcome.lesion_ignored[outcome.hit_lesion - 1]], len(table.candidates))
    return [
        {
            "case": table.case,
            "patient": table.patient,
            "candidate": row + 1,
            "confidence": float(table.candidates.confidence[row]),
            "above_threshold": bool(table.candidates.confidence[row] >= threshold),
            "verdict": Verdict(int(outcome.candidate_verdict[row])).name.lower(),
            "lesion": int(outcome.candidate_lesion[row]) or None,
            "num_hits": int(hits[row]),
            "overlap_voxels": int(outcome.candidate_overlap_voxels[row]),
            **_measures(table.candidates, row),
        }
        for row in range(len(table.candidates))
    ]


def _measures(parts: Parts, row: int) -> Row:
    size = {name: getattr(parts, name)[row].item() for name in _SIZE}
    place = (*parts.centroid_voxel[row].tolist(), *parts.centroid_mm[row].tolist())
    return {**size, **dict(zip(_PLACE, place, strict=True))}
