"""Several readers and a model, each judged by the marks of the others, by the same rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components
from medfocal.errors import ConfigError, DatasetError, GeometryError, InputError
from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.figures import no_distribution
from medfocal.evaluate.intervals import f1, proportion, rate
from medfocal.evaluate.pairs import Pair, find_files, some, starred
from medfocal.evaluate.pooled import evaluate_cases
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.results import Comparison, ComparisonKind, ReaderStudy
from medfocal.evaluate.table import CaseTable
from medfocal.evaluate.undefined import Undefined
from medfocal.evaluate.values import find_predicted
from medfocal.progress import track
from medfocal.volume import LABEL_TOLERANCE, Volume, read_labels, read_volume, volume_name, write_volume

FUSION = "a voxel is lesion where more than half of the readers of the case marked it"


@dataclass(frozen=True)
class Reader:
    """One reader and what he marked.

    Attributes:
        name: What results call him.
        place: Where his marks lie: a folder, a pattern or a dataset file.
        files: His marks of each case that he read, by the name of the case. Marks without a lesion are a file too.
    """

    name: str
    place: str
    files: Mapping[str, Path]


def find_readers(places: Sequence[str], cases: Sequence[str]) -> list[Reader]:
    """Find what each reader marked in some cases.

    A file belongs to the case that its name without ending and without `_mask`, `_probability` or `_label` says; in a
    pattern with one star, such as `marks/*_reader1.nii.gz`, to the case that the star stands for, where the name
    itself says none of `cases`. A reader need not have read each case, and files of other cases are left out.

    Args:
        places: A folder, a pattern or, where there is one case, a file a reader.
        cases: The cases.

    Returns:
        The readers in the order of their places. They are called by what differs in the places: the name of the
        folder, or of the pattern without star and ending.

    Raises:
        ConfigError: There are fewer than two, or a place is given twice.
        InputError: A place does not exist.
        DatasetError: It holds no image, two of one case, or none of any of the cases.
    """
    if len(places) < 2:
        message = (
            f"readers needs at least two places, got {len(places)}: with one reader there is no other to compare with."
            " Give a single reader as reference."
        )
        raise ConfigError(message)
    meant = [Path(place).resolve() for place in places]
    twice = sorted({place for place, path in zip(places, meant, strict=True) if meant.count(path) > 1})
    if twice:
        message = f"readers holds '{twice[0]}' twice. Give each reader once."
        raise ConfigError(message)
    return [
        Reader(name, place, _files_of(Path(place), cases)) for name, place in zip(_names(places), places, strict=True)
    ]


def readers_of_annotations(annotations: Mapping[str, Sequence[Path]], cases: Sequence[str], place: str) -> list[Reader]:
    """Tell readers apart by their place in each case's list of annotations: the first is reader 1 in every case.

    Args:
        annotations: Marks of each case, by its name.
        cases: Those to be evaluated; others are left out.
        place: What they were read from, for results and messages.

    Raises:
        DatasetError: No case has the annotations of two readers.
    """
    lists = {case: annotations[case] for case in cases if annotations.get(case)}
    most = max(map(len, lists.values()), default=0)
    if most < 2:
        message = (
            f"'{place}' lists the annotations of at most {most} readers for the {len(cases)} cases (such as"
            f" '{cases[0]}'), and two are needed. Name the cases as the dataset file does, or give readers=[DIR1,DIR2]."
        )
        raise DatasetError(message)
    return [
        Reader(
            f"reader {number + 1}", place, {case: paths[number] for case, paths in lists.items() if len(paths) > number}
        )
        for number in range(most)
    ]


def write_fused(pairs: Sequence[Pair], readers: Sequence[Reader]) -> None:
    """Write the fused marks of each case's readers to the pair's reference: 1 where more than half marked a lesion.

    Raises:
        DatasetError: A case was read by nobody; then nothing is written.
        GeometryError: Readers of a case lie on different grids.
        InputError: Marks cannot be read, or are neither classes nor shares.
        ResourceError: A file cannot be written.
    """
    unread = [pair.case for pair in pairs if not any(pair.case in reader.files for reader in readers)]
    if unread:
        message = (
            f"{len(unread)} of {len(pairs)} cases have no reader, and no reference is given: {some(unread)}. Give"
            " reference=DIR, add their marks, or leave the cases out."
        )
        raise DatasetError(message)
    for pair in track(pairs, "fuse readers"):
        marks = _read_marks(pair.case, readers)
        first = next(iter(marks.values()))
        fused = fuse([mark.array for mark in marks.values()])
        write_volume(pair.reference, first.with_array(fused.astype(np.uint8)))


def fuse(marks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Lesion where more than half of the readers marked it: of one reader his marks, of two what both marked.

    Args:
        marks: One mask a reader, bool (I, J, K); at least one.

    Example:
        >>> fuse([np.array([True, True, False]), np.array([True, False, False])]).tolist()
        [True, False, False]
    """
    votes: NDArray[np.int64] = np.sum(marks, axis=0)
    return 2 * votes > len(marks)


