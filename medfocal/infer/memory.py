"""What a prediction takes of memory, known before it starts, and what there is."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medfocal.errors import ResourceError
from medfocal.infer.sliding import row_of, tiles_of
from medfocal.infer.window import Window

if TYPE_CHECKING:
    import torch
    from torch import nn

#: What is kept of encoder outputs beside the layer at work, as a share of the largest: they halve in each axis.
KEPT_SHARE = 1.4
#: Of fewer channels a convolution unfolds a window: each voxel's neighbourhood, one window at a time.
FEW_CHANNELS = 16
#: Nor is oneDNN asked about one window alone whose channels x I x J are at most these (ATen's `use_mkldnn`).
SMALL_WINDOW = 20480
#: What lies between the layers of a block, and buffers that no layer tells of.
RETAINED = 1.5
#: Of mallopt(3): from how many bytes on memory is mapped for itself, and goes back to the system when it is freed.
M_MMAP_THRESHOLD = -3
MAPPED_FROM = 1 << 20
#: What the threshold grows to by itself in a program that frees large blocks.
MAPPED_FROM_AT_MOST = 1 << 25
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a prediction holds in main memory at most, beside the program and the networks; estimated beforehand.

    Attributes:
        num_tiles: Parts that the case is worked on in.
        batch: Windows at once.
        megabytes: Of image, results, sums, windows and what the network computes (1e6 bytes).
    """

    num_tiles: int
    batch: int
    megabytes: float


def plan_memory(
    network: nn.Module,
    shape: Sequence[int],
    window: Window,
    num_channels: int,
    *,
    num_results: int,
    max_memory_mb: float | None,
) -> Memory:
    """In how many parts, and with how many windows at once, a case fits a memory, and what it takes.

    What is not in it: reading the case, and what comes after on the case's own grid.

    Args:
        network: One of them.
        shape: Of the image, `(C, I, J, K)`.
        window: Of the prediction.
        num_channels: Of the sums.
        num_results: Bytes a voxel of what is kept.
        max_memory_mb: None: no bound.

    Raises:
        ResourceError: Not even the smallest parts fit.
    """
    in_channels, *sides = shape
    num_voxels = math.prod(sides)
    held = num_voxels * (4 * in_channels + num_results)
    batches = [window.batch]
    while max_memory_mb is not None and batches[-1] > 1:
        batches.append(batches[-1] // 2)
    forward = {batch: forward_bytes(network, in_channels, replace(window, batch=batch)) for batch in batches}
    most = len(row_of(sides[1], window.size[1], window.overlap).starts)
    taken = math.inf
    for num_tiles in range(1, most + 1):
        width = max(part.stop - part.start for part in tiles_of(sides[1], num_tiles))
        for batch in batches:
            taken = (held + forward[batch] + 4 * num_channels * window.size[0] * width * sides[2]) / MEGABYTE
            if max_memory_mb is None or taken <= max_memory_mb:
                return Memory(num_tiles=num_tiles, batch=batch, megabytes=taken)
    message = (
        f"a case of {'x'.join(map(str, sides))} voxels takes {math.ceil(taken)} MB at least, one window at a time, and "
        f"max_memory_mb is {max_memory_mb:g}. Allow more."
    )
    raise ResourceError(message)


def forward_bytes(network: nn.Module, in_channels: int, window: Window) -> float:
    """About what one batch of windows takes at most while a network computes on the CPU in float32.

    That is the layer that takes most and what skips keep beside it. The network is run on shapes alone, which computes
    nothing.
    """
    import torch

    largest_layer, largest = 0, 0

    def look(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal largest_layer, largest
        num_given = sum(tensor.numel() for tensor in given if isinstance(tensor, torch.Tensor))
        largest_layer = max(largest_layer, num_given + made.numel() + _scratch(layer, num_given, made))
        largest = max(largest, made.numel())

    outline = outline_of(network)
    for module in outline.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(look)
    with torch.inference_mode():
        outline(torch.empty(window.batch, in_channels, *window.size, device="meta"))
    return 4 * RETAINED * (largest_layer + KEPT_SHARE * largest)


def _scratch(layer: nn.Module, num_given: int, made: torch.Tensor) -> int:
    """Numbers that a layer holds beside what it takes and gives."""
    from torch import nn

    if isinstance(layer, nn.ConvTranspose3d):
        return max(num_given, 2 * made.numel())
    if not isinstance(layer, nn.Conv3d):
        return 0
    in_another_layout = num_given + made.numel()
    num_windows, _, rows, columns, _ = made.shape
    small = num_windows == 1 and layer.in_channels * rows * columns <= SMALL_WINDOW
    if layer.in_channels >= FEW_CHANNELS and not small:
        return in_another_layout
    return max(in_another_layout, math.prod(layer.kernel_size) * layer.in_channels * math.prod(made.shape[2:]))


def outline_of(network: nn.Module) -> nn.Module:
    """A copy without weights, which computes shapes only; the weights are not copied on the way either."""
    from torch import nn

    outlines = {id(weight): nn.Parameter(weight.detach().to("meta")) for weight in network.parameters()}
    return copy.deepcopy(network, outlines | {id(buffer): buffer.to("meta") for buffer in network.buffers()})


@contextlib.contextmanager
def freed_goes_back(*, wanted: bool) -> Iterator[None]:
    """Within it this process gives the system back what it frees of a mebibyte and more.

    The GNU C library otherwise keeps freed blocks of up to 32 MiB, in holes that the next layer may not fit: the same
    prediction was seen to take 54 MB once and 82 MB the next time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if wanted and os.name == "posix" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_AT_MOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a GPU or on the CPU."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_memory_gb(device: torch.device) -> float:
    """Memory that a program could have now, in GB (1e9 bytes): of the GPU, or of the machine or its container."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 1e9]
    meminfo = read_text(Path("/proc/meminfo"))
    available = [line.split()[1] for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    if available:  # what caches of files hold can be had as well
        free = [int(available[0]) * 1024 / 1e9]
    group = Path("/sys/fs/cgroup")
    most, used = (read_text(group / name).strip() for name in ("memory.max", "memory.current"))
    if most.isdigit() and used.isdigit():
        free.append(max(0, int(most) - int(used)) / 1e9)
    return min(free)


def read_text(path: Path) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
