"""Figures of single cases and lesions over a set, with intervals of their means by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.evaluate.bootstrap import bootstrap_rate, replicate
from medfocal.evaluate.intervals import Rate
from medfocal.evaluate.pool import Pool
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.tally import Floats, ratio, total


@dataclass(frozen=True)
class Distribution:
    """A figure of single cases, or of single lesions, over those where it is defined.

    Attributes:
        mean: Mean over those, NaN if there is none.
        median: Their median, NaN if there is none.
        low: Lower end of the interval of the mean.
        high: Upper end.
        level: Confidence level.
        method: How the interval was computed.
        num_cases: Cases, or lesions, where the figure is defined.
        num_undefined: Cases, or lesions, where it is not.
        num_patients: Patients of those where it is.
    """

    mean: float
    median: float
    low: float
    high: float
    level: float
    method: str
    num_cases: int
    num_undefined: int
    num_patients: int


@dataclass(frozen=True, eq=False)
class Values:
    """A figure of each case, or of each lesion.

    Attributes:
        values: The figure; NaN where it is undefined, (n,).
        patients: Number of the patient of each from 0, (n,).
    """

    values: NDArray[np.float64]
    patients: NDArray[np.int64]

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, object]], name: str, patients: NDArray[np.int64]) -> Values:
        """Take a column of rows."""
        return cls(np.array([row[name] for row in rows], np.float64), patients)

    def mean(self, weights: ArrayLike) -> Floats:
        """Average over the defined values under each weighting of the patients, (weightings,)."""
        weights = np.asarray(weights, np.float64)
        defined = np.isfinite(self.values)
        patients = self.patients[defined]
        return ratio(total(patients, weights, self.values[defined]), total(patients, weights))


def distributions(figures: Mapping[str, Values], num_patients: int, protocol: Protocol) -> dict[str, Distribution]:
    """Sum up figures of cases or lesions, with BCa intervals of their means over resamples of patients.

    Args:
        figures: The figures by name.
        num_patients: Patients of the whole set.
        protocol: Its level, resamples and seed count.
    """

    def means(weights: Floats) -> Floats:
        return np.stack([values.mean(weights) for values in figures.values()], axis=1)

    found = replicate(means, num_patients, num_resamples=protocol.num_resamples, seed=protocol.seed)
    summed = {}
    for number, (name, values) in enumerate(figures.items()):
        rate = bootstrap_rate(found, level=protocol.level, figure=number, why_undefined="it is defined nowhere")
        defined = np.isfinite(values.values)
        summed[name] = Distribution(
            mean=rate.value,
            median=float(np.median(values.values[defined])) if defined.any() else math.nan,
            low=rate.low,
            high=rate.high,
            level=protocol.level,
            method=rate.method,
            num_cases=int(defined.sum()),
            num_undefined=int((~defined).sum()),
            num_patients=len(np.unique(values.patients[defined])),
        )
    return summed


def no_distribution(level: float) -> Distribution:
    """Give what is said of a figure where there is no case at all."""
    return Distribution(math.nan, math.nan, math.nan, math.nan, level, "undefined: there is no case", 0, 0, 0)


def panoptic(cases: Pool, iou: NDArray[np.float64], protocol: Protocol) -> dict[str, Rate]:
    """Estimate segmentation quality, the mean IoU of found lesions, and its product with F1, panoptic quality.

    Args:
        cases: The outcomes of all cases.
        iou: IoU of each lesion with the candidate that finds it, (lesions,) in the order of `cases`.
        protocol: Its threshold, level, resamples and seed count.

    Returns:
        "segmentation_quality" and "panoptic_quality"; NaN without a found lesion, and without any lesion and candidate.

    References:
        A. Kirillov et al., "Panoptic segmentation", CVPR 2019, eq. 1.
    """
    found = cases.lesion_confidence >= protocol.threshold
    false = (cases.candidate_confidence >= protocol.threshold) & ~cases.candidate_is_true
    patients = cases.lesion_patient

    def statistic(weights: Floats) -> Floats:
        num_found = total(patients[found], weights)
        num_missed = total(patients[~found], weights)
        num_false = total(cases.candidate_patient[false], weights)
        sum_iou = total(patients[found], weights, iou[found])
        quality = ratio(sum_iou, num_found + (num_missed + num_false) / 2)
        return np.stack([ratio(sum_iou, num_found), quality], axis=1)

    replicates = replicate(statistic, cases.num_patients, num_resamples=protocol.num_resamples, seed=protocol.seed)
    reasons = {
        "segmentation_quality": "no lesion is found",
        "panoptic_quality": "there is no lesion and no candidate at the threshold",
    }
    return {
        name: bootstrap_rate(replicates, level=protocol.level, figure=number, why_undefined=why)
        for number, (name, why) in enumerate(reasons.items())
    }
