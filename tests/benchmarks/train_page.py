"""The page of the benchmark of training."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import textwrap
from pathlib import Path

from train_cases import CONFIGURATION, NAME
from train_programs import (
    MONAI,
    NNUNET,
    NNUNET_DEEP,
    OURS,
    OURS_32,
    OURS_DEEP,
    Figures,
    Setup,
    compared,
    same_settings,
    supervised_levels,
)

#: What each of ours is held against: the same network.
PEERS = {OURS: (NNUNET, MONAI), OURS_32: (NNUNET, MONAI), OURS_DEEP: (NNUNET_DEEP,)}
SPEED_MUST, SPEED_AIM = 1.0, {"cpu": 1.3, "cuda": 1.15}
MEMORY_MUST, FIRST_STEP_AIM = 1.0, 1 / 3
RANK_STEPS = 8


def quarter(values: list[float]) -> float:
    """Lower quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def quartiles(values: list[float]) -> str:
    """The three of them, for a cell."""
    return " / ".join(f"{value:.3g}" for value in statistics.quantiles(values, n=4, method="inclusive"))


def ratios(steps: Figures, slow: str, quick: str) -> tuple[float, float]:
    """How many times as long a step takes: of lower quartiles, and the median of the rounds."""
    pairs = zip(steps[slow]["wall"], steps[quick]["wall"], strict=True)
    of_rounds = statistics.median(theirs / own for theirs, own in pairs)
    return quarter(steps[slow]["wall"]) / quarter(steps[quick]["wall"]), of_rounds


