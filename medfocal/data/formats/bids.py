"""A BIDS folder (Gorgolewski et al. 2016): images in `sub-*[/ses-*]/anat`, lesion masks in `derivatives`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfocal.data.formats.found import FoundDataset
from medfocal.data.formats.source import list_folders, list_images
from medfocal.data.manifest import Case, listed
from medfocal.errors import DatasetError

#: How the values of `label-` or `desc-` of a lesion mask end, in any case; `nonlesion` is something else.
LESION_WORDS = re.compile(r"(?<!non)(?<!no)(?<!without)(lesion|tumor|tumour)s?")
MASK_SUFFIXES = ("mask", "dseg", "roi")
#: What names a case together; the patient is the first alone.
CASE_ENTITIES = ("sub", "ses", "run")


def read_bids(path: Path, *, channels: Sequence[str] | None = None, labels: str | None = None) -> FoundDataset:
    """Read a BIDS folder.

    A case is a subject, session and run; its channels are the suffixes of its images with what else their names say,
    such as `FLAIR` or `acq-fast_T1w`. Its label is a file of the same subject, session and, if it names one, run in
    `derivatives`, which ends in `_mask`, `_dseg` or `_roi` and whose `label-` or `desc-` speaks of a lesion or tumour.

    Args:
        path: The folder with `sub-*`.
        channels: Those to take, in order; a suffix alone will do where a case has one image of it. None takes all,
            which every case must have then.
        labels: What stands somewhere in the path of a label below `derivatives`, such as `manual` or `desc-consensus`;
            the rule above does not hold then.

    Raises:
        InputError: A folder cannot be listed.
        DatasetError: There is no image, or no mask.
    """
    images = _grouped(_images_of_subjects(path))
    if not images:
        message = f"'{path}' holds no image in sub-*/anat or sub-*/ses-*/anat"
        raise DatasetError(message)
    masks = [mask for mask in _images_of_derivatives(path) if _is_label(mask, path, labels)]
    if not masks:
        rule = f"has '{labels}' in its path" if labels else "is named like …_label-lesion_mask or …_desc-lesion_mask"
        message = f"'{path}': no file in derivatives/*/sub-*/anat {rule}. Name the labels by data.labels."
        raise DatasetError(message)
    names = tuple(channels) if channels is not None else _all_channels(images.values())
    faults: list[str] = []
    cases = []
    for key, files in images.items():
        name = "_".join(f"{entity}-{value}" for entity, value in zip(CASE_ENTITIES, key, strict=True) if value)
        found = [_channel(files, channel, name, faults) for channel in names]
        own = [mask for mask in masks if mask.belongs_to(key)]
        if len(own) != 1:
            what = ", ".join(str(mask.path.relative_to(path)) for mask in own) or "no label"
            faults.append(f"case '{name}' has {what}; it needs one, empty where there is no lesion")
        elif all(found):
            paths = tuple(image.path.absolute() for image in found if image is not None)
            cases.append(Case(name, f"sub-{key[0]}", "training", paths, own[0].path.absolute()))
    lonely = [str(m.path.relative_to(path)) for m in masks if not any(m.belongs_to(key) for key in images)]
    if lonely:
        faults.append(f"labels without an image: {listed(lonely)}")
    note = f"labels with '{labels}' in their path" if labels else "labels " + _kinds(masks)
    return FoundDataset(path, path.absolute().name, names, cases, faults=faults, note=note)


@dataclass(frozen=True)
class _File:
    """A file with what its name says: `sub-01_acq-fast_T1w` has entities `sub` and `acq` and the suffix `T1w`."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    key: tuple[str, str, str] = field(init=False)

    def __post_init__(self) -> None:
        sub, ses, run = (self.entities.get(entity, "") for entity in CASE_ENTITIES)
        object.__setattr__(self, "key", (sub, ses, run))

    @property
    def channel(self) -> str:
        others = [f"{entity}-{value}" for entity, value in self.entities.items() if entity not in CASE_ENTITIES]
        return "_".join([*others, self.suffix])

    def belongs_to(self, case: tuple[str, str, str]) -> bool:
        """Whether this mask is of a case; one that names no run is of every run."""
        return self.key[:2] == case[:2] and self.key[2] in {"", case[2]}


def _parse(name: str, path: Path) -> _File:
    parts = name.split("_")
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    return _File(path, entities, parts[-1])


def _images_of_subjects(folder: Path) -> list[_File]:
    """Images in the `anat` folders of subjects and sessions."""
    files = []
    for subject in _starting_with("sub-", folder):
        for place in (subject, *_starting_with("ses-", subject)):
            anat = place / "anat"
            files += [_parse(n, f) for n, f in list_images(anat).items()] if anat.is_dir() else []
    return [file for file in files if file.entities.get("sub")]


def _images_of_derivatives(folder: Path) -> list[_File]:
    """Images of each pipeline; some write theirs into `derivatives` itself."""
    derivatives = folder / "derivatives"
    if not derivatives.is_dir():
        return []
    pipelines = [place for place in list_folders(derivatives) if not place.name.startswith("sub-")]
    return [file for place in (derivatives, *pipelines) for file in _images_of_subjects(place)]


def _starting_with(prefix: str, folder: Path) -> list[Path]:
    return [place for place in list_folders(folder) if place.name.startswith(prefix)]


def _grouped(files: Iterable[_File]) -> dict[tuple[str, str, str], list[_File]]:
    groups: dict[tuple[str, str, str], list[_File]] = {}
    for file in files:
        groups.setdefault(file.key, []).append(file)
    return groups


def _is_label(mask: _File, root: Path, labels: str | None) -> bool:
    if labels is not None:
        return labels in mask.path.relative_to(root / "derivatives").as_posix()
    said = [mask.entities.get(entity, "").lower() for entity in ("label", "desc")]
    return mask.suffix in MASK_SUFFIXES and any(re.search(f"(?:{LESION_WORDS.pattern})$", value) for value in said)


def _all_channels(cases: Iterable[Sequence[_File]]) -> tuple[str, ...]:
    return tuple(sorted({file.channel for files in cases for file in files}))


def _channel(files: Sequence[_File], channel: str, case: str, faults: list[str]) -> _File | None:
    """The image of a channel, by its whole name or by its suffix where only one image has it."""
    exact = [file for file in files if file.channel == channel]
    found = exact or [file for file in files if file.suffix == channel]
    if len(found) == 1:
        return found[0]
    has = ", ".join(sorted(file.channel for file in files))
    faults.append(
        f"case '{case}' has {'more than one' if found else 'no'} {channel}, but {has}. "
        "Choose channels that all have, such as data.channels=[FLAIR]."
    )
    return None


def _kinds(masks: Iterable[_File]) -> str:
    return listed({"*_" + "_".join(mask.path.name.split("_")[-2:]) for mask in masks})
