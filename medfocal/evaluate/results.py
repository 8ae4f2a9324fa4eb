"""The outcome of an evaluation, as values and as files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from medfocal.evaluate.calibration import Calibration
from medfocal.evaluate.figures import Distribution
from medfocal.evaluate.froc import Froc
from medfocal.evaluate.intervals import Rate
from medfocal.evaluate.measure import Failure
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.rows import CANDIDATE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS, Row
from medfocal.evaluate.strata import Stratum
from medfocal.evaluate.undefined import Undefined
from medfocal.files import write_csv, write_json

COMPARED = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "false_positives_per_case")
READER_COLUMNS = (
    *("kind", "reader", "num_cases", "num_patients", "num_lesions", "num_detected_lesions"),
    *("num_candidates", "num_false_candidates"),
    *(f"{name}{end}" for name in COMPARED for end in ("", "_low", "_high")),
    *("voxel_dice_mean", "voxel_dice_median"),
)

ComparisonKind = Literal["reader_against_others", "model_against_others", "model_against_reader", "model_against_all"]


@dataclass(frozen=True)
class Comparison:
    """A reader or the model, judged by the marks of one or several readers.

    Attributes:
        kind: Who is judged by whom: "reader_against_others", "model_against_others", "model_against_reader" or
            "model_against_all".
        reader: The reader who is judged, who is left out, or who judges; "" where all judge.
        num_cases: Cases that those concerned read.
        num_patients: Their patients.
        num_lesions: Lesions of the marks that judge.
        num_detected_lesions: Those found.
        num_candidates: Candidates of what is judged, at the threshold.
        num_false_candidates: Those that find no lesion.
        lesion_sensitivity: Found lesions over all lesions.
        lesion_precision: True candidates over candidates.
        lesion_f1: F1 of lesions and candidates.
        false_positives_per_case: False candidates over cases.
        voxel_dice: Overlap of the masks.
        undefined: What is NaN above, where and why.
    """

    kind: ComparisonKind
    reader: str
    num_cases: int
    num_patients: int
    num_lesions: int
    num_detected_lesions: int
    num_candidates: int
    num_false_candidates: int
    lesion_sensitivity: Rate
    lesion_precision: Rate
    lesion_f1: Rate
    false_positives_per_case: Rate
    voxel_dice: Distribution
    undefined: list[Undefined]

    def to_row(self) -> Row:
        """Give the row of readers.csv."""
        values: Row = {name: getattr(self, name) for name in READER_COLUMNS if hasattr(self, name)}
        for name in COMPARED:
            rate: Rate = getattr(self, name)
            values |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        return values | {"voxel_dice_mean": self.voxel_dice.mean, "voxel_dice_median": self.voxel_dice.median}


@dataclass(frozen=True)
class ReaderStudy:
    """Readers and a model beside each other.

    Attributes:
        fusion: How the marks of several readers become lesions.
        readers: Name, place and number of cases of each reader.
        num_cases_unread: Cases that nobody read; they are in no comparison.
        comparisons: Each reader and the model, by each judge.
    """

    fusion: str
    readers: list[Row]
    num_cases_unread: int
    comparisons: list[Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Give what evaluation.json holds under `readers`. Undefined is NaN."""
        return asdict(self)


