"""Losses on logits: focal loss and its companions, and what follows from its closed form. Imports torch only.

Every loss is called `loss(logits, target, weight=None)`, with logits (B, C, *spatial) and a target of integer labels
(B, *spatial) or (B, 1, *spatial), or of probabilities in the logits' shape. The classes are `TrainingLoss`es, with
what a training loop asks for: `activation`, `gamma`, `alpha`, `start_epoch`, `take_num_dropped`.
"""

from medfocal.losses.compound import DiceCrossEntropyLoss, DiceFocalLoss, TverskyFocalLoss
from medfocal.losses.focal import FocalLoss, focal_loss
from medfocal.losses.instances import label_instances
from medfocal.losses.module import TrainingLoss
from medfocal.losses.options import smoothed_shares
from medfocal.losses.overlap import (
    BlobDiceLoss,
    DiceLoss,
    FocalTverskyLoss,
    NoiseRobustDiceLoss,
    TverskyLoss,
    blob_dice_loss,
    dice_loss,
    focal_tversky_loss,
    noise_robust_dice_loss,
    tversky_loss,
)
from medfocal.losses.prior import focal_posterior, init_prior_bias_, stationary_probability
from medfocal.losses.robust import (
    ActivePassiveLoss,
    BootstrappedLoss,
    GeneralisedCrossEntropyLoss,
    MarginFocalLoss,
    SymmetricCrossEntropyLoss,
    TrimmedLoss,
    active_passive,
    bootstrapped_cross_entropy,
    generalised_cross_entropy,
    margin_penalty,
    normalised_focal,
    reverse_cross_entropy,
    symmetric_cross_entropy,
    trim_highest,
)

__all__ = [
    "ActivePassiveLoss",
    "BlobDiceLoss",
    "BootstrappedLoss",
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralisedCrossEntropyLoss",
    "MarginFocalLoss",
    "NoiseRobustDiceLoss",
    "SymmetricCrossEntropyLoss",
    "TrainingLoss",
    "TrimmedLoss",
    "TverskyFocalLoss",
    "TverskyLoss",
    "active_passive",
    "blob_dice_loss",
    "bootstrapped_cross_entropy",
    "dice_loss",
    "focal_loss",
    "focal_posterior",
    "focal_tversky_loss",
    "generalised_cross_entropy",
    "init_prior_bias_",
    "label_instances",
    "margin_penalty",
    "noise_robust_dice_loss",
    "normalised_focal",
    "reverse_cross_entropy",
    "smoothed_shares",
    "stationary_probability",
    "symmetric_cross_entropy",
    "trim_highest",
    "tversky_loss",
]
