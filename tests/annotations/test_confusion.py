"""Error rates of simulated readers are found again, and with two classes and one case they are those of STAPLE."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from medfocal.annotations.confusion import MarkCounts, ReaderRates, estimate_rates, smoothing_matrix
from medfocal.annotations.fusion import Fusion, intersection, majority, staple, union
from medfocal.errors import DatasetError

SHAPE = (12, 10, 8)
#: Probability of each mark (column) where the truth is each class (row), for four readers and two lesion classes.
CONFUSION = np.array([
    [[0.995, 0.003, 0.002], [0.05, 0.93, 0.02], [0.06, 0.04, 0.90]],
    [[0.980, 0.012, 0.008], [0.10, 0.85, 0.05], [0.05, 0.05, 0.90]],
    [[0.998, 0.001, 0.001], [0.25, 0.70, 0.05], [0.20, 0.10, 0.70]],
    [[0.990, 0.005, 0.005], [0.15, 0.75, 0.10], [0.15, 0.15, 0.70]],
])  # fmt: skip
PRIOR = np.array([0.9, 0.06, 0.04])


def simulated(num_cases=3, *, shape=(44, 40, 36), seed=11, num_readers=4):
    """Cases of (readers, truth): each voxel for itself."""
    rng = np.random.default_rng(seed)
    for _ in range(num_cases):
        truth = rng.choice(3, shape, p=PRIOR)
        draws = rng.random((num_readers, *shape))
        cumulative = CONFUSION[:num_readers, truth].cumsum(axis=-1)[..., :2]
        yield (draws[..., None] > cumulative).sum(axis=-1).astype(np.uint8), truth


def counted(*cases):
    counts = MarkCounts()
    for readers in cases:
        counts.add(readers)
    return counts


@pytest.fixture(scope="module")
def simulation():
    cases = list(simulated())
    return cases, estimate_rates(counted(*(readers for readers, _ in cases)), 3)


def label_of(fusion, readers, rates):
    """The label of each voxel, by the functions that make training labels."""
    if fusion is Fusion.STAPLE:
        best = dict(zip(map(tuple, rates.patterns.tolist()), rates.posteriors.argmax(axis=1), strict=True))
        return np.apply_along_axis(lambda marks: best[tuple(marks.tolist())], 0, readers)
    return {"majority": majority, "union": union, "intersection": intersection}[fusion](readers, num_classes=3)


@pytest.mark.parametrize("num_readers", [1, 3, 64])
def test_patterns_are_counted_as_by_a_loop_over_the_voxels(num_readers):
    """64 readers make patterns that no 64-bit number could hold."""
    rng = np.random.default_rng(0)
    cases = [rng.choice(3, (num_readers, 5, 4, 3), p=[0.8, 0.15, 0.05]).astype(np.int16) for _ in range(2)]
    expected = Counter(tuple(marks) for readers in cases for marks in readers.reshape(num_readers, -1).T.tolist())
    counts = counted(*cases)
    assert counts.voxels == expected
    assert counts.voxels.total() == 120


def test_cases_with_other_numbers_of_readers_keep_their_own_patterns():
    two, three = np.zeros((2, *SHAPE), np.uint8), np.zeros((3, *SHAPE), np.uint8)
    two[:, 3, 7, 2], three[:, 1, 1, 1] = (1, 0), (0, 2, 1)
    assert counted(two, three).voxels == {(0, 0): 959, (1, 0): 1, (0, 0, 0): 959, (0, 2, 1): 1}


def test_a_case_that_is_all_lesion_adds_no_pattern_of_background():
    assert counted(np.ones((2, *SHAPE), np.uint8)).voxels == {(1, 1): 960}


@pytest.mark.parametrize(
    ("readers", "says"),
    [
        (np.zeros(SHAPE, np.uint8), r"integers \(R, I, J, K\), R >= 1, got uint8 of shape \(12, 10, 8\)"),
        (np.zeros((0, *SHAPE), np.uint8), "R >= 1"),
        (np.zeros((2, *SHAPE)), "got float64"),
        (np.full((2, *SHAPE), -1), "classes from 0 on, got -1"),
    ],
)
def test_what_are_no_marks_is_not_counted(readers, says):
    with pytest.raises(ValueError, match=says):
        MarkCounts().add(readers)


def test_the_rates_of_simulated_readers_are_found_again(simulation):
    _, rates = simulation
    assert rates.converged
    assert rates.num_voxels == 3 * 44 * 40 * 36
    np.testing.assert_allclose(rates.confusion, CONFUSION, atol=0.03)
    np.testing.assert_allclose(rates.confusion.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_allclose(rates.posteriors.sum(axis=1), 1, atol=1e-12)
    shares = [np.mean([(readers == c).mean() for readers, _ in simulation[0]]) for c in range(3)]
    np.testing.assert_allclose(rates.prior, shares, atol=1e-12)


@pytest.mark.parametrize("fusion", [Fusion.MAJORITY, Fusion.UNION, Fusion.INTERSECTION, Fusion.STAPLE])
def test_the_smoothing_matrix_is_how_often_each_class_is_true_where_the_label_says_another(simulation, fusion):
    cases, rates = simulation
    label = np.stack([label_of(fusion, readers, rates) for readers, _ in cases])
    truth = np.stack([truth for _, truth in cases])
    empirical = [[(truth[label == t] == c).mean() for c in range(3)] for t in range(3)]
    np.testing.assert_allclose(smoothing_matrix(rates, fusion), empirical, atol=0.03)


def test_the_smoothing_matrix_of_a_random_reader_averages_over_the_readers(simulation):
    cases, rates = simulation
    marks = np.concatenate([readers.reshape(4, -1) for readers, _ in cases], axis=1)
    truth = np.concatenate([truth.ravel() for _, truth in cases])
    truths = np.tile(truth, (4, 1))
    empirical = [[(truths[marks == t] == c).mean() for c in range(3)] for t in range(3)]
    np.testing.assert_allclose(smoothing_matrix(rates, "random"), empirical, atol=0.03)


@pytest.mark.parametrize("fusion", [Fusion.RANDOM, Fusion.MAJORITY, Fusion.UNION, Fusion.INTERSECTION, Fusion.STAPLE])
def test_the_focal_loss_takes_the_matrix_for_its_label_smoothing(simulation, fusion):
    import torch

    from medfocal.losses import focal_loss

    matrix = smoothing_matrix(simulation[1], fusion)
    logits = torch.randn(1, 3, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    target = torch.arange(24).reshape(1, 4, 3, 2) % 3
    loss = focal_loss(logits, target, gamma=0.0, label_smoothing=matrix.tolist())
    by_hand = -(torch.tensor(matrix)[target] * torch.log_softmax(logits.double(), 1).movedim(1, -1)).sum(-1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)  # single precision


def test_with_two_classes_and_one_case_the_rates_are_those_of_the_staple_filter():
    """The case is the box in which STAPLE runs: all marks and a rim of background."""
    rng = np.random.default_rng(2)
    truth = np.zeros((16, 14, 12), bool)
    truth[3:9, 4:11, 2:8] = True
    rates = [(0.9, 0.98), (0.7, 0.99), (0.8, 0.95)]
    readers = np.array([np.where(truth, rng.random(truth.shape) < p, rng.random(truth.shape) >= q) for p, q in rates])
    found = staple(readers.astype(np.uint8), num_classes=2)
    pooled = estimate_rates(counted(np.pad(readers, ((0, 0), (1, 1), (1, 1), (1, 1))).astype(np.uint8)), 2)
    assert found.problem is None
    np.testing.assert_allclose(pooled.confusion[:, 1, 1], found.sensitivity[:, 0], atol=1e-6)  # both stop at 1e-7
    np.testing.assert_allclose(pooled.confusion[:, 0, 0], found.specificity[:, 0], atol=1e-6)
    assert abs(pooled.num_iterations - found.num_iterations) <= 2
    for pattern, posterior in zip(pooled.patterns, pooled.posteriors, strict=True):
        if pattern.any():
            where = (readers == pattern[:, None, None, None]).all(axis=0)
            np.testing.assert_allclose(found.shares[:, where].T, np.tile(posterior, (where.sum(), 1)), atol=1e-5)


def test_one_step_of_two_readers_is_that_of_bayes_by_hand():
    """16 voxels: both mark 4, only the first 2, only the second 2, nobody 8."""
    readers = np.zeros((2, 4, 2, 2), np.uint8)
    readers[0].flat[:6] = 1
    readers[1].flat[[0, 1, 2, 3, 6, 7]] = 1
    rates = estimate_rates(counted(readers), 2, max_iterations=1)
    # Start: truth 1, .5, .5, 0 in the four groups, so 6 voxels are lesion; a reader marks 4 + 2 * .5 = 5 of these,
    # and 2 * .5 = 1 of the 10 others. The prior is 6 / 16.
    np.testing.assert_allclose(rates.confusion, [[[0.9, 0.1], [1 / 6, 5 / 6]]] * 2)
    np.testing.assert_allclose(rates.prior, [10 / 16, 6 / 16])
    lesion = {
        pattern: 6 * p for pattern, p in [((0, 0), 1 / 36), ((0, 1), 5 / 36), ((1, 0), 5 / 36), ((1, 1), 25 / 36)]
    }
    rest = {pattern: 10 * p for pattern, p in [((0, 0), 0.81), ((0, 1), 0.09), ((1, 0), 0.09), ((1, 1), 0.01)]}
    assert list(map(tuple, rates.patterns.tolist())) == sorted(lesion)
    for pattern, posterior in zip(map(tuple, rates.patterns.tolist()), rates.posteriors, strict=True):
        assert posterior[1] == pytest.approx(lesion[pattern] / (lesion[pattern] + rest[pattern]))
    assert (rates.num_voxels, rates.num_iterations, rates.converged) == (16, 1, False)
    # The label of the union is lesion in 8 voxels: 4 of both, 4 of one.
    both, one, none = (lesion[p] / (lesion[p] + rest[p]) for p in [(1, 1), (1, 0), (0, 0)])
    np.testing.assert_allclose(smoothing_matrix(rates, "union")[1], [1 - (both + one) / 2, (both + one) / 2])
    np.testing.assert_allclose(smoothing_matrix(rates, "majority")[1], [1 - both, both])
    np.testing.assert_allclose(smoothing_matrix(rates, "majority")[0, 1], (4 * one + 8 * none) / 12)
    np.testing.assert_allclose(smoothing_matrix(rates, "random")[1, 1], (4 * both + 2 * one) / 6)  # 4 * 2 + 4 marks


def test_the_label_of_staple_is_the_more_probable_class_and_not_the_majority():
    """30 voxels that only the first reader marked are lesion with .8, by hand; 70 that nobody marked with .1."""
    rates = ReaderRates(
        confusion=np.full((3, 2, 2), math.nan), prior=np.array([0.7, 0.3]), num_voxels=100, num_iterations=1,
        converged=True, patterns=np.array([[0, 0, 0], [1, 0, 0]]), pattern_voxels=np.array([70, 30]),
        posteriors=np.array([[0.9, 0.1], [0.2, 0.8]]),
    )  # fmt: skip
    np.testing.assert_allclose(smoothing_matrix(rates, "staple"), [[0.9, 0.1], [0.2, 0.8]])
    np.testing.assert_allclose(smoothing_matrix(rates, "majority"), [[0.69, 0.31], [0, 1]])  # (63 + 6, 7 + 24) / 100
    np.testing.assert_allclose(smoothing_matrix(rates, "random")[1], [0.2, 0.8])


def test_a_missing_reader_says_nothing():
    """The fourth reader saw one case of three; the others' rates and his own are found all the same."""
    cases = [readers for readers, _ in simulated(seed=4)]
    rates = estimate_rates(counted(cases[0], cases[1][:3], cases[2][:3]), 3)
    np.testing.assert_allclose(rates.confusion, CONFUSION, atol=0.04)
    assert rates.patterns.min() == -1
    assert (rates.patterns[rates.patterns.min(axis=1) == -1][:, :3] >= 0).all()


