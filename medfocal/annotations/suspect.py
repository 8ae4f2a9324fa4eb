"""Labels that are probably wrong, judged by predictions that did not learn from them.

The predictions must be held out: of each case, by a model that never saw its label. Then what a label and a prediction
disagree on is evidence against the label, the more so the surer the prediction is. Three levels:

- Voxels, by confident learning: `find_voxel_thresholds`.
- Lesions: `rank_suspects`. A candidate that touches no lesion may be a missed one, a lesion that the prediction doubts
  may be none, and a lesion drawn unlike its candidate may have a wrong boundary.
- Cases: `label_quality`.

Scores rank suspects; they are not probabilities. A model trained with focal loss is not calibrated, and one trained on
wrong labels repeats what is wrong with all of them: an error that every label shares is invisible here.

References:
    C. G. Northcutt, L. Jiang, I. L. Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 70
    (2021) 1373-1411. V. Lad, J. Mueller, "Estimating label quality and errors in semantic segmentation data via any
    model", arXiv:2307.05080 (2023).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medfocal.components import (
    CONNECTIVITIES,
    NUM_TOP_VOXELS,
    Components,
    Confidence,
    find_candidates,
    find_components,
)
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.evaluate.overlap import find_overlaps, voxel_dice
from medfocal.evaluate.pairs import Pair
from medfocal.files import write_csv, write_json
from medfocal.progress import track
from medfocal.volume import Volume, read_labels, read_volume, write_volume

#: How far from [0, 1] a probability may be: slope and intercept of a file turn 1 into 1.00001.
ROUNDING = 1e-3

#: Spurious score from which a labelled lesion is no example of how sure a prediction is of lesions.
DOUBTFUL = 0.5

SUSPECT_COLUMNS = (
    "rank", "kind", "case", "patient", "x_mm", "y_mm", "z_mm", "i", "j", "k", "num_voxels", "volume_ml",
    "equivalent_diameter_mm", "score", "confidence", "voxel_dice", "lesion", "candidate", "down_weighted",
)  # fmt: skip
CASE_COLUMNS = (
    "case", "patient", "label_quality", "highest_score", "num_lesions", "num_candidates", "num_missed", "num_spurious",
    "num_boundary", "num_missed_voxels", "num_spurious_voxels",
)  # fmt: skip


class Kind(enum.StrEnum):
    """What is suspected of a label.

    missed: There is a lesion that nobody marked.
    spurious: What was marked is no lesion.
    boundary: It is a lesion of another extent.
    """

    MISSED = "missed"
    SPURIOUS = "spurious"
    BOUNDARY = "boundary"


#: What `weight_kinds` may name: the suspects of a kind, or single voxels by the thresholds of the set.
WEIGHT_KINDS = (*(str(kind) for kind in Kind), "voxels")


@dataclass(frozen=True, kw_only=True)
class SuspectRules:
    """How suspects are found, and which of them weigh less; `conf/suspect.yaml` states each.

    Args:
        connectivity: Neighbours that belong to one lesion or candidate: 6, 18 or 26.
        extent_ratio: A candidate reaches down to this share of its own highest probability, in (0, 1).
        floor: Candidates below this confidence are not formed, in (0, 1].
        confidence: Of a candidate and of a lesion: "max", the highest probability in it, or "mean_top", the mean of
            the five highest.
        temperature: Of the softmin of `label_quality`, above 0.
        min_score: Score from which a suspect is listed, in [0, 1].
        weight_min_score: Score from which it weighs `suspect_weight`, in [0, 1].
        weight_kinds: Which may weigh less: "missed", "spurious", "boundary", and "voxels" for every single suspected
            voxel. None: all weigh 1.
        suspect_weight: Weight of their voxels, in [0, 1].

    Raises:
        ValueError: One is out of its range.
    """

    connectivity: int = 26
    extent_ratio: float = 0.5
    floor: float = 0.01
    confidence: Confidence = "max"
    temperature: float = 0.1
    min_score: float = 0.2
    weight_min_score: float = 0.5
    weight_kinds: Sequence[str] = ("missed", "spurious", "boundary")
    suspect_weight: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "connectivity": (self.connectivity in CONNECTIVITIES, f"one of {CONNECTIVITIES}"),
            "extent_ratio": (0 < self.extent_ratio < 1, "in (0, 1)"),
            "floor": (0 < self.floor <= 1, "in (0, 1]"),
            "confidence": (self.confidence in get_args(Confidence), f"one of {get_args(Confidence)}"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "min_score": (0 <= self.min_score <= 1, "in [0, 1]"),
            "weight_min_score": (0 <= self.weight_min_score <= 1, "in [0, 1]"),
            "weight_kinds": (set(self.weight_kinds) <= set(WEIGHT_KINDS), f"some of {WEIGHT_KINDS}"),
            "suspect_weight": (0 <= self.suspect_weight <= 1, "in [0, 1]"),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                message = f"{name} must be {wanted}, got {getattr(self, name)!r}"
                raise ValueError(message)
        object.__setattr__(self, "weight_kinds", tuple(self.weight_kinds))


@dataclass(frozen=True)
class Place:
    """A lesion or a candidate, measured.

    Attributes:
        num_voxels: Its voxels.
        volume_ml: Its volume in millilitres.
        equivalent_diameter_mm: Diameter of the sphere of the same volume.
        centroid_voxel: Mean voxel index.
        centroid_mm: The same point in world coordinates (RAS).
    """

    num_voxels: int
    volume_ml: float
    equivalent_diameter_mm: float
    centroid_voxel: tuple[float, ...]
    centroid_mm: tuple[float, ...]


@dataclass(frozen=True)
class DoubtedLesion:
    """A lesion of the reference as the prediction sees it.

    Attributes:
        number: Its number in its case, from 1.
        place: What it measures.
        confidence: Of the prediction in it and one voxel around.
        candidate: Number of the candidate that shares most voxels with it, else of the surest within one voxel.
        voxel_dice: Of the lesion and that candidate without its voxels in other lesions; NaN where there is none.
    """

    number: int
    place: Place
    confidence: float
    candidate: int | None
    voxel_dice: float


@dataclass(frozen=True)
class LonelyCandidate:
    """A candidate that touches no lesion: none lies within one voxel, corners included.

    Attributes:
        number: Its number in its case, from 1.
        place: What it measures.
        confidence: Its confidence.
    """

    number: int
    place: Place
    confidence: float


@dataclass(frozen=True)
class CaseSurvey:
    """What is known of one case after one look; it holds no volumes.

    Attributes:
        case: Name of the case.
        patient: Name of the patient.
        lesions: Every lesion, by number.
        candidates: Those that touch no lesion, by number.
        num_candidates: Of all candidates.
        lesion_sum: Sum of the probability of lesion over the voxels labelled so.
        num_lesion_voxels: Number of these.
        background_sum: Sum of the probability of background over the voxels labelled so.
        num_background_voxels: Number of these.
        label_quality: See `label_quality`.
        is_graded: Whether any probability lies between 0 and 1.
    """

    case: str
    patient: str
    lesions: tuple[DoubtedLesion, ...]
    candidates: tuple[LonelyCandidate, ...]
    num_candidates: int
    lesion_sum: float
    num_lesion_voxels: int
    background_sum: float
    num_background_voxels: int
    label_quality: float
    is_graded: bool


@dataclass(frozen=True)
class VoxelThresholds:
    """Confident thresholds of the whole set.

    Attributes:
        lesion: A voxel labelled background is suspected missed where p is at least this; NaN without lesion voxels.
        background: A voxel labelled lesion is suspected spurious where 1 - p is at least this.
    """

    lesion: float
    background: float


@dataclass(frozen=True)
class Suspect:
    """A place where the label is probably wrong.

    Attributes:
        rank: From 1, the most suspicious first.
        kind: What is suspected.
        case: Name of the case.
        patient: Name of the patient.
        place: Of the candidate if missed, else of the lesion.
        score: In [0, 1], NaN where nothing can be compared. Ranks, and is no probability.
        confidence: Of the prediction there.
        voxel_dice: Of the lesion and its candidate, NaN if one of them is not there.
        lesion: Number of the lesion in its case, None if missed.
        candidate: Number of the candidate, None if there is none.
        down_weighted: Whether its voxels weigh `suspect_weight`.
    """

    rank: int
    kind: Kind
    case: str
    patient: str
    place: Place
    score: float
    confidence: float
    voxel_dice: float
    lesion: int | None
    candidate: int | None
    down_weighted: bool


@dataclass(frozen=True)
class CaseResult:
    """What is suspected of one case; `label_quality` and the counts are columns of `cases.csv`."""

    case: str
    patient: str
    label_quality: float
    highest_score: float
    num_lesions: int
    num_candidates: int
    num_missed: int
    num_spurious: int
    num_boundary: int
    num_missed_voxels: int = 0
    num_spurious_voxels: int = 0


@dataclass(frozen=True)
class SuspectList:
    """All suspects of a set.

    Attributes:
        rules: How they were found.
        suspects: By rank.
        cases: The worst label quality first.
        thresholds: Of voxels.
        typical_dice: Median Dice of lesions and their candidates; NaN without such a pair.
        num_lonely_candidates: Candidates that touch no lesion, of any score.
        undefined: What is NaN or empty, where and why.
    """

    rules: SuspectRules
    suspects: tuple[Suspect, ...]
    cases: tuple[CaseResult, ...]
    thresholds: VoxelThresholds
    typical_dice: float
    num_lonely_candidates: int
    undefined: tuple[Mapping[str, str], ...] = field(default=())

    def of_case(self, case: str) -> list[Suspect]:
        """Those of one case, by rank."""
        return [suspect for suspect in self.suspects if suspect.case == case]

    def to_dict(self) -> dict[str, Any]:
        """Give the content of suspect.json."""
        return {
            "rules": asdict(self.rules),
            "num_cases": len(self.cases),
            "num_patients": len({case.patient for case in self.cases}),
            "num_lesions": sum(case.num_lesions for case in self.cases),
            "num_candidates": sum(case.num_candidates for case in self.cases),
            "num_lonely_candidates": self.num_lonely_candidates,
            "num_suspects": {str(kind): sum(s.kind is kind for s in self.suspects) for kind in Kind},
            "num_down_weighted": {
                str(kind): sum(s.kind is kind and s.down_weighted for s in self.suspects) for kind in Kind
            },
            "num_suspect_voxels": {
                "missed": sum(case.num_missed_voxels for case in self.cases),
                "spurious": sum(case.num_spurious_voxels for case in self.cases),
            },
            "voxel_thresholds": asdict(self.thresholds),
            "typical_voxel_dice": self.typical_dice,
            "undefined": list(self.undefined),
        }


def suspect_files(pairs: Sequence[Pair], output: Path, rules: SuspectRules) -> SuspectList:
    """Find the suspects of a set of files and write them; two looks at each case, one case in memory at a time.

    Writes `suspect.csv`, `cases.csv`, `suspect.json` and `weights/<case>_weight.nii.gz`: float32 on the reference's
    grid, 1 but where `down_weighted` suspects lie. Nothing is written before every case has been read once.

    Args:
        pairs: Files by case; predictions are probability maps of models that did not learn from the reference.
        output: Folder, made if missing.
        rules: How.

    Raises:
        DatasetError: A case's name cannot become a file name.
        GeometryError: Reference and prediction of a case lie on different grids.
        InputError: A file cannot be read, or a prediction is a mask or no probability.
        ResourceError: The output cannot be written.
    """
    _check_names(pairs)
    surveys = []
    for pair in track(pairs, "compare"):
        reference, probability = read_pair(pair)
        surveys.append(
            survey_case(
                reference.array, probability, reference.affine, case=pair.case, patient=pair.patient, rules=rules
            )
        )
    if not any(survey.is_graded for survey in surveys):
        message = (
            f"none of the {len(pairs)} predictions, such as '{pairs[0].prediction}', holds a value between 0 and 1."
            " Probability maps are needed: medfocal predict … save_probability=true."
        )
        raise InputError(message)
    found = rank_suspects(surveys, rules)
    by_case = {case.case: case for case in found.cases}
    if (output / "suspect.json").is_file():  # maps of an earlier run must not weigh in a training beside this one's
        for old in (output / "weights").glob("*_weight.nii.gz"):
            old.unlink()
    for pair in track(pairs, "weigh"):
        reference, probability = read_pair(pair)
        missed, spurious = suspect_voxels(reference.array, probability, found.thresholds)
        by_case[pair.case] = replace(
            by_case[pair.case], num_missed_voxels=int(missed.sum()), num_spurious_voxels=int(spurious.sum())
        )
        weight = suspect_weights(reference.array, probability, reference.affine, case=pair.case, found=found)
        write_volume(output / "weights" / f"{pair.case}_weight.nii.gz", reference.with_array(weight))
    found = replace(found, cases=tuple(by_case[case.case] for case in found.cases))
    write_csv(output / "suspect.csv", [_suspect_row(suspect) for suspect in found.suspects], SUSPECT_COLUMNS)
    write_csv(output / "cases.csv", [asdict(case) for case in found.cases], CASE_COLUMNS)
    write_json(output / "suspect.json", found.to_dict())
    return found


def read_pair(pair: Pair) -> tuple[Volume, NDArray[np.floating[Any]]]:
    """Read the reference of a case and the probability map on its grid, clipped to [0, 1].

    Raises:
        GeometryError: The grids differ.
        InputError: A file cannot be read, or the prediction is a mask or no probability.
    """
    assert pair.prediction is not None, "missing predictions are refused where pairs are found"
    reference, prediction = read_labels(pair.reference), read_volume(pair.prediction)
    if not reference.same_grid(prediction):
        message = (
            f"case '{pair.case}': the grids of '{pair.reference}' and '{pair.prediction}' differ:"
            f" {reference.grid_difference(prediction)}. Resample the prediction onto the grid of the reference."
        )
        raise GeometryError(message)
    array = prediction.array
    low, high = float(array.min()), float(array.max())
    where = f"case '{pair.case}': '{pair.prediction}'"
    if array.dtype.kind != "f" or (high == 1 and bool(np.isin(array, (0, 1)).all())):
        message = (
            f"{where} is a mask: it holds whole numbers only, from {low:g} to {high:g}. Which labels are suspect is"
            " told from probability maps: medfocal predict … save_probability=true."
        )
        raise InputError(message)
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN too
        message = f"{where} holds values from {low:.6g} to {high:.6g}; probabilities lie in [0, 1]"
        raise InputError(message)
    return reference, np.clip(array, 0, 1)


def survey_case(
    reference: NDArray[Any],
    probability: NDArray[np.floating[Any]],
    affine: ArrayLike,
    *,
    case: str,
    patient: str | None = None,
    rules: SuspectRules,
) -> CaseSurvey:
    """Take from one case all that the ranking of the whole set needs.

    A lesion reaches one voxel further here (corners included): a mark beside its lesion by one voxel is a wrong
    boundary, not a spurious and a missed lesion.

    Args:
        reference: Anything but 0 is lesion, (I, J, K).
        probability: Of any lesion, held out, in [0, 1], on the same grid.
        affine: Voxel index to world RAS in mm, (4, 4).
        case: Name of the case.
        patient: Name of the patient; by default the case is its own patient.
        rules: How.

    Returns:
        The survey. A case without lesions or candidates has none.

    Raises:
        GeometryError: The shapes differ.
        ValueError: The probability holds NaN or lies outside [0, 1].
    """
    if reference.shape != probability.shape:
        message = f"case '{case}': reference and prediction differ in shape: {reference.shape} and {probability.shape}"
        raise GeometryError(message)
    affine = np.asarray(affine, np.float64)
    inside = reference != 0
    lesions = find_components(inside, affine, connectivity=rules.connectivity)
    candidates = form_candidates(probability, affine, rules)
    doubted, touching = _compare(lesions, candidates, probability, rules)
    num_inside = int(np.count_nonzero(inside))
    lesion_sum = float(probability[inside].sum(dtype=np.float64))
    lesion_sum_outside = float(probability[~inside].sum(dtype=np.float64))
    return CaseSurvey(
        case=case,
        patient=case if patient is None else patient,
        lesions=doubted,
        candidates=tuple(
            LonelyCandidate(number, _place(candidates, number), float(candidates.confidence[number - 1]))
            for number in range(1, len(candidates) + 1)
            if number not in touching
        ),
        num_candidates=len(candidates),
        lesion_sum=lesion_sum,
        num_lesion_voxels=num_inside,
        background_sum=inside.size - num_inside - lesion_sum_outside,
        num_background_voxels=inside.size - num_inside,
        label_quality=label_quality(reference, probability, temperature=rules.temperature),
        is_graded=bool(((probability > 0) & (probability < 1)).any()),
    )


def form_candidates(probability: NDArray[np.floating[Any]], affine: ArrayLike, rules: SuspectRules) -> Components:
    """The candidates of a map by these rules, numbered as in `Suspect.candidate`."""
    return find_candidates(
        probability,
        affine,
        extent_ratio=rules.extent_ratio,
        floor=rules.floor,
        connectivity=rules.connectivity,
        confidence=rules.confidence,
    )


def label_quality(reference: NDArray[Any], probability: NDArray[np.floating[Any]], *, temperature: float) -> float:
    """Softmin over all voxels of the probability that a held-out prediction gives to their labels.

    With q the probability of the label and T the temperature: sum(w q) / sum(w), w = exp((1 - q) / T). Near 1 the
    prediction agrees everywhere, and a few voxels of sure disagreement pull it down. The volume dilutes them: among
    ten times as many voxels of background the same missed lesion counts a tenth, so compare cases of like size.

    Args:
        reference: Anything but 0 is lesion, (I, J, K). None need be.
        probability: Of any lesion, in [0, 1], (I, J, K).
        temperature: Above 0; towards 0 it gives the worst voxel, at large values the mean.

    Returns:
        In [0, 1]; NaN for an array without voxels.

    References:
        Lad & Mueller 2023, section 4 ("softmin"), temperature 0.1.
    """
    own = np.where(reference != 0, probability, 1 - probability)
    if own.size == 0:
        return math.nan
    # The lowest q gets weight 1, so that no temperature can make every weight 0.
    weight = np.exp((own.min() - own) / temperature)
    return float((weight * own).sum(dtype=np.float64) / weight.sum(dtype=np.float64))


def find_voxel_thresholds(surveys: Iterable[CaseSurvey]) -> VoxelThresholds:
    """Class thresholds of confident learning over all voxels of a set.

    The threshold of a class is the mean probability of that class over the voxels labelled so (Northcutt et al. 2021,
    equation 2). Where lesions are rare, the mean probability of background is near 1: only a voxel labelled lesion
    that is as surely background as the average voxel of the whole image is suspected spurious. That is strict, and
    says nothing about marks on lookalikes, of which a prediction is never so sure; `rank_suspects` compares those with
    its doubtful candidates instead.

    Returns:
        The thresholds; NaN for a class that no voxel is labelled with.
    """
    surveys = list(surveys)
    lesion = sum(s.num_lesion_voxels for s in surveys)
    background = sum(s.num_background_voxels for s in surveys)
    return VoxelThresholds(
        lesion=math.fsum(s.lesion_sum for s in surveys) / lesion if lesion else math.nan,
        background=math.fsum(s.background_sum for s in surveys) / background if background else math.nan,
    )


def suspect_voxels(
    reference: NDArray[Any], probability: NDArray[np.floating[Any]], thresholds: VoxelThresholds
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (I, J, K) of the voxels suspected missed and of those suspected spurious; a NaN threshold: none."""
    inside = reference != 0
    missed = ~inside & (probability >= thresholds.lesion)
    return missed, inside & (1 - probability >= thresholds.background)


