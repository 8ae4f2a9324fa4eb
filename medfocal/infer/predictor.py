"""Prediction from Python: a model, an image in any form, and what was found as plain values and volumes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medfocal.components import Components
from medfocal.data.cases import CaseVolumes, clean_image, empty_grid
from medfocal.data.manifest import Case
from medfocal.data.transforms import prepare_case
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.infer.candidates import candidate_rows
from medfocal.infer.ensemble import load_models
from medfocal.infer.predict import other_views, predict_case
from medfocal.infer.window import choose_device
from medfocal.model import Model, OperatingPoint
from medfocal.volume import SPACING_LIMITS_MM, Volume, read_volume, spacing_of, voxel_volume_ml

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A place that may be a lesion.

    Attributes:
        number: From 1, by falling confidence.
        confidence: In [0, 1].
        kept: Whether it is in the mask.
        operating_points: Names of those of the model at which it counts.
        num_voxels: On the image's own grid.
        volume_ml: Of all of them.
        equivalent_diameter_mm: Of the ball of this volume.
        longest_diameter_mm: Longest distance between two corners of its voxels.
        axial_diameter_mm: The same within one slice, the longest of all slices.
        centre_mm: World coordinates (RAS) of its centre of mass.
        centre_voxel: Its voxel coordinates `(i, j, k)`.
    """

    number: int
    confidence: float
    kept: bool
    operating_points: tuple[str, ...]
    num_voxels: int
    volume_ml: float
    equivalent_diameter_mm: float
    longest_diameter_mm: float
    axial_diameter_mm: float
    centre_mm: tuple[float, float, float]
    centre_voxel: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a model finds in one case; volumes lie on the image's own grid.

    Attributes:
        mask: Lesion class of the voxels of candidates that are kept, 0 elsewhere, uint8.
        probability: Of any lesion, float32 in [0, 1].
        candidates: All of them, kept or not, by falling confidence.
        threshold: Confidence from which a candidate is kept.
        notes: What was done otherwise than asked, for want of memory, or otherwise than the threshold was chosen.
    """

    mask: Volume
    probability: Volume
    candidates: tuple[Candidate, ...]
    threshold: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictor(Model):
    """A model that predicts from Python; wherever a `Model` is taken it is one.

    Attributes:
        device: Where its networks are.
    """

    device: torch.device

    def predict(
        self,
        image: object,
        *,
        threshold: float | None = None,
        mirror: bool = False,
        max_memory_mb: float | None = None,
        allow_cpu: bool = False,
    ) -> Found:
        """Predict one case, and write nothing.

        Args:
            image: A path, a `medfocal.volume.Volume` or an image of nibabel; of a model with several channels a list
                of as many, in the order of `card.channels` and on one grid.
            threshold: Confidence from which a candidate is kept, in [0, 1]; None: the model's first operating point.
            mirror: Whether to average over the eight mirrored views, in eight times the time.
            max_memory_mb: What the case may take beside the program and the model; None: no bound.
            allow_cpu: Whether to go on on the CPU where the GPU's memory does not suffice for one window.

        Returns:
            The same numbers as `medfocal predict` writes.

        Raises:
            InputError: An image cannot be read, is constant, or is not finite inside the body.
            GeometryError: A grid makes no sense, or those of the channels differ.
            DatasetError: There are more or fewer images than the model has channels.
            ModelError: A network gives NaN.
            ResourceError: There is not enough memory.
            TypeError: An image is of none of these kinds.
            ValueError: The threshold is not in [0, 1].
        """
        if threshold is not None and not 0 <= threshold <= 1:
            message = f"threshold must be in [0, 1], got {threshold}"
            raise ValueError(message)
        points = self.card.operating_points
        kept_from = points[0].threshold if threshold is None else threshold
        prepared = prepare_case(_volumes_of(image, self.card.channels), self.card.preprocessing)
        said = predict_case(
            self,
            prepared,
            device=self.device,
            mirror=mirror,
            max_memory_mb=max_memory_mb,
            allow_cpu=allow_cpu,
        )
        return Found(
            mask=prepared.grid.with_array(said.mask(kept_from)),
            probability=prepared.grid.with_array(said.probability),
            candidates=_candidates_of(said.candidates, kept_from, points),
            threshold=kept_from,
            notes=(*said.notes, *other_views(self.card, threshold=threshold, mirror=mirror)),
        )


def load_model(folder: str | Path | Sequence[str | Path], device: str = "auto") -> Predictor:
    """Read a model folder, or several whose probabilities are averaged.

    Args:
        folder: Written by `medfocal train` or `calibrate`; or a list of such folders.
        device: "auto" (the first GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        ModelError: A folder is no model, is altered, or does not go together with the others.
        ConfigError: There is no such device here.
    """
    chosen = choose_device(device)
    folders = [folder] if isinstance(folder, str | Path) else folder
    model = load_models([Path(one) for one in folders], chosen)
    return Predictor(model.networks, model.card, model.weights_sha256, chosen)


def _candidates_of(found: Components, threshold: float, points: Sequence[OperatingPoint]) -> tuple[Candidate, ...]:
    rows: list[Any] = candidate_rows("", found, threshold, points)
    same = [
        *("confidence", "kept", "num_voxels", "volume_ml"),
        *("equivalent_diameter_mm", "longest_diameter_mm", "axial_diameter_mm"),
    ]
    return tuple(
        Candidate(
            number=row["candidate"],
            operating_points=tuple(point.name for point in points if row["confidence"] >= point.threshold),
            centre_mm=(row["x_mm"], row["y_mm"], row["z_mm"]),
            centre_voxel=(row["i"], row["j"], row["k"]),
            **{name: row[name] for name in same},
        )
        for row in rows
    )


def _volumes_of(image: object, channels: Sequence[str]) -> CaseVolumes:
    """The image as a case that was read from files would be, clean and with its channels on one grid."""
    given = list(image) if isinstance(image, list | tuple) else [image]
    if len(given) != len(channels):
        message = (
            f"the model takes {len(channels)} images, one a channel ({', '.join(channels)}), and {len(given)} "
            f"{'was' if len(given) == 1 else 'were'} given"
        )
        raise DatasetError(message)
    names = [_name_of(one, channel) for one, channel in zip(given, channels, strict=True)]
    volumes = [_volume_of(one, name) for one, name in zip(given, names, strict=True)]
    grid = volumes[0]
    for name, volume in zip(names[1:], volumes[1:], strict=True):
        if not grid.same_grid(volume):
            message = (
                f"the grids of {names[0]} and {name} differ: {grid.grid_difference(volume)}. "
                "Resample all channels of a case to one grid."
            )
            raise GeometryError(message)
    cleaned = [clean_image(volume.array, name) for volume, name in zip(volumes, names, strict=True)]
    return CaseVolumes(Case("image", "image", "test", ()), np.stack(cleaned), empty_grid(grid), None)


def _name_of(image: object, channel: str) -> str:
    """What messages call an image."""
    return f"'{os.fspath(image)}'" if isinstance(image, str | os.PathLike) else f"the image of channel '{channel}'"


def _volume_of(image: object, name: str) -> Volume:
    from nibabel import Nifti1Header
    from nibabel.spatialimages import SpatialImage

    if isinstance(image, str | os.PathLike):
        return read_volume(Path(image))
    if isinstance(image, Volume):
        volume = image
    elif isinstance(image, SpatialImage):
        try:
            array = np.asarray(image.dataobj)
        except (OSError, EOFError, ValueError, zlib.error) as error:  # nibabel reads the file only now
            message = f"{name} cannot be read: {error}"
            raise InputError(message) from error
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        # Others than NIfTI's headers cannot be written with the results.
        header = image.header.copy() if isinstance(image.header, Nifti1Header) else None
        affine = np.full((4, 4), np.nan) if image.affine is None else np.asarray(image.affine, np.float64)
        volume = Volume(array, affine, header)
    else:
        message = f"{name} must be a path, a medfocal.volume.Volume or an image of nibabel, got {type(image).__name__}"
        raise TypeError(message)
    _check_volume(volume, name)
    return volume


def _check_volume(volume: Volume, name: str) -> None:
    """Hold what was not read from a file against what reading would have refused."""
    array, affine = volume.array, volume.affine
    if array.ndim != 3 or not array.size or array.dtype.kind not in "biuf":
        message = f"{name} must have three axes of real numbers, got {array.dtype} of shape {array.shape}"
        raise InputError(message)
    low, high = SPACING_LIMITS_MM
    is_sound = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
    is_sound = is_sound and all(low <= spacing <= high for spacing in spacing_of(affine))
    if not is_sound or voxel_volume_ml(affine) * 1000 < 1e-3 * float(np.prod(spacing_of(affine))):
        message = f"the affine of {name} makes no sense: {np.array2string(affine, precision=4, separator=', ')}"
        raise GeometryError(message)
