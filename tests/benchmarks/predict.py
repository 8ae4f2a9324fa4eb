"""Sliding a window over whole cases beside MONAI's inferer and nnU-Net's predictor; writes a page of docs/benchmarks.

    python tests/benchmarks/predict.py --peer PYTHON [--rounds 10] [--large-rounds 3] [--network-rounds 3]
        [--figures FILE] [--output PAGE.md]

PYTHON is the interpreter of an environment with nnunetv2 2.8.1 and MONAI, which need not have medfocal. FILE takes the
figures; parts that stand there are not repeated, so a stopped measurement goes on. About 45 minutes on a CPU, and 14 GB
of memory for the largest of MONAI's (left out where there is less).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from predict_page import Figures, render
from predict_problems import LARGE, MOST_MB, NETWORK, SMALL, Problem, Row

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
#: What must be free beyond what is expected of a measurement, in MB.
SPARE_MB = 2000
#: Voxels called lesion, and the sum of the label, may differ by this share: nnU-Net sums in half precision.
TOLERANCE = 0.01


class Program:
    """A process that predicts on request."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / "predict_peer.py")],
            env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore", nnUNet_compile="f"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if python != sys.executable else None,
            text=True,
        )

    def work(self, task: dict[str, Any]) -> dict[str, float]:
        """One task; see `predict_peer.work`."""
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            message = f"the program ended with {self._process.wait()} at the task {task}"
            raise RuntimeError(message)
        return json.loads(line)

    def end(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def running(python: str) -> Iterator[Program]:
    """A program that is ended."""
    program = Program(python)
    try:
        yield program
    finally:
        program.end()


class Measurement:
    """Who measures what with which interpreters."""

    def __init__(self, peer: str) -> None:
        self._pythons = {"medfocal": sys.executable, "monai": sys.executable, "nnunet": peer}

    def times(self, problem: Problem, num_channels: int, rounds: int) -> dict[str, dict[str, list[float]]]:
        """Figures of each row in each round, in which they take turns; only one ever runs, and each once before."""
        found: dict[str, dict[str, list[float]]] = {}
        with contextlib.ExitStack() as stack:
            programs = {name: stack.enter_context(running(python)) for name, python in self._pythons.items()}
            for number in range(rounds + 1):
                report(f"    round {number} of {rounds}")
                for row in problem.rows[:: 1 if number % 2 else -1]:
                    told = programs[row.program].work(self._task(problem, row, num_channels))
                    for name, value in told.items() if number else ():
                        found.setdefault(row.name, {}).setdefault(name, []).append(value)
        if problem.image == "noise":
            self._check_alike(found)
        return {row.name: found[row.name] for row in problem.rows}

    def memory(self, problem: Problem, num_channels: int) -> dict[str, float | None]:
        """Most memory of each row in a process of its own, in MB; None where there is not so much."""
        found: dict[str, float | None] = {}
        for row in problem.memory_rows:
            expected = problem.expected_mb(row, num_channels)
            report(f"    {row.name}")
            if available_mb() < expected + SPARE_MB:
                found[row.name] = None
                continue
            with running(self._pythons[row.program]) as program:
                told = program.work(self._task(problem, row, num_channels) | {"memory": True})
            found[row.name] = told["peak_mb"]
        return found

    def bounded(self) -> dict[str, float]:
        """Of a large case with many classes in a bounded memory: the peak, with the image, and the seconds."""
        row = LARGE.memory_rows[0]
        with running(sys.executable) as program:
            task = self._task(LARGE, row, LARGE.channels[-1]) | {"memory": True, "max_memory_mb": MOST_MB}
            told = program.work(task)
        return {"peak_mb": told["peak_mb"] + LARGE.image_mb, "seconds": told["seconds"], "network": told["network"]}

    def _task(self, problem: Problem, row: Row, num_channels: int) -> dict[str, Any]:
        return {
            "program": row.program,
            "network": problem.network,
            "channels": num_channels,
            "image": problem.image,
            "shape": problem.shape,
            "is_cropped": row.is_cropped,
            "window": [problem.window] * 3,
            "batch": row.batch,
            "precision": row.precision,
            "stops": row.stops,
            "memory": False,
        }

    @staticmethod
    def _check_alike(found: dict[str, dict[str, list[float]]]) -> None:
        for figure in ("lesion_voxels", "label_sum"):
            counts = {name: rows[figure][0] for name, rows in found.items()}
            if max(counts.values()) > (1 + TOLERANCE) * min(counts.values()):
                message = f"the programs do not find the same: {figure} {counts}"
                raise RuntimeError(message)


def available_mb() -> float:
    """Memory that a process could have now."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("MemAvailable:"))


def parts(measurement: Measurement, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What is measured, by name; the longest last."""
    found: dict[str, Callable[[], Any]] = {}

    def add(problem: Problem, rounds: int) -> None:
        for count in problem.timed_channels:
            found[f"times, {problem.name}, {count}"] = lambda count=count: measurement.times(problem, count, rounds)
        for count in problem.channels if problem.memory_rows else ():
            found[f"memory, {problem.name}, {count}"] = lambda count=count: measurement.memory(problem, count)

    add(SMALL, options.rounds)
    for problem in NETWORK:
        add(problem, options.network_rounds)
    found["bounded"] = measurement.bounded
    add(LARGE, options.large_rounds)
    return found


def report(line: str) -> None:
    """Progress, beside the figures."""
    print(line, file=sys.stderr, flush=True)


def main(words: list[str]) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", required=True, help="interpreter that has nnunetv2 and MONAI")
    parser.add_argument("--rounds", type=int, default=10, help="of the smaller volume, at least 2")
    parser.add_argument("--large-rounds", type=int, default=3, help="of the larger volume, at least 2")
    parser.add_argument("--network-rounds", type=int, default=3, help="with a real network, at least 2")
    parser.add_argument("--figures", type=Path, help="where figures are kept; default nowhere")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/predict-cpu.md", help="the page")
    options = parser.parse_args(words)
    if min(options.rounds, options.large_rounds, options.network_rounds) < 2:
        parser.error("--rounds, --large-rounds and --network-rounds must be at least 2")
    kept = options.figures
    found: Figures = json.loads(kept.read_text()) if kept and kept.exists() else {"load": os.getloadavg()[0]}
    for part, measure in parts(Measurement(options.peer), options).items():
        if part not in found:
            report(part)
            found[part] = measure()
            if kept:
                kept.write_text(json.dumps(found))
    shown = [
        {options.peer: "PYTHON", str(kept): "FILE", str(options.output): "PAGE.md"}.get(word, word) for word in words
    ]
    command = " ".join(["python tests/benchmarks/predict.py", *shown])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(render(found, command=command, peer=options.peer))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
