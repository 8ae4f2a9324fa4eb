"""Checking a whole dataset: every case in parallel, then the set; what is printed and written of it."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from medfocal.data.check.across import check_across
from medfocal.data.check.cases import CaseReport, check_case
from medfocal.data.check.findings import Finding, Kind, Severity
from medfocal.data.check.limits import CheckLimits
from medfocal.data.check.visits import NUM_PATCHES, Visits, expected_visits
from medfocal.data.manifest import SPLITS, Manifest
from medfocal.errors import DatasetError
from medfocal.files import write_json
from medfocal.parallel import in_processes
from medfocal.progress import say, track

#: Findings of one kind that are printed; the report has all.
NUM_PRINTED = 10


@dataclass(frozen=True)
class SplitRow:
    """Counts of one split.

    Attributes:
        split: Which.
        num_cases: Cases.
        num_patients: Patients.
        num_labelled: Cases whose reference can be understood.
        num_by_readers: Cases without a label whose readers' annotations can be understood.
        num_lesions: Of the references.
        num_lesion_free: Cases with a reference and without a lesion.
        lesion_share: Least and greatest share of lesion voxels of those with one; None without any.
    """

    split: str
    num_cases: int
    num_patients: int
    num_labelled: int
    num_by_readers: int
    num_lesions: int
    num_lesion_free: int
    lesion_share: tuple[float, float] | None

    @property
    def words(self) -> str:
        """The row as a sentence."""
        line = f"{self.split}: {_count(self.num_cases, 'case')}, "
        if 0 < self.num_cases == self.num_by_readers:
            return f"{line}marked by readers only"
        by_readers = f", {self.num_by_readers} marked by readers only" if self.num_by_readers else ""
        if self.num_labelled == 0 and self.num_cases > 0:
            return f"{line}none with a usable label{by_readers}"
        if self.num_labelled < self.num_cases:
            line += f"{self.num_labelled} with a usable label{by_readers}, "
        line += f"{_count(self.num_lesions, 'lesion')}, {_count(self.num_lesion_free, 'case')} without"
        if self.lesion_share is not None:
            line += f", lesion share of the others {self.lesion_share[0]:.1e} to {self.lesion_share[1]:.1e}"
        return line


@dataclass(frozen=True)
class DatasetReport:
    """What was found in a dataset.

    Attributes:
        manifest: What was checked.
        cases: A report a case, in the order of the manifest.
        findings: All findings: of the set first, then case by case.
        visits: Expected visits of the training lesions; None without any.
    """

    manifest: Manifest
    cases: tuple[CaseReport, ...]
    findings: tuple[Finding, ...]
    visits: Visits | None

    def of(self, severity: Severity) -> list[Finding]:
        """Findings of one severity."""
        return [finding for finding in self.findings if finding.severity is severity]

    def split_rows(self) -> list[SplitRow]:
        """Counts of each split that has cases."""
        return [_split_row(s, own) for s in SPLITS if (own := [case for case in self.cases if case.split == s])]

    def raise_for_errors(self, repaired: Sequence[Finding] = ()) -> None:
        """End with all errors in one message, those that were repaired left out.

        Raises:
            DatasetError: There is one.
        """
        left = [finding for finding in self.of(Severity.ERROR) if not any(finding is other for other in repaired)]
        if left:
            listed = "\n".join(f"  - {finding.words}. {finding.advice}" for finding in left)
            message = f"'{self.manifest.path}' has {_count(len(left), 'error')}:\n{listed}"
            raise DatasetError(message)


def check_dataset(manifest: Manifest, *, limits: CheckLimits | None = None, workers: int = 1) -> DatasetReport:
    """Read every file of a dataset once, and name everything that is wrong with it. Nothing is changed.

    Args:
        manifest: What to read.
        limits: What is suspicious; None takes the defaults.
        workers: Processes that read.

    Returns:
        What was found. A file that cannot be used is a finding and stops nothing.

    Raises:
        ResourceError: A process ended without an answer.
    """
    limits = CheckLimits() if limits is None else limits
    task = functools.partial(check_case, channels=manifest.channels, scheme=manifest.scheme, limits=limits)
    with in_processes(task, manifest.cases, workers, what="checked cases", name=attrgetter("name")) as reports:
        cases = tuple(track(reports, "check", total=len(manifest.cases)))
    findings = (*check_across(cases, limits), *(finding for case in cases for finding in case.findings))
    return DatasetReport(manifest, cases, findings, expected_visits(cases))


def print_dataset_report(report: DatasetReport) -> None:
    """Print a line for each split, each pair of readers, each warning and, by kind, the notes; not the errors."""
    for row in report.split_rows():
        say(row.words)
    for line in reader_lines(report):
        say(line)
    by_kind: dict[Kind, list[Finding]] = defaultdict(list)
    for finding in report.of(Severity.WARNING):
        by_kind[finding.kind].append(finding)
    for kind, findings in by_kind.items():
        for finding in findings[:NUM_PRINTED]:
            say(f"warning: {finding.words}. {finding.advice}")
        if len(findings) > NUM_PRINTED:
            say(f"warning: {kind}: and {len(findings) - NUM_PRINTED} more")
    notes = Counter(finding.kind for finding in report.of(Severity.NOTE))
    if notes:
        say(f"notes: {', '.join(f'{kind} {number}' for kind, number in notes.items())}")
    if not report.of(Severity.ERROR):
        say(f"'{report.manifest.path}': no error in {_count(len(report.cases), 'case')}")


def reader_lines(report: DatasetReport) -> list[str]:
    """A sentence for each pair of readers in each split; none where no case has two."""
    if not any(case.agreement for case in report.cases):
        return []
    from medfocal.data.check.readers import agreement_rows  # sets without readers do without what it imports

    return [row.words for s in SPLITS for row in agreement_rows(s, [case for case in report.cases if case.split == s])]


def write_dataset_report(report: DatasetReport, path: Path) -> Path:
    """Write all findings and what each file holds as JSON.

    Returns:
        `path`.
    """
    counts = {str(severity): len(report.of(severity)) for severity in Severity}
    content = {
        "dataset": report.manifest.path,
        "num_findings": counts,
        "findings": [finding.to_dict() for finding in report.findings],
        "splits": [asdict(row) for row in report.split_rows()],
        "visits": None if report.visits is None else _visit_table(report.visits),
        "cases": [_case_entry(case) for case in report.cases],
    }
    write_json(path, content)
    return path


def _visit_table(visits: Visits) -> dict[str, Any]:
    return {"num_patches": NUM_PATCHES, "rows": [asdict(row) for row in visits.rows()]}


def _case_entry(case: CaseReport) -> dict[str, Any]:
    entry = {name: value for name, value in vars(case).items() if name not in {"files", "agreement", "findings"}}
    entry["files"] = [vars(file) for file in case.files]
    entry["agreement"] = [asdict(pair) for pair in case.agreement]
    entry["findings"] = [str(finding.kind) for finding in case.findings]
    return entry


def _split_row(split: str, reports: list[CaseReport]) -> SplitRow:
    known = [report for report in reports if report.num_lesions is not None]
    shares = [report.lesion_share for report in known if report.lesion_share]
    return SplitRow(
        split=split,
        num_cases=len(reports),
        num_patients=len({report.patient for report in reports}),
        num_labelled=len(known),
        num_by_readers=sum(report.num_majority_lesions is not None for report in reports),
        num_lesions=sum(report.num_lesions or 0 for report in known),
        num_lesion_free=sum(report.num_lesions == 0 for report in known),
        lesion_share=(min(shares), max(shares)) if shares else None,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
