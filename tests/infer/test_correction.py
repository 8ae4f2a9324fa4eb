"""Corrected probabilities, against the formulas worked out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfocal.infer.correction import corrected
from medfocal.losses import focal_posterior
from medfocal.model import NO_CORRECTION


def some(num_classes, activation, seed=0):
    """Probabilities of lesion classes `(K, 5, 4, 3)`."""
    logits = torch.randn(num_classes + 1, 5, 4, 3, generator=torch.Generator().manual_seed(seed)) * 2
    return logits.softmax(dim=0)[1:] if activation == "softmax" else torch.sigmoid(logits[1:])


def posterior_by_hand(p, gamma):
    """Of two classes: p / w over its sum with that of the other; w = (1 - p)^g - g (1 - p)^(g - 1) p log p."""

    def ratio(q):
        weight = (1 - q) ** gamma - gamma * (1 - q) ** (gamma - 1) * q * np.log(q)
        return q / weight

    return ratio(p) / (ratio(p) + ratio(1 - p))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_nothing_to_correct_gives_the_same_tensor(activation):
    given = some(3, activation)
    assert corrected(given, NO_CORRECTION, activation) is given
    assert corrected(given, {"gamma": [0.0] * 4, "alpha": None, "temperature": 1.0}, activation) is given


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_the_effect_of_focal_loss_on_one_class_is_undone(activation, gamma):
    given = some(1, activation)
    found = corrected(given, {"gamma": gamma, "alpha": None, "temperature": 1.0}, activation)
    np.testing.assert_allclose(found, posterior_by_hand(given.double().numpy(), gamma), atol=1e-5)
    assert corrected(torch.tensor([[0.6]]), {"gamma": 2, "alpha": None, "temperature": 1}, "softmax") == pytest.approx(
        0.7475, abs=1e-4
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("alpha", [None, "each"])
def test_several_classes_are_corrected_as_the_loss_saw_them(activation, alpha):
    given = some(3, activation)
    if activation == "softmax":
        weights = None if alpha is None else [0.1, 0.5, 0.8, 0.3]
        every = torch.cat([1 - given.sum(dim=0, keepdim=True), given])
        expected = focal_posterior(every[None], gamma=[2.0, 1.0, 0.5, 0.0], alpha=weights, activation="softmax")[0, 1:]
    else:
        weights = None if alpha is None else [0.5, 0.8, 0.3]
        expected = focal_posterior(given[None], gamma=[2.0, 1.0, 0.5, 0.0], alpha=weights, activation="sigmoid")[0]
    found = corrected(given, {"gamma": [2.0, 1.0, 0.5, 0.0], "alpha": weights, "temperature": 1.0}, activation)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found - given).abs().max() > 0.05


def test_alpha_alone_is_undone():
    """At gamma 0 the optimum of a loss with weights is odds times their ratio."""
    given = some(1, "sigmoid").double()
    found = corrected(given.float(), {"gamma": 0.0, "alpha": 0.75, "temperature": 1.0}, "sigmoid")
    odds = given / (1 - given) / 3
    np.testing.assert_allclose(found, odds / (1 + odds), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_logits_of_sigmoids(temperature):
    given = some(2, "sigmoid").double()
    found = corrected(given.float(), {"gamma": 0.0, "alpha": None, "temperature": temperature}, "sigmoid")
    logits = torch.log(given / (1 - given)) / temperature
    np.testing.assert_allclose(found, 1 / (1 + torch.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("num_classes", [1, 3, 24])
def test_temperature_divides_logits_of_a_softmax_with_the_background(temperature, num_classes):
    given = some(num_classes, "softmax").double()
    found = corrected(given.float(), {"gamma": 0.0, "alpha": None, "temperature": temperature}, "softmax")
    every = torch.cat([1 - given.sum(dim=0, keepdim=True), given]) ** (1 / temperature)
    np.testing.assert_allclose(found, (every / every.sum(dim=0))[1:], atol=1e-6)


def test_the_loss_is_undone_before_the_temperature():
    given = some(1, "softmax")
    both = corrected(given, {"gamma": 2.0, "alpha": None, "temperature": 2.0}, "softmax")
    first = corrected(given, {"gamma": 2.0, "alpha": None, "temperature": 1.0}, "softmax")
    second = corrected(first, {"gamma": 0.0, "alpha": None, "temperature": 2.0}, "softmax")
    np.testing.assert_allclose(both, second, atol=1e-4)  # two steps round off the background of what is nearly sure
    other = corrected(given, {"gamma": 0.0, "alpha": None, "temperature": 2.0}, "softmax")
    assert (both - corrected(other, {"gamma": 2.0, "alpha": None, "temperature": 1.0}, "softmax")).abs().max() > 1e-3


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_certainty_and_rounding_beyond_it_stay_probabilities(activation):
    given = torch.tensor([[0.0, 1.0, 1.0 + 1e-6, -1e-7], [0.0, 0.0, 0.0, 0.5]]).reshape(2, 4, 1, 1)
    found = corrected(given, {"gamma": 2.0, "alpha": None, "temperature": 1.7}, activation)
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert found[0, 0].item() < 0.01
    assert found[0, 1].item() > 0.99