def compare_readers(pairs: Sequence[Pair], readers: Sequence[Reader], protocol: Protocol = ANY_OVERLAP) -> ReaderStudy:
    """Judge each reader and the model by the marks of the other readers.

    Lesions are the connected parts of the marks that judge, candidates those of the marks or the prediction judged;
    all else is as in `evaluate_case` and `evaluate_cases`. A reader's marks have confidence 1. The comparisons are:

    - `reader_against_others`: each reader against the fused others, in the cases that he and another read;
    - `model_against_others`: the model in the same cases against the same marks, so that the two can be compared;
    - `model_against_reader`: the model against each reader alone;
    - `model_against_all`: the model against the fused marks of all readers.

    Args:
        pairs: The cases. Their references are not read.
        readers: At least two.
        protocol: The rules; the model counts from their threshold on.

    Returns:
        The comparisons. One without any case is NaN, with the reason.

    Raises:
        GeometryError: Marks and prediction of a case lie on different grids.
        InputError: A file is missing, unreadable, or its values make no sense.
    """
    results: dict[tuple[ComparisonKind, str], list[CaseTable]] = {
        **{("reader_against_others", reader.name): [] for reader in readers},
        **{("model_against_others", reader.name): [] for reader in readers},
        **{("model_against_reader", reader.name): [] for reader in readers},
        ("model_against_all", ""): [],
    }
    for pair in track(pairs, "compare readers"):
        for key, result in _compare_case(pair, readers, protocol):
            results[key].append(result)
    return ReaderStudy(
        fusion=FUSION,
        readers=[
            {
                "name": reader.name,
                "place": reader.place,
                "num_cases": sum(pair.case in reader.files for pair in pairs),
            }
            for reader in readers
        ],
        num_cases_unread=sum(not any(pair.case in reader.files for reader in readers) for pair in pairs),
        comparisons=[_comparison(*key, found, protocol) for key, found in results.items()],
    )


def _compare_case(
    pair: Pair, readers: Sequence[Reader], protocol: Protocol
) -> list[tuple[tuple[ComparisonKind, str], CaseTable]]:
    marks = _read_marks(pair.case, readers)
    if not marks:
        return []
    assert pair.prediction is not None, "missing predictions are refused where readers are compared"
    grid = read_volume(pair.prediction)
    for name, mark in marks.items():
        if not grid.same_grid(mark):
            message = (
                f"case '{pair.case}': the grids of the prediction '{pair.prediction}' and the marks of reader '{name}'"
                f" differ: {grid.grid_difference(mark)}. Resample the one onto the grid of the other."
            )
            raise GeometryError(message)
    where = f"case '{pair.case}': '{pair.prediction}'"
    # The model's candidates are the same whoever judges, and finding them in a probability map takes most of the time.
    model, _ = find_predicted(grid.array, grid.affine, protocol, where)

    def judged(by: NDArray[np.bool_], judge: Components | NDArray[np.bool_]) -> CaseTable:
        return evaluate_case(by, judge, grid.affine, case=pair.case, patient=pair.patient, protocol=protocol)

    found: list[tuple[tuple[ComparisonKind, str], CaseTable]] = []
    for name, mark in marks.items():
        others = [other.array for other_name, other in marks.items() if other_name != name]
        if others:
            fused = fuse(others)
            found.append((("reader_against_others", name), judged(fused, mark.array)))
            found.append((("model_against_others", name), judged(fused, model)))
        found.append((("model_against_reader", name), judged(mark.array, model)))
    found.append((("model_against_all", ""), judged(fuse([mark.array for mark in marks.values()]), model)))
    return found


