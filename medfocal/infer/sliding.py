"""Sliding a window over a case in a bounded memory, whatever the size of the case and the number of classes.

Weights of a regular grid of windows are a product of weights along the axes, so they are normalised along each axis
beforehand, and neither a volume of weights nor a division at the end is needed. Windows are taken in planes: what no
later window reaches leaves the slab at once and makes room for what comes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
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
#: Takes windows `(B, C, *)` and gives float32 `(B, K, *)`, on the same device.
Say = Callable[["torch.Tensor"], "torch.Tensor"]


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


def row_of(count: int, size: int, overlap: float) -> Row:
    """Windows of `size` along an axis of at least as many voxels; the last is moved back to fit."""
    step = max(1, int(size * (1 - overlap)))
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
        others = [1 + other for other in range(3) if other != axis]
        low, high = image.amin(dim=others), image.amax(dim=others)
        first, last = ((low == low[:, [end]]) & (high == low[:, [end]]) for end in (0, -1))
        count = image.shape[1 + axis]
        start = int(first.all(dim=0).cumprod(0).sum())
        stop = count - int(last.all(dim=0).flip(0).cumprod(0).sum())
        sides.append(slice(start, stop) if start < stop else slice(0, 0))
    if any(side.stop == 0 for side in sides):
        return slice(0, 0), slice(0, 0), slice(0, 0)
    return sides[0], sides[1], sides[2]


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
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Average what a network says of overlapping windows, and give it plane by plane.

    Args:
        say: The network.
        image: float32 `(C, I, J, K)`, on the CPU, no side shorter than the window's.
        window: Size, overlap and number at once.
        num_channels: K of what `say` gives.
        device: Where windows and sums are.
        num_tiles: Parts of the second axis that are worked on one after another, each in so much less memory;
            windows that lie in two are computed twice, and the result is the same.
        skip: Whether windows in which every channel is constant are taken for 0 in every class.

    Yields:
        Planes of the first axis, columns of the second, and their values `(K, planes, columns, K)`, which the next
        step overwrites. Every voxel is given once.
    """
    import torch

    shape = image.shape[1:]
    rows = [row_of(*sides, window.overlap) for sides in zip(shape, window.size, strict=True)]
    weights = [torch.from_numpy(row.weights).to(device) for row in rows]
    depth = window.size[0]
    for columns in tiles_of(shape[1], num_tiles):
        width = columns.stop - columns.start
        slab = torch.zeros(num_channels, depth, width, shape[2], device=device)
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
                said = say(torch.stack([cut for cut, _ in batch]).to(device, non_blocking=True))
                for values, (_, (j, k, b, c)) in zip(said, batch, strict=True):
                    inner = slice(max(j, columns.start), min(j + window.size[1], columns.stop))
                    own = slice(inner.start - j, inner.stop - j)
                    weight = weights[0][a][:, None, None] * (weights[1][b][own, None] * weights[2][c])
                    target = slab[:, :, inner.start - columns.start : inner.stop - columns.start]
                    target[..., k : k + window.size[2]].addcmul_(values[:, :, own], weight)
            done = (rows[0].starts[a + 1] if a + 1 < len(rows[0].starts) else shape[0]) - first
            yield slice(first, first + done), columns, slab[:, :done]
            for start in range(0, depth - done, done):  # in pieces that do not overlap what they overwrite
                piece = slab[:, start + done : min(start + 2 * done, depth)]
                slab[:, start : start + piece.shape[1]] = piece
            slab[:, depth - done :] = 0


def tiles_of(count: int, num_tiles: int) -> list[slice]:
    """Parts of an axis, as equal as they can be."""
    ends = np.linspace(0, count, num_tiles + 1).round().astype(int)
    return [slice(int(start), int(stop)) for start, stop in itertools.pairwise(ends) if stop > start]


def _cut(image: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    i, j, k = start
    return image[:, i : i + size[0], j : j + size[1], k : k + size[2]]


def _is_constant(cut: torch.Tensor) -> bool:
    low, high = cut.flatten(1).aminmax(dim=1)
    return bool((low == high).all())
