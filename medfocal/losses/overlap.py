"""Soft Dice loss over the foreground classes."""

from __future__ import annotations

import torch
from torch import Tensor

from medfocal.losses.activation import Activation
from medfocal.losses.target import Labels, Probabilities


def dice_of_log_odds(
    log_odds: Tensor,
    target: Labels | Probabilities,
    *,
    activation: Activation,
    weight: Tensor | None,
    smooth: float,
    batch_dice: bool,
) -> Tensor:
    """Soft Dice loss, averaged over the foreground classes that are present in the target.

    Of one class it is 1 - (2 sum min(p, y) + smooth) / (sum p + sum y + smooth). For labels min(p, y) is the
    usual p y; for probabilities it puts the minimum at p = y, where p y would drive p to 1. Sums run over
    valid voxels, weighted, per case, or over the whole batch with `batch_dice`.

    A class without any (weighted) voxel in the target has no Dice to speak of. It leaves the average, and has
    no gradient from this term: `smooth / (sum p + smooth)` in its stead would be 0 or 1 by the accident of
    `smooth`, with a gradient of up to 1 / smooth as the prediction empties. With no class present the loss is
    0 with zero gradients.

    Args:
        log_odds: From `Activation.log_odds`, (B, C, *).
        target: The checked target.
        activation: Tells which channels are foreground.
        weight: Weight per voxel, (B, *), or None.
        smooth: Added above and below, >= 0.
        batch_dice: Pool the cases of the batch before dividing.
    """
    probability = torch.sigmoid(activation.foreground(log_odds))
    if isinstance(target, Labels):
        reference = target.foreground(probability.shape[1]).to(probability.dtype)
    else:
        reference = activation.foreground(target.values)
    share = _voxel_share(target.valid, weight, like=probability)
    axes = tuple(axis for axis in range(probability.ndim) if axis != 1 and (batch_dice or axis != 0))

    def total(values: Tensor) -> Tensor:
        weighted = values if share is None else share * values
        return weighted.sum(dim=axes) if axes else weighted

    overlap = 2.0 * total(torch.minimum(probability, reference))
    size_of_reference = total(reference)
    sizes = total(probability) + size_of_reference
    present = size_of_reference > 0.0
    # Where absent, the ratio is replaced before the division so that no NaN reaches the gradient.
    ratio = (overlap + smooth) / torch.where(present, sizes + smooth, 1.0)
    losses = torch.where(present, 1.0 - ratio, 0.0)
    return losses.sum() / present.sum().clamp_min(1)


def _voxel_share(valid: Tensor | None, weight: Tensor | None, *, like: Tensor) -> Tensor | None:
    if valid is None:
        return None if weight is None else weight.unsqueeze(1)
    share = valid.to(like.dtype) if weight is None else weight.masked_fill(~valid, 0.0)
    return share.unsqueeze(1)
