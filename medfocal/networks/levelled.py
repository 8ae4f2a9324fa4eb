"""What the U-Nets share: the way through the levels, logits of coarser levels, activations computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfocal.networks.layout import Layout, check_window


class LevelledUNet(nn.Module):
    """The way of images through the levels of a U-Net, down and up again.

    Args:
        body: MONAI's nested `DynUNetSkipLayer`: each holds a `downsample`, an `upsample` that takes the features from
            below and those of its own level, and the `next_layer`; the innermost of these is the last level.
        head: Makes the logits at full resolution.
        coarse_heads: Make those of the next levels in training.
        layout: The levels.

    Attributes:
        checkpoint_activations: Whether training keeps only the features that a level takes and computes those within
            it again in the backward pass: less memory, the same gradients.
    """

    def __init__(self, body: nn.Module, head: nn.Conv3d, coarse_heads: list[nn.Module], layout: Layout) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.coarse_heads = nn.ModuleList(coarse_heads)
        self.divisor = layout.divisor
        self.arguments: dict[str, Any] = asdict(layout)
        self.checkpoint_activations = False

    @property
    def all_heads(self) -> list[nn.Module]:
        """The layers that make logits, that of full resolution first, then coarser and coarser."""
        return [self.head, *self.coarse_heads]

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, out_channels, I, J, K) of images (B, in_channels, I, J, K).

        In training with deep supervision, a list: these, then those of each next level on its own, coarser grid.

        Raises:
            ValueError: The window is no multiple of `divisor`, or instance normalisation would see a single
            voxel.
        """
        check_window(images, self.divisor, norm=self.arguments["norm"])
        down, up = self._blocks()
        below, skips, decoded = images, [], []
        for block in down:
            below = self._run(block, below)
            skips.append(below)
        skips.pop()
        for block in reversed(up):
            below = self._run(block, below, skips.pop())
            decoded.append(below)
            if not self._is_supervised:
                decoded.clear()  # features that nothing needs any more
        if not self._is_supervised:
            logits: Tensor = self.head(below)
            return logits
        return [head(features) for head, features in zip(self.all_heads, reversed(decoded), strict=False)]

    @property
    def _is_supervised(self) -> bool:
        return self.training and len(self.coarse_heads) > 0

    def _blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The blocks of all levels on the way down, and those on the way up, both from full resolution down."""
        down, up, layer = [], [], self.body
        for _ in self.arguments["channels"][1:]:
            down.append(layer.get_submodule("downsample"))
            up.append(layer.get_submodule("upsample"))
            layer = layer.get_submodule("next_layer")
        return [*down, layer], up

    def _run(self, block: nn.Module, *features: Tensor) -> Tensor:
        computed: Tensor
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            computed = block(*features)
        elif self.arguments["norm"] == "batch":
            computed = checkpoint(
                block, *features, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_stay(block))
            )
        else:
            computed = checkpoint(block, *features, use_reentrant=False)
        return computed


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Batch normalisation sees the batch a second time here, and its running mean must not."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm, norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)
