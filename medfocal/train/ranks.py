"""Several processes that train one network together, as `torchrun` starts them.

What a run computes does not depend on their number: a step's patches are those of the whole batch, shared out by rank,
and its loss is divided by what counts in the whole batch. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from medfocal.errors import ConfigError

Item = TypeVar("Item")

#: What torchrun tells a process about itself and where the first one listens.
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: A rank may wait this long for one that prepares or validates cases.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this is; by default the only one.

    Attributes:
        rank: From 0.
        count: How many there are.
        local_rank: On this machine, from 0.
        patient: Process group for all but gradients, in which waiting is no error.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    patient: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[Item]:
        """This rank's items of those that the ranks share out."""
        return list(items[self.rank :: self.count])

    def gather(self, own: Item) -> list[Item]:
        """What each rank gives, by rank."""
        if self.count == 1:
            return [own]
        given: list[Any] = [None] * self.count
        distributed.all_gather_object(given, own, group=self.patient)
        return given

    def in_order(self, own: Sequence[Item]) -> list[Item]:
        """All items in their order, from what each rank gives for its `own`."""
        shares = self.gather(list(own))
        return [shares[i % self.count][i // self.count] for i in range(sum(map(len, shares)))]

    def told_by_first(self, value: Item) -> Item:
        """What rank 0 has as `value`."""
        if self.count == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0, group=self.patient)
        return told[0]

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            distributed.barrier(group=self.patient)

    def device(self, name: str) -> str:
        """The device of this rank: `cuda` and `auto` are one of the machine's GPUs for each."""
        shares_gpus = self.count > 1 and name in {"cuda", "auto"} and torch.cuda.is_available()
        if not shares_gpus:
            return name
        if self.local_rank >= torch.cuda.device_count():
            message = (
                f"process {self.local_rank} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}. Start torchrun with --nproc-per-node={torch.cuda.device_count()}."
            )
            raise ConfigError(message)
        return f"cuda:{self.local_rank}"


ALONE = Ranks()


def num_announced() -> int:
    """How many processes torchrun says there are; 1 without it."""
    told = os.environ.get("WORLD_SIZE", "1")
    if not told.isdecimal() or int(told) < 1:
        message = f"WORLD_SIZE is {told!r}, which is no number of processes. Unset it, or start with torchrun."
        raise ConfigError(message)
    return int(told)


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started together with this one; without torchrun it is alone.

    Raises:
        ConfigError: Only part of what torchrun tells is there.
    """
    if num_announced() == 1:
        yield ALONE
        return
    missing = [name for name in TOLD if name not in os.environ]
    if missing:
        message = (
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} announces several processes, but {', '.join(missing)} is not set. "
            "Start them with torchrun, or unset WORLD_SIZE."
        )
        raise ConfigError(message)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    distributed.init_process_group(backend)
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    yield Ranks(distributed.get_rank(), distributed.get_world_size(), local_rank, group)
    # Not after an error: the others may wait in there for this one, until torchrun ends them.
    distributed.destroy_process_group()
