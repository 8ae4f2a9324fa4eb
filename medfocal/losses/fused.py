"""The closed form over whole tensors, as one autograd function that saves at most the gradient.

Eager, it goes over chunks of voxels that stay in the cache. Compiled, it is one pass. On a CPU the gradient is
computed together with the loss, because each value is needed anyway and reading the logits again would cost as much
as computing; elsewhere, where memory traffic decides, it is computed in the backward pass, and nothing but inputs is
saved.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import logging
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfocal.losses.closed_form import (
    Formula,
    VoxelTerms,
    focal_terms,
    foreground_gradient,
    foreground_probabilities,
    foreground_shares,
)
from medfocal.losses.target import Labels, Probabilities

LOG = logging.getLogger("medfocal.losses")

# Voxels of two channels per chunk: with the temporaries of the closed form about the second cache of a core. A thread
# gets no less than half of it, the least that torch divides among threads. Other devices keep no such cache, and
# starting many small kernels costs more than it saves.
_CHUNK_CPU = 2**16
_CHUNK_OTHER = 2**22

# Logits below which a compiler's start and its calls cost more than they save.
_LEAST_LOGITS_TO_COMPILE = 2**20

#: Loss of sums over voxels: (sum min(p, y), sum p, sum y), each (B, foreground classes) or (1, ...) -> 0-dimensional.
Region = Callable[[Tensor, Tensor, Tensor], Tensor]


class Backend(enum.StrEnum):
    """How the closed form is computed.

    auto: compiled from about a million logits on, where a compiler works; else eager.
    eager: chunk by chunk with torch's own operations.
    compiled: by `torch.compile` in one pass.
    """

    AUTO = "auto"
    EAGER = "eager"
    COMPILED = "compiled"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"backend must be 'auto', 'eager' or 'compiled', got {value!r}")


@dataclasses.dataclass(frozen=True)
class Job:
    """A loss to compute: focal_weight * focal term / normaliser + region.

    Attributes:
        formula: Of the focal term.
        target: Checked labels or probabilities.
        weight: Per voxel, (B, *) in the dtype of the computation, or None. Counts in both terms.
        normaliser: 0-dimensional, divides the focal term's sum over voxels. None: by the sum of its factor.
        focal_weight: Multiplies the focal term.
        region: Loss of sums over voxels, or None.
        pooled: Whether the region's sums run over the batch.
        per_voxel: Give the focal term of each voxel and nothing else.
        backend: How to compute it.
    """

    formula: Formula
    target: Labels | Probabilities
    weight: Tensor | None
    normaliser: Tensor | None
    focal_weight: float = 1.0
    region: Region | None = None
    pooled: bool = False
    per_voxel: bool = False
    backend: Backend = Backend.AUTO

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What is as large as the voxels: target, valid voxels, weight."""
        return self.target.values, self.target.valid, self.weight

    def of_tensors(self, values: Any, valid: Any, weight: Any) -> Job:
        """The same with other ones; None lets go of them."""
        return dataclasses.replace(
            self, target=dataclasses.replace(self.target, values=values, valid=valid), weight=weight
        )


def compute(logits: Tensor, job: Job) -> tuple[Tensor, Tensor]:
    """The loss, 0-dimensional or (B, *) in fp32 at least, and the number of voxels below the cap.

    The gradient flows to the logits alone and cannot be differentiated again.
    """
    for name, values in (("target", job.target.values), ("weight", job.weight)):
        if values is not None and values.requires_grad:
            raise ValueError(f"the gradient flows to the logits only, but {name} requires one; give {name}.detach()")
    needed = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        loss, num_capped = _Fused.apply(logits, job, needed)  # type: ignore[no-untyped-call]
    return loss, num_capped


