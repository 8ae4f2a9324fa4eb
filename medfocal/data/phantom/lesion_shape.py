"""One lesion: its size, contrast and bumpy surface, and how much of each voxel it covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medfocal.data.phantom.geometry import Array, rotation
from medfocal.data.phantom.lookalikes import FINDING_CONTRAST

SUPERSAMPLING = 4


@dataclass(frozen=True)
class LesionShape:
    """A slightly ellipsoidal lesion with a bumpy surface; semi-axes in mm along the columns of `axes`.

    The surface lies at 1 + sum(heights * cos(waves . direction + phases)) in units of the semi-axes.
    """

    radius_mm: float
    contrast: float
    semi_axes_mm: Array
    axes: Array
    waves: Array
    phases: Array
    heights: Array

    @property
    def reach_mm(self) -> float:
        """No point of the lesion is farther from its centre."""
        return float(self.semi_axes_mm.max() * (1 + self.heights.sum()))

    def coverage(self, centre_mm: Array, num_voxels: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> Array:
        """Share of each voxel of a box inside the lesion, by supersampling; `centre_mm` from the box's first voxel."""
        offsets = (np.arange(SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5
        lines = [
            np.add.outer(np.arange(n), offsets).ravel() * step - middle
            for n, step, middle in zip(num_voxels, spacing_mm, centre_mm, strict=True)
        ]
        local = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1) @ self.axes / self.semi_axes_mm
        distance = np.linalg.norm(local, axis=-1)
        bumps = float(self.heights.sum())
        near = np.abs(distance - 1) <= bumps
        inside = distance < 1 - bumps
        directions = local[near] / distance[near][:, None]
        inside[near] = distance[near] < 1 + np.cos(directions @ self.waves.T + self.phases) @ self.heights
        i, j, k = num_voxels
        blocks = inside.reshape(i, SUPERSAMPLING, j, SUPERSAMPLING, k, SUPERSAMPLING)
        coverage: Array = blocks.mean(axis=(1, 3, 5))
        return coverage


def draw_shape(rng: np.random.Generator, radius: float) -> LesionShape:
    """A lesion of about the volume of a ball of this radius in mm; its semi-axes lie within 18 % of it."""
    stretch = np.exp(0.1 * np.clip(rng.standard_normal(3), -1.2, 1.2))
    return LesionShape(
        radius_mm=float(radius),
        contrast=float(rng.uniform(*FINDING_CONTRAST)),
        semi_axes_mm=radius * stretch / np.prod(stretch) ** (1 / 3),
        axes=rotation(rng, 0, 180),
        waves=rng.standard_normal((4, 3)) * 1.8,
        phases=rng.uniform(0, 2 * math.pi, 4),
        heights=rng.uniform(0, 0.045, 4),
    )
