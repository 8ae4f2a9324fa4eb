"""How far a training has come, and the row of metrics.csv that an epoch becomes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.train.settings import TrainerSettings

#: Columns of metrics.csv. The last seven are empty for epochs without validation. dropped_share is the share of voxels
#: that the loss took for mislabelled (cap, trimming), empty for a loss that does not judge labels; num_skipped counts
#: steps without finite gradients; wait_share is the share of the steps' time that they waited for patches.
METRICS = (
    "epoch", "step", "loss", "dropped_share", "num_skipped", "learning_rate", "seconds", "wait_share",
    "patches_per_second", "lesion_sensitivity", "lesion_sensitivity_low", "lesion_sensitivity_high", "cpm", "threshold",
    "voxel_dice", "num_lesions",
)  # fmt: skip


@dataclass
class Position:
    """How far a training has come; with weights, optimizer and random generators it is what a checkpoint holds.

    Attributes:
        epoch: From 0.
        step: Steps that this epoch has taken.
        rows: Of metrics.csv, for the epochs that are done.
        best: Lesion sensitivity and CPM of the best validation.
        num_worse: Validations since then that were no better.
        visits: How often each lesion was centred and shown in the epochs that are done, `(2, lesions)`.
        loss_sum: Of the epoch's steps with finite loss.
        num_dropped: Voxels that its losses took for mislabelled, None where they do not judge.
        num_voxels: Voxels that they judged.
        seconds: That its steps took.
        waited: Seconds of these that they waited for patches.
    """

    visits: NDArray[np.int64]
    epoch: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    num_worse: int = 0
    loss_sum: float = 0.0
    num_dropped: int | None = None
    num_voxels: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def start_epoch(self) -> None:
        """Go to the next one, of which nothing is known yet."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.num_dropped, self.num_voxels, self.seconds, self.waited = 0.0, None, 0, 0.0, 0.0

    def row(self, settings: TrainerSettings, *, num_skipped: int, learning_rate: float) -> dict[str, Any]:
        """What metrics.csv says of the steps of this epoch."""
        num_finite = settings.steps_per_epoch - num_skipped
        seconds = max(self.seconds, 1e-9)
        return {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * settings.steps_per_epoch,
            "loss": self.loss_sum / num_finite if num_finite else math.nan,
            "dropped_share": None if self.num_dropped is None else self.num_dropped / self.num_voxels,
            "num_skipped": num_skipped,
            "learning_rate": float(learning_rate),
            "wait_share": round(self.waited / seconds, 4),
            "patches_per_second": round(settings.steps_per_epoch * settings.batch_size / seconds, 2),
        }

    def to_state(self) -> dict[str, Any]:
        """In plain values."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "visits": self.visits.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, num_lesions: int | None = None) -> Position:
        """Back from plain values.

        Args:
            state: From `to_state`.
            num_lesions: That the visits must be of; None: any number.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        visits = np.array(state["visits"], np.int64).reshape(2, -1)
        first, second = state["best"]
        found = cls(**{**state, "visits": visits, "best": (float(first), float(second))})
        if num_lesions is not None and visits.shape[1] != num_lesions:
            message = f"visits of {visits.shape[1]} lesions, and there are {num_lesions}"
            raise ValueError(message)
        return found

    def check(self, settings: TrainerSettings) -> None:
        """Hold what was read against what a run can have done.

        Raises:
            ValueError: It cannot.
        """
        whole = {"epoch": self.epoch, "step": self.step, "num_worse": self.num_worse, "num_voxels": self.num_voxels}
        sound = all(type(value) is int and value >= 0 for value in whole.values())
        fits = sound and self.step <= settings.steps_per_epoch and len(self.rows) == self.epoch
        fits = fits and all(isinstance(row, dict) and row.keys() <= set(METRICS) for row in self.rows)
        if not fits:
            message = f"a position of {self.epoch!r} epochs and {self.step!r} steps with {len(self.rows)} rows"
            raise ValueError(message)
