"""What counts as suspicious where it is a matter of taste."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckLimits:
    """Limits that a data set may need others of; `conf/check.yaml` states them.

    Args:
        speck_voxels: Lesions of at most so many voxels are specks.
        speck_mm3: And so are those of at most this volume; 0 goes by voxels alone.
        min_lesions: A validation or test split with fewer is small.

    Raises:
        ValueError: One is negative.
    """

    speck_voxels: int = 2
    speck_mm3: float = 2.0
    min_lesions: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                message = f"{name} must be 0 or more, got {value}"
                raise ValueError(message)
