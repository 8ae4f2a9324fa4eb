"""What the training loop may ask of any loss of medfocal."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TrainingLoss(nn.Module):
    """A loss on logits, called `loss(logits, target, weight=None)`.

    Attributes:
        activation: "softmax" or "sigmoid".
        gamma: Focusing exponent of the voxelwise term, one or per class; 0.0 without.
        alpha: Class weights of the voxelwise term, or None.
        label_smoothing: Of the voxelwise term.
        epoch: Told by `start_epoch`, from 0.
    """

    activation: str
    gamma: Any = 0.0
    alpha: Any = None
    label_smoothing: Any = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self._num_dropped: Tensor | None = None

    def start_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch begins, from 0."""
        self.epoch = epoch

    def take_num_dropped(self) -> int | None:
        """Number of voxels left out as mislabelled since it was last asked for; None: this loss leaves out none."""
        count, self._num_dropped = self._num_dropped, None
        return None if count is None else int(count)

    def _add_num_dropped(self, count: Tensor) -> None:
        count = count.detach()
        self._num_dropped = count if self._num_dropped is None else self._num_dropped + count