@dataclass(frozen=True)
class Surface:
    """Distances between the surfaces of reference and prediction (`medfocal.evaluate.surface`).

    Attributes:
        threshold: Confidence at which the mask of a case was taken.
        tolerance_mm: Tolerance of the normalised surface distance.
        cases: Figures of whole cases.
        lesions: Figures of found lesions, each with the candidate that finds it.
    """

    threshold: float
    tolerance_mm: float
    cases: Mapping[str, Distribution]
    lesions: Mapping[str, Distribution]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values; what is counted for lesions is called `num_lesions`."""
        lesions = {name: asdict(found) for name, found in self.lesions.items()}
        for found in lesions.values():
            found["num_lesions"] = found.pop("num_cases")
        cases = {name: asdict(found) for name, found in self.cases.items()}
        return {"threshold": self.threshold, "tolerance_mm": self.tolerance_mm, "cases": cases, "lesions": lesions}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything found out about a set of cases; counts are of candidates at or above the protocol's threshold.

    Attributes:
        protocol: The rules.
        num_cases: Cases, those without lesions included.
        num_patients: Patients.
        num_lesion_free_cases: Cases whose reference holds no lesion at all.
        num_lesions: Lesions that count.
        num_detected_lesions: Lesions found at the threshold.
        num_ignored_lesions: Lesions that are ignored.
        num_candidates: Candidates at the threshold, true or false.
        num_true_candidates: Those that find a lesion.
        num_false_candidates: The others.
        num_double_candidates: Further candidates on found lesions, where the protocol ignores them.
        num_ignored_candidates: Candidates at the threshold that are ignored.
        num_split_lesions: Lesions that two candidates or more hit.
        num_merging_candidates: Candidates that hit two lesions or more.
        num_hit_missed_lesions: Missed lesions that a candidate hits which counts for another lesion, or for none.
        lesion_sensitivity: Found lesions over all lesions.
        lesion_sensitivity_macro: Mean of each patient's lesion sensitivity, over patients with lesions.
        lesion_precision: True candidates over candidates.
        lesion_f1: F1 of lesions and candidates.
        false_positives_per_case: False candidates over cases.
        false_positives_per_lesion_free_case: False candidates of cases without lesions over these cases.
        false_positives_per_litre: False candidates over the scanned volume.
        claim: What the lesion sensitivity can and cannot claim.
        by_size: Lesions and false candidates by diameter, then by volume.
        froc: Sensitivity against false candidates.
        hit_rule_curves: Sensitivity against the threshold of hit rules.
        wafroc: Weighted AFROC figure of merit.
        wafroc1: The same with the false candidates of all cases.
        free_response_ap: Average precision of candidates.
        case_auroc: How well the highest confidence tells cases with lesions from those without.
        case_ap: Average precision of the same.
        case_sensitivity: Cases with lesions that have a candidate.
        case_specificity: Cases without lesions that have none.
        calibration: Confidence against the share of true candidates; None where there is nothing to calibrate.
        recognition_quality: The same as `lesion_f1`.
        segmentation_quality: Mean IoU of found lesions with their candidates.
        panoptic_quality: Product of the two.
        voxel_dice: Overlap of the masks at the threshold.
        volume_difference_ml: Predicted less reference volume.
        mean_absolute_volume_difference_ml: The mean of it without sign.
        surface: Distances of surfaces; None where they were not measured.
        published: Figures by which the protocol's source states its results, by name.
        missing: Cases without a prediction, counted as nothing found.
        failed: Cases that could not be measured and are left out.
        warnings: What a reader should know before he trusts the figures.
        undefined: What is NaN or null above, where and why.
        cases: Rows of cases.csv.
        lesions: Rows of lesions.csv.
        candidates: Rows of candidates.csv, those below the threshold among them.
        readers: Readers and the model beside each other; None where no readers were given.
        classes: Evaluations of single classes by name; empty where no classes were given.
        inputs: What was evaluated: places by name, such as "reference"; empty where arrays were.
    """

    protocol: Protocol
    num_cases: int
    num_patients: int
    num_lesion_free_cases: int
    num_lesions: int
    num_detected_lesions: int
    num_ignored_lesions: int
    num_candidates: int
    num_true_candidates: int
    num_false_candidates: int
    num_double_candidates: int
    num_ignored_candidates: int
    num_split_lesions: int
    num_merging_candidates: int
    num_hit_missed_lesions: int
    lesion_sensitivity: Rate
    lesion_sensitivity_macro: Rate
    lesion_precision: Rate
    lesion_f1: Rate
    false_positives_per_case: Rate
    false_positives_per_lesion_free_case: Rate
    false_positives_per_litre: Rate
    claim: str
    by_size: Sequence[Stratum]
    froc: Froc
    hit_rule_curves: Sequence[Row]
    wafroc: Rate
    wafroc1: Rate
    free_response_ap: Rate
    case_auroc: Rate
    case_ap: Rate
    case_sensitivity: Rate
    case_specificity: Rate
    calibration: Calibration | None
    recognition_quality: Rate
    segmentation_quality: Rate
    panoptic_quality: Rate
    voxel_dice: Distribution
    volume_difference_ml: Distribution
    mean_absolute_volume_difference_ml: float
    surface: Surface | None
    published: Mapping[str, float]
    missing: Sequence[str]
    failed: Sequence[Failure]
    warnings: Sequence[str]
    undefined: Sequence[Undefined]
    cases: Sequence[Row]
    lesions: Sequence[Row]
    candidates: Sequence[Row]
    readers: ReaderStudy | None = None
    classes: Mapping[str, Evaluation] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give what evaluation.json holds: everything but the rows. Undefined is NaN."""
        values: dict[str, Any] = {}
        for part in fields(self):
            if part.name not in _NOT_IN_JSON:
                values[part.name] = _plain_dataclasses(getattr(self, part.name))
        if self.classes:
            values["classes"] = {name: found.summary(class_folder(name)) for name, found in self.classes.items()}
        if self.readers is not None:
            values["readers"] = self.readers.to_dict()
        return values

    def summary(self, folder: str) -> dict[str, Any]:
        """Give the headline figures of a class, and the folder that holds all of them."""
        names = ("num_lesions", "num_detected_lesions", "lesion_sensitivity", "false_positives_per_case", "voxel_dice")
        return {"folder": folder, **{name: _plain_dataclasses(getattr(self, name)) for name in names}}


_NOT_IN_JSON = frozenset({"cases", "lesions", "candidates", "readers", "classes"})


def class_folder(name: str) -> str:
    """Name of the folder of a class: the class's name where a file system takes it, else with escapes."""
    return "class_" + "".join(c if c.isalnum() or c in "-_." else f"%{ord(c):02x}" for c in name)


