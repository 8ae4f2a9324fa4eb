"""Connected parts of masks and probability maps, and their measurements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.volume import voxel_volume_ml

# A factor 1 / extent_ratio has this many levels, so that extent_ratio times a level is a level again.
STEPS_PER_RATIO = 8
# Voxels whose mean is a candidate's confidence under "mean_top".
NUM_TOP_VOXELS = 5

CONNECTIVITIES = (6, 18, 26)
Confidence = Literal["max", "mean_top"]


@dataclass(frozen=True, eq=False)
class Components:
    """Connected parts of one volume; row `n - 1` of each table belongs to part number `n`.

    Attributes:
        labels: Part numbers 1..n, 0 outside, int32 (I, J, K).
        num_voxels: Voxels of each part, int64 (n,).
        volume_ml: Volume of each part in millilitres, (n,).
        centroid_voxel: Mean voxel index, (n, 3).
        centroid_mm: The same point in world coordinates (RAS), (n, 3).
        bounding_box: First index and the index after the last along each axis, (n, 3, 2).
        equivalent_diameter_mm: Diameter of the sphere of the same volume, (n,).
        confidence: Confidence of each part, (n,). NaN for lesions, 1.0 for candidates from a mask.
    """

    labels: NDArray[np.int32]
    num_voxels: NDArray[np.int64]
    volume_ml: NDArray[np.float64]
    centroid_voxel: NDArray[np.float64]
    centroid_mm: NDArray[np.float64]
    bounding_box: NDArray[np.int64]
    equivalent_diameter_mm: NDArray[np.float64]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.num_voxels)


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
    affine = _checked(mask, affine, connectivity)
    inside = mask if mask.dtype == np.bool_ else mask != 0
    labels = np.zeros(inside.shape, np.int32)
    box = _box_of([np.asarray(inside.any(axis=_others(axis))) for axis in range(3)])
    if box is not None:
        labels[box], _ = _label(inside[box], connectivity)
    num_parts = int(labels.max(initial=0))
    return _measure(labels, affine, np.full(num_parts, confidence))


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
    affine = _checked(probability, affine, connectivity)
    if not 0 < extent_ratio < 1:
        message = f"extent_ratio must be in (0, 1), got {extent_ratio}"
        raise ValueError(message)
    if not 0 < floor <= 1:
        message = f"floor must be in (0, 1], got {floor}"
        raise ValueError(message)
    if confidence not in get_args(Confidence):
        message = f"confidence must be one of {get_args(Confidence)}, got {confidence!r}"
        raise ValueError(message)
    low, high = (float(probability.min()), float(probability.max())) if probability.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        message = f"probability must lie in [0, 1] without NaN, got values from {low} to {high}"
        raise ValueError(message)
    labels = _label_hills(probability, extent_ratio, floor, connectivity)
    return _by_confidence(labels, probability, affine, floor, confidence)


def _label_hills(probability: NDArray[Any], extent_ratio: float, floor: float, connectivity: int) -> NDArray[np.int32]:
    """Number the candidates in order of falling level; some may still lie below the floor by less than a level."""
    labels = np.zeros(probability.shape, np.int32)
    levels = _levels(extent_ratio, floor)
    depth = _depths(probability, levels)
    nearest = [depth.min(axis=_others(axis), initial=len(levels)) for axis in range(3)]
    peaks, peak_depth = _peaks(depth, connectivity, len(levels) - STEPS_PER_RATIO)
    num_found = 0
    for top in np.unique(peak_depth).tolist():
        bottom = top + STEPS_PER_RATIO
        box = _box_of([line <= bottom for line in nearest])
        assert box is not None  # the peak is inside
        parts, num_parts = _label(depth[box] <= bottom, connectivity)
        # Every part holds a peak at its own maximum: a part is a hill of this height if it has one here, none above.
        num_above, num_reached = np.searchsorted(peak_depth, [top, top + 1])
        part_of_peak = parts[tuple((peaks[:num_reached] - [side.start for side in box]).T)]
        taller = np.zeros(num_parts + 1, bool)
        taller[part_of_peak[:num_above]] = True
        hills = np.unique(part_of_peak[num_above:])
        hills = hills[~taller[hills]]
        if len(hills):
            number = np.zeros(num_parts + 1, np.int32)
            number[hills] = np.arange(num_found + 1, num_found + 1 + len(hills))
            labels[box] += number[parts]
            num_found += len(hills)
    return labels


def _levels(extent_ratio: float, floor: float) -> NDArray[np.float64]:
    """Falling levels from 1 to one at or below extent_ratio * floor; level k + 8 is extent_ratio * level k."""
    num_steps = math.ceil(STEPS_PER_RATIO * math.log(floor) / math.log(extent_ratio)) + 1 + STEPS_PER_RATIO
    turns, steps = np.divmod(np.arange(num_steps), STEPS_PER_RATIO)
    # Whole turns and parts of one apart: at ratio 0.5 halving a probability then moves it by exactly 8 levels.
    return np.asarray(extent_ratio**turns * extent_ratio ** (steps / STEPS_PER_RATIO), np.float64)


def _depths(probability: NDArray[Any], levels: NDArray[np.float64]) -> NDArray[np.unsignedinteger[Any]]:
    """Number of the highest level that is not above a voxel; len(levels) below the last."""
    depth = np.full(probability.shape, len(levels), np.min_scalar_type(len(levels) + 1))
    inside = probability >= levels[-1]
    depth[inside] = np.searchsorted(-levels, -probability[inside].astype(np.float64))
    return depth


def _peaks(
    depth: NDArray[np.unsignedinteger[Any]], connectivity: int, num_depths: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Voxels with no higher neighbour, highest first, of depth below `num_depths`: indices (n, 3), depths (n,)."""
    lowest = depth.copy()
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if 0 < sum(map(abs, offset)) <= {6: 1, 18: 2, 26: 3}[connectivity]:
            here = tuple(slice(max(0, -step), min(0, -step) or None) for step in offset)
            there = tuple(slice(max(0, step), min(0, step) or None) for step in offset)
            np.minimum(lowest[here], depth[there], out=lowest[here])
    peaks = np.argwhere((lowest == depth) & (depth < num_depths))
    peak_depth = depth[tuple(peaks.T)].astype(np.int64)
    order = np.argsort(peak_depth, kind="stable")
    return peaks[order], peak_depth[order]


