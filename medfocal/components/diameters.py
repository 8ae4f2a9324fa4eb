"""Longest distances between corners of voxels, in space and within slices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Points of a set above which its hull is cheaper to find than all its distances.
HULL_POINTS = 256
# Distances held at once.
MOST_PAIRS = 2**20
# Rounds of thinning an outline; a few are enough for most, and a corner more costs little.
MOST_PASSES = 64


def measure_diameters(
    voxels: NDArray[np.int64],
    part: NDArray[np.int32],
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    num_parts: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure the longest distance between two corners of voxels, of each part and within its slices.

    Args:
        voxels: Flat C-order indices, rising, (v,).
        part: Number of each voxel's part, from 1, (v,).
        shape: Of the volume, (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4); oblique and sheared ones too.
        num_parts: How many; each has a voxel.

    Returns:
        In mm, each (num_parts,): the longest distance; and the longest within any one slice, of the array axis that
        runs nearest to the world's z.
    """
    if not num_parts:
        return np.zeros(0), np.zeros(0)
    columns = affine[:3, :3]
    slice_axis = int(np.argmax(np.abs(columns[2]) / np.linalg.norm(columns, axis=0)))
    axes = [slice_axis, *(axis for axis in range(3) if axis != slice_axis)]
    columns = columns[:, axes]
    group, points = _slice_outlines(voxels, part, shape, axes)
    # A group is a slice of a part, numbered part by part.
    owner, place = points[:, 0], points[:, 1:]
    start = np.flatnonzero(np.diff(group, prepend=-1))
    in_slice = longest_distances(place[:, 1:], start, columns[:, 1:])
    part_start = np.flatnonzero(np.diff(owner[start], prepend=0))
    axial = np.maximum.reduceat(in_slice, part_start)
    # Both faces of each slice have its outline.
    both = np.repeat(place, 2, axis=0)
    both[1::2, 0] += 1
    longest = longest_distances(both, 2 * start[part_start], columns)
    return longest, axial


def _slice_outlines(
    voxels: NDArray[np.int64], part: NDArray[np.int32], shape: tuple[int, ...], axes: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Corners of the convex hull of each slice of each part.

    Returns:
        Group of each corner, from 0 by part and slice, and part, slice and the two indices of the corner, (n, 4).
    """
    slices, rows, columns = (shape[axis] for axis in axes)
    # By part, slice, row and column; a row more, for corners lie one further than voxels.
    key, index = part.astype(np.int64), np.unravel_index(voxels, shape)
    for axis, side in zip(axes, (slices, rows + 1, columns), strict=True):
        key *= side
        key += index[axis]
    del index
    key.sort()
    line = key // columns
    first = np.flatnonzero(np.diff(line, prepend=-1))
    last = np.append(first[1:], len(line)) - 1
    line, low, high = line[first], key[first] % columns, key[last] % columns + 1
    # Each line of voxels lies between two lines of corners.
    line, low, high = _merged(np.concatenate([line, line + 1]), np.tile(low, 2), np.tile(high, 2))
    lower, upper = _convex(line // (rows + 1), line, low), _convex(line // (rows + 1), line, -high)
    line = np.concatenate([line[lower], line[upper]])
    b = np.concatenate([low[lower], high[upper]])
    order = np.argsort(line, kind="stable")
    line, b = line[order], b[order]
    place, a = np.divmod(line, rows + 1)
    group = np.cumsum(np.diff(place, prepend=-1) != 0) - 1
    return group, np.stack([place // slices, place % slices, a, b], axis=1)


def _merged(
    line: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(line, kind="stable")
    line = line[order]
    start = np.flatnonzero(np.diff(line, prepend=-1))
    return line[start], np.minimum.reduceat(low[order], start), np.maximum.reduceat(high[order], start)


def _convex(group: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which points of each group, by rising x, may be corners of its lower hull.

    A point on or above the segment between its neighbours is none. All such leave at once: what leaves was no corner,
    so that the corners stay.
    """
    kept = np.arange(len(x))
    for _ in range(MOST_PASSES):
        before, here, after = kept[:-2], kept[1:-1], kept[2:]
        turn = (x[here] - x[before]) * (y[after] - y[before]) - (y[here] - y[before]) * (x[after] - x[before])
        leaves = (group[before] == group[after]) & (turn <= 0)
        if not leaves.any():
            break
        kept = np.concatenate([kept[:1], here[~leaves], kept[-1:]])
    return kept


def longest_distances(
    points: NDArray[np.int64], start: NDArray[np.int64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Longest distance between two points of each set.

    Args:
        points: Whole coordinates, set by set, (n, 2) or (n, 3).
        start: Where each set begins, (sets,); none is empty.
        columns: World vector in mm of a step along each coordinate, (3, 2) or (3, 3).

    Returns:
        In mm, (sets,).
    """
    count = np.diff(start, append=len(points))
    # From its first point, so that coordinates are no longer than the distances asked for.
    places = (points - np.repeat(points[start], count, axis=0)) @ columns.T
    longest = np.zeros(len(start))
    few = count <= HULL_POINTS
    # Sets of nearly the same size are padded to one size with copies of their last point.
    step = np.ceil(4 * np.log2(count)).astype(np.int64)
    for size in np.unique(step[few]):
        rows = np.flatnonzero(few & (step == size))
        width = int(count[rows].max())
        for chunk in np.array_split(rows, math.ceil(len(rows) * width**2 / MOST_PAIRS)):
            member = start[chunk, None] + np.minimum(np.arange(width), count[chunk, None] - 1)
            longest[chunk] = _longest_of_each(places[member])
    for row in np.flatnonzero(~few):
        own = slice(start[row], start[row] + count[row])
        longest[row] = _longest_of_many(points[own], places[own])
    return longest


def _longest_of_each(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (sets, points, 3)."""
    square = np.einsum("spc,spc->sp", places, places)
    squares = (-2 * places) @ places.transpose(0, 2, 1)
    squares += square[:, :, None]  # in place: new memory for each sum takes most of the time
    squares += square[:, None, :]
    return np.asarray(np.sqrt(squares.max(axis=(1, 2))))


def _longest_of_many(points: NDArray[np.int64], places: NDArray[np.float64]) -> float:
    """Of one large set. Its points in space, corners of voxels, never lie in a plane."""
    from scipy.spatial import ConvexHull  # `--help` does without

    if points.shape[1] == 3:
        places = places[ConvexHull(points).vertices]
    square, longest = (places**2).sum(axis=1), 0.0
    for begin in range(0, len(places), size := max(1, MOST_PAIRS // len(places))):
        some = slice(begin, begin + size)
        squares = square[some, None] + square - 2 * places[some] @ places.T
        longest = max(longest, float(squares.max()))
    return math.sqrt(longest)
