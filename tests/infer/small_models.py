"""Small real networks and models, and images for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medfocal.data.transforms import Preprocessing
from medfocal.infer.window import Window
from medfocal.model import PLAIN_CANDIDATES, Member, ModelCard, OperatingPoint
from medfocal.networks import UNet3d

CPU = torch.device("cpu")
RULE = {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES}
POINT = OperatingPoint(name="1 false positive per case", threshold=0.25, source="validation")


def unet(seed=0, *, in_channels=1, out_channels=2, channels=(4, 4, 4)):
    """A network with a say of its own: what it gives varies over the whole of [0, 1]."""
    torch.manual_seed(seed)
    net = UNet3d(in_channels=in_channels, out_channels=out_channels, channels=channels)
    with torch.no_grad():
        net.head.weight.mul_(4)
    return net.eval()


def pointwise(in_channels=2, out_channels=3, seed=0):
    """A network whose logits at a voxel depend on that voxel alone, so that windows cannot change them."""
    torch.manual_seed(seed)
    return nn.Conv3d(in_channels, out_channels, 1).eval()


def image(*shape, channels=2, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (channels, *shape)).astype(np.float32))


def window(size=(8, 8, 8), *, overlap=0.5, batch=4, precision="float32"):
    return Window(size=size, overlap=overlap, batch=batch, precision=precision)


def card(net, **changes):
    values = {
        "name": "trial",
        "members": (Member(network={"name": "UNet3d", "arguments": net.arguments}),),
        "channels": ("MR",),
        "labels": {0: "background", 1: "lesion"},
        "activation": "softmax",
        "preprocessing": Preprocessing(orientation="RAS", spacing_mm=None, intensity="zscore_nonzero"),
        "window": {"size": [8, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        "candidates": RULE,
        "operating_points": (POINT,),
    }
    return ModelCard(**{**values, **changes})
