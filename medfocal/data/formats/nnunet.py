"""The raw data folder of nnU-Net v2 (Isensee et al. 2021): `imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`.

Its `dataset.json` names label values the other way round than the Decathlon's, `{"background": 0, "lesion": 1}`; lists
of values are regions, and `ignore` is what nobody judged. `regions_class_order` is about writing nnU-Net's own
predictions, and `numTraining` is counted here. nnU-Net knows no patients and no validation cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medfocal.data.formats.found import FoundDataset
from medfocal.data.formats.labels import BACKGROUND, numbered, scheme_of_names
from medfocal.data.formats.source import Places, list_images, read_object
from medfocal.data.manifest import Case, LabelScheme, listed
from medfocal.errors import InputError

IGNORE = "ignore"
#: Folders of images and of labels by the split that their cases belong to.
FOLDERS = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def read_nnunet(path: Path, *, with_labels: bool = True) -> FoundDataset:
    """Read a raw dataset of nnU-Net v2.

    Args:
        path: The folder, or its `dataset.json`.
        with_labels: Whether what it says of label values is read.

    Raises:
        InputError: There is no such file, or it is no JSON object, or a folder cannot be listed.
    """
    file = path / "dataset.json" if path.is_dir() else path
    content = read_object(file)
    faults: list[str] = []
    names: dict[int, str] = {}
    scheme = None
    try:
        names = numbered(content.get("channel_names"), "channel_names")
        if sorted(names) != list(range(len(names))):
            faults.append(f"channels must be numbered 0, 1, 2, …, got {sorted(names)}")
    except ValueError as error:
        faults.append(str(error))
    if with_labels:
        try:
            scheme = _scheme(content.get("labels"))
        except ValueError as error:
            faults.append(f"'labels': {error}")
    folder = file.parent
    if "dataset" in content:
        cases = list(_cases_listed(content["dataset"], folder, len(names), faults))
    else:
        ending = content.get("file_ending")
        if not isinstance(ending, str) or not ending.startswith("."):
            faults.append(f"'file_ending' must be an ending such as '.nii.gz', got {ending!r}")
            ending = ""
        cases = [
            case
            for split in FOLDERS
            for case in _cases_of_folders(folder, split, ending=ending, num_channels=len(names), faults=faults)
        ]
    channels = tuple(names[number] for number in sorted(names))
    name = str(content.get("name", folder.absolute().name))
    return FoundDataset(file, name, channels, cases, scheme, faults)


def _scheme(found: Any) -> LabelScheme:
    if not isinstance(found, dict):
        message = f"an object such as {{'{BACKGROUND}': 0, 'lesion': 1}} is expected, got {found!r}"
        raise ValueError(message)
    values: dict[str, list[int]] = {}
    for name, given in found.items():
        own = given if isinstance(given, list) else [given]
        # nnU-Net itself takes "1" for 1.
        if not own or not all(re.fullmatch("0|[1-9][0-9]{0,4}", str(value)) for value in own):
            message = f"'{name}' must have a label value or a list of them, got {given!r}"
            raise ValueError(message)
        values[str(name)] = [int(value) for value in own]
    ignored = values.pop(IGNORE, None)
    if ignored is not None and len(ignored) > 1:
        message = f"'{IGNORE}' must have one value, got {ignored}"
        raise ValueError(message)
    as_regions = any(isinstance(given, list) for name, given in found.items() if name != BACKGROUND)
    return scheme_of_names(values, as_regions=as_regions, ignore_value=None if ignored is None else ignored[0])


def _cases_of_folders(folder: Path, split: str, *, ending: str, num_channels: int, faults: list[str]) -> Iterator[Case]:
    """Cases of one split, with a fault for files that have no partner."""
    images_name, labels_name = FOLDERS[split]
    images: dict[str, dict[int, Path]] = {}
    strange = []
    for name, file in _listed_images(folder / images_name, ending).items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if match is None:
            strange.append(file.name)
        else:
            images.setdefault(match[1], {})[int(match[2])] = file
    if strange:
        faults.append(f"images must be named <case>_0000{ending}; not so in {images_name}: {listed(strange)}")
    labels = _listed_images(folder / labels_name, ending)
    if images and not labels and split == "training":
        faults.append(f"there is no label that ends with '{ending}' in '{labels_name}'")
    lonely = labels.keys() - images.keys()
    if lonely:
        faults.append(f"labels without images in {images_name}: {listed(lonely)}")
    for case, channels in images.items():
        if num_channels and sorted(channels) != list(range(num_channels)):
            given = ", ".join(f"{number:04d}" for number in sorted(channels))
            faults.append(f"case '{case}' has the channels {given} where the dataset has {num_channels}")
            continue
        files = tuple(channels[number].absolute() for number in sorted(channels))
        label = labels.get(case)
        yield Case(case, "", split, files, None if label is None else label.absolute())


def _listed_images(folder: Path, ending: str) -> dict[str, Path]:
    """Files of this ending; those of others may lie beside them, as nnU-Net itself has it."""
    if not folder.is_dir():
        return {}
    try:
        return {name: file for name, file in list_images(folder).items() if file.name.endswith(ending)}
    except InputError:  # one name with two endings, of which the dataset says which one counts
        return {
            file.name.removesuffix(ending): file for file in sorted(folder.glob(f"*{ending}")) if file.name[0] != "."
        }


def _cases_listed(found: Any, folder: Path, num_channels: int, faults: list[str]) -> Iterator[Case]:
    """Cases of the object 'dataset', whose paths are relative to the folder; all are for training."""
    if not isinstance(found, dict):
        faults.append(f"'dataset' must be an object of cases, got {type(found).__name__}")
        return
    places = Places(folder)
    for name, entry in found.items():
        if not _is_entry(entry):
            faults.append(f"case '{name}': an object with a list 'images' and a 'label' is expected, got {entry!r}")
        elif num_channels and len(entry["images"]) != num_channels:
            faults.append(f"case '{name}': {len(entry['images'])} images where the dataset has {num_channels} channels")
        else:
            images = tuple(places(image) for image in entry["images"])
            yield Case(name, "", "training", images, places(entry["label"]))


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and isinstance(entry.get("images"), list)
        and all(isinstance(path, str) and path for path in (*entry["images"], entry.get("label")))
    )
