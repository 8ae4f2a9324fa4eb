"""Focal loss beside its peers: time and memory of forward and backward; writes a page of docs/benchmarks.

    python tests/benchmarks/loss.py [--device cpu|cuda] [--repeats 30] [--runs 2] [--output PAGE.md]

Needs torch and numpy, for a GPU Triton too; without MONAI its rows and the training step are not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import importlib
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from loss_measure import (
    BCE,
    CE,
    CE_SMOOTH,
    DICE,
    FOCAL,
    FOCAL_SMOOTH,
    HAS_MONAI,
    MONAI_DICE,
    ONE_TENSOR,
    PROBLEMS,
    ROOT,
    THREADS,
    Figures,
    Problem,
    base_of,
    quarter,
    quartiles,
    report,
)


def measure_run(device: str, repeats: int) -> Figures:
    """All measurements, each in fresh processes: times by problem and threads, memory by problem, and the step."""
    times, memory = [], []
    for number, problem in enumerate(PROBLEMS[device]):
        for threads in THREADS[device]:
            report(f"  time, {problem}, {counted(threads)}")
            found = in_process(measure="times", device=device, number=number, repeats=repeats, threads=threads)
            times.append({"problem": number, "threads": threads, "times": found})
        report(f"  memory, {problem}")
        # Resident memory is that of a process that has done nothing else; CUDA counts allocations itself.
        methods = [ONE_TENSOR, *found]
        found = {}
        for part in [[method] for method in methods] if device == "cpu" else [methods]:
            found |= in_process(measure="memory", device=device, number=number, methods=part, threads=threads)
        memory.append(found)
    report("  a training step")
    step = in_process(measure="step", device=device, repeats=repeats, threads=THREADS[device][-1])
    return {"device": device, "times": times, "memory": memory, "step": step}


def in_process(**task: Any) -> Any:
    """The figures of `work(task)` in a fresh process."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if task["threads"]:
        environment["OMP_NUM_THREADS"] = str(task["threads"])
    if task["measure"] == "memory":  # freed memory goes back to the system, so that the next call counts it
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    words = [sys.executable, str(Path(__file__).with_name("loss_measure.py")), json.dumps(task)]
    done = subprocess.run(words, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Target:
    """What must hold and what we aim at, as upper bounds of the worst value of a run."""

    what: str
    must: float
    aim: float
    values: Callable[[Figures], dict[str, float]]


def ratios(
    device: str, method: str, base: str, problems: Iterable[Problem] | None = None
) -> Callable[[Figures], dict[str, float]]:
    """Lower quartile against lower quartile, wherever a run has both."""
    wanted = set(problems or PROBLEMS[device])

    def values(run: Figures) -> dict[str, float]:
        found = {}
        for row in run["times"] if run["device"] == device else []:
            problem, times = PROBLEMS[device][row["problem"]], row["times"]
            if problem in wanted and method in times and base in times:
                found[f"{problem.brief}, {counted(row['threads'])}"] = quarter(times[method]) / quarter(times[base])
        return found

    return values


def peaks(device: str, method: str, problems: Iterable[Problem] | None = None) -> Callable[[Figures], dict[str, float]]:
    """Extra peaks of a method, in multiples of the logits' bytes."""
    wanted = set(problems or PROBLEMS[device])

    def values(run: Figures) -> dict[str, float]:
        if run["device"] != device:
            return {}
        rows = zip(PROBLEMS[device], run["memory"], strict=True)
        found = {problem.brief: row[method]["peak"] for problem, row in rows if problem in wanted}
        return {name: peak for name, peak in found.items() if peak is not None}

    return values


def steps(run: Figures) -> dict[str, float]:
    """The training step with the focal loss against that with cross-entropy."""
    return {"step": quarter(run["step"][FOCAL]) / quarter(run["step"][CE])} if run["step"] else {}


def targets() -> list[Target]:
    """In the order of the page."""
    compiled, eager = f"{FOCAL}, compiled", f"{FOCAL}, eager"
    smooth, dice = f"{FOCAL_SMOOTH}, compiled", f"{DICE}, compiled"
    *_, single, half = PROBLEMS["cuda"]
    return [
        Target(f"CPU, softmax: {compiled} / {CE}", 0.6, 0.35, ratios("cpu", compiled, CE)),
        Target(f"CPU, softmax: {smooth} / {CE_SMOOTH}", 0.7, 0.3, ratios("cpu", smooth, CE_SMOOTH)),
        Target(f"CPU, sigmoid: {compiled} / {BCE}", 0.8, 0.5, ratios("cpu", compiled, BCE)),
        Target(f"CPU, softmax: {eager} / {CE}", 1.8, 1.3, ratios("cpu", eager, CE)),
        Target(f"CPU, sigmoid: {eager} / {BCE}", 2.4, 1.6, ratios("cpu", eager, BCE)),
        Target(f"CPU: extra peak of {compiled}", 1.5, 1.1, peaks("cpu", compiled)),
        Target(f"CPU: extra peak of {eager}", 2.5, 1.5, peaks("cpu", eager)),
        Target(f"CPU: {dice} / {MONAI_DICE}", 0.35, 0.2, ratios("cpu", dice, MONAI_DICE)),
        Target(f"training step: {FOCAL} / {CE}", 1.01, 1.0, steps),
        Target(f"CUDA, {single}: {compiled} / {CE}", 1.0, 0.6, ratios("cuda", compiled, CE, [single])),
        Target(f"CUDA, {half}: {compiled} / {CE}", 0.7, 0.35, ratios("cuda", compiled, CE, [half])),
        Target(f"CUDA, both: extra peak of {compiled}", 1.25, 1.05, peaks("cuda", compiled, [single, half])),
    ]


def render_targets(runs: list[Figures]) -> list[str]:
    """A row a target: the worst value of each run, and all of them where there are several."""
    lines = table(["", "must", "aim", *run_names(runs), "must met", "aim met"])
    for target in targets():
        found = [target.values(run) for run in runs]
        worst = [max(values.values()) for values in found if values]
        verdicts = [
            ("yes" if max(worst) <= limit else "**no**") if worst else "not measured"
            for limit in (target.must, target.aim)
        ]
        cells = [worst_of(values) for values in found]
        lines.append(f"| {target.what} | {target.must:g} | {target.aim:g} | {' | '.join([*cells, *verdicts])} |")
    return lines


def worst_of(values: dict[str, float]) -> str:
    """The largest value, then every one by name."""
    if not values:
        return "not measured"
    each = "" if len(values) == 1 else " (" + "; ".join(f"{name}: {value:.3f}" for name, value in values.items()) + ")"
    return f"{max(values.values()):.3f}{each}"


def render(runs: list[Figures], *, repeats: int, command: str, load: float) -> str:
    """The page."""
    device = runs[0]["device"]
    absent = ["CUDA" if device == "cpu" else "CPU", *([] if HAS_MONAI else ["MONAI (not installed)"])]
    lines = [
        f"# The focal loss beside its peers, {'CPU' if device == 'cpu' else gpu_name()}",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        f"{versions()}. {machine(device)}, load {load:.1f} before the start. Not measured: {' and '.join(absent)}.",
        "",
        "Time is of forward and backward to the logits, in ms: lower quartile / median / upper quartile of",
        f"{repeats} rounds through all losses in changing order. Logits are normal, labels int64 with 2 % foreground;",
        "bfloat16 is under autocast. A ratio is lower quartile by lower quartile of the base, then the median (and",
        "quartiles) of the ratios within a round. Each table is of a process of its own.",
        "",
        "Peak is the most memory beyond what was there, the gradient included; saved is what the graph keeps for the",
        "backward pass beyond logits and target. Both are multiples of the logits' bytes.",
        "",
    ]
    for number, row in enumerate(runs[0]["times"]):
        lines += [f"## {PROBLEMS[device][row['problem']]}, {counted(row['threads'])}", ""]
        lines += [*render_times(runs, [run["times"][number]["times"] for run in runs]), ""]
    for number, problem in enumerate(PROBLEMS[device]):
        lines += [f"## Memory, {problem}", "", *render_memory(runs, number), ""]
    lines += [
        "## A training step",
        "",
        "Forward, loss, backward and AdamW of the U-Net of `conf/network/small.yaml`, batch (2, 1, 64, 64, 64),",
        f"float32, {counted(THREADS[device][-1])}, {repeats} rounds; focal with `backend='auto'`.",
        "",
        *(render_times(runs, [run["step"] for run in runs]) if runs[0]["step"] else ["Not measured."]),
        "",
        "## Targets",
        "",
        "All are upper bounds: of ratios of lower quartiles, and of peaks in multiples of the logits' bytes. A run",
        "shows its worst value and, in brackets, every one.",
        "",
        *render_targets(runs),
        "",
    ]
    return "\n".join(lines)


def render_times(runs: list[Figures], times: list[dict[str, list[float]]]) -> list[str]:
    """A row a method: milliseconds and ratios of each run."""
    names = run_names(runs)
    lines = table(["", "base", *(f"{name}: ms" for name in names), *(f"{name}: ratio" for name in names)])
    for method in times[0]:
        base = base_of(method, times[0])
        cells = [quartiles(of_run[method]) for of_run in times]
        for of_run in times:
            pairs = [a / b for a, b in zip(of_run[method], of_run[base], strict=True)]
            low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
            ratio = quarter(of_run[method]) / quarter(of_run[base])
            cells.append("1" if method == base else f"{ratio:.2f}; {middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {method} | {'' if method == base else base} | {' | '.join(cells)} |")
    return lines


def render_memory(runs: list[Figures], number: int) -> list[str]:
    """A row a method."""
    names = run_names(runs)
    lines = table(["", *(f"{name}: peak" for name in names), *(f"{name}: saved" for name in names)])
    for method in runs[0]["memory"][number]:
        rows = [run["memory"][number][method] for run in runs]
        cells = ["not measured" if row["peak"] is None else f"{row['peak']:.2f}" for row in rows]
        cells += [f"{row['saved']:.2f}" for row in rows]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def table(heads: list[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]


def run_names(runs: list[Figures]) -> list[str]:
    """Heads of columns."""
    return [f"run {number}" for number in range(1, len(runs) + 1)]


def counted(threads: int) -> str:
    """A number of threads in words."""
    threads = threads or torch.get_num_threads()
    return f"{threads} thread{'' if threads == 1 else 's'}"


def versions() -> str:
    """Of what decides times."""
    names = [name for name in ("torch", "triton", "monai") if importlib.util.find_spec(name)]
    packages = [f"{name} {importlib.import_module(name).__version__}" for name in names]
    return ", ".join([f"Python {platform.python_version()}", *packages])


def machine(device: str) -> str:
    """Processors in words."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    cpu = f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"
    return cpu if device == "cpu" else f"{gpu_name()}, CUDA {torch.version.cuda}; {cpu}"


def gpu_name() -> str:
    """Of the first GPU."""
    return torch.cuda.get_device_name(0)


def main(words: list[str]) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=30, help="rounds through all losses, at least 2")
    parser.add_argument("--runs", type=int, default=2, help="how often all is measured")
    parser.add_argument("--output", type=Path, help="the page; default docs/benchmarks/loss-DEVICE.md")
    options = parser.parse_args(words)
    if options.repeats < 2 or options.runs < 1:
        parser.error(f"--repeats must be at least 2 and --runs 1, got {options.repeats} and {options.runs}")
    load, runs = os.getloadavg()[0], []
    for number in range(1, options.runs + 1):
        report(f"run {number} of {options.runs} on {options.device}")
        runs.append(measure_run(options.device, options.repeats))
    slug = "cpu" if options.device == "cpu" else re.sub(r"[^a-z0-9]+", "-", gpu_name().lower()).strip("-")
    command = " ".join(["python tests/benchmarks/loss.py", *words])
    page = options.output or ROOT / f"docs/benchmarks/loss-{slug}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(runs, repeats=options.repeats, command=command, load=load))
    print(f"wrote {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
