"""Focal loss and its gradient on the logits in closed form, voxel by voxel.

With phi(p) = -(1 - p)^gamma log p and w(p) = -p phi'(p) = (1 - p)^gamma (1 - gamma p log(p) / (1 - p)), the loss of a
voxel is L = sum_c A_c phi(p_c), where A_c is the share of class c in the target times its alpha, and

    dL/dz_k = p_k sum_c a_c - a_k   with a_c = A_c w(p_c)         (softmax)
    dL/dx   = A_0 p w(1 - p) - A_1 (1 - p) w(p)                   (two classes with log-odds x)

Two softmax classes are the second case with x = z_1 - z_0. For one labelled class t the first is -b at t and
b p_k / (1 - p_t) elsewhere, b = A_t (1 - p_t) w(p_t).

The functions work elementwise on one channel at a time, so that a compiler fuses everything into one pass, and select
by label with products or, eager, by index: both are several times faster there than `torch.where`. 1 - p is taken from
the mass of the other classes, and (1 - p)^(gamma - 1) occurs for gamma >= 1 only: value and gradient keep their
relative precision for confident voxels and are finite for every gamma >= 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medfocal.losses.activation import Activation
from medfocal.losses.options import Cap, CapKind

# softplus is the identity beyond this; torch's 20 would cost double precision its digits.
_SOFTPLUS_THRESHOLD = 50.0


@dataclasses.dataclass(frozen=True)
class Formula:
    """What the closed form depends on besides tensors. Hashable: to each belongs one compiled function.

    Attributes:
        activation: softmax or sigmoid.
        num_channels: Of the logits.
        gamma: Exponent of each class, the background first.
        alpha: From `channel_weights`, or None.
        table: From `class_probabilities`, or None.
        include_background: With softmax, whether the term of class 0 counts.
        cap: Where the loss of very wrong classes is flattened, or None.
    """

    activation: Activation
    num_channels: int
    gamma: tuple[float, ...]
    alpha: tuple[float, ...] | None = None
    table: tuple[tuple[float, ...], ...] | None = None
    include_background: bool = True
    cap: Cap | None = None

    @property
    def is_binary(self) -> bool:
        """Whether every class is one of two with log-odds of their own."""
        return self.activation is Activation.SIGMOID or self.num_channels == 2

    def alpha_of(self, channel: int) -> float:
        """Weight of a class in the sum, with softmax."""
        if channel == 0 and not self.include_background:
            return 0.0
        return 1.0 if self.alpha is None else self.alpha[channel]

    def alphas_of_pair(self, problem: int) -> tuple[float, float]:
        """Weights of rest and class in a problem of two classes."""
        if self.activation is Activation.SOFTMAX:
            return self.alpha_of(0), self.alpha_of(1)
        return (1.0, 1.0) if self.alpha is None else (1.0 - self.alpha[problem], self.alpha[problem])


@dataclasses.dataclass(frozen=True)
class VoxelTerms:
    """What the closed form gives for voxels, each (B, n).

    Attributes:
        loss: L, summed over sigmoid channels.
        gradient: dL/dz of each channel.
        factor: sum_c y_c (1 - p_c)^gamma, summed over sigmoid channels; None if not asked for.
        capped: Whether a class with a share in the target has a probability below the cap, bool; None without a cap.
    """

    loss: Tensor
    gradient: list[Tensor]
    factor: Tensor | None
    capped: Tensor | None


def focal_terms(
    formula: Formula, logits: Tensor, target: Tensor, *, scale: Tensor | None = None, factor: bool = False
) -> VoxelTerms:
    """Loss and gradient of each voxel.

    Args:
        formula: The options.
        logits: Floating point (B, C, n).
        target: Labels, integers (B, n); or probabilities (B, C, n) in the logits' dtype.
        scale: Multiplies the gradient, 0-dimensional or (B, n).
        factor: Whether to give the factor.
    """
    if not formula.is_binary:
        if target.ndim == 2 and formula.table is None:
            return _labelled_class(formula, logits, target, scale=scale, factor=factor)
        return _all_classes(formula, logits, target, scale=scale, factor=factor)
    if formula.activation is Activation.SOFTMAX:
        x = logits[:, 1] - logits[:, 0]
        terms = _pair(formula, x, target, problem=0, scale=scale, factor=factor)
        (of_difference,) = terms.gradient
        return dataclasses.replace(terms, gradient=[-of_difference, of_difference])
    parts = [
        _pair(formula, x, target, problem=number, scale=scale, factor=factor)
        for number, x in enumerate(logits.unbind(1))
    ]
    return VoxelTerms(
        loss=_sum([part.loss for part in parts]),
        gradient=[part.gradient[0] for part in parts],
        factor=_sum([part.factor for part in parts if part.factor is not None]) if factor else None,
        capped=functools.reduce(torch.logical_or, [part.capped for part in parts if part.capped is not None])
        if formula.cap
        else None,
    )


def foreground_probabilities(formula: Formula, logits: Tensor) -> list[Tensor]:
    """Probability of each foreground class, each (B, n), of logits (B, C, n)."""
    if formula.activation is Activation.SIGMOID:
        return [torch.sigmoid(x) for x in logits.unbind(1)]
    if formula.num_channels == 2:
        return [torch.sigmoid(logits[:, 1] - logits[:, 0])]
    _, exponentials = _shifted(logits)
    scale = 1.0 / _sum(exponentials)
    return [e * scale for e in exponentials[1:]]


def foreground_shares(formula: Formula, target: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Share of each foreground class in the target, not smoothed, each (B, n)."""
    if target.ndim == 3:
        return list(formula.activation.foreground(target).unbind(1))
    num_classes = formula.activation.num_classes(formula.num_channels)
    return [(target == c).to(dtype) for c in range(1, num_classes)]


