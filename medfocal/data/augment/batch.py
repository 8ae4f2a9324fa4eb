"""Random changes of training batches on the device where they are, each patch from its own seed.

What happens to a patch follows from its seed alone: not from the patches beside it, nor from how many processes make
batches. Each kind of change draws the same number of values whether it happens or not, so that one setting does not
move what the others draw. Only the noise depends on the device, as CPU and CUDA have other generators.

Nothing mirrors but `mirror_axes` and the transposition, which is refused unless both of its axes may be mirrored: where
left and right differ, leave axis 0 out of `mirror_axes`.

Background, voxels that are 0 in every channel when the patch has been cut and warped, is 0 again at the end, as around
a skull-stripped brain in prediction. Means, ranges and deviations are over the whole patch, as in nnU-Net.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfocal.data.augment import intensity
from medfocal.data.augment.warp import (
    INJECTIVE,
    Warp,
    affine_matrix,
    control_points,
    elastic_displacement,
    limited,
    reach,
    sample,
)
from medfocal.errors import ConfigError

__all__ = ["BatchAugmentation"]

#: Streams of a seed, so that what is drawn in one never moves another.
CHANGES, ELASTIC, BIAS_FIELD, MOTION = range(4)

#: What a batch may hold beside the image.
KEYS = ("image", "label", "shares", "weight")

Axes = tuple[float, float, float]
Range = tuple[float, float]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Changes:
    """What happens to one patch. A mapping has the channels that are changed, by number.

    Attributes:
        seed: Of the patch.
        mirrored: Axes.
        transposed: Whether the first two axes are swapped.
        degrees: Of the turns about the axes, or None.
        factors: On the size of things along the axes, or None.
        elastic_mm: Bound of the displacement along each axis, or None.
        bias_field: Largest absolute logarithm.
        motion: Axis, and bound of the shift in mm.
        gibbs: Axis, and share of the frequencies that is kept.
        low_resolution: Share of the voxels that is kept along each axis.
        blur: Standard deviation along each axis, in voxels.
        noise: Standard deviation.
        brightness: Factor.
        contrast: Factor.
        gamma: Exponent.
        gamma_inverted: Exponent for the negative.
        shift: Added.
        noise_seed: Of the noise.
    """

    seed: int
    mirrored: tuple[int, ...] = ()
    transposed: bool = False
    degrees: NDArray[np.float64] | None = None
    factors: NDArray[np.float64] | None = None
    elastic_mm: float | None = None
    bias_field: Mapping[int, float] = field(default_factory=dict)
    motion: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    gibbs: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    low_resolution: Mapping[int, float] = field(default_factory=dict)
    blur: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    noise: Mapping[int, float] = field(default_factory=dict)
    brightness: Mapping[int, float] = field(default_factory=dict)
    contrast: Mapping[int, float] = field(default_factory=dict)
    gamma: Mapping[int, float] = field(default_factory=dict)
    gamma_inverted: Mapping[int, float] = field(default_factory=dict)
    shift: Mapping[int, float] = field(default_factory=dict)
    noise_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchAugmentation:
    """Random changes of a batch; by default those of nnU-Net. Each kind is drawn for itself, in this order.

    Ranges are drawn from uniformly; factors (`scaling`, `zoom`, `brightness_factor`, `contrast_factor`, `gamma`) are as
    often below 1 as above it, where the range holds both, and uniform on either side. Axes are those of the network's
    grid.

    Args:
        mirror_axes: Axes that may be mirrored, such as [0, 1, 2]; with orientation RAS, 0 swaps left and right.
        mirror_probability: For each of them.
        transpose_probability: For swapping the first two axes; with mirrors this gives all turns by 90 degrees.
        rotation_probability: For turns about all axes together.
        rotation_degrees: Largest angle about each axis.
        scaling_probability: For one change of size.
        scaling: Range of the factor on the size of things.
        zoom_probability: For a change of size that differs by axis.
        zoom: Range of the factor along each axis.
        elastic_probability: For a smooth deformation: a cubic B-spline over random displacements of control points.
        elastic_spacing_mm: Distance of the control points.
        elastic_displacement_mm: Range of the largest displacement along an axis.
        input_limit: Most that is cut for a warped patch, in sizes of the patch along each axis; what lies beyond is 0
            in image, label and weight.
        bias_field_probability: For a smooth multiplicative field in each channel.
        bias_field_strength: Range of the largest absolute logarithm of the field.
        motion_probability: For each channel to be measured while the head moves along one axis.
        motion_shift_mm: Range of the largest shift.
        motion_parts: Equal parts of the measurement, each with its own shift, the central part of k-space with none.
        gibbs_probability: For cutting high frequencies along one axis of each channel.
        gibbs_kept: Range of the share of the frequencies that stays.
        low_resolution_probability: For a coarser grid and back.
        low_resolution_channel_probability: For each channel then.
        low_resolution_scale: Range of the share of the voxels that is kept along each axis.
        blur_probability: For a Gaussian blur.
        blur_channel_probability: For each channel then.
        blur_sigma_voxels: Range of the standard deviation along each axis.
        noise_probability: For Gaussian noise in all channels, of one standard deviation.
        noise_std: Range of it, in units of the image.
        brightness_probability: For a factor on each channel.
        brightness_factor: Range of the factor.
        contrast_probability: For a factor on the differences from the mean of each channel.
        contrast_factor: Range of the factor.
        contrast_keeps_range: Whether what then lies outside of the channel's range is cut to it.
        gamma_probability: For a power of intensities brought to [0, 1], mean and standard deviation kept.
        gamma_inverted_probability: For the same to the negative of the image, drawn for itself.
        gamma: Range of the exponent.
        shift_probability: For adding a number to each channel.
        shift: Range of the number, in units of the image.
        keeps_background: Whether voxels that are 0 in every channel are 0 again at the end.

    References:
        Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
        Nature Methods 18, supplementary note 4. Differs in the order (from anatomy over acquisition to display), in
        turns and sizes in mm, and in the label, which is the nearest.
    """

    mirror_axes: tuple[int, ...] = (0, 1, 2)
    mirror_probability: float = 0.5
    transpose_probability: float = 0.0
    rotation_probability: float = 0.2
    rotation_degrees: Axes = (30.0, 30.0, 30.0)
    scaling_probability: float = 0.2
    scaling: Range = (0.7, 1.4)
    zoom_probability: float = 0.0
    zoom: Range = (0.85, 1.15)
    elastic_probability: float = 0.0
    elastic_spacing_mm: float = 32.0
    elastic_displacement_mm: Range = (0.0, 6.0)
    input_limit: float = 1.4
    bias_field_probability: float = 0.0
    bias_field_strength: Range = (0.0, 0.4)
    motion_probability: float = 0.0
    motion_shift_mm: Range = (0.0, 4.0)
    motion_parts: int = 4
    gibbs_probability: float = 0.0
    gibbs_kept: Range = (0.5, 0.9)
    low_resolution_probability: float = 0.25
    low_resolution_channel_probability: float = 0.5
    low_resolution_scale: Range = (0.5, 1.0)
    blur_probability: float = 0.2
    blur_channel_probability: float = 0.5
    blur_sigma_voxels: Range = (0.5, 1.0)
    noise_probability: float = 0.1
    noise_std: Range = (0.0, 0.1)
    brightness_probability: float = 0.15
    brightness_factor: Range = (0.75, 1.25)
    contrast_probability: float = 0.15
    contrast_factor: Range = (0.75, 1.25)
    contrast_keeps_range: bool = True
    gamma_probability: float = 0.3
    gamma_inverted_probability: float = 0.1
    gamma: Range = (0.7, 1.5)
    shift_probability: float = 0.0
    shift: Range = (-0.1, 0.1)
    keeps_background: bool = True

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
        check_numbers("elastic_spacing_mm", (self.elastic_spacing_mm,), 1, SMALLEST, math.inf)
        check_numbers("input_limit", (self.input_limit,), 1, 1, math.inf)
        check_numbers("motion_parts", (self.motion_parts,), 1, 2, math.inf)
        check_mirror_axes(self.mirror_axes, self.transpose_probability)
        largest = max(self.elastic_displacement_mm)
        if self.elastic_probability > 0 and largest > INJECTIVE * self.elastic_spacing_mm:
            message = (
                f"elastic_displacement_mm may be at most {INJECTIVE} times elastic_spacing_mm "
                f"({self.elastic_spacing_mm:g} mm), or the grid would fold, got {largest:g} mm"
            )
            raise ValueError(message)

    def check(self, patch_size: Sequence[int], spacings_mm: Mapping[str, Sequence[float]]) -> None:
        """See that what may happen suits the patches.

        Args:
            patch_size: Voxels along each axis.
            spacings_mm: Of each case on the network's grid, by its name.

        Raises:
            ConfigError: They would be transposed, but are not square, or a case has another spacing along the first
                axis than along the second (by more than 1 %).
        """
        if self.transpose_probability > 0:
            check_transposable(patch_size, spacings_mm)

    def input_size(self, patch_size: Sequence[int], spacings_mm: Sequence[Sequence[float]]) -> tuple[int, int, int]:
        """What must be cut, around the same centre, so that a warped patch shows nothing but what was cut.

        Args:
            patch_size: Voxels along each axis.
            spacings_mm: Of the cases.

        Returns:
            The patch size itself where nothing is warped; else at most `input_limit` times the patch along each axis.
        """
        zooms = [(self.scaling_probability, self.scaling), (self.zoom_probability, self.zoom)]
        smallest = math.prod(min(1.0, *bounds) for probability, bounds in zooms if probability > 0)
        degrees = self.rotation_degrees if self.rotation_probability > 0 else (0.0, 0.0, 0.0)
        displacement_mm = max(self.elastic_displacement_mm) if self.elastic_probability > 0 else 0.0
        size = tuple(patch_size)
        for spacing_mm in {tuple(float(s) for s in spacing) for spacing in spacings_mm}:
            wanted = reach(patch_size, spacing_mm, degrees=degrees, smallest=smallest, displacement_mm=displacement_mm)
            size = tuple(max(pair) for pair in zip(size, limited(patch_size, wanted, self.input_limit), strict=True))
        i, j, k = size
        return i, j, k

    def changes(self, seed: int, num_channels: int) -> Changes:
        """Draw what happens to the patch of a seed."""
        chance = _Chance(seed, num_channels)
        mirrored = chance.uniform((0.0, 1.0), 3) < self.mirror_probability
        return Changes(
            seed=seed,
            mirrored=tuple(axis for axis in range(3) if mirrored[axis] and axis in self.mirror_axes),
            transposed=chance.happens(self.transpose_probability),
            degrees=chance.perhaps(self.rotation_probability, self._angles(chance)),
            factors=self._factors(chance),
            elastic_mm=chance.perhaps(self.elastic_probability, chance.number(self.elastic_displacement_mm)),
            bias_field=chance.of_channels(self.bias_field_probability, chance.each(self.bias_field_strength)),
            motion=chance.of_channels(self.motion_probability, chance.along_an_axis(self.motion_shift_mm)),
            gibbs=chance.of_channels(self.gibbs_probability, chance.along_an_axis(self.gibbs_kept)),
            low_resolution=chance.of_channels(
                self.low_resolution_probability,
                chance.each(self.low_resolution_scale),
                self.low_resolution_channel_probability,
            ),
            blur=chance.of_channels(
                self.blur_probability,
                list(chance.uniform(self.blur_sigma_voxels, (num_channels, 3))),
                self.blur_channel_probability,
            ),
            noise=chance.of_channels(self.noise_probability, [chance.number(self.noise_std)] * num_channels),
            brightness=chance.of_channels(self.brightness_probability, chance.factors(self.brightness_factor)),
            contrast=chance.of_channels(self.contrast_probability, chance.factors(self.contrast_factor)),
            gamma=chance.of_channels(self.gamma_probability, chance.factors(self.gamma)),
            gamma_inverted=chance.of_channels(self.gamma_inverted_probability, chance.factors(self.gamma)),
            shift=chance.of_channels(self.shift_probability, chance.each(self.shift)),
            noise_seed=chance.seed(),
        )

    def _angles(self, chance: _Chance) -> NDArray[np.float64]:
        angles: NDArray[np.float64] = chance.uniform((-1.0, 1.0), 3) * np.asarray(self.rotation_degrees)
        return angles

    def _factors(self, chance: _Chance) -> NDArray[np.float64] | None:
        """Of a change of size and of one that differs by axis, together."""
        scaling = chance.perhaps(self.scaling_probability, chance.factor(self.scaling, 1))
        zoom = chance.perhaps(self.zoom_probability, chance.factor(self.zoom, 3))
        if scaling is None and zoom is None:
            return None
        factors = np.ones(3)
        for found in (scaling, zoom):
            factors = factors if found is None else factors * found
        return factors

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Tensor],
        *,
        seeds: Sequence[int],
        spacing_mm: Sequence[Sequence[float]],
        patch_size: Sequence[int],
    ) -> dict[str, Tensor]:
        """Change a batch; what was given stays as it is.

        Args:
            batch: On one device, each `(B, N, *input_size)`: `image` float32, `label` uint8 (nearest), `shares` and
                `weight` float32 (linear).
            seeds: One for each patch, not negative.
            spacing_mm: Of the voxels of each patch.
            patch_size: Voxels of the result.

        Returns:
            The same keys, each `(B, N, *patch_size)` and contiguous.

        Raises:
            ValueError: A key is unknown, sizes differ, or the input is smaller than the patch.
        """
        check_batch(batch, len(seeds), len(spacing_mm), patch_size)
        image = batch["image"]
        result = {
            key: torch.empty((*values.shape[:2], *patch_size), dtype=values.dtype, device=values.device)
            for key, values in batch.items()
        }
        for number, (seed, spacing) in enumerate(zip(seeds, spacing_mm, strict=True)):
            changes = self.changes(seed, image.shape[1])
            warp = self._warp(changes, patch_size, spacing, image.device)
            for key, values in sample({key: v[number] for key, v in batch.items()}, patch_size, warp).items():
                result[key][number] = _turned(values, changes)
            self._change_intensities(result["image"][number], changes, spacing)
        return result

    def _warp(
        self, changes: Changes, patch_size: Sequence[int], spacing_mm: Sequence[float], device: torch.device
    ) -> Warp | None:
        if changes.degrees is None and changes.factors is None and changes.elastic_mm is None:
            return None
        degrees = np.zeros(3) if changes.degrees is None else changes.degrees
        factors = np.ones(3) if changes.factors is None else changes.factors
        matrix = affine_matrix(degrees, factors, spacing_mm)
        if changes.elastic_mm is None:
            return Warp(matrix=matrix)
        points = control_points(patch_size, spacing_mm, self.elastic_spacing_mm)
        random = np.random.default_rng([changes.seed, ELASTIC])
        displacement = elastic_displacement(
            random.uniform(-changes.elastic_mm, changes.elastic_mm, (3, *points)),
            patch_size,
            spacing_mm=spacing_mm,
            control_spacing_mm=self.elastic_spacing_mm,
            device=device,
        )
        i, j, k = (changes.elastic_mm / s for s in spacing_mm)
        return Warp(matrix=matrix, displacement=displacement, largest=(i, j, k))

    def _change_intensities(self, image: Tensor, changes: Changes, spacing_mm: Sequence[float]) -> None:
        """In place; `image` is `(C, I, J, K)`, already mirrored and, where the spacing allows it, transposed."""
        with _background(image, kept=self.keeps_background and _is_any_intensity_changed(changes)):
            for channel, values in enumerate(image):
                self._acquire(values, channel, changes, spacing_mm)
            if changes.noise:
                generator = torch.Generator(image.device).manual_seed(changes.noise_seed)
                noise = torch.randn(image.shape, generator=generator, device=image.device)
                image.add_(noise, alpha=changes.noise[0])
            for channel, values in enumerate(image):
                self._display(values, channel, changes)

    def _acquire(self, image: Tensor, channel: int, changes: Changes, spacing_mm: Sequence[float]) -> None:
        """What happens before a scanner's noise, to one channel."""
        if channel in changes.bias_field:
            random = np.random.default_rng([changes.seed, BIAS_FIELD, channel])
            intensity.change_bias_field(image, changes.bias_field[channel], _polynomial(random))
        if channel in changes.motion:
            axis, largest_mm = changes.motion[channel]
            random = np.random.default_rng([changes.seed, MOTION, channel])
            shifts = random.uniform(-largest_mm, largest_mm, self.motion_parts) / spacing_mm[axis]
            shifts[0] = 0
            image.copy_(intensity.moved_while_measured(image, axis, shifts))
        if channel in changes.gibbs:
            image.copy_(intensity.without_high_frequencies(image, *changes.gibbs[channel]))
        if channel in changes.low_resolution:
            image.copy_(intensity.at_low_resolution(image, changes.low_resolution[channel]))
        if channel in changes.blur:
            image.copy_(intensity.blurred(image, changes.blur[channel]))

    def _display(self, image: Tensor, channel: int, changes: Changes) -> None:
        """What happens after it."""
        if channel in changes.brightness:
            image.mul_(changes.brightness[channel])
        if channel in changes.contrast:
            intensity.change_contrast(image, changes.contrast[channel], keeps_range=self.contrast_keeps_range)
        if channel in changes.gamma_inverted:
            intensity.change_gamma(image, changes.gamma_inverted[channel], inverted=True)
        if channel in changes.gamma:
            intensity.change_gamma(image, changes.gamma[channel], inverted=False)
        if channel in changes.shift:
            image.add_(changes.shift[channel])


