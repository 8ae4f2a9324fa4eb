"""`dataset.json` in the form of the Medical Segmentation Decathlon (Antonelli et al. 2022), with additions.

These are: `case` and `patient` names, several `annotations` of a case, a `validation` list, and, where plain names of
values do not say it all, `values`, `regions`, `ignore_value` and `resample_channels`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfocal.data.formats.found import FoundDataset
from medfocal.data.formats.labels import check_values, numbered, scheme_of_values
from medfocal.data.formats.source import Places, Ways, misspelt, read_object
from medfocal.data.manifest import SPLITS, Case, LabelScheme, Manifest
from medfocal.errors import DatasetError
from medfocal.files import write_json
from medfocal.volume import volume_name

#: What is read; other keys than these are left alone unless they look like one that is read.
KEYS = ("name", "channel_names", "modality", "labels", *SPLITS)
KEYS_ADDED = ("values", "regions", "ignore_value", "resample_channels")
KEYS_LEFT = ("description", "reference", "licence", "license", "release", "tensorImageSize", "numTraining", "numTest")
ENTRY_KEYS = ("case", "patient", "image", "label", "annotations")


def read_decathlon(path: Path, *, root: Path | None = None, with_labels: bool = True) -> FoundDataset:
    """Read a `dataset.json` that lists its cases.

    Args:
        path: The JSON file.
        root: Folder that its paths are relative to; by default the one that holds `path`.
        with_labels: Whether what it says of label values is read.

    Raises:
        InputError: It is missing or not such a JSON.
    """
    content = read_object(path)
    faults = [f"there is no '{key}' (did you mean '{near}'?)" for key, near in _slips(content).items()]
    channels: tuple[str, ...] = ()
    scheme = None
    try:
        channels = _channels(content)
    except ValueError as error:
        faults.append(str(error))
    if with_labels:
        try:
            scheme = _scheme(content)
        except ValueError as error:
            faults.append(str(error))
    resample = content.get("resample_channels", False)
    if not isinstance(resample, bool):
        faults.append(f"'resample_channels' must be true or false, got {resample!r}")
    places = Places(root if root is not None else path.parent)
    cases: list[Case] = []
    for split in SPLITS:
        entries = content.get(split, [])
        if not isinstance(entries, list):
            faults.append(f"'{split}' must be a list of cases, got {type(entries).__name__}")
            continue
        for number, entry in enumerate(entries, start=1):
            try:
                cases.append(
                    replace(_read_entry(entry, split, places, len(channels)), resample_channels=bool(resample))
                )
            except ValueError as error:
                faults.append(f"entry {number} of '{split}': {error}")
    return FoundDataset(path, str(content.get("name", path.absolute().parent.name)), channels, cases, scheme, faults)


def write_decathlon(manifest: Manifest, path: Path) -> None:
    """Write a manifest as a `dataset.json` with paths relative to it.

    Raises:
        ResourceError: It cannot be written.
        DatasetError: Some of its cases may have channels on grids of their own, and others not.
    """
    resample = {case.resample_channels for case in manifest.cases}
    if len(resample) > 1:
        message = f"'{manifest.path}': resample_channels holds for all cases of a dataset file or for none"
        raise DatasetError(message)
    content: dict[str, Any] = {
        "name": manifest.name,
        **_written_scheme(manifest.scheme),
    }
    if manifest.channels:
        content["channel_names"] = {str(number): name for number, name in enumerate(manifest.channels)}
    if True in resample:
        content["resample_channels"] = True
    way_to = Ways(path.absolute().parent)
    for split in SPLITS:
        content[split] = [_written_entry(case, way_to) for case in manifest.split(split)]
    write_json(path, content)


def _slips(content: Mapping[str, Any]) -> Mapping[str, str]:
    return misspelt([key for key in content if key not in KEYS_LEFT], (*KEYS, *KEYS_ADDED))


def _channels(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Channels in order; none where the file names none and no image either."""
    if not {"channel_names", "modality"} & set(content) and not _has_images(content):
        return ()
    key = "channel_names" if "channel_names" in content or "modality" not in content else "modality"
    names = numbered(content.get(key), key)
    channels = tuple(names[number] for number in sorted(names))
    twice = [name for name, count in Counter(channels).items() if count > 1]
    if twice:
        message = f"'{key}' names two channels '{twice[0]}'"
        raise ValueError(message)
    return channels


def _has_images(content: Mapping[str, Any]) -> bool:
    entries = [entry for split in SPLITS if isinstance(content.get(split), list) for entry in content[split]]
    return any(not isinstance(entry, dict) or "image" in entry for entry in entries)


