"""A model as a MONAI bundle: a folder that `python -m monai.bundle run` predicts with, without this program's command.

Whatever MONAI reads from a configuration that begins with `$` it evaluates, and a card may come from a stranger. So
only numbers and words that are known here enter `inference.json`, text of the card is held against MONAI's marks, and
the rest of the card lies in a file that MONAI does not read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from medfocal import __version__
from medfocal.data.transforms import AXIS_LETTERS, Intensity, Preprocessing
from medfocal.errors import ModelError
from medfocal.infer.sliding import SIGMA
from medfocal.infer.window import class_probabilities
from medfocal.model import CARD, INTENDED_USE, Model, ModelCard

if TYPE_CHECKING:
    import torch
    from torch import nn

INFERENCE, METADATA, WEIGHTS = "configs/inference.json", "configs/metadata.json", "models/model.pt"
#: What MONAI takes for an expression, a reference or a macro where text begins with it.
MARKS = ("$", "@", "%")
#: What is less than this share of the highest value is rounding, which in float32 comes to some 1e-7 of it.
CRUMB = 1e-5
DYNUNET = "monai.networks.nets.DynUNet"
ACTIVATIONS = {"softmax": "torch.nn.Softmax(dim=1)", "sigmoid": "torch.nn.Sigmoid()"}
LICENSE = """configs/ and docs/ were written by medfocal, which is licensed under the Apache License, Version 2.0.
The weights in models/ belong to those who trained them. medfocal grants no licence to them: whoever passes this bundle
on states theirs here, and sees that the licence of the training data allows it.
"""


def bundle_files(model: Model, *, card: str) -> dict[str, bytes]:
    """Make the files of a bundle.

    A `UNet3d` becomes MONAI's `DynUNet`, whose levels it has, so that MONAI alone runs it; the heads of coarser
    levels, which only training uses, are left out. Another network, and a correction of probabilities, are taken from
    medfocal, which must then be installed.

    Args:
        model: With one member.
        card: As JSON.

    Returns:
        Content by path within the folder.

    Raises:
        ModelError: It has several members, a network of no public name, or text that MONAI would evaluate.
    """
    import torch

    if len(model.networks) > 1:
        message = (
            f"the model has {len(model.networks)} members and a MONAI bundle has one network. "
            "format=onnx and format=torch_export average all of them in one file."
        )
        raise ModelError(message)
    definition, weights = _network_of(model.networks[0])
    needs_medfocal = definition["_target_"] != DYNUNET or model.card.is_corrected
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    inference = _inference(model.card, definition)
    metadata = _metadata(model.card, definition, needs_medfocal=needs_medfocal)
    return {
        INFERENCE: _as_json(inference),
        METADATA: _as_json(metadata),
        WEIGHTS: buffer.getvalue(),
        f"docs/{CARD}": f"{card}\n".encode(),
        "docs/README.md": _readme(model.card, needs_medfocal=needs_medfocal).encode(),
        "LICENSE": LICENSE.encode(),
    }


def run_bundle(files: Mapping[str, bytes], windows: torch.Tensor) -> torch.Tensor:
    """Run network, weights and inferer of a bundle of one's own making, as its files state them.

    Args:
        files: Of `bundle_files`.
        windows: `(B, C, I, J, K)`.

    Returns:
        Probabilities of the lesion classes, `(B, K, I, J, K)`, without the card's correction.
    """
    import torch
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import DynUNet

    from medfocal import networks

    stated = json.loads(files[INFERENCE])
    arguments = {key: value for key, value in stated["network_def"].items() if key != "_target_"}
    target = stated["network_def"]["_target_"]
    build = DynUNet if target == DYNUNET else getattr(networks, target.rpartition(".")[2])
    network: nn.Module = build(**arguments).eval()
    network.load_state_dict(torch.load(io.BytesIO(files[WEIGHTS]), weights_only=True))
    activation = next(name for name, layer in ACTIVATIONS.items() if layer in stated["probabilities"])
    settings = {key: value for key, value in stated["inferer"].items() if key != "_target_"}
    inferer = SlidingWindowInferer(**{**settings, "roi_size": stated["window"]})
    with torch.inference_mode():
        return torch.as_tensor(inferer(windows, lambda cut: class_probabilities(network(cut), activation)))


def _network_of(network: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """How a configuration builds the network, and the weights under the names that it then has."""
    from monai.networks.nets import DynUNet

    from medfocal import networks
    from medfocal.networks.layout import Layout

    name = type(network).__name__
    if name not in networks.__all__:
        message = f"a bundle names its network, and {name} is none of {', '.join(networks.__all__)}"
        raise ModelError(message)
    arguments: Any = network.arguments
    if not isinstance(network, networks.UNet3d):
        return {"_target_": f"medfocal.networks.{name}", **arguments}, network.state_dict()
    layout = Layout(**arguments)
    of_monai: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "kernel_size": layout.kernel_sizes,
        "strides": layout.strides,
        "upsample_kernel_size": layout.strides[1:],
        "filters": layout.channels,
        "dropout": layout.dropout or None,
        "norm_name": list(layout.monai_norm),
        "trans_bias": layout.upsample_bias,
    }
    made = DynUNet(**of_monai)
    made.skip_layers.load_state_dict(network.body.state_dict())
    made.output_block.conv.conv.load_state_dict(network.head.state_dict())
    return {"_target_": DYNUNET, **of_monai}, made.state_dict()


def _inference(card: ModelCard, definition: Mapping[str, Any]) -> dict[str, Any]:
    """`configs/inference.json`. Nothing of the card's own text is in it."""
    window = card.window
    gauss = f"torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / ({SIGMA} * n)) ** 2)"
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "datalist": _datalist(len(card.channels)),
        "network_def": dict(definition),
        "network": "$@network_def.to(@device)",
        "probabilities": f"$torch.nn.Sequential(@network, {ACTIVATIONS[card.activation]})",
        "preprocessing": {"_target_": "Compose", "transforms": _before(card.preprocessing)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "window": list(window["size"]),
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@window",
            "sw_batch_size": window["batch"],
            "overlap": window["overlap"],
            "mode": "gaussian",
            "sigma_scale": SIGMA,
        },
        # MONAI's own weights are 1e-3 at least, which is another average wherever only edges of windows meet.
        "weights": f"$torch.einsum('i,j,k->ijk', *[{gauss} for n in @window])",
        "initialize": ["$setattr(@inferer, 'roi_weight_map', @weights)"],
        "postprocessing": {"_target_": "Compose", "transforms": _after(card)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@checkpoint",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@probabilities",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _datalist(num_channels: int) -> str:
    """Cases of a folder, named as `medfocal predict` takes them."""
    if num_channels == 1:
        return "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]"
    return (
        f"$[{{'image': [path.replace('_0000.nii.gz', f'_{{n:04d}}.nii.gz') for n in range({num_channels})]}} "
        "for path in sorted(glob.glob(@dataset_dir + '/*_0000.nii.gz'))]"
    )


def _before(preprocessing: Preprocessing) -> list[dict[str, Any]]:
    """Transforms up to the network's grid and intensities."""
    image: dict[str, Any] = {"keys": "image"}
    transforms: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **image, "reader": "NibabelReader", "ensure_channel_first": True},
        {"_target_": "Orientationd", **image, "axcodes": preprocessing.orientation, "labels": AXIS_LETTERS},
    ]
    if preprocessing.spacing_mm is not None:
        spacing_mm = list(preprocessing.spacing_mm)
        resample = {"pixdim": spacing_mm, "mode": "bilinear", "padding_mode": "border"}
        transforms.append({"_target_": "Spacingd", **image, **resample})
        if preprocessing.intensity is Intensity.ZSCORE_NONZERO:
            # MONAI's interpolation leaves crumbs of rounding at the rim of the air, which would count as not 0.
            highest = "image.abs().amax(dim=(1, 2, 3), keepdim=True)"
            clean = f"$lambda image: image * (image.abs() > {CRUMB} * {highest})"
            transforms.append({"_target_": "Lambdad", **image, "func": clean})
    if preprocessing.intensity is Intensity.PERCENTILE_ZSCORE:
        bounds = {"lower": 0.5, "upper": 99.5, "channel_wise": True}
        transforms.append({"_target_": "ClipIntensityPercentilesd", **image, **bounds})
    if preprocessing.intensity is not Intensity.NONE:
        nonzero = preprocessing.intensity is Intensity.ZSCORE_NONZERO
        transforms.append({"_target_": "NormalizeIntensityd", **image, "nonzero": nonzero, "channel_wise": True})
    transforms.append({"_target_": "EnsureTyped", **image, "dtype": "$torch.float32"})
    return transforms


