"""The model folder: what training hands over and prediction needs, and nothing else.

It has one member or several (folds, seeds), whose probabilities are averaged. `*.safetensors` hold tensors only and
`model.json` plain values only, so that reading a model from a stranger runs none of their code.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medfocal.components import CONNECTIVITIES, Confidence
from medfocal.data.transforms import MOST_VOXELS, Preprocessing
from medfocal.errors import ModelError
from medfocal.files import atomic_write, make_folder, plain, write_json

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 2
WEIGHTS = "weights.safetensors"  # of the only member; of several weights_1.safetensors, weights_2.safetensors, …
CARD = "model.json"
# What some entries of the card hold, to the letter: a stranger's `_target_` has no place there.
_KEYS = {
    "window": ("size", "overlap", "batch", "precision"),
    "candidates": (
        *("extent_ratio", "floor", "connectivity", "confidence"),
        *("cut", "separate", "min_volume_ml", "logistic"),
    ),
    "correction": ("gamma", "alpha", "temperature"),
}
#: What is said of candidates where nothing else is declared.
PLAIN_CANDIDATES: Mapping[str, Any] = {"cut": None, "separate": False, "min_volume_ml": 0.0, "logistic": None}
#: Of probabilities that are taken as the network gives them.
NO_CORRECTION: Mapping[str, Any] = {"gamma": 0.0, "alpha": None, "temperature": 1.0}
#: Coefficients of a confidence that is calibrated by logistic regression.
LOGISTIC = ("intercept", "log_volume", "mean", "max")
#: Beyond these no figure of a card makes sense, and some functions no number.
MOST_GAMMA, MOST_ML, MOST_MM, MOST_COUNT = 100.0, 1e6, 1e6, 1e9
#: Classes are stored in 8 bits.
MOST_LABELS = 256
INTENDED_USE = "Research use. Not a medical device; not for diagnosis or treatment decisions."


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What holds at a threshold for patients exchangeable with those that it was chosen on.

    Attributes:
        miss_rate: Share of a patient's lesions that is missed at most.
        min_diameter_mm: Of the lesions that it speaks of.
        num_patients: With such lesions, that it was chosen on.
        confidence: None: the mean over patients and calibration sets is at most `miss_rate` (conformal risk
            control, Angelopoulos et al. 2022, theorem 1). Else the probability that the calibration set gives a
            threshold at which the mean over patients is (Bates et al. 2021, theorem 2.1).
    """

    miss_rate: float
    min_diameter_mm: float
    num_patients: int
    confidence: float | None = None

    def __post_init__(self) -> None:
        if not (
            0 < self.miss_rate < 1
            and 0 <= self.min_diameter_mm <= MOST_MM
            and 1 <= self.num_patients <= MOST_COUNT
            and (self.confidence is None or 0 < self.confidence < 1)
        ):
            message = f"the guarantee makes no sense: {self}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A confidence from which candidates count, and how it came about.

    Attributes:
        name: Such as "1 false positive per case".
        threshold: Candidates with this confidence or more are kept.
        source: The cases it was chosen on, or "default" if on none.
        lesion_sensitivity: Measured on these cases at this threshold, None if on none.
        lesion_sensitivity_low: Lower end of its interval, None if unknown.
        lesion_sensitivity_high: Upper end.
        false_positives_per_case: Measured likewise.
        num_lesions: Lesions that the sensitivity rests on.
        num_patients: Patients that all of this rests on.
        guarantee: What it promises, None: nothing.
        mirrored: Whether probabilities were the mean over mirrored views when it was chosen.
    """

    name: str
    threshold: float
    source: str
    lesion_sensitivity: float | None = None
    lesion_sensitivity_low: float | None = None
    lesion_sensitivity_high: float | None = None
    false_positives_per_case: float | None = None
    num_lesions: int = 0
    num_patients: int = 0
    guarantee: Guarantee | None = None
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            message = f"the threshold of an operating point must be in [0, 1], got {self.threshold}"
            raise ValueError(message)
        sensitivities = (self.lesion_sensitivity, self.lesion_sensitivity_low, self.lesion_sensitivity_high)
        counts = (self.false_positives_per_case, self.num_lesions, self.num_patients)
        if not (
            _is_text(self.name)
            and _is_text(self.source)
            and all(_is_figure(value, most=1) for value in sensitivities)
            and all(_is_figure(value, most=MOST_COUNT) for value in counts)
            and isinstance(self.mirrored, bool)
        ):
            message = f"the operating point makes no sense: {self}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the networks of a model.

    Attributes:
        network: `{"name": class in medfocal.networks, "arguments": {...}}`.
        training: Provenance: versions, data, seed, epochs.
    """

    network: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.network) != {"name", "arguments"}:
            message = f"network must hold name, arguments and nothing else, got {dict(self.network)}"
            raise ValueError(message)
        if not isinstance(self.network["name"], str) or not isinstance(self.training, Mapping):
            message = (
                f"network and training are a word and named values, got {self.network['name']!r}, {self.training!r}"
            )
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What `model.json` says.

    Attributes:
        name: Of the experiment it came from.
        members: Its networks, at least one.
        channels: Names of the image channels, in order.
        labels: Label value to class name; 0 is the background.
        activation: "softmax" or "sigmoid": how logits become probabilities.
        overlapping: Whether the labels are regions that may lie within each other, each later one within those before.
        preprocessing: Orientation, spacing and intensity scheme.
        window: Arguments of `medfocal.infer.window.Window`: `{"size", "overlap", "batch", "precision"}`.
        candidates: How candidates are formed, as `medfocal.infer.candidates.form_candidates` says.
        correction: How probabilities are corrected: `{"gamma", "alpha"}` of `medfocal.losses.focal_posterior` and
            `"temperature"`, by which logits are divided.
        operating_points: At least one; the first is the default.
        familiar: Figures of the cases that the model was calibrated on, from `medfocal.infer.familiar`; None: none.
        intended_use: One sentence.
    """

    name: str
    members: tuple[Member, ...]
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    activation: str
    preprocessing: Preprocessing
    window: Mapping[str, Any]
    candidates: Mapping[str, Any]
    operating_points: tuple[OperatingPoint, ...]
    overlapping: bool = False
    correction: Mapping[str, Any] = field(default_factory=lambda: dict(NO_CORRECTION))
    familiar: Mapping[str, Any] | None = None
    intended_use: str = INTENDED_USE

    def __post_init__(self) -> None:
        for name, keys in _KEYS.items():
            if set(getattr(self, name)) != set(keys):
                message = f"{name} must hold {', '.join(keys)} and nothing else, got {dict(getattr(self, name))}"
                raise ValueError(message)
        window, rule, correction = self.window, self.candidates, self.correction
        sound = {
            "name": _is_text(self.name),
            "members": len(self.members) >= 1,
            "channels": len(self.channels) >= 1 and all(map(_is_text, self.channels)),
            "labels": 2 <= len(self.labels) <= MOST_LABELS
            and sorted(self.labels) == list(range(len(self.labels)))
            and all(map(_is_text, self.labels.values())),
            "activation": self.activation in ("softmax", "sigmoid"),
            "window": len(window["size"]) == 3
            and all(type(n) is int and n >= 1 for n in (*window["size"], window["batch"]))
            and math.prod((*window["size"], window["batch"])) <= MOST_VOXELS
            and 0 <= window["overlap"] < 1
            and window["precision"] in ("auto", "bf16", "fp16", "float32"),
            "candidates": 0 < rule["extent_ratio"] < 1
            and 0 < rule["floor"] <= 1
            and rule["connectivity"] in CONNECTIVITIES
            and rule["confidence"] in get_args(Confidence)
            and (rule["cut"] is None or 0 < rule["cut"] <= 1)
            and rule["separate"] in (False, True)
            and 0 <= rule["min_volume_ml"] <= MOST_ML
            and (rule["logistic"] is None or _are_numbers(rule["logistic"], LOGISTIC)),
            "correction": 1e-3 <= correction["temperature"] <= 1e3 and _gammas_are_sound(correction["gamma"]),
            "operating_points": len(self.operating_points) >= 1,
            "overlapping": self.overlapping in (False, self.activation == "sigmoid"),
            "familiar": self.familiar is None or isinstance(self.familiar, Mapping),
            "intended_use": _is_text(self.intended_use),
        }
        for name, good in sound.items():
            if not good:
                message = f"{name} makes no sense: {getattr(self, name)!r}"
                raise ValueError(message)

    @property
    def training(self) -> Mapping[str, Any]:
        """Provenance of the only member; empty where there are several."""
        return self.members[0].training if len(self.members) == 1 else {}

    @property
    def is_corrected(self) -> bool:
        """Whether probabilities are corrected after they were averaged."""
        gamma = self.correction["gamma"]
        plainly = {**self.correction, "gamma": float(any(gamma) if isinstance(gamma, list | tuple) else gamma)}
        return plainly != dict(NO_CORRECTION)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["preprocessing"] = self.preprocessing.to_dict()
        values["operating_points"] = [asdict(point) for point in self.operating_points]
        values["members"] = [asdict(member) for member in self.members]
        return dict(plain(values))


def _is_figure(value: Any, *, most: float) -> bool:
    """A number from 0; None or NaN where nothing is known."""
    is_unknown = value is None or (isinstance(value, float) and math.isnan(value))
    return is_unknown or (isinstance(value, int | float) and 0 <= value <= most)


def _is_text(value: Any) -> bool:
    """A line that a terminal can show."""
    return isinstance(value, str) and value.isprintable()


def _are_numbers(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    return set(values) == set(names) and all(math.isfinite(value) for value in values.values())


def _gammas_are_sound(gamma: Any) -> bool:
    values = gamma if isinstance(gamma, list | tuple) else [gamma]
    return all(0 <= value <= MOST_GAMMA for value in values)


@dataclass(frozen=True)
class Model:
    """Networks in memory, in evaluation mode, with their card and the digests of their weights.

    Attributes:
        networks: One a member, in its order.
        card: What they are.
        weights_sha256: Of each member's file.
    """

    networks: tuple[torch.nn.Module, ...]
    card: ModelCard
    weights_sha256: tuple[str, ...]


def save_model(folder: Path, networks: Sequence[torch.nn.Module], card: ModelCard) -> Path:
    """Write a model folder: the weights first, then the card that names their digests.

    Args:
        folder: Made if missing.
        networks: One a member of the card, in its order.
        card: What they are.

    Raises:
        ResourceError: The folder cannot be written.
    """
    from safetensors.torch import save

    folder = make_folder(Path(folder))
    values = card.to_dict()
    for number, (network, member) in enumerate(zip(networks, values["members"], strict=True), start=1):
        name = WEIGHTS if len(networks) == 1 else f"weights_{number}.safetensors"
        content = save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
        # An old card beside new weights is refused by its digest; so a kill between the two cannot mislead.
        with atomic_write(folder / name, "wb") as file:
            file.write(content)
        member["weights"] = {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
    write_json(folder / CARD, {"format_version": FORMAT_VERSION, **values})
    return folder


def load_model(folder: Path, device: str | torch.device = "cpu") -> Model:
    """Read a model folder and see that it is whole and unaltered.

    Args:
        folder: Holds `model.json` and the weights that it names.
        device: Where the networks go.

    Returns:
        The networks in evaluation mode, with their card.

    Raises:
        ModelError: A file is missing, the card is not one that this version reads, the weights' SHA-256 differs from
            the card's, or the weights do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    card, weights = read_card(folder)
    _check_correction(folder, card)
    networks = []
    for member, stated in zip(card.members, weights, strict=True):
        path = folder / stated["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            message = f"the model's weights '{path}' cannot be read: {error.strerror}"
            raise ModelError(message) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != stated["sha256"]:
            message = (
                f"the weights '{path}' are not those that '{CARD}' describes: SHA-256 {digest} and "
                f"{stated['sha256']}. The folder was altered or copied incompletely; fetch it again."
            )
            raise ModelError(message)
        network = _build_network(folder, card, member)
        try:
            network.load_state_dict(load(content), assign=True)
        except (SafetensorError, RuntimeError, KeyError) as error:
            message = f"the weights '{path}' do not fit the network that '{CARD}' describes: {str(error)[:300]}"
            raise ModelError(message) from error
        networks.append(network.float().to(device).eval())
    return Model(tuple(networks), card, tuple(stated["sha256"] for stated in weights))


def read_card(folder: Path) -> tuple[ModelCard, list[Mapping[str, str]]]:
    """Read `model.json`: the card, and file and SHA-256 of each member's weights. Needs no torch.

    A card of format version 1 is read as one of the present version that declares nothing new.

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
        if version == 1:
            values = _from_version_1(values)
        elif version != FORMAT_VERSION:
            message = f"'{path}' has format version {version}; this program reads versions 1 and {FORMAT_VERSION}"
            raise ModelError(message)
        weights = [member.pop("weights") for member in values["members"]]
        for stated in weights:
            if not re.fullmatch(r"weights(_\d{1,3})?\.safetensors", stated["file"], re.ASCII):
                message = f"'{path}' names the weights {stated['file']!r}; '{WEIGHTS}' is expected"
                raise ModelError(message)
            if set(stated) != {"file", "sha256"} or not isinstance(stated["sha256"], str):
                message = f"'{path}' says {stated!r} of weights; file and sha256 are expected"
                raise ModelError(message)
        return _card_from(values), weights
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, IndexError) as error:
        message = f"'{path}' is not a model card: {type(error).__name__}: {error}"
        raise ModelError(message) from error


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one member, and stated nothing of what came with version 2."""
    member = {key: values.pop(key) for key in ("network", "training", "weights")}
    return {**values, "members": [member], "candidates": {**values["candidates"], **PLAIN_CANDIDATES}}


def _card_from(values: dict[str, Any]) -> ModelCard:
    if not isinstance(values["channels"], list):
        message = f"channels must be a list, got {values['channels']!r}"
        raise TypeError(message)
    preprocessing = dict(values["preprocessing"])
    if preprocessing.get("spacing_mm") is not None:
        preprocessing["spacing_mm"] = tuple(preprocessing["spacing_mm"])
    points = []
    for point in values["operating_points"]:
        promised = point.get("guarantee")
        points.append(OperatingPoint(**{**point, "guarantee": None if promised is None else Guarantee(**promised)}))
    return ModelCard(
        **{
            **values,
            "members": tuple(Member(**member) for member in values["members"]),
            "channels": tuple(values["channels"]),
            "labels": {int(value): name for value, name in values["labels"].items()},
            "preprocessing": Preprocessing(**preprocessing),
            "operating_points": tuple(points),
        }
    )


def _check_correction(folder: Path, card: ModelCard) -> None:
    import torch

    from medfocal.losses import focal_posterior

    num_channels = len(card.labels) - (card.activation == "sigmoid")
    gamma, alpha = card.correction["gamma"], card.correction["alpha"]
    try:
        focal_posterior(torch.full((1, num_channels, 1), 0.5), gamma=gamma, alpha=alpha, activation=card.activation)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        message = f"'{Path(folder) / CARD}': probabilities cannot be corrected as it says: {error}"
        raise ModelError(message) from error


def _build_network(folder: Path, card: ModelCard, member: Member) -> torch.nn.Module:
    """The network without its weights, on the device "meta": arguments can ask for more memory than there is."""
    import torch

    from medfocal import networks

    name, where = member.network["name"], f"'{Path(folder) / CARD}'"
    if name not in networks.__all__:
        message = f"{where} asks for the network {name!r}; known are {', '.join(networks.__all__)}"
        raise ModelError(message)
    try:
        with torch.device("meta"):
            network: torch.nn.Module = getattr(networks, name)(**member.network["arguments"])
    except (TypeError, ValueError, KeyError, RuntimeError, MemoryError, OverflowError, RecursionError) as error:
        message = f"{where}: the network {name} cannot be built from its arguments: {error}"
        raise ModelError(message) from error
    num_classes = len(card.labels)
    expected = {
        "in_channels": len(card.channels),
        "out_channels": num_classes if card.activation == "softmax" else num_classes - 1,
    }
    given = {key: member.network["arguments"][key] for key in expected}
    if given != expected:
        message = f"{where}: the network has {given}; channels, labels and activation mean {expected}"
        raise ModelError(message)
    try:
        network.eval()(torch.empty(1, len(card.channels), *card.window["size"], device="meta"))
    except (ValueError, RuntimeError) as error:
        message = f"{where}: the network {name} cannot see windows of {list(card.window['size'])} voxels: {error}"
        raise ModelError(message) from error
    return network
