"""Bringing voxels from one grid onto another whose axes are parallel, so that nothing moves and no lesion is lost.

Along each axis voxel x of the new grid lies at `step * x + offset` of the old one. Images and labels are both read
there, with weights that are the same on either side, so neither drifts against the other. (MONAI's nearest neighbour
takes the voxel of lower or of higher index where two are equally near. At a ratio of 2 that moves a label by half
a voxel of the coarser grid, and which way depends on how the file orders its axes.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medfocal.components.boxes import box_of_mask
from medfocal.components.parts import find_connected

Number = TypeVar("Number", int, float)

# The share of lesion from which a voxel is lesion is a half; spacings that files store as float32 blur it by less.
HALF = 0.5 - 1e-4

# Voxels nearer than this share of a voxel are at the same place: affines are inverted and multiplied in between.
SAME_PLACE = 1e-3


@dataclass(frozen=True)
class GridMap:
    """Where the voxels of a new grid lie in an old one.

    Attributes:
        old_shape: Voxels `(I, J, K)`.
        new_shape: Likewise.
        steps: Voxels of the old grid from one voxel of the new to the next, above 0, along each axis.
        offsets: Where the first voxel of the new grid lies in the old one.
    """

    old_shape: tuple[int, int, int]
    new_shape: tuple[int, int, int]
    steps: tuple[float, float, float]
    offsets: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def is_same(self) -> bool:
        """Whether both grids have the same voxels."""
        return all(self.is_identity(axis) for axis in range(3))

    def is_identity(self, axis: int) -> bool:
        """Whether along an axis both grids have the same voxels."""
        count, step, offset = self.new_shape[axis], self.steps[axis], self.offsets[axis]
        far = max(abs(offset), abs((step - 1) * (count - 1) + offset))
        return count == self.old_shape[axis] and far < SAME_PLACE

    def places(self, axis: int) -> NDArray[np.float64]:
        """Where each voxel of the new grid lies along an axis of the old one."""
        return np.asarray(self.steps[axis] * np.arange(self.new_shape[axis]) + self.offsets[axis], np.float64)

    def nearest(self, voxels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The voxels of the new grid that are nearest to voxels `(n, 3)` of the old one."""
        found = np.floor((voxels - np.array(self.offsets)) / np.array(self.steps) + 0.5).astype(np.int64)
        return np.asarray(np.clip(found, 0, np.array(self.new_shape) - 1))


def map_to_spacing(
    shape: Sequence[int], affine: NDArray[np.float64], spacing_mm: Sequence[float], *, tolerance_mm: float
) -> tuple[GridMap, NDArray[np.float64]]:
    """Choose the grid of another spacing that has the same first voxel and the same axes.

    Its last voxel is the one nearest to the last of the old grid. An axis whose spacing is so near that it ends less
    than `tolerance_mm` away keeps its own.

    Args:
        shape: Of the old grid.
        affine: Of the old grid, `(4, 4)`.
        spacing_mm: Along each axis of the array.
        tolerance_mm: What counts as rounding.

    Returns:
        How the grids lie to each other, and the affine of the new one. Sheared axes stay sheared.
    """
    old_mm = np.linalg.norm(affine[:3, :3], axis=0)
    lengths_mm = (np.array(shape) - 1) * old_mm
    steps = np.array(spacing_mm) / old_mm
    same = (np.array(shape) - 1) * np.abs(np.array(spacing_mm) - old_mm) <= tolerance_mm
    same &= np.abs(steps - 1) < 0.01  # an axis of one voxel has no length to judge by
    steps[same] = 1.0
    counts = np.floor(lengths_mm / (steps * old_mm) + 0.5).astype(int) + 1
    found = affine.copy()
    found[:3, :3] *= steps
    return GridMap(_triple(shape, int), _triple(counts, int), _triple(steps, float)), found


