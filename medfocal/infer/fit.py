"""What is fitted on labelled cases: the correction of voxel probabilities, and the confidence of candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.manifest import LabelScheme
from medfocal.data.transforms import PreparedCase
from medfocal.errors import DatasetError
from medfocal.infer.correction import corrected
from medfocal.infer.voxels import lesion_of, predict_voxels
from medfocal.infer.window import Window, class_probabilities
from medfocal.model import LOGISTIC, ModelCard

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Voxels of a case without a lesion that are looked at: so many where the network sees something, as many elsewhere.
VOXELS_OF_CASE = 20_000
#: Probability of a lesion from which the network sees something.
SEEN = 0.01
#: Probabilities are taken for at least this, and at most 1 less this, before their logarithm is.
LEAST_PROBABILITY = 1e-7
#: Between these the temperature is looked for.
TEMPERATURES = (0.1, 10.0)
#: True and false candidates each, below which no confidence is fitted.
MIN_CANDIDATES_OF_KIND = 10
NUM_BINS = 10
#: Hills below it are not formed, whatever a correction makes of the floor.
LEAST_FLOOR = 1e-5


@dataclass(frozen=True, eq=False)
class LabelledVoxels:
    """Voxels of labelled cases, each standing for `weight` of them.

    Attributes:
        probability: Of each lesion class, uncorrected, float32 `(n, K)`.
        target: Whether the voxel is of it, bool `(n, K)`.
        weight: `(n,)`.
    """

    probability: NDArray[np.float32]
    target: NDArray[np.bool_]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, parts: Sequence[LabelledVoxels]) -> LabelledVoxels:
        """All of several."""
        names = ("probability", "target", "weight")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Bin:
    """Voxels, or candidates, of about one probability.

    Attributes:
        low: Least probability.
        high: From which the next bin begins.
        number: How many, or for how many those that were looked at stand.
        mean: Their mean probability.
        share: The share of them that is lesion.
    """

    low: float
    high: float
    number: float
    mean: float
    share: float


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are what they say.

    Attributes:
        bins: Ten of equal width, those that hold something.
        ece: Expected calibration error: mean over all of |share - mean| of the own bin.
        brier: Mean squared difference of probability and outcome.
        log_loss: Mean of -log of the probability of what is the case, in nats.
    """

    bins: tuple[Bin, ...]
    ece: float
    brier: float
    log_loss: float