def _scheme(content: Mapping[str, Any]) -> LabelScheme:
    names = numbered(content.get("labels"), "labels")
    ignore_value = content.get("ignore_value")
    if ignore_value is not None and (isinstance(ignore_value, bool) or not isinstance(ignore_value, int)):
        message = f"'ignore_value' must be a label value, got {ignore_value!r}"
        raise ValueError(message)
    if "values" not in content:
        scheme = scheme_of_values(names, ignore_value=ignore_value)
    else:
        plain = scheme_of_values(names)
        classes = {str(number): number for number in plain.names}
        written = numbered(content["values"], "values")
        if plain.values is not None or set(written.values()) != set(classes) or written.get(0) != "0":
            message = "with 'values' the 'labels' are classes 0, 1, 2, …, each of them has a value, and 0 is 0"
            raise ValueError(message)
        check_values([*written], ignore_value)
        scheme = replace(
            plain, values={value: classes[number] for value, number in written.items()}, ignore_value=ignore_value
        )
    return replace(scheme, regions=_regions(content.get("regions", {}), scheme))


def _regions(found: Any, scheme: LabelScheme) -> dict[str, tuple[int, ...]]:
    """Regions are lists of classes, which are the values of `labels` where these have no gaps."""
    if not isinstance(found, dict) or not all(
        isinstance(own, list) and own and all(type(n) is int and n in scheme.names and n for n in own)
        for own in found.values()
    ):
        message = f"'regions' must be names with lists of lesion classes, got {found!r}"
        raise ValueError(message)
    return {name: tuple(own) for name, own in found.items()}


def _read_entry(entry: Any, split: str, places: Places, num_channels: int) -> Case:
    if isinstance(entry, str):  # the Decathlon lists test images without labels
        entry = {"image": entry}
    if not isinstance(entry, dict) or not set(entry) & {"image", "label", "annotations"}:
        message = f"an object with 'image' is expected, got {entry!r}"
        raise ValueError(message)
    for key, near in misspelt(entry, ENTRY_KEYS).items():
        message = f"there is no '{key}' (did you mean '{near}'?)"
        raise ValueError(message)
    images = entry.get("image", [])
    images = images if isinstance(images, list) else [images]
    annotations, label = entry.get("annotations", []), entry.get("label")
    if not isinstance(annotations, list) or not all(
        isinstance(p, str) and p for p in (*images, *annotations, *([label] if label is not None else []))
    ):
        message = f"'image', 'label' and each of 'annotations' must be paths, got {entry!r}"
        raise ValueError(message)
    if "image" in entry and num_channels and len(images) != num_channels:
        message = f"{len(images)} images where the dataset has {num_channels} channels"
        raise ValueError(message)
    first = next(path for path in (*images, label, *annotations, "") if path is not None)
    return Case(
        name=_name(entry, "case", volume_name(Path(first))),
        patient=_name(entry, "patient", None),
        split=split,
        images=tuple(places(image) for image in images),
        label=places(label) if label is not None else None,
        annotations=tuple(places(annotation) for annotation in annotations),
    )


def _name(entry: Mapping[str, Any], key: str, default: str | None) -> str:
    """A name may be written as a number; null or another kind would make different cases look like one."""
    if key not in entry and default is None:
        return ""
    name = entry.get(key, default)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        message = f"'{key}' must be a name, got {name!r}"
        raise ValueError(message)
    return str(name)


def _written_scheme(scheme: LabelScheme) -> dict[str, Any]:
    content: dict[str, Any] = {}
    values = scheme.values
    if values is not None and len(values) == len(scheme.names) and not scheme.regions and _ascends(values):
        content["labels"] = {str(value): scheme.names[number] for value, number in values.items()}
    else:
        content["labels"] = {str(number): name for number, name in scheme.names.items()}
        if values is not None:
            content["values"] = {str(value): str(number) for value, number in values.items()}
    if scheme.regions:
        content["regions"] = {name: list(own) for name, own in scheme.regions.items()}
    if scheme.ignore_value is not None:
        content["ignore_value"] = scheme.ignore_value
    return content


def _ascends(values: Mapping[int, int]) -> bool:
    """Whether classes are numbered as their values are ordered, which is what names of values alone say."""
    return [values[value] for value in sorted(values)] == list(range(len(values)))


def _written_entry(case: Case, way_to: Ways) -> dict[str, Any]:
    images = [way_to(image) for image in case.images]
    entry: dict[str, Any] = {"case": case.name, "patient": case.patient}
    if images:
        entry["image"] = images[0] if len(images) == 1 else images
    if case.label is not None:
        entry["label"] = way_to(case.label)
    if case.annotations:
        entry["annotations"] = [way_to(annotation) for annotation in case.annotations]
    return entry
