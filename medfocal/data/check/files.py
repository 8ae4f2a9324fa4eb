"""One file of a dataset: whether it can be read, why it cannot, and what its header says about its place."""

from __future__ import annotations

import functools
import hashlib
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.check.findings import Finding, Kind
from medfocal.errors import GeometryError, MedfocalError
from medfocal.volume import GRID_TOLERANCE_MM, Volume, corner_distance_mm, read_volume, resample_nearest

#: Voxels from which percentiles are taken, and by which copies are looked for.
NUM_SAMPLED = 1 << 14
#: Spacings that are possible and seldom meant.
USUAL_SPACING_MM = (0.05, 20.0)
#: Differences of grids below this are those of float32 in a header, and no one's rounding.
FLOAT32_MM = 1e-3
#: Bytes that are unpacked at once while a damaged file is looked into.
PIECE = 1 << 20
#: A hostile gzip file can unpack to any size.
MOST_UNPACKED = 1 << 33


@dataclass(frozen=True)
class FileFacts:
    """What one file holds.

    Attributes:
        path: The file.
        role: What it is in its case, such as "image FLAIR", "label", "reader 1".
        shape: Voxels.
        spacing_mm: Distance of their centres along each array axis.
        axis_codes: Nearest anatomical direction of each array axis, such as "LPS".
        dtype: Of the voxels as read: of stored numbers without slope and intercept.
        fingerprint: SHA-256 of shape, type and a sample of the voxels; the same for copies packed in another way, and
            almost never for others.
        percentiles: Of an image's voxels, by name; those of a regular sample but for the least and the greatest.
    """

    path: str
    role: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    axis_codes: str
    dtype: str
    fingerprint: str
    percentiles: dict[str, float] | None = None


def read_file(path: Path, role: str, case: str) -> tuple[Volume | None, list[Finding]]:
    """Read a file in the order in which it is stored.

    Returns:
        The volume, or None where it cannot be used; and what is wrong with the file and its header.
    """
    try:
        volume = read_volume(path, order="K")
    except MedfocalError as error:
        return None, [explain_failure(path, role, case, error)]
    return volume, [finding for check in HEADER_CHECKS for finding in check(volume, path, role, case)]


def facts_of(volume: Volume, path: Path, role: str, percentiles: dict[str, float] | None = None) -> FileFacts:
    """What `FileFacts` lists."""
    array = volume.array
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    digest.update(np.ascontiguousarray(sampled(array)).data)
    return FileFacts(
        path=str(path),
        role=role,
        shape=volume.shape,
        spacing_mm=volume.spacing_mm,
        axis_codes=axis_codes(volume),
        dtype=str(array.dtype),
        fingerprint=digest.hexdigest(),
        percentiles=percentiles,
    )


def axis_codes(volume: Volume) -> str:
    """Nearest anatomical directions of the array axes, such as "LPS"."""
    return _axis_codes(volume.affine.tobytes())


@functools.lru_cache(maxsize=16)
def _axis_codes(affine: bytes) -> str:
    """Files of a case lie on one grid, and telling its axes takes as long as looking at a label."""
    return "".join(Volume(np.zeros((1, 1, 1)), np.frombuffer(affine).reshape(4, 4)).axis_codes)


