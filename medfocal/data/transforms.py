"""From a case on its own grid to the grid and the intensities that the network sees, and back.

What is done at random, in training only, stands in `medfocal.data.augment`. A `Preprocessing` travels with the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.cases import CaseVolumes
from medfocal.data.manifest import Case
from medfocal.data.resampling import GridMap, map_between, map_to_spacing, resample_classes, resample_values
from medfocal.errors import ResourceError
from medfocal.volume import GRID_TOLERANCE_MM, Volume

if TYPE_CHECKING:
    import torch


AXIS_LETTERS = ("LR", "PA", "IS")

# A whole-body CT at 0.7 mm has 5e8 voxels; ten times that is a mistyped spacing.
MOST_VOXELS = 5e9


class Intensity(StrEnum):
    """How intensities are brought to one scale, per case and per channel."""

    ZSCORE_NONZERO = "zscore_nonzero"  # MR: mean 0, standard deviation 1 over the voxels that are not 0
    PERCENTILE_ZSCORE = "percentile_zscore"  # CT: clipped to percentiles 0.5 and 99.5, then as above over all voxels
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to every image before the network sees it, in training and in prediction alike.

    Args:
        orientation: Anatomical direction of each axis, such as "RAS".
        spacing_mm: Voxel spacing to resample to, or None to keep each case's own. Images are interpolated linearly,
            over one voxel of the new grid where that is coarser; no lesion of a label is lost (both rules stand in
            `medfocal.data.resampling`). An axis whose spacing differs by rounding keeps its own.
        intensity: How intensities are scaled.
    """

    orientation: str = "RAS"
    spacing_mm: tuple[float, float, float] | None = None
    intensity: Intensity = Intensity.ZSCORE_NONZERO

    def __post_init__(self) -> None:
        letters = tuple(self.orientation)
        if len(letters) != 3 or sorted(next((a for a in AXIS_LETTERS if c in a), "?") for c in letters) != sorted(
            AXIS_LETTERS
        ):
            message = f"orientation must name each of L/R, P/A and I/S once, such as 'RAS', got {self.orientation!r}"
            raise ValueError(message)
        object.__setattr__(self, "intensity", Intensity(self.intensity))
        if self.spacing_mm is not None:
            spacing = tuple(float(s) for s in self.spacing_mm)
            if len(spacing) != 3 or not all(0 < s < np.inf for s in spacing):
                message = f"spacing_mm must be three positive numbers or null, got {self.spacing_mm}"
                raise ValueError(message)
            object.__setattr__(self, "spacing_mm", spacing)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for model.json."""
        return {**asdict(self), "intensity": str(self.intensity)}


@dataclass(frozen=True)
class PreparedCase:
    """A case as the network sees it, with what is needed to go back.

    Attributes:
        case: Names and files.
        image: float32 `(C, I, J, K)` on the network's grid.
        affine: Of that grid, `(4, 4)`.
        label: Classes, uint8 `(I, J, K)` on that grid, or None.
        grid: The case's own grid.
        reference: The reference on the case's own grid, int16, or None.
        readers: Of `CaseVolumes`, on the network's grid.
        weight: Likewise.
        ignore: Of `CaseVolumes`, on the network's grid: where a half or more was not judged, and one voxel at least
            of every such region.
    """

    case: Case
    image: torch.Tensor
    affine: NDArray[np.float64]
    label: torch.Tensor | None
    grid: Volume
    reference: NDArray[np.int16] | None
    readers: NDArray[Any] | None = None
    weight: NDArray[np.float32] | None = None
    ignore: NDArray[np.bool_] | None = None


def prepare_case(volumes: CaseVolumes, preprocessing: Preprocessing) -> PreparedCase:
    """Bring a case onto the network's grid and intensity scale. The world coordinate of every voxel is kept.

    Raises:
        ResourceError: The resampled case could not be held in memory.
    """
    import torch

    _check_resampled_size(volumes.grid, preprocessing)
    turn = _turn_to(volumes.grid.affine, preprocessing.orientation)
    affine = _turned_affine(volumes.grid, turn)
    grids = None
    if preprocessing.spacing_mm is not None:
        shape = _turned(volumes.grid.array, turn).shape
        grids, affine = map_to_spacing(shape, affine, preprocessing.spacing_mm, tolerance_mm=GRID_TOLERANCE_MM)

    def moved(values: NDArray[Any]) -> NDArray[Any]:
        """Shares and intensities as float32, classes as uint8, always a copy."""
        turned = _turned(values, turn)
        is_continuous = values.dtype.kind == "f"
        if grids is None or grids.is_same:
            return turned.astype(np.float32 if is_continuous else np.uint8, order="C")
        return resample_values(turned, grids) if is_continuous else resample_classes(turned, grids)

    image = moved(volumes.image)
    for channel in image:
        _scale(channel, preprocessing.intensity)
    readers, ignore = volumes.readers, volumes.ignore
    return PreparedCase(
        case=volumes.case,
        image=torch.from_numpy(image),
        affine=affine,
        label=None if volumes.label is None else torch.from_numpy(moved(volumes.label)),
        grid=volumes.grid,
        reference=volumes.label,
        readers=None if readers is None else np.stack([moved(marks) for marks in readers]),
        weight=None if volumes.weight is None else moved(volumes.weight),
        ignore=None if ignore is None else moved(ignore.view(np.uint8)).astype(np.bool_),
    )


def _check_resampled_size(grid: Volume, preprocessing: Preprocessing) -> None:
    """Refuse a spacing so fine that the resampled case could not be held in memory.

    Raises:
        ResourceError: It would have more than `MOST_VOXELS` voxels.
    """
    if preprocessing.spacing_mm is None:
        return
    extent_mm = np.array(grid.shape) * np.array(grid.spacing_mm)
    num_voxels = float(np.prod(extent_mm) / np.prod(preprocessing.spacing_mm))
    if num_voxels > MOST_VOXELS:
        message = (
            f"resampling {grid.shape} voxels of {grid.spacing_mm} mm to {preprocessing.spacing_mm} mm would give about "
            f"{num_voxels:.1e} voxels, more than {MOST_VOXELS:.0e}. Choose a coarser spacing_mm."
        )
        raise ResourceError(message)


def _scale(channel: NDArray[np.float32], intensity: Intensity) -> None:
    """Bring one channel `(I, J, K)` to its scale, in place; what has no spread becomes 0."""
    if intensity is Intensity.NONE:
        return
    if intensity is Intensity.PERCENTILE_ZSCORE:
        low, high = np.percentile(channel, [0.5, 99.5])
        np.clip(channel, low, high, out=channel)
        inside = None
    else:
        inside = channel != 0
        if inside.all():
            inside = None
    values = channel.ravel() if inside is None else channel[inside]
    if values.size == 0:
        return
    # Summed in float64: the rounding of a float32 mean would be the whole spread of a channel that has none.
    values = values - np.float32(values.mean(dtype=np.float64))
    spread = float(np.sqrt(np.square(values).mean(dtype=np.float64)))
    values /= np.float32(spread if spread > 0 else 1)
    if inside is None:
        channel[...] = values.reshape(channel.shape)
    else:
        channel[inside] = values


def to_native(values: NDArray[np.float32], prepared: PreparedCase) -> NDArray[np.float32]:
    """Bring a map from the network's grid back onto the case's own.

    Where the two grids differ only in the order and direction of axes this is exact; else it interpolates
    linearly, over one voxel of the case's grid where that is coarser (`resample_values`).

    Args:
        values: `(I, J, K)` on the network's grid.
        prepared: The case.

    Returns:
        float32 on `prepared.grid`.
    """
    turned, grids = _turned_back(values, prepared)
    return np.ascontiguousarray(resample_values(turned, grids))


def classes_to_native(classes: NDArray[np.uint8], prepared: PreparedCase) -> NDArray[np.uint8]:
    """Bring classes from the network's grid back onto the case's own: each voxel takes that of the nearest.

    Args:
        classes: `(I, J, K)` on the network's grid.
        prepared: The case.

    Returns:
        uint8 on `prepared.grid`.
    """
    turned, grids = _turned_back(classes, prepared)
    if grids.is_same:
        return np.ascontiguousarray(turned)
    nearest = [
        np.clip(np.floor(grids.places(axis) + 0.5).astype(np.int64), 0, grids.old_shape[axis] - 1) for axis in range(3)
    ]
    return np.ascontiguousarray(turned[np.ix_(*nearest)])


def _turned_back(values: NDArray[Any], prepared: PreparedCase) -> tuple[NDArray[Any], GridMap]:
    """Values with their axes in the order and direction of the case's own grid, and how the two grids lie."""
    turn = _turn_between(prepared.affine, prepared.grid.affine)
    turned = _turned(values, turn)
    affine = _turned_affine(Volume(values, prepared.affine), turn)
    return turned, map_between(turned.shape, affine, prepared.grid.shape, prepared.grid.affine)


