"""Sums of soft Dice and a voxelwise loss, on one activation computed once."""

from __future__ import annotations

import math

from torch import Tensor, nn

from medfocal.losses.activation import Activation
from medfocal.losses.focal import Alpha, check_alpha, check_gamma, check_label_smoothing, focal_of_log_odds
from medfocal.losses.overlap import dice_of_log_odds
from medfocal.losses.target import check_logits, check_target, check_weight, reduce_voxels


class DiceFocalLoss(nn.Module):
    """dice_weight * soft Dice loss + focal_weight * focal loss, both on the same activation.

    Dice is averaged over the foreground classes (and cases) that the target contains; a patch without
    foreground has the focal loss alone. Ignored voxels and voxel weights count in both terms; label smoothing
    only in the focal term, because smoothed background would outweigh a small lesion in Dice's sums. Called
    `loss(logits, target, weight=None)`, shapes as in `focal_loss`.

    Args:
        gamma: Focusing exponent, >= 0.
        alpha: None, one number in (0, 1) for two classes, or one per channel.
        activation: "softmax" or "sigmoid", of both terms.
        label_smoothing: Uniform smoothing of the focal term, in [0, 1).
        ignore_index: Label of voxels without loss, or None.
        dice_weight: Factor of the Dice term, >= 0.
        focal_weight: Factor of the focal term, >= 0.
        smooth: Added above and below in Dice, >= 0.
        batch_dice: Pool the cases of a batch into one Dice per class.

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        smooth: float = 1e-5,
        batch_dice: bool = False,
    ) -> None:
        super().__init__()
        self.gamma = check_gamma(gamma)
        self.alpha = check_alpha(alpha)
        self.activation = Activation(activation).value
        self.label_smoothing = check_label_smoothing(label_smoothing)
        self.ignore_index = ignore_index
        self.dice_weight = _check_not_negative("dice_weight", dice_weight)
        self.focal_weight = _check_not_negative("focal_weight", focal_weight)
        if self.dice_weight == self.focal_weight == 0.0:
            raise ValueError("the weights of the Dice term and of the voxelwise term are both 0; raise one")
        self.smooth = _check_not_negative("smooth", smooth)
        self.batch_dice = batch_dice

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted sum of both terms; shapes as in `focal_loss`."""
        activation = Activation(self.activation)
        check_logits(logits, activation)
        checked = check_target(target, logits, activation=activation, ignore_index=self.ignore_index)
        voxel_weight = check_weight(weight, logits)
        log_odds = activation.log_odds(logits)
        dice = dice_of_log_odds(
            log_odds,
            checked,
            activation=activation,
            weight=voxel_weight,
            smooth=self.smooth,
            batch_dice=self.batch_dice,
        )
        focal = focal_of_log_odds(
            log_odds,
            checked,
            activation=activation,
            gamma=self.gamma,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
        )
        mean_focal = reduce_voxels(focal, valid=checked.valid, weight=voxel_weight, reduction="mean")
        return self.dice_weight * dice + self.focal_weight * mean_focal

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return (
            f"gamma={self.gamma}, alpha={self.alpha}, activation={self.activation!r}, "
            f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}, "
            f"dice_weight={self.dice_weight}, focal_weight={self.focal_weight}, smooth={self.smooth}, "
            f"batch_dice={self.batch_dice}"
        )


class DiceCrossEntropyLoss(nn.Module):
    """dice_weight * soft Dice loss + cross_entropy_weight * cross-entropy.

    This is `DiceFocalLoss` at gamma 0 without alpha; its conventions hold.

    Args:
        activation: "softmax" or "sigmoid", of both terms.
        label_smoothing: Uniform smoothing of the cross-entropy, in [0, 1).
        ignore_index: Label of voxels without loss, or None.
        dice_weight: Factor of the Dice term, >= 0.
        cross_entropy_weight: Factor of the cross-entropy, >= 0.
        smooth: Added above and below in Dice, >= 0.
        batch_dice: Pool the cases of a batch into one Dice per class.

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    def __init__(
        self,
        *,
        activation: str = "softmax",
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        smooth: float = 1e-5,
        batch_dice: bool = False,
    ) -> None:
        super().__init__()
        self.gamma = 0.0
        self.alpha = None
        self.terms = DiceFocalLoss(
            gamma=self.gamma,
            alpha=self.alpha,
            activation=activation,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            dice_weight=dice_weight,
            focal_weight=_check_not_negative("cross_entropy_weight", cross_entropy_weight),
            smooth=smooth,
            batch_dice=batch_dice,
        )
        self.activation = self.terms.activation

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted sum of both terms; shapes as in `focal_loss`."""
        loss: Tensor = self.terms(logits, target, weight)
        return loss


def _check_not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} must be finite and >= 0, got {value}")
    return float(value)
