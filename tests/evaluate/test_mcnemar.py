import math

import numpy as np
import pytest
from scipy.stats import chi2

from medfocal.evaluate.mcnemar import clustered_mcnemar, holm


def test_one_lesion_a_patient_is_mcnemars_own_test():
    """His statistic without correction for 121 changes one way and 59 the other: 62^2 / 180 = 21.36."""
    found_a = [True] * 121 + [False] * 59 + [True] * 101 + [False] * 33
    found_b = [False] * 121 + [True] * 59 + [True] * 101 + [False] * 33
    test = clustered_mcnemar(found_a, found_b, range(314))
    assert (test.num_both, test.num_only_a, test.num_only_b, test.num_neither) == (101, 121, 59, 33)
    assert test.statistic == pytest.approx(62**2 / 180)
    assert test.p == pytest.approx(chi2.sf(62**2 / 180, 1))
    assert test.num_patients == 314


def test_lesions_of_a_patient_are_added_up_before_they_are_squared():
    """Differences b - a: patient 7: 2, patient 3: 1 - 1 = 0, patient 5: -1. (2 - 1)^2 / (4 + 1) = 1/5."""
    found_a = [False, False, True, False, True]
    found_b = [True, True, False, True, False]
    assert clustered_mcnemar(found_a, found_b, [7, 7, 3, 3, 5]).statistic == pytest.approx(1 / 5)


def test_copies_of_a_patients_lesions_do_not_make_a_difference_surer():
    found_a, found_b, patients = [True, False, False, True, False], [False, True, True, True, True], [0, 1, 2, 3, 4]
    once = clustered_mcnemar(found_a, found_b, patients)
    thrice = clustered_mcnemar(found_a * 3, found_b * 3, patients * 3)
    assert thrice.statistic == pytest.approx(once.statistic)
    assert thrice.num_only_b == 3 * once.num_only_b


def test_exchanged_models_have_the_same_p():
    rng = np.random.default_rng(0)
    a, b, patients = rng.random(40) < 0.5, rng.random(40) < 0.7, rng.integers(0, 9, 40)
    assert clustered_mcnemar(a, b, patients).p == clustered_mcnemar(b, a, patients).p


def test_the_denominator_is_the_variance_over_all_swaps_of_the_models_within_patients():
    """Twelve patients with 3 lesions each: 4,096 swaps."""
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(12), 3)
    a, b = rng.random(36) < 0.4, rng.random(36) < 0.65
    differences = np.bincount(patients, b.astype(float) - a)
    signs = 1 - 2 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1)
    variance = np.mean((signs @ differences) ** 2)
    assert clustered_mcnemar(a, b, patients).statistic == pytest.approx(differences.sum() ** 2 / variance)


@pytest.mark.parametrize("found", [([], []), ([True, False], [True, False]), ([True, False], [False, True])])
def test_models_that_differ_on_no_patient_have_no_statistic(found):
    """In the last pair they differ on lesions, but on none of the patients: both lesions are of one."""
    test = clustered_mcnemar(*found, [0] * len(found[0]))
    assert math.isnan(test.statistic)
    assert math.isnan(test.p)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    """Sorted .01, .02, .03, .9: 4 * .01 = .04, 3 * .02 = .06, 2 * .03 = .06, .9."""
    np.testing.assert_allclose(holm([0.03, 0.01, 0.9, 0.02]), [0.06, 0.04, 0.9, 0.06])
    np.testing.assert_allclose(holm([0.011, 0.02, 0.021]), [0.033, 0.04, 0.04])


def test_holm_stays_at_1_and_leaves_a_single_p_as_it_is():
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(holm([0.03]), [0.03])
    assert len(holm([])) == 0


def test_a_test_that_was_not_made_does_not_count_in_holm():
    np.testing.assert_allclose(holm([math.nan, 0.02, 0.03]), [math.nan, 0.04, 0.04])
