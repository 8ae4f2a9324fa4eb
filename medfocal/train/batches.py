"""Training batches: patches cut and changed at random while the network computes the batch before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medfocal.data.sampling import LesionBalancedSampler, cut_patch
from medfocal.data.transforms import PreparedCase, RandomTransforms
from medfocal.data.transplant import LesionTransplants


@dataclass(frozen=True)
class Batch:
    """Images float32 `(B, C, I, J, K)` and classes int64 `(B, I, J, K)`."""

    image: torch.Tensor
    label: torch.Tensor


class BatchSource:
    """Makes the batch of any step; the same seed, epoch and step give the same batch.

    Args:
        cases: The sampler's cases, in its order.
        sampler: Says where to cut.
        transplants: Sets lesions into what was cut.
        augment: Random changes of a patch, or None.
        batch_size: Patches a batch.
        seed: Of the random changes.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        sampler: LesionBalancedSampler,
        *,
        transplants: LesionTransplants,
        augment: RandomTransforms | None,
        batch_size: int,
        seed: int,
    ) -> None:
        self._images = [case.image.numpy() for case in cases]
        self._labels = [case.label.numpy()[None] for case in cases if case.label is not None]
        self._sampler = sampler
        self._transplants = transplants
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step of an epoch, both from 0."""
        patches = [self._patch(epoch, step * self._batch_size + n) for n in range(self._batch_size)]
        # MONAI hands out MetaTensors, whose every operation, in the network too, takes a way around through Python.
        image = torch.stack([patch["image"].as_subclass(torch.Tensor) for patch in patches])
        label = torch.stack([patch["label"].as_subclass(torch.Tensor)[0] for patch in patches])
        return Batch(image.contiguous(), label.long())

    def epoch(self, epoch: int, num_steps: int) -> Iterator[Batch]:
        """The batches of an epoch in order; the next is made while the caller uses one."""
        with ThreadPoolExecutor(max_workers=1) as worker:
            coming = worker.submit(self.batch, epoch, 0)
            for step in range(num_steps):
                ready = coming.result()
                if step + 1 < num_steps:
                    coming = worker.submit(self.batch, epoch, step + 1)
                yield ready

    def foreground_shares(self, num_classes: int, num_patches: int = 256) -> list[float]:
        """Share of each lesion class among the voxels of the first patches: what the loss will see.

        Transplants count; random changes are left out, as they hardly move it.
        """
        counts = np.zeros(num_classes)
        for index in range(num_patches):
            _, label = self._cut(0, index)
            counts += np.bincount(label.ravel(), minlength=num_classes)
        # A class that these patches do not show gets half a voxel: its logarithm must exist.
        return [float(count) for count in np.maximum(counts[1:], 0.5) / counts.sum()]

    def _patch(self, epoch: int, index: int) -> dict[str, torch.Tensor]:
        image, label = self._cut(epoch, index)
        patch: dict[str, torch.Tensor] = {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}
        if self._augment is not None:
            words = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)
            self._augment.set_random_state(int(words[0]))
            patch = self._augment(patch)
        return patch

    def _cut(self, epoch: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Image `(C, I, J, K)` and classes `(1, I, J, K)` of a patch with its transplants, before random changes."""
        place, size = self._sampler.draw(epoch, index), self._sampler.patch_size
        image = cut_patch(self._images[place.case], place.start, size)
        label = cut_patch(self._labels[place.case], place.start, size)
        body = self._sampler.body(place)
        self._transplants(image, label[0], body=body, case=place.case, epoch=epoch, index=index)
        return image, label


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch, without waiting where the device allows it."""
    if device.type == "cpu":
        return batch
    move: Callable[[torch.Tensor], torch.Tensor] = lambda t: t.pin_memory().to(device, non_blocking=True)  # noqa: E731
    return Batch(move(batch.image), move(batch.label))