def map_between(
    shape: Sequence[int], affine: NDArray[np.float64], new_shape: Sequence[int], new_affine: NDArray[np.float64]
) -> GridMap:
    """How two grids lie to each other whose axes are parallel and in the same order.

    Args:
        shape: Of the old grid.
        affine: Of the old grid, `(4, 4)`.
        new_shape: Of the new grid.
        new_affine: Of the new grid, `(4, 4)`.
    """
    between = np.linalg.inv(affine) @ new_affine
    steps = np.diagonal(between)[:3]
    astray = np.abs(between[:3, :3] - np.diag(steps)).max()
    assert (steps > 0).all(), "axes are turned before they are compared"
    assert astray < SAME_PLACE, "one grid comes from the other by turning and by spacing"
    return GridMap(_triple(shape, int), _triple(new_shape, int), _triple(steps, float), _triple(between[:3, 3], float))


def resample_values(values: NDArray[Any], grids: GridMap) -> NDArray[np.float32]:
    """Bring an image, shares or weights onto another grid.

    Linear interpolation along each axis; where the new grid is coarser than the old, the weights fall to 0 over one
    voxel of the new grid instead, so that no voxel of the old one is passed over and a small lesion keeps its part in
    the sum of the image. Beyond the border the last voxel counts.

    Args:
        values: `(..., I, J, K)`; finite.
        grids: Where to.

    Returns:
        float32 `(..., I, J, K)`. Where the grids are the same, `values` itself if it is float32.
    """
    found = np.asarray(values, np.float32)
    axes = [axis for axis in range(3) if not grids.is_identity(axis)]
    for axis in sorted(axes, key=lambda axis: grids.new_shape[axis] / grids.old_shape[axis]):  # the most is saved first
        width = max(1.0, grids.steps[axis])
        found = _weighted(found, *_taps(grids.places(axis), grids.old_shape[axis], width), found.ndim - 3 + axis)
    return found


def resample_classes(classes: NDArray[np.integer[Any]], grids: GridMap) -> NDArray[np.uint8]:
    """Bring a label onto another grid, so that every lesion keeps its place and none is lost.

    A voxel is lesion where the lesions' mask, interpolated linearly at its centre, is a half or more: a tie goes to
    the lesion. Its class is the lesion class of the largest share there, of two alike the higher. This keeps a
    lesion's centre, and its volume as far as voxels can. Where the new grid is finer by a whole even number the ties
    make a lesion larger by up to a quarter of an old voxel on each side, the same on all sides.

    A lesion (26-connected, of whatever classes) none of whose voxels has a lesion voxel as its nearest on the new
    grid would be lost, and with it every patch that is centred on it. It is drawn as one voxel, with the class that
    most of its voxels have: of those nearest to its own voxels the one nearest to its centre; half-way between two,
    either. Such a lesion is small against a voxel of the new grid and looks larger there than it is. So a label on the
    network's grid teaches; it is not what a prediction is evaluated against.

    Args:
        classes: `(I, J, K)`, 0 for the background, at most 255.
        grids: Where to.

    Returns:
        uint8 `(I, J, K)`; all 0 for a label without lesions.
    """
    if grids.is_same:
        return classes.astype(np.uint8)
    found = np.zeros(grids.new_shape, np.uint8)
    box = box_of_mask(classes > 0)
    if box is None:
        return found
    inner = [_within(*_taps(grids.places(axis), grids.old_shape[axis], 1.0), box[axis]) for axis in range(3)]
    if all(len(taps) for _, taps, _ in inner):
        pieces = [(taps, weights) for _, taps, weights in inner]
        found[np.ix_(*(rows for rows, _, _ in inner))] = _largest_class(classes[box], pieces)
    _draw_lost(classes, found, grids)
    return found


