"""Every option of the focal loss in every pairing: value against its definition in plain floats, gradient against
finite differences; then torch's cross-entropies, chunks, precision and extreme logits.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from medfocal.losses import DiceFocalLoss, FocalLoss, focal_loss, fused
from medfocal.losses.focal import focal_loss_and_count

IGNORED = 255
ALPHA = 0.7
ALPHAS = (0.3, 0.8, 0.45, 0.6, 0.9)
GAMMAS = (0.5, 2.0, 1.0, 0.0, 3.0, 1.5)
RATE = 0.2
SIDES = {"fg": 0.05, "bg": 0.1}
CAP = 0.2

# logits | gamma | smoothing | alpha | target | weight | spatial shape | reduction | cap | background
# The first 37 rows hold each level of each column with each level of each other column that it may stand with.
TABLE = """
sigmoid 1 | 0.0  | sides  | number | shares  | plain    | 7   | positives | zero   | with
sigmoid 1 | 0.5  | matrix | each   | shares  | weighted | 3 2 | none      | linear | with
sigmoid 1 | 1.0  | none   | none   | shares  | weighted |     | voxels    | zero   | with
sigmoid 1 | 2.0  | rate   | number | shares  | weighted | 2 1 3 | weight  | none   | with
sigmoid 1 | 5.0  | rate   | each   | labels  | plain    | 7   | positives | zero   | with
sigmoid 1 | each | sides  | number | ignored | plain    |     | sum       | none   | with
sigmoid 2 | 0.0  | sides  | none   | labels  | plain    | 3 2 | voxels    | linear | with
sigmoid 2 | 0.5  | rate   | each   | shares  | weighted | 2 1 3 | sum     | none   | with
sigmoid 2 | 1.0  | none   | each   | shares  | weighted | 7   | none      | zero   | with
sigmoid 2 | 2.0  | none   | none   | ignored | weighted | 7   | sum       | zero   | with
sigmoid 2 | 2.0  | sides  | none   | labels  | plain    |     | positives | none   | with
sigmoid 2 | 5.0  | sides  | none   | ignored | plain    |     | weight    | linear | with
sigmoid 2 | each | rate   | each   | labels  | plain    | 2 1 3 | none    | linear | with
softmax 2 | 0.0  | matrix | each   | ignored | weighted |     | sum       | zero   | with
softmax 2 | 0.5  | none   | number | ignored | weighted | 2 1 3 | positives | none | without
softmax 2 | 0.5  | none   | none   | shares  | plain    | 7   | none      | none   | without
softmax 2 | 1.0  | sides  | number | labels  | plain    | 7   | none      | linear | without
softmax 2 | 1.0  | matrix | each   | shares  | weighted |     | sum       | zero   | without
softmax 2 | 2.0  | none   | none   | labels  | weighted | 3 2 | positives | zero   | without
softmax 2 | 5.0  | rate   | number | ignored | weighted | 3 2 | voxels    | none   | without
softmax 2 | each | matrix | number | shares  | plain    | 7   | weight    | zero   | with
softmax 2 | each | none   | number | ignored | weighted |     | voxels    | zero   | with
softmax 3 | 0.0  | none   | each   | shares  | weighted |     | weight    | none   | without
softmax 3 | 0.5  | sides  | each   | ignored | plain    | 2 1 3 | voxels  | zero   | with
softmax 3 | 1.0  | rate   | each   | ignored | plain    | 3 2 | weight    | none   | without
softmax 3 | 2.0  | none   | each   | labels  | plain    |     | sum       | linear | without
softmax 3 | 5.0  | matrix | none   | ignored | plain    | 7   | none      | linear | without
softmax 3 | 5.0  | matrix | each   | ignored | weighted | 7   | sum       | zero   | with
softmax 3 | each | matrix | none   | shares  | weighted | 2 1 3 | positives | linear | without
softmax 5 | 0.0  | rate   | none   | ignored | plain    |     | none      | zero   | without
softmax 5 | 0.0  | rate   | each   | labels  | plain    | 2 1 3 | sum     | linear | without
softmax 5 | 0.5  | matrix | none   | labels  | weighted |     | weight    | linear | with
softmax 5 | 1.0  | sides  | none   | labels  | weighted | 2 1 3 | positives | none | with
softmax 5 | 2.0  | matrix | none   | labels  | weighted | 7   | voxels    | none   | without
softmax 5 | 2.0  | rate   | each   | labels  | plain    | 3 2 | none      | zero   | without
softmax 5 | 5.0  | none   | each   | shares  | weighted | 2 1 3 | none    | none   | without
softmax 5 | each | matrix | each   | ignored | plain    | 3 2 | sum       | none   | without
sigmoid 1 | each | none   | number | labels  | weighted | 7   | weight    | linear | with
sigmoid 2 | each | none   | each   | ignored | weighted | 3 2 | weight    | none   | with
softmax 2 | each | none   | each   | labels  | plain    | 7   | none      | linear | with
softmax 3 | 0.5  | none   | none   | ignored | plain    | 7   | none      | none   | with
softmax 3 | each | none   | each   | labels  | weighted | 7   | weight    | zero   | with
softmax 5 | 5.0  | none   | each   | ignored | weighted | 3 2 | weight    | linear | with
softmax 5 | each | none   | none   | labels  | plain    | 3 2 | positives | none   | without
"""


class Case:
    """A row of the table with its tensors."""

    def __init__(self, row):
        kind, gamma, self.smoothing, alpha, self.target_kind, weight, spatial, reduction, cap, background = row
        self.activation, channels = kind.split()
        self.num_channels = int(channels)
        self.num_classes = self.num_channels + (self.activation == "sigmoid")
        self.gammas = GAMMAS[: self.num_classes] if gamma == "each" else (float(gamma),) * self.num_classes
        self.mean_by = reduction
        self.cap = None if cap == "none" else (cap, CAP)
        self.alpha = {"none": None, "number": ALPHA, "each": ALPHAS[: self.num_channels]}[alpha]
        self.has_background = background == "with"
        self.matrix = confusion(self.num_classes)
        shape = (2, *(int(axis) for axis in spatial.split()))
        generator = torch.Generator().manual_seed(7)
        self.logits = torch.randn(2, self.num_channels, *shape[1:], generator=generator, dtype=torch.float64) * 2
        self.logits.requires_grad_()
        self.labels = torch.randint(self.num_classes, shape, generator=generator)
        if self.target_kind == "ignored":
            self.labels.view(-1)[0] = IGNORED
        shares = torch.rand(self.logits.shape, generator=generator, dtype=torch.float64)
        self.shares = shares / shares.sum(dim=1, keepdim=True) if self.activation == "softmax" else shares
        self.weight = (
            0.5 + torch.rand(shape, generator=generator, dtype=torch.float64) if weight == "weighted" else None
        )
        smoothings = {"none": 0.0, "rate": RATE, "sides": SIDES, "matrix": self.matrix}
        self.options = {
            "gamma": self.gammas if gamma == "each" else float(gamma),
            "alpha": self.alpha,
            "activation": self.activation,
            "label_smoothing": smoothings[self.smoothing],
            "weight": self.weight,
            "ignore_index": IGNORED if self.target_kind == "ignored" else None,
            "include_background": self.has_background,
            "cap": self.cap,
            "normalize": reduction if reduction not in ("none", "sum") else "voxels",
            "reduction": reduction if reduction in ("none", "sum") else "mean",
        }

    @property
    def target(self):
        return self.shares if self.target_kind == "shares" else self.labels

    def loss(self, logits):
        return focal_loss(logits, self.target, **self.options)

    def voxels(self):
        """Batch and position of each voxel, flat, with its logits, shares of the channels (None: ignored), weight."""
        num_voxels = self.labels[0].numel()
        logits = self.logits.detach().reshape(2, self.num_channels, num_voxels)
        for b, v in itertools.product(range(2), range(num_voxels)):
            label = int(self.labels.reshape(2, -1)[b, v])
            weight = 1.0 if self.weight is None else float(self.weight.reshape(2, -1)[b, v])
            if self.target_kind == "shares":
                y = self.shares.reshape(2, self.num_channels, -1)[b, :, v].tolist()
            elif label == IGNORED:
                y = None
            else:
                first = self.num_classes - self.num_channels
                y = [float(label == c + first) for c in range(self.num_channels)]
            yield logits[b, :, v].tolist(), y, weight

    def problems(self, logits, y):
        """(p, y, part of y that stays after smoothing, y smoothed, gamma, alpha) of each class, by problem."""
        if self.activation == "softmax":
            exponentials = [math.exp(z) for z in logits]
            p = [e / math.fsum(exponentials) for e in exponentials]
            stays = [self.stays(c) * share for c, share in enumerate(y)]
            yield list(zip(p, y, stays, self.smoothed(y), self.gammas, self.alpha_of_classes(), strict=True))
            return
        for c, z in enumerate(logits):
            p, smoothed = 1 / (1 + math.exp(-z)), self.smoothed_channel(y[c])
            of_rest, of_class = self.alpha_of_pair(c)
            yield [
                (1 - p, 1 - y[c], self.stays(0) * (1 - y[c]), 1 - smoothed, self.gammas[0], of_rest),
                (p, y[c], self.stays(c + 1) * y[c], smoothed, self.gammas[c + 1], of_class),
            ]

    def alpha_of_classes(self):
        alpha = (1 - ALPHA, ALPHA) if self.alpha == ALPHA else self.alpha or (1.0,) * self.num_classes
        return [a if c > 0 or self.has_background else 0.0 for c, a in enumerate(alpha)]

    def alpha_of_pair(self, channel):
        if self.alpha is None:
            return 1.0, 1.0
        alpha = ALPHA if self.alpha == ALPHA else self.alpha[channel]
        return 1 - alpha, alpha

    def stays(self, c):
        """Probability that what is labelled c is c."""
        if self.smoothing == "rate":
            return 1 - RATE + RATE / (self.num_classes if self.activation == "softmax" else 2)
        if self.smoothing == "sides":
            return 1 - SIDES["fg" if c > 0 else "bg"]
        return self.matrix[c][c] if self.smoothing == "matrix" else 1.0

    def smoothed(self, y):
        n = self.num_classes
        if self.smoothing == "rate":
            return [(1 - RATE) * share + RATE / n * math.fsum(y) for share in y]
        if self.smoothing == "sides":
            to_background = (1 - SIDES["bg"]) * y[0] + SIDES["fg"] * math.fsum(y[1:])
            return [to_background, *((1 - SIDES["fg"]) * share + SIDES["bg"] * y[0] / (n - 1) for share in y[1:])]
        if self.smoothing == "matrix":
            return [math.fsum(y[t] * self.matrix[t][c] for t in range(n)) for c in range(n)]
        return y

    def smoothed_channel(self, y):
        if self.smoothing == "rate":
            return (1 - RATE) * y + RATE / 2
        if self.smoothing == "sides":
            return (1 - SIDES["fg"]) * y + SIDES["bg"] * (1 - y)
        if self.smoothing == "matrix":
            return self.matrix[0][1] * (1 - y) + self.matrix[1][1] * y
        return y

    def expected(self):
        """The loss, and the number of capped voxels, by its definition."""
        losses, alphas, positives, num_capped = [], [], [], 0
        for logits, y, weight in self.voxels():
            if y is None:
                losses.append(0.0)
                continue
            problems = list(self.problems(logits, y))
            terms = [term for problem in problems for term in problem]
            # The cap is for what was marked, not for what smoothing brings.
            losses.append(
                weight
                * math.fsum(
                    a * (stays * self.penalty(p, gamma) + (smoothed - stays) * phi(p, gamma))
                    for p, _, stays, smoothed, gamma, a in terms
                )
            )
            alphas.append(weight * math.fsum(a * share for _, share, *_, a in terms))
            positives.append(math.fsum(share for problem in problems for _, share, *_ in problem[1:]))
            if self.cap is not None:
                num_capped += any(p < CAP and share > 0 and a > 0 for p, share, *_, a in terms)
        if self.mean_by == "none":
            return torch.tensor(losses, dtype=torch.float64).reshape(self.labels.shape), num_capped
        by = {
            "sum": 1,
            "voxels": len(alphas),
            "positives": max(1.0, math.fsum(positives)),
            "weight": math.fsum(alphas),
        }[self.mean_by]
        return torch.tensor(math.fsum(losses) / by, dtype=torch.float64), num_capped

    def penalty(self, p, gamma):
        if self.cap is None or p >= CAP:
            return phi(p, gamma)
        slope = gamma * (1 - CAP) ** (gamma - 1) * math.log(CAP) - (1 - CAP) ** gamma / CAP
        return phi(CAP, gamma) + (slope * (p - CAP) if self.cap[0] == "linear" else 0.0)


def phi(p, gamma):
    return -((1 - p) ** gamma) * math.log(p)


def confusion(num_classes):
    rows = [[0.1 + (3 * t + c) % 4 + 6.0 * (t == c) for c in range(num_classes)] for t in range(num_classes)]
    return [[value / math.fsum(row) for value in row] for row in rows]


ROWS = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_value_is_the_definition_in_plain_floats(row):
    case = Case(row)
    expected, _ = case.expected()
    torch.testing.assert_close(case.loss(case.logits).detach(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_gradient_is_the_slope_of_the_value(row):
    case = Case(row)
    assert torch.autograd.gradcheck(case.loss, (case.logits,))


@pytest.mark.parametrize("row", [row for row in ROWS if row[8] != "none"], ids=" ".join)
def test_capped_voxels_are_those_with_a_marked_class_of_a_probability_below_the_cap(row):
    case = Case(row)
    options = case.options | {"soft": "expected", "backend": "eager"}
    _, num_capped = focal_loss_and_count(case.logits, case.target, **options)
    _, expected = case.expected()
    assert num_capped == expected


def test_table_holds_capped_and_uncapped_voxels():
    counts = [(Case(row).expected()[1], Case(row).labels.numel()) for row in ROWS if row[8] != "none"]
    assert sum(0 < capped < voxels for capped, voxels in counts) > len(counts) / 2


def random_case(num_channels, *, num_classes=None, spatial=(5, 4, 3), dtype=torch.float64, scale=2.0, cases=2):
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(cases, num_channels, *spatial, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(num_classes or num_channels, (cases, *spatial), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def value_and_gradient(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def assert_same(ours, theirs, logits, *, tolerance):
    for a, b in zip(value_and_gradient(ours, logits), value_and_gradient(theirs, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gamma_0_normalised_by_weight_is_cross_entropy_with_every_option_of_torch(
    num_classes, label_smoothing, reduction
):
    logits, labels = random_case(num_classes, dtype=torch.float32)
    labels[0, 1:3] = -7
    alpha = ALPHAS[:num_classes]
    assert_same(
        lambda z: focal_loss(
            z,
            labels,
            gamma=0.0,
            alpha=alpha,
            label_smoothing=label_smoothing,
            ignore_index=-7,
            normalize="weight",
            reduction=reduction,
        ),
        lambda z: F.cross_entropy(
            z,
            labels,
            weight=torch.tensor(alpha),
            ignore_index=-7,
            label_smoothing=label_smoothing,
            reduction=reduction,
        ),
        logits,
        tolerance=1e-6,
    )


def test_gamma_0_with_alpha_and_weight_is_binary_cross_entropy_with_logits():
    """alpha on positives and 1 - alpha on negatives is (1 - alpha) times torch's pos_weight alpha / (1 - alpha)."""
    logits, labels = random_case(1, num_classes=2, dtype=torch.float32)
    weight = torch.rand(labels.shape)
    positive = torch.tensor(ALPHA / (1 - ALPHA))
    for target in (labels, torch.rand(logits.shape)):
        membership = target if target.is_floating_point() else target.unsqueeze(1).float()

        def theirs(z, membership=membership):
            loss = F.binary_cross_entropy_with_logits(
                z, membership, weight=weight.unsqueeze(1), pos_weight=positive, reduction="none"
            )
            return (1 - ALPHA) * loss.mean()

        assert_same(
            lambda z, target=target: focal_loss(z, target, gamma=0.0, alpha=ALPHA, activation="sigmoid", weight=weight),
            theirs,
            logits,
            tolerance=1e-6,
        )