def test_a_case_with_one_reader_is_judged_by_what_the_others_tell_of_him():
    readers = next(simulated(1))[0]
    alone = np.zeros((1, *SHAPE), np.uint8)
    alone[0, 3:5] = 1
    rates = estimate_rates(counted(readers, alone), 3)
    n = rates.patterns.tolist().index([1, -1, -1, -1])
    by_hand = rates.prior * rates.confusion[0, :, 1]
    np.testing.assert_allclose(rates.posteriors[n], by_hand / by_hand.sum())


def test_order_of_readers_and_cases_and_direction_of_axes_do_not_matter():
    cases = [readers for readers, _ in simulated(2, shape=(20, 18, 16))]
    expected = estimate_rates(counted(*cases), 3)
    order = [2, 0, 3, 1]
    changed = estimate_rates(counted(*(np.flip(readers[order], (1, 3)) for readers in reversed(cases))), 3)
    np.testing.assert_allclose(changed.confusion, expected.confusion[order], atol=1e-6)
    for fusion in ("random", "majority", "union", "intersection", "staple"):
        np.testing.assert_allclose(smoothing_matrix(changed, fusion), smoothing_matrix(expected, fusion), atol=1e-6)


def test_readers_who_agree_wholly_make_no_smoothing_and_an_unused_class_stands_for_itself():
    readers = np.zeros((2, *SHAPE), np.uint8)
    readers[:, 2:5, 3:6, 4:7] = 1
    rates = estimate_rates(counted(readers), 3)
    assert rates.converged
    np.testing.assert_array_equal(rates.confusion[:, :2], np.tile(np.eye(3)[:2], (2, 1, 1)))
    assert np.isnan(rates.confusion[:, 2]).all()
    for fusion in ("random", "majority", "union", "intersection", "staple"):
        np.testing.assert_array_equal(smoothing_matrix(rates, fusion), np.eye(3))