def foreground_gradient(formula: Formula, probabilities: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor]:
    """dR/dz of each channel for a loss R with slopes dR/dp_c on the foreground probabilities."""
    if formula.activation is Activation.SIGMOID:
        return [slope * p * (1.0 - p) for slope, p in zip(slopes, probabilities, strict=True)]
    if formula.num_channels == 2:
        of_difference = slopes[0] * probabilities[0] * (1.0 - probabilities[0])
        return [-of_difference, of_difference]
    weighted = [slope * p for slope, p in zip(slopes, probabilities, strict=True)]
    mean = _sum(weighted)
    background = 1.0 - _sum(list(probabilities))
    return [-background * mean, *(w - p * mean for w, p in zip(weighted, probabilities, strict=True))]


def _pair(
    formula: Formula, x: Tensor, target: Tensor, *, problem: int, scale: Tensor | None, factor: bool
) -> VoxelTerms:
    """Terms of a problem of two classes whose log-odds are x."""
    gammas = formula.gamma[0], formula.gamma[problem + 1]
    alphas = formula.alphas_of_pair(problem)
    if target.ndim == 2:
        # Of two classes the label is the share itself.
        num_classes = formula.activation.num_classes(formula.num_channels)
        of_class = (target if num_classes == 2 else target == problem + 1).to(x.dtype)
        if formula.table is None:
            return _labelled_of_pair(formula, x, of_class, gammas, alphas, scale=scale, factor=factor)
        of_rest = 1.0 - of_class
    elif formula.activation is Activation.SOFTMAX:
        of_rest, of_class = target.unbind(1)
    else:
        of_class = target[:, problem]
        of_rest = 1.0 - of_class
    of_rest_tail, of_class_tail = _tails(x)
    marked = _marked_pair(formula, of_rest, of_class, problem=problem)
    rest = _term(of_rest_tail, gammas[0], formula.cap, *marked[0])
    one = _term(of_class_tail, gammas[1], formula.cap, *marked[1])
    slope = _by(alphas[0], rest.weight) * of_rest_tail.rest - _by(alphas[1], one.weight) * of_class_tail.rest
    return VoxelTerms(
        loss=_by(alphas[0], rest.loss) + _by(alphas[1], one.loss),
        gradient=[_times(scale, slope)],
        factor=rest.power + one.power if factor else None,
        capped=_any_below(formula.cap, alphas, (of_rest, of_class), (rest.probability, one.probability)),
    )


def _labelled_of_pair(
    formula: Formula,
    x: Tensor,
    of_class: Tensor,
    gammas: tuple[float, float],
    alphas: tuple[float, float],
    *,
    scale: Tensor | None,
    factor: bool,
) -> VoxelTerms:
    """The same for a certain label: only its own class has a term."""
    against = torch.addcmul(x, of_class, x, value=-2.0)  # log-odds of the class that it is not
    tail = _tail(against)
    term = _labelled_penalty(tail, gammas, formula.cap, lambda: [1.0 - of_class, of_class])
    loss, slope = term.loss, _times(scale, term.weight * tail.rest)
    if alphas != (1.0, 1.0):
        alpha = alphas[0] + (alphas[1] - alphas[0]) * of_class
        loss, slope = alpha * loss, alpha * slope
    return VoxelTerms(
        loss=loss,
        gradient=[torch.addcmul(slope, of_class, slope, value=-2.0)],
        factor=term.power if factor else None,
        capped=_any_below(formula.cap, alphas, (1.0 - of_class, of_class), (term.probability, term.probability)),
    )