def _comparison(kind: ComparisonKind, reader: str, results: Sequence[CaseTable], protocol: Protocol) -> Comparison:
    if not results:
        level = protocol.level
        why = "no case was read by this reader and by another" if "others" in kind else "this reader read no case"
        nothing = proportion([], [], level=level)
        return Comparison(
            kind=kind,
            reader=reader,
            num_cases=0,
            num_patients=0,
            num_lesions=0,
            num_detected_lesions=0,
            num_candidates=0,
            num_false_candidates=0,
            lesion_sensitivity=nothing,
            lesion_precision=nothing,
            lesion_f1=f1([], [], [], level=level),
            false_positives_per_case=rate([], [], level=level),
            voxel_dice=no_distribution(level),
            undefined=[Undefined("every figure", "all cases", why)],
        )
    found = evaluate_cases(results, protocol)
    shown = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "voxel_dice: mean and median")
    return Comparison(
        kind=kind,
        reader=reader,
        num_cases=found.num_cases,
        num_patients=found.num_patients,
        num_lesions=found.num_lesions,
        num_detected_lesions=found.num_detected_lesions,
        num_candidates=found.num_candidates,
        num_false_candidates=found.num_false_candidates,
        lesion_sensitivity=found.lesion_sensitivity,
        lesion_precision=found.lesion_precision,
        lesion_f1=found.lesion_f1,
        false_positives_per_case=found.false_positives_per_case,
        voxel_dice=found.voxel_dice,
        undefined=[line for line in found.undefined if line.what in shown],
    )


def _read_marks(case: str, readers: Sequence[Reader]) -> dict[str, Volume]:
    """The mask, bool, of each reader who read a case, on one grid."""
    files = {reader.name: reader.files[case] for reader in readers if case in reader.files}
    marks = {name: _read_mask(case, name, path) for name, path in files.items()}
    for name, mark in marks.items():
        first = next(iter(marks))
        if not marks[first].same_grid(mark):
            message = (
                f"case '{case}': the grids of '{files[first]}' and '{files[name]}' differ:"
                f" {marks[first].grid_difference(mark)}. Resample the marks of one reader onto the grid of the other."
            )
            raise GeometryError(message)
    return marks


def _read_mask(case: str, name: str, path: Path) -> Volume:
    """What a reader marked; a share of a voxel counts as a mark from one half on, as it does in training."""
    volume = read_volume(path)
    array = volume.array
    if array.dtype.kind == "f" and bool((np.abs(array - np.rint(array)) > LABEL_TOLERANCE).any()):
        low, high = float(array.min()), float(array.max())
        if not (low >= -LABEL_TOLERANCE and high <= 1 + LABEL_TOLERANCE):
            message = (
                f"case '{case}': the marks '{path}' of reader '{name}' hold fractions, which are shares of a lesion in"
                f" [0, 1], but go from {low:g} to {high:g}. Give whole classes, or divide them by their range."
            )
            raise InputError(message)
        return volume.with_array(array >= 0.5)
    try:
        labels = read_labels(path)
    except InputError as error:
        message = f"case '{case}': reader '{name}': {error}"
        raise InputError(message) from error
    return labels.with_array(labels.array != 0)


def _files_of(place: Path, cases: Sequence[str]) -> dict[str, Path]:
    """The files of a reader by case."""
    if place.is_file() and len(cases) == 1:
        return {cases[0]: place}
    wanted = set(cases)
    files = find_files(
        place, "reader", rename=lambda path, case: case if case in wanted else starred(place, path, case)
    )
    known = {case: file for case, file in files.items() if case in wanted}
    if not known:
        message = (
            f"the reader '{place}' has marks of none of the {len(cases)} cases (such as '{cases[0]}'):"
            f" {some(file.name for file in files.values())}. Name the files after the cases, or give a pattern such as"
            f" '{place if place.is_dir() else place.parent}/*_reader1.nii.gz'."
        )
        raise DatasetError(message)
    return known


def _names(places: Sequence[str]) -> list[str]:
    """Short names that differ, or the places themselves."""
    short = [volume_name(Path(place)).replace("*", "").strip("_-. ") for place in places]
    return short if all(short) and len(set(short)) == len(short) else list(places)
