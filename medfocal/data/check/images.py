"""The grey values of one image: not numbers, no contrast, absurd extremes, a CT that is none."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.cases import clean_image
from medfocal.data.check.files import sampled
from medfocal.data.check.findings import Finding, Kind
from medfocal.errors import InputError
from medfocal.volume import Volume

#: An extreme lies this many times as far from the median as the bulk of the values is wide.
EXTREME_WIDTHS = 50.0
PERCENTILES = {"p0_5": 0.5, "p5": 5.0, "p50": 50.0, "p95": 95.0, "p99_5": 99.5}


def check_image(
    volume: Volume, path: Path, channel: str, role: str, case: str
) -> tuple[dict[str, float], list[Finding]]:
    """Look at the values of an image.

    Args:
        volume: As stored.
        path: The file.
        channel: Its name in the dataset; a word "CT" in it means Hounsfield units.
        role: What the file is in its case.
        case: Whose it is.

    Returns:
        Least and greatest finite value, and percentiles of a sample of the values that are not the most frequent one
        of the border; NaN where nothing is left. And what is wrong.
    """
    flat = volume.array.ravel(order="K")
    low, high = float(flat.min()), float(flat.max())
    sample = sampled(volume.array)
    findings = []
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN is the least and the greatest value
        finite = flat[np.isfinite(flat)]
        if not finite.size:
            message = f"{role}: '{path}' holds no number: every voxel is NaN or infinite"
            advice = "See that the right file was exported."
            return {"min": math.nan, "max": math.nan}, [Finding(Kind.CONSTANT_IMAGE, message, advice, case, str(path))]
        findings.append(_check_finite(volume, path, role, case))
        low, high = float(finite.min()), float(finite.max())
        sample = sample[np.isfinite(sample)]
    if low == high:
        message = f"{role}: '{path}' is constant: every voxel is {low:g}"
        found = Finding(Kind.CONSTANT_IMAGE, message, "See that the right file was exported.", case, str(path))
        return {"min": low, "max": high}, [*findings, found]
    figures = {"min": low, **_percentiles(sample, float(volume.array[0, 0, 0])), "max": high}
    findings += _check_extremes(figures, volume.array.dtype, path, role, case)
    if is_ct(channel) and low >= 0:
        message = f"{role}: '{path}' is called CT and has no negative value: it goes from {low:g} to {high:g}"
        advice = "Air is -1000 HU. If 1024 was added, subtract it; if this is another modality, correct its name."
        findings.append(Finding(Kind.CT_WITHOUT_NEGATIVES, message, advice, case, str(path), {"min": low, "max": high}))
    return figures, findings


def is_ct(channel: str) -> bool:
    """Whether a channel's name has the word CT, as "CT" and "ct_portal" have."""
    return "CT" in re.split("[^A-Z]+", channel.upper())


def _percentiles(sample: NDArray[Any], background: float) -> dict[str, float]:
    bulk = sample[sample != background]
    if not bulk.size:
        bulk = sample
    if not bulk.size:
        return dict.fromkeys(PERCENTILES, math.nan)
    found = np.percentile(bulk, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, found.tolist(), strict=True))


def _check_finite(volume: Volume, path: Path, role: str, case: str) -> Finding:
    """NaN or infinity outside the body is a background; inside it is a hole."""
    number = int(volume.array.size - np.isfinite(volume.array).sum())
    values = {"num_voxels": number}
    try:
        clean_image(volume.array, f"{role}: '{path}'")
    except InputError as error:
        if "NaN or infinite inside" in str(error):  # it refuses a constant image too, which is told apart
            advice = "Export the image again or repair these voxels; what belongs there cannot be told."
            message = str(error).partition(". Export")[0]
            return Finding(Kind.NOT_FINITE_INSIDE, message, advice, case, str(path), values)
    message = f"{role}: '{path}' holds {number} voxels that are NaN or infinite outside the body"
    advice = "Nothing need be done: they are read as 0. fix=true writes 0."
    return Finding(Kind.NOT_FINITE_OUTSIDE, message, advice, case, str(path), values)


def _check_extremes(figures: dict[str, float], dtype: np.dtype[Any], path: Path, role: str, case: str) -> list[Finding]:
    middle, width = figures["p50"], figures["p99_5"] - figures["p0_5"]
    far = {name: abs(figures[name] - middle) for name in ("min", "max")}
    beyond = [name for name in far if far[name] > EXTREME_WIDTHS * width > 0]
    if dtype.kind in "iu" and dtype.itemsize > 1:
        limits = np.iinfo(dtype)
        beyond += ["min"] * (dtype.kind == "i" and figures["min"] == limits.min and "min" not in beyond)
        beyond += ["max"] * (figures["max"] == limits.max and "max" not in beyond)
    if not beyond:
        return []
    extreme = " and ".join(f"{figures[name]:g}" for name in beyond)
    message = (
        f"{role}: '{path}' reaches {extreme}, where 99 % of its values lie between {figures['p0_5']:g} and "
        f"{figures['p99_5']:g}"
    )
    advice = "Look for a marker of padding, an overflow or a metal object; intensities scaled by their range suffer."
    return [Finding(Kind.EXTREME_VALUES, message, advice, case, str(path), dict(figures))]
