import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medfocal.evaluate.intervals import clopper_pearson, f1, garwood, mean_proportion, proportion, rate


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 10), (8, 10), (10, 10), (44, 50), (1, 3)])
def test_clopper_pearson_is_that_of_scipy(numerator, denominator):
    expected = binomtest(numerator, denominator).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(clopper_pearson(numerator, denominator, level=0.95), expected, rtol=1e-9)


@pytest.mark.parametrize("num_lesions", [1, 36, 72])
def test_zero_misses_give_the_known_lower_bound(num_lesions):
    estimate = proportion(np.ones(num_lesions), np.ones(num_lesions), level=0.95)
    assert estimate.low == pytest.approx(0.025 ** (1 / num_lesions))
    assert (estimate.value, estimate.high) == (1, 1)


def test_36_lesions_without_a_miss_claim_more_than_90_percent_and_35_do_not():
    assert clopper_pearson(36, 36, level=0.95)[0] > 0.9 > clopper_pearson(35, 35, level=0.95)[0]


def test_garwood_gives_the_tabled_values():
    """Garwood's table: 0 events up to 3.689; 1 event .0253 to 5.572; 10 events 4.795 to 18.39."""
    np.testing.assert_allclose(garwood(0, level=0.95), [0, 3.689], atol=5e-4)
    np.testing.assert_allclose(garwood(1, level=0.95), [0.0253, 5.572], atol=5e-4)
    np.testing.assert_allclose(garwood(10, level=0.95), [4.795, 18.39], atol=5e-3)
    assert garwood(0, level=0.95)[1] == pytest.approx(-math.log(0.025))


def test_design_effect_of_two_opposite_patients_is_worked_out_by_hand():
    """2 of 2 and 0 of 2: p = 1/2, residuals 1 and -1, between 2 / 1 * 2 = 4, independent 4 / 4 = 1."""
    estimate = proportion([2, 0], [2, 2], level=0.95)
    assert estimate.deff == pytest.approx(4)
    assert (estimate.low, estimate.high) == pytest.approx(clopper_pearson(0.5, 1, level=0.95))
    assert (estimate.numerator, estimate.denominator, estimate.num_patients) == (2, 4, 2)


def test_design_effect_of_unequal_patients_is_worked_out_by_hand():
    """5 of 6, 0 of 2, 1 of 4: p = 1/2; residuals 2, -1, -1; between 3 / 2 * 6 = 9; independent 12 / 4 = 3."""
    assert proportion([5, 0, 1], [6, 2, 4], level=0.95).deff == pytest.approx(3)


def test_design_effect_below_1_counts_as_1():
    """3 of 4, 1 of 2, 2 of 2: between 3 / 2 * (0 + .25 + .25) = .75; independent 8 * 3 / 16 = 1.5."""
    assert proportion([3, 1, 2], [4, 2, 2], level=0.95).deff == 1


def test_one_lesion_a_patient_has_hardly_any_design_effect():
    assert proportion([1, 1, 0, 1, 1, 0, 1, 1], np.ones(8), level=0.95).deff == pytest.approx(8 / 7)


def test_one_patient_says_that_the_design_effect_is_assumed():
    estimate = proportion([3], [4], level=0.95)
    assert estimate.deff == 1
    assert "one patient" in estimate.method


def test_nothing_missed_says_that_the_design_effect_is_assumed():
    assert "patients don't differ" in proportion([2, 3], [2, 3], level=0.95).method


def test_patients_without_lesions_do_not_enter_a_sensitivity():
    with_them = proportion([2, 0, 0, 0, 1], [2, 3, 0, 0, 2], level=0.95)
    assert with_them == proportion([2, 0, 1], [2, 3, 2], level=0.95)
    assert with_them.num_patients == 3


def test_ten_half_found_patients_among_ninety_without_lesions_have_sensitivity_one_half():
    assert proportion([1] * 10 + [0] * 90, [2] * 10 + [0] * 90, level=0.95).value == 0.5


def test_no_lesion_gives_nan():
    estimate = proportion([0, 0], [0, 0], level=0.95)
    assert np.isnan([estimate.value, estimate.low, estimate.high, estimate.deff]).all()
    assert (estimate.numerator, estimate.denominator, estimate.num_patients) == (0, 0, 0)


