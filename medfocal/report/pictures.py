"""Three-plane pictures of one place in a volume, in the convention radiologists read.

A plane leaves this module as a small grey PNG and outlines as vector paths, all in millimetres around the centre,
so that a page can scale it without loss and colour it for light, dark and paper.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import GeometryError

FIELD_MM = 40.0
# A component that would fill the field gets a field this many times its equivalent diameter.
FIELD_PER_DIAMETER = 2.0
# More pixels along a side would not be seen and would make the page heavy. Fewer would show as blocks in programs that
# draw a printed page without interpolation.
MAX_PIXELS = 160
MIN_PIXELS = 80
GREY_PERCENTILES = (1.0, 99.5)
BODY_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class CaseImages:
    """What the pictures of one case are drawn from, on the native grid of its image.

    Attributes:
        image: Grey values, (I, J, K).
        reference: Mask of all lesions, bool (I, J, K).
        predicted: Mask of the candidates at the threshold, bool (I, J, K).
        spacing_mm: Voxel size along I, J and K.
        axis_codes: Where each axis points to, such as ("L", "P", "S"), as `nibabel.aff2axcodes` tells.
        affine: From voxel to world (RAS, mm), (4, 4); None where the place in the world is not known.
    """

    image: NDArray[np.float32]
    reference: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    axis_codes: tuple[str, str, str]
    affine: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Hold the parts against each other."""
        if self.image.ndim != 3:
            message = f"image must have 3 axes, got {self.image.ndim}: shape {self.image.shape}"
            raise ValueError(message)
        for name, mask in (("reference", self.reference), ("predicted", self.predicted)):
            if mask.dtype != np.bool_:
                message = f"{name} must be a bool mask, got {mask.dtype}"
                raise ValueError(message)
            if mask.shape != self.image.shape:
                message = (
                    f"image and {name} differ in shape: {self.image.shape} and {mask.shape}. "
                    "Bring both onto the grid of the image."
                )
                raise GeometryError(message)
        if sorted(BODY_AXIS.get(code, -1) for code in self.axis_codes) != [0, 1, 2]:
            message = f"axis_codes must hold one of R/L, one of A/P and one of S/I, got {self.axis_codes}"
            raise ValueError(message)
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            message = f"spacing_mm must be 3 positive numbers, got {self.spacing_mm}"
            raise ValueError(message)


@dataclass(frozen=True)
class Plane:
    """One whole slice as it is looked at: row 0 on top, column 0 on the left.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        image: Grey values, (rows, columns).
        reference: Mask of all lesions, (rows, columns).
        predicted: Mask of the candidates, (rows, columns).
        spacing_mm: Height and width of a pixel.
        centre: Row and column of the place looked at, in pixels; the middle of the first pixel is (0, 0).
        letters: Patient directions at the top, right, bottom and left edge.
    """

    name: str
    image: NDArray[np.float32]
    reference: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    spacing_mm: tuple[float, float]
    centre: tuple[float, float]
    letters: tuple[str, str, str, str]


@dataclass(frozen=True)
class View:
    """A plane made ready for the page; all lengths in mm, the centre at (0, 0), y down.

    Attributes:
        name: Of the plane.
        field_mm: Side of the square that is shown.
        letters: Patient directions at the top, right, bottom and left edge.
        left, top, width, height: Where the grey image lies.
        source: The grey image as a data URI, empty where the field misses the image.
        reference, predicted: SVG path data of the outlines.
        frame_mm: Side of the square that marks the field of the close-ups, 0 in the close-ups themselves.
        middle: Where the middle of the shown square lies, to the right and down.
    """

    name: str
    field_mm: float
    letters: tuple[str, str, str, str]
    left: float
    top: float
    width: float
    height: float
    source: str
    reference: str = ""
    predicted: str = ""
    frame_mm: float = 0.0
    middle: tuple[float, float] = (0.0, 0.0)


def to_ras(images: CaseImages) -> CaseImages:
    """Permute and flip the axes so that they point to the patient's right, anterior and superior side."""
    transform = _to_ras_transform(images.axis_codes)
    from nibabel import orientations

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(orientations.apply_orientation(array, transform))

    spacing = [0.0, 0.0, 0.0]
    for axis in range(3):
        spacing[int(transform[axis, 0])] = images.spacing_mm[axis]
    return CaseImages(
        image=turned(images.image),
        reference=turned(images.reference),
        predicted=turned(images.predicted),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        axis_codes=("R", "A", "S"),
    )


def voxel_to_ras(voxel: Sequence[float], shape: Sequence[int], axis_codes: Sequence[str]) -> tuple[float, float, float]:
    """Follow a voxel coordinate of the native grid into the array that `to_ras` makes.

    Args:
        voxel: Coordinate (i, j, k), may lie between voxels.
        shape: Of the native array.
        axis_codes: Of the native array.
    """
    place = [0.0, 0.0, 0.0]
    for axis, (target, direction) in enumerate(_to_ras_transform(axis_codes)):
        along = float(voxel[axis])
        place[int(target)] = along if direction > 0 else shape[axis] - 1 - along
    return place[0], place[1], place[2]


