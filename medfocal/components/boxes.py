"""Boxes around what a volume holds, and its connected parts within such a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray


def label(inside: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[Any], int]:
    """Number the parts of a mask from 1, in its memory order, and count them."""
    # cc3d 4.1.1 makes room for one part in each 2 x 2 x 2 voxels and rounds down: a mask such as 1, 0, 1 along a
    # line, or the corners of 3 x 3 x 3, stops it. On even sides rounding is exact.
    even = np.zeros([side + side % 2 for side in inside.shape], np.bool_)
    box = tuple(slice(side) for side in inside.shape)
    even[box] = inside
    parts, num_parts = cc3d.connected_components(even, connectivity=connectivity, return_N=True, binary_image=True)
    return parts[box], int(num_parts)


def box_of(lines: Sequence[NDArray[np.bool_]]) -> tuple[slice, ...] | None:
    """Smallest box whose sides hold every True of one line per axis; None where there is none."""
    sides = [np.flatnonzero(line) for line in lines]
    if any(len(side) == 0 for side in sides):
        return None
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)


def box_of_mask(inside: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Smallest box that holds every True of a mask; None where there is none."""
    return box_of([np.asarray(inside.any(axis=other_axes(axis))) for axis in range(3)])


def other_axes(axis: int) -> tuple[int, ...]:
    """The two axes of a volume beside this one."""
    return tuple(other for other in range(3) if other != axis)