def rank_suspects(surveys: Sequence[CaseSurvey], rules: SuspectRules) -> SuspectList:
    """Rank what the labels of a set may have wrong, lesion by lesion.

    How alike a place of confidence x is to the n labelled lesions and to the m lonely candidates:

        p_lesion(x)     = (1 + number of lesions with confidence <= x) / (1 + n)
        p_background(x) = (1 + number of lonely candidates with confidence >= x) / (1 + m)

    where a place is not counted among the others of its own kind (these are conformal p-values). Scores of

        missed:    n p_lesion / (n p_lesion + m p_background), of a lonely candidate
        spurious:  n p_background / (n p_background + n p_lesion), of a lesion
        boundary:  (1 - spurious) max(0, 1 - Dice / median Dice), of a lesion that has a candidate

    Lesions that score 1/2 or more for spurious are left out of n and p_lesion of missed ones, unless all would be: else
    a reader who marks lookalikes would make every lookalike seem missed.

    Both have the form of a posterior that takes n errors of each kind for granted before looking, with tails in place
    of densities: the m candidates outweigh the n lesions, so a missed one must stand out from many. Missed and
    spurious depend on the order of the confidences alone, so a prediction that is not calibrated does no harm. The
    median takes out how the prediction draws boundaries in general. A lesion is listed once, as what it scores higher
    for.

    Args:
        surveys: Of all cases.
        rules: How.

    Returns:
        Suspects by falling score, ties by how far the confidence speaks against the label. Where there are no lesions,
        or no lonely candidates, to compare with, scores are NaN: then all lonely candidates, or the lesions without
        any candidate, are listed by confidence.
    """
    likeness = _Likeness.of(surveys)
    dice = [lesion.voxel_dice for survey in surveys for lesion in survey.lesions if lesion.candidate is not None]
    typical_dice = float(np.median(dice)) if dice else math.nan
    rows: list[tuple[float, Suspect]] = []
    for survey in surveys:
        rows += [(c.confidence, _missed(c, survey, likeness)) for c in survey.candidates]
        rows += [_doubt(lesion, survey, likeness, typical_dice) for lesion in survey.lesions]
    listed = [(against, suspect) for against, suspect in rows if _is_listed(suspect, rules)]
    listed.sort(key=lambda row: (math.isnan(row[1].score), -_or_zero(row[1].score), -row[0], *_identity(row[1])))
    suspects = tuple(
        replace(suspect, rank=rank, down_weighted=_is_down_weighted(suspect, rules))
        for rank, (_, suspect) in enumerate(listed, start=1)
    )
    cases = [_case_result(survey, suspects) for survey in surveys]
    thresholds = find_voxel_thresholds(surveys)
    return SuspectList(
        rules=rules,
        suspects=suspects,
        cases=tuple(sorted(cases, key=lambda case: (case.label_quality, case.case))),
        thresholds=thresholds,
        typical_dice=typical_dice,
        num_lonely_candidates=len(likeness.background),
        undefined=tuple(_undefined(len(likeness.lesions), len(likeness.background), thresholds, typical_dice)),
    )


