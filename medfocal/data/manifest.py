"""Which files belong to which case, patient and split.

Read from a `dataset.json` in the form of the Medical Segmentation Decathlon (Antonelli et al. 2022), with three
additions: `case` and `patient` names, several `annotations` of one case, and a `validation` list.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfocal.errors import DatasetError, InputError
from medfocal.volume import volume_name

SPLITS = ("training", "validation", "test")
MOST_CLASSES = 256
#: What is read of a case; other keys are left alone unless they look like one of these.
ENTRY_KEYS = ("case", "patient", "image", "label", "annotations")


@dataclass(frozen=True)
class Case:
    """One study.

    Attributes:
        name: Unique in the dataset; output files carry it.
        patient: The unit of splits and of bootstrap; the case's own name if the manifest names none.
        split: "training", "validation" or "test".
        images: One file a channel, in the order of the manifest's channels.
        label: Reference label map, or None where there is none (a case to predict, or one that has annotations only).
        annotations: Single readers' label maps, in an order that tells the readers apart.
        resample_channels: Whether images may lie on grids of their own; they are brought onto the first's, linearly.
    """

    name: str
    patient: str
    split: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotations: tuple[Path, ...] = ()
    resample_channels: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Images, label and annotations."""
        return (*self.images, *((self.label,) if self.label is not None else ()), *self.annotations)

    @property
    def is_annotated(self) -> bool:
        """Whether anybody says where its lesions are."""
        return self.label is not None or bool(self.annotations)


@dataclass(frozen=True)
class LabelScheme:
    """What the values of a dataset's label files mean.

    Attributes:
        names: Class to name; 0 is the background, and classes are 0, 1, 2, … without gaps.
        values: Value in the files to class, 0 to 0 among them; None: they are the classes.
        regions: Name to the classes that it consists of, where what is learnt are regions that may lie within each
            other; empty: the classes are learnt, and exclude each other.
        ignore_value: Value in the files of voxels that nobody judged, or None.
    """

    names: Mapping[int, str]
    values: Mapping[int, int] | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore_value: int | None = None

    @property
    def num_classes(self) -> int:
        """With the background."""
        return len(self.names)

    @property
    def learnt(self) -> dict[int, str]:
        """Number to name of what a model tells apart: 0, the background, then the regions, or the lesion classes."""
        if not self.regions:
            return dict(self.names)
        return {0: self.names[0], **dict(enumerate(self.regions, start=1))}


@dataclass(frozen=True)
class Manifest:
    """A dataset: its cases, its channels in order and the meaning of its label values.

    Attributes:
        path: The file or folder it was read from.
        name: The dataset's name.
        channels: Names of the channels, such as `("FLAIR", "T1")`.
        scheme: What label values mean.
        cases: All cases, in the order of the file.
    """

    path: Path
    name: str
    channels: tuple[str, ...]
    scheme: LabelScheme
    cases: tuple[Case, ...]

    @property
    def labels(self) -> Mapping[int, str]:
        """Class to name; 0 is the background."""
        return self.scheme.names

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split, in the order of the file."""
        return tuple(case for case in self.cases if case.split == name)


def read_manifest(path: Path, *, root: Path | None = None) -> Manifest:
    """Read a `dataset.json` and see that its splits are sound and its files are there.

    Args:
        path: The JSON file.
        root: Folder that the file's paths are relative to; by default the one that holds `path`.

    Returns:
        The manifest, with absolute paths.

    Raises:
        InputError: The file is missing or is not such a JSON.
        DatasetError: No case, a case twice, a patient in two splits, a wrong number of channels, label
            values that are not 0, 1, 2, …, or files that do not exist (all are named).
    """
    path = Path(path)
    content = _read_json(path)
    folder = Path(root) if root is not None else path.parent
    channels = _names(path, content, ("channel_names", "modality"))
    labels = {int(value): name for value, name in _names(path, content, ("labels",)).items()}
    if len(labels) > MOST_CLASSES:
        message = f"'{path}': {len(labels)} label values; classes are stored in a byte, so at most {MOST_CLASSES}"
        raise DatasetError(message)
    if sorted(labels) != list(range(len(labels))) or len(labels) < 2:
        message = f"'{path}': label values must be 0 (background), 1, 2, … without gaps, got {sorted(labels)}"
        raise DatasetError(message)
    channel_names = tuple(channels[key] for key in sorted(channels, key=int))
    cases = [
        _read_case(path, folder, split, number, entry, len(channel_names))
        for split in SPLITS
        for number, entry in enumerate(_entries(path, content, split), start=1)
    ]
    manifest = Manifest(
        path, str(content.get("name", path.parent.name)), channel_names, LabelScheme(labels), tuple(cases)
    )
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Refuse an empty dataset, a case named twice, a patient in two splits, and files that do not exist.

    Raises:
        DatasetError: One of these, with the names.
    """
    where = f"'{manifest.path}'"
    if not manifest.cases:
        message = f"{where} lists no case: 'training', 'validation' and 'test' are empty or missing"
        raise DatasetError(message)
    twice = [name for name, count in Counter(case.name for case in manifest.cases).items() if count > 1]
    if twice:
        message = f"{where} lists {_listed(twice)} more than once. Each case needs a name of its own in 'case'."
        raise DatasetError(message)
    homes: dict[str, dict[str, None]] = {}
    for case in manifest.cases:
        homes.setdefault(case.patient, {})[case.split] = None
    torn = {patient: list(splits) for patient, splits in homes.items() if len(splits) > 1}
    if torn:
        splits = sorted({split for found in torn.values() for split in found}, key=SPLITS.index)
        message = (
            f"{len(torn)} {'patient is' if len(torn) == 1 else 'patients are'} in more than one of "
            f"{', '.join(map(repr, splits))}: {_listed(torn)}. Split by patient, not by case, in {where}."
        )
        raise DatasetError(message)
    missing = [f"case '{case.name}': '{file}'" for case in manifest.cases for file in case.files if not file.is_file()]
    if missing:
        more = f"\n    … and {len(missing) - 10} more" if len(missing) > 10 else ""
        shown = "\n    ".join(missing[:10]) + more
        message = (
            f"{len(missing)} {'file' if len(missing) == 1 else 'files'} named in {where} "
            f"{'does' if len(missing) == 1 else 'do'} not exist:\n    {shown}\n"
            "    Correct the paths there, or set data.root to the folder that they start from."
        )
        raise DatasetError(message)


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        message = f"the dataset file '{path}' {what}. Set data.dataset to a dataset.json."
        raise InputError(message)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:  # undecodable text is a ValueError too
        message = f"the dataset file '{path}' is not JSON: {error}"
        raise InputError(message) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        message = f"the dataset file '{path}' holds a {kind}; an object with 'training' is expected"
        raise InputError(message)
    return content