def _by_confidence(
    labels: NDArray[np.int32],
    probability: NDArray[Any],
    affine: NDArray[np.float64],
    floor: float,
    confidence: Confidence,
) -> Components:
    """Drop hills below the floor, number the others by falling confidence and measure them."""
    voxels, start, size = _voxels_by_part(labels)
    first_voxel = voxels[start]
    values = probability.ravel()[voxels].astype(np.float64)
    values = values[np.lexsort((-values, np.repeat(np.arange(len(size)), size)))]
    highest = values[start]
    if confidence == "mean_top":
        place = np.arange(len(values)) - np.repeat(start, size)
        top = np.where(place < NUM_TOP_VOXELS, values, 0)
        rating = np.add.reduceat(top, start) / np.minimum(size, NUM_TOP_VOXELS)
    else:
        rating = highest
    kept = np.flatnonzero(highest >= floor)
    kept = kept[np.lexsort((first_voxel[kept], -rating[kept]))]
    number = np.zeros(len(size) + 1, np.int32)
    number[kept + 1] = np.arange(1, len(kept) + 1)
    return _measure(number[labels], affine, rating[kept])


def _voxels_by_part(
    labels: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Flat indices of all voxels in parts, by part and then in C order; where each part starts; and its size."""
    voxels = np.flatnonzero(labels)
    part = labels.ravel()[voxels]
    size = np.bincount(part, minlength=1)[1:]
    return voxels[np.argsort(part, kind="stable")], np.cumsum(size) - size, size


def _measure(labels: NDArray[np.int32], affine: NDArray[np.float64], confidence: NDArray[np.float64]) -> Components:
    voxels, start, num_voxels = _voxels_by_part(labels)
    index = np.stack(np.unravel_index(voxels, labels.shape))
    centroid_voxel = (np.add.reduceat(index, start, axis=1) / num_voxels).T
    first, last = (extreme.reduceat(index, start, axis=1).T for extreme in (np.minimum, np.maximum))
    volume_ml = num_voxels.astype(np.float64) * voxel_volume_ml(affine)
    return Components(
        labels=labels,
        num_voxels=num_voxels,
        volume_ml=volume_ml,
        centroid_voxel=centroid_voxel,
        centroid_mm=centroid_voxel @ affine[:3, :3].T + affine[:3, 3],
        bounding_box=np.stack([first, last + 1], axis=-1),
        equivalent_diameter_mm=np.cbrt(6000 * volume_ml / math.pi),
        confidence=np.asarray(confidence, np.float64),
    )


def _label(inside: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[Any], int]:
    # cc3d 4.1.1 makes room for one part in each 2 x 2 x 2 voxels and rounds down: a mask such as 1, 0, 1 along a
    # line, or the corners of 3 x 3 x 3, stops it. On even sides rounding is exact.
    # cc3d numbers parts in memory order, and so in C order only here.
    even = np.zeros([side + side % 2 for side in inside.shape], np.bool_)
    box = tuple(slice(side) for side in inside.shape)
    even[box] = inside
    parts, num_parts = cc3d.connected_components(even, connectivity=connectivity, return_N=True, binary_image=True)
    return parts[box], int(num_parts)


def _box_of(lines: Sequence[NDArray[np.bool_]]) -> tuple[slice, ...] | None:
    """Smallest box whose sides hold every True of one line per axis; None where there is none."""
    sides = [np.flatnonzero(line) for line in lines]
    if any(len(side) == 0 for side in sides):
        return None
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _checked(array: NDArray[Any], affine: ArrayLike, connectivity: int) -> NDArray[np.float64]:
    if array.ndim != 3:
        message = f"a 3D array is needed, got shape {array.shape}"
        raise ValueError(message)
    if connectivity not in CONNECTIVITIES:
        message = f"connectivity must be one of {CONNECTIVITIES}, got {connectivity}"
        raise ValueError(message)
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4):
        message = f"affine must have shape (4, 4), got {affine.shape}"
        raise ValueError(message)
    return affine
