"""What all corruptions have in common: how they are called, what they may look at, and their random numbers."""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components, find_components
from medfocal.volume import spacing_of


def case_rng(seed: int, case: str) -> np.random.Generator:
    """Random numbers of one case: they depend on the seed and the case's name, and on no other case.

    Args:
        seed: 0 or more.
        case: The case's name.

    Raises:
        ValueError: The seed is negative.
    """
    if seed < 0:
        message = f"seed must be 0 or more, got {seed}"
        raise ValueError(message)
    digest = hashlib.sha256(case.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


def rounded_at_random(expected: float, rng: np.random.Generator) -> int:
    """A whole number next to `expected` (0 or more) whose mean is exactly that: floor(expected + u), u uniform."""
    return math.floor(expected + rng.random())


@dataclass(frozen=True, eq=False)
class Scene:
    """What a corruption may look at.

    Attributes:
        label: What is to be made wrong, uint8 `(I, J, K)`.
        clean: The label before any corruption, uint8 `(I, J, K)`.
        affine: Voxel index to world mm, `(4, 4)`.
        rng: Where all chance comes from.
        spots: Voxels where something looks like a lesion, int `(n, 3)`, or None.
        image: float32 `(C, I, J, K)`, or None.
    """

    label: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    affine: NDArray[np.float64]
    rng: np.random.Generator
    spots: NDArray[np.intp] | None = None
    image: NDArray[np.float32] | None = None

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along the three axes."""
        return np.array(spacing_of(self.affine))

    @cached_property
    def lesions(self) -> Components:
        """The label's 26-connected lesions, whatever their classes."""
        return find_components(self.label, self.affine)


@dataclass(frozen=True, kw_only=True)
class Corruption(abc.ABC):
    """A way in which labels are wrong. The same random numbers give the same wrong label."""

    def __call__(
        self,
        label: NDArray[np.uint8],
        *,
        affine: NDArray[np.float64],
        rng: np.random.Generator,
        spots: NDArray[Any] | None = None,
        image: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """Make a label wrong; the label given stays as it is.

        Args:
            label: Classes, uint8 `(I, J, K)`, 0 outside lesions.
            affine: Voxel index to world mm, `(4, 4)`. The axes are taken to be orthogonal.
            rng: Such as `case_rng` gives.
            spots: Voxels where something looks like a lesion and is none, int `(n, 3)`.
            image: Channels, float32 `(C, I, J, K)`; 0 outside the body.

        Returns:
            The wrong label, uint8 `(I, J, K)`, in memory of its own. Unless lesions are invented, an empty label
            stays empty.

        Raises:
            ValueError: An array has another shape or dtype, or a spot lies outside.
        """
        affine = np.asarray(affine, np.float64)
        if label.ndim != 3 or label.dtype != np.uint8 or affine.shape != (4, 4):
            message = (
                f"label must be uint8 (I, J, K) and affine (4, 4), got {label.dtype} {label.shape} and {affine.shape}"
            )
            raise ValueError(message)
        if image is not None and (image.ndim != 4 or image.shape[1:] != label.shape):
            message = f"image must have the label's shape {label.shape} behind its channels, got {image.shape}"
            raise ValueError(message)
        if spots is not None:
            spots = _checked_spots(np.asarray(spots), label.shape)
        noisy = self.apply(Scene(label, label, affine, rng, spots, image))
        assert noisy.shape == label.shape
        assert not np.shares_memory(noisy, label)
        return noisy

    @abc.abstractmethod
    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Make the label of a scene wrong, in new memory."""

    def check_classes(self, num_lesion_classes: int) -> None:
        """See that the corruption makes sense for labels of so many lesion classes.

        Raises:
            ValueError: It does not.
        """
        assert num_lesion_classes >= 1

    def describe(self) -> dict[str, Any]:
        """Name and arguments, for the record."""
        return {"kind": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class NoCorruption(Corruption):
    """Labels stay as they are."""

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Copy the label."""
        return scene.label.copy()


@dataclass(frozen=True, kw_only=True)
class Composed(Corruption):
    """Several corruptions, each of what the one before it left.

    Severities refer to what a part is given: after lesions were missed, `Dilation` reaches its Dice against those that
    are left. Invented lesions keep clear of the clean label's lesions too, so that none lies on a missed one.

    Args:
        parts: In order, at least one.

    Raises:
        ValueError: There is no part.
    """

    parts: Sequence[Corruption]

    def __post_init__(self) -> None:
        if not self.parts:
            message = "parts must hold at least one corruption, got none; NoCorruption() changes nothing"
            raise ValueError(message)
        object.__setattr__(self, "parts", tuple(self.parts))

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """One part after the other."""
        for part in self.parts:
            scene = replace(scene, label=part.apply(scene))
        return scene.label

    def check_classes(self, num_lesion_classes: int) -> None:
        """Ask every part."""
        for part in self.parts:
            part.check_classes(num_lesion_classes)

    def describe(self) -> dict[str, Any]:
        """Name and parts, for the record."""
        return {"kind": type(self).__name__, "parts": [part.describe() for part in self.parts]}


def _checked_spots(spots: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.intp]:
    if spots.ndim != 2 or spots.shape[1] != 3 or (spots.size and spots.dtype.kind not in "iu"):
        message = f"spots must be voxel indices, int (n, 3), got {spots.dtype} {spots.shape}"
        raise ValueError(message)
    outside = ((spots < 0) | (spots >= np.array(shape))).any(axis=1)
    if outside.any():
        message = f"spots must lie inside the label of shape {shape}, got {spots[outside][0].tolist()}"
        raise ValueError(message)
    return spots.astype(np.intp)
