"""Evaluating files: which prediction belongs to which reference, and whether they share a grid."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfocal.errors import ConfigError, DatasetError, GeometryError, InputError
from medfocal.evaluate.cases import CaseResult, evaluate_case
from medfocal.evaluate.pooled import evaluate_cases
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.results import Evaluation
from medfocal.progress import track
from medfocal.volume import IMAGE_ENDINGS, is_volume, read_labels, read_volume, volume_name

# What a file of a case may be called besides the case: `sub-01_mask.nii.gz` is of case sub-01.
NAME_TAILS = ("_mask", "_probability", "_label")
# How many files a message names before it only counts the others.
NUM_NAMED = 10


@dataclass(frozen=True)
class Pair:
    """The files of a case.

    Attributes:
        case: Name of the case.
        patient: Name of the patient.
        reference: File of the reference.
        prediction: File of the prediction.
    """

    case: str
    patient: str
    reference: Path
    prediction: Path


def evaluate_files(
    reference: Path | None,
    prediction: Path | None,
    *,
    manifest: Path | None = None,
    protocol: Protocol = ANY_OVERLAP,
) -> Evaluation:
    """Evaluate the predictions of a folder against the references of another.

    Args:
        reference: Folder of label maps, one file, or a pattern such as `folder/*_label.nii.gz`. Any label but 0 is
            lesion.
        prediction: Folder of masks or probability maps, one file, or a pattern. Two files are paired whatever their
            names; else files of one case are, the case being the file name without the image ending and
            `_mask`, `_probability` or `_label`.
        manifest: CSV with the columns `case` and, where wanted, `patient`, `reference` and `prediction` (paths
            relative to the CSV). With the last two it names all files, and `reference` and `prediction` are
            None. Without it each case is its own patient.
        protocol: The rules.

    Returns:
        The evaluation.

    Raises:
        ConfigError: The files are named twice, by arguments and by the manifest, or not at all.
        DatasetError: There is no case, or reference and prediction don't pair one to one.
        GeometryError: Reference and prediction of a case lie on different grids.
        InputError: A file is missing, unreadable, or its values make no sense.
    """
    return evaluate_pairs(find_pairs(reference, prediction, manifest=manifest), protocol)


def evaluate_pairs(pairs: Sequence[Pair], protocol: Protocol = ANY_OVERLAP) -> Evaluation:
    """Evaluate what `find_pairs` found; errors as of `evaluate_files`."""
    return evaluate_cases([_evaluate_pair(pair, protocol) for pair in track(pairs, "evaluate")], protocol)


def find_pairs(
    reference: Path | None,
    prediction: Path | None,
    *,
    manifest: Path | None = None,
    fused: Path | None = None,
) -> list[Pair]:
    """Pair the files of `evaluate_files`, by case name; nothing is read but the manifest.

    Args:
        reference: As of `evaluate_files`.
        prediction: As of `evaluate_files`.
        manifest: As of `evaluate_files`.
        fused: Folder that will hold a reference of each prediction, `<case>.nii.gz`, where none is given otherwise.
    """
    rows = _read_manifest(Path(manifest)) if manifest is not None else None
    if rows is not None and all(row.reference and row.prediction for row in rows):
        if reference is not None or prediction is not None:
            message = (
                f"'{manifest}' names references and predictions, but '{reference}' and '{prediction}' are given too."
                " Give one or the other."
            )
            raise ConfigError(message)
        folder = Path(str(manifest)).parent
        return [Pair(row.case, row.patient, folder / row.reference, folder / row.prediction) for row in rows]
    if prediction is None or (reference is None and fused is None):
        message = "a reference and a prediction are needed, or a manifest with the columns reference and prediction"
        raise ConfigError(message)
    if reference is not None:
        files = _pair_names(Path(reference), Path(prediction))
    else:
        assert fused is not None
        predictions = find_files(Path(prediction), "prediction")
        files = {case: (fused / f"{case}.nii.gz", file) for case, file in predictions.items()}
    patients = {row.case: row.patient for row in rows} if rows is not None else {case: case for case in files}
    _check_patients(list(files), patients, manifest)
    return [Pair(case, patients[case], *files[case]) for case in sorted(files)]


def _evaluate_pair(pair: Pair, protocol: Protocol) -> CaseResult:
    reference, prediction = read_labels(pair.reference), read_volume(pair.prediction)
    if not reference.same_grid(prediction):
        message = (
            f"case '{pair.case}': the grids of '{pair.reference}' and '{pair.prediction}' differ:"
            f" {reference.grid_difference(prediction)}. Resample the prediction onto the grid of the reference."
        )
        raise GeometryError(message)
    return evaluate_case(
        reference.array,
        prediction.array,
        reference.affine,
        case=pair.case,
        patient=pair.patient,
        protocol=protocol,
        prediction_name=f"'{pair.prediction}'",
    )


def _pair_names(reference: Path, prediction: Path) -> dict[str, tuple[Path, Path]]:
    references, predictions = find_files(reference, "reference"), find_files(prediction, "prediction")
    if reference.is_file() and prediction.is_file():
        return dict.fromkeys(references, (reference, prediction))
    lonely = sorted(references.keys() - predictions.keys())
    if lonely:
        message = (
            f"{len(lonely)} of {len(references)} references have no prediction in '{prediction}':"
            f" {some(references[case].name for case in lonely)}. Predict them, remove the references, or name the"
            " pairs in a manifest."
        )
        raise DatasetError(message)
    unknown = sorted(predictions.keys() - references.keys())
    if unknown:
        message = (
            f"{len(unknown)} of {len(predictions)} predictions have no reference in '{reference}':"
            f" {some(predictions[case].name for case in unknown)}. Add the references, remove the predictions, or name"
            " the pairs in a manifest."
        )
        raise DatasetError(message)
    return {case: (references[case], predictions[case]) for case in references}


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


def _read_manifest(path: Path) -> list[_ManifestRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            table = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"the manifest '{path}' cannot be read: {error}"
        raise InputError(message) from error
    known = {"case", "patient", "reference", "prediction"}
    if "case" not in columns or set(columns) - known or ("reference" in columns) != ("prediction" in columns):
        message = (
            f"the manifest '{path}' has the columns {', '.join(columns) or 'none'}. It needs 'case' and may have"
            " 'patient', and 'reference' with 'prediction'."
        )
        raise DatasetError(message)
    rows = []
    for line, entry in enumerate(table, start=2):
        if None in entry or any(not (entry[column] or "").strip() for column in columns):
            message = f"line {line} of the manifest '{path}' has not one value for each of {', '.join(columns)}"
            raise DatasetError(message)
        cells = {column: entry[column].strip() for column in columns}
        case = cells["case"]
        rows.append(
            _ManifestRow(case, cells.get("patient", case), cells.get("reference", ""), cells.get("prediction", ""))
        )
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


def some(names: Iterable[str]) -> str:
    """Name the first few and count the others."""
    names = list(names)
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
