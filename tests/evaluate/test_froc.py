import functools
import math

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool, random_pool
from hypothesis import given, settings
from hypothesis import strategies as st
from lesion_cases import AFFINE, LESION_CASES
from tables import parts, table_of

from medfocal.evaluate.bootstrap import draw_weights
from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.froc import corners, froc, froc_curve, pool_curve, read_froc
from medfocal.evaluate.intervals import mean_score
from medfocal.evaluate.judge import judge
from medfocal.evaluate.operating_points import sensitivity_at_rates
from medfocal.evaluate.pool import pool
from medfocal.evaluate.protocols import Protocol

RATES = Protocol().false_positive_rates


def read(confidence, true, *, num_lesions, num_cases, rates=RATES):
    curve = froc_curve(confidence, true, num_lesions=num_lesions, num_cases=num_cases)
    return read_froc(curve, rates, num_lesions=num_lesions)


def sensitivities(points):
    return [point.lesion_sensitivity for point in points]


def froc_of(a_pool, *, rates=RATES, num_resamples=200, seed=3, level=0.95, **options):
    return froc(a_pool, rates, level=level, num_resamples=num_resamples, seed=seed, **options)


def three_marks():
    """True at .9 and .3, false at .5; 2 lesions, 3 cases of 3 patients."""
    return make_pool([0, 1, 2], [(0, 0.9, 5), (1, 0.3, 5)], [(0, 0.9, True), (2, 0.5, False), (1, 0.3, True)])


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_curve_of_each_lesion_case_is_that_worked_out_by_hand(case):
    protocol = Protocol()
    table = evaluate_case(case.reference, case.probability, AFFINE, case="one", protocol=protocol)
    curve = pool_curve(pool([judge(table, protocol)]))
    points = np.stack([curve.threshold, curve.false_positives_per_case, curve.lesion_sensitivity], axis=1)
    np.testing.assert_array_equal(points, np.reshape(case.curve, (-1, 3)))


def test_three_marks_have_a_cpm_of_6_7ths():
    result = froc_of(three_marks())
    assert sensitivities(result.points) == [0.5, 0.5, 1, 1, 1, 1, 1]
    assert result.cpm == pytest.approx(6 / 7)


def test_three_marks_read_at_six_rates_from_one_quarter_have_a_mean_of_11_12ths():
    result = froc_of(three_marks(), rates=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0))
    assert result.cpm == pytest.approx(11 / 12)


def test_ignored_candidates_are_not_counted():
    """One lesion found at .9; the candidate at .8 lies in the region to be ignored, the one at .5 is false."""
    table = table_of([[5, 0, 0]], candidates=parts([10, 10, 10], confidence=[0.9, 0.8, 0.5], ignored=[0, 10, 0]))
    curve = pool_curve(pool([judge(table, Protocol())]))
    assert curve.threshold.tolist() == [0.9, 0.5]
    assert curve.false_positives_per_case.tolist() == [0, 1]


def test_ten_false_candidates_in_five_cases_are_read_at_two_per_case():
    """The lesion comes last, at .1: it counts from 2 false candidates per case on."""
    candidates = [(n % 5, 0.9 - n / 20, False) for n in range(10)] + [(0, 0.1, True)]
    result = froc_of(make_pool(range(5), [(0, 0.1, 5)], candidates))
    assert sensitivities(result.points) == [0, 0, 0, 0, 1, 1, 1]
    assert [point.reached for point in result.points] == [True] * 5 + [False] * 2


def test_fifty_false_candidates_in_four_cases_end_beyond_8_per_case():
    candidates = [(n % 4, 0.95 - n / 100, False) for n in range(50)] + [(0, 0.925, True)]
    result = froc_of(make_pool(range(4), [(0, 0.925, 5)], candidates))
    assert sensitivities(result.points) == [0, 0, 0, 1, 1, 1, 1]  # 3 false ones in 4 cases come before
    assert all(point.reached for point in result.points)


def test_two_false_candidates_in_thirty_cases_give_a_mean_sensitivity_of_at_most_1():
    candidates = [(3, 0.8, False), (4, 0.7, False), (0, 0.6, True)]
    result = froc_of(make_pool(range(30), [(0, 0.6, 5), (1, NEVER, 5)], candidates))
    assert result.cpm == 0.5
    assert 0 <= result.cpm_low <= 0.5 <= result.cpm_high <= 1


def test_lowest_confidence_counts_when_no_lesion_is_missed():
    """True at .9 and .3, false at .5, 3 cases, 2 lesions: one false candidate in 3 cases comes before the second."""
    points = read([0.9, 0.5, 0.3], [True, False, True], num_lesions=2, num_cases=3)
    assert sensitivities(points) == [0.5, 0.5, 1, 1, 1, 1, 1]
    assert np.mean(sensitivities(points)) == pytest.approx(6 / 7)