class _Chance:
    """Draws for one patch, the same number of values for each question whatever its settings and its answer."""

    def __init__(self, seed: int, num_channels: int) -> None:
        self._random = np.random.default_rng([seed, CHANGES])
        self._num_channels = num_channels

    def happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def perhaps(self, probability: float, value: Value) -> Value | None:
        return value if self.happens(probability) else None

    def uniform(self, bounds: Range, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        low, high = bounds
        return np.asarray(low + (high - low) * self._random.random(shape), dtype=np.float64)

    def number(self, bounds: Range) -> float:
        return float(self.uniform(bounds, 1)[0])

    def factor(self, bounds: Range, shape: int) -> NDArray[np.float64]:
        low, high = bounds
        place = self._random.random(shape)
        if not low < 1 < high:
            return low + (high - low) * place
        low_half, high_half = low + (1 - low) * 2 * place, 1 + (high - 1) * (2 * place - 1)
        return np.asarray(np.where(place < 0.5, low_half, high_half), dtype=np.float64)

    def each(self, bounds: Range) -> list[float]:
        """For each channel its own value."""
        return [float(value) for value in self.uniform(bounds, self._num_channels)]

    def factors(self, bounds: Range) -> list[float]:
        return [float(value) for value in self.factor(bounds, self._num_channels)]

    def along_an_axis(self, bounds: Range) -> list[tuple[int, float]]:
        axes = self._random.integers(3, size=self._num_channels).tolist()
        return list(zip(axes, self.each(bounds), strict=True))

    def of_channels(self, probability: float, values: Sequence[Value], of_each: float = 1.0) -> dict[int, Value]:
        """The values of the channels that are changed; none, if it does not happen at all."""
        happens, chosen = self.happens(probability), self._random.random(self._num_channels) < of_each
        return {channel: value for channel, value in enumerate(values) if happens and chosen[channel]}

    def seed(self) -> int:
        return int(self._random.integers(2**63))


SMALLEST = 1e-3

#: What the ends of the ranges must be between.
RANGES: Mapping[str, Range] = {
    "scaling": (SMALLEST, math.inf),
    "zoom": (SMALLEST, math.inf),
    "elastic_displacement_mm": (0, math.inf),
    "bias_field_strength": (0, 10),
    "motion_shift_mm": (0, math.inf),
    "gibbs_kept": (SMALLEST, 1),
    "low_resolution_scale": (SMALLEST, 1),
    "blur_sigma_voxels": (SMALLEST, math.inf),
    "noise_std": (0, math.inf),
    "brightness_factor": (0, math.inf),
    "contrast_factor": (0, math.inf),
    "gamma": (SMALLEST, 100),
    "shift": (-math.inf, math.inf),
}


def check_numbers(name: str, values: Any, count: int, low: float, high: float) -> None:
    """Refuse anything but so many rising numbers (angles need not rise) from `low` to `high`."""
    is_sequence = isinstance(values, list | tuple) and len(values) == count
    numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)] if is_sequence else []
    rising = count == 3 or numbers == sorted(numbers)
    if len(numbers) != count or not all(low <= v <= high for v in numbers) or not rising:
        wanted = {1: "", 2: "two rising numbers ", 3: "three numbers "}[count]
        given = values[0] if is_sequence and count == 1 else values
        message = f"{name} must be {wanted}in [{low:g}, {high:g}], got {given}"
        raise ValueError(message)


