"""What only looks like a lesion: vessels, rims along the ventricles, diffuse patches and single bright voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import spatial

from medfocal.data.phantom.anatomy import Anatomy, Tissue
from medfocal.data.phantom.geometry import Array, share
from medfocal.data.phantom.grid import Grid

# Of lesions too: neither vessels nor rims can be told from them by brightness.
FINDING_CONTRAST = (0.2, 0.5)


@dataclass(frozen=True)
class Tube:
    """A vessel: points along its course in mm from the head's centre, a radius, and its contrast."""

    course_mm: Array
    radius_mm: float
    contrast: float


@dataclass(frozen=True)
class Lookalikes:
    """Everything bright that is no lesion. `spots_mm` are places where a reader may take it for one."""

    vessels: Array
    vessel_mm: Array
    rim: Array
    patches: Array
    spikes: tuple[tuple[tuple[int, int, int], float], ...]
    spots_mm: Array


def draw_lookalikes(rng: np.random.Generator, anatomy: Anatomy, tissue: Tissue, grid: Grid) -> Lookalikes:
    """Draw all of them and choose the spots that may mislead a reader: on vessels, spikes and bright rims."""
    tubes = [_draw_tube(rng, anatomy) for _ in range(rng.integers(2, 6))]
    vessels, vessel_mm = _sample_vessels(tubes, tissue, grid)
    rim = _draw_rim(rng, tissue, grid)
    inner = np.argwhere((tissue.brain_depth_mm > 2) & (tissue.ventricle_mm > 2))
    patches = _draw_patches(rng, inner, anatomy.scale, grid)
    chosen = rng.choice(inner, rng.integers(3, 7), replace=False)
    spikes = tuple(((int(i), int(j), int(k)), float(rng.uniform(0.3, 0.6))) for i, j, k in chosen)

    spots = [tube.course_mm[rng.integers(len(tube.course_mm), size=3)] for tube in tubes]
    spots.append(grid.points_mm[tuple(chosen.T)])
    bright_rim = np.argwhere(rim > 0.15)
    if len(bright_rim):
        spots.append(grid.points_mm[tuple(rng.choice(bright_rim, 3).T)])
    return Lookalikes(vessels, vessel_mm, rim, patches, spikes, np.concatenate(spots))


def _draw_tube(rng: np.random.Generator, anatomy: Anatomy) -> Tube:
    """A cubic Bezier curve of 15 mm or more; its control points lie in the brain, and so does the whole curve."""
    semi_axes = anatomy.head.semi_axes_mm - 6.5 * anatomy.scale
    along = np.linspace(0, 1, 200)[:, None]
    while True:
        control = rng.standard_normal((4, 3))
        control *= rng.uniform(0.45, 1.0, (4, 1)) * semi_axes / np.linalg.norm(control, axis=1, keepdims=True)
        course = (
            (1 - along) ** 3 * control[0]
            + 3 * along * (1 - along) ** 2 * control[1]
            + 3 * along**2 * (1 - along) * control[2]
            + along**3 * control[3]
        )
        length = np.linalg.norm(np.diff(course, axis=0), axis=1).sum()
        chord = np.linalg.norm(course[-1] - course[0])
        gap = min(part.distance_mm(course).min() for part in anatomy.ventricles)
        if length >= 15 and length > 1.08 * chord and gap > 2 * anatomy.scale:
            return Tube(course, rng.uniform(0.7, 1.4), rng.uniform(*FINDING_CONTRAST))


def _sample_vessels(tubes: Sequence[Tube], tissue: Tissue, grid: Grid) -> tuple[Array, Array]:
    """Contrast times coverage of the vessels, and the distance to their walls; infinite where none is near."""
    vessels = np.zeros(grid.shape)
    vessel_mm = np.full(grid.shape, np.inf)
    inside = tissue.brain > 0
    for tube in tubes:
        distance = np.full(grid.shape, np.inf)
        tree = spatial.cKDTree(tube.course_mm)
        distance[inside] = tree.query(grid.points_mm[inside], distance_upper_bound=12.0)[0] - tube.radius_mm
        vessels = np.maximum(vessels, tube.contrast * share(distance))
        vessel_mm = np.minimum(vessel_mm, distance)
    return vessels, vessel_mm


def _draw_rim(rng: np.random.Generator, tissue: Tissue, grid: Grid) -> Array:
    """A sheet of 1 to 1.6 mm along part of the ventricles' wall."""
    thickness = rng.uniform(1.0, 1.6)
    where = np.clip(grid.smooth_field(rng, 10.0) + 0.5, 0, 1)
    sheet = share(np.abs(tissue.ventricle_mm - thickness / 2) - thickness / 2)
    return np.asarray(rng.uniform(*FINDING_CONTRAST) * sheet * where)


def _draw_patches(rng: np.random.Generator, inner: Array, scale: float, grid: Grid) -> Array:
    """One to three wide and faint Gaussians, centred on voxels of the inner brain."""
    patches = np.zeros(grid.shape)
    for _ in range(rng.integers(1, 4)):
        centre = grid.points_mm[tuple(rng.choice(inner))]
        width = rng.uniform(4, 7) * scale
        far = np.sum((grid.points_mm - centre) ** 2, axis=-1)
        patches = np.maximum(patches, rng.uniform(0.05, 0.12) * np.exp(-far / (2 * width**2)))
    return patches