def sampled(array: NDArray[Any]) -> NDArray[Any]:
    """About `NUM_SAMPLED` voxels at regular steps that share no factor with the sides, so that no row is favoured."""
    flat = array.ravel(order="K")
    step = max(1, flat.size // NUM_SAMPLED)
    while any(math.gcd(step, side) > 1 for side in array.shape) and step > 1:
        step += 1
    return flat[::step]


def explain_failure(path: Path, role: str, case: str, error: MedfocalError) -> Finding:
    """Look into a file that could not be read, and say what is wrong with it.

    Args:
        path: The file.
        role: What it is in its case.
        case: Whose it is.
        error: What reading it said.
    """
    kind = _kind_of_failure(path, error)
    advice = {
        Kind.MISSING: "Correct the path in the dataset file.",
        Kind.NOT_GZIP: "If it is plain NIfTI, rename it to end with .nii; otherwise fetch it again.",
        Kind.WRONG_AXES: "Write each channel or time point into a file of its own; fix=true does so where the file "
        "holds as many as the dataset has channels.",
        Kind.IMPOSSIBLE_SPACING: "Correct the header, or export the file again.",
    }.get(kind, "Fetch or export it again.")
    # What reading advises is said once, by `advice`.
    message = re.sub(r"\. (Fetch or export|If it is plain|Write each channel|Correct ).*$", "", str(error))
    return Finding(kind, f"{role}: {message}", advice, case=case, file=str(path))


def _kind_of_failure(path: Path, error: MedfocalError) -> Kind:
    if not path.is_file():
        return Kind.MISSING
    try:
        start = path.open("rb").read(2)
        if path.name.lower().endswith(".gz") and start != b"\x1f\x8b":
            return Kind.NOT_GZIP if start else Kind.TRUNCATED
        if start == b"\x1f\x8b" and (kind := _kind_of_gzip_failure(path)) is not None:
            return kind
    except OSError:
        return Kind.UNREADABLE
    text = str(error)
    if isinstance(error, GeometryError):
        return Kind.IMPOSSIBLE_SPACING
    if " axes, shape " in text or "an axis without voxels" in text:
        return Kind.WRONG_AXES
    return Kind.TRUNCATED if "is cut off" in text or "is empty" in text else Kind.UNREADABLE


def _kind_of_gzip_failure(path: Path) -> Kind | None:
    """What is wrong with a gzip file as such; None where it unpacks to its end, or to more than is looked at."""
    looked_at = 0
    with path.open("rb") as file:
        left = file.read(PIECE)
        while left:
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
            try:
                while left and not member.eof:
                    looked_at += len(member.decompress(left, PIECE))
                    if looked_at > MOST_UNPACKED:
                        return None
                    if not member.eof:
                        left = member.unconsumed_tail or file.read(PIECE)
            except zlib.error as error:
                is_checksum = "data check" in str(error) or "length check" in str(error)
                return Kind.BAD_CHECKSUM if is_checksum else Kind.UNREADABLE
            if not member.eof:
                return Kind.TRUNCATED
            left = (member.unused_data or file.read(PIECE)).lstrip(b"\0")  # tapes pad with zeros
    return None


def check_same_grid(
    volume: Volume, grid: Volume, what: tuple[str, str], path: Path, case: str, *, may_differ: bool = False
) -> tuple[bool, list[Finding]]:
    """Hold the grid of a file against the one that it should share.

    Args:
        volume: Of the file.
        grid: What it should lie on.
        what: Names of both.
        path: The file.
        case: Whose it is.
        may_differ: Whether it is brought onto the other when it is read, which needs them to overlap.

    Returns:
        Whether both are one grid, and what is wrong.
    """
    far = None
    if volume.shape == grid.shape:
        far = corner_distance_mm(volume.affine, grid.affine, grid.shape)
        if far <= FLOAT32_MM:
            return True, []
    values = {"difference": volume.grid_difference(grid), "corners_mm": far}
    message = f"{what[0]} and {what[1]} grids differ: {values['difference']}"
    if far is not None and "mm apart" not in message:
        message += f"; corners up to {far:.3g} mm apart"
    if far is not None and far <= GRID_TOLERANCE_MM:
        advice = "Nothing need be done: this is rounding. fix=true gives both the same grid."
        return True, [Finding(Kind.GRIDS_ROUNDED, message, advice, case, str(path), values)]
    if may_differ:
        if not _lie_apart(volume, grid):
            return False, []
        message = f"{what[0]} and {what[1]} lie apart and cannot be brought onto one grid: {values['difference']}"
        advice = "See that both files are of this case, and correct the header that states the wrong place."
        return False, [Finding(Kind.GRIDS_DIFFER, message, advice, case, str(path), values)]
    advice = f"Resample {what[0]} to {what[1]}, classes with nearest neighbour, or correct the dataset file."
    return False, [Finding(Kind.GRIDS_DIFFER, message, advice, case, str(path), values)]


def _lie_apart(volume: Volume, grid: Volume) -> bool:
    """Whether resampling one onto the other is refused; the corners alone are resampled, which tells as much."""
    steps = [max(side - 1, 1) for side in grid.shape]
    corners = np.zeros([min(side, 2) for side in grid.shape])
    try:
        resample_nearest(volume, Volume(corners, grid.affine @ np.diag([*steps, 1.0])))
    except GeometryError:
        return True
    return False


def _check_spacing(volume: Volume, path: Path, role: str, case: str) -> list[Finding]:
    low, high = USUAL_SPACING_MM
    if all(low <= spacing <= high for spacing in volume.spacing_mm):
        return []
    spacing = ", ".join(f"{s:g}" for s in volume.spacing_mm)
    message = f"{role}: '{path}' has a spacing of ({spacing}) mm; usual are {low:g} to {high:g} mm"
    advice = "See that its header states millimetres, and export it again if it does not."
    return [Finding(Kind.ODD_SPACING, message, advice, case, str(path), {"spacing_mm": volume.spacing_mm})]


def _check_forms(volume: Volume, path: Path, role: str, case: str) -> list[Finding]:
    """Hold the two places that a NIfTI header can state against each other."""
    header = volume.header
    if header is None:
        return []
    codes = int(header["sform_code"]), int(header["qform_code"])
    values: dict[str, Any] = {"sform_code": codes[0], "qform_code": codes[1]}
    if codes == (0, 0):
        message = f"{role}: '{path}' states no place in the world: sform and qform codes are both 0"
        advice = "Left and right are a guess, and programs guess differently. Export it again with its orientation."
        return [Finding(Kind.NO_FORM_CODE, message, advice, case, str(path), values)]
    if 0 in codes:
        message = f"{role}: only the {'sform' if codes[0] else 'qform'} of '{path}' states its place in the world"
        advice = "Nothing need be done: it is used. fix=true states it in both, for programs that look at the other."
        return [Finding(Kind.ONE_FORM, message, advice, case, str(path), values)] if is_rigid(volume) else []
    qform = _quietly(header.get_qform)
    far = float("nan") if qform is None else corner_distance_mm(header.get_sform(), qform, volume.shape)
    if far <= GRID_TOLERANCE_MM:
        return []
    how = "its qform is no rotation" if qform is None else f"corners lie up to {far:.3g} mm apart"
    message = f"{role}: sform and qform of '{path}' disagree: {how}; the sform is used here, other programs may differ"
    advice = "Find out which is right, write it to both, and see that the label was drawn on the same."
    return [Finding(Kind.FORMS_DISAGREE, message, advice, case, str(path), values | {"corners_mm": far})]


def is_rigid(volume: Volume) -> bool:
    """Whether a qform can say the same: it knows no shear."""
    axes = volume.affine[:3, :3] / np.array(volume.spacing_mm)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))


def _check_axes(volume: Volume, path: Path, role: str, case: str) -> list[Finding]:
    shape = () if volume.header is None else tuple(int(n) for n in volume.header.get_data_shape())
    if len(shape) < 4:
        return []
    message = f"{role}: '{path}' is stored with {len(shape)} axes, shape {shape}"
    advice = "Nothing need be done: axes of length 1 are left out as it is read. fix=true leaves them out."
    return [Finding(Kind.FOURTH_AXIS, message, advice, case, str(path), {"shape": shape})]


def _quietly(get: Callable[[], Any]) -> NDArray[np.float64] | None:
    from nibabel.spatialimages import HeaderDataError

    try:
        return np.asarray(get(), np.float64)
    except (HeaderDataError, ValueError):
        return None


HEADER_CHECKS = (_check_spacing, _check_forms, _check_axes)