@dataclass(frozen=True, eq=False)
class _Likeness:
    """Sorted confidences of all labelled lesions `(n,)`, of those less doubtful `(t,)`, of lonely candidates `(m,)`."""

    lesions: NDArray[np.float64]
    trusted: NDArray[np.float64]
    background: NDArray[np.float64]

    @classmethod
    def of(cls, surveys: Sequence[CaseSurvey]) -> _Likeness:
        lesions = [lesion.confidence for survey in surveys for lesion in survey.lesions]
        background = [candidate.confidence for survey in surveys for candidate in survey.candidates]
        found = np.sort(np.array(lesions, np.float64))
        likeness = cls(found, found, np.sort(np.array(background, np.float64)))
        trusted = np.array([value for value in found if not likeness.spurious_score(value) >= DOUBTFUL])
        return replace(likeness, trusted=trusted) if len(trusted) else likeness

    def missed_score(self, confidence: float) -> float:
        """Of a lonely candidate, which is among `background`."""
        num_lesions = len(self.trusted)
        if not num_lesions:
            return math.nan
        lesion = num_lesions * (1 + int(np.searchsorted(self.trusted, confidence, "right"))) / (1 + num_lesions)
        return lesion / (lesion + self._num_background_from(confidence))

    def spurious_score(self, confidence: float) -> float:
        """Of a lesion, which is among `lesions`."""
        if not len(self.background):
            return math.nan
        background = (1 + self._num_background_from(confidence)) / (1 + len(self.background))
        return background / (background + int(np.searchsorted(self.lesions, confidence, "right")) / len(self.lesions))

    def _num_background_from(self, confidence: float) -> int:
        return len(self.background) - int(np.searchsorted(self.background, confidence, "left"))


