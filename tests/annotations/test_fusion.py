"""Votes worked out by hand, STAPLE held against a second computation, and the marks on which STAPLE fails."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from medfocal.annotations import fusion
from medfocal.annotations.fusion import Fusion, Staple, decide, intersection, majority, mean_shares, staple, union

SHAPE = (12, 10, 8)
LABELS = {Fusion.MAJORITY: majority, Fusion.UNION: union, Fusion.INTERSECTION: intersection}


def column(pattern):
    """Readers of a grid in which one voxel, off centre, has these marks."""
    readers = np.zeros((len(pattern), *SHAPE), np.uint8)
    readers[:, 3, 7, 2] = pattern
    return readers


def blocks(num_readers, *marks, shape=SHAPE, value=1):
    """Readers of which `(reader, (i, i), (j, j), (k, k))` marked blocks."""
    readers = np.zeros((num_readers, *shape), np.uint8)
    for reader, *sides in marks:
        readers[(reader, *(slice(*side) for side in sides))] = value
    return readers


def random_readers(num_readers=4, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(num_classes, (num_readers, *SHAPE), p=[0.6, 0.3, 0.1][:num_classes]).astype(np.int16)


def simulated(sensitivity, specificity, *, shape=(40, 36, 30), seed=5):
    """Readers who err voxel by voxel with known rates on two off-centre lesions, 12 % of the grid."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, bool)
    truth[4:20, 3:16, 5:20] = True
    truth[26:37, 20:33, 14:28] = True
    rates = zip(sensitivity, specificity, strict=True)
    readers = [np.where(truth, rng.random(shape) < p, rng.random(shape) >= q) for p, q in rates]
    return np.array(readers, np.uint8), truth


def slow_staple(marks, num_iterations):
    """STAPLE voxel by voxel as the paper writes it: probability, sensitivity, specificity."""
    probability = marks.mean(axis=0)
    prior = probability.mean()
    for _ in range(num_iterations):
        p = np.array([(reader * probability).sum() / probability.sum() for reader in marks])
        q = np.array([((1 - reader) * (1 - probability)).sum() / (1 - probability).sum() for reader in marks])
        lesion, background = np.full(marks.shape[1:], prior), np.full(marks.shape[1:], 1 - prior)
        for reader, sensitivity, specificity in zip(marks, p, q, strict=True):
            lesion *= np.where(reader, sensitivity, 1 - sensitivity)
            background *= np.where(reader, 1 - specificity, specificity)
        probability = lesion / (lesion + background)
    return probability, p, q


@pytest.mark.parametrize(
    ("pattern", "by_majority", "by_union", "by_intersection"),
    [
        ((0, 0, 0), 0, 0, 0),
        ((1, 0, 0), 0, 1, 0),
        ((0, 2, 0), 0, 2, 0),
        ((1, 0, 1), 1, 1, 0),
        ((0, 2, 2), 2, 2, 0),
        ((1, 1, 1), 1, 1, 1),
        ((2, 1, 2), 2, 2, 2),
        ((1, 2, 1), 1, 1, 1),
        ((2, 1, 0), 0, 1, 0),  # one mark each: the lower class
        ((1, 0), 0, 1, 0),  # two readers: both are needed
        ((2, 1), 1, 1, 1),
        ((0, 1, 1, 0), 0, 1, 0),
        ((2, 2, 1, 1), 1, 1, 1),
        ((2, 1, 2, 0), 2, 2, 0),
        ((2,), 2, 2, 2),
    ],
)
def test_votes_are_counted_and_ties_go_to_the_lower_class(pattern, by_majority, by_union, by_intersection):
    answers = {Fusion.MAJORITY: by_majority, Fusion.UNION: by_union, Fusion.INTERSECTION: by_intersection}
    for order in itertools.permutations(pattern):
        for rule, answer in answers.items():
            label = LABELS[rule](column(order), num_classes=3)
            assert label.dtype == np.uint8
            assert np.argwhere(label).tolist() == ([[3, 7, 2]] if answer else [])
            assert label[3, 7, 2] == answer