@pytest.mark.parametrize(
    ("fusion", "says"),
    [("mean", "soft labels already"), ("reference", "takes no label from the readers"), ("vote", "must be one of")],
)
def test_a_fusion_without_a_hard_label_of_the_readers_has_no_matrix(simulation, fusion, says):
    with pytest.raises(ValueError, match=says):
        smoothing_matrix(simulation[1], fusion)


def test_one_reader_everywhere_cannot_be_rated():
    readers = np.ones((1, *SHAPE), np.uint8)
    with pytest.raises(DatasetError, match=r"no case has annotations of two readers or more.*'annotations'"):
        estimate_rates(counted(readers, readers), 2)
    with pytest.raises(DatasetError, match="two readers or more"):
        estimate_rates(MarkCounts(), 2)


def test_readers_without_any_lesion_cannot_be_rated():
    with pytest.raises(DatasetError, match="no reader marked a lesion in any case"):
        estimate_rates(counted(np.zeros((3, *SHAPE), np.uint8)), 2)


def test_a_mark_of_a_class_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="a reader marked class 2; num_classes 2 allows 0 to 1"):
        estimate_rates(counted(np.full((2, *SHAPE), 2)), 2)


@pytest.mark.parametrize("wrong", [{"max_iterations": 0}, {"tolerance": 0.0}, {"tolerance": math.nan}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="max_iterations at least 1 and tolerance above 0, got 2"):
        estimate_rates(MarkCounts(), 2, **wrong)


@pytest.mark.parametrize(
    ("sides", "says"),
    [
        ([((2, 5), (1, 4), (1, 4)), ((4, 7), (3, 6), (3, 6))], r"where all readers marked class 1, .* of 0\.\d\d"),
        (
            [((1, 3), (1, 3), (1, 3)), ((7, 9), (6, 8), (5, 7))],
            "marks of class 1 of 2 of the 2 readers look like noise",
        ),
    ],
)
def test_readers_who_hardly_agree_are_not_rated(sides, says):
    """Blocks that share one voxel, or none: the estimate turns round, as STAPLE does."""
    readers = np.zeros((2, *SHAPE), np.uint8)
    for reader, side in zip(readers, sides, strict=True):
        reader[tuple(slice(*ends) for ends in side)] = 1
    with pytest.raises(DatasetError, match=says):
        estimate_rates(counted(readers), 2)
