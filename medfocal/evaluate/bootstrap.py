"""Intervals by resampling patients, for figures without an interval in closed form.

A resample draws as many patients as there are, with replacement; all cases, lesions and candidates of a patient come
along. It is stored as weights, how often each patient was drawn, and a statistic is a function of weights: it computes
many resamples at once and is never handed copies of the data.

References:
    B. Efron, "Better bootstrap confidence intervals", Journal of the American Statistical Association 82 (1987)
    171-185: BCa, equations 2.3, 6.6 and 6.8. We count half of the replicates that equal the value as below it, since
    counts make ties.
    A. C. Davison, D. V. Hinkley, "Bootstrap Methods and their Application", Cambridge 1997, section 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from medfocal.evaluate.intervals import Rate

FloatArray = NDArray[np.float64]
#: Takes weights (rows, patients) and gives one value a row, (rows,), or several, (rows, figures); NaN is undefined.
Statistic = Callable[[FloatArray], FloatArray]
IntervalKind = Literal["bca", "percentile"]

#: Fewer patients than this describe the differences between patients badly, and intervals come out too short.
FEW_PATIENTS = 25

#: Weights that are held at once: 8 MB.
_BLOCK_SIZE = 1_000_000


@dataclass(frozen=True, eq=False)
class Replicates:
    """A statistic of the patients as they are, of resamples, and of all but one patient.

    Attributes:
        value: Of the patients as they are, (figures,).
        resampled: Of each resample, (resamples, figures).
        left_out: Without each patient in turn, (patients, figures).
        num_patients: Patients.
    """

    value: FloatArray
    resampled: FloatArray
    left_out: FloatArray
    num_patients: int


def draw_weights(num_patients: int, num_resamples: int, *, seed: int) -> Iterator[FloatArray]:
    """Draw resamples of patients, some rows at a time so that memory stays bounded.

    Args:
        num_patients: Patients, at least 1.
        num_resamples: Resamples.
        seed: Of the draws. The rows don't depend on how many come at a time.

    Yields:
        How often each patient was drawn, (rows, patients). Each row adds up to `num_patients`.
    """
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK_SIZE // num_patients)
    for start in range(0, num_resamples, rows):
        num_rows = min(rows, num_resamples - start)
        drawn = random.integers(num_patients, size=(num_rows, num_patients))
        drawn += num_patients * np.arange(num_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num_rows * num_patients)
        yield counts.reshape(num_rows, num_patients).astype(np.float64)


def replicate(statistic: Statistic, num_patients: int, *, num_resamples: int, seed: int) -> Replicates:
    """Compute a statistic of resamples of patients.

    Args:
        statistic: Function of weights.
        num_patients: Patients; with none every figure is undefined, and the statistic is asked for weights (1, 0).
        num_resamples: Resamples; 0 leaves the patients as they are.
        seed: Of the resamples.

    Returns:
        The replicates; without resamples nobody is left out either.
    """
    value = _by_row(statistic(np.ones((1, num_patients))))[0]
    if not num_patients or not num_resamples:
        nothing = np.empty((0, len(value)))
        return Replicates(value, nothing, nothing, num_patients)
    resampled = [_by_row(statistic(weights)) for weights in draw_weights(num_patients, num_resamples, seed=seed)]
    left_out = [_by_row(statistic(weights)) for weights in _leave_one_out(num_patients)]
    return Replicates(value, np.concatenate(resampled), np.concatenate(left_out), num_patients)


def bootstrap_interval(
    replicates: Replicates, *, level: float, kind: IntervalKind = "bca"
) -> tuple[FloatArray, FloatArray]:
    """Read intervals from replicates; those that are NaN are left out.

    "percentile" takes the quantiles (1 - level) / 2 and (1 + level) / 2 of the replicates. "bca" moves both quantiles
    by the bias z0 of the replicates and by the acceleration a = sum(d^3) / (6 sum(d^2)^1.5), d the difference of the
    mean of the values without a patient to each of them.

    Args:
        replicates: From `replicate`.
        level: Confidence level in (0, 1).
        kind: "bca" or "percentile".

    Returns:
        Lower and upper ends, (figures,). NaN where the value or every replicate is.
    """
    ends = [_ends(replicates, figure, level, kind) for figure in range(len(replicates.value))]
    low, high = np.reshape(np.array(ends, np.float64), (-1, 2)).T
    return low, high


def bootstrap_rate(
    replicates: Replicates, *, level: float, kind: IntervalKind = "bca", figure: int = 0, why_undefined: str = ""
) -> Rate:
    """Make a figure with its interval.

    Args:
        replicates: From `replicate`.
        level: Confidence level in (0, 1).
        kind: "bca" or "percentile".
        figure: Which column of the replicates.
        why_undefined: Reason to state where the value is NaN.

    Returns:
        The figure. It has no numerator, denominator and design effect: NaN. `method` names the kind, the resamples, and
        how many of them had no value.
    """
    value = float(replicates.value[figure])
    low, high = _ends(replicates, figure, level, kind)
    num_resamples = len(replicates.resampled)
    num_undefined = int(np.isnan(replicates.resampled[:, figure]).sum())
    if math.isnan(value):
        method = f"undefined: {why_undefined}" if why_undefined else "undefined"
    elif not num_resamples:
        method = "no interval: no resamples were asked for"
    else:
        method = f"{_describe(kind)} of {num_resamples} resamples of patients"
        if num_undefined:
            method += f", {num_undefined} of them without a value"
    return Rate(value, low, high, level, method, math.nan, math.nan, replicates.num_patients, math.nan)


def warn_of_few_patients(num_patients: int) -> str | None:
    """Give the sentence that a report owes its reader where intervals rest on few patients; None if it owes none."""
    if num_patients >= FEW_PATIENTS:
        return None
    patients = "is 1 patient" if num_patients == 1 else f"are {num_patients} patients"
    return (
        f"There {patients}: intervals by bootstrap, as the method of a figure says, are often too"
        f" short under {FEW_PATIENTS}. Those of sensitivity, precision and false positives are of another kind."
    )


def _by_row(values: FloatArray) -> FloatArray:
    return values.reshape(len(values), -1)


def _leave_one_out(num_patients: int) -> Iterator[FloatArray]:
    rows = max(1, _BLOCK_SIZE // num_patients)
    for start in range(0, num_patients, rows):
        left_out = np.arange(start, min(start + rows, num_patients))
        weights = np.ones((len(left_out), num_patients))
        weights[np.arange(len(left_out)), left_out] = 0
        yield weights


def _describe(kind: IntervalKind) -> str:
    return {"bca": "BCa bootstrap", "percentile": "percentile bootstrap"}[kind]


def _ends(replicates: Replicates, figure: int, level: float, kind: IntervalKind) -> tuple[float, float]:
    value = float(replicates.value[figure])
    resampled = replicates.resampled[:, figure]
    resampled = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(resampled):
        return math.nan, math.nan
    quantiles = np.array([(1 - level) / 2, (1 + level) / 2])
    if kind == "bca":
        quantiles = _bca_quantiles(value, resampled, replicates.left_out[:, figure], quantiles)
    low, high = np.quantile(resampled, np.clip(quantiles, 0, 1))
    return float(low), float(high)


def _bca_quantiles(value: float, resampled: FloatArray, left_out: FloatArray, quantiles: FloatArray) -> FloatArray:
    rounding = 1e-12 * max(1.0, abs(value))  # the order of sums must not decide ties
    below = ((resampled < value - rounding).mean() + (resampled <= value + rounding).mean()) / 2
    bias = float(ndtri(np.clip(below, 0.5 / len(resampled), 1 - 0.5 / len(resampled))))
    left_out = left_out[~np.isnan(left_out)]
    differences = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float((differences**2).sum()) ** 1.5
    acceleration = float((differences**3).sum()) / (6 * spread) if spread > 0 else 0.0
    moved = bias + ndtri(quantiles)
    # A denominator that is not above 0 stands for the outermost replicate.
    return np.asarray(ndtr(bias + moved / np.maximum(1 - acceleration * moved, 1e-9)), np.float64)
