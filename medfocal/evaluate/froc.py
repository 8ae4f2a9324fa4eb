"""Free-response operating characteristic: lesions found against false candidates per case."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """A point for each distinct confidence, from the highest down; candidates at or above it count.

    Attributes:
        threshold: Confidence from which candidates count, falling, (n,).
        false_positives_per_case: False candidates at or above the threshold over all cases, (n,).
        lesion_sensitivity: Found lesions over all lesions, (n,). NaN where there is no lesion.
    """

    threshold: NDArray[np.float64]
    false_positives_per_case: NDArray[np.float64]
    lesion_sensitivity: NDArray[np.float64]


@dataclass(frozen=True)
class FrocPoint:
    """The lesion sensitivity that a rate of false candidates allows.

    Attributes:
        false_positives_per_case: The allowed rate.
        lesion_sensitivity: Sensitivity at the last point whose rate is not above it; NaN where there is no lesion.
        threshold: Candidates of this confidence or more count at that point. Infinite where none may count.
        reached: Whether the curve goes on to that rate; if not, the last value is carried.
    """

    false_positives_per_case: float
    lesion_sensitivity: float
    threshold: float
    reached: bool


def froc_curve(confidence: ArrayLike, true: ArrayLike, *, num_lesions: int, num_cases: int) -> FrocCurve:
    """Count found lesions and false candidates at each distinct confidence.

    Args:
        confidence: Confidence of every candidate of every case, (n,).
        true: Whether the candidate finds a lesion, bool (n,).
        num_lesions: Lesions of all cases.
        num_cases: All cases, those without lesions included.

    Returns:
        The curve without its start at no candidates. No candidates: no points.
    """
    confidence = np.asarray(confidence, np.float64)
    true = np.asarray(true, np.bool_)
    threshold, group = np.unique(-confidence, return_inverse=True)
    num_true = np.cumsum(np.bincount(group[true], minlength=len(threshold)))
    num_false = np.cumsum(np.bincount(group[~true], minlength=len(threshold)))
    return FrocCurve(
        threshold=-threshold,
        false_positives_per_case=num_false / num_cases,
        lesion_sensitivity=num_true / num_lesions if num_lesions else np.full(len(threshold), math.nan),
    )


def corners(curve: FrocCurve) -> FrocCurve:
    """Leave out the points inside level runs; the step function stays the same.

    A hundred thousand false candidates then don't make a hundred thousand points.
    """
    rises = np.diff(curve.lesion_sensitivity) > 0
    kept = np.ones(len(curve.threshold), np.bool_)
    kept[1:-1] = rises[:-1] | rises[1:]
    return FrocCurve(curve.threshold[kept], curve.false_positives_per_case[kept], curve.lesion_sensitivity[kept])


def read_froc(curve: FrocCurve, rates: tuple[float, ...], *, num_lesions: int) -> list[FrocPoint]:
    """Read the curve as a step function: at rate x the last point with at most x false candidates per case.

    Args:
        curve: From `froc_curve`.
        rates: False candidates per case.
        num_lesions: Lesions of all cases; without any the sensitivity is NaN.

    Returns:
        A point for each rate.
    """
    points = []
    for rate in rates:
        last = int(np.searchsorted(curve.false_positives_per_case, rate, side="right")) - 1
        start = 0.0 if num_lesions else math.nan
        sensitivity = float(curve.lesion_sensitivity[last]) if last >= 0 else start
        threshold = float(curve.threshold[last]) if last >= 0 else math.inf
        reached = bool(np.any(curve.false_positives_per_case >= rate))
        points.append(FrocPoint(rate, sensitivity, threshold, reached))
    return points
