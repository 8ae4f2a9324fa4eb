"""Error rates of readers, estimated over many cases without a reference, and the label smoothing that follows.

The readers' agreement tells how often each errs, if they err independently of each other: where three of four say
lesion, the fourth has probably missed one. From the rates follows how probable each class is where a training label
says another, and that is what `label_smoothing` of the loss wants to know.

A pattern of marks is the tuple of the classes that the readers of a case gave one voxel. A case of 7 million voxels
has a few dozen different ones, so patterns and their counts stand for all voxels.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.fusion import HALF, LEAST_YOUDEN, Fusion, decide
from medfocal.errors import DatasetError

#: Stands for the mark of a reader whom a case does not have.
MISSING = -1


class MarkCounts:
    """Voxels by pattern of marks, over all cases added.

    Readers are told apart by their place in a case's list; a case with fewer has no marks of the later ones.

    Attributes:
        voxels: Number of voxels of each pattern; its length is the number of readers of the case.
    """

    def __init__(self) -> None:
        self.voxels: Counter[tuple[int, ...]] = Counter()

    def add(self, readers: NDArray[np.integer[Any]]) -> None:
        """Count the voxels of one case.

        Args:
            readers: Classes `(R, I, J, K)`, 0 the background, R >= 1.

        Raises:
            ValueError: They are no such array.
        """
        if readers.ndim != 4 or len(readers) == 0 or readers.dtype.kind not in "iu":
            message = f"readers must be integers (R, I, J, K), R >= 1, got {readers.dtype} of shape {readers.shape}"
            raise ValueError(message)
        marked = np.bitwise_or.reduce(readers, axis=0) != 0
        marks = readers[:, marked]
        if marks.min(initial=0) < 0:
            message = f"readers must hold classes from 0 on, got {marks.min()}"
            raise ValueError(message)
        patterns, num_voxels = _distinct_columns(marks)
        for pattern, count in zip(patterns.T.tolist(), num_voxels.tolist(), strict=True):
            self.voxels[tuple(pattern)] += count
        if num_unmarked := marked.size - marks.shape[1]:
            self.voxels[(0,) * len(readers)] += num_unmarked


@dataclass(frozen=True, eq=False)
class ReaderRates:
    """What was estimated of the readers, and what follows for each pattern of marks.

    Attributes:
        confusion: `confusion[r, t, m]` is the probability that reader r marks class m where the truth is t, float64
            `(R, C, C)`; its rows sum to 1. NaN for a class that nobody marked.
        prior: Probability of each class, `(C,)`: the mean share of marks, which is held fixed.
        num_voxels: Voxels of all cases.
        num_iterations: Steps taken.
        converged: Whether the last step moved no probability by more than the tolerance.
        patterns: The patterns of marks, int `(N, R)`, -1 where a case does not have the reader.
        pattern_voxels: Voxels of each, int64 `(N,)`.
        posteriors: Probability of each true class where the readers marked so, `(N, C)`.
    """

    confusion: NDArray[np.float64]
    prior: NDArray[np.float64]
    num_voxels: int
    num_iterations: int
    converged: bool
    patterns: NDArray[np.int64]
    pattern_voxels: NDArray[np.int64]
    posteriors: NDArray[np.float64]


def estimate_rates(
    counts: MarkCounts, num_classes: int, *, max_iterations: int = 10_000, tolerance: float = 1e-7
) -> ReaderRates:
    """Estimate each reader's confusion of the classes, by expectation-maximisation over all cases at once.

    Readers are taken to err independently of each other, given the truth, and alike in all cases and voxels. They do
    not: a faint lesion is missed by all, and a missed lesion is many missed voxels. Errors that readers share do not
    show, so the rates are too good rather than too bad, and labels on which most readers agree look surer than they
    are.

    The prior is the mean share of marks of each class, and stays so, as in STAPLE. Dawid & Skene estimate it too; but
    two readers and two classes give three free numbers, the counts of four patterns, and five are wanted: a
    sensitivity and a specificity of each, and the prior. With the prior held four are wanted still, so of two readers
    the estimate depends on its start, the share of marks; three readers determine it. Where readers together mark
    more than there is, the prior is too high, and they seem to miss more than they do.

    Args:
        counts: Patterns of marks of all cases.
        num_classes: With the background.
        max_iterations: Steps at most; each is quick.
        tolerance: Largest change of a probability in the last step.

    Returns:
        The rates. `converged` tells whether `max_iterations` were enough; where not, they are the last ones.

    Raises:
        ValueError: An argument is out of range, or a mark is of a class from `num_classes` on.
        DatasetError: No case has two readers, nobody marked a lesion, or the readers agree so little that the estimate
            turns round: it doubts what all marked, or takes most readers' marks of a class for noise.

    References:
        Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm", JRSS C
        28(1), with the prior held as by Warfield, Zou & Wells 2004 (STAPLE), IEEE TMI 23(7), of which this is the
        form for several classes and cases; with two classes and one case it is the same.
    """
    if num_classes < 2 or max_iterations < 1 or not tolerance > 0:
        message = (
            "num_classes must be at least 2, max_iterations at least 1 and tolerance above 0, "
            f"got {num_classes}, {max_iterations} and {tolerance}"
        )
        raise ValueError(message)
    patterns, pattern_voxels = _table(counts, num_classes)
    present = _one_hot(patterns, num_classes)
    num_voxels = int(pattern_voxels.sum())
    posteriors = _shares(present)
    prior = pattern_voxels @ posteriors / num_voxels
    confusion = np.full((patterns.shape[1], num_classes, num_classes), math.nan)
    converged, iteration = False, 0
    while not converged and iteration < max_iterations:
        iteration += 1
        last, confusion = confusion, _maximise(present, pattern_voxels, posteriors)
        posteriors = _expect(patterns, confusion, prior)
        known = ~np.isnan(confusion)
        converged = bool((np.abs(confusion - last)[known] <= tolerance).all())
    rates = ReaderRates(confusion, prior, num_voxels, iteration, converged, patterns, pattern_voxels, posteriors)
    if problem := _distrust(rates):
        message = (
            f"the error rates of the readers cannot be estimated: {problem}. They agree too little, or mark too "
            "little; turn the estimate off, or set the loss's label_smoothing by hand."
        )
        raise DatasetError(message)
    return rates


def smoothing_matrix(rates: ReaderRates, fusion: Fusion | str) -> NDArray[np.float64]:
    """Probability of each true class where the training label says t, for `label_smoothing` of the loss.

    The training label of a voxel is, by fusion: `random` the mark of one of its readers, each as often; `majority`,
    `union` and `intersection` what `medfocal.annotations.fusion` makes of the marks; `staple` the most probable class
    by the posteriors of `rates` (of which the estimate case by case differs a little).

    Args:
        rates: Of the cases trained on.
        fusion: How their label is made.

    Returns:
        `(C, C)`: row t for label t, summing to 1. The row of a label that occurs nowhere says that it is right.

    Raises:
        ValueError: The fusion is "mean", which is soft already, or "reference", which is not made of these marks.
    """
    fusion = Fusion(fusion)
    if fusion is Fusion.MEAN:
        message = "fusion 'mean' gives soft labels already: the readers' disagreement is in them, smooth no further"
        raise ValueError(message)
    if fusion is Fusion.REFERENCE:
        message = "fusion 'reference' takes no label from the readers, so their error rates say nothing about it"
        raise ValueError(message)
    num_classes = len(rates.prior)
    marks = _one_hot(rates.patterns, num_classes)
    if fusion is Fusion.RANDOM:
        weight = _shares(marks)
    elif fusion is Fusion.STAPLE:
        weight = np.eye(num_classes)[rates.posteriors.argmax(axis=1)]
    else:
        weight = np.eye(num_classes)[decide(marks.sum(axis=0).T.astype(np.int64), fusion)]
    mass = weight.T @ (rates.pattern_voxels[:, None] * rates.posteriors)
    total = mass.sum(axis=1, keepdims=True)
    return np.where(total > 0, mass / np.where(total > 0, total, 1), np.eye(num_classes))


def _distinct_columns(marks: NDArray[np.integer[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Columns of `(R, N)` that occur, `(R, M)`, and how often each."""
    base = int(marks.max(initial=0)) + 1
    if base ** len(marks) > 2**62:  # as one number in base `base` a column is sorted fifty times as quickly
        columns, num_voxels = np.unique(marks, axis=1, return_counts=True)
        return columns, num_voxels.astype(np.int64)
    code = np.zeros(marks.shape[1], np.int64)
    for reader in marks:
        code = code * base + reader
    code, num_voxels = np.unique(code, return_counts=True)
    places = base ** np.arange(len(marks) - 1, -1, -1)
    return code // places[:, None] % base, num_voxels.astype(np.int64)