def test_votes_and_shares_are_those_of_a_loop_over_the_voxels():
    readers = random_readers()
    labels = {rule: LABELS[rule](readers, num_classes=3) for rule in LABELS}
    shares = mean_shares(readers, num_classes=3)
    for voxel in np.ndindex(SHAPE):
        votes = Counter(readers[(slice(None), *voxel)].tolist())
        assert shares[(slice(None), *voxel)].tolist() == [votes[c] / 4 for c in range(3)]
        lesion = 1 if votes[1] >= votes[2] else 2
        assert labels[Fusion.MAJORITY][voxel] == (0 if votes[0] >= votes[lesion] else lesion)
        assert labels[Fusion.UNION][voxel] == (0 if votes[0] == 4 else lesion)
        assert labels[Fusion.INTERSECTION][voxel] == (0 if votes[0] else lesion)


def test_shares_of_readers_without_marks_are_all_background():
    shares = mean_shares(np.zeros((3, *SHAPE), np.uint8), num_classes=3)
    assert (shares.dtype, shares.shape) == (np.float32, (3, *SHAPE))
    assert (shares[0] == 1).all()
    assert not shares[1:].any()


def test_staple_is_no_rule_of_votes():
    with pytest.raises(ValueError, match="'staple' is no rule of votes; those are 'majority', 'union'"):
        decide(np.zeros((2, 1), int), Fusion.STAPLE)


def test_an_unknown_fusion_is_answered_with_the_choices():
    with pytest.raises(ValueError, match=r"fusion must be one of 'reference', 'mean', 'majority', .*got 'mode'"):
        Fusion("mode")


@pytest.mark.parametrize(
    ("readers", "num_classes", "says"),
    [
        (np.zeros(SHAPE, np.uint8), 2, r"readers must be integers \(R, I, J, K\), R >= 1, got uint8 of shape"),
        (np.zeros((0, *SHAPE), np.uint8), 2, "R >= 1, got"),
        (np.zeros((2, *SHAPE), np.float32), 2, "must be integers .* got float32"),
        (column((1, 2)), 2, "classes 0 to 1, got 2"),
        (column((1, 255)).view(np.int8), 2, "classes 0 to 1, got -1"),
        (column((0, 0)), 1, "num_classes must be 2 to 256, the background among them, got 1"),
        (column((0, 0)), 257, "got 257"),
    ],
)
@pytest.mark.parametrize("function", [mean_shares, majority, union, intersection, staple])
def test_what_are_no_readers_is_refused(function, readers, num_classes, says):
    with pytest.raises(ValueError, match=says):
        function(readers, num_classes=num_classes)


@pytest.mark.parametrize("function", [mean_shares, majority, union, intersection, staple])
def test_order_of_readers_and_direction_of_axes_do_not_matter(function):
    readers = blocks(3, (0, (2, 6), (1, 5), (1, 4)), (1, (3, 7), (1, 5), (1, 5)), (2, (2, 6), (2, 5), (1, 4)))
    readers[:, 9, 7, 5:7] = [[2], [2], [0]]

    def result(readers):
        made = function(readers, num_classes=3)
        return made.shares if isinstance(made, Staple) else made

    expected = result(readers)
    for order in itertools.permutations(range(3)):
        np.testing.assert_allclose(result(readers[list(order)]), expected, atol=1e-6)  # sums in another order
    for axes in [(-1,), (-2,), (-3,), (-1, -2, -3)]:
        np.testing.assert_allclose(result(np.flip(readers, axes)), np.flip(expected, axes), atol=1e-6)


def test_staple_gives_the_rates_that_the_readers_were_simulated_with():
    sensitivity, specificity = [0.95, 0.7, 0.85, 0.6], [0.99, 0.995, 0.97, 0.99]
    readers, truth = simulated(sensitivity, specificity)
    found = staple(readers, num_classes=2)
    assert found.problem is None
    assert found.sensitivity.shape == (4, 1)
    np.testing.assert_allclose(found.sensitivity[:, 0], sensitivity, atol=0.03)
    np.testing.assert_allclose(found.specificity[:, 0], specificity, atol=0.03)
    wrong = (found.shares[1] >= 0.5) != truth
    assert wrong.mean() < 0.5 * (majority(readers, num_classes=2) != truth).mean()
    assert 1 < found.num_iterations < 50


