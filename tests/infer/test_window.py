"""Windows: what they average is what the network says of the whole case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medfocal.errors import ConfigError, ModelError
from medfocal.infer.window import (
    Window,
    choose_device,
    class_probabilities,
    lesion_probability,
    predict_windows,
    uses_bfloat16,
)

CPU = torch.device("cpu")


def pointwise(in_channels=2, out_channels=3, seed=0):
    """A network whose logits at a voxel depend on that voxel alone, so that windows cannot change them."""
    torch.manual_seed(seed)
    return nn.Conv3d(in_channels, out_channels, 1).eval()


def image(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (2, *shape)).astype(np.float32))


def windows(network, case, *, size=(8, 6, 4), overlap=0.5, batch=4, activation="softmax"):
    window = Window(size=size, overlap=overlap, batch=batch, precision="float32")
    return predict_windows(network, case, window=window, activation=activation, device=CPU)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", [(12, 10, 8), (8, 6, 4), (13, 7, 5), (5, 17, 3), (2, 2, 2)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_pointwise_network_gives_the_same_as_on_the_whole_case(shape, overlap, activation):
    network, case = pointwise(), image(*shape)
    with torch.inference_mode():
        expected = class_probabilities(network(case[None]), activation)[0].numpy()
    found = windows(network, case, overlap=overlap, activation=activation)
    assert found.dtype == np.float32
    assert found.shape == (2 if activation == "softmax" else 3, *shape)
    np.testing.assert_allclose(found, expected, atol=5e-6)  # weights of 1e-3 and up, summed in float32


def test_the_number_of_windows_at_once_changes_nothing():
    torch.manual_seed(0)
    network = nn.Conv3d(2, 2, 3, padding=1).eval()  # a window's border shows in what it says
    found = [windows(network, image(13, 10, 9), batch=batch) for batch in (1, 3, 64)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_the_middle_of_a_window_counts_more_than_its_border():
    """The last window of a row is moved back to fit; each says where it stands, and the nearer one wins."""

    class Position(nn.Module):
        def forward(self, x):
            ramp = torch.linspace(-4, 4, x.shape[2]).reshape(1, 1, -1, 1, 1).expand(x.shape[0], 1, *x.shape[2:])
            return torch.cat([-ramp, ramp], dim=1)

    case = torch.rand(2, 12, 4, 4)
    found = windows(Position(), case, size=(8, 4, 4))[0][:, 1, 2]  # windows at 0 and 4
    alone = windows(Position(), case[:, :8], size=(8, 4, 4))[0][:, 1, 2]
    np.testing.assert_allclose(found[:4], alone[:4], atol=1e-6)
    np.testing.assert_allclose(found[8:], alone[4:], atol=1e-6)
    assert abs(found[4] - alone[4]) < abs(found[4] - alone[0])
    assert abs(found[7] - alone[3]) < abs(found[7] - alone[7])


def test_the_network_sees_windows_of_the_stated_size_and_number_alone():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return torch.zeros(x.shape[0], 2, *x.shape[2:])

    windows(Watch(), image(13, 4, 9), size=(8, 6, 4), batch=3)
    assert {shape[1:] for shape in seen} == {(2, 8, 6, 4)}
    assert max(shape[0] for shape in seen) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_nan_is_a_model_error(value):
    network = pointwise()
    nn.init.constant_(network.bias, value)
    with pytest.raises(ModelError, match="the network gives NaN"):
        windows(network, image(8, 6, 4))


def test_bfloat16_is_used_where_asked_and_stays_close():
    network, case = pointwise(), image(12, 10, 8)
    exact, rough = (
        predict_windows(
            network, case, window=Window(size=(8, 6, 4), precision=precision), activation="softmax", device=CPU
        )
        for precision in ("float32", "bf16")
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.03  # 8 bits of mantissa on logits up to 5


def test_softmax_leaves_the_background_out_and_sigmoid_has_none():
    logits = torch.tensor([2.0, 0.0, -1.0]).reshape(1, 3, 1, 1, 1)
    weights = np.exp([2.0, 0.0, -1.0])
    np.testing.assert_allclose(class_probabilities(logits, "softmax").flatten(), weights[1:] / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        class_probabilities(logits, "sigmoid").flatten(), 1 / (1 + np.exp([-2.0, 0.0, 1.0])), rtol=1e-6
    )


def test_lesion_classes_add_under_softmax_and_the_highest_counts_under_sigmoid():
    each = np.array([0.3, 0.6], np.float32).reshape(2, 1, 1, 1)
    assert lesion_probability(each, "softmax").item() == pytest.approx(0.9)
    assert lesion_probability(each, "sigmoid").item() == pytest.approx(0.6)
    assert lesion_probability(each + np.float32(0.4), "softmax").item() == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (8, 8)}, "size must be three positive numbers"),
        ({"size": (8, 0, 8)}, "size must be three positive numbers"),
        ({"size": (8, 8, 8), "overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"size": (8, 8, 8), "overlap": -0.1}, r"overlap must be in \[0, 1\), got -0.1"),
        ({"size": (8, 8, 8), "batch": 0}, "batch must be at least 1, got 0"),
        ({"size": (8, 8, 8), "precision": "fp8"}, "precision must be one of auto, bf16, fp16, float32, got 'fp8'"),
    ],
)
def test_a_window_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Window(**arguments)


def test_precision_words():
    assert uses_bfloat16("bf16", CPU)
    assert not uses_bfloat16("float32", CPU)
    assert uses_bfloat16("auto", CPU) in (True, False)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "meta", ""])
def test_a_device_that_is_not_there_is_a_conf_error(name):
    with pytest.raises(ConfigError, match=rf"device: '{name}'"):
        choose_device(name)


def test_the_cpu_is_a_device_and_auto_is_one():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda"}
