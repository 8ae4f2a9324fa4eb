"""Options of the focal losses: what is refused and in which words, smoothed shares, soft targets, epochs and caps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from medfocal.losses import DiceCrossEntropyLoss, DiceFocalLoss, FocalLoss, focal_loss
from medfocal.losses.activation import Activation
from medfocal.losses.options import (
    CapKind,
    Normalize,
    Soft,
    check_alpha,
    check_cap,
    check_gamma,
    check_label_smoothing,
    class_probabilities,
    smoothed_shares,
)

SPATIAL = (5, 4, 3)
NAN = float("nan")


def random_case(num_channels=3, *, num_classes=None):
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(2, num_channels, *SPATIAL, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(num_classes or num_channels, (2, *SPATIAL), generator=generator)
    return logits.requires_grad_(), labels


IDENTITY_3 = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": float("inf")}, r"gamma must be finite and >= 0, got inf"),
        ({"gamma": (1.0, -2.0, 0.0)}, r"gamma must be finite and >= 0, got \(1.0, -2.0, 0.0\)"),
        ({"gamma": ()}, r"gamma must be finite and >= 0, got \(\)"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\), or one weight per class, got 0.0"),
        ({"alpha": NAN}, r"alpha must be in \(0, 1\), or one weight per class, got nan"),
        ({"alpha": (1.0, 0.0, 2.0)}, r"alpha must hold finite weights > 0, got \(1.0, 0.0, 2.0\)"),
        ({"alpha": (1.0, float("inf"), 2.0)}, r"alpha must hold finite weights > 0, got \(1.0, inf, 2.0\)"),
        ({"activation": "tanh"}, r"activation must be 'softmax' or 'sigmoid', got 'tanh'"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
        ({"label_smoothing": NAN}, r"label_smoothing must be in \[0, 1\), got nan"),
        ({"label_smoothing": {"fg": 1.0, "bg": 0.0}}, r"label_smoothing 'fg' must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": {"fg": 0.0, "bg": -0.5}}, r"label_smoothing 'bg' must be in \[0, 1\), got -0.5"),
        ({"label_smoothing": {"fg": 0.1}}, r"'fg' of spurious marks and 'bg' of missed ones, got \{'fg': 0.1\}"),
        (
            {"label_smoothing": {"fg": 0.1, "bg": 0.1, "rim": 0.1}},
            r"got \{'fg': 0.1, 'bg': 0.1, 'rim': 0.1\}",
        ),
        ({"label_smoothing": [[1.0, 0.0], [0.0, 1.0, 0.0]]}, r"must be square, got rows of lengths \[2, 3\]"),
        ({"label_smoothing": []}, r"must be square, got rows of lengths \[\]"),
        (
            {"label_smoothing": [[1.0, 0.0, 0.0], [0.2, 0.7, 0.2], [0.0, 0.0, 1.0]]},
            r"sum to 1, got row 1: \(0.2, 0.7, 0.2\) with sum 1.1",
        ),
        (
            {"label_smoothing": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.1, 0.1, 1.0]]},
            r"sum to 1, got row 2: \(-0.1, 0.1, 1.0\) with sum 1",
        ),
        ({"soft": "hard"}, r"soft must be 'expected' or 'quality' or 'mixture', got 'hard'"),
        (
            {"normalize": "classes"},
            r"normalize must be 'voxels' or 'positives' or 'weight' or 'factor', got 'classes'",
        ),
        ({"backend": "cuda"}, r"backend must be 'auto', 'eager' or 'compiled', got 'cuda'"),
        ({"cap": ("flat", 0.1)}, r"cap must be 'zero' or 'linear' with a probability, got 'flat'"),
        ({"cap": "zero"}, r"cap must be a kind and a probability, as in \('zero', 0.1\), got 'zero'"),
        ({"cap": ("zero",)}, r"cap must be a kind and a probability.* got \('zero',\)"),
        ({"cap": ("zero", "0.1")}, r"cap must be a kind and a probability.* got \('zero', '0.1'\)"),
        ({"cap": ("linear", 0.0)}, r"the probability of a cap must be in \(0, 1\), got 0.0"),
        ({"cap": ("zero", 1)}, r"the probability of a cap must be in \(0, 1\), got 1"),
        ({"cap": ("zero", NAN)}, r"the probability of a cap must be in \(0, 1\), got nan"),
    ],
)
def test_malformed_option_is_refused_by_function_and_constructor_in_the_same_words(options, message):
    with pytest.raises(ValueError, match=message):
        focal_loss(*random_case(), **options)
    with pytest.raises(ValueError, match=message):
        FocalLoss(**options)
    if "soft" not in options:
        with pytest.raises(ValueError, match=message):
            DiceFocalLoss(**options)


@pytest.mark.parametrize("loss_class", [FocalLoss, DiceFocalLoss])
@pytest.mark.parametrize("epoch", [-1, 1.0, True, "2"])
def test_epoch_of_the_cap_that_is_no_count_is_refused(loss_class, epoch):
    with pytest.raises(ValueError, match=rf"cap_start_epoch must be a whole number >= 0, got {epoch!r}"):
        loss_class(cap=("zero", 0.1), cap_start_epoch=epoch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gamma": (0.0, 2.0)},
            r"one per class, 3 with the background, for softmax logits with 3 channels, got 2: \(0.0, 2.0\)",
        ),
        (
            {"gamma": (0.0, 2.0, 1.0), "activation": "sigmoid"},
            r"one per class, 4 with the background, for sigmoid logits with 3 channels, got 3",
        ),
        ({"alpha": 0.3}, r"alpha 0.3 is one number.*softmax logits with 3 channels have 3; give 3 values"),
        ({"alpha": 0.3, "activation": "sigmoid"}, r"sigmoid logits with 3 channels have 4; give 3 values"),
        ({"alpha": (0.3, 0.7)}, r"alpha must have one value per channel, 3, got 2: \(0.3, 0.7\)"),
        ({"alpha": ()}, r"alpha must have one value per channel, 3, got 0: \(\)"),
        (
            {"alpha": (0.3, 1.0, 0.5), "activation": "sigmoid"},
            r"alpha of each sigmoid channel must be in \(0, 1\), got \(0.3, 1.0, 0.5\)",
        ),
        ({"label_smoothing": [[0.9, 0.1], [0.1, 0.9]]}, r"one row per class, 3 with the background, got 2"),
        (
            {"label_smoothing": [[1.0, 0.0, 0.0, 0.0]] * 4, "activation": "sigmoid"},
            r"as a matrix needs exclusive classes; 3 sigmoid channels are not. Use activation='softmax', or \{'fg'",
        ),
        ({"include_background": False, "activation": "sigmoid"}, r"include_background=False needs softmax"),
        (
            {"soft": "quality", "cap": ("zero", 0.1)},
            r"cap is of the loss with soft='expected'; soft='quality' has none",
        ),
        ({"soft": "mixture", "cap": ("linear", 0.1)}, r"soft='mixture' has none"),
        (
            {"soft": "quality", "normalize": "factor"},
            r"normalize='factor' is of the loss with soft='expected', got soft='quality'",
        ),
        ({"soft": "mixture", "normalize": "factor"}, r"normalize='factor'.* got soft='mixture'"),
        ({"soft": "mixture", "gamma": (1.0, 2.0, 1.0)}, r"soft='mixture'.*needs one gamma, got \(1.0, 2.0, 1.0\)"),
        ({"soft": "quality", "gamma": 0.5}, r"soft='quality' needs gamma 0 or >= 1.*got \(0.5, 0.5, 0.5\)"),
        ({"reduction": "median"}, r"reduction must be 'none', 'mean' or 'sum', got 'median'"),
    ],
)
def test_options_that_contradict_the_logits_or_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        focal_loss(*random_case(), **options)


FLOATS = torch.zeros(2, 3, 6)
LABELS = torch.zeros(2, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (
            FLOATS.int(),
            LABELS,
            {},
            r"must be a floating point tensor \(B, C, \*spatial\), got torch.int32 of shape \(2, 3, 6\)",
        ),
        (FLOATS[0, 0], LABELS, {}, r"got torch.float32 of shape \(6,\)"),
        (FLOATS[:, :1], LABELS, {}, r"at least 2 channels, got logits of shape \(2, 1, 6\); use activation='sigmoid'"),
        (
            FLOATS,
            FLOATS[:, :2],
            {},
            r"must have the logits' shape \(2, 3, 6\), got \(2, 2, 6\); give labels as integers",
        ),
        (
            FLOATS,
            FLOATS,
            {"ignore_index": -1},
            r"ignore_index -1 cannot mark voxels of a floating point target; use weight",
        ),
        (FLOATS, LABELS.to(torch.complex64), {}, r"target must hold integers or real numbers, got torch.complex64"),
        (
            FLOATS,
            LABELS[:, :5],
            {},
            r"must have shape \(2, 6\) or \(2, 1, 6\) for logits of shape \(2, 3, 6\), got \(2, 5\) of torch.int64",
        ),
        (
            FLOATS,
            LABELS,
            {"weight": FLOATS},
            r"weight must have shape \(2, 6\) or \(2, 1, 6\).*got \(2, 3, 6\) of torch.float32",
        ),
        (
            FLOATS,
            LABELS + 3,
            {},
            r"label 3 is not among the 3 classes 0..2 of softmax logits with 3 channels, nor ignore_index \(None\)",
        ),
        (FLOATS, LABELS - 1, {"ignore_index": 9}, r"label -1 is not among the 3 classes 0..2.*nor ignore_index \(9\)"),
        (
            FLOATS,
            LABELS + 4,
            {"activation": "sigmoid"},
            r"label 4 is not among the 4 classes 0..3 of sigmoid logits with 3 channels",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_both_values(logits, target, options, message):
    with pytest.raises(ValueError, match=message):
        focal_loss(logits, target, **options)
    if "weight" not in options:
        with pytest.raises(ValueError, match=message):
            DiceFocalLoss(**options)(logits, target)


def test_options_come_back_in_plain_types():
    assert check_gamma([1, 2]) == (1.0, 2.0)
    assert check_alpha([1, 2]) == (1.0, 2.0)
    assert check_alpha(None) is None
    assert check_cap(["zero", 0.25]) == ("zero", 0.25)
    assert check_cap(None) is None
    assert check_label_smoothing({"bg": 0, "fg": 0.5}) == {"fg": 0.5, "bg": 0.0}
    assert check_label_smoothing([[1, 0], [0.5, 0.5]]) == ((1.0, 0.0), (0.5, 0.5))
    for kind, names in ((CapKind, "zero linear"), (Soft, "expected quality mixture")):
        assert [kind(name).value for name in names.split()] == names.split()


def test_rows_of_a_matrix_may_be_off_by_the_digits_they_are_written_with():
    third = [[0.3333, 0.3333, 0.3333]] * 3
    assert class_probabilities(third, activation=Activation.SOFTMAX, num_channels=3) == ((0.3333,) * 3,) * 3
    with pytest.raises(ValueError, match=r"with sum 0.999\b"):
        class_probabilities([[0.333] * 3] * 3, activation=Activation.SOFTMAX, num_channels=3)


@pytest.mark.parametrize("nothing", [0.0, 0, {"fg": 0.0, "bg": 0.0}])
def test_smoothing_of_0_is_no_smoothing(nothing):
    for activation in Activation:
        assert class_probabilities(nothing, activation=activation, num_channels=3) is None
    assert smoothed_shares([0.2, 0.1], label_smoothing=nothing) == [0.2, 0.1]


def test_matrix_of_ones_on_the_diagonal_changes_no_loss():
    logits, labels = random_case()
    torch.testing.assert_close(focal_loss(logits, labels, label_smoothing=IDENTITY_3), focal_loss(logits, labels))


@pytest.mark.parametrize(
    ("activation", "smoothing", "expected"),
    [
        ("softmax", 0.3, [0.7 * 0.1 + 0.1, 0.7 * 0.3 + 0.1]),
        ("sigmoid", 0.3, [0.7 * 0.1 + 0.15, 0.7 * 0.3 + 0.15]),
        ("softmax", {"fg": 0.2, "bg": 0.1}, [0.8 * 0.1 + 0.6 * 0.05, 0.8 * 0.3 + 0.6 * 0.05]),
        ("sigmoid", {"fg": 0.2, "bg": 0.1}, [0.8 * 0.1 + 0.9 * 0.1, 0.8 * 0.3 + 0.7 * 0.1]),
        (
            "softmax",
            [[0.8, 0.15, 0.05], [0.1, 0.9, 0.0], [0.0, 0.3, 0.7]],
            [0.6 * 0.15 + 0.1 * 0.9 + 0.3 * 0.3, 0.6 * 0.05 + 0.3 * 0.7],
        ),
    ],
)
def test_smoothed_shares_are_the_expectation_over_labels(activation, smoothing, expected):
    shares = smoothed_shares([0.1, 0.3], label_smoothing=smoothing, activation=activation)
    assert shares == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("activation", "smoothing"),
    [
        *itertools.product(("softmax", "sigmoid"), (0.2, {"fg": 0.05, "bg": 0.1})),
        ("softmax", [[0.8, 0.15, 0.05], [0.1, 0.9, 0.0], [0.0, 0.3, 0.7]]),
    ],
)
def test_smoothed_shares_are_those_that_the_loss_sees(activation, smoothing):
    """At gamma 0 the mean gradient on the logits is p - y: from it the mean of y is read."""
    first = 1 if activation == "softmax" else 0
    logits = torch.zeros(1, 2 + first, 100, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0] * 60 + [1] * 10 + [2] * 30).reshape(1, 100)
    focal_loss(logits, labels, gamma=0.0, activation=activation, label_smoothing=smoothing).backward()
    p = 1 / 3 if activation == "softmax" else 1 / 2
    seen = (p - logits.grad.sum(dim=2))[0, first:].tolist()
    assert smoothed_shares([0.1, 0.3], label_smoothing=smoothing, activation=activation) == pytest.approx(seen)


def test_smoothed_share_of_one_sigmoid_channel_takes_a_matrix():
    assert smoothed_shares([0.2], label_smoothing=[[0.9, 0.1], [0.3, 0.7]], activation="sigmoid") == pytest.approx(
        [0.8 * 0.1 + 0.2 * 0.7]
    )


# Soft targets.


def soft_by_hand(p, y, *, gamma, alpha, soft):
    if soft == "quality":
        return math.fsum(a * abs(t - q) ** g * t * -math.log(q) for q, t, g, a in zip(p, y, gamma, alpha, strict=True))
    entropy = math.fsum(-t * math.log(q) for q, t in zip(p, y, strict=True))
    return math.fsum(a * t for t, a in zip(y, alpha, strict=True)) * (1 - math.exp(-entropy)) ** gamma[0] * entropy


@pytest.mark.parametrize(
    ("soft", "gamma"), [("quality", (2.0, 1.0, 3.0)), ("quality", (0.0, 0.0, 0.0)), ("mixture", (1.5,) * 3)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_quality_and_mixture_are_their_formulas(soft, gamma, smoothing):
    logits, _ = random_case()
    target = torch.rand(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    alpha = (0.3, 1.2, 0.8)
    got = focal_loss(
        logits, target, gamma=gamma, alpha=alpha, soft=soft, label_smoothing=smoothing, reduction="none"
    ).detach()
    p = logits.detach().softmax(dim=1).movedim(1, -1).reshape(-1, 3).tolist()
    y = ((1 - smoothing) * target + smoothing / 3).movedim(1, -1).reshape(-1, 3).tolist()
    expected = [soft_by_hand(p, y, gamma=gamma, alpha=alpha, soft=soft) for p, y in zip(p, y, strict=True)]
    torch.testing.assert_close(got.flatten(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("soft", ["quality", "mixture"])
@pytest.mark.parametrize("smoothing", [0.0, {"fg": 0.05, "bg": 0.1}])
def test_sigmoid_quality_and_mixture_are_their_formulas_summed_over_channels(soft, smoothing):
    logits, _ = random_case(2)
    target = torch.rand(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gammas, alphas = ((2.0, 1.0, 3.0) if soft == "quality" else (2.0,) * 3), (0.3, 0.8)
    got = focal_loss(
        logits,
        target,
        gamma=gammas,
        alpha=alphas,
        activation="sigmoid",
        soft=soft,
        label_smoothing=smoothing,
        reduction="none",
    ).detach()
    y = target if smoothing == 0.0 else 0.95 * target + 0.1 * (1 - target)
    expected = torch.zeros(got.numel(), dtype=torch.float64)
    for c in range(2):
        p, of_class = logits.detach()[:, c].sigmoid().flatten().tolist(), y[:, c].flatten().tolist()
        for v, (q, t) in enumerate(zip(p, of_class, strict=True)):
            options = {"gamma": (gammas[0], gammas[c + 1]), "alpha": (1 - alphas[c], alphas[c])}
            expected[v] += soft_by_hand((1 - q, q), (1 - t, t), soft=soft, **options)
    torch.testing.assert_close(got.flatten(), expected)


@pytest.mark.parametrize("soft", ["quality", "mixture"])
def test_gradient_of_soft_losses_agrees_with_finite_differences(soft):
    logits, labels = random_case()
    small = logits.detach()[:, :, :2, :2, 0].clone().requires_grad_()
    target = torch.rand(small.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    for kind in (target, labels[:, :2, :2, 0]):
        assert torch.autograd.gradcheck(lambda z, kind=kind: focal_loss(z, kind, soft=soft), (small,))


@pytest.mark.parametrize("soft", ["quality", "mixture"])
@pytest.mark.parametrize("y", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("sigmoid", 1)])
def test_quality_and_mixture_are_least_at_the_target(soft, y, activation, num_channels):
    levels = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    margin = torch.logit(levels)
    logits = torch.stack((torch.zeros_like(margin), margin), 1) if num_channels == 2 else margin.unsqueeze(1)
    target = torch.full_like(margin, y)
    target = torch.stack((1 - target, target), 1) if num_channels == 2 else target.unsqueeze(1)
    values = focal_loss(logits, target, activation=activation, soft=soft, reduction="none")
    assert float(levels[values.argmin()]) == pytest.approx(y)


@pytest.mark.parametrize("soft", ["quality", "mixture"])
@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 3), ("sigmoid", 2)])
@pytest.mark.parametrize("normalize", ["voxels", "positives", "weight"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_of_certain_labels_all_soft_losses_are_the_same(soft, activation, num_channels, normalize, reduction):
    logits, labels = random_case(num_channels, num_classes=3)
    labels[0, 1] = 255
    options = {
        "alpha": (0.3, 0.8, 0.6)[:num_channels],
        "activation": activation,
        "weight": 0.5 + torch.rand(labels.shape, dtype=torch.float64),
        "ignore_index": 255,
        "normalize": normalize,
        "reduction": reduction,
    }
    torch.testing.assert_close(focal_loss(logits, labels, soft=soft, **options), focal_loss(logits, labels, **options))


@pytest.mark.parametrize("soft", ["quality", "mixture"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 3), ("sigmoid", 2)])
def test_soft_losses_of_extreme_logits_are_finite_with_finite_gradients(soft, gamma, dtype, activation, num_channels):
    if soft == "quality" and gamma == 0.5:
        gamma = 1.0  # refused
    levels = [-1e4, -90.0, 0.0, 90.0, 1e4]
    logits = torch.tensor(list(itertools.product(levels, repeat=num_channels)), dtype=dtype)
    for target in (torch.ones(len(logits), dtype=torch.uint8), torch.full(logits.shape, 0.3, dtype=dtype)):
        leaf = logits.clone().requires_grad_()
        value = focal_loss(leaf, target, gamma=gamma, activation=activation, soft=soft)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value.isfinite()
        assert gradient.isfinite().all()


# Loss objects.


EACH_OPTION = [
    {"gamma": (0.5, 1.0, 3.0)},
    {"alpha": (0.3, 1.2, 0.8)},
    {"activation": "sigmoid"},
    {"label_smoothing": {"fg": 0.05, "bg": 0.1}},
    {"ignore_index": 2},
    {"cap": ("linear", 0.3)},
    {"normalize": "positives"},
    {"normalize": "factor"},
]


@pytest.mark.parametrize("option", [*EACH_OPTION, {"include_background": False}, {"soft": "quality"}], ids=str)
def test_focal_loss_object_passes_each_option_on(option):
    logits, labels = random_case()
    weight = 0.5 + torch.rand(labels.shape, dtype=torch.float64)
    target = labels if "soft" not in option else logits.detach().flip(0).softmax(dim=1)
    expected = focal_loss(logits, target, weight=weight, **option)
    loss = FocalLoss(**option)
    assert loss(logits, target, weight) == expected
    assert expected != focal_loss(logits, target, weight=weight)
    (name,) = option
    assert f"{name}={getattr(loss, name)!r}" in repr(loss)


@pytest.mark.parametrize("option", EACH_OPTION, ids=str)
def test_dice_focal_loss_passes_each_option_on_to_its_focal_term(option):
    logits, labels = random_case()
    weight = 0.5 + torch.rand(labels.shape, dtype=torch.float64)
    loss = DiceFocalLoss(**option, dice_weight=0.0, focal_weight=2.0)
    torch.testing.assert_close(loss(logits, labels, weight), 2 * focal_loss(logits, labels, weight=weight, **option))
    (name,) = option
    assert f"{name}={getattr(loss, name)!r}" in repr(loss)


@pytest.mark.parametrize("loss_class", [FocalLoss, DiceFocalLoss, DiceCrossEntropyLoss])
@pytest.mark.parametrize("backend", ["auto", "eager", "compiled"])
def test_loss_object_passes_the_backend_on(monkeypatch, loss_class, backend):
    jobs = []
    for module in ("focal", "compound"):
        monkeypatch.setattr(
            f"medfocal.losses.{module}.compute", lambda z, job: (jobs.append(job), (z.sum(), z.sum()))[1]
        )
    loss_class(backend=backend)(*random_case())
    assert [job.backend for job in jobs] == [backend]


def three_voxels():
    """p of the label 0.05, 0.15 and 0.9 with two softmax classes."""
    margins = torch.logit(torch.tensor([0.05, 0.15, 0.9], dtype=torch.float64))
    return torch.stack((torch.zeros(3, dtype=torch.float64), margins)).unsqueeze(0), torch.ones(1, 3, dtype=torch.uint8)


@pytest.mark.parametrize("loss_class", [FocalLoss, DiceFocalLoss])
def test_cap_begins_at_its_epoch(loss_class):
    logits, labels = three_voxels()
    cap = ("zero", 0.1)
    loss = loss_class(cap=cap, cap_start_epoch=2)
    uncapped, capped = loss_class()(logits, labels), loss_class(cap=cap)(logits, labels)
    assert uncapped > capped
    assert loss(logits, labels) == uncapped  # told of no epoch, it is in the first
    for epoch, expected in ((0, uncapped), (1, uncapped), (2, capped), (3, capped), (0, uncapped)):
        loss.start_epoch(epoch)
        assert loss(logits, labels) == expected


@pytest.mark.parametrize("loss_class", [FocalLoss, DiceFocalLoss])
def test_dropped_voxels_are_counted_until_asked_for(loss_class):
    logits, labels = three_voxels()
    loss = loss_class(cap=("zero", 0.1), cap_start_epoch=1)
    assert loss.take_num_dropped() is None
    loss(logits, labels)
    assert loss.take_num_dropped() == 0
    loss.start_epoch(1)
    loss(logits, labels)
    loss(logits[..., :2], labels[..., :2])
    assert loss.take_num_dropped() == 2
    assert loss.take_num_dropped() is None
    loss_class(cap=("zero", 0.2))(logits, labels)
    assert loss.take_num_dropped() is None


@pytest.mark.parametrize("loss_class", [FocalLoss, DiceFocalLoss])
def test_loss_without_a_cap_counts_no_dropped_voxels(loss_class):
    loss = loss_class()
    loss(*three_voxels())
    assert loss.take_num_dropped() is None


def test_voxels_are_dropped_by_the_class_of_their_label_and_ignored_ones_never():
    logits, labels = three_voxels()
    labels[0, 0] = 255
    loss = FocalLoss(cap=("linear", 0.2), ignore_index=255)
    loss(logits, labels)
    assert loss.take_num_dropped() == 1
    loss(logits, torch.zeros_like(labels))
    assert loss.take_num_dropped() == 1  # p of the background is 0.95, 0.85 and 0.1


def test_capped_voxels_have_a_constant_loss_or_one_linear_in_p():
    levels = torch.tensor([0.02, 0.05, 0.08, 0.1], dtype=torch.float64)
    logits, labels = torch.logit(levels).unsqueeze(1), torch.ones(4, dtype=torch.uint8)
    options = {"activation": "sigmoid", "reduction": "none"}
    at_cap = 0.9**2 * -math.log(0.1)
    zero = focal_loss(logits, labels, cap=("zero", 0.1), **options)
    torch.testing.assert_close(zero, torch.full((4,), at_cap, dtype=torch.float64))
    linear = focal_loss(logits, labels, cap=("linear", 0.1), **options)
    slopes = linear.diff() / levels.diff()
    expected = 2 * 0.9 * math.log(0.1) - 0.9**2 / 0.1
    torch.testing.assert_close(slopes, torch.full((3,), expected, dtype=torch.float64))
    assert float(linear[-1]) == pytest.approx(at_cap)


def test_fewer_positives_than_one_count_as_one():
    logits, labels = random_case()
    for target in (torch.zeros_like(labels), torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1, 1).expand_as(logits)):
        total = focal_loss(logits, target, reduction="sum")
        torch.testing.assert_close(focal_loss(logits, target, normalize="positives"), total)


def test_normalize_names_are_those_of_the_loss():
    logits, labels = random_case()
    logits = logits.detach()
    values = {mode: float(focal_loss(logits, labels, alpha=(0.3, 1.2, 0.8), normalize=mode)) for mode in Normalize}
    total = float(focal_loss(logits, labels, alpha=(0.3, 1.2, 0.8), reduction="sum"))
    assert total / values["voxels"] == pytest.approx(labels.numel())
    assert total / values["positives"] == pytest.approx(int((labels > 0).sum()))
    alphas = torch.tensor([0.3, 1.2, 0.8], dtype=torch.float64)[labels].sum()
    assert total / values["weight"] == pytest.approx(float(alphas))
