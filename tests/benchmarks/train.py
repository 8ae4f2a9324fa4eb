"""Whole training steps beside nnU-Net's and MONAI's, data included; writes a page of docs/benchmarks.

    python tests/benchmarks/train.py --peer PYTHON [--device cpu|cuda] [--rounds 10] [--steps 4] [--cases 16]
        [--folder FOLDER] [--output PAGE.md]

PYTHON is the interpreter of an environment with nnunetv2 2.8.1, which need not have medfocal. FOLDER takes what is
made; parts that are finished there are not repeated, so a stopped measurement goes on. About 45 minutes on a CPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_cases import CONFIGURATION, same_plan
from train_measure import HERE, ROOT, call, measure_memory, measure_steps, report, seconds_to_first_step
from train_page import RANK_STEPS, render
from train_programs import (
    NNUNET_DEEP,
    NUMBERS,
    OURS,
    SETUPS,
    TRAINER,
    Figures,
    Setup,
    choices,
    compared,
    nnunet,
    nnunet_folders,
    our_words,
    ours,
)

WARM_UP = 4  # steps that fill queues and are not timed
RANK_EPOCHS, RANK_TURNS = 4, 3
FIRST_STEPS = 3  # turns


def prepare(setup: Setup, num_cases: int) -> None:
    """Cases, nnU-Net's plan and preprocessed data, and our cache, where they are not there."""
    if not (setup.folder / "raw").exists():
        report("cases")
        shutil.rmtree(setup.folder / "phantoms", ignore_errors=True)
        shape = ",".join(map(str, setup.shape))
        words = [sys.executable, str(HERE / "train_cases.py"), str(setup.folder), str(num_cases), shape]
        call(words, os.sched_getaffinity(0), setup.folder / "cases.txt")
    if not (setup.folder / "preprocessed").exists():
        report("nnU-Net's plan and preprocessed data")
        preprocess(setup, setup.folder)
    if not (setup.folder / "cache").exists():
        report("our cache")
        seconds_to_first_step(ours(setup, OURS, 2), os.sched_getaffinity(0), setup.folder)


def preprocess(setup: Setup, folder: Path) -> float:
    """nnU-Net's own command with two processes; seconds."""
    command = str(Path(setup.peer).with_name("nnUNetv2_plan_and_preprocess"))
    words = [command, "-d", "1", "-c", CONFIGURATION, "-npfp", "2", "-np", "2"]
    environment = nnunet_folders(folder) | {"nnUNet_raw": str(setup.folder / "raw")}
    seconds = call(words, setup.some_cores(2), setup.folder / "preprocess.txt", **environment)
    same_plan(folder / "preprocessed", setup.patch, list(setup.channels))
    return seconds


def measure_first_steps(setup: Setup) -> dict[str, list[float]]:
    """Seconds from the raw files to the end of the first step, in turns, nothing prepared before."""
    found: dict[str, list[float]] = {OURS: [], "preprocess": [], NNUNET_DEEP: []}
    cores = setup.some_cores(2)
    for turn in range(FIRST_STEPS):
        report(f"  turn {turn + 1} of {FIRST_STEPS}")
        fresh = setup.folder / f"fresh-{next(NUMBERS)}"
        fresh.mkdir()
        trainer = ours(setup, OURS, 2, f"paths.cache={fresh / 'cache'}", "cache.workers=2")
        found[OURS].append(seconds_to_first_step(trainer, cores, fresh))
        found["preprocess"].append(preprocess(setup, fresh))
        folders = nnunet_folders(fresh)
        trainer = nnunet(setup, NNUNET_DEEP, 2, TRAINER, **folders)
        found[NNUNET_DEEP].append(found["preprocess"][-1] + seconds_to_first_step(trainer, cores, fresh))
        shutil.rmtree(fresh)
    return found


def measure_ranks(setup: Setup) -> dict[str, list[float]]:
    """Patches a second of one process and of two that share each batch out, one thread each, in turns."""
    found: dict[str, list[float]] = {"1": [], "2": []}
    for turn in range(RANK_TURNS):
        report(f"  turn {turn + 1} of {RANK_TURNS}")
        for ranks in ("1", "2") if turn % 2 else ("2", "1"):
            words = our_words(setup, f"trainer.steps_per_epoch={RANK_STEPS}", f"trainer.max_epochs={RANK_EPOCHS}")
            words += ["trainer.num_threads=1"]
            torchrun = ["torch.distributed.run", f"--nproc-per-node={ranks}", "-m"] if ranks == "2" else []
            command = [sys.executable, "-m", *torchrun, "medfocal.cli", "train", *words]
            call(command, setup.some_cores(2), setup.folder / f"ranks-{ranks}.txt", OMP_NUM_THREADS="1")
            name = next(word for word in words if word.startswith("run.id=")).removeprefix("run.id=")
            with (setup.folder / "runs/default" / name / "metrics.csv").open() as file:
                rows = list(csv.DictReader(file))
            found[ranks] += [float(row["patches_per_second"]) for row in rows[1:]]
    return found


def parts(setup: Setup, rounds: int, steps: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name, in the order of the page."""
    most, place = max(setup.cores), setup.folder / "logs"
    found: dict[str, Callable[[], Any]] = {}
    task = {"rounds": rounds, "steps": steps, "warm_up": WARM_UP}
    for count in setup.cores:
        found[f"steps, {count}"] = lambda count=count: measure_steps(
            compared(setup, count), setup.some_cores(count), place / f"steps-{count}", **task
        )
    found["memory"] = lambda: {
        trainer.name: measure_memory(trainer, setup.some_cores(most), setup.folder, steps=WARM_UP + steps)
        for trainer in compared(setup, most)
    }
    found["choices"] = lambda: measure_steps(choices(setup, most), setup.some_cores(most), place / "choices", **task)
    if setup.device == "cpu":
        found["ranks"] = lambda: measure_ranks(setup)
    found["first step"] = lambda: measure_first_steps(setup)
    return found


def main(words: list[str]) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", required=True, help="interpreter that has nnunetv2")
    parser.add_argument("--device", choices=tuple(SETUPS), default="cpu")
    parser.add_argument("--rounds", type=int, default=10, help="of the programs, at least 2")
    parser.add_argument("--steps", type=int, default=4, help="of a program in a round")
    parser.add_argument("--cases", type=int, default=16, help="phantoms")
    parser.add_argument("--folder", type=Path, help="where all is made, and kept; default a temporary one")
    parser.add_argument("--output", type=Path, help="the page; default docs/benchmarks/train-DEVICE.md")
    options = parser.parse_args(words)
    if options.rounds < 2 or options.steps < 1:
        parser.error(f"--rounds must be at least 2 and --steps 1, got {options.rounds} and {options.steps}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        setup = Setup(device=options.device, folder=folder, peer=options.peer, **SETUPS[options.device])
        prepare(setup, options.cases)
        kept = folder / "figures.json"
        found: Figures = json.loads(kept.read_text()) if kept.exists() else {}
        for part, measure in parts(setup, options.rounds, options.steps).items():
            if part not in found:
                report(part)
                found[part] = measure()
                kept.write_text(json.dumps(found))
        shown = [
            "PYTHON" if word == options.peer else "FOLDER" if word == str(options.folder) else word for word in words
        ]
        command = " ".join(["python tests/benchmarks/train.py", *shown])
        page = options.output or ROOT / f"docs/benchmarks/train-{options.device}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(setup, found, command=command, load=load))
    print(f"wrote {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
