import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from medfocal.evaluate import bootstrap
from medfocal.evaluate.bootstrap import (
    Replicates,
    bootstrap_interval,
    bootstrap_rate,
    draw_weights,
    replicate,
    warn_of_few_patients,
)


def mean_of(values):
    """The mean of one value a patient, as a function of weights."""
    values = np.asarray(values, float)
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_each_resample_draws_as_many_patients_as_there_are():
    weights = np.concatenate(list(draw_weights(7, 500, seed=1)))
    assert weights.shape == (500, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights >= 0).all()


def test_patients_are_drawn_equally_often_and_independently():
    """A weight has mean 1 and variance 1 - 1/5, two weights covariance -1/5 (multinomial)."""
    weights = np.concatenate(list(draw_weights(5, 40_000, seed=2)))
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.02)  # standard error .0045
    np.testing.assert_allclose(np.cov(weights.T), np.eye(5) - 1 / 5, atol=0.03)  # standard error about .007


def test_resamples_follow_the_seed():
    first, again, other = (np.concatenate(list(draw_weights(9, 20, seed=seed))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    at_once = np.concatenate(list(draw_weights(9, 20, seed=3)))
    monkeypatch.setattr(bootstrap, "_BLOCK_SIZE", 30)
    blocks = list(draw_weights(9, 20, seed=3))
    assert [len(block) for block in blocks] == [3] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks), at_once)
    few = replicate(mean_of(range(9)), 9, num_resamples=20, seed=3)
    assert few.resampled.shape == (20, 1)
    np.testing.assert_allclose(few.left_out[:, 0], [(36 - n) / 8 for n in range(9)])


def test_replicates_are_those_of_copied_patients():
    values = np.array([2.0, 3.0, 7.0, 11.0])
    replicates = replicate(mean_of(values), 4, num_resamples=30, seed=5)
    (weights,) = draw_weights(4, 30, seed=5)
    copied = [np.repeat(values, row.astype(int)).mean() for row in weights]
    np.testing.assert_allclose(replicates.resampled[:, 0], copied)
    np.testing.assert_allclose(replicates.left_out[:, 0], [7, 20 / 3, 16 / 3, 4])
    np.testing.assert_allclose(replicates.value, [5.75])
    assert replicates.num_patients == 4


def test_several_figures_come_side_by_side():
    values = np.array([[2.0, 1.0], [3.0, 5.0], [7.0, 0.0]])
    replicates = replicate(lambda weights: weights @ values / 3, 3, num_resamples=8, seed=0)
    assert replicates.resampled.shape == (8, 2)
    low, high = bootstrap_interval(replicates, level=0.9)
    assert low.shape == high.shape == (2,)
    for figure in range(2):
        rate = bootstrap_rate(replicates, level=0.9, figure=figure)
        assert (rate.value, rate.low, rate.high) == (replicates.value[figure], low[figure], high[figure])


@pytest.mark.parametrize(("kind", "method"), [("percentile", "percentile"), ("bca", "BCa")])
def test_intervals_are_those_of_scipy(kind, method):
    """Skewed values; 20,000 resamples leave about .004 of the standard deviation to chance."""
    values = np.random.default_rng(6).exponential(2, 25)
    low, high = bootstrap_interval(replicate(mean_of(values), 25, num_resamples=20_000, seed=7), level=0.95, kind=kind)
    expected = scipy_bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(8)
    ).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], expected, atol=0.05 * values.std() / 5 * 2)


def test_bca_and_percentile_differ_by_more_than_that_tolerance():
    values = np.random.default_rng(6).exponential(2, 25)
    replicates = replicate(mean_of(values), 25, num_resamples=20_000, seed=7)
    ends = [bootstrap_interval(replicates, level=0.95, kind=kind)[1][0] for kind in ("bca", "percentile")]
    assert ends[0] - ends[1] > 0.1 * values.std() / 5 * 2


def test_percentile_takes_the_tails_that_the_level_leaves():
    replicates = Replicates(np.array([50.0]), np.arange(101.0)[:, None], np.empty((0, 1)), 30)
    low, high = bootstrap_interval(replicates, level=0.9, kind="percentile")
    assert (low[0], high[0]) == pytest.approx((5, 95))


def test_bca_without_bias_and_skew_is_the_percentile_interval():
    replicates = Replicates(np.array([50.0]), np.arange(101.0)[:, None], np.array([[49.0], [51.0]]), 2)
    low, high = bootstrap_interval(replicates, level=0.9, kind="bca")
    assert (low[0], high[0]) == pytest.approx((5, 95))


