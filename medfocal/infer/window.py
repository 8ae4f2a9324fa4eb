"""Probabilities of a whole case from a network that sees one window at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import ConfigError, ModelError

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
        precision: "auto" (bfloat16 where the hardware computes it natively), "bf16", "fp16" or "float32". An operating
            point is the confidence of some candidate, so it holds for the precision that it was chosen with.
    """

    size: Sequence[int]
    overlap: float = 0.5
    batch: int = 4
    precision: str = "auto"

    def __post_init__(self) -> None:
        if len(self.size) != 3 or any(n < 1 for n in self.size):
            message = f"size must be three positive numbers, got {list(self.size)}"
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
    return logits.softmax(dim=1)[:, 1:] if activation == "softmax" else torch.sigmoid(logits)


def lesion_probability(probabilities: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """Probability that a voxel is of any lesion class, `(I, J, K)` from `(K, I, J, K)`.

    Classes of a softmax exclude each other, so they add; those of sigmoids do not, so the highest counts.
    """
    lesion: NDArray[np.float32] = probabilities[0]
    if len(probabilities) > 1:
        lesion = probabilities.sum(axis=0) if activation == "softmax" else probabilities.max(axis=0)
    return lesion.clip(0, 1)


def predict_windows(
    network: torch.nn.Module,
    image: torch.Tensor,
    *,
    window: Window,
    activation: str,
    device: torch.device,
) -> NDArray[np.float32]:
    """Slide a window over a prepared image and average the probabilities with Gaussian weights.

    Only windows are on the device. In main memory lie the image, the sum (a channel a lesion class) and its
    weights: about `4 (C + K + 1)` bytes a voxel, whatever the number of windows.

    Args:
        network: In evaluation mode, on `device`.
        image: float32 `(C, I, J, K)` on the network's grid, on the CPU.
        window: Size, overlap, batch and precision.
        activation: "softmax" or "sigmoid".
        device: Where windows are computed.

    Returns:
        float32 `(K, I, J, K)`, probabilities of the lesion classes.

    Raises:
        ModelError: The network gives NaN.
    """
    import torch
    from monai.inferers import sliding_window_inference

    reduced = reduced_type(window.precision, device)

    def probabilities(windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=reduced, enabled=reduced is not None):
            logits = network(windows)
        return class_probabilities(logits, activation)

    with torch.inference_mode():
        found = sliding_window_inference(
            image[None],
            roi_size=tuple(window.size),
            sw_batch_size=window.batch,
            predictor=probabilities,
            overlap=window.overlap,
            mode="gaussian",
            sw_device=device,
            device=torch.device("cpu"),
        )
    assert isinstance(found, torch.Tensor), "one output tensor"
    per_class: NDArray[np.float32] = found[0].numpy()
    if not np.isfinite(per_class).all():
        message = "the network gives NaN or infinite values: its weights, or bfloat16 with them, are unusable"
        raise ModelError(message)
    return per_class.clip(0, 1)


def reduced_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What convolutions compute in under a precision, None for float32."""
    import torch

    if precision == "fp16":
        return torch.float16
    return torch.bfloat16 if uses_bfloat16(precision, device) else None


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: "auto" where the hardware does it natively, "bf16" always, "float32" never."""
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
