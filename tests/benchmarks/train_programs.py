"""The programs that the benchmark of training compares, and what all of them get alike."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from train_cases import NAME
from train_measure import HERE, Trainer

OURS, OURS_32, OURS_DEEP = "medfocal", "medfocal, float32", "medfocal, deep supervision"
NNUNET, NNUNET_DEEP = "nnU-Net, no deep supervision", "nnU-Net"
MONAI = "MONAI's tutorials"
TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
SHALLOW_TRAINER = f"{TRAINER.rpartition('.')[0]}.variants.network_architecture.nnUNetTrainerNoDeepSupervision"

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
    plain = ("trainer.compile=off", "trainer.channels_last=false")
    extras = {
        "": plain,
        ", compiled": ("trainer.compile=on",),
        ", channels last": (plain[0], "trainer.channels_last=true"),
    }
    return [
        ours(setup, f"{precision}{name}", cores, f"trainer.precision={precision}", *words)
        for precision in precisions
        for name, words in extras.items()
    ]
