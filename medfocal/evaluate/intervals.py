"""Intervals of proportions and rates whose units come in patients.

Lesions of one patient are found or missed together more often than lesions of two. The variance of the estimate
is therefore taken from the differences between patients, and divided by the variance that independent lesions
would have. This design effect says how many lesions tell as much as one independent lesion; numerator and
denominator are divided by it before an interval of independent units is computed.

The design effect is itself estimated, and the fewer patients, the worse. Two corrections keep the intervals from being
too short (docs/benchmarks/interval-coverage.md has the coverage with and without):

- Student's quantile in place of the normal one: the variance is multiplied by (t / z)^2 with K - 1 degrees of freedom
  for K patients (Korn and Graubard).
- Where hardly any lesion is missed, the data cannot tell whether misses come together. For K_r, the smaller of the
  numbers of patients with a found and with a missed lesion, the design effect is
  (K_r d + 4 d_0) / (K_r + 4): d is the one of the data and d_0 = 1 + 0.15 (sum(n_i^2) / sum(n_i) - 1) that of an
  intraclass correlation of 0.15, the middle of 0 to 0.3, for n_i lesions a patient. It weighs as 4 patients.

With one lesion a patient nothing is corrected: the lesions are independent and the design effect is 1.

References:
    J. N. K. Rao, A. J. Scott, "A simple method for the analysis of clustered binary data", Biometrics 48
    (1992) 577-585.
    E. L. Korn, B. I. Graubard, "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data", Survey Methodology 24 (1998) 193-201. A design effect below 1 counts as 1
    here, z stands for their t of the sample size, and the pull towards d_0 is ours.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927) 209-212.
    F. Garwood, "Fiducial limits for the Poisson distribution", Biometrika 28 (1936) 437-442.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, gammaincinv, ndtri, stdtrit

from medfocal.evaluate.protocols import Interval

#: Intraclass correlation that is assumed as far as the data don't tell, and the number of patients it weighs as.
ASSUMED_CORRELATION = 0.15
ASSUMED_PATIENTS = 4

_NAMES: dict[str, str] = {"clopper_pearson": "Clopper-Pearson", "wilson": "Wilson"}


@dataclass(frozen=True)
class Rate:
    """A proportion, a rate or another figure with its interval; NaN where undefined.

    Figures that are no quotient of counts, such as an area under a curve, have neither numerator nor denominator nor
    design effect: these are NaN.

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


def proportion(counts: ArrayLike, totals: ArrayLike, *, level: float, method: Interval = "clopper_pearson") -> Rate:
    """Estimate a proportion of units that come in patients.

    Value: sum(counts) / sum(totals). Interval: of independent units, on both sums divided by the design effect. That of
    the data is d = (t / z)^2 v n / (p (1 - p)), with v = K / (K - 1) * sum((count - p total)^2) / n^2 the variance of
    the ratio estimator over K patients and n = sum(totals); the module says what is made of it.

    Args:
        counts: Units of each patient that have the property, (patients,).
        totals: Units of each patient, (patients,). Patients without units don't contribute.
        level: Confidence level in (0, 1).
        method: Interval of independent units: "clopper_pearson", or "wilson", which is shorter and covers less.

    Returns:
        The rate. With no unit it is NaN.
    """
    count, total, num_patients = _contributing(counts, totals)
    numerator, denominator = float(count.sum()), float(total.sum())
    if not num_patients:
        return _undefined(_NAMES[method], level)
    deff, note = _deff_of_proportion(count, total, level)
    low, high = _interval(numerator / deff, denominator / deff, level=level, method=method)
    text = f"{_NAMES[method]} on counts divided by the design effect of patients{note}"
    return Rate(numerator / denominator, low, high, level, text, numerator, denominator, num_patients, deff)


