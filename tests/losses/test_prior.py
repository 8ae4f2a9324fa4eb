"""The stationary point of focal loss, the bias that starts there, and the map back to class probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfocal.losses import focal_loss, focal_posterior, init_prior_bias_, stationary_probability

# (gamma, alpha) and the root at four foreground fractions, to four decimals.
ROOTS = {
    (0.0, 0.5): (0.1000, 0.0100, 0.0020, 0.0001),
    (1.0, 0.5): (0.2256, 0.0730, 0.0325, 0.0072),
    (2.0, 0.25): (0.2266, 0.1084, 0.0636, 0.0231),
    (2.0, 0.5): (0.3058, 0.1536, 0.0915, 0.0335),
    (2.0, 0.75): (0.3988, 0.2138, 0.1305, 0.0486),
}
FRACTIONS = (0.1, 0.01, 0.002, 1e-4)


@pytest.mark.parametrize(
    ("gamma", "alpha", "fraction", "root"),
    [(*key, fraction, root) for key, roots in ROOTS.items() for fraction, root in zip(FRACTIONS, roots, strict=True)],
)
def test_stationary_probability_matches_the_table(gamma, alpha, fraction, root):
    assert stationary_probability(fraction, gamma=gamma, alpha=alpha) == pytest.approx(root, abs=5.1e-5)


@pytest.mark.parametrize("fraction", [1e-9, 1e-5, 0.3, 0.999])
def test_stationary_probability_of_cross_entropy_is_the_fraction(fraction):
    assert stationary_probability(fraction) == pytest.approx(fraction, rel=1e-9)


def test_no_alpha_weighs_both_classes_alike():
    with_half = stationary_probability(0.01, gamma=2.0, alpha=0.5)
    assert stationary_probability(0.01, gamma=2.0) == pytest.approx(with_half)


def bias_gradient(head, probabilities, **options):
    """Gradient of the mean loss on the head's bias, over voxels without any feature."""
    features = torch.zeros(1, head.in_channels, 3, 2, 1, dtype=torch.float64)
    logits = head(features)
    target = torch.tensor(probabilities, dtype=torch.float64).reshape(1, -1, 1, 1, 1).expand_as(logits)
    (gradient,) = torch.autograd.grad(focal_loss(logits, target, **options), head.bias)
    return gradient


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize(
    ("fractions", "alpha"),
    [([0.002], None), ([0.002], 0.25), ([1e-4], 0.75), ([0.03, 0.001], [0.2, 1.0, 3.0]), ([0.3, 0.1, 0.2], None)],
)
def test_softmax_bias_gradient_vanishes_at_the_given_fractions(gamma, fractions, alpha):
    head = nn.Conv3d(4, len(fractions) + 1, 1).double()
    assert bias_gradient(head, [1 - sum(fractions), *fractions], gamma=gamma, alpha=alpha).abs().max() > 1e-3
    init_prior_bias_(head, fractions, gamma=gamma, alpha=alpha)
    gradient = bias_gradient(head, [1 - sum(fractions), *fractions], gamma=gamma, alpha=alpha)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("alpha", [None, [0.75, 0.3]])
def test_sigmoid_bias_gradient_vanishes_channel_by_channel(gamma, alpha):
    head = nn.Conv3d(4, 2, 1).double()
    init_prior_bias_(head, [0.7, 0.4], gamma=gamma, alpha=alpha, activation="sigmoid")
    gradient = bias_gradient(head, [0.7, 0.4], gamma=gamma, alpha=alpha, activation="sigmoid")
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_bias_gradient_vanishes_for_labels_at_the_given_fraction():
    """1 lesion voxel among 500, as integer labels through the mean loss."""
    head = init_prior_bias_(nn.Conv3d(2, 2, 1).double(), 1 / 500, gamma=2.0, alpha=0.75)
    logits = head(torch.zeros(1, 2, 10, 10, 5, dtype=torch.float64))
    labels = torch.zeros(1, 10, 10, 5, dtype=torch.uint8)
    labels[0, 3, 7, 2] = 1
    (gradient,) = torch.autograd.grad(focal_loss(logits, labels, gamma=2.0, alpha=0.75), head.bias)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_one_fraction_is_split_evenly_among_the_foreground_classes():
    head = init_prior_bias_(nn.Conv3d(1, 3, 1), 0.02)
    torch.testing.assert_close(head.bias.softmax(dim=0), torch.tensor([0.98, 0.01, 0.01]))


def test_initialisation_leaves_the_weights_alone():
    head = nn.Conv3d(4, 2, 1)
    before = head.weight.detach().clone()
    assert init_prior_bias_(head, 0.01) is head
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize(
    ("probability", "posterior"), [(0.6, 0.7475), (0.7, 0.906), (0.8, 0.976), (0.9, 0.9974), (0.95, 0.9997)]
)
def test_posterior_of_two_classes_matches_the_table(probability, posterior):
    pair = torch.tensor([[1 - probability, probability]])
    assert focal_posterior(pair, gamma=2.0)[0, 1].item() == pytest.approx(posterior, abs=5e-4)
    alone = torch.tensor([[probability]])
    assert focal_posterior(alone, gamma=2.0, activation="sigmoid").item() == pytest.approx(posterior, abs=5e-4)


@pytest.mark.parametrize("alpha", [None, 0.25, 0.75])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_posterior_undoes_the_stationary_point(alpha, activation):
    p = stationary_probability(0.02, gamma=2.0, alpha=alpha)
    values = [[1 - p, p]] if activation == "softmax" else [[p]]
    posterior = focal_posterior(
        torch.tensor(values, dtype=torch.float64), gamma=2.0, alpha=alpha, activation=activation
    )
    assert posterior[0, -1].item() == pytest.approx(0.02, rel=1e-9)


def test_posterior_of_three_classes_undoes_the_prior_bias():
    fractions = torch.tensor([0.9, 0.08, 0.02], dtype=torch.float64)
    alpha = [0.5, 1.0, 2.0]
    head = init_prior_bias_(nn.Conv3d(1, 3, 1).double(), fractions[1:].tolist(), gamma=1.5, alpha=alpha)
    probability = head.bias.detach().softmax(dim=0).reshape(1, 3, 1)
    posterior = focal_posterior(probability, gamma=1.5, alpha=alpha)
    torch.testing.assert_close(posterior.flatten(), fractions)


def test_posterior_of_certain_voxels_stays_certain():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(focal_posterior(certain, gamma=2.0), certain)
    ends = torch.tensor([[0.0], [1.0]])
    assert torch.equal(focal_posterior(ends, gamma=2.0, activation="sigmoid"), ends)


def test_posterior_at_gamma_0_is_the_probability():
    p = torch.rand(2, 3, 5, dtype=torch.float64).softmax(dim=1)
    torch.testing.assert_close(focal_posterior(p, gamma=0.0), p)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"foreground_fraction must be in \(0, 1\)"):
        stationary_probability(fraction)


@pytest.mark.parametrize(
    ("head", "fraction", "message"),
    [
        (nn.Conv3d(4, 2, 1, bias=False), 0.1, "head must have a bias"),
        (nn.Conv3d(4, 1, 1), 0.1, "softmax needs at least 2 channels, the head has 1"),
        (nn.Conv3d(4, 3, 1), [0.1], "one per foreground class, 2, got"),
        (nn.Conv3d(4, 3, 1), [0.6, 0.5], "also summed over exclusive classes, got"),
    ],
)
def test_head_and_fractions_that_do_not_fit_are_refused(head, fraction, message):
    with pytest.raises(ValueError, match=message):
        init_prior_bias_(head, fraction)
