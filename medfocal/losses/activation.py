"""What logits mean: exclusive classes (softmax), or foreground classes each against the rest (sigmoid)."""

from __future__ import annotations

import enum

import torch
from torch import Tensor


class Activation(enum.StrEnum):
    """The two readings of logits (B, C, *).

    softmax: C >= 2 exclusive classes, channel 0 is the background.
    sigmoid: C foreground classes 1..C, each channel against the rest; the background has no channel.
    """

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"activation must be 'softmax' or 'sigmoid', got {value!r}")

    def num_classes(self, num_channels: int) -> int:
        """Number of values a label may have, the background included."""
        return num_channels if self is Activation.SOFTMAX else num_channels + 1

    def foreground(self, channels: Tensor) -> Tensor:
        """The channels of (B, C, *) that stand for foreground classes."""
        return channels[:, 1:] if self is Activation.SOFTMAX else channels

    def log_odds(self, logits: Tensor) -> Tensor:
        """log(p_c / (1 - p_c)) of each channel, (B, C, *), in fp32 or the logits' own higher precision.

        From these, p = sigmoid(x), log p = logsigmoid(x) and 1 - p = sigmoid(-x) all keep their relative
        precision; taken from a softmax, 1 - p would be lost beyond a margin of about 16 in fp32.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self is Activation.SIGMOID:
            return logits
        if logits.shape[1] == 2:
            margin = logits[:, 1] - logits[:, 0]
            return torch.stack((-margin, margin), dim=1)
        return _one_against_rest(logits)


def _one_against_rest(logits: Tensor) -> Tensor:
    """z_c - log sum_{k != c} exp(z_k) for every class c.

    Only the largest class can have p > 1/2, so only there would `total - exp(z_c)` cancel; its rest is summed
    without it.
    """
    largest, index = logits.detach().max(dim=1, keepdim=True)
    is_largest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, index, value=True)
    shifted = logits - largest
    exponentials = shifted.exp()
    total = exponentials.sum(dim=1, keepdim=True)
    rest_of_largest = shifted.masked_fill(is_largest, -torch.inf).logsumexp(dim=1, keepdim=True)
    rest_of_others = (total - exponentials).masked_fill(is_largest, 1.0).log()
    return shifted - torch.where(is_largest, rest_of_largest, rest_of_others)
