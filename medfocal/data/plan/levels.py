"""Levels of a U-Net that suit a patch and its spacing, and the memory that a training step with them takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Axes whose spacings are further apart than this are neither convolved nor pooled together.
MOST_ANISOTROPY = 2.0
#: Fewest voxels along an axis at the deepest level that it is pooled to.
LEAST_FEATURE_MAP = 4
#: A U-Net of medfocal has at least three levels.
LEAST_LEVELS = 3
MOST_LEVELS = 6

#: Tensors of full width that a level keeps for the backward pass: two convolutions and their normalised outputs on the
#: way down; on the way up the joined input, which is twice as wide, and two more of each.
KEPT_DOWN, KEPT_UP = 4, 6
#: Gradients of the finest level that exist at one time.
PASSING = 6
#: Weight, gradient and the two moments of Adam, float32.
BYTES_PER_PARAMETER = 16
#: For scratch memory of convolutions. With it, measured steps took 0.7 to 1.25 times what is calculated (docs/plan.md).
SCRATCH = 1.3
#: What the process holds before the first patch: libraries, and on a GPU the context.
BASE_GB = 1.0


@dataclass(frozen=True)
class Levels:
    """Arguments of `medfocal.networks.UNet3d`.

    Attributes:
        channels: Features of each level.
        kernel_sizes: Of each level, one per axis.
        strides: Into each level, one per axis.
    """

    channels: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """What a patch must be a multiple of."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    def num_parameters(self, in_channels: int, out_channels: int) -> int:
        """Weights and biases of the network."""
        widths = self.channels
        count = widths[0] * out_channels + out_channels
        volumes = [math.prod(kernel) for kernel in self.kernel_sizes]
        for level, width in enumerate(widths):
            before = widths[level - 1] if level else in_channels
            count += (before + width) * width * volumes[
                level
            ] + 4 * width  # two convolutions, each with scale and shift
            if level + 1 < len(widths):
                count += widths[level + 1] * width * math.prod(self.strides[level + 1])
                count += (2 * width + width) * width * volumes[level + 1] + 4 * width  # the kernel of the level below
        return count


def plan_levels(patch_size: Sequence[int], spacing_mm: Sequence[float], *, width: int, most_width: int) -> Levels:
    """Choose levels, kernels and strides, with unequal spacing as nnU-Net does.

    An axis is halved from a level to the next while `LEAST_FEATURE_MAP` voxels remain and its spacing is less than
    twice the finest of the axes that can be halved; it is convolved once its spacing is less than twice the finest.

    Args:
        patch_size: Voxels `(I, J, K)`.
        spacing_mm: Of the patch.
        width: Features of the finest level; each further level has twice as many.
        most_width: Features of the widest level.

    Returns:
        At least `LEAST_LEVELS` levels: where the patch is too small for two halvings, the last strides are 1.

    References:
        Isensee et al., Nature Methods 18 (2021) 203, supplementary note 2 (`get_pool_and_conv_props`); we stop at 6
        levels.
    """
    sizes, spacings = [int(n) for n in patch_size], [float(s) for s in spacing_mm]
    has_kernel = [False, False, False]
    kernels, strides = [], []
    stride = (1, 1, 1)
    while True:
        finest = min(spacings)
        has_kernel = [
            had or s < MOST_ANISOTROPY * finest or step > 1  # a stride without a kernel would skip voxels
            for had, s, step in zip(has_kernel, spacings, stride, strict=True)
        ]
        kernels.append(tuple(3 if has else 1 for has in has_kernel))
        strides.append(stride)
        stride = _next_stride(sizes, spacings)
        if len(kernels) == MOST_LEVELS or (max(stride) == 1 and len(kernels) >= LEAST_LEVELS):
            break
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
        spacings = [s * step for s, step in zip(spacings, stride, strict=True)]
    channels = tuple(min(width * 2**level, most_width) for level in range(len(kernels)))
    return Levels(channels, tuple(kernels), tuple(strides))


def _next_stride(sizes: Sequence[int], spacings: Sequence[float]) -> tuple[int, int, int]:
    can = [size % 2 == 0 and size >= 2 * LEAST_FEATURE_MAP for size in sizes]
    if not any(can):
        return 1, 1, 1
    finest = min(s for s, possible in zip(spacings, can, strict=True) if possible)
    first, second, third = (
        2 if possible and s < MOST_ANISOTROPY * finest else 1 for s, possible in zip(spacings, can, strict=True)
    )
    return first, second, third


def training_memory_gb(
    levels: Levels,
    patch_size: Sequence[int],
    batch_size: int,
    *,
    in_channels: int,
    out_channels: int,
    bytes_per_value: int,
) -> float:
    """Memory of a training step beyond that of the process, in GB (1e9 bytes).

    Sum over levels of features x voxels x (`KEPT_DOWN` + `KEPT_UP`), the deepest without the way up, plus `PASSING`
    tensors of the finest level, all times bytes, batch and `SCRATCH`; plus image, logits and loss in float32; plus
    `BYTES_PER_PARAMETER` bytes a parameter.

    Args:
        levels: Of the network.
        patch_size: Voxels.
        batch_size: Patches.
        in_channels: Of the image.
        out_channels: Of the logits.
        bytes_per_value: Of an activation: 2 in bfloat16, 4 in float32.

    Returns:
        GB; it grows with each argument.
    """
    voxels = float(batch_size * math.prod(patch_size))
    kept = PASSING * levels.channels[0] * voxels
    at_level = voxels
    for level, (width, stride) in enumerate(zip(levels.channels, levels.strides, strict=True)):
        at_level /= math.prod(stride)
        is_deepest = level + 1 == len(levels.channels)
        kept += (KEPT_DOWN + (0 if is_deepest else KEPT_UP)) * width * at_level
    ends = 4 * voxels * (in_channels + 4 * out_channels)
    weights = BYTES_PER_PARAMETER * levels.num_parameters(in_channels, out_channels)
    return (SCRATCH * kept * bytes_per_value + ends + weights) / 1e9


def window_memory_gb(levels: Levels, window: Sequence[int], batch_size: int, *, bytes_per_value: int) -> float:
    """Memory of windows that go through the network without a backward pass, in GB.

    One tensor of each level on the way down waits for the way up, and the finest level needs four more at a time.
    """
    voxels = float(batch_size * math.prod(window))
    kept = 4 * levels.channels[0] * voxels
    at_level = voxels
    for width, stride in zip(levels.channels, levels.strides, strict=True):
        at_level /= math.prod(stride)
        kept += width * at_level
    return SCRATCH * kept * bytes_per_value / 1e9