def _marked_pair(
    formula: Formula, of_rest: Tensor, of_class: Tensor, *, problem: int
) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """Of rest and of class: the share that was marked as such and stays, and the share that smoothing brings."""
    table = formula.table
    if table is None:
        return (of_rest, None), (of_class, None)
    if formula.activation is Activation.SOFTMAX:
        (rest_stays, missed), (spurious, class_stays) = table
    else:
        missed, class_stays = table[0][problem], table[problem + 1][problem]
        rest_stays, spurious = 1.0 - missed, 1.0 - class_stays
    return (rest_stays * of_rest, spurious * of_class), (class_stays * of_class, missed * of_rest)


def _labelled_class(
    formula: Formula, logits: Tensor, label: Tensor, *, scale: Tensor | None, factor: bool
) -> VoxelTerms:
    """Softmax over several classes with certain labels: only the labelled class has a term."""
    masses = (_masses_by_product if torch.compiler.is_compiling() else _masses_by_index)(logits, label)
    rest, mass = masses.rest, masses.of_label.exp()
    portion = 1.0 / (rest + mass)
    # Of the total as total - 1 = rest + (mass - 1), in which one summand is 0 or rest >= 1, no digit is lost.
    tail = _Tail(torch.log1p(rest + (mass - 1.0)) - masses.of_label, rest * portion, mass * portion)
    term = _labelled_penalty(tail, formula.gamma, formula.cap, lambda: _one_hot(logits, label))
    loss, weight = term.loss, _times(scale, term.weight)
    alphas = [formula.alpha_of(c) for c in range(formula.num_channels)]
    if any(alpha != 1.0 for alpha in alphas):
        alpha = _select(alphas, _one_hot(logits, label))
        loss, weight = alpha * loss, alpha * weight
    return VoxelTerms(
        loss=loss,
        gradient=masses.gradient(weight * portion, weight * tail.rest),
        factor=term.power if factor else None,
        capped=_any_below(
            formula.cap, alphas, _one_hot(logits, label) if formula.cap else [], [term.probability] * len(alphas)
        ),
    )


class _Masses(NamedTuple):
    """Exponentials of logits less the largest of the voxel, with the label apart.

    Attributes:
        of_label: The label's own exponent.
        rest: Sum of the others, taken without the label so that nothing cancels.
        gradient: Of each channel: takes what a unit of exponential gets and what the label loses.
    """

    of_label: Tensor
    rest: Tensor
    gradient: Callable[[Tensor, Tensor], list[Tensor]]


def _masses_by_product(logits: Tensor, label: Tensor) -> _Masses:
    shifted, exponentials = _shifted(logits)
    is_label = _one_hot(logits, label)
    others = [e - hot * e for hot, e in zip(is_label, exponentials, strict=True)]

    def gradient(share: Tensor, slope: Tensor) -> list[Tensor]:
        return [share * e - slope * hot for e, hot in zip(others, is_label, strict=True)]

    return _Masses(_sum([hot * z for hot, z in zip(is_label, shifted, strict=True)]), _sum(others), gradient)


def _masses_by_index(logits: Tensor, label: Tensor) -> _Masses:
    """The same for eager torch, with fewer passes over memory."""
    index = label.long().unsqueeze(1)
    shifted = logits - logits.amax(dim=1, keepdim=True)
    of_label = shifted.gather(1, index).squeeze(1)
    others = shifted.exp_().scatter_(1, index, torch.zeros_like(of_label).unsqueeze(1))  # a number takes twice as long

    def gradient(share: Tensor, slope: Tensor) -> list[Tensor]:
        return list(others.mul_(share.unsqueeze(1)).scatter_(1, index, slope.neg_().unsqueeze(1)).unbind(1))

    return _Masses(of_label, others.sum(dim=1), gradient)


