"""A full-resolution 3D U-Net whose constructor arguments are data, so that a model folder can carry it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

_NORMS = {"instance": ("INSTANCE", {"affine": True}), "batch": ("BATCH", {"affine": True})}


class UNet3d(nn.Module):
    """3D U-Net with logits at full resolution.

    Two convolutions per level, strided on the way down, transposed on the way up. The levels are those of
    MONAI's DynUNet. Its last layer is held as `head`, without the dropout that DynUNet puts behind it, and
    each parameter has one name in `state_dict`, where DynUNet has two.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        channels: Features per level, from full resolution down; at least 3 levels.
        kernel_sizes: Convolution size per level, one odd number or one per axis, not smaller than the level's
            stride. None: 3 everywhere.
        strides: Stride into each level, one number or one per axis. The first is 1. None: 2 from the second
            level on.
        dropout: Probability of dropping a feature after each convolution but the last, in [0, 1).
        norm: "instance" or "batch", with scale and shift.

    Attributes:
        head: The last convolution (1x1x1, with bias).
        divisor: Product of the strides per axis, 3 integers; a window's shape must be a multiple.
        arguments: Constructor arguments in plain types; `UNet3d(**net.arguments)` has the same `state_dict`
            keys and shapes.

    Raises:
        ValueError: An argument is out of range or does not fit the others.

    Example:
        >>> net = UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16), strides=[1, [2, 2, 1], 2])
        >>> net.divisor
        (4, 4, 2)
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (8, 16, 32, 64),
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        dropout: float = 0.0,
        norm: Literal["instance", "batch"] = "instance",
    ) -> None:
        super().__init__()
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
        kernels = _per_level("kernel_sizes", [3] * num_levels if kernel_sizes is None else kernel_sizes, num_levels)
        steps = _per_level("strides", [1] + [2] * (num_levels - 1) if strides is None else strides, num_levels)
        _check_levels(kernels, steps)

        from monai.networks.nets.dynunet import DynUNet

        levels = DynUNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernels,
            strides=steps,
            upsample_kernel_size=steps[1:],
            filters=list(channels),
            dropout=dropout or None,
            norm_name=_NORMS[norm],
        )
        self.body: nn.Module = levels.skip_layers
        self.head: nn.Conv3d = levels.output_block.conv.conv
        self.divisor = tuple(math.prod(axis) for axis in zip(*steps, strict=True))
        self.arguments: dict[str, Any] = {
            "in_channels": int(in_channels),
            "out_channels": int(out_channels),
            "channels": [int(features) for features in channels],
            "kernel_sizes": kernels,
            "strides": steps,
            "dropout": float(dropout),
            "norm": str(norm),
        }
        self._needs_several_voxels = norm == "instance"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, out_channels, I, J, K) of images (B, in_channels, I, J, K).

        Raises:
            ValueError: The window is no multiple of `divisor`, or instance normalisation would see a single
            voxel.
        """
        shape = tuple(images.shape[2:])
        if len(shape) != 3 or any(size % step or not size for size, step in zip(shape, self.divisor, strict=True)):
            raise ValueError(
                f"window shape must be a multiple of the divisor {self.divisor}, "
                f"got {shape} in images {tuple(images.shape)}"
            )
        if self._needs_several_voxels and shape == self.divisor:
            raise ValueError(
                f"window shape {shape} equals the divisor {self.divisor}, which leaves instance normalisation "
                "one voxel; double it along one axis"
            )
        logits: Tensor = self.head(self.body(images))
        return logits


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
