"""How often lesions of a patient are visited when lesions are drawn, and when voxels are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.smoothing import NoSmoothing
from medfocal.annotations.target import AnnotationSettings
from medfocal.data.cache import Cache
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.sampling import LesionBalancedSampler
from medfocal.data.stored import Precision, TrainingCase
from medfocal.data.targets import Recipe, prepare_training
from medfocal.data.transforms import Preprocessing
from medfocal.files import atomic_write

PATIENT, NUM_PATCHES, PATCH, SEED = "patient19", 1000, (64, 64, 64), 1
LESIONS, VOXELS, SUBSAMPLED = "lesions alike", "voxels alike", "voxels kept by nnU-Net"
#: As nnU-Net 2.8.1 keeps voxels of a class and case: all up to 10,000, then 10,000 or 1 %, whichever is more.
KEPT_VOXELS, KEPT_SHARE, KEPT_SEED = 10_000, 0.01, 1234


@dataclass(frozen=True)
class Visits:
    """Of each lesion under one rule.

    Attributes:
        centred: Patches centred on it.
        shown: Patches that show the whole of it, whatever they are centred on.
        reachable: Whether a patch can be centred on it at all.
    """

    centred: NDArray[np.int64]
    shown: NDArray[np.int64]
    reachable: NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """Visits by rule of the lesions of a case, whose sizes are `num_voxels`."""

    num_voxels: NDArray[np.int64]
    visits: dict[str, Visits]


def find_files(data: Path) -> tuple[Path, Path]:
    """Image and label of the patient in a folder of data."""
    return tuple(data / "ms_flair" / f"{PATIENT}_{what}.nii.gz" for what in ("FLAIR", "mask"))


def measure_visits(data: Path, cache: Path) -> Found:
    """Draw the patches of each rule and count."""
    image, label = find_files(data)
    recipe = Recipe(
        scheme=LabelScheme({0: "background", 1: "lesion"}),
        preprocessing=Preprocessing(),
        precision=Precision.AUTO,
        annotations=AnnotationSettings(),
        smoothing=NoSmoothing(),
    )
    cases = prepare_training([Case(PATIENT, PATIENT, "training", (image,), label)], recipe, Cache(cache)).cases
    table = cases[0].table
    every = np.ones(len(table), np.bool_)
    visits = {}
    for name, power in ((LESIONS, 0.0), (VOXELS, 1.0)):
        sampler = LesionBalancedSampler(cases, patch_size=PATCH, lesion_fraction=1.0, seed=SEED, size_power=power)
        visits[name] = Visits(*sampler.visits(0, NUM_PATCHES), every)
    visits[SUBSAMPLED] = subsampled(cases[0])
    return Found(table.num_voxels, visits)


def subsampled(case: TrainingCase) -> Visits:
    """Centre patches on voxels drawn alike among those that are kept."""
    table = case.table
    count = len(table.voxels)
    num_kept = max(min(KEPT_VOXELS, count), math.ceil(KEPT_SHARE * count))
    kept = np.random.RandomState(KEPT_SEED).choice(count, num_kept, replace=False)
    drawn = kept[np.random.default_rng(SEED).integers(num_kept, size=NUM_PATCHES)]
    lesion_of = np.repeat(np.arange(len(table)), table.num_voxels)
    centre = np.stack(np.unravel_index(table.voxels[drawn], table.shape), axis=1)
    start = np.clip(centre - np.array(PATCH) // 2, 0, np.array(table.shape) - PATCH)[:, None]
    shown = ((table.low >= start) & (table.high <= start + PATCH)).all(axis=2).sum(axis=0)
    centred = np.bincount(lesion_of[drawn], minlength=len(table))
    return Visits(centred, shown, np.isin(np.arange(len(table)), lesion_of[kept]))


def render_visits(found: Found) -> list[str]:
    """A row a quarter of the lesions by size, for each rule."""
    sizes, quarters = found.num_voxels, quarters_by_size(found.num_voxels)
    lines = [
        f"## Visits per lesion: {PATIENT}",
        "",
        f"{NUM_PATCHES:,} lesion-centred patches of {PATCH[0]}^3 on a FLAIR image with {len(sizes)} lesions of",
        f"{sizes.min()} to {sizes.max():,} voxels of 1 mm, {sizes.sum():,} together (`size_power` 0 and 1). The third",
        f"rule draws voxels alike among {KEPT_VOXELS:,} or {KEPT_SHARE:.0%} of a case's, whichever is more, as nnU-Net",
        "2.8.1 does (Isensee et al. 2021); its rule only, none of its code. Least / median / most patches centred on a",
        "lesion of a quarter by size; lesions on which none was centred; lesions that no patch showed in whole, on",
        "whatever it was centred.",
        "",
        "| voxels of a lesion | lesions | drawn | centred | never centred | never shown |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for quarter in quarters:
        own = sizes[quarter]
        span = f"{own.min():,}" if own.min() == own.max() else f"{own.min():,} to {own.max():,}"
        for name, visits in found.visits.items():
            centred = visits.centred[quarter]
            cells = [span, str(len(own)), name, f"{centred.min()} / {np.median(centred):g} / {centred.max()}"]
            cells += [str(int((counts[quarter] == 0).sum())) for counts in (visits.centred, visits.shown)]
            lines.append(f"| {' | '.join(cells)} |")
    out = int((~found.visits[SUBSAMPLED].reachable).sum())
    return [
        *lines,
        "",
        f"Under the third rule {out} of {len(sizes)} lesions keep no voxel: no patch is ever centred on them.",
        "",
        "![Patches centred on each lesion against its size, for the three rules](../images/visits.png)",
        "",
    ]


def quarters_by_size(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Numbers of the lesions of each quarter, the smallest first."""
    return np.array_split(np.argsort(sizes, kind="stable"), 4)


def draw_visits(found: Found, path: Path) -> None:
    """Centred patches against size, a panel a rule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from medfocal.report.figures import LIGHT, PNG_DOTS_PER_INCH

    figure = Figure(figsize=(11.0, 3.4), layout="constrained", facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    colours = (LIGHT.first, LIGHT.second, LIGHT.third)
    for axes, colour, (name, visits) in zip(panels, colours, found.visits.items(), strict=True):
        draw_panel(axes, found.num_voxels, visits, name, colour)
    panels[0].set_ylabel("patches centred on a lesion", fontsize=9, color=LIGHT.muted)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})


def draw_panel(axes: Any, sizes: NDArray[np.int64], visits: Visits, name: str, colour: str) -> None:
    """A dot a lesion; those without a visit are hollow, on the line of 0."""
    from medfocal.report.figures import LIGHT, dress

    none = visits.centred == 0
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1, linscale=0.6)
    dress(axes, LIGHT, f"{name}: {int(none.sum())} of {len(sizes)} never", "voxels of a lesion", "")
    ticks = [0, 1, 10, 100, 1000]
    axes.set_yticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.scatter(sizes[~none], visits.centred[~none], s=18, color=colour, alpha=0.7, linewidths=0)
    axes.scatter(sizes[none], visits.centred[none], s=22, facecolors=LIGHT.paper, edgecolors=colour, clip_on=False)
    axes.set_ylim(-0.25, 2 * NUM_PATCHES)
