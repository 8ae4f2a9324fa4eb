"""Learning-rate schedules: pure functions of the share of training that is done.

Each is called with `progress` in [0, 1) and gives the factor on the optimizer's learning rate. Being stateless,
they need no place in a checkpoint.
"""

from __future__ import annotations

import math

__all__ = ["Cosine", "OneCycle", "Poly"]


class Poly:
    """(1 - progress)^power, as in nnU-Net (Isensee et al. 2021).

    Args:
        power: Of the decay.
    """

    def __init__(self, *, power: float = 0.9) -> None:
        if power < 0:
            message = f"power must be 0 or more, got {power}"
            raise ValueError(message)
        self.power = power

    def __call__(self, progress: float) -> float:
        """The factor at this share of training."""
        return float((1 - progress) ** self.power)


class Cosine:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, without restarts).

    Args:
        warmup_share: Share of training during which the factor rises from 0 to 1.
    """

    def __init__(self, *, warmup_share: float = 0.05) -> None:
        _check_share(warmup_share)
        self.warmup_share = warmup_share

    def __call__(self, progress: float) -> float:
        """The factor at this share of training."""
        if progress < self.warmup_share:
            return progress / self.warmup_share
        return _half_cosine((progress - self.warmup_share) / (1 - self.warmup_share))


class OneCycle:
    """Half a cosine up from `start_factor` to 1, then half a cosine down to 0 (Smith & Topin 2019).

    Args:
        warmup_share: Share of training spent on the way up.
        start_factor: Factor at the start.
    """

    def __init__(self, *, warmup_share: float = 0.25, start_factor: float = 0.04) -> None:
        _check_share(warmup_share)
        if not 0 <= start_factor <= 1:
            message = f"start_factor must be in [0, 1], got {start_factor}"
            raise ValueError(message)
        self.warmup_share = warmup_share
        self.start_factor = start_factor

    def __call__(self, progress: float) -> float:
        """The factor at this share of training."""
        if progress < self.warmup_share:
            return 1 - (1 - self.start_factor) * _half_cosine(progress / self.warmup_share)
        return _half_cosine((progress - self.warmup_share) / (1 - self.warmup_share))


def _half_cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _check_share(warmup_share: float) -> None:
    if not 0 <= warmup_share < 1:
        message = f"warmup_share must be in [0, 1), got {warmup_share}"
        raise ValueError(message)
