"""The voxels of one case, read and held against each other before anything uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.manifest import Case, LabelScheme
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.volume import LABEL_TOLERANCE, Volume, read_labels, read_volume, resample_linear


@dataclass(frozen=True)
class CaseVolumes:
    """A case in memory, on the grid of its first image.

    Attributes:
        case: Names and files.
        image: float32 `(C, I, J, K)`; NaN outside the body has become 0.
        grid: The first image's grid and header; its array costs no memory and holds zeros.
        label: Classes, int `(I, J, K)`, or None where the case has no reference; 0 where nobody judged.
        readers: What `read_annotations` gives, or None where it was not asked for or the case has no annotations.
        weight: Voxel weights, float32 `(I, J, K)`, or None where none were asked for or found.
        ignore: Where the label, or any reader's map, has the value of voxels that nobody judged, bool `(I, J, K)`; None
            where no voxel has it.
    """

    case: Case
    image: NDArray[np.float32]
    grid: Volume
    label: NDArray[np.int16] | None
    readers: NDArray[Any] | None = None
    weight: NDArray[np.float32] | None = None
    ignore: NDArray[np.bool_] | None = None


def read_case(
    case: Case,
    scheme: LabelScheme,
    *,
    with_readers: bool = False,
    weight: Path | None = None,
) -> CaseVolumes:
    """Read the images and the reference of a case and see that they belong together.

    Args:
        case: What to read.
        scheme: What label values may occur and mean.
        with_readers: Whether its annotations are read too.
        weight: Map of voxel weights to read too.

    Returns:
        The voxels.

    Raises:
        InputError: A file cannot be read, or the image is NaN or infinite inside the body, or constant.
        GeometryError: Images or label lie on different grids (0.05 mm apart is rounding).
        DatasetError: The label holds a value that the dataset does not name.
    """
    where = f"case '{case.name}'"
    try:
        volumes = [read_volume(path) for path in case.images]
    except InputError as error:
        raise _named(error, where) from error
    grid = volumes[0]
    for path, volume in zip(case.images[1:], volumes[1:], strict=True):
        if not (case.resample_channels or grid.same_grid(volume)):
            message = (
                f"{where}: the grids of '{case.images[0]}' and '{path}' differ: {grid.grid_difference(volume)}. "
                "Resample all channels of a case to one grid, or set data.resample_channels=true."
            )
            raise GeometryError(message)
    cleaned = [clean_image(v.array, f"{where}: '{p}'") for p, v in zip(case.images, volumes, strict=True)]
    image = np.stack([cleaned[0], *(_on_grid(*pair, grid) for pair in zip(cleaned[1:], volumes[1:], strict=True))])
    label, ignore = (None, None) if case.label is None else _read_reference(case, grid, scheme)
    readers = None
    if with_readers and case.annotations:
        readers, unjudged = read_annotations(case, grid, scheme)
        ignore = unjudged if ignore is None else ignore if unjudged is None else ignore | unjudged
    weights = None if weight is None else read_weights(case, grid, weight)
    return CaseVolumes(case, image, empty_grid(grid), label, readers, weights, ignore)


def read_annotations(case: Case, grid: Volume, scheme: LabelScheme) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read what each reader of a case marked.

    With one lesion class a reader may give the share of each voxel that is lesion, values between 0 and 1. Then all
    readers of the case come as shares.

    Args:
        case: Has annotations.
        grid: Of its images.
        scheme: What label values may occur and mean.

    Returns:
        `(R, I, J, K)` in the order of the manifest: classes, uint8; or shares of the one lesion class, float32. And
        where some reader did not judge, bool `(I, J, K)`, or None.

    Raises:
        InputError: A file cannot be read, or holds values that are neither classes nor shares.
        GeometryError: It lies on another grid than the images.
        DatasetError: It holds a value that the dataset does not name, or a share outside [0, 1].
    """
    found = [_read_marks(case, number, grid, scheme) for number in range(1, len(case.annotations) + 1)]
    is_soft = any(array.dtype == np.float32 for array, _ in found)
    unjudged = [ignore for _, ignore in found if ignore is not None]
    marks = np.stack([array.astype(np.float32 if is_soft else np.uint8) for array, _ in found])
    return marks, np.logical_or.reduce(unjudged) if unjudged else None


def read_weights(case: Case, grid: Volume, path: Path) -> NDArray[np.float32]:
    """Read a map of voxel weights of a case.

    Raises:
        InputError: It cannot be read, or holds a value that is negative or not finite.
        GeometryError: It lies on another grid than the case's images.
    """
    where = f"case '{case.name}'"
    volume = _read_on_grid(read_volume, path, case, grid, where, "weight map")
    with np.errstate(over="ignore"):
        weights = volume.array.astype(np.float32)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        low, high = float(volume.array.min()), float(volume.array.max())
        message = (
            f"{where}: the weight map '{path}' holds values from {low} to {high}; weights are 0 or more and finite"
        )
        raise InputError(message)
    return weights


def empty_grid(volume: Volume) -> Volume:
    """The grid of a volume with an array of zeros that takes no memory."""
    return volume.with_array(np.broadcast_to(np.uint8(0), volume.shape))


