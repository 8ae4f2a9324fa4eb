"""Where training patches come from: lesions are drawn, not voxels.

Drawing voxels gives a 10-voxel lesion one visit where a 20 ml lesion gets two thousand. Here a patch is centred
on a lesion drawn uniformly among all lesions of the training set, then on a voxel drawn uniformly within it, for
`lesion_fraction` of the patches; the others are centred anywhere in the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medfocal.components import find_components
from medfocal.data.transforms import PreparedCase, body_mask
from medfocal.errors import DatasetError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class PatchLocation:
    """Where to cut a patch.

    Attributes:
        case: Number of the case in the sampler.
        centre: Voxel `(i, j, k)` that was drawn.
        start: First voxel of the patch; the patch is moved inside the volume where it would leave it, and
            starts below 0 only where the volume is smaller than the patch.
        lesion: Number of the lesion in the sampler's list of all lesions, or None.
    """

    case: int
    centre: tuple[int, int, int]
    start: tuple[int, int, int]
    lesion: int | None


@dataclass(frozen=True)
class _CasePlaces:
    shape: tuple[int, int, int]
    body: NDArray[np.bool_]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    lesions: list[NDArray[np.int64]] = field(default_factory=list)  # voxels (n, 3) of each


def check_sampling(patch_size: Sequence[int], lesion_fraction: float) -> None:
    """Refuse arguments of `LesionBalancedSampler` that are out of range.

    Raises:
        ValueError: One is.
    """
    if len(patch_size) != 3 or any(n < 1 for n in patch_size):
        message = f"patch_size must be three positive numbers, got {list(patch_size)}"
        raise ValueError(message)
    if not 0 <= lesion_fraction <= 1:
        message = f"lesion_fraction must be in [0, 1], got {lesion_fraction}"
        raise ValueError(message)


class LesionBalancedSampler:
    """Draws patch locations; the same seed, epoch and index give the same patch in any order of calls.

    Args:
        cases: Prepared training cases with labels; a case without lesions is welcome.
        patch_size: Voxels `(I, J, K)`.
        lesion_fraction: Share of lesion-centred patches in [0, 1]; met exactly over any long run of indices.
        seed: Of the draws.

    Raises:
        DatasetError: No case has a lesion.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], *, patch_size: Sequence[int], lesion_fraction: float, seed: int
    ) -> None:
        check_sampling(patch_size, lesion_fraction)
        self.patch_size = tuple(int(n) for n in patch_size)
        self.lesion_fraction = float(lesion_fraction)
        self.seed = seed
        self._cases = [_places(case) for case in cases]
        #: (case number, lesion number within the case) of every lesion
        self.lesions = [(c, n) for c, places in enumerate(self._cases) for n in range(len(places.lesions))]
        if not self.lesions:
            message = (
                f"no lesion in the whole training set: all {len(cases)} labels are empty. "
                "Nothing can be learnt from it; check 'label' in the dataset file."
            )
            raise DatasetError(message)

    def draw(self, epoch: int, index: int) -> PatchLocation:
        """The patch at a place in the order of an epoch.

        Args:
            epoch: From 0.
            index: From 0, counted over the whole epoch (step x batch size + place in the batch).
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        fraction = self.lesion_fraction
        if int((index + 1) * fraction + 1e-9) > int(index * fraction + 1e-9):
            number = int(rng.integers(len(self.lesions)))
            case, lesion = self.lesions[number]
            voxels = self._cases[case].lesions[lesion]
            centre = voxels[rng.integers(len(voxels))]
            return self._located(case, centre, number)
        case = int(rng.integers(len(self._cases)))
        places = self._cases[case]
        while True:  # the box holds at least one voxel of the body at each of its faces
            centre = rng.integers(places.low, places.high)
            if places.body[tuple(centre)]:
                return self._located(case, centre, None)

    def body(self, place: PatchLocation) -> NDArray[np.bool_]:
        """Which voxels of a patch belong to the body; none outside the volume."""
        return cut_patch(self._cases[place.case].body, place.start, self.patch_size)

    def _located(self, case: int, centre: NDArray[np.int64], lesion: int | None) -> PatchLocation:
        shape = self._cases[case].shape
        start = []
        for middle, size, length in zip(centre.tolist(), self.patch_size, shape, strict=True):
            if length >= size:
                start.append(min(max(middle - size // 2, 0), length - size))
            else:
                start.append(-((size - length) // 2))
        i, j, k = (int(n) for n in centre)
        return PatchLocation(case, (i, j, k), (start[0], start[1], start[2]), lesion)


def cut_patch(array: NDArray[Scalar], start: Sequence[int], size: Sequence[int]) -> NDArray[Scalar]:
    """Cut `(..., I, J, K)`; what lies outside the volume is 0.

    Args:
        array: The last three axes are spatial.
        start: First voxel, may be negative.
        size: Voxels of the patch.

    Returns:
        A copy of shape `(..., *size)`.
    """
    shape = array.shape[-3:]
    stop = [s + n for s, n in zip(start, size, strict=True)]
    inner = tuple(slice(max(s, 0), max(min(e, n), 0)) for s, e, n in zip(start, stop, shape, strict=True))
    piece = array[(slice(None),) * (array.ndim - 3) + inner]
    before = [min(max(0, -s), n) for s, n in zip(start, size, strict=True)]
    after = [n - b - p for n, b, p in zip(size, before, piece.shape[-3:], strict=True)]
    widths = [(0, 0)] * (array.ndim - 3) + list(zip(before, after, strict=True))
    return np.pad(piece, widths)


def _places(prepared: PreparedCase) -> _CasePlaces:
    assert prepared.label is not None, "training cases have labels; the manifest sees to it"
    label = prepared.label.numpy()
    body = body_mask(prepared.image)
    inside = np.argwhere(body)
    found = find_components(label > 0, prepared.affine)
    voxels = np.argwhere(found.labels > 0)
    numbers = found.labels[tuple(voxels.T)]
    voxels = voxels[np.argsort(numbers, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(found.num_voxels)])
    lesions = [voxels[a:b] for a, b in pairwise(bounds)]
    i, j, k = label.shape
    return _CasePlaces((i, j, k), body, inside.min(axis=0), inside.max(axis=0) + 1, lesions)
