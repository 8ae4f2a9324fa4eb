"""The lesions of a case: how many, how large, and where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medfocal.data.phantom.anatomy import Tissue
from medfocal.data.phantom.geometry import Array
from medfocal.data.phantom.grid import Grid
from medfocal.data.phantom.lesion_shape import LesionShape, draw_shape
from medfocal.data.phantom.lookalikes import Lookalikes

# Radii in mm where the lesions of a case fill 88 mm3 on average, as at the default shape and prevalence.
RADIUS_MM = (1.0, 3.5)
MEDIAN_RADIUS_MM = 1.9
RADIUS_SPREAD = 0.3
MAX_LESIONS = 5
REFERENCE_VOLUME_MM3 = 3e-4 * 64 * 64 * 72
LESION_GAP_MM = 3.0


@dataclass(frozen=True)
class Lesions:
    """Lesions on the grid: `numbers` uint8, 1..n where half covered; `added` is contrast times coverage."""

    numbers: Array
    added: Array
    radii_mm: Array
    contrasts: Array


def draw_lesions(
    rng: np.random.Generator, tissue: Tissue, lookalikes: Lookalikes, grid: Grid, prevalence: float
) -> Lesions:
    """Place lesions whose voxels make a share drawn log-uniform from a third to twice the prevalence."""
    if prevalence == 0:
        empty = np.zeros(0)
        return Lesions(np.zeros(grid.shape, np.uint8), np.zeros(grid.shape), empty, empty)
    num_voxels = math.prod(grid.shape)
    least, most = max(1.0, prevalence / 3 * num_voxels), 2 * prevalence * num_voxels
    target_mm3 = 0.0
    growth = prevalence * num_voxels * grid.voxel_mm3 / REFERENCE_VOLUME_MM3
    clearance = _clearance_mm(tissue, lookalikes, grid)
    for attempt in range(300):
        # A volume that finds no room ten times is drawn anew; this happens from a prevalence of about .5 % on.
        if attempt % 10 == 0:
            target_mm3 = math.exp(rng.uniform(math.log(least), math.log(most))) * grid.voxel_mm3
        radii = _draw_radii(rng, target_mm3, growth, grid.voxel_mm3)
        shapes = [draw_shape(rng, radius) for radius in radii]
        centres = _place(rng, shapes, clearance, grid)
        if centres is None:
            continue
        lesions = _rasterise(centres, shapes, grid)
        if least <= np.count_nonzero(lesions.numbers) <= most:
            return lesions
    message = (
        f"prevalence {prevalence:g}: found no room for lesions of {target_mm3:.0f} mm3 in {grid.shape} voxels. "
        "Choose a lower prevalence or a larger shape."
    )
    raise ValueError(message)


def _draw_radii(rng: np.random.Generator, target_mm3: float, growth: float, voxel_mm3: float) -> Array:
    """Log-normal radii, as many as reach the target volume, scaled together to meet it; largest first."""
    one_voxel_mm = _sphere_radius_mm(voxel_mm3)
    # More lesion volume comes as more lesions first: large ones find no room between vessels and ventricles.
    widen = growth ** (1 / 9)
    low = max(RADIUS_MM[0] * widen, one_voxel_mm)
    high = max(RADIUS_MM[1] * widen, low)
    median = max(MEDIAN_RADIUS_MM * widen, low)
    max_lesions = min(254, math.ceil(MAX_LESIONS * growth ** (2 / 3) - 1e-9))
    for _ in range(1000):
        radii: list[float] = []
        while _spheres_mm3(radii) < target_mm3 and len(radii) < max_lesions:
            radii.append(float(np.clip(median * math.exp(RADIUS_SPREAD * rng.standard_normal()), low, high)))
        scaled = np.sort(radii)[::-1] * (target_mm3 / _spheres_mm3(radii)) ** (1 / 3)
        if low - 1e-9 <= scaled.min() and scaled.max() <= high + 1e-9:
            return np.asarray(scaled)
    # Less than the volume of two lesions of least size, or more than the most lesions of median size hold.
    number = max(1, min(max_lesions, int(target_mm3 / _spheres_mm3([low]))))
    return np.full(number, _sphere_radius_mm(target_mm3 / number))


def _spheres_mm3(radii: Sequence[float]) -> float:
    return 4 / 3 * math.pi * float(np.sum(np.asarray(radii) ** 3))


def _sphere_radius_mm(volume_mm3: float) -> float:
    return float((3 * volume_mm3 / (4 * math.pi)) ** (1 / 3))


def _clearance_mm(tissue: Tissue, lookalikes: Lookalikes, grid: Grid) -> Array:
    """Distance of each voxel of free brain tissue to whatever a lesion must not touch."""
    free = (tissue.brain_depth_mm > 0.5) & (tissue.ventricle_mm > 1.5) & (lookalikes.vessel_mm > 0.8)
    for voxel, _ in lookalikes.spikes:
        free[voxel] = False
    distance: Array = ndimage.distance_transform_edt(free, sampling=grid.spacing_mm)
    return distance


def _place(rng: np.random.Generator, shapes: Sequence[LesionShape], clearance: Array, grid: Grid) -> Array | None:
    """Centres in voxels (n, 3), at random where there is room; None where a lesion finds none."""
    spacing = np.array(grid.spacing_mm)
    centres: list[Array] = []
    for number, shape in enumerate(shapes):
        # The centre may lie half a voxel off the voxel whose clearance is known.
        room = np.flatnonzero(clearance > shape.reach_mm + float(np.linalg.norm(spacing)) / 2)
        if not len(room):
            return None
        for flat in rng.choice(room, 100):
            centre = np.array(np.unravel_index(flat, grid.shape)) + rng.uniform(-0.5, 0.5, 3)
            gaps = [
                float(np.linalg.norm((centre - other) * spacing)) - shape.reach_mm - shapes[position].reach_mm
                for position, other in enumerate(centres)
            ]
            if all(gap >= LESION_GAP_MM for gap in gaps):
                centres.append(centre)
                break
        if len(centres) == number:
            return None
    return np.array(centres)


def _rasterise(centres: Array, shapes: Sequence[LesionShape], grid: Grid) -> Lesions:
    numbers = np.zeros(grid.shape, np.uint8)
    added = np.zeros(grid.shape)
    for number, (centre, shape) in enumerate(zip(centres, shapes, strict=True), start=1):
        reach = np.ceil(shape.reach_mm / np.array(grid.spacing_mm)).astype(int) + 1
        middle = np.round(centre).astype(int)
        box = grid.box(middle - reach, middle + reach)
        start = np.array([part.start for part in box])
        coverage = shape.coverage((centre - start) * grid.spacing_mm, numbers[box].shape, grid.spacing_mm)
        added[box] += shape.contrast * coverage
        mask = coverage >= 0.5
        mask.flat[np.argmax(coverage)] = True
        numbers[box][mask] = number
    radii, contrasts = np.array([(shape.radius_mm, shape.contrast) for shape in shapes]).T
    return Lesions(numbers, added, radii, contrasts)
