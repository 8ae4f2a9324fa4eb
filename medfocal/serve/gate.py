"""The gate: which series of a DICOM folder make a volume that can be trusted, decided before any pixel is touched.

Readers that are used today make a volume of a series with missing, doubled, turned or tilted slices without a word. So
every series is judged by its headers alone, and one that is refused is refused with a code and a sentence. Nothing in
either tells who the patient is: a series is named by a salted digest of its UID.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import ConfigError, InputError
from medfocal.volume import SPACING_LIMITS_MM

if TYPE_CHECKING:
    from pydicom import Dataset

#: Storage SOP classes of images that are read (PS3.4, table B.5-1), and the modality that each has.
SINGLE_FRAME = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
}
MULTI_FRAME = {
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
}
RLE = "1.2.840.10008.1.2.5"
#: Transfer syntaxes that are read. Deflated ones are not: half a megabyte can unfold to a gigabyte of header.
TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    RLE: "RLE lossless",
}
#: Of two directions that are one (their cosines).
SAME_DIRECTION = 1e-4
#: Of a slice that lies beside the line of the first: the share of the spacing, and mm, that rounding may make.
UNEVEN_SHARE, UNEVEN_MM = 0.01, 0.1


class Reason(StrEnum):
    """Why a series is refused."""

    UNREADABLE = "UNREADABLE"
    INCOMPLETE = "INCOMPLETE"
    TRANSFER_SYNTAX = "TRANSFER_SYNTAX"
    SOP_CLASS = "SOP_CLASS"
    MODALITY = "MODALITY"
    LOCALIZER = "LOCALIZER"
    TAG_MISSING = "TAG_MISSING"
    TAG_NONSENSE = "TAG_NONSENSE"
    COLOUR = "COLOUR"
    DUPLICATE_UID = "DUPLICATE_UID"
    SEVERAL_STUDIES = "SEVERAL_STUDIES"
    SEVERAL_FRAMES_OF_REFERENCE = "SEVERAL_FRAMES_OF_REFERENCE"
    SEVERAL_SIZES = "SEVERAL_SIZES"
    SEVERAL_ORIENTATIONS = "SEVERAL_ORIENTATIONS"
    SEVERAL_SPACINGS = "SEVERAL_SPACINGS"
    DUPLICATE_POSITION = "DUPLICATE_POSITION"
    MISSING_POSITION = "MISSING_POSITION"
    UNEVEN_SPACING = "UNEVEN_SPACING"
    GANTRY_TILT = "GANTRY_TILT"
    SPACING_RANGE = "SPACING_RANGE"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    TOO_MANY_SLICES = "TOO_MANY_SLICES"
    TOO_MANY_VOXELS = "TOO_MANY_VOXELS"
    TOO_MANY_FILES = "TOO_MANY_FILES"
    TOO_MANY_BYTES = "TOO_MANY_BYTES"
    OUTSIDE = "OUTSIDE"
    PIXELS = "PIXELS"


#: Of series that are no images to be predicted: they are passed over, and no fault of anybody.
PASSED_OVER = frozenset({Reason.SOP_CLASS, Reason.MODALITY, Reason.LOCALIZER})


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is let through.

    Args:
        modalities: Such as `("MR",)`; empty: all that are read.
        min_slices: Of a series.
        max_slices: Of a series.
        max_voxels: Of a series.
        max_files: Of a folder, with all below it.
        max_gigabytes: Of all files of a folder (1e9 bytes).
        salt: Of the digests that stand for UIDs; None: one is drawn, so that no two runs can be linked.
    """

    modalities: Sequence[str] = ()
    min_slices: int = 5
    max_slices: int = 4000
    max_voxels: float = 1e9
    max_files: int = 20_000
    max_gigabytes: float = 16.0
    salt: bytes = field(default_factory=lambda: os.urandom(16), repr=False)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.modalities) - {*SINGLE_FRAME.values(), *MULTI_FRAME.values()})
        if unknown:
            message = f"modalities: {', '.join(unknown)} cannot be read; CT, MR and PT can"
            raise ConfigError(message)
        if not 2 <= self.min_slices <= self.max_slices:
            message = f"min_slices must be from 2 to max_slices, got {self.min_slices} and {self.max_slices}"
            raise ConfigError(message)

    def name_of(self, uid: str) -> str:
        """What a series is called in files and messages: HMAC-SHA256 of its UID, 12 hexadecimal digits."""
        return hmac.new(self.salt, uid.encode(), hashlib.sha256).hexdigest()[:12]


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818  it is kept and counted more than it is raised
    """A series, or a file that belongs to none, that is not read.

    Attributes:
        reason: The code.
        series: What the series is called; "" of a file alone.
        told: A sentence.
    """

    reason: Reason
    series: str
    told: str

    def __str__(self) -> str:
        whose = f"series {self.series}" if self.series else "a file"
        return f"{self.reason.value}: {whose}: {self.told}"

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong with it, rather than that it is nothing to predict."""
        return self.reason not in PASSED_OVER


@dataclass(frozen=True)
class Slice:
    """Where one frame lies, and how its numbers become intensities.

    Attributes:
        path: File.
        frame: Of the file, from 0.
        slope: By which stored numbers are multiplied.
        intercept: What is then added.
        padding: Stored numbers from the first to the second that mean "outside"; None: none do.
    """

    path: Path
    frame: int
    slope: float
    intercept: float
    padding: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series that makes one volume.

    Attributes:
        name: Salted digest of its UID.
        modality: CT, MR or PT.
        shape: `(I, J, K)`: columns, rows, slices.
        affine: Voxel index to world RAS mm, `(4, 4)`.
        slices: In the order of K.
        transfer_syntax: UID.
        instance_uids: SOP instance UIDs, in the order of K, once each.
    """

    name: str
    modality: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    slices: tuple[Slice, ...]
    transfer_syntax: str
    instance_uids: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class _File:
    """A DICOM file whose headers were read."""

    path: Path
    header: Dataset
    transfer_syntax: str
    series_uid: str


