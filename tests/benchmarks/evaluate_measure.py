"""Measurements of the evaluation of a case, one in a process of its own, so that none finds the memory of another.

    python tests/benchmarks/evaluate_measure.py TASK

`evaluate.py` starts it. TASK is JSON, the arguments of `work`; the last line of the output is JSON too.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components, find_components
from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.judge import CaseOutcome, judge
from medfocal.evaluate.overlap import find_overlaps
from medfocal.evaluate.protocols import ANY_OVERLAP
from medfocal.evaluate.table import CaseTable, Parts
from medfocal.volume import voxel_volume_ml

ROOT = Path(__file__).resolve().parents[2]

COUNT, DENSE = "np.count_nonzero of both masks", "cc3d of both masks, bincount of all voxels"
PARTS, JUDGED, WHOLE = "parts and overlaps", "parts, overlaps and judge", "evaluate_case and judge, diameters included"
DIAMETERS = "both diameters of both masks' parts"
ORDERS = ("C", "F")

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A case made of balls; candidates are found lesions moved and swollen, and false ones.

    Attributes:
        name: What to call it.
        shape: Of the volume.
        num_lesions: Lesions.
        num_found: Lesions that have a candidate.
        num_false: Candidates beside all lesions.
        spacing_mm: Of the voxels.
    """

    name: str
    shape: tuple[int, int, int]
    num_lesions: int
    num_found: int
    num_false: int
    spacing_mm: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        return np.diag([*self.spacing_mm, 1.0])

    def masks(self, order: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Reference and prediction, uint8."""
        rng = np.random.default_rng(0)
        # Centres of cells so wide that no two balls touch.
        cells = np.stack(np.meshgrid(*(np.arange(10, side - 10, 20) for side in self.shape), indexing="ij"), axis=-1)
        centres = rng.permutation(cells.reshape(-1, 3))[: self.num_lesions + self.num_false]
        radii = rng.uniform(1, 4.2, len(centres))
        reference, prediction = (np.zeros(self.shape, np.uint8, order=order) for _ in range(2))
        for number, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
            if number < self.num_lesions:
                _draw(reference, centre, radius)
            if number < self.num_found or number >= self.num_lesions:
                _draw(prediction, centre + rng.permutation([0, 0, 1]), 1.24 * radius)
        return reference, prediction


PROBLEMS = (
    Problem("A", (240, 240, 155), 50, 44, 21, (1.0, 1.0, 1.0)),
    Problem("B", (512, 512, 300), 200, 154, 88, (0.7, 0.7, 1.0)),
)


def _draw(mask: NDArray[np.uint8], centre: NDArray[np.int64], radius: float) -> None:
    reach = np.arange(-7, 8)
    ball = (reach[:, None, None] ** 2 + reach[:, None] ** 2 + reach**2) <= radius**2
    mask[tuple((np.argwhere(ball) - 7 + centre).T)] = 1


def count(reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> int:
    """The least that anything must do: look at every voxel once."""
    return np.count_nonzero(reference) + np.count_nonzero(prediction)


def dense(reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Shared voxels of every pair by volumes of labels."""
    lesions, num_lesions = cc3d.connected_components(reference, connectivity=26, return_N=True)
    candidates, num_candidates = cc3d.connected_components(prediction, connectivity=26, return_N=True)
    pair = lesions.astype(np.int64)
    pair *= num_candidates + 1
    pair += candidates
    shape = num_lesions + 1, num_candidates + 1
    return np.bincount(pair.ravel(order="K"), minlength=shape[0] * shape[1]).reshape(shape)


def find_parts(problem: Problem, reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> list[Components]:
    """Lesions and candidates."""
    return [find_components(mask, problem.affine, confidence=1.0) for mask in (reference, prediction)]


def judge_parts(problem: Problem, reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> CaseOutcome:
    """Parts, overlaps and the default rule, which asks for no diameter and no point."""
    lesions, candidates = find_parts(problem, reference, prediction)
    overlaps = find_overlaps(lesions, candidates)
    table = CaseTable(
        case="case",
        patient="case",
        lesions=_without_diameters(lesions),
        candidates=_without_diameters(candidates),
        overlaps=overlaps,
        candidate_point_lesion=np.zeros(len(candidates), np.int64),
        pair_ignored_voxels=np.zeros(len(overlaps), np.int64),
        voxel_volume_ml=voxel_volume_ml(problem.affine),
        scanned_litres=reference.size * voxel_volume_ml(problem.affine) / 1000,
        shaping=ANY_OVERLAP.shaping(),
        is_mask=True,
    )
    return judge(table, ANY_OVERLAP)


def _without_diameters(parts: Components) -> Parts:
    asked = [
        field.name for field in dataclasses.fields(Parts) if not field.name.startswith(("longest", "axial", "ign"))
    ]
    return Parts(
        **{name: getattr(parts, name) for name in asked},
        longest_diameter_mm=np.full(len(parts), np.nan),
        axial_diameter_mm=np.full(len(parts), np.nan),
        ignored_voxels=np.zeros(len(parts), np.int64),
    )


def judge_case(problem: Problem, reference: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> CaseOutcome:
    """All that the evaluation does to a case that is read."""
    return judge(evaluate_case(reference, prediction, problem.affine, case="case"), ANY_OVERLAP)


def calls_of(problem: Problem, order: str) -> dict[str, Callable[[], object]]:
    """What to measure, by name."""
    masks = problem.masks(order)
    outcome = judge_parts(problem, *masks)
    found = int((outcome.lesion_candidate > 0).sum())
    assert (len(outcome.table.lesions), len(outcome.table.candidates)) == (
        problem.num_lesions,
        problem.num_found + problem.num_false,
    )
    assert found == problem.num_found, "the drawing of the case is wrong"
    # Of fresh parts: they keep their diameters.
    parts = find_parts(problem, *masks)
    return {
        COUNT: lambda: count(*masks),
        DENSE: lambda: dense(*masks),
        PARTS: lambda: find_overlaps(*find_parts(problem, *masks)),
        JUDGED: lambda: judge_parts(problem, *masks),
        WHOLE: lambda: judge_case(problem, *masks),
        DIAMETERS: lambda: [dataclasses.replace(part).longest_diameter_mm for part in parts],
    }


def measure_times(number: int, order: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; the order changes, so that none always follows the same other."""
    calls = calls_of(PROBLEMS[number], order)
    for call in calls.values():
        call()  # imports, and fills caches
    names, shuffle = list(calls), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        shuffle(names)
        for name in names:
            start = time.perf_counter()
            result = calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
            del result
    for name, values in times.items():
        report(f"    {name}: {quartiles(values)} ms")
    return times


def measure_memory(number: int, order: str, method: str) -> float | None:
    """Most bytes that a call needs beyond what was there, in multiples of a uint8 mask; None where nobody can tell."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    # The libraries and what they keep are there once a small case has been judged.
    small = Problem("small", (80, 80, 80), 5, 4, 2, (1.0, 1.0, 1.0))
    calls_of(small, order)[method]()
    call = calls_of(PROBLEMS[number], order)[method]

    def kilobytes(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])

    clear.write_text("5")  # the high-water mark falls to what is resident now
    before = kilobytes("VmRSS")
    result = call()
    peak = (kilobytes("VmHWM") - before) * 1024 / np.prod(PROBLEMS[number].shape)
    del result
    report(f"    {method}: {peak:.3f} of a mask")
    return float(peak)


def describe(number: int) -> dict[str, int]:
    """Voxels of a case."""
    reference, prediction = PROBLEMS[number].masks("C")
    return {"reference": int(np.count_nonzero(reference)), "prediction": int(np.count_nonzero(prediction))}


def quarter(values: list[float]) -> float:
    """Lower quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def quartiles(values: list[float]) -> str:
    """The three of them, for a cell."""
    three = statistics.quantiles(values, n=4, method="inclusive")
    return " / ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in three)


def report(line: str) -> None:
    """Progress, beside the figures on stdout."""
    print(line, file=sys.stderr, flush=True)


def work(measure: str, **task: Any) -> Any:
    """The figures of one measurement: "times", "memory" or "voxels"."""
    return {"times": measure_times, "memory": measure_memory, "voxels": describe}[measure](**task)


if __name__ == "__main__":
    print(json.dumps(work(**json.loads(sys.argv[1]))))
