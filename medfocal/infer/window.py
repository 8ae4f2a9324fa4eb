"""Probabilities of a whole case from a network that sees one window at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medfocal.data.transforms import MOST_VOXELS
from medfocal.errors import ConfigError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "bf16", "fp16", "float32")


@dataclass(frozen=True, kw_only=True)
class Window:
    """How a case is cut for the network, and how exactly it is computed.

    Args:
        size: Voxels `(I, J, K)` of a window; a smaller case is padded.
        overlap: Share of a window that the next one repeats, in [0, 1).
        batch: Windows that go through the network at once.
        precision: "auto" (bfloat16 where the hardware computes it natively, else float16 on a GPU and float32 on the
            CPU), "bf16", "fp16" or "float32". An operating point is the confidence of some candidate, so it holds for
            the precision that it was chosen with.
    """

    size: Sequence[int]
    overlap: float = 0.5
    batch: int = 4
    precision: str = "auto"

    def __post_init__(self) -> None:
        if len(self.size) != 3 or any(n < 1 for n in self.size):
            message = f"size must be three positive numbers, got {list(self.size)}"
            raise ValueError(message)
        if math.prod(self.size) * self.batch > MOST_VOXELS:
            message = f"{self.batch} windows of {list(self.size)} are more than {MOST_VOXELS:.0e} voxels at once"
            raise ValueError(message)
        if not 0 <= self.overlap < 1:
            message = f"overlap must be in [0, 1), got {self.overlap}"
            raise ValueError(message)
        if self.batch < 1:
            message = f"batch must be at least 1, got {self.batch}"
            raise ValueError(message)
        if self.precision not in PRECISIONS:
            message = f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            raise ValueError(message)


def class_probabilities(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Probabilities of the lesion classes, float32 `(B, K, *)`, without the background.

    Args:
        logits: `(B, C, *)`; softmax has the background in channel 0, sigmoid has lesion classes only.
        activation: "softmax" or "sigmoid".
    """
    import torch

    logits = logits.float()
    if activation == "softmax" and logits.shape[1] == 2:  # the same, in an eighth of the time
        return (logits[:, 1:] - logits[:, :1]).sigmoid_()
    return logits.softmax(dim=1)[:, 1:] if activation == "softmax" else torch.sigmoid(logits)


def reduced_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What convolutions compute in under a precision, None for float32."""
    import torch

    if _uses_bfloat16(precision, device):
        return torch.bfloat16
    is_half = precision == "fp16" or (precision == "auto" and device.type == "cuda")
    return torch.float16 if is_half else None


def _uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: "auto" where the hardware does it natively, "bf16" always, others never."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  no public name tells it
    return False


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first GPU where there is one.

    Raises:
        ConfigError: No such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        message = f"device: '{name}' is none; say auto, cpu, cuda or cuda:N"
        raise ConfigError(message) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"device: '{name}' was asked for and {torch.cuda.device_count()} CUDA devices are there"
        raise ConfigError(message)
    if device.type not in {"cpu", "cuda"}:
        message = f"device: '{name}' is not supported; say auto, cpu, cuda or cuda:N"
        raise ConfigError(message)
    return device