def _table(counts: MarkCounts, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Patterns `(N, R)`, `MISSING` where there is no reader, in a fixed order, and their voxels `(N,)`."""
    num_readers = max(map(len, counts.voxels), default=0)
    if num_readers < 2:
        message = (
            "no case has annotations of two readers or more, and the error rates of one cannot be estimated without a "
            "reference. List several files in 'annotations' of the dataset file, or turn the estimate off."
        )
        raise DatasetError(message)
    if not any(any(pattern) for pattern in counts.voxels):
        message = "no reader marked a lesion in any case, so there is nothing to estimate error rates from"
        raise DatasetError(message)
    ordered = sorted(counts.voxels)
    highest = max(map(max, ordered))
    if highest >= num_classes:
        message = f"a reader marked class {highest}; num_classes {num_classes} allows 0 to {num_classes - 1}"
        raise ValueError(message)
    patterns = [pattern + (MISSING,) * (num_readers - len(pattern)) for pattern in ordered]
    return np.array(patterns, np.int64), np.array([counts.voxels[pattern] for pattern in ordered], np.int64)


def _one_hot(patterns: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """1 where reader r of pattern n marked class m, `(R, N, C)`; a missing reader has none."""
    return np.asarray(patterns.T[..., None] == np.arange(num_classes), np.float64)


def _shares(present: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the readers of each pattern who marked each class, `(N, C)`."""
    votes = present.sum(axis=0)
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), np.float64)


