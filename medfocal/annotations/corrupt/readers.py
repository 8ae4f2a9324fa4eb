"""Readers who draw every k-th slice only, and readers with several bad habits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.corrupt.boundary import BoundaryJitter
from medfocal.annotations.corrupt.corruption import Composed, Corruption, Scene
from medfocal.annotations.corrupt.lesions import MissedLesions, SpuriousLesions


@dataclass(frozen=True, kw_only=True)
class SkippedSlices(Corruption):
    """Only every k-th slice was drawn; the others are empty. The first drawn slice is random, one of the first k.

    Args:
        every: k, 1 or more.
        axis: Across which the slices lie, 0, 1 or 2; None takes the axis of the largest spacing, the last of several.

    Raises:
        ValueError: An argument is out of range.
    """

    every: int = 2
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            message = f"every must be 1 or more, got {self.every}"
            raise ValueError(message)
        if self.axis not in {None, 0, 1, 2}:
            message = f"axis must be 0, 1, 2 or None, got {self.axis}"
            raise ValueError(message)

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Empty the slices between."""
        axis = self.axis
        if axis is None:
            # Spacings come from float32 headers, where equal ones differ in the last digits.
            axis = int(np.flatnonzero(scene.spacing_mm > 0.999 * scene.spacing_mm.max())[-1])
        noisy = np.zeros_like(scene.label)
        drawn = [slice(None)] * 3
        drawn[axis] = slice(int(scene.rng.integers(self.every)), None, self.every)
        noisy[tuple(drawn)] = scene.label[tuple(drawn)]
        return noisy


@dataclass(frozen=True, kw_only=True)
class SimulatedReader(Corruption):
    """One reader's habits at once: misses lesions, draws the boundaries of the others wrongly, invents some.

    In this order. `MissedLesions`, `BoundaryJitter` and `SpuriousLesions` say what each argument means.

    Args:
        miss_rate: Expected share of missed lesions.
        size_exponent: How much rather small lesions are missed.
        boundary_dice: Dice of the lesions that were not missed; 1 leaves boundaries as they are.
        correlation_mm: Of the boundary's error.
        bias: Of the boundary's error, positive outward.
        spurious_per_case: Expected number of invented lesions in a case.
        diameter_mm: Of invented lesions.

    Raises:
        ValueError: An argument is out of range.

    References:
        Zhang et al. 2020, "Disentangling human error from ground truth in segmentation of medical images", NeurIPS,
        simulate readers who over-segment, under-segment and confuse classes; here habits are mixed and measured.
    """

    miss_rate: float = 0.25
    size_exponent: float = 1.0
    boundary_dice: float = 0.75
    correlation_mm: float = 3.0
    bias: float = 1.0
    spurious_per_case: float = 1.0
    diameter_mm: Sequence[float] = (2.0, 5.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "diameter_mm", tuple(self.diameter_mm))
        self._habits()

    def apply(self, scene: Scene) -> NDArray[np.uint8]:
        """Read as this reader."""
        return self._habits().apply(scene)

    def _habits(self) -> Composed:
        return Composed(
            parts=(
                MissedLesions(rate=self.miss_rate, size_exponent=self.size_exponent),
                BoundaryJitter(dice=self.boundary_dice, correlation_mm=self.correlation_mm, bias=self.bias),
                SpuriousLesions(per_case=self.spurious_per_case, diameter_mm=self.diameter_mm),
            )
        )
