"""Where training patches come from: lesions are drawn, not voxels.

Drawing voxels gives a 10-voxel lesion one visit where a 20 ml lesion gets two thousand. Here a patch is centred on a
lesion drawn among all lesions of the training set, then on a voxel drawn uniformly within it, for `lesion_fraction` of
the patches; the others are centred anywhere in the body. No lesion is out of reach: of no lesion, however large, are
voxels left out of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.data.stored import TrainingCase, body_of
from medfocal.errors import DatasetError

Scalar = TypeVar("Scalar", bound=np.generic)

#: Voxels of the body's box that are tried before the body is looked at voxel by voxel.
NUM_TRIES = 1000
#: Groups of lesions by volume, as many lesions in each, that hardness tells apart.
NUM_SIZES = 4


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


def check_sampling(patch_size: Sequence[int], lesion_fraction: float, size_power: float, hardness: float) -> None:
    """Refuse arguments of `LesionBalancedSampler` that are out of range.

    Raises:
        ValueError: One is.
    """
    if len(patch_size) != 3 or any(n < 1 for n in patch_size):
        message = f"patch_size must be three positive numbers, got {list(patch_size)}"
        raise ValueError(message)
    for name, value in (("lesion_fraction", lesion_fraction), ("hardness", hardness)):
        if not 0 <= value <= 1:
            message = f"{name} must be in [0, 1], got {value}"
            raise ValueError(message)
    if not -1 <= size_power <= 1:
        message = (
            f"size_power must be in [-1, 1], got {size_power}: 0 draws all lesions alike, 1 by their number of voxels"
        )
        raise ValueError(message)


class LesionBalancedSampler:
    """Draws patch locations; the same seed, epoch and index give the same patch in any order of calls.

    With `hardness` the last judgement counts too.

    Nothing depends on who calls: any number of threads, processes or ranks draw the same patches.

    Args:
        cases: Training cases; one without lesions is welcome.
        patch_size: Voxels `(I, J, K)`.
        lesion_fraction: Share of lesion-centred patches in [0, 1]; met exactly over any long run of indices.
        seed: Of the draws.
        size_power: Exponent p of a lesion's number of voxels n in its chance, n^p: 0 draws all lesions alike; 1 draws
            voxels alike over the whole set (nnU-Net draws a case first, then voxels of a class alike); below 0 favours
            small lesions.
        hardness: Share h of the chances that follows `judge`, in [0, 1]: a lesion's chance is multiplied by
            (1 - h) + h times the share of missed validation lesions of its size over the mean of these shares. No
            effect before the first judgement.

    Raises:
        ValueError: An argument is out of range.
        DatasetError: No case has a lesion.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        *,
        patch_size: Sequence[int],
        lesion_fraction: float,
        seed: int,
        size_power: float = 0.0,
        hardness: float = 0.0,
    ) -> None:
        check_sampling(patch_size, lesion_fraction, size_power, hardness)
        self.patch_size = tuple(int(n) for n in patch_size)
        self.lesion_fraction = float(lesion_fraction)
        self.seed = seed
        self.hardness = float(hardness)
        self._cases = list(cases)
        #: (case number, lesion number within the case) of every lesion
        self.lesions = [(c, n) for c, case in enumerate(cases) for n in range(len(case.table))]
        if not self.lesions:
            message = (
                f"no lesion in the whole training set: all {len(cases)} labels are empty. "
                "Nothing can be learnt from it; check 'label' in the dataset file."
            )
            raise DatasetError(message)
        self.num_voxels = np.concatenate([case.table.num_voxels for case in cases])
        self.volume_ml = np.concatenate([case.table.volume_ml for case in cases])
        self._by_size = self.num_voxels.astype(float) ** size_power
        self._edges_ml = np.quantile(self.volume_ml, np.arange(1, NUM_SIZES) / NUM_SIZES)
        self.miss_rates: list[float] | None = None
        self._accumulate()

    def judge(self, volume_ml: ArrayLike, missed: ArrayLike) -> None:
        """Say which lesions of the last validation were missed, so that lesions of such sizes are drawn more often.

        Sizes are the quarters of the training lesions by volume; a share is (missed + 1) / (lesions + 2) in each, so
        that one lesion does not decide.

        Args:
            volume_ml: Of the validation lesions, `(n,)`.
            missed: Whether each was missed, `(n,)`.
        """
        group = np.searchsorted(self._edges_ml, np.asarray(volume_ml, float))
        lesions = np.bincount(group, minlength=NUM_SIZES)
        misses = np.bincount(group, np.asarray(missed, float), minlength=NUM_SIZES)
        self.set_miss_rates(((misses + 1) / (lesions + 2)).tolist())

    def set_miss_rates(self, rates: Sequence[float] | None) -> None:
        """Take shares of missed lesions by size as `judge` made them; None: nothing has been judged."""
        self.miss_rates = None if rates is None else [float(rate) for rate in rates]
        self._accumulate()

    def _accumulate(self) -> None:
        chances = self._by_size
        if self.miss_rates is not None and self.hardness > 0:
            rates = np.array(self.miss_rates)
            group = np.searchsorted(self._edges_ml, self.volume_ml)
            chances = chances * (1 - self.hardness + self.hardness * rates[group] / rates.mean())
        total = np.cumsum(chances)
        #: Chance of each lesion when a lesion is drawn, `(n,)`.
        self.chances = chances / total[-1]
        self._upto = total / total[-1]

    def draw(self, epoch: int, index: int) -> PatchLocation:
        """The patch at a place in the order of an epoch.

        Args:
            epoch: From 0.
            index: From 0, counted over the whole epoch (step x batch size + place in the batch).
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        fraction = self.lesion_fraction
        if int((index + 1) * fraction + 1e-9) > int(index * fraction + 1e-9):
            number = min(int(np.searchsorted(self._upto, rng.random(), side="right")), len(self.lesions) - 1)
            case, lesion = self.lesions[number]
            table = self._cases[case].table
            centre = table.voxel(lesion, int(rng.integers(table.num_voxels[lesion])))
            return self._located(case, centre, number)
        number = int(rng.integers(len(self._cases)))
        drawn = self._cases[number]
        for _ in range(NUM_TRIES):
            i, j, k = rng.integers(drawn.body_low, drawn.body_high).tolist()
            if body_of(drawn.image[:, i, j, k].reshape(-1, 1, 1, 1), drawn.background):
                return self._located(number, (i, j, k), None)
        # The box is almost empty, as of a few voxels in two corners; all of the image is read then.
        inside = np.flatnonzero(body_of(drawn.image[:], drawn.background))
        i, j, k = map(int, np.unravel_index(inside[rng.integers(len(inside))], drawn.shape))
        return self._located(number, (i, j, k), None)

    def visits(self, epoch: int, num_patches: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How often an epoch visits each lesion, found by drawing its patches again.

        Args:
            epoch: From 0.
            num_patches: Of the epoch.

        Returns:
            Patches centred on each lesion, int64 `(n,)`, and patches that show the whole of its box, whatever they are
            centred on, int64 `(n,)`.
        """
        first = np.concatenate([[0], np.cumsum([len(case.table) for case in self._cases])])
        centred, shown = np.zeros((2, len(self.lesions)), np.int64)
        size = np.array(self.patch_size)
        for index in range(num_patches):
            place = self.draw(epoch, index)
            if place.lesion is not None:
                centred[place.lesion] += 1
            table, start = self._cases[place.case].table, np.array(place.start)
            inside = ((table.low >= start) & (table.high <= start + size)).all(axis=1)
            shown[first[place.case] : first[place.case + 1]] += inside
        return centred, shown

    def _located(self, case: int, centre: tuple[int, int, int], lesion: int | None) -> PatchLocation:
        start = []
        for middle, size, length in zip(centre, self.patch_size, self._cases[case].shape, strict=True):
            if length >= size:
                start.append(min(max(middle - size // 2, 0), length - size))
            else:
                start.append(-((size - length) // 2))
        return PatchLocation(case, centre, (start[0], start[1], start[2]), lesion)


def cut_patch(
    array: NDArray[Scalar], start: Sequence[int], size: Sequence[int], out: NDArray[Scalar] | None = None
) -> NDArray[Scalar]:
    """Cut `(..., I, J, K)`; what lies outside the volume is 0.

    Args:
        array: The last three axes are spatial.
        start: First voxel, may be negative.
        size: Voxels of the patch.
        out: Where to write it, `(..., *size)`, or None.

    Returns:
        A copy of shape `(..., *size)`.
    """
    window, inner = _windows(array.shape[-3:], start, size)
    every: tuple[slice, ...] = (slice(None),) * (array.ndim - 3)
    patch = np.empty((*array.shape[:-3], *size), array.dtype) if out is None else out
    piece = array[every + inner]
    if piece.shape != patch.shape:
        patch[...] = 0
    patch[every + window] = piece
    return patch


def cut_image(
    array: NDArray[Any], start: Sequence[int], size: Sequence[int], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Cut an image `(C, I, J, K)` in single precision; what lies outside the volume is 0; `out` as of `cut_patch`."""
    if array.dtype == np.float32:
        return cut_patch(array, start, size, out)
    import torch

    patch = np.empty((len(array), *size), np.float32) if out is None else out
    # torch turns halves into singles with the processor's own instruction, numpy eight times as slowly one by one.
    torch.from_numpy(patch).copy_(torch.from_numpy(cut_patch(array, start, size)))
    return patch


def cut_body(case: TrainingCase, start: Sequence[int], size: Sequence[int]) -> NDArray[np.bool_]:
    """Which voxels of a patch of a case are of the body; none outside the volume."""
    window, inner = _windows(case.shape, start, size)
    body = np.zeros(tuple(size), np.bool_)
    body[window] = body_of(case.image[(slice(None), *inner)], case.background)
    return body


def _windows(
    shape: Sequence[int], start: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a patch holds voxels of the volume, and which voxels these are."""
    window, inner = [], []
    for first, count, length in zip(start, size, shape, strict=True):
        low, high = min(max(first, 0), length), max(min(first + count, length), 0)
        low = min(low, high)
        inner.append(slice(low, high))
        begin = min(max(low - first, 0), count)
        window.append(slice(begin, begin + high - low))
    return tuple(window), tuple(inner)
