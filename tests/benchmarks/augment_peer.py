"""Augmentation by batchgeneratorsv2, MONAI or medfocal on request, so that programs in several environments take turns.

python tests/benchmarks/augment_peer.py batchgeneratorsv2|monai|medfocal FOLDER

FOLDER holds image.npy, float32 (N, C, I, J, K), and label.npy, uint8 (N, 1, I, J, K). Each line on stdin asks for
{"kind": ..., "num_patches": ...}; each answer is a line of JSON: milliseconds of processor time a patch, by one thread.
Copying the input is not timed.
`augment.py` starts it; batchgeneratorsv2's Python need not have medfocal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

SIZE = (64, 64, 64)

#: nnU-Net's probabilities; `kind` names one of them alone, which then always happens, to every channel; or "all".
PROBABILITIES = {
    "rotation": 0.2,
    "scaling": 0.2,
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
    "mirror": 0.5,
}

Once = Callable[[torch.Tensor, torch.Tensor, int], Any]


def probabilities(kind: str) -> dict[str, float]:
    """Of each kind."""
    return PROBABILITIES if kind == "all" else {name: float(name == kind) for name in PROBABILITIES}


def by_batchgeneratorsv2(kind: str) -> Once:
    """The transforms of nnU-Net's trainer, with its arguments and in its order."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    p = probabilities(kind)
    channels = 0.5 if kind == "all" else 1.0
    angle = 30 / 360 * 2 * np.pi
    spatial = SpatialTransform(
        SIZE,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=p["rotation"],
        rotation=(-angle, angle),
        p_scaling=p["scaling"],
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
    )
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    blur = GaussianBlurTransform(
        (0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=channels, benchmark=True
    )
    factor = BGContrast((0.75, 1.25))
    brightness = MultiplicativeBrightnessTransform(factor, synchronize_channels=False, p_per_channel=1)
    contrast = ContrastTransform(factor, preserve_range=True, synchronize_channels=False, p_per_channel=1)
    coarse = SimulateLowResolutionTransform(
        (0.5, 1), synchronize_channels=False, synchronize_axes=True, ignore_axes=None, p_per_channel=channels
    )
    power = {"gamma": BGContrast((0.7, 1.5)), "synchronize_channels": False, "p_per_channel": 1, "p_retain_stats": 1}
    steps = [
        spatial,
        RandomTransform(noise, p["noise"]),
        RandomTransform(blur, p["blur"]),
        RandomTransform(brightness, p["brightness"]),
        RandomTransform(contrast, p["contrast"]),
        RandomTransform(coarse, p["low_resolution"]),
        RandomTransform(GammaTransform(p_invert_image=1, **power), p["gamma_inverted"]),
        RandomTransform(GammaTransform(p_invert_image=0, **power), p["gamma"]),
        *([MirrorTransform((0, 1, 2))] if p["mirror"] else []),
    ]
    chain = ComposeTransforms(steps)
    return lambda image, label, _: chain(image=image, segmentation=label.to(torch.int16))


def by_monai(kind: str) -> Once:
    """MONAI's dictionary transforms as `augment=monai` chains them, without setting a seed for each patch."""
    from medfocal.data.augment.monai import MonaiAugmentation

    p = probabilities(kind)
    settings = {f"{name}_probability": value for name, value in p.items() if name not in {"rotation", "scaling"}}
    chain = MonaiAugmentation(
        **settings,
        affine_probability=1 - (1 - p["rotation"]) * (1 - p["scaling"]),
        rotation_degrees=(30.0, 30.0, 30.0) if p["rotation"] else (0.0, 0.0, 0.0),
        scaling=(0.7, 1.4) if p["scaling"] else (1.0, 1.0),
    ).chain(SIZE)
    return lambda image, label, _: chain({"image": image, "label": label})


def by_medfocal(kind: str) -> Once:
    """Ours, seeds included; the sizes of things are the inverse of how the others say it."""
    from medfocal.data.augment import BatchAugmentation

    channels = 0.5 if kind == "all" else 1.0
    augment = BatchAugmentation(
        **{f"{name}_probability": value for name, value in probabilities(kind).items()},
        scaling=(1 / 1.4, 1 / 0.7),
        blur_channel_probability=channels,
        low_resolution_channel_probability=channels,
    )
    where = {"spacing_mm": [(1.0, 1.0, 1.0)], "patch_size": SIZE}
    return lambda image, label, seed: augment({"image": image[None], "label": label[None]}, seeds=[seed], **where)


def main(name: str, folder: str) -> None:
    """Answer until the end of stdin; before the first answer of a kind some patches are not timed."""
    torch.set_num_threads(1)
    makers = {"batchgeneratorsv2": by_batchgeneratorsv2, "monai": by_monai, "medfocal": by_medfocal}
    image, label = (torch.from_numpy(np.load(Path(folder) / f"{key}.npy")) for key in ("image", "label"))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed does not mix with the answers
    made: dict[str, Once] = {}
    seed = 0

    def milliseconds(once: Once, num_patches: int) -> float:
        nonlocal seed
        total = 0.0
        for _ in range(num_patches):
            seed += 1
            own = image[seed % len(image)].clone(), label[seed % len(image)].clone()
            start = time.process_time()
            once(*own, seed)
            total += time.process_time() - start
        return 1e3 * total / num_patches

    for line in sys.stdin:
        task = json.loads(line)
        if task["kind"] not in made:
            made[task["kind"]] = makers[name](task["kind"])
            milliseconds(made[task["kind"]], 20)
        answers.write(json.dumps(milliseconds(made[task["kind"]], task["num_patches"])) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
