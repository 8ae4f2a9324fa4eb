"""Losses of overlap over the foreground classes: Dice, Tversky, focal Tversky, noise-robust Dice and blob Dice.

What holds for all of them, p being the probability and y the reference of one foreground class:

- Sums run over the valid voxels of a case, or of the whole batch with `batch_dice`, each voxel times its weight.
- A class without any (weighted) voxel in the target has no overlap to speak of. It leaves the average over
  classes and cases, and has no gradient. With no class present the loss is 0 with zero gradients.
- Of soft labels tp = min(p, y), fp = p - tp and fn = y - tp, the usual products where y is 0 or 1. So the loss of
  a present class is 0 at p = y and nowhere else (of lesions alone see `blob_dice_loss`); p y would drive p to 1.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medfocal.losses.activation import Activation
from medfocal.losses.instances import check_connectivity, label_instances
from medfocal.losses.module import TrainingLoss
from medfocal.losses.options import check_not_negative, check_positive
from medfocal.losses.target import (
    Labels,
    Probabilities,
    check_logits,
    check_target,
    check_weight,
    over,
    without_ignored,
)

# Below this a power with an exponent < 1 is replaced by a straight line through 0.
_BEND = 1e-6


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """Soft Dice loss, 1 - (2 sum min(p, y) + smooth) / (sum p + sum y + smooth).

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Labels of any integer type, (B, *spatial) or (B, 1, *spatial), or probabilities in the logits'
            shape; as in `focal_loss`.
        activation: "softmax", where channel 0 is the background, or "sigmoid", where channels are the classes
            1..C.
        weight: Weight per voxel, >= 0, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that count in no sum. Only with integer labels.
        batch_dice: Pool the cases of the batch before dividing.
        smooth: Added above and below, >= 0.

    Returns:
        The mean over the present foreground classes (and cases) in fp32, or fp64 for fp64 logits; in [0, 1].
        Finite, with finite gradients, for |logit| <= 1e4. Without any present class 0 with zero gradients.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 4), torch.tensor([[0, 1, 1, 1]])
        >>> round(float(dice_loss(logits, labels, smooth=0.0)), 4)  # 1 - 2 * 1.5 / (2 + 3)
        0.4

    References:
        Milletari et al., "V-Net", 3DV 2016; there with squares below. min(p, y) instead of p y is ours.
    """
    check_not_negative("smooth", smooth)
    maps = _read(logits, target, activation, weight, ignore_index, pooled=batch_dice)
    return mean_of_present(*_dice(maps, smooth))


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """1 - TI with the Tversky index TI = (TP + smooth / 2) / (TP + a FP + b FN + smooth / 2).

    TP, FP and FN are the sums of min(p, y), p - min(p, y) and y - min(p, y), a is `false_positive_weight` and b
    `false_negative_weight`. At a = b = 0.5 this is `dice_loss` with the same `smooth`.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Integer labels or probabilities, as in `dice_loss`.
        false_positive_weight: a > 0. Salehi's alpha; Abraham and Khan write beta.
        false_negative_weight: b > 0. Salehi's beta; Abraham and Khan write alpha. Above a it favours
            sensitivity.
        activation: "softmax" or "sigmoid".
        weight: Weight per voxel, >= 0, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that count in no sum. Only with integer labels.
        batch_dice: Pool the cases of the batch before dividing.
        smooth: As in `dice_loss`, >= 0.

    Returns:
        The mean over the present foreground classes (and cases), in [0, 1]; as `dice_loss`.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 4), torch.tensor([[0, 1, 1, 1]])
        >>> round(float(tversky_loss(logits, labels, smooth=0.0)), 4)  # 1 - 1.5 / (1.5 + 0.3 * 0.5 + 0.7 * 1.5)
        0.4444

    References:
        Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep
        networks", MLMI 2017; weights 0.3 and 0.7 as they found best.
    """
    check_tversky(false_positive_weight, false_negative_weight)
    check_not_negative("smooth", smooth)
    maps = _read(logits, target, activation, weight, ignore_index, pooled=batch_dice)
    return mean_of_present(*_tversky(maps, false_positive_weight, false_negative_weight, smooth))


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    exponent: float = 0.75,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """(1 - TI)^exponent, per class and case, with the Tversky index of `tversky_loss`.

    `exponent` is what stands above the bracket: 1 / gamma in Abraham and Khan, whose gamma is 4/3. Below 1 it
    raises the share of classes that are nearly right, above 1 that of those nearly missed; many programs call
    one or the other gamma.

    With an exponent < 1 the slope of x^exponent grows without bound as x = 1 - TI falls to 0. Below x = 1e-6 we
    follow the straight line to 0 instead, so that the slope is at most 1e-6^(exponent - 1), 32 by default. For
    hard labels p = y is reached only in the limit and the gradient vanishes there; with soft labels the slope
    jumps from minus to plus at p = y, as |p - y|^0.75 has it.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Integer labels or probabilities, as in `dice_loss`.
        exponent: > 0.
        false_positive_weight: > 0, as in `tversky_loss`.
        false_negative_weight: > 0, as in `tversky_loss`.
        activation: "softmax" or "sigmoid".
        weight: Weight per voxel, >= 0, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that count in no sum. Only with integer labels.
        batch_dice: Pool the cases of the batch before dividing.
        smooth: As in `dice_loss`, >= 0.

    Returns:
        The mean over the present foreground classes (and cases), in [0, 1]; as `dice_loss`.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 4), torch.tensor([[0, 1, 1, 1]])
        >>> round(float(focal_tversky_loss(logits, labels, smooth=0.0)), 4)  # (4 / 9)^0.75
        0.5443

    References:
        Abraham and Khan, "A novel focal Tversky loss function with improved attention U-Net for lesion
        segmentation", ISBI 2019. They sum over classes, we average.
    """
    check_positive("exponent", exponent)
    check_tversky(false_positive_weight, false_negative_weight)
    check_not_negative("smooth", smooth)
    maps = _read(logits, target, activation, weight, ignore_index, pooled=batch_dice)
    return mean_of_present(*_focal_tversky(maps, false_positive_weight, false_negative_weight, smooth, exponent))


def noise_robust_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    exponent: float = 1.5,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """Noise-robust Dice loss, sum |p - y|^exponent / (sum p^2 + sum y^2 + smooth).

    At exponent 2 this is the Dice loss with squares below; towards 1, that of an absolute error, single wrong
    voxels weigh less. An exponent from 1 on has a finite slope everywhere; at p = y the gradient is 0.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Integer labels or probabilities, as in `dice_loss`.
        exponent: In [1, 2]; the paper's gamma.
        activation: "softmax" or "sigmoid".
        weight: Weight per voxel, >= 0, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that count in no sum. Only with integer labels.
        batch_dice: Pool the cases of the batch before dividing.
        smooth: Added below, >= 0; the paper's epsilon.

    Returns:
        The mean over the present foreground classes (and cases), >= 0; as `dice_loss`. At most 1 at exponent 2;
        at smaller ones many faint false positives, whose squares are next to nothing, can bring it above 1.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 4), torch.tensor([[0, 1, 1, 1]])
        >>> round(float(noise_robust_dice_loss(logits, labels, smooth=0.0)), 4)  # 4 * 0.5^1.5 / (4 * 0.25 + 3)
        0.3536

    References:
        Wang et al., "A noise-robust framework for automatic segmentation of COVID-19 pneumonia lesions from CT
        images", IEEE TMI 2020.
    """
    _check_noise_exponent(exponent)
    check_not_negative("smooth", smooth)
    maps = _read(logits, target, activation, weight, ignore_index, pooled=batch_dice)
    return mean_of_present(*_noise_robust_dice(maps, exponent, smooth))


def blob_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    global_weight: float = 2.0,
    blob_weight: float = 1.0,
    connectivity: int = 26,
    instances: Tensor | None = None,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """global_weight * `dice_loss` + blob_weight * the mean over lesions of the Dice loss of each lesion.

    A lesion's Dice loss is taken over the volume with the other lesions of its class and case masked out, so
    that a lesion of 10 voxels counts as much as one of 10 000. Over lesion l and the background b that all
    lesions of the class and case share, it is 1 - (2 (I_l + I_b) + smooth) / (S_l + S_b + smooth), where I sums
    min(p, y) and S sums p + y. For hard labels I_b = 0 and S_b is the sum of the false positives' p. So one sum
    per lesion over its own voxels and one over the background are all there is to do, whatever the number of
    lesions.

    A class's own voxels are those labelled so, or with probability >= 0.5; the rest is background. Without
    `instances` the lesions are their connected components. Ignored voxels belong to no lesion, and part what
    only they connect. Lesions are averaged per class and case, or per class over the batch with `batch_dice`;
    the means are averaged over the classes and cases that have lesions. A lesion all of whose voxels weigh 0
    leaves the average. The paper has one class and averages over the lesions of a case.

    The minimum lies at p = y, for soft labels too. Yet where a soft reference stays below 0.5 there are no
    lesions, and only the global term sees it: without one, every p is as good.

    Args:
        logits: (B, C, *spatial) with 0 to 3 spatial axes, or more with `instances`.
        target: Integer labels or probabilities, as in `dice_loss`.
        global_weight: Factor of the Dice loss of whole classes, >= 0.
        blob_weight: Factor of the mean over lesions, >= 0.
        connectivity: Number of neighbours of a voxel, as in `label_instances`; not used with `instances` or
            without spatial axes.
        instances: Lesion numbers from 1, any integer type but bool, 0 outside: (B, *spatial), (B, 1, *spatial),
            or (B, K, *spatial) with a map for each of the K foreground classes. Numbers count within a class
            and case, on the class's own voxels only; own voxels numbered 0 are masked out for all lesions.
        activation: "softmax" or "sigmoid".
        weight: Weight per voxel, >= 0, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that count in no sum. Only with integer labels.
        batch_dice: Pool the cases of the batch before dividing in the global term, and their lesions in the mean.
        smooth: Added above and below, >= 0.

    Returns:
        A scalar in [0, global_weight + blob_weight]; as `dice_loss`.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 6), torch.tensor([[1, 0, 1, 1, 1, 0]])
        >>> of_lesions = blob_dice_loss(logits, labels, connectivity=2, global_weight=0.0, smooth=0.0)
        >>> round(float(of_lesions), 4)  # mean of 1 - 2 * 0.5 / (1.5 + 1) and 1 - 2 * 1.5 / (2.5 + 3)
        0.5273

    References:
        Kofler et al., "blob loss: instance imbalance aware loss functions for semantic segmentation", IPMI
        2023; weights 2 and 1 as theirs.
    """
    _check_blob_weights(global_weight, blob_weight)
    check_not_negative("smooth", smooth)
    maps = _read(logits, target, activation, weight, ignore_index, pooled=batch_dice)
    of_lesions = mean_of_present(*_blob_dice(maps, _lesion_numbers(maps.own, instances, connectivity), smooth))
    return global_weight * mean_of_present(*_dice(maps, smooth)) + blob_weight * of_lesions


@dataclasses.dataclass(frozen=True)
class _Foreground:
    """The K foreground classes of a prediction and its target.

    Attributes:
        probability: (B, K, *).
        reference: Probabilities in the target, 0 or 1 for labels, (B, K, *) in the same dtype.
        share: What a voxel counts in a sum, (B, 1, *). None: every voxel counts 1.
        pooled: Sums run over the cases of the batch too.
    """

    probability: Tensor
    reference: Tensor
    share: Tensor | None
    pooled: bool

    @property
    def own(self) -> Tensor:
        """Voxels of the reference that are rather of the class than not, bool (B, K, *)."""
        return self.reference >= 0.5

    def shared(self, values: Tensor) -> Tensor:
        """Values (B, K, *) times what their voxels count."""
        return values if self.share is None else self.share * values

    def total(self, values: Tensor) -> Tensor:
        """Sum of values (B, K, *) over voxels: (K,) if pooled, else (B, K)."""
        axes = tuple(axis for axis in range(values.ndim) if axis != 1 and (self.pooled or axis != 0))
        shared = self.shared(values)
        return shared.sum(dim=axes) if axes else shared


def _read(
    logits: Tensor,
    target: Tensor,
    activation: str,
    weight: Tensor | None,
    ignore_index: int | None,
    *,
    pooled: bool,
) -> _Foreground:
    kind = Activation(activation)
    check_logits(logits, kind)
    checked = check_target(target, logits, activation=kind, ignore_index=ignore_index)
    probability = torch.sigmoid(kind.foreground(kind.log_odds(without_ignored(logits, checked.valid))))
    if isinstance(checked, Labels):
        reference = checked.foreground(probability.shape[1]).to(probability.dtype)
    else:
        reference = kind.foreground(checked.values)
    share = _voxel_share(checked.valid, check_weight(weight, logits), like=probability)
    return _Foreground(probability, reference, share, pooled)


def _voxel_share(valid: Tensor | None, weight: Tensor | None, *, like: Tensor) -> Tensor | None:
    if valid is None:
        return None if weight is None else weight.unsqueeze(1)
    share = valid.to(like.dtype) if weight is None else weight.masked_fill(~valid, 0.0)
    return share.unsqueeze(1)


def mean_of_present(losses: Tensor, present: Tensor, by: Tensor | None = None) -> Tensor:
    """Mean of the losses that are present, 0 if none is; or their sum over `by`, such as the number in all parts."""
    total = torch.where(present, losses, 0.0).sum()
    return total / present.sum().clamp_min(1) if by is None else over(total, by)


def num_present(
    target: Labels | Probabilities, weight: Tensor | None, *, activation: Activation, by_half: bool = False
) -> Tensor:
    """Number of cases times foreground classes with a voxel in the target, 0-dimensional fp64.

    Args:
        target: (B, *) or (B, C, *).
        weight: Of voxels, (B, *); what weighs 0 is not there.
        activation: Which channels are foreground.
        by_half: Whether a voxel is of the class from probability 0.5 on, and not from any above 0.
    """
    if isinstance(target, Labels):
        num_classes = int(target.values.max()) if target.values.numel() else 0
        is_class = target.foreground(num_classes)  # the ignored are 0
    else:
        shares = activation.foreground(target.values)
        is_class = shares >= 0.5 if by_half else ~(shares <= 0.0)  # a NaN is no absence
    if weight is not None:
        is_class = is_class & ~(weight <= 0.0).unsqueeze(1)
    axes = tuple(range(2, is_class.ndim))
    return (is_class.any(dim=axes) if axes else is_class).sum(dtype=torch.float64)


def why_not_pooled(*, batch_dice: bool) -> str | None:
    """Why a loss of sums over the batch is no sum over its parts, as a clause; None: it is."""
    if not batch_dice:
        return None
    return "batch_dice=true takes one quotient over all patches of a batch (batch_dice=false takes one for each)"


def _dice(maps: _Foreground, smooth: float) -> tuple[Tensor, Tensor]:
    overlap = maps.total(torch.minimum(maps.probability, maps.reference))
    size_of_reference = maps.total(maps.reference)
    sizes = maps.total(maps.probability) + size_of_reference
    return dice_of_sums(overlap, sizes, size_of_reference, smooth)


def dice_of_sums(overlap: Tensor, sizes: Tensor, size_of_reference: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Dice loss of each class, or lesion, and whether it is present.

    In an absent one, smooth / (sum p + smooth) would be 0 or 1 by the accident of `smooth`, with a gradient of
    up to 1 / smooth as the prediction empties.
    """
    present = ~(size_of_reference <= 0.0)  # a NaN is no absence
    # Where absent, the divisor is replaced before the division so that no NaN reaches the gradient.
    ratio = (2.0 * overlap + smooth) / torch.where(present, sizes + smooth, 1.0)
    return 1.0 - ratio, present