def _to_ras_transform(axis_codes: Sequence[str]) -> NDArray[np.float64]:
    from nibabel import orientations

    native = orientations.axcodes2ornt(tuple(axis_codes))
    return np.asarray(orientations.ornt_transform(native, orientations.axcodes2ornt(("R", "A", "S"))))


def cut_planes(images: CaseImages, voxel: Sequence[float]) -> tuple[Plane, Plane, Plane]:
    """Cut the axial, coronal and sagittal slice through a voxel.

    Radiological convention: the patient's right is on the left of the axial and the coronal picture, as if
    looked at from the feet and from the front; anterior is on the left of the sagittal picture. Anterior is on
    top of the axial picture, superior on top of the other two.

    Args:
        images: On the native grid, in any orientation.
        voxel: Coordinate (i, j, k) on the native grid; outside it, the nearest slice is cut.
    """
    ras = to_ras(images)
    place = voxel_to_ras(voxel, images.image.shape, images.axis_codes)
    right_left, anterior_posterior, superior_inferior = 0, 1, 2
    return (
        _cut(ras, place, "axial", anterior_posterior, right_left, "ALPR"),
        _cut(ras, place, "coronal", superior_inferior, right_left, "SLIR"),
        _cut(ras, place, "sagittal", superior_inferior, anterior_posterior, "SPIA"),
    )


def _cut(ras: CaseImages, place: Sequence[float], name: str, row: int, column: int, letters: str) -> Plane:
    """Cut a RAS volume; the ends of both axes (right, anterior, superior) come to row 0 and column 0."""
    across = 3 - row - column
    shape = ras.image.shape
    index = int(np.clip(np.floor(place[across] + 0.5), 0, shape[across] - 1))

    def slice_of(array: NDArray[Any]) -> NDArray[Any]:
        plane: NDArray[Any] = np.take(array, index, axis=across)
        plane = plane if row < column else plane.T
        return plane[::-1, ::-1]

    return Plane(
        name=name,
        image=slice_of(ras.image),
        reference=slice_of(ras.reference),
        predicted=slice_of(ras.predicted),
        spacing_mm=(ras.spacing_mm[row], ras.spacing_mm[column]),
        centre=(shape[row] - 1 - place[row], shape[column] - 1 - place[column]),
        letters=(letters[0], letters[1], letters[2], letters[3]),
    )


def look_at(images: CaseImages, voxel: Sequence[float], *, diameter_mm: float = 0.0) -> tuple[View, ...]:
    """Make the close-ups of the three planes through a voxel, and the whole axial slice for context.

    The grey values of the close-ups share one window, from the 1st to the 99.5th percentile of what they show; the
    whole slice has its own.

    Args:
        images: On the native grid.
        voxel: Coordinate (i, j, k) of the centroid on the native grid.
        diameter_mm: Of the component; a large one widens the field beyond 40 mm.

    Returns:
        Views named axial, coronal, sagittal and whole axial slice.
    """
    planes = cut_planes(images, voxel)
    field = max(FIELD_MM, FIELD_PER_DIAMETER * diameter_mm if np.isfinite(diameter_mm) else 0.0)
    windows = [_window(plane, field) for plane in planes]
    grey = _grey_range([plane.image[window] for plane, window in zip(planes, windows, strict=True)])
    close = [_view(plane, window, field, grey, outlined=True) for plane, window in zip(planes, windows, strict=True)]
    return (*close, _whole_slice(planes[0], field))


def _window(plane: Plane, field_mm: float) -> tuple[slice, slice]:
    """Tell the rows and columns that a field around the centre touches, and one more on each side."""
    ranges = []
    for length, spacing, centre in zip(plane.image.shape, plane.spacing_mm, plane.centre, strict=True):
        reach = field_mm / 2 / spacing
        first = int(np.clip(np.floor(centre - reach) - 1, 0, length))
        last = int(np.clip(np.ceil(centre + reach) + 2, first, length))
        ranges.append(slice(first, last))
    return ranges[0], ranges[1]


def _view(
    plane: Plane, window: tuple[slice, slice], field_mm: float, grey: tuple[float, float], *, outlined: bool
) -> View:
    height, width = plane.spacing_mm
    rows, columns = window
    top = (rows.start - 0.5 - plane.centre[0]) * height
    left = (columns.start - 0.5 - plane.centre[1]) * width
    pixels = plane.image[window]
    outlines = [
        outline_path(mask[window], height=height, width=width, top=top, left=left) if outlined else ""
        for mask in (plane.reference, plane.predicted)
    ]
    return View(
        name=plane.name,
        field_mm=field_mm,
        letters=plane.letters,
        left=left,
        top=top,
        width=pixels.shape[1] * width,
        height=pixels.shape[0] * height,
        source=_data_uri(_resample(pixels), grey) if pixels.size else "",
        reference=outlines[0],
        predicted=outlines[1],
    )


