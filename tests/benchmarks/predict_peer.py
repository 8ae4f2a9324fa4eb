"""Sliding a window with medfocal, MONAI or nnU-Net over a made-up case in one thread; its processor time and memory.

    python tests/benchmarks/predict_peer.py < TASKS

`predict.py` starts it, for nnU-Net with nnU-Net's Python, which needs MONAI too for the network and no medfocal. Each
line is a task in JSON, the arguments of `work`, and is answered by a line of JSON.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from predict_problems import FREE
from torch import nn

from medfocal.networks import UNet3d

CPU = torch.device("cpu")

CHANNELS = (16, 32, 64, 128, 256)
#: Of the volume's sides: a brain without its skull in the grid of a registered FLAIR image, and a head in a tight one.
EXTENTS = {"noise": (), "brain": (0.70, 0.75, 0.66), "head": (0.9, 0.9, 0.9)}

Run = Callable[[nn.Module, torch.Tensor, dict[str, Any]], tuple[NDArray[Any], float]]


class Timed(nn.Module):
    """A network and the seconds that were spent in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        start = time.process_time()
        logits = self.network(windows)
        self.seconds += time.process_time() - start
        return logits


class Classes(nn.Module):
    """Logits by a weight and a bias a class, so that each is the highest in its own range of intensities."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        centre = torch.linspace(-2, 2, num_channels)[:, None, None, None]
        self.register_buffer("weight", 20 * centre)
        self.register_buffer("bias", -10 * centre**2)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, windows, self.weight)


@functools.cache
def network_of(name: str, num_channels: int) -> Timed:
    """The same weights for all."""
    torch.manual_seed(0)
    if name == FREE:
        made = Classes(num_channels)
    else:
        made = UNet3d(in_channels=1, out_channels=num_channels, channels=CHANNELS)
    return Timed(made.eval())


@functools.lru_cache(maxsize=1)
def image_of(kind: str, shape: tuple[int, int, int], *, is_cropped: bool) -> torch.Tensor:
    """Noise everywhere, or in an ellipsoid in the middle and 0 around it, float32 `(1, I, J, K)`."""
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    extent = EXTENTS[kind]
    if not extent:
        return image
    away = [
        ((torch.arange(side) - (side - 1) / 2) / (share * side / 2)) ** 2
        for side, share in zip(shape, extent, strict=True)
    ]
    image[0, away[0][:, None, None] + away[1][:, None] + away[2] > 1] = 0
    if is_cropped:
        inner = [torch.nonzero(along <= 1).flatten() for along in away]
        image = image[:, *(slice(int(found[0]), int(found[-1]) + 1) for found in inner)].contiguous()
    return image


def by_medfocal(network: nn.Module, image: torch.Tensor, task: dict[str, Any]) -> tuple[NDArray[Any], float]:
    """Probability of any lesion, and the class where it is at least a half."""
    from medfocal.infer.voxels import predict_voxels
    from medfocal.infer.window import Window

    found = predict_voxels(
        [network],
        image,
        window=Window(size=task["window"], batch=task["batch"], precision=task["precision"]),
        activation="softmax",
        num_classes=task["channels"] - 1,
        device=CPU,
        max_memory_mb=task.get("max_memory_mb"),
    )
    is_lesion = found.probability >= 0.5
    label = is_lesion.view(np.uint8) if found.classes is None else np.multiply(found.classes, is_lesion, dtype=np.uint8)
    return label, time.process_time()


def by_monai(network: nn.Module, image: torch.Tensor, task: dict[str, Any]) -> tuple[NDArray[Any], float]:
    """Mean logits; then, if asked, probabilities of all classes; and the likeliest class."""
    from monai.inferers import sliding_window_inference

    logits = sliding_window_inference(
        image[None], task["window"], task["batch"], network, overlap=0.5, mode="gaussian", padding_mode="constant"
    )
    end = time.process_time()
    if task["stops"] == "sums":
        return np.zeros(0, np.uint8), end
    probabilities = logits.softmax(dim=1)
    del logits
    return probabilities[0].argmax(dim=0).to(torch.uint8).numpy(), end


def by_nnunet(network: nn.Module, image: torch.Tensor, task: dict[str, Any]) -> tuple[NDArray[Any], float]:
    """Mean logits in half precision, and the likeliest class."""
    predictor, labels = nnunet_predictor(task["channels"])
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=task["window"])
    logits = predictor.predict_sliding_window_return_logits(image)
    end = time.process_time()
    if task["stops"] == "sums":
        return np.zeros(0, np.uint8), end
    return labels.convert_logits_to_segmentation(logits).to(torch.uint8).numpy(), end


@functools.cache
def nnunet_predictor(num_channels: int) -> tuple[Any, Any]:
    """A predictor that has what a plan would give it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=CPU,
        allow_tqdm=False,
    )
    predictor.label_manager = LabelManager({"background": 0} | {f"{n}": n for n in range(1, num_channels)}, None)
    return predictor, predictor.label_manager


PROGRAMS: dict[str, Run] = {"medfocal": by_medfocal, "monai": by_monai, "nnunet": by_nnunet}


def work(program: str, **task: Any) -> dict[str, float]:
    """Predict a case once.

    Args:
        program: Name in `PROGRAMS`.
        task: `network`, `channels`, `image`, `shape`, `is_cropped`, `window`, `batch`, `precision`, `stops`,
            `max_memory_mb`, and `memory`: whether memory is to be told, which is to be the first task of a
            process.

    Returns:
        `seconds` of the processor; those within the network and those after the last sum; voxels of a lesion
        class, and the sum of the label; the most resident memory beyond what there was before, in MB.
    """
    torch.set_num_threads(1)
    network = network_of(task["network"], task["channels"])
    run = PROGRAMS[program]
    if task["memory"]:  # what is loaded or set up once is no part of it
        with torch.inference_mode():
            run(network, torch.randn(1, *task["window"]), task)
    image = image_of(task["image"], tuple(task["shape"]), is_cropped=task["is_cropped"])
    before = reset_peak() if task["memory"] else 0
    network.seconds = 0.0
    start = time.process_time()
    with torch.inference_mode():
        label, summed = run(network, image, task)
    end = time.process_time()
    found = {"seconds": end - start, "network": network.seconds, "after": end - summed}
    if task["memory"]:
        found["peak_mb"] = (status_bytes("VmHWM") - before) / 1e6
    return found | {"lesion_voxels": int(np.count_nonzero(label)), "label_sum": int(label.sum(dtype=np.int64))}


def reset_peak() -> int:
    """Give back what is free, forget the peak, and tell the resident bytes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """A size of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Work until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed does not mix with the answers
    tasks: Iterator[str] = iter(sys.stdin.readline, "")
    for line in tasks:
        answers.write(json.dumps(work(**json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
