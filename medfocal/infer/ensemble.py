"""Several models as one: the mean of their probabilities, for models that differ in weights, network or window only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.errors import ModelError
from medfocal.infer.window import Window, predict_windows
from medfocal.model import Model, ModelCard, OperatingPoint, load_model, read_card

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

#: Entries of the card in which models must agree for their probabilities to mean the same, voxel by voxel.
AGREED = ("channels", "labels", "activation", "overlapping", "preprocessing", "candidates")


@dataclass(frozen=True)
class Ensemble:
    """Models whose probabilities are averaged.

    Attributes:
        members: By the digest of their weights, so that the order in which they were given changes no bit.
        card: What they agree on, with the mean of their thresholds.
    """

    members: tuple[Model, ...]
    card: ModelCard


def load_models(folders: Sequence[Path], device: str | torch.device = "cpu") -> Model | Ensemble:
    """Read one model, or several as an ensemble; all are in the device's memory together.

    Args:
        folders: Of the models, at least one.
        device: Where the networks go.

    Raises:
        ModelError: A folder is no model, two hold the same weights, or the models differ in what must agree.
    """
    if len(folders) == 1:
        return load_model(folders[0], device)
    cards = [read_card(folder)[0] for folder in folders]
    for folder, card in zip(folders[1:], cards[1:], strict=True):
        _check_agreement(folders[0], cards[0], folder, card)
    models: dict[str, Model] = {}
    places: dict[str, Path] = {}
    for folder in folders:
        model = load_model(folder, device)
        digest = model.weights_sha256
        if digest in models:
            message = f"the models '{places[digest]}' and '{folder}' have the same weights; name each model once"
            raise ModelError(message)
        models[digest], places[digest] = model, folder
    members = tuple(models[digest] for digest in sorted(models))
    return Ensemble(members, _common_card(members))


def mean_probabilities(models: Sequence[Model], image: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
    """Mean of what models say of a prepared image, before it goes back to the case's own grid.

    In main memory lies a second sum, `4 K` bytes a voxel, beside what `predict_windows` needs.

    Args:
        models: Their networks are on `device`; the order is that of the sum.
        image: float32 `(C, I, J, K)` on the network's grid.
        device: Where to compute.

    Returns:
        float32 `(K, I, J, K)`, of the lesion classes. Of one model: its own, to the bit.
    """
    total: NDArray[np.float32] | None = None
    for model in models:
        window, activation = Window(**model.card.window), model.card.activation
        found = predict_windows(model.network, image, window=window, activation=activation, device=device)
        if total is None:
            total = found
        else:
            total += found
    assert total is not None, "at least one model"
    total /= len(models)
    return total


def _common_card(members: Sequence[Model]) -> ModelCard:
    """The card of the first with the mean of all thresholds, which was chosen on no case."""
    threshold = math.fsum(model.card.operating_points[0].threshold for model in members) / len(members)
    point = OperatingPoint(name="mean of the members' thresholds", threshold=threshold, source="default")
    return replace(members[0].card, name=f"ensemble of {len(members)} models", operating_points=(point,), training={})


def _check_agreement(first: Path, card: ModelCard, second: Path, other: ModelCard) -> None:
    ours, theirs = (dict(_entries({name: made.to_dict()[name] for name in AGREED})) for made in (card, other))
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            message = (
                f"the models '{first}' and '{second}' cannot be averaged: {key} is {ours.get(key)!r} and "
                f"{theirs.get(key)!r}. Models of one configuration and other folds or seeds can."
            )
            raise ModelError(message)


def _entries(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
