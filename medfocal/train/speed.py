"""How fast a training is: for the line that shows its progress, and for metrics.csv."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from medfocal.train.position import Position
from medfocal.train.settings import TrainerSettings

Item = TypeVar("Item")


class Speed:
    """Times the steps of an epoch.

    Args:
        at: Where steps, their losses and seconds are added up.
        settings: How many steps there are.
        device: Whose memory is told, where it is a GPU.
    """

    def __init__(self, at: Position, settings: TrainerSettings, device: torch.device) -> None:
        self._at = at
        self._settings = settings
        self._device = device
        self._first_step, self._seconds_before = at.step, at.seconds
        self._since = time.monotonic()
        self._loss = float("nan")

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches, while the time that they were waited for adds up."""
        self._since = time.monotonic()
        asked = self._since
        for batch in batches:
            self._at.waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def step(self, loss: float, *, is_finite: bool) -> None:
        """Take the time of a step, and its loss where that and its gradients are finite."""
        now = time.monotonic()
        self._at.seconds += now - self._since
        self._since = now
        self._loss = loss
        if is_finite:
            self._at.loss_sum += loss

    def describe(self) -> str:
        """Loss, throughput, share of waiting, time left of all steps, and memory of the GPU."""
        num_steps = self._at.step - self._first_step
        seconds = (self._at.seconds - self._seconds_before) / max(1, num_steps)
        of_epoch = self._settings.steps_per_epoch
        left = (self._settings.max_epochs - self._at.epoch) * of_epoch - self._at.step
        words = [
            f"loss {self._loss:.5f}",
            f"{self._settings.batch_size / max(seconds, 1e-9):.1f} patches/s",
            f"waits {self._at.waited / max(self._at.seconds, 1e-9):.0%}",
            f"{duration(left * seconds)} left",
        ]
        if self._device.type == "cuda":
            words.append(f"{torch.cuda.max_memory_allocated(self._device) / 1e9:.1f} GB")
        return ", ".join(words)


def duration(seconds: float) -> str:
    """In the two largest units that count, such as `3 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
