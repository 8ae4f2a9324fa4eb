"""Are dropped lesions found again? Cross-validated training on phantoms with wrong labels; writes a page of docs/benchmarks.

    python tests/benchmarks/suspects.py [RUNS_FOLDER] [PAGE.md]

A third of the lesions is dropped from the labels of all cases, at random. Three folds by patient: each case is predicted
by a model that was trained on the wrong labels of the other two, and `medfocal suspect` ranks what the labels
may have wrong. Runs that are finished are not repeated, so a stopped comparison goes on.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfocal.components import find_components
from medfocal.data.manifest import Case, read_manifest
from medfocal.volume import read_labels, write_volume

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)
NUM_FOLDS = 3
NUM_CASES = 36
#: Every third lesion, in a random order over all cases.
DROPPED_SHARE = 1 / 3
STEPS = 600
TRAINING = (
    "experiment=quickstart",
    f"trainer.max_epochs={STEPS // 100}",
    "trainer.steps_per_epoch=100",
    "trainer.num_threads=1",
    "device=cpu",
)


@dataclass(frozen=True)
class Corrupted:
    """A dataset with lesions dropped from its labels.

    Attributes:
        folder: `labels/` holds the wrong labels, `images` leads to the images.
        cases: As they were, with their right labels.
        dropped: Mask of the dropped lesions by case, where there are some, as component numbers.
        num_lesions: Of the right labels.
    """

    folder: Path
    cases: tuple[Case, ...]
    dropped: dict[str, np.ndarray]
    num_lesions: int

    @property
    def num_dropped(self) -> int:
        """Number of dropped lesions."""
        return sum(len(np.unique(mask)) - 1 for mask in self.dropped.values())


def drop_lesions(dataset: Path, folder: Path, *, seed: int) -> Corrupted:
    """Write the labels of all cases without `DROPPED_SHARE` of the lesions, drawn over all cases."""
    cases = read_manifest(dataset).cases
    volumes = {case.name: read_labels(case.label) for case in cases}
    parts = {name: find_components(volume.array, volume.affine) for name, volume in volumes.items()}
    lesions = [(name, number) for name, found in parts.items() for number in range(1, len(found) + 1)]
    order = np.random.default_rng([seed, 1]).permutation(len(lesions))[: round(DROPPED_SHARE * len(lesions))]
    chosen = {lesions[place] for place in order}
    dropped = {}
    for name, volume in volumes.items():
        numbers = [number for case, number in sorted(chosen) if case == name]
        gone = np.isin(parts[name].labels, numbers)
        if numbers:
            dropped[name] = np.where(gone, parts[name].labels, 0)
        write_volume(
            folder / "labels" / f"{name}.nii.gz", volume.with_array(np.where(gone, 0, volume.array).astype(np.uint8))
        )
    return Corrupted(folder, cases, dropped, len(lesions))


def write_folds(corrupted: Corrupted, dataset: Path, num_folds: int) -> list[Path]:
    """A `dataset_fold<n>.json` each: the n-th part of the patients is the test split, all others are trained on."""
    content = json.loads(dataset.read_text("utf-8"))
    entries = [entry for split in ("training", "validation", "test") for entry in content[split]]
    patients = sorted({entry["patient"] for entry in entries})
    for entry in entries:
        images = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
        entry["image"] = [str((dataset.parent / image).absolute()) for image in images]
        entry["label"] = str((corrupted.folder / "labels" / f"{entry['case']}.nii.gz").absolute())
        entry.pop("annotations", None)
    paths = []
    for fold in range(num_folds):
        held_out = patients[fold::num_folds]
        parts = {
            "training": [entry for entry in entries if entry["patient"] not in held_out],
            "validation": [],
            "test": [entry for entry in entries if entry["patient"] in held_out],
        }
        paths.append(corrupted.folder / f"dataset_fold{fold}.json")
        paths[-1].write_text(json.dumps(content | parts), "utf-8")
    return paths


def rank_of_dropped(folder: Path, corrupted: Corrupted) -> list[int | None]:
    """Place of each dropped lesion among the suspects of kind `missed` in a `suspect.csv`, from 1; None: not listed.

    A suspect finds the dropped lesion if its candidate shares a voxel with it or, as candidates are not written, if its
    centroid lies within one voxel of it; each suspect finds one lesion.
    """
    with (folder / "suspect.csv").open(encoding="utf-8", newline="") as file:
        missed = [row for row in csv.DictReader(file) if row["kind"] == "missed"]
    found: dict[tuple[str, int], int] = {}
    for place, row in enumerate(missed, start=1):
        mask = corrupted.dropped.get(row["case"])
        if mask is None:
            continue
        centre = [round(float(row[axis])) for axis in "ijk"]
        near = mask[tuple(slice(max(0, at - 1), at + 2) for at in centre)]
        numbers = [number for number in np.unique(near).tolist() if number and (row["case"], number) not in found]
        if numbers:
            found[row["case"], numbers[0]] = place
    return [
        found.get((case, number))
        for case, mask in sorted(corrupted.dropped.items())
        for number in np.unique(mask)[1:].tolist()
    ]


def medfocal(*words: object) -> None:
    """Run a command, and fail with it."""
    subprocess.run([sys.executable, "-m", "medfocal.cli", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def cross_validate(runs: Path, seed: int) -> Corrupted:
    """Make the phantoms and the wrong labels of a seed, train each fold, and gather the held-out maps."""
    home = runs / f"seed{seed}"
    dataset = home / "data" / "dataset.json"
    if not dataset.is_file():
        medfocal("phantom", f"output={home / 'data'}", f"num_cases={NUM_CASES}", f"seed={seed}")
    corrupted = drop_lesions(dataset, home, seed=seed)
    (home / "predictions").mkdir(exist_ok=True)
    for fold, path in enumerate(write_folds(corrupted, dataset, NUM_FOLDS)):
        name = f"fold{fold}-steps{STEPS}"
        medfocal("train", *TRAINING, f"data.dataset={path}", f"paths.runs={home}", f"run.id={name}", f"seed={seed}")
        for file in (home / "quickstart" / name / "test" / "predictions").glob("*_probability.nii.gz"):
            shutil.copy(file, home / "predictions" / file.name)
    return corrupted


if __name__ == "__main__":
    for number in SEEDS:
        cross_validate(Path(sys.argv[1]).absolute(), number)
