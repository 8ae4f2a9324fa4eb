"""The model folder: what training hands over and prediction needs, and nothing else.

`weights.safetensors` holds tensors only and `model.json` plain values only, so that reading a model from a
stranger runs none of their code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medfocal.components import CONNECTIVITIES, Confidence
from medfocal.data.transforms import Preprocessing
from medfocal.errors import ModelError
from medfocal.files import atomic_write, make_folder, plain, write_json

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"
CARD = "model.json"
# What some entries of the card hold, to the letter: a stranger's `_target_` has no place there.
_KEYS = {
    "network": ("name", "arguments"),
    "window": ("size", "overlap", "batch", "precision"),
    "candidates": ("extent_ratio", "floor", "connectivity", "confidence"),
}
INTENDED_USE = "Research use. Not a medical device; not for diagnosis or treatment decisions."


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A confidence from which candidates count, and how it came about.

    Attributes:
        name: Such as "1 false positive per case".
        threshold: Candidates with this confidence or more are kept.
        source: The cases it was chosen on, or "default" if on none.
        lesion_sensitivity: Measured on these cases at this threshold, None if on none.
        false_positives_per_case: Likewise.
        num_lesions: Lesions that the sensitivity rests on.
    """

    name: str
    threshold: float
    source: str
    lesion_sensitivity: float | None = None
    false_positives_per_case: float | None = None
    num_lesions: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            message = f"the threshold of an operating point must be in [0, 1], got {self.threshold}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What `model.json` says.

    Attributes:
        name: Of the experiment it came from.
        network: `{"name": class in medfocal.networks, "arguments": {...}}`.
        channels: Names of the image channels, in order.
        labels: Label value to class name; 0 is the background.
        activation: "softmax" or "sigmoid": how logits become probabilities.
        overlapping: Whether the labels are regions that may lie within each other, each later one within those before.
        preprocessing: Orientation, spacing and intensity scheme.
        window: Arguments of `medfocal.infer.window.Window`: `{"size", "overlap", "batch", "precision"}`.
        candidates: How candidates are formed: `{"extent_ratio", "floor", "connectivity", "confidence"}`.
        operating_points: At least one; the first is the default.
        training: Provenance: versions, data, seed, epochs.
        intended_use: One sentence.
    """

    name: str
    network: Mapping[str, Any]
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    activation: str
    preprocessing: Preprocessing
    window: Mapping[str, Any]
    candidates: Mapping[str, Any]
    operating_points: tuple[OperatingPoint, ...]
    overlapping: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    intended_use: str = INTENDED_USE

    def __post_init__(self) -> None:
        for name, keys in _KEYS.items():
            if set(getattr(self, name)) != set(keys):
                message = f"{name} must hold {', '.join(keys)} and nothing else, got {dict(getattr(self, name))}"
                raise ValueError(message)
        window, rule = self.window, self.candidates
        sound = {
            "channels": len(self.channels) >= 1,
            "labels": len(self.labels) >= 2 and sorted(self.labels) == list(range(len(self.labels))),
            "activation": self.activation in ("softmax", "sigmoid"),
            "window": len(window["size"]) == 3
            and all(isinstance(n, int) and n >= 1 for n in (*window["size"], window["batch"]))
            and 0 <= window["overlap"] < 1
            and window["precision"] in ("auto", "bf16", "fp16", "float32"),
            "candidates": 0 < rule["extent_ratio"] < 1
            and 0 < rule["floor"] <= 1
            and rule["connectivity"] in CONNECTIVITIES
            and rule["confidence"] in get_args(Confidence),
            "operating_points": len(self.operating_points) >= 1,
            "training": isinstance(self.training, Mapping),
            "overlapping": self.overlapping in (False, self.activation == "sigmoid"),
        }
        for name, good in sound.items():
            if not good:
                message = f"{name} makes no sense: {getattr(self, name)!r}"
                raise ValueError(message)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["preprocessing"] = self.preprocessing.to_dict()
        values["operating_points"] = [asdict(point) for point in self.operating_points]
        return dict(plain(values))


@dataclass(frozen=True)
class Model:
    """A network in memory, in evaluation mode, with its card and the digest of its weights."""

    network: torch.nn.Module
    card: ModelCard
    weights_sha256: str


def save_model(folder: Path, network: torch.nn.Module, card: ModelCard) -> Path:
    """Write a model folder: the weights first, then the card that names their digest.

    Raises:
        ResourceError: The folder cannot be written.
    """
    from safetensors.torch import save

    folder = make_folder(Path(folder))
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = save(tensors)
    # An old card beside new weights is refused by its digest; so a kill between the two cannot mislead.
    with atomic_write(folder / WEIGHTS, "wb") as file:
        file.write(content)
    weights = {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / CARD, {"format_version": FORMAT_VERSION, **card.to_dict(), "weights": weights})
    return folder


def load_model(folder: Path, device: str | torch.device = "cpu") -> Model:
    """Read a model folder and see that it is whole and unaltered.

    Args:
        folder: Holds `model.json` and `weights.safetensors`.
        device: Where the network goes.

    Returns:
        The network in evaluation mode, with its card.

    Raises:
        ModelError: A file is missing, the card is not one of this version, the weights' SHA-256 differs from
            the card's, or the weights do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    card, weights = read_card(folder)
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"the model's weights '{path}' cannot be read: {error.strerror}"
        raise ModelError(message) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != weights["sha256"]:
        message = (
            f"the weights '{path}' are not those that '{CARD}' describes: SHA-256 {digest} and {weights['sha256']}. "
            "The folder was altered or copied incompletely; fetch it again."
        )
        raise ModelError(message)
    network = _build_network(folder, card)
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError, KeyError) as error:
        message = f"the weights '{path}' do not fit the network that '{CARD}' describes: {str(error)[:300]}"
        raise ModelError(message) from error
    return Model(network.to(device).eval(), card, digest)


