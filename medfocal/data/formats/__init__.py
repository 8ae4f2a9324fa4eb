"""Datasets as labs have them on the disk; each becomes a `Manifest`.

>>> manifest = read_dataset("data_samples/brain")
>>> len(manifest.cases), manifest.channels, manifest.labels
(36, ('FLAIR',), {0: 'background', 1: 'lesion'})
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from medfocal.data.formats.bids import read_bids
from medfocal.data.formats.decathlon import read_decathlon, write_decathlon
from medfocal.data.formats.folders import read_folders
from medfocal.data.formats.found import FoundDataset
from medfocal.data.formats.labels import ONE_LESION, scheme_of_classes
from medfocal.data.formats.nnunet import read_nnunet
from medfocal.data.formats.source import list_folders, read_object
from medfocal.data.formats.table import read_table, write_table
from medfocal.data.manifest import SPLITS, Case, LabelScheme, Manifest, check_manifest, listed
from medfocal.errors import DatasetError, InputError

__all__ = ["DatasetFormat", "check_reading", "find_format", "read_dataset", "write_manifest"]

TABLE_ENDINGS = (".csv", ".tsv")


class DatasetFormat(StrEnum):
    """How a dataset lies on the disk."""

    AUTO = "auto"
    DECATHLON = "decathlon"
    NNUNET = "nnunet"
    BIDS = "bids"
    TABLE = "table"
    FOLDERS = "folders"


#: Formats to which a setting has something to say; it is refused with the others.
CONCERNED: Mapping[str, frozenset[DatasetFormat]] = {
    "root": frozenset({DatasetFormat.DECATHLON, DatasetFormat.TABLE}),
    "labels": frozenset({DatasetFormat.BIDS, DatasetFormat.FOLDERS}),
}


def read_dataset(
    path: Path | str,
    *,
    format: DatasetFormat | str = DatasetFormat.AUTO,  # noqa: A002  what it is called in data.format
    root: Path | str | None = None,
    labels: str | None = None,
    channels: Sequence[str] | None = None,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    ignore_value: int | None = None,
    resample_channels: bool = False,
    patient_pattern: str | None = None,
    need_images: bool = True,
) -> Manifest:
    r"""Read a dataset of any known format and see that it is sound; no image is opened.

    Args:
        path: A `dataset.json`, a CSV, or a folder.
        format: Which format it has; "auto" tells by what is there.
        root: Folder that the paths of a `dataset.json` or CSV start from; None: the one that holds it.
        labels: Of folders, the folder of the labels or how their names end; of BIDS, what stands in a label's path.
        channels: Channels to take, in order; None: all.
        classes: What label values mean, such as `{"tumour": [1, 2], "oedema": 3}`; names whose values overlap are
            regions. None: what the dataset says, or else that 1 is a lesion.
        ignore_value: Label value of voxels that nobody judged; None: what the dataset says, or none where `classes` are
            given.
        resample_channels: Whether the images of a case may lie on grids of their own.
        patient_pattern: Regular expression with one group that finds the patient in the name of a case, such as
            `^(sub-\d+)`, where the dataset names no patients. None: each case is a patient of its own.
        need_images: Whether cases of which there are masks only are refused.

    Returns:
        The manifest, with absolute paths.

    Raises:
        ValueError: A setting makes no sense.
        InputError: The place does not exist or cannot be read.
        DatasetError: It is not sound; everything that is wrong with it is named.
    """
    place, chosen = Path(path), DatasetFormat(format)
    start = None if root is None else Path(root)
    check_reading(channels, classes, ignore_value, patient_pattern)
    chosen = find_format(place) if chosen is DatasetFormat.AUTO else chosen
    for name, value in (("root", root), ("labels", labels)):
        if value is not None and chosen not in CONCERNED[name]:
            message = f"'{place}': data.{name} has no effect on a dataset of format {chosen}; leave it out"
            raise DatasetError(message)
    found = _read(place, chosen, root=start, labels=labels, channels=channels, with_labels=classes is None)
    faults = list(found.faults)
    scheme = found.scheme or ONE_LESION
    if classes is not None:
        scheme = scheme_of_classes(classes, ignore_value)
    elif ignore_value is not None and ignore_value in (scheme.values or scheme.names):
        faults.append(f"{ignore_value} is both the ignored value and the value of a class")
    else:
        scheme = replace(scheme, ignore_value=scheme.ignore_value if ignore_value is None else ignore_value)
    named = _with_patients(found.cases, patient_pattern, faults)
    cases = tuple(replace(case, resample_channels=case.resample_channels or resample_channels) for case in named)
    manifest = Manifest(found.path, found.name, found.channels, scheme, cases, _sentence(chosen, found, scheme))
    check_manifest(manifest, need_images=need_images, faults=faults)
    return manifest


def write_manifest(manifest: Manifest, path: Path | str) -> dict[str, Any]:
    """Write a manifest as a Decathlon `dataset.json` or as a CSV, by the ending, with paths relative to it.

    Args:
        manifest: Any dataset.
        path: Ends in `.json` or `.csv`.

    Returns:
        Settings that `read_dataset` needs to read the same again: none for a `dataset.json`; for a CSV, which does not
        say them, `classes`, `ignore_value` and `resample_channels`, where they are not the usual ones. The name of the
        dataset is that of the CSV.

    Raises:
        ValueError: The ending is another.
        DatasetError: The format cannot hold it.
        ResourceError: It cannot be written.
    """
    place = Path(path)
    if place.suffix.lower() == ".json":
        write_decathlon(manifest, place)
        return {}
    if place.suffix.lower() != ".csv":
        message = f"a manifest is written as .json or .csv, got '{place}'"
        raise ValueError(message)
    write_table(manifest, place)
    return _unsaid(manifest)


def find_format(place: Path) -> DatasetFormat:
    """Tell the format of a dataset by what is there.

    Raises:
        InputError: Nothing is there, or a file that is no dataset.
        DatasetError: It could be more than one.
    """
    if place.is_dir():
        return _format_of_folder(place)
    if place.suffix.lower() in TABLE_ENDINGS and place.is_file():
        return DatasetFormat.TABLE
    if not place.exists():
        message = f"the dataset '{place}' does not exist. Set data.dataset to a dataset.json, a CSV or a folder."
        raise InputError(message)
    if place.suffix.lower() == ".json":
        return _format_of_json(place)
    message = f"the dataset '{place}' is neither a .json nor a .csv file nor a folder"
    raise InputError(message)


def _format_of_folder(folder: Path) -> DatasetFormat:
    found = []
    if (folder / "dataset.json").is_file():
        found.append(_format_of_json(folder / "dataset.json"))
    subfolders = {place.name for place in list_folders(folder)}
    if "derivatives" in subfolders and any(name.startswith("sub-") for name in subfolders):
        found.append(DatasetFormat.BIDS)
    if len(found) > 1:
        message = f"'{folder}' could be of format {' or '.join(found)}; choose one by data.format"
        raise DatasetError(message)
    if not found and "imagesTr" in subfolders:
        message = (
            f"'{folder}' looks like nnU-Net's raw data but has no dataset.json. Add it, or give both folders: "
            f"data.dataset={folder / 'imagesTr'} data.labels={folder / 'labelsTr'}"
        )
        raise DatasetError(message)
    return found[0] if found else DatasetFormat.FOLDERS


def _format_of_json(file: Path) -> DatasetFormat:
    content = read_object(file)
    names_values = content.get("labels")
    is_reversed = isinstance(names_values, dict) and "background" in names_values
    if (is_reversed or "file_ending" in content) and not set(SPLITS) & set(content):
        return DatasetFormat.NNUNET
    return DatasetFormat.DECATHLON


def _read(
    place: Path,
    chosen: DatasetFormat,
    *,
    root: Path | None,
    labels: str | None,
    channels: Sequence[str] | None,
    with_labels: bool,
) -> FoundDataset:
    if chosen in {DatasetFormat.BIDS, DatasetFormat.FOLDERS}:
        if not place.is_dir():
            message = f"'{place}' is not a folder, which a dataset of format {chosen} is"
            raise InputError(message)
        read = read_bids if chosen is DatasetFormat.BIDS else read_folders
        return read(place, channels=channels, labels=labels)
    if chosen is DatasetFormat.NNUNET:
        return _select_channels(read_nnunet(place, with_labels=with_labels), channels)
    if chosen is DatasetFormat.TABLE:
        return _select_channels(read_table(place, root=root), channels)
    file = place / "dataset.json" if place.is_dir() else place
    return _select_channels(read_decathlon(file, root=root, with_labels=with_labels), channels)


def _select_channels(found: FoundDataset, channels: Sequence[str] | None) -> FoundDataset:
    if channels is None:
        return found
    unknown = [name for name in channels if name not in found.channels]
    if unknown:
        fault = f"there is no channel {listed(unknown)}; there are {', '.join(found.channels) or 'none'}"
        return replace(found, faults=[*found.faults, fault])
    numbers = [found.channels.index(name) for name in channels]
    cases = [replace(case, images=tuple(case.images[n] for n in numbers if case.images)) for case in found.cases]
    return replace(found, channels=tuple(channels), cases=cases)


def check_reading(
    channels: Sequence[str] | None, classes: Any, ignore_value: int | None, patient_pattern: str | None
) -> None:
    """Refuse what makes no sense whatever the dataset is.

    Raises:
        ValueError: It does.
    """
    if channels is not None and (not channels or len(set(channels)) < len(channels)):
        message = f"channels must be different names, and one at least, got {list(channels)}"
        raise ValueError(message)
    if classes is not None:
        scheme_of_classes(classes, ignore_value)
    if ignore_value is not None and ignore_value < 1:
        message = f"ignore_value must be 1 or more, got {ignore_value}"
        raise ValueError(message)
    if patient_pattern is not None:
        try:
            num_groups = re.compile(patient_pattern).groups
        except re.error as error:
            message = f"patient_pattern is no regular expression: {error}, got {patient_pattern!r}"
            raise ValueError(message) from error
        if num_groups != 1:
            message = f"patient_pattern must have one group, such as ^(p[0-9]+), got {patient_pattern!r}"
            raise ValueError(message)


def _with_patients(cases: Sequence[Case], pattern: str | None, faults: list[str]) -> list[Case]:
    """Cases with a patient: the dataset's own, or what the pattern finds, or the case itself."""
    if pattern is None:
        return [replace(case, patient=case.patient or case.name) for case in cases]
    if cases and all(case.patient for case in cases):
        faults.append("data.patient_pattern has no effect, since the dataset names the patient of every case")
    named, strange = [], []
    for case in cases:
        match = re.search(pattern, case.name)
        patient = case.patient or (match[1] if match else "") or ""
        strange += [] if patient else [case.name]
        named.append(replace(case, patient=patient or case.name))
    if strange:
        faults.append(f"data.patient_pattern '{pattern}' finds no patient in {listed(strange)}")
    return named


