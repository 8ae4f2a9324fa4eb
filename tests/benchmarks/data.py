"""Training patches from the cache beside MONAI's: speed, memory, building, waiting, visits; writes a page and a figure.

    python tests/benchmarks/data.py [--data FOLDER] [--rounds 12] [--output PAGE.md] [--figure FIGURE.png]

FOLDER holds `ms_flair/` for the visits per lesion, which are left out where it is not there. All else is made in a
temporary folder. About 3 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from data_heads import NUM_HEADS, NUM_LESIONS, SHAPE, SPACING_MM, write_heads
from data_measure import BATCHES, INDEXED, MONAI, OURS, PLAIN, ROOT, TASKS
from data_visits import draw_visits, find_files, measure_visits, render_visits
from evaluate import machine, table
from evaluate_measure import quarter, quartiles, report

#: Patches of a round, so that a round of each source takes about as long as it must to be told.
PATCHES = {OURS: 400, BATCHES: 400, MONAI: 16, INDEXED: 16, PLAIN: 160}
SPEED_MUST, SPEED_AIM = 30, 80
SHARED_MUST_MB, OWN_MUST_MB = 150, 20
WAIT_MUST, WAIT_AIM = 0.02, 0.005
NUM_SOAKED = 2000  # patches before memory is measured
CROWDS = (1, 2, 4)


class Program:
    """A process that does tasks on request."""

    def __init__(self, name: str, folder: Path, *, one_thread: bool = True) -> None:
        environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore")
        if one_thread:
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        words = [sys.executable, str(Path(__file__).with_name("data_measure.py")), str(folder), name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(words, env=environment, **pipes)

    def answer(self) -> Any:
        """The next line; the first comes when all is ready, and tells the memory before."""
        line = self._process.stdout.readline()
        if not line:
            message = f"a program of the benchmark ended: exit status {self._process.wait()}"
            raise RuntimeError(message)
        return json.loads(line)

    def tell(self, **task: Any) -> None:
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def ask(self, **task: Any) -> Any:
        self.tell(**task)
        return self.answer()

    def keep_to(self, core: int) -> None:
        os.sched_setaffinity(self._process.pid, {core})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def programs(names: list[str], folder: Path, **options: Any) -> Iterator[tuple[list[Program], list[dict[str, float]]]]:
    """Start one of each name, and give them and their memory before they opened anything."""
    started = [Program(name, folder, **options) for name in names]
    try:
        yield started, [program.answer() for program in started]
    finally:
        for program in started:
            program.close()


def measure_cache(folder: Path) -> dict[str, Any]:
    """Building with one process and with two in turns, and opening."""
    found: dict[str, Any] = {1: [], 2: [], "open": []}
    with programs([TASKS], folder) as ((program,), _):
        for name, workers in (("cache", 1), ("cache-2", 2), ("cache-3", 1), ("cache-4", 2)):
            found[workers].append(program.ask(what="build", name=name, workers=workers))
        found["open"] = [program.ask(what="open") for _ in range(5)]
    return found


def measure_speed(folder: Path, num_rounds: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, Any]]:
    """Microseconds a patch of each source, taking turns on one core, by CPU and by wall clock; then their memory."""
    times: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in PATCHES}
    core = max(os.sched_getaffinity(0))
    with programs(list(PATCHES), folder) as (started, before):
        sources = dict(zip(PATCHES, started, strict=True))
        for name, program in sources.items():
            program.keep_to(core)
            program.ask(what="patches", num_patches=PATCHES[name])
        for number in range(num_rounds):
            for name in list(sources)[:: 1 if number % 2 else -1]:
                seconds = sources[name].ask(what="patches", num_patches=PATCHES[name])
                for clock, value in seconds.items():
                    times[name][clock].append(1e6 * value / PATCHES[name])
        memory = {
            name: {key: program.ask(what="memory")[key] - then[key] for key in then}
            for (name, program), then in zip(sources.items(), before, strict=True)
        }
    return times, memory


def measure_crowd(name: str, folder: Path, size: int) -> list[dict[str, float]]:
    """Memory of so many processes beyond their imports, all alive and each after the same number of patches."""
    with programs([name] * size, folder) as (started, before):
        for program in started:
            program.tell(what="patches", num_patches=NUM_SOAKED)
        for program in started:
            program.answer()
        after = [program.ask(what="memory") for program in started]
    return [{key: now[key] - then[key] for key in now} for now, then in zip(after, before, strict=True)]


def measure_steps(folder: Path, device: str) -> dict[str, Any]:
    """Steps of training and their waiting."""
    task = {"blocks": 5, "steps": 40} if device == "cuda" else {"blocks": 3, "steps": 4}
    with programs([TASKS], folder, one_thread=False) as ((program,), _):
        return program.ask(what="steps", device=device, **task)


def ratios(times: dict[str, dict[str, list[float]]], peer: str, ours: str, clock: str = "cpu") -> tuple[float, float]:
    """How many times as many patches we make: of lower quartiles, and the median of the rounds."""
    pairs = zip(times[peer][clock], times[ours][clock], strict=True)
    of_rounds = statistics.median(theirs / own for theirs, own in pairs)
    return quarter(times[peer][clock]) / quarter(times[ours][clock]), of_rounds


def render_speed(times: dict[str, dict[str, list[float]]], memory: dict[str, Any]) -> list[str]:
    """A row a source."""
    ours = OURS, BATCHES
    lines = [
        "## Patches of 64^3, ready as tensors",
        "",
        f"Image float32 and label uint8 from {NUM_HEADS} heads of {SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]} voxels of 1 mm",
        f"with {NUM_LESIONS} lesions each, brought to RAS, {SPACING_MM} mm and mean 0 of the non-zero voxels. Half of",
        "the patches are centred on a lesion (ours: drawn among lesions; MONAI's `RandCropByPosNegLabeld`, pos 1, neg",
        '1, num_samples 2: among voxels). All sources take turns on one core. "Patch by patch" is',
        "`LesionBalancedSampler.draw`, `cut_image` and `cut_patch`; batches are what `BatchSource.cut` makes, random",
        "changes apart. MONAI has three rows: plain use; with the indices of lesion and background kept by",
        "`FgBgToIndicesd`; and with plain tensors (no metadata) and `copy_cache=False` besides. Microseconds of CPU a",
        "patch are lower quartile / median / upper quartile of the rounds; a ratio is of lower quartiles, then the",
        "median of the ratios within a round. Own memory is what each holds after all rounds beyond its imports.",
        "",
        *table(["", "us a patch", "patches/s", *(f"{name}: times as fast" for name in ours), "own MB", "mapped MB"]),
    ]
    for name, clocks in times.items():
        peers = [ratios(times, name, own) for own in ours]
        cells = [quartiles(clocks["cpu"]), f"{1e6 / quarter(clocks['cpu']):.0f}"]
        cells += ["" if name in ours else f"{a:.3g}; {b:.3g}" for a, b in peers]
        cells += [f"{memory[name]['rest']:.0f}", f"{memory[name]['cache']:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    wall = "; ".join(f"{value:.3g}" for value in ratios(times, MONAI, OURS, "wall"))
    return [*lines, "", f"By wall clock {OURS} is {wall} times as fast as {MONAI}.", ""]


def render_memory(crowds: dict[tuple[str, int], list[dict[str, float]]]) -> list[str]:
    """A row a number of processes."""
    lines = [
        "## Memory",
        "",
        f"Fresh processes beyond their imports, after {NUM_SOAKED:,} patches each, all alive at once, from",
        "`/proc/self/smaps`; MB of 1e6 bytes, the most of a process. Mapped are pages of cache files, which processes",
        "share: their part of them is the proportional one. Own is all else, of which private memory that no file",
        "backs for itself. The system can take mapped pages back at any time.",
        "",
        *table(["", "processes", "mapped", "its part", "own", "of it anonymous", "mapped by all together"]),
    ]
    for (name, size), found in crowds.items():
        cells = [f"{max(one[key] for one in found):.1f}" for key in ("cache", "cache_pss", "rest", "anonymous")]
        together = sum(one["cache_pss"] for one in found)
        lines.append(f"| {name} | {size} | {' | '.join(cells)} | {together:.1f} |")
    return [*lines, ""]


def render_cache(found: dict[str, Any]) -> list[str]:
    """Building and opening."""
    one, two = ([run["cases"] / run["seconds"] for run in found[workers]] for workers in (1, 2))
    size = found[1][0]["bytes"] / found[1][0]["cases"] / 1e6
    of_case = {key: [1e3 * run[key] / run["cases"] for run in found["open"]] for key in ("digest", "check", "whole")}
    raw = size / (SHAPE[0] * SHAPE[1] * SHAPE[2] / SPACING_MM**3 / 1e6)
    return [
        "## Building and opening the cache",
        "",
        f"`prepare_training` of the {NUM_HEADS} heads, reading included; two processes take seconds to start, so few",
        "cases pay little. Opening a complete cache digests the input files and holds every byte of the cache against",
        "its checksum. Files lie in the cache of the disk.",
        "",
        *table(["", "each run, or quartiles"]),
        f"| cases/s, 1 process | {'; '.join(f'{value:.2f}' for value in one)} |",
        f"| cases/s, 2 processes | {'; '.join(f'{value:.2f}' for value in two)} |",
        f"| MB a case (bytes a voxel) | {size:.1f} ({raw:.2f}) |",
        f"| opening, ms a case | {quartiles(of_case['whole'])} |",
        f"| of it digests of the inputs | {quartiles(of_case['digest'])} |",
        f"| of it checksums of the cache | {quartiles(of_case['check'])} |",
        "",
    ]


def render_steps(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row a device."""
    lines = [
        "## Waiting for data in training",
        "",
        "Batches of 2 with the random changes of `augment=default`, focal loss, AdamW; `network=small` and 64^3 on the",
        "CPU, `network=standard` and 128^3 on CUDA. ms a step, median of epochs: with the next batch; of it waiting",
        "for the batch; and with the same batch again and again, in turns, which shows what making batches takes from",
        "the network. The first batch of an epoch is waited for and stands apart.",
        "",
        *table(["", "step", "waiting", "share", "same batch", "step / same batch", "first batch"]),
    ]
    for device, figures in found.items():
        step, wait, same, first = (statistics.median(figures[key]) for key in ("step", "wait", "same", "first"))
        shares = [a / b for a, b in zip(figures["wait"], figures["step"], strict=True)]
        number = "bfloat16" if figures["bfloat16"] else "float32"
        name = f"{device} ({figures['device']}), {figures['size']}^3, {number}"
        cells = [f"{1e3 * step:.4g}", f"{1e3 * wait:.3g}", f"{statistics.median(shares):.2%} (most {max(shares):.2%})"]
        cells += [f"{1e3 * same:.4g}", f"{step / same:.2f}", f"{1e3 * first:.3g}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "cuda" not in found:
        lines += ["", "Not measured on a GPU: there was none."]
    return [*lines, ""]


def render_targets(
    times: dict[str, dict[str, list[float]]],
    crowds: dict[tuple[str, int], list[dict[str, float]]],
    steps: dict[str, dict[str, Any]],
) -> list[str]:
    """A row a target."""
    lines = ["## Targets", "", *table(["", "must", "aim", "found", "must met", "aim met"])]
    for ours in (OURS, BATCHES):
        speed = min(ratios(times, MONAI, ours))
        verdicts = (verdict(speed >= limit) for limit in (SPEED_MUST, SPEED_AIM))
        cells = [f">= {SPEED_MUST} x", f">= {SPEED_AIM} x", f"{speed:.3g} x", *verdicts]
        lines.append(f"| {ours}, patches/s against {MONAI} | {' | '.join(cells)} |")
    for name in (OURS, BATCHES):
        most = max(crowds[name, 1], key=lambda one: one["rest"])
        met = verdict(most["cache"] <= SHARED_MUST_MB and most["rest"] <= OWN_MUST_MB)
        must = f"<= {SHARED_MUST_MB} + {OWN_MUST_MB}"
        lines.append(f"| {name}, MB mapped + own | {must} |  | {most['cache']:.0f} + {most['rest']:.1f} | {met} |  |")
    limits = f"<= {WAIT_MUST:.1%} | <= {WAIT_AIM:.1%}"
    if "cuda" in steps:
        shares = [a / b for a, b in zip(steps["cuda"]["wait"], steps["cuda"]["step"], strict=True)]
        share = statistics.median(shares)
        found = f"{share:.2%} | {verdict(share <= WAIT_MUST)} | {verdict(share <= WAIT_AIM)}"
    else:
        found = "not measured |  | "
    return [*lines, f"| share of a step on CUDA that waits for data | {limits} | {found} |", ""]


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def versions() -> str:
    """Of what decides times."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "torch", "monai")]
    return ", ".join([f"Python {platform.python_version()}", *packages])


def main(words: list[str]) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="real data, with ms_flair/")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of the sources, at least 2")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/data-cpu.md", help="the page")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/visits.png", help="the figure")
    options = parser.parse_args(words)
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {options.rounds}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        report("heads")
        (folder / "heads").mkdir()
        write_heads(folder / "heads")
        report("building and opening the cache")
        cache = measure_cache(folder)
        report("patches")
        times, memory = measure_speed(folder, options.rounds)
        report("memory")
        sizes = [(OURS, CROWDS[0]), *((BATCHES, size) for size in CROWDS)]
        crowds = {(source, size): measure_crowd(source, folder, size) for source, size in sizes}
        report("steps")
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        steps = {device: measure_steps(folder, device) for device in devices}
        visits = None
        if all(path.exists() for path in find_files(options.data)):
            report("visits")
            visits = measure_visits(options.data, folder / "visits")
    command = " ".join(["python tests/benchmarks/data.py", *words])
    lines = [
        "# Training patches from the cache",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        f"{versions()}. {machine()}, load {load:.1f} before the start and {os.getloadavg()[0]:.1f} at the end.",
        "",
        *render_targets(times, crowds, steps),
        *render_speed(times, memory),
        *render_memory(crowds),
        *render_cache(cache),
        *render_steps(steps),
    ]
    if visits is not None:
        lines += render_visits(visits)
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        draw_visits(visits, options.figure)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
