"""A threshold at which few lesions are missed, with a promise for patients that nobody has seen yet.

The loss of a patient at a threshold is the share of the own lesions that no candidate of that confidence or more
finds. A lesion is found from one confidence down, so a loss never rises as the threshold falls, and it falls at
thresholds at which it already counts as fallen: what both theorems ask for. Losses lie in [0, 1].

References:
    A. N. Angelopoulos, S. Bates, A. Fisch, L. Lei, T. Schuster, "Conformal risk control", ICLR 2024 (arXiv 2208.02814,
    2022), theorem 1: the mean over exchangeable patients and calibration sets.
    S. Bates, A. Angelopoulos, L. Lei, J. Malik, M. I. Jordan, "Distribution-free, risk-controlling prediction sets",
    Journal of the ACM 68 (2021), theorem 2.1 and section 3.1: with a stated probability over calibration sets of
    patients drawn independently, by the bounds of Hoeffding and Bentkus.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: By how much a mean of losses may be off by rounding: below it two means are equal.
ROUNDING = 1e-9
#: Numbers of patients up to which each is tried.
MOST_TRIED = 20_000


@dataclass(frozen=True, eq=False)
class MissCurve:
    """Mean over patients of the share of lesions that each of them misses, at falling thresholds.

    Attributes:
        threshold: Distinct confidences at which lesions are found, falling, (n,). The mean changes at no other.
        miss_rate: Mean of the losses at each, never rising, (n,).
        num_patients: With lesions.
        num_lesions: Of all of them.
    """

    threshold: NDArray[np.float64]
    miss_rate: NDArray[np.float64]
    num_patients: int
    num_lesions: int

    @property
    def residual(self) -> float:
        """Mean share of lesions that are in no candidate at all; NaN without patients."""
        if not self.num_patients:
            return math.nan
        return float(self.miss_rate[-1]) if len(self.miss_rate) else 1.0

    def at(self, threshold: float) -> float:
        """Mean of the losses at any threshold; NaN without patients."""
        place = int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1
        if not self.num_patients:
            return math.nan
        return float(self.miss_rate[place]) if place >= 0 else 1.0


def miss_curve(confidence: ArrayLike, patient: ArrayLike) -> MissCurve:
    """Draw the mean loss of patients against the threshold.

    Args:
        confidence: Highest threshold at which each lesion is found; -inf if at none, (lesions,).
        patient: Number of each lesion's patient, (lesions,). Patients without lesions don't occur, and don't count.

    Returns:
        The curve. No lesion: no points and no patients.

    Example:
        >>> curve = miss_curve([0.9, 0.2, 0.5], [0, 0, 1])
        >>> curve.threshold.tolist(), curve.miss_rate.tolist()
        ([0.9, 0.5, 0.2], [0.75, 0.25, 0.0])
    """
    found, number = np.asarray(confidence, np.float64), np.asarray(patient, np.int64)
    _, row, count = np.unique(number, return_inverse=True, return_counts=True)
    is_found = found > -np.inf
    threshold, place = np.unique(-found[is_found], return_inverse=True)
    gained = np.bincount(place, 1 / count[row[is_found]], minlength=len(threshold))
    rate = 1 - np.cumsum(gained) / max(len(count), 1)
    rate[np.abs(rate) < ROUNDING] = 0.0  # where the last lesion is found the sum is 1 but for rounding
    return MissCurve(-threshold, rate, len(count), len(found))


def controlled_threshold(curve: MissCurve, target: float, *, confidence_level: float | None = None) -> float | None:
    """Find the highest threshold that controls the miss rate.

    Without a level: the highest t with (sum of losses at t + 1) / (n + 1) <= target over n patients. Then the mean
    loss of a further patient, over calibration sets exchangeable with the patient, is at most `target` (conformal risk
    control, theorem 1). With a level: the highest t at which, and below which, `tail_probability` of the target is at
    most 1 - level. Then the threshold's mean loss over all patients is at most `target` with that probability
    (risk-controlling prediction sets, theorem 2.1).

    Args:
        curve: Of the calibration patients.
        target: Miss rate, in (0, 1).
        confidence_level: In (0, 1), or None.

    Returns:
        The threshold; None if no threshold does: `patients_needed` says why.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> curve = miss_curve([0.9, 0.8, 0.7, 0.6], [0, 1, 2, 3])
        >>> controlled_threshold(curve, 0.5), controlled_threshold(curve, 0.1)
        (0.7, None)
    """
    _check(target, confidence_level)
    if not curve.num_patients:
        return None
    num, rates = curve.num_patients, curve.miss_rate.tolist()

    def is_controlled(rate: float) -> bool:
        if confidence_level is None:
            return (rate * num + 1) / (num + 1) <= target + ROUNDING
        return tail_probability(rate, num, target) <= 1 - confidence_level

    place = bisect.bisect_left(rates, x=True, key=is_controlled)  # from one threshold down all are
    return float(curve.threshold[place]) if place < len(rates) else None


def tail_probability(mean: float, num: int, risk: float) -> float:
    """Bound the probability that a mean of losses is as low as this though their expectation is `risk`.

    The lesser of Hoeffding's exp(-n h(min(mean, risk), risk)), with h(a, b) = a log(a / b) + (1 - a) log((1 - a) /
    (1 - b)), and Bentkus's e P(Binomial(n, risk) <= ceil(n mean)). It never falls as the mean rises, nor rises with the
    risk.

    Args:
        mean: Of the losses, in [0, 1].
        num: How many losses.
        risk: Their expectation, in (0, 1).
    """
    low = min(mean, risk)
    exponent = _times_log(low, low / risk) + _times_log(1 - low, (1 - low) / (1 - risk))
    bentkus = math.e * _binomial_cdf(math.ceil(num * mean - ROUNDING), num, risk)
    return min(1.0, math.exp(-num * exponent), bentkus)


def hoeffding_bentkus(mean: float, num: int, *, confidence_level: float) -> float:
    """Give the upper bound of an expectation in [0, 1] that holds with a probability, by Hoeffding and Bentkus.

    It is the least risk whose `tail_probability` is at most 1 - level; 1 if there is none below.

    Args:
        mean: Of the losses, in [0, 1].
        num: How many losses, at least 1.
        confidence_level: In (0, 1).
    """
    low, high = mean, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_likely = 0 < middle < 1 and tail_probability(mean, num, middle) > 1 - confidence_level
        low, high = (middle, high) if is_likely else (low, middle)
    return high


def patients_needed(residual: float, target: float, *, confidence_level: float | None = None) -> int | None:
    """Tell how many patients it takes to control the miss rate, if they miss lesions as those at hand do.

    Without a level (1 - target) / (target - residual), rounded up; with one the least number at which
    `tail_probability` allows it.

    Args:
        residual: Mean share of lesions that are in no candidate.
        target: Miss rate, in (0, 1).
        confidence_level: In (0, 1), or None.

    Returns:
        The number; None if no number will do, because as much as the target is in no candidate.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> patients_needed(0.0, 0.1), patients_needed(0.05, 0.1), patients_needed(0.1, 0.1)
        (9, 18, None)
        >>> patients_needed(0.0, 0.1, confidence_level=0.9)
        22
    """
    _check(target, confidence_level)
    if residual >= target - ROUNDING:
        return None
    if confidence_level is None:
        return math.ceil((1 - target) / (target - residual) - ROUNDING)
    exponent = _times_log(residual, residual / target) + _times_log(1 - residual, (1 - residual) / (1 - target))
    enough = math.ceil(-math.log(1 - confidence_level) / exponent)  # by Hoeffding alone
    for num in range(1, min(enough, MOST_TRIED)):
        if tail_probability(residual, num, target) <= 1 - confidence_level:
            return num
    return enough


def _check(target: float, confidence_level: float | None) -> None:
    for name, value in (("target", target), ("confidence_level", confidence_level)):
        if value is not None and not 0 < value < 1:
            message = f"{name} must be in (0, 1), got {value}"
            raise ValueError(message)


def _times_log(factor: float, ratio: float) -> float:
    return factor * math.log(ratio) if factor > 0 else 0.0


def _binomial_cdf(most: int, num: int, probability: float) -> float:
    """P(Binomial(num, probability) <= most)."""
    if most >= num:
        return 1.0
    k = np.arange(most + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])
    log_choose = log_factorial[num] - log_factorial[k] - log_factorial[num - k]
    return float(np.exp(log_choose + k * math.log(probability) + (num - k) * math.log1p(-probability)).sum())
