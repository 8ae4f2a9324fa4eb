import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t

from medfocal.evaluate.intervals import (
    case_proportion,
    clopper_pearson,
    f1,
    garwood,
    mean_proportion,
    mean_score,
    proportion,
    rate,
    wilson,
)


def widening(num_patients, level=0.95):
    """(t / z)^2 with one degree of freedom less than patients."""
    tail = (1 + level) / 2
    return (t.ppf(tail, num_patients - 1) / norm.ppf(tail)) ** 2


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 10), (8, 10), (10, 10), (44, 50), (1, 3)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_is_that_of_scipy(numerator, denominator, level):
    expected = binomtest(numerator, denominator).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(wilson(numerator, denominator, level=level), expected, rtol=1e-9, atol=1e-12)


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


def test_design_effect_of_unequal_patients_is_worked_out_by_hand():
    """5 of 6, 0 of 2, 1 of 4: p = 1/2; residuals 2, -1, -1; between 3 / 2 * 6 = 9; independent 12 / 4 = 3; d = 3 w.

    Found in 2 patients, missed in 3: 2 weigh. Assumed: 1 + .15 (56 / 12 - 1) = 1.55, weighing 4.
    """
    estimate = proportion([5, 0, 1], [6, 2, 4], level=0.95)
    assert estimate.deff == pytest.approx((2 * 3 * widening(3) + 4 * 1.55) / 6)
    expected = clopper_pearson(6 / estimate.deff, 12 / estimate.deff, level=0.95)
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert (estimate.numerator, estimate.denominator, estimate.num_patients) == (6, 12, 3)


def test_two_opposite_patients_say_next_to_nothing():
    """2 of 2 and 0 of 2: the design effect exceeds the 4 lesions, so not even one counts."""
    estimate = proportion([2, 0], [2, 2], level=0.95)
    assert estimate.deff > 4
    assert estimate.low < 0.01
    assert estimate.high > 0.99


def test_design_effect_follows_the_level():
    """Student's quantile differs less from the normal one at a lower level."""
    counts, totals = [5, 0, 1], [6, 2, 4]
    expected = (2 * 3 * widening(3, 0.8) + 4 * 1.55) / 6
    assert proportion(counts, totals, level=0.8).deff == pytest.approx(expected)


def test_design_effect_below_1_counts_as_1():
    """1 of 2 in each of 20 patients: they differ in nothing; (0 + 4 * 1.15) / 24 = .19."""
    assert proportion([1] * 20, [2] * 20, level=0.95).deff == 1


def test_one_lesion_a_patient_has_no_design_effect():
    estimate = proportion([1, 1, 0, 1, 1, 0, 1, 1], np.ones(8), level=0.95)
    assert estimate.deff == 1
    assert (estimate.low, estimate.high) == clopper_pearson(6, 8, level=0.95)
    assert "one a patient" in estimate.method


def test_one_patient_says_that_the_correlation_is_assumed():
    """3 of 4: 1 + .15 (4 - 1)."""
    estimate = proportion([3], [4], level=0.95)
    assert estimate.deff == pytest.approx(1.45)
    assert "there is one patient, so an intraclass correlation of 0.15 is assumed" in estimate.method


def test_nothing_missed_says_that_the_correlation_is_assumed():
    """2 of 2 and 4 of 4: 1 + .15 (20 / 6 - 1) = 1.35."""
    estimate = proportion([2, 4], [2, 4], level=0.95)
    assert estimate.deff == pytest.approx(1.35)
    assert estimate.low == pytest.approx(0.025 ** (1.35 / 6))
    assert "patients don't differ, so an intraclass correlation of 0.15 is assumed" in estimate.method


def test_one_missed_lesion_does_not_prove_that_lesions_are_independent():
    """Thirty patients of 3 lesions, one missed: the data alone give 1, the assumed 1.3 weighs four times as much."""
    estimate = proportion([3] * 29 + [2], [3] * 30, level=0.95)
    independent = 90 * (89 / 90) * (1 / 90)
    alone = 30 / 29 * (29 * (3 - 3 * 89 / 90) ** 2 + (2 - 3 * 89 / 90) ** 2) / independent
    assert alone == pytest.approx(90 / 89)
    assert estimate.deff == pytest.approx((alone * widening(30) + 4 * 1.3) / 5)


