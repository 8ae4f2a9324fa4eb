"""Whole training steps beside nnU-Net's and those of MONAI's tutorials, data included; writes a page of docs/benchmarks.

    python tests/benchmarks/train.py --peer PYTHON [--device cpu|cuda] [--rounds 10] [--steps 4] [--cases 16]
        [--folder FOLDER] [--output PAGE.md]

PYTHON is the interpreter of an environment with nnunetv2 2.8.1, which need not have medfocal. FOLDER takes what is
made; parts that are finished there are not repeated, so a stopped measurement goes on. About 45 minutes on a CPU.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime as dt
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_cases import CONFIGURATION, NAME, same_plan
from train_measure import (
    HERE,
    ROOT,
    Trainer,
    call,
    measure_memory,
    measure_steps,
    report,
    seconds_to_first_step,
)

OURS, OURS_32, OURS_DEEP = "medfocal", "medfocal, float32", "medfocal, deep supervision"
NNUNET, NNUNET_DEEP = "nnU-Net, no deep supervision", "nnU-Net"
MONAI = "MONAI's tutorials"
TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
SHALLOW_TRAINER = f"{TRAINER.rpartition('.')[0]}.variants.network_architecture.nnUNetTrainerNoDeepSupervision"
#: What each of ours is held against: the same network.
PEERS = {OURS: (NNUNET, MONAI), OURS_32: (NNUNET, MONAI), OURS_DEEP: (NNUNET_DEEP,)}
SPEED_MUST, SPEED_AIM = 1.0, {"cpu": 1.3, "cuda": 1.15}
MEMORY_MUST, FIRST_STEP_AIM = 1.0, 1 / 3
WARM_UP = 4  # steps that fill queues and are not timed
RANK_STEPS, RANK_EPOCHS, RANK_TURNS = 8, 4, 3
FIRST_STEPS = 3  # turns

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all programs get alike.

    Attributes:
        device: Where they compute.
        patch: Voxels along each axis; two patches make a batch.
        channels: Features of the network's levels.
        shape: Of a case.
        cores: How many cores each program gets; one measurement for each number.
        folder: Of all that is made.
        peer: Interpreter of nnU-Net.
    """

    device: str
    patch: int
    channels: tuple[int, ...]
    shape: tuple[int, int, int]
    cores: tuple[int, ...]
    folder: Path
    peer: str

    def some_cores(self, count: int) -> set[int]:
        """The last ones: the first serves the system."""
        return set(sorted(os.sched_getaffinity(0))[-count:])


SETUPS = {
    "cpu": {"patch": 64, "channels": (16, 32, 64, 128, 256), "shape": (160, 160, 96), "cores": (2, 1)},
    "cuda": {"patch": 128, "channels": (32, 64, 128, 256, 320), "shape": (192, 192, 144), "cores": (8,)},
}
NUMBERS = itertools.count()


def our_words(setup: Setup, *words: str) -> list[str]:
    """Settings of `medfocal train`: those that make it alike, then some more; the rest is as by default."""
    return [
        f"data.dataset={setup.folder / 'raw' / NAME}",
        f"paths.runs={setup.folder / 'runs'}",
        f"paths.cache={setup.folder / 'cache'}",
        f"run.id=run-{os.getpid()}-{next(NUMBERS)}",
        f"device={setup.device}",
        *same_settings(setup),
        "trainer.steps_per_epoch=100000",
        "trainer.checkpoint_minutes=600",
        *words,
    ]


def same_settings(setup: Setup) -> list[str]:
    """Those that make the programs alike."""
    return [
        f"sampling.patch_size=[{setup.patch},{setup.patch},{setup.patch}]",
        f"network.channels=[{','.join(map(str, setup.channels))}]",
        "trainer.batch_size=2",
        "augment=default",
    ]


def ours(setup: Setup, name: str, cores: int, *words: str) -> Trainer:
    """`medfocal train`."""
    words = (*words, f"trainer.num_threads={cores}")
    task = json.dumps({"words": our_words(setup, *words)})
    command = (sys.executable, str(HERE / "train_peer.py"), "medfocal", task)
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(setup.folder / f"compiled-{next(NUMBERS)}")}
    return Trainer(name, command, cores, "none, 1 thread for data", environment)


