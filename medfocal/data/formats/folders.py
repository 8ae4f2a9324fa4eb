"""Images and labels told apart by their folders or by how their names end.

Files of a case begin with its name: `p19_FLAIR`, `p19_T1` and `p19_mask` are of case p19, and so are `p19_r1` and
`p19_r2`, the marks of two readers. What can be understood in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfocal.data.formats.found import FoundDataset
from medfocal.data.formats.source import list_folders, list_images
from medfocal.data.manifest import Case, listed
from medfocal.errors import DatasetError
from medfocal.volume import IMAGE_ENDINGS

#: How the name of a label ends unless `data.labels` says otherwise.
LABEL_WORDS = ("mask", "label", "labels", "seg", "segmentation", "lesion", "lesions", "roi", "annotation")
#: The number of a reader at the end of a name: `_r1`, `_rater-2`.
READER = re.compile(r"_(?:r|rater|reader)-?(\d+)$", re.IGNORECASE)
#: What a channel is called whose files have nothing behind the name of the case.
IMAGE = "image"
#: Folders that people keep images and labels apart in.
USUAL_FOLDERS = frozenset({"image", "images", "imagestr", "label", "labels", "labelstr", "masks", "mask", "segs"})


def read_folders(path: Path, *, labels: str | None = None, channels: Sequence[str] | None = None) -> FoundDataset:
    """Read a folder of images, or of one folder a case, with labels beside them or in another folder.

    Args:
        path: Folder of the images; where it holds folders only, the files in these.
        labels: Folder of the labels; or how the names of the labels end where they lie beside the images. None: with
            one of `LABEL_WORDS`.
        channels: What stands behind the name of the case in the names of its images, in order; other images are left
            out. None takes all, which every case must have then.

    Returns:
        The cases, all for training; without images where only masks are there.

    Raises:
        InputError: A folder cannot be listed.
        DatasetError: Images and labels cannot be told apart.
    """
    own = _images_in(path)
    folder = _folder_of_labels(path, labels)
    left: list[str] = []
    if folder is not None:
        marks, others = _labels_of_folder(list_images(folder), own), own
    else:
        ending = labels.lstrip("_*") if labels is not None else None
        if ending is not None and "/" in ending:
            message = f"data.labels: the folder '{labels}' does not exist"
            raise DatasetError(message)
        marks = [mark for name, file in own.items() if (mark := _mark(name, file, ending)) is not None]
        drawn = {mark.file for mark in marks}
        others = {name: file for name, file in own.items() if file not in drawn}
        left = [name for name in others if _label_word(name)] if channels is None else []
    if not marks:
        _refuse_without_labels(path, folder, own, labels)
    stems = _Stems(mark.stem for mark in marks)
    faults: list[str] = []
    if left:
        faults.append(
            f"{listed(left)} {'is' if len(left) == 1 else 'are'} named like a label too. Name the images: "
            "data.channels=[…], or which files are labels: data.labels=ENDING"
        )
    images = _assign_images({name: file for name, file in others.items() if name not in left}, stems, channels, faults)
    names = tuple(channels) if channels is not None else tuple(sorted({tail for of in images.values() for tail in of}))
    cases = [
        case
        for stem, files in _of_cases(marks).items()
        if (case := _case(stems.short[stem], files, images.get(stem, {}), names, faults)) is not None
    ]
    note = "labels " + listed({stems.described(mark) for mark in marks})
    note += f" in '{folder}'" if folder is not None else ""
    return FoundDataset(path, path.absolute().name, names, cases, faults=faults, note=note)


@dataclass(frozen=True)
class _Mark:
    """A file that somebody drew.

    Attributes:
        stem: Its name up to what tells that it is a label and whose.
        tail: The rest, such as "mask_r1".
        reader: Number of the reader, None of a label.
    """

    file: Path
    stem: str
    tail: str
    reader: int | None


class _Stems:
    """Names of cases, from those of their labels.

    What all names have at their end says nothing of the case: `STS_001_PET_mask` and `STS_002_PET_mask` are of the
    cases STS_001 and STS_002. A number is never taken away so.

    Args:
        stems: Of the labels.

    Attributes:
        short: Stem of the labels to name of the case.
    """

    def __init__(self, stems: Iterable[str]) -> None:
        whole = list(dict.fromkeys(stems))
        parts = {stem: stem.split("_") for stem in whole}
        while len(whole) > 1:
            last = {own[-1] for own in parts.values()}
            shorter = {stem: own[:-1] for stem, own in parts.items()}
            is_number = any(character.isdigit() for character in min(last))
            if len(last) > 1 or is_number or not all(shorter.values()):
                break
            if len({"_".join(own) for own in shorter.values()}) < len(whole):
                break
            parts = shorter
        self.short: dict[str, str] = {stem: "_".join(own) for stem, own in parts.items()}
        self._whole = {short: stem for stem, short in self.short.items()}

    def find(self, name: str) -> tuple[str, str] | None:
        """The stem whose case has the longest name that an image's begins with, and what follows it."""
        parts = name.split("_")
        for length in range(len(parts), 0, -1):
            stem = self._whole.get("_".join(parts[:length]))
            if stem is not None:
                return stem, "_".join(parts[length:])
        return None

    def described(self, mark: _Mark) -> str:
        """A label's name with a star for the case."""
        rest = mark.stem[len(self.short[mark.stem]) :].strip("_")
        return "_".join(part for part in ("*", rest, re.sub(r"\d+$", "N", mark.tail)) if part)