def check_mirror_axes(mirror_axes: Sequence[int], transpose_probability: float) -> None:
    """Refuse axes that are none, and a transposition where a mirror is not allowed.

    Raises:
        ValueError: So it is.
    """
    if not set(mirror_axes) <= {0, 1, 2} or len(set(mirror_axes)) != len(mirror_axes):
        message = f"mirror_axes must be some of 0, 1 and 2, such as [1, 2], got {list(mirror_axes)}"
        raise ValueError(message)
    if transpose_probability > 0 and not {0, 1} <= set(mirror_axes):
        message = (
            "transpose_probability must be 0 unless mirror_axes has 0 and 1, as swapping two axes mirrors, "
            f"got {transpose_probability} and {list(mirror_axes)}"
        )
        raise ValueError(message)


def check_transposable(patch_size: Sequence[int], spacings_mm: Mapping[str, Sequence[float]]) -> None:
    """See that swapping the first two axes of patches makes sense.

    Raises:
        ConfigError: As `BatchAugmentation.check` says.
    """
    advice = "Set augment.transpose_probability to 0, or resample by transforms.spacing_mm."
    if patch_size[0] != patch_size[1]:
        message = f"patches of {list(patch_size)} voxels cannot be transposed: the first two axes differ. {advice}"
        raise ConfigError(message)
    for case, (first, second, _) in spacings_mm.items():
        if abs(first - second) > 0.01 * first:
            message = (
                f"case '{case}' cannot be transposed: its spacing is {first:g} mm along the first axis and "
                f"{second:g} mm along the second. {advice}"
            )
            raise ConfigError(message)


