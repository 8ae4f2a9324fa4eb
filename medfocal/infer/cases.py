"""The cases that a prediction is asked for: an image, a folder of images, or the test split of a dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medfocal.data.formats import read_dataset
from medfocal.data.manifest import Case
from medfocal.errors import DatasetError, InputError
from medfocal.volume import is_volume, volume_name


def find_cases(path: Path, channels: Sequence[str]) -> list[Case]:
    """The cases of an image file, a folder of images, or a `dataset.json` or CSV (its test split).

    Raises:
        InputError: It does not exist.
        DatasetError: It holds no image, or a case lacks a channel.
    """
    if not path.exists():
        message = f"the input '{path}' does not exist"
        raise InputError(message)
    if is_dataset(path):
        manifest = read_dataset(path)
        if manifest.channels != tuple(channels):
            message = f"'{path}' has the channels {list(manifest.channels)}, the model was trained on {list(channels)}"
            raise DatasetError(message)
        cases = [replace(case, label=None, annotations=()) for case in manifest.split("test")]
        if not cases:
            message = f"'{path}' has no 'test' case"
            raise DatasetError(message)
        return cases
    files = [path] if path.is_file() else _images_in(path)
    if not files:
        message = f"the folder '{path}' holds no image (.nii, .nii.gz, .hdr, .mha, .mhd, .nrrd)"
        raise DatasetError(message)
    numbered = {volume_name(file) for file in files}
    if len(channels) == 1 and any(
        name.endswith("_0001") and f"{name.removesuffix('_0001')}_0000" in numbered for name in numbered
    ):
        message = (
            f"'{path}' holds cases of several channels (…_0000, …_0001), and the model takes one ({channels[0]}). Give "
            "a folder with that channel alone, or a dataset file."
        )
        raise DatasetError(message)
    if len(channels) == 1:
        return _unique([Case(volume_name(p), volume_name(p), "test", (p,)) for p in files], path)
    return _grouped(files, path, channels)


def is_dataset(path: Path) -> bool:
    """Whether a path is a file that lists cases."""
    return path.is_file() and path.suffix.lower() in {".json", ".csv"}


def _images_in(folder: Path) -> list[Path]:
    """Image files by name; hidden ones, such as macOS leaves beside each file, are none."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if is_volume(path))


def _unique(cases: list[Case], path: Path) -> list[Case]:
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"'{path}' holds more than one file of the same case: {', '.join(twice[:10])}"
        raise DatasetError(message)
    return cases


def _grouped(files: Sequence[Path], path: Path, channels: Sequence[str]) -> list[Case]:
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        match = re.fullmatch(r"(.+)_(\d{4})", volume_name(file))
        if match is None:
            message = (
                f"the model takes {len(channels)} channels ({', '.join(channels)}), so files must be named "
                f"<case>_0000, <case>_0001, …; '{file.name}' is not"
            )
            raise DatasetError(message)
        images = found.setdefault(match[1], {})
        other = images.setdefault(int(match[2]), file)
        if other is not file:
            message = f"'{path}' holds channel {match[2]} of case '{match[1]}' twice: '{other.name}' and '{file.name}'"
            raise DatasetError(message)
    cases = []
    for name, images in found.items():
        if sorted(images) != list(range(len(channels))):
            have = ", ".join(f"_{n:04d}" for n in sorted(images))
            message = f"case '{name}' in '{path}' has {have}; the model takes {len(channels)} channels from _0000"
            raise DatasetError(message)
        cases.append(Case(name, name, "test", tuple(images[n] for n in range(len(channels)))))
    return cases
