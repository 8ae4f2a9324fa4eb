"""Training batches: patches are cut while the network computes the batch before, and changed where it computes."""

from __future__ import annotations

import collections
import math
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medfocal.annotations.target import as_shares
from medfocal.data.sampling import LesionBalancedSampler, PatchLocation, cut_body, cut_image, cut_patch
from medfocal.data.stored import TrainingCase
from medfocal.data.transplant import LesionTransplants
from medfocal.errors import DatasetError
from medfocal.train.ranks import ALONE, Ranks

#: Apart from the other draws, which are seeded by seed, epoch and index.
READER_STREAM = 11
#: How often the largest weight the lack of one counts when weights are interpolated.
OUTWEIGHS = 1e4
#: Batches that are cut ahead: one being made while another waits.
AHEAD = 2


class Augmentation(Protocol):
    """What changes a batch at random: a class of `medfocal.data.augment`."""

    def check(self, patch_size: Sequence[int], spacings_mm: Mapping[str, Sequence[float]]) -> None:
        """See that what may happen suits the patches and the cases."""

    def input_size(self, patch_size: Sequence[int], spacings_mm: Sequence[Sequence[float]]) -> tuple[int, int, int]:
        """What must be cut around a patch."""

    def __call__(
        self,
        batch: Mapping[str, torch.Tensor],
        *,
        seeds: Sequence[int],
        spacing_mm: Sequence[Sequence[float]],
        patch_size: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Change a batch."""


@dataclass(frozen=True)
class Batch:
    """Images float32 `(B, C, I, J, K)`, and what the loss takes with them.

    Attributes:
        image: The patches.
        target: Classes int64 `(B, I, J, K)`, or shares of the channels float32 `(B, N, I, J, K)`.
        weight: Of the voxels, float32 `(B, I, J, K)`, or None.
        cases: Name of the case that each patch is of.
    """

    image: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor | None = None
    cases: tuple[str, ...] = ()

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many equal parts."""
        if count == 1:
            return [self]
        size = len(self.image) // count
        starts = range(0, len(self.image), size)
        return [
            Batch(
                self.image[start : start + size],
                self.target[start : start + size],
                None if self.weight is None else self.weight[start : start + size],
                self.cases[start : start + size],
            )
            for start in starts
        ]


@dataclass(frozen=True)
class CutBatch:
    """Patches as they were cut, before random changes, on the CPU.

    Attributes:
        planes: `image`, `label` or `shares`, and where given `weight`, each `(B, N, *input_size)`.
        seeds: Of the random changes of each patch.
        spacing_mm: Of each patch.
        cases: Name of the case of each patch.
    """

    planes: dict[str, torch.Tensor]
    seeds: list[int]
    spacing_mm: list[tuple[float, ...]]
    cases: tuple[str, ...]


class BatchSource:
    """Makes the batch of any step; the same seed, epoch and step give the same batch.

    Args:
        cases: The sampler's cases, in its order.
        sampler: Says where to cut.
        transplants: Sets lesions into what was cut; made for the same `membership` and `weighted`.
        augment: Random changes of a batch, or None.
        batch_size: Patches a batch, of all processes together.
        ranks: The processes; each makes its share of a batch.
        seed: Of the random changes, and of the reader of each case and epoch.
        membership: Of each class in what the network tells apart, where shares are taught; None: classes are.
        weighted: Whether voxels have weights; cases without any then weigh 1.
        with_background: Whether shares get a channel for the background, as softmax has one.
        device: Where batches are wanted; None: on the CPU.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        sampler: LesionBalancedSampler,
        *,
        transplants: LesionTransplants,
        augment: Augmentation | None,
        batch_size: int,
        seed: int,
        membership: NDArray[np.float32] | None = None,
        weighted: bool = False,
        with_background: bool = True,
        device: torch.device | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._cases = list(cases)
        self._sampler = sampler
        self._transplants = transplants
        self._augment = augment
        self._batch_size = batch_size
        self._ranks = ranks
        self._seed = seed
        self._membership = membership
        self._weighted = weighted
        self._with_background = with_background
        self._device = torch.device("cpu") if device is None else device
        self._input_size = sampler.patch_size
        if augment is not None:
            self._input_size = augment.input_size(sampler.patch_size, [case.spacing_mm for case in cases])

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step of an epoch, both from 0."""
        return self.finish(self.cut(epoch, step))

    def epoch(self, epoch: int, num_steps: int, first_step: int = 0) -> Generator[Batch]:
        """The batches of an epoch in order, from a step on; the next are made while the caller uses one."""
        # On the CPU changes take as long as steps are short; on a GPU they are queued behind the step before.
        make = self.batch if self._device.type == "cpu" else self.cut
        with ThreadPoolExecutor(max_workers=1) as worker:
            coming: collections.deque[Future[Any]] = collections.deque()
            try:
                for step in range(first_step, num_steps + AHEAD):
                    if step < num_steps:
                        coming.append(worker.submit(make, epoch, step))
                    if step >= first_step + AHEAD:
                        ready = coming.popleft().result()
                        yield ready if isinstance(ready, Batch) else self.finish(ready)
            finally:
                worker.shutdown(cancel_futures=True)  # nobody takes what is still to be made

    def cut(self, epoch: int, step: int) -> CutBatch:
        """The patches of a step before random changes."""
        own_size = self._batch_size // self._ranks.count
        first = step * self._batch_size + self._ranks.rank * own_size
        indices = range(first, first + own_size)
        places = [self._sampler.draw(epoch, index) for index in indices]
        arrays = self._empty(own_size, self._input_size)
        for number, (place, index) in enumerate(zip(places, indices, strict=True)):
            self._cut(place, epoch, index, {key: values[number] for key, values in arrays.items()})
        planes = {key: torch.from_numpy(values) for key, values in arrays.items()}
        if self._device.type == "cuda":
            planes = {key: values.pin_memory() for key, values in planes.items()}
        words = [np.random.SeedSequence([self._seed, epoch, index]).generate_state(1) for index in indices]
        spacings = [self._cases[place.case].spacing_mm for place in places]
        names = tuple(self._cases[place.case].case.name for place in places)
        return CutBatch(planes, [int(word[0]) for word in words], spacings, names)

    def finish(self, cut: CutBatch) -> Batch:
        """Bring what was cut to the device, change it at random, and give it the form that the loss takes."""
        planes = {key: values.to(self._device, non_blocking=True) for key, values in cut.planes.items()}
        if self._augment is not None:
            size = self._sampler.patch_size
            if "weight" in planes:  # a voxel of which a part weighs nothing, as nobody judged it, weighs nothing
                given = planes["weight"]
                most = given.amax(dim=(1, 2, 3, 4), keepdim=True)  # of each patch for itself: its seed alone decides
                planes["weight"] = torch.where(given == 0, -OUTWEIGHS * most, given)
            planes = self._augment(planes, seeds=cut.seeds, spacing_mm=cut.spacing_mm, patch_size=size)
            if "weight" in planes:
                planes["weight"] = planes["weight"].clamp(min=0)
        weight = planes["weight"][:, 0].contiguous() if "weight" in planes else None
        if "label" in planes:
            return Batch(planes["image"].contiguous(), planes["label"][:, 0].long(), weight, cut.cases)
        shares = planes["shares"]
        if self._with_background:
            # Above 1 where a transplant stands in the soft margin of another class, and by rounding.
            total = shares.sum(dim=1, keepdim=True)
            shares = torch.cat([1 - total, shares / total.clamp(min=1)], dim=1)
        return Batch(planes["image"].contiguous(), shares.clamp(0, 1).contiguous(), weight, cut.cases)

    def foreground_shares(self, num_outputs: int, num_patches: int = 256) -> list[float]:
        """Share of each lesion class, or region, among the voxels of the first patches: what the loss will see.

        Transplants and weights count; random changes are left out, as they hardly move it.

        Args:
            num_outputs: Lesion classes or regions.
            num_patches: Of the first epoch.

        Raises:
            DatasetError: All weights are 0.
        """
        counts, total = np.zeros(num_outputs), 0.0
        patch = {key: values[0] for key, values in self._empty(1, self._sampler.patch_size).items()}
        for index in range(num_patches):
            self._cut(self._sampler.draw(0, index), 0, index, patch)
            weight = patch["weight"][0] if "weight" in patch else np.ones(patch["image"].shape[-3:], np.float32)
            total += float(weight.sum())
            if "label" in patch:
                counts += np.bincount(patch["label"].ravel(), weight.ravel(), minlength=num_outputs + 1)[1:]
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

    def _empty(self, num_patches: int, size: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Room for patches: `image`, `label` or `shares`, and `weight` where voxels have one, each `(B, N, *size)`."""
        num_channels = len(self._cases[0].image)
        arrays: dict[str, NDArray[Any]] = {"image": np.empty((num_patches, num_channels, *size), np.float32)}
        if self._membership is None:
            arrays["label"] = np.empty((num_patches, 1, *size), np.uint8)
        else:
            arrays["shares"] = np.empty((num_patches, self._membership.shape[1], *size), np.float32)
        if self._weighted:
            arrays["weight"] = np.empty((num_patches, 1, *size), np.float32)
        return arrays

    def _cut(self, place: PatchLocation, epoch: int, index: int, patch: Mapping[str, NDArray[Any]]) -> None:
        """Fill in what lies around the patch of a place, with its transplants.

        Lesions are set into the patch itself, not into what is cut around it.

        Args:
            place: Of the patch.
            epoch: From 0.
            index: In the epoch.
            patch: From `_empty`, `(N, *size)` each.
        """
        case, target = self._cases[place.case], self._cases[place.case].target
        patch_size, size = self._sampler.patch_size, patch["image"].shape[1:]
        margin = [(outer - inner) // 2 for outer, inner in zip(size, patch_size, strict=True)]
        start = [first - width for first, width in zip(place.start, margin, strict=True)]
        image = cut_image(case.image, start, size, out=patch["image"])
        alternative = target.alternatives[self._reader(epoch, place.case)]
        is_taught = alternative is target.lesions and self._membership is None
        lesions = cut_patch(target.lesions, start, size, out=patch["label"][0] if is_taught else None)
        taught = lesions
        if self._membership is not None:
            of_classes = lesions if alternative is target.lesions else cut_patch(alternative, start, size)
            taught = patch["shares"]
            taught[...] = as_shares(of_classes, self._membership)
        elif not is_taught:
            taught = cut_patch(alternative, start, size, out=patch["label"][0])
        weight = None
        if self._weighted:
            weight = patch["weight"][0]
            weight[...] = 1 if target.weight is None else cut_patch(target.weight, start, size)
        if self._transplants.donors:
            box = tuple(slice(width, width + inner) for width, inner in zip(margin, patch_size, strict=True))
            self._transplants(
                image[(slice(None), *box)],
                lesions[box],
                body=cut_body(case, place.start, patch_size),
                case=place.case,
                epoch=epoch,
                index=index,
                target=None if taught is lesions else taught[(slice(None),) * (taught.ndim - 3) + box],
                weight=None if weight is None else weight[box],
            )

    def _reader(self, epoch: int, case: int) -> int:
        """Which alternative of a case an epoch takes."""
        num_readers = len(self._cases[case].target.alternatives)
        if num_readers == 1:
            return 0
        return int(np.random.default_rng([self._seed, epoch, case, READER_STREAM]).integers(num_readers))
