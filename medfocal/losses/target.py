"""The target of a loss, checked against the logits: labels or probabilities, ignored voxels, voxel weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from medfocal.losses.activation import Activation

Reduction = Literal["none", "mean", "sum"]

# torch implements few operations for these.
_SCARCE_DTYPES = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


@dataclasses.dataclass(frozen=True)
class Labels:
    """One class per voxel.

    Attributes:
        values: Integer (B, *) in 0..num_classes - 1; 0 where ignored.
        valid: Bool (B, *), False where ignored. None: no voxel is ignored.
    """

    values: Tensor
    valid: Tensor | None

    @property
    def num_voxels(self) -> Tensor:
        """Number of voxels that count, 0-dimensional fp64."""
        if self.valid is not None:
            return self.valid.sum(dtype=torch.float64)
        return self.values.new_full((), self.values.numel(), dtype=torch.float64)

    @property
    def index(self) -> Tensor:
        """Labels as an index over the class axis, int64 (B, 1, *)."""
        return self.values.to(torch.int64).unsqueeze(1)

    def foreground(self, num_foreground: int) -> Tensor:
        """Membership of each foreground class 1..num_foreground, bool (B, num_foreground, *)."""
        classes = torch.arange(1, num_foreground + 1, dtype=self.values.dtype, device=self.values.device)
        return self.values.unsqueeze(1) == along_channels(classes, self.values.ndim + 1)


@dataclasses.dataclass(frozen=True)
class Probabilities:
    """A probability per voxel and channel, (B, C, *) in the dtype of the computation. No voxel is ignored."""

    values: Tensor
    valid: None = None

    @property
    def num_voxels(self) -> Tensor:
        """Number of voxels, 0-dimensional fp64."""
        return self.values.new_full((), self.values[:, 0].numel(), dtype=torch.float64)


def along_channels(values: Tensor, num_axes: int) -> Tensor:
    """Reshape (C,) to broadcast along axis 1 of a tensor with `num_axes` axes."""
    return values.reshape(1, -1, *[1] * (num_axes - 2))


def check_logits(logits: Tensor, activation: Activation) -> None:
    """Refuse logits that are not floating point (B, C, *), or a softmax over one channel."""
    if not logits.is_floating_point() or logits.ndim < 2 or logits.shape[1] == 0:
        raise ValueError(
            "logits must be a floating point tensor (B, C, *spatial), "
            f"got {logits.dtype} of shape {tuple(logits.shape)}"
        )
    if activation is Activation.SOFTMAX and logits.shape[1] < 2:
        raise ValueError(
            f"softmax needs at least 2 channels, got logits of shape {tuple(logits.shape)}; use activation='sigmoid'"
        )


def check_target(
    target: Tensor, logits: Tensor, *, activation: Activation, ignore_index: int | None
) -> Labels | Probabilities:
    """Read a target: integers (B, *) or (B, 1, *) are labels, floats of the logits' shape are probabilities.

    Raises:
        ValueError: Shape or dtype fits neither, a label is no class, or `ignore_index` comes with
        probabilities.
    """
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(
                f"a floating point target holds probabilities and must have the logits' shape {tuple(logits.shape)}, "
                f"got {tuple(target.shape)}; give labels as integers"
            )
        if ignore_index is not None:
            raise ValueError(
                f"ignore_index {ignore_index} cannot mark voxels of a floating point target; "
                "use weight, or integer labels"
            )
        return Probabilities(target.to(torch.promote_types(logits.dtype, torch.float32)))
    labels = _labels(_without_channel(target, logits, name="target"), ignore_index)
    check_range(labels.values, activation=activation, num_channels=logits.shape[1], ignore_index=ignore_index)
    return labels


def target_to_count(
    target: Tensor, weight: Tensor | None, *, ignore_index: int | None
) -> tuple[Labels | Probabilities, Tensor | None]:
    """Read a target and voxel weights where there are no logits to check them against.

    Returns:
        Labels (B, *) or (B, 1, *) as given, or probabilities (B, C, *); and the weights in the shape of the labels, or
        (B, *). Probabilities and weights in fp32 at least.

    Raises:
        ValueError: The target has no axis for cases, or for the channels of probabilities, or the weights are not as
        many as the voxels.
    """
    if target.ndim < (2 if target.is_floating_point() else 1):
        raise ValueError(f"target must have an axis for cases, got {target.dtype} of shape {tuple(target.shape)}")
    read: Labels | Probabilities
    if target.is_floating_point():
        read = Probabilities(target.to(torch.promote_types(target.dtype, torch.float32)))
        shape = (target.shape[0], *target.shape[2:])
    else:
        read = _labels(target, ignore_index)
        shape = tuple(target.shape)
    if weight is None:
        return read, None
    if weight.shape[:1] != shape[:1] or weight.numel() != math.prod(shape):
        raise ValueError(f"weight must hold one value per voxel, {shape}, got {tuple(weight.shape)} of {weight.dtype}")
    return read, weight.reshape(shape).to(torch.promote_types(weight.dtype, torch.float32))


def check_weight(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """Read voxel weights (B, *) or (B, 1, *) as (B, *) in the dtype of the computation."""
    if weight is None:
        return None
    return _without_channel(weight, logits, name="weight").to(torch.promote_types(logits.dtype, torch.float32))


def without_ignored(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Logits (B, C, *) that are 0 where ignored: whatever stands there, even NaN, must reach no gradient."""
    return logits if valid is None else logits.masked_fill(~valid.unsqueeze(1), 0.0)