def _tversky(
    maps: _Foreground, false_positive_weight: float, false_negative_weight: float, smooth: float
) -> tuple[Tensor, Tensor]:
    return tversky_of_sums(
        maps.total(F.relu(maps.probability - maps.reference)),
        maps.total(F.relu(maps.reference - maps.probability)),
        maps.total(maps.reference),
        false_positive_weight=false_positive_weight,
        false_negative_weight=false_negative_weight,
        smooth=smooth,
    )


def _focal_tversky(
    maps: _Foreground, false_positive_weight: float, false_negative_weight: float, smooth: float, exponent: float
) -> tuple[Tensor, Tensor]:
    losses, present = _tversky(maps, false_positive_weight, false_negative_weight, smooth)
    return bent_power(losses, exponent), present


def _noise_robust_dice(maps: _Foreground, exponent: float, smooth: float) -> tuple[Tensor, Tensor]:
    errors = maps.total((maps.probability - maps.reference).abs().pow(exponent))
    squares_of_reference = maps.total(maps.reference.square())
    squares = maps.total(maps.probability.square()) + squares_of_reference
    present = ~(squares_of_reference <= 0.0)  # a NaN is no absence
    return errors / torch.where(present, squares + smooth, 1.0), present


def tversky_of_sums(
    false_positives: Tensor,
    false_negatives: Tensor,
    size_of_reference: Tensor,
    *,
    false_positive_weight: float,
    false_negative_weight: float,
    smooth: float,
) -> tuple[Tensor, Tensor]:
    """1 - TI of each class, and whether it is present.

    Taken as (a FP + b FN) / (TP + a FP + b FN + smooth / 2), which keeps its relative precision as TI nears 1
    and is never negative.
    """
    errors = false_positive_weight * false_positives + false_negative_weight * false_negatives
    present = ~(size_of_reference <= 0.0)  # a NaN is no absence
    whole = size_of_reference - false_negatives + errors + 0.5 * smooth
    return errors / torch.where(present, whole, 1.0), present


