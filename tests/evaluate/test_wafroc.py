import math

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool, random_pool

from medfocal.evaluate.wafroc import wafroc, why_undefined


def value(pool, **options):
    return float(wafroc(pool, np.ones((1, pool.num_patients)), **options)[0])


def by_loops(pool, case_weights, *, false_of_all_cases):
    """The definition, term by term."""
    numerator = denominator = 0.0
    for i in range(pool.num_cases):
        if not pool.case_is_certain[i] or (pool.case_num_lesions[i] and not false_of_all_cases):
            continue
        marks = pool.candidate_confidence[(pool.candidate_case == i) & ~pool.candidate_is_true]
        x = max(marks, default=-math.inf)
        for j in range(pool.num_cases):
            if not pool.case_num_lesions[j]:
                continue
            weight = case_weights[i] * case_weights[j]
            denominator += weight
            for z in pool.lesion_confidence[pool.lesion_case == j]:
                psi = 1.0 if x < z else 0.5 if x == z else 0.0
                numerator += weight * psi / pool.case_num_lesions[j]
    return numerator / denominator if denominator else math.nan


def test_value_is_worked_out_by_hand():
    """Lesion-free cases with surest marks .4 and none; case 2 has lesions at .9 and .4, case 3 one that is never found.

    Case 2: (1 + 1) / 2 for .9, (1/2 + 1) / 2 for .4, each lesion counting 1/2: 7/8. Case 3: (0 + 1/2) / 2 = 1/4.
    """
    pool = make_pool(
        [0, 1, 2, 3],
        [(2, 0.9, 5), (2, 0.4, 5), (3, NEVER, 5)],
        [(0, 0.4, False), (0, 0.3, False), (2, 0.9, True), (2, 0.4, True), (3, 0.95, False)],
    )
    assert value(pool) == pytest.approx((7 / 8 + 1 / 4) / 2)


def test_wafroc1_takes_the_false_candidates_beside_lesions_too():
    """As above with cases 2 (no false mark) and 3 (.95). Of four x, .9 beats three: 3/4; .4 beats two and ties: 5/8.

    Case 2: (3/4 + 5/8) / 2 = 11/16. Case 3, never found: 0 + 1/2 + 1/2 + 0 of 4 = 1/4.
    """
    pool = make_pool(
        [0, 1, 2, 3],
        [(2, 0.9, 5), (2, 0.4, 5), (3, NEVER, 5)],
        [(0, 0.4, False), (0, 0.3, False), (2, 0.9, True), (2, 0.4, True), (3, 0.95, False)],
    )
    assert value(pool, false_of_all_cases=True) == pytest.approx((11 / 16 + 1 / 4) / 2)


def test_all_marks_of_lesion_free_cases_below_all_lesions_give_1():
    pool = make_pool([0, 1], [(0, 0.5, 5), (0, 0.7, 5)], [(0, 0.9, False), (1, 0.4, False)])
    assert value(pool) == 1
    assert value(pool, false_of_all_cases=True) == 0.5


def test_no_mark_at_all_is_as_good_as_guessing():
    assert value(make_pool([0, 1], [(0, NEVER, 5)])) == 0.5


def test_a_case_with_many_lesions_counts_as_one_case():
    pool = make_pool([0, 1, 2], [(0, 0.9, 5)] + [(1, NEVER, 5)] * 9, [(0, 0.9, True), (2, 0.5, False)])
    assert value(pool) == 0.5


@pytest.mark.parametrize("false_of_all_cases", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_value_is_that_of_the_definition_term_by_term_under_any_weights(seed, false_of_all_cases):
    pool = random_pool(seed, decimals=1)
    rng = np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, pool.num_patients)), rng.integers(0, 3, (4, pool.num_patients))])
    expected = [by_loops(pool, row[pool.case_patient], false_of_all_cases=false_of_all_cases) for row in weights]
    np.testing.assert_allclose(wafroc(pool, weights, false_of_all_cases=false_of_all_cases), expected, rtol=1e-12)


def test_a_case_whose_only_lesions_are_ignored_is_left_out():
    marks = [(0, 0.9, True), (1, 0.5, False), (2, 0.95, False)]
    assert value(make_pool([0, 1, 2], [(0, 0.9, 5)], marks)) == 0.5
    assert value(make_pool([0, 1, 2], [(0, 0.9, 5)], marks, uncertain=[2])) == 1
    assert value(make_pool([0, 1, 2], [(0, 0.9, 5)], marks, uncertain=[2]), false_of_all_cases=True) == 1


def test_without_lesion_free_cases_only_wafroc1_has_a_value():
    pool = make_pool([0, 1], [(0, 0.9, 5), (1, 0.2, 5)], [(0, 0.9, True), (1, 0.2, True), (1, 0.3, False)])
    assert math.isnan(value(pool))
    assert "no case without lesions" in why_undefined(pool)
    assert value(pool, false_of_all_cases=True) == 0.75
    assert why_undefined(pool, false_of_all_cases=True) == ""


def test_without_lesions_there_is_no_value_but_a_reason():
    pool = make_pool([0, 1], candidates=[(0, 0.9, False)])
    assert math.isnan(value(pool))
    assert math.isnan(value(pool, false_of_all_cases=True))
    assert why_undefined(pool) == why_undefined(pool, false_of_all_cases=True) == "there is no lesion"


def test_a_resample_without_lesion_free_cases_is_nan_and_the_others_are_not():
    pool = make_pool([0, 1], [(0, 0.9, 5)], [(0, 0.9, True)])
    np.testing.assert_array_equal(wafroc(pool, [[2, 0], [1, 1], [0, 2]]), [np.nan, 1, np.nan])


def test_only_the_order_of_confidences_matters():
    pool = random_pool(3, decimals=1)
    from dataclasses import replace

    cubed = replace(
        pool,
        lesion_confidence=np.where(np.isfinite(pool.lesion_confidence), pool.lesion_confidence**3, -np.inf),
        candidate_confidence=pool.candidate_confidence**3,
    )
    assert value(cubed) == pytest.approx(value(pool), rel=1e-12)
