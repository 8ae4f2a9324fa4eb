"""One label out of the marks of several readers.

Readers are an integer array `(R, I, J, K)`: the class that each of R readers gave each voxel, 0 for the background.
All lie on one grid. Nothing here depends on the order of the readers but the order of what is told about each.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What a probability is held against to call a class believed.
HALF = 0.5
#: Sensitivity + specificity - 1 of a reader who knows something; 0 is a coin that ignores the image.
LEAST_YOUDEN = 0.05


class Fusion(enum.StrEnum):
    """How the label that a network learns from is made.

    reference: The agreed truth; the readers are not asked.
    mean: The share of the readers who marked each class, a soft label.
    majority: The class with most marks.
    union: A lesion where any reader marked one.
    intersection: A lesion where every reader marked one.
    staple: Probabilities that weigh each reader by his estimated sensitivity and specificity.
    random: One reader, drawn anew each time.
    """

    REFERENCE = "reference"
    MEAN = "mean"
    MAJORITY = "majority"
    UNION = "union"
    INTERSECTION = "intersection"
    STAPLE = "staple"
    RANDOM = "random"

    @classmethod
    def _missing_(cls, value: object) -> None:
        choices = ", ".join(f"'{choice}'" for choice in cls)
        raise ValueError(f"fusion must be one of {choices}, got {value!r}")


@dataclass(frozen=True, eq=False)
class Staple:
    """What STAPLE makes of the readers.

    Attributes:
        shares: Probability of each class, float32 `(num_classes, I, J, K)`, summing to 1 in each voxel.
        sensitivity: Of each reader for each lesion class against the rest, float64 `(R, num_classes - 1)`. NaN where
            it was not estimated, or the estimate was not believed.
        specificity: Likewise. It counts the voxels of the box in which STAPLE ran, so it falls as lesions lie closer
            together; compare readers with it, not cases.
        num_iterations: Of the class that took most; 0 where no estimate was needed.
        problem: Why STAPLE was not believed and the majority decided instead, for a class or all; None if it was.
    """

    shares: NDArray[np.float32]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]
    num_iterations: int
    problem: str | None


def mean_shares(readers: NDArray[np.integer[Any]], *, num_classes: int) -> NDArray[np.float32]:
    """Share of the readers who marked each class.

    Args:
        readers: Classes `(R, I, J, K)`, 0 the background.
        num_classes: With the background.

    Returns:
        Shares, `(num_classes, I, J, K)`, summing to 1 in each voxel. No mark: all background.

    Raises:
        ValueError: The readers are no such array, or hold another class.
    """
    num_readers, marked, counts = _count_marks(readers, num_classes)
    return _spread(marked, counts / num_readers)


def majority(readers: NDArray[np.integer[Any]], *, num_classes: int) -> NDArray[np.uint8]:
    """The class with most marks; ties go to the lower class number.

    So a tie with the background is background: of two readers both are needed for a lesion, of four three (where
    there is one lesion class).

    Args:
        readers: Classes `(R, I, J, K)`, 0 the background.
        num_classes: With the background.

    Returns:
        Classes, `(I, J, K)`. No mark: all background.

    Raises:
        ValueError: The readers are no such array, or hold another class.
    """
    return _decided(readers, Fusion.MAJORITY, num_classes)


def union(readers: NDArray[np.integer[Any]], *, num_classes: int) -> NDArray[np.uint8]:
    """A lesion where any reader marked one, of the lesion class with most marks; ties go to the lower class number.

    Arguments, result and errors as of `majority`.
    """
    return _decided(readers, Fusion.UNION, num_classes)


def intersection(readers: NDArray[np.integer[Any]], *, num_classes: int) -> NDArray[np.uint8]:
    """A lesion where every reader marked one, of the lesion class with most marks; ties go to the lower class number.

    They need not agree on the class. Arguments, result and errors as of `majority`.
    """
    return _decided(readers, Fusion.INTERSECTION, num_classes)


def decide(counts: NDArray[np.integer[Any]], fusion: Fusion) -> NDArray[np.intp]:
    """The class that a rule of votes makes of the number of marks of each class.

    Args:
        counts: Readers who marked each class, `(num_classes, N)` of N voxels.
        fusion: majority, union or intersection.

    Returns:
        The class of each voxel, `(N,)`.

    Raises:
        ValueError: The fusion is no rule of votes.
    """
    lesion = 1 + counts[1:].argmax(axis=0)  # argmax takes the first of equals, and so the lower class
    if fusion is Fusion.MAJORITY:
        return np.asarray(counts.argmax(axis=0))
    if fusion is Fusion.UNION:
        return np.where(counts[1:].any(axis=0), lesion, 0)
    if fusion is Fusion.INTERSECTION:
        return np.where(counts[0] == 0, lesion, 0)
    message = f"'{fusion}' is no rule of votes; those are 'majority', 'union' and 'intersection'"
    raise ValueError(message)


def staple(readers: NDArray[np.integer[Any]], *, num_classes: int, max_iterations: int = 2000) -> Staple:
    """Estimate the truth and each reader's sensitivity and specificity together, by expectation-maximisation.

    Runs SimpleITK's filter in the box around all marks and one voxel of background around it. Where no reader marked
    anything, in the box or out of it, the result is background. (Without that rim the prior and the specificity depend
    on how well a lesion fills its box; where it fills it wholly, the specificity is 0 / 0.) Each lesion class runs
    against the rest; where probabilities of several classes sum to more than 1 they are scaled to it, else the
    background has what is left.

    STAPLE fails on lesions that are tiny, or on which readers hardly agree: it may learn that a reader's marks say
    nothing, or the opposite, and then gives voxels that all marked a low probability, or all voxels the same. Such
    estimates are not believed. A class for which one of these is seen is decided by the majority of the readers, with
    probabilities 0 and 1, and `problem` says why:

    - only one of several readers marked it (he cannot be judged by the others' silence), or, for all classes, none did;
    - the estimate did not settle within `max_iterations`, or is not a number;
    - it believes a lesion (.5 or more) where nobody marked one, or none (less than .5) where all did;
    - most readers' sensitivity + specificity is below 1.05, so their marks say nothing.

    A class that no reader marked, beside one that some did, is 0 everywhere, and its rates are NaN.

    Args:
        readers: Classes `(R, I, J, K)`, 0 the background. With one reader his marks are the result, rates are NaN.
        num_classes: With the background.
        max_iterations: Some 20 to 50 are usual. But where one reader comes out as the truth itself the estimate creeps
            towards it: of three readers of one lesion a voxel apart it takes 1400 to move by less than 1e-7.

    Returns:
        The estimate.

    Raises:
        ValueError: The readers are no such array, or hold another class, or `max_iterations` is below 1.

    References:
        Warfield, Zou & Wells 2004, "Simultaneous truth and performance level estimation (STAPLE)", IEEE TMI 23(7).
        Without its Markov random field, and with the prior fixed to the mean share of marks in the box.
    """
    if max_iterations < 1:
        message = f"max_iterations must be at least 1, got {max_iterations}"
        raise ValueError(message)
    num_readers, marked, counts = _count_marks(readers, num_classes)
    sensitivity, specificity = np.full((2, num_readers, num_classes - 1), math.nan)
    if num_readers == 1:
        return Staple(_spread(marked, counts), sensitivity, specificity, 0, None)
    if not marked.any():
        nobody = f"none of the {num_readers} readers marked a lesion; the result is background"
        return Staple(_spread(marked, counts), sensitivity, specificity, 0, nobody)
    box = _box_around(marked)
    inside = readers[(slice(None), *box)]
    marked_inside = marked[box]
    voted = decide(counts, Fusion.MAJORITY)
    probabilities = np.zeros(counts.shape)
    problems, num_iterations = [], 0
    for c in range(1, num_classes):
        marks = inside == c
        num_marking = int(marks.any(axis=(1, 2, 3)).sum())
        if num_marking == 0:
            continue
        problem: str | None = f"only one of the {num_readers} readers marked it"
        if num_marking > 1:
            run = _run_staple(marks, max_iterations)
            num_iterations = max(num_iterations, run.num_iterations)
            problem = _distrust(run, marks)
            probabilities[c] = run.probability[marked_inside]
            sensitivity[:, c - 1], specificity[:, c - 1] = run.sensitivity, run.specificity
        if problem is not None:
            probabilities[c] = voted == c
            sensitivity[:, c - 1] = specificity[:, c - 1] = math.nan
            problems.append(f"class {c}: {problem}; the majority decides")
    total = probabilities.sum(axis=0)
    probabilities /= np.maximum(total, 1)
    probabilities[0] = np.maximum(1 - total, 0)
    return Staple(_spread(marked, probabilities), sensitivity, specificity, num_iterations, "; ".join(problems) or None)


@dataclass(frozen=True, eq=False)
class _Run:
    """One class against the rest in a box: probability `(I, J, K)`, rates `(R,)`, and how it went."""

    probability: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]
    num_iterations: int
    settled: bool


def _run_staple(marks: NDArray[np.bool_], max_iterations: int) -> _Run:
    """Run the filter on the marks `(R, I, J, K)` of a box with a rim of one voxel, which is not returned."""
    import SimpleITK as sitk  # noqa: N813  the name its own documentation uses

    images = [sitk.GetImageFromArray(np.pad(reader, 1).astype(np.uint8)) for reader in marks]
    stapler = sitk.STAPLEImageFilter()
    stapler.SetForegroundValue(1)
    stapler.SetConfidenceWeight(1.0)  # the prior is the mean share of marks itself
    stapler.SetMaximumIterations(max_iterations)
    probability = sitk.GetArrayFromImage(stapler.Execute(images))[1:-1, 1:-1, 1:-1]
    elapsed = int(stapler.GetElapsedIterations())  # index of the iteration that settled it
    return _Run(
        probability=probability,
        sensitivity=np.array(stapler.GetSensitivity()),
        specificity=np.array(stapler.GetSpecificity()),
        num_iterations=min(elapsed + 1, max_iterations),
        settled=elapsed < max_iterations,
    )


def _distrust(run: _Run, marks: NDArray[np.bool_]) -> str | None:
    """Why an estimate is not to be believed, or None."""
    if not all(np.isfinite(values).all() for values in (run.probability, run.sensitivity, run.specificity)):
        return "STAPLE gave no number"
    if not run.settled:
        return f"STAPLE did not settle in {run.num_iterations} iterations"
    where_nobody = float(run.probability[~marks.any(axis=0)].max(initial=0))
    if where_nobody >= HALF:
        return f"STAPLE believes it ({where_nobody:.2f}) where nobody marked it"
    where_all = float(run.probability[marks.all(axis=0)].min(initial=1))
    if where_all < HALF:
        return f"STAPLE doubts it ({where_all:.2f}) where all readers marked it"
    useless = int((run.sensitivity + run.specificity < 1 + LEAST_YOUDEN).sum())
    if 2 * useless > len(marks):
        return f"STAPLE takes the marks of {useless} of the {len(marks)} readers for noise"
    return None


def _decided(readers: NDArray[np.integer[Any]], fusion: Fusion, num_classes: int) -> NDArray[np.uint8]:
    _, marked, counts = _count_marks(readers, num_classes)
    label = np.zeros(marked.shape, np.uint8)
    label[marked] = decide(counts, fusion)
    return label


def _count_marks(
    readers: NDArray[np.integer[Any]], num_classes: int
) -> tuple[int, NDArray[np.bool_], NDArray[np.int64]]:
    """Number of readers, where any marked a lesion `(I, J, K)`, and readers by class there `(num_classes, N)`."""
    check_readers(readers, num_classes)
    marked = np.bitwise_or.reduce(readers, axis=0) != 0  # several times as quick as any()
    marks = readers[:, marked]
    counts = np.stack([(marks == c).sum(axis=0, dtype=np.int64) for c in range(num_classes)])
    return len(readers), marked, counts


def check_readers(readers: NDArray[np.integer[Any]], num_classes: int) -> None:
    """Refuse what are no marks of readers.

    Raises:
        ValueError: No integers `(R, I, J, K)` with R >= 1, a class below 0 or from `num_classes` on, or a number of
            classes that is not 2 to 256.
    """
    if not 2 <= num_classes <= 256:  # labels are uint8
        message = f"num_classes must be 2 to 256, the background among them, got {num_classes}"
        raise ValueError(message)
    if readers.ndim != 4 or len(readers) == 0 or readers.dtype.kind not in "iu":
        message = f"readers must be integers (R, I, J, K), R >= 1, got {readers.dtype} of shape {readers.shape}"
        raise ValueError(message)
    low, high = int(readers.min(initial=0)), int(readers.max(initial=0))
    if low < 0 or high >= num_classes:
        message = f"readers must hold classes 0 to {num_classes - 1}, got {low if low < 0 else high}"
        raise ValueError(message)


def _spread(marked: NDArray[np.bool_], shares: NDArray[Any]) -> NDArray[np.float32]:
    """Shares `(num_classes, N)` of the marked voxels on the whole grid, where all else is background."""
    spread = np.zeros((len(shares), *marked.shape), np.float32)
    spread[0] = 1
    spread[:, marked] = shares
    return spread


def _box_around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Smallest box that holds a mask, which must not be empty."""
    sides = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)
