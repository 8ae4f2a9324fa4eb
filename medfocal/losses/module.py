"""What the training loop may ask of any loss of medfocal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medfocal.losses.target import Labels, Probabilities, target_to_count


class TrainingLoss(nn.Module):
    """A loss on logits, called `loss(logits, target, weight=None)`.

    A batch may be computed in parts, one after the other or by several processes. Each mean then has to be divided by
    its number over the whole batch, or a patch with three lesions beside two without would weigh as in no batch:

        whole = sum of loss.part_sizes(target, weight) over the parts
        loss of the batch = sum of loss(logits, target, weight, whole=whole) over the parts

    in value and gradient. A part with nothing to count, such as one without lesions, brings 0.

    Attributes:
        activation: "softmax" or "sigmoid".
        gamma: Focusing exponent of the voxelwise term, one or per class; 0.0 without.
        alpha: Class weights of the voxelwise term, or None.
        label_smoothing: Of the voxelwise term.
        ignore_index: Label of voxels without loss, or None.
        num_means: Means over different numbers that the loss is the sum of.
        epoch: Told by `start_epoch`, from 0.
    """

    activation: str
    gamma: Any = 0.0
    alpha: Any = None
    label_smoothing: Any = 0.0
    ignore_index: int | None = None
    num_means: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self._num_dropped: Tensor | None = None

    @property
    def why_not_split(self) -> str | None:
        """Why a batch cannot be computed in parts, as a clause; None: it can."""
        return None

    @torch.no_grad()
    def part_sizes(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """What each mean is divided by for these voxels: a number of voxels or of classes, or a sum of weights.

        Args:
            target: As in the call, but any number of classes does: there are no logits to check it against.
            weight: As in the call.

        Returns:
            fp64 (num_means,) on the target's device; 0 where there is nothing to count.

        Raises:
            ValueError: The loss cannot be computed in parts, or target and weight do not go together.
        """
        if self.why_not_split is not None:
            raise ValueError(f"{type(self).__name__} of a part alone has no meaning: {self.why_not_split}")
        checked, voxel_weight = target_to_count(target, weight, ignore_index=self.ignore_index)
        return torch.stack(self._sizes(checked, voxel_weight))

    def _sizes(self, target: Labels | Probabilities, weight: Tensor | None) -> list[Tensor]:  # noqa: ARG002
        """The sizes, each 0-dimensional fp64; here of a mean over the voxels, whatever their weights."""
        return [target.num_voxels]

    def _divisors(self, whole: Tensor | None) -> Sequence[Tensor | None]:
        """What to divide each mean's sum by, 0-dimensional; None: by the number of the voxels at hand."""
        if whole is None:
            return (None,) * self.num_means
        if self.why_not_split is not None:
            raise ValueError(f"{type(self).__name__} takes no whole=: {self.why_not_split}")
        if whole.shape != (self.num_means,):
            raise ValueError(f"whole must be a sum of part_sizes, ({self.num_means},), got {tuple(whole.shape)}")
        return whole.unbind()

    def avoid_compiling(self) -> None:
        """Let backend="auto" be eager from now on, for options that do not stay long enough to pay for a compiler."""
        for part in self.modules():
            if getattr(part, "backend", None) == "auto":
                part.backend = "eager"  # type: ignore[assignment]  # a plain attribute

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
