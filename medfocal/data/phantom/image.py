"""What a scanner makes of tissue and findings: one image for each channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medfocal.data.phantom.anatomy import Tissue
from medfocal.data.phantom.geometry import Array
from medfocal.data.phantom.grid import Grid
from medfocal.data.phantom.lesions import Lesions
from medfocal.data.phantom.lookalikes import Lookalikes

TEXTURE = 0.04
NOISE = 0.04


@dataclass(frozen=True)
class Look:
    """How tissues appear in one channel, in units of white matter; signs say whether a finding is bright or dark."""

    grey: float
    fluid: float
    gap: float
    scalp: float
    lesion: float
    vessel: float
    rim: float
    patch: float


LOOKS = {
    "FLAIR": Look(grey=1.22, fluid=0.3, gap=0.22, scalp=1.6, lesion=1.0, vessel=1.0, rim=1.0, patch=1.0),
    "T1": Look(grey=0.8, fluid=0.35, gap=0.22, scalp=1.7, lesion=-1.0, vessel=1.0, rim=0.0, patch=-0.5),
}


@dataclass(frozen=True)
class StoredImage:
    """int16 values that mean `stored * slope + inter`; air is exactly 0 and nothing else is."""

    stored: Array
    slope: float
    inter: float


def bias_field(rng: np.random.Generator, grid: Grid, head: Array) -> Array:
    """Slow gain of 1 +- .1 at its extremes: a quadratic in the coordinates."""
    x, y, z = np.moveaxis(grid.points_mm / np.abs(grid.points_mm).max(), -1, 0)
    terms = np.stack([x, y, z, x * y, x * z, y * z, x * x, y * y, z * z])
    field = np.tensordot(rng.standard_normal(len(terms)), terms, axes=1)
    low, high = field[head].min(), field[head].max()
    return np.asarray(1 + 0.1 * (2 * (field - low) / (high - low) - 1))


def render(
    rng: np.random.Generator,
    look: Look,
    tissue: Tissue,
    lookalikes: Lookalikes,
    lesions: Lesions,
    grid: Grid,
    *,
    bias: Array,
    with_spikes: bool,
) -> StoredImage:
    """Mix tissues, add findings, bias and noise, and store as int16 with a gain of its own."""
    matter = 1 + (look.grey - 1) * tissue.grey
    matter *= 1 + TEXTURE * grid.smooth_field(rng, rng.uniform(2, 4))
    matter *= 1 + look.patch * lookalikes.patches
    brain = matter * (1 - tissue.fluid) + look.fluid * tissue.fluid
    # Never brighter for lying in two findings at once.
    bright = np.maximum(look.rim * lookalikes.rim, look.vessel * lookalikes.vessels)
    brain = brain * (1 + bright) * (1 + look.lesion * lesions.added)
    shell = look.gap + (look.scalp * (1 + 0.15 * grid.smooth_field(rng, 6.0)) - look.gap) * tissue.scalp
    clean = brain * tissue.brain + shell * (1 - tissue.brain)
    noisy = clean * bias + NOISE * rng.standard_normal(grid.shape)
    if with_spikes:
        for voxel, contrast in lookalikes.spikes:
            noisy[voxel] += contrast
    return _store(rng, noisy, tissue.head)


def _store(rng: np.random.Generator, values: Array, head: Array) -> StoredImage:
    """Scale the head as a scanner would, set air to 0, and round to int16."""
    # Every scanner has its own scale. A step of about 1 % of white matter, a quarter of the noise, loses
    # nothing. It is a multiple of 1/64, so that air comes back as exactly 0 in float32 and in float64.
    gain = math.exp(rng.uniform(math.log(150), math.log(900)))
    slope = max(1, round(gain * 0.01 * 64)) / 64
    zero = int(rng.choice((0, 0, 0, 1024, -200)))
    steps = np.maximum(np.round(values * gain / slope), 1)
    stored = np.where(head, steps, 0).astype(np.int16) + np.int16(zero)
    return StoredImage(stored, slope, -zero * slope)
