"""From a probability map to candidates, and from candidates to the mask at an operating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components, find_at_threshold, find_candidates
from medfocal.components.candidates import NUM_TOP_VOXELS
from medfocal.components.parts import measure
from medfocal.model import OperatingPoint

#: Columns of `<case>_candidates.csv`.
COLUMNS = (
    "case", "candidate", "confidence", "kept", "operating_points", "num_voxels", "volume_ml",
    "equivalent_diameter_mm", "longest_diameter_mm", "axial_diameter_mm", "i", "j", "k", "x_mm", "y_mm", "z_mm",
    "spread",
)  # fmt: skip


def form_candidates(
    probability: NDArray[np.float32],
    affine: NDArray[np.float64],
    rule: Mapping[str, Any],
    *,
    exclude: NDArray[np.bool_] | None = None,
) -> Components:
    """Candidates of a lesion probability map `(I, J, K)`, as the model's card says they are formed.

    Args:
        probability: In [0, 1].
        affine: Of its grid.
        rule: `extent_ratio`, `floor`, `connectivity`, `confidence` of `medfocal.components.find_candidates`; `cut`, a
            probability above which connected voxels are one candidate instead, or None; `separate`, whether a
            candidate with several hills is split into them; `min_volume_ml`, below which there is no candidate;
            `logistic`, coefficients of a confidence by `calibrated_confidence`, or None.
        exclude: Where no lesion can be: a candidate whose highest voxel lies there is none.

    Returns:
        By falling confidence.
    """
    hills = {"connectivity": rule["connectivity"], "confidence": rule["confidence"], "floor": rule["floor"]}
    if rule["cut"] is None:
        found = find_candidates(probability, affine, extent_ratio=rule["extent_ratio"], **hills)
    else:
        del hills["floor"]
        found = find_at_threshold(probability, affine, threshold=rule["cut"], **hills)
    if rule["separate"]:
        found = _separated(found, probability, rule)
    kept = found.volume_ml >= rule["min_volume_ml"]
    if exclude is not None and len(found):
        kept &= ~exclude[np.unravel_index(found.peak, found.shape)]
    confidence = found.confidence
    if rule["logistic"] is not None:
        confidence = calibrated_confidence(candidate_features(found, probability), rule["logistic"])
    if kept.all() and rule["logistic"] is None:
        return found
    return _chosen(found, kept, confidence)


def candidate_features(found: Components, probability: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithm of the volume in ml, mean and highest probability of each candidate, `(n, 3)`."""
    values = probability[np.unravel_index(found.voxels, found.shape)].astype(np.float64)
    row = found.part - 1
    mean = np.bincount(row, values, len(found)) / np.maximum(found.num_voxels, 1)
    highest = np.zeros(len(found))
    np.maximum.at(highest, row, values)
    return np.stack([np.log(found.volume_ml), mean, highest], axis=1)


def calibrated_confidence(features: NDArray[np.float64], logistic: Mapping[str, float]) -> NDArray[np.float64]:
    """Probability that a candidate is a lesion, by logistic regression on `candidate_features`, `(n,)`."""
    from scipy.special import expit

    weights = np.array([logistic["log_volume"], logistic["mean"], logistic["max"]])
    return np.asarray(expit(logistic["intercept"] + features @ weights), np.float64)


#: Share of its own height down to which a hill must stand alone to be split off.
SEPARATE_RATIO = 0.8


