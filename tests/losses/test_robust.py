"""Losses for wrong labels against loops in double precision, torch's own losses and the claims of their papers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from medfocal.losses import focal_loss
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

SPATIAL = (6, 5, 4)
ACTIVATIONS = [("softmax", 2), ("softmax", 4), ("sigmoid", 1), ("sigmoid", 2)]


def focal_by_hand(p, gamma):
    return (1 - p) ** gamma * -math.log(p)


def generalised_by_hand(p, label, *, q=0.7, truncation=None):
    kept = max(p[label], truncation or 0.0)
    return -math.log(kept) if q == 0 else (1 - kept**q) / q


def reverse_by_hand(p, label, *, log_zero=-4.0):
    return -sum(p[c] * (0.0 if c == label else log_zero) for c in range(len(p)))


def symmetric_by_hand(p, label, *, cross_entropy_weight=0.1, reverse_weight=1.0, log_zero=-4.0):
    return cross_entropy_weight * -math.log(p[label]) + reverse_weight * reverse_by_hand(p, label, log_zero=log_zero)


def normalised_by_hand(p, label, *, gamma=0.5):
    return focal_by_hand(p[label], gamma) / sum(focal_by_hand(p_c, gamma) for p_c in p)


def active_passive_by_hand(p, label, *, active_weight=1.0, passive_weight=1.0, gamma=0.5, log_zero=-4.0):
    passive = reverse_by_hand(p, label, log_zero=log_zero)
    return active_weight * normalised_by_hand(p, label, gamma=gamma) + passive_weight * passive


def bootstrapped_by_hand(p, label, *, beta=None, hard=False, gamma=0.0):
    beta = beta or (0.8 if hard else 0.95)
    own = [float(p_c == max(p)) for p_c in p] if hard else p
    mixed = [beta * (c == label) + (1 - beta) * own[c] for c in range(len(p))]
    return sum(y * focal_by_hand(p_c, gamma) for y, p_c in zip(mixed, p, strict=True))


SYMMETRIC = {"cross_entropy_weight": 6.0, "reverse_weight": 0.3, "log_zero": -7.0}
ACTIVE_PASSIVE = {"active_weight": 2.0, "passive_weight": 0.3, "gamma": 1.0, "log_zero": -3.0}
CASES = [
    (generalised_cross_entropy, generalised_by_hand, {}),
    (generalised_cross_entropy, generalised_by_hand, {"q": 0.0}),
    (generalised_cross_entropy, generalised_by_hand, {"q": 0.3, "truncation": 0.4}),
    (generalised_cross_entropy, generalised_by_hand, {"q": 1.0}),
    (reverse_cross_entropy, reverse_by_hand, {}),
    (reverse_cross_entropy, reverse_by_hand, {"log_zero": -9.0}),
    (symmetric_cross_entropy, symmetric_by_hand, {}),
    (symmetric_cross_entropy, symmetric_by_hand, SYMMETRIC),
    (normalised_focal, normalised_by_hand, {}),
    (normalised_focal, normalised_by_hand, {"gamma": 0.0}),
    (normalised_focal, normalised_by_hand, {"gamma": 2.0}),
    (active_passive, active_passive_by_hand, {}),
    (active_passive, active_passive_by_hand, ACTIVE_PASSIVE),
    (bootstrapped_cross_entropy, bootstrapped_by_hand, {}),
    (bootstrapped_cross_entropy, bootstrapped_by_hand, {"hard": True}),
    (bootstrapped_cross_entropy, bootstrapped_by_hand, {"beta": 0.6, "gamma": 2.0}),
    (bootstrapped_cross_entropy, bootstrapped_by_hand, {"beta": 0.6, "gamma": 2.0, "hard": True}),
]
FAR_GAMMAS = [(normalised_focal, {"gamma": 300.0}), (bootstrapped_cross_entropy, {"gamma": 0.1})]
EVERY_LOSS = [(function, options) for function, _, options in CASES]


def make_case(num_channels, *, activation="softmax", spatial=SPATIAL, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_channels, *spatial, generator=generator, dtype=torch.float64).to(dtype) * 2
    num_classes = num_channels + (activation == "sigmoid")
    labels = torch.randint(num_classes, (2, *spatial), generator=generator)
    return logits.requires_grad_(), labels


def one_hot(labels, num_classes):
    return F.one_hot(labels, num_classes).movedim(-1, 1).double()


def value_and_gradient(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def assert_same(function, expected, logits, tolerance=1e-9):
    for ours, theirs in zip(value_and_gradient(function, logits), value_and_gradient(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def loop_over_voxels(by_hand, logits, probabilities, activation, options):
    """The expectation of the loss by hand over each voxel's labels, on (B, C, *) probabilities of the target."""
    rows = logits.detach().movedim(1, -1).reshape(-1, logits.shape[1])
    targets = probabilities.movedim(1, -1).reshape(-1, logits.shape[1])
    losses = []
    for z, y in zip(rows, targets, strict=True):
        if activation == "softmax":
            problems = [(z.softmax(dim=0).tolist(), y.tolist())]
        else:
            problems = [
                ([1 - float(p), float(p)], [1 - float(t), float(t)]) for p, t in zip(z.sigmoid(), y, strict=True)
            ]
        losses.append(
            sum(t * by_hand(p, label, **options) for p, labels in problems for label, t in enumerate(labels) if t)
        )
    return torch.tensor(losses, dtype=torch.float64).reshape(logits.shape[0], *logits.shape[2:])