def find_series(folder: Path, gate: Gate) -> tuple[list[Series], list[Refusal]]:
    """Judge everything in a folder, and in those below it.

    Files that are no DICOM, such as the notes that routers lay beside images, are passed over.

    Args:
        folder: Of DICOM files.
        gate: What is let through.

    Returns:
        Series that make a volume, and what is refused, both by name.

    Raises:
        InputError: The folder cannot be read, holds no DICOM file, or is too large.
    """
    groups: dict[str, list[_File]] = {}
    refused: list[Refusal] = []
    doubtful: set[Path] = set()
    found = []
    with quiet():
        for path in _files_in(folder, gate):
            try:
                read = _read_header(path, folder)
            except Refusal as refusal:
                refused.append(refusal)
                doubtful.add(path.parent)
                continue
            if read is not None:
                groups.setdefault(read.series_uid, []).append(read)
        if not groups and not refused:
            message = f"'{folder}' holds no DICOM file"
            raise InputError(message)
        for uid, files in groups.items():
            try:
                if any(file.path.parent in doubtful for file in files):
                    told = "a file beside it is refused, and may be a slice of it"
                    raise Refusal(Reason.INCOMPLETE, gate.name_of(uid), told)
                found.append(_judged(uid, files, gate))
            except Refusal as refusal:
                refused.append(refusal)
    return sorted(found, key=lambda series: series.name), sorted(refused, key=str)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it pydicom says nothing: its warnings quote what stands in a file."""
    log = logging.getLogger("pydicom")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _files_in(folder: Path, gate: Gate) -> list[Path]:
    """All files, by name."""
    paths, num_bytes = [], 0
    try:
        for place, _, names in os.walk(folder, onerror=_give_up):
            paths += [Path(place, name) for name in names]
            if len(paths) > gate.max_files:
                message = f"{Reason.TOO_MANY_FILES.value}: '{folder}' holds more than {gate.max_files} files"
                raise InputError(message)
        for path in paths:
            num_bytes += path.lstat().st_size
    except OSError as error:
        message = f"the folder '{folder}' cannot be read: {error.strerror or error}"
        raise InputError(message) from error
    if num_bytes > gate.max_gigabytes * 1e9:
        message = (
            f"{Reason.TOO_MANY_BYTES.value}: '{folder}' holds {num_bytes / 1e9:.3g} GB and max_gigabytes is "
            f"{gate.max_gigabytes:g}"
        )
        raise InputError(message)
    return sorted(paths)


def _give_up(error: OSError) -> None:
    raise error


def _read_header(path: Path, folder: Path) -> _File | None:
    """The headers of a file; None where it is no DICOM. The file's meta information is judged before anything else.

    Raises:
        Refusal: It is DICOM of a kind that is not read.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    if not path.is_file():
        return None
    if folder.resolve() not in path.resolve().parents:
        raise Refusal(Reason.OUTSIDE, "", "it is a link that leads out of the folder")
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
        if syntax not in TRANSFER_SYNTAXES:
            told = f"it has the transfer syntax {_uid_in_words(syntax)}, which is not read"
            raise Refusal(Reason.TRANSFER_SYNTAX, "", told)
        header = dcmread(path, stop_before_pixels=True)
        if _is_cut_short(header, syntax, path.stat().st_size):
            raise Refusal(Reason.UNREADABLE, "", "it ends before its headers or its pixels do")
        return _File(path, header, syntax, str(header.SeriesInstanceUID))
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001  a hostile header can make pydicom raise almost anything
        raise Refusal(Reason.UNREADABLE, "", f"its headers cannot be read ({type(error).__name__})") from None