def test_ties_with_the_value_count_half():
    """Half of the replicates equal the value and a quarter lie on each side: no bias."""
    resampled = np.repeat([0.0, 1.0, 2.0], [25, 50, 25])[:, None]
    replicates = Replicates(np.array([1.0]), resampled, np.array([[0.0], [2.0]]), 2)
    low, high = bootstrap_interval(replicates, level=0.4, kind="bca")
    assert (low[0], high[0]) == (1, 1)


@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_equal_replicates_give_an_interval_without_width(kind):
    replicates = replicate(mean_of([4.0, 4.0, 4.0]), 3, num_resamples=50, seed=0)
    low, high = bootstrap_interval(replicates, level=0.95, kind=kind)
    assert (low[0], high[0]) == (4, 4)


@pytest.mark.parametrize("value", [-1.0, 101.0])
@pytest.mark.parametrize("outlier", [0.0, 90.0, -90.0])
def test_a_value_beyond_all_replicates_gives_their_outermost_and_no_nan(value, outlier):
    left_out = np.array([[0.0]] * 9 + [[outlier]])
    replicates = Replicates(np.array([value]), np.arange(101.0)[:, None], left_out, 10)
    low, high = bootstrap_interval(replicates, level=0.95)
    assert 0 <= low[0] <= high[0] <= 100


def test_an_extreme_bias_and_skew_do_not_turn_the_interval_round():
    """(bias 4.6 + quantile 3.3) * acceleration 1/6 exceeds 1: the upper end is the outermost replicate."""
    left_out = np.array([[0.0]] * 9999 + [[-1.0]])
    replicates = Replicates(np.array([200_001.0]), np.arange(200_001.0)[:, None], left_out, 10_000)
    low, high = bootstrap_interval(replicates, level=0.999)
    assert low[0] <= high[0] == 200_000


def test_undefined_replicates_are_left_out_and_counted():
    """Sensitivity with lesions in one of three patients: undefined where that one isn't drawn."""
    found, lesions = np.array([2.0, 0, 0]), np.array([3.0, 0, 0])

    def sensitivity(weights):
        return np.divide(weights @ found, weights @ lesions, out=np.full(len(weights), np.nan), where=weights[:, 0] > 0)

    replicates = replicate(sensitivity, 3, num_resamples=400, seed=9)
    num_undefined = int(np.isnan(replicates.resampled).sum())
    assert 80 < num_undefined < 160  # (2/3)^3 of 400 = 119
    rate = bootstrap_rate(replicates, level=0.95)
    assert (rate.value, rate.low, rate.high) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert rate.method == f"BCa bootstrap of 400 resamples of patients, {num_undefined} of them without a value"


def test_a_figure_has_no_numerator_denominator_and_design_effect():
    rate = bootstrap_rate(replicate(mean_of(range(5)), 5, num_resamples=100, seed=0), level=0.95, kind="percentile")
    assert np.isnan([rate.numerator, rate.denominator, rate.deff]).all()
    assert (rate.num_patients, rate.level) == (5, 0.95)
    assert rate.method == "percentile bootstrap of 100 resamples of patients"


def test_an_undefined_figure_gives_its_reason():
    replicates = replicate(lambda weights: np.full(len(weights), np.nan), 4, num_resamples=10, seed=0)
    rate = bootstrap_rate(replicates, level=0.95, why_undefined="there is no lesion")
    assert np.isnan([rate.value, rate.low, rate.high]).all()
    assert rate.method == "undefined: there is no lesion"


def test_no_resamples_leave_the_value_without_interval():
    rate = bootstrap_rate(replicate(mean_of([1.0, 2.0]), 2, num_resamples=0, seed=0), level=0.95)
    assert rate.value == 1.5
    assert np.isnan([rate.low, rate.high]).all()
    assert rate.method == "no interval: no resamples were asked for"


def test_no_patient_is_undefined():
    replicates = replicate(lambda weights: np.full(len(weights), np.nan), 0, num_resamples=10, seed=0)
    assert replicates.resampled.shape == (0, 1)
    assert math.isnan(bootstrap_rate(replicates, level=0.95).value)


def test_all_resamples_of_three_patients_have_their_multinomial_chances():
    """The 27 draws of three patients, each as likely: 3, 0, 0 has 1/27 and 1, 1, 1 has 6/27."""
    weights = np.concatenate(list(draw_weights(3, 20_000, seed=11)))
    draws = [tuple(np.bincount(draw, minlength=3)) for draw in itertools.product(range(3), repeat=3)]
    for row in set(draws):
        share = (weights == row).all(axis=1).mean()
        assert share == pytest.approx(draws.count(row) / 27, abs=0.012)  # four standard errors


def test_few_patients_are_warned_of():
    assert warn_of_few_patients(25) is None
    assert warn_of_few_patients(24).startswith("There are 24 patients: intervals")
    assert warn_of_few_patients(1).startswith("There is 1 patient:")
