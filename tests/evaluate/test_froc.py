import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lesion_cases import AFFINE, LESION_CASES

from medfocal.evaluate import Protocol, evaluate_case, evaluate_cases
from medfocal.evaluate.froc import corners, froc_curve, read_froc

RATES = Protocol().false_positive_rates


def read(confidence, true, *, num_lesions, num_cases, rates=RATES):
    curve = froc_curve(confidence, true, num_lesions=num_lesions, num_cases=num_cases)
    return read_froc(curve, rates, num_lesions=num_lesions)


def sensitivities(points):
    return [point.lesion_sensitivity for point in points]


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_curve_of_each_lesion_case_is_that_worked_out_by_hand(case):
    result = evaluate_case(case.reference, case.probability, AFFINE, case="one")
    curve = froc_curve(
        [candidate.confidence for candidate in result.candidates],
        [candidate.lesion is not None for candidate in result.candidates],
        num_lesions=len(result.lesions),
        num_cases=1,
    )
    points = np.stack([curve.threshold, curve.false_positives_per_case, curve.lesion_sensitivity], axis=1)
    np.testing.assert_array_equal(points, np.reshape(case.curve, (-1, 3)))


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


def test_cpm_is_the_mean_of_the_seven_points():
    """One lesion of two found, below one false candidate in one case: 0 up to 1/2, then 1/2."""
    reference, probability = np.zeros((12, 10, 8), bool), np.zeros((12, 10, 8))
    reference[2, 2, 2] = reference[9, 2, 2] = True
    probability[2, 2, 2], probability[5, 5, 5] = 0.6, 0.8
    froc = evaluate_cases([evaluate_case(reference, probability, AFFINE, case="one")]).froc
    assert sensitivities(froc.points) == [0, 0, 0, 0.5, 0.5, 0.5, 0.5]
    assert froc.cpm == pytest.approx(2 / 7)
