"""Cases for the benchmark of training, in the raw layout of nnU-Net v2, which medfocal reads too.

    python tests/benchmarks/train_cases.py FOLDER NUM_CASES I,J,K

`train.py` starts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAME = "Dataset001_Phantoms"
CONFIGURATION = "3d_fullres"
#: Depth of the network: convolutions of a level on the way down and on the way up.
CONVOLUTIONS = 2


def write_cases(folder: Path, num_cases: int, shape: tuple[int, int, int]) -> None:
    """Phantoms of 1 mm voxels as `FOLDER/raw/Dataset001_Phantoms`; all are for training."""
    from medfocal.data.phantom import write_phantoms

    phantoms = folder / "phantoms"
    write_phantoms(phantoms, num_cases=num_cases, seed=1, shape=shape, spacing_mm=(1.0, 1.0, 1.0))
    raw = folder / "raw" / NAME
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for path in sorted((phantoms / "images").iterdir()):
        case = path.name.removesuffix(".nii.gz")
        path.rename(raw / "imagesTr" / f"{case}_0000.nii.gz")
        (phantoms / "labels" / path.name).rename(raw / "labelsTr" / path.name)
    content = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))


def pairs(raw: Path) -> list[dict[str, str]]:
    """Image and label of each case."""
    labels = sorted((raw / "labelsTr").iterdir())
    names = [label.name.removesuffix(".nii.gz") for label in labels]
    images = [raw / "imagesTr" / f"{name}_0000.nii.gz" for name in names]
    return [{"image": str(image), "label": str(label)} for image, label in zip(images, labels, strict=True)]


def same_plan(preprocessed: Path, patch: int, channels: list[int]) -> None:
    """Set patch, batch and network of nnU-Net's plan; the data it has prepared do not depend on them.

    Convolutions have no bias, as instance normalisation behind them takes it out again.
    """
    path = preprocessed / NAME / "nnUNetPlans.json"
    plans: dict[str, Any] = json.loads(path.read_text())
    found = plans["configurations"][CONFIGURATION]
    found |= {"patch_size": [patch] * 3, "batch_size": 2}
    found["architecture"]["arch_kwargs"] |= {
        "n_stages": len(channels),
        "features_per_stage": channels,
        "kernel_sizes": [[3] * 3] * len(channels),
        "strides": [[1] * 3, *[[2] * 3] * (len(channels) - 1)],
        "n_conv_per_stage": [CONVOLUTIONS] * len(channels),
        "n_conv_per_stage_decoder": [CONVOLUTIONS] * (len(channels) - 1),
        "conv_bias": False,
    }
    path.write_text(json.dumps(plans))


if __name__ == "__main__":
    write_cases(Path(sys.argv[1]), int(sys.argv[2]), tuple(int(size) for size in sys.argv[3].split(",")))
