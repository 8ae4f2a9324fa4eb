"""Augmentation of 64^3 patches beside batchgeneratorsv2 and MONAI on one core; writes a page of docs/benchmarks.

python tests/benchmarks/augment.py --peer PYTHON [--rounds 15] [--patches 60] [--channels 1 4] [--output PAGE.md]

PYTHON is the interpreter of an environment with batchgeneratorsv2 0.3.6, which need not have medfocal. All three
programs get the same patches of 88^3 and cut 64^3 from them, with nnU-Net's probabilities and ranges. They take turns,
one waiting while another works; a ratio is of quartiles of the rounds' processor times, which other work on the
machine lengthens less than it does the clock's.
"""

from __future__ import annotations

import argparse
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
from augment_peer import PROBABILITIES, SIZE

ROOT = Path(__file__).parents[2]
INPUT = (88, 88, 88)
OURS, PEERS = "medfocal", ("batchgeneratorsv2", "monai")
TARGETS = {"batchgeneratorsv2": (1.3, 1.8), "monai": (2.0, 3.0)}
NUM_INPUTS = 8

Times = dict[str, dict[str, list[float]]]


def measure(peer: str, num_channels: int, *, rounds: int, num_patches: int) -> Times:
    """Milliseconds a patch in each round, by kind and program."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), num_channels)
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        script = str(Path(__file__).with_name("augment_peer.py"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        interpreters = {OURS: sys.executable, "batchgeneratorsv2": peer, "monai": sys.executable}
        programs = {
            name: subprocess.Popen([interpreter, script, name, folder], env=environment, **pipes)
            for name, interpreter in interpreters.items()
        }
        found: Times = {kind: {name: [] for name in programs} for kind in ("all", *PROBABILITIES)}
        for kind, times in found.items():
            print(f"  {num_channels} channels, {kind}", file=sys.stderr, flush=True)
            few = {"kind": kind, "num_patches": num_patches if kind == "all" else max(1, num_patches // 6)}
            for number in range(rounds):
                for name in list(programs)[:: 1 if number % 2 else -1]:
                    times[name].append(ask(programs[name], few))
        for program in programs.values():
            program.stdin.close()
            program.wait()
    return found


def write_inputs(folder: Path, num_channels: int) -> None:
    """Noise with a ball for a head, 0 around it; a label of balls in it, 1 voxel in 300."""
    rng = np.random.default_rng(0)
    grid = np.indices(INPUT).reshape(3, 1, *INPUT) - np.array(rng.uniform(20, 68, (3, NUM_INPUTS, 1, 1, 1)))
    head = (grid**2).sum(axis=0) < 45**2
    image = rng.normal(0, 1, (NUM_INPUTS, num_channels, *INPUT)).astype(np.float32) * head[:, None]
    label = np.zeros((NUM_INPUTS, 1, *INPUT), np.uint8)
    for case in label[:, 0]:
        for _ in range(10):
            centre = rng.uniform(10, 78, 3)
            squared = ((np.indices(INPUT).T - centre) ** 2).sum(axis=-1).T
            case[np.sqrt(squared) < rng.uniform(2, 6)] = 1
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)


def ask(program: subprocess.Popen, task: dict[str, Any]) -> float:
    """Have some patches changed."""
    program.stdin.write(json.dumps(task) + "\n")
    program.stdin.flush()
    return json.loads(program.stdout.readline())


def quartiles(values: list[float]) -> list[float]:
    """The three of them."""
    return statistics.quantiles(values, n=4, method="inclusive")


def ratios(times: dict[str, list[float]], peer: str) -> list[float]:
    """How many times as long as ours: lower quartiles, medians, upper quartiles."""
    return [theirs / ours for theirs, ours in zip(quartiles(times[peer]), quartiles(times[OURS]), strict=True)]


def cell(values: list[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in values)


def render(found: dict[int, Times], *, command: str, load: float) -> str:
    """The page."""
    names = (OURS, *PEERS)
    lines = [
        "# Augmentation beside batchgeneratorsv2 and MONAI, CPU",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        f"{versions()}. {machine()}, load {load:.1f} before the start, one thread.",
        "",
        f"Patches of {SIZE[0]}^3 cut and warped from the same {INPUT[0]}^3, image and label. Probabilities and",
        "ranges are those of nnU-Net's trainer in all three; MONAI has one probability for turning and scaling",
        "together. Milliseconds of processor time a patch: lower quartile / median / upper quartile of the rounds,",
        "in which the programs take turns. Ratios are of these three.",
        "",
        "## The whole pipeline",
        "",
        "| channels | " + " | ".join(f"{name}: ms" for name in names) + " | patches per second | "
        + " | ".join(f"{peer} / {OURS}" for peer in PEERS) + " |",
        "| --- |" + " --- |" * (len(names) + 1 + len(PEERS)),
    ]  # fmt: skip
    for num_channels, kinds in found.items():
        times = kinds["all"]
        cells = [cell(quartiles(times[name])) for name in names]
        cells.append(f"{1e3 / quartiles(times[OURS])[1]:.0f}")
        cells += [cell(ratios(times, peer)) for peer in PEERS]
        lines.append(f"| {num_channels} | {' | '.join(cells)} |")
    lines += ["", "| target | must | aim | found, medians |", "| --- | --- | --- | --- |"]
    for peer, (must, aim) in TARGETS.items():
        medians = [ratios(kinds["all"], peer)[1] for kinds in found.values()]
        verdict = "aim met" if min(medians) >= aim else "must met" if min(medians) >= must else "not met"
        lines.append(f"| times as long as ours, {peer} | {must} | {aim} | {cell(medians)}: {verdict} |")
    for num_channels, kinds in found.items():
        lines += ["", f"## Each kind alone, in every patch and channel: {num_channels} channels", ""]
        lines += ["| kind | " + " | ".join(f"{name}: ms" for name in names) + " |", "| --- |" + " --- |" * len(names)]
        for kind in PROBABILITIES:
            lines.append(f"| {kind} | {' | '.join(cell(quartiles(kinds[kind][name])) for name in names)} |")
    return "\n".join([*lines, ""])


def versions() -> str:
    """Of what decides times."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai", "numpy")]
    return ", ".join([f"Python {platform.python_version()}", *packages, "batchgeneratorsv2 0.3.6"])


def machine() -> str:
    """Processors in words."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"


def main(words: list[str]) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", required=True, help="interpreter that has batchgeneratorsv2")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--patches", type=int, default=60, help="of a program in a round; a sixth for a single kind")
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/augment-cpu.md", help="the page")
    options = parser.parse_args(words)
    if options.rounds < 2 or options.patches < 1:
        parser.error(f"--rounds must be at least 2 and --patches 1, got {options.rounds} and {options.patches}")
    load = os.getloadavg()[0]
    found = {
        number: measure(options.peer, number, rounds=options.rounds, num_patches=options.patches)
        for number in options.channels
    }
    words = [word if word != options.peer else "PYTHON" for word in words]
    command = " ".join(["python tests/benchmarks/augment.py", *words])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(render(found, command=command, load=load))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
