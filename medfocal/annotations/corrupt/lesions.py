"""Whole lesions missed, invented, or taken for another class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfocal.annotations.corrupt.corruption import Corruption, Scene, rounded_at_random
from medfocal.annotations.corrupt.distance import signed_distance_mm
from medfocal.components import find_components

#: Voxels that are tried for invented lesions, of those that look like one and then of the whole body.
NUM_TRIES = 300
#: An invented lesion's intensities lie between these percentiles of the lesions'.
INTENSITY_PERCENTILES = (10.0, 90.0)
#: Nearer to a lesion, an intensity tells of the lesion itself: of voxels that it fills in part.
CLEARANCE_MM = 3.0
#: Where a case has no lesions that would say how they look: the body's voxels above this percentile.
BRIGHT_PERCENTILE = 98.0

NEIGHBOURS = np.ones((3, 3, 3), np.bool_)


@dataclass(frozen=True, kw_only=True)
class MissedLesions(Corruption):
    """Whole lesions left out, small ones rather than large ones.

    Of n lesions floor(rate n + u) are missed, u uniform in [0, 1), so that the mean is exactly the rate in every case.
    They are drawn without replacement, with weights volume^-size_exponent.

    Args:
        rate: Expected share of missed lesions, in [0, 1].
        size_exponent: 0 misses small and large lesions alike; at 1 a lesion of half the volume has twice the weight.

    Raises:
        ValueError: An argument is out of range.
    """

    rate: float = 0.4
    size_exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            message = f"rate must be in [0, 1], got {self.rate}"
            raise ValueError(message)
        if not 0 <= self.size_exponent < math.inf:
            message = f"size_exponent must be 0 or more, got {self.size_exponent}"
            raise ValueError(message)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Leave lesions out."""
        noisy = scene.label.copy()
        num_missed = rounded_at_random(self.rate * len(scene.lesions), scene.rng)
        # The largest of log(weight) + Gumbel noise are such a draw, and no weight is too small for it.
        keys = scene.rng.gumbel(size=len(scene.lesions)) - self.size_exponent * np.log(scene.lesions.volume_ml)
        missed = np.argsort(-keys)[:num_missed] + 1
        noisy[np.isin(scene.lesions.labels, missed)] = 0
        return noisy


@dataclass(frozen=True, kw_only=True)
class SpuriousLesions(Corruption):
    """Lesions invented: balls where something looks like a lesion and is none.

    floor(per_case + u) of them, u uniform in [0, 1), so that the mean is exact. Places are the spots given, in random
    order; where there are none, or too few, voxels of the image as bright as the lesions in all channels and 3 mm or
    more from them (in a case without lesions the brightest 2 % of the body, in the first channel); else any voxel of
    the body, or of the volume where there is no image. Fewer are invented only where 300 voxels gave no place.

    A ball is cut off at the border of the body. Between it and each lesion, missed ones included, and other ball at
    least one voxel stays free. It has the class of a random lesion of the case; in a case without lesions, class 1.

    Args:
        per_case: Expected number in a case, 0 or more.
        diameter_mm: Shortest and longest diameter, uniform between. The voxel at the centre is always marked.

    Raises:
        ValueError: An argument is out of range.
    """

    per_case: float = 2.0
    diameter_mm: Sequence[float] = (2.0, 5.0)

    def __post_init__(self) -> None:
        if not 0 <= self.per_case < math.inf:
            message = f"per_case must be 0 or more, got {self.per_case}"
            raise ValueError(message)
        if len(self.diameter_mm) != 2 or not 0 < self.diameter_mm[0] <= self.diameter_mm[1] < math.inf:
            message = f"diameter_mm must be a shortest and a longest length above 0, got {tuple(self.diameter_mm)}"
            raise ValueError(message)
        object.__setattr__(self, "diameter_mm", tuple(self.diameter_mm))

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Add lesions."""
        noisy = scene.label.copy()
        num_wanted = rounded_at_random(self.per_case, scene.rng)
        if not num_wanted:
            return noisy
        body = np.ones(noisy.shape, np.bool_) if scene.image is None else (scene.image != 0).any(axis=0)
        taken = ndimage.binary_dilation((scene.label > 0) | (scene.clean > 0), NEIGHBOURS)
        classes = _class_of_each_lesion(scene)
        shortest, longest = self.diameter_mm
        for centre in _lookalikes(scene, body):
            box, ball = _ball(centre, scene.rng.uniform(shortest, longest) / 2, scene)
            ball &= body[box]
            ball[tuple(c - side.start for c, side in zip(centre, box, strict=True))] = True
            if taken[box][ball].any():
                continue
            noisy[box][ball] = scene.rng.choice(classes)
            taken |= ndimage.binary_dilation(_placed(ball, box, taken.shape), NEIGHBOURS)
            num_wanted -= 1
            if not num_wanted:
                break
        return noisy


@dataclass(frozen=True, kw_only=True)
class ClassFlips(Corruption):
    """Whole lesions of the wrong class. Here a lesion is a 26-connected part of one class.

    Args:
        matrix: Row by row the shares of the lesions of class 1, 2, … that become class 1, 2, …; rows add up to 1. Each
            lesion is drawn for itself.
        rate: In place of the matrix: of a case's n lesions floor(rate n + u) get another class, each other one with the
            same chance.
        num_lesion_classes: With the rate: how many lesion classes there are.

    Raises:
        ValueError: Matrix and rate are both given or both missing, a share is none, or there is one lesion class only.
    """

    matrix: Sequence[Sequence[float]] | None = None
    rate: float | None = None
    num_lesion_classes: int | None = None

    def __post_init__(self) -> None:
        if (self.matrix is None) == (self.rate is None) or (self.rate is None) != (self.num_lesion_classes is None):
            message = (
                "give matrix, or rate and num_lesion_classes, and not both; "
                f"got {self.matrix}, {self.rate} and {self.num_lesion_classes}"
            )
            raise ValueError(message)
        if self.rate is not None and not 0 <= self.rate <= 1:
            message = f"rate must be in [0, 1], got {self.rate}"
            raise ValueError(message)
        if self.matrix is not None:
            object.__setattr__(self, "matrix", tuple(map(tuple, self.matrix)))
            shares = [share for row in self.matrix for share in row]
            square = all(len(row) == len(self.matrix) for row in self.matrix)
            if not square or not all(0 <= s <= 1 for s in shares) or any(abs(sum(r) - 1) > 1e-6 for r in self.matrix):
                message = f"matrix must be square, of shares in [0, 1] whose rows add up to 1, got {self.matrix}"
                raise ValueError(message)
        if self._num_classes < 2:
            message = f"classes can be flipped where there are two lesion classes or more, got {self._num_classes}"
            raise ValueError(message)

    def check_classes(self, num_lesion_classes: int) -> None:
        """See that the labels have the classes that are flipped.

        Raises:
            ValueError: They have more or fewer.
        """
        if num_lesion_classes != self._num_classes:
            message = f"ClassFlips is for {self._num_classes} lesion classes, the labels have {num_lesion_classes}" + (
                "; one class cannot be taken for another" if num_lesion_classes == 1 else ""
            )
            raise ValueError(message)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Change classes.

        Raises:
            ValueError: The label holds a class that the matrix does not know.
        """
        highest = int(scene.label.max(initial=0))
        if highest > self._num_classes:
            self.check_classes(highest)
        noisy = scene.label.copy()
        lesions = [
            (lesion_class, found.labels == number)
            for lesion_class in range(1, self._num_classes + 1)
            for found in [find_components(scene.label == lesion_class, scene.affine)]
            for number in range(1, len(found) + 1)
        ]
        flipped: set[int] = set()
        if self.rate is not None:
            count = rounded_at_random(self.rate * len(lesions), scene.rng)
            flipped = set(scene.rng.permutation(len(lesions))[:count].tolist())
        for index, (lesion_class, inside) in enumerate(lesions):
            if self.matrix is not None:
                noisy[inside] = 1 + scene.rng.choice(self._num_classes, p=_shares(self.matrix[lesion_class - 1]))
            elif index in flipped:
                others = [c for c in range(1, self._num_classes + 1) if c != lesion_class]
                noisy[inside] = scene.rng.choice(others)
        return noisy

    @property
    def _num_classes(self) -> int:
        return len(self.matrix) if self.matrix is not None else int(self.num_lesion_classes or 0)


