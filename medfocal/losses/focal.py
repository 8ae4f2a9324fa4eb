"""Voxelwise focal loss on logits, for softmax and sigmoid, stable for every gamma >= 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfocal.losses.activation import Activation
from medfocal.losses.target import (
    Labels,
    Probabilities,
    Reduction,
    along_channels,
    check_logits,
    check_target,
    check_weight,
    reduce_voxels,
)

Alpha = float | Sequence[float] | None


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Alpha = None,
    activation: str = "softmax",
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Focal loss per voxel: L = sum_c alpha_c y_c (1 - p_c)^gamma (-log p_c).

    With softmax the sum runs over the C classes. With sigmoid each channel is a problem of two classes with
    its own sum over foreground and rest, and a voxel's loss is the sum over its channels. At gamma 0 this is
    cross-entropy, or binary cross-entropy. The loss is linear in y: a target averaged over readers gives the
    average of the readers' losses.

    Smoothed and probabilistic targets make the optimal probabilities under-confident; `focal_posterior`
    undoes it.

    Values and gradients are computed in fp32 at least and are finite for |logit| <= 1e4; fp32 gradients of
    confident voxels keep their relative precision. Checking labels costs one synchronisation with the device.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Labels of any integer type, (B, *spatial) or (B, 1, *spatial): 0..C - 1 with softmax; with
            sigmoid 0 is the background and 1..C are the channels. Or probabilities, floating point, in the
            logits' shape; only their shape and type are checked.
        gamma: Focusing exponent, >= 0.
        alpha: None weighs all classes 1. A number in (0, 1), for two softmax classes or one sigmoid channel
            only, weighs the foreground alpha and the background 1 - alpha. A sequence with softmax holds one
            weight > 0 per class; with sigmoid one number in (0, 1) per channel, each as the single number
            would be.
        activation: "softmax" or "sigmoid".
        label_smoothing: e in [0, 1): y becomes (1 - e) y + e / C with softmax, (1 - e) y + e / 2 with
            sigmoid.
        weight: Weight per voxel, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that have neither loss nor gradient. Only with integer labels.
        reduction: "mean" divides the weighted sum by the number of voxels that are not ignored, whatever
            their weights and alpha; without such voxels it is 0 with zero gradients. "sum", or "none" for (B,
            *spatial), 0 where ignored.

    Returns:
        The loss in fp32, or fp64 for fp64 logits.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 12, 10, 8), torch.zeros(1, 12, 10, 8, dtype=torch.uint8)
        >>> round(float(focal_loss(logits, labels, gamma=2.0)), 4)  # 0.25 log 2
        0.1733

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 5; extended to several
        classes and to probabilities by the sum over classes above, where the paper has a single p_t.
    """
    kind = Activation(activation)
    check_gamma(gamma)
    check_label_smoothing(label_smoothing)
    check_logits(logits, kind)
    checked = check_target(target, logits, activation=kind, ignore_index=ignore_index)
    voxel_loss = focal_of_log_odds(
        kind.log_odds(logits), checked, activation=kind, gamma=gamma, alpha=alpha, label_smoothing=label_smoothing
    )
    return reduce_voxels(voxel_loss, valid=checked.valid, weight=check_weight(weight, logits), reduction=reduction)


def focal_of_log_odds(
    log_odds: Tensor,
    target: Labels | Probabilities,
    *,
    activation: Activation,
    gamma: float,
    alpha: Alpha,
    label_smoothing: float,
) -> Tensor:
    """Focal loss (B, *) from `Activation.log_odds`, for losses that share them with another term."""
    weights = channel_weights(alpha, activation=activation, num_channels=log_odds.shape[1])
    alphas = None if weights is None else log_odds.new_tensor(weights)
    of_voxels = _softmax_focal if activation is Activation.SOFTMAX else _sigmoid_focal
    return of_voxels(log_odds, target, gamma, alphas, label_smoothing)


def channel_weights(alpha: Alpha, *, activation: Activation, num_channels: int) -> tuple[float, ...] | None:
    """Alpha of each channel: class weights with softmax, weights of the foreground with sigmoid.

    Raises:
        ValueError: Alpha is out of range, a number where there are more than two classes, or of the wrong
        length.
    """
    alpha = check_alpha(alpha)
    if alpha is None:
        return None
    if isinstance(alpha, float):
        num_classes = activation.num_classes(num_channels)
        if num_classes != 2:
            raise ValueError(
                f"alpha {alpha} is one number, which weighs two classes, but {activation} logits with {num_channels} "
                f"channels have {num_classes}; give {num_channels} values"
            )
        return (1.0 - alpha, alpha) if activation is Activation.SOFTMAX else (alpha,)
    if len(alpha) != num_channels:
        raise ValueError(f"alpha must have one value per channel, {num_channels}, got {len(alpha)}: {alpha}")
    if activation is Activation.SIGMOID and not all(0.0 < value < 1.0 for value in alpha):
        raise ValueError(f"alpha of each sigmoid channel must be in (0, 1), got {alpha}")
    return alpha


