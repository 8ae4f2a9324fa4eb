"""Synthetic heads for the benchmark of patches, and the recipe by which both sides prepare them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from medfocal.annotations.smoothing import NoSmoothing
from medfocal.annotations.target import AnnotationSettings
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.stored import Precision
from medfocal.data.targets import Recipe
from medfocal.data.transforms import Preprocessing
from medfocal.parallel import in_processes
from medfocal.volume import Volume, write_volume

NUM_HEADS, SHAPE, NUM_LESIONS = 8, (240, 240, 155), 20
RADIUS_MM = (1.0, 8.0)
SPACING_MM = 1.2  # that both sides resample to; files have 1 mm
LEFT_TO_RIGHT = np.diag([-1.0, -1.0, 1.0, 1.0])  # as many files lie, so that both sides have to turn them


def case_of(folder: Path, number: int) -> Case:
    """The files of a head."""
    name = f"head_{number}"
    return Case(name, name, "training", (folder / f"{name}.nii.gz",), folder / f"{name}_label.nii.gz")


def cases_of(folder: Path) -> list[Case]:
    return [case_of(folder, number) for number in range(NUM_HEADS)]


def recipe() -> Recipe:
    return Recipe(
        scheme=LabelScheme({0: "background", 1: "lesion"}),
        preprocessing=Preprocessing(spacing_mm=(SPACING_MM,) * 3),
        precision=Precision.AUTO,
        annotations=AnnotationSettings(),
        smoothing=NoSmoothing(),
    )


def write_heads(folder: Path) -> None:
    """All heads, by two processes."""
    with in_processes(functools.partial(write_head, folder), range(NUM_HEADS), 2, what="wrote heads") as written:
        for _ in written:
            pass


def write_head(folder: Path, number: int) -> None:
    """A third of the volume is head, the rest 0; bright balls of log-uniform radius are its lesions."""
    rng = np.random.default_rng(number)
    places = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    head = (places[0] / 0.78) ** 2 + (places[1] / 0.92) ** 2 + (places[2] / 0.88) ** 2 < 1
    image = 600 + 8 * rng.standard_normal(SHAPE, np.float32) + 80 * np.cos(5 * places[0]) * np.cos(7 * places[2])
    label = np.zeros(SHAPE, np.uint8)
    radii = np.exp(rng.uniform(*np.log(RADIUS_MM), NUM_LESIONS))
    for centre, radius in zip(rng.choice(np.argwhere(head), NUM_LESIONS), radii, strict=True):
        low = np.maximum(centre - 8, 0)
        box = tuple(slice(a, a + 17) for a in low)
        distance = sum((index - c) ** 2 for index, c in zip(np.ogrid[box], centre, strict=True))
        ball = distance[tuple(slice(0, n) for n in label[box].shape)] <= radius**2
        label[box][ball] = 1
    label[~head] = 0
    image[label > 0] += 150
    image[~head] = 0
    case = case_of(folder, number)
    write_volume(case.images[0], Volume(image.astype(np.int16), LEFT_TO_RIGHT))
    write_volume(case.label, Volume(label, LEFT_TO_RIGHT))