def test_design_effect_of_false_candidates_in_one_patient_is_worked_out_by_hand():
    """3, 0, 0 in a case each: residuals 2, -1, -1; between 3 / 2 * 6 = 9; independent 3."""
    estimate = rate([3, 0, 0], [1, 1, 1], level=0.95)
    assert (estimate.value, estimate.deff) == (1, pytest.approx(3))
    low, high = garwood(1, level=0.95)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_no_false_candidate_bounds_the_rate_by_3_7_over_the_cases():
    estimate = rate(np.zeros(20), np.ones(20), level=0.95)
    assert (estimate.value, estimate.low, estimate.deff) == (0, 0, 1)
    assert estimate.high == pytest.approx(-math.log(0.025) / 20)


def test_mean_over_patients_gives_each_the_same_weight():
    estimate = mean_proportion([10, 0, 0], [10, 1, 0], level=0.95)
    assert (estimate.value, estimate.numerator, estimate.denominator) == (0.5, 1, 2)
    assert (estimate.low, estimate.high) == pytest.approx(clopper_pearson(1, 2, level=0.95))


def test_f1_is_twice_the_true_over_lesions_and_candidates():
    """6 found, 2 false, 4 missed: 12 / 18, and its ends are those of 6 / 12 by 2 s / (1 + s)."""
    estimate = f1([3, 3], [1, 1], [2, 2], level=0.95)
    assert (estimate.numerator, estimate.denominator) == (12, 18)
    assert estimate.value == pytest.approx(2 / 3)
    low, high = clopper_pearson(6, 12, level=0.95)
    assert (estimate.low, estimate.high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1))
def test_interval_holds_the_value_and_is_never_narrower_than_that_of_independent_lesions(patients):
    counts, totals = zip(*patients, strict=True)
    estimate = proportion(counts, totals, level=0.95)
    if sum(totals):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        low, high = clopper_pearson(sum(counts), sum(totals), level=0.95)
        assert estimate.low <= low + 1e-12
        assert estimate.high >= high - 1e-12


def coverage(num_patients, mean_lesions, sensitivity, correlation, *, num_sets=400):
    """Share of data sets whose interval holds the truth: by patient, and with all lesions taken as independent."""
    random = np.random.default_rng(7)
    shape = (1 - correlation) / correlation
    by_patient = pooled = 0
    for _ in range(num_sets):
        lesions = random.geometric(1 / mean_lesions, num_patients)
        found = random.binomial(lesions, random.beta(sensitivity * shape, (1 - sensitivity) * shape, num_patients))
        estimate = proportion(found, lesions, level=0.95)
        by_patient += estimate.low <= sensitivity <= estimate.high
        low, high = clopper_pearson(found.sum(), lesions.sum(), level=0.95)
        pooled += low <= sensitivity <= high
    return by_patient / num_sets, pooled / num_sets


def test_interval_by_patient_covers_where_pooled_lesions_do_not():
    """30 patients, 2.5 lesions each, sensitivity .70, intraclass correlation .3; the standard error is .011."""
    by_patient, pooled = coverage(30, 2.5, 0.70, 0.3)
    assert 0.92 <= by_patient <= 0.98
    assert pooled < 0.91


def test_interval_by_patient_covers_many_lesions_of_few_patients():
    """30 patients, 6 lesions each, sensitivity .90, intraclass correlation .3: pooled covers only .70."""
    by_patient, pooled = coverage(30, 6, 0.90, 0.3)
    assert by_patient >= 0.89
    assert pooled < 0.78


def test_interval_of_false_candidates_covers_where_patients_differ():
    """40 patients, gamma-Poisson false candidates of mean 2 and variance 6: pooled counts cover too seldom."""
    random = np.random.default_rng(8)
    by_patient = pooled = 0
    for _ in range(400):
        false = random.poisson(random.gamma(1, 2, 40))
        estimate = rate(false, np.ones(40), level=0.95)
        by_patient += estimate.low <= 2 <= estimate.high
        low, high = garwood(false.sum(), level=0.95)
        pooled += low <= 80 <= high
    assert 0.91 <= by_patient / 400 <= 0.98
    assert pooled / 400 < 0.85
