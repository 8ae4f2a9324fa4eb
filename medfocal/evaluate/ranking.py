"""How well confidence ranks: free-response average precision, and AUROC and average precision of cases.

References:
    E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more correlated receiver
    operating characteristic curves: a nonparametric approach", Biometrics 44 (1988) 837-845.
    N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997) 567-578.
    X. Sun, W. Xu, "Fast implementation of DeLong's algorithm for comparing the areas under correlated receiver
    operating characteristic curves", IEEE Signal Processing Letters 21 (2014) 1389-1393.
    A. Saha et al., "Artificial intelligence and radiologists in prostate cancer detection on MRI (PI-CAI)", Lancet
    Oncology 25 (2024) 879-887, for the average precision of lesions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from medfocal.evaluate.intervals import Rate, clopper_pearson
from medfocal.evaluate.pool import Pool
from medfocal.evaluate.tally import Floats, at, at_or_above, in_parts, levels_of, ratio, total

#: Variance that sums of shares have by rounding alone; that of ten thousand cases of a kind is a thousand times larger.
ROUNDING = 1e-28


def free_response_ap(pool: Pool, weights: ArrayLike) -> Floats:
    """Compute the average precision of candidates for many weightings of the patients.

    AP = sum over falling thresholds t of (R(t) - R(t before)) P(t), with R(t) the lesions found at t over all lesions
    and P(t) the true candidates among those of confidence t or more. Candidates of one confidence come in together. A
    lesion that no candidate finds adds nothing, so AP is at most the sensitivity that all candidates reach.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).

    Returns:
        Values in [0, 1], (weightings,). NaN where no lesion has weight.
    """
    found = np.isfinite(pool.lesion_confidence)
    true = pool.candidate_is_true
    return _average_precision(
        (pool.lesion_confidence[found], pool.lesion_patient[found]),
        (pool.candidate_confidence[true], pool.candidate_patient[true]),
        (pool.candidate_confidence[~true], pool.candidate_patient[~true]),
        pool.lesion_patient,
        weights,
    )


def case_ap(pool: Pool, weights: ArrayLike) -> Floats:
    """Compute the average precision of cases, rated by their surest candidate, for many weightings of the patients.

    The formula of `free_response_ap` with cases that have lesions as what is to be found. A case without candidates
    has the rating 0, and comes in last. Cases whose only lesions are ignored are left out.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).

    Returns:
        Values in [0, 1], (weightings,). NaN where no case with lesions has weight.
    """
    with_lesions, without = split_cases(pool)
    true = (pool.case_confidence[with_lesions], pool.case_patient[with_lesions])
    false = (pool.case_confidence[without], pool.case_patient[without])
    return _average_precision(true, true, false, true[1], weights)


def case_auroc(pool: Pool, *, level: float) -> Rate:
    """Estimate how often a case with lesions is rated above one without, by the surest candidate of each.

    Value: the share of pairs of a case with and a case without lesions in which the first has the higher rating, ties
    counting half. Variance: with V the share of cases of the other kind that a case is ranked right against, and for
    each of K patients X its sum of V - AUROC over its cases with lesions and Y that over its cases without,

        K1 / (K1 - 1) sum X^2 / M^2 + K0 / (K0 - 1) sum Y^2 / N^2 + 2 K / (K - 1) sum X Y / (M N)

    for M cases with lesions of K1 patients and N without of K0 (Obuchowski 1997; one case per patient: DeLong 1988).
    Interval: normal on the logit, so that it stays within 0 and 1.

    Where that variance is 0, as at an AUROC of 1, or cannot be had from a single patient, it says nothing of the
    uncertainty. The interval is then Clopper-Pearson's on as many pairs of one patient with and another without
    lesions as can be formed with no patient in two of them: wide, but right.

    Args:
        pool: The outcomes of all cases; those whose only lesions are ignored are left out.
        level: Confidence level in (0, 1).

    Returns:
        The rate; its denominator is the number of pairs, its numerator how many are ranked right. NaN without a case
        with lesions or without a case without.
    """
    with_lesions, without = split_cases(pool)
    positive, negative = pool.case_confidence[with_lesions], pool.case_confidence[without]
    positive_patient, negative_patient = pool.case_patient[with_lesions], pool.case_patient[without]
    num_patients = len(np.union1d(positive_patient, negative_patient))
    method = "DeLong on the logit"
    if not (len(positive) and len(negative)):
        return Rate(math.nan, math.nan, math.nan, level, method, math.nan, math.nan, num_patients, math.nan)
    right_positive, right_negative = ranked_right(positive, negative)
    value = float(right_positive.mean())
    variance, deff = _auroc_variance(right_positive - value, right_negative - value, positive_patient, negative_patient)
    if num_patients < len(positive) + len(negative):
        method = "DeLong for cases that come in patients (Obuchowski 1997), on the logit"
    if variance > ROUNDING:
        low, high = _on_logit(value, math.sqrt(variance), level)
    else:
        num_pairs = _disjoint_pairs(positive_patient, negative_patient)
        low, high = clopper_pearson(value * num_pairs, num_pairs, level=level)
        method = f"Clopper-Pearson on {num_pairs} disjoint pairs of patients, as DeLong's variance is 0 or unknown"
    num_all = len(positive) * len(negative)
    return Rate(value, low, high, level, method, value * num_all, num_all, num_patients, deff)


def ranked_right(positive: ArrayLike, negative: ArrayLike) -> tuple[Floats, Floats]:
    """Give for each rating the share of the other kind that it is ranked right against, ties counting half.

    By midranks (Sun & Xu 2014, eqs. 8 and 9), in the time of sorting.

    Args:
        positive: Ratings that should be high, (M,) with M > 0.
        negative: Ratings that should be low, (N,) with N > 0.

    Returns:
        Shares of negatives below each positive, (M,), and of positives above each negative, (N,). The mean of either
        is the AUROC.
    """
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    ranks = rankdata(np.concatenate([positive, negative]))
    num_below = ranks[: len(positive)] - rankdata(positive)
    num_not_above = ranks[len(positive) :] - rankdata(negative)
    return num_below / len(negative), 1 - num_not_above / len(positive)


def case_is_called(pool: Pool, threshold: float) -> NDArray[np.bool_]:
    """Say which cases have a candidate of at least this confidence, anywhere, bool (cases,).

    The share of cases with lesions that are called is the case sensitivity, the share of those without that are not the
    case specificity. At the threshold 0 a case without candidates is still not called.
    """
    return (pool.case_confidence >= threshold) & (pool.case_confidence > 0)


def split_cases(pool: Pool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say which cases have lesions and which have none, bool (cases,); with only ignored lesions they are neither."""
    return pool.case_num_lesions > 0, pool.case_is_lesion_free


