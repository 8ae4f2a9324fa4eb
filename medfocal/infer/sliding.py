"""Sliding a window over a case in a bounded memory, whatever the size of the case and the number of classes.

Weights of a regular grid of windows are a product of weights along the axes, so they are normalised along each axis
beforehand, and neither a volume of weights nor a division at the end is needed. Windows are taken in planes: what no
later window reaches leaves the slab at once and makes room for what comes. The slab is a ring: plane number p of the
case is its plane p modulo its length, so that nothing has to be moved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfocal.infer.window import Window

if TYPE_CHECKING:
    import torch

#: Standard deviation of the Gaussian, as a share of the window; that of nnU-Net and MONAI.
SIGMA = 0.125

Box = tuple[slice, slice, slice]
#: Bytes of a window that are worked on together on a CPU, so that they stay in its cache.
PART_BYTES = 1 << 21

#: Takes windows `(B, C, *)` and gives `(B, M, *)`, on the same device.
Say = Callable[["torch.Tensor"], "torch.Tensor"]
#: Takes planes of a window `(M, planes, columns, K)` and gives float32 `(K, planes, columns, K)`, a tensor of its own.
Mean = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Row:
    """Windows along one axis.

    Attributes:
        starts: First voxel of each, rising.
        weights: What each voxel of a window adds to the average, so that they sum to 1 at every voxel of the axis,
            float32 `(windows, size)`.
    """

    starts: tuple[int, ...]
    weights: NDArray[np.float32]


def step_of(size: int, overlap: float) -> int:
    """Voxels from one window to the next."""
    return max(1, int(size * (1 - overlap)))


def row_of(count: int, size: int, overlap: float) -> Row:
    """Windows of `size` along an axis of at least as many voxels; the last is moved back to fit."""
    step = step_of(size, overlap)
    num = 1 if size == count else math.ceil((count - size) / step) + 1
    starts = tuple(min(number * step, count - size) for number in range(num))
    away = np.arange(size) - (size - 1) / 2
    gauss = np.exp(-0.5 * (away / (SIGMA * size)) ** 2)
    total = np.zeros(count)
    for start in starts:
        total[start : start + size] += gauss
    weights = [gauss / total[start : start + size] for start in starts]
    return Row(starts, np.stack(weights).astype(np.float32))


def body_box(image: torch.Tensor) -> Box:
    """The box without the outer planes that say nothing: on each side all planes that hold one and the same value.

    Args:
        image: `(C, I, J, K)`; each channel has its own value.

    Returns:
        Slices; empty ones where the whole image is constant.
    """
    sides = []
    for axis in range(3):
        planes = image.movedim(1 + axis, 0)
        count = len(planes)
        start = _num_like(planes, range(count))
        stop = count - (_num_like(planes, range(count - 1, -1, -1)) if start < count else 0)
        sides.append(slice(start, stop) if start < stop else slice(0, 0))
    if any(side.stop == 0 for side in sides):
        return slice(0, 0), slice(0, 0), slice(0, 0)
    return sides[0], sides[1], sides[2]


def _num_like(planes: torch.Tensor, order: Iterable[int]) -> int:
    """How many planes hold, one after the other, one value a channel, that of the first; planes `(planes, C, *)`."""
    value, found = None, 0
    for number in order:
        value = planes[number, :, :1, :1] if value is None else value
        # Few voxels mostly tell; all are looked at where they do not.
        if not bool((planes[number, :, ::16, ::16] == value).all()) or not bool((planes[number] == value).all()):
            break
        found += 1
    return found


def with_margin(box: Box, window: Window, shape: Sequence[int]) -> Box:
    """A box with an eighth of a window more on both sides of each axis, and all that costs no further window.

    Windows stand half a window apart or so, so the last of them mostly reach beyond what they are needed for.
    """
    sides = []
    for side, size, count in zip(box, window.size, shape, strict=True):
        least = min(count, max(side.stop - side.start + 2 * (size // 8), size))
        starts = row_of(least, size, window.overlap).starts
        sides.append(size + (len(starts) - 1) * step_of(size, window.overlap))
    return grown_to(box, sides, shape)


def grown_to(box: Box, size: Sequence[int], shape: Sequence[int]) -> Box:
    """A box of at least the window's size, as far as the volume reaches, about the same centre."""
    sides = []
    for side, least, count in zip(box, size, shape, strict=True):
        length = min(count, max(side.stop - side.start, least))
        start = min(max(0, side.start - (length - (side.stop - side.start)) // 2), count - length)
        sides.append(slice(start, start + length))
    return sides[0], sides[1], sides[2]


def slide(
    say: Say,
    image: torch.Tensor,
    *,
    window: Window,
    num_channels: int,
    device: torch.device,
    num_tiles: int = 1,
    skip: bool = True,
    mean: Mean | None = None,
    sums: torch.Tensor | None = None,
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Average what a network says of overlapping windows, and give it some planes at a time.

    Args:
        say: The network.
        image: float32 `(C, I, J, K)`, on the CPU, no side shorter than the window's.
        window: Size, overlap and number at once.
        num_channels: K, of what is averaged.
        device: Where windows and sums are.
        num_tiles: Parts of the second axis that are worked on one after another, each in so much less memory;
            windows that lie in two are computed twice, and the result is the same.
        skip: Whether windows in which every channel is constant are taken for 0 in every class.
        mean: What is averaged, of what `say` gives; None: just that.
        sums: Zeros, float32 `(K, I, J, K)` on `device`, that become the averages, in place of memory of its own.

    Yields:
        Planes of the first axis, columns of the second, and their values `(K, planes, columns, K)`, which are the
        caller's until the next step. Every voxel is given once.
    """
    import torch

    shape = image.shape[1:]
    rows = [row_of(*sides, window.overlap) for sides in zip(shape, window.size, strict=True)]
    weights = [torch.from_numpy(row.weights).to(device) for row in rows]
    depth = window.size[0]
    parts = tiles_of(shape[1], num_tiles)
    if sums is None:  # once for all parts: two slabs would be held while one takes the place of the other
        widest = max(part.stop - part.start for part in parts)
        held = torch.zeros(num_channels, depth, widest, shape[2], device=device)
    for columns in parts:
        slab = held[:, :, : columns.stop - columns.start] if sums is None else sums[:, :, columns]
        places = [
            (b, c)
            for b, start in enumerate(rows[1].starts)
            if start < columns.stop and start + window.size[1] > columns.start
            for c in range(len(rows[2].starts))
        ]
        for a, first in enumerate(rows[0].starts):
            here = [(rows[1].starts[b], rows[2].starts[c], b, c) for b, c in places]
            boxes = [(_cut(image, (first, j, k), window.size), (j, k, b, c)) for j, k, b, c in here]
            told = (found for found in boxes if not (skip and _is_constant(found[0])))
            while batch := list(itertools.islice(told, window.batch)):
                said = say(_stacked([cut for cut, _ in batch]).to(device, non_blocking=True))
                for values, (_, (j, k, b, c)) in zip(said, batch, strict=True):
                    inner = slice(max(j, columns.start), min(j + window.size[1], columns.stop))
                    own = slice(inner.start - j, inner.stop - j)
                    target = slab[:, :, inner.start - columns.start : inner.stop - columns.start]
                    _add(
                        target[..., k : k + window.size[2]],
                        values[:, :, own],
                        first,
                        (weights[0][a], weights[1][b][own, None] * weights[2][c]),
                        mean,
                    )
                del said, values  # before the next of this size is there
            stop = rows[0].starts[a + 1] if a + 1 < len(rows[0].starts) else shape[0]
            for planes, ring in _pieces(first, stop, slab.shape[1], _planes_at_once(slab)):
                yield planes, columns, slab[:, ring]
                if sums is None:
                    slab[:, ring] = 0


def _add(
    slab: torch.Tensor, said: torch.Tensor, first: int, weights: tuple[torch.Tensor, torch.Tensor], mean: Mean | None
) -> None:
    """Add a window, whose first plane is the case's plane `first`, with weights of its planes and within them."""
    of_planes, within = weights
    for planes, ring in _pieces(first, first + said.shape[1], slab.shape[1], _planes_at_once(said)):
        own = slice(planes.start - first, planes.stop - first)
        values = said[:, own].clone() if mean is None else mean(said[:, own])
        slab[:, ring].addcmul_(values.mul_(of_planes[own, None, None]), within)


def _pieces(first: int, stop: int, ring: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Planes of the case and where they lie in the ring, at most so many together and none beyond its end."""
    while first < stop:
        end = min(stop, first + most, first - first % ring + ring)
        yield slice(first, end), slice(first % ring, first % ring + end - first)
        first = end


def _planes_at_once(values: torch.Tensor) -> int:
    """How many planes of `(K, planes, columns, K)` are worked on together; a GPU takes all."""
    if values.device.type != "cpu":
        return values.shape[1]
    return max(1, PART_BYTES // (4 * math.prod(values.shape) // values.shape[1]))


def _stacked(cuts: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return cuts[0][None] if len(cuts) == 1 else torch.stack(cuts)  # one needs no copy


def tiles_of(count: int, num_tiles: int) -> list[slice]:
    """Parts of an axis, as equal as they can be."""
    ends = np.linspace(0, count, num_tiles + 1).round().astype(int)
    return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(ends) if stop > start]


def _cut(image: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    i, j, k = start
    return image[:, i : i + size[0], j : j + size[1], k : k + size[2]]


def _is_constant(cut: torch.Tensor) -> bool:
    value = cut[:, :1, :1, :1]
    # Few voxels mostly tell; all are looked at where they do not.
    return bool((cut[:, ::16, ::16, ::16] == value).all()) and bool((cut == value).all())