def test_perfect_masks_without_a_false_candidate_have_sensitivity_1_everywhere():
    points = read([1.0, 1.0], [True, True], num_lesions=2, num_cases=3)
    assert sensitivities(points) == [1] * 7


def test_only_false_candidates_give_sensitivity_0_and_not_nan():
    assert sensitivities(read([0.8, 0.4], [False, False], num_lesions=1, num_cases=2)) == [0] * 7


def test_no_candidate_gives_sensitivity_0_not_reached_and_no_threshold():
    points = read([], [], num_lesions=4, num_cases=2)
    assert sensitivities(points) == [0] * 7
    assert [point.threshold for point in points] == [math.inf] * 7
    assert not any(point.reached for point in points)


def test_no_lesion_gives_nan_and_keeps_the_thresholds():
    points = read([0.8, 0.4], [False, False], num_lesions=0, num_cases=2, rates=(0.5, 1.0))
    assert np.isnan(sensitivities(points)).all()
    assert [point.threshold for point in points] == [0.8, 0.4]


@pytest.mark.parametrize(("num_false", "num_cases"), [(10, 5), (50, 4), (2, 30)])
def test_sensitivity_never_exceeds_1_however_few_or_many_false_candidates(num_false, num_cases):
    confidence = np.linspace(0.1, 0.9, num_false + 1)
    true = np.arange(num_false + 1) == num_false
    assert sensitivities(read(confidence, true, num_lesions=1, num_cases=num_cases)) == [1] * 7


def test_point_is_the_last_one_with_at_most_that_many_false_candidates():
    """One case; false at .9, true at .8, false at .7, true at .6, true at .5."""
    points = read([0.9, 0.8, 0.7, 0.6, 0.5], [False, True, False, True, True], num_lesions=4, num_cases=1)
    assert sensitivities(points) == [0, 0, 0, 0.25, 0.75, 0.75, 0.75]
    assert [point.threshold for point in points] == [math.inf] * 3 + [0.8] + [0.5] * 3
    assert [point.reached for point in points] == [True, True, True, True, True, False, False]


def test_threshold_is_used_with_at_least():
    """At the threshold of 1 false candidate per case, counting `>=` gives back the point's own figures."""
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    true = np.array([True, False, True, False])
    (point,) = read(confidence, true, num_lesions=2, num_cases=1, rates=(1.0,))
    counted = confidence >= point.threshold
    assert (true[counted].sum() / 2, (~true[counted]).sum()) == (point.lesion_sensitivity, 1)


def test_equal_confidences_enter_together():
    curve = froc_curve([0.5, 0.5, 0.5], [True, False, True], num_lesions=2, num_cases=1)
    assert curve.threshold.tolist() == [0.5]
    assert (curve.false_positives_per_case[0], curve.lesion_sensitivity[0]) == (1, 1)


marks = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7, 0.9]), st.booleans()), max_size=30)


@settings(max_examples=60, deadline=None)
@given(marks)
def test_curve_never_falls(drawn):
    curve = froc_curve([c for c, _ in drawn], [t for _, t in drawn], num_lesions=40, num_cases=3)
    assert (np.diff(curve.lesion_sensitivity) >= 0).all()
    assert (np.diff(curve.false_positives_per_case) >= 0).all()
    assert (np.diff(curve.threshold) < 0).all()


@settings(max_examples=60, deadline=None)
@given(marks)
def test_corners_are_the_same_step_function(drawn):
    curve = froc_curve([c for c, _ in drawn], [t for _, t in drawn], num_lesions=40, num_cases=3)
    rates = tuple(np.arange(0.1, 11, 0.3))
    shorter = corners(curve)
    assert sensitivities(read_froc(shorter, rates, num_lesions=40)) == sensitivities(
        read_froc(curve, rates, num_lesions=40)
    )
    assert set(shorter.threshold) <= set(curve.threshold)


def test_corners_leave_out_a_long_run_of_false_candidates():
    true = np.zeros(1000, bool)
    true[[0, 500]] = True
    curve = corners(froc_curve(np.linspace(1, 0.1, 1000), true, num_lesions=2, num_cases=1))
    assert curve.false_positives_per_case.tolist() == [0, 499, 499, 998]
    assert curve.lesion_sensitivity.tolist() == [0.5, 0.5, 1, 1]


