"""Sums of a region loss and a voxelwise loss, in two passes over the logits with one activation."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod

from torch import Tensor

from medfocal.losses.activation import Activation
from medfocal.losses.focal import make_formula, make_normaliser, size_of_mean, why_not_normalised
from medfocal.losses.fused import Backend, Job, compute
from medfocal.losses.module import TrainingLoss
from medfocal.losses.options import (
    Alpha,
    CapOption,
    Gamma,
    LabelSmoothing,
    Normalize,
    check_alpha,
    check_cap,
    check_epoch,
    check_gamma,
    check_label_smoothing,
    check_not_negative,
    check_positive,
)
from medfocal.losses.overlap import (
    bent_power,
    check_tversky,
    dice_of_sums,
    mean_of_present,
    num_present,
    tversky_of_sums,
    why_not_pooled,
)
from medfocal.losses.target import Labels, Probabilities, check_logits, check_target, check_weight


class _RegionFocalLoss(TrainingLoss):
    """A loss of sums over voxels plus focal_weight * focal loss; what the classes below share."""

    num_means = 2

    def __init__(
        self,
        *,
        gamma: Gamma,
        alpha: Alpha,
        activation: str,
        label_smoothing: LabelSmoothing,
        ignore_index: int | None,
        cap: CapOption,
        cap_start_epoch: int,
        normalize: str,
        focal_weight: float,
        smooth: float,
        batch_dice: bool,
        backend: str,
    ) -> None:
        super().__init__()
        self.gamma = check_gamma(gamma)
        self.alpha = check_alpha(alpha)
        self.activation = Activation(activation).value
        self.label_smoothing = check_label_smoothing(label_smoothing)
        self.ignore_index = ignore_index
        self.cap = check_cap(cap)
        self.cap_start_epoch = check_epoch("cap_start_epoch", cap_start_epoch)
        self.normalize = Normalize(normalize).value
        self.focal_weight = check_not_negative("focal_weight", focal_weight)
        self.smooth = check_not_negative("smooth", smooth)
        self.batch_dice = batch_dice
        self.backend = Backend(backend).value

    @abstractmethod
    def _region(self, overlap: Tensor, size: Tensor, size_of_target: Tensor, *, by: Tensor | None) -> Tensor:
        """The loss of sum min(p, y), sum p and sum y, each (B, foreground classes) or (1, ...).

        Its mean is over `by` classes and cases; None: over those that are present.
        """

    @property
    def why_not_split(self) -> str | None:
        """As in `TrainingLoss`: where a term is not a mean over something that the target tells."""
        return why_not_normalised(self.normalize) or why_not_pooled(batch_dice=self.batch_dice)

    def _sizes(self, target: Labels | Probabilities, weight: Tensor | None) -> list[Tensor]:
        kind = Activation(self.activation)
        return [
            size_of_mean(target, weight, activation=kind, alpha=self.alpha, mode=Normalize(self.normalize)),
            num_present(target, weight, activation=kind),
        ]

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """Weighted sum of both terms; shapes as in `focal_loss`, `whole` as in `TrainingLoss`."""
        of_voxels, of_classes = self._divisors(whole)
        kind = Activation(self.activation)
        check_logits(logits, kind)
        formula = make_formula(
            kind,
            logits.shape[1],
            gamma=self.gamma,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
            cap=self.cap if self.epoch >= self.cap_start_epoch else None,
        )
        checked = check_target(target, logits, activation=kind, ignore_index=self.ignore_index)
        voxel_weight = check_weight(weight, logits)
        job = Job(
            formula,
            checked,
            voxel_weight,
            make_normaliser(formula, checked, voxel_weight, logits, Normalize(self.normalize), of_voxels),
            focal_weight=self.focal_weight,
            region=functools.partial(self._region, by=of_classes),
            pooled=self.batch_dice,
            backend=Backend(self.backend),
        )
        loss, num_capped = compute(logits, job)
        if self.cap is not None:
            self._add_num_dropped(num_capped)
        return loss

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in inspect.signature(type(self)).parameters)


class DiceFocalLoss(_RegionFocalLoss):
    """dice_weight * soft Dice loss + focal_weight * focal loss, both on the same activation.

    Dice is averaged over the foreground classes (and cases) that the target contains; a patch without
    foreground has the focal loss alone. Ignored voxels and voxel weights count in both terms; label smoothing and
    the cap only in the focal term, because smoothed background would outweigh a small lesion in Dice's sums. Called
    `loss(logits, target, weight=None)`, shapes as in `focal_loss`.

    The first pass takes Dice's sums, the second gives the gradient of both terms: nothing but that is saved.

    Args:
        gamma: Focusing exponent, >= 0, or one per class.
        alpha: None, one number in (0, 1) for two classes, or one per channel.
        activation: "softmax" or "sigmoid", of both terms.
        label_smoothing: Of the focal term, as in `focal_loss`.
        ignore_index: Label of voxels without loss, or None.
        cap: Of the focal term, as in `focal_loss`.
        cap_start_epoch: Epoch from 0 at which the cap begins.
        normalize: What the focal term is divided by, as in `focal_loss`.
        dice_weight: Factor of the Dice term, >= 0.
        focal_weight: Factor of the focal term, >= 0.
        smooth: Added above and below in Dice, >= 0.
        batch_dice: Pool the cases of a batch into one Dice per class.
        backend: "auto", "eager" or "compiled".

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    def __init__(
        self,
        *,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: LabelSmoothing = 0.0,
        ignore_index: int | None = None,
        cap: CapOption = None,
        cap_start_epoch: int = 0,
        normalize: str = "voxels",
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        smooth: float = 1e-5,
        batch_dice: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            gamma=gamma,
            alpha=alpha,
            activation=activation,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            cap=cap,
            cap_start_epoch=cap_start_epoch,
            normalize=normalize,
            focal_weight=focal_weight,
            smooth=smooth,
            batch_dice=batch_dice,
            backend=backend,
        )
        self.dice_weight = check_not_negative("dice_weight", dice_weight)
        if self.dice_weight == self.focal_weight == 0.0:
            raise ValueError("the weights of the Dice term and of the voxelwise term are both 0; raise one")

    def _region(self, overlap: Tensor, size: Tensor, size_of_target: Tensor, *, by: Tensor | None) -> Tensor:
        losses, present = dice_of_sums(overlap, size + size_of_target, size_of_target, self.smooth)
        return self.dice_weight * mean_of_present(losses, present, by)