def table(heads: list[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]


def prose(*sentences: str) -> list[str]:
    """A paragraph and an empty line."""
    return [*textwrap.wrap(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False), ""]


def cores_in_words(count: int) -> str:
    return f"{count} core{'' if count == 1 else 's'}"


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def render_targets(setup: Setup, found: Figures) -> list[str]:
    """A row a target; of two ratios the worse counts."""
    lines = ["## Targets", "", *table(["", "must", "aim", "found", "must met", "aim met"])]
    aim = SPEED_AIM[setup.device]
    pairs = ((OURS, NNUNET), (OURS_DEEP, NNUNET_DEEP))
    for count in setup.cores:
        for own, peer in pairs:
            speed = min(ratios(found[f"steps, {count}"], peer, own))
            verdicts = f"{verdict(speed >= SPEED_MUST)} | {verdict(speed >= aim)}"
            what = f"{cores_in_words(count)}: {own}, steps/s against {peer}"
            lines.append(f"| {what} | >= {SPEED_MUST:g} x | >= {aim:g} x | {speed:.2f} x | {verdicts} |")
    for own, peer in pairs:
        share = memory_mb(setup, found, own) / memory_mb(setup, found, peer)
        cells = f"<= {MEMORY_MUST:g} x |  | {share:.2f} x | {verdict(share <= MEMORY_MUST)} |  |"
        lines.append(f"| {own}, peak memory against {peer} | {cells}")
    first = found["first step"]
    share = statistics.median(first[OURS]) / statistics.median(first[NNUNET_DEEP])
    cells = f" | <= {FIRST_STEP_AIM:.2f} x | {share:.2f} x |  | {verdict(share <= FIRST_STEP_AIM)} |"
    return [*lines, f"| raw files to the first step, time against nnU-Net | {cells}", ""]


def memory_mb(setup: Setup, found: Figures, name: str) -> float:
    """Of the processes; on a GPU what is reserved there."""
    if setup.device == "cpu":
        return found["memory"][name]["peak_mb"]
    return found[f"steps, {max(setup.cores)}"][name]["gpu_bytes"] / 1e6


def render_steps(setup: Setup, found: Figures) -> list[str]:
    """A table a number of cores."""
    lines = ["## Whole steps", "", *render_conditions(setup)]
    for count in setup.cores:
        steps = found[f"steps, {count}"]
        own = [name for name in PEERS if name in steps]
        heads = ["", "weights", "torch threads", "other processes", "s a step", "patches/s", "processor s a step"]
        heads += [f"times that of {name}" for name in own]
        lines += [f"### {cores_in_words(count).capitalize()}", "", *table(heads)]
        for trainer in compared(setup, count):
            name, row = trainer.name, steps[trainer.name]
            cells = [f"{row['parameters']:,}", str(trainer.threads), trainer.processes, quartiles(row["wall"])]
            cells += [f"{2 / quarter(row['wall']):.3g}", quartiles(row["cpu"])]
            for mine in own:
                shown = ratios(steps, name, mine) if name in PEERS[mine] else ()
                cells.append("; ".join(f"{value:.2f}" for value in shown))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def render_conditions(setup: Setup) -> list[str]:
    """What was alike and what was not."""
    size, shape = setup.patch, " x ".join(map(str, setup.shape))
    num_cases = len(list((setup.folder / "raw" / NAME / "labelsTr").iterdir()))
    lines = prose(
        f"Batches of 2 patches of {size}^3 from {num_cases} phantoms of {shape} voxels of 1 mm, the same files for",
        f"all. The network is a U-Net of {len(setup.channels)} levels with {', '.join(map(str, setup.channels))}",
        "features, two convolutions a level each way, instance normalisation and no bias before it (nnU-Net's plan was",
        "edited so). nnU-Net holds a head for each level on the way up, also where only the first is used; that is all",
        "by which the numbers of weights differ.",
    )
    lines += prose(
        "Each trainer is its own program as a user starts it: `medfocal train`, what `nnUNetv2_train` calls, and the",
        "loop of MONAI's tutorials (`CacheDataset`, `RandCropByPosNegLabeld`, flips, random scale and shift,",
        "`DataLoader`, `DynUNet`, `DiceCELoss`, Adam). medfocal has its defaults (focal loss, AdamW) and",
        f"`{' '.join(same_settings(setup))}`, random changes with nnU-Net's probabilities. Its deep supervision is of",
        f"as many levels as nnU-Net's loss counts (`network.deep_supervision={supervised_levels(setup)}`). nnU-Net has",
        "its own loss (Dice and cross-entropy), optimizer (SGD) and random changes.",
    )
    lines += prose(
        "A step is from the end of one step of the optimizer to the end of the next, waiting for data included, by the",
        "same hook in all. The programs take turns, and while one runs the others and all their processes are frozen.",
        "Seconds are lower quartile / median / upper quartile of the turns; a ratio is of lower quartiles, then the",
        "median of the ratios within a round. A program with all its processes is kept to the cores that are named;",
        "processor seconds are of all of them together.",
    )
    if setup.device == "cpu":
        lines += prose(
            "On a CPU medfocal computes in bfloat16 where the processor has it (`trainer.precision=auto`). nnU-Net",
            "switches reduced precision and `torch.compile` off there, whatever `nnUNet_compile` says, so its rows are",
            "in float32 and not compiled; MONAI's are so too. The float32 row of medfocal shows what is not due to",
            "bfloat16.",
        )
    return lines


def render_memory(setup: Setup, found: Figures) -> list[str]:
    """A row a program."""
    lines = ["## Peak memory", ""]
    lines += prose(
        "Each program alone, from its start until some steps are done: the most that it and its processes hold",
        "together, in MB of 1e6 bytes, as the proportional set size (`/proc/PID/smaps_rollup`, a shared page once),",
        "looked at every 20 ms.",
    )
    on_gpu = setup.device == "cuda"
    lines += table(["", "MB", "processes", *(["MB reserved on the GPU"] if on_gpu else [])])
    for name, row in found["memory"].items():
        cells = [f"{row['peak_mb']:.0f}", str(row["processes"])]
        cells += [f"{memory_mb(setup, found, name):.0f}"] if on_gpu else []
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def render_choices(setup: Setup, found: Figures) -> list[str]:
    """A row a choice."""
    lines = ["## Compiled, or with channels last", ""]
    lines += prose(
        f"medfocal with {cores_in_words(max(setup.cores))}, `trainer.compile` off or on, or",
        "`trainer.channels_last=true`. A ratio is the step's against that of the same precision with neither. Start is",
        "from the command to the end of the first step, in seconds, with prepared cases; all that is compiled is",
        "compiled anew, the loss always.",
    )
    lines += table(["", "s a step", "ratio", "start, s"])
    steps = found["choices"]
    for name, row in steps.items():
        base = name.partition(",")[0]
        ratio = "" if name == base else "; ".join(f"{value:.2f}" for value in ratios(steps, name, base))
        lines.append(f"| {name} | {quartiles(row['wall'])} | {ratio} | {row['start']:.0f} |")
    return [*lines, ""]


def render_ranks(found: Figures) -> list[str]:
    """Patches a second and efficiency."""
    one, two = (found["ranks"][ranks] for ranks in ("1", "2"))
    three = (statistics.quantiles(values, n=4, method="inclusive") for values in (one, two))
    efficiency = " / ".join(f"{b / (2 * a):.2f}" for a, b in zip(*three, strict=True))
    return [
        "## Two processes",
        "",
        *prose(
            "`torchrun --nproc-per-node=2` (gloo) with one thread each against one process with one thread, both on 2",
            f"cores, the same batch of 2 in all: `patches_per_second` of {len(one)} epochs of {RANK_STEPS} steps, the",
            "first epoch of each run left out. Efficiency is half of the two processes' patches a second against the",
            "one's, of each quartile.",
        ),
        *table(["processes", "patches/s", "efficiency"]),
        f"| 1 | {quartiles(one)} |  |",
        f"| 2 | {quartiles(two)} | {efficiency} |",
        "",
    ]


def render_first_steps(found: Figures) -> list[str]:
    """A row a program."""
    first = found["first step"]
    return [
        "## From raw files to the first step",
        "",
        *prose(
            "Seconds from the command to the end of the first step, nothing prepared or compiled before, with 2 cores",
            "and 2 processes that prepare cases: `medfocal train` with `cache.workers=2` against",
            f"`nnUNetv2_plan_and_preprocess -c {CONFIGURATION} -npfp 2 -np 2` and then the start of its training. Raw",
            "files lie in the cache of the disk, and no case has to be resampled. Every turn:",
        ),
        *table(["", "s", "of it the preprocessing"]),
        f"| {OURS} | {each(first[OURS])} |  |",
        f"| {NNUNET_DEEP} | {each(first[NNUNET_DEEP])} | {each(first['preprocess'])} |",
        "",
    ]


def each(values: list[float]) -> str:
    return "; ".join(f"{value:.1f}" for value in values)


def render(setup: Setup, found: Figures, *, command: str, load: float) -> str:
    """The page."""
    load_in_words = f"load {load:.1f} before the start and {os.getloadavg()[0]:.1f} at the end"
    lines = [
        f"# Training beside nnU-Net and MONAI, {'CPU' if setup.device == 'cpu' else 'GPU'}",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        *prose(
            f"{versions(setup)}. {machine(setup)}, {load_in_words}.",
            "Not measured on a GPU." if setup.device == "cpu" else "",
        ),
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
    return f"{own}; beside nnU-Net: {asked.stdout.strip()}"


def machine(setup: Setup) -> str:
    """Processors in words."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    cpu = f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"
    if setup.device == "cpu":
        return cpu
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return f"{subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()}; {cpu}"
