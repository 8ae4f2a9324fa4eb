"""Descriptions of an installation and of a model, as text for the terminal."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfocal import __version__
from medfocal.config import conf_directory
from medfocal.model import INTENDED_USE, read_card
from medfocal.report.calibration_page import describe_correction, describe_point

PACKAGES = ("torch", "monai", "nibabel", "SimpleITK", "hydra-core", "numpy", "scipy", "connected-components-3d")


def describe_installation() -> str:
    """Versions, devices and where the configuration lies."""
    import torch

    lines = [f"medfocal {__version__}", f"python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    lines += [f"GPU {n}: {name}" for n, name in enumerate(devices)] or ["no GPU that torch can use"]
    bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  no public name tells it
    lines.append(f"CPU: {torch.get_num_threads()} threads, bfloat16 {'native' if bfloat16 else 'not native'}")
    lines.append(f"configuration: {conf_directory()}")
    return "\n".join(lines) + "\n"


def describe_model(folder: Path) -> str:
    """What a model finds, what it was trained on and at which operating points; its weights are not read.

    Raises:
        ModelError: The folder holds no model card of this version.
    """
    card, weights = read_card(folder)
    spacing = card.preprocessing.spacing_mm
    names = [member.network["name"] for member in card.members]
    lines = [
        f"model      {card.name}",
        f"finds      {', '.join(name for value, name in sorted(card.labels.items()) if value)}",
        f"channels   {', '.join(card.channels)}",
        f"grid       {card.preprocessing.orientation}, "
        + ("each case's own spacing" if spacing is None else f"{spacing} mm")
        + f", intensity {card.preprocessing.intensity}",
        f"network    {' and '.join(names)}, windows of {card.window['size']} voxels",
    ]
    lines += [f"trained    {_listed(member.training)}" for member in card.members]
    lines += describe_correction(card)
    lines += [f"operating  {describe_point(point)}" for point in card.operating_points]
    lines += [f"weights    {stated['file']} sha256 {stated['sha256']}" for stated in weights]
    lines += [card.intended_use] if card.intended_use == INTENDED_USE else [card.intended_use, INTENDED_USE]
    return "\n".join(lines) + "\n"


def _listed(values: Mapping[str, Any]) -> str:
    """Keys and values; those of a mapping within it without commas."""
    return ", ".join(
        f"{key} {' '.join(f'{name} {of}' for name, of in value.items()) if isinstance(value, Mapping) else value}"
        for key, value in values.items()
    )
