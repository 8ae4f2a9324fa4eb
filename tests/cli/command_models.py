"""A small real model in a folder, for commands to read."""

import torch

from medfocal.data.transforms import Preprocessing
from medfocal.model import PLAIN_CANDIDATES, Member, ModelCard, OperatingPoint, save_model
from medfocal.networks import UNet3d


def make_model(folder, *, seed, channels, window, threshold=0.5, precision="float32"):
    """Random weights of a seed; one channel "MR", one class "lesion"."""
    torch.manual_seed(seed)
    network = UNet3d(in_channels=1, out_channels=2, channels=channels)
    card = ModelCard(
        name="trial",
        members=(Member(network={"name": "UNet3d", "arguments": network.arguments}),),
        channels=("MR",),
        labels={0: "background", 1: "lesion"},
        activation="softmax",
        preprocessing=Preprocessing(),
        window={"size": window, "overlap": 0.5, "batch": 2, "precision": precision},
        candidates={"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES},
        operating_points=(OperatingPoint(name="own", threshold=threshold, source="validation"),),
    )
    return save_model(folder, [network.eval()], card)
