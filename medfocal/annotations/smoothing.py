"""Soft targets out of a hard label: shares of the classes in each voxel instead of one class.

A label says with full certainty what a reader was not certain of. A smoothing gives part of each voxel to the classes
that it could have been: to all of them, to those that readers confuse with it, or to those that lie near. The shares
of a voxel sum to 1, and its own class keeps the largest one, but where the rates of `OneSidedSmoothing` and its like
are set beyond one half.

All are called alike: `smoothing(label, num_classes=..., spacing_mm=..., image=...)` with

- label: Classes, integers `(I, J, K)` from 0, the background, to num_classes - 1.
- num_classes: With the background, at least 2.
- spacing_mm: Of the three axes.
- image: As the network sees it (z-scored), float32 `(C, I, J, K)`; only `GeodesicSmoothing` looks at it.

and return shares, float32 `(num_classes, I, J, K)`. A label without lesions becomes background with share 1, less what
a rate takes from every voxel. A ValueError says what does not fit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

__all__ = [
    "SVLS",
    "GeodesicSmoothing",
    "NoSmoothing",
    "OneSidedSmoothing",
    "SoftBoundary",
    "UniformSmoothing",
]

#: Part of `reach_mm` over which the weight of a class falls to 1/e; at the reach, where it is cut, 0.7 % is left.
SCALE_OF_REACH = 0.2

#: Half of the 26 neighbours: each pair of neighbours is met once.
NEIGHBOURS = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if offset > (0, 0, 0)]


@dataclass(frozen=True, kw_only=True)
class NoSmoothing:
    """The label as it is: share 1 of its class. Whoever can use classes instead of shares keeps the label."""

    def __call__(
        self,
        label: NDArray[np.integer[Any]],
        *,
        num_classes: int,
        spacing_mm: Sequence[float],
        image: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Shares, as all smoothings of this module give them."""
        _check(label, num_classes, spacing_mm, image)
        return _one_hot(label, num_classes)