def nnunet(setup: Setup, name: str, cores: int, module: str, **environment: str) -> Trainer:
    """`nnUNetv2_train`; on one core its data are made in turns with the steps, elsewhere by a process of their own."""
    workers = min(cores - 1, 12)
    task = json.dumps({"module": module, "threads": cores, "device": setup.device})
    command = (setup.peer, str(HERE / "train_peer.py"), "nnunet", task)
    extra = nnunet_folders(setup.folder) | {"nnUNet_n_proc_DA": str(workers)} | environment
    validating = max(1, workers // 2)
    return Trainer(
        name, command, cores, f"{workers} for data, {validating} for validation" if workers else "none", extra
    )


def nnunet_folders(folder: Path) -> dict[str, str]:
    """Where nnU-Net reads and writes."""
    return {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}


def monai(setup: Setup, cores: int) -> Trainer:
    """The loop of the tutorials."""
    workers = min(cores - 1, 4)
    task = {"raw": str(setup.folder / "raw" / NAME), "patch": setup.patch, "channels": setup.channels}
    task |= {"workers": workers, "threads": cores, "device": setup.device}
    command = (sys.executable, str(HERE / "train_peer.py"), "monai", json.dumps(task))
    return Trainer(MONAI, command, cores, f"{workers} for data" if workers else "none")


def compared(setup: Setup, cores: int) -> list[Trainer]:
    """The programs of the main table."""
    deep = f"network.deep_supervision={supervised_levels(setup)}"
    found = [
        ours(setup, OURS, cores),
        ours(setup, OURS_DEEP, cores, deep),
        nnunet(setup, NNUNET, cores, SHALLOW_TRAINER),
        nnunet(setup, NNUNET_DEEP, cores, TRAINER),
        monai(setup, cores),
    ]
    if setup.device == "cpu":
        return [*found, ours(setup, OURS_32, cores, "trainer.precision=float32")]
    return [
        *found,
        nnunet(setup, f"{NNUNET}, not compiled", cores, SHALLOW_TRAINER, nnUNet_compile="f"),
    ]


def supervised_levels(setup: Setup) -> int:
    """Levels besides the first that nnU-Net's loss counts: all but the two lowest."""
    return len(setup.channels) - 3


def choices(setup: Setup, cores: int) -> list[Trainer]:
    """Ours with what could make it quicker; the first of each precision is without."""
    precisions = ("bf16", "float32") if setup.device == "cpu" else ("bf16",)
    extras = {
        "": "trainer.compile=off",
        ", compiled": "trainer.compile=on",
        ", channels last": "trainer.channels_last=true",
    }
    return [
        ours(setup, f"{precision}{name}", cores, f"trainer.precision={precision}", *(word,))
        for precision in precisions
        for name, word in extras.items()
    ]


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


def quarter(values: list[float]) -> float:
    """Lower quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def quartiles(values: list[float]) -> str:
    """The three of them, for a cell."""
    return " / ".join(f"{value:.3g}" for value in statistics.quantiles(values, n=4, method="inclusive"))


def ratios(steps: Figures, slow: str, quick: str) -> tuple[float, float]:
    """How many times as long a step takes: of lower quartiles, and the median of the rounds."""
    pairs = list(zip(steps[slow]["wall"], steps[quick]["wall"], strict=True))
    of_rounds = statistics.median(theirs / own for theirs, own in pairs)
    return quarter(steps[slow]["wall"]) / quarter(steps[quick]["wall"]), of_rounds


def table(heads: list[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]


def cores_in_words(count: int) -> str:
    return f"{count} core{'' if count == 1 else 's'}"


def render_targets(setup: Setup, found: Figures) -> list[str]:
    """A row a target; of two ratios the worse counts."""
    lines = ["## Targets", "", *table(["", "must", "aim", "found", "must met", "aim met"])]
    aim = SPEED_AIM[setup.device]
    for count in setup.cores:
        for own, peer in ((OURS, NNUNET), (OURS_DEEP, NNUNET_DEEP)):
            speed = min(ratios(found[f"steps, {count}"], peer, own))
            verdicts = f"{verdict(speed >= SPEED_MUST)} | {verdict(speed >= aim)}"
            what = f"{cores_in_words(count)}: {own}, steps/s against {peer}"
            lines.append(f"| {what} | >= {SPEED_MUST:g} x | >= {aim:g} x | {speed:.2f} x | {verdicts} |")
    for own, peer in ((OURS, NNUNET), (OURS_DEEP, NNUNET_DEEP)):
        share = memory_mb(setup, found, own) / memory_mb(setup, found, peer)
        met = verdict(share <= MEMORY_MUST)
        lines.append(f"| {own}, peak memory against {peer} | <= {MEMORY_MUST:g} x | | {share:.2f} x | {met} | |")
    share = statistics.median(found["first step"][OURS]) / statistics.median(found["first step"][NNUNET_DEEP])
    met = verdict(share <= FIRST_STEP_AIM)
    lines.append(
        f"| raw files to the first step against nnU-Net | | <= {FIRST_STEP_AIM:.2f} x | {share:.2f} x | | {met} |"
    )
    return [*lines, ""]


def memory_mb(setup: Setup, found: Figures, name: str) -> float:
    """Of the processes; on a GPU what is reserved there."""
    if setup.device == "cpu":
        return found["memory"][name]["peak_mb"]
    return found[f"steps, {max(setup.cores)}"][name]["gpu_bytes"] / 1e6


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def render_steps(setup: Setup, found: Figures) -> list[str]:
    """A table a number of cores."""
    lines = ["## Whole steps", "", *render_conditions(setup)]
    for count in setup.cores:
        steps = found[f"steps, {count}"]
        names = list(dict.fromkeys(peer for peers in PEERS.values() for peer in peers))
        own = [name for name in PEERS if name in steps]
        heads = ["", "weights", "torch threads", "other processes", "s a step", "patches/s", "processor s a step"]
        lines += [
            f"### {cores_in_words(count).capitalize()}",
            "",
            *table([*heads, *(f"{name} is faster by" for name in own)]),
        ]
        for trainer in compared(setup, count):
            name, row = trainer.name, steps[trainer.name]
            cells = [f"{row['parameters']:,}", str(trainer.threads), trainer.processes, quartiles(row["wall"])]
            cells += [f"{2 / quarter(row['wall']):.3g}", quartiles(row["cpu"])]
            for mine in own:
                shown = name in names and name in PEERS[mine]
                cells.append("; ".join(f"{value:.2f}" for value in ratios(steps, name, mine)) if shown else "")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def render_conditions(setup: Setup) -> list[str]:
    """What was alike and what was not."""
    size, shape = setup.patch, " x ".join(map(str, setup.shape))
    num_cases = len(list((setup.folder / "raw" / NAME / "labelsTr").iterdir()))
    lines = [
        f"Batches of 2 patches of {size}^3 from {num_cases} phantoms of {shape} voxels of 1 mm, the same files for all.",
        f"The network is a U-Net of {len(setup.channels)} levels with {', '.join(map(str, setup.channels))} features, 2",
        "convolutions a level each way, instance normalisation, no bias before it (nnU-Net's plan was edited to it). nnU-Net",
        "holds a head for each level on the way up also where only the first is used: that is all by which weights differ.",
        "",
        "Each trainer is its own program as a user starts it: `medfocal train`, what `nnUNetv2_train` calls, and the loop of",
        "MONAI's tutorials (`CacheDataset`, `RandCropByPosNegLabeld`, flips, random scale and shift, `DataLoader`, `DynUNet`,",
        f"`DiceCELoss`, Adam). medfocal has its defaults (focal loss, AdamW) and `{' '.join(same_settings(setup))}`;",
        "its random changes have nnU-Net's probabilities. Its deep supervision is of as many levels as nnU-Net's loss counts",
        f"(`network.deep_supervision={supervised_levels(setup)}`). nnU-Net has its own loss (Dice and cross-entropy), SGD",
        "and random changes. A step is from the end of one step of the optimizer to the end of the next, waiting for data",
        "included, by the same hook in all. The programs take turns and only one runs; the others and all their processes are",
        "frozen. Seconds are lower quartile / median / upper quartile of the turns; a ratio is of lower quartiles, then the",
        "median of the ratios within a round. A program with all its processes is kept to the cores that are named.",
        "",
    ]
    if setup.device == "cpu":
        lines += [
            "On a CPU medfocal computes in bfloat16 where the processor has it (`trainer.precision=auto`); nnU-Net switches",
            "reduced precision and `torch.compile` off there, whatever `nnUNet_compile` says, so its rows are in float32, and",
            "so is MONAI's. The float32 row of medfocal shows what is not due to bfloat16.",
            "",
        ]
    return lines


def render_memory(setup: Setup, found: Figures) -> list[str]:
    """A row a program."""
    lines = [
        "## Peak memory",
        "",
        "Each program alone, from its start until some steps are done: the most that it and its processes hold together, in MB",
        "of 1e6 bytes, as the proportional set size (`/proc/PID/smaps_rollup`, a shared page once), looked at all the time.",
        "",
    ]
    on_gpu = setup.device == "cuda"
    lines += table(["", "MB", "processes", *(["MB reserved on the GPU"] if on_gpu else [])])
    for name, row in found["memory"].items():
        cells = [f"{row['peak_mb']:.0f}", str(row["processes"])]
        cells += [f"{memory_mb(setup, found, name):.0f}"] if on_gpu else []
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def render_choices(setup: Setup, found: Figures) -> list[str]:
    """A row a choice."""
    lines = [
        "## Compiled, or with channels last",
        "",
        f"medfocal with {cores_in_words(max(setup.cores))}, `trainer.compile` off or on and `trainer.channels_last=true`. A",
        "ratio is the step's against that of the same precision with neither. Start is from the command to the end of the",
        "first step, in seconds; what is compiled is compiled anew.",
        "",
        *table(["", "s a step", "ratio", "start, s"]),
    ]
    steps = found["choices"]
    for name, row in steps.items():
        base = name.partition(",")[0]
        ratio = "" if name == base else "; ".join(f"{value:.2f}" for value in ratios(steps, name, base))
        lines.append(f"| {name} | {quartiles(row['wall'])} | {ratio} | {row['start']:.0f} |")
    return [*lines, ""]


def render_ranks(found: Figures) -> list[str]:
    """Patches a second and efficiency."""
    one, two = (found["ranks"][ranks] for ranks in ("1", "2"))
    efficiency = [b / (2 * a) for a, b in zip(sorted(one), sorted(two), strict=True)]
    return [
        "## Two processes",
        "",
        "`torchrun --nproc-per-node=2` (gloo) with one thread each against one process with one thread, both on 2 cores, the",
        f"same batch of 2 in all; `patches_per_second` of {len(one)} epochs of {RANK_STEPS} steps, the first of each run left",
        "out. Efficiency is half of two processes' patches a second against one's, of the three quartiles.",
        "",
        *table(["processes", "patches/s", "efficiency"]),
        f"| 1 | {quartiles(one)} | |",
        f"| 2 | {quartiles(two)} | {quartiles(efficiency)} |",
        "",
    ]


def render_first_steps(found: Figures) -> list[str]:
    """A row a program."""
    first = found["first step"]
    lines = [
        "## From raw files to the first step",
        "",
        "Seconds from the command to the end of the first step, nothing prepared before, with 2 cores and 2 processes that",
        f"prepare cases: `medfocal train cache.workers=2` against `nnUNetv2_plan_and_preprocess -c {CONFIGURATION} -npfp 2",
        "-np 2` and the start of its training. Raw files lie in the cache of the disk. Every turn:",
        "",
        *table(["", "s", "of it the preprocessing"]),
        f"| {OURS} | {each(first[OURS])} | |",
        f"| {NNUNET_DEEP} | {each(first[NNUNET_DEEP])} | {each(first['preprocess'])} |",
    ]
    return [*lines, ""]


def each(values: list[float]) -> str:
    return "; ".join(f"{value:.1f}" for value in values)


def render(setup: Setup, found: Figures, *, command: str, load: float) -> str:
    """The page."""
    lines = [
        f"# Training beside nnU-Net and MONAI, {'CPU' if setup.device == 'cpu' else 'GPU'}",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        f"{versions(setup)}. {machine(setup)}, load {load:.1f} before the start and {os.getloadavg()[0]:.1f} at the end.",
        *(["Not measured on a GPU."] if setup.device == "cpu" else []),
        "",
        *render_targets(setup, found),
        *render_steps(setup, found),
        *render_memory(setup, found),
        *render_choices(setup, found),
        *(render_ranks(found) if "ranks" in found else []),
        *render_first_steps(found),
    ]
    return "\n".join(lines)


def versions(setup: Setup) -> str:
    """Of what decides times, in both environments."""
    ask = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    peers = ("torch", "nnunetv2", "batchgeneratorsv2", "dynamic-network-architectures")
    asked = subprocess.run([setup.peer, "-c", ask, *peers], capture_output=True, text=True, check=True)
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai", "numpy")]
    own = ", ".join([f"Python {platform.python_version()}", *packages])
    return f"{own}; the environment of nnU-Net has {asked.stdout.strip()}"


def machine(setup: Setup) -> str:
    """Processors in words."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    cpu = f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"
    if setup.device == "cpu":
        return cpu
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return f"{subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()}; {cpu}"


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
