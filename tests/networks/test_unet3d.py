"""The network: its grid, its head, and rebuilding it from its own arguments."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from medfocal.losses import init_prior_bias_
from medfocal.networks import UNet3d

ANISOTROPIC = {"channels": (4, 6, 8), "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]]}


def test_logits_have_the_grid_of_the_image():
    net = UNet3d(in_channels=2, out_channels=3, **ANISOTROPIC)
    assert net(torch.rand(2, 2, 12, 8, 6)).shape == (2, 3, 12, 8, 6)


def test_divisor_is_the_product_of_strides_per_axis():
    assert UNet3d(in_channels=1, out_channels=2, **ANISOTROPIC).divisor == (4, 4, 2)
    assert UNet3d(in_channels=1, out_channels=2).divisor == (8, 8, 8)


def test_window_that_is_no_multiple_of_the_divisor_is_refused():
    net = UNet3d(in_channels=1, out_channels=2, **ANISOTROPIC)
    with pytest.raises(ValueError, match=r"multiple of the divisor \(4, 4, 2\), got \(12, 10, 8\)"):
        net(torch.rand(1, 1, 12, 10, 8))


def test_window_of_one_voxel_at_the_bottom_is_refused_with_instance_norm():
    net = UNet3d(in_channels=1, out_channels=2, **ANISOTROPIC)
    with pytest.raises(ValueError, match=r"\(4, 4, 2\) equals the divisor"):
        net(torch.rand(1, 1, 4, 4, 2))


def test_head_is_the_layer_that_makes_the_logits():
    net = UNet3d(in_channels=1, out_channels=2, dropout=0.5, **ANISOTROPIC)
    nn.init.zeros_(net.head.weight)
    init_prior_bias_(net.head, 0.02)
    probability = net(torch.rand(1, 1, 8, 12, 4)).softmax(dim=1)
    torch.testing.assert_close(probability[:, 1], torch.full((1, 8, 12, 4), 0.02))


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 1, "out_channels": 2},
        {
            "in_channels": 3,
            "out_channels": 1,
            "kernel_sizes": [[3, 3, 1], 3, [3, 3, 3]],
            "dropout": 0.1,
            "norm": "batch",
            **ANISOTROPIC,
        },
    ],
)
def test_network_is_rebuilt_from_its_arguments_through_json(arguments):
    net = UNet3d(**arguments).eval()
    rebuilt = UNet3d(**json.loads(json.dumps(net.arguments))).eval()
    rebuilt.load_state_dict(net.state_dict())
    image = torch.rand(1, arguments["in_channels"], 16, 8, 8)
    assert torch.equal(rebuilt(image), net(image))
    assert rebuilt.arguments == net.arguments


def test_every_parameter_has_one_name_in_the_state_dict():
    """safetensors refuses tensors that share memory under two names."""
    state = UNet3d(in_channels=1, out_channels=2, **ANISOTROPIC).state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_every_parameter_has_a_gradient():
    net = UNet3d(in_channels=1, out_channels=2, **ANISOTROPIC)
    net(torch.rand(1, 1, 12, 8, 6)).square().sum().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert without == []


def test_norm_decides_the_normalising_layers():
    for norm, layer in (("instance", nn.InstanceNorm3d), ("batch", nn.BatchNorm3d)):
        modules = list(UNet3d(in_channels=1, out_channels=2, norm=norm, **ANISOTROPIC).modules())
        norms = [module for module in modules if isinstance(module, nn.InstanceNorm3d | nn.BatchNorm3d)]
        assert len(norms) == 10  # two per level on the way down, two per level on the way up
        assert all(isinstance(module, layer) and module.affine for module in norms)


def test_dropout_acts_in_training_only_and_not_on_the_logits():
    net = UNet3d(in_channels=1, out_channels=2, dropout=0.5, **ANISOTROPIC)
    image = torch.rand(1, 1, 12, 8, 6)
    assert not torch.equal(net(image), net(image))
    assert (net(image) != 0).all()
    net.eval()
    assert torch.equal(net(image), net(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (8, 16)}, r"at least 3 levels, got \[8, 16\]"),
        ({"channels": (8, 0, 16)}, r"at least 1, got 1, 2, \[8, 0, 16\]"),
        ({"strides": [1, 2]}, r"strides must have one entry per level of channels, 4, got 2"),
        ({"strides": [2, 2, 2, 2]}, r"first stride must be 1.*got \[2, 2, 2\]"),
        ({"strides": [1, 2, 2, [2, 2]]}, r"strides must be integers >= 1, one or three per level"),
        ({"kernel_sizes": [3, 3, 2, 3]}, r"kernel_sizes must be odd"),
        ({"kernel_sizes": [3, 3, [3, 3, 1], 3]}, r"level 2: kernel \[3, 3, 1\] is smaller than stride \[2, 2, 2\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"norm": "group"}, r"norm must be 'instance' or 'batch', got 'group'"),
        ({"deep_supervision": 3}, r"deep_supervision must be in 0..2, .* of 4, got 3"),
        ({"deep_supervision": -1}, r"deep_supervision must be in 0..2, .* of 4, got -1"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet3d(in_channels=1, out_channels=2, **arguments)


def test_same_seed_gives_the_weights_and_logits_of_dynunet():
    from monai.networks.nets.dynunet import DynUNet

    torch.manual_seed(3)
    net = UNet3d(in_channels=2, out_channels=3, **ANISOTROPIC).eval()
    torch.manual_seed(3)
    strides = ANISOTROPIC["strides"]
    norm = ("INSTANCE", {"affine": True})
    other = DynUNet(3, 2, 3, [3, 3, 3], strides, strides[1:], filters=ANISOTROPIC["channels"], norm_name=norm).eval()
    image = torch.rand(1, 2, 12, 8, 6)
    assert torch.equal(net(image), other(image))


def test_import_of_networks_and_losses_does_not_import_monai():
    code = "import sys, medfocal.networks, medfocal.losses; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
