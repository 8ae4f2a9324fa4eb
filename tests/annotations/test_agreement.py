"""Pairs of readers whose lesions are counted by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from medfocal.annotations.agreement import PairAgreement, reader_agreement

SHAPE, AFFINE = (12, 10, 8), np.diag([0.5, 1.0, 3.0, 1.0])


def readers_of(*marks):
    """Each reader's marks are blocks `((i, i), (j, j), (k, k))`."""
    readers = np.zeros((len(marks), *SHAPE), np.uint8)
    for reader, blocks in zip(readers, marks, strict=True):
        for block in blocks:
            reader[tuple(slice(*side) for side in block)] = 1
    return readers


LEFT, LEFT_SHIFTED = ((1, 4), (1, 4), (1, 3)), ((2, 5), (1, 4), (1, 3))  # 18 voxels each, 12 in common
RIGHT, FAR = ((8, 10), (6, 8), (5, 7)), ((1, 2), (8, 9), (6, 7))  # 8 voxels; 1 voxel


def test_three_readers_are_compared_in_three_pairs():
    """The first marked two lesions, the second one of them a voxel aside and another one, the third none."""
    found = reader_agreement(readers_of([LEFT, RIGHT], [LEFT_SHIFTED, FAR], []), AFFINE)
    assert found == [
        PairAgreement(1, 2, 2 * 12 / (26 + 19), 2, 2, 1, 1),
        PairAgreement(1, 3, 0.0, 2, 0, 2, 0),
        PairAgreement(2, 3, 0.0, 2, 0, 2, 0),
    ]


def test_two_readers_without_marks_have_no_dice():
    (pair,) = reader_agreement(readers_of([], []), AFFINE)
    assert math.isnan(pair.voxel_dice)
    assert (pair.num_lesions_first, pair.num_lesions_second, pair.num_only_first, pair.num_only_second) == (0, 0, 0, 0)


def test_readers_who_share_no_voxel_have_dice_0_though_their_lesions_touch():
    (pair,) = reader_agreement(readers_of([LEFT], [((4, 6), (1, 4), (1, 3))]), AFFINE)
    assert pair == PairAgreement(1, 2, 0.0, 1, 1, 1, 1)


def test_a_lesion_of_one_that_joins_two_of_the_other_misses_neither():
    both = ((1, 10), (1, 8), (1, 7))
    (pair,) = reader_agreement(readers_of([both], [LEFT, RIGHT]), AFFINE)
    assert pair == PairAgreement(1, 2, 2 * 26 / (9 * 7 * 6 + 26), 1, 2, 0, 0)


def test_voxels_that_touch_at_a_corner_are_one_lesion_whatever_their_classes():
    readers = readers_of([((1, 2), (1, 2), (1, 2))], [((1, 2), (1, 2), (1, 2))])
    readers[0, 2, 2, 2] = 2
    (pair,) = reader_agreement(readers, AFFINE)
    assert pair == PairAgreement(1, 2, 2 / 3, 1, 1, 0, 0)


def test_one_reader_makes_no_pair():
    assert reader_agreement(readers_of([LEFT]), AFFINE) == []


def test_random_marks_are_counted_as_by_scipy_and_a_loop():
    readers = (np.random.default_rng(3).random((4, *SHAPE)) < 0.04).astype(np.int16)
    parts = [ndimage.label(reader, np.ones((3, 3, 3))) for reader in readers]
    pairs = reader_agreement(readers, AFFINE)
    assert len(pairs) == 6
    for pair, (a, b) in zip(pairs, itertools.combinations(range(4), 2), strict=True):
        missed = [
            sum(not readers[other][labels == n].any() for n in range(1, count + 1))
            for (labels, count), other in ((parts[a], b), (parts[b], a))
        ]
        shared, total = int((readers[a] & readers[b]).sum()), int(readers[a].sum() + readers[b].sum())
        assert pair == PairAgreement(a + 1, b + 1, 2 * shared / total, parts[a][1], parts[b][1], *missed)


def test_swapping_readers_swaps_what_each_found_and_flipping_changes_nothing():
    readers = readers_of([LEFT, RIGHT], [LEFT_SHIFTED], [FAR, RIGHT])
    (first, *_) = reader_agreement(readers[:2], AFFINE)
    (swapped,) = reader_agreement(readers[1::-1], AFFINE)
    assert (swapped.voxel_dice, swapped.num_only_first, swapped.num_only_second) == (
        first.voxel_dice, first.num_only_second, first.num_only_first,
    )  # fmt: skip
    assert (first.num_only_first, first.num_only_second) == (1, 0)
    for axis in (1, 2, 3):
        assert reader_agreement(np.flip(readers, axis), AFFINE) == reader_agreement(readers, AFFINE)


def test_readers_without_a_readers_axis_are_refused():
    with pytest.raises(ValueError, match=r"readers must be \(R, I, J, K\), got shape \(12, 10, 8\)"):
        reader_agreement(np.zeros(SHAPE, np.uint8), AFFINE)