@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("softmax", 4), ("sigmoid", 2)])
def test_normalize_factor_divides_by_the_factors_as_a_constant(activation, num_channels):
    num_classes = num_channels + (activation == "sigmoid")
    logits, labels = random_case(num_channels, num_classes=num_classes)
    labels[1, 0] = IGNORED
    weight = 0.5 + torch.rand(labels.shape, dtype=torch.float64)
    options = {"gamma": GAMMAS[:num_classes], "activation": activation, "weight": weight, "ignore_index": IGNORED}
    value, gradient = value_and_gradient(lambda z: focal_loss(z, labels, normalize="factor", **options), logits)
    total, slope = value_and_gradient(lambda z: focal_loss(z, labels, reduction="sum", **options), logits)

    z, valid = logits.detach(), labels != IGNORED
    gammas = torch.tensor(GAMMAS[:num_classes], dtype=torch.float64)
    index = labels.masked_fill(~valid, 0)
    if activation == "softmax":
        factors = (1 - z.softmax(dim=1).gather(1, index.unsqueeze(1)).squeeze(1)) ** gammas[index]
    else:
        classes = torch.arange(1, num_classes).reshape(1, -1, 1, 1, 1)
        membership = index.unsqueeze(1) == classes
        gamma = torch.where(membership, gammas[1:].reshape(1, -1, 1, 1, 1), gammas[0])
        factors = (torch.where(membership, 1 - z.sigmoid(), z.sigmoid()) ** gamma).sum(dim=1)
    expected = (factors * weight * valid).sum()
    torch.testing.assert_close(value, total / expected)
    torch.testing.assert_close(gradient, slope / expected)