def test_staple_is_that_of_a_slow_loop_in_the_box_around_all_marks_with_a_rim():
    readers = blocks(3, (0, (3, 7), (2, 6), (1, 5)), (1, (3, 7), (3, 7), (1, 5)), (2, (4, 8), (2, 6), (2, 6)))
    found = staple(readers, num_classes=2)
    box = (slice(2, 9), slice(1, 8), slice(0, 7))  # marks reach from 3 to 7, 2 to 6 and 1 to 5
    probability, sensitivity, specificity = slow_staple(readers[(slice(None), *box)], found.num_iterations)
    assert found.problem is None
    np.testing.assert_allclose(found.sensitivity[:, 0], sensitivity, atol=1e-9)
    np.testing.assert_allclose(found.specificity[:, 0], specificity, atol=1e-9)
    marked = readers.any(axis=0)
    np.testing.assert_allclose(found.shares[1][box][marked[box]], probability[marked[box]], atol=1e-6)
    assert (found.shares.dtype, found.shares.shape) == (np.float32, (2, *SHAPE))
    assert not found.shares[1][~marked].any()
    np.testing.assert_allclose(found.shares.sum(axis=0), 1, atol=1e-6)


def test_where_a_lesion_lies_makes_no_difference_to_staple():
    corner = blocks(2, (0, (0, 4), (0, 4), (0, 4)), (1, (0, 4), (0, 4), (1, 5)))
    middle = np.roll(corner, (3, 2, 1), axis=(1, 2, 3))
    at_corner, in_middle = (staple(readers, num_classes=2) for readers in (corner, middle))
    assert at_corner.problem is None
    np.testing.assert_array_equal(at_corner.sensitivity, in_middle.sensitivity)
    np.testing.assert_array_equal(np.roll(at_corner.shares, (3, 2, 1), axis=(1, 2, 3)), in_middle.shares)


def test_readers_who_agree_wholly_are_right_though_their_lesion_fills_its_box():
    readers = blocks(3, *[(reader, (3, 5), (2, 4), (1, 3)) for reader in range(3)])
    found = staple(readers, num_classes=2)
    assert (found.sensitivity == 1).all()
    assert (found.specificity == 1).all()
    assert found.problem is None
    np.testing.assert_array_equal(found.shares[1], readers[0])


def test_a_single_reader_is_the_result_and_cannot_be_rated():
    readers = random_readers(num_readers=1)
    found = staple(readers, num_classes=3)
    np.testing.assert_array_equal(found.shares, [readers[0] == c for c in range(3)])
    assert np.isnan(found.sensitivity).all()
    assert np.isnan(found.specificity).all()
    assert (found.sensitivity.shape, found.num_iterations, found.problem) == ((1, 2), 0, None)


def test_two_lesion_classes_run_apart_and_sum_to_one():
    readers = blocks(3, (0, (1, 5), (1, 5), (1, 5)), (1, (1, 5), (2, 6), (1, 5)), (2, (2, 6), (1, 5), (1, 5)))
    second = blocks(3, (0, (7, 11), (4, 8), (3, 7)), (1, (7, 11), (5, 9), (3, 7)), (2, (8, 12), (4, 8), (3, 7)))
    found = staple(readers + 2 * second, num_classes=3)
    alone = staple(readers, num_classes=2)
    assert found.problem is None
    assert found.sensitivity.shape == (3, 2)
    # The second class is the first one shifted, so the readers' rates are the same.
    np.testing.assert_allclose(found.sensitivity[:, 0], found.sensitivity[:, 1], atol=1e-9)
    assert (found.specificity[:, 0] > alone.specificity[:, 0]).all()  # the box of both holds more background
    np.testing.assert_allclose(found.shares.sum(axis=0), 1, atol=1e-6)


def test_probabilities_of_several_classes_are_scaled_where_they_exceed_one():
    """Two readers call a core 1, two call it 2: both runs believe in it, and it cannot be both."""
    readers = blocks(4, *[(reader, (2, 9), (2, 8), (1, 7)) for reader in range(4)])
    readers[2:, 4:7, 3:7, 3:5] = 2
    readers[:, 10:, 8:, 6:] = 2
    found = staple(readers, num_classes=3)
    assert found.problem is None
    core = found.shares[:, 4:7, 3:7, 3:5].reshape(3, -1)
    assert np.ptp(core, axis=1).max() == 0
    np.testing.assert_allclose(found.shares.sum(axis=0), 1, atol=1e-6)
    assert found.shares.min() >= 0


