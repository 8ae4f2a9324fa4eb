"""A CSV with a line for each case: `case, patient, split, image:FLAIR, image:T1, label, annotations`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfocal.data.formats.found import FoundDataset
from medfocal.data.formats.source import Places, Ways, misspelt
from medfocal.data.manifest import SPLITS, Case, Manifest, listed
from medfocal.errors import DatasetError, InputError
from medfocal.files import write_csv
from medfocal.volume import volume_name

COLUMNS = ("case", "patient", "split", "image", "label", "annotations")
IMAGE = "image"
DELIMITERS = (",", ";", "\t")


def read_table(path: Path, *, root: Path | None = None) -> FoundDataset:
    """Read a table of cases.

    `image:NAME` is a channel, and `image` alone the only one; `annotations` are paths with `;` between them. Without
    `split` all cases are for training, and without `case` each has the name of its first file. Other columns are left
    alone unless they look like one of these.

    Args:
        path: The file, UTF-8, with commas, tabs or semicolons between the cells, whichever its first line has.
        root: Folder that its paths are relative to; by default the one that holds `path`.

    Raises:
        InputError: It cannot be read.
        DatasetError: Its columns do not describe cases.
    """
    columns, rows = _read_cells(path)
    channels = _channels(path, columns)
    faults = []
    cases = []
    reader = _RowReader(columns, channels, Places(root if root is not None else path.parent))
    for line, row in rows:
        try:
            cases.append(reader.read(row))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    names = tuple(column.partition(":")[2].strip() or IMAGE for column in channels)
    return FoundDataset(path, path.stem, names, cases, faults=faults)


def write_table(manifest: Manifest, path: Path) -> None:
    """Write a manifest as a CSV with paths relative to it; what label values mean is not in it.

    Raises:
        DatasetError: A path has a `;`, which stands between annotations.
        ResourceError: It cannot be written.
    """
    way_to = Ways(path.absolute().parent)
    channels = [IMAGE if manifest.channels == (IMAGE,) else f"{IMAGE}:{name}" for name in manifest.channels]
    rows = []
    for case in manifest.cases:
        annotations = [way_to(annotation) for annotation in case.annotations]
        if any(";" in annotation for annotation in annotations):
            message = f"case '{case.name}': ';' stands between annotations and cannot be in a path: {annotations}"
            raise DatasetError(message)
        images = [way_to(image) for image in case.images]
        row = {"case": case.name, "patient": case.patient, "split": case.split, "annotations": ";".join(annotations)}
        row |= dict(zip(channels, images, strict=False))
        row |= {} if case.label is None else {"label": way_to(case.label)}
        rows.append(row)
    write_csv(path, rows, ["case", "patient", "split", *channels, "label", "annotations"])


@dataclass(frozen=True)
class _RowReader:
    columns: Sequence[str]
    channels: Sequence[str]
    places: Places

    def read(self, row: Sequence[str]) -> Case:
        if len(row) != len(self.columns):
            message = f"{len(row)} cells where the first line has {len(self.columns)}"
            raise ValueError(message)
        cells = {column: cell.strip() for column, cell in zip(self.columns, row, strict=True)}
        empty = [column for column in ("case", "patient", "split") if column in cells and not cells[column]]
        if empty:
            message = f"the cell of {', '.join(map(repr, empty))} is empty; fill it, or leave out the column"
            raise ValueError(message)
        images = [cells[channel] for channel in self.channels]
        if any(images) and not all(images):
            message = f"there is no {listed(c for c, image in zip(self.channels, images, strict=True) if not image)}"
            raise ValueError(message)
        images = [image for image in images if image]
        label = cells.get("label", "")
        annotations = [part.strip() for part in cells.get("annotations", "").split(";") if part.strip()]
        if not (images or label or annotations):
            message = "no file is named"
            raise ValueError(message)
        return Case(
            name=cells.get("case", volume_name(Path([*images, label, *annotations][0] or annotations[0]))),
            patient=cells.get("patient", ""),
            split=_split(cells),
            images=tuple(self.places(image) for image in images),
            label=self.places(label) if label else None,
            annotations=tuple(self.places(annotation) for annotation in annotations),
        )


def _split(cells: Mapping[str, str]) -> str:
    split = cells.get("split", "training")
    if split not in SPLITS:
        near = {"train": "training", "val": "validation", "valid": "validation"} | dict(misspelt([split], SPLITS))
        hint = f" (did you mean '{near[split.lower()]}'?)" if split.lower() in near else ""
        message = f"split must be one of {', '.join(SPLITS)}, got '{split}'{hint}"
        raise ValueError(message)
    return split


def _read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Columns, and the other lines with their numbers; empty ones are left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        message = f"the table '{path}' is not UTF-8: {error}. Save it as 'CSV UTF-8'."
        raise InputError(message) from error
    except (OSError, csv.Error) as error:
        message = f"the table '{path}' cannot be read: {error}"
        raise InputError(message) from error
    columns = [cell.strip() for cell in lines[0][1]] if lines else []
    return columns, lines[1:]


def _channels(path: Path, columns: Sequence[str]) -> list[str]:
    """The columns of images."""
    named = [column for column in columns if column.partition(":")[0].strip() == IMAGE and ":" in column]
    faults = [
        f"there is no column '{column}' (did you mean '{near}'?)"
        for column, near in misspelt([c.partition(":")[0].strip() for c in columns], COLUMNS).items()
    ]
    twice = [column for column, count in Counter(columns).items() if count > 1 and column]
    if twice:
        faults.append(f"the column '{twice[0]}' is there twice")
    if named and IMAGE in columns:
        faults.append(f"there are both '{IMAGE}' and '{named[0]}'; with several channels each is an '{IMAGE}:NAME'")
    if any(not column.partition(":")[2].strip() for column in named):
        faults.append(f"'{IMAGE}:' needs the name of a channel, such as '{IMAGE}:FLAIR'")
    if not named and not {IMAGE, "label", "annotations"} & set(columns):
        faults.append("no column names files")
    if faults:
        message = (
            f"the table '{path}' has the columns {', '.join(columns) or 'none'}: {'; '.join(faults)}. Known are "
            f"{', '.join(COLUMNS)}, and {IMAGE}:NAME for each of several channels."
        )
        raise DatasetError(message)
    return named or [IMAGE] * (IMAGE in columns)
