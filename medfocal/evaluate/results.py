"""The outcome of an evaluation, as values and as files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

    def to_dict(self) -> dict[str, Any]:
        """Give what evaluation.json holds: everything but the rows. Undefined is NaN."""
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
        }


def write_evaluation(evaluation: Evaluation, directory: Path) -> Path:
    """Write evaluation.json, cases.csv, lesions.csv and candidates.csv.

    In the files undefined is null or an empty cell.

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
    write_json(directory / "evaluation.json", evaluation.to_dict())
    return directory
