"""How wrong a label is: one label measured against another that is taken for right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import find_components
from medfocal.evaluate.overlap import find_overlaps, voxel_dice


@dataclass(frozen=True)
class Severity:
    """One case. Lesions are 26-connected parts of the clean label, marks those of the wrong one, whatever the classes.

    Attributes:
        voxel_dice: Of the two masks. NaN where both are empty.
        num_lesions: In the clean label.
        num_omitted: Lesions of which no voxel is marked.
        omission_rate: Their share. NaN where there is no lesion.
        num_marks: In the wrong label.
        num_spurious: Marks that share no voxel with a lesion.
        class_agreement: Of the voxels marked in both, the share of the same class. NaN where there are none.
        num_clean_voxels: Of the clean label.
        num_noisy_voxels: Of the wrong label.
        num_shared_voxels: Of both.
    """

    voxel_dice: float
    num_lesions: int
    num_omitted: int
    omission_rate: float
    num_marks: int
    num_spurious: int
    class_agreement: float
    num_clean_voxels: int
    num_noisy_voxels: int
    num_shared_voxels: int


@dataclass(frozen=True)
class PooledSeverity:
    """Several cases.

    Attributes:
        num_cases: How many.
        voxel_dice: Of all cases' voxels together. NaN where all masks are empty.
        voxel_dice_mean: Mean over the cases where it is defined. NaN where there is none.
        num_undefined_dice: Cases where both masks are empty.
        num_lesions: Of all cases.
        num_omitted: Of all cases.
        omission_rate: Their share. NaN without lesions.
        num_marks: Of all cases.
        num_spurious: Of all cases.
        spurious_per_case: Their mean number in a case. NaN without cases.
        class_agreement: Of the voxels marked in both, over all cases. NaN where there are none.
    """

    num_cases: int
    voxel_dice: float
    voxel_dice_mean: float
    num_undefined_dice: int
    num_lesions: int
    num_omitted: int
    omission_rate: float
    num_marks: int
    num_spurious: int
    spurious_per_case: float
    class_agreement: float


def severity(clean: NDArray[Any], noisy: NDArray[Any], affine: NDArray[np.float64]) -> Severity:
    """Measure how wrong a label is.

    Args:
        clean: Classes, integer `(I, J, K)`, 0 outside lesions.
        noisy: On the same grid.
        affine: Voxel index to world mm, `(4, 4)`.

    Raises:
        ValueError: The shapes differ or are not 3D.
    """
    if clean.shape != noisy.shape:
        message = f"clean and noisy label must have one shape, got {clean.shape} and {noisy.shape}"
        raise ValueError(message)
    lesions, marks = find_components(clean, affine), find_components(noisy, affine)
    overlaps = find_overlaps(lesions, marks)
    num_omitted = len(lesions) - len(np.unique(overlaps.lesion))
    both = (clean != 0) & (noisy != 0)
    num_clean, num_noisy = int(lesions.num_voxels.sum()), int(marks.num_voxels.sum())
    num_shared = int(np.count_nonzero(both))
    return Severity(
        voxel_dice=voxel_dice(num_shared, num_clean, num_noisy),
        num_lesions=len(lesions),
        num_omitted=num_omitted,
        omission_rate=_share(num_omitted, len(lesions)),
        num_marks=len(marks),
        num_spurious=len(marks) - len(np.unique(overlaps.candidate)),
        class_agreement=_share(int(np.count_nonzero(clean[both] == noisy[both])), num_shared),
        num_clean_voxels=num_clean,
        num_noisy_voxels=num_noisy,
        num_shared_voxels=num_shared,
    )


def pool_severities(cases: Sequence[Severity]) -> PooledSeverity:
    """Sum up over cases; each rate is the sum of its numerators over that of its denominators."""
    dices = [case.voxel_dice for case in cases if not math.isnan(case.voxel_dice)]
    num_lesions, num_omitted = sum(c.num_lesions for c in cases), sum(c.num_omitted for c in cases)
    num_spurious, num_shared = sum(c.num_spurious for c in cases), sum(c.num_shared_voxels for c in cases)
    num_agreeing = sum(c.class_agreement * c.num_shared_voxels for c in cases if c.num_shared_voxels)
    return PooledSeverity(
        num_cases=len(cases),
        voxel_dice=voxel_dice(
            num_shared, sum(c.num_clean_voxels for c in cases), sum(c.num_noisy_voxels for c in cases)
        ),
        voxel_dice_mean=float(np.mean(dices)) if dices else math.nan,
        num_undefined_dice=len(cases) - len(dices),
        num_lesions=num_lesions,
        num_omitted=num_omitted,
        omission_rate=_share(num_omitted, num_lesions),
        num_marks=sum(c.num_marks for c in cases),
        num_spurious=num_spurious,
        spurious_per_case=_share(num_spurious, len(cases)),
        class_agreement=_share(num_agreeing, num_shared),
    )


def _share(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
