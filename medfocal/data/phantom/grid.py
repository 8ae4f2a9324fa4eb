"""Where the voxels of a case lie: its affine, and the head's place in the field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from medfocal.data.phantom.geometry import Array, rotation
from medfocal.data.phantom.plan import CasePlan


@dataclass(frozen=True)
class Grid:
    """Where the voxels lie; `centre_mm` is the head's centre in the world."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Array
    centre_mm: Array

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel."""
        return math.prod(self.spacing_mm)

    @cached_property
    def points_mm(self) -> Array:
        """Voxel centres relative to the head's centre, world axes, (I, J, K, 3)."""
        index = np.stack(np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij"), axis=-1)
        points: Array = index @ self.affine[:3, :3].T + (self.affine[:3, 3] - self.centre_mm)
        return points

    def nearest_voxel(self, point_mm: Array) -> tuple[int, int, int]:
        """The voxel that holds a point given relative to the head's centre: `points_mm` the other way."""
        offset = point_mm + self.centre_mm - self.affine[:3, 3]
        i, j, k = np.round(np.linalg.inv(self.affine[:3, :3]) @ offset).astype(int)
        return i, j, k

    def box(self, first: Array, last: Array) -> tuple[slice, ...]:
        """Slices from one voxel to another, both included, cut off at the grid's border."""
        start, stop = np.maximum(first, 0), np.minimum(last + 1, self.shape)
        return tuple(slice(low, high) for low, high in zip(start, stop, strict=True))

    def smooth_field(self, rng: np.random.Generator, correlation_mm: float) -> Array:
        """Gaussian random field of mean 0 and standard deviation 1; correlation falls to 1/e at `correlation_mm`."""
        sigma = [correlation_mm / 2 / step for step in self.spacing_mm]
        field: Array = ndimage.gaussian_filter(rng.standard_normal(self.shape), sigma, mode="wrap", truncate=3)
        field -= field.mean()
        field /= field.std()
        return field


def draw_grid(
    rng: np.random.Generator,
    plan: CasePlan,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> Grid:
    """Orient the field as planned: off the scanner's origin, and the head a little off the field's middle."""
    signs = [-1.0 if code in "LPI" else 1.0 for code in plan.axis_codes]
    directions = np.diag(signs)
    if plan.oblique:
        directions = rotation(rng, 5, 20) @ directions
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    middle = rng.uniform(-25, 25, 3)
    affine[:3, 3] = np.round(middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2), 3)
    # As float32, which is what a NIfTI header holds.
    affine = affine.astype(np.float32).astype(np.float64)
    return Grid(shape, spacing_mm, affine, middle + rng.uniform(-0.8, 0.8, 3))
