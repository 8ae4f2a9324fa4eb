"""Several models as one, for models that differ in weights or network only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.errors import ModelError
from medfocal.model import Model, ModelCard, OperatingPoint, load_model, read_card

if TYPE_CHECKING:
    import torch

#: Entries of the card in which models must agree for their probabilities to mean the same, window by window.
AGREED = ("channels", "labels", "activation", "overlapping", "preprocessing", "window", "candidates", "correction")


def load_models(folders: Sequence[Path], device: str | torch.device = "cpu") -> Model:
    """Read one model, or several as one with all their members; all are in the device's memory together.

    Members stand by the digest of their weights, so that the order in which they were given changes no bit.

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
    models = [load_model(folder, device) for folder in folders]
    found = []
    places: dict[str, Path] = {}
    for folder, model in zip(folders, models, strict=True):
        for digest, network, member in zip(model.weights_sha256, model.networks, model.card.members, strict=True):
            if digest in places:
                message = f"the models '{places[digest]}' and '{folder}' have the same weights; name each model once"
                raise ModelError(message)
            places[digest] = folder
            found.append((digest, network, member))
    digests, networks, members = zip(*sorted(found, key=lambda entry: entry[0]), strict=True)
    card = replace(_common_card(cards), members=members)
    return Model(networks, card, digests)


def _common_card(cards: Sequence[ModelCard]) -> ModelCard:
    """The card of the first with the mean of all thresholds, which was chosen on no case."""
    threshold = math.fsum(card.operating_points[0].threshold for card in cards) / len(cards)
    mirrored = all(card.operating_points[0].mirrored for card in cards)
    point = OperatingPoint(
        name="mean of the members' thresholds", threshold=threshold, source="default", mirrored=mirrored
    )
    return replace(cards[0], name=f"ensemble of {len(cards)} models", operating_points=(point,), familiar=None)


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
