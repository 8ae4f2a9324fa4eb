"""Focal losses whose minimum lies at the soft target itself, by autograd.

`expected`, the default, is the closed form of `closed_form.py`; these two are for targets that are quantities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medfocal.losses.activation import Activation
from medfocal.losses.closed_form import Formula
from medfocal.losses.options import Soft
from medfocal.losses.target import Labels, Probabilities, along_channels, without_ignored


def soft_focal(logits: Tensor, target: Labels | Probabilities, formula: Formula, soft: Soft) -> Tensor:
    """Loss of each voxel, (B, *), of "quality" or "mixture".

    Of one problem with shares y_c, alpha_c and p_c,

        quality = sum_c alpha_c |y_c - p_c|^gamma_c y_c (-log p_c)
        mixture = (sum_c alpha_c y_c) (1 - exp(-H))^gamma H   with H = -sum_c y_c log p_c

    and with sigmoid a voxel's loss is the sum over its channels. For certain labels both are the focal loss.

    Raises:
        ValueError: The formula has a cap; gamma is between 0 and 1 with "quality", whose gradient is then infinite at
        y = p; gamma differs between the classes with "mixture".

    References:
        quality: Li et al., "Generalized focal loss", NeurIPS 2020, equation 4.
    """
    if formula.cap is not None:
        raise ValueError(f"cap is of the loss with soft='expected'; soft='{soft}' has none")
    if soft is Soft.QUALITY and any(0.0 < gamma < 1.0 for gamma in formula.gamma):
        raise ValueError(
            f"soft='quality' needs gamma 0 or >= 1: below, its gradient at y = p is infinite; got {formula.gamma}"
        )
    if soft is Soft.MIXTURE and len(set(formula.gamma)) > 1:
        raise ValueError(f"soft='mixture' weighs classes together and needs one gamma, got {formula.gamma}")
    log_odds = formula.activation.log_odds(without_ignored(logits, target.valid))
    shares = smoothed_target(target, formula, like=log_odds)
    if formula.activation is Activation.SOFTMAX:
        alphas = [formula.alpha_of(c) for c in range(formula.num_channels)]
        return _of_classes(log_odds, shares, alphas, formula.gamma, soft)
    losses = []
    for channel in range(formula.num_channels):
        x, y = log_odds[:, channel], shares[:, channel]
        pair = torch.stack((-x, x), dim=1), torch.stack((1.0 - y, y), dim=1)
        gammas = formula.gamma[0], formula.gamma[channel + 1]
        losses.append(_of_classes(*pair, formula.alphas_of_pair(channel), gammas, soft))
    return torch.stack(losses).sum(dim=0)


def smoothed_target(target: Labels | Probabilities, formula: Formula, *, like: Tensor) -> Tensor:
    """The target as smoothed probabilities of the channels, (B, C, *) in the dtype of `like`."""
    is_softmax = formula.activation is Activation.SOFTMAX
    if isinstance(target, Labels):
        first = 0 if is_softmax else 1
        classes = torch.arange(first, first + formula.num_channels, device=like.device)
        shares = (target.index == along_channels(classes, like.ndim)).to(like.dtype)
    else:
        shares = target.values.to(like.dtype)
    if formula.table is None:
        return shares
    table = like.new_tensor(formula.table)
    if is_softmax:
        return torch.einsum("bt...,tc->bc...", shares, table)
    # A channel's rest is smoothed as the background is.
    of_rest = along_channels(table[0], like.ndim)
    of_class = along_channels(table[1:].diagonal(), like.ndim)
    return of_rest + (of_class - of_rest) * shares


def _of_classes(
    log_odds: Tensor, shares: Tensor, alphas: Sequence[float], gammas: Sequence[float], soft: Soft
) -> Tensor:
    alpha = along_channels(log_odds.new_tensor(list(alphas)), log_odds.ndim)
    cross_entropy = shares * -F.logsigmoid(log_odds)
    if soft is Soft.MIXTURE:
        total = cross_entropy.sum(dim=1)
        # At 0 the power of gamma < 1 would have an infinite slope, times a loss of 0.
        factor = (-torch.expm1(-total)).clamp_min(torch.finfo(total.dtype).tiny) ** gammas[0]
        return (alpha * shares).sum(dim=1) * factor * total
    gamma = along_channels(log_odds.new_tensor(list(gammas)), log_odds.ndim)
    distance = shares * torch.sigmoid(-log_odds) - (1.0 - shares) * torch.sigmoid(log_odds)
    return (alpha * distance.abs() ** gamma * cross_entropy).sum(dim=1)
