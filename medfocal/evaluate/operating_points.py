"""Lesion sensitivity and false positives per case at a threshold or at an allowed rate, for many weightings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.evaluate.pool import Pool
from medfocal.evaluate.tally import Floats, at, at_or_above, in_parts, levels_of, ratio, total


def sensitivity_at_rates(
    pool: Pool, weights: ArrayLike, rates: Sequence[float], *, lesions: NDArray[np.bool_] | None = None
) -> Floats:
    """Read the FROC of each weighting at the last point with at most so many false candidates per case.

    A lesion counts as found if the false candidates of its confidence or more are no more than the rate allows.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).
        rates: Allowed false candidates per case.
        lesions: Which lesions the sensitivity is of, bool (lesions,); all if None. False candidates are always all.

    Returns:
        Sensitivities, (weightings, rates). NaN where no lesion has weight.
    """
    counted = np.ones(pool.num_lesions, np.bool_) if lesions is None else lesions
    found = counted & np.isfinite(pool.lesion_confidence)
    false = ~pool.candidate_is_true
    levels = levels_of(pool.lesion_confidence[found])

    def statistic(weights: Floats) -> Floats:
        num_found = at(levels, pool.lesion_confidence[found], pool.lesion_patient[found], weights)
        false_candidates = (pool.candidate_confidence[false], pool.candidate_patient[false])
        num_cases = total(pool.case_patient, weights)
        per_case = ratio(at_or_above(levels, *false_candidates, weights), num_cases)
        num_lesions = total(pool.lesion_patient[counted], weights)
        return np.stack([ratio((num_found * (per_case <= rate)).sum(axis=0), num_lesions) for rate in rates], axis=1)

    return in_parts(statistic, weights, num_levels=len(levels))


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