def check_reduction(reduction: str) -> None:
    """Refuse what is not a reduction."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def reduce_voxels(
    loss: Tensor, *, valid: Tensor | None, weight: Tensor | None, reduction: Reduction, by: Tensor | None = None
) -> Tensor:
    """Weight a loss (B, *) by voxel, drop ignored voxels, and reduce it.

    The mean divides by the number of valid voxels, whatever their weights, or by `by`; where that is 0 the mean is 0.
    """
    check_reduction(reduction)
    if valid is not None:
        # Both: what stands in an ignored voxel may be NaN.
        loss = loss.masked_fill(~valid, 0.0)
        weight = None if weight is None else weight.masked_fill(~valid, 0.0)
    if weight is not None:
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if by is None:
        by = loss.new_tensor(loss.numel()) if valid is None else valid.sum()
    return over(loss.sum(), by)


def check_range(labels: Tensor, *, activation: Activation, num_channels: int, ignore_index: int | None = None) -> None:
    """Refuse labels that are no class."""
    if labels.numel() == 0 or torch.compiler.is_compiling():
        return  # a compiled function cannot stop to look at values
    num_classes = activation.num_classes(num_channels)
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"label {lowest if lowest < 0 else highest} is not among the {num_classes} classes 0..{num_classes - 1} of "
            f"{activation} logits with {num_channels} channels, nor ignore_index ({ignore_index})"
        )


def over(total: Tensor, by: Tensor) -> Tensor:
    """A sum divided by a number, and as it is where that is 0: then nothing was summed."""
    return total / torch.where(by > 0, by, 1).to(total.dtype)


def _labels(values: Tensor, ignore_index: int | None) -> Labels:
    if values.is_complex():
        raise ValueError(f"target must hold integers or real numbers, got {values.dtype}")
    if values.dtype in _SCARCE_DTYPES:
        values = values.to(torch.uint8 if values.dtype == torch.bool else torch.int64)
    valid = None
    # An index outside the label type cannot occur, and comparing it would wrap: -1 would match 255 in uint8.
    if ignore_index is not None and torch.iinfo(values.dtype).min <= ignore_index <= torch.iinfo(values.dtype).max:
        valid = values != ignore_index
        values = values.masked_fill(~valid, 0)
    return Labels(values, valid)


def _without_channel(voxels: Tensor, logits: Tensor, *, name: str) -> Tensor:
    expected = (logits.shape[0], *logits.shape[2:])
    squeezed = voxels.squeeze(1) if voxels.ndim == logits.ndim and voxels.shape[1] == 1 else voxels
    if squeezed.shape != expected:
        raise ValueError(
            f"{name} must have shape {expected} or {(expected[0], 1, *expected[1:])} "
            f"for logits of shape {tuple(logits.shape)}, "
            f"got {tuple(voxels.shape)} of {voxels.dtype}"
        )
    return squeezed
