"""The model folder: whole, unaltered and free of anybody's code, or a ModelError."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from medfocal.data.transforms import Preprocessing
from medfocal.errors import ModelError, ResourceError
from medfocal.model import (
    CARD,
    FORMAT_VERSION,
    NO_CORRECTION,
    PLAIN_CANDIDATES,
    WEIGHTS,
    Guarantee,
    Member,
    ModelCard,
    OperatingPoint,
    load_model,
    read_card,
    save_model,
)
from medfocal.networks import UNet3d


def network(seed=0, **arguments):
    torch.manual_seed(seed)
    return UNet3d(**{"in_channels": 2, "out_channels": 3, "channels": (4, 6, 8), **arguments})


RULE = {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES}
LOGISTIC = {"intercept": -1.0, "log_volume": 0.5, "mean": 2.0, "max": 3.0}
PROMISE = {"miss_rate": 0.1, "min_diameter_mm": 3.0, "num_patients": 40, "confidence": None}


def member_of(net, **training):
    return Member(network={"name": "UNet3d", "arguments": net.arguments}, training=training)


def card_of(*nets, **changes):
    card = ModelCard(
        name="rare",
        members=tuple(member_of(net, seed=3) for net in nets),
        channels=("FLAIR", "T1"),
        labels={0: "background", 1: "lesion", 2: "cyst"},
        activation="softmax",
        preprocessing=Preprocessing(orientation="LPS", spacing_mm=(0.5, 1.0, 3.0)),
        window={"size": [16, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        candidates=RULE,
        operating_points=(OperatingPoint(name="one", threshold=0.25, source="validation", num_lesions=7),),
    )
    return replace(card, **changes)


@pytest.fixture
def folder(tmp_path):
    net = network()
    return save_model(tmp_path / "model", [net], card_of(net))


@pytest.fixture
def together(tmp_path):
    """A model of three members, of networks that are not alike."""
    nets = [network(1), network(2), network(3, channels=(4, 6, 10))]
    return save_model(tmp_path / "together", nets, card_of(*nets))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def edit(folder, change):
    """Apply a change to the parsed card; the file is valid JSON afterwards."""
    values = json.loads((folder / CARD).read_text())
    changed = change(values)
    (folder / CARD).write_text(json.dumps(values if changed is None else changed))


def put_weights(folder, content):
    """Other weights with the right digest: what somebody who means harm would do."""
    (folder / WEIGHTS).write_bytes(content)
    edit(folder, lambda values: values["members"][0]["weights"].update(sha256=hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_model_read_back_gives_the_same_logits_and_the_same_card(tmp_path, norm):
    net = network(norm=norm)
    net(torch.rand(2, 2, 16, 8, 8))  # moves the batch statistics
    card = card_of(net)
    model = load_model(save_model(tmp_path / "model", [net], card))
    (found,) = model.networks
    image = torch.rand(1, 2, 16, 8, 8)
    with torch.inference_mode():
        assert torch.equal(found(image), net.eval()(image))
    assert not found.training
    assert {value.device.type for value in found.state_dict().values()} == {"cpu"}
    assert model.card == card
    assert model.weights_sha256 == (hashlib.sha256((tmp_path / "model" / WEIGHTS).read_bytes()).hexdigest(),)


def test_the_folder_holds_two_files_and_saving_again_gives_the_same_bytes(folder, tmp_path):
    assert names(folder) == [CARD, WEIGHTS]
    net = network()
    again = save_model(tmp_path / "again", [net], card_of(net))
    for name in (CARD, WEIGHTS):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_sigmoid_model_has_a_channel_a_lesion_class(tmp_path):
    net = network(out_channels=2)
    saved = save_model(tmp_path / "m", [net], card_of(net, activation="sigmoid"))
    assert load_model(saved).card.activation == "sigmoid"
    net = network(out_channels=3)
    with pytest.raises(ModelError, match=r"'out_channels': 3\}; channels, labels and .* 'out_channels': 2\}"):
        load_model(save_model(tmp_path / "n", [net], card_of(net, activation="sigmoid")))


@pytest.mark.parametrize("place", [8, 40, -1, -1000])
def test_weights_altered_by_one_bit_are_refused(folder, place):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"are not those that 'model\.json' describes: SHA-256"):
        load_model(folder)


def test_new_weights_beside_an_old_card_are_refused(folder):
    """What a kill between the two writes of `save_model` leaves."""
    (folder / WEIGHTS).write_bytes(save(network(seed=1).state_dict()))
    with pytest.raises(ModelError, match="are not those"):
        load_model(folder)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=r"holds no model\.json" if name == CARD else "cannot be read: No such file"):
        load_model(folder)


def test_a_folder_in_the_place_of_the_weights_and_no_folder_at_all_are_refused(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        load_model(folder)
    with pytest.raises(ModelError, match="is not a model folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"7", b"\xff", b"[" * 100_000, b'{"format_version": 1}', b"\x80\x04N."]
)
def test_a_card_that_is_none_is_refused(folder, content):
    (folder / CARD).write_bytes(content)
    with pytest.raises(ModelError, match="is not a model card"):
        load_model(folder)


@pytest.mark.parametrize("version", [0, 3, "1", "2", None, [1], 1e400])
def test_another_format_version_is_refused(folder, version):
    edit(folder, lambda values: values.update(format_version=version))
    with pytest.raises(ModelError, match=r"format version .*this program reads versions 1 and 2"):
        load_model(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_target_", "os.system"),
        ("members.0._target_", "os.system"),
        ("members.0.network._target_", "os.system"),
        ("members.0.network.arguments._target_", "os.system"),
        ("members.0.weights._target_", "os.system"),
        ("preprocessing._target_", "os.system"),
        ("window._target_", "os.system"),
        ("candidates._target_", "os.system"),
        ("candidates.logistic", {**LOGISTIC, "_target_": "os.system"}),
        ("correction._target_", "os.system"),
        ("operating_points.0._target_", "os.system"),
        ("operating_points.0.guarantee", {**PROMISE, "_target_": "os.system"}),
        ("members.0.network.name", "os.system"),
        ("members.0.network.name", "__builtins__"),
        ("members.0.network.name", "unet3d"),
        ("members.0.network.name", ["UNet3d"]),
        ("members.0.network.name", None),
        ("members.0.network.arguments.in_channels", "2"),
        ("members.0.network.arguments.in_channels", 1),
        ("members.0.network.arguments.channels", 8),
        ("members.0.network.arguments.channels", [4, 6]),
        ("members.0.network.arguments", ["UNet3d"]),
        ("members.0.network", "UNet3d"),
        ("members.0.training", ["seed"]),
        ("members", []),
        ("members", {}),
        ("members", None),
        ("members", "UNet3d"),
        ("members.0", None),
        ("channels", []),
        ("channels", [1, 2]),
        ("channels", "FL"),
        ("labels", {"0": "background", "2": "lesion"}),
        ("labels", {"background": 0, "lesion": 1}),
        ("activation", "tanh"),
        ("preprocessing.orientation", "XYZ"),
        ("preprocessing.spacing_mm", [1, 0, 1]),
        ("preprocessing.intensity", "minmax"),
        ("window.size", [16, 8]),
        ("window.size", [16, 8, 0]),
        ("window.size", "big"),
        ("window.size", [18, 9, 9]),
        ("window.size", [4, 4, 4]),
        ("window.size", [2**40, 2**40, 2**40]),
        ("window.size", [16.0, 8, 8]),
        ("window.batch", 10**30),
        ("window.precision", "fp8"),
        ("window.overlap", 1.0),
        ("window.batch", 0),
        ("candidates.connectivity", 8),
        ("candidates.extent_ratio", 0),
        ("candidates.floor", None),
        ("candidates.confidence", "best"),
        ("candidates.cut", 0),
        ("candidates.cut", 1.5),
        ("candidates.cut", float("nan")),
        ("candidates.cut", "0.5"),
        ("candidates.separate", "yes"),
        ("candidates.separate", 2),
        ("candidates.min_volume_ml", -1),
        ("candidates.min_volume_ml", float("inf")),
        ("candidates.min_volume_ml", float("nan")),
        ("candidates.min_volume_ml", None),
        ("candidates.logistic", {}),
        ("candidates.logistic", {**LOGISTIC, "max": float("nan")}),
        ("candidates.logistic", {**LOGISTIC, "max": "3"}),
        ("candidates.logistic", {**LOGISTIC, "max": 10**400}),
        ("candidates.logistic", [1, 2, 3, 4]),
        ("correction.temperature", 0),
        ("correction.temperature", float("nan")),
        ("correction.temperature", float("inf")),
        ("correction.temperature", "1"),
        ("correction.gamma", -1),
        ("correction.gamma", float("nan")),
        ("correction.gamma", [2, 2]),
        ("correction.gamma", "2"),
        ("correction.alpha", 0.75),
        ("correction.alpha", "high"),
        ("correction.alpha", [0.1, 0.5]),
        ("correction.alpha", [0.1, 0.5, -1]),
        ("correction", None),
        ("overlapping", True),
        ("overlapping", "no"),
        ("familiar", ["spacing"]),
        ("intended_use", None),
        ("operating_points", []),
        ("operating_points.0.threshold", "0.5"),
        ("operating_points.0.threshold", 1.5),
        ("operating_points.0.threshold", float("nan")),
        ("operating_points.0.threshold", 10**400),
        ("operating_points.0.name", 7),
        ("operating_points.0.lesion_sensitivity", "high"),
        ("operating_points.0.false_positives_per_case", [1]),
        ("operating_points.0.guarantee", "sure"),
        ("operating_points.0.guarantee", {}),
        ("operating_points.0.guarantee", {key: PROMISE[key] for key in ("miss_rate", "num_patients")}),
        ("operating_points.0.guarantee", {**PROMISE, "surely": True}),
        ("operating_points.0.guarantee", {**PROMISE, "miss_rate": 1.5}),
        ("operating_points.0.guarantee", {**PROMISE, "miss_rate": float("nan")}),
        ("operating_points.0.guarantee", {**PROMISE, "min_diameter_mm": -1}),
        ("operating_points.0.guarantee", {**PROMISE, "min_diameter_mm": None}),
        ("operating_points.0.guarantee", {**PROMISE, "num_patients": 0}),
        ("operating_points.0.guarantee", {**PROMISE, "num_patients": "40"}),
        ("operating_points.0.guarantee", {**PROMISE, "confidence": 1.0}),
        ("members.0.weights.file", "../../other.safetensors"),
        ("members.0.weights.file", "../model/weights.safetensors"),
        ("members.0.weights.file", "/etc/passwd"),
        ("members.0.weights.file", "sub/weights.safetensors"),
        ("members.0.weights.file", "weights.safetensors\n"),
        ("members.0.weights.file", "weights.safetensors\0"),
        ("members.0.weights.file", "weights_\u0661.safetensors"),  # a digit, but no ASCII one
        ("members.0.weights.file", "model.pt"),
        ("members.0.weights.file", None),
        ("members.0.weights.sha256", None),
        ("members.0.weights", "weights.safetensors"),
        ("members.0.weights", {"file": WEIGHTS}),
        ("members.0.weights", {"file": WEIGHTS, "sha256": "0" * 64, "also": 1}),
        ("surprise", 1),
    ],
)
def test_a_card_altered_into_nonsense_is_refused(folder, path, value):
    *parents, last = path.split(".")

    def change(values):
        for key in parents:
            values = values[int(key) if key.isdigit() else key]
        values[int(last) if last.isdigit() else last] = value

    edit(folder, change)
    with pytest.raises(ModelError, match=r"model\.json'"):
        load_model(folder)


@pytest.mark.parametrize("name", ["unet3d", "__builtins__", "os.system"])
def test_only_a_public_network_is_built(folder, name):
    edit(folder, lambda values: values["members"][0]["network"].update(name=name))
    with pytest.raises(ModelError, match=rf"asks for the network {name!r}; known are ResidualUNet3d, UNet3d"):
        load_model(folder)


@pytest.mark.parametrize("key", ["members", "window", "candidates", "labels", "operating_points", "name"])
def test_a_card_that_lacks_a_key_is_refused(folder, key):
    edit(folder, lambda values: values.pop(key) and None)
    with pytest.raises(ModelError, match="is not a model card"):
        load_model(folder)


@pytest.mark.parametrize("key", ["network", "weights"])
def test_a_member_that_lacks_a_key_is_refused(folder, key):
    edit(folder, lambda values: values["members"][0].pop(key) and None)
    with pytest.raises(ModelError, match="is not a model card"):
        load_model(folder)


def test_a_network_larger_than_any_memory_is_refused_without_being_built(folder):
    """Its weights would take 4 PB; those that are there are a few kB."""
    edit(folder, lambda values: values["members"][0]["network"]["arguments"].update(channels=[2**22, 2**22, 2**22]))
    with pytest.raises(ModelError, match="do not fit the network"):
        load_model(folder)


# Several members


def test_several_members_are_read_back_in_their_order(together):
    assert names(together) == [CARD, "weights_1.safetensors", "weights_2.safetensors", "weights_3.safetensors"]
    model = load_model(together)
    image = torch.rand(1, 2, 16, 8, 8)
    nets = [network(1), network(2), network(3, channels=(4, 6, 10))]
    with torch.inference_mode():
        for found, net in zip(model.networks, nets, strict=True):
            assert torch.equal(found(image), net.eval()(image))
    digests = [hashlib.sha256((together / f"weights_{n}.safetensors").read_bytes()).hexdigest() for n in (1, 2, 3)]
    assert list(model.weights_sha256) == digests
    assert model.card == card_of(*nets)
    assert model.card.training == {}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_member_has_its_own_digest(together, number):
    path = together / f"weights_{number}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=rf"weights_{number}\.safetensors' are not those that 'model\.json' describes"):
        load_model(together)


def test_a_missing_member_is_refused_by_name(together):
    (together / "weights_2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights_2\.safetensors' cannot be read: No such file"):
        load_model(together)


def test_members_that_changed_places_are_refused(together):
    one, other = (together / f"weights_{number}.safetensors" for number in (1, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(ModelError, match="are not those"):
        load_model(together)


def test_as_many_networks_as_members_are_needed(tmp_path):
    net = network()
    with pytest.raises(ValueError, match="zip"):
        save_model(tmp_path / "model", [net, net], card_of(net))
    assert not (tmp_path / "model" / CARD).exists()


# What else a card says


def test_what_was_calibrated_is_read_back(tmp_path):
    net = network()
    card = card_of(
        net,
        candidates={**RULE, "cut": 0.4, "separate": True, "min_volume_ml": 0.01, "logistic": LOGISTIC},
        correction={"gamma": [0.0, 2.0, 2.0], "alpha": [0.2, 0.5, 0.3], "temperature": 1.25},
        familiar={"spacing_mm": [0.5, 1.0, 3.0]},
        operating_points=(
            OperatingPoint(
                name="90 % of the lesions", threshold=0.125, source="40 patients", lesion_sensitivity=0.93,
                lesion_sensitivity_low=0.85, lesion_sensitivity_high=0.97, false_positives_per_case=2.5, num_lesions=80,
                num_patients=40, guarantee=Guarantee(**PROMISE),
            ),
        ),
    )  # fmt: skip
    found = load_model(save_model(tmp_path / "model", [net], card)).card
    assert found == card
    assert found.operating_points[0].guarantee == Guarantee(**PROMISE)


# Version 1


def version_1(folder):
    """A folder as the first version wrote it, by hand."""
    folder.mkdir()
    net = network(4)
    content = save(net.state_dict())
    (folder / WEIGHTS).write_bytes(content)
    values = {
        "format_version": 1,
        "name": "rare",
        "network": {
            "name": "UNet3d",
            "arguments": {
                "in_channels": 2, "out_channels": 3, "channels": [4, 6, 8], "kernel_sizes": [[3, 3, 3]] * 3,
                "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "dropout": 0.0, "norm": "instance",
                "deep_supervision": 0, "upsample_bias": False,
            },
        },
        "channels": ["FLAIR", "T1"],
        "labels": {"0": "background", "1": "lesion", "2": "cyst"},
        "activation": "softmax",
        "preprocessing": {"orientation": "LPS", "spacing_mm": [0.5, 1.0, 3.0], "intensity": "zscore_nonzero"},
        "window": {"size": [16, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        "candidates": {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max"},
        "operating_points": [
            {
                "name": "one", "threshold": 0.25, "source": "validation", "lesion_sensitivity": 0.5,
                "false_positives_per_case": 1.0, "num_lesions": 7,
            }
        ],
        "training": {"seed": 3, "epochs": 5},
        "overlapping": False,
        "intended_use": "Research use. Not a medical device; not for diagnosis or treatment decisions.",
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()},
    }  # fmt: skip
    (folder / CARD).write_text(json.dumps(values))
    return net, values


def test_a_folder_of_version_1_is_read_as_one_that_declares_nothing_new(tmp_path):
    net, values = version_1(tmp_path / "old")
    model = load_model(tmp_path / "old")
    image = torch.rand(1, 2, 16, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model.networks[0](image), net.eval()(image))
    card = model.card
    assert card.candidates == RULE
    assert card.correction == NO_CORRECTION
    assert card.familiar is None
    assert card.training == {"seed": 3, "epochs": 5}
    assert card.members[0].network == values["network"]
    (point,) = card.operating_points
    assert (point.threshold, point.lesion_sensitivity, point.num_lesions) == (0.25, 0.5, 7)
    assert (point.lesion_sensitivity_low, point.guarantee, point.num_patients) == (None, None, 0)
    assert model.weights_sha256 == (values["weights"]["sha256"],)


def test_a_folder_of_version_1_is_written_anew_as_one_of_this_version(tmp_path):
    version_1(tmp_path / "old")
    model = load_model(tmp_path / "old")
    again = load_model(save_model(tmp_path / "new", model.networks, model.card))
    assert again.card == model.card
    assert again.weights_sha256 == model.weights_sha256
    assert json.loads((tmp_path / "new" / CARD).read_text())["format_version"] == FORMAT_VERSION == 2


@pytest.mark.parametrize("key", ["network", "training", "weights", "candidates"])
def test_a_folder_of_version_1_that_lacks_a_key_is_refused(tmp_path, key):
    version_1(tmp_path / "old")
    edit(tmp_path / "old", lambda values: values.pop(key) and None)
    with pytest.raises(ModelError, match="is not a model card"):
        load_model(tmp_path / "old")


@pytest.mark.parametrize(("key", "value"), [("_target_", "os.system"), ("cut", 0.5)])
def test_a_folder_of_version_1_with_more_than_that_is_refused(tmp_path, key, value):
    version_1(tmp_path / "old")
    edit(tmp_path / "old", lambda values: values.update({key: value}))
    with pytest.raises(ModelError, match="is not a model card"):
        load_model(tmp_path / "old")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_in_place_of_the_weights_is_refused_without_running_it(folder, tmp_path):
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    for content in (pickle.dumps(Bomb(tmp_path / "ran")), (tmp_path / "bomb.pt").read_bytes()):
        put_weights(folder, content)
        with pytest.raises(ModelError, match="do not fit the network"):
            load_model(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}"])
def test_damaged_weights_with_the_right_digest_are_refused(folder, content):
    put_weights(folder, content)
    with pytest.raises(ModelError, match="do not fit the network"):
        load_model(folder)


def test_weights_of_another_network_are_refused(folder):
    whole = load((folder / WEIGHTS).read_bytes())
    fewer = dict(list(whole.items())[1:])
    for state in (network(channels=(4, 6, 10)).state_dict(), fewer, {**whole, "extra": torch.ones(1)}):
        put_weights(folder, save({name: value.contiguous() for name, value in state.items()}))
        with pytest.raises(ModelError, match="do not fit the network"):
            load_model(folder)


def test_the_card_is_read_without_the_weights(folder):
    (folder / WEIGHTS).unlink()
    card, weights = read_card(folder)
    assert card.name == "rare"
    assert [stated["file"] for stated in weights] == [WEIGHTS]


def test_a_file_in_the_way_is_a_resource_error(tmp_path):
    (tmp_path / "model").write_text("mine")
    net = network()
    with pytest.raises(ResourceError, match="cannot make the folder"):
        save_model(tmp_path / "model", [net], card_of(net))


def test_a_card_that_could_not_be_read_back_cannot_be_made():
    with pytest.raises(ValueError, match="operating_points makes no sense"):
        card_of(network(), operating_points=())
    with pytest.raises(ValueError, match="members makes no sense"):
        card_of()
    with pytest.raises(ValueError, match="the guarantee makes no sense"):
        Guarantee(**{**PROMISE, "miss_rate": 0.0})
    with pytest.raises(ValueError, match=r"threshold of an operating point must be in \[0, 1\], got nan"):
        OperatingPoint(name="a", threshold=float("nan"), source="default")
