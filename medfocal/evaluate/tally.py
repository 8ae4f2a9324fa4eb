"""Sums over what is rated above a level, for many weightings of the patients at once.

Every figure that orders lesions, candidates or cases by confidence is made of such sums. What the patients contribute
is added up by level once, so a bootstrap or a permutation of any number of cases is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix

Floats = NDArray[np.float64]

#: Sums (levels, weightings) that are held at once: 16 MB of float64.
SUMS_AT_ONCE = 2**21


def levels_of(ratings: ArrayLike) -> Floats:
    """Give the distinct ratings, falling, (levels,); -inf may be one of them."""
    return np.unique(np.asarray(ratings, np.float64))[::-1]


def at(
    levels: Floats, ratings: Floats, patients: NDArray[np.int64], weights: Floats, amounts: ArrayLike = 1.0
) -> Floats:
    """Add up the amounts that are rated exactly so.

    Args:
        levels: From `levels_of`; every rating is one of them, (levels,).
        ratings: (n,).
        patients: Patient of each, (n,).
        weights: Weight of each patient in each weighting, (weightings, patients).
        amounts: What each counts, (n,), or one number for all.

    Returns:
        Weighted sums, (levels, weightings).
    """
    return _sums(np.searchsorted(-levels, -ratings), len(levels), patients, weights, amounts)


def at_or_above(
    levels: Floats, ratings: Floats, patients: NDArray[np.int64], weights: Floats, amounts: ArrayLike = 1.0
) -> Floats:
    """Add up the amounts that are rated at the level or higher; arguments and shapes as those of `at`."""
    first = np.searchsorted(-levels, -ratings, side="left")
    return np.cumsum(_sums(first, len(levels), patients, weights, amounts), axis=0)


def above(
    levels: Floats, ratings: Floats, patients: NDArray[np.int64], weights: Floats, amounts: ArrayLike = 1.0
) -> Floats:
    """Add up the amounts that are rated higher than the level; arguments and shapes as those of `at`."""
    first = np.searchsorted(-levels, -ratings, side="right")
    return np.cumsum(_sums(first, len(levels), patients, weights, amounts), axis=0)


def total(patients: NDArray[np.int64], weights: Floats, amounts: ArrayLike = 1.0) -> Floats:
    """Add up all amounts under each weighting, (weightings,)."""
    by_patient = np.bincount(patients, np.broadcast_to(amounts, patients.shape), minlength=weights.shape[1])
    return np.asarray(weights @ by_patient, np.float64)


def in_parts(statistic: Callable[[Floats], Floats], weights: ArrayLike, *, num_levels: int) -> Floats:
    """Compute a statistic of weightings a few at a time, so that memory does not grow with their number.

    Args:
        statistic: From weights (n, patients) to values (n, ...).
        weights: Weight of each patient, (weightings, patients).
        num_levels: Levels that the statistic adds up by.

    Returns:
        The values of all weightings, (weightings, ...).
    """
    weights = np.asarray(weights, np.float64)
    step = max(1, SUMS_AT_ONCE // max(1, num_levels))
    starts = range(0, max(1, len(weights)), step)
    return np.concatenate([statistic(weights[start : start + step]) for start in starts])


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is 0."""
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _sums(
    rows: NDArray[np.intp], num_rows: int, patients: NDArray[np.int64], weights: Floats, amounts: ArrayLike
) -> Floats:
    amounts = np.broadcast_to(np.asarray(amounts, np.float64), rows.shape)
    kept = rows < num_rows
    places = (rows[kept], patients[kept])
    by_patient = coo_matrix((amounts[kept], places), shape=(num_rows, weights.shape[1])).tocsr()
    return np.asarray(by_patient @ np.ascontiguousarray(weights.T), np.float64)
