"""MONAI's random transforms behind the interface of `medfocal.data.augment`: on the CPU, one patch after another.

For comparison with what others have trained, and for whoever trusts these more. Differences that matter: turns and
sizes are in voxels, so turns between axes of unequal spacing are refused; sizes differ by axis; all channels get the
same change; there is no transposition; and the background is not kept at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfocal.data.augment.batch import (
    SMALLEST,
    Axes,
    Range,
    check_batch,
    check_mirror_axes,
    check_numbers,
)
from medfocal.data.augment.warp import limited, reach
from medfocal.errors import ConfigError

__all__ = ["MonaiAugmentation"]

#: What the ends of the ranges must be between.
RANGES: Mapping[str, Range] = {
    "scaling": (SMALLEST, math.inf),
    "low_resolution_scale": (SMALLEST, 1),
    "blur_sigma_voxels": (SMALLEST, math.inf),
    "brightness_factor": (0, math.inf),
    "contrast_factor": (0, math.inf),
    "gamma": (SMALLEST, 100),
    "shift": (-math.inf, math.inf),
    "bias_field_coefficient": (-10, 10),
    "gibbs_alpha": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class MonaiAugmentation:
    """Random changes of a batch by MONAI's dictionary transforms, seeded for each patch.

    Args:
        mirror_axes: Axes that may be mirrored.
        mirror_probability: For each of them (`RandFlipd`).
        affine_probability: For turns and change of size together (`RandAffined`).
        rotation_degrees: Largest angle about each axis.
        scaling: Range of the factor on the size of what is shown along each axis, drawn for each: things get smaller
            as it grows.
        input_limit: As for `medfocal.data.augment.BatchAugmentation`.
        low_resolution_probability: For a coarser grid and back (`RandSimulateLowResolutiond`).
        low_resolution_scale: Range of the share of the voxels that is kept along each axis.
        blur_probability: For a Gaussian blur (`RandGaussianSmoothd`).
        blur_sigma_voxels: Range of the standard deviation along each axis.
        noise_probability: For Gaussian noise (`RandGaussianNoised`).
        noise_std: Largest standard deviation.
        brightness_probability: For a factor (`RandScaleIntensityd`).
        brightness_factor: Range of the factor.
        contrast_probability: For a factor on differences from the mean (`RandScaleIntensityFixedMeand`).
        contrast_factor: Range of the factor.
        gamma_probability: For a power, mean and deviation kept (`RandAdjustContrastd`).
        gamma_inverted_probability: For the same to the negative.
        gamma: Range of the exponent.
        shift_probability: For adding a number (`RandShiftIntensityd`).
        shift: Range of the number.
        bias_field_probability: For a smooth field (`RandBiasFieldd`).
        bias_field_coefficient: Range of its coefficients.
        gibbs_probability: For ringing (`RandGibbsNoised`).
        gibbs_alpha: Range of its strength.
    """

    mirror_axes: tuple[int, ...] = (0, 1, 2)
    mirror_probability: float = 0.5
    affine_probability: float = 0.2
    rotation_degrees: Axes = (30.0, 30.0, 30.0)
    scaling: Range = (0.7, 1.4)
    input_limit: float = 1.4
    low_resolution_probability: float = 0.25
    low_resolution_scale: Range = (0.5, 1.0)
    blur_probability: float = 0.2
    blur_sigma_voxels: Range = (0.5, 1.0)
    noise_probability: float = 0.1
    noise_std: float = 0.1
    brightness_probability: float = 0.15
    brightness_factor: Range = (0.75, 1.25)
    contrast_probability: float = 0.15
    contrast_factor: Range = (0.75, 1.25)
    gamma_probability: float = 0.3
    gamma_inverted_probability: float = 0.1
    gamma: Range = (0.7, 1.5)
    shift_probability: float = 0.0
    shift: Range = (-0.1, 0.1)
    bias_field_probability: float = 0.0
    bias_field_coefficient: Range = (0.0, 0.1)
    gibbs_probability: float = 0.0
    gibbs_alpha: Range = (0.0, 0.6)

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if name.endswith("probability"):
                check_numbers(name, (value,), 1, 0, 1)
        for name, (low, high) in RANGES.items():
            check_numbers(name, getattr(self, name), 2, low, high)
        check_numbers("rotation_degrees", self.rotation_degrees, 3, 0, 180)
        check_numbers("noise_std", (self.noise_std,), 1, 0, math.inf)
        check_numbers("input_limit", (self.input_limit,), 1, 1, math.inf)
        check_mirror_axes(self.mirror_axes, 0.0)

    def check(self, patch_size: Sequence[int], spacings_mm: Mapping[str, Sequence[float]]) -> None:  # noqa: ARG002  the interface
        """See that what may happen suits the cases.

        Args:
            patch_size: Voxels along each axis.
            spacings_mm: Of each case on the network's grid, by its name.

        Raises:
            ConfigError: A case would be turned between axes whose spacings differ (by more than 1 %), which shears.
        """
        if self.affine_probability == 0:
            return
        for case, spacing in spacings_mm.items():
            for axis, degrees in enumerate(self.rotation_degrees):
                first, second = (n for n in range(3) if n != axis)
                if degrees > 0 and abs(spacing[first] - spacing[second]) > 0.01 * spacing[first]:
                    message = (
                        f"case '{case}' would be sheared by a turn in voxels: its spacing is {spacing[first]:g} mm "
                        f"along axis {first} and {spacing[second]:g} mm along axis {second}. Choose augment=default, "
                        f"set augment.rotation_degrees to 0 about axis {axis}, or resample by transforms.spacing_mm."
                    )
                    raise ConfigError(message)

    def input_size(self, patch_size: Sequence[int], spacings_mm: Sequence[Sequence[float]]) -> tuple[int, int, int]:  # noqa: ARG002  the interface
        """What must be cut, as for `medfocal.data.augment.BatchAugmentation`."""
        if self.affine_probability == 0:
            i, j, k = patch_size
            return i, j, k
        smallest = 1 / max(1.0, *self.scaling)
        wanted = reach(patch_size, (1, 1, 1), degrees=self.rotation_degrees, smallest=smallest, displacement_mm=0.0)
        return limited(patch_size, wanted, self.input_limit)

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Tensor],
        *,
        seeds: Sequence[int],
        spacing_mm: Sequence[Sequence[float]],
        patch_size: Sequence[int],
    ) -> dict[str, Tensor]:
        """Change a batch, as `medfocal.data.augment.BatchAugmentation` does; the result is where the batch was."""
        check_batch(batch, len(seeds), len(spacing_mm), patch_size)
        i, j, k = patch_size
        chain = self.chain((i, j, k))
        patches = []
        for number, seed in enumerate(seeds):
            chain.set_random_state(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
            patches.append(chain({key: values[number].cpu() for key, values in batch.items()}))
        return {
            key: torch.stack([patch[key].as_subclass(Tensor) for patch in patches]).to(values)
            for key, values in batch.items()
        }

    def chain(self, patch_size: tuple[int, int, int]) -> Any:
        """MONAI's own transforms, of one patch: each key `(N, *input_size)` becomes `(N, *patch_size)`."""
        return _chain(self, patch_size)


