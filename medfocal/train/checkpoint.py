"""Checkpoints: all that a run needs to go on as if it had not been stopped between two epochs.

They hold tensors and plain values, are read with `weights_only=True`, and take their name only once complete.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from medfocal.errors import ModelError
from medfocal.files import atomic_write

FORMAT_VERSION = 2  # with visits and shares of missed lesions

_DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically, with the state of torch's random generators.

    Raises:
        ResourceError: The file cannot be written.
    """
    content = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state, "random": _random_state()}, content)
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and set torch's random generators to what it says.

    Raises:
        ModelError: The file is damaged, holds anything but tensors and plain values, or is of another version.
    """
    try:
        content = path.read_bytes()
        _check_sums(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise _refusal(path, error) from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        found = state.get("format_version") if isinstance(state, dict) else type(state).__name__
        message = f"the checkpoint '{path}' has format version {found}; this program reads {FORMAT_VERSION}"
        raise ModelError(message)
    try:
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_available() and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise _refusal(path, error) from error
    return state


def _refusal(path: Path, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    message = (
        f"the checkpoint '{path}' is damaged or not one of medfocal's: {reason}. "
        "Remove it to start this run anew, or take another run.id."
    )
    return ModelError(message)


def _check_sums(content: bytes) -> None:
    """Hold every part of the archive against its checksum, which torch writes and does not read."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        altered = archive.testzip()
    if altered is not None:
        message = f"the checksum of '{altered}' does not match"
        raise ValueError(message)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