def _largest_class(
    classes: NDArray[np.integer[Any]], taps: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> NDArray[np.uint8]:
    """The class of the largest share where lesions have a half or more, 0 elsewhere."""
    shares = _interpolated(classes > 0, taps)
    first, *others = (int(value) for value in np.unique(classes) if value)
    winner = np.full(shares.shape, first, np.uint8)
    if others:
        largest = _interpolated(classes == first, taps)
    for value in others:
        share = _interpolated(classes == value, taps)
        winner[share >= largest - (0.5 - HALF)] = value
        largest = np.maximum(largest, share)
    winner[shares < HALF] = 0
    return winner


def _draw_lost(classes: NDArray[np.integer[Any]], found: NDArray[np.uint8], grids: GridMap) -> None:
    """Give each lesion that has no voxel on the new grid one, in place."""
    flat, part = find_connected(classes, 26)
    voxels = np.stack(np.unravel_index(flat, classes.shape), axis=1)
    nearest = grids.nearest(voxels)
    is_kept = np.zeros(int(part.max()) + 1, np.bool_)
    is_kept[part[found[tuple(nearest.T)] > 0]] = True
    lost = np.flatnonzero(~is_kept[part])
    lost = lost[np.argsort(part[lost], kind="stable")]
    for own in np.split(lost, np.flatnonzero(np.diff(part[lost])) + 1) if len(lost) else []:
        places, steps = nearest[own], np.array(grids.steps)
        away = places - (voxels[own].mean(axis=0) - grids.offsets) / steps
        place = places[int(np.argmin((away**2).sum(axis=1)))]
        counts = np.bincount(classes[tuple(voxels[own].T)])
        found[tuple(place)] = int(np.flatnonzero(counts == counts.max())[-1])


def _taps(places: NDArray[np.float64], count: int, width: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Voxels of a line of `count`, and their weights, that make up the value at each place `(m,)`.

    Weights fall linearly from the place to 0 at `width` voxels from it; they are corrected so that their sum is 1 and
    their centre is the place, as they must be to give a linear image again. With a width of 1 that is linear
    interpolation. A voxel beyond an end stands for the one at the end.

    Returns:
        Voxels and weights, `(m, t)`; where fewer than t count, the others have weight 0.
    """
    first = np.floor(places - width).astype(np.int64) + 1
    taps = first[:, None] + np.arange(2 * int(np.ceil(width)))
    away = taps - places[:, None]
    weights = np.maximum(0, 1 - np.abs(away) / width)
    lean, spread = ((weights * away**power).sum(axis=1, keepdims=True) for power in (1, 2))
    weights *= 1 - away * lean / np.where(spread > SAME_PLACE**2, spread, np.inf)  # one voxel alone cannot lean
    weights /= weights.sum(axis=1, keepdims=True)
    used = weights.max(axis=0) > 0
    return np.clip(taps, 0, count - 1)[:, used], weights[:, used].astype(np.float32)


def _within(
    taps: NDArray[np.int64], weights: NDArray[np.float32], side: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Places that a stretch of a line has a part in, with their taps counted from its start.

    What lies outside of the stretch is 0 there, so it keeps no weight.
    """
    inside = (taps >= side.start) & (taps < side.stop)
    weights = np.where(inside, weights, np.float32(0))
    rows = np.flatnonzero(weights.max(axis=1) > 0)
    return rows, np.clip(taps[rows] - side.start, 0, side.stop - side.start - 1), weights[rows]


def _interpolated(
    mask: NDArray[np.bool_], taps: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]
) -> NDArray[np.float32]:
    found = mask.astype(np.float32)
    for axis, pair in enumerate(taps):
        found = _weighted(found, *pair, axis)
    return found


def _weighted(
    values: NDArray[np.float32], taps: NDArray[np.int64], weights: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    """Sums of a few voxels along an axis, each with its weight."""
    shape = [1] * values.ndim
    shape[axis] = len(taps)
    found = np.take(values, taps[:, 0], axis)
    found *= weights[:, 0].reshape(shape)
    for number in range(1, taps.shape[1]):
        piece = np.take(values, taps[:, number], axis)
        piece *= weights[:, number].reshape(shape)
        found += piece
    return found


def _triple(values: Any, kind: Callable[[Any], Number]) -> tuple[Number, Number, Number]:
    first, second, third = (kind(value) for value in values)
    return first, second, third