def _names(path: Path, content: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    keys = tuple(keys)
    for key in keys:
        found = content.get(key)
        if isinstance(found, dict) and found and all(re.fullmatch("0|[1-9][0-9]{0,3}", k) for k in found):
            return {k: str(v) for k, v in found.items()}
    message = f"'{path}' has no usable '{keys[0]}': an object such as {{'0': 'name'}} is expected"
    raise DatasetError(message)


def _entries(path: Path, content: Mapping[str, Any], split: str) -> list[Any]:
    entries = content.get(split, [])
    if not isinstance(entries, list):
        message = f"'{path}': '{split}' must be a list of cases, got {type(entries).__name__}"
        raise DatasetError(message)
    return entries


def _read_case(path: Path, folder: Path, split: str, number: int, entry: Any, num_channels: int) -> Case:
    where = f"'{path}', entry {number} of '{split}'"
    if isinstance(entry, str):  # the Decathlon lists test images without labels
        entry = {"image": entry}
    if not isinstance(entry, dict) or "image" not in entry:
        message = f"{where}: an object with 'image' is expected, got {entry!r}"
        raise DatasetError(message)
    for key in entry:
        near = difflib.get_close_matches(str(key), ENTRY_KEYS, n=1, cutoff=0.8)
        if key not in ENTRY_KEYS and near:
            message = f"{where}: there is no '{key}' (did you mean '{near[0]}'?)"
            raise DatasetError(message)
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    annotations = entry.get("annotations", [])
    label = entry.get("label")
    if not isinstance(annotations, list) or not all(
        isinstance(p, str) for p in (*images, *annotations, *([label] if label is not None else []))
    ):
        message = f"{where}: 'image', 'label' and each of 'annotations' must be paths, got {entry!r}"
        raise DatasetError(message)
    if len(set(annotations)) != len(annotations):
        message = (
            f"{where}: 'annotations' names a file twice, so a reader would be compared with himself: {annotations}"
        )
        raise DatasetError(message)
    if len(images) != num_channels:
        message = f"{where}: {len(images)} images where the dataset has {num_channels} channels"
        raise DatasetError(message)
    if label is None and not annotations and split != "test":
        message = f"{where}: 'label' and 'annotations' are missing; only test cases may do without both"
        raise DatasetError(message)
    name = _name(where, entry, "case", volume_name(Path(images[0])))
    if name.startswith(".") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > 200:
        message = f"{where}: a case name becomes a file name, so {name!r} cannot be one"
        raise DatasetError(message)
    return Case(
        name=name,
        patient=_name(where, entry, "patient", name),
        split=split,
        images=tuple((folder / image).absolute() for image in images),
        label=(folder / label).absolute() if label is not None else None,
        annotations=tuple((folder / annotation).absolute() for annotation in annotations),
    )


def _name(where: str, entry: Mapping[str, Any], key: str, default: str) -> str:
    """A name may be written as a number; null or another kind would make different cases look like one."""
    name = entry.get(key, default)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        message = f"{where}: '{key}' must be a name, got {name!r}"
        raise DatasetError(message)
    return str(name)


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
