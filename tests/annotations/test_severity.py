"""How wrong a label is, on hand-made cases."""

import math

import numpy as np
import pytest

from medfocal.annotations.severity import pool_severities, severity

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
SHAPE = (12, 10, 8)


def blank():
    return np.zeros(SHAPE, np.uint8)


def test_lesions_omitted_marks_invented_and_the_dice_are_counted():
    """Lesions of 8, 1 and 2 voxels; the first is marked by 4 of its voxels, the third by one; one mark of 3 is new."""
    clean, noisy = blank(), blank()
    clean[2:4, 2:4, 2:4] = 1
    clean[8, 8, 6] = 1
    clean[8, 2:4, 5] = 1
    noisy[2:4, 2:4, 2] = 1
    noisy[8, 3, 5] = 1
    noisy[5:8, 6, 1] = 1
    found = severity(clean, noisy, AFFINE)
    assert (found.num_lesions, found.num_omitted, found.num_marks, found.num_spurious) == (3, 1, 3, 1)
    assert found.omission_rate == 1 / 3
    assert found.voxel_dice == 2 * 5 / (11 + 8)
    assert (found.num_clean_voxels, found.num_noisy_voxels, found.num_shared_voxels) == (11, 8, 5)
    assert found.class_agreement == 1


def test_a_mark_beside_a_lesion_is_spurious_and_the_lesion_omitted():
    clean, noisy = blank(), blank()
    clean[3, 3, 3] = noisy[4, 4, 4] = 1
    found = severity(clean, noisy, AFFINE)
    assert (found.num_omitted, found.num_spurious, found.voxel_dice) == (1, 1, 0)


def test_classes_do_not_part_lesions_but_are_compared_where_both_mark():
    clean, noisy = blank(), blank()
    clean[3, 3, 2:4], clean[3, 3, 4:6] = 1, 2
    noisy[3, 3, 2:6] = 1
    found = severity(clean, noisy, AFFINE)
    assert (found.num_lesions, found.num_marks, found.voxel_dice) == (1, 1, 1)
    assert found.class_agreement == 0.5


def test_without_lesions_and_marks_rates_are_undefined():
    found = severity(blank(), blank(), AFFINE)
    assert math.isnan(found.voxel_dice)
    assert math.isnan(found.omission_rate)
    assert math.isnan(found.class_agreement)
    assert (found.num_lesions, found.num_marks, found.num_spurious) == (0, 0, 0)


def test_marks_in_an_empty_case_are_spurious_and_the_dice_is_0():
    noisy = blank()
    noisy[1, 1, 1] = 1
    found = severity(blank(), noisy, AFFINE)
    assert (found.voxel_dice, found.num_spurious) == (0, 1)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(12, 10, 8\) and \(12, 10, 7\)"):
        severity(blank(), blank()[:, :, :7], AFFINE)


def test_pooling_adds_numerators_and_denominators():
    """Cases: 8 of 8 voxels marked; a lesion of 1 voxel missed and 2 invented; nothing at all."""
    one, two = blank(), blank()
    one[2:4, 2:4, 2:4] = 1
    two[8, 8, 6] = 1
    wrong = blank()
    wrong[1, 1, 1] = wrong[5, 5, 5] = 1
    cases = [severity(one, one, AFFINE), severity(two, wrong, AFFINE), severity(blank(), blank(), AFFINE)]
    pooled = pool_severities(cases)
    assert pooled.num_cases == 3
    assert pooled.voxel_dice == 2 * 8 / (9 + 10)
    assert pooled.voxel_dice_mean == 0.5
    assert pooled.num_undefined_dice == 1
    assert (pooled.num_lesions, pooled.num_omitted, pooled.omission_rate) == (2, 1, 0.5)
    assert (pooled.num_marks, pooled.num_spurious) == (3, 2)
    assert pooled.spurious_per_case == 2 / 3
    assert pooled.class_agreement == 1


def test_pooling_no_case_leaves_all_rates_undefined():
    pooled = pool_severities([])
    assert pooled.num_cases == 0
    rates = (pooled.voxel_dice, pooled.voxel_dice_mean, pooled.omission_rate, pooled.spurious_per_case)
    assert all(math.isnan(rate) for rate in rates)
