"""Reading the files of cases and measuring them, one case or many, and going on past a file that cannot be used."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components, find_components, find_instances
from medfocal.errors import DatasetError, GeometryError, MedfocalError
from medfocal.evaluate.cases import Measured, make_table
from medfocal.evaluate.pairs import Pair
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.store import Tables, TableStore
from medfocal.evaluate.table import CaseTable
from medfocal.evaluate.values import (
    Classes,
    Expected,
    find_predicted,
    lesions_of,
    select_classes,
    whole_labels,
)
from medfocal.parallel import in_processes
from medfocal.progress import track
from medfocal.volume import Volume, read_volume, resample_nearest

Instances = Literal["none", "reference", "prediction", "both"]
#: Name of the table of all classes together.
WHOLE = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the values of files mean.

    Attributes:
        classes: Label values of each class or merged group by its name; None takes anything but 0 as lesion.
        ignore_value: Value of the reference where nothing is right or wrong; None for none.
        instances: Which files number their parts, so that touching parts stay apart: "none", "reference",
            "prediction" or "both".
        expect: What predictions are: "auto" tells a mask from a probability map by its values.
        resample: Whether a prediction on another grid is brought onto the reference's, "nearest", or refused, None.
        surface: Whether distances of surfaces are measured.
    """

    classes: Classes | None = None
    ignore_value: int | None = None
    instances: Instances = "none"
    expect: Expected = "auto"
    resample: Literal["nearest"] | None = None
    surface: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("instances", get_args(Instances)), ("expect", get_args(Expected))):
            if getattr(self, name) not in choices:
                message = f"{name} must be one of {choices}, got {getattr(self, name)!r}"
                raise ValueError(message)
        if self.ignore_value is not None and self.ignore_value < 1:
            message = f"ignore_value must be a label value of 1 or more, or null, got {self.ignore_value}"
            raise ValueError(message)
        if self.resample not in (None, "nearest"):
            message = f"resample must be nearest or null, got {self.resample!r}"
            raise ValueError(message)
        if self.classes is None:
            return
        if not isinstance(self.classes, Mapping) or not self.classes:
            message = f"classes must name label values, such as {{lesion: [1, 2]}}, or be null, got {self.classes!r}"
            raise ValueError(message)
        for name, values in self.classes.items():
            are_labels = isinstance(values, Sequence) and all(type(value) is int and value >= 1 for value in values)
            if not name or not are_labels or not values or self.ignore_value in values:
                message = (
                    f"classes: '{name}' must have a name and label values of 1 or more other than ignore_value"
                    f" ({self.ignore_value}), as a list such as [1], got {values}"
                )
                raise ValueError(message)
        if self.instances != "none":
            message = f"instances={self.instances} numbers parts, so the files have no classes, got {self.classes}"
            raise ValueError(message)


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured, and why."""

    case: str
    error: str


@dataclass(frozen=True)
class Measurement:
    """The tables of many cases.

    Attributes:
        tables: Tables by class, in the order of the cases; under "" those of all classes together.
        failed: Cases that are left out.
    """

    tables: Mapping[str, Sequence[CaseTable]]
    failed: Sequence[Failure] = field(default_factory=tuple)


def measure_pair(pair: Pair, protocol: Protocol = ANY_OVERLAP, reading: Reading = Reading()) -> Tables:
    """Read the files of a case and measure them.

    Returns:
        Its tables by class; under "" that of all classes together.

    Raises:
        GeometryError: The files lie on different grids.
        InputError: A file is missing, unreadable, or its values make no sense.
    """
    read = _read(pair, reading)
    return {
        name: make_table(
            _measured(pair, read, protocol, reading, values),
            read.grid.affine,
            case=pair.case,
            patient=pair.patient,
            protocol=protocol,
            ignore=read.ignore,
            surface=reading.surface,
            missing=read.prediction is None,
        )
        for name, values in _groups(reading).items()
    }


def read_masks(pair: Pair, protocol: Protocol, reading: Reading, name: str = WHOLE) -> tuple[Volume, NDArray[np.bool_]]:
    """Read what `measure_pair` measures: the lesions of a class, and the candidates at the threshold.

    Returns:
        The mask of the lesions, bool, with its grid; and that of the candidates of confidence `protocol.threshold` or
        more, bool (I, J, K).
    """
    read = _read(pair, reading)
    measured = _measured(pair, read, protocol, reading, _groups(reading)[name])
    counted = measured.candidates.confidence >= protocol.threshold
    kept = np.concatenate([[False], counted])
    return read.grid.with_array(measured.lesions.labels > 0), np.asarray(kept[measured.candidates.labels])


def measure_pairs(
    pairs: Sequence[Pair],
    protocol: Protocol = ANY_OVERLAP,
    reading: Reading = Reading(),
    *,
    store: Path | None = None,
    workers: int = 1,
    keep_going: bool = False,
    description: str = "evaluate",
) -> Measurement:
    """Measure many cases.

    Args:
        pairs: The cases.
        protocol: The rules.
        reading: What the values of files mean.
        store: File of tables: cases that it holds already are not read again, and each case is added once measured.
        workers: Processes that read and measure; 1 does it in this one.
        keep_going: Whether a case that cannot be measured is listed and the others go on.
        description: What progress calls it.

    Raises:
        MedfocalError: As of `measure_pair`, without `keep_going`.
        DatasetError: None of the cases can be measured.
        ResourceError: A process ended without an answer, or the store cannot be written.
    """
    tables: dict[str, list[CaseTable]] = {WHOLE: [], **{name: [] for name in reading.classes or {}}}
    failed: list[Failure] = []
    with contextlib.ExitStack() as stack:
        kept = None if store is None else stack.enter_context(TableStore(store, _made_by(protocol, reading)))
        known = {
            pair.case: found
            for pair in pairs
            if kept is not None and (found := kept.get(pair, protocol, tables)) is not None
        }
        unknown = [pair for pair in pairs if pair.case not in known]
        task = functools.partial(_try_pair, protocol=protocol, reading=reading)
        answers = stack.enter_context(
            in_processes(task, unknown, workers, what="measured cases", name=attrgetter("case"))
        )
        for pair in track(pairs, description):
            found = known.pop(pair.case, None)
            if found is None:
                answer = next(answers)
                if isinstance(answer, MedfocalError):
                    if not keep_going:
                        raise answer
                    failed.append(Failure(pair.case, f"{type(answer).__name__}: {answer}"))
                    continue
                found = answer
                if kept is not None:
                    kept.add(pair, found)
            for name, table in found.items():
                tables[name].append(table)
    if failed and not tables[WHOLE]:
        message = f"none of the {len(pairs)} cases can be evaluated; the first says {failed[0].error}"
        raise DatasetError(message)
    return Measurement(tables, tuple(failed))


def _try_pair(pair: Pair, *, protocol: Protocol, reading: Reading) -> Tables | MedfocalError:
    try:
        return measure_pair(pair, protocol, reading)
    except MedfocalError as error:
        return error


def _made_by(protocol: Protocol, reading: Reading) -> dict[str, Any]:
    surface = {"threshold": protocol.threshold, "tolerance_mm": protocol.tolerance_mm} if reading.surface else None
    return {"reading": asdict(reading), "surface": surface}


@dataclass(frozen=True, eq=False)
class _Read:
    """The arrays of a case on the grid of its reference."""

    grid: Volume
    reference: NDArray[Any]
    prediction: NDArray[Any] | None
    ignore: NDArray[np.bool_] | None


def _read(pair: Pair, reading: Reading) -> _Read:
    volume = read_volume(pair.reference, order="K")
    reference = whole_labels(volume.array, f"case '{pair.case}': the reference '{pair.reference}'")
    ignore = _read_ignored(pair, volume)
    if reading.ignore_value is not None:
        there = reference == reading.ignore_value
        reference = np.where(there, reference.dtype.type(0), reference)
        ignore = there if ignore is None else ignore | there
    return _Read(volume, reference, _read_prediction(pair, volume, reading), ignore)


def _groups(reading: Reading) -> dict[str, Sequence[int]]:
    """The label values of all classes together, and of each; none where anything but 0 is lesion."""
    classes = reading.classes or {}
    return {WHOLE: sorted({value for values in classes.values() for value in values}), **classes}


def _read_prediction(pair: Pair, reference: Volume, reading: Reading) -> NDArray[Any] | None:
    if pair.prediction is None:
        return None
    prediction = read_volume(pair.prediction, order="K")
    if not reference.same_grid(prediction):
        if reading.resample is not None:
            return resample_nearest(prediction, reference).array
        message = (
            f"case '{pair.case}': the grids of '{pair.reference}' and '{pair.prediction}' differ:"
            f" {reference.grid_difference(prediction)}. Resample the prediction onto the grid of the reference, or let"
            " resample=nearest do it."
        )
        raise GeometryError(message)
    return prediction.array


def _read_ignored(pair: Pair, reference: Volume) -> NDArray[np.bool_] | None:
    if pair.ignore is None:
        return None
    region = read_volume(pair.ignore, order="K")
    if not reference.same_grid(region):
        message = (
            f"case '{pair.case}': the grids of '{pair.reference}' and '{pair.ignore}' differ:"
            f" {reference.grid_difference(region)}. Draw the region to be ignored on the grid of the reference."
        )
        raise GeometryError(message)
    where = f"case '{pair.case}': the region to be ignored '{pair.ignore}'"
    return np.asarray(whole_labels(region.array, where) != 0)


def _measured(pair: Pair, read: _Read, protocol: Protocol, reading: Reading, values: Sequence[int]) -> Measured:
    """Find the lesions and candidates of one class; of all where there are no classes."""
    reference, prediction, affine = read.reference, read.prediction, read.grid.affine
    where = f"case '{pair.case}': '{pair.prediction}'"
    if values:
        assert reading.classes is not None
        reference = select_classes(reference, values, reading.classes, f"case '{pair.case}': '{pair.reference}'")
    lesions, grown = (
        (find_instances(reference, affine)[0], None)
        if reading.instances in ("reference", "both")
        else lesions_of(reference, affine, protocol)
    )
    if prediction is None:
        return Measured(lesions, _nothing(lesions, affine), grown, is_mask=True)
    if reading.instances in ("prediction", "both"):
        labels = whole_labels(prediction, where)
        return Measured(lesions, find_instances(labels, affine, confidence=1.0)[0], grown, is_mask=True)
    if values and reading.classes is not None and not (prediction.dtype.kind == "f" and len(reading.classes) == 1):
        ignored = [] if reading.ignore_value is None else [reading.ignore_value]
        labels = whole_labels(prediction, where)
        prediction = select_classes(labels, values, reading.classes, where, ignored=ignored)
    candidates, is_mask = find_predicted(prediction, affine, protocol, where, expected=reading.expect)
    return Measured(lesions, candidates, grown, is_mask=is_mask)


def _nothing(like: Components, affine: NDArray[np.float64]) -> Components:
    return find_components(np.zeros(like.shape, np.bool_), affine, confidence=1.0)
