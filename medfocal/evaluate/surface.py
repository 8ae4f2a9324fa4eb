"""Distances between the surfaces of a reference and a prediction, of whole cases and of single lesions.

A surface is the set of border voxels of a mask: voxels that lack at least one of their six face neighbours. What lies
beyond the edge of the volume is outside, so a lesion cut off by the edge has border voxels there. Distances run from
the centre of a border voxel to the nearest centre of a border voxel of the other mask, in world millimetres, also
where the axes of the affine are not orthogonal. MedPy, panoptica and MONAI measure between the same points;
DeepMind's surface-distance places its points between voxels and weighs them by area.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from medfocal.components import Components
from medfocal.evaluate.overlap import Overlaps
from medfocal.evaluate.table import SURFACE_FIGURES

#: A distance may exceed the tolerance by this share of it: affines in NIfTI headers are rounded to float32, so that a
#: step of 1 mm may measure 1.00000004 mm.
TOLERANCE_ROUNDING = 1e-6

#: Up to so many pairs of points all distances are computed; beyond, trees find the nearest points faster.
MOST_PAIRS_OF_POINTS = 2**16

#: Why a surface figure is NaN.
WHY_UNDEFINED = {
    **dict.fromkeys(SURFACE_FIGURES, "the reference or the prediction is empty, so there is no distance between them"),
    "nsd": "the reference and the prediction are both empty, so there is no surface",
}


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances in mm between the surfaces of two masks; infinite where the other mask is empty.

    Attributes:
        from_reference: From each border voxel of the reference to the nearest of the prediction, (n,).
        from_prediction: From each border voxel of the prediction to the nearest of the reference, (m,).
    """

    from_reference: NDArray[np.float64]
    from_prediction: NDArray[np.float64]


