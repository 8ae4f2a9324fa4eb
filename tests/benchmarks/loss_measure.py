"""Measurements of losses, one in a process of its own, so that none finds the threads or memory of another.

    python tests/benchmarks/loss_measure.py TASK

`loss.py` starts it. TASK is JSON, the arguments of `work`; the last line of the output is JSON too.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import logging
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]

CE, CE_SMOOTH, BCE = "F.cross_entropy", "F.cross_entropy, smoothing 0.1", "F.binary_cross_entropy_with_logits"
FOCAL, FOCAL_SMOOTH, DICE = "medfocal focal_loss", "medfocal focal_loss, smoothing 0.1", "medfocal DiceFocalLoss"
MONAI_FOCAL, MONAI_DICE = "MONAI FocalLoss", "MONAI DiceFocalLoss"
ONE_TENSOR = "a tensor like the logits (check of the method)"
HAS_MONAI = importlib.util.find_spec("monai") is not None

Loss = Callable[["Inputs"], Tensor]
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Logits (B, C, I, J, K) to compute a loss of."""

    shape: tuple[int, ...]
    activation: str = "softmax"
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.shape} {self.activation}, {self.dtype}"

    @property
    def brief(self) -> str:
        """What tells it from the other problems of its device, in a list of figures."""
        return f"C={self.shape[1]} {self.dtype}"


PROBLEMS = {
    "cpu": (Problem((2, 2, 96, 96, 96)), Problem((2, 4, 64, 64, 64)), Problem((1, 1, 128, 128, 128), "sigmoid")),
    "cuda": tuple(
        Problem(shape, dtype=dtype)
        for shape in ((2, 2, 96, 96, 96), (2, 14, 128, 128, 128))
        for dtype in ("float32", "bfloat16")
    ),
}
# 0: what torch chooses.
THREADS = {"cpu": (1, 2), "cuda": (0,)}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What each loss takes, made before the clock starts.

    Attributes:
        logits: (B, C, *), a leaf that requires a gradient.
        labels: int64 (B, *), about 2 % of the voxels foreground.
        labels_of_monai: int64 (B, 1, *) with softmax, floating point with sigmoid.
        shares: Labels as floating point (B, 1, *) in the logits' dtype.
    """

    logits: Tensor
    labels: Tensor
    labels_of_monai: Tensor
    shares: Tensor

    @classmethod
    def of(cls, problem: Problem, device: str) -> Inputs:
        torch.manual_seed(0)
        num_cases, num_channels, *spatial = problem.shape
        logits = torch.randn(problem.shape).to(device, getattr(torch, problem.dtype))
        classes = torch.randint(1, max(num_channels, 2), (num_cases, *spatial))
        labels = (classes * (torch.rand(classes.shape) < 0.02)).to(device)
        shares = labels.unsqueeze(1).to(logits.dtype)
        of_monai = labels.unsqueeze(1) if problem.activation == "softmax" else shares
        return cls(logits.requires_grad_(), labels, of_monai, shares)


def losses(problem: Problem) -> dict[str, Loss]:
    """The losses that can be computed here, by name."""
    from medfocal.losses import DiceFocalLoss, focal_loss

    softmax = problem.activation == "softmax"
    found: dict[str, Loss] = {}
    if softmax:
        found[CE] = lambda i: F.cross_entropy(i.logits, i.labels)
        found[CE_SMOOTH] = lambda i: F.cross_entropy(i.logits, i.labels, label_smoothing=0.1)
    else:
        found[BCE] = lambda i: F.binary_cross_entropy_with_logits(i.logits, i.shares)
    for backend in ("compiled", "eager"):
        focal = functools.partial(focal_loss, activation=problem.activation, backend=backend)
        dice = DiceFocalLoss(activation=problem.activation, backend=backend)
        found[f"{FOCAL}, {backend}"] = lambda i, loss=focal: loss(i.logits, i.labels)
        if softmax:
            found[f"{FOCAL_SMOOTH}, {backend}"] = lambda i, loss=focal: loss(i.logits, i.labels, label_smoothing=0.1)
        found[f"{DICE}, {backend}"] = lambda i, loss=dice: loss(i.logits, i.labels)
    if HAS_MONAI:
        import monai.losses

        of_focal, of_dice = ({"use_softmax": True}, {"softmax": True}) if softmax else ({}, {"sigmoid": True})
        peer = monai.losses.FocalLoss(to_onehot_y=softmax, **of_focal)
        compound = monai.losses.DiceFocalLoss(to_onehot_y=softmax, **of_dice)
        found[MONAI_FOCAL] = lambda i: peer(i.logits, i.labels_of_monai)
        found[MONAI_DICE] = lambda i: compound(i.logits, i.labels_of_monai)
    return found


def base_of(method: str, methods: Iterable[str]) -> str:
    """The method that another is compared with: of the same kind where there is one, else the plain loss of torch."""
    methods = tuple(methods)
    if method.startswith(DICE) and MONAI_DICE in methods:
        return MONAI_DICE
    if method.startswith(FOCAL_SMOOTH):
        return CE_SMOOTH
    return CE if CE in methods else BCE


def forward(problem: Problem, loss: Loss, inputs: Inputs) -> Tensor:
    """The loss; logits of half precision under autocast, as a training gives them."""
    enabled = problem.dtype != "float32"
    with torch.autocast(inputs.logits.device.type, dtype=torch.bfloat16, enabled=enabled):
        return loss(inputs)


def gradient(problem: Problem, loss: Loss, inputs: Inputs) -> Tensor:
    """The gradient on the logits: forward and backward."""
    return torch.autograd.grad(forward(problem, loss, inputs), inputs.logits)[0]


def measure_times(device: str, number: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every loss on one problem, in `repeats` rounds through all losses."""
    problem = PROBLEMS[device][number]
    inputs = Inputs.of(problem, device)
    calls = {name: functools.partial(gradient, problem, loss, inputs) for name, loss in losses(problem).items()}
    return interleave(calls, device, repeats)


