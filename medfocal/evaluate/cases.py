"""Measuring one case: its lesions, its candidates and what they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.components import Components, NumberedVoxels
from medfocal.errors import GeometryError
from medfocal.evaluate.overlap import Overlaps, find_overlaps
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.surface import case_surface, pair_surfaces
from medfocal.evaluate.table import CaseTable, Parts
from medfocal.evaluate.values import find_predicted, lesions_of
from medfocal.volume import voxel_volume_ml


def evaluate_case(
    reference: NDArray[Any] | Components,
    prediction: NDArray[Any] | Components,
    affine: ArrayLike,
    *,
    case: str,
    patient: str | None = None,
    protocol: Protocol = ANY_OVERLAP,
    ignore: NDArray[np.bool_] | None = None,
    surface: bool = False,
    prediction_name: str = "the prediction",
) -> CaseTable:
    """Measure the lesions and candidates of one case; `evaluate_cases` judges and counts them.

    Args:
        reference: Anything but 0 is lesion, bool or integer (I, J, K); or lesions already found, such as those of an
            instance map.
        prediction: A mask (bool or integer, anything but 0 is inside) or a probability map (float in [0, 1]) on
            the same grid. A float array that holds whole numbers only, within 1e-3, is a mask. Or its candidates, where
            several references judge them.
        affine: Voxel index to world RAS in mm, (4, 4).
        case: Name of the case.
        patient: Name of the patient; by default the case is its own patient.
        protocol: The rules; only the shaping ones matter here, and with `surface` the threshold and the tolerance.
        ignore: Where nothing is right or wrong, bool (I, J, K).
        surface: Whether to measure distances of surfaces, of the case at the threshold and of each pair.
        prediction_name: What messages call the prediction, such as its file.

    Returns:
        The table of the case.

    Raises:
        GeometryError: Reference, prediction and `ignore` have different shapes.
        InputError: The prediction holds NaN, a negative value, or a probability above 1, by more than 1e-3.

    Example:
        >>> reference, prediction = np.zeros((12, 10, 8), bool), np.zeros((12, 10, 8))
        >>> reference[2:4, 3, 3] = reference[8, 8, 6] = True
        >>> prediction[3, 3, 3] = 0.7
        >>> table = evaluate_case(reference, prediction, np.eye(4), case="one")
        >>> table.lesions.num_voxels.tolist(), table.candidates.confidence.tolist(), table.overlaps.lesion.tolist()
        ([2, 1], [0.7], [1])
    """
    shape, other = _shape(reference), _shape(prediction)
    if shape != other:
        message = (
            f"case '{case}': reference and {prediction_name} differ in shape: {shape} and {other}."
            " Resample the prediction onto the grid of the reference."
        )
        raise GeometryError(message)
    if ignore is not None and ignore.shape != shape:
        message = f"case '{case}': reference and the region to be ignored differ in shape: {shape} and {ignore.shape}."
        raise GeometryError(message)
    affine = np.asarray(affine, np.float64)
    lesions, grown = (reference, None) if isinstance(reference, Components) else lesions_of(reference, affine, protocol)
    if isinstance(prediction, Components):
        candidates, is_mask = prediction, bool((prediction.confidence == 1).all())
    else:
        candidates, is_mask = find_predicted(prediction, affine, protocol, f"case '{case}': {prediction_name}")
    measured = Measured(lesions, candidates, grown, is_mask=is_mask)
    return make_table(measured, affine, case=case, patient=patient, protocol=protocol, ignore=ignore, surface=surface)


@dataclass(frozen=True, eq=False)
class Measured:
    """The parts of a case with their voxels.

    Attributes:
        lesions: Lesions.
        candidates: Candidates.
        grown: What the lesions are when grown, with the numbers of `lesions`; None if they are not grown.
        is_mask: Whether the prediction was a mask.
    """

    lesions: Components
    candidates: Components
    grown: NumberedVoxels | None
    is_mask: bool


def make_table(
    measured: Measured,
    affine: NDArray[np.float64],
    *,
    case: str,
    patient: str | None,
    protocol: Protocol,
    ignore: NDArray[np.bool_] | None,
    surface: bool,
    missing: bool = False,
) -> CaseTable:
    """Make the table of parts already found; arguments as of `evaluate_case`."""
    lesions, candidates = measured.lesions, measured.candidates
    overlaps = find_overlaps(lesions, candidates, measured.grown)
    num_ignored = 0 if ignore is None else int(np.count_nonzero(ignore))
    voxel_ml = voxel_volume_ml(affine)
    figures: dict[str, Any] = {}
    if surface:
        counted = candidates.confidence >= protocol.threshold
        figures = {
            "surface_threshold": protocol.threshold,
            "tolerance_mm": protocol.tolerance_mm,
            "surface": case_surface(
                lesions.voxels,
                candidates.voxels[counted[candidates.part - 1]],
                lesions.shape,
                affine,
                tolerance_mm=protocol.tolerance_mm,
            ),
            "pair_surface": pair_surfaces(lesions, candidates, overlaps, tolerance_mm=protocol.tolerance_mm),
        }
    return CaseTable(
        case=case,
        patient=case if patient is None else patient,
        lesions=Parts.of(lesions, _ignored_voxels(lesions, ignore)),
        candidates=Parts.of(candidates, _ignored_voxels(candidates, ignore)),
        overlaps=overlaps,
        candidate_point_lesion=_number_at(lesions, candidates.peak),
        pair_ignored_voxels=_pair_ignored_voxels(lesions, candidates, overlaps, ignore),
        voxel_volume_ml=voxel_ml,
        scanned_litres=(math.prod(lesions.shape) - num_ignored) * voxel_ml / 1000,
        shaping=protocol.shaping(),
        is_mask=measured.is_mask,
        missing=missing,
        **figures,
    )


def _shape(volume: NDArray[Any] | Components) -> tuple[int, ...]:
    return tuple(volume.shape)


def _ignored_voxels(parts: Components, ignore: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    if ignore is None:
        return np.zeros(len(parts), np.int64)
    inside = ignore[np.unravel_index(parts.voxels, parts.shape)]
    return np.bincount(parts.part[inside], minlength=len(parts) + 1)[1:].astype(np.int64)


def _pair_ignored_voxels(
    lesions: Components, candidates: Components, overlaps: Overlaps, ignore: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Count the voxels of each pair that lie in the region to be ignored."""
    if ignore is None or not len(overlaps):
        return np.zeros(len(overlaps), np.int64)
    shared, first, second = np.intersect1d(lesions.voxels, candidates.voxels, assume_unique=True, return_indices=True)
    inside = ignore[np.unravel_index(shared, lesions.shape)]
    base = len(candidates) + 1
    key = overlaps.lesion * base + overlaps.candidate  # rising, as pairs are in order
    found = lesions.part[first[inside]].astype(np.int64) * base + candidates.part[second[inside]]
    return np.bincount(np.searchsorted(key, found), minlength=len(key)).astype(np.int64)


def _number_at(parts: Components, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the number of the part that each voxel, a flat index, lies in; 0 for none."""
    if not len(parts.voxels):
        return np.zeros(len(voxels), np.int64)
    place = np.minimum(np.searchsorted(parts.voxels, voxels), len(parts.voxels) - 1)
    return np.where(parts.voxels[place] == voxels, parts.part[place], 0).astype(np.int64)
