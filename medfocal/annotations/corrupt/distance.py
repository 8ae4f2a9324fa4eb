"""Distances to the border of a mask, boxes around it, and smooth noise, all in millimetres."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[slice, ...]


def signed_distance_mm(
    mask: NDArray[np.bool_], spacing_mm: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance of voxel centres to the border of a mask, positive inside, never 0.

    The border lies half-way between voxels: on the line to the nearest voxel of the other kind, half a voxel before
    it. So the voxels on the two sides of a face lie half a spacing from it. Beyond the volume nothing is known: a mask
    that ends there has no border there.

    Args:
        mask: `(I, J, K)`.
        spacing_mm: Of the three axes.

    Returns:
        float64 `(I, J, K)`. All inside: infinite. Empty: minus infinite.
    """
    inside, outside = _to_border_mm(mask, spacing_mm), _to_border_mm(~mask, spacing_mm)
    return np.where(mask, inside, -outside)


def _to_border_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    if mask.all():
        return np.full(mask.shape, math.inf)
    distance, nearest = ndimage.distance_transform_edt(mask, sampling=spacing_mm, return_indices=True)
    steps = np.ones(mask.shape, np.intp)
    for axis, length in enumerate(mask.shape):
        index = np.arange(length).reshape([-1 if other == axis else 1 for other in range(3)])
        np.maximum(steps, np.abs(nearest[axis] - index), out=steps)
    return np.asarray(distance * (1 - 0.5 / steps), np.float64)


def nearest_class(label: NDArray[np.uint8], spacing_mm: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Class of the lesion voxel nearest to each voxel of a label that is not empty."""
    nearest = ndimage.distance_transform_edt(
        label == 0, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    return np.asarray(label[tuple(nearest)], np.uint8)


def box_around(mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64], reach_mm: float) -> Box:
    """The box of a mask that is not empty, grown by `reach_mm` or more, cut off at the volume's border."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = np.ceil(reach_mm / spacing_mm).astype(int).tolist()
    return tuple(
        slice(max(side.start - m, 0), min(side.stop + m, length))
        for side, m, length in zip(box, margin, mask.shape, strict=True)
    )


def compactness(mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of the mask lies around each voxel; orders voxels that lie equally far from its border."""
    blurred = ndimage.gaussian_filter(mask.astype(np.float64), spacing_mm.mean() / spacing_mm, mode="nearest")
    return np.asarray(np.round(blurred, 9), np.float64)  # what is equal by symmetry shall be equal


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: NDArray[np.float64], correlation_mm: float
) -> NDArray[np.float64]:
    """Gaussian random field of mean 0 and standard deviation 1, of correlation exp(-(r / correlation_mm)^2).

    White noise, filtered by a Gaussian of standard deviation correlation_mm / 2, has that correlation. Here it is made
    exactly and without a margin: the correlation is a product over the axes, and so is its square root.

    Mean and deviation are those of the process: a box much shorter than `correlation_mm` is nearly one number.
    """
    field = rng.standard_normal(tuple(shape))
    for axis, (length, step) in enumerate(zip(shape, spacing_mm.tolist(), strict=True)):
        place_mm = np.arange(length) * step
        correlation = np.exp(-(((place_mm[:, None] - place_mm) / correlation_mm) ** 2))
        values, vectors = np.linalg.eigh(correlation)
        # The symmetric root: unlike vectors * sqrt(values) it is the same whichever signs the vectors come with.
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        field = np.moveaxis(np.tensordot(root, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)