def _takes_gradient_at_once(device: torch.device) -> bool:
    """Whether arithmetic, not memory traffic, decides the time there."""
    return device.type == "cpu"


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, job: Job, needed: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001  by autograd
        ctx.is_ready = needed and _takes_gradient_at_once(logits.device)
        block = _Block.of(logits, job)
        factors, region_loss = _factors(block, job, gradient=needed)
        loss, gradient, num_capped = _main_pass(block, job, factors, loss=True, gradient=ctx.is_ready)
        if job.per_voxel:
            loss = loss.reshape(logits.shape[0], *logits.shape[2:])
        else:
            assert factors.scale is not None, "sums have a normaliser"
            loss = loss * factors.scale
            if region_loss is not None:
                loss = loss + region_loss.to(loss.dtype)
        # A loss that is kept for a log must not keep voxels: they are saved by way of autograd, which lets go of them.
        ctx.per_voxel, ctx.dtype = job.per_voxel, logits.dtype
        if ctx.is_ready:
            ctx.save_for_backward(gradient.reshape(logits.shape))
        elif needed:
            ctx.job, ctx.factors = job.of_tensors(None, None, None), factors
            ctx.save_for_backward(logits, *job.tensors)
        ctx.mark_non_differentiable(num_capped)
        return loss.to(block.dtype), num_capped

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the focal loss has no second derivative here: its gradient is a closed form that autograd does not "
                "see. Call backward or autograd.grad without create_graph=True"
            )
        saved, *tensors = ctx.saved_tensors
        if not ctx.is_ready:
            job = ctx.job.of_tensors(*tensors)
            factors = ctx.factors.times(of_loss, per_voxel=job.per_voxel)
            _, gradient, _ = _main_pass(_Block.of(saved, job), job, factors, loss=False, gradient=True)
            gradient = gradient.reshape(saved.shape)
        elif ctx.per_voxel:
            gradient = saved * of_loss.unsqueeze(1)
        elif not torch.compiler.is_compiling() and float(of_loss) == 1.0:
            gradient = saved  # most often the loss is the root of the graph; a copy would double the memory
        else:
            gradient = saved * of_loss
        return gradient.to(ctx.dtype), None, None


