"""How often a training visited each lesion."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.sampling import LesionBalancedSampler
from medfocal.data.stored import TrainingCase
from medfocal.evaluate import Evaluation
from medfocal.files import write_csv

LOG = logging.getLogger("medfocal.train")

#: A row a training lesion: patches centred on it so far, and patches that showed all of it.
VISITS = "visits.csv"
COLUMNS = ("case", "patient", "lesion", "num_voxels", "volume_ml", "chance", "num_centred", "num_shown")


def write_visits(
    path: Path, sampler: LesionBalancedSampler, cases: Sequence[TrainingCase], visits: NDArray[np.int64]
) -> None:
    """Write the visits of each lesion so far.

    Args:
        path: The file.
        sampler: Of the cases.
        cases: In its order.
        visits: Centred and shown, `(2, lesions)`.
    """
    write_csv(path, _rows(sampler, cases, visits), COLUMNS)


def _rows(
    sampler: LesionBalancedSampler, cases: Sequence[TrainingCase], visits: NDArray[np.int64]
) -> Iterator[dict[str, Any]]:
    for number, (case, lesion) in enumerate(sampler.lesions):
        yield {
            "case": cases[case].case.name,
            "patient": cases[case].case.patient,
            "lesion": lesion + 1,
            "num_voxels": int(sampler.num_voxels[number]),
            "volume_ml": float(sampler.volume_ml[number]),
            "chance": float(sampler.chances[number]),
            "num_centred": int(visits[0, number]),
            "num_shown": int(visits[1, number]),
        }


def tell_visits(sampler: LesionBalancedSampler, visits: NDArray[np.int64]) -> None:
    """Log how evenly the lesions were visited, and the smallest and the largest for themselves."""
    centred, size = visits[0], sampler.num_voxels
    low, middle, high = np.quantile(centred, (0, 0.5, 1)).tolist()
    LOG.info(
        "patches centred on each of %d lesions: %d to %d, median %g; on those of up to %d voxels %.1f on average, on "
        "those of %d and more %.1f",
        len(centred), low, high, middle,
        int(np.median(size)), centred[size <= np.median(size)].mean(),
        int(np.median(size)), centred[size >= np.median(size)].mean(),
    )  # fmt: skip


def missed_lesions(found: Evaluation, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Volumes in ml of a validation's lesions that count, and which no candidate from a threshold on found."""
    counted = [row for row in found.lesions if not row["ignored"]]
    volumes = np.array([row["volume_ml"] for row in counted], float)
    confidences = np.array([row["confidence"] for row in counted], float)
    return volumes, ~(confidences >= threshold)
