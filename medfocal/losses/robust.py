"""Voxelwise losses for labels that are partly wrong, and their companions: trimming and a margin penalty.

All are defined by a loss f(p) of the probability of the label. A target of probabilities y has the expectation
sum_c y_c f(p_c), so a target averaged over readers gives the average of the readers' losses, as with
`focal_loss`. With sigmoid each channel is a problem of two classes and a voxel's loss is the sum over channels.

What makes a loss robust also makes it ready to give up a rare class: a network that knows nothing but the share
s < 1/2 of a class is led by cross-entropy to p = s, by generalised cross-entropy to odds of
(s / (1 - s))^(1 / (1 - q)), 1e-10 for a share of 0.001 at q = 0.7, and by normalised focal loss and reverse
cross-entropy to p = 0. For rare lesions start from a network that was trained with a loss that finds them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medfocal.losses.activation import Activation
from medfocal.losses.focal import FocalLoss, focal_loss
from medfocal.losses.module import TrainingLoss
from medfocal.losses.options import (
    Alpha,
    Gamma,
    LabelSmoothing,
    check_alpha,
    check_epoch,
    check_gamma,
    check_label_smoothing,
    check_not_negative,
)
from medfocal.losses.target import (
    Labels,
    Probabilities,
    Reduction,
    check_logits,
    check_target,
    check_weight,
    over,
    reduce_voxels,
    without_ignored,
)

# Beyond this log-odds, -log p = log(1 + exp(-x)) equals exp(-x) in double precision.
_FAR = 40.0

_OfVoxels = Callable[[Tensor, Labels | Probabilities, Activation], Tensor]


def generalised_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    q: float = 0.7,
    truncation: float | None = None,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalised cross-entropy per voxel: L = sum_c y_c (1 - p_c^q) / q.

    q = 0 is cross-entropy; q = 1 is sum_c y_c (1 - p_c), half the mean absolute error, whose sum over all
    labels is constant. In between, voxels whose label is improbable count p^q as much as in cross-entropy.

    With `truncation` k the loss stays at its value for p = k wherever p <= k: those voxels have no gradient.
    At the start of a training this is every voxel of a rare class, so begin without.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Labels (B, *spatial) or (B, 1, *spatial), or probabilities in the logits' shape, as in
            `focal_loss`.
        q: From cross-entropy, 0, to mean absolute error, 1.
        truncation: k in (0, 1), 0.5 in the paper, or None.
        activation: "softmax" or "sigmoid".
        weight: Weight per voxel, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that have neither loss nor gradient. Only with integer labels.
        reduction: "mean" over voxels that are not ignored, 0 without any; "sum"; or "none" for (B, *spatial).

    Returns:
        The loss in fp32, or fp64 for fp64 logits. Finite, with finite gradients, for |logit| <= 1e4.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 12, 10, 8), torch.zeros(1, 12, 10, 8, dtype=torch.uint8)
        >>> float(generalised_cross_entropy(logits, labels, q=1.0))  # 1 - 1/2
        0.5

    References:
        Zhang and Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy
        labels", NeurIPS 2018: the losses L_q and truncated L_q. The paper alternates between choosing the truncated
        samples and training; here each voxel is truncated by its present probability.
    """
    q, truncation = _check_within("q", q, 0.0, 1.0), _check_truncation(truncation)

    def of_label(log_odds: Tensor) -> Tensor:
        log_probability = F.logsigmoid(log_odds)
        if truncation is not None:
            log_probability = log_probability.clamp_min(math.log(truncation))
        return _generalised_log(log_probability, q)

    return _reduced(_expectation_of(of_label), logits, target, activation, weight, ignore_index, reduction)


