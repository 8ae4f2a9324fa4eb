"""A running mean of the weights, which is steadier than the weights themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class RunningMean:
    """Exponential moving average of a network's parameters (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    After n steps the decay is min(decay, (1 + n) / (10 + n)), so that early, poor weights are soon forgotten. Buffers
    are copied.

    Args:
        network: Whose weights are followed.
        decay: Share of the mean that a step keeps, in (0, 1).

    Attributes:
        network: A copy with the mean weights, in evaluation mode.
        num_steps: Steps that are in the mean.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_steps = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def add(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        mean, now = [*self.network.parameters()], [*network.parameters()]
        torch._foreach_lerp_(mean, now, 1 - decay)  # type: ignore[arg-type]
        for kept, new in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"network": self.network.state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.network.load_state_dict(state["network"])
        self.num_steps = int(state["num_steps"])
