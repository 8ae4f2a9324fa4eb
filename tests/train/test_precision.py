"""bfloat16 on a CPU: not where torch's gradients are wrong."""

import logging

import pytest
import torch

from medfocal.errors import ConfigError
from medfocal.infer.window import reduced_type
from medfocal.networks import UNet3d
from medfocal.train.loop import training_type

CPU = torch.device("cpu")
NETWORK = UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16))  # a quarter of the patch at the lowest level
native = pytest.mark.skipif(reduced_type("auto", CPU) is None, reason="this CPU has no bfloat16 of its own")


def gradient_is_right(shape, *, repeats=5):
    """Whether the weight gradient of a convolution over `shape` in bfloat16 is that of float32, within 5 %."""
    torch.manual_seed(0)
    convolution, values = torch.nn.Conv3d(16, 16, 3, padding=1), torch.randn(2, 16, *shape)

    def gradient(*, bfloat16):
        convolution.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            found = convolution(values)
        found.float().square().mean().backward()
        return convolution.weight.grad.clone()

    expected = gradient(bfloat16=False)
    found = [gradient(bfloat16=True) for _ in range(repeats)]
    return all(bool(((one - expected).abs() <= 0.05 * expected.abs().max()).all()) for one in found)


@native
@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 2, 2), (4, 4, 4), (6, 6, 4), (1, 2, 2)])
def test_where_bfloat16_is_used_its_gradients_are_right(shape):
    assert gradient_is_right(shape)


@native
@pytest.mark.parametrize("patch_size", [(8, 16, 16), (4, 16, 16)])
def test_float32_is_taken_where_a_level_has_two_voxels_along_the_first_axis(patch_size, caplog):
    with caplog.at_level(logging.INFO, logger="medfocal"):
        assert training_type(NETWORK, patch_size, "auto", CPU) is None
    assert "training in float32" in caplog.text
    with pytest.raises(ConfigError, match="wrong gradients on a CPU"):
        training_type(NETWORK, patch_size, "bf16", CPU)


@native
@pytest.mark.parametrize("patch_size", [(16, 8, 8), (12, 16, 16), (24, 24, 16)])
def test_else_bfloat16_is_used_where_the_cpu_has_it(patch_size):
    assert training_type(NETWORK, patch_size, "auto", CPU) is torch.bfloat16
    assert training_type(NETWORK, patch_size, "bf16", CPU) is torch.bfloat16


def test_float32_stays_float32():
    assert training_type(NETWORK, (16, 16, 16), "float32", CPU) is None