def _turn_to(affine: NDArray[np.float64], orientation: str) -> NDArray[np.float64]:
    """Which axis goes where and which are flipped, as nibabel writes it, for axes to point as letters say."""
    from nibabel import orientations

    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(orientation))
    return np.asarray(turn)


def _turn_between(affine: NDArray[np.float64], like: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `_turn_to`, for axes to point as those of another affine that has the same directions in another order.

    Each axis goes to the one it lies along. By anatomical names two grids at 45 degrees could be named differently.
    """
    mine, theirs = (given[:3, :3] / np.linalg.norm(given[:3, :3], axis=0) for given in (affine, like))
    along = mine.T @ theirs
    place = np.abs(along).argmax(axis=1)
    return np.stack([place, np.sign(along[np.arange(3), place])], axis=1)


def _turned(values: NDArray[Any], turn: NDArray[np.float64]) -> NDArray[Any]:
    """A view of `(..., I, J, K)` with its last three axes permuted and flipped."""
    leading = values.ndim - 3
    flips = tuple(slice(None, None, int(sign)) for sign in turn[:, 1])
    order = [leading + int(axis) for axis in np.argsort(turn[:, 0])]
    flipped = values[(slice(None),) * leading + flips]
    return flipped.transpose(*range(leading), *order)


def _turned_affine(grid: Volume, turn: NDArray[np.float64]) -> NDArray[np.float64]:
    from nibabel import orientations

    return np.asarray(grid.affine @ orientations.inv_ornt_aff(turn, grid.shape), np.float64)