def bent_power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for base >= 0, along a straight line below `_BEND` if the exponent is < 1."""
    if exponent >= 1.0:
        return base.pow(exponent)
    return torch.where(base < _BEND, base * _BEND ** (exponent - 1.0), base.clamp_min(_BEND).pow(exponent))


def _blob_dice(maps: _Foreground, numbers: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """Mean Dice loss of the lesions of each class, and whether it has any: (B, K), or (K,) if pooled."""
    lesion = numbers > 0
    values, rank = torch.unique(numbers[lesion], return_inverse=True)
    num_cases, num_classes, num_lesions = *numbers.shape[:2], len(values)
    class_and_case = torch.arange(num_cases * num_classes, device=numbers.device)
    class_and_case = class_and_case.reshape(num_cases, num_classes, *[1] * (numbers.ndim - 2)).expand(numbers.shape)
    slot = class_and_case[lesion] * num_lesions + rank

    def of_lesions(voxels: Tensor) -> Tensor:
        # Lesions are summed voxel by voxel, where fp32 would lose the voxels of large ones.
        shared = maps.shared(voxels).masked_select(lesion).double()
        sums = shared.new_zeros(num_cases * num_classes * num_lesions).index_add(0, slot, shared)
        return sums.reshape(num_cases, num_classes, num_lesions)

    by_case = dataclasses.replace(maps, pooled=False)
    own = maps.own

    def of_background(voxels: Tensor) -> Tensor:
        return by_case.total(voxels.masked_fill(own, 0.0)).unsqueeze(-1)

    overlap = torch.minimum(maps.probability, maps.reference)
    both = maps.probability + maps.reference
    losses, present = dice_of_sums(
        of_lesions(overlap) + of_background(overlap),
        of_lesions(both) + of_background(both),
        of_lesions(maps.reference),
        smooth,
    )
    axes = (0, 2) if maps.pooled else (2,)
    num_present = present.sum(dim=axes)
    total = torch.where(present, losses, 0.0).sum(dim=axes)
    return (total / num_present.clamp_min(1)).to(maps.probability.dtype), num_present > 0


def _lesion_numbers(own: Tensor, instances: Tensor | None, connectivity: int) -> Tensor:
    """Lesion numbers of each class and case, (B, K, *), 0 outside `own`."""
    if instances is not None:
        return _check_instances(instances, own).expand(own.shape).masked_fill(~own, 0)
    if own.ndim == 2:
        return own.to(torch.int32)  # without spatial axes the one voxel is the lesion
    return label_instances(own.flatten(0, 1), connectivity=connectivity).reshape(own.shape)


def _check_instances(instances: Tensor, own: Tensor) -> Tensor:
    """Read lesion numbers as int64 (B, 1, *) or (B, K, *)."""
    num_cases, num_classes, *spatial = own.shape
    numbers = instances.unsqueeze(1) if instances.ndim == own.ndim - 1 else instances
    if numbers.shape not in ((num_cases, 1, *spatial), own.shape):
        raise ValueError(
            f"instances must have shape {(num_cases, *spatial)}, {(num_cases, 1, *spatial)} or {tuple(own.shape)} "
            f"for {num_classes} foreground classes, got {tuple(instances.shape)}"
        )
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(
            f"instances must be integers that number the lesions, got {instances.dtype}; "
            "leave instances out to number a mask's components"
        )
    numbers = numbers.to(torch.int64)
    if (numbers < 0).any():
        raise ValueError(f"instances must be >= 0, got {int(numbers.min())}")
    return numbers


def check_tversky(false_positive_weight: float, false_negative_weight: float) -> tuple[float, float]:
    """Return both weights if they are > 0."""
    return (
        check_positive("false_positive_weight", false_positive_weight),
        check_positive("false_negative_weight", false_negative_weight),
    )


def _check_noise_exponent(exponent: float) -> float:
    if not 1.0 <= exponent <= 2.0:
        raise ValueError(f"exponent must be in [1, 2], got {exponent}")
    return float(exponent)


def _check_blob_weights(global_weight: float, blob_weight: float) -> tuple[float, float]:
    weights = check_not_negative("global_weight", global_weight), check_not_negative("blob_weight", blob_weight)
    if weights == (0.0, 0.0):
        raise ValueError("global_weight and blob_weight are both 0; raise one")
    return weights


class _OverlapLoss(TrainingLoss):
    """Options that all modules below have; there is no voxelwise term, so gamma is 0.0 and alpha None."""

    def __init__(self, *, activation: str, ignore_index: int | None, batch_dice: bool, smooth: float) -> None:
        super().__init__()
        self.activation = Activation(activation).value
        self.ignore_index = ignore_index
        self.batch_dice = batch_dice
        self.smooth = check_not_negative("smooth", smooth)

    @property
    def why_not_split(self) -> str | None:
        """As in `TrainingLoss`: where the patches of a batch are pooled."""
        return why_not_pooled(batch_dice=self.batch_dice)

    def _sizes(self, target: Labels | Probabilities, weight: Tensor | None) -> list[Tensor]:
        return [num_present(target, weight, activation=Activation(self.activation))]

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """The loss; shapes as in `dice_loss`, `whole` as in `TrainingLoss`."""
        (of_batch,) = self._divisors(whole)
        return mean_of_present(*self._of_classes(self._read(logits, target, weight)), of_batch)

    def _read(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> _Foreground:
        return _read(logits, target, self.activation, weight, self.ignore_index, pooled=self.batch_dice)

    @abstractmethod
    def _of_classes(self, maps: _Foreground) -> tuple[Tensor, Tensor]:
        """Loss of each class and case, and whether it is present: (B, K), or (K,) if pooled."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function of the same name."""
        return {
            "activation": self.activation,
            "ignore_index": self.ignore_index,
            "batch_dice": self.batch_dice,
            "smooth": self.smooth,
        }

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())