@pytest.mark.parametrize(("function", "by_hand", "options"), CASES)
@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
def test_loss_of_labels_is_its_definition_voxel_by_voxel(function, by_hand, options, activation, num_channels):
    logits, labels = make_case(num_channels, activation=activation, spatial=(4, 3))
    membership = one_hot(labels, num_channels) if activation == "softmax" else one_hot(labels, num_channels + 1)[:, 1:]
    expected = loop_over_voxels(by_hand, logits, membership, activation, options)
    losses = function(logits, labels, activation=activation, reduction="none", **options)
    torch.testing.assert_close(losses.detach(), expected)


@pytest.mark.parametrize(("function", "by_hand", "options"), CASES)
@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
def test_loss_of_probabilities_is_the_expectation_over_labels(function, by_hand, options, activation, num_channels):
    logits, _ = make_case(num_channels, activation=activation, spatial=(4, 3))
    target = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = target / target.sum(dim=1, keepdim=True) if activation == "softmax" else target
    expected = loop_over_voxels(by_hand, logits, target, activation, options)
    losses = function(logits, target, activation=activation, reduction="none", **options)
    torch.testing.assert_close(losses.detach(), expected)


@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
@pytest.mark.parametrize("target_kind", ["labels", "probabilities"])
def test_gradient_agrees_with_finite_differences(function, options, activation, num_channels, target_kind):
    logits, target = make_case(num_channels, activation=activation, spatial=(3, 2))
    weight = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ignored = {}
    if target_kind == "labels":
        target[0, 0, 0] = 255
        ignored = {"ignore_index": 255}
    else:
        target = make_case(num_channels, spatial=(3, 2), seed=3)[0].detach().sigmoid()
    assert torch.autograd.gradcheck(
        lambda z: function(z, target, activation=activation, weight=weight, **ignored, **options), (logits,)
    )


@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
def test_two_softmax_classes_equal_one_sigmoid_channel_of_their_difference(function, options):
    logits, labels = make_case(2)
    assert_same(
        lambda z: function(z, labels, reduction="none", **options),
        lambda z: function(z[:, 1:] - z[:, :1], labels, activation="sigmoid", reduction="none", **options),
        logits,
    )


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (generalised_cross_entropy, {"q": 0.0}),
        (symmetric_cross_entropy, {"cross_entropy_weight": 1.0, "reverse_weight": 0.0}),
        (bootstrapped_cross_entropy, {"beta": 1.0}),
        (bootstrapped_cross_entropy, {"beta": 1.0, "hard": True}),
    ],
)
def test_limit_is_the_cross_entropy_of_torch(function, options):
    logits, labels = make_case(3)
    assert_same(lambda z: function(z, labels, **options), lambda z: F.cross_entropy(z, labels), logits)
    soft = make_case(3, seed=4)[0].detach().softmax(dim=1)
    assert_same(lambda z: function(z, soft, **options), lambda z: F.cross_entropy(z, soft), logits)
    binary, labels = make_case(1, activation="sigmoid")
    assert_same(
        lambda z: function(z, labels, activation="sigmoid", **options),
        lambda z: F.binary_cross_entropy_with_logits(z, labels.unsqueeze(1).double()),
        binary,
    )


@pytest.mark.parametrize("q", [1e-4, 1e-8])
def test_small_q_comes_as_near_to_cross_entropy_as_q_is_to_0(q):
    """(1 - p^q) / q = -log p - q log(p)^2 / 2 + ..., at -log p below 12 here."""
    logits, labels = make_case(3)
    ours = generalised_cross_entropy(logits, labels, q=q, reduction="none")
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, reduction="none"), rtol=0, atol=75 * q)


def test_q_1_is_half_the_absolute_error_of_the_probabilities():
    logits, labels = make_case(3)
    assert_same(
        lambda z: generalised_cross_entropy(z, labels, q=1.0, reduction="sum"),
        lambda z: F.l1_loss(z.softmax(dim=1), one_hot(labels, 3), reduction="sum") / 2,
        logits,
    )


def test_bootstrapping_with_all_of_the_label_is_the_focal_loss():
    logits, labels = make_case(3)
    for gamma in (0.0, 0.5, 2.0):
        assert_same(
            lambda z, gamma=gamma: bootstrapped_cross_entropy(z, labels, beta=1.0, gamma=gamma),
            lambda z, gamma=gamma: focal_loss(z, labels, gamma=gamma),
            logits,
        )