def _separated(found: Components, probability: NDArray[np.float32], rule: Mapping[str, Any]) -> Components:
    """Split candidates that hold several hills; each voxel goes to the nearest hill within its candidate, in mm."""
    from scipy import ndimage

    if not len(found):
        return found
    inside = np.zeros(found.shape, np.float32)
    inside.reshape(-1)[found.voxels] = probability.reshape(-1)[found.voxels]
    hills = find_candidates(
        inside,
        found.affine,
        extent_ratio=max(SEPARATE_RATIO, rule["extent_ratio"]),
        floor=rule["floor"],
        connectivity=rule["connectivity"],
    )
    host = found.labels.reshape(-1)[hills.peak]
    several = np.flatnonzero(np.bincount(host, minlength=len(found) + 1) > 1)
    if not len(several):
        return found
    part, num_parts = found.labels.copy(), len(found)
    spacing_mm = np.linalg.norm(found.affine[:3, :3], axis=0)
    for number in several.tolist():
        box = tuple(slice(int(low), int(high)) for low, high in found.bounding_box[number - 1])
        own = found.labels[box] == number
        seeds = np.where(own & np.isin(hills.labels[box], np.flatnonzero(host == number) + 1), hills.labels[box], 0)
        nearest = ndimage.distance_transform_edt(
            seeds == 0, sampling=spacing_mm, return_distances=False, return_indices=True
        )
        hill = seeds[tuple(nearest)]
        for new in np.unique(hill[own])[1:].tolist():
            num_parts += 1
            part[box][own & (hill == new)] = num_parts
    numbers = part.reshape(-1)[found.voxels]
    values = probability.reshape(-1)[found.voxels].astype(np.float64)
    order = np.lexsort((-values, numbers))
    start = np.flatnonzero(np.diff(numbers[order], prepend=0))
    first = order[start]
    rating = values[first]
    if rule["confidence"] == "mean_top":
        size = np.diff(start, append=len(order))
        is_top = np.arange(len(order)) - np.repeat(start, size) < NUM_TOP_VOXELS
        rating = np.add.reduceat(np.where(is_top, values[order], 0), start) / np.minimum(size, NUM_TOP_VOXELS)
    split = measure(found.shape, found.voxels, numbers, found.affine, rating, found.voxels[first])
    return _chosen(split, np.ones(num_parts, np.bool_), split.confidence)


def _chosen(found: Components, kept: NDArray[np.bool_], confidence: NDArray[np.float64]) -> Components:
    """Some of the candidates, numbered anew by falling confidence, of equal ones as before."""
    order = np.flatnonzero(kept)
    order = order[np.argsort(-confidence[order], kind="stable")]
    number = np.zeros(len(found) + 1, np.int32)
    number[order + 1] = np.arange(1, len(order) + 1)
    new = number[found.part]
    inside = new > 0
    return measure(found.shape, found.voxels[inside], new[inside], found.affine, confidence[order], found.peak[order])


def mask_at(candidates: Components, threshold: float) -> NDArray[np.bool_]:
    """Union of the candidates with a confidence of at least `threshold`, bool `(I, J, K)`."""
    mask = np.zeros(candidates.shape, np.bool_)
    mask.reshape(-1)[candidates.voxels[candidates.confidence[candidates.part - 1] >= threshold]] = True
    return mask


def candidate_rows(
    case: str,
    candidates: Components,
    threshold: float,
    points: Sequence[OperatingPoint] = (),
    spread: NDArray[np.float32] | None = None,
) -> list[dict[str, object]]:
    """Rows of `<case>_candidates.csv`, highest confidence first.

    Args:
        case: Its name.
        candidates: All of them, by falling confidence.
        threshold: Of the mask.
        points: Of the model; each row names those at which its candidate counts.
        spread: Of each voxel, `(I, J, K)`; a row has that of its candidate's highest voxel. None: empty.
    """
    peaks = np.unravel_index(candidates.peak, candidates.shape) if len(candidates) else ()
    spreads = None if spread is None or not len(candidates) else spread[peaks]
    return [
        {
            "case": case,
            "candidate": n + 1,
            "confidence": float(confidence),
            "kept": bool(confidence >= threshold),
            "operating_points": "; ".join(point.name for point in points if confidence >= point.threshold),
            "num_voxels": int(candidates.num_voxels[n]),
            "volume_ml": float(candidates.volume_ml[n]),
            "equivalent_diameter_mm": float(candidates.equivalent_diameter_mm[n]),
            "longest_diameter_mm": float(candidates.longest_diameter_mm[n]),
            "axial_diameter_mm": float(candidates.axial_diameter_mm[n]),
            **dict(zip(("i", "j", "k"), map(float, candidates.centroid_voxel[n]), strict=True)),
            **dict(zip(("x_mm", "y_mm", "z_mm"), map(float, candidates.centroid_mm[n]), strict=True)),
            "spread": None if spreads is None else float(spreads[n]),
        }
        for n, confidence in enumerate(candidates.confidence)
    ]
