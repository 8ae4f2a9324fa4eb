"""A full-resolution 3D U-Net whose constructor arguments are data, so that a model folder can carry it."""

from __future__ import annotations

from collections.abc import Sequence

from medfocal.networks.layout import Norm, check_layout
from medfocal.networks.levelled import LevelledUNet


class UNet3d(LevelledUNet):
    """3D U-Net with logits at full resolution.

    Two convolutions per level, strided on the way down, transposed on the way up. The levels are those of
    MONAI's DynUNet. Its last layer is held as `head`, without the dropout that DynUNet puts behind it, and
    each parameter has one name in `state_dict`, where DynUNet has two.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        channels: Features per level, from full resolution down; at least 3 levels.
        kernel_sizes: Convolution size per level, one odd number or one per axis, not smaller than the level's
            stride. On the way up a level has the size of the one below. None: 3 everywhere.
        strides: Stride into each level, one number or one per axis. The first is 1. None: 2 from the second
            level on.
        dropout: Probability of dropping a feature after each convolution but the last, in [0, 1).
        norm: "instance" or "batch", with scale and shift.
        deep_supervision: How many of the next coarser levels give logits of their own in training; at most all but
            the last level.
        upsample_bias: Whether transposed convolutions have a bias, as nnU-Net's have.

    Attributes:
        head: The last convolution (1x1x1, with bias).
        all_heads: `head`, then those of the coarser levels.
        divisor: Product of the strides per axis, 3 integers; a window's shape must be a multiple.
        arguments: Constructor arguments in plain types; `UNet3d(**net.arguments)` has the same `state_dict`
            keys and shapes.
        checkpoint_activations: See `LevelledUNet`.

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
        from monai.networks.nets.dynunet import DynUNet

        levels = DynUNet(
            spatial_dims=3,
            in_channels=layout.in_channels,
            out_channels=layout.out_channels,
            kernel_size=layout.kernel_sizes,
            strides=layout.strides,
            upsample_kernel_size=layout.strides[1:],
            filters=layout.channels,
            dropout=layout.dropout or None,
            norm_name=layout.monai_norm,
            trans_bias=layout.upsample_bias,
        )
        coarse_heads = [
            levels.get_output_block(level).apply(DynUNet.initialize_weights).conv.conv
            for level in range(1, 1 + layout.deep_supervision)
        ]
        super().__init__(levels.skip_layers, levels.output_block.conv.conv, coarse_heads, layout)
