"""The options of the focal loss, checked: exponents, class weights, label smoothing, cap.

Labels number the classes 0..T - 1, the background 0. With softmax every class has a channel; with sigmoid the
channels are the foreground classes 1..T - 1.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medfocal.losses.activation import Activation

Gamma = float | Sequence[float]
Alpha = float | Sequence[float] | None
CapOption = Sequence[str | float] | None
LabelSmoothing = float | Mapping[str, float] | Sequence[Sequence[float]]

# How far the rows of a matrix of probabilities may be from 1: values written with a few digits.
_ROW_TOLERANCE = 1e-4


class Soft(enum.StrEnum):
    """What the focal loss of a target between classes is.

    expected: The average of the losses of the readers, or of the classes, that the target averages over.
    quality: The target is itself the quantity to predict: |y - p|^gamma times cross-entropy, least at p = y.
    mixture: (1 - exp(-H))^gamma H of the cross-entropy H with the target, least at p = y.
    """

    EXPECTED = "expected"
    QUALITY = "quality"
    MIXTURE = "mixture"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"soft must be {_choices(cls)}, got {value!r}")


class Normalize(enum.StrEnum):
    """What the sum over voxels is divided by. Ignored voxels count nowhere.

    voxels: The number of voxels.
    positives: The number of voxels labelled as foreground (RetinaNet), at least 1.
    weight: The sum of the voxel weights times the alpha of the label, as in torch's weighted cross-entropy.
    factor: The sum of y_c (1 - p_c)^gamma over classes and voxels, times the voxel weight, as a constant for the
        gradient; y as smoothed. Of a certain label it is (1 - p)^gamma of that class.
    """

    VOXELS = "voxels"
    POSITIVES = "positives"
    WEIGHT = "weight"
    FACTOR = "factor"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"normalize must be {_choices(cls)}, got {value!r}")


class CapKind(enum.StrEnum):
    """How the loss goes on below the cap: constant, or along its tangent in p."""

    ZERO = "zero"
    LINEAR = "linear"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"cap must be {_choices(cls)} with a probability, got {value!r}")


class Cap(NamedTuple):
    """Classes with a probability below this one are taken for mislabelled.

    Attributes:
        kind: "zero": no gradient, as the truncated losses of Zhang & Sabuncu, 2018, equation 8. "linear": the
            tangent in p, whose gradient on the logits fades with p, as the partially Huberised cross-entropy of
            Menon et al., ICLR 2020.
        probability: In (0, 1).
    """

    kind: str
    probability: float


def check_gamma(gamma: Gamma) -> float | tuple[float, ...]:
    """Return gamma in plain types if each value is finite and >= 0."""
    values = (gamma,) if isinstance(gamma, int | float) else tuple(gamma)
    if not values or not all(math.isfinite(value) and value >= 0.0 for value in values):
        raise ValueError(f"gamma must be finite and >= 0, got {gamma}")
    return float(gamma) if isinstance(gamma, int | float) else tuple(float(value) for value in values)


def class_gammas(gamma: Gamma, *, activation: Activation, num_channels: int) -> tuple[float, ...]:
    """Gamma of each class, the background first.

    Raises:
        ValueError: A value is out of range, or there is not one per class.
    """
    num_classes = activation.num_classes(num_channels)
    gamma = check_gamma(gamma)
    if isinstance(gamma, float):
        return (gamma,) * num_classes
    if len(gamma) != num_classes:
        raise ValueError(
            f"gamma must be one number or one per class, {num_classes} with the background, for {activation} logits "
            f"with {num_channels} channels, got {len(gamma)}: {gamma}"
        )
    return gamma


def check_alpha(alpha: Alpha) -> float | tuple[float, ...] | None:
    """Return alpha in plain types if its values can be weights of some number of classes."""
    if alpha is None:
        return None
    if isinstance(alpha, int | float):
        if not 0.0 < alpha < 1.0:
            raise ValueError(f"alpha must be in (0, 1), or one weight per class, got {alpha}")
        return float(alpha)
    values = tuple(float(value) for value in alpha)
    if not all(math.isfinite(value) and value > 0.0 for value in values):
        raise ValueError(f"alpha must hold finite weights > 0, got {values}")
    return values


def channel_weights(alpha: Alpha, *, activation: Activation, num_channels: int) -> tuple[float, ...] | None:
    """Alpha of each channel: class weights with softmax, weights of the foreground with sigmoid.

    Raises:
        ValueError: Alpha is out of range, a number where there are more than two classes, or of the wrong
        length.
    """
    alpha = check_alpha(alpha)
    if alpha is None:
        return None
    if isinstance(alpha, float):
        num_classes = activation.num_classes(num_channels)
        if num_classes != 2:
            raise ValueError(
                f"alpha {alpha} is one number, which weighs two classes, but {activation} logits with {num_channels} "
                f"channels have {num_classes}; give {num_channels} values"
            )
        return (1.0 - alpha, alpha) if activation is Activation.SOFTMAX else (alpha,)
    if len(alpha) != num_channels:
        raise ValueError(f"alpha must have one value per channel, {num_channels}, got {len(alpha)}: {alpha}")
    if activation is Activation.SIGMOID and not all(0.0 < value < 1.0 for value in alpha):
        raise ValueError(f"alpha of each sigmoid channel must be in (0, 1), got {alpha}")
    return alpha


def check_cap(cap: CapOption) -> Cap | None:
    """Return the cap in plain types.

    Raises:
        ValueError: It is not a kind and a probability.
    """
    if cap is None:
        return None
    if isinstance(cap, str) or len(cap) != 2 or not isinstance(cap[1], int | float):
        raise ValueError(f"cap must be a kind and a probability, as in ('zero', 0.1), got {cap!r}")
    probability = float(cap[1])
    if not 0.0 < probability < 1.0:
        raise ValueError(f"the probability of a cap must be in (0, 1), got {cap[1]}")
    return Cap(CapKind(str(cap[0])).value, probability)


def check_epoch(name: str, value: int) -> int:
    """Return an epoch, counted from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number >= 0, got {value!r}")
    return value


