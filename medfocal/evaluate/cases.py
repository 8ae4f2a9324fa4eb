"""Evaluating one case: its lesions, its candidates and which finds which."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.components import Components, find_candidates, find_components
from medfocal.errors import GeometryError, InputError
from medfocal.evaluate.matching import match_lesions
from medfocal.evaluate.overlap import find_overlaps
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.volume import voxel_volume_ml

# How far from a whole number a value of a mask, or from [0, 1] a probability, may be: tools store 1 as 0.99999997,
# and slope and intercept turn it into 1.00001.
ROUNDING = 1e-3


# A mask may hold classes, or one number such as 255. Many numbers above this are a map in percent or in grey values.
MOST_CLASSES = 32


@dataclass(frozen=True)
class Part:
    """A lesion or a candidate, measured.

    Attributes:
        number: Its number in its case, from 1.
        num_voxels: Its voxels.
        volume_ml: Its volume in millilitres.
        equivalent_diameter_mm: Diameter of the sphere of the same volume.
        centroid_voxel: Mean voxel index.
        centroid_mm: The same point in world coordinates (RAS).
    """

    number: int
    num_voxels: int
    volume_ml: float
    equivalent_diameter_mm: float
    centroid_voxel: tuple[float, ...]
    centroid_mm: tuple[float, ...]


@dataclass(frozen=True)
class Lesion:
    """A lesion of the reference.

    Attributes:
        part: What it measures.
        candidate: Number of the candidate that finds it; None if none does, however unsure.
        overlap_voxels: Voxels it shares with that candidate.
        confidence: That candidate's confidence, which is the highest threshold at which the lesion is found;
            NaN if none.
    """

    part: Part
    candidate: int | None
    overlap_voxels: int
    confidence: float


@dataclass(frozen=True)
class Candidate:
    """A candidate of the prediction.

    Attributes:
        part: What it measures.
        confidence: Its confidence.
        lesion: Number of the lesion it finds; None makes it a false candidate.
        overlap_voxels: Voxels it shares with that lesion.
        reference_voxels: Its voxels that lie in any lesion.
    """

    part: Part
    confidence: float
    lesion: int | None
    overlap_voxels: int
    reference_voxels: int


@dataclass(frozen=True)
class CaseResult:
    """One case, evaluated at every threshold; it holds no volumes.

    Attributes:
        case: Name of the case.
        patient: Name of the patient.
        lesions: Every lesion by number.
        candidates: Every candidate by number.
        voxel_volume_ml: Volume of a voxel.
        scanned_litres: Volume of the whole image.
        protocol: The rules it was evaluated by.
    """

    case: str
    patient: str
    lesions: tuple[Lesion, ...]
    candidates: tuple[Candidate, ...]
    voxel_volume_ml: float
    scanned_litres: float
    protocol: Protocol


def evaluate_case(
    reference: NDArray[Any],
    prediction: NDArray[Any] | Components,
    affine: ArrayLike,
    *,
    case: str,
    patient: str | None = None,
    protocol: Protocol = ANY_OVERLAP,
    prediction_name: str = "the prediction",
) -> CaseResult:
    """Find the lesions and candidates of one case and pair them.

    Args:
        reference: Anything but 0 is lesion, bool or integer (I, J, K).
        prediction: A mask (bool or integer, anything but 0 is inside) or a probability map (float in [0, 1]) on
            the same grid. A float array that holds whole numbers only, within 1e-3, is a mask. Or its candidates, as
            `find_predicted` gave them, where several references judge them.
        affine: Voxel index to world RAS in mm, (4, 4).
        case: Name of the case.
        patient: Name of the patient; by default the case is its own patient.
        protocol: The rules.
        prediction_name: What messages call the prediction, such as its file.

    Returns:
        The case's lesions and candidates. Its threshold is applied by `evaluate_cases`.

    Raises:
        GeometryError: Reference and prediction have different shapes.
        InputError: The prediction holds NaN, a negative value, or a probability above 1, by more than 1e-3.

    Example:
        >>> reference, prediction = np.zeros((12, 10, 8), bool), np.zeros((12, 10, 8))
        >>> reference[2:4, 3, 3] = reference[8, 8, 6] = True
        >>> prediction[3, 3, 3] = 0.7
        >>> result = evaluate_case(reference, prediction, np.eye(4), case="one")
        >>> [(lesion.candidate, lesion.confidence) for lesion in result.lesions]
        [(1, 0.7), (None, nan)]
    """
    shape = prediction.labels.shape if isinstance(prediction, Components) else prediction.shape
    if reference.shape != shape:
        message = (
            f"case '{case}': reference and {prediction_name} differ in shape: {reference.shape} and {shape}."
            " Resample the prediction onto the grid of the reference."
        )
        raise GeometryError(message)
    affine = np.asarray(affine, np.float64)
    lesions = find_components(reference, affine, connectivity=protocol.connectivity)
    candidates = (
        prediction
        if isinstance(prediction, Components)
        else find_predicted(prediction, affine, protocol, f"case '{case}': {prediction_name}")
    )
    overlaps = find_overlaps(lesions.labels, candidates.labels)
    pairs = match_lesions(overlaps, candidates.confidence)
    shared = {
        (int(lesion), int(candidate)): int(num_voxels)
        for lesion, candidate, num_voxels in zip(overlaps.lesion, overlaps.candidate, overlaps.num_voxels, strict=True)
    }
    lesion_of = {candidate: lesion for lesion, candidate in pairs.items()}
    # Lesions are disjoint, so what a candidate shares with each adds up to what it shares with the reference.
    in_reference = np.bincount(overlaps.candidate, overlaps.num_voxels, minlength=len(candidates) + 1)
    return CaseResult(
        case=case,
        patient=case if patient is None else patient,
        lesions=tuple(
            Lesion(
                part,
                candidate=pairs.get(part.number),
                overlap_voxels=shared.get((part.number, pairs.get(part.number, 0)), 0),
                confidence=float(candidates.confidence[pairs[part.number] - 1]) if part.number in pairs else math.nan,
            )
            for part in _parts(lesions)
        ),
        candidates=tuple(
            Candidate(
                part,
                confidence=float(candidates.confidence[part.number - 1]),
                lesion=lesion_of.get(part.number),
                overlap_voxels=shared.get((lesion_of.get(part.number, 0), part.number), 0),
                reference_voxels=int(in_reference[part.number]),
            )
            for part in _parts(candidates)
        ),
        voxel_volume_ml=voxel_volume_ml(affine),
        scanned_litres=reference.size * voxel_volume_ml(affine) / 1000,
        protocol=protocol,
    )


def find_predicted(prediction: NDArray[Any], affine: NDArray[np.float64], protocol: Protocol, where: str) -> Components:
    """Find the candidates of a mask or a probability map, as `evaluate_case` does; `where` begins its messages."""
    mask = prediction if prediction.dtype == np.bool_ else None
    if mask is None and prediction.size:
        low, high = float(prediction.min()), float(prediction.max())
        if not low >= -ROUNDING:  # NaN too
            message = f"{where} holds {low:.6g}. Give a mask (0 is outside) or probabilities in [0, 1]."
            raise InputError(message)
        if prediction.dtype.kind in "iu" or (math.isfinite(high) and _is_whole(prediction)):
            mask = np.rint(prediction) != 0
            if high > MOST_CLASSES and len(np.unique(prediction)) > 2:
                message = (
                    f"{where} holds several whole numbers up to {high:.6g}: too many for classes, too high for"
                    " probabilities. Give a mask (0 is outside), or divide the map so that it lies in [0, 1]."
                )
                raise InputError(message)
        elif high > 1 + ROUNDING:
            message = f"{where} holds {high:.6g}, but a probability is at most 1. Give probabilities, not logits."
            raise InputError(message)
    if mask is not None:
        return find_components(mask, affine, connectivity=protocol.connectivity, confidence=1.0)
    return find_candidates(
        np.clip(prediction, 0, 1),
        affine,
        extent_ratio=protocol.extent_ratio,
        floor=protocol.floor,
        connectivity=protocol.connectivity,
        confidence=protocol.confidence,
    )


def _is_whole(array: NDArray[Any]) -> bool:
    # Slice by slice: in a probability map the first with a foreground tells.
    return all(bool((np.abs(part - np.rint(part)) <= ROUNDING).all()) for part in array)


def _parts(components: Components) -> list[Part]:
    return [
        Part(
            number=row + 1,
            num_voxels=int(components.num_voxels[row]),
            volume_ml=float(components.volume_ml[row]),
            equivalent_diameter_mm=float(components.equivalent_diameter_mm[row]),
            centroid_voxel=tuple(components.centroid_voxel[row].tolist()),
            centroid_mm=tuple(components.centroid_mm[row].tolist()),
        )
        for row in range(len(components))
    ]
