"""Focal loss against torch's cross-entropies, a brute-force loop and its closed-form gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from medfocal.losses import FocalLoss, focal_loss

SPATIAL = (6, 5, 4)
GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


def make_case(num_channels, *, num_classes=None, spatial=SPATIAL, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_channels, *spatial, generator=generator, dtype=torch.float64).to(dtype) * 2
    labels = torch.randint(num_classes or num_channels, (2, *spatial), generator=generator)
    return logits.requires_grad_(), labels


def value_and_gradient(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def assert_same(function, expected, logits, tolerance=1e-6):
    for ours, theirs in zip(value_and_gradient(function, logits), value_and_gradient(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def brute_force(logits, probabilities, *, gamma, alpha):
    """Definition A in plain double precision: sum_c alpha_c y_c (1 - p_c)^gamma (-log p_c) over axis 1."""
    p = logits.double().softmax(dim=1)
    weights = torch.tensor(alpha, dtype=torch.float64).reshape(1, -1, *[1] * (logits.ndim - 2))
    return (weights * probabilities * (1 - p) ** gamma * -p.log()).sum(dim=1)


def one_hot(labels, num_classes):
    return F.one_hot(labels, num_classes).movedim(-1, 1).double()


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_gamma_0_is_cross_entropy_in_value_and_gradient(num_classes, label_smoothing, weighted):
    logits, labels = make_case(num_classes, dtype=torch.float32)
    alpha = [0.3, 1.7, 0.8, 1.1, 2.0][:num_classes] if weighted else None
    assert_same(
        lambda z: focal_loss(z, labels, gamma=0.0, alpha=alpha, label_smoothing=label_smoothing, reduction="none"),
        lambda z: F.cross_entropy(
            z,
            labels,
            weight=None if alpha is None else torch.tensor(alpha),
            label_smoothing=label_smoothing,
            reduction="none",
        ),
        logits,
    )


def test_gamma_0_with_probabilities_is_cross_entropy_with_probabilities():
    logits, _ = make_case(3)
    target = torch.rand(2, 3, *SPATIAL, dtype=torch.float64).softmax(dim=1)
    assert_same(
        lambda z: focal_loss(z, target, gamma=0.0, label_smoothing=0.1),
        lambda z: F.cross_entropy(z, target, label_smoothing=0.1),
        logits,
    )


def test_gamma_0_on_one_sigmoid_channel_is_binary_cross_entropy():
    logits, labels = make_case(1, num_classes=2, dtype=torch.float32)
    expected = labels.unsqueeze(1).float()
    assert_same(
        lambda z: focal_loss(z, labels, gamma=0.0, activation="sigmoid"),
        lambda z: F.binary_cross_entropy_with_logits(z, expected),
        logits,
    )


def test_sigmoid_label_smoothing_moves_targets_by_half_of_it():
    logits, labels = make_case(1, num_classes=2)
    smoothed = 0.9 * labels.unsqueeze(1).double() + 0.05
    assert_same(
        lambda z: focal_loss(z, labels, gamma=0.0, activation="sigmoid", label_smoothing=0.1),
        lambda z: F.binary_cross_entropy_with_logits(z, smoothed),
        logits,
    )


def test_sigmoid_channels_are_the_foreground_classes_each_against_the_rest():
    logits, labels = make_case(3, num_classes=4)
    membership = one_hot(labels, 4)[:, 1:]
    assert_same(
        lambda z: focal_loss(z, labels, gamma=0.0, activation="sigmoid", reduction="none"),
        lambda z: F.binary_cross_entropy_with_logits(z, membership, reduction="none").sum(dim=1),
        logits,
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_softmax_loss_is_the_sum_over_classes_of_its_definition(gamma, num_classes, label_smoothing):
    logits, labels = make_case(num_classes)
    alpha = [0.4, 1.5, 0.9][:num_classes]
    target = (1 - label_smoothing) * one_hot(labels, num_classes) + label_smoothing / num_classes
    expected = brute_force(logits, target, gamma=gamma, alpha=alpha)
    from_labels = focal_loss(
        logits, labels, gamma=gamma, alpha=alpha, label_smoothing=label_smoothing, reduction="none"
    )
    from_probabilities = focal_loss(logits, target, gamma=gamma, alpha=alpha, reduction="none")
    torch.testing.assert_close(from_labels, expected)
    torch.testing.assert_close(from_probabilities, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_two_softmax_classes_equal_one_sigmoid_channel_of_their_difference(label_smoothing):
    logits, labels = make_case(2)
    options = {"gamma": 2.0, "alpha": 0.75, "label_smoothing": label_smoothing, "reduction": "none"}
    difference = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(
        focal_loss(logits, labels, **options), focal_loss(difference, labels, activation="sigmoid", **options)
    )


def test_alpha_as_one_number_weighs_the_foreground_and_leaves_the_rest_to_the_background():
    logits = torch.zeros(1, 2, 2)
    labels = torch.tensor([[0, 1]])
    ratio = focal_loss(logits, labels, alpha=0.75, reduction="none") / focal_loss(logits, labels, reduction="none")
    torch.testing.assert_close(ratio, torch.tensor([[0.25, 0.75]]))


def test_alpha_of_each_sigmoid_channel_acts_on_that_channel_alone():
    logits, labels = make_case(2, num_classes=3)
    both = focal_loss(logits, labels, alpha=[0.2, 0.9], activation="sigmoid", reduction="none")
    first = focal_loss(logits[:, :1], (labels == 1).int(), alpha=0.2, activation="sigmoid", reduction="none")
    second = focal_loss(logits[:, 1:], labels == 2, alpha=0.9, activation="sigmoid", reduction="none")
    torch.testing.assert_close(both, first + second)


def test_target_averaged_over_readers_gives_the_average_of_their_losses():
    logits, first = make_case(3)
    second = first.roll(1, dims=1)
    average = (one_hot(first, 3) + one_hot(second, 3)) / 2
    expected = (focal_loss(logits, first) + focal_loss(logits, second)) / 2
    torch.testing.assert_close(focal_loss(logits, average), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("activation", "num_channels"), [("softmax", 2), ("softmax", 4), ("sigmoid", 1), ("sigmoid", 2)]
)
def test_gradient_agrees_with_finite_differences(activation, num_channels, gamma, label_smoothing):
    num_classes = num_channels if activation == "softmax" else num_channels + 1
    logits, labels = make_case(num_channels, num_classes=num_classes, spatial=(3, 2))
    alpha = [0.3, 0.7, 0.5, 0.9][:num_channels]
    labels[0, 0, 0] = 255
    weight = torch.rand(2, 3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: focal_loss(
            z,
            labels,
            gamma=gamma,
            alpha=alpha,
            activation=activation,
            label_smoothing=label_smoothing,
            weight=weight,
            ignore_index=255,
        ),
        (logits,),
    )


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_softmax_gradient_with_probabilities_is_the_closed_form(num_classes, gamma):
    """dL/dz_k = p_k S - a_k with a_c = alpha_c y_c w(p_c) and S = sum_c a_c."""
    logits, _ = make_case(num_classes)
    y = torch.rand(2, num_classes, *SPATIAL, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda z: focal_loss(z, y, gamma=gamma, reduction="sum"), logits)
    p = logits.detach().softmax(dim=1)
    a = y * (1 - p) ** gamma * (1 - gamma * p * p.log() / (1 - p))
    torch.testing.assert_close(gradient, p * a.sum(dim=1, keepdim=True) - a)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("activation", "num_channels"), [("softmax", 2), ("softmax", 3), ("sigmoid", 1), ("sigmoid", 2)]
)
def test_extreme_logits_have_finite_values_and_gradients(activation, num_channels, gamma, dtype, label_smoothing):
    levels = [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]
    logits = torch.tensor(list(itertools.product(levels, repeat=num_channels)), dtype=dtype)
    for label in range(2):
        labels = torch.full((len(logits),), label)
        value, gradient = value_and_gradient(
            lambda z, labels=labels: focal_loss(
                z, labels, gamma=gamma, activation=activation, label_smoothing=label_smoothing
            ),
            logits,
        )
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("num_channels", [1, 2, 3, 5])
def test_fp32_gradient_keeps_its_relative_precision_up_to_a_margin_of_40(gamma, offset, num_channels):
    """The tolerance is the target of the design; below 1e-35 fp32 loses digits to its smallest numbers."""
    margins = torch.arange(-40, 41, dtype=torch.float32)
    labels = torch.zeros(len(margins), dtype=torch.int64)
    activation = "softmax" if num_channels > 1 else "sigmoid"
    logits = -torch.arange(num_channels, dtype=torch.float32).repeat(len(margins), 1) * 0.25
    logits[:, 0] = margins if num_channels > 1 else -margins
    if num_channels > 1:
        logits += offset

    def loss(z):
        return focal_loss(z, labels, gamma=gamma, activation=activation, reduction="sum")

    _, gradient = value_and_gradient(loss, logits)
    _, exact = value_and_gradient(loss, logits.double())
    assert exact.abs().min() < 1e-15
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-35)


def test_bf16_logits_give_the_loss_of_their_values_in_fp32():
    logits, labels = make_case(3, dtype=torch.bfloat16)
    loss = focal_loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, focal_loss(logits.detach().float(), labels))


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64],
)
@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 3), ("sigmoid", 2)])
def test_every_integer_type_and_a_channel_axis_mean_the_same_labels(dtype, activation, num_channels):
    logits, labels = make_case(num_channels, num_classes=3)
    expected = focal_loss(logits, labels, activation=activation)
    typed = labels.to(dtype)
    assert focal_loss(logits, typed, activation=activation) == expected
    assert focal_loss(logits, typed.unsqueeze(1), activation=activation) == expected


@pytest.mark.parametrize("spatial", [(), (7,), (5, 4), (6, 5, 4)])
def test_any_number_of_spatial_axes_gives_the_loss_of_its_voxels(spatial):
    logits, labels = make_case(3, spatial=spatial)
    flat = focal_loss(logits.movedim(1, -1).reshape(-1, 3), labels.reshape(-1))
    torch.testing.assert_close(focal_loss(logits, labels), flat)


def test_sum_is_the_sum_and_mean_the_mean_of_none():
    logits, labels = make_case(3)
    voxels = focal_loss(logits, labels, reduction="none")
    assert voxels.shape == labels.shape
    torch.testing.assert_close(focal_loss(logits, labels, reduction="sum"), voxels.sum())
    torch.testing.assert_close(focal_loss(logits, labels), voxels.mean())


def test_ignore_index_that_does_not_occur_changes_nothing():
    logits, labels = make_case(3)
    assert focal_loss(logits, labels, ignore_index=255) == focal_loss(logits, labels)


def test_ignored_voxels_have_no_loss_no_gradient_and_no_share_in_the_mean():
    logits, labels = make_case(3)
    labels[:, 2:] = 255
    value, gradient = value_and_gradient(lambda z: focal_loss(z, labels, ignore_index=255), logits)
    torch.testing.assert_close(value, focal_loss(logits[:, :, :2], labels[:, :2]).detach())
    assert (gradient[:, :, 2:] == 0).all()
    assert (gradient[:, :, :2] != 0).any()


@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("softmax", 3), ("sigmoid", 1)])
def test_batch_of_ignored_voxels_has_loss_0_with_zero_gradients(activation, num_channels):
    logits, labels = make_case(num_channels)
    labels = torch.full_like(labels, -1)
    value, gradient = value_and_gradient(
        lambda z: focal_loss(z, labels, activation=activation, ignore_index=-1), logits
    )
    assert value == 0
    assert (gradient == 0).all()


def test_ignore_index_minus_1_does_not_ignore_255_in_unsigned_labels():
    labels = torch.full((1, 4), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="label 255 is not among the 2 classes"):
        focal_loss(torch.zeros(1, 2, 4), labels, ignore_index=-1)


def test_weighted_mean_divides_by_the_number_of_valid_voxels():
    logits, labels = make_case(3)
    labels[0, 0] = 255
    weight = torch.rand(2, *SPATIAL, dtype=torch.float64)
    voxels = focal_loss(logits, labels, ignore_index=255, reduction="none")
    expected = (weight * voxels).sum() / (labels != 255).sum()
    torch.testing.assert_close(focal_loss(logits, labels, weight=weight, ignore_index=255), expected)
    with_channel = focal_loss(logits, labels, weight=weight.unsqueeze(1), ignore_index=255)
    torch.testing.assert_close(with_channel, expected)


def test_second_backward_equals_the_first():
    logits, labels = make_case(3)
    loss = focal_loss(logits, labels)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


def test_loss_object_passes_on_every_option():
    logits, labels = make_case(2)
    labels[0, 0] = 255
    weight = torch.rand(2, *SPATIAL, dtype=torch.float64)
    loss = FocalLoss(gamma=1.5, alpha=0.6, activation="softmax", label_smoothing=0.05, ignore_index=255)
    options = {"gamma": 1.5, "alpha": 0.6, "label_smoothing": 0.05, "ignore_index": 255}
    assert loss(logits, labels, weight) == focal_loss(logits, labels, weight=weight, **options)
    assert (loss.gamma, loss.alpha, loss.activation) == (1.5, 0.6, "softmax")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -1.0}, r"gamma must be finite and >= 0, got -1.0"),
        ({"gamma": float("nan")}, r"gamma must be finite and >= 0, got nan"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"alpha": 1.5}, r"alpha must be in \(0, 1\).*got 1.5"),
        ({"alpha": [0.5, -0.5, 1.0]}, r"alpha must hold finite weights > 0, got \(0.5, -0.5, 1.0\)"),
        ({"activation": "softplus"}, r"activation must be 'softmax' or 'sigmoid', got 'softplus'"),
    ],
)
def test_option_out_of_range_is_refused_by_function_and_constructor(options, message):
    logits, labels = make_case(3)
    with pytest.raises(ValueError, match=message):
        focal_loss(logits, labels, **options)
    with pytest.raises(ValueError, match=message):
        FocalLoss(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.25}, r"alpha 0.25 is one number.*3 channels have 3; give 3 values"),
        ({"alpha": [0.5, 0.5]}, r"one value per channel, 3, got 2"),
        ({"alpha": [0.5, 0.5, 2.0], "activation": "sigmoid"}, r"sigmoid channel must be in \(0, 1\)"),
        ({"weight": torch.ones(2, 5, 6, 4)}, r"weight must have shape \(2, 6, 5, 4\).*got \(2, 5, 6, 4\)"),
        ({"reduction": "average"}, r"reduction must be 'none', 'mean' or 'sum', got 'average'"),
    ],
)
def test_option_that_contradicts_the_logits_is_refused(options, message):
    logits, labels = make_case(3)
    with pytest.raises(ValueError, match=message):
        focal_loss(logits, labels, **options)


@pytest.mark.parametrize(
    ("label", "activation", "num_classes"), [(3, "softmax", 3), (-7, "softmax", 3), (4, "sigmoid", 4)]
)
def test_label_that_is_no_class_is_named(label, activation, num_classes):
    logits, labels = make_case(3)
    labels[1, 2, 3, 1] = label
    with pytest.raises(ValueError, match=rf"label {label} is not among the {num_classes} classes"):
        focal_loss(logits, labels, activation=activation, ignore_index=255)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3, 6), torch.zeros(2, 5, dtype=torch.int64), r"target must have shape \(2, 6\)"),
        (torch.zeros(2, 3, 6), torch.zeros(2, 6), r"must have the logits' shape \(2, 3, 6\), got \(2, 6\)"),
        (torch.zeros(2, 3, 6).long(), torch.zeros(2, 6).long(), r"logits must be a floating point tensor"),
        (torch.zeros(2, 1, 6), torch.zeros(2, 6).long(), r"softmax needs at least 2 channels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_both_shapes(logits, target, message):
    with pytest.raises(ValueError, match=message):
        focal_loss(logits, target)


def test_ignore_index_with_probabilities_is_refused():
    with pytest.raises(ValueError, match="ignore_index 255 cannot mark voxels of a floating point target"):
        focal_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), ignore_index=255)
