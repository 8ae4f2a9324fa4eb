"""The values of a label file and the lesions that it draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components, find_components
from medfocal.data.check.findings import Finding, Kind
from medfocal.data.check.limits import CheckLimits
from medfocal.data.manifest import LabelScheme
from medfocal.volume import LABEL_TOLERANCE, Volume

#: Named values up to this many are counted one by one, which is faster than sorting all voxels.
FEW_VALUES = 16


@dataclass(frozen=True)
class LabelVoxels:
    """What was found in a label file.

    Attributes:
        lesions: 26-connected parts of all lesion classes; None where its values cannot be understood.
        findings: What is wrong.
    """

    lesions: Components | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _File:
    path: Path
    role: str
    case: str

    def finding(self, kind: Kind, message: str, advice: str, **values: Any) -> Finding:
        return Finding(kind, f"{self.role}: '{self.path}' {message}", advice, self.case, str(self.path), values)


def check_label(
    volume: Volume, scheme: LabelScheme, limits: CheckLimits, path: Path, role: str, case: str
) -> LabelVoxels:
    """Look at the values of a label and find its lesions.

    Args:
        volume: As stored.
        scheme: What values mean.
        limits: What a speck is.
        path: The file.
        role: What it is in its case.
        case: Whose it is.
    """
    file = _File(path, role, case)
    array, findings = volume.array, []
    if array.dtype.kind == "f":
        whole, finding = _whole(array, file)
        findings = [] if finding is None else [finding]
        if whole is None:
            return LabelVoxels(None, tuple(findings))
        array = whole
    counts = _count_values(array, scheme)
    unnamed = sorted(set(counts) - _known(scheme))
    if unnamed:
        return LabelVoxels(None, (*findings, _unnamed(unnamed, counts, scheme, file)))
    lesions = find_components(_lesion_mask(array, scheme, counts), volume.affine)
    return LabelVoxels(lesions, (*findings, *_check_lesions(lesions, counts, scheme, limits, file)))


def binary_255(counts: dict[int, int], scheme: LabelScheme) -> bool:
    """Whether a label of one class is stored as 0 and 255."""
    return scheme.num_classes == 2 and set(counts) <= {0, 255} and 255 in set(counts) - _known(scheme)


def lesion_value(scheme: LabelScheme) -> int:
    """The value by which files mark the first lesion class; the least where there are several."""
    return 1 if scheme.values is None else min(value for value, number in scheme.values.items() if number == 1)


def _whole(array: NDArray[Any], file: _File) -> tuple[NDArray[Any] | None, Finding | None]:
    """Whole numbers of a label that is stored as floats; None where it holds something else."""
    with np.errstate(invalid="ignore"):
        rounded = np.rint(array)
        off = float(np.abs(array - rounded).max())
    if not off <= LABEL_TOLERANCE:
        value = array[tuple(np.argwhere(~(np.abs(array - rounded) <= LABEL_TOLERANCE))[0])]
        advice = "Labels are classes; a probability map is not a label, nor is one that was resampled linearly."
        return None, file.finding(Kind.LABEL_NOT_WHOLE, f"holds {value}, which is not a whole number", advice, off=off)
    low, high = float(rounded.min()), float(rounded.max())
    if max(abs(low), abs(high)) > np.iinfo(np.int32).max:
        advice = "Labels are small whole numbers; export it again."
        return None, file.finding(Kind.LABEL_UNNAMED, f"holds values from {low:g} to {high:g}", advice)
    whole = rounded.astype(np.int32)
    if off > 0:
        message = f"holds values off whole numbers by up to {off:.2g}"
        advice = "Nothing need be done: it is rounded as it is read. fix=true stores whole numbers."
        return whole, file.finding(Kind.LABEL_ROUNDED, message, advice, off=off)
    message = f"stores its whole numbers as {array.dtype}"
    advice = "Nothing need be done. fix=true stores them as small whole numbers."
    return whole, file.finding(Kind.LABEL_STORED_AS_FLOAT, message, advice, dtype=str(array.dtype))


def _known(scheme: LabelScheme) -> set[int]:
    known = set(scheme.names if scheme.values is None else scheme.values)
    return known | ({scheme.ignore_value} if scheme.ignore_value is not None else set())


def _count_values(array: NDArray[Any], scheme: LabelScheme) -> dict[int, int]:
    flat, known = array.ravel(order="K"), sorted(_known(scheme))
    if len(known) <= FEW_VALUES:
        limits = np.iinfo(array.dtype)
        counts = {v: int(np.count_nonzero(flat == v)) for v in known if limits.min <= v <= limits.max}
        if sum(counts.values()) == flat.size:
            return {value: count for value, count in counts.items() if count}
    values, numbers = np.unique(flat, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def _lesion_mask(array: NDArray[Any], scheme: LabelScheme, counts: dict[int, int]) -> NDArray[Any]:
    """Not 0 where a lesion is; the array itself where that is what it says."""
    background = [v for v in counts if v != 0 and (v == scheme.ignore_value or (scheme.values or {}).get(v) == 0)]
    if not background and (scheme.values or {}).get(0, 0) == 0:
        return array
    return np.asarray((array != 0) & ~np.isin(array, background))


def _unnamed(unnamed: list[int], counts: dict[int, int], scheme: LabelScheme, file: _File) -> Finding:
    if binary_255(counts, scheme):
        value = lesion_value(scheme)
        message = f"marks lesions by 255, for which the dataset names {value} ({scheme.names[1]})"
        return file.finding(Kind.LABEL_0_255, message, f"Store {value} instead of 255; fix=true does.")
    names = scheme.names if scheme.values is None else {v: scheme.names[c] for v, c in scheme.values.items()}
    named = ", ".join(f"{value} ({name})" for value, name in sorted(names.items()))
    message = f"holds {', '.join(map(str, unnamed[:10]))}, which the dataset does not name; it names {named}"
    advice = "Correct 'labels' in the dataset file, which hold for all of its files, or this one."
    return file.finding(Kind.LABEL_UNNAMED, message, advice, unnamed=unnamed[:100])


def _check_lesions(
    lesions: Components, counts: dict[int, int], scheme: LabelScheme, limits: CheckLimits, file: _File
) -> list[Finding]:
    if not len(lesions):
        unjudged = counts.get(scheme.ignore_value, 0) if scheme.ignore_value is not None else 0
        message = "marks no lesion" + (f"; {unjudged} voxels are marked as not judged" if unjudged else "")
        advice = "Nothing need be done if this case has none; else the label is missing its lesions."
        return [file.finding(Kind.LABEL_EMPTY, message, advice)]
    if int(lesions.num_voxels.sum()) == int(np.prod(lesions.shape)):
        message = f"marks every voxel as lesion ({', '.join(map(str, counts))}): there is no background"
        return [file.finding(Kind.LABEL_WITHOUT_BACKGROUND, message, "See that the right file was exported.")]
    volume_mm3 = lesions.volume_ml * 1000
    is_speck = (lesions.num_voxels <= limits.speck_voxels) | (volume_mm3 <= limits.speck_mm3)
    if not is_speck.any():
        return []
    number = int(is_speck.sum())
    message = (
        f"has {number} of {len(lesions)} lesions of at most {limits.speck_voxels} voxels or {limits.speck_mm3:g} mm3; "
        f"the least has {int(lesions.num_voxels.min())} voxels, {float(volume_mm3.min()):.3g} mm3"
    )
    advice = "Specks are often slips of a brush or left by resampling. Look at them, or set a minimum size."
    return [file.finding(Kind.SPECKS, message, advice, num_specks=number, num_lesions=len(lesions))]
