"""Intervals of proportions and rates whose units come in patients.

Lesions of one patient are found or missed together more often than lesions of two. The variance of the estimate
is therefore taken from the differences between patients, and divided by the variance that independent lesions
would have. This design effect says how many lesions tell as much as one independent lesion; numerator and
denominator are divided by it before an exact interval is computed.

References:
    J. N. K. Rao, A. J. Scott, "A simple method for the analysis of clustered binary data", Biometrics 48
    (1992) 577-585.
    E. L. Korn, B. I. Graubard, "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data", Survey Methodology 24 (1998) 193-201. We leave out their factor for the
    degrees of freedom of the variance, and a design effect below 1 counts as 1.
    F. Garwood, "Fiducial limits for the Poisson distribution", Biometrika 28 (1936) 437-442.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, gammaincinv


@dataclass(frozen=True)
class Rate:
    """A proportion or a rate with its interval; NaN where undefined.

    Attributes:
        value: Numerator over denominator.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Confidence level of the interval.
        method: How the interval was computed.
        numerator: What was counted.
        denominator: Out of how many, or over what amount.
        num_patients: Patients that contribute to the denominator.
        deff: Design effect, at least 1.
    """

    value: float
    low: float
    high: float
    level: float
    method: str
    numerator: float
    denominator: float
    num_patients: int
    deff: float

    def to_dict(self) -> dict[str, Any]:
        """Give every field by its name."""
        return asdict(self)


def proportion(counts: ArrayLike, totals: ArrayLike, *, level: float) -> Rate:
    """Estimate a proportion of units that come in patients.

    Value: sum(counts) / sum(totals). Interval: Clopper-Pearson on both sums divided by the design effect
    n v / (p (1 - p)), with v = K / (K - 1) * sum((count - p total)^2) / n^2 the variance of the ratio estimator
    over K patients and n = sum(totals).

    Args:
        counts: Units of each patient that have the property, (patients,).
        totals: Units of each patient, (patients,). Patients without units don't contribute.
        level: Confidence level in (0, 1).

    Returns:
        The rate. With no unit it is NaN.
    """
    count, total, num_patients = _contributing(counts, totals)
    numerator, denominator = float(count.sum()), float(total.sum())
    if not num_patients:
        return _undefined("Clopper-Pearson", level)
    value = numerator / denominator
    deff, note = _deff(count, total, value * (1 - value) * denominator)
    low, high = clopper_pearson(numerator / deff, denominator / deff, level=level)
    method = f"Clopper-Pearson on counts divided by the design effect of patients{note}"
    return Rate(value, low, high, level, method, numerator, denominator, num_patients, deff)


def rate(counts: ArrayLike, amounts: ArrayLike, *, level: float) -> Rate:
    """Estimate how many events there are per amount, such as false candidates per case.

    Value: sum(counts) / sum(amounts). Interval: Garwood's for a Poisson count, with the count and the amount divided
    by the design effect K / (K - 1) * sum((count - value * amount)^2) / sum(counts) over K patients.

    Args:
        counts: Events of each patient, (patients,).
        amounts: Amount of each patient, (patients,). Patients with no amount don't contribute.
        level: Confidence level in (0, 1).

    Returns:
        The rate. With no amount it is NaN.
    """
    count, amount, num_patients = _contributing(counts, amounts)
    numerator, denominator = float(count.sum()), float(amount.sum())
    if not num_patients:
        return _undefined("Garwood", level)
    deff, note = _deff(count, amount, numerator)
    low, high = garwood(numerator / deff, level=level)
    low, high = (end * deff / denominator for end in (low, high))
    method = f"Garwood on the count divided by the design effect of patients{note}"
    value = numerator / denominator
    return Rate(value, low, high, level, method, numerator, denominator, num_patients, deff)


def mean_proportion(counts: ArrayLike, totals: ArrayLike, *, level: float) -> Rate:
    """Estimate the mean over patients of each patient's own proportion.

    Interval: Clopper-Pearson with the sum of the patients' proportions as the number of successes among so many
    patients. It is on the wide side, since no values in [0, 1] with a given mean vary more than zeros and ones.

    Args:
        counts: Units of each patient that have the property, (patients,).
        totals: Units of each patient, (patients,). Patients without units don't contribute.
        level: Confidence level in (0, 1).

    Returns:
        The rate; its denominator is the number of patients. With no unit it is NaN.
    """
    count, total, num_patients = _contributing(counts, totals)
    if not num_patients:
        return _undefined("Clopper-Pearson", level)
    numerator = float((count / total).sum())
    low, high = clopper_pearson(numerator, num_patients, level=level)
    method = "Clopper-Pearson on patients, each counting by its own proportion"
    return Rate(numerator / num_patients, low, high, level, method, numerator, num_patients, num_patients, 1.0)


def f1(true: ArrayLike, false: ArrayLike, missed: ArrayLike, *, level: float) -> Rate:
    """Estimate F1 = 2 TP / (2 TP + FP + FN).

    Interval: that of the proportion s = TP / (TP + FP + FN), of which F1 = 2 s / (1 + s) is a rising function.

    Args:
        true: Found lesions of each patient, (patients,).
        false: False candidates of each patient, (patients,).
        missed: Missed lesions of each patient, (patients,).
        level: Confidence level in (0, 1).

    Returns:
        The rate. With no lesion and no candidate it is NaN.
    """
    found = np.asarray(true, np.float64)
    share = proportion(found, found + np.asarray(false) + np.asarray(missed), level=level)
    value, low, high = (2 * end / (1 + end) for end in (share.value, share.low, share.high))
    method = f"from TP / (TP + FP + FN): {share.method}"
    numerator, denominator = 2 * share.numerator, share.denominator + share.numerator
    return Rate(value, low, high, level, method, numerator, denominator, share.num_patients, share.deff)


def clopper_pearson(numerator: float, denominator: float, *, level: float) -> tuple[float, float]:
    """Exact interval of a binomial proportion; fractional counts are allowed.

    Args:
        numerator: Successes, from 0 to the denominator.
        denominator: Trials, above 0.
        level: Confidence level in (0, 1).

    Returns:
        Lower and upper end. All successes: the lower end is ((1 - level) / 2) ** (1 / trials).
    """
    tail = (1 - level) / 2
    rest = denominator - numerator
    low = float(betaincinv(numerator, rest + 1, tail)) if numerator > 0 else 0.0
    high = float(betaincinv(numerator + 1, rest, 1 - tail)) if rest > 0 else 1.0
    return low, high


def garwood(count: float, *, level: float) -> tuple[float, float]:
    """Exact interval of a Poisson mean; a fractional count is allowed. No events: from 0 to -ln((1 - level) / 2)."""
    tail = (1 - level) / 2
    low = float(gammaincinv(count, tail)) if count > 0 else 0.0
    return low, float(gammaincinv(count + 1, 1 - tail))


def _contributing(counts: ArrayLike, amounts: ArrayLike) -> tuple[Any, Any, int]:
    count, amount = np.asarray(counts, np.float64), np.asarray(amounts, np.float64)
    contributes = amount > 0
    return count[contributes], amount[contributes], int(contributes.sum())


def _deff(count: Any, amount: Any, independent: float) -> tuple[float, str]:
    """Design effect and what to say of it; `independent` is the variance of the count of independent units."""
    num_patients = len(count)
    if num_patients < 2:
        return 1.0, "; one patient, so the design effect is taken as 1"
    if independent <= 0:
        return 1.0, "; patients don't differ, so the design effect is taken as 1"
    residuals = count - amount * (count.sum() / amount.sum())
    between = num_patients / (num_patients - 1) * float((residuals**2).sum())
    return max(1.0, between / independent), ""


def _undefined(method: str, level: float) -> Rate:
    return Rate(math.nan, math.nan, math.nan, level, method, 0.0, 0.0, 0, math.nan)
