"""Dice with a voxelwise loss: the parts against hand-made answers, and patches without foreground."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medfocal.losses import DiceCrossEntropyLoss, DiceFocalLoss, focal_loss

SPATIAL = (6, 5, 4)


def make_case(num_channels=2, num_classes=2):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, num_channels, *SPATIAL, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (2, *SPATIAL), generator=generator)
    return logits.requires_grad_(), labels


def dice_only(**options):
    return DiceFocalLoss(dice_weight=1.0, focal_weight=0.0, **options)


def dice_by_hand(probability, reference, smooth=1e-5):
    overlap = (probability * reference).sum()
    return 1 - (2 * overlap + smooth) / (probability.sum() + reference.sum() + smooth)


def test_dice_term_is_the_mean_over_cases_and_foreground_classes():
    logits, labels = make_case(3, 3)
    p = logits.detach().softmax(dim=1)
    pairs = [dice_by_hand(p[b, c], (labels[b] == c).double()) for b in range(2) for c in (1, 2)]
    torch.testing.assert_close(dice_only()(logits, labels).detach(), torch.stack(pairs).mean())


def test_batch_dice_pools_cases_before_dividing():
    logits, labels = make_case()
    p = logits.detach().softmax(dim=1)[:, 1]
    expected = dice_by_hand(p, (labels == 1).double())
    torch.testing.assert_close(dice_only(batch_dice=True)(logits, labels).detach(), expected)


def test_sigmoid_dice_counts_every_channel_as_foreground():
    logits, labels = make_case(2, 3)
    p = logits.detach().sigmoid()
    pairs = [dice_by_hand(p[b, c], (labels[b] == c + 1).double()) for b in range(2) for c in (0, 1)]
    loss = dice_only(activation="sigmoid")(logits, labels)
    torch.testing.assert_close(loss.detach(), torch.stack(pairs).mean())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_both_terms_use_the_activation_that_was_asked_for(activation):
    logits, labels = make_case(2, 2)
    weights = {"dice_weight": 0.5, "focal_weight": 20.0}
    options = {"gamma": 1.5, "alpha": [0.3, 0.8], "activation": activation, "label_smoothing": 0.1}
    expected = 0.5 * dice_only(activation=activation)(logits, labels) + 20.0 * focal_loss(logits, labels, **options)
    torch.testing.assert_close(DiceFocalLoss(**options, **weights)(logits, labels), expected)


def test_dice_cross_entropy_is_dice_plus_cross_entropy():
    logits, labels = make_case(3, 3)
    loss = DiceCrossEntropyLoss(label_smoothing=0.1, dice_weight=2.0, cross_entropy_weight=3.0)
    cross_entropy = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, labels), 2 * dice_only()(logits, labels) + 3 * cross_entropy)
    assert (loss.gamma, loss.alpha, loss.activation) == (0.0, None, "softmax")


@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_count_in_neither_term(batch_dice):
    logits, labels = make_case()
    labels[:, 3:] = 255
    loss = DiceFocalLoss(ignore_index=255, batch_dice=batch_dice)
    value = loss(logits, labels)
    torch.testing.assert_close(value, loss(logits[:, :, :3], labels[:, :3]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[:, :, 3:] == 0).all()


def test_voxel_weights_count_in_both_terms():
    """A weight of 2 on a voxel is that voxel twice, in Dice's sums and in the focal sum."""
    logits, labels = make_case()
    weight = torch.ones(2, *SPATIAL)
    weight[:, :2] = 2.0
    doubled_logits = torch.cat([logits, logits[:, :, :2]], dim=2)
    doubled_labels = torch.cat([labels, labels[:, :2]], dim=1)
    dice = dice_only()
    torch.testing.assert_close(dice(logits, labels, weight), dice(doubled_logits, doubled_labels))
    loss = DiceFocalLoss(gamma=2.0)
    expected = dice(logits, labels, weight) + focal_loss(logits, labels, weight=weight)
    torch.testing.assert_close(loss(logits, labels, weight), expected)


@pytest.mark.parametrize("level", [-1e4, -30.0, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_patch_without_foreground_has_no_dice_and_no_dice_gradient(level, smooth):
    logits = torch.zeros(1, 2, *SPATIAL)
    logits[:, 1] = level
    logits.requires_grad_()
    labels = torch.zeros(1, *SPATIAL, dtype=torch.uint8)
    value = dice_only(smooth=smooth)(logits, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


def test_patch_without_foreground_still_learns_background_from_the_focal_term():
    logits = torch.zeros(1, 2, *SPATIAL, requires_grad=True)
    labels = torch.zeros(1, *SPATIAL, dtype=torch.uint8)
    value = DiceFocalLoss()(logits, labels)
    torch.testing.assert_close(value, focal_loss(logits, labels))
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[:, 1] > 0).all()


def test_case_without_foreground_leaves_the_average_to_the_other_case():
    logits, labels = make_case()
    labels[1] = 0
    torch.testing.assert_close(dice_only()(logits, labels), dice_only()(logits[:1], labels[:1]))


def test_dice_gradient_of_one_voxel_lesion_is_at_most_two():
    """1 - 2p / (P + 1) with sum P of probabilities has derivative at most 2 in any probability."""
    labels = torch.zeros(1, *SPATIAL, dtype=torch.int64)
    labels[0, 4, 1, 2] = 1
    logits = torch.full((1, 1, *SPATIAL), -8.0, dtype=torch.float64, requires_grad=True)
    value = dice_only(activation="sigmoid")(logits, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    p = logits.detach().sigmoid()
    assert ((gradient / (p * (1 - p))).abs() <= 2.0).all()
    assert gradient[0, 0, 4, 1, 2] < 0


def test_dice_of_probabilities_is_least_where_the_prediction_equals_them():
    target = torch.full((1, 1, 8), 0.3, dtype=torch.float64)
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    loss = dice_only(activation="sigmoid")
    values = torch.stack([loss(torch.logit(level).expand(1, 1, 8), target) for level in levels])
    assert levels[values.argmin()] == pytest.approx(0.3)


@pytest.mark.parametrize("loss_class", [DiceFocalLoss, DiceCrossEntropyLoss])
def test_all_ignored_batch_has_loss_0_with_zero_gradients(loss_class):
    logits, labels = make_case()
    value = loss_class(ignore_index=255)(logits, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_compound_gradient_agrees_with_finite_differences(activation):
    logits, labels = make_case(2, 2)
    small = logits.detach()[:, :, :2, :2, :2].clone().requires_grad_()
    loss = DiceFocalLoss(gamma=2.0, activation=activation)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels[:, :2, :2, :2]), (small,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dice_weight": -1.0}, "dice_weight must be finite and >= 0, got -1.0"),
        ({"focal_weight": float("inf")}, "focal_weight must be finite and >= 0, got inf"),
        ({"smooth": -1e-5}, "smooth must be finite and >= 0"),
        ({"dice_weight": 0.0, "focal_weight": 0.0}, "both 0"),
        ({"gamma": -0.5}, "gamma must be finite and >= 0, got -0.5"),
    ],
)
def test_compound_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiceFocalLoss(**options)


def test_dice_cross_entropy_names_its_own_weight_when_refused():
    with pytest.raises(ValueError, match=r"cross_entropy_weight must be finite and >= 0, got -2.0"):
        DiceCrossEntropyLoss(cross_entropy_weight=-2.0)