def test_normalize_factor_counts_the_factors_of_probabilities_by_their_shares():
    logits, _ = random_case(3)
    shares = random_case(3)[0].detach().flip(0).softmax(dim=1)
    factor = (shares * (1 - logits.detach().softmax(dim=1)) ** 2).sum()
    expected = focal_loss(logits, shares, reduction="sum") / factor
    torch.testing.assert_close(focal_loss(logits, shares, normalize="factor"), expected)


@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("softmax", 4), ("sigmoid", 2)])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("target", ["labels", "shares"])
def test_gradient_of_dice_with_focal_is_the_slope_of_the_value(activation, num_channels, batch_dice, target):
    num_classes = num_channels + (activation == "sigmoid")
    logits, labels = random_case(num_channels, num_classes=num_classes, spatial=(3, 2))
    labels[0, 0, 0] = IGNORED
    loss = DiceFocalLoss(
        gamma=GAMMAS[:num_classes],
        activation=activation,
        ignore_index=IGNORED if target == "labels" else None,
        label_smoothing=RATE,
        cap=("linear", CAP),
        dice_weight=2.0,
        batch_dice=batch_dice,
    )
    weight = 0.5 + torch.rand(labels.shape, dtype=torch.float64)
    shares = torch.rand(logits.shape, dtype=torch.float64)
    given = labels if target == "labels" else shares / shares.sum(dim=1, keepdim=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, given, weight), (logits,))