def _all_classes(formula: Formula, logits: Tensor, target: Tensor, *, scale: Tensor | None, factor: bool) -> VoxelTerms:
    """Softmax over several classes, each of which may have a term."""
    channels = range(formula.num_channels)
    given = _one_hot(logits, target) if target.ndim == 2 else list(target.unbind(1))
    shifted, exponentials = _shifted(logits)
    # The largest are exactly 1. Left out and added back, the total less 1 keeps all its digits.
    is_largest = [(z == 0.0).to(z.dtype) for z in shifted]
    total_less_1 = _sum([e - hot for e, hot in zip(exponentials, is_largest, strict=True)]) + (_sum(is_largest) - 1.0)
    total = 1.0 + total_less_1
    portion, log_total = 1.0 / total, torch.log1p(total_less_1)
    lost = total_less_1 - (total - 1.0)
    probabilities = [e * portion for e in exponentials]
    terms, weights, slopes = [], [], []
    for c in channels:
        rest = (total - exponentials[c] + is_largest[c] * lost) * portion
        tail = _Tail(log_total - shifted[c], rest, probabilities[c])
        terms.append(_term(tail, formula.gamma[c], formula.cap, *_marked(formula, given, c, certain=target.ndim == 2)))
        weights.append(_times(scale, _by(formula.alpha_of(c), terms[c].weight)))
        slopes.append(weights[c] * rest)
    sum_of_weights = _sum(weights)
    return VoxelTerms(
        loss=_sum([_by(formula.alpha_of(c), terms[c].loss) for c in channels]),
        # p_k (sum_c a_c - a_k) - a_k (1 - p_k)
        gradient=[probabilities[c] * (sum_of_weights - weights[c]) - slopes[c] for c in channels],
        factor=_sum([term.power for term in terms]) if factor else None,
        capped=_any_below(formula.cap, [formula.alpha_of(c) for c in channels], given, probabilities),
    )


def _marked(formula: Formula, given: Sequence[Tensor], c: int, *, certain: bool) -> tuple[Tensor, Tensor | None]:
    """Of class c: the share that was marked as such and stays, and the share that smoothing brings.

    Without a cap nobody asks for the two apart, and the first is both. For `certain` labels it is then written from the
    most common value on: with all the products of a matrix the compiler would split the pass.
    """
    if formula.table is None:
        return given[c], None
    column = [row[c] for row in formula.table]
    if formula.cap is not None:
        others = [0.0 if label == c else value for label, value in enumerate(column)]
        return column[c] * given[c], _select(others, given)
    if not certain:
        return _select(column, given), None
    base = max(column, key=column.count)
    return _select([value - base for value in column], given) + base, None


class _Tail(NamedTuple):
    """-log p and 1 - p to full relative precision, and p."""

    minus_log: Tensor
    rest: Tensor
    p: Tensor


class _Penalty(NamedTuple):
    """phi(p), w(p) = -p phi'(p), (1 - p)^gamma, and p."""

    loss: Tensor
    weight: Tensor
    power: Tensor
    probability: Tensor


def _tail(against: Tensor) -> _Tail:
    """Of p = sigmoid(-against); p itself to absolute precision."""
    if not torch.compiler.is_compiling():
        rest = torch.sigmoid(against)
        return _Tail(_softplus(against), rest, 1.0 - rest)
    minus_log, rest, _ = _tails(against)[0]
    return _Tail(minus_log, rest, 1.0 - rest)


def _tails(x: Tensor) -> tuple[_Tail, _Tail]:
    """Of p = sigmoid(-x) and of p = sigmoid(x), all to full relative precision."""
    if not torch.compiler.is_compiling():
        rest, p = torch.sigmoid(x), torch.sigmoid(-x)
        return _Tail(_softplus(x), rest, p), _Tail(_softplus(-x), p, rest)
    # One exponential instead of four; eager torch would pay for each of the other operations.
    e = torch.exp(-x.abs())
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    minus_log_larger = _log1p_of_share(e)
    rest, p = torch.where(x > 0.0, larger, smaller), torch.where(x > 0.0, smaller, larger)
    return _Tail(minus_log_larger + x.clamp_min(0.0), rest, p), _Tail(minus_log_larger + (-x).clamp_min(0.0), p, rest)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=_SOFTPLUS_THRESHOLD)


# log(1 + e) / e on [0, 1] interpolated at ten Chebyshev points; in fp32 the relative error is below 2e-7.
_LOG1P = (
    0.9999999946562934, -0.49999892648080163, 0.33329710499262943, -0.24951616265725854, 0.19663274269437392,
    -0.15269667104466478, 0.10543623839523661, -0.056373613209643736, 0.01954252743780671, -0.0031760570527694654,
)  # fmt: skip


def _log1p_of_share(e: Tensor) -> Tensor:
    """log(1 + e) for e in [0, 1]. The library's function takes longer than all the rest of the pass together."""
    if e.dtype != torch.float32:
        return torch.log1p(e)
    series = torch.full_like(e, _LOG1P[-1])
    for coefficient in reversed(_LOG1P[:-1]):
        series = series * e + coefficient
    return series * e


