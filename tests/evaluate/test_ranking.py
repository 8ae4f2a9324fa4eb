import math
from dataclasses import replace

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool, random_pool
from scipy.stats import mannwhitneyu, norm

from medfocal.evaluate.intervals import clopper_pearson
from medfocal.evaluate.ranking import case_ap, case_auroc, case_is_called, free_response_ap, ranked_right, split_cases

# Eight cases with ties: false marks, confidences of found lesions and the number of lesions never found, by case.
FALSE = [
    [0.7, 0.6, 0.2, 0.2],
    [],
    [0.4] * 3,
    [0.8],
    [0.1, 0.4, 0.4],
    [0.6, 0.2, 0.3, 0.1],
    [0.1, 0.2, 0.7],
    [0.7, 0.3, 0.5],
]
FOUND = [[], [0.8], [0.3], [], [0.6], [0.6], [], [0.5, 0.6, 0.1]]
NUM_NEVER = [0, 1, 0, 0, 2, 2, 0, 0]


def eight_cases():
    lesions = [(case, z, 5) for case in range(8) for z in FOUND[case] + [NEVER] * NUM_NEVER[case]]
    candidates = [(case, x, False) for case in range(8) for x in FALSE[case]]
    return make_pool(range(8), lesions, candidates + [(case, z, True) for case in range(8) for z in FOUND[case]])


def of_all(figure, pool):
    return float(figure(pool, np.ones((1, pool.num_patients)))[0])


def ap_by_loops(found, true, false, num_all):
    recall = value = 0.0
    for threshold in sorted({*true, *false}, reverse=True):
        num_true, num_false = sum(x >= threshold for x in true), sum(x >= threshold for x in false)
        reached = sum(x >= threshold for x in found) / num_all
        value += (reached - recall) * num_true / (num_true + num_false)
        recall = reached
    return value


def pool_of_cases(positive, negative, patients=None):
    """One candidate for each case, true where it has a lesion; a patient for each case unless given."""
    ratings = [*positive, *negative]
    lesions = [(case, x, 5) for case, x in enumerate(positive)]
    candidates = [(case, x, case < len(positive)) for case, x in enumerate(ratings)]
    return make_pool(range(len(ratings)) if patients is None else patients, lesions, candidates)


class TestFreeResponseAp:
    def test_value_is_worked_out_by_hand(self):
        """.9 true, .8 false, .7 true and false at once, one of three lesions never found: 1/3 * 1 + 1/3 * 2/4."""
        lesions = [(0, 0.9, 5), (1, 0.7, 5), (1, NEVER, 5)]
        candidates = [(0, 0.9, True), (0, 0.8, False), (1, 0.7, True), (1, 0.7, False), (1, 0.1, False)]
        assert of_all(free_response_ap, make_pool([0, 1], lesions, candidates)) == pytest.approx(1 / 3 + 1 / 6)

    def test_value_is_that_of_picai_eval(self):
        """0.2222 is Metrics.AP of picai_eval 1.4.13 on the same marks, lesions never found being (1, 0.0)."""
        assert of_all(free_response_ap, eight_cases()) == pytest.approx(0.22222222222222224, rel=1e-12)

    @pytest.mark.parametrize("seed", range(6))
    def test_value_is_that_of_a_loop_over_thresholds_under_any_weights(self, seed):
        pool = random_pool(seed, decimals=1)
        weights = np.random.default_rng(seed).integers(0, 3, (4, pool.num_patients))

        def loop(weight):
            times = weight[pool.candidate_patient]
            true, false = pool.candidate_is_true, ~pool.candidate_is_true
            lesions = np.repeat(pool.lesion_confidence, weight[pool.lesion_patient])
            marks = [np.repeat(pool.candidate_confidence[kind], times[kind]) for kind in (true, false)]
            return ap_by_loops(lesions, *marks, len(lesions))

        np.testing.assert_allclose(free_response_ap(pool, weights), [loop(weight) for weight in weights], rtol=1e-12)

    def test_a_candidate_that_finds_two_lesions_raises_recall_twice_and_precision_once(self):
        pool = make_pool([0], [(0, 0.9, 5), (0, 0.9, 5)], [(0, 0.9, True), (0, 0.9, False)])
        assert of_all(free_response_ap, pool) == 0.5

    def test_perfect_marks_give_1_even_if_all_have_one_confidence(self):
        """picai_eval's sensitivity at a rate is 0 here, its AP is 1."""
        assert of_all(free_response_ap, make_pool([0], [(0, 1, 5), (0, 1, 5)], [(0, 1, True), (0, 1, True)])) == 1

    def test_no_mark_gives_0_and_no_lesion_is_undefined(self):
        assert of_all(free_response_ap, make_pool([0], [(0, NEVER, 5)])) == 0
        assert math.isnan(of_all(free_response_ap, make_pool([0], [], [(0, 0.5, False)])))