def mean_score(
    scores: ArrayLike, patient: ArrayLike, variance: float, *, level: float, method: Interval = "clopper_pearson"
) -> Rate:
    """Estimate a mean of scores in [0, 1] whose variance is known from elsewhere, such as from resamples.

    It is for units of which a threshold that the data chose decides whether they count, as at a point of the FROC. The
    threshold varies too, so `proportion` would be too sure; and where nearly all units count, the quantiles of
    resamples shrink to a point. Interval: as that of `proportion`, with d = K / (K - 1) * variance * n / (p (1 - p)),
    and d_0 times s = (sum((score - p)^2) + p (1 - p)) / ((n + 1) p (1 - p)), which is 1 for zeros and ones and less for
    scores between them; the unit more keeps equal scores from having no variance. The design effect is at least s.

    Args:
        scores: Score of each unit, 0 to 1, (units,).
        patient: Number of the patient of each unit, from 0, int (units,).
        variance: Variance of the mean between resamples of patients.
        level: Confidence level in (0, 1).
        method: "clopper_pearson" or "wilson".

    Returns:
        The rate; its numerator is the sum of scores. With no unit it is NaN.
    """
    score, number = np.asarray(scores, np.float64), np.asarray(patient, np.int64)
    num_units = len(score)
    if not num_units:
        return _undefined(_NAMES[method], level)
    totals = np.bincount(number)
    totals = totals[totals > 0]
    value = float(score.mean())
    # Half a unit keeps the binomial variance above 0 where all units, or none, count.
    binomial = max(value * (1 - value), 0.5 / num_units * (1 - 0.5 / num_units))
    spread = float(((score - value) ** 2).sum()) / binomial if 0 < value < 1 else num_units
    scale = (spread + 1) / (num_units + 1)
    assumed = scale * _assumed_deff(totals)
    num_telling = min(len(np.unique(number[score > 0])), len(np.unique(number[score < 1])))
    if variance > 0 and len(totals) > 1:
        num_telling = max(num_telling, 1)
        estimated = len(totals) / (len(totals) - 1) * variance * num_units / binomial
    else:
        num_telling, estimated = 0, 0.0
    deff = max(scale, _towards(assumed, estimated, num_telling))
    low, high = _interval(value * num_units / deff, num_units / deff, level=level, method=method)
    text = f"{_NAMES[method]} on counts divided by the design effect of patients, from resamples of patients"
    return Rate(value, low, high, level, text, float(score.sum()), num_units, len(totals), deff)


def case_proportion(has_property: ArrayLike, patient: ArrayLike, *, level: float) -> Rate:
    """Estimate a proportion of cases, such as the share of cases with lesions that are called so.

    Interval: Wilson's, on counts divided by the design effect of `proportion` where patients have several cases. With
    one case a patient the cases are independent.

    Args:
        has_property: Whether the case has the property, bool (cases,).
        patient: Number of the patient of each case, from 0, int (cases,).
        level: Confidence level in (0, 1).

    Returns:
        The rate. With no case it is NaN.
    """
    number = np.asarray(patient, np.int64)
    counts = np.bincount(number, np.asarray(has_property, np.float64))
    estimate = proportion(counts, np.bincount(number), level=level, method="wilson")
    if estimate.num_patients == len(number):
        return replace(estimate, method="Wilson, one case a patient")
    return estimate


