"""Evaluating many files beside reading them alone, both by two processes.

python tests/benchmarks/evaluate_files.py TASK

`evaluate.py` starts it. TASK is JSON, the arguments of `measure`; the last line of the output is JSON too.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from evaluate_measure import PROBLEMS, report

from medfocal.evaluate.measure import Reading, measure_pairs
from medfocal.evaluate.pairs import find_pairs
from medfocal.evaluate.pooled import evaluate_measured
from medfocal.evaluate.results import write_evaluation
from medfocal.volume import Volume, write_volume

READ = "reading by nibabel"
LESIONS = "evaluating, surface=false"
SURFACES = "evaluating, surface=true"
WORKERS = 2
#: Cases that are drawn; the others are links to these, so that the disk holds them in its cache.
NUM_DRAWN = 20


def read(path: Path) -> int:
    """Unpack a file into an array."""
    return int(np.asarray(nibabel.load(path).dataobj).size)


def read_all(folder: Path) -> None:
    """Read every file by two processes."""
    paths = sorted(folder.glob("*/*.nii.gz"))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(WORKERS, context) as pool:
        total = sum(pool.map(read, paths, chunksize=16))
    assert total == len(paths) * np.prod(PROBLEMS[0].shape)


def evaluate_all(folder: Path, *, surface: bool) -> None:
    """Evaluate every case and write all that `medfocal evaluate` writes but the page."""
    pairs = find_pairs(folder / "reference", folder / "prediction")
    with tempfile.TemporaryDirectory(dir=folder) as output:
        store = Path(output) / "tables.jsonl"
        measured = measure_pairs(pairs, reading=Reading(surface=surface), store=store, workers=WORKERS)
        write_evaluation(evaluate_measured(measured), Path(output))


def write_files(folder: Path, num_cases: int) -> None:
    """Cases of A's kind."""
    rng = np.random.default_rng(1)
    for number in range(num_cases):
        for role in ("reference", "prediction"):
            path = folder / role / f"case{number:05}.nii.gz"
            if number >= NUM_DRAWN:
                path.hardlink_to(folder / role / f"case{number % NUM_DRAWN:05}.nii.gz")
        if number < NUM_DRAWN:
            problem = PROBLEMS[0]
            masks = [np.roll(mask, rng.integers(-5, 5), axis=0) for mask in problem.masks("F")]
            for role, mask in zip(("reference", "prediction"), masks, strict=True):
                write_volume(folder / role / f"case{number:05}.nii.gz", Volume(mask, problem.affine))


def measure(num_cases: int, repeats: int) -> dict[str, list[float]]:
    """Wall time in seconds of each way in each round."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, num_cases)
        calls: dict[str, Callable[[], None]] = {
            READ: lambda: read_all(folder),
            LESIONS: lambda: evaluate_all(folder, surface=False),
            SURFACES: lambda: evaluate_all(folder, surface=True),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for round_number in range(repeats):
            names = list(calls)
            for name in names[round_number % 3 :] + names[: round_number % 3]:
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
                report(f"    {name}: {times[name][-1]:.1f} s")
    return times


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
