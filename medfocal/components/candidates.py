"""Candidates of a probability map: hills by their own height, or the connected parts above a threshold."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.components.boxes import box_of_mask
from medfocal.components.hills import label_hills, levels_of, number_hills
from medfocal.components.parts import (
    SPARSE_SHARE,
    Components,
    checked_grid,
    find_connected,
    in_c_order,
    lift,
    measure,
)
from medfocal.components.voxels import Layout, find_positions

# Voxels whose mean is a candidate's confidence under "mean_top".
NUM_TOP_VOXELS = 5

Confidence = Literal["max", "mean_top"]


def find_candidates(
    probability: NDArray[Any],
    affine: ArrayLike,
    *,
    extent_ratio: float = 0.5,
    floor: float = 0.01,
    connectivity: int = 26,
    confidence: Confidence = "max",
) -> Components:
    """Find the hills of a probability map, each down to a share of its own height.

    A candidate is a connected part of {p >= extent_ratio * m} whose own maximum is m. Candidates are
    disjoint: of two that share a voxel the one on the higher level lies inside the other, so both have the
    same maximum and are the same part. No absolute cut is needed, and a map scaled by a level gives the same
    candidates. A bump on a shoulder that joins a higher peak before it falls to `extent_ratio` of its own
    height belongs to that hill's skirt.

    Heights are rounded down to levels extent_ratio ** (k / 8), k = 0, 1, ..., which makes the above exact: two
    maxima within one level (9 % at the default ratio) count as equally high. Confidences are not rounded.

    Args:
        probability: Values in [0, 1], (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4).
        extent_ratio: Share of its own height down to which a candidate reaches, in (0, 1).
        floor: Hills lower than this are not formed, in (0, 1].
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners).
        confidence: "max", the highest voxel, or "mean_top", the mean of the 5 highest (fewer if smaller).

    Returns:
        The candidates by falling confidence, then by their first voxel in C order. A map below the floor: none.

    Raises:
        ValueError: An argument is out of its range, or the map holds NaN or a value outside [0, 1].

    Example:
        >>> p = np.zeros((12, 10, 8))
        >>> p[2, 2, 2], p[3, 2, 2], p[8, 5, 4] = 0.8, 0.3, 0.06
        >>> hills = find_candidates(p, np.eye(4))
        >>> hills.confidence.tolist(), hills.num_voxels.tolist()
        ([0.8, 0.06], [1, 1])
    """
    affine = checked_grid(probability, affine, connectivity)
    if not 0 < extent_ratio < 1:
        message = f"extent_ratio must be in (0, 1), got {extent_ratio}"
        raise ValueError(message)
    if not 0 < floor <= 1:
        message = f"floor must be in (0, 1], got {floor}"
        raise ValueError(message)
    _check_map(probability, confidence)
    voxels, number = _find_hills(probability, levels_of(extent_ratio, floor), connectivity)
    inside = number > 0
    return _by_confidence(voxels[inside], number[inside] - 1, probability, affine, confidence, floor)


def find_at_threshold(
    probability: NDArray[Any],
    affine: ArrayLike,
    *,
    threshold: float,
    connectivity: int = 26,
    confidence: Confidence = "max",
) -> Components:
    """Find the connected parts of a probability map at and above a threshold.

    Args:
        probability: Values in [0, 1], (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4).
        threshold: Least probability of a voxel, in [0, 1]; 0 takes every voxel above 0.
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners).
        confidence: "max", the highest voxel, or "mean_top", the mean of the 5 highest (fewer if smaller).

    Returns:
        The candidates by falling confidence, then by their first voxel in C order. A map below the threshold: none.

    Raises:
        ValueError: An argument is out of its range, or the map holds NaN or a value outside [0, 1].
    """
    affine = checked_grid(probability, affine, connectivity)
    if not 0 <= threshold <= 1:
        message = f"threshold must be in [0, 1], got {threshold}"
        raise ValueError(message)
    _check_map(probability, confidence)
    voxels, part = find_connected(probability, connectivity, partial(_reaches, threshold=threshold))
    return _by_confidence(voxels, part - 1, probability, affine, confidence)


def _reaches(probability: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    # Not a plain float, which numpy rounds to the precision of the map: 0.7 is above what float32 makes of it.
    return np.asarray(probability > 0 if threshold == 0 else probability >= np.float64(threshold))


def _check_map(probability: NDArray[Any], confidence: str) -> None:
    if confidence not in get_args(Confidence):
        message = f"confidence must be one of {get_args(Confidence)}, got {confidence!r}"
        raise ValueError(message)
    low, high = (float(probability.min()), float(probability.max())) if probability.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        message = f"probability must lie in [0, 1] without NaN, got values from {low} to {high}"
        raise ValueError(message)


def _find_hills(
    probability: NDArray[Any], levels: NDArray[np.float64], connectivity: int
) -> tuple[NDArray[np.int64], NDArray[np.integer[Any]]]:
    """Flat C-order indices, rising, of voxels and the number of each one's hill, 0 for none."""
    reaches, layout = partial(_reaches, threshold=float(levels[-1])), Layout.of(probability)
    positions = find_positions(probability, layout, reaches, most=int(SPARSE_SHARE * probability.size))
    if positions is not None:
        values = probability.transpose(layout.axes)[np.unravel_index(positions, layout.laid_shape)]
        number = number_hills(positions, values, layout.laid_shape, levels, connectivity)
        return in_c_order(positions, number, layout)
    box = box_of_mask(reaches(probability))
    assert box is not None  # more than a share of the voxels is inside
    labels = label_hills(probability[box], levels, connectivity)
    voxels = np.flatnonzero(labels)
    return lift(voxels, box, probability.shape), labels.ravel()[voxels]


def _by_confidence(
    voxels: NDArray[np.int64],
    part: NDArray[np.integer[Any]],
    probability: NDArray[Any],
    affine: NDArray[np.float64],
    confidence: Confidence,
    floor: float = 0.0,
) -> Components:
    """Drop parts below the floor, number the others by falling confidence and measure them.

    `part` counts from 0 and has no gaps.
    """
    values = probability[np.unravel_index(voxels, probability.shape)].astype(np.float64)
    size = np.bincount(part)
    start = np.cumsum(size) - size
    by_value = np.lexsort((-values, part))
    highest = values[by_value[start]]
    rating = _mean_of_top(values[by_value], start, size) if confidence == "mean_top" else highest
    first = np.empty(len(size), np.int64)
    first[part[::-1]] = voxels[::-1]
    kept = np.flatnonzero(highest >= floor)
    kept = kept[np.lexsort((first[kept], -rating[kept]))]
    number = np.zeros(len(size), np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    new = number[part]
    inside = new > 0
    return measure(probability.shape, voxels[inside], new[inside], affine, rating[kept], voxels[by_value[start[kept]]])


def _mean_of_top(values: NDArray[np.float64], start: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of the first values of each part, which are sorted by part and falling."""
    place = np.arange(len(values)) - np.repeat(start, size)
    top = np.where(place < NUM_TOP_VOXELS, values, 0)
    return np.asarray(np.add.reduceat(top, start) / np.minimum(size, NUM_TOP_VOXELS))
