"""MONAI's focal losses beside ours: where they are right both agree; where they are not, the defect is shown, so that
a release of MONAI which mends it is noticed here, and our own answer is compared with the definition.
"""

from __future__ import annotations

import math

import monai
import pytest
import torch
from monai.losses import DiceFocalLoss as MonaiDiceFocalLoss
from monai.losses import FocalLoss as MonaiFocalLoss
from torch.nn import functional as F

from medfocal.losses import DiceFocalLoss, focal_loss

SPATIAL = (5, 4, 3)
MENDED = f"MONAI {monai.__version__} no longer has the defect: tell so where we warn of it"


def random_case(num_classes, *, num_channels=None):
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(2, num_channels or num_classes, *SPATIAL, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(num_classes, (2, *SPATIAL), generator=generator)
    return logits.float(), labels


def one_hot(labels, num_classes):
    return F.one_hot(labels, num_classes).movedim(-1, 1).double()


def by_definition(logits, y, *, gamma, activation="softmax"):
    """sum_c y_c (1 - p_c)^gamma (-log p_c) of each voxel; with sigmoid over class and rest of every channel."""
    z = logits.double()
    if activation == "softmax":
        p = z.softmax(dim=1)
        return (y * (1 - p) ** gamma * -p.log()).sum(dim=1)
    p = z.sigmoid()
    return (y * (1 - p) ** gamma * -p.log() + (1 - y) * p**gamma * -(1 - p).log()).sum(dim=1)


def assert_close(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(ours.double(), expected.double(), rtol=tolerance, atol=tolerance)


def value_and_gradient(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


# Where MONAI is right.


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_one_sigmoid_channel_agrees_with_monai_in_mean_and_gradient(gamma, alpha):
    logits, labels = random_case(2, num_channels=1)
    theirs = MonaiFocalLoss(gamma=gamma, alpha=alpha)
    expected = value_and_gradient(lambda z: theirs(z, labels.unsqueeze(1)), logits)
    ours = value_and_gradient(lambda z: focal_loss(z, labels, gamma=gamma, alpha=alpha, activation="sigmoid"), logits)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_sigmoid_channels_agree_with_monai_whose_mean_runs_over_channels_too(gamma):
    logits, labels = random_case(4, num_channels=3)
    membership = one_hot(labels, 4)[:, 1:]
    theirs = MonaiFocalLoss(gamma=gamma)(logits, membership)
    assert_close(3 * theirs, focal_loss(logits, labels, gamma=gamma, activation="sigmoid"))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("num_classes", "alpha"), [(2, None), (2, 0.7), (3, None), (3, (0.2, 0.9, 0.5))])
def test_softmax_agrees_with_monai_times_the_number_of_classes(gamma, num_classes, alpha):
    logits, labels = random_case(num_classes)
    theirs = MonaiFocalLoss(gamma=gamma, alpha=alpha, use_softmax=True, to_onehot_y=True)
    expected = value_and_gradient(lambda z: num_classes * theirs(z, labels.unsqueeze(1)), logits)
    ours = value_and_gradient(lambda z: focal_loss(z, labels, gamma=gamma, alpha=alpha), logits)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [None, 0.25, 0.8])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_one_sigmoid_channel_agrees_with_the_formula_of_torchvision(alpha, gamma):
    logits, labels = random_case(2, num_channels=1)
    y = labels.unsqueeze(1).float()

    def torchvisions(z):
        p = torch.sigmoid(z)
        of_label = p * y + (1 - p) * (1 - y)
        loss = F.binary_cross_entropy_with_logits(z, y, reduction="none") * (1 - of_label) ** gamma
        return (loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss).mean()

    ours = value_and_gradient(lambda z: focal_loss(z, labels, gamma=gamma, alpha=alpha, activation="sigmoid"), logits)
    torch.testing.assert_close(ours, value_and_gradient(torchvisions, logits), rtol=1e-5, atol=1e-7)


# Where MONAI is not.


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mean_without_ignored_voxels_is_not_multiplied_by_the_number_of_classes(activation):
    logits, labels = random_case(3)
    labels[:, :2] = 255
    valid = slice(2, None)
    options = {"use_softmax": activation == "softmax", "to_onehot_y": True}
    with_ignored = MonaiFocalLoss(**options, ignore_index=255)(logits, labels.unsqueeze(1))
    of_valid = MonaiFocalLoss(**options)(logits[:, :, valid], labels[:, valid].unsqueeze(1))
    assert float(with_ignored / of_valid) == pytest.approx(3.0, rel=1e-5), MENDED

    y = one_hot(labels[:, valid], 3)[:, 0 if activation == "softmax" else 1 :]
    ours_logits = logits if activation == "softmax" else logits[:, 1:]
    expected = by_definition(ours_logits[:, :, valid], y, gamma=2.0, activation=activation).mean()
    assert_close(focal_loss(ours_logits, labels, activation=activation, ignore_index=255), expected)


def test_softmax_is_of_both_terms_of_dice_focal():
    logits, labels = random_case(3)
    y = one_hot(labels, 3)
    theirs = MonaiDiceFocalLoss(softmax=True, to_onehot_y=True, lambda_dice=0.0)(logits, labels.unsqueeze(1))
    of_sigmoid = by_definition(logits, y, gamma=2.0, activation="sigmoid").mean() / 3
    of_softmax = by_definition(logits, y, gamma=2.0).mean()
    assert float(theirs) == pytest.approx(float(of_sigmoid), rel=1e-5), MENDED
    assert float(theirs) != pytest.approx(float(of_softmax) / 3, rel=0.05)

    assert_close(DiceFocalLoss(dice_weight=0.0)(logits, labels), of_softmax)


@pytest.mark.parametrize("y", [0.7, 0.9, 0.95])
def test_sigmoid_loss_of_a_soft_target_is_least_below_it_and_not_at_certainty(y):
    levels = torch.linspace(0.01, 0.9999, 9999, dtype=torch.float64)
    logits, target = torch.logit(levels).reshape(-1, 1), torch.full((9999, 1), y, dtype=torch.float64)
    theirs = MonaiFocalLoss(reduction="none")(logits, target).squeeze(1)
    assert levels[theirs.argmin()] > 0.999, MENDED

    least = min(
        (float(p) for p in levels),
        key=lambda p: -y * (1 - p) ** 2 * math.log(p) - (1 - y) * p**2 * math.log(1 - p),
    )
    ours = focal_loss(logits, target, activation="sigmoid", reduction="none")
    assert 0.5 < least < y
    assert float(levels[ours.argmin()]) == pytest.approx(least)


def test_alpha_of_each_class_still_acts_on_smoothed_targets():
    logits, labels = random_case(4, num_channels=3)
    smoothed = 0.9 * one_hot(labels, 4)[:, 1:] + 0.05
    alpha = (0.2, 0.9, 0.6)
    theirs = [MonaiFocalLoss(alpha=a)(logits, smoothed) for a in (None, alpha)]
    assert torch.equal(*theirs), MENDED

    ours = focal_loss(logits, labels, alpha=alpha, activation="sigmoid", label_smoothing=0.1)
    p = logits.double().sigmoid()
    a = torch.tensor(alpha, dtype=torch.float64).reshape(1, -1, 1, 1, 1)
    terms = a * smoothed * (1 - p) ** 2 * -p.log() + (1 - a) * (1 - smoothed) * p**2 * -(1 - p).log()
    assert_close(ours, terms.sum(dim=1).mean())


def test_loss_without_background_still_trains_the_logit_of_the_background():
    """Of logits (10, 0, 0) with label 1: p_1 = exp(-10) / (1 + 2 exp(-10))."""
    logits = torch.tensor([[10.0, 0.0, 0.0]])
    theirs = MonaiFocalLoss(gamma=0.0, use_softmax=True, include_background=False, reduction="none")
    value, gradient = value_and_gradient(lambda z: theirs(z, torch.tensor([[0.0, 1.0, 0.0]])), logits)
    assert float(value.sum()) == pytest.approx(math.log(2), rel=1e-5), MENDED
    assert gradient[0, 0] == 0, MENDED

    value, gradient = value_and_gradient(
        lambda z: focal_loss(z, torch.tensor([1]), gamma=0.0, include_background=False), logits
    )
    total = 1 + 2 * math.exp(-10)
    assert float(value) == pytest.approx(10 + math.log(total), rel=1e-6)
    assert gradient.tolist()[0] == pytest.approx([1 / total, math.exp(-10) / total - 1, math.exp(-10) / total])


def test_gamma_below_1_has_no_nan_gradient_at_confident_voxels():
    logits, labels = torch.tensor([[30.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    theirs = MonaiFocalLoss(gamma=0.5, use_softmax=True)
    _, gradient = value_and_gradient(lambda z: theirs(z, one_hot(labels, 2)), logits)
    assert gradient[0].isnan().all(), MENDED

    _, gradient = value_and_gradient(lambda z: focal_loss(z, labels, gamma=0.5), logits)
    # phi(p) = u^1.5 (1 + u / 2 + ...) with u = exp(-30): the slope on the margin is -1.5 u^1.5.
    expected = 1.5 * math.exp(-45) / 2
    assert gradient[0].tolist() == pytest.approx([-expected, expected], rel=1e-5)


def test_sum_is_the_sum_over_voxels_and_not_over_means():
    logits, labels = random_case(3)
    total = by_definition(logits, one_hot(labels, 3), gamma=2.0).sum()
    theirs = MonaiFocalLoss(use_softmax=True, to_onehot_y=True, reduction="sum")(logits, labels.unsqueeze(1))
    assert float(theirs) == pytest.approx(float(total) / math.prod(SPATIAL), rel=1e-5), MENDED

    assert_close(focal_loss(logits, labels, reduction="sum"), total)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_mean_at_gamma_0_is_cross_entropy_whatever_the_number_of_classes(num_classes):
    logits, labels = random_case(num_classes)
    cross_entropy = F.cross_entropy(logits, labels)
    theirs = MonaiFocalLoss(gamma=0.0, use_softmax=True, to_onehot_y=True)(logits, labels.unsqueeze(1))
    assert float(theirs) == pytest.approx(float(cross_entropy) / num_classes, rel=1e-5), MENDED

    assert_close(focal_loss(logits, labels, gamma=0.0), cross_entropy)