def hard_loss(margin, gamma):
    """Of p = sigmoid(margin) in plain floats, from the odds against it."""
    against = math.exp(-margin)
    return (against / (1 + against)) ** gamma * (
        math.log1p(against) if margin > 0 else math.log1p(1 / against) - margin
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("num_channels", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_loss_has_the_digits_of_its_type_up_to_a_margin_of_60(num_channels, gamma, dtype, digits):
    """The third class is out of the question. In fp32 a loss below 1e-33 has fewer digits."""
    margins = torch.arange(-60, 61, 0.25, dtype=dtype)
    logits = torch.stack((margins, torch.zeros_like(margins), torch.full_like(margins, -1e4)), dim=1)[:, :num_channels]
    labels = torch.full((len(margins),), int(num_channels == 1))
    activation = "sigmoid" if num_channels == 1 else "softmax"
    loss = focal_loss(logits, labels, gamma=gamma, activation=activation, reduction="none").double()
    exact = torch.tensor([hard_loss(margin, gamma) for margin in margins.tolist()], dtype=torch.float64)
    torch.testing.assert_close(loss, exact, rtol=digits, atol=1e-33 if dtype == torch.float32 else 0)


SOME_OPTIONS = [
    {"gamma": 2.0},
    {"gamma": GAMMAS[:2], "alpha": ALPHAS[:2], "cap": ("linear", CAP)},
    {"gamma": 0.5, "alpha": ALPHA, "label_smoothing": RATE, "cap": ("zero", CAP)},
    {"gamma": GAMMAS[:2], "label_smoothing": SIDES},
    {"gamma": 1.0, "label_smoothing": confusion(2), "normalize": "factor"},
    {"gamma": 2.0, "normalize": "positives"},
]


@pytest.mark.parametrize("target", ["labels", "shares"])
@pytest.mark.parametrize("number", range(len(SOME_OPTIONS)))
def test_two_softmax_classes_are_one_sigmoid_channel_of_their_difference_with_every_option(number, target):
    options = SOME_OPTIONS[number]
    logits, labels = random_case(2)
    if isinstance(options.get("alpha"), tuple):
        options = options | {"alpha": (1 - ALPHA, ALPHA)}
    as_sigmoid = options | {"alpha": None if options.get("alpha") is None else ALPHA, "activation": "sigmoid"}
    shares = torch.rand(labels.shape, dtype=torch.float64)
    pair = labels if target == "labels" else torch.stack((1 - shares, shares), dim=1)
    single = labels if target == "labels" else shares.unsqueeze(1)
    assert_same(
        lambda z: focal_loss(z, pair, **options),
        lambda z: focal_loss(z[:, 1:] - z[:, :1], single, **as_sigmoid),
        logits,
        tolerance=1e-12,
    )


@pytest.mark.parametrize(("activation", "num_channels"), [("softmax", 2), ("softmax", 4), ("sigmoid", 2)])
@pytest.mark.parametrize("number", range(len(SOME_OPTIONS)))
def test_loss_is_linear_in_the_target(activation, num_channels, number):
    num_classes = num_channels + (activation == "sigmoid")
    options = SOME_OPTIONS[number] | {"normalize": "voxels", "activation": activation}
    if isinstance(options["gamma"], tuple):
        options["gamma"] = GAMMAS[:num_classes]
    if "alpha" in options:
        options["alpha"] = ALPHAS[:num_channels]
    if isinstance(options.get("label_smoothing"), list):
        options["label_smoothing"] = RATE if activation == "sigmoid" else confusion(num_classes)
    logits, labels = random_case(num_channels, num_classes=num_classes)
    first = F.one_hot(labels, num_classes).movedim(-1, 1)[:, num_classes - num_channels :].double()
    second = torch.rand(logits.shape, dtype=torch.float64)
    mixed = value_and_gradient(lambda z: focal_loss(z, 0.3 * first + 0.7 * second, **options), logits)
    of_labels = value_and_gradient(lambda z: focal_loss(z, labels, **options), logits)
    of_second = value_and_gradient(lambda z: focal_loss(z, second, **options), logits)
    for together, a, b in zip(mixed, of_labels, of_second, strict=True):
        torch.testing.assert_close(together, 0.3 * a + 0.7 * b)


@pytest.mark.parametrize("chunk", [1, 3, 7, 60, 61])
@pytest.mark.parametrize(
    "options", [{"gamma": 2.0}, {"label_smoothing": RATE, "cap": ("zero", CAP)}, {"normalize": "factor"}, None]
)
def test_result_does_not_depend_on_the_size_of_a_chunk(monkeypatch, chunk, options):
    """Of 3 cases with 60 voxels: smaller than a case, a case, and a case and something."""
    logits, labels = random_case(3, cases=3)
    labels[:, 2] = IGNORED
    weight = 0.5 + torch.rand(labels.shape, dtype=torch.float64)

    def loss(z):
        if options is None:
            return DiceFocalLoss(gamma=1.0, ignore_index=IGNORED, normalize="factor")(z, labels, weight)
        return focal_loss(z, labels, weight=weight, ignore_index=IGNORED, **options)

    value, gradient = value_and_gradient(loss, logits)
    monkeypatch.setattr(fused, "_CHUNK_CPU", chunk)
    in_chunks = value_and_gradient(loss, logits)
    torch.testing.assert_close(in_chunks, (value, gradient), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("chunk", [7, 61, 10**6])
def test_capped_voxels_of_all_chunks_are_counted(monkeypatch, chunk):
    logits, labels = random_case(3, cases=3)
    p = logits.detach().softmax(dim=1).gather(1, labels.unsqueeze(1))
    loss = FocalLoss(cap=("zero", CAP))
    monkeypatch.setattr(fused, "_CHUNK_CPU", chunk)
    loss(logits, labels)
    assert loss.take_num_dropped() == int((p < CAP).sum()) > 1


@pytest.mark.parametrize("num_cases", [1, 5])
def test_chunks_of_whole_cases_and_of_parts_give_each_voxel_its_own_loss(monkeypatch, num_cases):
    logits, labels = random_case(2, cases=num_cases)
    whole = value_and_gradient(lambda z: focal_loss(z, labels, reduction="none"), logits)
    for chunk in (7, 125):
        monkeypatch.setattr(fused, "_CHUNK_CPU", chunk)
        in_chunks = value_and_gradient(lambda z: focal_loss(z, labels, reduction="none"), logits)
        torch.testing.assert_close(in_chunks, whole, rtol=1e-12, atol=1e-15)


def hard_gradient(logits, label, gamma):
    """Of one voxel in plain floats, from s = sum of exp(z_c - z_t) over the other classes: no digit cancels."""
    others = {c: math.exp(z - logits[label]) for c, z in enumerate(logits) if c != label}
    s = math.fsum(others.values())
    p, rest = 1 / (1 + s), s / (1 + s)
    slope = rest**gamma * (rest + gamma * p * math.log1p(s))
    return [-slope if c == label else slope * others[c] / s for c in range(len(logits))]


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("num_channels", [1, 2, 4])
@pytest.mark.parametrize("certain", ["labels", "probabilities"])
def test_fp32_gradient_has_five_digits_up_to_a_margin_of_40_wherever_the_label_is(num_channels, gamma, certain):
    """1e-5 is the target of the design. Below 1e-33 fp32 loses digits to its smallest numbers."""
    generator = torch.Generator().manual_seed(5)
    num_classes = max(num_channels, 2)
    logits = (torch.rand(400, num_channels, generator=generator) * 40).round(decimals=2)
    if num_channels == 1:
        logits = logits * 2 - 40
    labels = torch.randint(num_classes, (400,), generator=generator)
    target = labels if certain == "labels" else F.one_hot(labels, num_classes)[:, -num_channels:].float()
    activation = "sigmoid" if num_channels == 1 else "softmax"
    _, gradient = value_and_gradient(
        lambda z: focal_loss(z, target, gamma=gamma, activation=activation, reduction="sum"), logits
    )
    rows = [[0.0, *row] if num_channels == 1 else row for row in logits.double().tolist()]
    exact = [hard_gradient(row, label, gamma)[-num_channels:] for row, label in zip(rows, labels.tolist(), strict=True)]
    torch.testing.assert_close(gradient.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-5, atol=1e-33)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0, "each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("activation", "num_channels"), [("softmax", 2), ("softmax", 3), ("sigmoid", 1), ("sigmoid", 2)]
)
def test_logits_up_to_1e4_have_finite_values_and_gradients_with_every_option(activation, num_channels, dtype, gamma):
    levels = [-1e4, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4]
    logits = torch.tensor(list(itertools.product(levels, repeat=num_channels)), dtype=dtype)
    num_classes = num_channels + (activation == "sigmoid")
    alpha = ALPHAS[:num_channels]
    gamma = GAMMAS[:num_classes] if gamma == "each" else gamma
    targets = [torch.full((len(logits),), label) for label in range(num_classes)]
    targets.append(torch.full(logits.shape, 0.4, dtype=dtype))
    others = [
        {"cap": ("zero", CAP), "normalize": "factor"},
        {"cap": ("linear", CAP), "label_smoothing": RATE},
        {"label_smoothing": SIDES, "alpha": alpha, "normalize": "factor"},
    ]
    for target, options in itertools.product(targets, others):
        value, gradient = value_and_gradient(
            lambda z, target=target, options=options: focal_loss(
                z, target, gamma=gamma, activation=activation, **options
            ),
            logits,
        )
        assert value.isfinite()
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_confident_voxels_have_no_nan_where_every_other_class_underflows(gamma):
    """The usual form has (1 - p)^(gamma - 1) = 0^-0.5 here."""
    logits = torch.tensor([[200.0, -200.0, -200.0]])
    for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
        value, gradient = value_and_gradient(lambda z, target=target: focal_loss(z, target, gamma=gamma), logits)
        assert value == 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_voxels_may_hold_any_logits_and_weights(reduction):
    logits, labels = random_case(3)
    labels[:, 1] = IGNORED
    weight = torch.ones(labels.shape)
    expected = value_and_gradient(lambda z: focal_loss(z, labels, ignore_index=IGNORED, reduction=reduction), logits)
    weight[:, 1] = torch.nan
    spoilt = logits.detach().clone()
    spoilt[:, :, 1] = torch.nan
    got = value_and_gradient(
        lambda z: focal_loss(z, labels, weight=weight, ignore_index=IGNORED, reduction=reduction), spoilt
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_ignored_voxels_may_hold_any_logits_in_dice_as_well():
    logits, labels = random_case(3)
    labels[:, 1] = IGNORED
    spoilt = logits.detach().clone()
    spoilt[:, :, 1] = torch.nan
    loss = DiceFocalLoss(ignore_index=IGNORED, normalize="factor", cap=("zero", CAP))
    expected = value_and_gradient(lambda z: loss(z, labels), logits)
    num_dropped = loss.take_num_dropped()
    got = value_and_gradient(lambda z: loss(z, labels), spoilt)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert loss.take_num_dropped() == num_dropped


@pytest.mark.parametrize("cap", ["zero", "linear"])
@pytest.mark.parametrize("num_channels", [2, 4])
def test_cap_leaves_smoothing_its_pull_on_confident_voxels(cap, num_channels):
    logits, labels = torch.zeros(1, num_channels, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.long)
    logits[0, 1] = 6.0
    gradients = []
    for option in (None, (cap, CAP)):
        leaf = logits.clone().requires_grad_()
        focal_loss(leaf, labels, label_smoothing=RATE, cap=option).backward()
        gradients.append(leaf.grad)
    assert gradients[0][0, 1] > 0.01
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_soft_one_hot_target_keeps_the_precision_of_labels(activation):
    """In fp32 at a margin of 30, where 1 - p has no digit left."""
    margin = torch.tensor([[[30.0]]])
    logits = margin if activation == "sigmoid" else torch.cat((torch.zeros(1, 1, 1), margin), dim=1)
    target = torch.ones_like(logits) if activation == "sigmoid" else torch.tensor([[[0.0], [1.0]]])
    gradients = []
    for given in (target, torch.ones(1, 1, dtype=torch.long)):
        leaf = logits.clone().requires_grad_()
        focal_loss(leaf, given, gamma=0.0, activation=activation).backward()
        gradients.append(leaf.grad)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=0)
