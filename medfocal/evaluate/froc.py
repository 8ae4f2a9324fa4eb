"""Free-response operating characteristic: lesions found against false candidates per case."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.evaluate.bootstrap import replicate
from medfocal.evaluate.intervals import mean_score
from medfocal.evaluate.operating_points import sensitivity_at_rates
from medfocal.evaluate.pool import Pool
from medfocal.evaluate.protocols import Interval

#: The band is drawn between these rates of false candidates per case, at so many points, evenly spaced in logarithms.
BAND_START, BAND_END, BAND_POINTS = 1 / 16, 16.0, 65


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
        low: Lower end of the interval of the sensitivity, by patient; NaN without resamples.
        high: Upper end.
    """

    false_positives_per_case: float
    lesion_sensitivity: float
    threshold: float
    reached: bool
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, eq=False)
class FrocBand:
    """Pointwise intervals of the lesion sensitivity along the curve; each holds for its own rate, not for all at once.

    Attributes:
        false_positives_per_case: Rates, rising, (n,).
        low: Lower ends, (n,).
        high: Upper ends, (n,).
    """

    false_positives_per_case: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Froc:
    """The FROC and what is read from it.

    Attributes:
        points: Lesion sensitivity at each of the protocol's rates of false candidates.
        cpm: Mean lesion sensitivity of the points (competition performance metric).
        cpm_low: Lower end of its interval; NaN without resamples.
        cpm_high: Upper end.
        method: How the intervals were computed.
        curve: The corners of the curve.
        band: Intervals along the curve; without points where there are no resamples.
    """

    points: list[FrocPoint]
    cpm: float
    cpm_low: float
    cpm_high: float
    method: str
    curve: FrocCurve
    band: FrocBand

    def to_dict(self) -> dict[str, Any]:
        """Give points, curve and band as lists of rows; a threshold at which no candidate counts is infinite."""
        return {
            "points": [asdict(point) for point in self.points],
            "cpm": self.cpm,
            "cpm_low": self.cpm_low,
            "cpm_high": self.cpm_high,
            "method": self.method,
            "curve": _rows(self.curve, ("threshold", "false_positives_per_case", "lesion_sensitivity")),
            "band": _rows(self.band, ("false_positives_per_case", "low", "high")),
        }


def froc(
    pool: Pool,
    rates: Sequence[float],
    *,
    level: float,
    num_resamples: int,
    seed: int,
    interval: Interval = "clopper_pearson",
) -> Froc:
    """Draw the FROC of a set, and read it with intervals by patient.

    The sensitivities of resampled patients give the variance of each point, and this the design effect of its interval
    (`medfocal.evaluate.intervals.mean_score`). Their quantiles would shrink to a point where all lesions are found.

    Args:
        pool: Lesions, candidates and cases. Ignored ones and doubles are not in it.
        rates: False candidates per case at which to read the curve, rising.
        level: Confidence level of the intervals.
        num_resamples: Resamples of patients; 0 leaves out intervals and band.
        seed: Of the resamples.
        interval: Interval of independent lesions, "clopper_pearson" or "wilson".

    Returns:
        The FROC. Without lesions its sensitivities are NaN and it has no band.
    """
    curve = pool_curve(pool)
    points = read_froc(curve, tuple(rates), num_lesions=pool.num_lesions)
    cpm = sum(point.lesion_sensitivity for point in points) / len(points)
    if not pool.num_lesions or not num_resamples:
        none = np.empty(0)
        why = "there is no lesion" if not pool.num_lesions else "no resamples were asked for"
        shorter = corners(curve)
        return Froc(points, cpm, math.nan, math.nan, f"no intervals: {why}", shorter, FrocBand(none, none, none))
    grid = _band_grid(curve)
    variance, cpm_variance = _variances(pool, rates, grid, num_resamples=num_resamples, seed=seed)
    along = [*points, *read_froc(curve, tuple(grid), num_lesions=pool.num_lesions)]
    found = [pool.lesion_confidence >= point.threshold for point in along]
    intervals = [
        mean_score(lesions, pool.lesion_patient, float(spread), level=level, method=interval)
        for lesions, spread in zip(found, variance, strict=True)
    ]
    mean_found = np.mean(found[: len(points)], axis=0)
    of_cpm = mean_score(mean_found, pool.lesion_patient, cpm_variance, level=level, method=interval)
    ends = np.array([(estimate.low, estimate.high) for estimate in intervals])
    return Froc(
        points=[
            replace(point, low=float(low), high=float(high))
            for point, (low, high) in zip(points, ends[: len(points)], strict=True)
        ],
        cpm=cpm,
        cpm_low=of_cpm.low,
        cpm_high=of_cpm.high,
        method=f"{of_cpm.method} ({num_resamples})",
        curve=corners(curve),
        band=FrocBand(grid, *ends[len(points) :].T),
    )


def of_one_operating_point(found: Froc) -> Froc:
    """Give the FROC of masks, whose candidates all have one confidence.

    At rates below that of the masks it says nothing: nobody knows what fewer candidates would have found. So these
    points, the band there and, if there are such points, the CPM are NaN.

    Args:
        found: From `froc`; a point at which no candidate may count has an infinite threshold.
    """
    if not any(math.isinf(point.threshold) for point in found.points):
        return found
    nan = math.nan
    points = [
        replace(point, lesion_sensitivity=nan, low=nan, high=nan) if math.isinf(point.threshold) else point
        for point in found.points
    ]
    rates = found.band.false_positives_per_case
    reached = rates >= found.curve.false_positives_per_case[:1].max(initial=0)
    band = FrocBand(rates[reached], found.band.low[reached], found.band.high[reached])
    return replace(found, points=points, cpm=nan, cpm_low=nan, cpm_high=nan, band=band)


def _band_grid(curve: FrocCurve) -> NDArray[np.float64]:
    end = min(BAND_END, float(curve.false_positives_per_case[-1])) if len(curve.threshold) else 0.0
    return np.geomspace(BAND_START, end, BAND_POINTS) if end > BAND_START else np.array([BAND_START])


def _variances(
    pool: Pool, rates: Sequence[float], grid: NDArray[np.float64], *, num_resamples: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Variance between resamples of the sensitivity at each rate and along the grid, and of the CPM."""
    statistic = functools.partial(sensitivity_at_rates, pool, rates=(*rates, *grid))
    replicates = replicate(statistic, pool.num_patients, num_resamples=num_resamples, seed=seed).resampled
    replicates = replicates[~np.isnan(replicates[:, 0])]
    if not len(replicates):
        return np.zeros(len(rates) + len(grid)), 0.0
    return replicates.var(axis=0), float(replicates[:, : len(rates)].mean(axis=1).var())


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


def pool_curve(pool: Pool) -> FrocCurve:
    """Draw the curve of a set: lesions count as found from their own confidence on, however many candidates find them.

    Args:
        pool: Lesions, candidates and cases.

    Returns:
        The curve. No found lesion and no false candidate: no points.
    """
    found = pool.lesion_confidence[pool.lesion_confidence > -np.inf]
    false = pool.candidate_confidence[~pool.candidate_is_true]
    confidence = np.concatenate([found, false])
    true = np.arange(len(confidence)) < len(found)
    return froc_curve(confidence, true, num_lesions=pool.num_lesions, num_cases=pool.num_cases)


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
        A point for each rate, without intervals.
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


def _rows(table: Any, columns: tuple[str, ...]) -> list[dict[str, float]]:
    values = zip(*(getattr(table, column).tolist() for column in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
