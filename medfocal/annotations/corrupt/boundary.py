"""Boundaries drawn too small, too large, wavering or in the wrong place; every lesion stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.corrupt.corruption import Corruption, Scene
from medfocal.annotations.corrupt.distance import (
    box_around,
    compactness,
    nearest_class,
    signed_distance_mm,
    smooth_noise,
)
from medfocal.components import find_components
from medfocal.evaluate.overlap import voxel_dice

#: A boundary that is drawn further away than this is no boundary of this lesion.
REACH_MM = 20.0
NUM_BISECTIONS = 25
#: Directions that are tried for a lesion that would leave the volume.
NUM_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Erosion(Corruption):
    """Lesions drawn too small: the case's outermost lesion voxels are lost, by their distance to the border in mm.

    Voxels equally far from the border go in the order of how little lesion lies around them. Of each lesion its
    innermost voxel stays; where lesions are too small for the Dice asked, the Dice is higher. A lesion with a narrow
    part may fall apart.

    Args:
        dice: Voxel Dice of the wrong label with the clean one, over the case, in (0, 1]; reached to within a voxel.

    Raises:
        ValueError: It is out of range.
    """

    dice: float = 0.7

    def __post_init__(self) -> None:
        _check_dice(self.dice)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Take voxels away."""
        noisy = scene.label.copy()
        if not len(scene.lesions):
            return noisy
        lesion = noisy > 0
        box = box_around(lesion, scene.spacing_mm, float(scene.spacing_mm.max()))
        voxels = np.flatnonzero(lesion[box])
        outermost_first = voxels[_inward(lesion[box], voxels, scene)]
        parts = scene.lesions.labels[box].ravel()[outermost_first]
        _, from_last = np.unique(parts[::-1], return_index=True)
        innermost = len(parts) - 1 - from_last
        # Dice of k voxels kept out of n is 2 k / (n + k).
        num_kept = round(self.dice * len(voxels) / (2 - self.dice))
        lost = np.delete(outermost_first, innermost)[: len(voxels) - num_kept]
        part = noisy[box]
        part[np.unravel_index(lost, part.shape)] = 0
        return noisy


@dataclass(frozen=True, kw_only=True)
class Dilation(Corruption):
    """Lesions drawn too large: the voxels nearest to the case's lesions are added, by their distance in mm.

    Voxels equally far away are added in the order of how much lesion lies around them, and get the class of the
    nearest lesion voxel. Lesions that lie close to each other may grow together.

    Args:
        dice: Voxel Dice of the wrong label with the clean one, over the case, in (0, 1]; reached to within a voxel,
            unless the volume is full before.

    Raises:
        ValueError: It is out of range.
    """

    dice: float = 0.7

    def __post_init__(self) -> None:
        _check_dice(self.dice)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Add voxels."""
        noisy = scene.label.copy()
        lesion = noisy > 0
        # Dice of n voxels and m more is 2 n / (2 n + m).
        num_added = round(2 * np.count_nonzero(lesion) * (1 - self.dice) / self.dice)
        reach_mm = 5.0
        while num_added:
            box = box_around(lesion, scene.spacing_mm, reach_mm)
            voxels = np.flatnonzero(~lesion[box])
            if len(voxels) >= num_added or lesion[box].size == lesion.size:
                added = voxels[_inward(lesion[box], voxels, scene)[::-1][:num_added]]
                place = np.unravel_index(added, lesion[box].shape)
                far_mm = -signed_distance_mm(lesion[box], scene.spacing_mm)[place]
                # Outside the box all is further away than its margin.
                if lesion[box].size == lesion.size or far_mm.max() <= reach_mm:
                    part = noisy[box]
                    part[place] = nearest_class(part, scene.spacing_mm)[place]
                    return noisy
            reach_mm *= 2
        return noisy


@dataclass(frozen=True, kw_only=True)
class BoundaryJitter(Corruption):
    """Boundaries that waver: each point lies outside or inside by a smooth random distance.

    The wrong lesions are {s + a (f + b) > 0}: s the signed distance to the clean boundary in mm, positive inside, f a
    Gaussian random field of standard deviation 1, b the bias. The amplitude a, in mm, is found by bisection so that the
    case's Dice is as asked, whatever the size of its lesions. A lesion that would vanish keeps the voxel where the sum
    is highest, and parts that touch no clean lesion are left out, so lesions stay where they are; those that lie close
    to each other may grow together. New voxels get the class of the nearest lesion voxel.

    Args:
        dice: Voxel Dice of the wrong label with the clean one, over the case, in (0, 1]; reached to within a few
            voxels.
        correlation_mm: Distance at which the field's correlation has fallen to 1/e. Much longer than a lesion: it grows
            or shrinks as a whole. One voxel: ragged.
        bias: Mean of the error in units of its standard deviation, positive outward: 0 is unbiased, with 1 five
            boundary points in six lie outside, with -1 inside. Only errors of half a voxel and more show, so in lesions
            of a few voxels the share is larger. Even without bias more voxels are added than lost: there are more
            around a lesion than in it.

    Raises:
        ValueError: An argument is out of range.
    """

    dice: float = 0.75
    correlation_mm: float = 3.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        _check_dice(self.dice)
        if not 0 < self.correlation_mm < math.inf:
            message = f"correlation_mm must be a length above 0, got {self.correlation_mm}"
            raise ValueError(message)
        if not math.isfinite(self.bias):
            message = f"bias must be a number, got {self.bias}"
            raise ValueError(message)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Move boundaries."""
        noisy = scene.label.copy()
        if not len(scene.lesions):
            return noisy
        box = box_around(noisy > 0, scene.spacing_mm, REACH_MM)
        part, lesions = noisy[box], scene.lesions.labels[box]
        signed = signed_distance_mm(lesions > 0, scene.spacing_mm)
        field = smooth_noise(scene.rng, part.shape, scene.spacing_mm, self.correlation_mm)

        def moved(amplitude: float) -> NDArray[np.bool_]:
            return _kept_in_place(signed + amplitude * (field + self.bias), lesions, scene)

        drawn = _bisected(moved, lesions > 0, self.dice, start=float(scene.spacing_mm.mean()))
        part[:] = np.where(drawn, nearest_class(part, scene.spacing_mm), 0)
        return noisy


