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
from medfocal.model import CARD, WEIGHTS, ModelCard, OperatingPoint, load_model, read_card, save_model
from medfocal.networks import UNet3d


def network(seed=0, **arguments):
    torch.manual_seed(seed)
    return UNet3d(**{"in_channels": 2, "out_channels": 3, "channels": (4, 6, 8), **arguments})


def card_of(net, **changes):
    card = ModelCard(
        name="rare",
        network={"name": "UNet3d", "arguments": net.arguments},
        channels=("FLAIR", "T1"),
        labels={0: "background", 1: "lesion", 2: "cyst"},
        activation="softmax",
        preprocessing=Preprocessing(orientation="LPS", spacing_mm=(0.5, 1.0, 3.0)),
        window={"size": [16, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        candidates={"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max"},
        operating_points=(OperatingPoint(name="one", threshold=0.25, source="validation", num_lesions=7),),
        training={"seed": 3},
    )
    return replace(card, **changes)


@pytest.fixture
def folder(tmp_path):
    net = network()
    return save_model(tmp_path / "model", net, card_of(net))


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
    edit(folder, lambda values: values["weights"].update(sha256=hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_model_read_back_gives_the_same_logits_and_the_same_card(tmp_path, norm):
    net = network(norm=norm)
    net(torch.rand(2, 2, 16, 8, 8))  # moves the batch statistics
    card = card_of(net)
    model = load_model(save_model(tmp_path / "model", net, card))
    image = torch.rand(1, 2, 16, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model.network(image), net.eval()(image))
    assert not model.network.training
    assert model.card == card
    assert model.weights_sha256 == hashlib.sha256((tmp_path / "model" / WEIGHTS).read_bytes()).hexdigest()


def test_the_folder_holds_two_files_and_saving_again_gives_the_same_bytes(folder, tmp_path):
    assert names(folder) == [CARD, WEIGHTS]
    net = network()
    again = save_model(tmp_path / "again", net, card_of(net))
    for name in (CARD, WEIGHTS):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_sigmoid_model_has_a_channel_a_lesion_class(tmp_path):
    net = network(out_channels=2)
    assert load_model(save_model(tmp_path / "m", net, card_of(net, activation="sigmoid"))).card.activation == "sigmoid"
    net = network(out_channels=3)
    with pytest.raises(ModelError, match=r"'out_channels': 3\}; channels, labels and .* 'out_channels': 2\}"):
        load_model(save_model(tmp_path / "n", net, card_of(net, activation="sigmoid")))


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


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_format_version_is_refused(folder, version):
    edit(folder, lambda values: values.update(format_version=version))
    with pytest.raises(ModelError, match=r"format version .*this program reads version 1"):
        load_model(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_target_", "os.system"),
        ("network._target_", "os.system"),
        ("network.arguments._target_", "os.system"),
        ("preprocessing._target_", "os.system"),
        ("window._target_", "os.system"),
        ("candidates._target_", "os.system"),
        ("operating_points.0._target_", "os.system"),
        ("network.name", "os.system"),
        ("network.name", "__builtins__"),
        ("network.name", "unet3d"),
        ("network.name", ["UNet3d"]),
        ("network.arguments.in_channels", "2"),
        ("network.arguments.in_channels", 1),
        ("network.arguments.channels", 8),
        ("network.arguments.channels", [4, 6]),
        ("network.arguments", ["UNet3d"]),
        ("network", "UNet3d"),
        ("channels", []),
        ("labels", {"0": "background", "2": "lesion"}),
        ("labels", {"background": 0, "lesion": 1}),
        ("activation", "tanh"),
        ("preprocessing.orientation", "XYZ"),
        ("preprocessing.spacing_mm", [1, 0, 1]),
        ("preprocessing.intensity", "minmax"),
        ("window.size", [16, 8]),
        ("window.size", [16, 8, 0]),
        ("window.size", "big"),
        ("window.overlap", 1.0),
        ("window.batch", 0),
        ("candidates.connectivity", 8),
        ("candidates.extent_ratio", 0),
        ("candidates.floor", None),
        ("candidates.confidence", "best"),
        ("operating_points", []),
        ("operating_points.0.threshold", "0.5"),
        ("operating_points.0.threshold", 1.5),
        ("operating_points.0.threshold", float("nan")),
        ("weights.file", "../../other.safetensors"),
        ("weights.sha256", None),
        ("surprise", 1),
    ],
)
def test_a_card_altered_into_nonsense_is_refused(folder, path, value):
    *parents, last = path.split(".")

    def change(values):
        for key in parents:
            values = values[int(key) if key.isdigit() else key]
        values[last] = value

    edit(folder, change)
    with pytest.raises(ModelError, match=r"model\.json'"):
        load_model(folder)


@pytest.mark.parametrize("name", ["unet3d", "__builtins__", "os.system", None])
def test_only_a_public_network_is_built(folder, name):
    edit(folder, lambda values: values["network"].update(name=name))
    with pytest.raises(ModelError, match=rf"asks for the network {name!r}; known are ResidualUNet3d, UNet3d"):
        load_model(folder)


@pytest.mark.parametrize("key", ["network", "window", "candidates", "labels", "operating_points", "weights", "name"])
def test_a_card_that_lacks_a_key_is_refused(folder, key):
    edit(folder, lambda values: values.pop(key) and None)
    with pytest.raises(ModelError, match="is not a model card"):
        load_model(folder)


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
    assert weights["file"] == WEIGHTS


def test_a_file_in_the_way_is_a_resource_error(tmp_path):
    (tmp_path / "model").write_text("mine")
    net = network()
    with pytest.raises(ResourceError, match="cannot make the folder"):
        save_model(tmp_path / "model", net, card_of(net))


def test_a_card_that_could_not_be_read_back_cannot_be_made():
    with pytest.raises(ValueError, match="operating_points makes no sense"):
        card_of(network(), operating_points=())
    with pytest.raises(ValueError, match=r"threshold of an operating point must be in \[0, 1\], got nan"):
        OperatingPoint(name="a", threshold=float("nan"), source="default")
