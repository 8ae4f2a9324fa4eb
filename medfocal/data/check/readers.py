"""Several readers of one case: each one's file, and how far they agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medfocal.annotations.agreement import PairAgreement, reader_agreement
from medfocal.annotations.fusion import majority
from medfocal.annotations.target import as_marks
from medfocal.components import Components, find_components
from medfocal.data.cases import read_annotations
from medfocal.data.check.files import FileFacts, check_same_grid, facts_of, read_file
from medfocal.data.check.findings import Finding, Kind, Severity
from medfocal.data.check.labels import check_label
from medfocal.data.check.limits import CheckLimits
from medfocal.data.manifest import Case, LabelScheme
from medfocal.errors import InputError
from medfocal.volume import Volume

if TYPE_CHECKING:
    from medfocal.data.check.cases import CaseReport

#: Two readers whose marks agree by less, as voxel Dice, disagree strongly.
LEAST_DICE = 0.3


@dataclass
class ReaderMarks:
    """What was found in the annotations of a case."""

    files: list[FileFacts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    num_lesions: tuple[int, ...] = ()
    num_majority_lesions: int | None = None
    agreement: tuple[PairAgreement, ...] = ()
    largest: Components | None = None


def check_readers(case: Case, grid: Volume | None, scheme: LabelScheme, limits: CheckLimits) -> ReaderMarks:
    """Read the annotations of a case and compare the readers.

    Args:
        case: Has annotations.
        grid: Of its images or its label; None: the first reader's is what the others are held against.
        scheme: What values mean.
        limits: What is suspicious.
    """
    found = ReaderMarks()
    standard = "image" if case.images else "label" if case.label is not None else "reader 1"
    for number, path in enumerate(case.annotations, start=1):
        role = f"reader {number}"
        volume, findings = read_file(path, role, case.name)
        found.findings += findings
        if volume is None:
            continue
        found.files.append(facts_of(volume, path, role))
        if grid is None:
            grid = volume
        _, findings = check_same_grid(volume, grid, (role, standard), path, case.name)
        found.findings += findings
        if not (scheme.num_classes == 2 and _is_shares(volume)):
            kinds = {Kind.LABEL_EMPTY, Kind.SPECKS}  # of one reader these say little
            marked = check_label(volume, scheme, limits, path, role, case.name)
            found.findings += [finding for finding in marked.findings if finding.kind not in kinds]
    if grid is None or any(finding.severity is Severity.ERROR for finding in found.findings):
        return found
    try:
        readers, _ = read_annotations(case, grid, scheme)
    except InputError as error:
        advice = "Correct the file or the dataset file."
        found.findings.append(Finding(Kind.UNUSABLE_ANNOTATION, str(error), advice, case.name))
        return found
    marks = as_marks(readers)
    lesions = [find_components(reader, grid.affine) for reader in marks]
    found.num_lesions = tuple(map(len, lesions))
    if case.label is None:
        agreed = majority(marks, num_classes=scheme.num_classes)
        found.num_majority_lesions = len(find_components(agreed, grid.affine))
    found.largest = next((each for each in lesions if len(each)), None)
    found.agreement = tuple(reader_agreement(marks, grid.affine))
    found.findings += [finding for pair in found.agreement for finding in _judge(pair, case.name)]
    return found


def _is_shares(volume: Volume) -> bool:
    array = volume.array
    return array.dtype.kind == "f" and bool(((array > 0) & (array < 1)).any())


def _judge(pair: PairAgreement, case: str) -> list[Finding]:
    if not (pair.num_lesions_first and pair.num_lesions_second) or pair.voxel_dice >= LEAST_DICE:
        return []
    values = {"readers": [pair.first, pair.second], "voxel_dice": pair.voxel_dice}
    who = f"readers {pair.first} and {pair.second}"
    if pair.voxel_dice == 0:
        message = f"{who} both marked lesions and share not one voxel"
        advice = "See that both files are of this case and lie on its grid the right way round."
        return [Finding(Kind.READERS_DISJOINT, message, advice, case, values=values)]
    message = f"{who} disagree strongly: voxel Dice {pair.voxel_dice:.2f}"
    advice = "Look at the case; training can weigh or leave out what readers disagree on (annotations.disagreement)."
    return [Finding(Kind.READERS_DISAGREE, message, advice, case, values=values)]


@dataclass(frozen=True)
class AgreementRow:
    """Two readers over the cases of a split that both looked at.

    Attributes:
        split: Which.
        first, second: Numbers of the readers.
        num_cases: That both annotated.
        num_defined: Of these, where at least one marked something.
        mean_voxel_dice: Over the defined; NaN without any.
        num_lesions: Of the first and of the second.
        num_missed: Lesions of the first of which the second marked no voxel, and the reverse.
    """

    split: str
    first: int
    second: int
    num_cases: int
    num_defined: int
    mean_voxel_dice: float
    num_lesions: tuple[int, int]
    num_missed: tuple[int, int]

    @property
    def words(self) -> str:
        """The row as a sentence."""
        agree = f"voxel Dice undefined, neither marked a lesion in {_cases(self.num_cases)}"
        if self.num_defined:
            agree = f"mean voxel Dice {self.mean_voxel_dice:.3f} over {self.num_defined} of {_cases(self.num_cases)}"
        return (
            f"{self.split}: readers {self.first} and {self.second}: {agree}; {self.num_missed[0]} of "
            f"{self.num_lesions[0]} lesions of reader {self.first} and {self.num_missed[1]} of {self.num_lesions[1]} "
            f"of reader {self.second} missed by the other"
        )


def agreement_rows(split: str, reports: Sequence[CaseReport]) -> list[AgreementRow]:
    """A row for each pair of readers that some case of the split has."""
    pairs = sorted((pair for report in reports for pair in report.agreement), key=_readers_of)
    return [_agreement_row(split, list(of)) for _, of in itertools.groupby(pairs, key=_readers_of)]


def _agreement_row(split: str, found: list[PairAgreement]) -> AgreementRow:
    dice = [pair.voxel_dice for pair in found if not math.isnan(pair.voxel_dice)]
    return AgreementRow(
        split=split,
        first=found[0].first,
        second=found[0].second,
        num_cases=len(found),
        num_defined=len(dice),
        mean_voxel_dice=float(np.mean(dice)) if dice else math.nan,
        num_lesions=(sum(p.num_lesions_first for p in found), sum(p.num_lesions_second for p in found)),
        num_missed=(sum(p.num_only_first for p in found), sum(p.num_only_second for p in found)),
    )


def _readers_of(pair: PairAgreement) -> tuple[int, int]:
    return pair.first, pair.second


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"
