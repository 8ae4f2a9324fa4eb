"""Voxels that lesions and candidates share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfocal.components import NumberedVoxels


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of a lesion and a candidate that share voxels, by lesion, then by candidate.

    Attributes:
        lesion: Number of the lesion from 1, int64 (n,).
        candidate: Number of the candidate from 1, int64 (n,).
        num_voxels: Voxels they share, int64 (n,). At least 1, unless lesions were grown.
        num_grown: Voxels that the candidate shares with the grown lesion, at least 1, int64 (n,). Where lesions were
            not grown, the same as `num_voxels`.
    """

    lesion: NDArray[np.int64]
    candidate: NDArray[np.int64]
    num_voxels: NDArray[np.int64]
    num_grown: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_voxels)

    def rows_of(self, lesion: NDArray[np.int64], candidate: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the row of each pair of a lesion and a candidate, by their numbers; -1 for one that is not here."""
        if not len(self):
            return np.full(len(lesion), -1, np.int64)
        base = int(max(self.candidate.max(), candidate.max(initial=0))) + 1
        known, wanted = self.lesion * base + self.candidate, lesion * base + candidate
        row = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[row] == wanted, row, -1).astype(np.int64)


def find_overlaps(lesions: NumberedVoxels, candidates: NumberedVoxels, grown: NumberedVoxels | None = None) -> Overlaps:
    """Count the voxels that each lesion shares with each candidate.

    Args:
        lesions: Lesions of a case, such as `Components`.
        candidates: Candidates on the same grid.
        grown: The lesions grown, under the same numbers, as `find_grown` gives them; they hold the lesions' own voxels.

    Returns:
        The pairs that share a voxel, of the grown lesion where that is given. No lesion, no candidate or no shared
        voxel: no pair.

    Raises:
        ValueError: The shapes differ.
    """
    for name, other in (("candidates", candidates), ("grown lesions", grown)):
        if other is not None and other.shape != lesions.shape:
            message = f"lesions and {name} must have one shape, got {lesions.shape} and {other.shape}"
            raise ValueError(message)
    base = int(candidates.part.max(initial=0)) + 1
    pairs, num_voxels = _count(lesions, candidates, base)
    num_grown = num_voxels
    if grown is not None:
        grown_pairs, num_grown = _count(grown, candidates, base)
        own = np.zeros(len(grown_pairs), np.int64)
        own[np.searchsorted(grown_pairs, pairs)] = num_voxels
        pairs, num_voxels = grown_pairs, own
    return Overlaps(lesion=pairs // base, candidate=pairs % base, num_voxels=num_voxels, num_grown=num_grown)


def _count(
    lesions: NumberedVoxels, candidates: NumberedVoxels, base: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs that share voxels, each as lesion * base + candidate, rising, and how many voxels."""
    few, many = (lesions, candidates) if len(lesions.voxels) < len(candidates.voxels) else (candidates, lesions)
    place = np.searchsorted(many.voxels, few.voxels)
    shared = np.flatnonzero(many.voxels[np.minimum(place, len(many.voxels) - 1)] == few.voxels)
    part = {id(few): few.part[shared], id(many): many.part[place[shared]]}
    key = part[id(lesions)].astype(np.int64) * base + part[id(candidates)]
    pairs, num_voxels = np.unique(key, return_counts=True)
    return pairs, num_voxels.astype(np.int64)


def voxel_dice(num_shared: int, num_reference: int, num_predicted: int) -> float:
    """Twice the shared voxels over the sum of both masks' voxels; NaN where both masks are empty.

    An empty reference with a prediction that is not empty gives 0, by the formula.
    """
    total = num_reference + num_predicted
    return 2 * num_shared / total if total else math.nan