@pytest.mark.parametrize(
    ("function", "options", "constant_of"),
    [
        (generalised_cross_entropy, {"q": 1.0}, lambda num_classes: num_classes - 1.0),
        (reverse_cross_entropy, {"log_zero": -4.0}, lambda num_classes: 4.0 * (num_classes - 1)),
        (normalised_focal, {"gamma": 0.5}, lambda _: 1.0),
        (normalised_focal, {"gamma": 3.0}, lambda _: 1.0),
        (active_passive, {"active_weight": 0.5, "passive_weight": 2.0}, lambda n: 0.5 + 8.0 * (n - 1)),
    ],
)
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_symmetric_loss_has_a_constant_sum_over_all_labels(function, options, constant_of, num_classes):
    """The condition under which uniformly wrong labels leave the minimum where it is."""
    logits, _ = make_case(num_classes)

    def total(z):
        labels = [torch.full((2, *SPATIAL), label) for label in range(num_classes)]
        return sum(function(z, label, reduction="none", **options) for label in labels)

    value, gradient = value_and_gradient(total, logits)
    torch.testing.assert_close(value, torch.full_like(value, constant_of(num_classes)))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "options", "constant"),
    [
        (generalised_cross_entropy, {"q": 1.0}, 1.0),
        (reverse_cross_entropy, {}, 4.0),
        (normalised_focal, {}, 1.0),
    ],
)
def test_symmetric_loss_has_a_constant_sum_over_both_labels_of_each_sigmoid_channel(function, options, constant):
    """Labels 0 and c differ in channel c alone; every channel has both labels once in (0..0) and (1..1)."""
    logits, _ = make_case(3, activation="sigmoid")
    ends = [torch.zeros_like(logits), torch.ones_like(logits)]
    total = sum(function(logits, end, activation="sigmoid", reduction="none", **options) for end in ends)
    torch.testing.assert_close(total.detach(), torch.full((2, *SPATIAL), 3 * constant, dtype=torch.float64))


@pytest.mark.parametrize("q", [0.3, 0.7])
def test_generalised_cross_entropy_sums_between_its_bounds_over_all_labels(q):
    """Zhang and Sabuncu: (C - C^(1 - q)) / q <= sum over labels <= (C - 1) / q."""
    logits, _ = make_case(4)
    labels = [torch.full((2, *SPATIAL), label) for label in range(4)]
    total = sum(generalised_cross_entropy(logits, label, q=q, reduction="none") for label in labels)
    assert (total >= (4 - 4 ** (1 - q)) / q - 1e-12).all()
    assert (total <= 3 / q + 1e-12).all()


def test_generalised_cross_entropy_counts_each_voxel_by_its_probability_to_the_power_q():
    logits, labels = make_case(3)
    _, gradient = value_and_gradient(lambda z: generalised_cross_entropy(z, labels, q=0.7, reduction="sum"), logits)
    _, of_cross_entropy = value_and_gradient(lambda z: F.cross_entropy(z, labels, reduction="sum"), logits)
    p = logits.detach().softmax(dim=1).gather(1, labels.unsqueeze(1))
    torch.testing.assert_close(gradient, p**0.7 * of_cross_entropy)


def test_truncated_voxels_have_a_constant_loss_and_no_gradient():
    logits, labels = make_case(2)
    value, gradient = value_and_gradient(
        lambda z: generalised_cross_entropy(z, labels, truncation=0.5, reduction="none"), logits
    )
    wrong = logits.detach().argmax(dim=1) != labels
    assert 0 < wrong.sum() < wrong.numel()
    torch.testing.assert_close(value[wrong], torch.full_like(value[wrong], (1 - 0.5**0.7) / 0.7))
    assert (gradient.movedim(1, -1)[wrong] == 0).all()
    assert (gradient.movedim(1, -1)[~wrong] != 0).all()


def test_generalised_cross_entropy_seeks_a_rare_class_at_its_odds_to_the_power_1_over_1_minus_q():
    """Of a constant prediction for 1 voxel in 100: s p^q (1 - p) = (1 - s) (1 - p)^q p."""
    labels = torch.zeros(1, 100, dtype=torch.int64)
    labels[0, 7] = 1
    constant = torch.tensor(math.log(1 / 99) / 0.3, dtype=torch.float64)
    _, gradient = value_and_gradient(
        lambda z: generalised_cross_entropy(z.expand(1, 1, 100), labels, activation="sigmoid"), constant
    )
    _, beside = value_and_gradient(
        lambda z: generalised_cross_entropy(z.expand(1, 1, 100), labels, activation="sigmoid"), constant + 0.1
    )
    assert abs(gradient) < 1e-6 * abs(beside)


