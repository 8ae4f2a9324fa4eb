"""What focal loss does to probabilities: its stationary point, a bias that starts there, and the way back.

At a stationary point of L = sum_c alpha_c y_c phi(p_c) over softmax logits, y_c is proportional to p_c /
(alpha_c w(p_c)) with w(p) = -p phi'(p) = (1 - p)^gamma (1 - gamma p log(p) / (1 - p)); the ratio p / w(p)
grows with p, so the map is invertible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medfocal.losses.activation import Activation
from medfocal.losses.options import Alpha, Gamma, channel_weights, class_gammas
from medfocal.losses.target import along_channels

# Log-odds beyond this are 0 or 1 in double precision with their logarithms still finite.
_MAX_LOG_ODDS = 700.0


def stationary_probability(foreground_fraction: float, *, gamma: Gamma = 0.0, alpha: float | None = None) -> float:
    """Constant foreground probability at which the mean focal loss over voxels of two classes is stationary.

    Args:
        foreground_fraction: Share f of foreground voxels, in (0, 1).
        gamma: Focusing exponent, >= 0, or those of background and foreground.
        alpha: Weight of the foreground in (0, 1), 1 - alpha of the background. None: equal weights.

    Returns:
        The root p of alpha f (1 - p) w_1(p) = (1 - alpha) (1 - f) p w_0(1 - p); f itself at gamma 0 and equal
        weights.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> round(stationary_probability(0.002, gamma=2.0, alpha=0.25), 4)
        0.0636
    """
    weights = channel_weights(alpha, activation=Activation.SOFTMAX, num_channels=2) or (1.0, 1.0)
    fractions = _foreground_fractions(foreground_fraction, num_foreground=1, activation=Activation.SOFTMAX)
    gammas = class_gammas(gamma, activation=Activation.SOFTMAX, num_channels=2)
    log_odds = _stationary_log_odds((1.0 - fractions[0], *fractions), gammas=gammas, weights=weights)
    return _sigmoid(log_odds[1])


def init_prior_bias_(
    head: nn.Module,
    foreground_fraction: float | Sequence[float],
    *,
    gamma: Gamma = 0.0,
    alpha: Alpha = None,
    activation: str = "softmax",
) -> nn.Module:
    """Set the last bias in place so that the initial probabilities are the loss's stationary point.

    From there neither class drives the first steps alone. The weights stay as they are. With label smoothing pass
    the fractions that the loss sees, from `smoothed_shares`.

    Args:
        head: A layer with a bias, one element per channel.
        foreground_fraction: Share of the voxels in each foreground class, or one number, split evenly among
            them.
        gamma: As in the loss.
        alpha: As in the loss.
        activation: As in the loss.

    Returns:
        The head.

    Raises:
        ValueError: The head has no bias, or an argument is out of range.
    """
    bias = getattr(head, "bias", None)
    if not isinstance(bias, Tensor) or bias.ndim != 1:
        raise ValueError(f"head must have a bias with one element per channel, got {head}")
    kind = Activation(activation)
    num_channels = bias.numel()
    gammas = class_gammas(gamma, activation=kind, num_channels=num_channels)
    weights = channel_weights(alpha, activation=kind, num_channels=num_channels)
    num_foreground = kind.num_classes(num_channels) - 1
    if num_foreground < 1:
        raise ValueError(f"softmax needs at least 2 channels, the head has {num_channels}; use activation='sigmoid'")
    fractions = _foreground_fractions(foreground_fraction, num_foreground=num_foreground, activation=kind)
    if kind is Activation.SOFTMAX:
        shares = (1.0 - math.fsum(fractions), *fractions)
        log_odds = _stationary_log_odds(shares, gammas=gammas, weights=weights or (1.0,) * num_channels)
        values = [_log_sigmoid(value) for value in log_odds]
    else:
        values = [
            _stationary_log_odds((1.0 - share, share), gammas=(gammas[0], gamma_c), weights=(1.0 - alpha_c, alpha_c))[1]
            for share, gamma_c, alpha_c in zip(fractions, gammas[1:], weights or (0.5,) * num_channels, strict=True)
        ]
    with torch.no_grad():
        bias.copy_(bias.new_tensor(values))
    return head


def focal_posterior(probability: Tensor, *, gamma: Gamma, alpha: Alpha = None, activation: str = "softmax") -> Tensor:
    """Class probabilities that a model trained to the optimum of focal loss means by its outputs.

    With one gamma the map keeps the order of two classes, and makes probabilities more extreme: 0.6 becomes
    0.7475 at gamma 2.

    Args:
        probability: With softmax (B, C, *spatial), C >= 2, summing to 1 along axis 1. With sigmoid (B, C,
            *spatial), the foreground probability of each channel by itself.
        gamma: As in the loss.
        alpha: As in the loss; its effect on the optimum is undone as well.
        activation: As in the loss.

    Returns:
        Probabilities in the same shape, in fp32 at least.

    Raises:
        ValueError: An argument is out of range or does not fit the shape.

    References:
        Charoenphakdee et al., "On focal loss for class-posterior probability estimation", CVPR 2021;
        alpha is our addition.
    """
    kind = Activation(activation)
    if not probability.is_floating_point() or probability.ndim < 2:
        raise ValueError(
            f"probability must be a floating point tensor (B, C, *spatial), got {probability.dtype} of shape "
            f"{tuple(probability.shape)}"
        )
    num_channels = probability.shape[1]
    weights = channel_weights(alpha, activation=kind, num_channels=num_channels)
    probability = probability.to(torch.promote_types(probability.dtype, torch.float32))
    alphas = None if weights is None else along_channels(probability.new_tensor(weights), probability.ndim)
    if kind is Activation.SOFTMAX and num_channels < 2:
        raise ValueError(
            f"softmax needs at least 2 channels, got probabilities of shape {tuple(probability.shape)}; "
            "use activation='sigmoid'"
        )
    of_classes = probability.new_tensor(class_gammas(gamma, activation=kind, num_channels=num_channels))
    if kind is Activation.SIGMOID:
        of_foreground = along_channels(of_classes[1:], probability.ndim)
        log_ratio = _log_ratio(probability, 1.0 - probability, of_foreground) - _log_ratio(
            1.0 - probability, probability, of_classes[0]
        )
        return torch.sigmoid(log_ratio if alphas is None else log_ratio - torch.logit(alphas))
    log_ratio = _log_ratio(probability, 1.0 - probability, along_channels(of_classes, probability.ndim))
    return torch.softmax(log_ratio if alphas is None else log_ratio - alphas.log(), dim=1)


def _log_ratio(probability: Tensor, rest: Tensor, gamma: Tensor) -> Tensor:
    """log(p / w(p)) with rest = 1 - p; finite also at 0 and 1."""
    tiny = torch.finfo(probability.dtype).tiny
    log_p = probability.clamp_min(tiny).log()
    rest = rest.clamp_min(tiny)
    return log_p - gamma * rest.log() - torch.log1p(-gamma * probability * log_p / rest)


def _foreground_fractions(
    foreground_fraction: float | Sequence[float], *, num_foreground: int, activation: Activation
) -> tuple[float, ...]:
    if isinstance(foreground_fraction, int | float):
        fractions = (float(foreground_fraction) / num_foreground,) * num_foreground
    else:
        fractions = tuple(float(fraction) for fraction in foreground_fraction)
    if len(fractions) != num_foreground:
        raise ValueError(
            f"foreground_fraction must be one number or one per foreground class, {num_foreground}, "
            f"got {foreground_fraction}"
        )
    # Exclusive classes must leave voxels for the background; sigmoid channels may overlap.
    total = math.fsum(fractions) if activation is Activation.SOFTMAX else max(fractions)
    if not (all(fraction > 0.0 for fraction in fractions) and total < 1.0):
        raise ValueError(
            f"foreground_fraction must be in (0, 1), also summed over exclusive classes, got {foreground_fraction}"
        )
    return fractions


def _stationary_log_odds(
    shares: Sequence[float], *, gammas: Sequence[float], weights: Sequence[float]
) -> tuple[float, ...]:
    """Log-odds x_c with sum_c p_c = 1 and p_c / w_c(p_c) proportional to weights_c * shares_c.

    Found by nested bisection. The outer unknown is that of the background, the inner ones follow from it.
    """
    masses = [math.log(weight * share) for weight, share in zip(weights, shares, strict=True)]

    def log_odds_at(log_ratio: float, gamma: float) -> float:
        return _root(lambda x: _log_ratio_at(x, gamma) - log_ratio)

    def foreground(background: float) -> list[float]:
        level = _log_ratio_at(background, gammas[0]) - masses[0]
        return [log_odds_at(level + mass, gamma) for mass, gamma in zip(masses[1:], gammas[1:], strict=True)]

    def excess(background: float) -> float:
        return math.fsum(_sigmoid(x) for x in foreground(background)) - _sigmoid(-background)

    background = _root(excess)
    return (background, *foreground(background))


def _log_ratio_at(log_odds: float, gamma: float) -> float:
    """log(p / w(p)) at p = sigmoid(log_odds)."""
    log_p, log_rest = _log_sigmoid(log_odds), _log_sigmoid(-log_odds)
    return log_p - gamma * log_rest - math.log1p(-gamma * _sigmoid(log_odds) * log_p / _sigmoid(-log_odds))


def _root(increasing: Callable[[float], float]) -> float:
    """Where an increasing function of log-odds changes sign, to double precision."""
    low, high = -_MAX_LOG_ODDS, _MAX_LOG_ODDS
    while low < (middle := (low + high) / 2.0) < high:
        if increasing(middle) < 0.0:
            low = middle
        else:
            high = middle
    return middle


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))


def _log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))