def reverse_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    log_zero: float = -4.0,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy with label and prediction exchanged, -sum_c p_c log y_c, where log 0 is `log_zero`.

    For a label t it is -log_zero (1 - p_t), whose sum over all labels is constant.

    Args:
        logits: As in `generalised_cross_entropy`.
        target: As in `generalised_cross_entropy`.
        log_zero: Finite stand-in for log 0, < 0.
        activation: "softmax" or "sigmoid".
        weight: As in `generalised_cross_entropy`.
        ignore_index: As in `generalised_cross_entropy`.
        reduction: As in `generalised_cross_entropy`.

    Returns:
        The loss in fp32, or fp64 for fp64 logits. Finite, with finite gradients, for |logit| <= 1e4.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    References:
        Wang et al., "Symmetric cross entropy for robust learning with noisy labels", ICCV 2019. For
        probabilities y we take the expectation of the loss over labels, not the formula with their log y_c.
    """
    log_zero = _check_log_zero(log_zero)
    of_voxels = _expectation_of(lambda log_odds: _reverse(log_odds, log_zero))
    return _reduced(of_voxels, logits, target, activation, weight, ignore_index, reduction)


def symmetric_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    cross_entropy_weight: float = 0.1,
    reverse_weight: float = 1.0,
    log_zero: float = -4.0,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """cross_entropy_weight * cross-entropy + reverse_weight * `reverse_cross_entropy`.

    The first term learns, the second resists wrong labels.

    Args:
        logits: As in `generalised_cross_entropy`.
        target: As in `generalised_cross_entropy`.
        cross_entropy_weight: Factor of cross-entropy, >= 0; alpha of the paper, where it is 0.1 for CIFAR-10
            and 6 for CIFAR-100.
        reverse_weight: Factor of reverse cross-entropy, >= 0; beta of the paper, 1 and 0.1.
        log_zero: Finite stand-in for log 0, < 0; A of the paper.
        activation: "softmax" or "sigmoid".
        weight: As in `generalised_cross_entropy`.
        ignore_index: As in `generalised_cross_entropy`.
        reduction: As in `generalised_cross_entropy`.

    Returns:
        The loss in fp32, or fp64 for fp64 logits. Finite, with finite gradients, for |logit| <= 1e4.

    Raises:
        ValueError: An argument is malformed or contradicts another, both factors are 0, or a label is no
        class.

    References:
        Wang et al., "Symmetric cross entropy for robust learning with noisy labels", ICCV 2019.
    """
    factors = _check_factors(cross_entropy_weight=cross_entropy_weight, reverse_weight=reverse_weight)
    log_zero = _check_log_zero(log_zero)
    of_voxels = _expectation_of(lambda x: factors[0] * -F.logsigmoid(x) + factors[1] * _reverse(x, log_zero))
    return _reduced(of_voxels, logits, target, activation, weight, ignore_index, reduction)


def normalised_focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 0.5,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Focal loss of the label over the sum of the focal losses of all labels, in [0, 1] per voxel and problem.

    L = sum_c y_c phi(p_c) / sum_k phi(p_k) with phi(p) = (1 - p)^gamma (-log p). Its sum over all labels is 1.

    Args:
        logits: As in `generalised_cross_entropy`.
        target: As in `generalised_cross_entropy`.
        gamma: Focusing exponent, >= 0; 0 is normalised cross-entropy.
        activation: "softmax" or "sigmoid".
        weight: As in `generalised_cross_entropy`.
        ignore_index: As in `generalised_cross_entropy`.
        reduction: As in `generalised_cross_entropy`.

    Returns:
        The loss in fp32, or fp64 for fp64 logits. Finite, with finite gradients, for |logit| <= 1e4.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    References:
        Ma et al., "Normalized loss functions for deep learning with noisy labels", ICML 2020: NFL.
    """
    gamma = check_not_negative("gamma", gamma)
    return _reduced(_normalised_focal_of(gamma), logits, target, activation, weight, ignore_index, reduction)


