"""The evaluation of a case beside the plain way: time and memory on one thread; writes a page of docs/benchmarks.

python tests/benchmarks/evaluate.py [--repeats 15] [--runs 2] [--panoptica PYTHON] [--cases 1000] [--output PAGE.md]

PYTHON is the interpreter of an environment with panoptica 2.1.7, which need not have medfocal.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_files import READ
from evaluate_measure import (
    COUNT,
    DENSE,
    DIAMETERS,
    JUDGED,
    ORDERS,
    PARTS,
    PROBLEMS,
    ROOT,
    WHOLE,
    Figures,
    quarter,
    quartiles,
    report,
)

PEER_MUST, PEER_AIM = 0.1, 0.03
FILES_MUST, FILES_AIM = 1.3, 1.1
METHODS = (COUNT, DENSE, PARTS, JUDGED, WHOLE, DIAMETERS)


def measure_run(repeats: int) -> Figures:
    """All measurements, each in a fresh process: by problem and memory order, times by method and extra peaks."""
    run: Figures = {}
    for number, problem in enumerate(PROBLEMS):
        for order in ORDERS:
            report(f"  case {problem.name}, {order} order")
            run[f"{problem.name} {order}"] = {
                "times": in_process(measure="times", number=number, order=order, repeats=repeats),
                "memory": {
                    method: in_process(measure="memory", number=number, order=order, method=method)
                    for method in (DENSE, PARTS, JUDGED, WHOLE)
                },
            }
    return run


PEER, OURS = "panoptica", "medfocal"


def measure_peer(python: str, repeats: int) -> dict[str, Any]:
    """Seconds of panoptica and of ours on case A, taking turns, and what both found."""
    with tempfile.TemporaryDirectory() as folder:
        for role, mask in zip(("reference", "prediction"), PROBLEMS[0].masks("C"), strict=True):
            np.save(Path(folder) / f"{role}.npy", mask)
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        environment["PANOPTICA_CITATION_REMINDER"] = "false"
        script = str(Path(__file__).with_name("evaluate_peer.py"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        programs = {
            name: subprocess.Popen([interpreter, script, name, folder], env=environment, **pipes)
            for name, interpreter in ((PEER, python), (OURS, sys.executable))
        }
        found: dict[str, Any] = {name: {"times": []} for name in programs}
        for round_number in range(repeats):
            names = list(programs)[:: 1 if round_number % 2 else -1]
            for name in names:
                seconds, figures = ask(programs[name])
                found[name]["times"].append(1e3 * seconds)
                found[name]["figures"] = figures
        for program in programs.values():
            program.stdin.close()
            program.wait()
    return found


def ask(program: subprocess.Popen) -> tuple[float, dict[str, float]]:
    """Have one evaluation done."""
    program.stdin.write("\n")
    program.stdin.flush()
    return tuple(json.loads(program.stdout.readline()))


def measure_files(num_cases: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of reading many files and of evaluating them."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    task = json.dumps({"num_cases": num_cases, "repeats": repeats})
    words = [sys.executable, str(Path(__file__).with_name("evaluate_files.py")), task]
    done = subprocess.run(words, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def render_peer(runs: list[dict[str, Any]]) -> list[str]:
    """Times of both, their ratio, and what both found."""
    lines = [
        "## All figures of case A beside panoptica",
        "",
        "Dice, normalised surface distance and HD95 of every pair by panoptica (bipartite, Dice above 0); ours: the",
        "whole table of the case, with diameters, all surface figures of the case and of every pair, and judging. ms,",
        f"one thread each, taking turns; must {PEER_MUST:g}, aim {PEER_AIM:g}.",
        "",
        *table(["", *(f"run {number}" for number in range(1, len(runs) + 1))]),
    ]
    lines += [f"| {name} | {' | '.join(quartiles(run[name]['times']) for run in runs)} |" for name in (PEER, OURS)]
    ratios = [quarter(run[OURS]["times"]) / quarter(run[PEER]["times"]) for run in runs]
    lines.append(f"| ratio of lower quartiles | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |")
    for figure in runs[0][PEER]["figures"]:
        values = [" and ".join(f"{run[name]['figures'][figure]:.6g}" for name in (PEER, OURS)) for run in runs]
        lines.append(f"| {figure}, by both | {' | '.join(values)} |")
    return [*lines, ""]


def render_files(times: dict[str, list[float]], num_cases: int) -> list[str]:
    """Wall times and their ratios."""
    lines = [
        f"## {num_cases:,} cases of A's kind from .nii.gz",
        "",
        "Wall time in s of two processes, each round; the files are in the cache of the disk. Evaluating writes",
        f"every file but the page. A ratio is of a round's times; must {FILES_MUST:g}, aim {FILES_AIM:g}.",
        "",
        *table(["", *(f"round {n}" for n in range(1, len(times[READ]) + 1)), "ratio to reading"]),
    ]
    for name, values in times.items():
        ratios = "; ".join(f"{a / b:.2f}" for a, b in zip(values, times[READ], strict=True))
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {ratios} |")
    return [*lines, ""]


def in_process(**task: Any) -> Any:
    """The figures of `work(task)` in a fresh process with one thread."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if task["measure"] == "memory":  # freed memory goes back to the system, so that the next call counts it
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    words = [sys.executable, str(Path(__file__).with_name("evaluate_measure.py")), json.dumps(task)]
    done = subprocess.run(words, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Target:
    """What must hold and what we aim at, as upper bounds of the worst value of a run."""

    case: str
    what: str
    must: float
    aim: float

    def values(self, run: Figures) -> dict[str, float]:
        """By memory order: a ratio of lower quartiles, or an extra peak."""
        found = {order: run[f"{self.case} {order}"] for order in ORDERS}
        if self.what == "memory":
            peaks = {order: figures["memory"][JUDGED] for order, figures in found.items()}
            return {order: peak for order, peak in peaks.items() if peak is not None}
        times = {order: figures["times"] for order, figures in found.items()}
        return {order: quarter(of_order[JUDGED]) / quarter(of_order[self.what]) for order, of_order in times.items()}

    def __str__(self) -> str:
        if self.what == "memory":
            return f"{self.case}: extra peak of {JUDGED}, in uint8 masks"
        return f"{self.case}: {JUDGED} / {self.what}"


TARGETS = (
    Target("A", DENSE, 0.5, 0.2),
    Target("B", DENSE, 0.15, 0.06),
    Target("A", COUNT, 40, 15),
    Target("B", COUNT, 10, 4),
    Target("A", "memory", 0.5, 0.15),
    Target("B", "memory", 0.5, 0.15),
)


def render(runs: list[Figures], *, repeats: int, command: str, load: float) -> str:
    """The page."""
    lines = [
        "# The evaluation of a case beside the plain way, CPU",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        f"{versions()}. {machine()}, load {load:.1f} before the start, one thread.",
        "",
        "Masks are uint8 and in memory; 26-connected parts; the default rule, any overlap. Time is in ms: lower",
        f"quartile / median / upper quartile of {repeats} rounds through all in changing order. A ratio is of lower",
        "quartiles, then the median of the ratios within a round. Peak is the most memory beyond what was there, in",
        f'multiples of a mask. "{JUDGED}" is all that finds out which lesions are found; diameters are only',
        "measured when asked for.",
        "",
    ]
    for number, problem in enumerate(PROBLEMS):
        voxels = in_process(measure="voxels", number=number)
        num_candidates = problem.num_found + problem.num_false
        lines += [
            f"## Case {problem.name}: {' x '.join(map(str, problem.shape))}",
            "",
            f"{problem.num_lesions} lesions ({voxels['reference']:,} voxels), {problem.num_found} of them found.",
            f"{num_candidates} candidates ({voxels['prediction']:,} voxels).",
            "",
        ]
        for order in ORDERS:
            lines += [f"{'C' if order == 'C' else 'Fortran'} order:", ""]
            lines += [*render_case([run[f"{problem.name} {order}"] for run in runs]), ""]
    lines += ["## Targets", "", "Upper bounds. A run shows its worst value and, in brackets, each.", ""]
    lines += [*render_targets(runs), ""]
    return "\n".join(lines)


def render_case(runs: list[Figures]) -> list[str]:
    """A row a method."""
    names = [f"run {number}" for number in range(1, len(runs) + 1)]
    heads = [f"{name}: {what}" for what in ("ms", f"/ {COUNT}", "/ cc3d", "peak") for name in names]
    lines = table(["", *heads])
    for method in METHODS:
        cells = [quartiles(run["times"][method]) for run in runs]
        cells += [ratio(run["times"], method, base) for base in (COUNT, DENSE) for run in runs]
        peaks = [run["memory"].get(method) for run in runs]
        cells += ["" if peak is None else f"{peak:.3f}" for peak in peaks]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def ratio(times: dict[str, list[float]], method: str, base: str) -> str:
    """Of lower quartiles; the median of the ratios within a round."""
    pairs = [a / b for a, b in zip(times[method], times[base], strict=True)]
    return f"{quarter(times[method]) / quarter(times[base]):.3g}; {statistics.median(pairs):.3g}"


def render_targets(runs: list[Figures]) -> list[str]:
    """A row a target."""
    names = [f"run {number}" for number in range(1, len(runs) + 1)]
    lines = table(["", "must", "aim", *names, "must met", "aim met"])
    for target in TARGETS:
        found = [target.values(run) for run in runs]
        worst = [max(values.values()) for values in found if values]
        verdicts = [
            ("yes" if max(worst) <= limit else "**no**") if worst else "not measured"
            for limit in (target.must, target.aim)
        ]
        cells = [
            f"{max(values.values()):.3g} ({'; '.join(f'{order}: {value:.3g}' for order, value in values.items())})"
            if values
            else "not measured"
            for values in found
        ]
        lines.append(f"| {target} | {target.must:g} | {target.aim:g} | {' | '.join([*cells, *verdicts])} |")
    return lines


def table(heads: list[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]


def versions() -> str:
    """Of what decides times."""
    names = ("numpy", "scipy", "connected-components-3d")
    packages = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([f"Python {platform.python_version()}", *packages])


def machine() -> str:
    """Processors in words."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"


def main(words: list[str]) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds, at least 2")
    parser.add_argument("--runs", type=int, default=2, help="how often all is measured")
    parser.add_argument("--panoptica", metavar="PYTHON", help="interpreter that has panoptica")
    parser.add_argument("--cases", type=int, default=1000, help="cases to read from files; 0: none")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/evaluate-cpu.md", help="the page")
    options = parser.parse_args(words)
    if options.repeats < 2 or options.runs < 1:
        parser.error(f"--repeats must be at least 2 and --runs 1, got {options.repeats} and {options.runs}")
    load, runs = os.getloadavg()[0], []
    for number in range(1, options.runs + 1):
        report(f"run {number} of {options.runs}")
        runs.append(measure_run(options.repeats))
    more: list[str] = []
    if options.panoptica:
        report("panoptica")
        more += render_peer([measure_peer(options.panoptica, options.repeats) for _ in range(options.runs)])
    if options.cases:
        report("files")
        more += render_files(measure_files(options.cases, 3), options.cases)
    words = [word if word != options.panoptica else "PYTHON" for word in words]
    command = " ".join(["python tests/benchmarks/evaluate.py", *words])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join([render(runs, repeats=options.repeats, command=command, load=load), *more]))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