def check_gamma(gamma: float) -> float:
    """Return gamma as a float if it is finite and >= 0."""
    if not (math.isfinite(gamma) and gamma >= 0.0):
        raise ValueError(f"gamma must be finite and >= 0, got {gamma}")
    return float(gamma)


def check_label_smoothing(label_smoothing: float) -> float:
    """Return label_smoothing as a float if it is in [0, 1)."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    return float(label_smoothing)


def check_alpha(alpha: Alpha) -> float | tuple[float, ...] | None:
    """Return alpha in plain types if its values can be weights of some number of classes."""
    if alpha is None:
        return None
    if isinstance(alpha, int | float):
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha must be in (0, 1), or one weight per class, got {alpha}")
        return float(alpha)
    values = tuple(float(value) for value in alpha)
    if not all(math.isfinite(value) and value > 0.0 for value in values):
        raise ValueError(f"alpha must hold finite weights > 0, got {values}")
    return values


def _penalty(log_odds: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma (-log p) at p = sigmoid(log_odds).

    The power is taken as exp(gamma log(1 - p)), whose derivative never holds (1 - p)^(gamma - 1): autograd
    then yields the closed form -(1 - p)^gamma (1 - p - gamma p log p), finite for every gamma >= 0.
    """
    cross_entropy = -F.logsigmoid(log_odds)
    if gamma == 0.0:
        return cross_entropy
    return torch.exp(gamma * F.logsigmoid(-log_odds)) * cross_entropy


def _softmax_focal(
    log_odds: Tensor, target: Labels | Probabilities, gamma: float, alphas: Tensor | None, smoothing: float
) -> Tensor:
    if isinstance(target, Labels) and smoothing == 0.0:
        index = target.index
        labelled = _penalty(log_odds.gather(1, index), gamma)
        return (labelled if alphas is None else alphas[index] * labelled).squeeze(1)
    of_classes = _penalty(log_odds, gamma)
    if alphas is not None:
        of_classes = along_channels(alphas, of_classes.ndim) * of_classes
    if isinstance(target, Labels):
        labelled = of_classes.gather(1, target.index).squeeze(1)
    else:
        labelled = (target.values * of_classes).sum(dim=1)
    if smoothing == 0.0:
        return labelled
    return (1.0 - smoothing) * labelled + smoothing * of_classes.mean(dim=1)


def _sigmoid_focal(
    log_odds: Tensor, target: Labels | Probabilities, gamma: float, alphas: Tensor | None, smoothing: float
) -> Tensor:
    alpha = None if alphas is None else along_channels(alphas, log_odds.ndim)
    if isinstance(target, Labels):
        foreground = target.foreground(log_odds.shape[1])
        if smoothing == 0.0:
            labelled = _penalty(torch.where(foreground, log_odds, -log_odds), gamma)
            if alpha is not None:
                labelled = torch.where(foreground, alpha, 1.0 - alpha) * labelled
            return labelled.sum(dim=1)
        probability = foreground.to(log_odds.dtype)
    else:
        probability = target.values
    probability = (1.0 - smoothing) * probability + smoothing / 2.0
    of_foreground = probability * _penalty(log_odds, gamma)
    of_rest = (1.0 - probability) * _penalty(-log_odds, gamma)
    if alpha is not None:
        of_foreground, of_rest = alpha * of_foreground, (1.0 - alpha) * of_rest
    return (of_foreground + of_rest).sum(dim=1)


class FocalLoss(nn.Module):
    """`focal_loss` with its options fixed, as the mean over valid voxels.

    Called `loss(logits, target, weight=None)`. `gamma=0.0` is cross-entropy, or binary cross-entropy with
    sigmoid.

    Args:
        gamma: Focusing exponent, >= 0.
        alpha: None, one number in (0, 1) for two classes, or one per channel.
        activation: "softmax" or "sigmoid".
        label_smoothing: Uniform smoothing, in [0, 1).
        ignore_index: Label of voxels without loss, or None.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma = check_gamma(gamma)
        self.alpha = check_alpha(alpha)
        self.activation = Activation(activation).value
        self.label_smoothing = check_label_smoothing(label_smoothing)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean loss; shapes as in `focal_loss`."""
        return focal_loss(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            activation=self.activation,
            label_smoothing=self.label_smoothing,
            weight=weight,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        return (
            f"gamma={self.gamma}, alpha={self.alpha}, activation={self.activation!r}, "
            f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}"
        )
