"""Training batches: patches cut and changed at random while the network computes the batch before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medfocal.annotations.target import Target
from medfocal.data.sampling import LesionBalancedSampler, cut_patch
from medfocal.data.transforms import PreparedCase, RandomTransforms
from medfocal.data.transplant import LesionTransplants
from medfocal.errors import DatasetError

#: Apart from the other draws, which are seeded by seed, epoch and index.
READER_STREAM = 11


@dataclass(frozen=True)
class Batch:
    """Images float32 `(B, C, I, J, K)`, and what the loss takes with them.

    Attributes:
        image: The patches.
        target: Classes int64 `(B, I, J, K)`, or shares of the channels float32 `(B, N, I, J, K)`.
        weight: Of the voxels, float32 `(B, I, J, K)`, or None.
    """

    image: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None = None


class BatchSource:
    """Makes the batch of any step; the same seed, epoch and step give the same batch.

    Args:
        cases: The sampler's cases, in its order. Their targets are all classes or all shares, all with weights or all
            without.
        sampler: Says where to cut.
        transplants: Sets lesions into what was cut.
        augment: Random changes of a patch, or None.
        batch_size: Patches a batch.
        seed: Of the random changes, and of the reader of each case and epoch.
        with_background: Whether shares get a channel for the background, as softmax has one.
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
        with_background: bool = True,
    ) -> None:
        self._images = [case.image.numpy() for case in cases]
        self._targets = [_target_of(case) for case in cases]
        self._has_target = any(case.target is not None for case in cases)
        self._sampler = sampler
        self._transplants = transplants
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._with_background = with_background

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step of an epoch, both from 0."""
        patches = [self._patch(epoch, step * self._batch_size + n) for n in range(self._batch_size)]

        def stacked(key: str) -> torch.Tensor:
            # MONAI hands out MetaTensors, whose every operation, in the network too, takes a way around through Python.
            return torch.stack([patch[key].as_subclass(torch.Tensor) for patch in patches])

        weight = stacked("weight")[:, 0].contiguous() if "weight" in patches[0] else None
        if "label" in patches[0]:
            return Batch(stacked("image").contiguous(), stacked("label")[:, 0].long(), weight)
        shares = stacked("shares")
        if self._with_background:
            shares = torch.cat([1 - shares.sum(dim=1, keepdim=True), shares], dim=1)
        return Batch(stacked("image").contiguous(), shares.clamp(0, 1).contiguous(), weight)

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

        Transplants and weights count; random changes are left out, as they hardly move it.

        Raises:
            DatasetError: All weights are 0.
        """
        counts, total = np.zeros(num_classes - 1), 0.0
        for index in range(num_patches):
            patch = self._cut(0, index)
            weight = patch["weight"] if "weight" in patch else np.ones(patch["image"].shape[-3:], np.float32)
            total += float(weight.sum())
            if "label" in patch:
                counts += np.bincount(patch["label"].ravel(), weight.ravel(), minlength=num_classes)[1:]
            else:
                counts += (patch["shares"] * weight).sum(axis=(1, 2, 3))
        if total == 0:
            message = (
                "the voxel weights are 0 in all of the first patches, so nothing would be learnt. Check "
                "annotations.weights and annotations.disagreement."
            )
            raise DatasetError(message)
        # A class that these patches do not show gets half a voxel of mean weight: its logarithm must exist.
        half_a_voxel = 0.5 * total / (num_patches * math.prod(self._sampler.patch_size))
        return [float(count) for count in np.maximum(counts, half_a_voxel) / total]

    def _patch(self, epoch: int, index: int) -> dict[str, torch.Tensor]:
        patch = {key: torch.from_numpy(values) for key, values in self._cut(epoch, index).items()}
        if self._augment is not None:
            words = np.random.SeedSequence([self._seed, epoch, index]).generate_state(1)
            self._augment.set_random_state(int(words[0]))
            patch = self._augment(patch)
        return patch

    def _cut(self, epoch: int, index: int) -> dict[str, NDArray[Any]]:
        """A patch with its transplants, before random changes: `image`, `label` or `shares`, and where given `weight`.

        Each `(N, I, J, K)`.
        """
        place, size = self._sampler.draw(epoch, index), self._sampler.patch_size
        target = self._targets[place.case]
        image = cut_patch(self._images[place.case], place.start, size)
        lesions = cut_patch(target.lesions, place.start, size)
        taught = lesions
        if self._has_target:
            taught = cut_patch(target.alternatives[self._reader(epoch, place.case)], place.start, size)
            taught = taught.astype(np.float32 if target.is_soft else np.uint8)
        weight = None if target.weight is None else cut_patch(target.weight, place.start, size)
        self._transplants(
            image,
            lesions,
            body=self._sampler.body(place),
            case=place.case,
            epoch=epoch,
            index=index,
            target=taught if self._has_target else None,
            weight=weight,
        )
        patch = {"image": image, **({"shares": taught} if target.is_soft else {"label": taught[None]})}
        return patch if weight is None else {**patch, "weight": weight[None]}

    def _reader(self, epoch: int, case: int) -> int:
        """Which alternative of a case an epoch takes."""
        num_readers = len(self._targets[case].alternatives)
        if num_readers == 1:
            return 0
        return int(np.random.default_rng([self._seed, epoch, case, READER_STREAM]).integers(num_readers))


def _target_of(case: PreparedCase) -> Target:
    if case.target is not None:
        return case.target
    assert case.label is not None, "training cases have labels; the manifest sees to it"
    label = case.label.numpy()
    return Target(label, (label,))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch, without waiting where the device allows it."""
    if device.type == "cpu":
        return batch
    move: Callable[[torch.Tensor], torch.Tensor] = lambda t: t.pin_memory().to(device, non_blocking=True)  # noqa: E731
    return Batch(move(batch.image), move(batch.target), None if batch.weight is None else move(batch.weight))
