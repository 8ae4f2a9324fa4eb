"""Whether the lesions of a label lie where the image has something: in the body, and not mirrored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components
from medfocal.data.check.body import Body, find_body
from medfocal.data.check.files import axis_codes
from medfocal.data.check.findings import Finding, Kind
from medfocal.volume import Volume

#: Lesion voxels that are compared with their surroundings.
NUM_COMPARED = 4000
#: How far from a lesion voxel its surroundings are looked for, in voxels.
REACHES = (2, 3)
#: A label is suspected to be mirrored where it has hardly any contrast as it is and much when it is mirrored.
CONTRAST_AS_IS, CONTRAST_MIRRORED = 0.25, 1.0
#: Or where so little of it lies in the body, and so much when it is mirrored.
INSIDE_AS_IS, INSIDE_MIRRORED = 0.7, 0.95
AXES = {"RL": "left-right", "AP": "front-back", "SI": "up-down"}

Index = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def check_placement(images: list[Volume], lesions: Components, label: Path, case: str) -> list[Finding]:
    """Look for lesions outside the body and for a label that fits the mirrored image better.

    Args:
        images: On the label's grid; the body is told from the first.
        lesions: Of the label.
        label: The file.
        case: Whose it is.

    Returns:
        What is wrong; nothing where there is no lesion.
    """
    if not len(lesions) or not images:
        return []
    grid = images[0]
    body = find_body(grid.array, grid.spacing_mm, axis_codes(grid))
    index = _indices(lesions.voxels, lesions.shape)
    mirrored = _check_mirrored(images, body, index, lesions.shape, label, case)
    if mirrored is not None:
        return [mirrored]
    return [] if body is None else _check_inside(body, index, lesions, label, case)


def _check_inside(body: Body, index: Index, lesions: Components, label: Path, case: str) -> list[Finding]:
    held = np.bincount(lesions.part - 1, body.holds(index), len(lesions))
    outside = np.flatnonzero(held == 0)
    if not len(outside):
        return []
    first = int(outside[0])
    centre = lesions.centroid_voxel[first].tolist()
    place = ", ".join(f"{n:.0f}" for n in centre)
    message = (
        f"label: '{label}' has {len(outside)} of {len(lesions)} lesions outside the body, the first around voxel "
        f"({place}), of {int(lesions.num_voxels[first])} voxels"
    )
    advice = "Look at them: slips of a brush, or the label lies on another grid than its header says."
    values = {"num_outside": len(outside), "num_lesions": len(lesions), "first_voxel": centre}
    return [Finding(Kind.LESION_OUTSIDE_BODY, message, advice, case, str(label), values)]


def _check_mirrored(
    images: list[Volume], body: Body | None, index: Index, shape: tuple[int, ...], label: Path, case: str
) -> Finding | None:
    as_is = fit_of(images, body, index, shape, None)
    weak = as_is[0] < CONTRAST_AS_IS, as_is[1] < INSIDE_AS_IS
    if not any(weak):
        return None
    codes = axis_codes(images[0])
    fits = {axis: fit_of(images, body, index, shape, axis) for axis in range(3)}
    # Of several mirrors that would do, left and right are exchanged most often.
    for axis in sorted(fits, key=lambda axis: codes[axis] not in "RL"):
        contrast, inside = fits[axis]
        by_contrast = weak[0] and contrast > CONTRAST_MIRRORED and inside >= as_is[1]
        by_body = weak[1] and inside > INSIDE_MIRRORED
        if not (by_contrast or by_body):
            continue
        message = (
            f"label: '{label}' fits better mirrored {_direction(codes[axis])}: contrast of lesions to their "
            f"surroundings {as_is[0]:.2f} as it is and {contrast:.2f} mirrored"
        )
        if body is not None:
            message += f", {as_is[1]:.0%} and {inside:.0%} of them in the body"
        advice = "Look at image and label together. If it is mirrored, correct the file; no program may decide that."
        values = {"axis": axis, "contrast": [as_is[0], contrast], "inside": [as_is[1], inside]}
        return Finding(Kind.LABEL_MIRRORED, message, advice, case, str(label), values)
    return None


def fit_of(
    images: list[Volume], body: Body | None, index: Index, shape: tuple[int, ...], mirrored: int | None
) -> tuple[float, float]:
    """How well lesions fit an image.

    Args:
        images: On one grid.
        body: Where the body is, or None.
        index: Indices of the lesion voxels along each axis.
        shape: Of the grid.
        mirrored: Axis along which the lesions are mirrored first; None leaves them.

    Returns:
        Contrast of lesions to their surroundings, the greatest of all images: the difference of the means over the
        standard deviation of both (root of the mean variance), without its sign. And the share of lesion voxels in
        the body; 1 where there is none to be told.
    """
    kept = slice(None, None, max(1, len(index[0]) // NUM_COMPARED))
    chosen = [i[kept] for i in index]
    around = _surroundings(index, chosen, shape)
    if mirrored is not None:
        chosen = [shape[a] - 1 - i if a == mirrored else i for a, i in enumerate(chosen)]
        around = [shape[a] - 1 - i if a == mirrored else i for a, i in enumerate(around)]
    contrast = max(_contrast(volume.array, chosen, around) for volume in images)
    return contrast, 1.0 if body is None else float(np.mean(body.holds(chosen)))


def _direction(code: str) -> str:
    return next(words for letters, words in AXES.items() if code in letters)


def _surroundings(index: Index, chosen: list[NDArray[np.int64]], shape: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Voxels a few steps along an axis from chosen ones that are no lesion."""
    mask = np.zeros(shape, bool)
    mask[index] = True
    found = []
    for axis in range(3):
        for step in (*REACHES, *(-reach for reach in REACHES)):
            moved = chosen[axis] + step
            fits = (moved >= 0) & (moved < shape[axis])
            place = [moved[fits] if a == axis else i[fits] for a, i in enumerate(chosen)]
            free = ~mask[tuple(place)]
            found.append([i[free] for i in place])
    return [np.concatenate([place[a] for place in found]) for a in range(3)]


def _contrast(image: NDArray[Any], chosen: list[NDArray[np.int64]], around: list[NDArray[np.int64]]) -> float:
    lesion = image[tuple(chosen)].astype(np.float64)
    other = image[tuple(around)].astype(np.float64)
    lesion, other = lesion[np.isfinite(lesion)], other[np.isfinite(other)]
    if not (lesion.size and other.size):
        return 0.0
    spread = float(np.sqrt((lesion.var() + other.var()) / 2))
    return float(abs(lesion.mean() - other.mean()) / spread) if spread > 0 else 0.0


def _indices(voxels: NDArray[np.int64], shape: tuple[int, ...]) -> Index:
    i, j, k = np.unravel_index(voxels, shape)
    return i.astype(np.int64), j.astype(np.int64), k.astype(np.int64)