@pytest.mark.parametrize("function", [normalised_focal, reverse_cross_entropy])
@pytest.mark.parametrize("log_odds", [-8.0, -2.0, 0.0, 2.0])
def test_symmetric_loss_leads_a_constant_prediction_away_from_the_rarer_class(function, log_odds):
    labels = (torch.arange(100) < 49).long().unsqueeze(0)
    level = torch.tensor(log_odds, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda z: function(z.expand(1, 1, 100), labels, activation="sigmoid"), level)
    assert gradient > 0


def test_soft_bootstrapping_adds_the_entropy_of_the_prediction_and_its_gradient():
    logits, labels = make_case(3)

    def expected(z):
        entropy = -(z.softmax(dim=1) * z.log_softmax(dim=1)).sum(dim=1).mean()
        return 0.95 * F.cross_entropy(z, labels) + 0.05 * entropy

    assert_same(lambda z: bootstrapped_cross_entropy(z, labels), expected, logits)


@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
def test_hard_bootstrapping_with_the_most_probable_class_as_label_is_cross_entropy(activation, num_channels):
    logits, _ = make_case(num_channels, activation=activation)
    z = logits.detach()
    own = one_hot(z.argmax(dim=1), num_channels) if activation == "softmax" else (z > 0).double()
    assert_same(
        lambda z: bootstrapped_cross_entropy(z, own, hard=True, activation=activation),
        lambda z: focal_loss(z, own, gamma=0.0, activation=activation),
        logits,
    )


@pytest.mark.parametrize(("function", "options"), [*EVERY_LOSS, *FAR_GAMMAS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("softmax", 3), ("sigmoid", 2)])
def test_extreme_logits_have_finite_values_and_gradients(function, options, dtype, activation, num_channels):
    levels = [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]
    logits = torch.tensor(list(itertools.product(levels, repeat=num_channels)), dtype=dtype)
    for label in range(2):
        labels = torch.full((len(logits),), label)
        value, gradient = value_and_gradient(
            lambda z, labels=labels: function(z, labels, activation=activation, **options), logits
        )
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (generalised_cross_entropy, {"q": 0.3}),
        (generalised_cross_entropy, {"q": 0.7}),
        (generalised_cross_entropy, {"q": 1.0}),
        (reverse_cross_entropy, {}),
        (symmetric_cross_entropy, {}),
    ],
)
@pytest.mark.parametrize("num_channels", [1, 2, 3])
def test_fp32_value_and_gradient_keep_their_relative_precision_up_to_a_margin_of_40(function, options, num_channels):
    margins = torch.arange(-40, 41, dtype=torch.float32)
    labels = torch.zeros(len(margins), dtype=torch.int64)
    activation = "softmax" if num_channels > 1 else "sigmoid"
    logits = -torch.arange(num_channels, dtype=torch.float32).repeat(len(margins), 1) * 0.25
    logits[:, 0] = margins if num_channels > 1 else -margins

    def loss(z):
        return function(z, labels, activation=activation, reduction="none", **options)

    value, gradient = value_and_gradient(loss, logits)
    exact_value, exact_gradient = value_and_gradient(loss, logits.double())
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-5, atol=1e-35)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_fp32_normalised_focal_loss_keeps_its_relative_precision_far_out(gamma):
    logits = torch.arange(-60.0, 61.0).reshape(1, 1, -1)
    labels = torch.ones(1, 121, dtype=torch.int64)
    options = {"gamma": gamma, "activation": "sigmoid", "reduction": "none"}
    exact = normalised_focal(logits.double(), labels, **options)
    torch.testing.assert_close(normalised_focal(logits, labels, **options).double(), exact, rtol=5e-5, atol=1e-37)