class TestCaseAp:
    def test_value_is_that_of_sklearn(self):
        """0.53357... is average_precision_score of scikit-learn 1.9.1 on the surest mark of each case."""
        assert of_all(case_ap, eight_cases()) == pytest.approx(0.5335714285714286, rel=1e-12)

    def test_a_case_without_candidates_comes_in_last(self):
        """One case of two with lesions is never rated: 1/2 * 1 + 1/2 * 2/4."""
        pool = make_pool([0, 1, 2, 3], [(0, 0.9, 5), (1, NEVER, 5)], [(0, 0.9, True), (2, 0.5, False)])
        assert of_all(case_ap, pool) == pytest.approx(1 / 2 + 1 / 4)

    def test_uncertain_cases_are_left_out(self):
        pool = make_pool([0, 1], [(0, 0.5, 5)], [(0, 0.5, True), (1, 0.9, False)])
        assert of_all(case_ap, pool) == 0.5
        assert of_all(case_ap, make_pool([0, 1], [(0, 0.5, 5)], [(0, 0.5, True), (1, 0.9, False)], uncertain=[1])) == 1


class TestCaseAuroc:
    def test_value_is_that_of_picai_eval(self):
        """0.23333 is Metrics.auroc of picai_eval 1.4.13."""
        assert case_auroc(eight_cases(), level=0.95).value == pytest.approx(0.23333333333333336, rel=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_value_is_that_of_scipy(self, seed):
        pool = random_pool(seed, num_patients=40, decimals=1)
        positive = pool.case_confidence[pool.case_num_lesions > 0]
        negative = pool.case_confidence[pool.case_num_lesions == 0]
        rate = case_auroc(pool, level=0.95)
        expected = mannwhitneyu(positive, negative).statistic
        assert rate.numerator == pytest.approx(expected, rel=1e-12)
        assert rate.value == pytest.approx(expected / len(positive) / len(negative), rel=1e-12)
        assert rate.denominator == len(positive) * len(negative)

    @pytest.mark.parametrize("seed", range(3))
    def test_shares_ranked_right_are_those_of_a_loop(self, seed):
        rng = np.random.default_rng(seed)
        positive, negative = rng.integers(0, 6, 9) / 5, rng.integers(0, 6, 13) / 5
        of_positive, of_negative = ranked_right(positive, negative)
        psi = np.array([[1.0 if y < x else 0.5 if y == x else 0.0 for y in negative] for x in positive])
        np.testing.assert_allclose(of_positive, psi.mean(axis=1), atol=1e-12)
        np.testing.assert_allclose(of_negative, psi.mean(axis=0), atol=1e-12)

    def test_variance_is_delongs_with_one_case_a_patient(self):
        rng = np.random.default_rng(1)
        positive, negative = rng.normal(1, 1, 14).round(1), rng.normal(0, 1, 23).round(1)
        psi = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        value = psi.mean()
        s10 = sum((row.mean() - value) ** 2 for row in psi) / 13
        s01 = sum((column.mean() - value) ** 2 for column in psi.T) / 22
        reach = norm.ppf(0.975) * math.sqrt(s10 / 14 + s01 / 23) / (value * (1 - value))
        ends = [1 / (1 + math.exp(-(math.log(value / (1 - value)) + sign * reach))) for sign in (-1, 1)]
        low = min(positive.min(), negative.min())
        rate = case_auroc(pool_of_cases(positive - low + 1, negative - low + 1), level=0.95)
        assert (rate.low, rate.high) == pytest.approx(ends, rel=1e-9)
        assert rate.method == "DeLong on the logit"
        assert rate.deff == pytest.approx(1)
        assert rate.num_patients == 37

    def test_clustered_variance_is_worked_out_by_hand(self):
        """Patient 0: rated .9 with and .1 without; 1: .2 with, .3 without; 2: .8 with. AUROC = (2 + 1 + 2) / 6 = 5/6.

        V with: 1, 1/2, 1 less 5/6: 1/6, -1/3, 1/6. V without: .1 is below all, 1; .3 below two, 2/3: 1/6, -1/6.
        3/2 (1/36 + 4/36 + 1/36) / 9 + 2/1 (2/36) / 4 + 2 3/2 (1/36 + 2/36) / 6 = 1/36 + 1/36 + 1/24 = 7/72.
        """
        pool = pool_of_cases([0.9, 0.2, 0.8], [0.1, 0.3], patients=[0, 1, 2, 0, 1])
        rate = case_auroc(pool, level=0.95)
        assert rate.value == pytest.approx(5 / 6)
        reach = norm.ppf(0.975) * math.sqrt(7 / 72) / (5 / 36)
        assert rate.low == pytest.approx(1 / (1 + math.exp(-(math.log(5) - reach))))
        assert rate.high == pytest.approx(1 / (1 + math.exp(-(math.log(5) + reach))))
        assert rate.deff == pytest.approx((7 / 72) / (1 / 36 + 1 / 36))
        assert "Obuchowski" in rate.method

    def test_copies_of_a_case_within_its_patient_leave_the_interval_as_it_is(self):
        rng = np.random.default_rng(5)
        positive, negative = rng.normal(2, 1, 20).clip(0.1), rng.normal(1, 1, 20).clip(0.1)
        once = case_auroc(pool_of_cases(positive, negative), level=0.95)
        patients = [*range(20), *range(20), *range(20, 40), *range(20, 40)]
        twice = case_auroc(pool_of_cases([*positive] * 2, [*negative] * 2, patients), level=0.95)
        assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))
        # Of independent cases it would be half, but for M - 1 in the place of M.
        assert twice.deff == pytest.approx(2 * (39 / 40) / (19 / 20))

    def test_interval_is_that_of_a_bootstrap_of_patients_on_a_large_set(self):
        pool = random_pool(11, num_patients=300, skill=1.0)
        rate = case_auroc(pool, level=0.95)
        rng = np.random.default_rng(0)
        values = []
        for _ in range(300):
            weight = np.bincount(rng.integers(0, 300, 300), minlength=300)[pool.case_patient]
            values.append(
                np.mean(
                    ranked_right(
                        np.repeat(pool.case_confidence, weight * (pool.case_num_lesions > 0)),
                        np.repeat(pool.case_confidence, weight * (pool.case_num_lesions == 0)),
                    )[0]
                )
            )
        # The standard error of a standard deviation from 300 draws is 4 %.
        assert rate.high - rate.low == pytest.approx(2 * 1.96 * np.std(values), rel=0.15)

    @pytest.mark.parametrize(
        ("positive", "negative", "value"), [([3, 4, 5, 6, 7], [1, 2], 1), ([1, 2], [3, 4, 5, 6, 7], 0)]
    )
    def test_perfect_separation_does_not_claim_to_be_certain(self, positive, negative, value):
        rate = case_auroc(pool_of_cases(positive, negative), level=0.95)
        assert rate.value == value
        assert (rate.low, rate.high) == clopper_pearson(2 * value, 2, level=0.95)
        assert "2 disjoint pairs" in rate.method

    def test_patients_with_both_kinds_of_cases_are_in_one_pair_only(self):
        """Three patients, each with both kinds: one pair of two patients."""
        pool = pool_of_cases([7, 8, 9], [1, 2, 3], patients=[0, 1, 2, 0, 1, 2])
        assert "1 disjoint pairs" in case_auroc(pool, level=0.95).method

    def test_patients_that_are_all_alike_have_no_variance_even_by_rounding(self):
        """Each has thirds that add up to nothing but 1e-17."""
        patients = [patient for _ in range(2) for patient in range(4) for _ in range(3)]
        rate = case_auroc(pool_of_cases([0.3, 0.6, 0.9] * 4, [0.2, 0.5, 0.7] * 4, patients), level=0.95)
        assert rate.value == pytest.approx(2 / 3)
        assert (rate.low, rate.high) == pytest.approx(clopper_pearson(4 / 3, 2, level=0.95))

    def test_masks_that_rate_all_cases_alike_are_not_certain_either(self):
        rate = case_auroc(pool_of_cases([1] * 7, [1] * 9), level=0.95)
        assert rate.value == 0.5
        assert (rate.low, rate.high) == clopper_pearson(3.5, 7, level=0.95)

    def test_one_patient_of_a_kind_has_no_variance_to_estimate(self):
        rate = case_auroc(pool_of_cases([2], [1, 3, 1, 1]), level=0.95)
        assert rate.value == 0.75
        assert (rate.low, rate.high) == clopper_pearson(0.75, 1, level=0.95)

    def test_uncertain_cases_are_left_out(self):
        pool = make_pool([0, 1, 2], [(0, 0.5, 5)], [(0, 0.5, True), (1, 0.9, False), (2, 0.1, False)], uncertain=[1])
        rate = case_auroc(pool, level=0.95)
        assert (rate.value, rate.denominator, rate.num_patients) == (1, 1, 2)

    @pytest.mark.parametrize("pool", [make_pool([0, 1]), make_pool([0, 1], [(0, NEVER, 5), (1, 0.4, 5)])])
    def test_one_kind_of_cases_is_undefined(self, pool):
        rate = case_auroc(pool, level=0.95)
        assert all(math.isnan(end) for end in (rate.value, rate.low, rate.high))

    def test_case_order_does_not_matter(self):
        pool = random_pool(4, num_patients=20)
        order = np.random.default_rng(0).permutation(pool.num_cases)
        columns = ("case_patient", "case_num_lesions", "case_is_certain", "case_confidence")
        shuffled = replace(pool, **{name: getattr(pool, name)[order] for name in columns})
        one, other = case_auroc(pool, level=0.95), case_auroc(shuffled, level=0.95)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


class TestCaseIsCalled:
    def test_a_candidate_anywhere_calls_the_case_from_its_confidence_on(self):
        pool = make_pool([0, 1, 2], [(0, NEVER, 5)], [(0, 0.5, False), (1, 0.4, False)])
        assert case_is_called(pool, 0.5).tolist() == [True, False, False]
        assert case_is_called(pool, 0.51).tolist() == [False, False, False]

    def test_at_threshold_0_a_case_without_candidates_is_not_called(self):
        assert case_is_called(make_pool([0, 1], candidates=[(1, 0.2, False)]), 0.0).tolist() == [False, True]

    def test_cases_with_only_ignored_lesions_are_of_neither_kind(self):
        with_lesions, without = split_cases(make_pool([0, 1, 2], [(0, NEVER, 5)], uncertain=[1]))
        assert with_lesions.tolist() == [True, False, False]
        assert without.tolist() == [False, False, True]
