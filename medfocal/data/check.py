"""Reading a whole dataset as training would, and naming everything that is wrong with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

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
        error: What is wrong, None if nothing is.
    """

    case: str
    split: str
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    num_lesions: int | None = None
    lesion_share: float | None = None
    error: str | None = None


def check_dataset(dataset: Path, *, root: Path | None = None, output: Path | None = None) -> list[CaseReport]:
    """Read every case, print a line for each split and each fault, and write `dataset_report.json` if asked.

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
        say(_summary(split, [report for report in reports if report.split == split]))
    faults = [report.error for report in reports if report.error is not None]
    training = [report for report in reports if report.split == "training"]
    if training and not faults and not any(report.num_lesions for report in training):
        faults.append(f"no lesion in the whole training set: all {len(training)} labels are empty")
    if output is not None:
        content = {"dataset": dataset, "errors": faults, "cases": [asdict(report) for report in reports]}
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
        volumes = read_case(case, manifest.labels)
    except InputError as error:
        return CaseReport(case.name, case.split, error=str(error))
    shape, spacing = volumes.grid.shape, volumes.grid.spacing_mm
    if volumes.label is None:
        return CaseReport(case.name, case.split, shape, spacing)
    lesions = find_components(volumes.label > 0, volumes.grid.affine)
    return CaseReport(case.name, case.split, shape, spacing, len(lesions), float(np.mean(volumes.label > 0)))


def _summary(split: str, reports: list[CaseReport]) -> str:
    known = [report for report in reports if report.num_lesions is not None]
    lesions = sum(report.num_lesions or 0 for report in known)
    free = sum(report.num_lesions == 0 for report in known)
    shares = [report.lesion_share for report in known if report.lesion_share]
    line = f"{split}: {len(reports)} cases, {lesions} lesions, {free} cases without"
    if shares:
        line += f", lesion share of the others {min(shares):.1e} to {max(shares):.1e}"
    return line