def _sentence(chosen: DatasetFormat, found: FoundDataset, scheme: LabelScheme) -> str:
    """What was understood, in one line."""
    count, channels = len(found.cases), ", ".join(found.channels)
    parts = [f"{count} {'case' if count == 1 else 'cases'}"]
    parts.append(f"channel{'s' * (len(found.channels) != 1)} {channels}" if found.channels else "no images, masks only")
    parts += [found.note] if found.note else []
    num_readers = sorted({len(case.annotations) for case in found.cases} - {0})
    if num_readers:
        least, most = num_readers[0], num_readers[-1]
        parts.append(f"{most} reader{'s' * (most > 1)}" if least == most else f"{least} to {most} readers")
    return f"{chosen}: {', '.join(parts)}; {_meaning(scheme)}"


def _meaning(scheme: LabelScheme) -> str:
    """What label values mean, such as "classes oedema=1, tumour=2+4, ignored 255"."""
    values = scheme.values or {number: number for number in scheme.names}
    of_names = scheme.regions or {name: (number,) for number, name in scheme.names.items() if number}
    parts = [f"{name}={'+'.join(str(v) for v, n in values.items() if n in own)}" for name, own in of_names.items()]
    parts += [] if scheme.ignore_value is None else [f"ignored {scheme.ignore_value}"]
    return f"{'regions' if scheme.regions else 'classes' if len(of_names) > 1 else 'class'} {', '.join(parts)}"


def _unsaid(manifest: Manifest) -> dict[str, Any]:
    """What a table does not say."""
    scheme = manifest.scheme
    settings: dict[str, Any] = {}
    if replace(scheme, ignore_value=None) != ONE_LESION:
        values = scheme.values or {number: number for number in scheme.names}
        of_class = {number: [v for v, n in values.items() if n == number] for number in scheme.names}
        named = scheme.regions or {name: (number,) for number, name in scheme.names.items()}
        settings["classes"] = {name: [v for n in own for v in of_class[n]] for name, own in named.items()}
    if scheme.ignore_value is not None:
        settings["ignore_value"] = scheme.ignore_value
    if any(case.resample_channels for case in manifest.cases):
        settings["resample_channels"] = True
    return settings
