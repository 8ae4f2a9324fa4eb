"""Pairing lesions with candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from medfocal.evaluate.overlap import Overlaps


def match_lesions(overlaps: Overlaps, confidence: NDArray[np.floating[Any]]) -> dict[int, int]:
    """Pair candidates with lesions, one to one, so that at every threshold as many lesions as possible are found.

    The pairs of which the candidate's confidence is at least t are a largest possible pairing of the candidates with
    confidence at least t, for every t at once. Among all pairings of this kind the one with most shared voxels is
    taken. A second candidate on a found lesion stays unpaired.

    That such a pairing exists, and how it is found: sets of candidates that can be paired at the same time are the
    independent sets of a transversal matroid. A set of largest weight in a matroid has, for any weights that rise with
    confidence, the largest possible number of members at or above every confidence. So the weight of a pair is the
    rank of its candidate's confidence, with the overlap as a tie-break too small to outweigh a rank.

    Args:
        overlaps: Pairs that may be made.
        confidence: Confidence of each candidate, row `n - 1` for number `n`.

    Returns:
        Candidate number by lesion number. No lesions or no candidates: empty.

    References:
        J. Edmonds, "Matroids and the greedy algorithm", Mathematical Programming 1 (1971) 127-136.
    """
    lesions, row = np.unique(overlaps.lesion, return_inverse=True)
    candidates, column = np.unique(overlaps.candidate, return_inverse=True)
    _, rank = np.unique(np.asarray(confidence)[candidates - 1], return_inverse=True)
    one_rank = int(overlaps.num_voxels.sum()) + 1
    weight = np.zeros((len(lesions), len(candidates)))
    weight[row, column] = (rank[column] + 1) * one_rank + overlaps.num_voxels
    # Whole numbers below 2 ** 53 are exact in float64, so no rank is lost to rounding.
    assert weight.max(initial=0) * max(1, min(weight.shape)) < 2**53
    pairs = zip(*linear_sum_assignment(weight, maximize=True), strict=True)
    return {int(lesions[i]): int(candidates[j]) for i, j in pairs if weight[i, j] > 0}
