"""Steps whose loss or gradients are not finite: left out, named, and kept to be looked at."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfocal.data.manifest import listed
from medfocal.errors import ConfigError
from medfocal.files import atomic_write
from medfocal.train.batches import Batch
from medfocal.train.ranks import Ranks
from medfocal.train.step import Taken

LOG = logging.getLogger("medfocal.train")

#: Batches that are kept; the first tell most, and a batch may be large.
MOST_KEPT = 10


@dataclass
class Anomalies:
    """Counts faulty steps, and ends a training that makes nothing else.

    Attributes:
        folder: Where batches are kept.
        most_in_a_row: More than these end the training.
        num_in_a_row: So far.
        num_in_epoch: So far; a new epoch sets it to 0.
    """

    folder: Path
    most_in_a_row: int
    num_in_a_row: int = 0
    num_in_epoch: int = 0

    def set_counts(self, num_in_a_row: int, num_in_epoch: int) -> None:
        """Go on counting from a checkpoint.

        Raises:
            ValueError: They are no counts.
        """
        for count in (num_in_a_row, num_in_epoch):
            if type(count) is not int or count < 0:
                message = f"{count!r} steps that were left out"
                raise ValueError(message)
        self.num_in_a_row, self.num_in_epoch = num_in_a_row, num_in_epoch

    def judge(self, taken: Taken, batch: Batch, *, epoch: int, step: int, ranks: Ranks) -> None:
        """Note a step; every process must call it.

        Args:
            taken: What it gave.
            batch: This process's patches.
            epoch: From 1.
            step: In the epoch, from 1.
            ranks: The processes.

        Raises:
            ConfigError: Too many in a row.
        """
        if not taken.is_finite:
            self.num_in_epoch += 1
        if not taken.is_fault:
            self.num_in_a_row = 0
            return
        self.num_in_a_row += 1
        names = sorted({name for names in ranks.gather(batch.cases) for name in names})
        kept = self._keep(batch, f"epoch-{epoch:04d}-step-{step:05d}-process-{ranks.rank}.npz")
        if ranks.is_first:
            LOG.warning(
                "epoch %d, step %d: loss %s or its gradients are not finite, so the weights stay as they were; patches "
                "of %s%s",
                epoch, step, taken.loss, listed(names), "" if kept is None else f"; the batch is kept in '{kept}'",
            )  # fmt: skip
        if self.num_in_a_row > self.most_in_a_row:
            message = (
                f"{self.num_in_a_row} steps in a row without a finite loss and gradients, the last of epoch {epoch}, "
                f"step {step}, with patches of {listed(names)}. Look at '{self.folder}', lower optimizer.lr or set "
                "trainer.precision=float32; the last checkpoint is of before these steps."
            )
            raise ConfigError(message)

    def _keep(self, batch: Batch, name: str) -> Path | None:
        if len(list(self.folder.glob("*.npz"))) >= MOST_KEPT:
            return None
        arrays = {"image": batch.image, "target": batch.target, "weight": batch.weight}
        content = io.BytesIO()
        given = {key: values.cpu().numpy() for key, values in arrays.items() if values is not None}
        np.savez_compressed(content, **given, cases=np.array(batch.cases))  # type: ignore[arg-type]  # names are ours
        with atomic_write(self.folder / name, "wb") as file:
            file.write(content.getbuffer())
        return self.folder / name