class DiceLoss(_OverlapLoss):
    """`dice_loss` with its options fixed. Called `loss(logits, target, weight=None)`.

    Args:
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.
        batch_dice: Pool the cases of a batch into one Dice per class.
        smooth: Added above and below, >= 0.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        activation: str = "softmax",
        ignore_index: int | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(activation=activation, ignore_index=ignore_index, batch_dice=batch_dice, smooth=smooth)

    def _of_classes(self, maps: _Foreground) -> tuple[Tensor, Tensor]:
        return _dice(maps, self.smooth)


class TverskyLoss(_OverlapLoss):
    """`tversky_loss` with its options fixed. Called `loss(logits, target, weight=None)`.

    Args:
        false_positive_weight: > 0.
        false_negative_weight: > 0; above the other it favours sensitivity.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.
        batch_dice: Pool the cases of a batch into one index per class.
        smooth: >= 0, as in `dice_loss`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        false_positive_weight: float = 0.3,
        false_negative_weight: float = 0.7,
        activation: str = "softmax",
        ignore_index: int | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(activation=activation, ignore_index=ignore_index, batch_dice=batch_dice, smooth=smooth)
        weights = check_tversky(false_positive_weight, false_negative_weight)
        self.false_positive_weight, self.false_negative_weight = weights

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `tversky_loss`."""
        return {
            "false_positive_weight": self.false_positive_weight,
            "false_negative_weight": self.false_negative_weight,
            **super().options(),
        }

    def _of_classes(self, maps: _Foreground) -> tuple[Tensor, Tensor]:
        return _tversky(maps, self.false_positive_weight, self.false_negative_weight, self.smooth)


class FocalTverskyLoss(_OverlapLoss):
    """`focal_tversky_loss` with its options fixed. Called `loss(logits, target, weight=None)`.

    The attribute `gamma` is 0, as of every loss that isn't focal voxel by voxel.

    Args:
        exponent: Power of 1 - TI, > 0; 1 / gamma of the paper.
        false_positive_weight: > 0.
        false_negative_weight: > 0; above the other it favours sensitivity.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.
        batch_dice: Pool the cases of a batch into one index per class.
        smooth: >= 0, as in `dice_loss`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        exponent: float = 0.75,
        false_positive_weight: float = 0.3,
        false_negative_weight: float = 0.7,
        activation: str = "softmax",
        ignore_index: int | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(activation=activation, ignore_index=ignore_index, batch_dice=batch_dice, smooth=smooth)
        self.exponent = check_positive("exponent", exponent)
        weights = check_tversky(false_positive_weight, false_negative_weight)
        self.false_positive_weight, self.false_negative_weight = weights

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `focal_tversky_loss`."""
        return {
            "exponent": self.exponent,
            "false_positive_weight": self.false_positive_weight,
            "false_negative_weight": self.false_negative_weight,
            **super().options(),
        }

    def _of_classes(self, maps: _Foreground) -> tuple[Tensor, Tensor]:
        weights = self.false_positive_weight, self.false_negative_weight
        return _focal_tversky(maps, *weights, self.smooth, self.exponent)


class NoiseRobustDiceLoss(_OverlapLoss):
    """`noise_robust_dice_loss` with its options fixed. Called `loss(logits, target, weight=None)`.

    Args:
        exponent: Power of the error, in [1, 2].
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.
        batch_dice: Pool the cases of a batch into one quotient per class.
        smooth: Added below, >= 0.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        exponent: float = 1.5,
        activation: str = "softmax",
        ignore_index: int | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(activation=activation, ignore_index=ignore_index, batch_dice=batch_dice, smooth=smooth)
        self.exponent = _check_noise_exponent(exponent)

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `noise_robust_dice_loss`."""
        return {"exponent": self.exponent, **super().options()}

    def _of_classes(self, maps: _Foreground) -> tuple[Tensor, Tensor]:
        return _noise_robust_dice(maps, self.exponent, self.smooth)


class BlobDiceLoss(_OverlapLoss):
    """`blob_dice_loss` with its options fixed. Called `loss(logits, target, weight=None, instances=None)`.

    Args:
        global_weight: Factor of the Dice loss of whole classes, >= 0.
        blob_weight: Factor of the mean over lesions, >= 0.
        connectivity: 6, 18 or 26 in three axes, 4 or 8 in two, 2 in one.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.
        batch_dice: Pool the cases of a batch into one Dice per class, and their lesions into one mean.
        smooth: Added above and below, >= 0.

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    num_means = 2

    def __init__(
        self,
        *,
        global_weight: float = 2.0,
        blob_weight: float = 1.0,
        connectivity: int = 26,
        activation: str = "softmax",
        ignore_index: int | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__(activation=activation, ignore_index=ignore_index, batch_dice=batch_dice, smooth=smooth)
        self.global_weight, self.blob_weight = _check_blob_weights(global_weight, blob_weight)
        self.connectivity = check_connectivity(connectivity)

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `blob_dice_loss`."""
        return {
            "global_weight": self.global_weight,
            "blob_weight": self.blob_weight,
            "connectivity": self.connectivity,
            **super().options(),
        }

    def _sizes(self, target: Labels | Probabilities, weight: Tensor | None) -> list[Tensor]:
        kind = Activation(self.activation)
        return [
            num_present(target, weight, activation=kind),
            num_present(target, weight, activation=kind, by_half=True),
        ]

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        instances: Tensor | None = None,
        *,
        whole: Tensor | None = None,
    ) -> Tensor:
        """The loss; shapes as in `blob_dice_loss`, `whole` as in `TrainingLoss` and not with `instances`."""
        if whole is not None and instances is not None:
            raise ValueError("whole counts the lesions that the target shows; give whole or instances, not both")
        of_classes, of_lesions = self._divisors(whole)
        maps = self._read(logits, target, weight)
        blobs = _blob_dice(maps, _lesion_numbers(maps.own, instances, self.connectivity), self.smooth)
        return self.global_weight * mean_of_present(
            *_dice(maps, self.smooth), of_classes
        ) + self.blob_weight * mean_of_present(*blobs, of_lesions)