def _missed(candidate: LonelyCandidate, survey: CaseSurvey, likeness: _Likeness) -> Suspect:
    return Suspect(
        rank=0,
        kind=Kind.MISSED,
        case=survey.case,
        patient=survey.patient,
        place=candidate.place,
        score=likeness.missed_score(candidate.confidence),
        confidence=candidate.confidence,
        voxel_dice=math.nan,
        lesion=None,
        candidate=candidate.number,
        down_weighted=False,
    )


def _doubt(
    lesion: DoubtedLesion, survey: CaseSurvey, likeness: _Likeness, typical_dice: float
) -> tuple[float, Suspect]:
    """A lesion as what it scores higher for, spurious or of another boundary, and what breaks ties."""
    score = likeness.spurious_score(lesion.confidence)
    suspect = Suspect(
        rank=0,
        kind=Kind.SPURIOUS,
        case=survey.case,
        patient=survey.patient,
        place=lesion.place,
        score=score,
        confidence=lesion.confidence,
        voxel_dice=lesion.voxel_dice,
        lesion=lesion.number,
        candidate=lesion.candidate,
        down_weighted=False,
    )
    if lesion.candidate is not None and typical_dice > 0:
        doubt = 0.0 if math.isnan(score) else score
        boundary = (1 - doubt) * max(0.0, 1 - lesion.voxel_dice / typical_dice)
        if math.isnan(score) or boundary > score:
            return 1 - lesion.voxel_dice, replace(suspect, kind=Kind.BOUNDARY, score=boundary)
    return 1 - lesion.confidence, suspect


