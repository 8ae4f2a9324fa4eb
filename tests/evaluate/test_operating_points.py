import math

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool, random_pool

from medfocal.evaluate.operating_points import (
    false_positives_per_case_at,
    sensitivity_at,
    sensitivity_at_rates,
    threshold_at_rate,
)

RATES = (0.125, 0.5, 1.0, 2.0, 8.0)


def once(pool):
    return np.ones((1, pool.num_patients))


def by_loop(pool, weight, rate, lesions):
    """The step function: down the distinct confidences as long as the rate is kept."""
    num_cases = weight[pool.case_patient].sum()
    num_lesions = (weight[pool.lesion_patient] * lesions).sum()
    sensitivity = 0.0
    for threshold in sorted(set(pool.candidate_confidence.tolist()), reverse=True):
        counted = (pool.candidate_confidence >= threshold) & ~pool.candidate_is_true
        if weight[pool.candidate_patient][counted].sum() / num_cases > rate:
            break
        found = (pool.lesion_confidence >= threshold) & lesions
        sensitivity = weight[pool.lesion_patient][found].sum() / num_lesions
    return sensitivity if num_lesions else math.nan


@pytest.mark.parametrize("seed", range(6))
def test_sensitivities_are_those_of_a_loop_down_the_confidences(seed):
    pool = random_pool(seed, decimals=1)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, (4, pool.num_patients))
    large = pool.lesion_diameter_mm > 6
    for lesions in (None, large):
        given = np.ones(pool.num_lesions, bool) if lesions is None else lesions
        expected = [[by_loop(pool, weight, rate, given) for rate in RATES] for weight in weights]
        np.testing.assert_allclose(sensitivity_at_rates(pool, weights, RATES, lesions=lesions), expected, rtol=1e-12)


def test_a_rate_that_is_reached_exactly_is_allowed():
    """Two cases: .8 false makes 1/2 per case, .6 false 1; the lesion at .7 needs 1/2, the one at .5 a whole one."""
    pool = make_pool(
        [0, 1],
        [(0, 0.7, 5), (1, 0.5, 5)],
        [(0, 0.8, False), (1, 0.6, False), (0, 0.7, True), (1, 0.5, True)],
    )
    np.testing.assert_allclose(sensitivity_at_rates(pool, once(pool), [0.49, 0.5, 0.99, 1.0]), [[0, 0.5, 0.5, 1]])


def test_a_lesion_with_the_confidence_of_a_false_candidate_too_many_is_not_found():
    pool = make_pool([0], [(0, 0.8, 5)], [(0, 0.8, True), (0, 0.8, False)])
    np.testing.assert_allclose(sensitivity_at_rates(pool, once(pool), [0.5, 1.0]), [[0, 1]])
    assert threshold_at_rate(pool, 0.5) == math.inf
    assert threshold_at_rate(pool, 1.0) == 0.8


def test_lowest_operating_point_counts_when_no_lesion_is_missed():
    """Found at .9 and .3, false at .5, three cases: others stop at 0.5 here."""
    pool = make_pool([0, 1, 2], [(0, 0.9, 5), (1, 0.3, 5)], [(0, 0.9, True), (1, 0.3, True), (2, 0.5, False)])
    np.testing.assert_allclose(sensitivity_at_rates(pool, once(pool), [0.125, 1.0]), [[0.5, 1]])
    assert threshold_at_rate(pool, 1.0) == 0.3


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seed", range(4))
def test_at_the_threshold_of_a_rate_the_sensitivity_is_the_same_and_the_rate_is_kept(seed, rate):
    pool = random_pool(seed, decimals=1)
    threshold = threshold_at_rate(pool, rate)
    found = sensitivity_at(pool, once(pool), threshold)
    np.testing.assert_allclose(found, sensitivity_at_rates(pool, once(pool), [rate])[:, 0])
    assert false_positives_per_case_at(pool, once(pool), threshold)[0] <= rate
    lower = pool.candidate_confidence[pool.candidate_confidence < threshold]
    if len(lower):
        assert false_positives_per_case_at(pool, once(pool), lower.max())[0] > rate


def test_figures_at_a_threshold_are_worked_out_by_hand():
    """Patient 1 counts twice: lesions .5 found and 2 x 1 missed, false candidates 1 + 2 x 2 over 3 cases."""
    pool = make_pool(
        [0, 1], [(0, 0.5, 5), (1, NEVER, 5)], [(0, 0.5, True), (0, 0.6, False), (1, 0.5, False), (1, 0.9, False)]
    )
    np.testing.assert_allclose(sensitivity_at(pool, [[1, 1], [1, 2]], 0.5), [1 / 2, 1 / 3])
    np.testing.assert_allclose(false_positives_per_case_at(pool, [[1, 1], [1, 2]], 0.5), [3 / 2, 5 / 3])
    np.testing.assert_allclose(sensitivity_at(pool, [[1, 1]], 0.51), [0])
    np.testing.assert_allclose(false_positives_per_case_at(pool, [[1, 1]], 0.61), [1 / 2])


def test_without_lesions_sensitivity_is_nan_and_false_candidates_count():
    pool = make_pool([0, 1], candidates=[(0, 0.5, False)])
    assert np.isnan(sensitivity_at_rates(pool, once(pool), RATES)).all()
    assert np.isnan(sensitivity_at(pool, once(pool), 0.5)).all()
    assert false_positives_per_case_at(pool, once(pool), 0.5) == 0.5


def test_without_candidates_nothing_is_found_and_no_threshold_counts():
    pool = make_pool([0], [(0, NEVER, 5)])
    np.testing.assert_array_equal(sensitivity_at_rates(pool, once(pool), RATES), [[0] * 5])
    assert threshold_at_rate(pool, 1.0) == math.inf