def measure_memory(device: str, number: int, methods: list[str]) -> Figures:
    """By method, extra peak (None: not measured) and what is saved for the backward pass, by the logits' bytes."""
    problem = PROBLEMS[device][number]
    inputs = Inputs.of(problem, device)
    size, found = inputs.logits.nbytes, {}
    for method in methods:
        if method == ONE_TENSOR:
            peak, saved = extra_peak(functools.partial(torch.zeros_like, inputs.logits), device), 0
        else:
            loss = losses(problem)[method]
            peak = extra_peak(functools.partial(gradient, problem, loss, inputs), device)
            saved = saved_bytes(problem, loss, inputs)
        found[method] = {"peak": None if peak is None else peak / size, "saved": saved / size}
        shown = "not measured" if peak is None else f"{peak / size:.2f}"
        report(f"    {method}: peak {shown}, saved {saved / size:.2f} of the logits' bytes")
    return found


def measure_step(device: str, repeats: int) -> Figures | None:
    """Milliseconds of a training step of the small U-Net, by loss. None without MONAI, of which the network is."""
    if not HAS_MONAI:
        return None
    import yaml

    from medfocal.losses import FocalLoss
    from medfocal.networks import UNet3d

    torch.manual_seed(0)
    arguments = yaml.safe_load((ROOT / "conf/network/small.yaml").read_text())
    del arguments["_target_"]
    network = UNet3d(in_channels=1, out_channels=2, **arguments).to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(2, 1, 64, 64, 64, device=device)
    labels = (torch.rand(2, 64, 64, 64, device=device) < 0.02).long()

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()

    calls = {CE: functools.partial(step, F.cross_entropy), FOCAL: functools.partial(step, FocalLoss())}
    return interleave(calls, device, repeats)


def interleave(calls: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; the order changes, so that none always follows the same other."""
    for call in calls.values():
        for _ in range(3):  # compiles, and fills caches
            call()
    order, shuffle = list(calls), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            times[name].append(milliseconds(calls[name], device))
    for name, values in times.items():
        report(f"    {name}: {quartiles(values)} ms")
    return times


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Duration of a call; its result is freed after the clock has stopped."""
    if device == "cpu":
        start = time.perf_counter()
        result = call()
        duration = time.perf_counter() - start
        del result
        return duration * 1e3
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    result = call()
    last.record()
    torch.cuda.synchronize()
    del result
    return first.elapsed_time(last)


def extra_peak(call: Callable[[], object], device: str) -> float | None:
    """Bytes that a call needs at most beyond what was there, its result included. None where nobody can tell."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if device == "cpu" and not clear.exists():
        return None
    call()  # compiles
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before

    def kilobytes(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])

    clear.write_text("5")  # the high-water mark falls to what is resident now
    before = kilobytes("VmRSS")
    result = call()
    peak = kilobytes("VmHWM") - before
    del result
    return peak * 1024


def saved_bytes(problem: Problem, loss: Loss, inputs: Inputs) -> int:
    """Bytes of the tensors that the graph saves, beyond what the loss was given."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(problem, loss, inputs)
    given = {tensor.untyped_storage().data_ptr() for tensor in vars(inputs).values()}
    return sum(size for address, size in storages.items() if address not in given)


def refuse_fallback(record: logging.LogRecord) -> bool:
    """Let no eager loss pass for a compiled one."""
    raise RuntimeError(record.getMessage())


def quarter(values: list[float]) -> float:
    """Lower quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def quartiles(values: list[float]) -> str:
    """The three of them, for a cell."""
    three = statistics.quantiles(values, n=4, method="inclusive")
    return " / ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in three)


def report(line: str) -> None:
    """Progress, beside the figures on stdout."""
    print(line, file=sys.stderr, flush=True)


def work(measure: str, *, threads: int, **task: Any) -> Any:
    """The figures of one measurement: "times", "memory" or "step"."""
    logging.getLogger("medfocal.losses").addFilter(refuse_fallback)
    if threads:
        torch.set_num_threads(threads)
    return {"times": measure_times, "memory": measure_memory, "step": measure_step}[measure](**task)


if __name__ == "__main__":
    print(json.dumps(work(**json.loads(sys.argv[1]))))
