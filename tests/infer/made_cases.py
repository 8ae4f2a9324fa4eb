"""Cases whose voxels are log-odds, and a network that takes them for what they are: every probability is known."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from small_models import RULE
from torch import nn

from medfocal.data.formats import read_dataset
from medfocal.data.transforms import Preprocessing
from medfocal.model import Member, Model, ModelCard, OperatingPoint
from medfocal.volume import Volume, write_volume

SHAPE, SPACING_MM = (24, 20, 16), (0.5, 1.0, 3.0)
AFFINE = np.diag([*SPACING_MM, 1.0])
#: Places for blobs that don't touch each other.
PLACES = [(i, j, k) for i in (2, 8, 14, 20) for j in (2, 7, 12) for k in (2, 7, 12)]


@dataclass
class Blob:
    """A box of voxels of one probability, or of none (None) where it is a lesion that the network does not see."""

    probability: float | None
    is_lesion: bool = True
    size: tuple[int, int, int] = (2, 2, 2)


def as_is(num_classes=1):
    """Softmax over background 0 and the image's channels as log-odds against it."""
    network = nn.Conv3d(num_classes, num_classes + 1, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.zero_()
        for number in range(num_classes):
            network.weight[number + 1, number] = 1.0
    return network.eval()


def card(**changes):
    values = {
        "name": "known",
        "members": (Member(network={"name": "UNet3d", "arguments": {}}),),
        "channels": ("MR",),
        "labels": {0: "background", 1: "lesion"},
        "activation": "softmax",
        "preprocessing": Preprocessing(orientation="RAS", spacing_mm=None, intensity="none"),
        "window": {"size": [16, 16, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        "candidates": RULE,
        "operating_points": (OperatingPoint(name="default", threshold=0.5, source="default"),),
    }
    return ModelCard(**{**values, **changes})


def known_model(**changes):
    return Model((as_is(),), card(**changes), weights_sha256=("0" * 64,))


def voxels_of(blobs, seed=0):
    """The image and the label of a case."""
    random = np.random.default_rng(seed)
    image = random.uniform(-9.5, -9.0, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.uint8)
    for place, blob in zip(PLACES, blobs, strict=False):
        box = tuple(slice(start, start + side) for start, side in zip(place, blob.size, strict=True))
        if blob.probability is not None:
            image[box] = np.log(blob.probability / (1 - blob.probability))
        label[box] = blob.is_lesion
    return image, label


def write_cases(folder, cases, *, split="validation", name="made", channels=("MR",)):
    """Write a dataset of one split, a training case beside it; cases are pairs of patient and blobs."""
    content = {"name": name, "channel_names": dict(enumerate(channels)), "labels": {"0": "background", "1": "lesion"}}
    entries = []
    for number, (patient, blobs) in enumerate([("trained", [Blob(0.9)]), *cases]):
        image, label = voxels_of(blobs, seed=number)
        write_volume(folder / f"c{number}.nii.gz", Volume(image, AFFINE))
        write_volume(folder / f"l{number}.nii.gz", Volume(label, AFFINE))
        entries.append({"image": f"c{number}.nii.gz", "label": f"l{number}.nii.gz", "patient": patient})
    content["training"] = entries[:1]
    content[split] = entries[1:]
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return read_dataset(folder / "dataset.json")
