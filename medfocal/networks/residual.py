"""A full-resolution 3D U-Net with a deep encoder of residual blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from medfocal.networks.layout import Layout, Norm, check_layout
from medfocal.networks.levelled import LevelledUNet

#: Of nnU-Net's residual encoder; further levels have as many as the last.
BLOCKS = (1, 3, 4, 6)


class ResidualUNet3d(LevelledUNet):
    """3D U-Net with a residual encoder and logits at full resolution.

    A convolution, then residual blocks of two convolutions on the way down; one convolution per level on the way up.
    A shortcut averages where its block strides and has a 1x1x1 convolution where the number of features changes
    (ResNet-D). The last normalisation of each residual block starts with scale 0, so that the block starts as its
    shortcut.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        channels: Features per level, from full resolution down; at least 3 levels.
        kernel_sizes: Convolution size per level, one odd number or one per axis, not smaller than the level's
            stride; the same on the way up. None: 3 everywhere.
        strides: Stride into each level, one number or one per axis. The first is 1. None: 2 from the second
            level on.
        blocks: Residual blocks per level, at least 1. None: 1, 3, 4, then 6 each.
        dropout: Probability of dropping a feature after each convolution but the last, in [0, 1).
        norm: "instance" or "batch", with scale and shift.
        deep_supervision: How many of the next coarser levels give logits of their own in training; at most all but
            the last level.
        upsample_bias: Whether transposed convolutions have a bias, as nnU-Net's have.

    Attributes:
        head: The last convolution (1x1x1, with bias).
        all_heads: `head`, then those of the coarser levels.
        divisor: Product of the strides per axis, 3 integers; a window's shape must be a multiple.
        arguments: Constructor arguments in plain types; `ResidualUNet3d(**net.arguments)` has the same `state_dict`
            keys and shapes.
        checkpoint_activations: See `LevelledUNet`.

    Raises:
        ValueError: An argument is out of range or does not fit the others.

    References:
        Isensee et al., "nnU-Net revisited: a call for rigorous validation in 3D medical image segmentation", MICCAI
        2024 (arXiv 2404.09556): ResEnc. With the weights of theirs it computes the same logits.

    Example:
        >>> net = ResidualUNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16))
        >>> net.arguments["blocks"]
        [1, 3, 4]
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (8, 16, 32, 64),
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        blocks: Sequence[int] | None = None,
        dropout: float = 0.0,
        norm: Norm = "instance",
        deep_supervision: int = 0,
        upsample_bias: bool = False,
    ) -> None:
        layout = check_layout(
            in_channels=in_channels,
            out_channels=out_channels,
            channels=channels,
            kernel_sizes=kernel_sizes,
            strides=strides,
            dropout=dropout,
            norm=norm,
            deep_supervision=deep_supervision,
            upsample_bias=upsample_bias,
        )
        num_levels = len(layout.channels)
        counts = [BLOCKS[min(level, 3)] for level in range(num_levels)] if blocks is None else [int(n) for n in blocks]
        if len(counts) != num_levels or min(counts) < 1:
            raise ValueError(
                f"blocks must have one entry per level of channels, {num_levels}, each at least 1, got {counts}"
            )
        from monai.networks.nets.dynunet import DynUNet

        heads = [
            nn.Conv3d(features, layout.out_channels, kernel_size=1)
            for features in layout.channels[: 1 + layout.deep_supervision]
        ]
        super().__init__(_body(layout, counts), heads[0], list(heads[1:]), layout)
        self.arguments["blocks"] = counts
        self.apply(DynUNet.initialize_weights)


def _body(layout: Layout, counts: Sequence[int]) -> nn.Module:
    """The levels within each other, from the last one outwards."""
    from monai.networks.nets.dynunet import DynUNetSkipLayer

    last = len(counts) - 1
    body = _stage(layout, last, counts[last])
    for level in reversed(range(last)):
        stage, upsample = _stage(layout, level, counts[level]), _upsample(layout, level)
        body = DynUNetSkipLayer(level, downsample=stage, upsample=upsample, next_layer=body)
    return body


def _stage(layout: Layout, level: int, num_blocks: int) -> nn.Module:
    """The way down into a level."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    features = layout.channels[level]
    before = layout.channels[max(level - 1, 0)]
    if level == 0:
        parts["stem"] = _convolution(layout, level, layout.in_channels)
    parts["blocks"] = nn.Sequential(
        _residual_block(layout, level, before, layout.strides[level]),
        *(_residual_block(layout, level, features, [1, 1, 1]) for _ in range(1, num_blocks)),
    )
    return nn.Sequential(parts)


def _convolution(layout: Layout, level: int, in_channels: int) -> nn.Module:
    from monai.networks.blocks.convolutions import Convolution

    made: nn.Module = Convolution(
        3,
        in_channels,
        layout.channels[level],
        kernel_size=layout.kernel_sizes[level],
        adn_ordering="DNA",
        act=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        norm=layout.monai_norm,
        dropout=layout.dropout or None,
        bias=False,
    )
    return made


def _residual_block(layout: Layout, level: int, in_channels: int, stride: Sequence[int]) -> nn.Module:
    from monai.networks.blocks.dynunet_block import UnetResBlock, get_conv_layer

    features, dropout = layout.channels[level], layout.dropout or None
    block: Any = UnetResBlock(
        3,
        in_channels,
        features,
        kernel_size=layout.kernel_sizes[level],
        stride=stride,
        norm_name=layout.monai_norm,
        dropout=dropout,
    )
    nn.init.zeros_(block.norm2.weight)
    if any(step > 1 for step in stride):  # average, where MONAI's shortcut takes the first voxel of each block
        steps = (stride[0], stride[1], stride[2])
        pool = nn.AvgPool3d(steps, steps)
        if in_channels == features:
            block.conv3, block.norm3 = pool, nn.Identity()
        else:
            project = get_conv_layer(
                3, in_channels, features, kernel_size=1, act=None, norm=None, dropout=dropout, conv_only=False
            )
            block.conv3 = nn.Sequential(OrderedDict(pool=pool, project=project))
    made: nn.Module = block
    return made


def _upsample(layout: Layout, level: int) -> nn.Module:
    from monai.networks.blocks.dynunet_block import UnetUpBlock

    features, stride = layout.channels[level], layout.strides[level + 1]
    block: Any = UnetUpBlock(
        3,
        layout.channels[level + 1],
        features,
        kernel_size=layout.kernel_sizes[level],
        stride=stride,
        upsample_kernel_size=stride,
        norm_name=layout.monai_norm,
        dropout=layout.dropout or None,
        trans_bias=layout.upsample_bias,
    )
    block.conv_block = _convolution(layout, level, 2 * features)
    made: nn.Module = block
    return made
