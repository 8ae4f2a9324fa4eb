"""Hills of a probability map, each down to a share of its own height."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components.boxes import box_of, label, other_axes
from medfocal.components.runs import Runs

# A factor 1 / extent_ratio has this many levels, so that extent_ratio times a level is a level again.
STEPS_PER_RATIO = 8


def label_hills(probability: NDArray[Any], levels: NDArray[np.float64], connectivity: int) -> NDArray[np.int32]:
    """Number the candidates in order of falling level; some may still lie below the floor by less than a level."""
    labels = np.zeros(probability.shape, np.int32)
    depth = _depths(probability, levels)
    nearest = [depth.min(axis=other_axes(axis), initial=len(levels)) for axis in range(3)]
    peaks, peak_depth = _peaks(depth, connectivity, len(levels) - STEPS_PER_RATIO)
    num_found = 0
    for top in np.unique(peak_depth).tolist():
        bottom = top + STEPS_PER_RATIO
        box = box_of([line <= bottom for line in nearest])
        assert box is not None  # the peak is inside
        parts, num_parts = label(depth[box] <= bottom, connectivity)
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


def number_hills(
    positions: NDArray[np.int64],
    values: NDArray[Any],
    shape: tuple[int, ...],
    levels: NDArray[np.float64],
    connectivity: int,
) -> NDArray[np.int32]:
    """Number the hills of a map of which few voxels reach the last level, as `label_hills` would tell them apart.

    Runs of one level are joined from the highest level down. Wherever a part's top is one turn of levels above the
    level at hand, it is a hill.

    Args:
        positions: Flat indices of the voxels at or above the last level, rising, (v,).
        values: Their probabilities, (v,).
        shape: Of the volume.
        levels: From `levels_of`.
        connectivity: 6, 18 or 26.

    Returns:
        The number of each voxel's hill, from 1 without gaps, or 0, int32 (v,).
    """
    depth = np.searchsorted(-levels, -values.astype(np.float64))
    runs = Runs.of(positions, shape, depth)
    of_run = depth[np.cumsum(runs.length) - 1]
    one, other = runs.touching(connectivity)
    joined_at = np.maximum(of_run[one], of_run[other]).astype(np.uint16)
    order = np.argsort(joined_at, kind="stable")
    one, other = one[order], other[order]
    border = np.searchsorted(joined_at[order], np.arange(len(levels) + 1))
    every = np.arange(len(runs))
    part, top, number, num_found = every.copy(), of_run.copy(), np.zeros(len(runs), np.int32), 0
    for level in range(len(levels)):
        here = slice(border[level], border[level + 1])
        _join(part, top, part[one[here]], part[other[here]])
        hills = np.flatnonzero((top == level - STEPS_PER_RATIO) & (part == every))
        if len(hills):
            new = np.zeros(len(runs), np.int32)
            new[hills] = np.arange(num_found + 1, num_found + 1 + len(hills))
            number += new[part]
            num_found += len(hills)
    return np.repeat(number, runs.length)


def _join(part: NDArray[np.int64], top: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Make one of each two parts, in place; a part bears the number of one of its runs, where its top stands."""
    from scipy.sparse import csgraph, csr_matrix  # `--help` does without

    apart = one != other
    if not apart.any():
        return
    ends = np.concatenate([one[apart], other[apart]])
    is_old = np.zeros(len(part), np.bool_)
    is_old[ends] = True
    old = np.flatnonzero(is_old)
    renamed = np.arange(len(part))
    renamed[old] = np.arange(len(old))
    pairs = (np.ones(len(ends) // 2, np.int8), tuple(renamed[ends].reshape(2, -1)))
    num_new, joined = csgraph.connected_components(csr_matrix(pairs, shape=(len(old), len(old))), directed=False)
    name = np.empty(num_new, np.int64)
    name[joined] = old
    new = name[joined]
    np.minimum.at(top, new, top[old])
    renamed[old] = new
    part[:] = renamed[part]


def levels_of(extent_ratio: float, floor: float) -> NDArray[np.float64]:
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
