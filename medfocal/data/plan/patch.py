"""How large a patch and a batch can be for the memory and the time that there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from medfocal.data.plan.levels import BASE_GB, Levels, plan_levels, training_memory_gb, window_memory_gb
from medfocal.errors import ConfigError

#: Share of the memory that is planned for; the rest is for what the model of it leaves out.
USABLE_SHARE = 0.8
MOST_BATCH = 8
#: Voxels along the finest axis: what patches are tried.
SIDES = range(16, 520, 8)
WINDOWS_AT_ONCE = 4


class Budget(StrEnum):
    """How much time there is."""

    QUICK = "quick"  # does it learn at all
    STANDARD = "standard"  # a model to use

    @classmethod
    def _missing_(cls, value: object) -> None:
        message = f"budget must be one of {', '.join(cls)}, got {value!r}"
        raise ValueError(message)


@dataclass(frozen=True)
class Means:
    """What there is to train with.

    Attributes:
        device: "cpu" or "cuda".
        memory_gb: Of the device, 1e9 bytes.
        bytes_per_value: Of an activation: 2 where bfloat16 is native, else 4.
        budget: How much time.
    """

    device: str
    memory_gb: float
    bytes_per_value: int
    budget: Budget

    @property
    def usable_gb(self) -> float:
        """For a training step, beside what the process takes."""
        return max(0.0, self.memory_gb * USABLE_SHARE - BASE_GB)

    @property
    def least_batch(self) -> int:
        """Patches are made smaller rather than fewer than this."""
        return 4 if self.budget is Budget.QUICK else 2

    @property
    def most_voxels(self) -> float:
        """Of a batch. On a CPU, time is what is short: 4 patches of 32^3 or 2 of 64^3."""
        if self.device == "cpu":
            return 4 * 32**3 if self.budget is Budget.QUICK else 2 * 64**3
        return 4 * 64**3 if self.budget is Budget.QUICK else math.inf

    @property
    def width(self) -> int:
        """Features of the finest level of the network."""
        return 16 if self.device == "cpu" else 32


@dataclass(frozen=True)
class PatchPlan:
    """What goes through the network at once.

    Attributes:
        patch_size: Voxels.
        batch_size: Patches.
        levels: Of the network.
        window_size: Voxels of the window over whole cases.
        memory_gb: Calculated for a training step, the process included.
        is_bound_by: What keeps the patch from being larger: "body", "memory" or "time".
    """

    patch_size: tuple[int, int, int]
    batch_size: int
    levels: Levels
    window_size: tuple[int, int, int]
    memory_gb: float
    is_bound_by: str


def plan_patch(
    body_shape: Sequence[float],
    spacing_mm: Sequence[float],
    means: Means,
    *,
    in_channels: int,
    out_channels: int,
) -> PatchPlan:
    """Choose the largest patch, as cubic in mm as the body lets it be, of which a batch fits; then the batch.

    Args:
        body_shape: Voxels of the body that the patch is cut from, on the network's grid.
        spacing_mm: Of that grid.
        means: What there is to train with.
        in_channels: Of the image.
        out_channels: Of the logits.

    Returns:
        The plan. With more memory the patch does not shrink.

    Raises:
        ConfigError: Not even the smallest patch fits.
    """

    def needs(size: Sequence[int], batch: int) -> tuple[Levels, float]:
        levels = plan_levels(size, spacing_mm, width=means.width, most_width=320)
        arguments = {"in_channels": in_channels, "out_channels": out_channels}
        return levels, training_memory_gb(levels, size, batch, bytes_per_value=means.bytes_per_value, **arguments)

    def bound(size: Sequence[int], batch: int) -> str | None:
        if needs(size, batch)[1] > means.usable_gb:
            return "memory"
        return "time" if batch * math.prod(size) > means.most_voxels else None

    sizes = list(dict.fromkeys(_patch_of_side(side * min(spacing_mm), body_shape, spacing_mm) for side in SIDES))
    least = means.least_batch
    bounds = {size: bound(size, least) for size in sizes}
    fitting = [size for size, what in bounds.items() if what is None]
    if not fitting:
        smallest = sizes[0]
        if bounds[smallest] == "memory":
            total = (needs(smallest, least)[1] + BASE_GB) / USABLE_SHARE
            message = (
                f"memory_gb={means.memory_gb:g} is too little: {least} patches of {list(smallest)} voxels, the smallest"
                f" that are planned for, need {total:.1f}"
            )
            raise ConfigError(message)
        fitting = [smallest]
    size = max(fitting, key=lambda size: (math.prod(size), sizes.index(size)))
    refused = (what for other in sizes[sizes.index(size) + 1 :] if (what := bounds[other]) is not None)
    batch = max((n for n in range(least, MOST_BATCH + 1) if bound(size, n) is None), default=least)
    levels, memory = needs(size, batch)
    return PatchPlan(
        patch_size=size,
        batch_size=batch,
        levels=levels,
        window_size=_window(size, body_shape, levels, means),
        memory_gb=memory + BASE_GB,
        is_bound_by=next(refused, "body"),
    )


def _patch_of_side(side_mm: float, body_shape: Sequence[float], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    first, second, third = (
        _round(min(body, side_mm / spacing)) for body, spacing in zip(body_shape, spacing_mm, strict=True)
    )
    return first, second, third


def _round(size: float) -> int:
    """To what can be halved: down to a multiple of 16 from 64 on and of 8 below; fewer than 8 voxels stay."""
    whole = max(1, round(size))
    step = 16 if whole >= 64 else 8 if whole >= 8 else 1
    return whole // step * step


def _window(patch: Sequence[int], body_shape: Sequence[float], levels: Levels, means: Means) -> tuple[int, int, int]:
    """Twice the patch, which halves what is computed twice, as far as the body and the memory reach."""
    first, second, third = (
        max(size, min(2 * size, math.ceil(body / step) * step))
        for size, body, step in zip(patch, body_shape, levels.divisor, strict=True)
    )
    window = (first, second, third)
    needed = window_memory_gb(levels, window, WINDOWS_AT_ONCE, bytes_per_value=means.bytes_per_value)
    if needed <= means.usable_gb:
        return window
    first, second, third = patch
    return first, second, third
