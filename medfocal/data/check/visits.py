"""How often training would centre a patch on each lesion, by two ways of drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medfocal.data.check.cases import CaseReport

#: Lesion-centred patches that the expected visits are counted over.
NUM_PATCHES = 100_000
#: Borders of the rows in mm3.
EDGES_MM3 = (0.0, 10.0, 50.0, 200.0, 1000.0, 5000.0, np.inf)


@dataclass(frozen=True)
class Visits:
    """Expected patches that are centred on each lesion of the training set, of `NUM_PATCHES` lesion-centred ones.

    Attributes:
        volumes_mm3: Of each lesion, (n,).
        by_voxel: Where a case with lesions is drawn and then one of its lesion voxels, all alike, (n,).
        by_lesion: Where a lesion is drawn of all in the set, all alike: the same for each.
    """

    volumes_mm3: NDArray[np.float64]
    by_voxel: NDArray[np.float64]
    by_lesion: float

    def rows(self) -> list[VisitRow]:
        """By volume, without the rows that no lesion falls into."""
        return [
            VisitRow(low, high, len(own), float(own.min()), float(np.median(own)), float(own.max()), self.by_lesion)
            for low, high in pairwise(EDGES_MM3)
            if len(own := self.by_voxel[(self.volumes_mm3 >= low) & (self.volumes_mm3 < high)])
        ]


@dataclass(frozen=True)
class VisitRow:
    """Lesions of at least `low_mm3` and less than `high_mm3`, and their expected visits."""

    low_mm3: float
    high_mm3: float
    num_lesions: int
    by_voxel_lowest: float
    by_voxel_median: float
    by_voxel_highest: float
    by_lesion: float


def expected_visits(reports: Sequence[CaseReport]) -> Visits | None:
    """Expected visits of the lesions of the training references.

    With C cases that have lesions, a lesion of v of its case's V lesion voxels is drawn with probability v / (C V) by
    voxels, and 1 / n of n lesions by lesions. Patches that hold a lesion off their centre do not count.

    Args:
        reports: Of all cases.

    Returns:
        None where the training set has no lesion.
    """
    cases = [report for report in reports if report.split == "training" and report.num_lesions]
    if not cases:
        return None
    share = np.concatenate([np.array(r.lesion_voxels) / sum(r.lesion_voxels) / len(cases) for r in cases])
    volumes = np.concatenate([np.array(report.lesion_volumes_mm3) for report in cases])
    return Visits(volumes, NUM_PATCHES * share, NUM_PATCHES / len(share))
