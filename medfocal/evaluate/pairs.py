"""Which prediction belongs to which reference."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from medfocal.errors import ConfigError, DatasetError, InputError
from medfocal.volume import IMAGE_ENDINGS, is_volume, volume_name

# What a file of a case may be called besides the case: `sub-01_mask.nii.gz` is of case sub-01.
NAME_TAILS = ("_mask", "_probability", "_label")
Missing = Literal["error", "empty"]
Extra = Literal["error", "skip"]

# How many files a message names before it only counts the others.
NUM_NAMED = 10


@dataclass(frozen=True)
class Pair:
    """The files of a case.

    Attributes:
        case: Name of the case.
        patient: Name of the patient.
        reference: File of the reference.
        prediction: File of the prediction; None if there is none and that counts as nothing found.
        ignore: Mask of the region where nothing is right or wrong, if there is one.
    """

    case: str
    patient: str
    reference: Path
    prediction: Path | None
    ignore: Path | None = None


def find_pairs(
    reference: Path | None,
    prediction: Path | None,
    *,
    manifest: Path | None = None,
    ignore: Path | None = None,
    missing: Missing = "error",
    extra: Extra = "error",
    fused: Path | None = None,
) -> list[Pair]:
    """Pair files by case name; nothing is read but the manifest.

    Args:
        reference: Folder of label maps, one file, or a pattern such as `folder/*_label.nii.gz`.
        prediction: Folder of masks or probability maps, one file, or a pattern. Two files are paired whatever their
            names; else files of one case are, the case being the file name without the image ending and
            `_mask`, `_probability` or `_label`.
        manifest: CSV with the columns `case` and, where wanted, `patient`, `reference` and `prediction` (paths
            relative to the CSV), and `ignore`. With both paths it names all files, and `reference` and `prediction` are
            None. Without it each case is its own patient. Under missing="empty" a prediction may be left out.
        ignore: Folder, file or pattern of masks where nothing is right or wrong; a case need not have one.
        missing: What a reference without a prediction is: an "error", or "empty", nothing found.
        extra: What a prediction without a reference is: an "error", or "skip", left out.
        fused: Folder that will hold a reference of each prediction, `<case>.nii.gz`, where none is given otherwise.

    Raises:
        ConfigError: The files are named twice, by arguments and by the manifest, or not at all.
        DatasetError: There is no case, or reference and prediction don't pair one to one.
        InputError: The manifest or a folder cannot be read.
    """
    rows = _read_manifest(Path(manifest), missing) if manifest is not None else None
    if rows is not None and rows[0].reference:
        if reference is not None or prediction is not None:
            message = (
                f"'{manifest}' names references and predictions, but '{reference}' and '{prediction}' are given too."
                " Give one or the other."
            )
            raise ConfigError(message)
        folder = Path(str(manifest)).parent
        pairs = [
            Pair(
                row.case,
                row.patient,
                folder / row.reference,
                folder / row.prediction if row.prediction else None,
                folder / row.ignore if row.ignore else None,
            )
            for row in rows
        ]
        return _with_ignored(pairs, ignore)
    if prediction is None or (reference is None and fused is None):
        message = "a reference and a prediction are needed, or a manifest with the columns reference and prediction"
        raise ConfigError(message)
    files: dict[str, tuple[Path, Path | None]]
    if reference is not None:
        files = _pair_names(Path(reference), Path(prediction), missing, extra)
    else:
        assert fused is not None
        predictions = find_files(Path(prediction), "prediction")
        files = {case: (fused / f"{case}.nii.gz", file) for case, file in predictions.items()}
    patients = {row.case: row.patient for row in rows} if rows is not None else {case: case for case in files}
    _check_patients(list(files), patients, manifest)
    return _with_ignored([Pair(case, patients[case], *files[case]) for case in sorted(files)], ignore)


def _with_ignored(pairs: list[Pair], ignore: Path | None) -> list[Pair]:
    if ignore is None:
        return pairs
    cases = {pair.case for pair in pairs}
    if ignore.is_file() and len(pairs) == 1:
        return [replace(pairs[0], ignore=ignore)]
    files = find_files(ignore, "region to be ignored")
    strange = sorted(files.keys() - cases)
    if strange:
        message = (
            f"{len(strange)} of {len(files)} regions to be ignored in '{ignore}' are of no case:"
            f" {some(files[case].name for case in strange)}. Remove them, or name them after the cases."
        )
        raise DatasetError(message)
    return [replace(pair, ignore=files.get(pair.case, pair.ignore)) for pair in pairs]


def _pair_names(
    reference: Path, prediction: Path, missing: Missing, extra: Extra
) -> dict[str, tuple[Path, Path | None]]:
    references, predictions = find_files(reference, "reference"), find_files(prediction, "prediction")
    if reference.is_file() and prediction.is_file():
        return dict.fromkeys(references, (reference, prediction))
    if not references.keys() & predictions.keys():  # two patterns may differ in more than the star
        references, predictions = (
            find_files(place, role, rename=partial(starred, place))
            for place, role in ((reference, "reference"), (prediction, "prediction"))
        )
    lonely = sorted(references.keys() - predictions.keys())
    if lonely and missing == "error":
        message = (
            f"{len(lonely)} of {len(references)} references have no prediction in '{prediction}':"
            f" {some(references[case].name for case in lonely)}; it holds"
            f" {some(file.name for file in predictions.values())}. Predict them, remove the references, name the"
            " pairs in a manifest, or let missing=empty count them as nothing found."
        )
        raise DatasetError(message)
    if len(lonely) == len(references):
        message = (
            f"none of the {len(references)} references (such as '{references[lonely[0]].name}') has a prediction in"
            f" '{prediction}': {some(file.name for file in predictions.values())}. Name the files after the cases."
        )
        raise DatasetError(message)
    unknown = sorted(predictions.keys() - references.keys())
    if unknown and extra == "error":
        message = (
            f"{len(unknown)} of {len(predictions)} predictions have no reference in '{reference}':"
            f" {some(predictions[case].name for case in unknown)}. Add the references, remove the predictions, name"
            " the pairs in a manifest, or let extra=skip leave them out."
        )
        raise DatasetError(message)
    return {case: (references[case], predictions.get(case)) for case in references}


def find_files(
    path: Path, role: str, *, rename: Callable[[Path, str], str] = lambda _path, case: case
) -> dict[str, Path]:
    """Find the images of a folder, of a pattern or a single one, by the case that each name says.

    Args:
        path: Folder, file or pattern.
        role: What messages call the files, such as "prediction".
        rename: Makes the case of a file and of the case that its name says.

    Raises:
        InputError: The place does not exist.
        DatasetError: It holds no image, or two of one case.
    """
    is_pattern = "*" in path.name and not path.exists()
    if not (path.parent if is_pattern else path).exists():
        message = f"the {role} '{path}' does not exist"
        raise InputError(message)
    paths = sorted(path.parent.glob(path.name) if is_pattern else path.iterdir() if path.is_dir() else [path])
    paths = [file for file in paths if file.is_file() and is_volume(file) and not file.name.startswith(".")]
    if not paths:
        message = (
            f"there is no image in '{path}', given as {role}. Files must end with one of {', '.join(IMAGE_ENDINGS)}."
        )
        raise DatasetError(message)
    files: dict[str, Path] = {}
    for file in paths:
        case = rename(file, _case_name(file))
        if case in files:
            message = (
                f"'{files[case].name}' and '{file.name}' in '{path}' are both a {role} of case '{case}'. Choose"
                f" by a pattern such as {role}='{path}/*_probability.nii.gz', or name the pairs in a manifest."
            )
            raise DatasetError(message)
        files[case] = file
    return files


def _case_name(path: Path) -> str:
    name = volume_name(path)
    for tail in NAME_TAILS:
        if name.endswith(tail) and name != tail:
            return name.removesuffix(tail)
    return name


@dataclass(frozen=True)
class _ManifestRow:
    case: str
    patient: str
    reference: str
    prediction: str
    ignore: str


def _read_manifest(path: Path, missing: Missing) -> list[_ManifestRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            table = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"the manifest '{path}' cannot be read: {error}"
        raise InputError(message) from error
    known = {"case", "patient", "reference", "prediction", "ignore"}
    if (
        "case" not in columns
        or set(columns) - known
        or len(set(columns)) < len(columns)
        or ("reference" in columns) != ("prediction" in columns)
    ):
        message = (
            f"the manifest '{path}' has the columns {', '.join(columns) or 'none'}. It needs 'case' and may have"
            " 'patient', 'reference' with 'prediction', and 'ignore'."
        )
        raise DatasetError(message)
    rows = []
    for line, entry in enumerate(table, start=2):
        may_lack = {"ignore", "prediction"} if missing == "empty" else {"ignore"}
        needed = [column for column in columns if column not in may_lack]
        if None in entry or any(not (entry[column] or "").strip() for column in needed):
            message = f"line {line} of the manifest '{path}' has not one value for each of {', '.join(needed)}"
            raise DatasetError(message)
        cells = {column: (entry[column] or "").strip() for column in columns}
        case = cells["case"]
        paths = [cells.get(name, "") for name in ("reference", "prediction", "ignore")]
        rows.append(_ManifestRow(case, cells.get("patient", case), *paths))
    cases = [row.case for row in rows]
    double = sorted({case for case in cases if cases.count(case) > 1})
    if double or not rows:
        what = f"names cases more than once: {some(double)}" if double else "names no case"
        message = f"the manifest '{path}' {what}. Give each case one line."
        raise DatasetError(message)
    return rows


def _check_patients(cases: list[str], patients: dict[str, str], manifest: Path | None) -> None:
    missing, surplus = sorted(set(cases) - patients.keys()), sorted(patients.keys() - set(cases))
    if missing:
        message = f"{len(missing)} cases are not in the manifest '{manifest}': {some(missing)}. Add a line for each."
        raise DatasetError(message)
    if surplus:
        message = (
            f"{len(surplus)} cases of the manifest '{manifest}' have no files: {some(surplus)}. Remove their lines."
        )
        raise DatasetError(message)


def starred(place: Path, path: Path, case: str) -> str:
    """What the star of a pattern stands for in a file name; `case` where the place has not one star."""
    before, star, after = place.name.partition("*")
    if not star or "*" in after:
        return case
    return path.name[len(before) : len(path.name) - len(after)]


def some(names: Iterable[str]) -> str:
    """Name the first few and count the others."""
    names = list(names)
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