class TverskyFocalLoss(_RegionFocalLoss):
    """tversky_weight * focal Tversky loss + focal_weight * focal loss, both on the same activation.

    The region term is `focal_tversky_loss`; at exponent 1 it is `tversky_loss`. Conventions as in `DiceFocalLoss`.

    Args:
        gamma: Focusing exponent, >= 0, or one per class.
        alpha: None, one number in (0, 1) for two classes, or one per channel.
        activation: "softmax" or "sigmoid", of both terms.
        label_smoothing: Of the focal term, as in `focal_loss`.
        ignore_index: Label of voxels without loss, or None.
        cap: Of the focal term, as in `focal_loss`.
        cap_start_epoch: Epoch from 0 at which the cap begins.
        normalize: What the focal term is divided by, as in `focal_loss`.
        false_positive_weight: As in `tversky_loss`, > 0.
        false_negative_weight: As in `tversky_loss`, > 0; above the other it favours sensitivity.
        exponent: As in `focal_tversky_loss`, > 0.
        tversky_weight: Factor of the Tversky term, >= 0.
        focal_weight: Factor of the focal term, >= 0.
        smooth: As in `tversky_loss`, >= 0.
        batch_dice: Pool the cases of a batch into one index per class.
        backend: "auto", "eager" or "compiled".

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    def __init__(
        self,
        *,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: LabelSmoothing = 0.0,
        ignore_index: int | None = None,
        cap: CapOption = None,
        cap_start_epoch: int = 0,
        normalize: str = "voxels",
        false_positive_weight: float = 0.3,
        false_negative_weight: float = 0.7,
        exponent: float = 1.0,
        tversky_weight: float = 1.0,
        focal_weight: float = 1.0,
        smooth: float = 1e-5,
        batch_dice: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            gamma=gamma,
            alpha=alpha,
            activation=activation,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            cap=cap,
            cap_start_epoch=cap_start_epoch,
            normalize=normalize,
            focal_weight=focal_weight,
            smooth=smooth,
            batch_dice=batch_dice,
            backend=backend,
        )
        self.false_positive_weight, self.false_negative_weight = check_tversky(
            false_positive_weight, false_negative_weight
        )
        self.exponent = check_positive("exponent", exponent)
        self.tversky_weight = check_not_negative("tversky_weight", tversky_weight)
        if self.tversky_weight == self.focal_weight == 0.0:
            raise ValueError("the weights of the Tversky term and of the voxelwise term are both 0; raise one")

    def _region(self, overlap: Tensor, size: Tensor, size_of_target: Tensor, *, by: Tensor | None) -> Tensor:
        # Differences of sums may fall below 0 by rounding, where a power with a fraction has no value.
        losses, present = tversky_of_sums(
            (size - overlap).clamp_min(0.0),
            (size_of_target - overlap).clamp_min(0.0),
            size_of_target,
            false_positive_weight=self.false_positive_weight,
            false_negative_weight=self.false_negative_weight,
            smooth=self.smooth,
        )
        return self.tversky_weight * mean_of_present(bent_power(losses, self.exponent), present, by)


class DiceCrossEntropyLoss(TrainingLoss):
    """dice_weight * soft Dice loss + cross_entropy_weight * cross-entropy.

    This is `DiceFocalLoss` at gamma 0 without alpha; its conventions hold.

    Args:
        activation: "softmax" or "sigmoid", of both terms.
        label_smoothing: Of the cross-entropy, as in `focal_loss`.
        ignore_index: Label of voxels without loss, or None.
        dice_weight: Factor of the Dice term, >= 0.
        cross_entropy_weight: Factor of the cross-entropy, >= 0.
        smooth: Added above and below in Dice, >= 0.
        batch_dice: Pool the cases of a batch into one Dice per class.
        backend: "auto", "eager" or "compiled".

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    num_means = 2

    def __init__(
        self,
        *,
        activation: str = "softmax",
        label_smoothing: LabelSmoothing = 0.0,
        ignore_index: int | None = None,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        smooth: float = 1e-5,
        batch_dice: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.terms = DiceFocalLoss(
            gamma=0.0,
            alpha=None,
            activation=activation,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            dice_weight=dice_weight,
            focal_weight=check_not_negative("cross_entropy_weight", cross_entropy_weight),
            smooth=smooth,
            batch_dice=batch_dice,
            backend=backend,
        )
        self.activation = self.terms.activation
        self.label_smoothing = self.terms.label_smoothing
        self.ignore_index = ignore_index

    @property
    def why_not_split(self) -> str | None:
        """As in `DiceFocalLoss`."""
        return self.terms.why_not_split

    def part_sizes(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """As in `DiceFocalLoss`."""
        return self.terms.part_sizes(target, weight)

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """Weighted sum of both terms; shapes as in `focal_loss`, `whole` as in `TrainingLoss`."""
        loss: Tensor = self.terms(logits, target, weight, whole=whole)
        return loss