def _images_in(path: Path) -> dict[str, Path]:
    """Images of a folder by name; of a folder a case where it has none of its own, named for their folder too."""
    own = list_images(path)
    if own:
        return own
    folders = list_folders(path)
    usual = [folder.name for folder in folders if folder.name.lower() in USUAL_FOLDERS]
    if usual:
        message = (
            f"'{path}' has images and labels in folders of their own: {listed(usual)}. Give both, such as "
            f"data.dataset={path / 'images'} data.labels={path / 'labels'}"
        )
        raise DatasetError(message)
    found: dict[str, Path] = {}
    for folder in folders:
        for name, file in list_images(folder).items():
            whole = name if name == folder.name or name.startswith(f"{folder.name}_") else f"{folder.name}_{name}"
            other = found.setdefault(whole, file)
            if other is not file:
                message = f"'{other}' and '{file}' would both be '{whole}'"
                raise DatasetError(message)
    if not found:
        message = f"'{path}' holds no image, and no folders with images. Endings known: {', '.join(IMAGE_ENDINGS)}"
        raise DatasetError(message)
    return found


def _folder_of_labels(path: Path, labels: str | None) -> Path | None:
    """The folder that `labels` names, from here or from beside the images; None where it is an ending or not given."""
    if labels is None:
        return None
    for folder in (Path(labels), path / labels):
        if folder.is_dir():
            return folder
    return None


def _labels_of_folder(files: Mapping[str, Path], images: Mapping[str, Path]) -> list[_Mark]:
    """Labels of a folder of their own; one that has the whole name of an image is of no reader in particular."""
    return [
        _Mark(file, name, "", None) if name in images else _mark(name, file, None) or _Mark(file, name, "", None)
        for name, file in files.items()
    ]


def _mark(name: str, file: Path, ending: str | None) -> _Mark | None:
    """What a file's name says of a label or a reader's marks; None if it says that the file is neither.

    Args:
        name: Without the image ending.
        file: The file.
        ending: How labels end; None: with one of `LABEL_WORDS`, and marks with the number of a reader alone too.
    """
    match = READER.search(name)
    base = name[: match.start()] if match else name
    word = _label_word(base) if ending is None else ending if base.endswith(f"_{ending}") else ""
    if not base or not (word or (match and ending is None)):
        return None
    stem = base[: -len(word) - 1] if word else base
    return _Mark(file, stem, name[len(stem) + 1 :], int(match[1]) if match else None)


def _label_word(name: str) -> str:
    """The word at the end of a name that tells a label, "" if none does."""
    stem, _, last = name.rpartition("_")
    return last if stem and last.lower() in LABEL_WORDS else ""


def _assign_images(
    files: Mapping[str, Path], stems: _Stems, channels: Sequence[str] | None, faults: list[str]
) -> dict[str, dict[str, Path]]:
    """Images by the stem of their case's labels, then by channel."""
    images: dict[str, dict[str, Path]] = {}
    lonely = []
    for name, file in files.items():
        found = stems.find(name)
        if found is None:
            lonely.append(name)
        elif channels is None or (found[1] or IMAGE) in channels:
            images.setdefault(found[0], {})[found[1] or IMAGE] = file
    if lonely:
        faults.append(
            f"no label begins like {'this image' if len(lonely) == 1 else f'these {len(lonely)} images'}: "
            f"{listed(lonely)}; labels are of {listed(stems.short.values())}"
        )
    return images


def _of_cases(marks: Iterable[_Mark]) -> dict[str, list[_Mark]]:
    cases: dict[str, list[_Mark]] = {}
    for mark in marks:
        cases.setdefault(mark.stem, []).append(mark)
    return cases


def _case(
    name: str, marks: Sequence[_Mark], images: Mapping[str, Path], channels: Sequence[str], faults: list[str]
) -> Case | None:
    labels = [mark for mark in marks if mark.reader is None]
    readers = sorted((mark for mark in marks if mark.reader is not None), key=lambda mark: mark.reader or 0)
    numbers = [mark.reader for mark in readers]
    if len(labels) > 1 or len(set(numbers)) < len(numbers):
        two = labels if len(labels) > 1 else readers
        faults.append(
            f"case '{name}' has more than one label: {', '.join(mark.file.name for mark in two)}. "
            f"Say how the right ones end, such as data.labels={two[0].tail}"
        )
        return None
    missing = [channel for channel in channels if channel not in images]
    if missing:
        has = f"; it has {listed(images)}" if images else ""
        faults.append(
            f"case '{name}' has no image {listed(missing)}{has}. Choose channels that all cases have, such as "
            f"data.channels=[{channels[0]}], or move its files away."
        )
        return None
    return Case(
        name,
        "",
        "training",
        tuple(images[channel].absolute() for channel in channels),
        labels[0].file.absolute() if labels else None,
        tuple(mark.file.absolute() for mark in readers),
    )


def _refuse_without_labels(path: Path, folder: Path | None, own: Mapping[str, Path], labels: str | None) -> None:
    if folder is not None:
        message = f"the folder of labels '{folder}' holds no image"
        raise DatasetError(message)
    rule = f"in '_{labels.lstrip('_*')}'" if labels is not None else f"in one of {', '.join(LABEL_WORDS)}"
    message = (
        f"'{path}': no name ends {rule}, so no label was recognised among {listed(own)}. "
        "Say where they are, data.labels=FOLDER, or how their names end, data.labels=ENDING."
    )
    raise DatasetError(message)
