"""Pixels of a series that the gate has let through, as a volume on the patient's grid."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.serve.gate import Reason, Refusal, Series, quiet
from medfocal.volume import Volume


def read_series(series: Series) -> Volume:
    """Read the pixels, slice by slice, each with its own rescale.

    Numbers that stand for "outside" (PixelPaddingValue) take the lowest intensity of the others.

    Returns:
        float32 `(I, J, K)`: columns, rows, slices; NIfTI's world.

    Raises:
        Refusal: Pixels cannot be read, are not as many as the headers say, or hold no number.
    """
    array = np.empty(series.shape, np.float32)
    outside = np.zeros(series.shape, np.bool_)
    num_frames = Counter(one.path for one in series.slices)
    opened: tuple[Path, NDArray[Any]] | None = None
    for place, one in enumerate(series.slices):
        if opened is None or opened[0] != one.path:
            opened = one.path, _frames(series, one.path, num_frames[one.path])
        frame = opened[1][one.frame]
        array[:, :, place] = frame.T * one.slope + one.intercept
        if one.padding is not None:
            low, high = one.padding
            outside[:, :, place] = ((frame >= low) & (frame <= high)).T
    if not np.isfinite(array).all():
        raise Refusal(Reason.PIXELS, series.name, "it holds intensities that are no number")
    if outside.any() and not outside.all():
        array[outside] = array[~outside].min()
    return Volume(array, series.affine)


def _frames(series: Series, path: Path, num_frames: int) -> NDArray[Any]:
    """Stored numbers of a file, `(frames, rows, columns)`."""
    from pydicom import dcmread

    num_columns, num_rows, _ = series.shape
    # What a decoder can raise of hostile pixels is not known, and its words may hold what stands in the file.
    try:
        with quiet():
            found = np.asarray(dcmread(path).pixel_array)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        raise Refusal(Reason.PIXELS, series.name, f"pixels cannot be read ({type(error).__name__})") from None
    found = found.reshape(-1, *found.shape[-2:])
    if found.shape != (num_frames, num_rows, num_columns):
        told = f"pixels of {found.shape} were read, and headers say {(num_frames, num_rows, num_columns)}"
        raise Refusal(Reason.PIXELS, series.name, told)
    return found