@cache
def _chain(settings: MonaiAugmentation, patch_size: tuple[int, int, int]) -> Any:
    from monai import transforms as m

    def offsets(bounds: Range) -> tuple[float, float]:
        return bounds[0] - 1, bounds[1] - 1

    keys, sigma = ("image", "label", "shares", "weight"), settings.blur_sigma_voxels
    affine = m.RandAffined(
        keys,
        prob=1.0,
        spatial_size=patch_size,
        rotate_range=[math.radians(degrees) for degrees in settings.rotation_degrees],
        scale_range=[offsets(settings.scaling)] * 3,
        mode=("bilinear", "nearest", "bilinear", "bilinear"),
        padding_mode="zeros",
        cache_grid=True,
        allow_missing_keys=True,
    )
    # RandAffined would interpolate what it does not change too, as it cuts by its grid.
    cut = m.CenterSpatialCropd(keys, patch_size, allow_missing_keys=True)
    share = settings.affine_probability
    return m.Compose(
        [
            m.OneOf([affine, cut], weights=(share, 1 - share)),
            *(
                m.RandFlipd(keys, prob=settings.mirror_probability, spatial_axis=axis, allow_missing_keys=True)
                for axis in settings.mirror_axes
            ),
            m.RandBiasFieldd(
                "image", prob=settings.bias_field_probability, coeff_range=settings.bias_field_coefficient
            ),
            m.RandGibbsNoised("image", prob=settings.gibbs_probability, alpha=settings.gibbs_alpha),
            m.RandSimulateLowResolutiond(
                "image", prob=settings.low_resolution_probability, zoom_range=settings.low_resolution_scale
            ),
            m.RandGaussianSmoothd("image", prob=settings.blur_probability, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
            m.RandGaussianNoised("image", prob=settings.noise_probability, std=settings.noise_std),
            m.RandScaleIntensityd(
                "image", prob=settings.brightness_probability, factors=offsets(settings.brightness_factor)
            ),
            m.RandScaleIntensityFixedMeand(
                "image",
                prob=settings.contrast_probability,
                factors=offsets(settings.contrast_factor),
                preserve_range=True,
            ),
            m.RandAdjustContrastd(
                "image",
                prob=settings.gamma_inverted_probability,
                gamma=settings.gamma,
                invert_image=True,
                retain_stats=True,
            ),
            m.RandAdjustContrastd("image", prob=settings.gamma_probability, gamma=settings.gamma, retain_stats=True),
            m.RandShiftIntensityd("image", prob=settings.shift_probability, offsets=settings.shift),
        ]
    )