def suspect_weights(
    reference: NDArray[Any],
    probability: NDArray[np.floating[Any]],
    affine: ArrayLike,
    *,
    case: str,
    found: SuspectList,
) -> NDArray[np.float32]:
    """Voxel weights of one case: `suspect_weight` where its down-weighted suspects lie, 1 elsewhere.

    A missed suspect covers its candidate, a spurious one its lesion, a wrong boundary the voxels that only one of
    lesion and candidate has. Where "voxels" is among the kinds, every voxel beyond the thresholds of the set too.

    Returns:
        float32 (I, J, K).
    """
    rules = found.rules
    weight = np.ones(reference.shape, np.float32)
    suspects = [suspect for suspect in found.of_case(case) if suspect.down_weighted]
    if suspects:
        lesions = find_components(reference, affine, connectivity=rules.connectivity)
        candidates = form_candidates(probability, affine, rules)
        for suspect in suspects:
            weight[_extent(suspect, lesions, candidates)] = rules.suspect_weight
    if "voxels" in rules.weight_kinds:
        missed, spurious = suspect_voxels(reference, probability, found.thresholds)
        weight[missed | spurious] = rules.suspect_weight
    return weight


def _extent(suspect: Suspect, lesions: Components, candidates: Components) -> NDArray[np.bool_]:
    candidate = np.asarray(candidates.labels == suspect.candidate)
    if suspect.kind is Kind.MISSED:
        return candidate
    lesion = np.asarray(lesions.labels == suspect.lesion)
    if suspect.kind is Kind.SPURIOUS:
        return lesion
    elsewhere = (lesions.labels != 0) & ~lesion
    return np.asarray(lesion ^ (candidate & ~elsewhere))