def _shares(row: Sequence[float]) -> NDArray[np.float64]:
    """A row to the last digit: numpy takes no more than rounding from 1."""
    shares = np.asarray(row, np.float64)
    return np.asarray(shares / shares.sum(), np.float64)


def _class_of_each_lesion(scene: Scene) -> list[int]:
    """Most frequent class of each clean lesion; class 1 where there is none."""
    lesions = find_components(scene.clean, scene.affine)
    found = [int(np.bincount(scene.clean[lesions.labels == n]).argmax()) for n in range(1, len(lesions) + 1)]
    return found or [1]


def _lookalikes(scene: Scene, body: NDArray[np.bool_]) -> Iterator[tuple[int, ...]]:
    """Places for invented lesions, the best first, each kind in random order."""
    if scene.spots is not None:
        yield from (tuple(spot) for spot in scene.rng.permutation(scene.spots).tolist())
    for mask in (_resembling(scene, body), body):
        voxels = np.flatnonzero(mask)
        chosen = scene.rng.choice(voxels, min(NUM_TRIES, len(voxels)), replace=False) if len(voxels) else voxels
        yield from (tuple(place) for place in np.stack(np.unravel_index(chosen, mask.shape), axis=1).tolist())


def _resembling(scene: Scene, body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the body that have a lesion's intensity and lie away from lesions; none where there is no image."""
    lesion = scene.clean > 0
    if scene.image is None or not body.any():
        return np.zeros_like(body)
    if not lesion.any():
        first = scene.image[0]
        return np.asarray(body & (first >= np.percentile(first[body], BRIGHT_PERCENTILE)))
    found = body & (signed_distance_mm(lesion, scene.spacing_mm) < -CLEARANCE_MM)
    for channel in scene.image:
        low, high = np.percentile(channel[lesion], INTENSITY_PERCENTILES)
        found &= (channel >= low) & (channel <= high)
    return found


def _ball(centre: tuple[int, ...], radius_mm: float, scene: Scene) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """A ball in its box, cut off at the volume's border."""
    spacing, shape = scene.spacing_mm.tolist(), scene.label.shape
    reach = [math.floor(radius_mm / step) for step in spacing]
    box = tuple(slice(max(c - r, 0), min(c + r + 1, n)) for c, r, n in zip(centre, reach, shape, strict=True))
    squares = [
        ((np.arange(side.start, side.stop) - c) * step) ** 2 for side, c, step in zip(box, centre, spacing, strict=True)
    ]
    far = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
    return box, far <= radius_mm**2


def _placed(ball: NDArray[np.bool_], box: tuple[slice, ...], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    mask[box] = ball
    return mask