def check_batch(batch: Mapping[str, Tensor], num_seeds: int, num_spacings: int, patch_size: Sequence[int]) -> None:
    """Refuse a batch that does not fit together.

    Raises:
        ValueError: As `BatchAugmentation.__call__` says.
    """
    unknown = sorted(set(batch) - set(KEYS))
    if unknown or "image" not in batch:
        message = f"a batch must have an image and may have {', '.join(KEYS[1:])}, got {', '.join(batch)}"
        raise ValueError(message)
    shapes = {key: tuple(values.shape) for key, values in batch.items()}
    num_patches, _, *size = shapes["image"]
    if any((shape[0], list(shape[2:])) != (num_patches, size) for shape in shapes.values()):
        message = f"all of a batch must be of one size and number, got {shapes}"
        raise ValueError(message)
    if not num_patches == num_seeds == num_spacings:
        message = f"each patch needs a seed and a spacing, got {num_patches} patches, {num_seeds} and {num_spacings}"
        raise ValueError(message)
    if any(have < want for have, want in zip(size, patch_size, strict=True)):
        message = f"patches of {list(patch_size)} voxels cannot be cut from {size}"
        raise ValueError(message)


def _turned(values: Tensor, changes: Changes) -> Tensor:
    """Mirrored and transposed, `(N, I, J, K)`."""
    if changes.mirrored:
        values = values.flip([axis + 1 for axis in changes.mirrored])
    return values.transpose(1, 2) if changes.transposed else values


def _is_any_intensity_changed(changes: Changes) -> bool:
    return any(isinstance(getattr(changes, f.name), Mapping) and getattr(changes, f.name) for f in fields(changes))


@contextmanager
def _background(image: Tensor, *, kept: bool) -> Iterator[None]:
    """Set voxels that are 0 in every channel to 0 again at the end."""
    if not kept:
        yield
        return
    inside = image[0].abs()
    for channel in image[1:]:
        inside.add_(channel.abs())
    inside.sign_()
    yield
    image.mul_(inside)  # four times as fast as a mask of booleans


def _polynomial(random: np.random.Generator) -> NDArray[np.float64]:
    """Coefficients of all powers of three coordinates that sum to 1 to `intensity.BIAS_ORDER`."""
    powers = np.indices((intensity.BIAS_ORDER + 1,) * 3).sum(axis=0)
    values = random.standard_normal(powers.shape)
    return np.where((powers > 0) & (powers <= intensity.BIAS_ORDER), values, 0.0)