def _compare(
    lesions: Components, candidates: Components, probability: NDArray[np.floating[Any]], rules: SuspectRules
) -> tuple[tuple[DoubtedLesion, ...], set[int]]:
    """Each lesion with the candidate that is its own, and the numbers of all candidates that touch a lesion."""
    overlaps = find_overlaps(lesions, candidates)
    in_lesions = np.bincount(overlaps.candidate, overlaps.num_voxels, minlength=len(candidates) + 1)
    doubted, touching = [], set()
    for number, box in enumerate(lesions.bounding_box, start=1):
        around = tuple(slice(max(0, int(first) - 1), int(end) + 1) for first, end in box)
        part = lesions.labels[around]
        lesion = part == number
        near = ndimage.binary_dilation(lesion, np.ones((3, 3, 3))) & (lesion | (part == 0))
        nearby = np.setdiff1d(candidates.labels[around][near], [0]).tolist()
        touching.update(nearby)
        values = np.sort(probability[around][near])[::-1][: 1 if rules.confidence == "max" else NUM_TOP_VOXELS]
        mine = overlaps.lesion == number
        candidate, shared = None, 0
        if mine.any():
            most = np.lexsort((overlaps.candidate[mine], -overlaps.num_voxels[mine]))[0]
            candidate, shared = int(overlaps.candidate[mine][most]), int(overlaps.num_voxels[mine][most])
        elif nearby:
            candidate = nearby[0]  # numbered by falling confidence
        dice = math.nan
        if candidate is not None:
            elsewhere = int(in_lesions[candidate]) - shared
            num_predicted = int(candidates.num_voxels[candidate - 1]) - elsewhere
            dice = voxel_dice(shared, int(lesions.num_voxels[number - 1]), num_predicted)
        confidence = float(values.mean(dtype=np.float64))
        doubted.append(DoubtedLesion(number, _place(lesions, number), confidence, candidate, dice))
    return tuple(doubted), touching


