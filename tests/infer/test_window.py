"""How a window is described, what it is computed in, and on which device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfocal.errors import ConfigError
from medfocal.infer.window import Window, choose_device, class_probabilities, reduced_type

CPU = torch.device("cpu")


def test_softmax_leaves_the_background_out_and_sigmoid_has_none():
    logits = torch.tensor([2.0, 0.0, -1.0]).reshape(1, 3, 1, 1, 1)
    weights = np.exp([2.0, 0.0, -1.0])
    np.testing.assert_allclose(class_probabilities(logits, "softmax").flatten(), weights[1:] / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        class_probabilities(logits, "sigmoid").flatten(), 1 / (1 + np.exp([-2.0, 0.0, 1.0])), rtol=1e-6
    )


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
    assert reduced_type("auto", CPU) in (torch.bfloat16, None)
    assert reduced_type("fp16", CPU) == torch.float16
    assert reduced_type("bf16", CPU) == torch.bfloat16
    assert reduced_type("float32", CPU) is None


@pytest.mark.parametrize(("is_native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_of_its_own_computes_in_float16(monkeypatch, is_native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_native or including_emulation)
    assert reduced_type("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "meta", ""])
def test_a_device_that_is_not_there_is_a_conf_error(name):
    with pytest.raises(ConfigError, match=rf"device: '{name}'"):
        choose_device(name)


def test_the_cpu_is_a_device_and_auto_is_one():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda"}