def _average_precision(
    found: tuple[Floats, NDArray[np.int64]],
    true: tuple[Floats, NDArray[np.int64]],
    false: tuple[Floats, NDArray[np.int64]],
    all_patients: NDArray[np.int64],
    weights: ArrayLike,
) -> Floats:
    """Average precision from ratings and patients; recall rises only at the ratings of what is found."""
    levels = levels_of(found[0])

    def statistic(weights: Floats) -> Floats:
        num_true = at_or_above(levels, *true, weights)
        precision = ratio(num_true, num_true + at_or_above(levels, *false, weights))
        rise = at(levels, *found, weights)
        return ratio(np.where(rise > 0, rise * precision, 0.0).sum(axis=0), total(all_patients, weights))

    return in_parts(statistic, weights, num_levels=len(levels))


def _auroc_variance(
    positive: Floats, negative: Floats, positive_patient: NDArray[np.int64], negative_patient: NDArray[np.int64]
) -> tuple[float, float]:
    """Variance from V - AUROC of each case, and its ratio to that of cases as independent; NaN if not estimable."""
    size = int(max(positive_patient.max(), negative_patient.max())) + 1
    of_positive = np.bincount(positive_patient, positive, minlength=size) / len(positive)
    of_negative = np.bincount(negative_patient, negative, minlength=size) / len(negative)
    num_positive, num_negative = len(np.unique(positive_patient)), len(np.unique(negative_patient))
    num_all = len(np.union1d(positive_patient, negative_patient))
    if min(num_positive, num_negative) < 2:
        return math.nan, math.nan
    variance = (
        num_positive / (num_positive - 1) * float((of_positive**2).sum())
        + num_negative / (num_negative - 1) * float((of_negative**2).sum())
        + 2 * num_all / (num_all - 1) * float((of_positive * of_negative).sum())
    )
    independent = float(positive.var(ddof=1)) / len(positive) + float(negative.var(ddof=1)) / len(negative)
    return variance, variance / independent if independent > 0 else math.nan


def _on_logit(value: float, error: float, level: float) -> tuple[float, float]:
    centre = math.log(value / (1 - value))
    reach = float(norm.ppf((1 + level) / 2)) * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-end)) if end > -700 else 0.0 for end in (centre - reach, centre + reach))
    return low, high


def _disjoint_pairs(positive_patient: NDArray[np.int64], negative_patient: NDArray[np.int64]) -> int:
    positives, negatives = np.unique(positive_patient), np.unique(negative_patient)
    return max(1, min(len(positives), len(negatives), len(np.union1d(positives, negatives)) // 2))