def reliability(
    probability: NDArray[Any], is_lesion: NDArray[np.bool_], weight: NDArray[Any] | None = None
) -> Reliability:
    """Hold probabilities against outcomes.

    Args:
        probability: In [0, 1], `(n,)`, at least one.
        is_lesion: bool `(n,)`.
        weight: For how many each stands, `(n,)`; None: one.
    """
    probability = np.asarray(probability, np.float64)
    weight = np.ones(len(probability)) if weight is None else np.asarray(weight, np.float64)
    place = np.minimum((probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    number, total, true = (
        np.bincount(place, weight * values, minlength=NUM_BINS) for values in (1.0, probability, is_lesion)
    )
    bins = tuple(
        Bin(n / NUM_BINS, (n + 1) / NUM_BINS, float(number[n]), float(total[n] / number[n]), float(true[n] / number[n]))
        for n in np.flatnonzero(number > 0)
    )
    kept = np.clip(probability, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    log_loss = -np.log(np.where(is_lesion, kept, 1 - kept))
    return Reliability(
        bins=bins,
        ece=float(np.abs(total - true).sum() / number.sum()),
        brier=float(np.average((probability - is_lesion) ** 2, weights=weight)),
        log_loss=float(np.average(log_loss, weights=weight)),
    )


def sample_voxels(
    networks: Sequence[nn.Module],
    prepared: PreparedCase,
    card: ModelCard,
    scheme: LabelScheme,
    *,
    device: torch.device,
    seed: int,
    mirror: bool = False,
) -> LabelledVoxels:
    """Take all lesion voxels of a case and some of the others, with what the networks say of them, uncorrected.

    Of the voxels without a lesion `VOXELS_OF_CASE` at most are drawn of those that have a probability of `SEEN` or
    more, and as many of the rest; each stands for as many as there are for one that was drawn. Voxels that nobody
    judged are left out. Each lesion class takes a pass of the networks.

    Args:
        networks: On `device`.
        prepared: Has a label.
        card: Of the model.
        scheme: Of the labels.
        device: Where to compute.
        seed: Of the draw.
        mirror: Whether to average over the eight mirrored views.
    """
    assert prepared.label is not None, "only labelled cases come here"
    label = prepared.label.numpy()
    classes = [np.isin(label, values) for values in _values_of(scheme)]
    found = []
    for number in range(len(classes)):
        one = one_class(networks, card.activation, number)
        said = predict_voxels(
            [one],
            prepared.image,
            window=Window(**card.window),
            activation="sigmoid",
            num_classes=1,
            device=device,
            mirror=mirror,
        )
        found.append(said.probability)
    probability = np.stack(found, axis=-1).reshape(-1, len(found))
    target = np.stack(classes, axis=-1).reshape(-1, len(found))
    judged = np.ones(label.size, np.bool_) if prepared.ignore is None else ~prepared.ignore.reshape(-1)
    is_lesion = target.any(axis=1)
    is_seen = probability.sum(axis=1) >= SEEN
    random = np.random.default_rng(seed)
    rows, weights = [np.flatnonzero(judged & is_lesion)], [np.ones(int((judged & is_lesion).sum()))]
    for stratum in (judged & ~is_lesion & is_seen, judged & ~is_lesion & ~is_seen):
        places = np.flatnonzero(stratum)
        drawn = random.choice(places, min(len(places), VOXELS_OF_CASE), replace=False)
        rows.append(drawn)
        weights.append(np.full(len(drawn), len(places) / max(len(drawn), 1)))
    row = np.concatenate(rows)
    return LabelledVoxels(probability[row], target[row], np.concatenate(weights))


def one_class(networks: Sequence[nn.Module], activation: str, number: int) -> nn.Module:
    """A network whose one output, through a sigmoid, is the networks' mean probability of a lesion class, from 0."""
    import torch
    from torch import nn

    class OneClass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleList(networks)

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            said = [class_probabilities(network(windows), activation)[:, [number]] for network in self.networks]
            return torch.logit(torch.stack(said).mean(dim=0))

    return OneClass()


def fit_correction(voxels: LabelledVoxels, loss: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """Fit the temperature that makes the labels likeliest once the loss's effect is undone.

    The weighted negative log-likelihood of the voxels is convex in 1 / temperature; it is minimised between
    `TEMPERATURES` by Brent's method on the logarithm.

    Args:
        voxels: Of labelled cases.
        loss: `gamma` and `alpha` that the model was trained with.
        activation: "softmax" or "sigmoid".

    Returns:
        `gamma`, `alpha` and `temperature` of `medfocal.infer.correction.corrected`.

    Raises:
        DatasetError: No voxel is of a lesion.
        ValueError: `gamma` or `alpha` cannot be those of a loss.

    References:
        C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    if not voxels.target.any():
        message = "no voxel of the patients that the correction is fitted on is of a lesion; take more of them"
        raise DatasetError(message)

    def loss_at(log_temperature: float) -> float:
        made = {**loss, "temperature": math.exp(log_temperature)}
        return _log_loss(corrected_rows(voxels.probability, made, activation), voxels, activation)

    low, high = (math.log(end) for end in TEMPERATURES)
    found = minimize_scalar(loss_at, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return {**loss, "temperature": math.exp(float(found.x))}


def corrected_rule(
    rule: Mapping[str, Any], correction: Mapping[str, Any], activation: str, *, num_classes: int
) -> dict[str, Any]:
    """How candidates are formed of corrected probabilities, so that hills of before are still found.

    A correction makes small probabilities smaller still. So the floor, and the cut where there is one, become what the
    correction makes of a voxel that has this probability of one lesion class and none of the others; of several classes
    the least. Hills of several classes at once that lie just above the old floor may be lost, and so are all below
    `LEAST_FLOOR`: with gamma 2 those of up to about 0.02.

    Args:
        rule: `candidates` of a model's card whose probabilities are not corrected.
        correction: Of `corrected`.
        activation: "softmax" or "sigmoid".
        num_classes: Lesion classes.
    """
    moved = dict(rule)
    for name in ("floor", "cut"):
        if rule[name] is not None:
            rows = corrected_rows(
                np.float32(rule[name]) * np.eye(num_classes, dtype=np.float32), correction, activation
            )
            moved[name] = min(1.0, max(LEAST_FLOOR, float(np.diag(rows).min())))
    return moved


def corrected_rows(
    probability: NDArray[np.float32], correction: Mapping[str, Any], activation: str
) -> NDArray[np.float32]:
    """Correct probabilities `(n, K)` as prediction does."""
    import torch

    columns = torch.from_numpy(np.ascontiguousarray(probability.T))
    return np.ascontiguousarray(corrected(columns, correction, activation).numpy().T)


def voxel_reliability(voxels: LabelledVoxels, correction: Mapping[str, Any], activation: str) -> Reliability:
    """Hold the corrected probability of any lesion against the labels."""
    import torch

    rows = torch.from_numpy(corrected_rows(voxels.probability, correction, activation))
    lesion = lesion_of(rows, activation, dim=1)[:, 0].clamp(0, 1).numpy()
    return reliability(lesion, np.asarray(voxels.target.any(axis=1)), voxels.weight)


def fit_logistic(features: NDArray[np.float64], is_true: NDArray[np.bool_]) -> dict[str, float]:
    """Fit the probability that a candidate finds a lesion.

    The negative log-likelihood plus half the sum of the squared coefficients of standardised features is minimised: so
    that candidates that can be told apart without an error don't send the coefficients to infinity.

    Args:
        features: Of `medfocal.infer.candidates.candidate_features`, `(n, 3)`.
        is_true: bool `(n,)`.

    Returns:
        Coefficients of `medfocal.infer.candidates.calibrated_confidence`.

    Raises:
        DatasetError: Too few candidates are true, or false.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    num_true, num_false = int(is_true.sum()), int((~is_true).sum())
    if min(num_true, num_false) < MIN_CANDIDATES_OF_KIND:
        message = (
            f"confidence=logistic is fitted on {num_true} true and {num_false} false candidates; it takes "
            f"{MIN_CANDIDATES_OF_KIND} of each. Give more cases, or leave confidence as the model has it."
        )
        raise DatasetError(message)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    table = np.column_stack([np.ones(len(features)), (features - mean) / spread])
    sign = np.where(is_true, 1.0, -1.0)
    is_feature = np.array([0.0, 1.0, 1.0, 1.0])

    def objective(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (table @ weights)
        value = float(np.logaddexp(0, -margin).sum() + 0.5 * (is_feature * weights**2).sum())
        return value, np.asarray(is_feature * weights - (sign * expit(-margin)) @ table, np.float64)

    weights = minimize(objective, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    slopes = weights[1:] / spread
    values = (float(weights[0] - slopes @ mean), *map(float, slopes))
    return dict(zip(LOGISTIC, values, strict=True))


def _values_of(scheme: LabelScheme) -> list[Sequence[int]]:
    """Classes of the label that each lesion class, or region, consists of."""
    if scheme.regions:
        return [tuple(values) for values in scheme.regions.values()]
    return [(number,) for number in sorted(scheme.names) if number]


def _log_loss(probability: NDArray[np.float32], voxels: LabelledVoxels, activation: str) -> float:
    """Mean negative log-likelihood of the class of a voxel; of each class by itself where they are not exclusive."""
    found = probability.astype(np.float64)
    if activation == "softmax":
        found = np.column_stack([1 - found.sum(axis=1), found])
        target = np.column_stack([~voxels.target.any(axis=1), voxels.target])
        own = np.clip(found[target], LEAST_PROBABILITY, 1.0)
        return float(np.average(-np.log(own), weights=voxels.weight))
    found = np.clip(found, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    each = -np.log(np.where(voxels.target, found, 1 - found)).sum(axis=1)
    return float(np.average(each, weights=voxels.weight))
