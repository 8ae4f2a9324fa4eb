"""Which files belong to which case, patient and split, and what makes such a set unsound.

`medfocal.data.formats.read_dataset` makes a manifest of a dataset of any known format.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfocal.errors import DatasetError

SPLITS = ("training", "validation", "test")
MOST_CLASSES = 256

# How many names, and how many faults, a message shows before it only counts the others.
NUM_NAMED = 10
NUM_FAULTS = 30

# From so many files of a folder on, listing it once is quicker than asking for each.
NUM_WORTH_LISTING = 8


@dataclass(frozen=True)
class Case:
    """One study.

    Attributes:
        name: Unique in the dataset; output files carry it.
        patient: The unit of splits and of bootstrap; the case's own name if the manifest names none.
        split: "training", "validation" or "test".
        images: One file a channel, in the order of the manifest's channels; none where only masks are at hand.
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
        understood_as: One line that says how its place was read, such as "folders: 34 cases, channel FLAIR, …".
        split_from: Where the splits come from, such as "fold 0 of 5, seed 0".
    """

    path: Path
    name: str
    channels: tuple[str, ...]
    scheme: LabelScheme
    cases: tuple[Case, ...]
    understood_as: str = ""
    split_from: str = "the dataset"

    @property
    def labels(self) -> Mapping[int, str]:
        """Class to name; 0 is the background."""
        return self.scheme.names

    def split(self, name: str) -> tuple[Case, ...]:
        """Cases of one split, in the order of the file."""
        return tuple(case for case in self.cases if case.split == name)


def check_manifest(manifest: Manifest, *, need_images: bool = True, faults: Sequence[str] = ()) -> None:
    """Refuse a dataset that cannot be what was meant, and name everything that is wrong with it.

    That is: no case, a case named twice or not like a file, a patient in two splits, a file that is the image of two
    cases or both image and label, a case to learn from that nobody annotated, and files that do not exist.

    Args:
        manifest: The dataset.
        need_images: Whether a case without an image is refused too.
        faults: Of entries that could not become cases; they are told together with these.

    Raises:
        DatasetError: One or more of these, with the names.
    """
    found = list(faults)
    if not manifest.cases and not found:
        found.append("lists no case: 'training', 'validation' and 'test' are empty or missing")
    found += _faults_of_names(manifest.cases)
    found += find_split_faults(manifest.cases)
    found += _faults_of_files(manifest.cases, need_images=need_images)
    refuse(manifest.path, found)


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Tell what is wrong with a file, all of it, if anything is.

    Raises:
        DatasetError: There is a fault.
    """
    if not faults:
        return
    if len(faults) == 1:
        message = f"'{path}': {faults[0]}"
        raise DatasetError(message)
    shown = [fault.replace("\n", "\n    ") for fault in faults[:NUM_FAULTS]]
    shown += [f"and {len(faults) - NUM_FAULTS} more"] * (len(faults) > NUM_FAULTS)
    message = f"'{path}' has {len(faults)} faults:\n  - " + "\n  - ".join(shown)
    raise DatasetError(message)


def find_split_faults(cases: Sequence[Case]) -> list[str]:
    """What is wrong with a division into splits: a patient in two of them, or a case to learn from without marks."""
    homes: dict[str, dict[str, None]] = {}
    for case in cases:
        homes.setdefault(case.patient, {})[case.split] = None
    torn = {patient: list(splits) for patient, splits in homes.items() if len(splits) > 1}
    faults = []
    if torn:
        splits = sorted({split for found in torn.values() for split in found}, key=SPLITS.index)
        faults.append(
            f"{len(torn)} {'patient is' if len(torn) == 1 else 'patients are'} in more than one of "
            f"{', '.join(map(repr, splits))}: {listed(torn)}. Split by patient, not by case."
        )
    bare = [case.name for case in cases if case.split != "test" and not case.is_annotated]
    if bare:
        faults.append(
            f"'label' and 'annotations' are missing of {_cases(len(bare))} to learn from: {listed(bare)}; only test "
            "cases may do without both"
        )
    return faults


def listed(names: Iterable[str]) -> str:
    """Name the first few in order and count the others."""
    found = sorted(names)
    return ", ".join(found[:NUM_NAMED]) + (f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else "")


def _faults_of_names(cases: Sequence[Case]) -> list[str]:
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    faults = [f"lists {listed(twice)} more than once. Each case needs a name of its own."] if twice else []
    faults += [
        f"a case name becomes a file name, so {name!r} cannot be one"
        for name in dict.fromkeys(case.name for case in cases)
        if name.startswith(".") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > 200
    ]
    return faults


def _faults_of_files(cases: Sequence[Case], *, need_images: bool) -> list[str]:
    faults = []
    blind = [case.name for case in cases if not case.images]
    if blind and need_images:
        faults.append(f"{_cases(len(blind))} without an image, of which masks only are known: {listed(blind)}")
    owners: dict[Path, dict[str, None]] = {}
    for case in cases:
        for image in case.images:
            owners.setdefault(image, {})[case.name] = None
    faults += [f"'{file}' is the image of {listed(names)}" for file, names in owners.items() if len(names) > 1]
    for case in cases:
        if len(set(case.images)) < len(case.images):
            faults.append(f"case '{case.name}': two channels are one file: {', '.join(map(str, case.images))}")
        both = set(case.images) & {case.label, *case.annotations}
        faults += [f"case '{case.name}': '{file}' is both an image and a label or annotation" for file in both]
        if len(set(case.annotations)) < len(case.annotations):
            faults.append(
                f"case '{case.name}': 'annotations' names a file twice, so a reader would be compared with himself"
            )
    absent = _absent(file for case in cases for file in case.files)
    missing = [f"case '{case.name}': '{file}'" for case in cases for file in case.files if file in absent]
    if missing:
        more = f"\n    … and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
        shown = "\n    ".join(missing[:NUM_NAMED]) + more
        faults.append(
            f"{len(missing)} {'file' if len(missing) == 1 else 'files'} named in it "
            f"{'does' if len(missing) == 1 else 'do'} not exist:\n    {shown}\n"
            "    Correct the paths there, or set data.root to the folder that they start from."
        )
    return faults


def _absent(files: Iterable[Path]) -> set[Path]:
    """Those that are no files; each folder is listed once where many of its files are asked for."""
    folders: dict[Path, list[Path]] = {}
    for file in dict.fromkeys(files):
        folders.setdefault(file.parent, []).append(file)
    absent: set[Path] = set()
    for folder, wanted in folders.items():
        names = _names_of_files(folder) if len(wanted) >= NUM_WORTH_LISTING else frozenset()
        # A name that is not listed may still be found: some disks know a name in another case or composition.
        absent |= {file for file in wanted if file.name not in names and not _is_file(file)}
    return absent


def _names_of_files(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False


def _cases(count: int) -> str:
    return f"{count} {'case' if count == 1 else 'cases'}"
