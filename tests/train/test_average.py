"""The running mean of the weights against a plain loop over numbers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from medfocal.train.average import RunningMean


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def step(net, rng):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.from_numpy(rng.normal(size=parameter.shape)))
        net[1].running_mean.add_(1.0)


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_it_is_the_weighted_mean_that_a_loop_over_numbers_gives(decay):
    net, rng = network(), np.random.default_rng(0)
    mean = RunningMean(net, decay)
    expected = net[0].weight.detach().double().numpy().copy()
    for number in range(1, 41):
        step(net, rng)
        mean.add(net)
        share = min(decay, (1 + number) / (10 + number))
        for i in range(2):
            for j in range(3):
                expected[i, j] = share * expected[i, j] + (1 - share) * net[0].weight[i, j].item()
    assert mean.num_steps == 40
    np.testing.assert_allclose(mean.network[0].weight.numpy(), expected, rtol=1e-5, atol=1e-6)  # float32 against 64


def test_buffers_are_those_of_the_network():
    net, rng = network(), np.random.default_rng(0)
    mean = RunningMean(net, 0.9)
    for _ in range(3):
        step(net, rng)
        mean.add(net)
    assert torch.equal(mean.network[1].running_mean, net[1].running_mean)
    assert net[1].running_mean[0] == 3


def test_the_network_itself_stays_as_it_is_and_the_mean_does_not_train():
    net = network()
    before = copy.deepcopy(net.state_dict())
    mean = RunningMean(net.train(), 0.9)
    mean.add(net)
    assert net.training
    assert not mean.network.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in mean.network.parameters())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())


def test_going_on_from_a_state_gives_the_mean_of_an_unbroken_course():
    net, rng = network(), np.random.default_rng(0)
    whole = RunningMean(net, 0.999)
    for number in range(20):
        if number == 7:
            state = copy.deepcopy(whole.state_dict())
            broken = RunningMean(network(5), 0.999)
            broken.load_state_dict(state)
        step(net, rng)
        whole.add(net)
        if number >= 7:
            broken.add(net)
    found, expected = broken.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert broken.num_steps == whole.num_steps == 20