def surface_distances(reference: NDArray[Any], prediction: NDArray[Any], affine: ArrayLike) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, both ways.

    Args:
        reference: Anything but 0 is inside, (I, J, K).
        prediction: The same on the same grid.
        affine: Voxel index to world RAS in mm, (4, 4).

    Returns:
        The distances, by border voxel in C order. An empty mask has no distances, and those to it are infinite.

    Raises:
        ValueError: The masks are not 3D or differ in shape, or the affine is not (4, 4).

    Example:
        >>> reference, prediction = np.zeros((2, 12, 10, 8), bool)
        >>> reference[5, 4, 2] = prediction[5, 4, 4] = True
        >>> surface_distances(reference, prediction, np.diag([0.5, 1.0, 3.0, 1.0])).from_reference.tolist()
        [6.0]
    """
    if reference.ndim != 3 or reference.shape != prediction.shape:
        message = f"two 3D masks of one shape are needed, got shapes {reference.shape} and {prediction.shape}"
        raise ValueError(message)
    axes_mm = _axes_mm(affine)
    both = (_surface_of(np.flatnonzero(mask), mask.shape, axes_mm) for mask in (reference, prediction))
    return _distances(*both)


def surface_figures(distances: SurfaceDistances, *, tolerance_mm: float) -> dict[str, float]:
    """Sum the distances between two surfaces up.

    hd95_mm: the larger of the two directed 95th percentiles, as in MONAI. DeepMind's surface-distance takes the larger
        too, but weighs points by area and does not interpolate.
    hd95_pooled_mm: the 95th percentile of the distances of both directions together, as in MedPy and panoptica.
    assd_mm: the mean of the distances of both directions together, as in MONAI and MetricsReloaded.
    masd_mm: the mean of the two directed means. This is what MedPy and panoptica call ASSD.
    nsd: the share of the border voxels of both masks that lie within the tolerance of the other surface, in [0, 1],
        as in MONAI. Nikolov et al. count areas of surface in place of voxels, panoptica the mean of the two shares.

    Percentiles interpolate linearly between neighbouring distances.

    Args:
        distances: The distances.
        tolerance_mm: Largest distance that counts as agreement, 0 or more. A distance above it by no more than the
            rounding of float32, a millionth, still counts.

    Returns:
        The figures by name, `SURFACE_FIGURES`. NaN as `WHY_UNDEFINED` says: all of them where both masks are empty,
        and the distances where one is. Then no border voxel is near the other surface, and `nsd` is 0 by its formula.

    Raises:
        ValueError: The tolerance is negative or not finite.

    References:
        Nikolov et al. 2021, J Med Internet Res 23(7):e26151, "surface Dice similarity coefficient".
        Maier-Hein et al. 2024, Nature Methods 21:195-212, supplement: ASSD, MASD, HD95, NSD.
    """
    if not 0 <= tolerance_mm < math.inf:
        message = f"tolerance_mm must be 0 or more and finite, got {tolerance_mm}"
        raise ValueError(message)
    directed = (distances.from_reference, distances.from_prediction)
    pooled = np.concatenate(directed)
    figures = dict.fromkeys(SURFACE_FIGURES, math.nan)
    if len(pooled):
        within = np.count_nonzero(pooled <= tolerance_mm * (1 + TOLERANCE_ROUNDING))
        figures["nsd"] = float(within / len(pooled))
    if all(len(some) for some in directed):
        figures["hd95_mm"] = max(_percentile_95(some) for some in directed)
        figures["hd95_pooled_mm"] = _percentile_95(pooled)
        # Sums, since the mean of an array of a small lesion is slower by its overhead.
        sums = [float(np.add.reduce(some)) for some in directed]
        figures["assd_mm"] = sum(sums) / len(pooled)
        figures["masd_mm"] = sum(total / len(some) for total, some in zip(sums, directed, strict=True)) / 2
    return figures


def case_surface(
    reference_voxels: NDArray[np.int64],
    prediction_voxels: NDArray[np.int64],
    shape: tuple[int, ...],
    affine: ArrayLike,
    *,
    tolerance_mm: float,
) -> dict[str, float]:
    """Measure the surfaces of the whole reference and the whole prediction of a case.

    Memory grows with the voxels given, not with the volume.

    Args:
        reference_voxels: Flat indices of the voxels inside, in C order, rising, (n,).
        prediction_voxels: The same of the prediction, (m,).
        shape: Shape of the volume, (I, J, K).
        affine: Voxel index to world RAS in mm, (4, 4).
        tolerance_mm: See `surface_figures`.

    Returns:
        See `surface_figures`, also for empty masks.

    Raises:
        ValueError: The voxels do not rise or lie outside of the volume, or an argument is out of its range.
    """
    axes_mm = _axes_mm(affine)
    for voxels in (reference_voxels, prediction_voxels):
        _check_voxels(voxels, shape)
    both = (_surface_of(voxels, shape, axes_mm) for voxels in (reference_voxels, prediction_voxels))
    return surface_figures(_distances(*both), tolerance_mm=tolerance_mm)


def pair_surfaces(
    lesions: Components, candidates: Components, overlaps: Overlaps, *, tolerance_mm: float
) -> NDArray[np.float64]:
    """Measure the surfaces of each pair of a lesion and a candidate, as if nothing else were in the volume.

    Args:
        lesions: Lesions of the reference; their affine counts.
        candidates: Candidates of the prediction on the same grid.
        overlaps: The pairs.
        tolerance_mm: See `surface_figures`.

    Returns:
        The figures of `SURFACE_FIGURES` in their order, (pairs, figures). No pair: no row.

    Raises:
        ValueError: The shapes differ, or the tolerance is out of its range.
    """
    if lesions.shape != candidates.shape:
        message = f"lesions and candidates must have one shape, got {lesions.shape} and {candidates.shape}"
        raise ValueError(message)
    axes_mm = _axes_mm(lesions.affine)
    pairs = list(zip(overlaps.lesion.tolist(), overlaps.candidate.tolist(), strict=True))
    of_lesion = _surfaces_of_parts(lesions, set(overlaps.lesion.tolist()), axes_mm)
    of_candidate = _surfaces_of_parts(candidates, set(overlaps.candidate.tolist()), axes_mm)
    rows = np.empty((len(pairs), len(SURFACE_FIGURES)))
    for row, (lesion, candidate) in zip(rows, pairs, strict=True):
        distances = _distances(of_lesion[lesion], of_candidate[candidate])
        row[:] = list(surface_figures(distances, tolerance_mm=tolerance_mm).values())
    return rows


class _Surface:
    """Border voxels of a mask, with a tree that is grown when it is first needed."""

    def __init__(self, points_mm: NDArray[np.float64]) -> None:
        self.points_mm = points_mm

    def __len__(self) -> int:
        return len(self.points_mm)

    @functools.cached_property
    def tree(self) -> KDTree:
        # Points of a grid share most of their coordinates: halving at the median is then slow to build, and small
        # leaves are slow to search from afar (twice the time of these, for a small ball inside a large one).
        return KDTree(self.points_mm, leafsize=32, balanced_tree=False)


def _surface_of(voxels: NDArray[np.int64], shape: tuple[int, ...], axes_mm: NDArray[np.float64]) -> _Surface:
    border = voxels[_is_border(voxels, np.zeros(len(voxels), np.int8), shape)]
    return _Surface(_points_mm(border, shape, axes_mm))


def _surfaces_of_parts(components: Components, wanted: set[int], axes_mm: NDArray[np.float64]) -> dict[int, _Surface]:
    """Surface of each wanted part alone, by its number."""
    border = _is_border(components.voxels, components.part, components.shape)
    points, part = _points_mm(components.voxels[border], components.shape, axes_mm), components.part[border]
    order = np.argsort(part, kind="stable")
    points, end = points[order], np.cumsum(np.bincount(part))
    return {number: _Surface(points[end[number - 1] : end[number]]) for number in wanted}


def _is_border(voxels: NDArray[np.int64], part: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether a voxel lacks a face neighbour of its own part, (n,); `voxels` are flat indices that rise."""
    # In a volume that is one voxel longer on the last two axes no neighbour is found around an edge.
    row = voxels // shape[2]
    flat = voxels + row + row // shape[1] * (shape[2] + 1)
    complete = np.ones(len(flat), np.bool_)
    for step in ((shape[1] + 1) * (shape[2] + 1), shape[2] + 1, 1):
        following = np.searchsorted(flat[:-1], flat + step)
        has_following = (flat[following] == flat + step) & (part[following] == part)
        has_preceding = np.zeros(len(flat), np.bool_)
        has_preceding[following[has_following]] = True
        complete &= has_following & has_preceding
    return ~complete