def check_not_negative(name: str, value: float) -> float:
    """Return a value as a float if it is finite and >= 0."""
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} must be finite and >= 0, got {value}")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """Return a value as a float if it is finite and > 0."""
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    return float(value)


def check_label_smoothing(label_smoothing: LabelSmoothing) -> float | dict[str, float] | tuple[tuple[float, ...], ...]:
    """Return label smoothing in plain types if its values are in range.

    Raises:
        ValueError: A rate is outside [0, 1), a dictionary has other keys than fg and bg, or a matrix is not square,
        not of probabilities or has a row that does not sum to 1.
    """
    if isinstance(label_smoothing, int | float):
        return _rate("label_smoothing", label_smoothing)
    if isinstance(label_smoothing, Mapping):
        if set(label_smoothing) != {"fg", "bg"}:
            raise ValueError(
                f"label_smoothing by side has a rate 'fg' of spurious marks and 'bg' of missed ones, "
                f"got {dict(label_smoothing)}"
            )
        return {side: _rate(f"label_smoothing '{side}'", label_smoothing[side]) for side in ("fg", "bg")}
    rows = tuple(tuple(float(value) for value in row) for row in label_smoothing)
    if not rows or any(len(row) != len(rows) for row in rows):
        lengths = [len(row) for row in rows]
        raise ValueError(f"label_smoothing as a matrix must be square, got rows of lengths {lengths}")
    for label, row in enumerate(rows):
        if not all(0.0 <= value <= 1.0 for value in row) or abs(math.fsum(row) - 1.0) > _ROW_TOLERANCE:
            raise ValueError(
                f"each row of label_smoothing must hold probabilities that sum to 1, got row {label}: {row} with sum "
                f"{math.fsum(row):g}"
            )
    return rows


def class_probabilities(
    label_smoothing: LabelSmoothing, *, activation: Activation, num_channels: int
) -> tuple[tuple[float, ...], ...] | None:
    """Probability that a voxel labelled t belongs to the class of each channel.

    Of smoothing e: with softmax 1 - e + e / C on t and e / C elsewhere; with sigmoid (1 - e) y + e / 2. By side:
    a foreground label is background with probability fg; a background label is foreground with probability bg,
    split evenly among the classes with softmax. A matrix holds these probabilities itself.

    Returns:
        A row per label, a column per channel; None without smoothing.

    Raises:
        ValueError: A matrix has not one row per class, or comes with several sigmoid channels.
    """
    smoothing = check_label_smoothing(label_smoothing)
    num_classes = activation.num_classes(num_channels)
    is_softmax = activation is Activation.SOFTMAX
    if isinstance(smoothing, tuple):
        if len(smoothing) != num_classes:
            raise ValueError(
                f"label_smoothing must have one row per class, {num_classes} with the background, got {len(smoothing)}"
            )
        if not is_softmax and num_channels > 1:
            raise ValueError(
                f"label_smoothing as a matrix needs exclusive classes; {num_channels} sigmoid channels are not. "
                "Use activation='softmax', or {'fg': ..., 'bg': ...}"
            )
        return smoothing if is_softmax else tuple(row[1:] for row in smoothing)
    if isinstance(smoothing, float):
        if smoothing == 0.0:
            return None
        share = smoothing / (num_classes if is_softmax else 2)
        on, off = 1.0 - smoothing + share, share
        channels = range(num_classes) if is_softmax else range(1, num_classes)
        return tuple(tuple(on if label == c else off for c in channels) for label in range(num_classes))
    spurious, missed = smoothing["fg"], smoothing["bg"]
    if spurious == missed == 0.0:
        return None
    if not is_softmax:
        return tuple(
            tuple(1.0 - spurious if label == c else missed for c in range(1, num_classes))
            for label in range(num_classes)
        )
    background = (1.0 - missed, *(missed / (num_classes - 1),) * (num_classes - 1))
    foreground = tuple(
        (spurious, *(1.0 - spurious if label == c else 0.0 for c in range(1, num_classes)))
        for label in range(1, num_classes)
    )
    return (background, *foreground)


def smoothed_shares(
    foreground_shares: Sequence[float],
    *,
    label_smoothing: LabelSmoothing,
    activation: str = "softmax",
) -> list[float]:
    """Share of each foreground class that the loss sees once labels are smoothed.

    Args:
        foreground_shares: Share of the voxels labelled as each foreground class.
        label_smoothing: As in the loss.
        activation: As in the loss.
    """
    kind = Activation(activation)
    num_foreground = len(foreground_shares)
    num_channels = num_foreground + 1 if kind is Activation.SOFTMAX else num_foreground
    table = class_probabilities(label_smoothing, activation=kind, num_channels=num_channels)
    if table is None:
        return list(foreground_shares)
    shares = (1.0 - math.fsum(foreground_shares), *foreground_shares)
    columns = range(num_channels - num_foreground, num_channels)
    return [math.fsum(share * row[c] for share, row in zip(shares, table, strict=True)) for c in columns]


def _rate(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and 0.0 <= value < 1.0):
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return float(value)


def _choices(kind: type[enum.StrEnum]) -> str:
    return " or ".join(f"'{choice}'" for choice in kind)