@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
def test_autocast_changes_nothing(function, options):
    logits, labels = make_case(3, dtype=torch.float32)
    expected = function(logits, labels, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(function(logits, labels, **options), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
def test_ignored_voxels_have_no_loss_no_gradient_and_no_share_in_the_mean(function, options):
    logits, labels = make_case(3)
    labels[:, 2:] = 255
    value, gradient = value_and_gradient(lambda z: function(z, labels, ignore_index=255, **options), logits)
    torch.testing.assert_close(value, function(logits[:, :, :2], labels[:, :2], **options).detach())
    assert (gradient[:, :, 2:] == 0).all()
    assert (gradient[:, :, :2] != 0).any()


@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
def test_batch_of_ignored_voxels_has_loss_0_with_zero_gradients(function, options, activation, num_channels):
    logits, labels = make_case(num_channels, activation=activation)
    labels = torch.full_like(labels, -1)
    value, gradient = value_and_gradient(
        lambda z: function(z, labels, activation=activation, ignore_index=-1, **options), logits
    )
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
def test_weighted_mean_divides_by_the_number_of_valid_voxels(function, options):
    logits, labels = make_case(3)
    labels[0, 0] = 255
    weight = torch.rand(2, *SPATIAL, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    voxels = function(logits, labels, ignore_index=255, reduction="none", **options)
    expected = (weight * voxels).sum() / (labels != 255).sum()
    torch.testing.assert_close(function(logits, labels, weight=weight, ignore_index=255, **options), expected)
    with_channels = function(logits, labels.unsqueeze(1), weight=weight.unsqueeze(1), ignore_index=255, **options)
    torch.testing.assert_close(with_channels, expected)


@pytest.mark.parametrize("spatial", [(), (7,), (5, 4)])
@pytest.mark.parametrize(("function", "options"), EVERY_LOSS)
def test_any_number_of_spatial_axes_gives_the_loss_of_its_voxels(function, options, spatial):
    logits, labels = make_case(3, spatial=spatial)
    flat = function(logits.movedim(1, -1).reshape(-1, 3), labels.reshape(-1), **options)
    torch.testing.assert_close(function(logits, labels, **options), flat)


MODULES = [
    (GeneralisedCrossEntropyLoss, generalised_cross_entropy, {"q": 0.4, "truncation": 0.2}),
    (
        SymmetricCrossEntropyLoss,
        symmetric_cross_entropy,
        {"cross_entropy_weight": 0.4, "reverse_weight": 0.6, "log_zero": -5.0},
    ),
    (
        ActivePassiveLoss,
        active_passive,
        {"active_weight": 0.4, "passive_weight": 0.6, "gamma": 1.5, "log_zero": -5.0},
    ),
    (BootstrappedLoss, bootstrapped_cross_entropy, {"beta": 0.7, "hard": True, "gamma": 1.5}),
]


@pytest.mark.parametrize(("loss_class", "function", "options"), MODULES)
def test_loss_object_passes_on_every_option(loss_class, function, options):
    logits, labels = make_case(2, activation="sigmoid")
    labels[0, 0] = 255
    weight = torch.rand(2, *SPATIAL, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = {**options, "activation": "sigmoid", "ignore_index": 255}
    loss = loss_class(**options)
    assert loss(logits, labels, weight) == function(logits, labels, weight=weight, **options)
    assert (loss.gamma, loss.alpha, loss.activation) == (options.get("gamma", 0.0), None, "sigmoid")
    assert all(f"{name}={value!r}" in repr(loss) for name, value in options.items())


@pytest.mark.parametrize(("loss_class", "function", "_"), MODULES)
def test_loss_object_has_the_defaults_of_its_function(loss_class, function, _):
    logits, labels = make_case(3)
    assert loss_class()(logits, labels) == function(logits, labels)


@pytest.mark.parametrize(("hard", "beta"), [(False, 0.95), (True, 0.8)])
def test_share_of_the_label_in_the_bootstrapped_target_is_that_of_the_paper(hard, beta):
    assert BootstrappedLoss(hard=hard).beta == beta


@pytest.mark.parametrize(
    ("loss_class", "function", "options", "message"),
    [
        (GeneralisedCrossEntropyLoss, generalised_cross_entropy, {"q": 1.5}, r"q must be in \[0, 1\], got 1.5"),
        (GeneralisedCrossEntropyLoss, generalised_cross_entropy, {"q": math.nan}, r"q must be in \[0, 1\], got nan"),
        (
            GeneralisedCrossEntropyLoss,
            generalised_cross_entropy,
            {"truncation": 1.0},
            r"truncation must be None or in \(0, 1\), got 1.0",
        ),
        (
            SymmetricCrossEntropyLoss,
            symmetric_cross_entropy,
            {"reverse_weight": -0.5},
            r"reverse_weight must be finite and >= 0, got -0.5",
        ),
        (
            SymmetricCrossEntropyLoss,
            symmetric_cross_entropy,
            {"cross_entropy_weight": 0.0, "reverse_weight": 0.0},
            r"cross_entropy_weight and reverse_weight are both 0; raise one",
        ),
        (SymmetricCrossEntropyLoss, symmetric_cross_entropy, {"log_zero": 0.0}, r"log_zero must be .* < 0, got 0.0"),
        (ActivePassiveLoss, active_passive, {"active_weight": math.inf}, r"active_weight must be finite.*got inf"),
        (ActivePassiveLoss, active_passive, {"log_zero": -math.inf}, r"log_zero must be finite and < 0, got -inf"),
        (ActivePassiveLoss, active_passive, {"gamma": -1.0}, r"gamma must be finite and >= 0, got -1.0"),
        (BootstrappedLoss, bootstrapped_cross_entropy, {"beta": 0.0}, r"beta must be in \(0, 1\], got 0.0"),
        (BootstrappedLoss, bootstrapped_cross_entropy, {"gamma": -1.0}, r"gamma must be finite and >= 0, got -1.0"),
        (BootstrappedLoss, bootstrapped_cross_entropy, {"activation": "tanh"}, r"'softmax' or 'sigmoid', got 'tanh'"),
    ],
)
def test_option_out_of_range_is_refused_by_function_and_constructor(loss_class, function, options, message):
    logits, labels = make_case(3)
    with pytest.raises(ValueError, match=message):
        function(logits, labels, **options)
    with pytest.raises(ValueError, match=message):
        loss_class(**options)


@pytest.mark.parametrize(
    ("function", "options"), [(normalised_focal, {"gamma": -2.0}), (reverse_cross_entropy, {"log_zero": 4.0})]
)
def test_option_of_a_loss_without_an_object_is_refused_with_its_value(function, options):
    logits, labels = make_case(3)
    (value,) = options.values()
    with pytest.raises(ValueError, match=f"got {value}"):
        function(logits, labels, **options)


@pytest.mark.parametrize("function", sorted({function for function, _ in EVERY_LOSS}, key=lambda f: f.__name__))
def test_target_that_does_not_fit_is_refused(function):
    logits, labels = make_case(3)
    with pytest.raises(ValueError, match=r"label 3 is not among the 3 classes"):
        function(logits, torch.full_like(labels, 3))
    with pytest.raises(ValueError, match=r"reduction must be 'none', 'mean' or 'sum', got 'average'"):
        function(logits, labels, reduction="average")
    with pytest.raises(ValueError, match=r"softmax needs at least 2 channels"):
        function(logits[:, :1], labels)


def trim_by_hand(losses, labels, rates):
    """Indices left out: of each class the highest, of equal ones the first."""
    dropped = set()
    for label, rate in enumerate(rates):
        members = [i for i, other in enumerate(labels) if other == label]
        members.sort(key=lambda i: (-losses[i], i))
        dropped.update(members[: len(members) * round(rate * 100) // 100])
    return dropped


@pytest.mark.parametrize("rates", [(0.0, 0.0, 0.0), (0.02, 0.5, 0.0), (0.1, 0.29, 0.99), (0.33, 0.07, 0.57)])
def test_trimming_leaves_out_the_highest_of_each_class(rates):
    generator = torch.Generator().manual_seed(6)
    loss = torch.randint(30, (2, *SPATIAL), generator=generator) / 8  # many equal losses
    labels = torch.randint(3, (2, *SPATIAL), generator=generator, dtype=torch.uint8)
    keep = trim_highest(loss, labels, rates=rates)
    dropped = trim_by_hand(loss.flatten().tolist(), labels.flatten().tolist(), rates)
    assert keep.shape == loss.shape
    assert set((~keep).flatten().nonzero().flatten().tolist()) == dropped


def test_trimming_spares_a_rare_class_of_high_loss():
    """One threshold for all would leave out the 4 lesion voxels; their own rate leaves out 1."""
    loss = torch.cat([torch.linspace(0, 1, 96), torch.tensor([5.0, 6.0, 8.0, 7.0])]).reshape(1, 100)
    labels = (torch.arange(100) >= 96).int().reshape(1, 100)
    keep = trim_highest(loss, labels, rates=[0.04, 0.25])
    assert (~keep).nonzero()[:, 1].tolist() == [93, 94, 95, 98]


@pytest.mark.parametrize(("rate", "count", "dropped"), [(0.29, 100, 29), (0.5, 7, 3), (0.9, 1, 0), (0.34, 3, 1)])
def test_number_left_out_is_rounded_down_from_the_decimal_rate(rate, count, dropped):
    keep = trim_highest(torch.rand(1, count), torch.zeros(1, count, dtype=torch.int64), rates=[rate])
    assert int((~keep).sum()) == dropped


def test_among_equal_losses_the_first_are_left_out():
    keep = trim_highest(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64), rates=[0.7])
    assert keep.tolist() == [[False, False, False], [False, True, True]]


def test_voxels_that_are_not_valid_neither_count_nor_are_kept():
    loss, valid = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]]), torch.tensor([[False, True, True, True, True]])
    for label in (0, 255):
        labels = torch.tensor([[label, 0, 0, 0, 0]])
        assert trim_highest(loss, labels, rates=[0.25], valid=valid).tolist() == [[False, True, True, True, False]]


def test_loss_that_is_nan_is_kept_and_seen():
    loss, labels = torch.tensor([[math.nan, 1.0, math.inf, 3.0]]), torch.zeros(1, 4, dtype=torch.int64)
    assert trim_highest(loss, labels, rates=[0.5]).tolist() == [[True, True, False, False]]


def test_trimming_nothing_gives_nothing():
    assert trim_highest(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), rates=[0.5]).shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": [0.1, 1.0]}, r"rates must hold one share in \[0, 1\) per class, got \(0.1, 1.0\)"),
        ({"rates": []}, r"rates must hold one share in \[0, 1\) per class, got \(\)"),
        ({"rates": [0.1]}, r"label 1 has no rate; rates holds 1, for the classes 0..0"),
        ({"labels": torch.full((2, 3), -1)}, r"label -1 has no rate"),
        ({"labels": torch.zeros(2, 3)}, r"labels must be integers of the loss's shape \(2, 3\), got torch.float32"),
        ({"labels": torch.zeros(3, 2).long()}, r"loss's shape \(2, 3\), got torch.int64 of shape \(3, 2\)"),
        ({"valid": torch.ones(2, 3)}, r"valid must be bool of the loss's shape \(2, 3\), got torch.float32"),
        ({"valid": torch.ones(2).bool()}, r"valid must be bool.*of shape \(2,\)"),
    ],
)
def test_trimming_refuses_what_does_not_fit(changes, message):
    arguments = {"loss": torch.zeros(2, 3), "labels": torch.ones(2, 3).long(), "rates": [0.1, 0.1], **changes}
    with pytest.raises(ValueError, match=message):
        trim_highest(**arguments)