def active_passive(
    logits: Tensor,
    target: Tensor,
    *,
    active_weight: float = 1.0,
    passive_weight: float = 1.0,
    gamma: float = 0.5,
    log_zero: float = -4.0,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """active_weight * `normalised_focal` + passive_weight * `reverse_cross_entropy`.

    Each alone is robust and learns too little; the active term raises the label's probability, the passive
    one lowers the others'.

    Args:
        logits: As in `generalised_cross_entropy`.
        target: As in `generalised_cross_entropy`.
        active_weight: Factor of the normalised focal loss, >= 0; alpha of the paper.
        passive_weight: Factor of reverse cross-entropy, >= 0; beta of the paper.
        gamma: Focusing exponent of the active term, >= 0.
        log_zero: Finite stand-in for log 0 in the passive term, < 0.
        activation: "softmax" or "sigmoid".
        weight: As in `generalised_cross_entropy`.
        ignore_index: As in `generalised_cross_entropy`.
        reduction: As in `generalised_cross_entropy`.

    Returns:
        The loss in fp32, or fp64 for fp64 logits. Finite, with finite gradients, for |logit| <= 1e4.

    Raises:
        ValueError: An argument is malformed or contradicts another, both factors are 0, or a label is no
        class.

    References:
        Ma et al., "Normalized loss functions for deep learning with noisy labels", ICML 2020: NFL+RCE
        with its settings for CIFAR-10.
    """
    factors = _check_factors(active_weight=active_weight, passive_weight=passive_weight)
    gamma = check_not_negative("gamma", gamma)
    log_zero = _check_log_zero(log_zero)
    active = _normalised_focal_of(gamma)
    passive = _expectation_of(lambda log_odds: _reverse(log_odds, log_zero))

    def of_voxels(log_odds: Tensor, checked: Labels | Probabilities, kind: Activation) -> Tensor:
        return factors[0] * active(log_odds, checked, kind) + factors[1] * passive(log_odds, checked, kind)

    return _reduced(of_voxels, logits, target, activation, weight, ignore_index, reduction)


def bootstrapped_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    beta: float | None = None,
    hard: bool = False,
    gamma: float = 0.0,
    activation: str = "softmax",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy, or focal loss, with a target that is partly the prediction: y' = beta y + (1 - beta) z.

    L = sum_c y'_c (1 - p_c)^gamma (-log p_c). Soft: z is the prediction p itself, so the second part is
    (1 - beta) times its entropy. Hard: z is the most probable class, as a constant.

    In the soft form the gradient also goes through z, as in the paper. With z held constant it would be
    p - y' = beta (p - y) at gamma 0: cross-entropy times beta, and no bootstrapping at all.

    Args:
        logits: As in `generalised_cross_entropy`.
        target: As in `generalised_cross_entropy`.
        beta: Share of the label in the target, in (0, 1]. None: 0.95 soft and 0.8 hard, as in the paper.
        hard: Mix in the most probable class instead of the probabilities.
        gamma: Focusing exponent, >= 0; 0 in the paper.
        activation: "softmax" or "sigmoid".
        weight: As in `generalised_cross_entropy`.
        ignore_index: As in `generalised_cross_entropy`.
        reduction: As in `generalised_cross_entropy`.

    Returns:
        The loss in fp32, or fp64 for fp64 logits. Finite, with finite gradients, for |logit| <= 1e4.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    References:
        Reed et al., "Training deep neural networks on noisy labels with bootstrapping", ICLR workshop
        2015.
    """
    share = _check_beta(beta, hard=hard)
    gamma = check_not_negative("gamma", gamma)
    expectation = _expectation_of(lambda log_odds: _focal(log_odds, gamma))

    def of_voxels(log_odds: Tensor, checked: Labels | Probabilities, kind: Activation) -> Tensor:
        of_prediction = expectation(log_odds, _own_target(log_odds, kind, hard=hard), kind)
        return share * expectation(log_odds, checked, kind) + (1.0 - share) * of_prediction

    return _reduced(of_voxels, logits, target, activation, weight, ignore_index, reduction)


def trim_highest(loss: Tensor, labels: Tensor, *, rates: Sequence[float], valid: Tensor | None = None) -> Tensor:
    """Mask of the voxels to keep when each class leaves out its voxels of highest loss.

    Wrong labels tend to have the highest losses, and so do rare classes: one threshold for all would drop
    these. Of the n voxels of class c in the batch, floor(rates[c] n) are left out; among equal losses those
    that come first in memory order. A loss that is NaN is never left out, so that it stays visible.

    Args:
        loss: Loss per voxel, (B, *spatial). No gradient passes.
        labels: Class per voxel, integers of the same shape, 0..len(rates) - 1 where valid.
        rates: Share of the voxels to leave out, one per class, in [0, 1).
        valid: Bool, False for voxels that neither count nor are kept, such as ignored ones. None: all count.

    Returns:
        Bool (B, *spatial), True where the voxel is kept.

    Raises:
        ValueError: Shapes or types differ from the above, a rate is out of range, or a label has no rate.

    Example:
        >>> import torch
        >>> loss, labels = torch.tensor([[0.1, 0.9, 0.2, 3.0]]), torch.tensor([[0, 0, 0, 1]])
        >>> trim_highest(loss, labels, rates=[0.34, 0.5]).tolist()
        [[True, False, True, True]]

    References:
        Han et al., "Co-teaching", NeurIPS 2018, for the selection by small loss; per class is our own.
    """
    rates = _check_rates(rates)
    _check_trim(loss, labels, valid, num_rates=len(rates))
    rank_by = loss.detach().masked_fill(loss.detach().isnan(), -torch.inf).flatten()
    classes = labels.flatten()
    counts = torch.ones_like(classes, dtype=torch.bool) if valid is None else valid.flatten()
    keep = counts.clone()
    for label, rate in enumerate(rates):
        if rate == 0.0:
            continue
        members = (counts & (classes == label)).nonzero().squeeze(1)
        # The summand forgives the rounding of the product: 0.29 * 100 is 28.999999999999996.
        num_dropped = math.floor(rate * len(members) + 1e-6)
        keep[members[_highest(rank_by[members], num_dropped)]] = False
    return keep.reshape(loss.shape)


def margin_penalty(
    logits: Tensor,
    *,
    margin: float = 10.0,
    activation: str = "softmax",
    weight: Tensor | None = None,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Penalty of logits that lie further apart than `margin`, which leaves smaller distances alone.

    Softmax: the mean over classes of max(0, max_k z_k - z_c - margin). Sigmoid: the sum over channels of
    max(0, |z_c| - margin), which is twice the mean over the two classes of each channel.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        margin: Distance without penalty, >= 0. 0 pulls all logits together, as label smoothing does.
        activation: "softmax" or "sigmoid".
        weight: Weight per voxel, (B, *spatial) or (B, 1, *spatial).
        valid: Bool (B, *spatial), False for voxels without penalty. None: all count.
        reduction: "mean" over valid voxels, 0 without any; "sum"; or "none" for (B, *spatial).

    Returns:
        The penalty in fp32, or fp64 for fp64 logits.

    Raises:
        ValueError: An argument is malformed or out of range.

    Example:
        >>> import torch
        >>> float(margin_penalty(torch.tensor([[-8.0, 8.0]]), margin=10.0))  # (16 - 10 + 0) / 2
        3.0

    References:
        Liu et al., "The devil is in the margin: margin-based label smoothing for network calibration", CVPR
        2022.
    """
    kind = Activation(activation)
    margin = check_not_negative("margin", margin)
    check_logits(logits, kind)
    expected = (logits.shape[0], *logits.shape[2:])
    if valid is not None and (valid.shape != expected or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool of shape {expected}, got {valid.dtype} of shape {tuple(valid.shape)}")
    logits = without_ignored(logits.to(torch.promote_types(logits.dtype, torch.float32)), valid)
    if kind is Activation.SOFTMAX:
        penalty = F.relu(logits.amax(dim=1, keepdim=True) - logits - margin).mean(dim=1)
    else:
        penalty = F.relu(logits.abs() - margin).sum(dim=1)
    return reduce_voxels(penalty, valid=valid, weight=check_weight(weight, logits), reduction=reduction)


class _RobustLoss(TrainingLoss):
    """A mean over valid voxels of one of the functions above."""

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """Mean loss; shapes as in `generalised_cross_entropy`, `whole` as in `TrainingLoss`."""
        (of_batch,) = self._divisors(whole)
        if of_batch is None:
            return self._of_voxels(logits, target, weight, "mean")
        return over(self._of_voxels(logits, target, weight, "sum"), of_batch)

    @abstractmethod
    def _of_voxels(self, logits: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
        """The function with the options of this loss."""


class GeneralisedCrossEntropyLoss(_RobustLoss):
    """`generalised_cross_entropy` with its options fixed, as the mean over valid voxels.

    Called `loss(logits, target, weight=None)`.

    Args:
        q: From cross-entropy, 0, to mean absolute error, 1.
        truncation: Probability in (0, 1) below which a label has no gradient, or None. A training may set
            the attribute of that name later, when rare classes have been learnt.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        q: float = 0.7,
        truncation: float | None = None,
        activation: str = "softmax",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.q = _check_within("q", q, 0.0, 1.0)
        self.truncation = _check_truncation(truncation)
        self.activation = Activation(activation).value
        self.ignore_index = ignore_index

    def _of_voxels(self, logits: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
        return generalised_cross_entropy(
            logits,
            target,
            q=self.q,
            truncation=self.truncation,
            activation=self.activation,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
        )

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return _options(self, "q", "truncation", "activation", "ignore_index")


class SymmetricCrossEntropyLoss(_RobustLoss):
    """`symmetric_cross_entropy` with its options fixed, as the mean over valid voxels.

    Called `loss(logits, target, weight=None)`.

    Args:
        cross_entropy_weight: Factor of cross-entropy, >= 0.
        reverse_weight: Factor of reverse cross-entropy, >= 0.
        log_zero: Finite stand-in for log 0, < 0.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    def __init__(
        self,
        *,
        cross_entropy_weight: float = 0.1,
        reverse_weight: float = 1.0,
        log_zero: float = -4.0,
        activation: str = "softmax",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.cross_entropy_weight, self.reverse_weight = _check_factors(
            cross_entropy_weight=cross_entropy_weight, reverse_weight=reverse_weight
        )
        self.log_zero = _check_log_zero(log_zero)
        self.activation = Activation(activation).value
        self.ignore_index = ignore_index

    def _of_voxels(self, logits: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
        return symmetric_cross_entropy(
            logits,
            target,
            cross_entropy_weight=self.cross_entropy_weight,
            reverse_weight=self.reverse_weight,
            log_zero=self.log_zero,
            activation=self.activation,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
        )

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return _options(self, "cross_entropy_weight", "reverse_weight", "log_zero", "activation", "ignore_index")


class ActivePassiveLoss(_RobustLoss):
    """`active_passive` with its options fixed, as the mean over valid voxels.

    Called `loss(logits, target, weight=None)`.

    Args:
        active_weight: Factor of the normalised focal loss, >= 0.
        passive_weight: Factor of reverse cross-entropy, >= 0.
        gamma: Focusing exponent of the normalised focal loss, >= 0.
        log_zero: Finite stand-in for log 0 in reverse cross-entropy, < 0.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.

    Raises:
        ValueError: An argument is out of range, or both factors are 0.
    """

    def __init__(
        self,
        *,
        active_weight: float = 1.0,
        passive_weight: float = 1.0,
        gamma: float = 0.5,
        log_zero: float = -4.0,
        activation: str = "softmax",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma = check_not_negative("gamma", gamma)
        self.active_weight, self.passive_weight = _check_factors(
            active_weight=active_weight, passive_weight=passive_weight
        )
        self.log_zero = _check_log_zero(log_zero)
        self.activation = Activation(activation).value
        self.ignore_index = ignore_index

    def _of_voxels(self, logits: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
        return active_passive(
            logits,
            target,
            active_weight=self.active_weight,
            passive_weight=self.passive_weight,
            gamma=self.gamma,
            log_zero=self.log_zero,
            activation=self.activation,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
        )

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return _options(self, "active_weight", "passive_weight", "gamma", "log_zero", "activation", "ignore_index")


class BootstrappedLoss(_RobustLoss):
    """`bootstrapped_cross_entropy` with its options fixed, as the mean over valid voxels.

    Called `loss(logits, target, weight=None)`.

    Args:
        beta: Share of the label in the target, in (0, 1]. None: 0.95 soft and 0.8 hard.
        hard: Mix in the most probable class instead of the probabilities.
        gamma: Focusing exponent, >= 0.
        activation: "softmax" or "sigmoid".
        ignore_index: Label of voxels without loss, or None.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        beta: float | None = None,
        hard: bool = False,
        gamma: float = 0.0,
        activation: str = "softmax",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma = check_not_negative("gamma", gamma)
        self.beta = _check_beta(beta, hard=hard)
        self.hard = hard
        self.activation = Activation(activation).value
        self.ignore_index = ignore_index

    def _of_voxels(self, logits: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
        return bootstrapped_cross_entropy(
            logits,
            target,
            beta=self.beta,
            hard=self.hard,
            gamma=self.gamma,
            activation=self.activation,
            weight=weight,
            ignore_index=self.ignore_index,
            reduction=reduction,
        )

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return _options(self, "beta", "hard", "gamma", "activation", "ignore_index")


class TrimmedLoss(TrainingLoss):
    """Focal loss without the voxels of highest loss in each class of the batch, as the mean over the rest.

    Called `loss(logits, target, weight=None)`, with integer labels. The selection is `trim_highest` on the
    unweighted loss; a voxel that is left out counts as ignored.

    Args:
        rates: Share of the voxels to leave out, one per class from the background on, in [0, 1). About the
            share of wrong labels in each.
        ramp_epochs: Epochs over which the rates rise from 0, >= 0: networks learn right labels before wrong ones.
        gamma: As in `focal_loss`.
        alpha: As in `focal_loss`.
        activation: "softmax" or "sigmoid".
        label_smoothing: As in `focal_loss`.
        ignore_index: Label of voxels without loss, or None.

    Attributes:
        trim_share: Part of the rates in force, in [0, 1]. `start_epoch` sets it along the ramp.
        num_dropped: Number of voxels that the last call left out; 0 before any. `take_num_dropped` has the sum.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        rates: Sequence[float],
        ramp_epochs: int = 0,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: LabelSmoothing = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.rates = _check_rates(rates)
        self.gamma = check_gamma(gamma)
        self.alpha = check_alpha(alpha)
        self.activation = Activation(activation).value
        self.label_smoothing = check_label_smoothing(label_smoothing)
        self.ignore_index = ignore_index
        self.ramp_epochs = check_epoch("ramp_epochs", ramp_epochs)
        self.trim_share = 0.0 if self.ramp_epochs else 1.0
        self.num_dropped = 0

    def start_epoch(self, epoch: int) -> None:
        """Tell the loss which epoch begins, from 0."""
        super().start_epoch(epoch)
        self.trim_share = min(epoch / self.ramp_epochs, 1.0) if self.ramp_epochs else 1.0

    @property
    def why_not_split(self) -> str | None:
        """As in `TrainingLoss`."""
        return "it leaves out the voxels of highest loss in the whole batch"

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """Mean loss of the kept voxels; shapes as in `focal_loss`. `whole` is refused."""
        self._divisors(whole)
        share = _check_within("trim_share", self.trim_share, 0.0, 1.0)
        kind = Activation(self.activation)
        check_logits(logits, kind)
        checked = check_target(target, logits, activation=kind, ignore_index=self.ignore_index)
        if not isinstance(checked, Labels):
            raise ValueError(
                f"trimming per class needs integer labels, got a target of {target.dtype}; "
                "give labels, or use FocalLoss"
            )
        num_classes = kind.num_classes(logits.shape[1])
        if len(self.rates) != num_classes:
            raise ValueError(
                f"rates must have one value for each of the {num_classes} classes of {kind} logits with "
                f"{logits.shape[1]} channels, got {len(self.rates)}: {self.rates}"
            )
        voxel_loss = focal_loss(
            without_ignored(logits, checked.valid),
            checked.values,
            gamma=self.gamma,
            alpha=self.alpha,
            activation=self.activation,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        rates = [share * rate for rate in self.rates]
        keep = trim_highest(voxel_loss, checked.values, rates=rates, valid=checked.valid)
        dropped = ~keep if checked.valid is None else checked.valid & ~keep
        self.num_dropped = int(dropped.sum())
        self._add_num_dropped(dropped.sum())
        return reduce_voxels(voxel_loss, valid=keep, weight=check_weight(weight, logits), reduction="mean")

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return _options(
            self,
            "rates",
            "ramp_epochs",
            "gamma",
            "alpha",
            "activation",
            "label_smoothing",
            "ignore_index",
            "trim_share",
        )


class MarginFocalLoss(TrainingLoss):
    """Focal loss + margin_weight * `margin_penalty`, both as means over valid voxels.

    Called `loss(logits, target, weight=None)`, shapes as in `focal_loss`.

    Args:
        gamma: As in `focal_loss`.
        alpha: As in `focal_loss`.
        activation: "softmax" or "sigmoid".
        label_smoothing: As in `focal_loss`.
        ignore_index: Label of voxels without loss, or None.
        margin: Distance of logits without penalty, >= 0.
        margin_weight: Factor of the penalty, >= 0.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: LabelSmoothing = 0.0,
        ignore_index: int | None = None,
        margin: float = 10.0,
        margin_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.focal = FocalLoss(
            gamma=gamma,
            alpha=alpha,
            activation=activation,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
        self.gamma, self.alpha, self.activation = self.focal.gamma, self.focal.alpha, self.focal.activation
        self.label_smoothing = self.focal.label_smoothing
        self.ignore_index = ignore_index
        self.margin = check_not_negative("margin", margin)
        self.margin_weight = check_not_negative("margin_weight", margin_weight)

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """Sum of both terms; shapes as in `focal_loss`, `whole` as in `TrainingLoss`."""
        (of_batch,) = self._divisors(whole)
        focal: Tensor = self.focal(logits, target, weight, whole=whole)
        checked = check_target(target, logits, activation=Activation(self.activation), ignore_index=self.ignore_index)
        penalty = margin_penalty(
            logits,
            margin=self.margin,
            activation=self.activation,
            weight=weight,
            valid=checked.valid,
            reduction="mean" if of_batch is None else "sum",
        )
        if of_batch is not None:
            penalty = over(penalty, of_batch)
        return focal + self.margin_weight * penalty

    def extra_repr(self) -> str:
        """Options of the penalty, for `print(loss)`, which shows those of the focal loss within."""
        return _options(self, "margin", "margin_weight")


def _reduced(
    of_voxels: _OfVoxels,
    logits: Tensor,
    target: Tensor,
    activation: str,
    weight: Tensor | None,
    ignore_index: int | None,
    reduction: Reduction,
) -> Tensor:
    """What all losses share: read the target, take the loss (B, *) of log-odds, and reduce it."""
    kind = Activation(activation)
    check_logits(logits, kind)
    checked = check_target(target, logits, activation=kind, ignore_index=ignore_index)
    voxel_loss = of_voxels(kind.log_odds(without_ignored(logits, checked.valid)), checked, kind)
    return reduce_voxels(voxel_loss, valid=checked.valid, weight=check_weight(weight, logits), reduction=reduction)


def _expectation_of(of_label: Callable[[Tensor], Tensor]) -> _OfVoxels:
    """The loss (B, *) whose value for a label is `of_label` of that label's log-odds, elementwise."""

    def expectation(log_odds: Tensor, target: Labels | Probabilities, kind: Activation) -> Tensor:
        if isinstance(target, Labels):
            return of_label(_of_label(log_odds, target, kind)).sum(dim=1)
        of_classes = target.values * of_label(log_odds)
        if kind is Activation.SIGMOID:
            of_classes = of_classes + (1.0 - target.values) * of_label(-log_odds)
        return of_classes.sum(dim=1)

    return expectation


def _of_label(log_odds: Tensor, target: Labels, kind: Activation) -> Tensor:
    """Log-odds of what the label says: (B, 1, *) with softmax, (B, C, *) with sigmoid."""
    if kind is Activation.SOFTMAX:
        return log_odds.gather(1, target.index)
    return torch.where(target.foreground(log_odds.shape[1]), log_odds, -log_odds)


def _focal(log_odds: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma (-log p) at p = sigmoid(log_odds), whose derivative never holds (1 - p)^(gamma - 1)."""
    cross_entropy = -F.logsigmoid(log_odds)
    if gamma == 0.0:
        return cross_entropy
    return torch.exp(gamma * F.logsigmoid(-log_odds)) * cross_entropy


def _log_focal(log_odds: Tensor, gamma: float) -> Tensor:
    """log((1 - p)^gamma (-log p)); far out, log(-log p) = -x is taken before -log p underflows."""
    log_cross_entropy = torch.where(log_odds > _FAR, -log_odds, (-F.logsigmoid(log_odds.clamp_max(_FAR))).log())
    return gamma * F.logsigmoid(-log_odds) + log_cross_entropy


def _generalised_log(log_probability: Tensor, q: float) -> Tensor:
    """(1 - p^q) / q, and its limit -log p at q = 0.

    expm1 keeps the digits of a value near 0. Its derivative is computed as expm1 + 1, which is 0 once p^q
    is lost beside 1, so small p^q are subtracted from 1 instead.
    """
    if q == 0.0:
        return -log_probability
    exponent = q * log_probability
    return torch.where(exponent > -0.5, -torch.expm1(exponent), 1.0 - torch.exp(exponent)) / q


def _reverse(log_odds: Tensor, log_zero: float) -> Tensor:
    """Reverse cross-entropy of a label: -log_zero (1 - p)."""
    return -log_zero * _generalised_log(F.logsigmoid(log_odds), 1.0)


def _normalised_focal_of(gamma: float) -> _OfVoxels:
    """phi_label / sum phi, as a softmax of log phi, which cannot become 0 / 0 at a large gamma."""
    of_channel = _expectation_of(lambda x: torch.sigmoid(_log_focal(x, gamma) - _log_focal(-x, gamma)))

    def normalised(log_odds: Tensor, target: Labels | Probabilities, kind: Activation) -> Tensor:
        if kind is Activation.SIGMOID:
            return of_channel(log_odds, target, kind)
        shares = _log_focal(log_odds, gamma).softmax(dim=1)
        if isinstance(target, Labels):
            return shares.gather(1, target.index).squeeze(1)
        return (target.values * shares).sum(dim=1)

    return normalised


def _own_target(log_odds: Tensor, kind: Activation, *, hard: bool) -> Labels | Probabilities:
    """The prediction as a target: its probabilities, with gradient, or its most probable class."""
    if not hard:
        return Probabilities(F.logsigmoid(log_odds).exp())
    if kind is Activation.SOFTMAX:
        return Labels(log_odds.argmax(dim=1), valid=None)
    return Probabilities((log_odds > 0.0).to(log_odds.dtype))


def _highest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest of (N,), the first among equals. A tenth of the time of a stable sort."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.topk(count, sorted=False).values.min()
    highest = values > threshold
    equal = (values == threshold).nonzero().squeeze(1)
    highest[equal[: count - int(highest.sum())]] = True
    return highest


def _options(module: TrainingLoss, *names: str) -> str:
    return ", ".join(f"{name}={getattr(module, name)!r}" for name in names)


def _check_within(name: str, value: float, lowest: float, highest: float) -> float:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be in [{lowest:g}, {highest:g}], got {value}")
    return float(value)


def _check_factors(**factors: float) -> tuple[float, float]:
    (first, one), (second, other) = factors.items()
    checked = check_not_negative(first, one), check_not_negative(second, other)
    if checked == (0.0, 0.0):
        raise ValueError(f"{first} and {second} are both 0; raise one")
    return checked


def _check_log_zero(log_zero: float) -> float:
    if not (math.isfinite(log_zero) and log_zero < 0.0):
        raise ValueError(f"log_zero must be finite and < 0, got {log_zero}")
    return float(log_zero)


def _check_truncation(truncation: float | None) -> float | None:
    if truncation is not None and not 0.0 < truncation < 1.0:
        raise ValueError(f"truncation must be None or in (0, 1), got {truncation}")
    return truncation


def _check_beta(beta: float | None, *, hard: bool) -> float:
    if beta is None:
        return 0.8 if hard else 0.95
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta must be in (0, 1], got {beta}")
    return float(beta)


def _check_rates(rates: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(rate) for rate in rates)
    if not (values and all(0.0 <= rate < 1.0 for rate in values)):
        raise ValueError(f"rates must hold one share in [0, 1) per class, got {values}")
    return values


def _check_trim(loss: Tensor, labels: Tensor, valid: Tensor | None, *, num_rates: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.shape != loss.shape:
        raise ValueError(
            f"labels must be integers of the loss's shape {tuple(loss.shape)}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != loss.shape):
        raise ValueError(
            f"valid must be bool of the loss's shape {tuple(loss.shape)}, "
            f"got {valid.dtype} of shape {tuple(valid.shape)}"
        )
    counted = labels if valid is None else labels[valid]
    if counted.numel() == 0:
        return
    lowest, highest = (int(value) for value in torch.aminmax(counted))
    if lowest < 0 or highest >= num_rates:
        raise ValueError(
            f"label {lowest if lowest < 0 else highest} has no rate; rates holds {num_rates}, for the classes "
            f"0..{num_rates - 1}"
        )
