"""Do the intervals hold the truth as often as they say? Small simulations; the full one is a benchmark.

Populations are beta-binomial with geometric numbers of lesions. The standard error of a coverage of .95 over 1,500 data
sets is .006. The seeds are the numbers of the populations, and nothing was chosen by their outcome.
"""

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool
from scipy.special import ndtr, ndtri

from medfocal.evaluate.froc import froc
from medfocal.evaluate.intervals import clopper_pearson, garwood, proportion, rate, wilson

#: Patients, mean lesions, sensitivity, correlation.
POPULATIONS = (
    (15, 2.5, 0.70, 0.0),
    (15, 2.5, 0.90, 0.2),
    (15, 6.0, 0.90, 0.3),
    (30, 2.5, 0.70, 0.3),
    (30, 2.5, 0.97, 0.1),
    (30, 6.0, 0.90, 0.3),
    (60, 2.5, 0.97, 0.3),
    (60, 6.0, 0.97, 0.3),
    (100, 2.5, 0.90, 0.1),
    (100, 6.0, 0.70, 0.2),
)
CORRELATED = tuple(population for population in POPULATIONS if population[3] >= 0.2)


def draw(population, num_sets):
    num_patients, mean_lesions, sensitivity, correlation = population
    random = np.random.default_rng(POPULATIONS.index(population))
    for _ in range(num_sets):
        lesions = random.geometric(1 / mean_lesions, num_patients)
        found_with = np.full(num_patients, sensitivity)
        if correlation:
            total = (1 - correlation) / correlation
            found_with = random.beta(sensitivity * total, (1 - sensitivity) * total, num_patients)
        yield random.binomial(lesions, found_with), lesions


def coverage(population, interval, *, num_sets=1500):
    """Share of data sets whose interval holds the sensitivity that they were drawn with."""
    ends = np.array([interval(found, lesions) for found, lesions in draw(population, num_sets)])
    return ((ends[:, 0] <= population[2]) & (population[2] <= ends[:, 1])).mean()


def by_patient(found, lesions):
    estimate = proportion(found, lesions, level=0.95)
    return estimate.low, estimate.high


@pytest.mark.parametrize("population", POPULATIONS)
def test_default_interval_of_a_sensitivity_covers_as_often_as_it_says(population):
    assert 0.93 <= coverage(population, by_patient) <= 0.99


@pytest.mark.parametrize("population", CORRELATED)
@pytest.mark.parametrize("of_independent", [clopper_pearson, wilson])
def test_the_same_measure_finds_out_that_pooled_lesions_do_not_cover(population, of_independent):
    def pooled(found, lesions):
        return of_independent(float(found.sum()), float(lesions.sum()), level=0.95)

    assert coverage(population, pooled, num_sets=800) < 0.93


def test_default_interval_covers_where_the_design_effect_of_the_data_alone_does_not():
    """60 patients, 6 lesions, sensitivity .97, correlation .3: hardly any missed lesion tells of the correlation."""

    def of_the_data(found, lesions):
        p, num_patients = found.sum() / lesions.sum(), len(lesions)
        between = num_patients / (num_patients - 1) * ((found - p * lesions) ** 2).sum()
        deff = max(1.0, between / max(lesions.sum() * p * (1 - p), 1e-9)) if 0 < p < 1 else 1.0
        return clopper_pearson(found.sum() / deff, lesions.sum() / deff, level=0.95)

    population = (60, 6.0, 0.97, 0.3)
    assert coverage(population, of_the_data) < 0.925
    assert coverage(population, by_patient) >= 0.93


def test_interval_of_false_candidates_covers_where_patients_differ():
    """30 patients, gamma-Poisson false candidates of mean 2 and variance 6: pooled counts cover too seldom."""
    random = np.random.default_rng(8)
    held = pooled = 0
    for _ in range(1500):
        false = random.poisson(random.gamma(1, 2, 30))
        estimate = rate(false, np.ones(30), level=0.95)
        held += estimate.low <= 2 <= estimate.high
        low, high = garwood(false.sum(), level=0.95)
        pooled += low <= 60 <= high
    assert 0.93 <= held / 1500 <= 0.99
    assert pooled / 1500 < 0.8


def test_points_of_the_froc_cover_near_a_sensitivity_of_1_where_quantiles_of_resamples_do_not():
    """Normal scores of lesions around 2.2, false candidates of density 2 (1 - t), 4 a case: truth .986 at 1 a case.

    Quantiles of resamples shrink to 1 where no lesion is missed, which happens in over a fifth of these data sets.
    """
    random = np.random.default_rng(12)
    truth = float(ndtr(2.2 - ndtri(1 - np.sqrt(1 / 4))))
    held = all_found = 0
    for _ in range(150):
        lesions = [(case, *draw_lesion) for case in range(30) for draw_lesion in draw_scores(random)]
        candidates = [(case, confidence, True) for case, confidence, _ in lesions if confidence > NEVER]
        candidates += [(case, random.beta(1, 2), False) for case in range(30) for _ in range(random.poisson(4))]
        result = froc(make_pool(range(30), lesions, candidates), (1.0,), level=0.95, num_resamples=100, seed=0)
        held += result.points[0].low <= truth <= result.points[0].high
        all_found += result.points[0].lesion_sensitivity == 1
    assert all_found / 150 > 0.2
    assert held / 150 >= 0.93


def draw_scores(random):
    return [(float(ndtr(2.2 + random.standard_normal())), 5.0) for _ in range(random.geometric(0.4))]