@dataclass(frozen=True, kw_only=True)
class Shift(Corruption):
    """Each lesion at a wrong place: moved by a vector of its own, of random direction, rounded to whole voxels.

    A lesion that would leave the volume is moved in another direction, or, where ten directions lead out, only as far
    as the border. Rounding may leave a lesion where it is if the distance is less than a voxel. Lesions may meet.

    Args:
        distance_mm: Length of the vector, 0 or more.

    Raises:
        ValueError: It is out of range.
    """

    distance_mm: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.distance_mm < math.inf:
            message = f"distance_mm must be a length of 0 or more, got {self.distance_mm}"
            raise ValueError(message)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Move lesions."""
        noisy = np.zeros_like(scene.label)
        for number, (low, high) in enumerate(scene.lesions.bounding_box.transpose(0, 2, 1), start=1):
            box = tuple(slice(*side) for side in zip(low.tolist(), high.tolist(), strict=True))
            inside = scene.lesions.labels[box] == number
            places = np.argwhere(inside) + low + self._offset(scene, -low, np.array(noisy.shape) - high)
            noisy[tuple(places.T)] = scene.label[box][inside]
        return noisy

    def _offset(self, scene: Scene, least: NDArray[np.int64], most: NDArray[np.int64]) -> NDArray[np.int64]:
        for _ in range(NUM_TRIES):
            direction = scene.rng.standard_normal(3)
            vector_mm = self.distance_mm * direction / np.linalg.norm(direction)
            offset = np.rint(vector_mm / scene.spacing_mm).astype(np.int64)
            if (offset >= least).all() and (offset <= most).all():
                break
        return np.clip(offset, least, most)


def _check_dice(dice: float) -> None:
    if not 0 < dice <= 1:
        message = f"dice must be in (0, 1], got {dice}"
        raise ValueError(message)


def _inward(lesion: NDArray[np.bool_], voxels: NDArray[np.intp], scene: Scene) -> NDArray[np.intp]:
    """Order of some voxels (flat indices) from furthest outside to deepest inside."""
    signed = np.round(signed_distance_mm(lesion, scene.spacing_mm).ravel()[voxels], 6)
    around = compactness(lesion, scene.spacing_mm).ravel()[voxels]
    return np.lexsort((scene.rng.random(len(voxels)), around, signed))


def _kept_in_place(level: NDArray[np.float64], lesions: NDArray[np.int32], scene: Scene) -> NDArray[np.bool_]:
    """{level > 0} without parts that touch no lesion, and with the highest voxel of each lesion that would vanish."""
    drawn = level > 0
    parts = find_components(drawn, scene.affine).labels
    touching = np.zeros(int(parts.max(initial=0)) + 1, np.bool_)
    touching[parts[lesions > 0]] = True
    touching[0] = False
    drawn = touching[parts]
    vanished = np.setdiff1d(np.unique(lesions), [0, *np.unique(lesions[drawn])])
    for number in vanished.tolist():
        drawn.flat[np.argmax(np.where(lesions == number, level, -np.inf))] = True
    return drawn


def _bisected(
    moved: Callable[[float], NDArray[np.bool_]], lesion: NDArray[np.bool_], dice: float, *, start: float
) -> NDArray[np.bool_]:
    """The mask of the amplitude, 0 or more, whose Dice with the lesions comes nearest to the one asked."""
    num_lesion = int(np.count_nonzero(lesion))

    def dice_of(mask: NDArray[np.bool_]) -> float:
        return voxel_dice(int(np.count_nonzero(mask & lesion)), num_lesion, int(np.count_nonzero(mask)))

    best = moved(0.0)
    if dice_of(best) <= dice:
        return best
    low, high = 0.0, start
    while dice_of(moved(high)) > dice and high < REACH_MM:
        low, high = high, 2 * high
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        mask = moved(middle)
        found = dice_of(mask)
        if abs(found - dice) < abs(dice_of(best) - dice):
            best = mask
        if abs(found - dice) * num_lesion < 0.5:  # within a voxel
            break
        low, high = (middle, high) if found > dice else (low, middle)
    return best
