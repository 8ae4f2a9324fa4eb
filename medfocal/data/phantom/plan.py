"""What is settled about each case before it is drawn: split, patient, lesions or none, orientation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class CasePlan:
    """What is settled about a case before it is drawn."""

    index: int
    case: str
    patient: str
    anatomy: int
    split: str
    has_lesions: bool
    axis_codes: str
    oblique: bool
    qform_only: bool


def plan_cases(num_cases: int, *, seed: int, lesion_free_share: float) -> list[CasePlan]:
    """Settle splits, patients, lesion-free cases and orientations.

    A split of n cases has n // 6 patients with two studies; no patient is in two splits.
    Each split keeps a case with lesions and gets its share of the lesion-free ones.

    Raises:
        ValueError: `lesion_free_share` would leave a split without lesions.
    """
    rng = np.random.default_rng([seed, 0])
    num_validation, num_test = max(1, round(num_cases / 6)), max(1, round(num_cases / 3))
    sizes = (num_cases - num_validation - num_test, num_validation, num_test)
    num_free = round(num_cases * lesion_free_share) if 0 <= lesion_free_share < 1 else num_cases
    if num_free > num_cases - len(SPLITS):
        message = (
            f"lesion_free_share must lie in [0, 1) and leave each split a case with lesions, got {lesion_free_share} "
            f"of {num_cases} cases"
        )
        raise ValueError(message)
    free = _lesion_free_counts(sizes, num_free)

    studies: list[tuple[str, int]] = []
    lesion_free: dict[str, list[bool]] = {}
    for split, size, count in zip(SPLITS, sizes, free, strict=True):
        studies += [(split, 2)] * (size // 6) + [(split, 1)] * (size - 2 * (size // 6))
        lesion_free[split] = [bool(flag) for flag in rng.permutation(np.arange(size) < count)]
    studies = [studies[position] for position in rng.permutation(len(studies))]

    codes = [("RAS", "RAS", "LAS", "LPS")[position % 4] for position in rng.permutation(num_cases)]
    oblique = rng.permutation(np.arange(num_cases) < round(num_cases / 3))
    # One file leaves the sform uncoded; an oblique one, so that the quaternion carries something.
    qform_only = int(np.argmax(oblique))
    plans: list[CasePlan] = []
    for patient, (split, num_studies) in enumerate(studies, start=1):
        first = len(plans)
        plans += [
            CasePlan(
                index=index,
                case=f"case_{index + 1:03d}",
                patient=f"patient_{patient:02d}",
                anatomy=first,
                split=split,
                has_lesions=not lesion_free[split].pop(),
                axis_codes=codes[index],
                oblique=bool(oblique[index]),
                qform_only=index == qform_only,
            )
            for index in range(first, first + num_studies)
        ]
    return plans


def _lesion_free_counts(sizes: Sequence[int], total: int) -> list[int]:
    """Give each split its share, largest remainders first, but leave each a case with lesions."""
    counts = [0] * len(sizes)
    for _ in range(total):
        wanting = [
            total * size / sum(sizes) - count if count < size - 1 else -math.inf
            for size, count in zip(sizes, counts, strict=True)
        ]
        counts[int(np.argmax(wanting))] += 1
    return counts