def _shifted(logits: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """z_c - max z and its exponentials."""
    channels = logits.unbind(1)
    largest = channels[0]
    for z in channels[1:]:
        largest = torch.maximum(largest, z)
    shifted = [z - largest for z in channels]
    return shifted, [z.exp() for z in shifted]


def _one_hot(logits: Tensor, label: Tensor) -> list[Tensor]:
    label = label.to(logits.dtype)  # compared in the width of the arithmetic, vectors need no conversion
    return [(label == c).to(logits.dtype) for c in range(logits.shape[1])]


def _labelled_penalty(
    tail: _Tail, gammas: Sequence[float], cap: Cap | None, is_label: Callable[[], Sequence[Tensor]]
) -> _Penalty:
    """The penalty of the labelled class, whichever it is."""
    if len(set(gammas)) == 1:
        return _penalty(tail, gammas[0], cap)
    of_classes = [_penalty(tail, gamma, cap) for gamma in gammas]
    hot = is_label()
    return _Penalty(
        *(_sum([h * v for h, v in zip(hot, values, strict=True)]) for values in zip(*of_classes, strict=True))
    )


def _term(tail: _Tail, gamma: float, cap: Cap | None, marked: Tensor, smoothed: Tensor | None) -> _Penalty:
    """The penalty times the share of the class. The cap is for what was marked, not for what smoothing brings."""
    if smoothed is None:
        return _scaled(_penalty(tail, gamma, cap), marked)
    if cap is None:
        return _scaled(_penalty(tail, gamma, None), marked + smoothed)
    capped, plain = _scaled(_penalty(tail, gamma, cap), marked), _scaled(_penalty(tail, gamma, None), smoothed)
    return _Penalty(capped.loss + plain.loss, capped.weight + plain.weight, capped.power + plain.power, tail.p)


def _scaled(term: _Penalty, share: Tensor) -> _Penalty:
    return _Penalty(share * term.loss, share * term.weight, share * term.power, term.probability)


def _penalty(tail: _Tail, gamma: float, cap: Cap | None) -> _Penalty:
    minus_log, rest, p = tail
    if gamma == 0.0:
        power = torch.ones_like(rest)
        loss, weight = minus_log, power
    elif gamma >= 1.0:
        lower = _power(rest, gamma - 1.0)
        power = rest if gamma == 1.0 else lower * rest
        loss = power * minus_log
        weight = torch.addcmul(rest, p, minus_log, value=gamma)
        weight = weight if gamma == 1.0 else lower * weight
    else:
        # A power below 0 would be infinite where p is 1; the ratio tends to 1 there and is multiplied by 0.
        power = _power(rest, gamma)
        loss = power * minus_log
        weight = power + gamma * power * p * (minus_log / rest.clamp_min(torch.finfo(rest.dtype).tiny))
    if cap is not None:
        wrong = p < cap.probability
        level, tangent = _at(cap.probability, gamma)
        if cap.kind == CapKind.ZERO:
            loss, weight = torch.where(wrong, level, loss), torch.where(wrong, 0.0, weight)
        else:
            loss = torch.where(wrong, level + tangent * (p - cap.probability), loss)
            weight = torch.where(wrong, -tangent * p, weight)
    return _Penalty(loss, weight, power, p)


def _at(p: float, gamma: float) -> tuple[float, float]:
    """phi(p) and phi'(p)."""
    power, log_p = (1.0 - p) ** gamma, math.log(p)
    return -power * log_p, gamma * power / (1.0 - p) * log_p - power / p


def _power(u: Tensor, gamma: float) -> Tensor:
    """u^gamma for u >= 0. Small exponents are spelt out: general powers take several times as long."""
    if gamma == 0.0:
        return torch.ones_like(u)
    if gamma == 0.5:
        return u.sqrt()
    if gamma == 1.0:
        return u
    if gamma == 2.0:
        return u * u
    return u.pow(gamma)


def _any_below(
    cap: Cap | None, alphas: Sequence[float], shares: Sequence[Tensor], probabilities: Sequence[Tensor]
) -> Tensor | None:
    """Whether a class that counts and has a share in the target is below the cap."""
    if cap is None:
        return None
    parts = [
        (share > 0.0) & (p < cap.probability)
        for alpha, share, p in zip(alphas, shares, probabilities, strict=True)
        if alpha > 0.0
    ]
    return functools.reduce(torch.logical_or, parts)


def _by(alpha: float, values: Tensor) -> Tensor:
    return values if alpha == 1.0 else alpha * values


def _times(scale: Tensor | None, values: Tensor) -> Tensor:
    return values if scale is None else scale * values


def _select(values: Sequence[float], shares: Sequence[Tensor]) -> Tensor:
    """sum_t values[t] shares[t], without the products by 0."""
    return _sum(
        [value * share for value, share in zip(values, shares, strict=True) if value != 0.0] or [0.0 * shares[0]]
    )


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
