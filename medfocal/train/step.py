"""One step of the optimizer on a batch, which may be computed in parts and by several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medfocal.errors import ConfigError, ResourceError
from medfocal.infer.memory import is_out_of_memory
from medfocal.losses.module import TrainingLoss
from medfocal.train.batches import Batch
from medfocal.train.capacity import what_would_fit
from medfocal.train.ranks import Ranks
from medfocal.train.settings import Compile, Sharding, TrainerSettings
from medfocal.train.sharding import SpreadNetwork
from medfocal.train.supervision import coarser, level_weights


@dataclass(frozen=True)
class Taken:
    """What a step gave, the same in every process.

    Attributes:
        loss: Of the whole batch.
        is_finite: Whether loss and gradients were finite; where they were not, the weights stayed as they were.
        is_fault: Whether that is a fault, and not the search for a factor that float16 can bear.
        stops: Whether a process has been asked to stop.
        saves: Whether it is time for a checkpoint.
    """

    loss: float
    is_finite: bool
    is_fault: bool
    stops: bool
    saves: bool


class TrainingStep:
    """Takes steps: forward, loss, backward, and the optimizer's step where all is finite.

    Args:
        network: On its device, with the weights to start from.
        build_optimizer: Takes the parameters.
        settings: How.
        autocast: Type of what can be computed in less than float32, None for float32.
        ranks: The processes.
        device: Of this one.

    Attributes:
        spread: The network and its optimizer.
        num_voxels: Voxels that losses have judged since it was last set to 0, in this process.
    """

    def __init__(
        self,
        network: nn.Module,
        build_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        settings: TrainerSettings,
        autocast: torch.dtype | None,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        if settings.channels_last:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # its stub lacks it
        if settings.checkpoint_activations:
            network.checkpoint_activations = True  # type: ignore[assignment]  # an attribute of all our networks
        self.spread = SpreadNetwork(
            network, build_optimizer, sharding=Sharding(settings.sharding), ranks=ranks, device=device
        )
        self._forward = compiled(self.spread.forward, Compile(settings.compile), device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)
        self.num_voxels = 0
        self._settings = settings
        self._autocast = autocast
        self._ranks = ranks
        self._device = device

    def take(self, batch: Batch, loss: TrainingLoss, *, stop: bool, save: bool) -> Taken:
        """Learn from a batch.

        Args:
            batch: This process's patches of it.
            loss: Of the epoch.
            stop: Whether this process has been asked to stop.
            save: Whether this process finds that it is time for a checkpoint; the first one's word counts.

        Raises:
            ResourceError: There is not enough memory.
            ValueError: The loss cannot be computed in parts.
        """
        try:
            return self._take(batch, loss, stop=stop, save=save)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            advice = what_would_fit(
                self.spread.network,
                patch_size=batch.image.shape[2:],
                num_patches=len(batch.image),
                parts=self._settings.accumulate,
                bytes_per_value=4 if self._autocast is None else 2,
                device=self._device,
            )
            message = f"not enough memory for a training step: {advice} The last checkpoint is kept."
            raise ResourceError(message) from error

    def _take(self, batch: Batch, loss: TrainingLoss, *, stop: bool, save: bool) -> Taken:
        network, optimizer = self.spread.network, self.spread.optimizer
        before = [values.clone() for values in network.buffers()]  # batch statistics, which the forward pass moves
        parts = batch.parts(self._settings.accumulate)
        optimizer.zero_grad(set_to_none=True)
        own_loss = torch.zeros((), dtype=torch.float64, device=self._device)
        levels: list[list[Batch]] = []
        whole: list[Tensor] | None = None
        for number, part in enumerate(parts):
            with self.spread.without_sync(wanted=number + 1 < len(parts)):
                image = part.image
                if self._settings.channels_last:
                    image = image.contiguous(memory_format=torch.channels_last_3d)
                with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
                    made: Any = self._forward(image)
                outputs: list[Tensor] = [made] if isinstance(made, Tensor) else made
                if not levels:
                    shapes = [tuple(logits.shape[2:]) for logits in outputs]
                    levels = [[_at(each, shape, loss) for shape in shapes] for each in parts]
                    whole = self._whole_sizes(levels, loss)
                part_loss = self._loss(loss, outputs, levels[number], whole)
                # Gradients are averaged over the processes, and losses of parts add up.
                self.scaler.scale(part_loss * self._ranks.count).backward()  # type: ignore[no-untyped-call]
            own_loss += part_loss.detach()
        self.scaler.unscale_(optimizer)
        limit = self._settings.gradient_clip_norm
        norm: Any = nn.utils.clip_grad_norm_(network.parameters(), float("inf") if limit is None else limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        flags = torch.tensor([stop, save and self._ranks.is_first], dtype=torch.float64, device=self._device)
        told = torch.cat([own_loss[None], norm.double()[None] / self._ranks.count, flags])
        value, norm_value, stops, saves = self._ranks.add(told).tolist()
        is_finite = math.isfinite(value) and math.isfinite(norm_value)
        is_search = self.scaler.is_enabled() and math.isfinite(value) and self.scaler.get_scale() >= 1
        if is_finite or (self.scaler.is_enabled() and math.isfinite(value)):
            self.scaler.step(optimizer)  # which float16's scaler leaves out where gradients are not finite
        if self.scaler.is_enabled():
            self.scaler.update()
        if not is_finite:
            for values, were in zip(network.buffers(), before, strict=True):
                values.copy_(were)
        return Taken(value, is_finite, not (is_finite or is_search), stops > 0, saves > 0)

    def _loss(
        self, loss: TrainingLoss, outputs: Sequence[Tensor], levels: Sequence[Batch], whole: Sequence[Tensor] | None
    ) -> Tensor:
        """The loss of a part, over all levels that the network gives logits at."""
        weights = level_weights(len(outputs))
        found: Any = 0.0
        for number, (logits, level) in enumerate(zip(outputs, levels, strict=True)):
            of = None if whole is None else whole[number]
            found = found + weights[number] * loss(logits.float(), level.target, weight=level.weight, whole=of)
            self.num_voxels += logits[:, 0].numel()
        total: Tensor = found
        return total

    def _whole_sizes(self, levels: Sequence[Sequence[Batch]], loss: TrainingLoss) -> list[Tensor] | None:
        """What the loss of each level is divided by in the whole batch; None where this is the whole batch."""
        if len(levels) * self._ranks.count == 1:
            return None
        sizes = [torch.stack([loss.part_sizes(level.target, level.weight) for level in part]) for part in levels]
        return list(self._ranks.add(torch.stack(sizes).sum(dim=0)))


def _at(batch: Batch, shape: tuple[int, ...], loss: TrainingLoss) -> Batch:
    """What is taught, on the grid of a level."""
    if tuple(batch.image.shape[2:]) == shape:
        return batch
    target, weight = coarser(
        batch.target,
        batch.weight,
        shape,
        with_background=loss.activation == "softmax",
        ignore_index=loss.ignore_index,
    )
    return replace(batch, target=target, weight=weight)


def compiled(network: Callable[..., Any], choice: Compile, device: torch.device) -> Callable[..., Any]:
    """The network as it is called in training: compiled, or as it is.

    "auto" compiles on a GPU. On a CPU it does not, as compiling needs a C++ compiler there, and time.
    """
    if choice is Compile.OFF or (choice is Compile.AUTO and device.type == "cpu"):
        return network
    if choice is Compile.CUDA_GRAPHS and device.type == "cpu":
        message = "trainer.compile=cuda_graphs needs a GPU; this training is on the CPU. Set trainer.compile=auto."
        raise ConfigError(message)
    mode = "reduce-overhead" if choice is Compile.CUDA_GRAPHS else None
    made: Callable[..., Any] = torch.compile(network, mode=mode, dynamic=False)
    return made
