"""What the values of a file mean: lesions of a reference, candidates of a mask or of a probability map.

Values are looked at where they are not 0, since a mask of rare lesions is 0 nearly everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfocal.components import (
    Components,
    NumberedVoxels,
    find_at_threshold,
    find_candidates,
    find_components,
    find_grown,
)
from medfocal.errors import InputError
from medfocal.evaluate.protocols import Protocol
from medfocal.volume import LABEL_TOLERANCE

# A mask may hold classes, or one number such as 255. Many numbers above this are a map in percent or in grey values.
MOST_CLASSES = 32

#: What predictions are expected to be; "auto" tells a mask by its values.
Expected = Literal["auto", "mask", "probability"]
Classes = Mapping[str, Sequence[int]]


def whole_labels(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Round a label map or mask whose values are whole up to 1e-3; an integer array is given back as it is.

    Raises:
        InputError: A value is not whole, negative, not finite, or too large for int32.
    """
    if array.dtype.kind in "bu":
        return array
    if array.dtype.kind == "i":
        low = int(array.min(initial=0))
        if low < 0:
            message = f"{where} holds the value {low}; labels are 0 or more"
            raise InputError(message)
        return array
    rounded = np.rint(array)
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(array - rounded) <= LABEL_TOLERANCE) | (rounded < 0)
    if off.any():
        index = tuple(int(n) for n in np.argwhere(off)[0])
        message = (
            f"{where} holds {array[index]!s} at voxel {index}, which is not a whole number of 0 or more. Labels are"
            " classes, or numbers of parts; only a prediction may be a probability map."
        )
        raise InputError(message)
    high, most = float(rounded.max(initial=0)), np.iinfo(np.int32).max
    if high > most:
        message = f"{where} holds {high:.6g}; labels are at most {most}"
        raise InputError(message)
    whole: NDArray[Any] = rounded.astype(np.int32)
    return whole


def lesions_of(
    reference: NDArray[Any], affine: NDArray[np.float64], protocol: Protocol
) -> tuple[Components, NumberedVoxels | None]:
    """Find the lesions of a mask, and what they are when grown, where the protocol grows them."""
    if protocol.reference_dilation:
        return find_grown(reference, affine, connectivity=protocol.connectivity, steps=protocol.reference_dilation)
    return find_components(reference, affine, connectivity=protocol.connectivity), None


def find_predicted(
    prediction: NDArray[Any],
    affine: NDArray[np.float64],
    protocol: Protocol,
    where: str,
    *,
    expected: Expected = "auto",
) -> tuple[Components, bool]:
    """Find the candidates of a mask or of a probability map.

    Args:
        prediction: A mask (bool or integer, not 0 is inside) or a probability map (float in [0, 1]), (I, J, K). A float
            array of whole numbers, up to 1e-3, is a mask.
        affine: Voxel index to world RAS in mm, (4, 4).
        protocol: The rules.
        where: Begins messages, such as "case 'x': 'file'".
        expected: What it should be.

    Returns:
        The candidates, and whether the prediction is a mask.

    Raises:
        InputError: It holds NaN, a negative value or a probability above 1, by more than 1e-3; or it isn't what is
            expected.
    """
    is_mask = prediction.dtype.kind in "bu" or _is_mask(prediction, where)
    if expected == "probability" and prediction.dtype.kind == "f":
        is_mask = False  # a map may be 0 and 1 nearly everywhere: in a case without lesions, or of a very sure model
    if expected != "auto" and is_mask != (expected == "mask") and bool(prediction.any()):
        message = (
            f"{where} is a {_kind(is_mask=is_mask)}, but a {_kind(is_mask=not is_mask)} is expected"
            f" (expect={expected}). Give the other file, or expect=auto."
        )
        raise InputError(message)
    if is_mask:
        mask = prediction if prediction.dtype.kind != "f" else np.rint(prediction)
        found = find_components(mask, affine, connectivity=protocol.connectivity, confidence=1.0)
        _refuse_grey_values(prediction, found, where)
        return found, True
    clipped = np.clip(prediction, 0, 1)
    if protocol.candidates == "threshold":
        found = find_at_threshold(
            clipped,
            affine,
            threshold=protocol.threshold,
            connectivity=protocol.connectivity,
            confidence=protocol.confidence,
        )
        return found, False
    found = find_candidates(
        clipped,
        affine,
        extent_ratio=protocol.extent_ratio,
        floor=protocol.floor,
        connectivity=protocol.connectivity,
        confidence=protocol.confidence,
    )
    return found, False


def select_classes(
    array: NDArray[Any], values: Sequence[int], classes: Classes, where: str, *, ignored: Sequence[int] = ()
) -> NDArray[np.bool_]:
    """Give the mask of some classes of a label map.

    Raises:
        InputError: It holds a value that no class names.
    """
    named = sorted({value for group in classes.values() for value in group})
    strange = np.setdiff1d(np.unique(array[array != 0]), [*named, *ignored])
    if len(strange):
        groups = ", ".join(f"{name} {list(group)}" for name, group in classes.items())
        message = (
            f"{where} holds the value {strange[0]:g}, which no class names: {groups}. Name it in classes, or"
            " correct the file."
        )
        raise InputError(message)
    return np.isin(array, values)


def _is_mask(prediction: NDArray[Any], where: str) -> bool:
    low, high = float(prediction.min(initial=0)), float(prediction.max(initial=0))
    if not low >= -LABEL_TOLERANCE:  # NaN too
        message = f"{where} holds {low:.6g}. Give a mask (0 is outside) or probabilities in [0, 1]."
        raise InputError(message)
    if prediction.dtype.kind == "i" or (math.isfinite(high) and _is_whole(prediction)):
        return True
    if high > 1 + LABEL_TOLERANCE:
        message = (
            f"{where} holds {high:.6g}, but a probability is at most 1. Give probabilities in [0, 1]: not logits,"
            " percent or grey values."
        )
        raise InputError(message)
    return False


def _is_whole(array: NDArray[Any]) -> bool:
    # Slice by slice: in a probability map the first with a foreground tells.
    return all(bool((np.abs(part - np.rint(part)) <= LABEL_TOLERANCE).all()) for part in array)


def _refuse_grey_values(prediction: NDArray[Any], found: Components, where: str) -> None:
    if prediction.dtype.kind == "b" or not len(found):
        return
    values = prediction[np.unravel_index(found.voxels, found.shape)]
    high = float(values.max())
    if high > MOST_CLASSES and len(np.unique(values)) > 1:
        message = (
            f"{where} holds several whole numbers up to {high:.6g}: too many for classes, too high for"
            " probabilities. Give a mask (0 is outside), or divide the map so that it lies in [0, 1]."
        )
        raise InputError(message)


def _kind(*, is_mask: bool) -> str:
    return "mask" if is_mask else "probability map"
