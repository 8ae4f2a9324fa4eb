"""From a case on its own grid to the grid and the intensities that the network sees, and back.

The deterministic part is a `Preprocessing`, which travels with the model; the random part is an `Augmentation`,
which only training knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.cases import CaseVolumes
from medfocal.data.manifest import Case
from medfocal.errors import ConfigError, ResourceError
from medfocal.volume import Volume, spacing_of

if TYPE_CHECKING:
    import torch

    from medfocal.annotations.target import Target  # brings scipy, and `medfocal train --help` waits for this module

AXIS_LETTERS = ("LR", "PA", "IS")

#: What a training patch may hold, and how it is interpolated.
INTERPOLATION = {"image": "bilinear", "label": "nearest", "shares": "bilinear", "weight": "bilinear"}

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
        spacing_mm: Voxel spacing to resample to (images linearly, labels to the nearest), or None to keep
            each case's own.
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


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training patches; each is drawn for itself.

    Args:
        flip_probability: For each axis.
        transpose_probability: For swapping the first two axes; with flips this gives all turns by 90 degrees. Only for
            cases whose first two axes have the same spacing, and patches that are square there.
        affine_probability: For one rotation and scaling of the patch together.
        rotation_degrees: Largest angle about each axis.
        scaling: Largest relative change of size, such as 0.1 for 0.9 to 1.1.
        intensity_probability: For scaling and for shifting intensities, each.
        intensity_scale: Largest relative change.
        intensity_shift: Largest shift, in units of the scaled image.
        noise_probability: For Gaussian noise.
        noise_std: Largest standard deviation of the noise, in units of the scaled image.
    """

    flip_probability: float = 0.5
    transpose_probability: float = 0.0
    affine_probability: float = 0.0
    rotation_degrees: float = 15.0
    scaling: float = 0.1
    intensity_probability: float = 0.5
    intensity_scale: float = 0.1
    intensity_shift: float = 0.1
    noise_probability: float = 0.2
    noise_std: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            high = 1.0 if name.endswith("probability") else np.inf
            if not 0 <= value <= high:
                message = f"{name} must be in [0, {high:g}], got {value}"
                raise ValueError(message)


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
        target: What a training case teaches; None: its label.
    """

    case: Case
    image: torch.Tensor
    affine: NDArray[np.float64]
    label: torch.Tensor | None
    grid: Volume
    reference: NDArray[np.int16] | None
    readers: NDArray[Any] | None = None
    weight: NDArray[np.float32] | None = None
    target: Target | None = None


def prepare_case(volumes: CaseVolumes, preprocessing: Preprocessing) -> PreparedCase:
    """Bring a case onto the network's grid and intensity scale. The world coordinate of every voxel is kept."""
    import torch
    from monai.data.meta_tensor import MetaTensor

    _check_resampled_size(volumes.grid, preprocessing)
    affine = torch.as_tensor(volumes.grid.affine)
    # A copy: MONAI scales intensities in place.
    sample = {"image": MetaTensor(torch.tensor(volumes.image), affine=affine)}
    maps = {"label": volumes.label, "readers": volumes.readers, "weight": volumes.weight}
    continuous = {"image", "weight"}
    for key, values in maps.items():
        if values is not None:
            stacked = values if values.ndim == 4 else values[None]
            sample[key] = MetaTensor(torch.from_numpy(stacked.astype(np.float32)), affine=affine)
            if key == "readers" and values.dtype.kind == "f":
                continuous.add(key)
    modes = {key: "bilinear" if key in continuous else "nearest" for key in sample}
    sample = _deterministic(preprocessing, modes)(sample)
    found = {key: value.as_tensor() for key, value in sample.items()}
    label, readers, weight = (found.get(key) for key in maps)
    is_soft = "readers" in continuous
    return PreparedCase(
        case=volumes.case,
        image=found["image"].float().contiguous(),
        affine=np.asarray(sample["image"].affine, dtype=np.float64),
        label=None if label is None else label[0].round().to(torch.uint8).contiguous(),
        grid=volumes.grid,
        reference=volumes.label,
        readers=None if readers is None else (readers.float() if is_soft else readers.round().to(torch.uint8)).numpy(),
        weight=None if weight is None else weight[0].float().numpy(),
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


def _deterministic(preprocessing: Preprocessing, modes: Mapping[str, str]) -> Any:
    """The chain for what is in a sample, with how each is interpolated."""
    from monai import transforms

    keys = tuple(modes)
    chain: list[Any] = [transforms.Orientationd(keys, axcodes=preprocessing.orientation, labels=None)]
    if preprocessing.spacing_mm is not None:
        how = {"mode": list(modes.values()), "padding_mode": "border", "dtype": np.float64}
        chain.append(transforms.Spacingd(keys, preprocessing.spacing_mm, **how))
    if preprocessing.intensity is Intensity.ZSCORE_NONZERO:
        chain.append(transforms.NormalizeIntensityd("image", nonzero=True, channel_wise=True))
    elif preprocessing.intensity is Intensity.PERCENTILE_ZSCORE:
        chain.append(transforms.ClipIntensityPercentilesd("image", lower=0.5, upper=99.5, channel_wise=True))
        chain.append(transforms.NormalizeIntensityd("image", channel_wise=True))
    return transforms.Compose(chain)


def check_transposable(cases: Sequence[PreparedCase], patch_size: Sequence[int]) -> None:
    """See that swapping the first two axes of patches makes sense.

    Raises:
        ConfigError: Patches are not square there, or a case has another spacing along the first axis than along the
            second (by more than 1 %).
    """
    advice = "Set transforms.augment.transpose_probability to 0, or resample by transforms.spacing_mm."
    if patch_size[0] != patch_size[1]:
        message = f"patches of {list(patch_size)} voxels cannot be transposed: the first two axes differ. {advice}"
        raise ConfigError(message)
    for prepared in cases:
        first, second, _ = spacing_of(prepared.affine)
        if abs(first - second) > 0.01 * first:
            message = (
                f"case '{prepared.case.name}' cannot be transposed: its spacing is {first:g} mm along the first axis "
                f"and {second:g} mm along the second. {advice}"
            )
            raise ConfigError(message)


class RandomTransforms:
    """Changes a training patch at random, the same for the same seed.

    Flips, intensities and noise are a few lines of torch, the affine change is MONAI's; why stands in
    docs/decisions/0004-random-changes-without-monai.md.

    Args:
        augmentation: What may happen and how much.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        self._augmentation = augmentation
        self._affine: Any = None
        if augmentation.affine_probability > 0:
            from monai.transforms import RandAffined

            self._affine = RandAffined(
                tuple(INTERPOLATION),
                prob=augmentation.affine_probability,
                rotate_range=[float(np.deg2rad(augmentation.rotation_degrees))] * 3,
                scale_range=[augmentation.scaling] * 3,
                mode=tuple(INTERPOLATION.values()),
                padding_mode="zeros",
                allow_missing_keys=True,
            )
        self.set_random_state(0)

    def set_random_state(self, seed: int) -> None:
        """Make what happens to the next patch depend on this seed alone."""
        self._random = np.random.default_rng(seed)
        if self._affine is not None:
            self._affine.set_random_state(seed=int(self._random.integers(2**32)))

    def __call__(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Change `{"image": (C, I, J, K)}` and beside it other keys of `INTERPOLATION`, each `(N, I, J, K)`.

        All move together; only image values change.
        """
        import torch

        a, random = self._augmentation, self._random
        if self._affine is not None:
            from monai.utils import convert_to_tensor

            sample = {key: convert_to_tensor(value, track_meta=False) for key, value in self._affine(sample).items()}
        axes = [axis for axis in (1, 2, 3) if random.random() < a.flip_probability]
        sample = {key: values.flip(axes) for key, values in sample.items()}
        if random.random() < a.transpose_probability:
            sample = {key: values.transpose(1, 2) for key, values in sample.items()}
        image = sample["image"]
        if random.random() < a.intensity_probability:
            image = image * (1 + random.uniform(-a.intensity_scale, a.intensity_scale))
        if random.random() < a.intensity_probability:
            image = image + random.uniform(-a.intensity_shift, a.intensity_shift)
        if random.random() < a.noise_probability:
            noise = random.standard_normal(tuple(image.shape), dtype=np.float32)
            image = image + torch.from_numpy(noise) * random.uniform(0, a.noise_std)
        return {**sample, "image": image}


def to_native(values: NDArray[np.float32], prepared: PreparedCase) -> NDArray[np.float32]:
    """Bring a map from the network's grid back onto the case's own.

    Where the two grids differ only in the order and direction of axes this is exact; else it interpolates
    linearly.

    Args:
        values: `(I, J, K)` on the network's grid.
        prepared: The case.

    Returns:
        float32 on `prepared.grid`.
    """
    turned, affine = _reorient(values, prepared.affine, prepared.grid.affine)
    if turned.shape == prepared.grid.shape and np.allclose(affine, prepared.grid.affine, atol=1e-4):
        return np.ascontiguousarray(turned, dtype=np.float32)
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import SpatialResample

    source = MetaTensor(torch.from_numpy(np.ascontiguousarray(values))[None], affine=torch.as_tensor(prepared.affine))
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float64)
    target = torch.as_tensor(prepared.grid.affine)
    native = resample(source, dst_affine=target, spatial_size=prepared.grid.shape)
    return np.asarray(native.as_tensor()[0].float().numpy(), dtype=np.float32)


def _reorient(
    values: NDArray[np.float32], affine: NDArray[np.float64], like: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Permute and flip axes so that they point as those of the affine `like`."""
    from nibabel import orientations

    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.io_orientation(like))
    turned = orientations.apply_orientation(values, turn)
    return turned, affine @ orientations.inv_ornt_aff(turn, values.shape)


def body_mask(image: torch.Tensor) -> NDArray[np.bool_]:
    """Voxels of a prepared image `(C, I, J, K)` that belong to the body: some channel is above its lowest.

    In skull-stripped MR the background is 0 and the lowest value need not be: there a voxel counts when some
    channel is not 0.
    """
    array = image.numpy()
    if (array == 0).any():
        inside: NDArray[np.bool_] = (array != 0).any(axis=0)
    else:
        lowest = array.reshape(array.shape[0], -1).min(axis=1)
        inside = (array > lowest[:, None, None, None]).any(axis=0)
    return inside
