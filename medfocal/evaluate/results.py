"""The outcome of an evaluation, as values and as files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medfocal.evaluate.froc import FrocCurve, FrocPoint
from medfocal.evaluate.intervals import Rate
from medfocal.evaluate.protocols import Protocol
from medfocal.files import write_csv, write_json

Row = dict[str, Any]

_SIZE = ("num_voxels", "volume_ml", "equivalent_diameter_mm")
_PLACE = ("i", "j", "k", "x_mm", "y_mm", "z_mm")
CASE_COLUMNS = (
    "case",
    "patient",
    "num_lesions",
    "num_detected_lesions",
    "num_candidates",
    "num_true_candidates",
    "num_false_candidates",
    "voxel_dice",
    "reference_volume_ml",
    "predicted_volume_ml",
)
LESION_COLUMNS = (
    *("case", "patient", "lesion"),
    *_SIZE,
    *_PLACE,
    *("detected", "candidate", "overlap_voxels", "confidence"),
)
CANDIDATE_COLUMNS = (
    *("case", "patient", "candidate", "confidence", "above_threshold", "true", "lesion", "overlap_voxels"),
    *_SIZE,
    *_PLACE,
)

COMPARED = ("lesion_sensitivity", "lesion_precision", "lesion_f1", "false_positives_per_case")
READER_COLUMNS = (
    *("kind", "reader", "num_cases", "num_patients", "num_lesions", "num_detected_lesions"),
    *("num_candidates", "num_false_candidates"),
    *(f"{name}{end}" for name in COMPARED for end in ("", "_low", "_high")),
    *("voxel_dice_mean", "voxel_dice_median"),
)

ComparisonKind = Literal["reader_against_others", "model_against_others", "model_against_reader", "model_against_all"]


@dataclass(frozen=True)
class Froc:
    """The FROC and what is read from it.

    Attributes:
        points: Lesion sensitivity at each of the protocol's rates of false candidates.
        cpm: Mean lesion sensitivity of the points (competition performance metric).
        curve: The corners of the curve; candidates.csv gives every point.
    """

    points: list[FrocPoint]
    cpm: float
    curve: FrocCurve

    def to_dict(self) -> dict[str, Any]:
        """Give points and curve as lists; a threshold at which no candidate counts is infinite."""
        columns = ("threshold", "false_positives_per_case", "lesion_sensitivity")
        values = zip(*(getattr(self.curve, column).tolist() for column in columns), strict=True)
        return {
            "points": [asdict(point) for point in self.points],
            "cpm": self.cpm,
            "curve": [dict(zip(columns, row, strict=True)) for row in values],
        }


@dataclass(frozen=True)
class VoxelDice:
    """Voxel Dice of the cases where it is defined.

    Attributes:
        mean: Mean over those cases, NaN if there is none.
        median: Their median, NaN if there is none.
        num_cases: Cases where it is defined.
        num_undefined: Cases where reference and prediction are both empty.
    """

    mean: float
    median: float
    num_cases: int
    num_undefined: int


@dataclass(frozen=True)
class Undefined:
    """A figure that could not be had.

    Attributes:
        what: Name of the figure.
        where: The cases or the point it belongs to.
        why: The reason.
    """

    what: str
    where: str
    why: str


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
    voxel_dice: VoxelDice
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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything found out about a set of cases; counts are of candidates at or above the protocol's threshold.

    Attributes:
        protocol: The rules.
        num_cases: Cases, those without lesions included.
        num_patients: Patients.
        num_lesions: Lesions.
        num_detected_lesions: Lesions found at the threshold.
        num_candidates: Candidates at the threshold.
        num_true_candidates: Those that find a lesion.
        num_false_candidates: The others.
        lesion_sensitivity: Found lesions over all lesions.
        lesion_sensitivity_macro: Mean of each patient's lesion sensitivity, over patients with lesions.
        lesion_precision: True candidates over candidates.
        lesion_f1: F1 of lesions and candidates.
        false_positives_per_case: False candidates over cases.
        false_positives_per_litre: False candidates over the scanned volume.
        froc: Sensitivity against false candidates.
        voxel_dice: Overlap of the masks at the threshold.
        undefined: What is NaN or null above, where and why.
        cases: Rows of cases.csv.
        lesions: Rows of lesions.csv.
        candidates: Rows of candidates.csv, those below the threshold among them. `true` says whether a
            candidate finds a lesion once it counts.
        readers: Readers and the model beside each other; None where no readers were given.
    """

    protocol: Protocol
    num_cases: int
    num_patients: int
    num_lesions: int
    num_detected_lesions: int
    num_candidates: int
    num_true_candidates: int
    num_false_candidates: int
    lesion_sensitivity: Rate
    lesion_sensitivity_macro: Rate
    lesion_precision: Rate
    lesion_f1: Rate
    false_positives_per_case: Rate
    false_positives_per_litre: Rate
    froc: Froc
    voxel_dice: VoxelDice
    undefined: list[Undefined]
    cases: list[Row]
    lesions: list[Row]
    candidates: list[Row]
    readers: ReaderStudy | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give what evaluation.json holds: everything but the rows. Undefined is NaN."""
        readers = {} if self.readers is None else {"readers": self.readers.to_dict()}
        return {
            "protocol": self.protocol.to_dict(),
            "num_cases": self.num_cases,
            "num_patients": self.num_patients,
            "num_lesions": self.num_lesions,
            "num_detected_lesions": self.num_detected_lesions,
            "num_candidates": self.num_candidates,
            "num_true_candidates": self.num_true_candidates,
            "num_false_candidates": self.num_false_candidates,
            "num_ignored_lesions": 0,  # no rule of this protocol ignores a lesion
            "lesion_sensitivity": self.lesion_sensitivity.to_dict(),
            "lesion_sensitivity_macro": self.lesion_sensitivity_macro.to_dict(),
            "lesion_precision": self.lesion_precision.to_dict(),
            "lesion_f1": self.lesion_f1.to_dict(),
            "false_positives_per_case": self.false_positives_per_case.to_dict(),
            "false_positives_per_litre": self.false_positives_per_litre.to_dict(),
            "froc": self.froc.to_dict(),
            "voxel_dice": asdict(self.voxel_dice),
            "undefined": [asdict(line) for line in self.undefined],
        } | readers


def write_evaluation(evaluation: Evaluation, directory: Path) -> Path:
    """Write evaluation.json, cases.csv, lesions.csv and candidates.csv, and readers.csv where readers were compared.

    In the files undefined is null or an empty cell. Without readers a readers.csv of an earlier evaluation is removed.

    Args:
        evaluation: What to write.
        directory: Folder to write into; it is made if missing.

    Returns:
        The folder.
    """
    directory = Path(directory)
    write_csv(directory / "cases.csv", evaluation.cases, CASE_COLUMNS)
    write_csv(directory / "lesions.csv", evaluation.lesions, LESION_COLUMNS)
    write_csv(directory / "candidates.csv", evaluation.candidates, CANDIDATE_COLUMNS)
    if evaluation.readers is not None:
        rows = [comparison.to_row() for comparison in evaluation.readers.comparisons]
        write_csv(directory / "readers.csv", rows, READER_COLUMNS)
    else:
        (directory / "readers.csv").unlink(missing_ok=True)
    write_json(directory / "evaluation.json", evaluation.to_dict())
    return directory