def clean_image(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Turn an image into finite float32.

    NaN and infinity are accepted only outside the body, that is where they reach the border of the volume
    through voxels that are themselves not finite or 0; there they become 0.

    Raises:
        InputError: They occur inside the body, or the image has no contrast at all.
    """
    image = array.astype(np.float32)
    finite = np.isfinite(image)
    if not finite.all():
        inside = ~finite & ~_reaches_border(~finite | (image == 0))
        if inside.any():
            index = tuple(int(n) for n in np.argwhere(inside)[0])
            message = (
                f"{where} holds {int(inside.sum())} voxels that are NaN or infinite inside the body, "
                f"the first at {index}: {image[index]}. Export the image again or repair these voxels."
            )
            raise InputError(message)
        image[~finite] = 0
    if image.min() == image.max():
        message = f"{where} is constant: every voxel is {image.flat[0]:g}. Was the right file exported?"
        raise InputError(message)
    return image


def _reaches_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of a mask that are 6-connected within it to the border of the volume."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    faces = [np.take(parts, side, axis=axis) for axis in range(3) for side in (0, -1)]
    touching = np.unique(np.concatenate([face.ravel() for face in faces]))
    found: NDArray[np.bool_] = np.isin(parts, touching[touching > 0])
    return found


def _on_grid(array: NDArray[np.float32], volume: Volume, grid: Volume) -> NDArray[np.float32]:
    """A cleaned channel on the grid of the first; as it is where both are the same."""
    if grid.same_grid(volume):
        return array
    return np.asarray(resample_linear(volume.with_array(array), grid).array, np.float32)


def _read_reference(
    case: Case, grid: Volume, scheme: LabelScheme
) -> tuple[NDArray[np.int16], NDArray[np.bool_] | None]:
    assert case.label is not None
    where = f"case '{case.name}'"
    volume = _read_on_grid(read_labels, case.label, case, grid, where, "label")
    classes, ignore = classes_of(volume.array, scheme, f"{where}: the label '{case.label}'")
    return classes.astype(np.int16), ignore


def _read_marks(
    case: Case, number: int, grid: Volume, scheme: LabelScheme
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Classes of one reader, uint8, or shares of the lesion class, float32; and where he did not judge."""
    path = case.annotations[number - 1]
    where = f"case '{case.name}': reader {number}"
    if scheme.num_classes == 2:
        array = _read_on_grid(read_volume, path, case, grid, where, "annotation").array
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"{where}: the annotation '{path}' holds values that are NaN or infinite. Export it again."
            raise InputError(message)
        if array.dtype.kind == "f" and _has_fractions(array):
            low, high = float(array.min()), float(array.max())
            if not (low >= -LABEL_TOLERANCE and high <= 1 + LABEL_TOLERANCE):
                message = (
                    f"{where}: the annotation '{path}' holds fractions, which are shares of the lesion and must lie in "
                    f"[0, 1], but goes from {low:g} to {high:g}. Divide it by its range, or give whole numbers."
                )
                raise DatasetError(message)
            shares: NDArray[np.float32] = np.clip(array, 0, 1).astype(np.float32)
            return shares, None
    volume = _read_on_grid(read_labels, path, case, grid, where, "annotation")
    classes, ignore = classes_of(volume.array, scheme, f"{where}: the annotation '{path}'")
    return classes.astype(np.uint8), ignore


def classes_of(
    array: NDArray[np.integer[Any]], scheme: LabelScheme, what: str
) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_] | None]:
    """Turn the values of a label file into classes.

    Args:
        array: Values, 0 or more, `(I, J, K)`.
        scheme: What they mean.
        what: The file, for messages.

    Returns:
        Classes, 0 where nobody judged; and where that is, bool, or None where nowhere.

    Raises:
        DatasetError: A value is not named.
    """
    known = {value: value for value in scheme.names} if scheme.values is None else dict(scheme.values)
    if scheme.ignore_value is not None:
        known[scheme.ignore_value] = 0
    found = np.flatnonzero(np.bincount(array.ravel())) if array.max() < 1 << 16 else np.unique(array)
    unnamed = sorted(set(found.tolist()) - set(known))
    if unnamed:
        named = ", ".join(
            f"{value} ({scheme.names[known[value]]})" for value in sorted(set(known) - {scheme.ignore_value})
        )
        message = (
            f"{what} holds {', '.join(map(str, unnamed[:10]))}, which the dataset does not name; "
            f"it names {named}. Correct 'labels' in the dataset file, which hold for all of its files, or this one."
        )
        raise DatasetError(message)
    ignore = None
    if scheme.ignore_value in found:
        ignore = np.asarray(array == scheme.ignore_value)
    if all(known[value] == value for value in found.tolist()):
        return array, ignore
    table = np.zeros(int(found.max()) + 1, array.dtype)
    for value in found.tolist():
        table[value] = known[value]
    return table[array], ignore


def _read_on_grid(
    read: Callable[[Path], Volume], path: Path, case: Case, grid: Volume, where: str, what: str
) -> Volume:
    """Read a file of a case and see that it lies on the grid of its image."""
    try:
        volume = read(path)
    except InputError as error:
        raise _named(error, where) from error
    if not grid.same_grid(volume):
        message = (
            f"{where}: {what} and image grids differ: {volume.grid_difference(grid)} "
            f"({what} '{path}', image '{case.files[0]}').\n"
            f"    Resample the {what} to the image, classes with nearest neighbour, or correct the dataset file."
        )
        raise GeometryError(message)
    return volume


def _has_fractions(array: NDArray[Any]) -> bool:
    """Whether finite values are further from whole numbers than a stored label can be."""
    return bool((np.abs(array - np.rint(array)) > LABEL_TOLERANCE).any())


def _named(error: InputError, where: str) -> InputError:
    return type(error)(f"{where}: {error}")
