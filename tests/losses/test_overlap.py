"""Losses of overlap: against loops in double precision, soft labels, absent classes, extreme logits."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import scipy.ndimage
import torch
from torch.nn import functional as F

from medfocal.losses import overlap
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

LOSSES = [dice_loss, tversky_loss, focal_tversky_loss, noise_robust_dice_loss, blob_dice_loss]
MODULES = [DiceLoss, TverskyLoss, FocalTverskyLoss, NoiseRobustDiceLoss, BlobDiceLoss]
FULL_CONNECTIVITY = {0: 26, 1: 2, 2: 8, 3: 26}
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
both_activations = pytest.mark.parametrize("activation", ["softmax", "sigmoid"])


def options_for(loss, num_axes):
    return {"connectivity": FULL_CONNECTIVITY[num_axes]} if loss is blob_dice_loss else {}


def numbers_of_components(labels, num_foreground=2):
    """Lesion numbers (B, K, I, J, K) by scipy, 26 neighbours."""
    numbers = [
        [torch.from_numpy(scipy.ndimage.label(case == k, torch.ones(3, 3, 3))[0]) for k in range(1, num_foreground + 1)]
        for case in labels
    ]
    return torch.stack([torch.stack(of_classes) for of_classes in numbers])


def make_case(activation="softmax", spatial=(5, 4, 3), num_foreground=2, num_cases=2, seed=3):
    """Random logits in double precision and labels, a quarter of them foreground; no class is absent."""
    generator = torch.Generator().manual_seed(seed)
    num_channels = num_foreground + (activation == "softmax")
    logits = torch.randn(num_cases, num_channels, *spatial, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, num_foreground + 1, (num_cases, *spatial), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) > 0.25] = 0
    if spatial:
        labels.view(num_cases, -1)[:, :num_foreground] = torch.arange(1, num_foreground + 1)
    return logits.requires_grad_(), labels


def soft_target(activation, shape, seed=4):
    generator = torch.Generator().manual_seed(seed)
    scores = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return scores.softmax(dim=1) if activation == "softmax" else scores.sigmoid()


def gradient_of(loss, logits):
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


# Brute force, one case and class at a time, p and y as lists of numbers


def dice_of(p, y, smooth):
    hits = sum(min(a, b) for a, b in zip(p, y, strict=True))
    return 1 - (2 * hits + smooth) / (sum(p) + sum(y) + smooth)


def tversky_of(p, y, smooth, a=0.3, b=0.7):
    true_positives = sum(min(i, j) for i, j in zip(p, y, strict=True))
    false_positives, false_negatives = sum(p) - true_positives, sum(y) - true_positives
    half = smooth / 2
    return 1 - (true_positives + half) / (true_positives + a * false_positives + b * false_negatives + half)


def focal_tversky_of(p, y, smooth):
    return tversky_of(p, y, smooth) ** 0.75


def noise_robust_of(p, y, smooth):
    errors = sum(abs(a - b) ** 1.5 for a, b in zip(p, y, strict=True))
    return errors / (sum(a * a for a in p) + sum(b * b for b in y) + smooth)


BRUTE_FORCE = {
    dice_loss: dice_of,
    tversky_loss: tversky_of,
    focal_tversky_loss: focal_tversky_of,
    noise_robust_dice_loss: noise_robust_of,
}


def foreground_pairs(logits, target, activation):
    """Probability and reference (B, K, *) of the foreground classes, worked out from the logits anew."""
    if activation == "softmax":
        p = logits.detach().softmax(dim=1)[:, 1:]
        soft = target[:, 1:] if target.is_floating_point() else None
    else:
        p = logits.detach().sigmoid()
        soft = target if target.is_floating_point() else None
    y = torch.stack([(target == k + 1).double() for k in range(p.shape[1])], dim=1) if soft is None else soft
    return p, y


def blob_by_masking(p, y, smooth, weight=None):
    """Mean over lesions of the Dice of the volume in which the other lesions are masked out, for one class and case."""
    own = y >= 0.5
    numbers, num_lesions = scipy.ndimage.label(own.numpy(), scipy.ndimage.generate_binary_structure(own.ndim, own.ndim))
    numbers = torch.from_numpy(numbers)
    weight = torch.ones_like(p) if weight is None else weight
    losses = []
    for lesion in range(1, num_lesions + 1):
        kept = ((numbers == 0) | (numbers == lesion)) * weight
        hits = (kept * torch.minimum(p, y)).sum()
        losses.append(1 - (2 * hits + smooth) / ((kept * p).sum() + (kept * y).sum() + smooth))
    return torch.stack(losses).mean() if losses else None


@pytest.mark.parametrize("loss", BRUTE_FORCE, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@both_activations
def test_loss_is_the_mean_over_classes_and_cases_of_the_formula(loss, batch_dice, soft, activation):
    logits, target = make_case(activation)
    if soft:
        target = soft_target(activation, logits.shape)
    p, y = foreground_pairs(logits, target, activation)
    cases = [slice(None)] if batch_dice else [0, 1]
    expected = [
        BRUTE_FORCE[loss](p[b, k].flatten().tolist(), y[b, k].flatten().tolist(), 0.1)
        for b, k in itertools.product(cases, range(2))
    ]
    found = loss(logits, target, activation=activation, batch_dice=batch_dice, smooth=0.1)
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


@pytest.mark.parametrize("spatial", [(19,), (9, 7), (6, 5, 4)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@both_activations
def test_blob_dice_is_the_mean_over_lesions_with_the_other_lesions_masked_out(spatial, soft, weighted, activation):
    logits, target = make_case(activation, spatial)
    if soft:
        target = soft_target(activation, logits.shape)
    weight = torch.rand(2, *spatial, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = weight if weighted else None
    p, y = foreground_pairs(logits, target, activation)
    of_classes = [
        blob_by_masking(p[b, k], y[b, k], 0.1, None if weight is None else weight[b])
        for b, k in itertools.product(range(2), range(2))
    ]
    settings = {"activation": activation, "weight": weight, "smooth": 0.1}
    expected = 0.5 * dice_loss(logits, target, **settings) + 3.0 * torch.stack(of_classes).mean()
    found = blob_dice_loss(
        logits,
        target,
        global_weight=0.5,
        blob_weight=3.0,
        connectivity=FULL_CONNECTIVITY[len(spatial)],
        **settings,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_blob_dice_over_the_batch_counts_every_lesion_once():
    """One lesion in the first case and three in the second: quarters with batch_dice, else a half and sixths."""
    labels = torch.zeros(2, 11, dtype=torch.int64)
    labels[0, 2:6] = 1
    labels[1, [0, 4, 5, 8]] = 1
    logits = torch.randn(2, 1, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, y = logits.sigmoid()[:, 0], labels.double()
    means = [blob_by_masking(p[b], y[b], 0.0) for b in range(2)]
    settings = {"activation": "sigmoid", "connectivity": 2, "global_weight": 0.0, "smooth": 0.0}
    by_case = blob_dice_loss(logits, labels, **settings)
    torch.testing.assert_close(by_case, (means[0] + means[1]) / 2)
    pooled = blob_dice_loss(logits, labels, batch_dice=True, **settings)
    torch.testing.assert_close(pooled, (means[0] + 3 * means[1]) / 4)


def test_blob_dice_of_a_single_lesion_is_its_dice():
    logits, _ = make_case("sigmoid", num_foreground=1)
    labels = torch.zeros(2, 5, 4, 3, dtype=torch.uint8)
    labels[:, 1:4, 1:3, 1:] = 1
    found = blob_dice_loss(logits, labels, activation="sigmoid")
    torch.testing.assert_close(found, 3.0 * dice_loss(logits, labels, activation="sigmoid"))


def test_small_lesion_missed_costs_blob_dice_as_much_as_a_large_one():
    labels = torch.zeros(1, 12, 10, 8, dtype=torch.int64)
    labels[0, 1:7, 1:7, 1:7] = 1
    labels[0, 10, 8, 6] = 1
    logits = torch.where(labels > 0, 50.0, -50.0)[None]
    small_missed, large_missed = logits.clone(), logits.clone()
    small_missed[0, 0, 10, 8, 6] = -50.0
    large_missed[0, 0, 1:7, 1:7, 1:7] = -50.0
    settings = {"activation": "sigmoid", "global_weight": 0.0, "smooth": 0.0}
    for missed in (small_missed, large_missed):
        assert blob_dice_loss(missed, labels, **settings).item() == pytest.approx(0.5)
    assert dice_loss(small_missed, labels, activation="sigmoid") < 0.01


@pytest.mark.parametrize("connectivity", [6, 26])
def test_connectivity_decides_whether_voxels_that_touch_at_a_corner_are_one_lesion(connectivity):
    labels = torch.zeros(1, 4, 3, 2, dtype=torch.int64)
    labels[0, 0, 0, 0] = labels[0, 1, 1, 1] = 1
    logits = torch.full((1, 1, 4, 3, 2), -50.0)
    logits[0, 0, 0, 0, 0] = 50.0
    found = blob_dice_loss(logits, labels, activation="sigmoid", connectivity=connectivity, global_weight=0.0, smooth=0)
    expected = {26: 1 - 2 / 3, 6: (0 + 1) / 2}[connectivity]
    assert found.item() == pytest.approx(expected)


def test_lesions_of_different_classes_are_never_one():
    """Two touching voxels of classes 1 and 2: each is masked by no lesion of its own class."""
    labels = torch.tensor([[1, 2, 0, 1]])
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    p = logits.softmax(dim=1)[0]
    other = p[1, 1] + p[1, 2]
    first = (2 - 2 * p[1, 0] / (p[1, 0] + other + 1) - 2 * p[1, 3] / (p[1, 3] + other + 1)) / 2
    second = 1 - 2 * p[2, 1] / (p[2].sum() + 1)
    found = blob_dice_loss(logits, labels, connectivity=2, global_weight=0.0, smooth=0.0)
    torch.testing.assert_close(found, (first + second) / 2)


# Lesion numbers from the caller


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16])
def test_given_instances_replace_connected_components(dtype):
    """One component of 5 voxels that the caller parts in 2 + 3, with any numbers."""
    labels = torch.tensor([[0, 1, 1, 1, 1, 1, 0]])
    instances = torch.tensor([[0, 9, 9, 200, 200, 200, 0]]).to(dtype)
    logits = torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    p = logits.sigmoid()[0, 0]
    background = p[0] + p[6]
    parts = [1 - 2 * p[part].sum() / (p[part].sum() + background + len(part)) for part in ([1, 2], [3, 4, 5])]
    settings = {"activation": "sigmoid", "global_weight": 0.0, "smooth": 0.0}
    for shape in ((1, 7), (1, 1, 7)):
        found = blob_dice_loss(logits, labels, instances=instances.reshape(shape), **settings)
        torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)
    found = BlobDiceLoss(**settings)(logits, labels, None, instances)
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)


def test_given_instances_equal_to_the_components_change_nothing():
    logits, labels = make_case()
    numbers = numbers_of_components(labels)
    torch.testing.assert_close(blob_dice_loss(logits, labels, instances=numbers), blob_dice_loss(logits, labels))


def test_given_number_counts_within_a_class_and_case_and_on_its_own_voxels_only():
    labels = torch.tensor([[1, 1, 0, 2], [0, 1, 0, 0]])
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    everywhere_1 = torch.ones(2, 4, dtype=torch.int64)
    found = blob_dice_loss(logits, labels, instances=everywhere_1, global_weight=0.0)
    torch.testing.assert_close(found, dice_loss(logits, labels))


def test_own_voxels_without_a_number_are_masked_out():
    labels = torch.tensor([[1, 0, 1, 1, 0]])
    instances = torch.tensor([[0, 0, 4, 4, 0]])
    logits = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64, requires_grad=True)
    settings = {"activation": "sigmoid", "global_weight": 0.0}
    found = blob_dice_loss(logits, labels, instances=instances, **settings)
    torch.testing.assert_close(found, dice_loss(logits[..., 1:], labels[:, 1:], activation="sigmoid"))
    assert gradient_of(found, logits)[0, 0, 0] == 0


def test_memory_does_not_grow_with_the_number_of_lesions():
    labels = torch.zeros(1, 20, 18, 16, dtype=torch.uint8)
    labels[:, ::2, ::2, ::2] = 1
    assert labels.sum() == 720
    logits = torch.zeros(1, 2, 20, 18, 16, requires_grad=True)
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: largest.append(saved.numel()) or saved, lambda x: x):
        blob_dice_loss(logits, labels)
    assert max(largest) <= logits.numel()


def test_voxels_of_a_large_lesion_are_not_lost_in_its_sum():
    """In fp32 one would add 0.3 to 1e6 as 0.3125; the lesion alone, without background, has Dice 2 p / (p + 1)."""
    side = 128
    logits = torch.full((1, 1, side, side, side), torch.logit(torch.tensor(0.3)).item())
    ones = torch.ones(1, side, side, side, dtype=torch.uint8)
    found = blob_dice_loss(logits, ones, activation="sigmoid", instances=ones, global_weight=0.0, smooth=0.0)
    assert found.item() == pytest.approx(1 - 2 * 0.3 / 1.3, rel=1e-6)


# What all of them share


@pytest.mark.parametrize("smooth", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_tversky_with_equal_halves_is_dice(smooth, soft):
    logits, target = make_case()
    target = soft_target("softmax", logits.shape) if soft else target
    halves = {"false_positive_weight": 0.5, "false_negative_weight": 0.5}
    torch.testing.assert_close(
        tversky_loss(logits, target, smooth=smooth, **halves), dice_loss(logits, target, smooth=smooth)
    )


def test_tversky_weights_are_on_the_side_that_their_names_say():
    labels = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    one_too_many = torch.tensor([50.0] * 5 + [-50.0] * 3).expand(1, 1, 8)
    two_missed = torch.tensor([50.0] * 2 + [-50.0] * 6).expand(1, 1, 8)
    weights = {"false_positive_weight": 2.0, "false_negative_weight": 5.0}
    settings = {"activation": "sigmoid", "smooth": 0.0, **weights}
    assert tversky_loss(one_too_many, labels, **settings).item() == pytest.approx(2 / (4 + 2))
    assert tversky_loss(two_missed, labels, **settings).item() == pytest.approx(10 / (2 + 10))


@pytest.mark.parametrize("exponent", [1 / 3, 0.75, 1.0, 2.0])
def test_exponent_of_focal_tversky_stands_above_the_tversky_loss_of_each_class(exponent):
    logits, labels = make_case(num_foreground=1, num_cases=1)
    expected = tversky_loss(logits, labels) ** exponent
    torch.testing.assert_close(focal_tversky_loss(logits, labels, exponent=exponent), expected)


def test_noise_robust_dice_at_exponent_2_is_dice_with_squares_below():
    logits, labels = make_case("sigmoid", num_foreground=1, num_cases=1)
    p, y = logits.sigmoid(), (labels == 1).double()
    expected = 1 - 2 * (p[:, 0] * y).sum() / ((p**2).sum() + y.sum())
    found = noise_robust_dice_loss(logits, labels, activation="sigmoid", exponent=2.0, smooth=0.0)
    torch.testing.assert_close(found, expected)


def test_noise_robust_dice_adds_smooth_below_only():
    logits, labels = torch.zeros(1, 1, 4), torch.tensor([[0, 1, 1, 1]])
    found = noise_robust_dice_loss(logits, labels, activation="sigmoid", smooth=2.0)
    assert found.item() == pytest.approx(4 * 0.5**1.5 / (4 * 0.25 + 3 + 2))


@every_loss
@pytest.mark.parametrize("y", [0.3, 0.5, 0.9])
def test_best_constant_prediction_of_a_soft_label_is_the_label(loss, y):
    target = torch.full((1, 1, 6, 5, 4), y, dtype=torch.float64)
    levels = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    values = torch.stack(
        [loss(torch.logit(level).expand(1, 1, 6, 5, 4), target, activation="sigmoid") for level in levels]
    )
    assert levels[values.argmin()].item() == pytest.approx(y)
    assert values.min().item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("y", "sees_it"), [(0.3, False), (0.5, True), (0.9, True)])
def test_lesion_term_alone_sees_soft_labels_from_one_half_on(y, sees_it):
    target = torch.full((1, 1, 6, 5, 4), y, dtype=torch.float64)
    logits = torch.full((1, 1, 6, 5, 4), -2.0, dtype=torch.float64, requires_grad=True)
    value = blob_dice_loss(logits, target, activation="sigmoid", global_weight=0.0)
    assert (value > 0) == sees_it
    assert (gradient_of(value, logits) != 0).any() == sees_it


@every_loss
@both_activations
def test_loss_is_0_where_prediction_equals_a_soft_target_and_positive_nearby(loss, activation):
    shape = (2, 3, 5, 4, 3)
    target = soft_target(activation, shape)
    logits = target.log() if activation == "softmax" else target.logit()
    assert loss(logits, target, activation=activation).item() == pytest.approx(0.0, abs=1e-9)
    nearby = logits + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert loss(nearby, target, activation=activation) > 1e-3


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_0_at_a_prediction_equal_to_a_soft_target(loss, dtype):
    """p = y = 1/2 exactly, where |p - y|, min(p, y) and (1 - TI)^0.75 have kinks."""
    target = torch.full((1, 1, 3, 2, 4), 0.5, dtype=dtype)
    logits = torch.zeros(1, 1, 3, 2, 4, dtype=dtype, requires_grad=True)
    gradient = gradient_of(loss(logits, target, activation="sigmoid"), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)


@pytest.mark.parametrize("exponent", [1 / 3, 0.75])
@pytest.mark.parametrize("margin", [5.0, 10.0, 15.0, 20.0, 40.0, 200.0, 1e4])
def test_focal_tversky_gradient_fades_as_the_prediction_becomes_right(exponent, margin):
    """|d/dz| <= slope of the line below 1e-6 times p (1 - p) / sum y, at every voxel."""
    labels = torch.tensor([[0, 1, 1, 0, 0]])
    logits = torch.where(labels > 0, margin, -margin)[None].requires_grad_()
    gradient = gradient_of(focal_tversky_loss(logits, labels, activation="sigmoid", exponent=exponent), logits)
    p = logits.detach().double().sigmoid()
    assert gradient.isfinite().all()
    bound = 1e-6 ** (exponent - 1) * p * torch.sigmoid(-logits.detach().double())
    assert (gradient.abs() <= bound * 1.01 + 1e-30).all()


@pytest.mark.parametrize("loss", [focal_tversky_loss, tversky_loss])
def test_slope_of_focal_tversky_next_to_a_soft_target_is_bounded(loss):
    target = torch.full((1, 1, 8), 0.3)
    logits = torch.logit(target).add(1e-7).requires_grad_()
    gradient = gradient_of(loss(logits, target, activation="sigmoid"), logits)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() <= 1e-6**-0.25


def test_power_is_continuous_where_the_line_begins():
    just_around = torch.tensor([1e-6 * (1 - 1e-9), 1e-6, 1e-6 * (1 + 1e-9)], dtype=torch.float64)
    for exponent in (1 / 3, 0.75):
        torch.testing.assert_close(overlap.bent_power(just_around, exponent), just_around**exponent, rtol=1e-8, atol=0)


@every_loss
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_voxels_count_in_no_sum_whatever_their_weight(loss, batch_dice, weighted):
    logits, labels = make_case(spatial=(6, 4, 3))
    labels[:, 4:] = 255
    weight = torch.full((2, 6, 4, 3), torch.inf, dtype=torch.float64)
    weight[:, :4] = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    of_all, of_kept = (weight, weight[:, :4]) if weighted else (None, None)
    value = loss(logits, labels, ignore_index=255, batch_dice=batch_dice, weight=of_all)
    expected = loss(logits[:, :, :4], labels[:, :4], batch_dice=batch_dice, weight=of_kept)
    torch.testing.assert_close(value, expected)
    assert (gradient_of(value, logits)[:, :, 4:] == 0).all()


def test_lesions_that_only_an_ignored_voxel_connects_are_two():
    logits = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = {"connectivity": 2, "global_weight": 0.0}
    found = blob_dice_loss(logits, torch.tensor([[1, 1, 9, 1, 0]]), ignore_index=9, **settings)
    instances = torch.tensor([[1, 1, 2, 0]])
    kept = logits[:, :, [0, 1, 3, 4]]
    expected = blob_dice_loss(kept, torch.tensor([[1, 1, 1, 0]]), instances=instances, **settings)
    torch.testing.assert_close(found, expected)


@every_loss
@pytest.mark.parametrize("batch_dice", [False, True])
def test_weight_of_2_is_a_voxel_twice(loss, batch_dice):
    """Twice as a voxel of its own lesion: each of these lesions lies within one half along the first axis."""
    logits, labels = make_case(spatial=(6, 4, 3))
    labels[:, 2] = 0
    weight = torch.ones(2, 6, 4, 3)
    weight[:, :2] = 2.0
    doubled_logits = torch.cat([logits[:, :, :2], logits], dim=2)
    doubled_labels = torch.cat([labels[:, :2], labels], dim=1)
    options = {}
    if loss is blob_dice_loss:
        numbers = numbers_of_components(labels)
        options["instances"] = torch.cat([numbers[:, :, :2], numbers], dim=2)
    expected = loss(doubled_logits, doubled_labels, batch_dice=batch_dice, **options)
    torch.testing.assert_close(loss(logits, labels, weight=weight, batch_dice=batch_dice), expected)
    torch.testing.assert_close(loss(logits, labels, weight=weight[:, None], batch_dice=batch_dice), expected)


@every_loss
def test_class_whose_voxels_all_weigh_0_is_absent(loss):
    logits, labels = make_case()
    weight = (labels != 2).double()
    without = labels.where(labels != 2, 255)
    expected = loss(logits, without, ignore_index=255)
    torch.testing.assert_close(loss(logits, labels, weight=weight, smooth=1e-5), expected)


@every_loss
@both_activations
@pytest.mark.parametrize("level", [-1e4, -30.0, 0.0, 30.0, 1e4])
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_patch_without_foreground_has_loss_0_and_no_gradient(loss, activation, level, smooth):
    logits = torch.zeros(2, 2, 4, 3, 5)
    logits[:, 1] = level
    logits.requires_grad_()
    labels = torch.zeros(2, 4, 3, 5, dtype=torch.uint8)
    value = loss(logits, labels, activation=activation, smooth=smooth)
    assert value == 0
    assert (gradient_of(value, logits) == 0).all()


@every_loss
@pytest.mark.parametrize("batch_dice", [False, True])
def test_soft_target_of_zeros_has_loss_0_and_no_gradient(loss, batch_dice):
    logits, _ = make_case("sigmoid")
    value = loss(logits, torch.zeros_like(logits), activation="sigmoid", batch_dice=batch_dice)
    assert value == 0
    assert (gradient_of(value, logits) == 0).all()


@every_loss
def test_case_and_class_without_foreground_leave_the_average_to_the_others(loss):
    logits, labels = make_case()
    labels[1] = 0
    labels[0][labels[0] == 2] = 0
    value = loss(logits, labels)
    only_first_class = torch.stack((logits[:1, [0, 2]].logsumexp(dim=1), logits[:1, 1]), dim=1)
    torch.testing.assert_close(value, loss(only_first_class, labels[:1]))
    assert (gradient_of(value, logits)[1] == 0).all()


@every_loss
def test_class_present_in_one_case_is_present_in_the_pooled_batch(loss):
    logits, labels = make_case(num_foreground=1)
    labels[1] = 0
    value = loss(logits, labels, batch_dice=True)
    gradient = gradient_of(value, logits)
    assert value > 0
    assert (gradient[1] != 0).any()


@every_loss
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_all_ignored_batch_has_loss_0_with_zero_gradients(loss, smooth):
    logits, labels = make_case()
    value = loss(logits, torch.full_like(labels, 255), ignore_index=255, smooth=smooth)
    assert value == 0
    assert value.device == logits.device
    assert (gradient_of(value, logits) == 0).all()


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_batch_whose_voxels_all_weigh_0_has_loss_0_with_zero_gradients(loss, soft):
    logits, target = make_case()
    target = soft_target("softmax", logits.shape) if soft else target
    value = loss(logits, target, weight=torch.zeros(2, 5, 4, 3), smooth=0.0)
    assert value == 0
    assert (gradient_of(value, logits) == 0).all()


@every_loss
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@both_activations
def test_gradient_agrees_with_finite_differences(loss, soft, batch_dice, activation):
    logits, target = make_case(activation, (3, 2, 2))
    options = {"activation": activation, "batch_dice": batch_dice}
    if soft:
        target = soft_target(activation, logits.shape)
    else:
        target[:, 2, 1] = 9
        options["ignore_index"] = 9
    options["weight"] = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, target, **options), (logits,))


@pytest.mark.parametrize("options", [{"exponent": 1 / 3}, {"exponent": 2.0}])
def test_focal_tversky_gradient_agrees_with_finite_differences_at_other_exponents(options):
    logits, labels = make_case(spatial=(3, 2, 2))
    assert torch.autograd.gradcheck(lambda z: focal_tversky_loss(z, labels, **options), (logits,))


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_noise_robust_dice_gradient_agrees_with_finite_differences_at_both_ends(exponent):
    logits, _ = make_case(spatial=(3, 2, 2))
    target = soft_target("softmax", logits.shape)
    assert torch.autograd.gradcheck(lambda z: noise_robust_dice_loss(z, target, exponent=exponent), (logits,))


@every_loss
@both_activations
@pytest.mark.parametrize("spatial", [(), (7,), (5, 4), (5, 4, 3)])
def test_loss_is_the_same_for_any_number_of_spatial_axes(loss, activation, spatial):
    """A volume of one line or slice is that line or slice; without spatial axes a case is a single voxel."""
    logits, labels = make_case(activation, spatial)
    if not spatial:
        labels = torch.tensor([1, 2])
    as_volume = (1,) * (3 - len(spatial)) + spatial
    value = loss(logits, labels, activation=activation, **options_for(loss, len(spatial)))
    expected = loss(logits.reshape(*logits.shape[:2], *as_volume), labels.reshape(2, *as_volume), activation=activation)
    torch.testing.assert_close(value, expected)
    assert value.ndim == 0


@every_loss
@both_activations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [20.0, 90.0, 1e4])
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient_are_finite_at_extreme_logits(loss, activation, dtype, level, soft):
    logits, target = make_case(activation)
    logits = (level * logits.detach().sign()).to(dtype).requires_grad_()
    if soft:
        target = soft_target(activation, logits.shape).to(dtype)
    value = loss(logits, target, activation=activation)
    assert value.dtype == torch.float32
    assert value.isfinite()
    gradient = gradient_of(value, logits)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("level", [-1e4, 1e4])
@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_all_or_nothing_predictions_have_finite_values_in_range(loss, level, smooth):
    _, labels = make_case("sigmoid", num_foreground=1)
    logits = torch.full((2, 1, 5, 4, 3), level, requires_grad=True)
    value = loss(logits, labels, activation="sigmoid", smooth=smooth)
    assert 0 < value.item() <= (3 if loss is blob_dice_loss else 1) * (1 + 1e-6)
    assert gradient_of(value, logits).isfinite().all()


@every_loss
def test_perfect_prediction_at_extreme_logits_has_loss_0(loss):
    _, labels = make_case("sigmoid", num_foreground=1)
    logits = torch.where(labels > 0, 1e4, -1e4)[:, None].requires_grad_()
    value = loss(logits, labels, activation="sigmoid")
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert (gradient_of(value, logits) == 0).all()


@every_loss
def test_loss_under_autocast_is_that_of_the_same_logits_outside(loss):
    logits, labels = make_case()
    logits = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits, labels)
    torch.testing.assert_close(inside, loss(logits, labels), rtol=0, atol=0)


@every_loss
def test_softmax_of_two_classes_is_sigmoid_of_their_difference(loss):
    logits, labels = make_case(num_foreground=1)
    margin = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(loss(logits, labels), loss(margin, labels, activation="sigmoid"))


@every_loss
def test_flipping_prediction_and_target_changes_nothing(loss):
    logits, labels = make_case()
    flipped = loss(logits.flip(2, 4), labels.flip(1, 3))
    torch.testing.assert_close(flipped, loss(logits, labels))


# Modules


@pytest.mark.parametrize(
    ("module", "loss", "options"),
    [
        (DiceLoss, dice_loss, {}),
        (TverskyLoss, tversky_loss, {"false_positive_weight": 0.2, "false_negative_weight": 0.9}),
        (
            FocalTverskyLoss,
            focal_tversky_loss,
            {"exponent": 0.6, "false_positive_weight": 0.2, "false_negative_weight": 0.9},
        ),
        (NoiseRobustDiceLoss, noise_robust_dice_loss, {"exponent": 1.2}),
        (BlobDiceLoss, blob_dice_loss, {"global_weight": 0.5, "blob_weight": 0.7, "connectivity": 6}),
    ],
)
def test_module_hands_every_option_to_its_function_and_prints_it(module, loss, options):
    logits, labels = make_case("sigmoid")
    options = {"activation": "sigmoid", "ignore_index": 2, "batch_dice": True, "smooth": 0.5, **options}
    weight = torch.rand(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    built = module(**options)
    expected = loss(logits, labels, weight=weight, **options)
    torch.testing.assert_close(built(logits, labels, weight), expected, rtol=0, atol=0)
    assert all(f"{name}={value!r}" in repr(built) for name, value in options.items())


@pytest.mark.parametrize("module", MODULES)
def test_module_without_options_is_its_function_without_options(module):
    logits, labels = make_case()
    loss = dict(zip(MODULES, LOSSES, strict=True))[module]
    torch.testing.assert_close(module()(logits, labels), loss(logits, labels), rtol=0, atol=0)


@pytest.mark.parametrize("module", MODULES)
def test_module_has_the_attributes_that_the_prior_bias_needs(module):
    loss = module(activation="sigmoid")
    assert (loss.activation, loss.gamma, loss.alpha) == ("sigmoid", 0.0, None)


@pytest.mark.parametrize("kind", ["module", "function"])
@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        *[(loss, {"smooth": -1.0}, r"smooth must be finite and >= 0, got -1.0") for loss in LOSSES],
        *[(loss, {"activation": "relu"}, "activation must be 'softmax' or 'sigmoid', got 'relu'") for loss in LOSSES],
        (tversky_loss, {"false_positive_weight": 0.0}, "false_positive_weight must be finite and > 0, got 0.0"),
        (tversky_loss, {"false_negative_weight": -0.7}, "false_negative_weight must be finite and > 0, got -0.7"),
        (focal_tversky_loss, {"false_negative_weight": float("nan")}, "false_negative_weight .* got nan"),
        (focal_tversky_loss, {"exponent": 0.0}, "exponent must be finite and > 0, got 0.0"),
        (noise_robust_dice_loss, {"exponent": 0.9}, r"exponent must be in \[1, 2\], got 0.9"),
        (noise_robust_dice_loss, {"exponent": float("nan")}, r"exponent must be in \[1, 2\], got nan"),
        (blob_dice_loss, {"global_weight": -1.0}, "global_weight must be finite and >= 0, got -1.0"),
        (blob_dice_loss, {"blob_weight": float("inf")}, "blob_weight must be finite and >= 0, got inf"),
        (blob_dice_loss, {"global_weight": 0.0, "blob_weight": 0.0}, "both 0"),
        (blob_dice_loss, {"connectivity": 7}, "connectivity must be .* got 7"),
    ],
)
def test_option_out_of_range_is_refused_by_function_and_constructor(kind, loss, options, message):
    logits, labels = make_case()
    build = dict(zip(LOSSES, MODULES, strict=True))[loss] if kind == "module" else partial(loss, logits, labels)
    with pytest.raises(ValueError, match=message):
        build(**options)


@every_loss
def test_target_or_weight_that_does_not_fit_the_logits_is_refused(loss):
    logits, labels = make_case()
    with pytest.raises(ValueError, match="target must have shape"):
        loss(logits, labels[:, :2])
    with pytest.raises(ValueError, match="label 3 is not among the 3 classes"):
        loss(logits, labels + 1)
    with pytest.raises(ValueError, match="weight must have shape"):
        loss(logits, labels, weight=torch.ones(2, 3))
    with pytest.raises(ValueError, match="ignore_index 2 cannot mark voxels of a floating point target"):
        loss(logits, F.softmax(logits.detach(), dim=1), ignore_index=2)
    with pytest.raises(ValueError, match="softmax needs at least 2 channels"):
        loss(logits[:, :1], labels)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (torch.ones(2, 5, 4, dtype=torch.int64), r"instances must have shape \(2, 5, 4, 3\), .* got \(2, 5, 4\)"),
        (torch.ones(2, 3, 5, 4, 3, dtype=torch.int64), r"or \(2, 2, 5, 4, 3\) for 2 foreground classes"),
        (torch.ones(2, 5, 4, 3), "integers that number the lesions, got torch.float32"),
        (torch.ones(2, 5, 4, 3, dtype=torch.bool), "integers that number the lesions, got torch.bool"),
        (-torch.ones(2, 5, 4, 3, dtype=torch.int64), "instances must be >= 0, got -1"),
    ],
)
def test_instances_that_do_not_fit_are_refused(instances, message):
    logits, labels = make_case()
    with pytest.raises(ValueError, match=message):
        blob_dice_loss(logits, labels, instances=instances)


def test_connectivity_that_does_not_fit_the_axes_is_refused():
    logits, labels = make_case(spatial=(5, 4))
    with pytest.raises(ValueError, match="connectivity must be 4 or 8 for 2 spatial axes, got 26"):
        blob_dice_loss(logits, labels)