def _after(card: ModelCard) -> list[dict[str, Any]]:
    """Transforms from probabilities of all classes to a file with the probability of any lesion."""
    pred: dict[str, Any] = {"keys": "pred"}
    transforms: list[dict[str, Any]] = []
    if card.activation == "softmax":
        transforms.append({"_target_": "Lambdad", **pred, "func": "$lambda classes: classes[1:]"})
    if card.is_corrected:
        correction = dict(card.correction)
        if not all(value is None or isinstance(value, int | float) for value in _leaves(correction)):
            message = f"the card's correction must hold numbers only, got {correction}"
            raise ModelError(message)
        function: dict[str, Any] = {"_target_": "medfocal.infer.correction.corrected", "_mode_": "callable"}
        function |= {"correction": correction, "activation": card.activation}
        transforms.append({"_target_": "Lambdad", **pred, "func": function})
    of_any = "sum(dim=0, keepdim=True)" if card.activation == "softmax" else "amax(dim=0, keepdim=True)"
    transforms += [
        {"_target_": "Lambdad", **pred, "func": f"$lambda lesions: lesions.{of_any}.clamp(0, 1)"},
        {
            "_target_": "Invertd",
            **pred,
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
    ]
    if len(card.channels) > 1:
        # MONAI 1.6 counts an axis of the image as its channels when it writes a map without any, and fails.
        without = "$lambda lesion: (lesion.meta.update(original_channel_dim=float('nan')), lesion)[1]"
        transforms.append({"_target_": "Lambdad", **pred, "func": without})
    transforms.append(
        {
            "_target_": "SaveImaged",
            **pred,
            "output_dir": "@output_dir",
            "output_postfix": "probability",
            "output_ext": ".nii.gz",
            "output_dtype": "$np.float32",
            "resample": False,
            "separate_folder": False,
        }
    )
    return transforms


def _metadata(card: ModelCard, definition: Mapping[str, Any], *, needs_medfocal: bool) -> dict[str, Any]:
    """`configs/metadata.json`, which MONAI reads into the configuration as well."""
    import monai
    import numpy as np
    import torch

    lesions = [name for value, name in sorted(card.labels.items()) if value != 0]
    outputs = ([card.labels[0]] if card.activation == "softmax" else []) + lesions
    data = {"type": "image", "spatial_shape": list(card.window["size"]), "dtype": "float32", "is_patch_data": True}
    found = {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"written by medfocal {__version__}"},
        "monai_version": _release(monai.__version__),
        "pytorch_version": _release(str(torch.__version__)),
        "numpy_version": np.__version__,
        "required_packages_version": {
            "nibabel": "5.3.0",
            "fire": "0.7.0",
            "pytorch-ignite": "0.4.11",
            **({"medfocal": __version__} if needs_medfocal else {}),
        },
        "name": card.name,
        "task": f"segmentation of {', '.join(lesions)}",
        "description": "Probability of a lesion for each voxel of a 3D image.",
        "authors": "those who trained the model; see docs/model.json",
        "copyright": "of those who trained the model",
        "intended_use": card.intended_use,
        "network_data_format": {
            "inputs": {
                "image": {
                    **data,
                    "format": "magnitude",
                    "modality": ", ".join(card.channels),
                    "num_channels": definition["in_channels"],
                    "value_range": [],
                    "channel_def": {str(n): name for n, name in enumerate(card.channels)},
                }
            },
            "outputs": {
                "pred": {
                    **data,
                    "format": "segmentation",
                    "num_channels": definition["out_channels"],
                    "value_range": [],
                    "channel_def": {str(n): name for n, name in enumerate(outputs)},
                }
            },
        },
    }
    marked = [text for text in _leaves(found) if isinstance(text, str) and text.startswith(MARKS)]
    if marked:
        message = (
            f"MONAI would evaluate text that begins with {', '.join(MARKS)}, and the card says {marked[0][:100]!r}"
        )
        raise ModelError(message)
    return found


