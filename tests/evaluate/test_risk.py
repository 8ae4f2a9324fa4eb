"""Thresholds that control the miss rate: against brute force, and the promise itself in a simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from medfocal.evaluate.risk import (
    controlled_threshold,
    hoeffding_bentkus,
    miss_curve,
    patients_needed,
    tail_probability,
)

NEVER = -np.inf


def drawn(seed, num_patients=12):
    """Lesions of patients with unequal numbers, tied confidences, and some that are never found."""
    random = np.random.default_rng(seed)
    patient = np.repeat(random.permutation(3 * num_patients)[:num_patients], random.geometric(0.4, num_patients))
    confidence = np.round(random.beta(4, 2, len(patient)), 1)
    confidence[random.random(len(patient)) < 0.05] = NEVER
    return confidence, patient


def losses(confidence, patient, threshold):
    """The loss of each patient, by going through them."""
    found = []
    for number in sorted(set(patient.tolist())):
        own = [value for value, of in zip(confidence.tolist(), patient.tolist(), strict=True) if of == number]
        found.append(Fraction(sum(value < threshold for value in own), len(own)))
    return found


def candidates_for_threshold(confidence):
    """Confidences, places between them, and both ends."""
    values = sorted({0.0, 1.0, *confidence[confidence > NEVER].tolist()})
    return sorted({*values, *((a + b) / 2 for a, b in itertools.pairwise(values))}, reverse=True)


# The curve


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_the_mean_over_patients_of_their_shares(seed):
    confidence, patient = drawn(seed)
    curve = miss_curve(confidence, patient)
    assert (curve.num_patients, curve.num_lesions) == (12, len(patient))
    for threshold in candidates_for_threshold(confidence):
        expected = float(sum(losses(confidence, patient, threshold)) / 12)
        assert curve.at(threshold) == pytest.approx(expected, abs=1e-12), threshold
    np.testing.assert_array_equal(curve.threshold, np.unique(confidence[confidence > NEVER])[::-1])


def test_a_lesion_counts_as_found_at_its_own_confidence_and_not_above():
    curve = miss_curve([0.75], [4])
    assert (curve.at(0.75), curve.at(np.nextafter(0.75, 1)), curve.at(0.0)) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_misses_more_as_the_threshold_falls(seed):
    """The condition of both theorems, of each patient and not of the mean alone."""
    confidence, patient = drawn(seed)
    before = [Fraction(1)] * 12
    for threshold in candidates_for_threshold(confidence):
        now = losses(confidence, patient, threshold)
        assert all(a <= b for a, b in zip(now, before, strict=True))
        before = now


def test_lesions_in_no_candidate_are_what_remains():
    assert miss_curve([0.5, NEVER, 0.4, 0.3], [0, 0, 1, 1]).residual == 0.25
    assert miss_curve([NEVER, NEVER], [0, 1]).residual == 1.0
    assert miss_curve(np.linspace(0.1, 1, 10), [7] * 10).residual == 0.0  # ten tenths, but for rounding


def test_without_lesions_there_is_no_patient_and_nothing_is_defined():
    curve = miss_curve([], [])
    assert (curve.num_patients, len(curve.threshold)) == (0, 0)
    assert math.isnan(curve.residual)
    assert math.isnan(curve.at(0.5))
    assert controlled_threshold(curve, 0.1) is None


# In expectation


@pytest.mark.parametrize("target", [0.1, 0.15, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_in_expectation_is_the_highest_that_the_theorem_allows(seed, target):
    confidence, patient = drawn(seed)
    allowed = [
        threshold
        for threshold in candidates_for_threshold(confidence)
        if (sum(losses(confidence, patient, threshold)) + 1) / Fraction(13) <= Fraction(str(target))
    ]
    found = controlled_threshold(miss_curve(confidence, patient), target)
    assert found == (max(allowed) if allowed else None)


def test_nine_patients_without_a_miss_suffice_for_a_tenth_and_eight_do_not():
    """(0 + 1) / (9 + 1) is a tenth exactly, which floats of 1 - 0.9 are not."""
    for target in (0.1, 1 - 0.9, round(1 - 0.9, 12)):
        assert controlled_threshold(miss_curve([0.5] * 9, range(9)), target) == 0.5
        assert controlled_threshold(miss_curve([0.5] * 8, range(8)), target) is None


def test_a_patient_with_many_lesions_counts_as_much_as_one_with_one():
    """19 patients with one lesion each, and one with 20, all missed above 0.3: the mean share is a twentieth."""
    confidence, patient = [0.9] * 19 + [0.3] * 20, [*range(19), *([19] * 20)]
    curve = miss_curve(confidence, patient)
    assert curve.at(0.9) == pytest.approx(0.05)
    assert controlled_threshold(curve, 0.1) == 0.9  # (1 + 1) / 21


# With a probability


def bound(mean, num, level):
    """Of section 3.1 by a root finder and scipy's binomial distribution."""

    def tail(risk):
        low = min(mean, risk)
        hoeffding = math.exp(-num * (rel(low, risk) + rel(1 - low, 1 - risk)))
        return min(hoeffding, math.e * binom.cdf(math.ceil(num * mean), num, risk)) - (1 - level)

    return brentq(tail, mean + 1e-12, 1 - 1e-12) if tail(1 - 1e-12) < 0 else 1.0


