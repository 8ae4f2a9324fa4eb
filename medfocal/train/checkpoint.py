"""Checkpoints: all that a run needs to go on as if it had not been stopped.

They hold tensors and plain values, are read with `weights_only=True`, and take their name only once complete. The one
before is kept under another name.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfocal.errors import ModelError
from medfocal.files import atomic_write

FORMAT_VERSION = 3  # within an epoch, with every random generator

_DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        ResourceError: The file cannot be written.
    """
    content = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, content)
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())


def keep_as(path: Path, other: Path) -> None:
    """Give a checkpoint another name as well, which another one may have had.

    At no moment is there none of either name. Where there is no such file nothing is done.
    """
    if not path.exists():
        return
    temporary = other.with_name(f".{other.name}.part")
    with contextlib.suppress(OSError):  # a file system without hard links keeps only the last
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(other)
        temporary.unlink(missing_ok=True)  # renaming does nothing where both are one file already


def load_checkpoint(path: Path, *, advice: str = "Take another run.id.") -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: The file.
        advice: What a user may do if it cannot be read.

    Raises:
        ModelError: The file is damaged, holds anything but tensors and plain values, or is of another version.
    """
    try:
        content = path.read_bytes()
        _check_sums(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        message = f"the checkpoint '{path}' is damaged or not one of medfocal's: {reason}. {advice}"
        raise ModelError(message) from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        found = state.get("format_version") if isinstance(state, dict) else type(state).__name__
        message = f"the checkpoint '{path}' has format version {found}; this program reads {FORMAT_VERSION}. {advice}"
        raise ModelError(message)
    return state


def _check_sums(content: bytes) -> None:
    """Hold every part of the archive against its checksum, which torch writes and does not read."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        altered = archive.testzip()
    if altered is not None:
        message = f"the checksum of '{altered}' does not match"
        raise ValueError(message)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the random generators of Python, numpy, and torch on the CPU and on this process's GPU."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  what others draw from
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(states: Sequence[dict[str, Any]], rank: int, device: torch.device) -> None:
    """Set the random generators to what they were in this process.

    Args:
        states: Of all processes that trained together.
        rank: This one. Where there were others than now, each goes on from the first one's, moved on by its rank.
        device: Where this process trains.

    Raises:
        ModelError: The states make no sense.
    """
    try:
        state = states[rank if rank < len(states) else 0]
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        message = f"the checkpoint's states of random generators make no sense: {error}. Take another run.id."
        raise ModelError(message) from error
    if rank >= len(states):
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)
