"""Probabilities that mean what they say: what focal loss and overconfidence did to them is undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def corrected(probabilities: torch.Tensor, correction: Mapping[str, Any], activation: str) -> torch.Tensor:
    """Correct averaged probabilities of the lesion classes.

    Args:
        probabilities: float32 `(K, *)`, without the background.
        correction: `gamma` and `alpha` of `medfocal.losses.focal_posterior`, whose effect is undone, then
            `temperature`, by which logits are divided (Guo et al. 2017).
        activation: "softmax" or "sigmoid".

    Returns:
        Of the same shape; the same tensor where there is nothing to correct.
    """
    import torch

    from medfocal.losses import focal_posterior

    gamma, alpha, temperature = correction["gamma"], correction["alpha"], correction["temperature"]
    undoes_loss = alpha is not None or any(value != 0 for value in (gamma if isinstance(gamma, list) else [gamma]))
    if not undoes_loss and temperature == 1:
        return probabilities
    found = probabilities.clamp(0, 1)
    if activation == "softmax":
        found = torch.cat([(1 - found.sum(dim=0, keepdim=True)).clamp_min(0), found])
    if undoes_loss:
        found = focal_posterior(found[None], gamma=gamma, alpha=alpha, activation=activation)[0]
    if temperature != 1:
        tiny = torch.finfo(found.dtype).tiny
        if activation == "softmax":
            found = torch.softmax(found.clamp_min(tiny).log() / temperature, dim=0)
        else:
            found = torch.sigmoid(torch.logit(found, eps=1e-7) / temperature)
    return found[1:] if activation == "softmax" else found