@dataclass(frozen=True, kw_only=True)
class UniformSmoothing:
    """(1 - rate) of the label's class and rate shared equally by all classes, its own included, in every voxel.

    The same as the loss's `label_smoothing=rate` with softmax.

    Args:
        rate: In [0, 1).

    References:
        Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", CVPR, section 7.
    """

    rate: float = 0.05

    def __post_init__(self) -> None:
        _check_rate("rate", self.rate)

    def __call__(
        self,
        label: NDArray[np.integer[Any]],
        *,
        num_classes: int,
        spacing_mm: Sequence[float],
        image: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Shares, as all smoothings of this module give them."""
        _check(label, num_classes, spacing_mm, image)
        off = self.rate / num_classes
        return _look_up(label, np.where(np.eye(num_classes, dtype=bool), 1 - self.rate + off, off))


@dataclass(frozen=True, kw_only=True)
class OneSidedSmoothing:
    """Marks and background doubted at different rates, as readers miss lesions more or less often than invent them.

    The same as the loss's `label_smoothing={"fg": fg, "bg": bg}` with softmax. What is not marked is far more often
    right than what is, so bg should be far below fg: with one marked voxel in a thousand, bg = 0.002 adds twice as
    much lesion as is marked.

    Args:
        fg: Probability in [0, 1) that a marked voxel is background: of a lesion class 1 - fg stays, fg goes to the
            background and nothing to other lesion classes.
        bg: Probability in [0, 1) that a voxel of the background is lesion: 1 - bg stays, bg is shared equally by the
            lesion classes.
    """

    fg: float = 0.03
    bg: float = 0.002

    def __post_init__(self) -> None:
        _check_rate("fg", self.fg)
        _check_rate("bg", self.bg)

    def __call__(
        self,
        label: NDArray[np.integer[Any]],
        *,
        num_classes: int,
        spacing_mm: Sequence[float],
        image: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Shares, as all smoothings of this module give them."""
        _check(label, num_classes, spacing_mm, image)
        table = np.diag([1 - self.bg, *[1 - self.fg] * (num_classes - 1)])
        table[1:, 0] = self.fg
        table[0, 1:] = self.bg / (num_classes - 1)
        return _look_up(label, table)


@dataclass(frozen=True, kw_only=True)
class SVLS:
    """Spatially varying label smoothing: half of a voxel for its class, half for the classes of its 26 neighbours.

    Neighbours weigh as a Gaussian does; the centre weighs as much as all of them together. At the border of the volume
    the outermost voxels are repeated. As in the paper, neighbours are counted in voxels: where slices are thick, a
    border is softened further in mm across slices than within them. `SoftBoundary` counts in mm.

    Args:
        sigma: Of the Gaussian, in voxels, above 0. Small ones leave the six neighbours over faces only.

    References:
        Islam & Glocker 2021, "Spatially varying label smoothing: capturing uncertainty from expert annotations", IPMI,
        section 2.2, with kernel size 3.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("sigma", self.sigma)

    def __call__(
        self,
        label: NDArray[np.integer[Any]],
        *,
        num_classes: int,
        spacing_mm: Sequence[float],
        image: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Shares, as all smoothings of this module give them."""
        _check(label, num_classes, spacing_mm, image)
        shares = _one_hot(label, num_classes)
        box = _box_around(label > 0, (1, 1, 1))
        if box is None:
            return shares
        kernel = self._kernel()
        rest = np.ones(label[box].shape)
        for c in range(1, num_classes):
            share = ndimage.correlate(shares[c][box], kernel, output=np.float64, mode="nearest")
            shares[c][box] = share
            rest -= share
        # What is left for the background is exactly 1 where no lesion is near; rounding may leave less than nothing.
        shares[0][box] = np.maximum(rest, 0)
        return shares

    def _kernel(self) -> NDArray[np.float64]:
        squared = np.add.outer(np.add.outer([1, 0, 1], [1, 0, 1]), [1, 0, 1])
        # Against the weight of a face neighbour, so that a small sigma does not bring all weights to 0.
        kernel = np.exp((1 - np.maximum(squared, 1)) / 2 / self.sigma / self.sigma)
        kernel[1, 1, 1] = 0
        kernel /= 2 * kernel.sum()
        kernel[1, 1, 1] = 0.5
        return kernel


@dataclass(frozen=True, kw_only=True)
class SoftBoundary:
    """Borders that are a ramp of the same width in mm along every axis, whatever the spacing.

    Each class gets clip(1/2 + d / width_mm, 0, 1), d the signed distance in mm from the centre of a voxel to the
    surface of the class, positive inside; shares are these divided by their sum, which is 1 already where two classes
    meet. The surface is made of voxel faces: d is the exact Euclidean distance to the nearest voxel on the other side,
    taken as a box. Beyond the border of the volume nothing is known, so there is no surface there. A class that is
    absent has d = -inf, one that fills the volume inf.

    A voxel's centre is half a voxel from its faces, so nothing happens across faces that lie `width_mm` apart or more:
    a border of 2 mm does not show across slices of 3 mm.

    Args:
        width_mm: From the last voxel with share 0 to the first with share 1, above 0.

    References:
        Distances one axis after the other: Felzenszwalb & Huttenlocher 2012, "Distance transforms of sampled
        functions", Theory of Computing 8; here only as far as the ramp reaches.
    """

    width_mm: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("width_mm", self.width_mm)

    def __call__(
        self,
        label: NDArray[np.integer[Any]],
        *,
        num_classes: int,
        spacing_mm: Sequence[float],
        image: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Shares, as all smoothings of this module give them."""
        _check(label, num_classes, spacing_mm, image)
        shares = _one_hot(label, num_classes)
        half = self.width_mm / 2
        # A box n voxels away begins half a voxel before its centre.
        costs = [
            [(max(n - 0.5, 0) * side) ** 2 for n in range(math.ceil(min(half / side + 0.5, length)))]
            for side, length in zip(spacing_mm, label.shape, strict=True)
        ]
        box = _box_around(label > 0, [len(cost) - 1 for cost in costs])
        if box is None:
            return shares
        near = label[box]
        total = np.zeros(near.shape, np.float32)
        for c in np.unique(near).tolist():
            mask = near == c
            # One of the two is 0 everywhere.
            distance = np.sqrt(_squared_distance(~mask, costs)) - np.sqrt(_squared_distance(mask, costs))
            share = np.clip(0.5 + distance / self.width_mm, 0, 1)
            shares[c][box] = share
            total += share
        shares[(slice(None), *box)] /= total
        return shares


@dataclass(frozen=True, kw_only=True)
class GeodesicSmoothing:
    """Labels that leak to where the image looks the same, and not across its edges.

    Shares are (1 - amount) of the label's class and `amount` of S, S_c proportional to exp(-D_c / scale). D_c is the
    length of the shortest path over the 26 neighbours from a voxel of class c, 0 in the class itself; a step costs

        sqrt(distance_mm^2 + (intensity_weight * difference of intensity)^2)

    with the root of the summed squares over channels for the difference. The scale is a fifth of `reach_mm`; beyond
    `reach_mm` D is infinite, so background further away keeps share 1. Along the 26 directions lengths on a flat image
    are exact, between them at most 13 % too long where the spacing is equal.

    Differs from the authors' code: there distances start at the skeleton of each lesion class, count intensity alone
    and are divided by their mean over the volume, so that every voxel is touched, and the background gets what the
    lesion classes leave. Here they start at the marks and end at the reach, and all classes are treated alike.

    Args:
        amount: Of the leak, in [0, 1]. Another class gets at most half of it.
        reach_mm: How far labels leak on a flat image, above 0.
        intensity_weight: Length in mm of a step of one unit of the image, which is one standard deviation of a
            z-scored one; at least 0. With 0 the image is not looked at.

    References:
        Adiga Vasudeva, Dolz & Lombaert 2023, "GeoLS: geodesic label smoothing for image segmentation", MIDL.
    """

    amount: float = 0.1
    reach_mm: float = 5.0
    intensity_weight: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            message = f"amount must be in [0, 1], got {self.amount}"
            raise ValueError(message)
        _check_positive("reach_mm", self.reach_mm)
        if not (math.isfinite(self.intensity_weight) and self.intensity_weight >= 0):
            message = f"intensity_weight must be finite and >= 0, got {self.intensity_weight}"
            raise ValueError(message)

    def __call__(
        self,
        label: NDArray[np.integer[Any]],
        *,
        num_classes: int,
        spacing_mm: Sequence[float],
        image: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Shares, as all smoothings of this module give them."""
        _check(label, num_classes, spacing_mm, image)
        shares = _one_hot(label, num_classes)
        # One step more than fits: the rounding of a quotient leaves nothing out, and paths are cut at the reach.
        costs = [
            [(n * side) ** 2 for n in range(int(min(self.reach_mm / side + 2, length)))]
            for side, length in zip(spacing_mm, label.shape, strict=True)
        ]
        box = _box_around(label > 0, [len(cost) - 1 for cost in costs])
        if box is None or self.amount == 0:
            return shares
        # Every voxel of a path that is short enough lies that near to a lesion, or in one.
        near = _squared_distance(label[box] > 0, costs) <= self.reach_mm**2 * (1 + 1e-5)
        classes, intensity = label[box][near], image[(slice(None), *box)][:, near].astype(np.float64)
        if not np.isfinite(intensity).all():
            message = "image must be finite near lesions, got NaN or infinity; geodesic distances need intensities"
            raise ValueError(message)
        steps = _Steps.between(near, intensity, spacing_mm, self.intensity_weight, self.reach_mm)
        weight = np.zeros((num_classes, len(classes)))
        for c in np.unique(classes).tolist():
            distance = steps.distance_from(classes == c, self.reach_mm)
            weight[c] = np.exp(-distance / (SCALE_OF_REACH * self.reach_mm))
        weight /= weight.sum(axis=0)
        for c in range(num_classes):
            share = shares[c][box]
            share[near] += self.amount * (weight[c] - share[near])
        return shares


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps between neighbours among N voxels, each once.

    Attributes:
        num_voxels: N.
        first: Number of the voxel at one end, `(M,)`.
        second: At the other.
        cost: Length in mm, float64 `(M,)`.
    """

    num_voxels: int
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    cost: NDArray[np.float64]

    @classmethod
    def between(
        cls,
        mask: NDArray[np.bool_],
        intensity: NDArray[np.float64],
        spacing_mm: Sequence[float],
        intensity_weight: float,
        limit: float,
    ) -> _Steps:
        """Steps no longer than `limit` between the voxels of a mask, numbered in C order; intensity `(C, N)`."""
        parts = list(cls._by_direction(mask, intensity, spacing_mm, intensity_weight, limit))
        first, second, cost = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return cls(intensity.shape[1], first, second, cost)

    @staticmethod
    def _by_direction(
        mask: NDArray[np.bool_],
        intensity: NDArray[np.float64],
        spacing_mm: Sequence[float],
        intensity_weight: float,
        limit: float,
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]]:
        padded = np.pad(mask, 1)
        places = np.flatnonzero(padded)
        number = np.full(padded.size, -1, np.int32)
        number[places] = np.arange(len(places))
        _, rows, columns = padded.shape
        for offset in NEIGHBOURS:
            other = number[places + (offset[0] * rows + offset[1]) * columns + offset[2]]
            first = np.flatnonzero(other >= 0).astype(np.int32)
            second = other[first]
            squared = math.fsum((n * side) ** 2 for n, side in zip(offset, spacing_mm, strict=True))
            cost = np.full(len(first), squared)
            for channel in intensity:
                cost += (intensity_weight * (channel[first] - channel[second])) ** 2
            short = cost <= limit**2
            yield first[short], second[short], np.sqrt(cost[short])

    def distance_from(self, source: NDArray[np.bool_], limit: float) -> NDArray[np.float64]:
        """Length of the shortest path from any of the source voxels, `(N,)`; infinite beyond the limit."""
        in_first, in_second = source[self.first], source[self.second]
        distance = np.where(source, 0.0, np.inf)
        # Steps within the source lead nowhere new; without them only its rim is searched from.
        useful = ~(in_first & in_second)
        rim = np.union1d(self.first[in_first & useful], self.second[in_second & useful])
        if len(rim):
            shape = (self.num_voxels, self.num_voxels)
            graph = csr_array((self.cost[useful], (self.first[useful], self.second[useful])), shape=shape)
            found = dijkstra(graph, directed=False, indices=rim, min_only=True, limit=limit)
            distance = np.minimum(distance, found)
        return distance


def _squared_distance(mask: NDArray[np.bool_], costs: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Least sum, over the axes, of the costs of the way from each voxel to one of the mask.

    Args:
        mask: Of shape `(I, J, K)`.
        costs: Per axis the cost of 0, 1, 2, ... voxels; more voxels cannot be gone, nor more than the
            volume has. The cost of 0 is 0.

    Returns:
        Of shape `(I, J, K)`; infinite where no voxel of the mask can be reached.
    """
    found = np.where(mask, np.float32(0), np.float32(np.inf))
    for axis, cost_of in enumerate(costs):
        before = np.moveaxis(found.copy(), axis, 0)
        after = np.moveaxis(found, axis, 0)  # a view: what is written to it is found
        for n, cost in enumerate(cost_of[1:], start=1):
            gone = before + np.float32(cost)
            np.minimum(after[n:], gone[:-n], out=after[n:])
            np.minimum(after[:-n], gone[n:], out=after[:-n])
    return found


def _one_hot(label: NDArray[np.integer[Any]], num_classes: int) -> NDArray[np.float32]:
    """Share 1 of the class of each voxel."""
    shares = np.empty((num_classes, *label.shape), np.float32)
    for c in range(num_classes):
        shares[c] = label == c
    return shares


def _look_up(label: NDArray[np.integer[Any]], table: NDArray[np.float64]) -> NDArray[np.float32]:
    """Shares of each voxel, from the row of its class."""
    return np.stack([column[label] for column in table.T.astype(np.float32)])


def _box_around(mask: NDArray[np.bool_], margin: Sequence[int]) -> tuple[slice, ...] | None:
    """Smallest box that holds a mask and so many voxels around it, as far as the volume goes; None if it is empty."""
    box = []
    for axis, extra in enumerate(margin):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if len(inside) == 0:
            return None
        box.append(slice(max(0, int(inside[0]) - extra), min(mask.shape[axis], int(inside[-1]) + 1 + extra)))
    return tuple(box)


def _check(
    label: NDArray[np.integer[Any]], num_classes: int, spacing_mm: Sequence[float], image: NDArray[np.float32]
) -> None:
    if num_classes < 2:
        message = f"num_classes must be at least 2, the background and a lesion class, got {num_classes}"
        raise ValueError(message)
    if label.ndim != 3 or label.dtype.kind not in "iu" or label.size == 0:
        message = f"label must be integers (I, J, K), got {label.dtype} of shape {label.shape}"
        raise ValueError(message)
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= num_classes:
        message = f"label must hold classes 0 to {num_classes - 1}, got {low} to {high}"
        raise ValueError(message)
    if len(spacing_mm) != 3 or not all(math.isfinite(side) and side > 0 for side in spacing_mm):
        message = f"spacing_mm must be three finite lengths above 0, got {spacing_mm}"
        raise ValueError(message)
    if image.shape[1:] != label.shape:
        message = f"image must be (C, I, J, K) on the grid of the label, got {image.shape} and {label.shape}"
        raise ValueError(message)


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value < 1:
        message = f"{name} must be in [0, 1), got {value}"
        raise ValueError(message)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        message = f"{name} must be finite and above 0, got {value}"
        raise ValueError(message)