def _maximise(
    present: NDArray[np.float64], pattern_voxels: NDArray[np.int64], posteriors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Confusion of each reader if the truth is as the posteriors say; NaN for a class without any."""
    expected = (pattern_voxels[:, None] * posteriors).T @ present  # (C, N) by (R, N, C)
    total = expected.sum(axis=2, keepdims=True)
    return np.where(total > 0, expected / np.where(total > 0, total, 1), math.nan)


def _expect(
    patterns: NDArray[np.int64], confusion: NDArray[np.float64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Posterior of each class given the pattern, `(N, C)`, by Bayes' rule in logarithms."""
    num_readers, num_classes, _ = confusion.shape
    with np.errstate(divide="ignore"):  # what never happens has logarithm -inf
        log_likelihood = np.tile(np.log(prior), (len(patterns), 1))
        # One column more, for `MISSING`: a reader who is not there says nothing.
        says = np.concatenate([np.log(confusion), np.zeros((num_readers, num_classes, 1))], axis=2)
    for r in range(num_readers):
        log_likelihood += np.nan_to_num(says[r], nan=0.0, neginf=-np.inf)[:, patterns[:, r]].T
    log_likelihood -= log_likelihood.max(axis=1, keepdims=True)
    likelihood = np.exp(log_likelihood)
    return np.asarray(likelihood / likelihood.sum(axis=1, keepdims=True), np.float64)


def _distrust(rates: ReaderRates) -> str | None:
    """Why rates are not to be believed, or None: as for STAPLE of one case."""
    complete = (rates.patterns != MISSING).sum(axis=1) >= 2
    same = (rates.patterns == rates.patterns[:, :1]) | (rates.patterns == MISSING)
    for n in np.flatnonzero(complete & same.all(axis=1)):
        c = int(rates.patterns[n, 0])
        if rates.posteriors[n, c] < HALF:
            return f"where all readers marked class {c}, that has a probability of {rates.posteriors[n, c]:.2f}"
    for c in range(1, len(rates.prior)):
        others = rates.prior.copy()
        others[c] = 0
        if rates.prior[c] == 0 or others.sum() == 0:
            continue
        elsewhere = np.nan_to_num(rates.confusion[:, :, c]) @ others / others.sum()
        useless = int((rates.confusion[:, c, c] - elsewhere < LEAST_YOUDEN).sum())
        if 2 * useless > len(rates.confusion):
            return f"the marks of class {c} of {useless} of the {len(rates.confusion)} readers look like noise"
    return None
