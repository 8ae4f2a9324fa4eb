"""Connected parts of masks and instance maps, as lists of voxels, and their measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.components.boxes import box_of_mask, label
from medfocal.components.diameters import measure_diameters
from medfocal.components.runs import Runs
from medfocal.components.voxels import Layout, Test, find_positions
from medfocal.volume import voxel_volume_ml

CONNECTIVITIES = (6, 18, 26)
# Up to this share of a volume runs are faster than cc3d in the box around them, which needs a volume of labels.
SPARSE_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class NumberedVoxels:
    """Voxels of one volume, each with the number of the part it belongs to.

    Attributes:
        shape: Of the volume, (I, J, K).
        voxels: Flat C-order indices of all voxels in parts, rising, int64 (v,).
        part: Number of each voxel's part, from 1, int32 (v,).
    """

    shape: tuple[int, ...]
    voxels: NDArray[np.int64]
    part: NDArray[np.int32]

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Part numbers as a volume, 0 outside, int32 (I, J, K). Made when first asked for."""
        labels = np.zeros(self.shape, np.int32)
        labels.reshape(-1)[self.voxels] = self.part
        return labels


@dataclass(frozen=True, eq=False)
class Components(NumberedVoxels):
    """Parts of one volume; row `n - 1` of each column belongs to part number `n`.

    Attributes:
        shape: Of the volume, (I, J, K).
        voxels: Flat C-order indices of all voxels in parts, rising, int64 (v,).
        part: Number of each voxel's part, from 1, int32 (v,).
        affine: Voxel index to world RAS in mm, (4, 4).
        num_voxels: Voxels of each part, int64 (n,).
        volume_ml: Volume of each part in millilitres, (n,).
        centroid_voxel: Mean voxel index, (n, 3).
        centroid_mm: The same point in world coordinates (RAS), (n, 3).
        bounding_box: First index and the index after the last along each axis, int64 (n, 3, 2).
        equivalent_diameter_mm: Diameter of the sphere of the same volume, (n,).
        confidence: Confidence of each part, (n,). NaN for lesions, 1.0 for candidates from a mask.
        highest: Flat index of the highest voxel of each candidate of a probability map, int64 (n,); None for others.
    """

    affine: NDArray[np.float64]
    num_voxels: NDArray[np.int64]
    volume_ml: NDArray[np.float64]
    centroid_voxel: NDArray[np.float64]
    centroid_mm: NDArray[np.float64]
    bounding_box: NDArray[np.int64]
    equivalent_diameter_mm: NDArray[np.float64]
    confidence: NDArray[np.float64]
    highest: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.num_voxels)

    @property
    def longest_diameter_mm(self) -> NDArray[np.float64]:
        """Longest distance between two corners of voxels of each part, (n,). Made when first asked for."""
        return self._diameters[0]

    @property
    def axial_diameter_mm(self) -> NDArray[np.float64]:
        """The same within one slice, the longest of all slices, (n,). Made when first asked for.

        Slices are those of the array axis that runs nearest to the world's z, and have no thickness.
        """
        return self._diameters[1]

    @cached_property
    def _diameters(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return measure_diameters(self.voxels, self.part, self.shape, self.affine, len(self))

    @cached_property
    def peak(self) -> NDArray[np.int64]:
        """Flat index of one voxel that stands for each part, int64 (n,); the first of equals in C order.

        The highest voxel of a candidate of a probability map; of a part of a mask the voxel nearest to its centroid
        in mm.
        """
        if self.highest is not None:
            return self.highest
        row = self.part - 1
        away = np.stack(np.unravel_index(self.voxels, self.shape), axis=1) - self.centroid_voxel[row]
        square = ((away @ self.affine[:3, :3].T) ** 2).sum(axis=1)
        nearest = np.full(len(self), np.inf)
        np.minimum.at(nearest, row, square)
        # Voxels on both sides of a centroid are equally near but for rounding.
        near = np.flatnonzero(square <= nearest[row] * (1 + 1e-9) + 1e-12)
        peak = np.zeros(len(self), np.int64)
        peak[row[near[::-1]]] = self.voxels[near[::-1]]
        return peak


def find_components(
    mask: NDArray[Any], affine: ArrayLike, *, connectivity: int = 26, confidence: float = math.nan
) -> Components:
    """Find the connected parts of a mask.

    Args:
        mask: Anything but 0 is inside, (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4).
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners).
        confidence: Confidence that every part gets.

    Returns:
        The parts, numbered by their first voxel in C order. An empty mask: no parts.

    Raises:
        ValueError: The mask is not 3D, the affine not (4, 4), or the connectivity none of the three.
    """
    affine = checked_grid(mask, affine, connectivity)
    voxels, part = find_connected(mask, connectivity)
    return measure(mask.shape, voxels, part, affine, confidence)


def find_instances(
    numbers: NDArray[Any], affine: ArrayLike, *, confidence: float = math.nan
) -> tuple[Components, NDArray[Any]]:
    """Take the parts that a map of numbers already tells apart.

    Args:
        numbers: Each value but 0 is one part, touching others or in pieces, (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4).
        confidence: Confidence that every part gets.

    Returns:
        The parts, numbered by their first voxel in C order, and the value that each has in `numbers`, (n,).

    Raises:
        ValueError: The map is not 3D or holds NaN, or the affine is not (4, 4).
    """
    affine = checked_grid(numbers, affine)
    layout = Layout.of(numbers)
    positions = find_positions(numbers, layout)
    own = numbers.transpose(layout.axes)[np.unravel_index(positions, layout.laid_shape)]
    if np.isnan(own).any():
        message = f"an instance map holds one number for each part, got NaN in {np.isnan(own).sum()} voxels"
        raise ValueError(message)
    values, row = np.unique(own, return_inverse=True)
    voxels, row = in_c_order(positions, row, layout)
    part, order = number_by_first_voxel(row)
    return measure(numbers.shape, voxels, part, affine, confidence), values[order]


def find_grown(
    mask: NDArray[Any], affine: ArrayLike, *, connectivity: int = 26, steps: int
) -> tuple[Components, NumberedVoxels]:
    """Find the parts of a mask that are one if they touch once they are grown.

    The mask is dilated `steps` times by the 18-neighbourhood; parts are the connected parts of what comes out. It is
    how the BraTS 2023 lesion-wise figures tell lesions apart.

    Args:
        mask: Anything but 0 is inside, (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4).
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners), of the grown mask.
        steps: How often to dilate, 0 or more.

    Returns:
        The parts with the voxels of the mask itself, numbered by the first of them in C order, confidence NaN; and the
        grown voxels under the same numbers.

    Raises:
        ValueError: The mask is not 3D, the affine not (4, 4), the connectivity none of the three, or `steps` below 0.
    """
    affine = checked_grid(mask, affine, connectivity)
    if steps < 0:
        message = f"steps must be 0 or more, got {steps}"
        raise ValueError(message)
    layout = Layout.of(mask)
    positions = find_positions(mask, layout)
    runs = Runs.of(positions, layout.laid_shape)
    for _ in range(steps):
        runs = runs.grown()
    grown, row = runs.positions(), np.repeat(runs.parts(connectivity), runs.length).astype(np.int64)
    voxels, own = in_c_order(positions, row[np.searchsorted(grown, positions)], layout)
    part, order = number_by_first_voxel(own)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(1, len(order) + 1, dtype=np.int32)
    grown, row = in_c_order(grown, row, layout)
    parts = measure(mask.shape, voxels, part, affine, math.nan)
    return parts, NumberedVoxels(mask.shape, grown, number[row])


def find_connected(
    array: NDArray[Any], connectivity: int, test: Test | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find the connected parts of the voxels that are not 0, or that pass `test`.

    Returns:
        Flat C-order indices, rising, and the number of each voxel's part, by first voxel in C order.
    """
    layout = Layout.of(array)
    positions = find_positions(array, layout, test, most=int(SPARSE_SHARE * array.size))
    if positions is None:
        voxels, row = _connect_in_box(array != 0 if test is None else test(array), connectivity)
    else:
        runs = Runs.of(positions, layout.laid_shape)
        voxels, row = in_c_order(positions, np.repeat(runs.parts(connectivity), runs.length), layout)
    part, _ = number_by_first_voxel(row)
    return voxels, part


def _connect_in_box(inside: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    box = box_of_mask(inside)
    if box is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    parts, _ = label(inside[box], connectivity)
    voxels = np.flatnonzero(parts)
    row = parts.ravel()[voxels].astype(np.int64) - 1
    return lift(voxels, box, inside.shape), row


def lift(voxels: NDArray[np.int64], box: tuple[slice, ...], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Flat indices in a volume of flat indices in a box of it; their order stays."""
    index = np.unravel_index(voxels, [side.stop - side.start for side in box])
    lifted = np.ravel_multi_index([i + side.start for i, side in zip(index, box, strict=True)], shape)
    return np.asarray(lifted, np.int64)


def in_c_order(
    positions: NDArray[np.int64], row: NDArray[Any], layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Voxels and the rows of their parts, from 0, by flat C-order index instead of by position."""
    voxels = layout.in_c_order(positions)
    num_parts = int(row.max(initial=0)) + 1
    # One sort of whole numbers takes a third of the time of a sort of indices.
    return np.divmod(np.sort(voxels * num_parts + row), num_parts)


def number_by_first_voxel(part: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number parts from 1 in the order in which they come.

    Args:
        part: Part of each voxel, 0 to n - 1 without gaps.

    Returns:
        The new number of each voxel's part, and the old one of each new number.
    """
    first = np.empty(int(part.max(initial=-1)) + 1, np.int64)
    first[part[::-1]] = np.arange(len(part) - 1, -1, -1)
    order = np.argsort(first)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(1, len(order) + 1, dtype=np.int32)
    return number[part], order


def measure(
    shape: tuple[int, ...],
    voxels: NDArray[np.int64],
    part: NDArray[np.int32],
    affine: NDArray[np.float64],
    confidence: ArrayLike,
    highest: NDArray[np.int64] | None = None,
) -> Components:
    """Measure parts by their runs of voxels along K; every number from 1 to the highest has a voxel."""
    is_first = np.diff(voxels, prepend=-2) != 1
    is_first |= np.diff(part, prepend=0) != 0
    is_first |= voxels % shape[2] == 0
    starts = np.flatnonzero(is_first)
    order = np.argsort(part[starts], kind="stable")
    length = np.diff(starts, append=len(voxels))[order]
    row, first = part[starts][order] - 1, np.stack(np.unravel_index(voxels[starts][order], shape))
    num_parts = int(row[-1]) + 1 if len(row) else 0
    num_voxels = np.bincount(row, length, num_parts).astype(np.int64)
    last = first.copy()
    last[2] += length - 1
    # Twice the sum over a run along any axis is its length times the sum of its ends, a whole number.
    sums = np.stack([np.bincount(row, length * ends, num_parts) for ends in first + last])
    centroid_voxel = (sums / (2 * num_voxels)).T
    begin = np.flatnonzero(np.diff(row, prepend=-1))
    low, high = np.minimum.reduceat(first, begin, axis=1), np.maximum.reduceat(last, begin, axis=1)
    volume_ml = num_voxels.astype(np.float64) * voxel_volume_ml(affine)
    return Components(
        shape=shape,
        voxels=voxels,
        part=part,
        affine=affine,
        num_voxels=num_voxels,
        volume_ml=volume_ml,
        centroid_voxel=centroid_voxel,
        centroid_mm=centroid_voxel @ affine[:3, :3].T + affine[:3, 3],
        bounding_box=np.stack([low, high + 1], axis=-1).transpose(1, 0, 2),
        equivalent_diameter_mm=np.cbrt(6000 * volume_ml / math.pi),
        confidence=np.broadcast_to(np.asarray(confidence, np.float64), num_parts).copy(),
        highest=highest,
    )


def checked_grid(array: NDArray[Any], affine: ArrayLike, connectivity: int = 26) -> NDArray[np.float64]:
    """Give the affine as an array, or refuse what is no volume, no affine or no connectivity."""
    if array.ndim != 3:
        message = f"a 3D array is needed, got shape {array.shape}"
        raise ValueError(message)
    if connectivity not in CONNECTIVITIES:
        message = f"connectivity must be one of {CONNECTIVITIES}, got {connectivity}"
        raise ValueError(message)
    affine = np.array(affine, np.float64)
    if affine.shape != (4, 4):
        message = f"affine must have shape (4, 4), got {affine.shape}"
        raise ValueError(message)
    return affine