def _plain_dataclasses(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return value.to_dict() if hasattr(value, "to_dict") else asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain_dataclasses(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_dataclasses(item) for item in value]
    return value


def write_evaluation(evaluation: Evaluation, directory: Path) -> Path:
    """Write evaluation.json, cases.csv, lesions.csv and candidates.csv, and readers.csv where readers were compared.

    In the files undefined is null or an empty cell. Classes have a folder each. What an earlier evaluation wrote and
    this one does not is removed: its page, a readers.csv, folders of other classes.

    Args:
        evaluation: What to write.
        directory: Folder to write into; it is made if missing.

    Returns:
        The folder.
    """
    directory = Path(directory)
    (directory / "report.html").unlink(missing_ok=True)  # an older page beside new figures would tell of others
    write_csv(directory / "cases.csv", evaluation.cases, CASE_COLUMNS)
    write_csv(directory / "lesions.csv", evaluation.lesions, LESION_COLUMNS)
    write_csv(directory / "candidates.csv", evaluation.candidates, CANDIDATE_COLUMNS)
    if evaluation.readers is not None:
        rows = [comparison.to_row() for comparison in evaluation.readers.comparisons]
        write_csv(directory / "readers.csv", rows, READER_COLUMNS)
    else:
        (directory / "readers.csv").unlink(missing_ok=True)
    current = {class_folder(name) for name in evaluation.classes}
    for folder in directory.glob("class_*"):
        if folder.name not in current and (folder / "evaluation.json").is_file():
            _remove(folder)
    for name, found in evaluation.classes.items():
        write_evaluation(found, directory / class_folder(name))
    write_json(directory / "evaluation.json", evaluation.to_dict())
    return directory


def _remove(folder: Path) -> None:
    """Take away what was written for a class that is none any more; what else lies there stays."""
    for name in ("evaluation.json", "cases.csv", "lesions.csv", "candidates.csv", "report.html"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