def _is_cut_short(header: Dataset, syntax: str, num_bytes: int) -> bool:
    """Whether a file lacks what stands before its pixels, or holds fewer of them than it says."""
    if not all(header.get(keyword) for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")):
        return True
    if str(header.SOPClassUID) not in SINGLE_FRAME | MULTI_FRAME:
        return False
    if any(header.get(keyword) is None for keyword in ("Rows", "Columns", "BitsAllocated", "PixelRepresentation")):
        return True
    num_pixels = int(header.Rows) * int(header.Columns) * int(header.get("NumberOfFrames", None) or 1)
    return syntax != RLE and num_pixels * int(header.BitsAllocated) // 8 > num_bytes


def _uid_in_words(uid: str) -> str:
    """A UID of the standard; any other may have been made of a patient."""
    return uid if uid.startswith("1.2.840.10008.") else "of a vendor, or none"


@dataclass(frozen=True)
class _Frame:
    """One frame with what the standard says of it."""

    file: _File
    number: int
    position_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float


def _judged(uid: str, files: Sequence[_File], gate: Gate) -> Series:
    """A series that makes one volume.

    Raises:
        Refusal: It does not.
    """
    name = gate.name_of(uid)

    def no(reason: Reason, told: str) -> Refusal:
        return Refusal(reason, name, told)

    if not uid:
        raise no(Reason.TAG_MISSING, f"{len(files)} files have no SeriesInstanceUID")
    try:
        files = list(_without_copies(files, no))
        modality = _modality_of(files, gate, no)
        for keyword, reason, what in (
            ("StudyInstanceUID", Reason.SEVERAL_STUDIES, "studies"),
            ("FrameOfReferenceUID", Reason.SEVERAL_FRAMES_OF_REFERENCE, "frames of reference"),
        ):
            values = {str(file.header.get(keyword, "")) for file in files}
            if "" in values:
                raise no(Reason.TAG_MISSING, f"it has files without {keyword}")
            if len(values) > 1:
                raise no(reason, f"its files are of {len(values)} {what}")
        frames = [frame for file in files for frame in _frames_of(file, no)]
        num_columns, num_rows = _size_of(files, no)
        _check_amount(frames, num_rows * num_columns, gate, no)
        order, affine = _stacked(frames, no)
        slices = tuple(
            Slice(
                path=frame.file.path,
                frame=frame.number,
                slope=frame.slope,
                intercept=frame.intercept,
                padding=_padding_of(frame.file.header),
            )
            for frame in order
        )
        uids = dict.fromkeys(str(frame.file.header.SOPInstanceUID) for frame in order)
        return Series(
            name=name,
            modality=modality,
            shape=(num_columns, num_rows, len(order)),
            affine=affine,
            slices=slices,
            transfer_syntax=files[0].transfer_syntax,
            instance_uids=tuple(uids),
        )
    except Refusal:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        missing = str(error).rsplit("'", 2)[-2] if isinstance(error, AttributeError) and "'" in str(error) else ""
        if missing.isalpha():
            raise no(Reason.TAG_MISSING, f"it has files without {missing}") from None
        raise no(Reason.TAG_NONSENSE, f"a header makes no sense ({type(error).__name__})") from None


def _without_copies(files: Sequence[_File], no: Any) -> Iterator[_File]:
    """Every instance once: the same bytes under two names are one file.

    Raises:
        Refusal: Files of one SOP instance UID differ.
    """
    seen: dict[str, _File] = {}
    for file in files:
        uid = str(file.header.SOPInstanceUID)
        first = seen.setdefault(uid, file)
        if first is file:
            yield file
        elif first.path.read_bytes() != file.path.read_bytes():
            raise no(Reason.DUPLICATE_UID, "two files have one SOP instance UID and differ")


def _modality_of(files: Sequence[_File], gate: Gate, no: Any) -> str:
    classes = {str(file.header.get("SOPClassUID", "")) for file in files}
    known = SINGLE_FRAME | MULTI_FRAME
    if not classes <= set(known):
        told = ", ".join(sorted(_uid_in_words(uid) for uid in classes - set(known)))
        raise no(Reason.SOP_CLASS, f"it holds instances of the SOP class {told}, which is not read")
    modalities = {known[uid] for uid in classes} | {str(file.header.get("Modality", "")) for file in files}
    if len(modalities) > 1:
        raise no(Reason.MODALITY, "its SOP classes and its modality contradict each other")
    (modality,) = modalities
    if gate.modalities and modality not in gate.modalities:
        raise no(Reason.MODALITY, f"it is {modality}, and {' or '.join(gate.modalities)} is expected")
    if len(classes) > 1 or (classes <= set(MULTI_FRAME) and len(files) > 1):
        raise no(Reason.SEVERAL_SIZES, f"it has {len(files)} files of which one alone holds many frames")
    kinds = [tuple(map(str, file.header.get("ImageType", None) or ())) for file in files]
    if any("LOCALIZER" in (word.upper() for word in kind) for kind in kinds):
        raise no(Reason.LOCALIZER, "it is a localizer, or holds one")
    return modality


def _size_of(files: Sequence[_File], no: Any) -> tuple[int, int]:
    """Columns and rows, of frames whose pixels are grey and all stored alike."""
    sizes = set()
    for file in files:
        header = file.header
        if int(header.SamplesPerPixel) != 1 or str(header.PhotometricInterpretation) not in (
            "MONOCHROME1",
            "MONOCHROME2",
        ):
            raise no(Reason.COLOUR, "it is not grey")
        bits, stored, high = int(header.BitsAllocated), int(header.BitsStored), int(header.HighBit)
        if bits not in (8, 16, 32) or not 1 <= stored <= bits or high != stored - 1:
            raise no(Reason.TAG_NONSENSE, f"{stored} of {bits} bits with the highest {high} are not read")
        sizes.add(
            (
                *(int(header.Columns), int(header.Rows), bits, stored),
                *(int(header.PixelRepresentation), file.transfer_syntax),
            )
        )
    if len(sizes) > 1:
        raise no(Reason.SEVERAL_SIZES, f"its slices have {len(sizes)} sizes, or are stored in as many ways")
    num_columns, num_rows, *_ = next(iter(sizes))
    if min(num_columns, num_rows) < 2:
        raise no(Reason.TAG_NONSENSE, f"its slices have {num_columns} x {num_rows} pixels")
    return num_columns, num_rows


def _check_amount(frames: Sequence[_Frame], pixels: int, gate: Gate, no: Any) -> None:
    count = len(frames)
    if count < gate.min_slices:
        raise no(Reason.TOO_FEW_SLICES, f"it has {count} slices, and min_slices is {gate.min_slices}")
    if count > gate.max_slices:
        raise no(Reason.TOO_MANY_SLICES, f"it has {count} slices, and max_slices is {gate.max_slices}")
    if count * pixels > gate.max_voxels:
        raise no(Reason.TOO_MANY_VOXELS, f"it has {count * pixels:.3g} voxels, and max_voxels is {gate.max_voxels:.3g}")


def _frames_of(file: _File, no: Any) -> Iterator[_Frame]:
    """The frames of a file: one, or those of an enhanced image with their functional groups."""
    header = file.header
    if str(header.SOPClassUID) in SINGLE_FRAME:
        if int(header.get("NumberOfFrames", None) or 1) != 1:
            raise no(Reason.TAG_NONSENSE, "a file of one frame says that it has more")
        yield _frame(file, 0, header, header, header, header, no)
        return
    shared = header.SharedFunctionalGroupsSequence[0]
    own = header.PerFrameFunctionalGroupsSequence
    if len(own) != int(header.NumberOfFrames):
        raise no(Reason.TAG_NONSENSE, f"it says {int(header.NumberOfFrames)} frames and describes {len(own)}")
    for number, groups in enumerate(own):
        found = [
            _group(groups, shared, keyword)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        scale = _group(groups, shared, "PixelValueTransformationSequence", or_else={})
        yield _frame(file, number, found[0], found[1], found[2], scale, no)


def _group(own: Dataset, shared: Dataset, keyword: str, or_else: Any = None) -> Any:
    for groups in (own, shared):
        if keyword in groups:
            return groups[keyword].value[0]
    if or_else is not None:
        return or_else
    message = f"has no attribute '{keyword}'"
    raise AttributeError(message)


def _frame(file: _File, number: int, place: Any, turn: Any, measures: Any, scale: Any, no: Any) -> _Frame:
    position = np.array([float(value) for value in place.ImagePositionPatient])
    orientation = np.array([float(value) for value in turn.ImageOrientationPatient])
    rows_mm, columns_mm = (float(value) for value in measures.PixelSpacing)
    slope, intercept = (
        default if value is None else float(value)
        for value, default in ((scale.get("RescaleSlope"), 1.0), (scale.get("RescaleIntercept"), 0.0))
    )
    if position.shape != (3,) or orientation.shape != (6,):
        raise no(Reason.TAG_NONSENSE, "a position has no three, or an orientation no six numbers")
    figures = [*position, *orientation, rows_mm, columns_mm, slope, intercept]
    if not all(map(math.isfinite, figures)) or slope == 0:
        raise no(Reason.TAG_NONSENSE, "a position, orientation, spacing or rescale is not a number, or scales all to 0")
    row, column = orientation[:3], orientation[3:]
    lengths = [float(np.linalg.norm(side)) for side in (row, column)]
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > 1e-3:
        raise no(Reason.TAG_NONSENSE, "an orientation is not two unit vectors at right angles")
    low, high = SPACING_LIMITS_MM
    if not (low <= rows_mm <= high and low <= columns_mm <= high):
        raise no(Reason.SPACING_RANGE, f"pixels of {columns_mm:g} x {rows_mm:g} mm make no sense")
    return _Frame(file, number, position, orientation, (rows_mm, columns_mm), slope, intercept)


def _stacked(frames: Sequence[_Frame], no: Any) -> tuple[list[_Frame], NDArray[np.float64]]:
    """The frames along their common normal, and the affine of the volume that they make."""
    first = frames[0]
    orientations = np.array([frame.orientation for frame in frames])
    turned = float(np.abs(orientations - orientations[0]).max())
    if turned > SAME_DIRECTION:
        told = f"its slices are turned against each other, cosines by up to {turned:.2g}"
        raise no(Reason.SEVERAL_ORIENTATIONS, told)
    spacings = {frame.spacing_mm for frame in frames}
    if np.ptp(np.array(list(spacings)), axis=0).max() > 1e-4 * max(first.spacing_mm):
        raise no(Reason.SEVERAL_SPACINGS, f"its slices have {len(spacings)} pixel spacings")
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    order = sorted(frames, key=lambda frame: float(frame.position_mm @ normal))
    places = np.array([frame.position_mm for frame in order])
    along = places @ normal
    steps = np.diff(along)
    usual = float(np.median(steps))
    low, high = SPACING_LIMITS_MM
    twice = int((steps < max(low, 0.01 * usual)).sum())
    if twice:
        raise no(Reason.DUPLICATE_POSITION, f"{twice} of its {len(order)} slices lie where another lies")
    if not low <= usual <= high:
        raise no(Reason.SPACING_RANGE, f"slices {usual:g} mm apart make no sense")
    tolerance = max(UNEVEN_SHARE * usual, min(UNEVEN_MM, 0.1 * usual))
    gaps = int(np.maximum(np.rint(steps / usual) - 1, 0)[np.abs(steps - usual) > tolerance].sum())
    even = np.abs(steps / usual - np.rint(steps / usual)).max() * usual <= tolerance
    if gaps and even:
        raise no(Reason.MISSING_POSITION, f"{gaps} slices are missing between its {len(order)}, {usual:.4g} mm apart")
    if np.abs(steps - usual).max() > tolerance:
        told = f"its slices lie {steps.min():.4g} to {steps.max():.4g} mm apart"
        raise no(Reason.UNEVEN_SPACING, told)
    aside = places - places[0] - np.outer(along - along[0], normal)
    most = float(np.linalg.norm(aside, axis=1).max())
    if most > max(UNEVEN_MM, UNEVEN_SHARE * usual):
        angle = math.degrees(math.atan2(most, along[-1] - along[0]))
        raise no(Reason.GANTRY_TILT, f"its slices shift sideways by up to {most:.3g} mm ({angle:.2g} degrees)")
    step = (places[-1] - places[0]) / (len(order) - 1)
    rows_mm, columns_mm = first.spacing_mm
    affine = np.eye(4)
    affine[:3] = np.stack([row * columns_mm, column * rows_mm, step, places[0]], axis=1)
    return order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _padding_of(header: Any) -> tuple[float, float] | None:
    value = header.get("PixelPaddingValue", None)
    if value is None:
        return None
    limit = header.get("PixelPaddingRangeLimit", None)
    ends = float(value), float(value if limit is None else limit)
    return min(ends), max(ends)