def rel(a, b):
    return a * math.log(a / b) if a else 0.0


@pytest.mark.parametrize(("mean", "num"), [(0.0, 10), (0.0, 50), (0.02, 50), (0.1, 40), (0.31, 100), (0.9, 20)])
@pytest.mark.parametrize("level", [0.8, 0.9, 0.99])
def test_the_bound_is_where_both_tails_say_so(mean, num, level):
    """The binomial tail is a step function of the mean and continuous in the risk, so the root is one."""
    assert hoeffding_bentkus(mean, num, confidence_level=level) == pytest.approx(bound(mean, num, level), abs=1e-6)


@pytest.mark.parametrize(("mean", "num", "risk"), [(0.0, 30, 0.1), (0.04, 25, 0.2), (0.5, 7, 0.4), (0.123, 400, 0.2)])
def test_the_tail_is_the_lesser_of_hoeffding_and_bentkus(mean, num, risk):
    low = min(mean, risk)
    hoeffding = math.exp(-num * (rel(low, risk) + rel(1 - low, 1 - risk)))
    bentkus = math.e * binom.cdf(math.ceil(num * mean - 1e-9), num, risk)
    assert tail_probability(mean, num, risk) == pytest.approx(min(1, hoeffding, bentkus), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_with_a_probability_is_the_highest_whose_bound_is_low_enough(seed):
    confidence, patient = drawn(seed, num_patients=60)
    curve = miss_curve(confidence, patient)
    allowed = []
    for threshold in candidates_for_threshold(confidence):
        mean = float(sum(losses(confidence, patient, threshold)) / 60)
        if bound(mean, 60, 0.9) <= 0.25:
            allowed.append(threshold)
    assert allowed, "the drawn patients allow some threshold"
    assert controlled_threshold(curve, 0.25, confidence_level=0.9) == max(allowed)


def test_a_promise_with_a_probability_asks_for_more_than_one_in_expectation():
    confidence, patient = drawn(3, num_patients=60)
    curve = miss_curve(confidence, patient)
    weak = controlled_threshold(curve, 0.3)
    strong, stronger = (controlled_threshold(curve, 0.3, confidence_level=level) for level in (0.8, 0.95))
    assert weak > strong >= stronger


# How many patients it takes


@pytest.mark.parametrize("level", [None, 0.9])
@pytest.mark.parametrize(("residual", "target"), [(0.0, 0.1), (0.0, 0.05), (0.02, 0.1), (0.05, 0.1), (0.2, 0.25)])
def test_the_number_of_patients_is_the_least_that_suffices(residual, target, level):
    def suffices(num):
        if level is None:
            total = Fraction(str(residual)) * num
            return (total + 1) / (num + 1) <= Fraction(str(target))
        return bound(residual, num, level) <= target

    needed = patients_needed(residual, target, confidence_level=level)
    assert suffices(needed)
    assert not any(suffices(num) for num in range(1, needed))


def test_without_misses_it_takes_one_less_than_the_inverse():
    assert [patients_needed(0.0, target) for target in (0.5, 0.2, 0.1, 0.05, 0.01)] == [1, 4, 9, 19, 99]


@pytest.mark.parametrize("level", [None, 0.9])
@pytest.mark.parametrize("residual", [0.1, 0.3, 1.0])
def test_no_number_of_patients_mends_lesions_that_are_in_no_candidate(residual, level):
    assert patients_needed(residual, 0.1, confidence_level=level) is None


def test_a_residual_close_to_the_target_takes_very_many_patients_and_no_time():
    assert patients_needed(0.0999, 0.1) == 9000
    assert patients_needed(0.0999, 0.1, confidence_level=0.9) > 1_000_000


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_targets_and_levels_lie_between_0_and_1(value):
    curve = miss_curve([0.5], [0])
    with pytest.raises(ValueError, match=r"target must be in \(0, 1\)"):
        controlled_threshold(curve, value)
    with pytest.raises(ValueError, match=r"confidence_level must be in \(0, 1\)"):
        controlled_threshold(curve, 0.1, confidence_level=value)
    with pytest.raises(ValueError, match="target"):
        patients_needed(0.0, value)


# The promise itself. The full table is made by tests/benchmarks/risk_simulation.py.

#: Patients of whom a calibration set is drawn; the others are those that come later.
NUM_PATIENTS, NUM_SPLITS = 1000, 1000


def population(kind):
    """Lesions of many patients: alike, a few with lesions that are hard to find, or one lesion each."""
    random = np.random.default_rng(7)
    number = np.ones(NUM_PATIENTS, int) if kind == "one lesion" else random.geometric(0.25, NUM_PATIENTS)
    patient = np.repeat(np.arange(NUM_PATIENTS), number)
    effect = np.zeros(NUM_PATIENTS)
    if kind == "hard patients":
        effect = np.where(random.random(NUM_PATIENTS) < 0.15, -3.0, 0.5)
    confidence = 1 / (1 + np.exp(-random.normal(1 + effect[patient], 1.2)))
    confidence[random.random(len(patient)) < 0.02] = NEVER
    return confidence, patient


def miss_rates_of_others(kind, num_calibrated, *, target, level=None):
    """Mean loss of all others at the threshold of each random calibration set; without one every candidate counts."""
    confidence, patient = population(kind)
    count = np.bincount(patient, minlength=NUM_PATIENTS)
    random, found = np.random.default_rng(0), []
    for _ in range(NUM_SPLITS):
        is_calibrated = np.zeros(NUM_PATIENTS, bool)
        is_calibrated[random.permutation(NUM_PATIENTS)[:num_calibrated]] = True
        own = is_calibrated[patient]
        threshold = controlled_threshold(miss_curve(confidence[own], patient[own]), target, confidence_level=level)
        missed = np.bincount(patient, confidence < (0.0 if threshold is None else threshold), minlength=NUM_PATIENTS)
        found.append((missed / count)[~is_calibrated].mean())
    return np.array(found)


KINDS = ["alike", "hard patients", "one lesion"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_calibrated", [20, 60])
def test_in_expectation_others_miss_no_more_than_was_promised(kind, num_calibrated):
    """Over 1,000 random splits, up to 3 standard errors of their mean."""
    rates = miss_rates_of_others(kind, num_calibrated, target=0.1)
    assert rates.mean() <= 0.1 + 3 * rates.std() / math.sqrt(NUM_SPLITS)
    assert rates.mean() > 0.03, "and the promise is no empty one"


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_probability_few_splits_miss_more_than_was_promised(kind):
    """Up to 3 standard errors of a share of 1,000 splits."""
    rates = miss_rates_of_others(kind, 80, target=0.1, level=0.9)
    assert (rates > 0.1).mean() <= 0.1 + 3 * math.sqrt(0.09 / NUM_SPLITS)
    assert rates.mean() > 0.02, "and the promise is no empty one"
