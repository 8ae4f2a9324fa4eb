"""What only the whole set shows: copies, mixed grids, odd scales, splits without lesions."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medfocal.data.check.cases import CaseReport
from medfocal.data.check.files import FileFacts
from medfocal.data.check.findings import Finding, Kind
from medfocal.data.check.limits import CheckLimits
from medfocal.data.manifest import SPLITS
from medfocal.errors import InputError
from medfocal.volume import read_volume

#: Fewer images of a channel say nothing about what is usual.
FEWEST_COMPARED = 8
#: A scale or a median is unusual so many robust standard deviations away ...
UNUSUAL_DEVIATIONS = 6.0
#: ... and by at least this factor or this many widths, for sets whose images are nearly alike.
UNUSUAL_FACTOR = 3.0
#: Median absolute deviation of a normal distribution, times this, is its standard deviation.
MAD_TO_SD = 1.4826
#: Spacings of a set that differ by more than this factor along an axis of the body.
MIXED_FACTOR = 1.5
#: Most names in one message.
NUM_NAMED = 6


def check_across(reports: Sequence[CaseReport], limits: CheckLimits) -> list[Finding]:
    """Hold cases against each other.

    Args:
        reports: Of all cases.
        limits: What a small split is.
    """
    return [
        *_check_copies(reports),
        *_check_orientation(reports),
        *_check_spacing(reports),
        *_check_intensity(reports),
        *_check_splits(reports, limits),
    ]


def _check_copies(reports: Sequence[CaseReport]) -> list[Finding]:
    findings = []
    for group in _same(reports, lambda report: report.images):
        cases = list(dict.fromkeys(report.case for report, _ in group))
        splits = {report.split for report, _ in group}
        patients = {report.patient for report, _ in group}
        files = [file.path for _, file in group]
        message = f"{len(files)} images hold the same voxels, of cases {_listed(cases)}: {_listed(files)}"
        values = {"cases": cases, "files": files, "patients": sorted(patients), "splits": sorted(splits)}
        if len(splits) > 1:
            message += f"; they are in {_listed(sorted(splits, key=SPLITS.index))}"
            advice = "Keep them in one split, or remove one: what is learnt of one would be judged on its copy."
            findings.append(Finding(Kind.DUPLICATE_ACROSS_SPLITS, message, advice, values=values))
            continue
        if len(patients) > 1:
            message += f"; they are said to be of patients {_listed(sorted(patients))}"
        advice = "Remove one, or correct the dataset file: one case would count twice, or a file is another case's."
        findings.append(Finding(Kind.DUPLICATE_IMAGE, message, advice, values=values))
    copied = {frozenset(finding.values["cases"]) for finding in findings}
    for group in _same(reports, lambda r: [f for f in r.files if f.role == "label"] if r.num_lesions else []):
        cases = [report.case for report, _ in group]
        if frozenset(cases) in copied:
            continue  # the whole case is a copy, which is said already
        message = f"{len(cases)} labels hold the same voxels and mark lesions, of cases {_listed(cases)}"
        advice = "All but one are another case's label, or the images are copies in another form."
        values = {"cases": cases, "files": [file.path for _, file in group]}
        findings.append(Finding(Kind.DUPLICATE_LABEL, message, advice, values=values))
    return findings


def _same(
    reports: Sequence[CaseReport], files_of: Callable[[CaseReport], Sequence[FileFacts]]
) -> list[list[tuple[CaseReport, FileFacts]]]:
    """Groups of files that hold the same voxels; constant images are alike without being copies."""
    groups: dict[object, list[tuple[CaseReport, FileFacts]]] = defaultdict(list)
    for report in reports:
        for file in files_of(report):
            if file.percentiles is None or file.percentiles["min"] < file.percentiles["max"]:
                # Labels are mostly 0, so their samples may be alike; their lesions are not.
                groups[file.fingerprint, report.lesion_voxels if file.role == "label" else ()].append((report, file))
    return [same for group in groups.values() if len(group) > 1 for same in _confirmed(group)]


def _confirmed(group: list[tuple[CaseReport, FileFacts]]) -> list[list[tuple[CaseReport, FileFacts]]]:
    """Split a group of one fingerprint by all of the voxels, read again."""
    exact: dict[str, list[tuple[CaseReport, FileFacts]]] = defaultdict(list)
    for report, file in group:
        try:
            voxels = read_volume(Path(file.path), order="K").array
        except InputError:  # it was read before; whoever took it away since will be told by the next check
            continue
        exact[hashlib.sha256(np.asfortranarray(voxels).tobytes(order="F")).hexdigest()].append((report, file))
    return [same for same in exact.values() if len(same) > 1]


def _check_orientation(reports: Sequence[CaseReport]) -> list[Finding]:
    counts = Counter(report.files[0].axis_codes for report in reports if report.files)
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{codes} in {number}" for codes, number in counts.most_common())
    message = f"cases store their axes in {len(counts)} orders: {listed}"
    advice = "Nothing need be done here: all are turned alike. Programs that ignore the header would mix them up."
    return [Finding(Kind.MIXED_ORIENTATION, message, advice, values={"orientations": dict(counts)})]


def _check_spacing(reports: Sequence[CaseReport]) -> list[Finding]:
    rows = [_along_body(report.files[0]) for report in reports if report.files]
    if len(rows) < 2:
        return []
    low, high = np.min(rows, axis=0), np.max(rows, axis=0)
    if not (high > MIXED_FACTOR * low).any():
        return []
    ranges = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
    message = f"spacing differs between cases: {ranges} mm (left-right, front-back, up-down)"
    advice = (
        "Training keeps each case's own; set transforms.spacing_mm to bring all to one in which small lesions survive."
    )
    values = {"lowest_mm": low.tolist(), "highest_mm": high.tolist()}
    return [Finding(Kind.MIXED_SPACING, message, advice, values=values)]


def _along_body(file: FileFacts) -> list[float]:
    order = sorted(range(3), key=lambda axis: "RLAPSI".index(file.axis_codes[axis]) // 2)
    return [file.spacing_mm[axis] for axis in order]


def _check_intensity(reports: Sequence[CaseReport]) -> list[Finding]:
    by_channel: dict[str, list[tuple[CaseReport, FileFacts]]] = defaultdict(list)
    for report in reports:
        for file in report.images:
            if file.percentiles is not None and _is_told(file.percentiles):
                by_channel[file.role].append((report, file))
    return [
        finding
        for role, files in by_channel.items()
        if len(files) >= FEWEST_COMPARED
        for finding in _unusual(role, files)
    ]


def _is_told(percentiles: dict[str, float]) -> bool:
    return percentiles.get("p95", math.nan) > percentiles.get("p5", math.nan)


def _unusual(role: str, files: list[tuple[CaseReport, FileFacts]]) -> list[Finding]:
    figures = [file.percentiles for _, file in files if file.percentiles is not None]
    width = np.log([of["p95"] - of["p5"] for of in figures])
    middle = np.array([of["p50"] for of in figures])
    typical = float(np.exp(np.median(width)))
    scale_z, middle_z = _robust_z(width), _robust_z(middle)
    odd_scale = (np.abs(scale_z) > UNUSUAL_DEVIATIONS) & (np.abs(width - np.median(width)) > np.log(UNUSUAL_FACTOR))
    far = np.abs(middle - np.median(middle)) > UNUSUAL_FACTOR * typical
    odd_middle = (np.abs(middle_z) > UNUSUAL_DEVIATIONS) & far
    advice = "See whether it was exported with another scale or unit, or is another modality."
    findings = []
    for row in np.flatnonzero(odd_scale | odd_middle).tolist():
        report, file = files[row]
        message = (
            f"{role}: the values of '{file.path}' are unlike those of the other {len(files) - 1} cases: median "
            f"{middle[row]:.4g} and width {np.exp(width[row]):.4g}, usual are {np.median(middle):.4g} and {typical:.4g}"
        )
        values = {"scale_z": float(scale_z[row]), "median_z": float(middle_z[row])}
        findings.append(Finding(Kind.UNUSUAL_INTENSITY, message, advice, report.case, file.path, values))
    return findings


def _robust_z(values: np.ndarray) -> np.ndarray:
    away = values - np.median(values)
    spread = MAD_TO_SD * float(np.median(np.abs(away)))
    return np.asarray(away / spread if spread > 0 else np.where(away == 0, 0.0, np.copysign(np.inf, away)))


def _check_splits(reports: Sequence[CaseReport], limits: CheckLimits) -> list[Finding]:
    findings = []
    for split in SPLITS:
        of = [report for report in reports if report.split == split]
        known = [number for report in of if (number := _num_lesions(report)) is not None]
        readable = not any(report.has_error for report in of)
        if not known or (split == "test" and len(known) < len(of)):
            continue
        number = sum(known)
        if number == 0 and readable:
            findings += _without_lesion(split, of)
        elif 0 < number < limits.min_lesions and split != "training":
            message = (
                f"the {split} split has {number} {'lesion' if number == 1 else 'lesions'} in {len(known)} "
                f"{'case' if len(known) == 1 else 'cases'}: one lesion more or less moves its sensitivity by "
                f"{100 / number:.0f} percentage points"
            )
            advice = "Give it more cases, or cross-validate, before two settings are compared by it."
            values = {"split": split, "num_lesions": number, "num_cases": len(known)}
            findings.append(Finding(Kind.FEW_LESIONS, message, advice, values=values))
    return findings


def _num_lesions(report: CaseReport) -> int | None:
    """Of the reference, or of the majority of the readers, by which a case without one is evaluated."""
    return report.num_majority_lesions if report.num_lesions is None else report.num_lesions


def _without_lesion(split: str, reports: list[CaseReport]) -> list[Finding]:
    is_marked = any(any(report.num_reader_lesions) for report in reports if report.num_lesions is None)
    what = "labels" if all(report.num_lesions is not None for report in reports) else "labels or annotations"
    values = {"split": split, "num_cases": len(reports)}
    if split == "training":
        if is_marked:  # what a single reader marked can be learnt, by other fusions than the majority
            return []
        message = f"no lesion in the whole training set: all {len(reports)} {what} are empty"
        advice = "Nothing can be learnt from it; check 'label' in the dataset file."
        return [Finding(Kind.NO_LESION_TO_LEARN, message, advice, values=values)]
    empty = f"all {len(reports)} {what} are empty"
    message = (
        f"no lesion in the {split} split: {'no label and no majority of readers marks any' if is_marked else empty}"
    )
    advice = "Lesion sensitivity is undefined there; give it cases with lesions."
    return [Finding(Kind.SPLIT_WITHOUT_LESION, message, advice, values=values)]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(f"'{name}'" for name in names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
