"""One case as a whole, drawn from its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medfocal.data.phantom.anatomy import draw_anatomy, sample_tissue
from medfocal.data.phantom.geometry import Array
from medfocal.data.phantom.grid import draw_grid
from medfocal.data.phantom.image import LOOKS, StoredImage, bias_field, render
from medfocal.data.phantom.lesions import Lesions, draw_lesions
from medfocal.data.phantom.lookalikes import draw_lookalikes
from medfocal.data.phantom.plan import CasePlan
from medfocal.data.phantom.readers import READERS, annotate


@dataclass(frozen=True)
class Phantom:
    """One case: images by channel, label uint8, one annotation uint8 per reader, and what was drawn.

    `spots` are voxels where something may be taken for a lesion, int (n, 3).
    """

    images: tuple[StoredImage, ...]
    label: Array
    annotations: tuple[Array, ...]
    affine: Array
    lesions: Lesions
    spots: Array


def make_phantom(
    plan: CasePlan,
    *,
    seed: int,
    prevalence: float,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    channels: Sequence[str],
) -> Phantom:
    """Draw one case; the arguments are those of `write_phantoms`."""
    field_mm = np.array(shape) * np.array(spacing_mm)
    anatomy = draw_anatomy(np.random.default_rng([seed, plan.anatomy + 1, 0]), field_mm)
    rng = np.random.default_rng([seed, plan.index + 1, 1])
    grid = draw_grid(rng, plan, shape, spacing_mm)
    tissue = sample_tissue(rng, anatomy, grid)
    lookalikes = draw_lookalikes(rng, anatomy, tissue, grid)
    lesions = draw_lesions(rng, tissue, lookalikes, grid, prevalence if plan.has_lesions else 0.0)
    bias = bias_field(rng, grid, tissue.head)
    images = tuple(
        render(rng, LOOKS[name], tissue, lookalikes, lesions, grid, bias=bias, with_spikes=position == 0)
        for position, name in enumerate(channels)
    )
    annotations = tuple(annotate(rng, lesions, lookalikes.spots_mm, grid, habits) for habits in READERS)
    label = (lesions.numbers > 0).astype(np.uint8)
    spots = np.array([grid.nearest_voxel(spot) for spot in lookalikes.spots_mm])
    return Phantom(images, label, annotations, grid.affine, lesions, spots)