@dataclasses.dataclass(frozen=True)
class _Block:
    """Voxels to compute on.

    Attributes:
        logits: (B, C, n).
        target: Labels (B, n) or probabilities (B, C, n).
        valid: Bool (B, n), or None.
        weight: (B, n), or None.
        dtype: Of the computation.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor | None
    weight: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, logits: Tensor, job: Job) -> _Block:
        num_cases, num_channels = logits.shape[:2]
        num_voxels = logits[0, 0].numel() if num_cases else 0
        target = job.target.values
        of_channels = (num_channels,) if isinstance(job.target, Probabilities) else ()
        return cls(
            logits.reshape(num_cases, num_channels, num_voxels),
            target.reshape(num_cases, *of_channels, num_voxels),
            None if job.target.valid is None else job.target.valid.reshape(num_cases, num_voxels),
            None if job.weight is None else job.weight.reshape(num_cases, num_voxels),
            torch.promote_types(logits.dtype, torch.float32),
        )

    def converted(self) -> tuple[Tensor, Tensor]:
        """Logits and target as the closed form takes them."""
        return self.logits.to(self.dtype), self.target if self.target.ndim == 2 else self.target.to(self.dtype)

    def weighted(self, voxels: Tensor) -> Tensor:
        """Voxel values times their weights, 0 where ignored whatever they are."""
        if self.weight is not None:
            voxels = voxels * self.weight
        return voxels if self.valid is None else torch.where(self.valid, voxels, 0.0)

    def part(self, cases: slice, voxels: slice) -> _Block:
        return _Block(
            self.logits[cases, :, voxels],
            self.target[cases, ..., voxels],
            None if self.valid is None else self.valid[cases, voxels],
            None if self.weight is None else self.weight[cases, voxels],
            self.dtype,
        )

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Cuts into chunks of cases and voxels."""
        num_cases, num_channels, num_voxels = self.logits.shape
        if self.logits.device.type == "cpu":
            most = max(_CHUNK_CPU * 2 // num_channels, _CHUNK_CPU // 2 * torch.get_num_threads(), 1)
        else:
            most = max(_CHUNK_OTHER * 2 // num_channels, 1)
        cases = max(most // max(num_voxels, 1), 1)
        for case in range(0, num_cases, cases):
            for voxel in range(0, num_voxels, most):
                yield slice(case, case + cases), slice(voxel, voxel + most)


@dataclasses.dataclass(frozen=True)
class _Factors:
    """What multiplies the gradients of voxels.

    Attributes:
        scale: Of the focal term: 0-dimensional, or (B, n) per voxel; None: 1.
        of_overlap: dR/d(sum min(p, y)), (B or 1, foreground classes), or None without a region.
        of_size: dR/d(sum p), likewise.
    """

    scale: Tensor | None
    of_overlap: Tensor | None = None
    of_size: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All three; `dataclasses.astuple` would copy them."""
        return self.scale, self.of_overlap, self.of_size

    def times(self, value: Tensor, *, per_voxel: bool) -> _Factors:
        """These times the gradient that arrives from above."""
        if per_voxel:
            return _Factors(value.reshape(value.shape[0], math.prod(value.shape[1:])))
        return _Factors(*(None if part is None else part * value for part in self.tensors))

    def part(self, cases: slice, voxels: slice) -> _Factors:
        scale = self.scale
        if scale is not None and scale.ndim == 2:
            scale = scale[cases, voxels]
        of_cases = [
            values if values is None or values.shape[0] == 1 else values[cases]
            for values in (self.of_overlap, self.of_size)
        ]
        return _Factors(scale, *of_cases)


def _factors(block: _Block, job: Job, *, gradient: bool) -> tuple[_Factors, Tensor | None]:
    """Factors of the gradient, and the loss of the region."""
    if job.per_voxel:
        return _Factors(None), None
    normaliser, region_loss = job.normaliser, None
    of_overlap = of_size = None
    if job.region is not None or normaliser is None:
        sums = _sums_pass(block, job)
        if normaliser is None:
            normaliser = sums.factor
    assert normaliser is not None
    positive = normaliser > 0
    scale = torch.where(positive, job.focal_weight / torch.where(positive, normaliser, 1.0), 0.0).to(block.dtype)
    if job.region is not None:
        values = [part.sum(dim=0, keepdim=True) if job.pooled else part for part in sums[:3]]
        if not gradient:
            return _Factors(scale), job.region(*values)
        region_loss, of_overlap, of_size = _differentiate(job.region, values, block.dtype)
    return _Factors(scale, of_overlap, of_size), region_loss


class _Sums(NamedTuple):
    """Sums over voxels: (B, foreground classes) each; of the factor (B,) or over the cases too, 0-dimensional."""

    overlap: Tensor
    size: Tensor
    size_of_target: Tensor
    factor: Tensor


def _differentiate(region: Region, values: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The region's loss and its slopes on the first two sums."""
    with torch.enable_grad():
        overlap, size = (value.detach().requires_grad_() for value in values[:2])
        loss = region(overlap, size, values[2])
        of_overlap, of_size = torch.autograd.grad(loss, (overlap, size))
    return loss.detach().to(dtype), of_overlap.to(dtype), of_size.to(dtype)


def _main_pass(
    block: _Block, job: Job, factors: _Factors, *, loss: bool, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, summed or of each voxel (B, n); the gradient (B, C, n); the number of capped voxels."""
    dtype = torch.float32 if block.logits.dtype == torch.float16 and not job.per_voxel else block.logits.dtype
    wanted = _Wanted(loss=loss, gradient=dtype if gradient else None, per_voxel=job.per_voxel)
    done: tuple[Tensor, Tensor, Tensor] | None = _in_one_pass(_whole, block, job, factors, wanted)
    if done is not None:
        loss_of_cases, whole_gradient, capped_of_cases = done
        return loss_of_cases if job.per_voxel else loss_of_cases.sum(), whole_gradient, capped_of_cases.sum().long()
    total = block.logits.new_zeros((), dtype=torch.float64)
    num_capped = block.logits.new_zeros((), dtype=torch.int64)
    per_voxel = torch.empty_like(block.logits[:, 0], dtype=block.dtype) if loss and job.per_voxel else None
    buffer = torch.empty_like(block.logits, dtype=dtype) if gradient else None
    for cases, voxels in block.parts():
        terms = _voxels(job.formula, block.part(cases, voxels), factors.part(cases, voxels), wanted)
        if per_voxel is not None:
            per_voxel[cases, voxels] = terms.loss
        elif loss:
            total += terms.loss.sum()
        if buffer is not None:
            for of_channel, values in zip(buffer[cases, :, voxels].unbind(1), terms.gradient, strict=True):
                of_channel.copy_(values)
        if terms.capped is not None:
            num_capped += terms.capped.sum()
    return total if per_voxel is None else per_voxel, total if buffer is None else buffer, num_capped


class _Wanted(NamedTuple):
    """What a pass has to give; the dtype of the gradient, None for none."""

    loss: bool
    gradient: torch.dtype | None
    per_voxel: bool


def _voxels(formula: Formula, block: _Block, factors: _Factors, wanted: _Wanted) -> VoxelTerms:
    """The closed form with weights, ignored voxels and factors."""
    logits, target = block.converted()
    terms = focal_terms(formula, logits, target, scale=factors.scale)
    loss = block.weighted(terms.loss)
    capped = terms.capped if block.valid is None or terms.capped is None else terms.capped & block.valid
    if wanted.gradient is None:
        return VoxelTerms(loss, [], None, capped)
    gradient = terms.gradient
    if factors.of_overlap is not None and factors.of_size is not None:
        probabilities = foreground_probabilities(formula, logits)
        slopes = [
            factors.of_overlap[:, c, None] * (p < y).to(p.dtype) + factors.of_size[:, c, None]
            for c, (p, y) in enumerate(zip(probabilities, foreground_shares(formula, target, block.dtype), strict=True))
        ]
        of_region = foreground_gradient(formula, probabilities, slopes)
        gradient = [g + r for g, r in zip(gradient, of_region, strict=True)]
    return VoxelTerms(loss, [block.weighted(g) for g in gradient], None, capped)


def _whole(formula: Formula, block: _Block, factors: _Factors, wanted: _Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """The main pass at once, for the compiler."""
    terms = _voxels(formula, block, factors, wanted)
    nothing = block.logits.new_zeros(())
    # Summed over voxels only: a sum over cases too is another loop for the compiler, which then stores every voxel.
    loss = terms.loss if wanted.per_voxel else terms.loss.sum(1)
    gradient = nothing if wanted.gradient is None else torch.stack(terms.gradient, dim=1).to(wanted.gradient)
    num_capped = nothing if terms.capped is None else terms.capped.sum(1)
    return loss if wanted.loss else nothing, gradient, num_capped


def _sums_pass(block: _Block, job: Job) -> _Sums:
    """What must be known of all voxels before the gradient of one can be."""
    wanted = _WantedSums(region=job.region is not None, factor=job.normaliser is None)
    done: _Sums | None = _in_one_pass(_voxel_sums, block, job, _Factors(None), wanted)
    if done is not None:
        return done._replace(factor=done.factor.sum())
    formula = job.formula
    num_foreground = formula.activation.num_classes(formula.num_channels) - 1
    zeros = block.logits.new_zeros((block.logits.shape[0], num_foreground), dtype=torch.float64)
    sums = _Sums(zeros, zeros.clone(), zeros.clone(), zeros.new_zeros(()))
    for cases, voxels in block.parts():
        of_part = _voxel_sums(formula, block.part(cases, voxels), _Factors(None), wanted)
        for total, values in zip(sums[:3], of_part[:3], strict=True):
            total[cases] += values
        sums.factor.add_(of_part.factor.sum())
    return sums


class _WantedSums(NamedTuple):
    region: bool
    factor: bool


def _voxel_sums(formula: Formula, block: _Block, _: _Factors, wanted: _WantedSums) -> _Sums:
    logits, target = block.converted()
    none = block.logits.new_zeros((), dtype=block.dtype)
    overlap = size = size_of_target = factor = none
    if wanted.region:
        probabilities = foreground_probabilities(formula, logits)
        targets = foreground_shares(formula, target, block.dtype)
        pairs = list(zip(probabilities, targets, strict=True))
        overlap = torch.stack([block.weighted(torch.minimum(p, y)).sum(1) for p, y in pairs], 1)
        size = torch.stack([block.weighted(p).sum(1) for p in probabilities], 1)
        size_of_target = torch.stack([block.weighted(y).sum(1) for y in targets], 1)
    if wanted.factor:
        terms = focal_terms(formula, logits, target, factor=True)
        assert terms.factor is not None, "it was asked for"
        factor = block.weighted(terms.factor).sum(1)
    return _Sums(overlap, size, size_of_target, factor)


def _in_one_pass(function: Callable[..., Any], block: _Block, job: Job, factors: _Factors, wanted: Any) -> Any:
    """What `function` gives for the whole block at once, or None where it shall go chunk by chunk."""
    if torch.compiler.is_compiling():
        return function(job.formula, block, factors, wanted)  # the compiler around us fuses it
    device = block.logits.device.type
    if job.backend is Backend.EAGER or device in _without_compiler:
        return None
    if job.backend is Backend.AUTO and block.logits.numel() < _LEAST_LOGITS_TO_COMPILE:
        return None
    tensors = (block.logits, block.target, block.valid, block.weight, *factors.tensors)
    key = (function, job.formula, wanted, block.dtype)
    layout = tuple(None if tensor is None else (tensor.dtype, *tensor.shape, *tensor.stride()) for tensor in tensors)
    layouts = _layouts.setdefault(key, set())
    if len(layouts) == _MOST_LAYOUTS and layout not in layouts:
        return None  # each would cost seconds of compiling
    layouts.add(layout)
    try:
        return _compile(*key, layout)(*tensors)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001  a compiler fails in many ways, none of which need stop a training
        _without_compiler.add(device)
        message = str(error).strip().splitlines() or [type(error).__name__]
        LOG.warning("the loss could not be compiled for %s and runs eagerly: %s", device, message[0])
        return None


#: Kinds of device whose compiler failed once.
_without_compiler: set[str] = set()

#: Types, shapes and strides of tensors that each formula has been compiled for, and the most of them.
_layouts: dict[Any, set[Any]] = {}
_MOST_LAYOUTS = 8


@functools.cache
def _compile(
    function: types.FunctionType,
    formula: Formula,
    wanted: Any,
    dtype: torch.dtype,
    layout: Any,  # noqa: ARG001  each gets a function
) -> Callable[..., Any]:
    def one_pass(
        logits: Tensor,
        target: Tensor,
        valid: Tensor | None,
        weight: Tensor | None,
        scale: Tensor | None,
        of_overlap: Tensor | None,
        of_size: Tensor | None,
    ) -> Any:
        block = _Block(logits, target, valid, weight, dtype)
        return function(formula, block, _Factors(scale, of_overlap, of_size), wanted)

    # torch keeps what it has compiled by code object, and what it has learnt of shapes by the code's name: with one of
    # each for all, the second formula would be compiled for any number of channels, and the ninth not at all.
    name = f"one_pass_{_compile.cache_info().currsize}"
    code = one_pass.__code__.replace(co_name=name)
    own = types.FunctionType(code, one_pass.__globals__, name, None, one_pass.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)
