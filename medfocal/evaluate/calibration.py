"""Whether a candidate of confidence .8 finds a lesion four times out of five.

A model trained with focal loss is known to be less confident than it is right (Charoenphakdee et al. 2021), so its bins
are expected above the diagonal. Ranking, and with it the FROC, is not touched by that.

References:
    F. Kueppers, J. Kronenberger, A. Shantia, A. Haselhoff, "Multivariate confidence calibration for object detection",
    CVPR Workshops 2020, eq. 4 (D-ECE), here over confidence alone.
    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950) 1-3.
    N. Charoenphakdee, J. Vongkulbhisal, N. Chairatanakit, M. Sugiyama, "On focal loss for class-posterior probability
    estimation: a theoretical perspective", CVPR 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.evaluate.bootstrap import bootstrap_rate, replicate
from medfocal.evaluate.intervals import Rate, proportion
from medfocal.evaluate.pool import Pool
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.tally import Floats, in_parts, ratio, total
from medfocal.evaluate.undefined import Undefined

#: Bins of confidence of equal width: [0, .1), [.1, .2), ..., [.9, 1].
NUM_BINS = 10
#: Candidates below which nothing is said of calibration.
MIN_CANDIDATES = 10


def brier(pool: Pool, weights: ArrayLike) -> Floats:
    """Compute the mean of (confidence - outcome)^2 over candidates, the outcome being 1 for a true one and 0 else.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).

    Returns:
        Values in [0, 1], 0 best, (weightings,). NaN where no candidate has weight.
    """
    weights = np.asarray(weights, np.float64)
    squares = (pool.candidate_confidence - pool.candidate_is_true) ** 2
    return ratio(total(pool.candidate_patient, weights, squares), total(pool.candidate_patient, weights))


def d_ece(pool: Pool, weights: ArrayLike) -> Floats:
    """Compute the detection expected calibration error: sum over bins of |precision - mean confidence| n_bin / n.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).

    Returns:
        Values in [0, 1], 0 best, (weightings,). NaN where no candidate has weight.
    """
    gaps = pool.candidate_is_true - pool.candidate_confidence
    places = bin_of(pool.candidate_confidence)

    def statistic(weights: Floats) -> Floats:
        of_bins = [places == place for place in range(NUM_BINS)]
        by_bin = [np.abs(total(pool.candidate_patient[own], weights, gaps[own])) for own in of_bins]
        return ratio(np.sum(by_bin, axis=0), total(pool.candidate_patient, weights))

    return in_parts(statistic, weights, num_levels=NUM_BINS)


def bin_of(confidence: Floats) -> NDArray[np.int64]:
    """Give the bin of each confidence, 0 to 9; a border belongs to the bin above it, and 1 to the last."""
    borders = np.arange(1, NUM_BINS) / NUM_BINS
    return np.searchsorted(borders, confidence, side="right").astype(np.int64)


@dataclass(frozen=True)
class Bin:
    """Candidates of about one confidence.

    Attributes:
        low: Least confidence.
        high: Confidence from which the next bin begins; of the last bin it belongs to it.
        num_candidates: Candidates, true and false.
        num_patients: Their patients.
        mean_confidence: Their mean confidence; NaN without any.
        lesion_precision: The share of them that is true.
    """

    low: float
    high: float
    num_candidates: int
    num_patients: int
    mean_confidence: float
    lesion_precision: Rate


@dataclass(frozen=True)
class Calibration:
    """Confidence beside precision.

    Attributes:
        bins: By rising confidence, the empty ones too.
        brier: Mean squared difference of confidence and outcome.
        d_ece: Detection expected calibration error. By chance above 0 even if calibrated, the more so the fewer
            candidates.
        num_candidates: Candidates in all bins.
    """

    bins: list[Bin]
    brier: Rate
    d_ece: Rate
    num_candidates: int


def measure_calibration(pool: Pool, protocol: Protocol) -> tuple[Calibration | None, list[Undefined]]:
    """Hold the confidence of candidates against the share that finds a lesion.

    All candidates count, those below the threshold too; doubles and ignored ones do not. Intervals: of a bin's
    precision as of any proportion by patient; of Brier's score BCa over resamples of patients; of D-ECE the basic
    bootstrap interval [2 d - upper quantile, 2 d - lower quantile], which takes off the error that resampling adds,
    cut at 0 and reaching up to d at least.

    Args:
        pool: The outcomes of all cases.
        protocol: The rules, with level, interval, resamples and seed.

    Returns:
        The calibration, and nothing undefined; or None with the reason, where candidates are fewer than
        `MIN_CANDIDATES`, or all of confidence 1 as those of masks are.
    """
    if why := _why_undefined(pool):
        return None, [Undefined("calibration", "all candidates", why)]
    scores = replicate(
        lambda weights: np.column_stack([brier(pool, weights), d_ece(pool, weights)]),
        pool.num_patients,
        num_resamples=protocol.num_resamples,
        seed=protocol.seed,
    )
    places = bin_of(pool.candidate_confidence)
    bins = [_bin(pool, places == place, place, protocol) for place in range(NUM_BINS)]
    of_brier = bootstrap_rate(scores, level=protocol.level, figure=0)
    of_d_ece = _without_added_error(bootstrap_rate(scores, level=protocol.level, kind="percentile", figure=1))
    return Calibration(bins, of_brier, of_d_ece, len(places)), []


def _why_undefined(pool: Pool) -> str:
    num_candidates = len(pool.candidate_confidence)
    if num_candidates < MIN_CANDIDATES:
        return f"there are {num_candidates} candidates, fewer than {MIN_CANDIDATES}"
    if np.all(pool.candidate_confidence == 1):
        return "all candidates have the confidence 1, as those of masks do"
    return ""


def _bin(pool: Pool, own: NDArray[np.bool_], place: int, protocol: Protocol) -> Bin:
    patients = pool.candidate_patient[own]
    num_true = np.bincount(patients, pool.candidate_is_true[own], minlength=pool.num_patients)
    precision = proportion(
        num_true,
        np.bincount(patients, minlength=pool.num_patients),
        level=protocol.level,
        method=protocol.interval,
    )
    mean = float(pool.candidate_confidence[own].mean()) if own.any() else math.nan
    ends = (place / NUM_BINS, (place + 1) / NUM_BINS)
    return Bin(*ends, int(own.sum()), len(np.unique(patients)), mean, precision)


def _without_added_error(rate: Rate) -> Rate:
    """Turn the percentile interval into the basic one."""
    low, high = max(0.0, 2 * rate.value - rate.high), max(rate.value, 2 * rate.value - rate.low)
    if math.isnan(rate.low):
        low = high = math.nan
    return replace(rate, low=low, high=high, method=rate.method.replace("percentile bootstrap", "basic bootstrap"))
