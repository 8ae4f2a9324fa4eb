"""Lesion sensitivity and false positives per case at a threshold or at an allowed rate, for many weightings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.evaluate.pool import Pool
from medfocal.evaluate.tally import Floats, ratio, total


def sensitivity_at_rates(
    pool: Pool, weights: ArrayLike, rates: Sequence[float] | Floats, *, lesions: NDArray[np.bool_] | None = None
) -> Floats:
    """Read the FROC of each weighting at the last point with at most so many false candidates per case.

    A patient of weight w counts like w patients: in the lesions, in the false candidates and in the cases that their
    number is divided by. Weights of 1 give the sensitivities of `medfocal.evaluate.froc.read_froc`.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).
        rates: Allowed false candidates per case.
        lesions: Which lesions the sensitivity is of, bool (lesions,); all if None. False candidates are always all.

    Returns:
        Sensitivities, (weightings, rates). NaN where no lesion or no case has weight.
    """
    weights = np.asarray(weights, np.float64)
    counted = np.ones(pool.num_lesions, np.bool_) if lesions is None else lesions
    is_false = ~pool.candidate_is_true
    false_confidence, false_patient = _falling(pool.candidate_confidence, pool.candidate_patient, is_false)
    found = counted & np.isfinite(pool.lesion_confidence)
    found_confidence, found_patient = _falling(pool.lesion_confidence, pool.lesion_patient, found)
    # Lesions that are found before each false candidate counts; equal confidences enter together.
    num_before = np.append(np.searchsorted(-found_confidence, -false_confidence, side="left"), len(found_confidence))
    num_cases = total(pool.case_patient, weights)
    num_lesions = total(pool.lesion_patient[counted], weights)
    allowed = np.asarray(rates, np.float64)
    result = np.full((len(weights), len(allowed)), np.nan)
    # Row by row, so that the sums of 5,000 candidates stay in the cache.
    for row in np.flatnonzero((num_cases > 0) & (num_lesions > 0)):
        false_positives = np.cumsum(weights[row, false_patient])
        false_positives /= num_cases[row]
        num_found = np.append(0.0, np.cumsum(weights[row, found_patient]))
        first_too_many = np.searchsorted(false_positives, allowed, side="right")
        result[row] = num_found[num_before[first_too_many]] / num_lesions[row]
    return result


def _falling(
    confidence: Floats, patient: NDArray[np.int64], kept: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.int64]]:
    order = np.argsort(-confidence[kept], kind="stable")
    return confidence[kept][order], patient[kept][order]


def sensitivity_at(pool: Pool, weights: ArrayLike, threshold: float) -> Floats:
    """Give the share of lesions found at a threshold under each weighting, (weightings,). NaN without lesions."""
    weights = np.asarray(weights, np.float64)
    found = total(pool.lesion_patient, weights, pool.lesion_confidence >= threshold)
    return ratio(found, total(pool.lesion_patient, weights))


def false_positives_per_case_at(pool: Pool, weights: ArrayLike, threshold: float) -> Floats:
    """Give the false candidates per case at a threshold under each weighting, (weightings,)."""
    weights = np.asarray(weights, np.float64)
    false = ~pool.candidate_is_true & (pool.candidate_confidence >= threshold)
    return ratio(total(pool.candidate_patient, weights, false), total(pool.case_patient, weights))


def threshold_at_rate(pool: Pool, rate: float) -> float:
    """Give the confidence from which candidates count at an allowed rate of false ones; infinite where none may."""
    false = np.sort(pool.candidate_confidence[~pool.candidate_is_true])[::-1]
    num_allowed = int((np.arange(1, len(false) + 1) / pool.num_cases <= rate).sum())
    # The first false candidate that is too many does not count, nor does any other of its confidence.
    too_low = false[num_allowed] if num_allowed < len(false) else -np.inf
    return float(pool.candidate_confidence[pool.candidate_confidence > too_low].min(initial=np.inf))
