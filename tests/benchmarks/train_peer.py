"""A trainer of medfocal, nnU-Net or MONAI that stops after its first step and then takes as many as it is told to.

    python tests/benchmarks/train_peer.py medfocal|nnunet|monai TASK

`train.py` starts it; nnU-Net's Python need not have medfocal. TASK is JSON, the arguments of the trainer. What runs is
the trainer's own program from its start. A hook behind the optimizer's step, the same for all, writes a line of JSON
after the first step: when that was, and how many weights there are. Each number on stdin is answered, after so many
more steps, by the seconds that they took, waiting for data included.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from train_cases import CONFIGURATION, pairs


class Turnstile:
    """Lets a training take some steps and then holds it, where the step has ended."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what else is printed does not mix with the answers
        self._is_first = True
        self._left, self._count, self._start = 0, 0, 0.0

    def step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """What the optimizer calls behind its step."""
        if self._left > 1:
            self._left -= 1
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._is_first:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            self._tell(time=time.time(), parameters=sum(weight.numel() for weight in weights))
            self._is_first = False
        else:
            self._tell(seconds=(time.perf_counter() - self._start) / self._count)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self._left = self._count = int(line)
        self._start = time.perf_counter()

    def _tell(self, **figures: float) -> None:
        on_gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
        self._answers.write(json.dumps(figures | {"gpu_bytes": on_gpu}) + "\n")


def by_medfocal(words: list[str]) -> None:
    """The command `medfocal train`."""
    from medfocal.cli import main

    sys.argv = ["medfocal", "train", *words]
    main()


def by_nnunet(module: str, threads: int, device: str) -> None:
    """What `nnUNetv2_train` calls, with so many threads; folders come in its environment variables.

    It finds a trainer by importing all files of its own until one has it. Some need torchvision, whose build for CUDA
    does not load beside a torch for the CPU, so the trainer's module is named.
    """
    from nnunetv2.run import run_training

    trainer = module.rpartition(".")[2]
    run_training.recursive_find_trainer_class_by_name = lambda name: getattr(importlib.import_module(module), name)
    torch.set_num_threads(threads)
    run_training.run_training("1", CONFIGURATION, "all", trainer_class_name=trainer, device=torch.device(device))


def by_monai(raw: str, patch: int, channels: list[int], workers: int, threads: int, device: str) -> None:
    """The loop of MONAI's tutorials (spleen_segmentation_3d, its crops; brats_segmentation_3d, its random changes).

    Two patches of one case make a batch, which copies half as many cases as two patches of two would.
    """
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    torch.set_num_threads(threads)
    dataset = CacheDataset(pairs(Path(raw)), _monai_chain(patch), cache_rate=1.0, num_workers=threads)
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=workers)
    strides = [1] + [2] * (len(channels) - 1)
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[3] * len(channels),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=channels,
        norm_name=("INSTANCE", {"affine": True}),
    ).to(device)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    while True:
        network.train()
        epoch_loss = 0.0
        for batch in loader:
            inputs, labels = batch["image"].to(device), batch["label"].to(device)
            optimizer.zero_grad()
            with torch.autocast("cuda", enabled=device == "cuda"):
                loss = loss_function(network(inputs), labels)
            loss.backward()
            optimizer.step()
            epoch_loss += loss.item()


def _monai_chain(patch: int) -> Any:
    from monai import transforms as mt

    keys = ["image", "label"]
    return mt.Compose(
        [
            mt.LoadImaged(keys),
            mt.EnsureChannelFirstd(keys),
            mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            mt.CropForegroundd(keys, source_key="image", allow_smaller=False),
            mt.Orientationd(keys, axcodes="RAS", labels=None),
            mt.Spacingd(keys, pixdim=(1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
            mt.RandCropByPosNegLabeld(keys, "label", spatial_size=(patch,) * 3, pos=1, neg=1, num_samples=2),
            *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
            mt.RandScaleIntensityd("image", factors=0.1, prob=1.0),
            mt.RandShiftIntensityd("image", offsets=0.1, prob=1.0),
        ]
    )


TRAINERS = {"medfocal": by_medfocal, "nnunet": by_nnunet, "monai": by_monai}

if __name__ == "__main__":
    register_optimizer_step_post_hook(Turnstile().step)
    TRAINERS[sys.argv[1]](**json.loads(sys.argv[2]))