def test_a_lesion_counts_once_however_many_candidates_find_it():
    """Two true candidates on one lesion, as with many_to_many: 1 of 2 lesions, not 2."""
    curve = pool_curve(make_pool([0], [(0, 0.9, 5), (0, NEVER, 5)], [(0, 0.9, True), (0, 0.7, True), (0, 0.4, False)]))
    assert curve.lesion_sensitivity.tolist() == [0.5, 0.5]
    assert curve.threshold.tolist() == [0.9, 0.4]


def slowly_read(patients_of, a_pool, rates):
    """Sensitivities of copied patients, with loops."""
    lesions, false, num_cases = [], [], 0
    for patient in patients_of:
        lesions += a_pool.lesion_confidence[a_pool.lesion_patient == patient].tolist()
        mine = (a_pool.candidate_patient == patient) & ~a_pool.candidate_is_true
        false += a_pool.candidate_confidence[mine].tolist()
        num_cases += int((a_pool.case_patient == patient).sum())
    found = []
    for rate in rates:
        best = 0.0
        for threshold in {*lesions, *false} - {NEVER}:
            if sum(c >= threshold for c in false) / num_cases <= rate:
                best = max(best, sum(c >= threshold for c in lesions) / len(lesions)) if lesions else math.nan
        found.append(best if lesions else math.nan)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_weighted_patients_are_read_like_copied_ones(seed):
    """Confidences of one decimal: many ties between lesions and false candidates."""
    a_pool = random_pool(seed, 6, decimals=1)
    read = functools.partial(sensitivity_at_rates, a_pool, rates=RATES)
    (weights,) = draw_weights(a_pool.num_patients, 15, seed=seed)
    expected = [slowly_read(np.repeat(np.arange(len(row)), row.astype(int)), a_pool, RATES) for row in weights]
    np.testing.assert_allclose(read(weights), expected)


@pytest.mark.parametrize("seed", range(8))
def test_weights_of_1_read_the_curve_itself(seed):
    a_pool = random_pool(seed, 30, decimals=1)
    rates = (0.1, 0.3, *RATES)
    points = read_froc(pool_curve(a_pool), rates, num_lesions=a_pool.num_lesions)
    read = sensitivity_at_rates(a_pool, np.ones((1, a_pool.num_patients)), rates)
    assert read[0].tolist() == sensitivities(points)


def test_a_resample_without_lesions_has_no_sensitivity():
    with np.errstate(all="raise"):
        assert np.isnan(sensitivity_at_rates(three_marks(), np.array([[0.0, 0.0, 3.0]]), RATES)).all()


def test_sensitivity_never_falls_with_the_allowed_rate():
    (weights,) = draw_weights(40, 100, seed=1)
    read = sensitivity_at_rates(random_pool(5, 40), weights, np.linspace(0, 5, 60))
    assert (np.diff(read, axis=1) >= 0).all()


def test_interval_of_a_point_is_that_of_the_lesions_found_there_with_the_variance_of_resamples():
    a_pool = random_pool(2, 20)
    result = froc_of(a_pool, num_resamples=300, seed=9)
    (weights,) = draw_weights(20, 300, seed=9)
    replicates = sensitivity_at_rates(a_pool, weights, RATES)
    for point, values in zip(result.points, replicates.T, strict=True):
        found = a_pool.lesion_confidence >= point.threshold
        expected = mean_score(found, a_pool.lesion_patient, values.var(), level=0.95)
        assert (point.low, point.high) == pytest.approx((expected.low, expected.high))
        assert point.lesion_sensitivity == pytest.approx(expected.value)
    found = np.mean([a_pool.lesion_confidence >= point.threshold for point in result.points], axis=0)
    expected = mean_score(found, a_pool.lesion_patient, replicates.mean(axis=1).var(), level=0.95)
    assert (result.cpm, result.cpm_low, result.cpm_high) == pytest.approx((expected.value, expected.low, expected.high))
    assert result.method == (
        "Clopper-Pearson on counts divided by the design effect of patients, from resamples of patients (300)"
    )


def test_interval_follows_the_choice_of_wilson():
    default, other = froc_of(random_pool(2, 20)), froc_of(random_pool(2, 20), interval="wilson")
    assert other.cpm_high < default.cpm_high
    assert other.points[3].low > default.points[3].low
    assert other.method.startswith("Wilson")


def test_intervals_hold_their_values_and_follow_the_seed():
    result, again, other = (froc_of(random_pool(4, 25), seed=seed) for seed in (1, 1, 2))
    assert all(point.low < point.lesion_sensitivity < point.high for point in result.points)
    assert result.cpm_low < result.cpm < result.cpm_high
    assert (result.points, result.cpm_low) == (again.points, again.cpm_low)
    assert result.cpm_low != other.cpm_low