def _points_mm(voxels: NDArray[np.int64], shape: tuple[int, ...], axes_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres of voxels in mm from the centre of the first voxel of the volume, (n, 3)."""
    index = np.stack(np.unravel_index(voxels, shape), axis=1)
    return np.asarray(index @ axes_mm.T, np.float64)


def _distances(reference: _Surface, prediction: _Surface) -> SurfaceDistances:
    if 0 < len(reference) * len(prediction) <= MOST_PAIRS_OF_POINTS:
        between = cdist(reference.points_mm, prediction.points_mm)
        return SurfaceDistances(from_reference=between.min(axis=1), from_prediction=between.min(axis=0))
    return SurfaceDistances(
        from_reference=prediction.tree.query(reference.points_mm)[0],
        from_prediction=reference.tree.query(prediction.points_mm)[0],
    )


def _percentile_95(values: NDArray[np.float64]) -> float:
    # np.percentile gives the same, but for a small lesion its overhead is longer than all the rest.
    ordered = np.sort(values)
    place = 0.95 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def _axes_mm(affine: ArrayLike) -> NDArray[np.float64]:
    """Columns: the step of one voxel along each axis in mm, (3, 3)."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4):
        message = f"affine must have shape (4, 4), got {affine.shape}"
        raise ValueError(message)
    return affine[:3, :3]


def _check_voxels(voxels: NDArray[np.int64], shape: tuple[int, ...]) -> None:
    if (voxels[1:] <= voxels[:-1]).any():
        message = "voxels must be flat indices in C order that rise, got some that repeat or fall"
        raise ValueError(message)
    if len(voxels) and not 0 <= voxels[0] <= voxels[-1] < math.prod(shape):
        message = f"voxels must lie in a volume of shape {shape}, got indices {voxels[0]} to {voxels[-1]}"
        raise ValueError(message)
