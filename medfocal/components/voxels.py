"""The voxels that lie in something, found in one pass over an array as it lies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Smaller ones stay nearer in the caches, but then the calls per piece cost more.
PIECE_BYTES = 2**21

Test = Callable[[NDArray[Any]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Layout:
    """How the axes of an array lie in memory; a position is a voxel's index in that order.

    Attributes:
        shape: Of the array, (I, J, K).
        axes: The axes from the slowest to the fastest.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Layout:
        """Read the layout off an array's strides."""
        axes = range(array.ndim)
        if array.flags.c_contiguous:
            return cls(array.shape, tuple(axes))
        return cls(array.shape, tuple(sorted(axes, key=lambda axis: (-abs(array.strides[axis]), -axis))))

    @property
    def laid_shape(self) -> tuple[int, ...]:
        """The sides from the slowest axis to the fastest."""
        return tuple(self.shape[axis] for axis in self.axes)

    def in_c_order(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat C-order indices of positions."""
        if self.axes == tuple(range(len(self.shape))):
            return positions
        laid = np.unravel_index(positions, self.laid_shape)
        index = [laid[self.axes.index(axis)] for axis in range(len(self.shape))]
        return np.ravel_multi_index(index, self.shape).astype(np.int64, copy=False)


def find_positions(array: NDArray[Any], layout: Layout, test: Test | None = None, most: int | None = None) -> Any:
    """Find the voxels that are not 0, or that pass `test`.

    Args:
        array: Any numbers, (I, J, K).
        layout: Its own.
        test: What a voxel must pass instead, piece by piece.
        most: Give up beyond this number.

    Returns:
        Their positions, rising, int64 (n,), or None if there are more than `most`.
    """
    found, num_found = [np.zeros(0, np.int64)], 0
    for start, piece in _pieces(array.transpose(layout.axes)):
        inside = _nonzero(piece if test is None else test(piece))
        num_found += len(inside)
        if most is not None and num_found > most:
            return None
        if len(inside):
            inside += start
            found.append(inside)
    return np.concatenate(found)


def _pieces(laid: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Consecutive pieces of an array, and the position of the first voxel of each; copies where it has gaps."""
    if laid.flags.c_contiguous:
        flat, size = laid.reshape(-1), max(1, PIECE_BYTES // laid.itemsize)
        yield from ((start, flat[start : start + size]) for start in range(0, flat.size, size))
    else:
        yield from ((row * plane.size, plane.ravel()) for row, plane in enumerate(laid))


def _nonzero(piece: NDArray[Any]) -> NDArray[np.int64]:
    """Where a piece is not 0. Eight bytes at once, as most of them are 0."""
    if 8 % piece.itemsize:
        return np.flatnonzero(piece)
    per_word = 8 // piece.itemsize
    whole = piece.size - piece.size % per_word
    # numpy finds the True of a bool array several times faster than the non-zeros of integers.
    words = np.flatnonzero(piece[:whole].view(np.uint64) != 0)
    rest = np.flatnonzero(piece[whole:])
    if not len(words):
        return rest + whole
    place = np.flatnonzero(piece[:whole].reshape(-1, per_word)[words] != 0)
    return np.concatenate([words[place // per_word] * per_word + place % per_word, rest + whole])