def _whole_slice(plane: Plane, frame_mm: float) -> View:
    height = plane.image.shape[0] * plane.spacing_mm[0]
    width = plane.image.shape[1] * plane.spacing_mm[1]
    everything = (slice(0, plane.image.shape[0]), slice(0, plane.image.shape[1]))
    view = _view(plane, everything, max(height, width), _grey_range([plane.image]), outlined=False)
    return View(
        name="whole axial slice",
        field_mm=view.field_mm,
        letters=view.letters,
        left=view.left,
        top=view.top,
        width=view.width,
        height=view.height,
        source=view.source,
        frame_mm=frame_mm,
        # The middle of the slice, not the component, is the middle of this picture.
        middle=(view.left + view.width / 2, view.top + view.height / 2),
    )


def outline_path(mask: NDArray[np.bool_], *, height: float, width: float, top: float = 0.0, left: float = 0.0) -> str:
    """Draw the border of a mask along the edges of its pixels, as closed SVG paths.

    Args:
        mask: (rows, columns). Parts that touch by a corner only are drawn as separate loops.
        height: Of a pixel.
        width: Of a pixel.
        top: Of the first row.
        left: Of the first column.

    Returns:
        Path data, empty for an empty mask.
    """
    loops = _loops(mask)
    return "".join(
        "M" + "L".join(f"{left + column * width:.5g} {top + row * height:.5g}" for row, column in loop) + "Z"
        for loop in loops
    )


def _loops(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Chain the pixel edges between inside and outside into loops of corners, the inside on the right hand."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # Clockwise around a pixel: along its top, right, bottom and left edge, from corner to corner.
    edges = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (0, 1)),
        (inside & ~padded[1:-1, 2:], (0, 1), (1, 0)),
        (inside & ~padded[2:, 1:-1], (1, 1), (0, -1)),
        (inside & ~padded[1:-1, :-2], (1, 0), (-1, 0)),
    )
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for border, corner, step in edges:
        for row, column in np.argwhere(border).tolist():
            steps.setdefault((row + corner[0], column + corner[1]), []).append(step)
    loops = []
    while steps:
        start = next(iter(steps))
        loop: list[tuple[int, int]] = []
        place, before = start, (0, 0)
        while not loop or place != start:
            ways = steps[place]
            # Where two pixels touch by a corner, turn right: the step (r, c) becomes (c, -r).
            turn = (before[1], -before[0])
            step = ways.pop(ways.index(turn) if turn in ways else 0)
            if not ways:
                del steps[place]
            if step != before:
                loop.append(place)
            place, before = (place[0] + step[0], place[1] + step[1]), step
        loops.append(loop)
    return loops


def _resample(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring both sides between `MIN_PIXELS` and `MAX_PIXELS` by averaging blocks or interpolating linearly."""
    for axis in range(2):
        length = pixels.shape[axis]
        if length > MAX_PIXELS:
            factor = -(-length // MAX_PIXELS)
            starts = np.arange(0, length, factor)
            counts = np.diff(np.append(starts, length))  # the last block may be smaller
            sums = np.add.reduceat(pixels, starts, axis=axis)
            pixels = sums / np.expand_dims(counts, 1 - axis)
        elif length < MIN_PIXELS:
            factor = -(-MIN_PIXELS // length)
            places = np.clip((np.arange(factor * length) + 0.5) / factor - 0.5, 0, length - 1)
            before = np.floor(places).astype(int)
            weight = np.expand_dims(places - before, 1 - axis)
            after = np.minimum(before + 1, length - 1)
            pixels = (1 - weight) * pixels.take(before, axis) + weight * pixels.take(after, axis)
    return pixels.astype(np.float32)


def _grey_range(parts: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    values = np.concatenate([part[np.isfinite(part)] for part in parts])
    if values.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(values, GREY_PERCENTILES)
    return float(low), float(high)


def _data_uri(pixels: NDArray[np.float32], grey: tuple[float, float]) -> str:
    low, high = grey
    # A field without any contrast is shown dark, and so are voxels that hold no number.
    scaled = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
    levels = np.nan_to_num(np.clip(scaled, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(grey_png(levels)).decode("ascii")


def grey_png(levels: NDArray[np.uint8]) -> bytes:
    """Encode 8-bit grey levels (rows, columns) as PNG (ISO/IEC 15948), rows stored by the filter "up"."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = levels.shape
    above = np.vstack([np.zeros((1, columns), np.uint8), levels[:-1]])
    filtered = np.hstack([np.full((rows, 1), 2, np.uint8), levels - above])
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