def _release(version: str) -> str:
    """Without what a build adds, as MONAI writes versions."""
    return version.partition("+")[0]


def _readme(card: ModelCard, *, needs_medfocal: bool) -> str:
    lesions = ", ".join(name for value, name in sorted(card.labels.items()) if value != 0)
    several = len(card.channels) > 1
    names = "<case>_0000.nii.gz, <case>_0001.nii.gz, …" if several else "<case>.nii.gz"
    spacing = card.preprocessing.spacing_mm
    grid = "its own spacing" if spacing is None else f"a spacing of {' x '.join(f'{step:g}' for step in spacing)} mm"
    size = " x ".join(map(str, card.window["size"]))
    medfocal = f" 'medfocal=={__version__}'" if needs_medfocal else ""
    points = "\n".join(f"- {point.name}: {point.threshold:.4g} ({point.source})" for point in card.operating_points)
    return f"""# {card.name}

Finds {lesions} in 3D images ({", ".join(card.channels)}).

## Intended use

{card.intended_use}

{"" if card.intended_use == INTENDED_USE else INTENDED_USE}

## Run it

```
pip install 'monai>=1.6' 'fire>=0.7' 'pytorch-ignite>=0.4.11' 'nibabel>=5.3'{medfocal}
python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir PREDICTIONS
```

in this folder; from elsewhere with `--bundle_root` and the whole path of the configuration. IMAGES holds {names}.
For each case the probability of a lesion is written to PREDICTIONS on the image's own grid, float32.
MONAI evaluates text in `configs/`: run only bundles from those you trust.

## What it computes

Images are turned to {card.preprocessing.orientation} with {grid}, intensities by `{card.preprocessing.intensity}`.
Windows of {size} voxels overlap by {card.window["overlap"]:g} and are averaged with Gaussian weights, in float32.
Held against `medfocal predict` with `save_probability=true`:

- the same to 1e-4 within the body where images are not resampled;
- outside of it, in windows and planes without any contrast, medfocal says 0 and does not ask the network;
- where images are resampled the two differ: on the way to a coarser grid, there or back, medfocal takes the mean over
  one of its voxels and MONAI interpolates between two.

## Operating points

A candidate's confidence, from which on it counts. How candidates are formed stands in `docs/{CARD}`; MONAI does not
form them, `medfocal predict` does.

{points}
"""


def _leaves(value: Any) -> Iterator[Any]:
    """All that is neither a mapping nor a sequence."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _as_json(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode()
