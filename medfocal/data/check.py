"""Reading a whole dataset as training would, and naming everything that is wrong with it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medfocal.annotations.agreement import PairAgreement, reader_agreement
from medfocal.annotations.target import as_marks
from medfocal.components import find_components
from medfocal.data.cases import read_case
from medfocal.data.manifest import SPLITS, Case, Manifest, read_manifest
from medfocal.errors import DatasetError, InputError
from medfocal.files import write_json
from medfocal.progress import say, track


@dataclass(frozen=True)
class CaseReport:
    """What was found in one case.

    Attributes:
        case: Its name.
        split: Where it belongs.
        shape: Voxels, None if the case cannot be read.
        spacing_mm: Likewise.
        num_lesions: 26-connected parts of the reference, None without one.
        lesion_share: Share of the voxels, None without a reference.
        num_reader_lesions: Lesions of each reader of its annotations, likewise.
        agreement: Of each pair of these readers.
        warnings: What may be wrong.
        error: What is wrong, None if nothing is.
    """

    case: str
    split: str
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    num_lesions: int | None = None
    lesion_share: float | None = None
    num_reader_lesions: tuple[int, ...] = ()
    agreement: tuple[PairAgreement, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None

    @property
    def has_lesion(self) -> bool:
        """Whether the reference has a lesion, or any reader where there is no reference."""
        return any(self.num_reader_lesions) if self.num_lesions is None else self.num_lesions > 0


def check_dataset(dataset: Path, *, root: Path | None = None, output: Path | None = None) -> list[CaseReport]:
    """Read every case with its annotations, print what was found, and write `dataset_report.json` if asked.

    A line is printed for each split, each pair of readers in it, each warning and each fault. Two readers who both
    marked a lesion of a case and share not one voxel are a warning: they may differ so, or a file is another case's.

    Args:
        dataset: The `dataset.json`.
        root: Folder that its paths start from.
        output: Folder for the report, or None.

    Returns:
        A report a case.

    Raises:
        InputError: The dataset file cannot be read.
        DatasetError: Its splits are unsound, or a case has a fault, after all have been looked at.
    """
    manifest = read_manifest(dataset, root=root)
    reports = [_check_case(case, manifest) for case in track(manifest.cases, "check")]
    for split in SPLITS:
        of_split = [report for report in reports if report.split == split]
        say(_summary(split, of_split))
        for line in _agreement_lines(split, of_split):
            say(line)
    warnings = [warning for report in reports for warning in report.warnings]
    for warning in warnings:
        say(f"warning: {warning}")
    faults = [report.error for report in reports if report.error is not None]
    training = [report for report in reports if report.split == "training"]
    if training and not faults and not any(report.has_lesion for report in training):
        what = "labels" if all(report.num_lesions is not None for report in training) else "labels or annotations"
        faults.append(f"no lesion in the whole training set: all {len(training)} {what} are empty")
    if output is not None:
        cases = [asdict(report) for report in reports]
        content = {"dataset": dataset, "errors": faults, "warnings": warnings, "cases": cases}
        write_json(output / "dataset_report.json", content)
        say(f"the report is '{output / 'dataset_report.json'}'")
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        message = f"'{dataset}' has {len(faults)} {'fault' if len(faults) == 1 else 'faults'}:\n{listed}"
        raise DatasetError(message)
    say(f"'{dataset}': no fault in {len(reports)} cases")
    return reports


def _check_case(case: Case, manifest: Manifest) -> CaseReport:
    try:
        volumes = read_case(case, manifest.scheme, with_readers=True)
    except InputError as error:
        return CaseReport(case.name, case.split, error=str(error))
    grid, label = volumes.grid, volumes.label
    readers = np.zeros((0, *grid.shape), np.uint8) if volumes.readers is None else as_marks(volumes.readers)
    agreement = tuple(reader_agreement(readers, grid.affine))
    return CaseReport(
        case=case.name,
        split=case.split,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        num_lesions=None if label is None else len(find_components(label > 0, grid.affine)),
        lesion_share=None if label is None else float(np.mean(label > 0)),
        num_reader_lesions=tuple(len(find_components(reader, grid.affine)) for reader in readers),
        agreement=agreement,
        warnings=tuple(
            f"case '{case.name}': readers {pair.first} and {pair.second} both marked lesions and share not one voxel. "
            "See that both files are of this case and lie on its grid the right way round."
            for pair in agreement
            if pair.voxel_dice == 0 and pair.num_lesions_first and pair.num_lesions_second
        ),
    )


def _agreement_lines(split: str, reports: list[CaseReport]) -> list[str]:
    """A line for each pair of readers that some case of the split has."""
    pairs = [pair for report in reports for pair in report.agreement]
    lines = []
    for first, second in sorted({(pair.first, pair.second) for pair in pairs}):
        found = [pair for pair in pairs if (pair.first, pair.second) == (first, second)]
        dice = [pair.voxel_dice for pair in found if not math.isnan(pair.voxel_dice)]
        agree = f"voxel Dice undefined, neither marked a lesion in {len(found)} cases"
        if dice:
            agree = f"mean voxel Dice {np.mean(dice):.3f} over {len(dice)} of {len(found)} cases"
        missed = [sum(pair.num_only_first for pair in found), sum(pair.num_only_second for pair in found)]
        lesions = [sum(pair.num_lesions_first for pair in found), sum(pair.num_lesions_second for pair in found)]
        lines.append(
            f"{split}: readers {first} and {second}: {agree}; {missed[0]} of {lesions[0]} lesions of reader {first} "
            f"and {missed[1]} of {lesions[1]} of reader {second} missed by the other"
        )
    return lines


def _summary(split: str, reports: list[CaseReport]) -> str:
    known = [report for report in reports if report.num_lesions is not None]
    lesions = sum(report.num_lesions or 0 for report in known)
    free = sum(report.num_lesions == 0 for report in known)
    shares = [report.lesion_share for report in known if report.lesion_share]
    line = f"{split}: {len(reports)} cases, {lesions} lesions, {free} cases without"
    if shares:
        line += f", lesion share of the others {min(shares):.1e} to {max(shares):.1e}"
    return line