def test_found_and_missed_may_change_places():
    counts, totals = np.array([5, 0, 1, 3]), np.array([6, 2, 4, 3])
    for method in ("clopper_pearson", "wilson"):
        found = proportion(counts, totals, level=0.95, method=method)
        missed = proportion(totals - counts, totals, level=0.95, method=method)
        assert (missed.low, missed.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_wilson_divides_by_the_same_design_effect():
    default = proportion([5, 0, 1], [6, 2, 4], level=0.95)
    estimate = proportion([5, 0, 1], [6, 2, 4], level=0.95, method="wilson")
    assert estimate.deff == default.deff
    assert (estimate.low, estimate.high) == wilson(6 / default.deff, 12 / default.deff, level=0.95)
    assert estimate.method.startswith("Wilson on counts divided by the design effect")
    assert default.method.startswith("Clopper-Pearson on counts divided by the design effect")


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
    assert (estimate.value, estimate.deff) == (1, pytest.approx(3 * widening(3)))
    low, high = garwood(1 / widening(3), level=0.95)
    assert (estimate.low, estimate.high) == pytest.approx((low * widening(3), high * widening(3)))


def test_equal_patients_have_no_design_effect_of_false_candidates_below_1():
    estimate = rate([2, 2, 2, 2], [1, 1, 1, 1], level=0.95)
    assert estimate.deff == 1
    assert estimate.high == pytest.approx(garwood(8, level=0.95)[1] / 4)


def test_no_false_candidate_bounds_the_rate_by_3_7_over_the_cases():
    estimate = rate(np.zeros(20), np.ones(20), level=0.95)
    assert (estimate.value, estimate.low, estimate.deff) == (0, 0, 1)
    assert estimate.high == pytest.approx(-math.log(0.025) / 20)


def test_mean_over_patients_gives_each_the_same_weight():
    estimate = mean_proportion([10, 0, 0], [10, 1, 0], level=0.95)
    assert (estimate.value, estimate.numerator, estimate.denominator) == (0.5, 1, 2)
    assert (estimate.low, estimate.high) == pytest.approx(clopper_pearson(1, 2, level=0.95))


def test_mean_over_patients_may_have_wilsons_interval():
    estimate = mean_proportion([10, 0, 1], [10, 1, 1], level=0.95, method="wilson")
    assert (estimate.low, estimate.high) == wilson(2, 3, level=0.95)
    assert estimate.method.startswith("Wilson")


@pytest.mark.parametrize("method", ["clopper_pearson", "wilson"])
def test_f1_is_twice_the_true_over_lesions_and_candidates(method):
    """6 found, 2 false, 4 missed: 12 / 18, and its ends are those of 6 / 12 by 2 s / (1 + s)."""
    estimate = f1([4, 2], [1, 1], [1, 3], level=0.95, method=method)
    assert (estimate.numerator, estimate.denominator) == (12, 18)
    assert estimate.value == pytest.approx(2 / 3)
    share = proportion([4, 2], [6, 6], level=0.95, method=method)
    assert (estimate.low, estimate.high) == pytest.approx([2 * end / (1 + end) for end in (share.low, share.high)])


def test_cases_of_different_patients_are_independent():
    estimate = case_proportion([True, False, True, True], [2, 0, 1, 3], level=0.95)
    assert (estimate.value, estimate.deff, estimate.num_patients) == (0.75, 1, 4)
    assert (estimate.low, estimate.high) == wilson(3, 4, level=0.95)
    assert estimate.method == "Wilson, one case a patient"


def test_cases_of_one_patient_are_not_independent():
    right, patient = [True, True, True, False, False, True], [0, 0, 0, 1, 1, 2]
    estimate = case_proportion(right, patient, level=0.95)
    by_patient = proportion([3, 0, 1], [3, 2, 1], level=0.95, method="wilson")
    assert estimate == by_patient
    assert estimate.deff > 1
    assert "design effect" in estimate.method


def test_no_case_gives_nan():
    estimate = case_proportion([], [], level=0.95)
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_score_takes_its_design_effect_from_the_variance_it_is_given():
    """1, 1, 0 and 0, 1 of two patients: p = .6, d = 2 * .03 * 5 / .24 = 1.25; 1 + .15 (13 / 5 - 1) = 1.24 weighs 4."""
    estimate = mean_score([1, 1, 0, 0, 1], [0, 0, 0, 1, 1], 0.03, level=0.95)
    assert estimate.value == pytest.approx(0.6)
    assert estimate.deff == pytest.approx((2 * 1.25 + 4 * 1.24) / 6)
    assert (estimate.low, estimate.high) == pytest.approx(
        clopper_pearson(3 / estimate.deff, 5 / estimate.deff, level=0.95)
    )
    assert (estimate.numerator, estimate.denominator, estimate.num_patients) == (3, 5, 2)


def test_scores_between_0_and_1_vary_less_than_hits():
    """Scores .25 and .75 of 4 patients: mean 1/2, squares 4/16, and 1/4 for one hit more; five hits have 5/4: .4."""
    estimate = mean_score([0.25, 0.75, 0.25, 0.75], [0, 1, 2, 3], 0.0, level=0.95)
    assert estimate.deff == pytest.approx(0.4)
    assert (estimate.low, estimate.high) == pytest.approx(clopper_pearson(5, 10, level=0.95))


def test_equal_scores_have_an_interval():
    """One lesion found at half of the points: nothing tells how scores differ, and one hit more is all: 1/2."""
    estimate = mean_score([0.5], [0], 0.0, level=0.95)
    assert (estimate.low, estimate.high) == pytest.approx(clopper_pearson(1, 2, level=0.95))


def test_scores_that_all_are_1_have_an_interval():
    """Resamples don't differ; 3 patients of 2 lesions: 1 + .15 = 1.15."""
    estimate = mean_score(np.ones(6), [0, 0, 1, 1, 2, 2], 0.0, level=0.95)
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(0.025 ** (1.15 / 6))


def test_variance_of_a_score_of_0_widens_its_interval():
    """Nothing found, but resamples find some: a threshold hangs on one candidate."""
    narrow = mean_score(np.zeros(20), np.arange(20), 0.0, level=0.95)
    assert narrow.high == pytest.approx(clopper_pearson(0, 20, level=0.95)[1])
    assert mean_score(np.zeros(20), np.arange(20), 0.04, level=0.95).high > 2 * narrow.high


def test_score_of_one_patient_and_of_none_is_allowed():
    assert mean_score([1, 0], [3, 3], 0.0, level=0.95).deff == pytest.approx(1.15)
    assert np.isnan(mean_score([], [], 0.0, level=0.95).value)


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
