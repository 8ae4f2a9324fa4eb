"""How far readers of the same image agree, pair by pair."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.components import Components, find_components
from medfocal.evaluate.overlap import voxel_dice


@dataclass(frozen=True)
class PairAgreement:
    """Two readers of one case, lesion against background.

    Attributes:
        first: Number of a reader, from 1.
        second: Number of a later one.
        voxel_dice: Twice the voxels that both marked over the sum of those that each did; NaN where both marked none.
        num_lesions_first: 26-connected parts of the first reader's marks, of whatever lesion classes.
        num_lesions_second: Of the second reader's.
        num_only_first: Lesions of the first of which the second marked no voxel.
        num_only_second: Lesions of the second of which the first marked no voxel.
    """

    first: int
    second: int
    voxel_dice: float
    num_lesions_first: int
    num_lesions_second: int
    num_only_first: int
    num_only_second: int


def reader_agreement(readers: NDArray[np.integer[Any]], affine: ArrayLike) -> list[PairAgreement]:
    """Compare every reader with every later one.

    Args:
        readers: Classes `(R, I, J, K)`, 0 the background.
        affine: Voxel index to world RAS in mm, (4, 4).

    Returns:
        The pairs (1, 2), (1, 3), ..., (2, 3), ...; none of one reader.

    Raises:
        ValueError: The readers have not four axes, or the affine is not (4, 4).
    """
    if readers.ndim != 4:
        message = f"readers must be (R, I, J, K), got shape {readers.shape}"
        raise ValueError(message)
    found = [find_components(reader, affine) for reader in readers]
    pairs = itertools.combinations(range(len(found)), 2)
    return [_compare(a + 1, found[a], b + 1, found[b]) for a, b in pairs]


def _compare(first: int, lesions: Components, second: int, others: Components) -> PairAgreement:
    both = (lesions.labels > 0) & (others.labels > 0)
    return PairAgreement(
        first=first,
        second=second,
        voxel_dice=voxel_dice(int(both.sum()), int(lesions.num_voxels.sum()), int(others.num_voxels.sum())),
        num_lesions_first=len(lesions),
        num_lesions_second=len(others),
        num_only_first=len(lesions) - len(np.unique(lesions.labels[both])),
        num_only_second=len(others) - len(np.unique(others.labels[both])),
    )
