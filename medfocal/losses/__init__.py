"""Losses on logits: focal loss and its companions, and what follows from its closed form.

Every loss is called `loss(logits, target, weight=None)`, with logits (B, C, *spatial) and an integer target
(B, *spatial) or (B, 1, *spatial), and has the attributes `activation`, `gamma` and `alpha`.
"""

from medfocal.losses.compound import DiceCrossEntropyLoss, DiceFocalLoss
from medfocal.losses.focal import FocalLoss, focal_loss
from medfocal.losses.prior import focal_posterior, init_prior_bias_, stationary_probability

__all__ = [
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "FocalLoss",
    "focal_loss",
    "focal_posterior",
    "init_prior_bias_",
    "stationary_probability",
]
