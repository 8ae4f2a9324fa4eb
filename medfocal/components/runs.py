"""Runs of voxels along the last axis: which of them touch, and what they grow to; in time and memory of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Steps to those of the 8 lines beside a line that come after it, and by connectivity how far beyond its own ends a run
# reaches there; None: it doesn't.
_LATER = ((0, 1), (1, -1), (1, 0), (1, 1))
_REACH = {6: (0, None, 0, None), 18: (1, 0, 1, 0), 26: (1, 1, 1, 1)}


@dataclass(frozen=True, eq=False)
class Runs:
    """Voxels that follow one another along the last axis.

    They are counted in cells: one that is always empty ends each line, and a line of such each plane, so that no step
    to a neighbour leads round a border.

    Attributes:
        shape: Of the volume, (I, J, K).
        first: First cell of each run, rising, int64 (n,).
        end: The cell after its last, which is empty, int64 (n,).
    """

    shape: tuple[int, ...]
    first: NDArray[np.int64]
    end: NDArray[np.int64]

    @classmethod
    def of(
        cls, positions: NDArray[np.int64], shape: tuple[int, ...], value: NDArray[np.integer[Any]] | None = None
    ) -> Runs:
        """Put voxels, flat indices in a volume of `shape`, rising, into runs; a run has one `value` where given."""
        _, num_lines, num_voxels = shape
        line = positions // num_voxels
        cell = positions + line + line // num_lines * (num_voxels + 1)
        is_first = np.diff(cell, prepend=-2) != 1
        if value is not None:
            is_first[1:] |= value[1:] != value[:-1]
        starts = np.flatnonzero(is_first)
        first = cell[starts]
        return cls(shape, first, first + np.diff(starts, append=len(cell)))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def length(self) -> NDArray[np.int64]:
        """Voxels of each run, (n,)."""
        return self.end - self.first

    def positions(self) -> NDArray[np.int64]:
        """Flat indices of all voxels, rising."""
        line, place = np.divmod(self.first, self.shape[2] + 1)
        plane, line = np.divmod(line, self.shape[1] + 1)
        return _ranges((plane * self.shape[1] + line) * self.shape[2] + place, self.length)

    def parts(self, connectivity: int) -> NDArray[np.int32]:
        """Part of each run from 0, in no special order, int32 (n,); for runs that go to where voxels end."""
        from scipy.sparse import csgraph, csr_matrix  # `--help` does without

        if not len(self):
            return np.zeros(0, np.int32)
        neighbour, count = self._later_neighbours(connectivity)
        of_run = np.concatenate([[0], np.cumsum(count.sum(axis=1))])
        touching = (np.ones(of_run[-1], np.int8), _ranges(neighbour.ravel(), count.ravel()), of_run)
        _, part = csgraph.connected_components(csr_matrix(touching, shape=(len(self), len(self))), directed=False)
        return np.asarray(part, np.int32)

    def touching(self, connectivity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every pair of runs that touch, once: the earlier and the later of each, int64 (pairs,)."""
        in_line = np.flatnonzero(self.end[:-1] == self.first[1:])
        neighbour, count = self._later_neighbours(connectivity)
        earlier = np.repeat(np.arange(len(self)), count.sum(axis=1))
        later = _ranges(neighbour.ravel(), count.ravel())
        return np.concatenate([in_line, earlier]), np.concatenate([in_line + 1, later])

    def _later_neighbours(self, connectivity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First of the runs that each touches on each later line, and how many they are, (n, lines)."""
        low, high = [], []
        for (planes, lines), reach in zip(_LATER, _REACH[connectivity], strict=True):
            if reach is not None:
                shift = (planes * (self.shape[1] + 1) + lines) * (self.shape[2] + 1)
                low.append(np.searchsorted(self.end, self.first + (shift - reach), side="right"))
                high.append(np.searchsorted(self.first, self.end + (shift + reach), side="left"))
        neighbour, count = np.stack(low, axis=1), np.stack(high, axis=1)
        count -= neighbour
        return neighbour, count

    def grown(self) -> Runs:
        """Dilate once by the 18-neighbourhood (faces and edges), within the volume."""
        if not len(self):
            return self
        num_planes, num_lines, num_voxels = self.shape
        line, place = np.divmod(self.first, num_voxels + 1)
        plane, line = np.divmod(line, num_lines + 1)
        firsts, ends = [], []
        for planes in (-1, 0, 1):
            for lines in (-1, 0, 1):
                reach = 0 if planes and lines else 1
                inside = (plane + planes >= 0) & (plane + planes < num_planes)
                inside &= (line + lines >= 0) & (line + lines < num_lines)
                begin = ((plane + planes) * (num_lines + 1) + line + lines) * (num_voxels + 1)
                firsts.append((begin + np.maximum(place - reach, 0))[inside])
                ends.append((begin + np.minimum(place + self.length + reach, num_voxels))[inside])
        first, end = np.concatenate(firsts), np.concatenate(ends)
        order = np.argsort(first)
        first, end = first[order], np.maximum.accumulate(end[order])
        starts = np.flatnonzero(first > np.concatenate([[-1], end[:-1]]))
        return Runs(self.shape, first[starts], end[np.append(starts[1:], len(end)) - 1])


def _ranges(start: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Put start, start + 1, ... of each row's `count` numbers one after another."""
    end = np.cumsum(count)
    return np.asarray(np.arange(int(count.sum())) + np.repeat(start - (end - count), count))