def _place(components: Components, number: int) -> Place:
    row = number - 1
    return Place(
        num_voxels=int(components.num_voxels[row]),
        volume_ml=float(components.volume_ml[row]),
        equivalent_diameter_mm=float(components.equivalent_diameter_mm[row]),
        centroid_voxel=tuple(components.centroid_voxel[row].tolist()),
        centroid_mm=tuple(components.centroid_mm[row].tolist()),
    )


def _is_listed(suspect: Suspect, rules: SuspectRules) -> bool:
    return math.isnan(suspect.score) or suspect.score >= rules.min_score


def _is_down_weighted(suspect: Suspect, rules: SuspectRules) -> bool:
    return suspect.score >= rules.weight_min_score and suspect.kind in rules.weight_kinds


def _identity(suspect: Suspect) -> tuple[str, str, int, int]:
    return suspect.case, str(suspect.kind), suspect.lesion or 0, suspect.candidate or 0


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _case_result(survey: CaseSurvey, suspects: Sequence[Suspect]) -> CaseResult:
    mine = [suspect for suspect in suspects if suspect.case == survey.case]
    number = {kind: sum(suspect.kind is kind for suspect in mine) for kind in Kind}
    return CaseResult(
        case=survey.case,
        patient=survey.patient,
        label_quality=survey.label_quality,
        highest_score=max((s.score for s in mine if not math.isnan(s.score)), default=math.nan),
        num_lesions=len(survey.lesions),
        num_candidates=survey.num_candidates,
        num_missed=number[Kind.MISSED],
        num_spurious=number[Kind.SPURIOUS],
        num_boundary=number[Kind.BOUNDARY],
    )