def read_card(folder: Path) -> tuple[ModelCard, Mapping[str, str]]:
    """Read `model.json` and return the card and its `weights` entry. Needs no torch.

    Raises:
        ModelError: It is missing, not JSON, of another format version, or lacks or exceeds the known keys.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        message = f"'{folder}' is not a model folder: it holds no {CARD}. Training writes one to <run>/model."
        raise ModelError(message)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format_version")
        if version != FORMAT_VERSION:
            message = f"'{path}' has format version {version}; this program reads version {FORMAT_VERSION}"
            raise ModelError(message)
        weights = values.pop("weights")
        if weights["file"] != WEIGHTS or not isinstance(weights["sha256"], str):
            message = f"'{path}' names the weights {weights!r}; '{WEIGHTS}' with its sha256 is expected"
            raise ModelError(message)
        return _card_from(values), weights
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"'{path}' is not a model card: {type(error).__name__}: {error}"
        raise ModelError(message) from error


def _card_from(values: dict[str, Any]) -> ModelCard:
    preprocessing = dict(values["preprocessing"])
    if preprocessing.get("spacing_mm") is not None:
        preprocessing["spacing_mm"] = tuple(preprocessing["spacing_mm"])
    points = tuple(OperatingPoint(**point) for point in values["operating_points"])
    return ModelCard(
        **{
            **values,
            "channels": tuple(values["channels"]),
            "labels": {int(value): str(name) for value, name in values["labels"].items()},
            "preprocessing": Preprocessing(**preprocessing),
            "operating_points": points,
        }
    )


def _build_network(folder: Path, card: ModelCard) -> torch.nn.Module:
    from medfocal import networks

    name = card.network.get("name")
    if name not in networks.__all__:
        message = f"'{Path(folder) / CARD}' asks for the network {name!r}; known are {', '.join(networks.__all__)}"
        raise ModelError(message)
    try:
        network: torch.nn.Module = getattr(networks, str(name))(**card.network["arguments"])
    except (TypeError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        message = f"'{Path(folder) / CARD}': the network {name} cannot be built from its arguments: {error}"
        raise ModelError(message) from error
    num_classes = len(card.labels)
    expected = {
        "in_channels": len(card.channels),
        "out_channels": num_classes if card.activation == "softmax" else num_classes - 1,
    }
    given = {key: card.network["arguments"][key] for key in expected}
    if given != expected:
        message = f"'{Path(folder) / CARD}': the network has {given}; channels, labels and activation mean {expected}"
        raise ModelError(message)
    return network