def test_all_lesions_found_do_not_make_an_interval_without_width():
    """20 patients with a lesion each, all found before any false candidate: as for 20 of 20."""
    lesions = [(n, 0.9, 5) for n in range(20)]
    result = froc_of(make_pool(range(20), lesions, [(n, 0.9, True) for n in range(20)] + [(0, 0.2, False)]))
    for point in result.points:
        assert (point.lesion_sensitivity, point.high) == (1, 1)
        assert point.low == pytest.approx(0.025 ** (1 / 20))
    assert result.cpm_low == pytest.approx(0.025 ** (1 / 20))


def test_a_point_that_hangs_on_one_false_candidate_is_unsure():
    """The surest of all is false: in 5 cases no lesion counts at 1/8, but all do where its patient isn't drawn."""
    lesions = [(n, 0.8, 5) for n in range(5)] * 4
    candidates = [(0, 0.9, False)] + [(n, 0.8, True) for n in range(5)] * 4
    first = froc_of(make_pool(range(5), lesions, candidates)).points[0]
    assert (first.lesion_sensitivity, first.low, first.threshold) == (0, 0, math.inf)
    assert first.high > 0.5


def test_band_runs_from_one_sixteenth_to_the_end_of_the_curve():
    a_pool = random_pool(4, 25, false_per_case=2)
    result = froc_of(a_pool)
    rates = result.band.false_positives_per_case
    assert rates[0] == 1 / 16
    assert rates[-1] == pytest.approx((~a_pool.candidate_is_true).sum() / a_pool.num_cases)
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(rates[-1] / rates[0]) / (len(rates) - 1))


def test_band_ends_at_16():
    candidates = [(0, 0.9 - n / 100, False) for n in range(40)] + [(0, 0.1, True)]
    assert froc_of(make_pool([0, 1], [(0, 0.1, 5)], candidates)).band.false_positives_per_case[-1] == pytest.approx(16)


def test_band_agrees_with_the_points():
    """Rates at the grid's own places: the same intervals."""
    a_pool = random_pool(4, 25)
    band = froc_of(a_pool).band
    chosen = slice(4, 60, 9)
    again = froc_of(a_pool, rates=tuple(band.false_positives_per_case[chosen]))
    np.testing.assert_allclose([(p.low, p.high) for p in again.points], np.c_[band.low[chosen], band.high[chosen]])


def test_curve_without_a_false_candidate_has_a_band_of_one_place():
    result = froc_of(make_pool([0, 1], [(0, 0.9, 5), (1, NEVER, 5)], [(0, 0.9, True)]))
    assert result.band.false_positives_per_case.tolist() == [1 / 16]
    assert result.band.low[0] < 0.5 < result.band.high[0]


def test_no_candidate_at_all_has_intervals_from_0():
    result = froc_of(make_pool([0, 1, 2], [(0, NEVER, 5), (1, NEVER, 5)]))
    assert result.cpm == 0
    assert [point.low for point in result.points] == [0] * 7
    assert result.points[0].high == pytest.approx(1 - 0.025 ** (1 / 2))
    assert len(result.curve.threshold) == 0


def test_no_lesion_gives_nan_and_no_band():
    result = froc_of(make_pool([0, 1], [], [(0, 0.8, False), (0, 0.4, False)]))
    assert np.isnan([result.cpm, result.cpm_low, result.cpm_high]).all()
    assert np.isnan([(p.lesion_sensitivity, p.low, p.high) for p in result.points]).all()
    assert len(result.band.low) == 0
    assert result.method == "no intervals: there is no lesion"


def test_no_resamples_leave_out_intervals_and_band():
    result = froc_of(three_marks(), num_resamples=0)
    assert result.cpm == pytest.approx(6 / 7)
    assert np.isnan([result.cpm_low, result.points[0].low, result.points[0].high]).all()
    assert len(result.band.low) == 0
    assert result.method == "no intervals: no resamples were asked for"


def test_dictionary_has_points_curve_and_band_as_rows():
    values = froc_of(three_marks()).to_dict()
    assert set(values) == {"points", "cpm", "cpm_low", "cpm_high", "method", "curve", "band"}
    point = {"false_positives_per_case", "lesion_sensitivity", "low", "high", "threshold", "reached"}
    assert set(values["points"][0]) == point
    assert values["curve"][1] == {
        "threshold": 0.5,
        "false_positives_per_case": pytest.approx(1 / 3),
        "lesion_sensitivity": 0.5,
    }
    assert set(values["band"][0]) == {"false_positives_per_case", "low", "high"}
