"""What this machine can do: the memory that is free, and the time of a real training step."""

from __future__ import annotations

import functools
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medfocal.data.plan.fingerprint import Fingerprint
from medfocal.data.plan.levels import Levels, training_memory_gb
from medfocal.data.plan.proposal import Plan
from medfocal.infer.memory import free_memory_gb, read_text
from medfocal.infer.window import reduced_type
from medfocal.losses import FocalLoss
from medfocal.networks import UNet3d

SLOWER = "The same run.id may go on with trainer.checkpoint_activations=true"


@dataclass(frozen=True)
class StepTime:
    """A training step on random patches.

    Attributes:
        seconds: Of the quickest of the steps that were timed.
        forward_seconds: Of its forward pass.
        peak_gb: Memory that was allocated on the GPU at its highest, None on a CPU.
    """

    seconds: float
    forward_seconds: float
    peak_gb: float | None


def what_would_fit(
    network: Any,
    *,
    patch_size: Sequence[int],
    num_patches: int,
    parts: int,
    bytes_per_value: int,
    device: torch.device,
) -> str:
    """A sentence about how to train in the memory there is, after a step did not fit.

    Args:
        network: With `arguments`.
        patch_size: Voxels.
        num_patches: Of this process in a step.
        parts: In which it computed them.
        bytes_per_value: Of an activation.
        device: Where.
    """
    at_once = num_patches // parts
    what = f"{at_once} patches of {'x'.join(map(str, patch_size))} voxels at once do not fit."
    arguments = network.arguments
    usable = _usable_gb(device)
    levels = Levels(
        tuple(arguments["channels"]), *(tuple(map(tuple, arguments[k])) for k in ("kernel_sizes", "strides"))
    )

    def fits(size: Sequence[int], count: int) -> bool:
        needed = training_memory_gb(
            levels,
            size,
            count,
            in_channels=arguments["in_channels"],
            out_channels=arguments["out_channels"],
            bytes_per_value=bytes_per_value,
        )
        return needed <= usable

    for count in range(at_once - 1, 0, -1):
        if num_patches % count == 0 and fits(patch_size, count):
            return f"{what} The same run.id goes on with trainer.accumulate={num_patches // count}, {count} at a time."
    size = list(patch_size)
    while not fits(size, 1):
        reducible = [axis for axis in range(3) if size[axis] > 2 * levels.divisor[axis]]
        if not reducible:
            return f"{what} About {usable:.1f} GB are free, too few for this network: choose a smaller one."
        largest = max(reducible, key=lambda axis: size[axis])
        size[largest] -= levels.divisor[largest]
    if at_once == 1 and size == list(patch_size):  # the estimate is too low; it is known not to fit
        return f"{what} {SLOWER}, another one with smaller patches."
    patches = "" if at_once == 1 else f" trainer.accumulate={num_patches}"
    return f"{what} {SLOWER}, another one with sampling.patch_size={size}{patches}."


def _usable_gb(device: torch.device) -> float:
    """Memory of a training that may take all that this process has and what is free."""
    if device.type == "cuda":
        return 0.9 * (free_memory_gb(device) + torch.cuda.memory_reserved(device) / 1e9)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits = [] if limit == resource.RLIM_INFINITY else [limit / 1e9 - _address_space_gb()]
    return 0.9 * max(0.0, min([free_memory_gb(device), *limits]))


def _address_space_gb() -> float:
    pages = read_text(Path("/proc/self/statm")).split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") / 1e9 if pages else 0.0


def time_step(
    build_network: Callable[..., torch.nn.Module],
    loss: Any,
    build_optimizer: Callable[..., torch.optim.Optimizer],
    *,
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int],
    batch_size: int,
    device: torch.device,
    precision: str = "auto",
    num_steps: int = 2,
) -> StepTime:
    """Train on random patches for a few steps, after one to warm up, and time them.

    Args:
        build_network: Takes `in_channels` and `out_channels`.
        loss: A `medfocal.losses.TrainingLoss`.
        build_optimizer: Takes the parameters.
        in_channels: Of the image.
        out_channels: Of the logits.
        patch_size: Voxels.
        batch_size: Patches.
        device: Where.
        precision: Of the trainer's settings.
        num_steps: That are timed.
    """
    network = build_network(in_channels=in_channels, out_channels=out_channels).to(device).train()
    optimizer = build_optimizer(network.parameters())
    image = torch.randn(batch_size, in_channels, *patch_size, device=device)
    target = _random_target(loss.activation, image, out_channels)
    reduced = reduced_type(precision, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(1 + num_steps):
        started = _now(device)
        with torch.autocast(device.type, dtype=reduced, enabled=reduced is not None):
            logits = network(image)
        forward = _now(device) - started
        optimizer.zero_grad(set_to_none=True)
        loss(logits.float(), target).backward()
        optimizer.step()
        times.append((_now(device) - started, forward))
    seconds, forward = min(times[1:])
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return StepTime(seconds, forward, peak)


def _random_target(activation: str, image: torch.Tensor, out_channels: int) -> torch.Tensor:
    """Classes, or with sigmoid shares of each channel, which is how regions are taught."""
    batch_size, _, *patch_size = image.shape
    if activation == "sigmoid":
        return (torch.rand(batch_size, out_channels, *patch_size, device=image.device) < 0.01).to(image.dtype)
    return (torch.rand(batch_size, *patch_size, device=image.device) < 0.01).long()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def time_plan(plan: Plan, fingerprint: Fingerprint, device: torch.device) -> StepTime:
    """Time a step of what a plan proposes: its network, its patches and focal loss, with AdamW."""
    levels = plan.patch.levels
    build_network = functools.partial(
        UNet3d, channels=levels.channels, kernel_sizes=levels.kernel_sizes, strides=levels.strides
    )
    return time_step(
        build_network,
        FocalLoss(gamma=plan.value("loss.gamma"), alpha=plan.value("loss.alpha"), activation=plan.activation),
        torch.optim.AdamW,
        in_channels=len(fingerprint.channels),
        out_channels=plan.out_channels,
        patch_size=plan.patch.patch_size,
        batch_size=plan.patch.batch_size,
        device=device,
    )


def estimate_hours(plan: Plan, timed: StepTime) -> tuple[float, float]:
    """Hours of all training steps, and of all validations, which are forward passes over windows.

    Reading the cases, and evaluating what was found in them, is not in it.
    """
    epochs = plan.value("trainer.max_epochs")
    steps = epochs * plan.value("trainer.steps_per_epoch")
    patch = plan.patch
    seconds_per_voxel = timed.forward_seconds / (patch.batch_size * math.prod(patch.patch_size))
    windows = plan.num_validation_windows * math.ceil(epochs / plan.value("trainer.validate_every"))
    return timed.seconds * steps / 3600, windows * math.prod(patch.window_size) * seconds_per_voxel / 3600
