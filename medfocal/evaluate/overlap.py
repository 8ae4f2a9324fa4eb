"""Voxels that lesions and candidates share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of a lesion and a candidate that share voxels, by lesion, then by candidate.

    Attributes:
        lesion: Number of the lesion from 1, int64 (n,).
        candidate: Number of the candidate from 1, int64 (n,).
        num_voxels: Voxels they share, at least 1, int64 (n,).
    """

    lesion: NDArray[np.int64]
    candidate: NDArray[np.int64]
    num_voxels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_voxels)


def find_overlaps(lesions: NDArray[np.integer[Any]], candidates: NDArray[np.integer[Any]]) -> Overlaps:
    """Count the voxels that each lesion shares with each candidate.

    Args:
        lesions: Lesion numbers from 1, 0 outside, (I, J, K).
        candidates: Candidate numbers from 1, 0 outside, (I, J, K).

    Returns:
        The pairs that share a voxel. No lesion, no candidate or no shared voxel: no pair.
    """
    shared = np.flatnonzero(lesions)
    shared = shared[candidates.ravel()[shared] != 0]
    lesion = lesions.ravel()[shared].astype(np.int64)
    candidate = candidates.ravel()[shared].astype(np.int64)
    base = int(candidate.max(initial=0)) + 1
    pairs, num_voxels = np.unique(lesion * base + candidate, return_counts=True)
    return Overlaps(lesion=pairs // base, candidate=pairs % base, num_voxels=num_voxels.astype(np.int64))


def voxel_dice(num_shared: int, num_reference: int, num_predicted: int) -> float:
    """Twice the shared voxels over the sum of both masks' voxels; NaN where both masks are empty.

    An empty reference with a prediction that is not empty gives 0, by the formula.
    """
    total = num_reference + num_predicted
    return 2 * num_shared / total if total else math.nan