def _undefined(
    num_lesions: int, num_background: int, thresholds: VoxelThresholds, typical_dice: float
) -> Iterable[dict[str, str]]:
    """What could not be computed for the whole set, and why."""
    if num_lesions == 0 and num_background == 0:
        why = "no reference holds a lesion and no prediction forms a candidate: there is nothing to suspect"
        yield {"what": "suspects", "where": "all cases", "why": why}
    elif num_lesions == 0:
        why = "no reference holds a lesion, so nothing says how sure the prediction is of one; order by confidence"
        yield {"what": "score of missed", "where": "all cases", "why": why}
    elif num_background == 0:
        why = "every candidate touches a lesion, so nothing says how sure the prediction is of what is none"
        yield {"what": "score of spurious", "where": "all cases", "why": why}
    if math.isnan(thresholds.lesion):
        yield {"what": "voxel_thresholds: lesion", "where": "all cases", "why": "no voxel is labelled lesion"}
    if math.isnan(thresholds.background):
        yield {"what": "voxel_thresholds: background", "where": "all cases", "why": "every voxel is labelled lesion"}
    if num_lesions and math.isnan(typical_dice):
        why = "no lesion has a candidate, so no boundary can be compared"
        yield {"what": "typical_voxel_dice", "where": "all cases", "why": why}


def _suspect_row(suspect: Suspect) -> dict[str, object]:
    place = suspect.place
    return {
        "rank": suspect.rank,
        "kind": str(suspect.kind),
        "case": suspect.case,
        "patient": suspect.patient,
        **dict(zip(("x_mm", "y_mm", "z_mm"), place.centroid_mm, strict=True)),
        **dict(zip("ijk", place.centroid_voxel, strict=True)),
        "num_voxels": place.num_voxels,
        "volume_ml": place.volume_ml,
        "equivalent_diameter_mm": place.equivalent_diameter_mm,
        "score": suspect.score,
        "confidence": suspect.confidence,
        "voxel_dice": suspect.voxel_dice,
        "lesion": suspect.lesion,
        "candidate": suspect.candidate,
        "down_weighted": suspect.down_weighted,
    }


def _check_names(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if Path(pair.case).name != pair.case or not pair.case.isprintable():
            message = f"a case's name becomes that of its weights, so {pair.case!r} cannot be one. Rename the case."
            raise DatasetError(message)