OPTIONS = {"gamma": 1.5, "label_smoothing": 0.05}


@pytest.mark.parametrize(
    ("activation", "num_channels", "alpha"), [("softmax", 3, [0.5, 1.0, 2.0]), ("sigmoid", 2, [0.3, 0.8])]
)
def test_trimmed_loss_is_the_mean_focal_loss_of_the_kept_voxels(activation, num_channels, alpha):
    logits, labels = make_case(num_channels, activation=activation)
    labels[0, 0] = 255
    weight = torch.rand(2, *SPATIAL, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = {**OPTIONS, "alpha": alpha, "activation": activation}
    rates = (0.1, 0.3, 0.2)
    loss = TrimmedLoss(rates=rates, ignore_index=255, **options)
    value, gradient = value_and_gradient(lambda z: loss(z, labels.unsqueeze(1), weight), logits)
    voxels = focal_loss(logits, labels, ignore_index=255, reduction="none", **options).detach()
    dropped = trim_by_hand(voxels.flatten().tolist(), labels.flatten().tolist(), rates)
    keep = labels != 255
    keep.view(-1)[sorted(dropped)] = False
    torch.testing.assert_close(value, (weight * voxels)[keep].mean())
    assert (gradient.movedim(1, -1)[~keep] == 0).all()
    assert (gradient.movedim(1, -1)[keep] != 0).all()
    assert loss.num_dropped == len(dropped) > 0
    assert (loss.gamma, list(loss.alpha), loss.activation) == (1.5, alpha, activation)


@pytest.mark.parametrize(("rates", "trim_share"), [((0.0, 0.0, 0.0), 1.0), ((0.4, 0.4, 0.4), 0.0)])
def test_trimming_by_rates_0_is_the_focal_loss(rates, trim_share):
    logits, labels = make_case(3)
    loss = TrimmedLoss(rates=rates, **OPTIONS)
    loss.trim_share = trim_share
    assert_same(lambda z: loss(z, labels), lambda z: focal_loss(z, labels, **OPTIONS), logits)
    assert loss.num_dropped == 0


def test_trim_share_scales_every_rate():
    logits, labels = make_case(2)
    ramped, fixed = TrimmedLoss(rates=(0.2, 0.6)), TrimmedLoss(rates=(0.05, 0.15))
    assert ramped.trim_share == 1.0
    ramped.trim_share = 0.25
    assert ramped(logits, labels) == fixed(logits, labels)
    assert ramped.num_dropped == fixed.num_dropped > 0


def test_number_of_trimmed_voxels_adds_up_until_it_is_taken():
    logits, labels = make_case(2)
    loss = TrimmedLoss(rates=(0.2, 0.6))
    assert loss.take_num_dropped() is None
    total = 0
    for part in (labels, 1 - labels):
        loss(logits, part)
        total += loss.num_dropped
    assert loss.take_num_dropped() == total > loss.num_dropped > 0


def test_trimmed_loss_of_ignored_voxels_is_0_with_zero_gradients():
    logits, labels = make_case(2)
    loss = TrimmedLoss(rates=(0.2, 0.6), ignore_index=255)
    value, gradient = value_and_gradient(lambda z: loss(z, torch.full_like(labels, 255)), logits)
    assert value == 0
    assert loss.num_dropped == 0
    assert (gradient == 0).all()


def test_trimmed_gradient_agrees_with_finite_differences():
    logits, labels = make_case(3, spatial=(3, 2))
    assert torch.autograd.gradcheck(lambda z: TrimmedLoss(rates=(0.5, 0.5, 0.5))(z, labels), (logits,))


def test_trimmed_loss_refuses_what_does_not_fit():
    logits, labels = make_case(3)
    loss = TrimmedLoss(rates=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"needs integer labels, got a target of torch.float64"):
        loss(logits, logits.detach().softmax(dim=1))
    with pytest.raises(ValueError, match=r"one value for each of the 4 classes of sigmoid .* 3 channels, got 3"):
        TrimmedLoss(rates=(0.1, 0.2, 0.3), activation="sigmoid")(logits, labels)
    loss.trim_share = 1.5
    with pytest.raises(ValueError, match=r"trim_share must be in \[0, 1\], got 1.5"):
        loss(logits, labels)
    with pytest.raises(ValueError, match=r"rates must hold one share in \[0, 1\) per class, got \(0.1, -0.2\)"):
        TrimmedLoss(rates=(0.1, -0.2))
    with pytest.raises(ValueError, match=r"gamma must be finite and >= 0, got -1.0"):
        TrimmedLoss(rates=(0.1, 0.2), gamma=-1.0)


@pytest.mark.parametrize("margin", [0.0, 1.5, 10.0])
@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
def test_margin_penalty_is_its_definition_voxel_by_voxel(margin, activation, num_channels):
    logits, _ = make_case(num_channels, activation=activation)
    logits = logits.detach() * 3
    expected = []
    for z in logits.movedim(1, -1).reshape(-1, num_channels).tolist():
        if activation == "softmax":
            expected.append(sum(max(0.0, max(z) - z_c - margin) for z_c in z) / num_channels)
        else:
            expected.append(sum(max(0.0, abs(z_c) - margin) for z_c in z))
    voxels = margin_penalty(logits, margin=margin, activation=activation, reduction="none")
    torch.testing.assert_close(voxels, torch.tensor(expected, dtype=torch.float64).reshape(2, *SPATIAL))
    torch.testing.assert_close(margin_penalty(logits, margin=margin, activation=activation), voxels.mean())


def test_logits_within_the_margin_have_no_penalty_and_no_gradient():
    logits = torch.tensor([[[-4.0, 1.0], [5.9, -8.0], [0.0, 1.5]]])
    value, gradient = value_and_gradient(lambda z: margin_penalty(z, reduction="none"), logits)
    assert value.tolist() == [[0.0, 0.0]]
    assert (gradient == 0).all()


@pytest.mark.parametrize(("activation", "num_channels"), ACTIVATIONS)
def test_margin_gradient_agrees_with_finite_differences(activation, num_channels):
    logits, _ = make_case(num_channels, activation=activation, spatial=(3, 2))
    assert torch.autograd.gradcheck(lambda z: margin_penalty(z, margin=1.0, activation=activation), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_margin_penalty_of_extreme_logits_is_finite_in_fp32(dtype, activation):
    logits = torch.tensor(list(itertools.product([-1e4, -20.0, 0.0, 1e4], repeat=3)), dtype=dtype)
    value, gradient = value_and_gradient(lambda z: margin_penalty(z, activation=activation), logits)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("activation", "alpha"), [("softmax", [0.5, 1.0, 2.0]), ("sigmoid", [0.3, 0.8, 0.6])])
def test_margin_focal_loss_is_both_terms_over_the_valid_voxels(activation, alpha):
    logits, labels = make_case(3)
    labels[0, 0] = 255
    weight = torch.rand(2, *SPATIAL, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = {**OPTIONS, "alpha": alpha, "activation": activation, "ignore_index": 255}
    loss = MarginFocalLoss(margin=1.0, margin_weight=0.3, **options)
    penalty = (weight * margin_penalty(logits, margin=1.0, activation=activation, reduction="none"))[labels != 255]
    expected = focal_loss(logits, labels, weight=weight, **options) + 0.3 * penalty.mean()
    torch.testing.assert_close(loss(logits, labels, weight), expected)
    assert (loss.gamma, list(loss.alpha), loss.activation) == (1.5, alpha, activation)
    assert "margin=1.0, margin_weight=0.3" in repr(loss)


def test_margin_focal_loss_of_ignored_voxels_is_0_with_zero_gradients():
    logits, labels = make_case(2)
    loss = MarginFocalLoss(ignore_index=255, margin=0.0)
    value, gradient = value_and_gradient(lambda z: loss(z, torch.full_like(labels, 255)), logits)
    assert value == 0
    assert (gradient == 0).all()


def test_margin_focal_loss_with_probabilities_is_both_terms_over_all_voxels():
    logits, _ = make_case(2)
    target = make_case(2, seed=8)[0].detach().softmax(dim=1)
    expected = focal_loss(logits, target) + 0.1 * margin_penalty(logits, margin=2.0)
    torch.testing.assert_close(MarginFocalLoss(margin=2.0)(logits, target), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, r"margin must be finite and >= 0, got -1.0"),
        ({"margin_weight": math.nan}, r"margin_weight must be finite and >= 0, got nan"),
        ({"gamma": -0.5}, r"gamma must be finite and >= 0, got -0.5"),
    ],
)
def test_margin_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MarginFocalLoss(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": math.inf}, r"margin must be finite and >= 0, got inf"),
        ({"valid": torch.ones(2, 5)}, r"valid must be bool of shape \(2, 5\), got torch.float32 of shape \(2, 5\)"),
        ({"valid": torch.ones(5, 2).bool()}, r"valid must be bool of shape \(2, 5\), got torch.bool of shape \(5, 2\)"),
        ({"weight": torch.ones(5, 2)}, r"weight must have shape \(2, 5\)"),
        ({"activation": "tanh"}, r"activation must be 'softmax' or 'sigmoid', got 'tanh'"),
    ],
)
def test_margin_penalty_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        margin_penalty(torch.zeros(2, 3, 5), **options)
