import math

import numpy as np
import pytest
from hand_made_pools import make_pool, random_pool

from medfocal.evaluate.calibration import NUM_BINS, bin_of, brier, d_ece, measure_calibration
from medfocal.evaluate.intervals import proportion
from medfocal.evaluate.protocols import Protocol

PROTOCOL = Protocol(num_resamples=200)


def of_candidates(rows):
    """A pool of (patient, confidence, true), a case for each patient; true ones find a lesion each."""
    lesions = [(patient, confidence, 5) for patient, confidence, true in rows if true]
    return make_pool(range(max(row[0] for row in rows) + 1), lesions, rows)


def calibrated(seed, num_patients, per_patient=20):
    """Candidates that are true as often as they say."""
    rng = np.random.default_rng(seed)
    confidence = rng.random((num_patients, per_patient))
    return of_candidates(
        [(patient, x, rng.random() < x) for patient in range(num_patients) for x in confidence[patient].tolist()]
    )


def value(figure, pool):
    return float(figure(pool, np.ones((1, pool.num_patients)))[0])


FOUR = of_candidates([(0, 0.95, True), (0, 0.92, False), (1, 0.3, False), (1, 0.36, True)])


def test_brier_is_worked_out_by_hand():
    assert value(brier, FOUR) == pytest.approx((0.05**2 + 0.92**2 + 0.3**2 + 0.64**2) / 4)


def test_d_ece_is_worked_out_by_hand():
    """Bin .9 to 1: precision 1/2, mean .935, gap .435. Bin .3 to .4: precision 1/2, mean .33, gap .17. Two each."""
    assert value(d_ece, FOUR) == pytest.approx((0.435 + 0.17) / 2)


def test_gaps_of_two_bins_do_not_cancel():
    pool = of_candidates([(0, 0.15, True), (0, 0.85, False)])
    assert value(d_ece, pool) == pytest.approx(0.85)


def test_a_border_belongs_to_the_bin_above_and_1_to_the_last():
    edges = np.array([0.0, 0.05, 0.1, 0.3, 0.6, 0.7, 0.9, 0.99999, 1.0])
    assert bin_of(edges).tolist() == [0, 0, 1, 3, 6, 7, 9, 9, 9]


@pytest.mark.parametrize("seed", range(4))
def test_weighted_figures_are_those_of_copied_candidates(seed):
    pool = random_pool(seed)
    weights = np.random.default_rng(seed).integers(0, 3, (3, pool.num_patients))
    for weight, of_brier, of_d_ece in zip(weights, brier(pool, weights), d_ece(pool, weights), strict=True):
        times = weight[pool.candidate_patient]
        confidence = np.repeat(pool.candidate_confidence, times)
        true = np.repeat(pool.candidate_is_true, times)
        gaps = 0.0
        for low in range(10):
            own = (confidence >= low / 10) & ((confidence < (low + 1) / 10) | (low == 9))
            gaps += own.mean() * abs(true[own].mean() - confidence[own].mean()) if own.any() else 0
        assert of_brier == pytest.approx(np.mean((confidence - true) ** 2), rel=1e-12)
        assert of_d_ece == pytest.approx(gaps, rel=1e-9)


def test_bins_hold_every_candidate_once_with_their_patients_and_precision():
    pool = random_pool(2, num_patients=20)
    found, undefined = measure_calibration(pool, PROTOCOL)
    assert undefined == []
    assert len(found.bins) == NUM_BINS
    assert sum(each.num_candidates for each in found.bins) == found.num_candidates == len(pool.candidate_case)
    assert [(each.low, each.high) for each in found.bins] == [(n / 10, (n + 1) / 10) for n in range(10)]
    own = (pool.candidate_confidence >= 0.6) & (pool.candidate_confidence < 0.7)
    sixth = found.bins[6]
    assert sixth.num_candidates == own.sum()
    assert sixth.num_patients == len(set(pool.candidate_patient[own]))
    assert sixth.mean_confidence == pytest.approx(pool.candidate_confidence[own].mean())
    totals = np.bincount(pool.candidate_patient[own], minlength=20)
    num_true = np.bincount(pool.candidate_patient[own & pool.candidate_is_true], minlength=20)
    assert sixth.lesion_precision == proportion(num_true, totals, level=0.95)


def test_an_empty_bin_has_no_mean_and_no_precision():
    found, _ = measure_calibration(of_candidates([(0, 0.55, True)] * 10), PROTOCOL)
    assert [each.num_candidates for each in found.bins] == [0] * 5 + [10] + [0] * 4
    assert math.isnan(found.bins[0].mean_confidence)
    assert math.isnan(found.bins[0].lesion_precision.value)
    assert found.bins[0].num_patients == 0


def test_interval_of_d_ece_reaches_towards_0_where_candidates_are_calibrated():
    """Resampling adds error to D-ECE: its percentiles lie above the value here, and so above the truth."""
    found, _ = measure_calibration(calibrated(0, 30), PROTOCOL)
    assert found.d_ece.low <= 0.03 < found.d_ece.value <= found.d_ece.high
    assert "basic bootstrap" in found.d_ece.method


def test_interval_of_d_ece_reaches_the_value_where_chance_alone_makes_it_larger():
    """Of 20 patients' candidates of b / 10 + .06, 2 b + 1 are true: .01 off in each bin, and resamples far more."""
    rows = [
        (patient, place / 10 + 0.06, (7 * patient + 3 * place) % 20 < 2 * place + 1)
        for patient in range(20)
        for place in range(10)
    ]
    found, _ = measure_calibration(of_candidates(rows), PROTOCOL)
    assert found.d_ece.value == pytest.approx(0.01)
    assert (found.d_ece.low, found.d_ece.high) == (0, found.d_ece.value)


@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_over_and_under_confidence_both_show_in_d_ece(shift):
    """All confidences are .3 off; the interval holds that."""
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.3, 0.7, 400).tolist()
    rows = [(number // 10, share + shift, rng.random() < share) for number, share in enumerate(shares)]
    found, _ = measure_calibration(of_candidates(rows), PROTOCOL)
    assert found.d_ece.low < 0.3 < found.d_ece.high
    assert found.brier.low < found.brier.value < found.brier.high


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        (of_candidates([(0, 0.5, True)] * 9), "there are 9 candidates, fewer than 10"),
        (of_candidates([(0, 1.0, True)] * 9 + [(1, 1.0, False)]), "those of masks"),
        (make_pool([0]), "there are 0 candidates, fewer than 10"),
    ],
)
def test_few_candidates_and_masks_have_no_calibration_but_a_reason(pool, why):
    found, (line,) = measure_calibration(pool, PROTOCOL)
    assert found is None
    assert (line.what, line.where) == ("calibration", "all candidates")
    assert why in line.why


def test_without_resamples_values_stay_and_intervals_are_nan():
    found, _ = measure_calibration(calibrated(0, 5), Protocol(num_resamples=0))
    for rate in (found.brier, found.d_ece):
        assert 0 < rate.value < 1
        assert math.isnan(rate.low)
        assert math.isnan(rate.high)


def test_interval_of_the_protocol_is_that_of_the_bins():
    pool = calibrated(3, 12)
    exact, _ = measure_calibration(pool, Protocol(num_resamples=0))
    shorter, _ = measure_calibration(pool, Protocol(num_resamples=0, interval="wilson"))
    assert "Wilson" in shorter.bins[4].lesion_precision.method
    assert "Clopper-Pearson" in exact.bins[4].lesion_precision.method