def rate(counts: ArrayLike, amounts: ArrayLike, *, level: float) -> Rate:
    """Estimate how many events there are per amount, such as false candidates per case.

    Value: sum(counts) / sum(amounts). Interval: Garwood's for a Poisson count, with the count and the amount divided
    by the design effect (t / z)^2 * K / (K - 1) * sum((count - value * amount)^2) / sum(counts) over K patients, at
    least 1.

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
    deff, note = _deff_of_rate(count, amount, level)
    low, high = garwood(numerator / deff, level=level)
    low, high = (end * deff / denominator for end in (low, high))
    method = f"Garwood on the count divided by the design effect of patients{note}"
    value = numerator / denominator
    return Rate(value, low, high, level, method, numerator, denominator, num_patients, deff)


def mean_proportion(
    counts: ArrayLike, totals: ArrayLike, *, level: float, method: Interval = "clopper_pearson"
) -> Rate:
    """Estimate the mean over patients of each patient's own proportion.

    Interval: of independent units, with the sum of the patients' proportions as the number of successes among so many
    patients. It is on the wide side, since no values in [0, 1] with a given mean vary more than zeros and ones.

    Args:
        counts: Units of each patient that have the property, (patients,).
        totals: Units of each patient, (patients,). Patients without units don't contribute.
        level: Confidence level in (0, 1).
        method: "clopper_pearson" or "wilson".

    Returns:
        The rate; its denominator is the number of patients. With no unit it is NaN.
    """
    count, total, num_patients = _contributing(counts, totals)
    if not num_patients:
        return _undefined(_NAMES[method], level)
    numerator = float((count / total).sum())
    low, high = _interval(numerator, num_patients, level=level, method=method)
    text = f"{_NAMES[method]} on patients, each counting by its own proportion"
    return Rate(numerator / num_patients, low, high, level, text, numerator, num_patients, num_patients, 1.0)


def f1(
    true: ArrayLike, false: ArrayLike, missed: ArrayLike, *, level: float, method: Interval = "clopper_pearson"
) -> Rate:
    """Estimate F1 = 2 TP / (2 TP + FP + FN).

    Interval: that of the proportion s = TP / (TP + FP + FN), of which F1 = 2 s / (1 + s) is a rising function.

    Args:
        true: Found lesions of each patient, (patients,).
        false: False candidates of each patient, (patients,).
        missed: Missed lesions of each patient, (patients,).
        level: Confidence level in (0, 1).
        method: "clopper_pearson" or "wilson".

    Returns:
        The rate. With no lesion and no candidate it is NaN.
    """
    found = np.asarray(true, np.float64)
    share = proportion(found, found + np.asarray(false) + np.asarray(missed), level=level, method=method)
    value, low, high = (2 * end / (1 + end) for end in (share.value, share.low, share.high))
    text = f"from TP / (TP + FP + FN): {share.method}"
    numerator, denominator = 2 * share.numerator, share.denominator + share.numerator
    return Rate(value, low, high, level, text, numerator, denominator, share.num_patients, share.deff)


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


def wilson(numerator: float, denominator: float, *, level: float) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion; fractional counts are allowed.

    Args:
        numerator: Successes, from 0 to the denominator.
        denominator: Trials, above 0.
        level: Confidence level in (0, 1).

    Returns:
        Lower and upper end. All successes: the lower end is n / (n + z^2).
    """
    z = float(ndtri((1 + level) / 2))
    value = numerator / denominator
    middle = value + z * z / (2 * denominator)
    half = z * math.sqrt(value * (1 - value) / denominator + (z / (2 * denominator)) ** 2)
    scale = 1 + z * z / denominator
    # Rounding must not put an end on the wrong side of the value where nothing, or all, has the property.
    low = (middle - half) / scale if numerator > 0 else 0.0
    high = (middle + half) / scale if numerator < denominator else 1.0
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


def _interval(numerator: float, denominator: float, *, level: float, method: Interval) -> tuple[float, float]:
    of_independent = {"clopper_pearson": clopper_pearson, "wilson": wilson}[method]
    return of_independent(numerator, denominator, level=level)


def _deff_of_proportion(count: Any, total: Any, level: float) -> tuple[float, str]:
    """Design effect and what to say of it."""
    if total.max() <= 1:
        return 1.0, ", which is 1 with one a patient"
    assumed = _assumed_deff(total)
    num_telling = min(int((count > 0).sum()), int((count < total).sum()))
    if len(count) < 2 or not num_telling:
        why = "there is one patient" if len(count) < 2 else "patients don't differ"
        return max(1.0, assumed), f"; {why}, so an intraclass correlation of {ASSUMED_CORRELATION} is assumed"
    num_units = float(total.sum())
    value = float(count.sum()) / num_units
    estimated = _spread(count, total, level) / (num_units * value * (1 - value))
    return max(1.0, _towards(assumed, estimated, num_telling)), ""


def _assumed_deff(total: Any) -> float:
    return 1 + ASSUMED_CORRELATION * (float((total.astype(np.float64) ** 2).sum()) / float(total.sum()) - 1)


def _towards(assumed: float, estimated: float, num_telling: int) -> float:
    return (num_telling * estimated + ASSUMED_PATIENTS * assumed) / (num_telling + ASSUMED_PATIENTS)


def _deff_of_rate(count: Any, amount: Any, level: float) -> tuple[float, str]:
    """Design effect and what to say of it."""
    if len(count) < 2:
        return 1.0, "; one patient, so the design effect is taken as 1"
    if not count.any():
        return 1.0, "; patients don't differ, so the design effect is taken as 1"
    return max(1.0, _spread(count, amount, level) / float(count.sum())), ""


def _spread(count: Any, amount: Any, level: float) -> float:
    """Variance of the sum of counts by the differences between patients, for Student's quantile."""
    num_patients = len(count)
    residuals = count - amount * (count.sum() / amount.sum())
    unbiased = num_patients / (num_patients - 1) * float((residuals**2).sum())
    return _widening(num_patients, level) * unbiased


def _widening(num_patients: int, level: float) -> float:
    tail = (1 + level) / 2
    return (float(stdtrit(num_patients - 1, tail)) / float(ndtri(tail))) ** 2


def _undefined(method: str, level: float) -> Rate:
    return Rate(math.nan, math.nan, math.nan, level, method, 0.0, 0.0, 0, math.nan)
