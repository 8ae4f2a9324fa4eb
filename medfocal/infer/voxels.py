"""What networks say of each voxel of a case, in a memory known beforehand: probability of a lesion, class, spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import ModelError
from medfocal.infer.correction import corrected
from medfocal.infer.memory import freed_goes_back, plan_memory
from medfocal.infer.sliding import body_box, slide, with_margin
from medfocal.infer.window import Window, class_probabilities, reduced_type
from medfocal.model import NO_CORRECTION

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Voxels:
    """What is known of each voxel, on the network's grid.

    Attributes:
        probability: Of any lesion class, float32 `(I, J, K)`, in [0, 1].
        classes: Lesion class or innermost region of each voxel from 1, if it is of a lesion at all, uint8
            `(I, J, K)`; None where there is but one.
        spread: Standard deviation of the probability over members and mirrored views, float32 `(I, J, K)`; None
            unless it was asked for.
    """

    probability: NDArray[np.float32]
    classes: NDArray[np.uint8] | None
    spread: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Views:
    """Networks, each asked of windows and of mirrored ones.

    Attributes:
        networks: All of them.
        mirrors: Axes of a batch that are mirrored together, for each view.
        activation: "softmax" or "sigmoid".
        device_type: Where the networks are.
        reduced: What convolutions compute in, None for float32.
        with_spread: Whether to tell each view's probability as well.
    """

    networks: Sequence[nn.Module]
    mirrors: Sequence[tuple[int, ...]]
    activation: str
    device_type: str
    reduced: torch.dtype | None
    with_spread: bool

    @property
    def num(self) -> int:
        """How many there are."""
        return len(self.networks) * len(self.mirrors)

    @property
    def is_one(self) -> bool:
        """Whether logits are all that is needed, of which `mean` makes probabilities where they are added."""
        return self.num == 1 and not self.with_spread

    def say(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits of the only view; else the mean of the views' probabilities, then each one's of any lesion."""
        import torch

        if self.is_one:
            return self._logits(self.networks[0], windows)
        total: torch.Tensor | None = None
        each = []
        for network, axes in itertools.product(self.networks, self.mirrors):
            logits = self._logits(network, windows.flip(axes) if axes else windows)
            probabilities = class_probabilities(logits, self.activation)
            if axes:
                probabilities = probabilities.flip(axes)
            if self.with_spread:
                each.append(lesion_of(probabilities, self.activation, dim=1).clone())  # the sum below is made in place
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None, "at least one network"
        total = total.div_(self.num) if self.num > 1 else total
        return torch.cat([total, *each], dim=1) if self.with_spread else total

    def mean(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities `(K, *)` of logits `(C, *)`."""
        return class_probabilities(logits[None], self.activation)[0]

    def _logits(self, network: nn.Module, windows: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.autocast(self.device_type, dtype=self.reduced, enabled=self.reduced is not None):
            made: torch.Tensor = network(windows)
        return made


def predict_voxels(
    networks: Sequence[nn.Module],
    image: torch.Tensor,
    *,
    window: Window,
    activation: str,
    num_classes: int,
    device: torch.device,
    overlapping: bool = False,
    correction: Mapping[str, Any] = NO_CORRECTION,
    mirror: bool = False,
    with_spread: bool = False,
    max_memory_mb: float | None = None,
) -> Voxels:
    """Slide a window over a prepared image and average what networks say with Gaussian weights.

    Args:
        networks: In evaluation mode, on `device`. Their probabilities are averaged window by window.
        image: float32 `(C, I, J, K)` on the network's grid, on the CPU. A side shorter than the window is padded
            with 0 on both ends.
        window: Size, overlap, batch and precision.
        activation: "softmax" or "sigmoid".
        num_classes: Lesion classes.
        device: Where windows are computed.
        overlapping: Whether classes are regions that lie within each other.
        correction: Of `medfocal.infer.correction.corrected`, for the averages.
        mirror: Whether to average over the eight mirrored views as well, in eight times the time.
        with_spread: Whether to tell how far networks and views differ.
        max_memory_mb: What `Memory` may come to; None: no bound. With one, `freed_goes_back` holds meanwhile.

    Raises:
        ModelError: A network gives NaN.
        ResourceError: It cannot be done in so little memory.
    """
    import torch
    from torch.nn import functional as F

    shape = image.shape[1:]
    missing = [max(0, size - count) for size, count in zip(window.size, shape, strict=True)]
    ahead = [count // 2 for count in missing]
    if any(missing):
        pads = [(count // 2, count - count // 2) for count in missing]
        image = F.pad(image, [end for pad in reversed(pads) for end in pad])
    inner = tuple(slice(start, start + count) for start, count in zip(ahead, shape, strict=True))
    reduced = reduced_type(window.precision, device)
    views = _Views(networks, _mirrors(mirror), activation, device.type, reduced, with_spread=with_spread)
    num_channels = num_classes + (views.num if with_spread else 0)
    found = Voxels(
        np.zeros(image.shape[1:], np.float32),
        np.ones(image.shape[1:], np.uint8) if num_classes > 1 else None,
        np.zeros(image.shape[1:], np.float32) if with_spread else None,
    )
    # One channel of averages is the result, so it needs no memory of its own.
    in_place = num_channels == 1 and device.type == "cpu"
    num_tiles = 1
    if max_memory_mb is not None:
        memory = plan_memory(
            networks[0],
            image.shape,
            window,
            0 if in_place else num_channels,
            num_results=9 if with_spread else 5,
            max_memory_mb=max_memory_mb,
        )
        num_tiles, window = memory.num_tiles, replace(window, batch=memory.batch)
    with torch.inference_mode(), freed_goes_back(wanted=max_memory_mb is not None):
        box = body_box(image)
        if any(side.stop == side.start for side in box):
            return _cropped(found, inner)
        # At a window's border a network sees half of what it needs, and there one window alone has the say.
        box = with_margin(box, window, image.shape[1:])
        planes = slide(
            views.say,
            image[:, *box],
            window=window,
            num_channels=num_channels,
            device=device,
            num_tiles=num_tiles,
            mean=views.mean if views.is_one else None,
            sums=torch.from_numpy(found.probability[box])[None] if in_place else None,
        )
        for depth, columns, values in planes:
            place = (_moved(depth, box[0]), _moved(columns, box[1]), box[2])
            _take(values, found, place, num_classes, activation, correction, overlapping=overlapping)
    return _cropped(found, inner)


def _take(
    values: torch.Tensor,
    found: Voxels,
    place: tuple[slice, slice, slice],
    num_classes: int,
    activation: str,
    correction: Mapping[str, Any],
    *,
    overlapping: bool,
) -> None:
    """Write planes that are complete into the results."""
    import torch

    averages = values[:num_classes]
    lesion = lesion_of(averages, activation, dim=0)[0]
    if not math.isfinite(float(lesion.sum())):  # whatever is not finite in a class makes this so
        message = "the network gives NaN or infinite values: its weights, or bfloat16 with them, are unusable"
        raise ModelError(message)
    classes = corrected(averages, correction, activation)
    if classes is not averages:
        lesion = lesion_of(classes, activation, dim=0)[0]
        if not math.isfinite(float(lesion.sum())):
            message = f"the correction {dict(correction)} makes NaN or infinite values of probabilities"
            raise ModelError(message)
    torch.clamp(lesion.cpu(), 0, 1, out=torch.from_numpy(found.probability[place]))
    if found.classes is not None:
        label = _highest(classes)
        if overlapping:
            for number, probability in enumerate(classes, start=1):
                label[probability >= 0.5] = number
        found.classes[place] = label.cpu().numpy()
    if found.spread is not None:
        found.spread[place] = values[num_classes:].std(dim=0, correction=0).cpu().numpy()


def _highest(classes: torch.Tensor) -> torch.Tensor:
    """Number of the highest of the channels from 1, the first of equals, uint8; as argmax, in a tenth of its time."""
    import torch

    highest = classes.amax(dim=0)
    is_found = torch.zeros_like(highest, dtype=torch.bool)
    number = torch.ones_like(highest, dtype=torch.uint8)
    for probability in classes[:-1]:
        number += is_found.logical_or_(probability == highest).logical_not()
    return number


def lesion_of(probabilities: torch.Tensor, activation: str, *, dim: int) -> torch.Tensor:
    """Probability of any lesion class, with one channel along `dim`.

    Classes of a softmax exclude each other, so they add; those of sigmoids do not, so the highest counts.
    """
    if probabilities.shape[dim] == 1:
        return probabilities
    if activation == "softmax":
        return probabilities.sum(dim=dim, keepdim=True)
    return probabilities.amax(dim=dim, keepdim=True)


def _mirrors(mirror: bool) -> list[tuple[int, ...]]:  # noqa: FBT001  the setting itself
    axes = (2, 3, 4)
    sizes = range(4) if mirror else range(1)
    return [chosen for size in sizes for chosen in itertools.combinations(axes, size)]


def _moved(part: slice, side: slice) -> slice:
    return slice(part.start + side.start, part.stop + side.start)


def _cropped(found: Voxels, inner: tuple[slice, ...]) -> Voxels:
    return replace(
        found,
        probability=found.probability[inner],
        classes=None if found.classes is None else found.classes[inner],
        spread=None if found.spread is None else found.spread[inner],
    )