def test_nobody_having_marked_anything_is_told_and_background():
    found = staple(np.zeros((3, *SHAPE), np.uint8), num_classes=2)
    assert found.problem == "none of the 3 readers marked a lesion; the result is background"
    assert (found.shares[0] == 1).all()
    assert np.isnan(found.sensitivity).all()


@pytest.mark.parametrize("num_readers", [2, 3, 4])
def test_marks_of_a_single_reader_among_several_are_left_to_the_majority(num_readers):
    found = staple(blocks(num_readers, (1, (2, 6), (1, 5), (1, 4))), num_classes=2)
    assert found.problem == f"class 1: only one of the {num_readers} readers marked it; the majority decides"
    assert not found.shares[1].any()
    assert np.isnan(found.sensitivity).all()


def test_a_class_that_fails_does_not_take_the_others_with_it():
    readers = blocks(3, (0, (1, 5), (1, 5), (1, 5)), (1, (1, 5), (2, 6), (1, 5)), (2, (2, 6), (1, 5), (1, 5)))
    readers[0, 9, 8, 6] = 2
    found = staple(readers, num_classes=4)
    assert found.problem == "class 2: only one of the 3 readers marked it; the majority decides"
    assert np.isnan(found.sensitivity).all(axis=0).tolist() == [False, True, True]
    assert found.shares[1].max() > 0.9
    assert found.shares[:, 9, 8, 6].tolist() == [1, 0, 0, 0]


#: A block of 27 voxels and one of 8, whose corners are the same voxel. STAPLE settles on the first reader being right
#: but for that voxel as much as any: .47 where both agree, and .47 where the first is alone.
TOUCHING = [(0, (2, 5), (1, 4), (1, 4)), (1, (4, 6), (3, 5), (3, 5))]
#: Two blocks without a common voxel. STAPLE settles on probability 1 % everywhere, marked or not.
APART = [(0, (1, 3), (1, 3), (1, 3)), (1, (7, 9), (6, 8), (5, 7))]


@pytest.mark.parametrize(
    ("marks", "max_iterations", "problem"),
    [
        (TOUCHING, 100, "class 1: STAPLE doubts it (0.47) where all readers marked it; the majority decides"),
        (APART, 100, "class 1: STAPLE did not settle in 100 iterations; the majority decides"),
        (APART, 1000, "class 1: STAPLE takes the marks of 2 of the 2 readers for noise; the majority decides"),
    ],
)
def test_an_estimate_that_makes_no_sense_is_replaced_by_the_majority(marks, max_iterations, problem):
    readers = blocks(2, *marks)
    found = staple(readers, num_classes=2, max_iterations=max_iterations)
    assert found.problem == problem
    np.testing.assert_array_equal(found.shares[1], readers.all(axis=0))
    np.testing.assert_array_equal(found.shares.sum(axis=0), 1)
    assert np.isnan(found.sensitivity).all()
    assert found.num_iterations > 1


def test_an_estimate_is_not_believed_where_nobody_marked_or_without_a_number():
    """No marks are known that lead there with a rim of background around them; the outcome is stated all the same."""
    marks = blocks(2, (0, (2, 5), (1, 4), (1, 4)), (1, (2, 5), (1, 4), (1, 5))).astype(bool)

    def run(value):
        probability = np.where(marks[0], 0.9, value)
        return fusion._Run(probability, np.array([0.9, 0.9]), np.array([0.9, 0.9]), 7, settled=True)

    assert fusion._distrust(run(0.1), marks) is None
    assert fusion._distrust(run(0.5), marks) == "STAPLE believes it (0.50) where nobody marked it"
    assert fusion._distrust(run(math.nan), marks) == "STAPLE gave no number"


def test_a_number_of_iterations_below_one_is_refused():
    with pytest.raises(ValueError, match="max_iterations must be at least 1, got 0"):
        staple(column((1, 1)), num_classes=2, max_iterations=0)
