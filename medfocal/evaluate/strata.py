"""Sensitivity by the size of lesions, and what a sensitivity can and cannot claim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medfocal.evaluate.intervals import Rate, proportion, rate
from medfocal.evaluate.pool import Pool
from medfocal.evaluate.protocols import Interval

#: What sizes are compared: the pool's diameter, whichever the protocol chose, or the volume.
Size = Literal["diameter_mm", "volume_mm3"]

#: Sensitivities that are worth claiming, rising.
CLAIMS = (0.9, 0.95)


@dataclass(frozen=True)
class Stratum:
    """Lesions, and false candidates, of one range of sizes.

    Attributes:
        measure: Name of the size, "longest_diameter_mm" or the like.
        low: The smallest size in it.
        high: The size from which the next stratum starts; infinite in the last.
        num_lesions: Lesions in it.
        num_patients: Patients with such lesions.
        num_detected_lesions: Those found at the threshold.
        lesion_sensitivity: Found lesions over lesions; NaN where there are too few of them.
        num_false_candidates: False candidates whose own size lies in it.
        false_positives_per_case: These over all cases.
    """

    measure: str
    low: float
    high: float
    num_lesions: int
    num_patients: int
    num_detected_lesions: int
    lesion_sensitivity: Rate
    num_false_candidates: int
    false_positives_per_case: Rate


def by_size(
    pool: Pool,
    size: Size,
    edges: Sequence[float],
    *,
    measure: str,
    threshold: float,
    level: float,
    interval: Interval = "clopper_pearson",
    min_lesions: int = 10,
) -> list[Stratum]:
    """Divide lesions and false candidates by size.

    A false candidate has no lesion, so it is counted where its own size lies, and in one stratum only. Its rate is per
    case of the whole set: the rates of all strata add up to the false candidates per case.

    Args:
        pool: Lesions, candidates and cases.
        size: "diameter_mm" or "volume_mm3".
        edges: Borders between strata, positive and rising. A stratum holds its lower border and not its upper one.
        measure: What to call the size.
        threshold: Confidence from which candidates count.
        level: Confidence level of the intervals.
        interval: Interval of independent lesions.
        min_lesions: A stratum with fewer lesions gives no sensitivity.

    Returns:
        One stratum more than there are edges, the smallest first, those without lesions too.
    """
    lesion_size: NDArray[np.float64] = getattr(pool, f"lesion_{size}")
    candidate_size: NDArray[np.float64] = getattr(pool, f"candidate_{size}")
    detected = pool.lesion_confidence >= threshold
    false = ~pool.candidate_is_true & (pool.candidate_confidence >= threshold)
    num_cases = np.bincount(pool.case_patient, minlength=pool.num_patients)
    strata = []
    for low, high in itertools.pairwise((0.0, *edges, math.inf)):
        lesions = (lesion_size >= low) & (lesion_size < high)
        candidates = false & (candidate_size >= low) & (candidate_size < high)
        totals = np.bincount(pool.lesion_patient[lesions], minlength=pool.num_patients)
        found = np.bincount(pool.lesion_patient[lesions & detected], minlength=pool.num_patients)
        num_false = np.bincount(pool.candidate_patient[candidates], minlength=pool.num_patients)
        stratum = Stratum(
            measure=measure,
            low=low,
            high=high,
            num_lesions=int(totals.sum()),
            num_patients=int((totals > 0).sum()),
            num_detected_lesions=int(found.sum()),
            lesion_sensitivity=_sensitivity(found, totals, level, interval, min_lesions),
            num_false_candidates=int(candidates.sum()),
            false_positives_per_case=rate(num_false, num_cases, level=level),
        )
        strata.append(stratum)
    return strata


def claim(sensitivity: Rate) -> str:
    """Say in one sentence what a lesion sensitivity can and cannot claim.

    Where no lesion was missed, the sentence names the lowest of `CLAIMS` that is not reached, and the number of lesions
    of different patients without a miss that would reach it: n with ((1 - level) / 2) ** (1 / n) above the claim.

    Args:
        sensitivity: Found lesions over lesions, with its interval.

    Returns:
        The sentence. Without an estimate it says so.
    """
    found, lesions = sensitivity.numerator, sensitivity.denominator
    if not lesions:
        return "There is no lesion; nothing can be said of the sensitivity."
    counted = f"of {lesions:.0f} lesion{'' if lesions == 1 else 's'}"
    if math.isnan(sensitivity.value):
        return f"There are too few lesions ({lesions:.0f}) to say anything of the sensitivity."
    if found == lesions:
        supported = math.floor(100 * sensitivity.low)  # rounded down: the claim must hold
        above = f"No lesion of {lesions:.0f} was missed; that supports a sensitivity above {supported} %"
        wanted = next((share for share in CLAIMS if sensitivity.low <= share), None)
        if wanted is None:
            return f"{above}."
        needed = _lesions_without_a_miss(wanted, sensitivity.level)
        return (
            f"{above}, not above {100 * wanted:.0f} %, for which {needed} lesions of different patients without a miss"
            " would be needed."
        )
    if not found:
        return f"None {counted} was found; that supports a sensitivity below {math.ceil(100 * sensitivity.high)} %."
    low, high = (f"{100 * end:.0f}" for end in (sensitivity.low, sensitivity.high))
    return f"These lesions support a sensitivity between {low} and {high} %, and no narrower claim."


def _sensitivity(
    found: NDArray[np.int64], totals: NDArray[np.int64], level: float, interval: Interval, min_lesions: int
) -> Rate:
    num_lesions, num_patients = int(totals.sum()), int((totals > 0).sum())
    if num_lesions and num_lesions >= min_lesions:
        return proportion(found, totals, level=level, method=interval)
    reason = f"undefined: fewer than {min_lesions} lesions" if num_lesions else "undefined: no lesion"
    undefined = math.nan
    counts = (float(found.sum()), float(num_lesions), num_patients)
    return Rate(undefined, undefined, undefined, level, reason, *counts, undefined)


def _lesions_without_a_miss(share: float, level: float) -> int:
    return math.floor(math.log((1 - level) / 2) / math.log(share)) + 1
