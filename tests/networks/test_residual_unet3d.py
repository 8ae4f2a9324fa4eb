"""The residual encoder: its blocks, its shortcuts, and the contract that it shares with UNet3d."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medfocal.networks import ResidualUNet3d

ANISOTROPIC = {"channels": (4, 6, 6), "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]]}


def network(**arguments):
    return ResidualUNet3d(**{"in_channels": 2, "out_channels": 3, **ANISOTROPIC, **arguments})


def test_logits_have_the_grid_of_the_image():
    assert network()(torch.rand(2, 2, 12, 8, 6)).shape == (2, 3, 12, 8, 6)
    assert network().divisor == (4, 4, 2)


def test_window_that_is_no_multiple_of_the_divisor_is_refused():
    with pytest.raises(ValueError, match=r"multiple of the divisor \(4, 4, 2\), got \(12, 10, 8\)"):
        network()(torch.rand(1, 2, 12, 10, 8))


@pytest.mark.parametrize(
    ("channels", "blocks", "counts"),
    [((4, 4, 4, 4, 4), None, [1, 3, 4, 6, 6]), ((4, 6, 8), (2, 1, 3), [2, 1, 3])],
)
def test_each_level_has_as_many_blocks_as_are_asked_for(channels, blocks, counts):
    net = ResidualUNet3d(in_channels=1, out_channels=2, channels=channels, blocks=blocks)
    assert net.arguments["blocks"] == counts
    names = [name for name in net.state_dict() if name.endswith("conv1.conv.weight")]
    per_level = [sum(name.count("next_layer.") == level for name in names) for level in range(len(channels))]
    assert per_level == counts


@pytest.mark.parametrize("blocks", [(1, 2), (1, 2, 0), (1, 2, 3, 4)])
def test_blocks_that_do_not_fit_the_levels_are_refused(blocks):
    with pytest.raises(ValueError, match=r"one entry per level of channels, 3, each at least 1, got"):
        network(blocks=blocks)


def test_arguments_are_checked_as_those_of_the_other_networks():
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        network(dropout=1.0)


def test_network_is_rebuilt_from_its_arguments_through_json():
    net = network(
        kernel_sizes=[[3, 3, 1], 3, 3], blocks=(1, 2, 1), dropout=0.1, norm="batch", upsample_bias=True
    ).eval()
    rebuilt = ResidualUNet3d(**json.loads(json.dumps(net.arguments))).eval()
    rebuilt.load_state_dict(net.state_dict())
    image = torch.rand(1, 2, 16, 8, 8)
    assert torch.equal(rebuilt(image), net(image))
    assert rebuilt.arguments == net.arguments


def test_every_parameter_has_a_gradient():
    net = network()
    net(torch.rand(1, 2, 12, 8, 6)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_a_residual_block_starts_as_its_shortcut():
    block = network().body.get_submodule("downsample.blocks.0")
    features = torch.randn(1, 4, 6, 4, 4)
    torch.testing.assert_close(block(features), F.leaky_relu(features, 0.01))


def test_a_shortcut_averages_where_the_block_strides():
    """The third level strides and keeps 6 features; a new block is what its shortcut gives."""
    block = network().body.get_submodule("next_layer.next_layer.blocks.0")
    features = torch.randn(1, 6, 4, 8, 6)
    mean = features.reshape(1, 6, 2, 2, 4, 2, 3, 2).mean(dim=(3, 5, 7))
    torch.testing.assert_close(block(features), F.leaky_relu(mean, 0.01))


def test_a_shortcut_has_a_convolution_where_the_number_of_features_changes():
    block = network().body.get_submodule("next_layer.downsample.blocks.0")
    features = torch.randn(1, 4, 4, 8, 6)
    mean = features.reshape(1, 4, 2, 2, 4, 2, 6).mean(dim=(3, 5))
    weight = block.state_dict()["conv3.project.conv.weight"]
    assert weight.shape == (6, 4, 1, 1, 1)
    expected = F.leaky_relu(F.instance_norm(F.conv3d(mean, weight)), 0.01)
    torch.testing.assert_close(block(features), expected)


def test_the_way_up_has_one_convolution_a_level_of_the_size_of_its_own_level():
    net = network(kernel_sizes=[[3, 3, 1], 3, 3])
    convolutions = [m for m in net.body.get_submodule("upsample.conv_block").modules() if isinstance(m, nn.Conv3d)]
    assert [convolution.kernel_size for convolution in convolutions] == [(3, 3, 1)]


def test_dropout_acts_in_training_only_and_not_on_the_logits():
    net = network(dropout=0.5)
    image = torch.rand(1, 2, 12, 8, 6)
    assert not torch.equal(net(image), net(image))
    assert (net(image) != 0).all()
    net.eval()
    assert torch.equal(net(image), net(image))


@pytest.mark.parametrize("upsample_bias", [False, True])
def test_transposed_convolutions_have_a_bias_if_asked_for(upsample_bias):
    net = network(upsample_bias=upsample_bias)
    layers = [module for module in net.modules() if isinstance(module, nn.ConvTranspose3d)]
    assert [layer.bias is not None for layer in layers] == [upsample_bias] * 2
