"""Readers who miss lesions, move their boundaries, and take lookalikes for lesions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medfocal.data.phantom.geometry import Array
from medfocal.data.phantom.grid import Grid
from medfocal.data.phantom.lesions import LESION_GAP_MM, Lesions


@dataclass(frozen=True)
class ReaderHabits:
    """How one reader errs.

    Attributes:
        miss_factor: Multiplies the chance to miss a lesion, .45 at 1 mm radius and falling to .05 for large ones.
        spurious_rate: Mean number of lookalikes marked as lesions, Poisson.
        bias_mm: Mean by which the boundary lies outside (positive) or inside the lesion.
    """

    miss_factor: float
    spurious_rate: float
    bias_mm: float


READERS = (
    ReaderHabits(miss_factor=1.0, spurious_rate=0.4, bias_mm=-0.2),
    ReaderHabits(miss_factor=0.6, spurious_rate=0.9, bias_mm=0.4),
)


def annotate(rng: np.random.Generator, lesions: Lesions, spots_mm: Array, grid: Grid, habits: ReaderHabits) -> Array:
    """One reader's marks: lesions missed, boundaries moved, lookalikes taken for lesions."""
    marks = np.zeros(grid.shape, np.uint8)
    for number, radius in enumerate(lesions.radii_mm, start=1):
        miss = habits.miss_factor * (0.05 + 0.4 * math.exp(-max(radius - 1, 0) / 0.9))
        if rng.random() >= miss:
            _mark_lesion(rng, marks, lesions.numbers == number, grid, habits.bias_mm)
    far = np.full(grid.shape, np.inf)
    if lesions.numbers.any():
        far = ndimage.distance_transform_edt(lesions.numbers == 0, sampling=grid.spacing_mm)
    for spot in rng.permutation(spots_mm)[: rng.poisson(habits.spurious_rate)]:
        ball = np.sum((grid.points_mm - spot) ** 2, axis=-1) <= rng.uniform(0.8, 1.9) ** 2
        ball[grid.nearest_voxel(spot)] = True
        # A mark beside a lesion would be a shifted boundary, not an invented lesion.
        if far[ball].min() > LESION_GAP_MM + 1:
            marks[ball] = 1
    return marks


def _mark_lesion(rng: np.random.Generator, marks: Array, lesion: Array, grid: Grid, bias_mm: float) -> None:
    """Draw a lesion as a reader would: boundary moved smoothly, sometimes shifted by one voxel, never quite lost."""
    spacing = np.array(grid.spacing_mm)
    index = np.argwhere(lesion)
    margin = np.ceil(3 / spacing).astype(int)
    box = grid.box(index.min(axis=0) - margin, index.max(axis=0) + margin)
    truth = lesion[box]
    signed = ndimage.distance_transform_edt(truth, sampling=spacing) - ndimage.distance_transform_edt(
        ~truth, sampling=spacing
    )
    wobble = ndimage.gaussian_filter(rng.standard_normal(truth.shape), 1.0 / spacing, mode="wrap")
    moved = signed + rng.normal(bias_mm, 0.5) + 0.7 * wobble / wobble.std()
    drawn = _parts_touching(moved > 0, truth)
    if not drawn.any():
        drawn.flat[np.argmax(np.where(truth, moved, -np.inf))] = True
    elif np.array_equal(drawn, truth):
        # No hand draws the very same voxels.
        drawn.flat[np.argmax(np.where(truth, -np.inf, moved))] = True
    if rng.random() < 0.35:
        shifted = np.roll(drawn, int(rng.choice((-1, 1))), axis=int(rng.integers(3)))
        if (shifted & truth).any():
            drawn = shifted
    marks[box][drawn] = 1


def _parts_touching(mask: Array, truth: Array) -> Array:
    """The largest 26-connected part that overlaps the truth; one lesion gets one mark."""
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    overlapping = np.setdiff1d(parts[truth], [0])
    if not len(overlapping):
        return np.zeros_like(mask)
    largest = overlapping[np.argmax(sizes[overlapping])]
    return np.asarray(parts == largest)
