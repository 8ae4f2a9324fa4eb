"""The figures by which challenges and packages rank, under their protocols.

Each follows the published definition; docs/protocols.md names where the code of a peer differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfocal.evaluate.judge import CaseOutcome, Verdict
from medfocal.evaluate.pool import Pool, pool
from medfocal.evaluate.ranking import case_auroc, free_response_ap
from medfocal.evaluate.rows import pair_overlap

#: False candidates per case at which LUNA16 and CAMELYON16 read the sensitivity.
LUNA16_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CAMELYON_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Figures = dict[str, float]


def published_figures(outcomes: Sequence[CaseOutcome], protocol_name: str) -> Figures:
    """Compute what a challenge or package publishes under its protocol.

    Figures of a case are averaged over the cases in which they are defined. Protocols whose lesions and candidates
    are of a mask count all candidates that the tables hold.

    Args:
        outcomes: The cases, judged by that protocol.
        protocol_name: Its name.

    Returns:
        Values by name. A protocol without such figures, or no case: none. Undefined is NaN.
    """
    if not outcomes:
        return {}
    if protocol_name in OF_CASES:
        rows = [OF_CASES[protocol_name](outcome) for outcome in outcomes]
        return {name: _mean_where_defined([row[name] for row in rows]) for name in rows[0]}
    return OF_SETS[protocol_name](pool(outcomes)) if protocol_name in OF_SETS else {}


def lesion_metrics(outcome: CaseOutcome) -> Figures:
    """Lesion and voxel figures of lesion-metrics: NaN where nothing is there to divide by.

    References:
        A. Carass et al., "Longitudinal multiple sclerosis lesion segmentation: resource and challenge", NeuroImage 148
        (2017) 77-102; the score is theirs without the correlation of volumes, scaled to 1.
    """
    voxels, counts = _Voxels.of(outcome), _Counts.of(outcome)
    dice, ppv = voxels.dice, _ratio(voxels.shared, voxels.predicted)
    ltpr = _ratio(counts.num_found, counts.num_lesions)
    lfdr = _ratio(counts.num_false, counts.num_true + counts.num_false)
    return {
        "dice": dice,
        "jaccard": _ratio(voxels.shared, voxels.reference + voxels.predicted - voxels.shared),
        "ppv": ppv,
        "tpr": _ratio(voxels.shared, voxels.reference),
        "lfdr": lfdr,
        "ltpr": ltpr,
        "absolute_volume_difference": _ratio(abs(voxels.predicted - voxels.reference), voxels.reference),
        "isbi15_score": (dice / 8 + ppv / 8 + (1 - lfdr) / 4 + ltpr / 4) * 4 / 3,
    }


def isles22(outcome: CaseOutcome) -> Figures:
    """Figures of ISLES 2022; an empty case without candidates has Dice and F1 of 1."""
    voxels, counts = _Voxels.of(outcome), _Counts.of(outcome)
    halves = (counts.num_false + counts.num_lesions - counts.num_found) / 2
    return {
        "dice": voxels.dice if voxels.reference + voxels.predicted else 1.0,
        "lesion_f1": counts.num_found / (counts.num_found + halves) if counts.num_found + halves else 1.0,
        "absolute_lesion_count_difference": abs(counts.num_lesions - counts.num_true - counts.num_false),
        "absolute_volume_difference_ml": abs(voxels.reference - voxels.predicted) * outcome.table.voxel_volume_ml,
    }


def autopet3(outcome: CaseOutcome) -> Figures:
    """Figures of autoPET III; a case without lesions has no Dice and no false negative volume."""
    table, voxels = outcome.table, _Voxels.of(outcome)
    missed = ~outcome.lesion_ignored & (outcome.lesion_candidate == 0)
    false = outcome.candidate_verdict == Verdict.FALSE
    with_lesions = voxels.reference > 0
    return {
        "dice": voxels.dice if with_lesions else math.nan,
        "false_positive_volume_ml": float(table.candidates.volume_ml[false].sum()),
        "false_negative_volume_ml": float(table.lesions.volume_ml[missed].sum()) if with_lesions else math.nan,
    }


def brats2023(outcome: CaseOutcome) -> Figures:
    """Lesion-wise Dice of BraTS 2023: the mean over lesions and false candidates, the latter counting 0; 1 if none.

    Each lesion is compared with all candidates that touch it when grown. The lesion-wise HD95 needs the surface of
    these candidates together, which a table of pairs does not hold.
    """
    table, counts = outcome.table, _Counts.of(outcome)
    overlaps = table.overlaps
    num_lesions = len(table.lesions)
    shared = _sum_by(overlaps.lesion, overlaps.num_voxels, num_lesions)
    touching = _sum_by(overlaps.lesion, table.candidates.num_voxels[overlaps.candidate - 1], num_lesions)
    dice = 2 * shared / (table.lesions.num_voxels + touching)
    num_parts = counts.num_lesions + counts.num_false
    voxels = _Voxels.of(outcome)
    return {
        "lesion_wise_dice": float(dice[~outcome.lesion_ignored].sum()) / num_parts if num_parts else 1.0,
        "dice": voxels.dice if voxels.reference + voxels.predicted else 1.0,
    }


def brats_met_20mm3(outcome: CaseOutcome) -> Figures:
    """Figures of BraTS metastases since 2024 for lesions of 20 mm3 or more and for smaller ones.

    A false candidate counts against the lesions of its own size, and in a case without lesions too.
    """
    table = outcome.table
    counted, found = ~outcome.lesion_ignored, outcome.lesion_candidate > 0
    false = outcome.candidate_verdict == Verdict.FALSE
    _, dice = pair_overlap(outcome)
    is_large = 1000 * table.lesions.volume_ml >= 20, 1000 * table.candidates.volume_ml >= 20
    figures = {}
    for size, (lesions, candidates) in {"large": is_large, "small": (~is_large[0], ~is_large[1])}.items():
        num_found = int((counted & found & lesions).sum())
        num_parts = int((counted & lesions).sum()) + int((false & candidates).sum())
        figures[f"{size}_lesion_wise_dice"] = _ratio(float(dice[lesions & found].sum()), num_parts)
        figures[f"{size}_lesion_f1"] = _ratio(2 * num_found, num_found + num_parts)
    return figures


def msseg(outcome: CaseOutcome) -> Figures:
    """Lesion sensitivity, positive predictive value and F1 of MSSEG 2016.

    F1 is 0 where one of them is undefined and NaN where both are.
    """
    counts = _Counts.of(outcome)
    sensitivity = _ratio(counts.num_found, counts.num_lesions)
    value = _ratio(counts.num_true, counts.num_true + counts.num_false)
    total = np.nansum([sensitivity, value])
    f1 = 2 * sensitivity * value / total if total else 0.0
    undefined = math.isnan(sensitivity), math.isnan(value)
    return {
        "sensl": sensitivity,
        "ppvl": value,
        "f1": math.nan if all(undefined) else 0.0 if any(undefined) else float(f1),
    }


def panoptic(outcome: CaseOutcome) -> Figures:
    """Recognition, segmentation and panoptic quality; NaN in a case without lesions and candidates.

    References:
        A. Kirillov et al., "Panoptic segmentation", CVPR 2019, equation 1.
    """
    counts = _Counts.of(outcome)
    iou = float(pair_overlap(outcome)[0][outcome.lesion_candidate > 0].sum())
    denominator = (counts.num_found + counts.num_lesions + counts.num_false) / 2
    return {
        "rq": _ratio(counts.num_found, denominator),
        "sq": _ratio(iou, counts.num_found),
        "pq": _ratio(iou, denominator),
    }


def picai(cases: Pool) -> Figures:
    """Average precision of lesions, AUROC of cases, and their mean, by which PI-CAI ranks."""
    ap = float(free_response_ap(cases, np.ones((1, cases.num_patients)))[0])
    auroc = case_auroc(cases, level=0.95).value
    return {"ap": ap, "auroc": auroc, "score": (ap + auroc) / 2}


def mean_sensitivity(cases: Pool, rates: Sequence[float]) -> float:
    """Mean sensitivity at these false candidates per case, read from a FROC of straight lines between its points.

    The curve starts at no false candidate and no lesion, and stays level after its last point. NaN without lesions.

    References:
        A. A. A. Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of
        pulmonary nodules in CT: the LUNA16 challenge", Medical Image Analysis 42 (2017) 1-13.
    """
    if cases.num_lesions == 0:
        return math.nan
    found = np.sort(cases.lesion_confidence[np.isfinite(cases.lesion_confidence)])
    false = np.sort(cases.candidate_confidence[~cases.candidate_is_true])
    thresholds = np.unique(np.concatenate([found, false]))[::-1]
    num_found = len(found) - np.searchsorted(found, thresholds)
    num_false = len(false) - np.searchsorted(false, thresholds)
    x = np.concatenate([[0.0], num_false / cases.num_cases])
    y = np.concatenate([[0.0], num_found / cases.num_lesions])
    return float(np.interp(rates, x, y).mean())


OF_CASES: Mapping[str, Callable[[CaseOutcome], Figures]] = {
    "lesion_metrics": lesion_metrics,
    "isles22": isles22,
    "autopet3": autopet3,
    "brats2023_met": brats2023,
    "brats2023_gli": brats2023,
    "brats_met_20mm3": brats_met_20mm3,
    "msseg": msseg,
    "panoptica_iou50": panoptic,
}
OF_SETS: Mapping[str, Callable[[Pool], Figures]] = {
    "picai": picai,
    "luna16": lambda cases: {"cpm": mean_sensitivity(cases, LUNA16_RATES)},
    "camelyon": lambda cases: {"froc_score": mean_sensitivity(cases, CAMELYON_RATES)},
}


@dataclass(frozen=True)
class _Voxels:
    """Voxels of both masks outside the region to be ignored."""

    shared: int
    reference: int
    predicted: int

    @property
    def dice(self) -> float:
        return _ratio(2 * self.shared, self.reference + self.predicted)

    @classmethod
    def of(cls, outcome: CaseOutcome) -> _Voxels:
        table = outcome.table
        return cls(
            shared=int((table.overlaps.num_voxels - table.pair_ignored_voxels).sum()),
            reference=int((table.lesions.num_voxels - table.lesions.ignored_voxels).sum()),
            predicted=int((table.candidates.num_voxels - table.candidates.ignored_voxels).sum()),
        )


@dataclass(frozen=True)
class _Counts:
    """Counted lesions and candidates."""

    num_lesions: int
    num_found: int
    num_true: int
    num_false: int

    @classmethod
    def of(cls, outcome: CaseOutcome) -> _Counts:
        return cls(
            num_lesions=int((~outcome.lesion_ignored).sum()),
            num_found=int((outcome.lesion_candidate > 0).sum()),
            num_true=int((outcome.candidate_verdict == Verdict.TRUE).sum()),
            num_false=int((outcome.candidate_verdict == Verdict.FALSE).sum()),
        )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _sum_by(number: NDArray[np.int64], values: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(number, values, minlength=size + 1)[1:], np.float64)


def _mean_where_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return _ratio(sum(defined), len(defined))
