"""A network in one process, in several that hold it whole (DDP), or in several that hold a share each (FSDP2)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from medfocal.train.ranks import Ranks
from medfocal.train.settings import Sharding

#: States in which every process has all of each tensor.
WHOLE = StateDictOptions(full_state_dict=True)
#: States of which the first process has all, in main memory, and the others nothing.
OF_FIRST = StateDictOptions(full_state_dict=True, cpu_offload=True)


class SpreadNetwork:
    """A network and its optimizer, wherever their parts lie; states are whole and alike in every process.

    Args:
        network: On its device. With FSDP its parameters become shares.
        build_optimizer: Takes the parameters.
        sharding: What each of several processes holds.
        ranks: The processes.
        device: Of this one.

    Attributes:
        network: Its own parameters, or this process's share of them.
        forward: What a training step calls.
        optimizer: Of this process.
        whole: The network with all weights for evaluation: `network` itself, or with FSDP a copy that `gather` fills.
    """

    def __init__(
        self,
        network: nn.Module,
        build_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        sharding: Sharding,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.network = self.forward = self.whole = network
        self._is_sharded = sharding is Sharding.FSDP and ranks.count > 1
        if self._is_sharded:
            self.whole = copy.deepcopy(network)
            for module in network.modules():  # a level at a time is whole while it computes, not the network
                if isinstance(module, nn.ModuleList):
                    for level in module:
                        fully_shard(level)
            fully_shard(network)
        elif ranks.count > 1:
            of_gpu = [device] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(network, device_ids=of_gpu, gradient_as_bucket_view=True)
        self.optimizer = build_optimizer(network.parameters())

    def without_sync(self, *, wanted: bool) -> AbstractContextManager[None]:
        """Within it, gradients stay in this process, as those of all but the last part of a batch do."""
        if self._is_sharded:
            assert isinstance(self.network, FSDPModule), "fully_shard makes it one"
            self.network.set_requires_gradient_sync(not wanted)
        elif wanted and isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def gather(self) -> nn.Module:
        """The network with all weights as they are now, in evaluation mode; every process must call it."""
        if self._is_sharded:
            self.whole.load_state_dict(get_model_state_dict(self.network, options=WHOLE))
        return self.whole.eval()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whole states of network and optimizer, with FSDP of the first process only; every process must call it."""
        if not self._is_sharded:
            return self.network.state_dict(), self.optimizer.state_dict()
        return get_state_dict(self.network, self.optimizer, options=OF_FIRST)

    def load_state(self, network: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Take whole states; every process must call it."""
        if not self._is_sharded:
            self.network.load_state_dict(network)
            self.optimizer.load_state_dict(optimizer)
            return
        set_state_dict(
            self.network, self.optimizer, model_state_dict=network, optim_state_dict=optimizer, options=WHOLE
        )
