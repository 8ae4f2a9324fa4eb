"""The levels of a U-Net: what each is made of, checked, in plain types that a model folder can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Norm = Literal["instance", "batch"]

_NORMS = {"instance": ("INSTANCE", {"affine": True}), "batch": ("BATCH", {"affine": True})}


@dataclass(frozen=True)
class Layout:
    """Arguments that all U-Nets share; see `UNet3d`.

    Attributes:
        kernel_sizes: Per level and axis.
        strides: Into each level, per axis.
    """

    in_channels: int
    out_channels: int
    channels: list[int]
    kernel_sizes: list[list[int]]
    strides: list[list[int]]
    dropout: float
    norm: str
    deep_supervision: int
    upsample_bias: bool

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of the strides per axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def monai_norm(self) -> tuple[str, dict[str, bool]]:
        """The norm, as MONAI's blocks are told."""
        return _NORMS[self.norm]


def check_layout(
    *,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    kernel_sizes: Sequence[int | Sequence[int]] | None,
    strides: Sequence[int | Sequence[int]] | None,
    dropout: float,
    norm: str,
    deep_supervision: int,
    upsample_bias: bool,
) -> Layout:
    """Bring the arguments of a U-Net into plain types.

    Raises:
        ValueError: An argument is out of range or does not fit the others.
    """
    num_levels = len(channels)
    if num_levels < 3:
        raise ValueError(f"channels must name at least 3 levels, got {list(channels)}")
    if min(in_channels, out_channels, *channels) < 1:
        raise ValueError(
            "in_channels, out_channels and channels must be at least 1, "
            f"got {in_channels}, {out_channels}, {list(channels)}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if norm not in _NORMS:
        raise ValueError(f"norm must be 'instance' or 'batch', got {norm!r}")
    if not 0 <= deep_supervision <= num_levels - 2:
        raise ValueError(
            f"deep_supervision must be in 0..{num_levels - 2}, the coarser levels that lie between the first and the "
            f"last of {num_levels}, got {deep_supervision}"
        )
    kernels = _per_level("kernel_sizes", [3] * num_levels if kernel_sizes is None else kernel_sizes, num_levels)
    steps = _per_level("strides", [1] + [2] * (num_levels - 1) if strides is None else strides, num_levels)
    _check_levels(kernels, steps)
    return Layout(
        in_channels=int(in_channels),
        out_channels=int(out_channels),
        channels=[int(features) for features in channels],
        kernel_sizes=kernels,
        strides=steps,
        dropout=float(dropout),
        norm=str(norm),
        deep_supervision=int(deep_supervision),
        upsample_bias=bool(upsample_bias),
    )


def check_window(images: Any, divisor: tuple[int, ...], *, norm: str) -> None:
    """Refuse images whose window a U-Net cannot compute.

    Raises:
        ValueError: The window is no multiple of `divisor`, or instance normalisation would see a single voxel.
    """
    shape = tuple(images.shape[2:])
    if len(shape) != 3 or any(size % step or not size for size, step in zip(shape, divisor, strict=True)):
        raise ValueError(
            f"window shape must be a multiple of the divisor {divisor}, got {shape} in images {tuple(images.shape)}"
        )
    if norm == "instance" and shape == divisor:
        raise ValueError(
            f"window shape {shape} equals the divisor {divisor}, which leaves instance normalisation "
            "one voxel; double it along one axis"
        )


def _per_level(name: str, values: Sequence[int | Sequence[int]], num_levels: int) -> list[list[int]]:
    levels = [[value] * 3 if isinstance(value, int) else [int(size) for size in value] for value in values]
    if len(levels) != num_levels:
        raise ValueError(f"{name} must have one entry per level of channels, {num_levels}, got {len(levels)}: {levels}")
    if any(len(level) != 3 or min(level) < 1 for level in levels):
        raise ValueError(f"{name} must be integers >= 1, one or three per level, got {levels}")
    return levels


def _check_levels(kernels: list[list[int]], strides: list[list[int]]) -> None:
    if any(size % 2 == 0 for kernel in kernels for size in kernel):
        raise ValueError(f"kernel_sizes must be odd, so that the grid is kept, got {kernels}")
    if strides[0] != [1, 1, 1]:
        raise ValueError(f"the first stride must be 1, so that logits have full resolution, got {strides[0]}")
    for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        if any(size < step for size, step in zip(kernel, stride, strict=True)):
            raise ValueError(f"level {level}: kernel {kernel} is smaller than stride {stride}, so voxels are skipped")
