"""A voxel array and where it lies in the patient; reading and writing it. Nothing else may guess a grid.

World coordinates are RAS in mm (x to the patient's right is positive for "R": nibabel's convention), voxel
indices are `(i, j, k)`. NIfTI is read by nibabel, MHA and NRRD by SimpleITK.
"""

from __future__ import annotations

import gzip
import io
import itertools
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import GeometryError, InputError
from medfocal.files import atomic_write

NIFTI_ENDINGS = (".nii.gz", ".nii")
PAIR_ENDINGS = (".hdr", ".img")
ITK_ENDINGS = (".mha", ".mhd", ".nrrd")
IMAGE_ENDINGS = (*NIFTI_ENDINGS, *PAIR_ENDINGS, *ITK_ENDINGS)

# Corners of two grids nearer than this are the same place: headers store float32, tools round. The
# misregistrations that matter (a flipped axis, a shifted origin, another spacing) are far above it.
GRID_TOLERANCE_MM = 0.05

# How far a label may be from a whole number: slope and intercept store 1 as 0.99999997.
LABEL_TOLERANCE = 1e-3

# What a voxel grid can reasonably measure. Outside lies a header that was filled with something else.
SPACING_LIMITS_MM = (1e-4, 1e3)

# Tells zlib that a gzip header and a checksum, which it verifies, are around the data.
_GZIP = 16 + zlib.MAX_WBITS

# A header is 348 bytes (NIfTI-1) or 540 (NIfTI-2).
NIFTI_HEADER_BYTES = 540


@dataclass(frozen=True)
class Volume:
    """A 3D array with its place in the world.

    Attributes:
        array: Voxels, shape `(I, J, K)`, any real dtype.
        affine: Voxel index to world RAS mm, float64 `(4, 4)`.
        header: NIfTI header of the file it came from, so that writing keeps its codes and units.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along `(I, J, K)`."""
        i, j, k = self.array.shape
        return (i, j, k)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along each array axis."""
        x, y, z = spacing_of(self.affine)
        return (x, y, z)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel; right for sheared grids too."""
        return voxel_volume_ml(self.affine)

    @property
    def axis_codes(self) -> tuple[str, str, str]:
        """Nearest anatomical direction of each array axis, such as `("L", "P", "S")`."""
        import nibabel

        first, second, third = nibabel.aff2axcodes(self.affine)
        return (first, second, third)

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Another array on the same grid.

        Raises:
            GeometryError: Its shape differs.
        """
        if array.shape != self.array.shape:
            message = f"an array of shape {array.shape} does not fit the grid of shape {self.array.shape}"
            raise GeometryError(message)
        return Volume(array, self.affine, self.header)

    def same_grid(self, other: Volume, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Whether both have the same shape and every corner lies within `tolerance_mm` of its fellow."""
        return self.shape == other.shape and corner_distance_mm(self.affine, other.affine, self.shape) <= tolerance_mm

    def grid_difference(self, other: Volume) -> str:
        """Say in words how two grids differ, with both values."""
        if self.shape != other.shape:
            return f"shape {self.shape} and {other.shape} voxels"
        mine, theirs = np.array(self.spacing_mm), np.array(other.spacing_mm)
        if np.abs(mine - theirs).max() > 1e-3:
            return f"spacing {_triple(mine)} and {_triple(theirs)} mm"
        if self.axis_codes != other.axis_codes:
            return f"axes {''.join(self.axis_codes)} and {''.join(other.axis_codes)}"
        far = corner_distance_mm(self.affine, other.affine, self.shape)
        return (
            f"origin {_triple(self.affine[:3, 3])} and {_triple(other.affine[:3, 3])} mm, "
            f"corners up to {far:.3g} mm apart"
        )


def corner_distance_mm(affine: NDArray[Any], other: NDArray[Any], shape: tuple[int, ...]) -> float:
    """Longest way in mm between a corner of one grid and the same corner of another of the same shape."""
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape))], float)
    return float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max())


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Voxel spacing in mm of a voxel-to-world affine `(4, 4)`: the norms of its columns."""
    return tuple(float(s) for s in np.sqrt((np.asarray(affine, float)[:3, :3] ** 2).sum(axis=0)))


def voxel_volume_ml(affine: NDArray[np.float64]) -> float:
    """Volume of one voxel of a grid in ml: the determinant of the affine's 3 x 3 part, over 1000."""
    return float(abs(np.linalg.det(np.asarray(affine, float)[:3, :3]))) / 1000.0


def volume_name(path: Path) -> str:
    """File name without the image ending: `sub-01_T1.nii.gz` gives `sub-01_T1`."""
    name = Path(path).name
    ending = _ending(name)
    return name[: -len(ending)] if ending else name


def is_volume(path: Path) -> bool:
    """Whether the file name has an ending that can be read; `.img` counts with its `.hdr`, not twice."""
    return _ending(Path(path).name) not in {"", ".img"}


def read_volume(path: Path, *, order: Literal["C", "K"] = "C") -> Volume:
    """Read one 3D volume, whole and checked.

    Integers without scaling keep their type; scaled values become float32. A gzip checksum is verified
    (nibabel alone does not). A fourth axis of length 1 is dropped.

    Args:
        path: `.nii`, `.nii.gz`, `.hdr`/`.img`, `.mha`, `.mhd` or `.nrrd`.
        order: Memory order of the array: "C", or "K", as the file has it, which saves a pass that takes as long as
            unpacking; it may not be writeable.

    Returns:
        The volume, in the order in which the file stores its axes.

    Raises:
        InputError: The file is missing, cut off, damaged, of another kind, or not 3D.
        GeometryError: Its spacing or its affine makes no sense.
    """
    path = Path(path)
    ending = _known_ending(path)
    try:
        volume = _read_itk(path) if ending in ITK_ENDINGS else _read_nifti(path, ending)
    except OSError as error:
        message = f"the file '{error.filename or path}' cannot be read: {error.strerror or error}"
        raise InputError(message) from error
    except MemoryError as error:
        message = f"the file '{path}' does not fit into memory"
        raise InputError(message) from error
    if order == "K":
        return volume
    array = np.ascontiguousarray(volume.array)
    return volume.with_array(array if array.flags.writeable else array.copy())


def read_grid(path: Path) -> Volume:
    """Read where a volume lies from its header alone, in a few milliseconds.

    Returns:
        The grid and the header; the array costs no memory and holds zeros of the type that the file stores.

    Raises:
        InputError: As `read_volume`, as far as the header tells; a file that is cut off or damaged after it does not
            show here.
        GeometryError: Its spacing or its affine makes no sense.
    """
    path = Path(path)
    ending = _known_ending(path)
    try:
        return _read_itk_grid(path) if ending in ITK_ENDINGS else _read_nifti_grid(path, ending)
    except OSError as error:
        message = f"the file '{error.filename or path}' cannot be read: {error.strerror or error}"
        raise InputError(message) from error


def read_labels(path: Path) -> Volume:
    """Read a label map or mask; values are rounded to whole numbers (0.99999997 is 1).

    Returns:
        int16 or wider, at least 0.

    Raises:
        InputError: As `read_volume`; or a value is not whole (by more than 1e-3), negative or not finite.
    """
    volume = read_volume(path)
    array = volume.array
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(array - rounded) <= LABEL_TOLERANCE)
        if off.any():
            index = tuple(int(n) for n in np.argwhere(off)[0])
            message = (
                f"the label file '{path}' holds {array[index]!s} at voxel {index}, which is not a whole "
                "number. Labels are classes; a probability map is not a label."
            )
            raise InputError(message)
        array = rounded
    low, high = (int(array.min()), int(array.max()))
    if low < 0 or high > np.iinfo(np.int32).max:
        message = f"the label file '{path}' holds values from {low} to {high}; labels are 0 or more"
        raise InputError(message)
    return volume.with_array(array.astype(np.int16 if high <= np.iinfo(np.int16).max else np.int32))


def resample_nearest(volume: Volume, like: Volume) -> Volume:
    """Bring a volume onto another grid; each voxel takes the value of the nearest, 0 outside of the volume.

    A voxel half-way between two takes either.

    Raises:
        GeometryError: The two lie apart.
    """
    return _resample(volume, like, order=0)


def resample_linear(volume: Volume, like: Volume) -> Volume:
    """Bring a volume onto another grid by linear interpolation, 0 outside of the volume.

    Returns:
        float32, unless the volume's array is of another floating type.

    Raises:
        GeometryError: The two lie apart.
    """
    if volume.array.dtype.kind != "f":
        volume = volume.with_array(volume.array.astype(np.float32))
    return _resample(volume, like, order=1)


def _resample(volume: Volume, like: Volume, *, order: int) -> Volume:
    from scipy import ndimage

    to_source = np.linalg.inv(volume.affine) @ like.affine
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in like.shape))], float) @ to_source.T
    low, high = corners.min(axis=0)[:3], corners.max(axis=0)[:3]
    if (high < -0.5).any() or (low > np.array(volume.shape) - 0.5).any():
        message = f"two grids that are to be brought together lie apart: {like.grid_difference(volume)}"
        raise GeometryError(message)
    array = ndimage.affine_transform(
        volume.array,
        to_source[:3, :3],
        to_source[:3, 3],
        like.shape,
        order=order,
        mode="grid-constant",
        prefilter=False,
    )
    return like.with_array(array)


def write_volume(path: Path, volume: Volume) -> None:
    """Write NIfTI-1 atomically, on the grid of `volume`, with the qform, sform and units of its header.

    Values are stored as they are (bool as uint8, int64 as int32), without scaling. Text fields of the
    source's header, which may name a patient, are not copied. The same volume gives the same bytes.

    Raises:
        InputError: The ending is not `.nii` or `.nii.gz`, or an int64 value needs more than 32 bits.
        ResourceError: The file cannot be written.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith(NIFTI_ENDINGS):
        message = f"volumes are written as .nii or .nii.gz, got '{path.name}'"
        raise InputError(message)
    array = volume.array
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        if array.size and (array.min() < np.iinfo(np.int32).min or array.max() > np.iinfo(np.int32).max):
            message = f"'{path.name}': values from {array.min()} to {array.max()} do not fit 32 bits"
            raise InputError(message)
        array = array.astype(np.int32)
    image = nibabel.Nifti1Image(array, volume.affine, _placed_header(volume), dtype=array.dtype)
    image.header.set_slope_inter(1, 0)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with atomic_write(path, "wb") as file:
        file.write(content)


def _placed_header(volume: Volume) -> Any:
    """Fresh NIfTI-1 header that says where the grid lies, in the words of the source where it had any."""
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape(volume.shape)
    source = volume.header
    if source is not None and np.allclose(source.get_best_affine(), volume.affine, rtol=0, atol=1e-6):
        fields = ["qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"]
        fields += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"]
        for field in fields:
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
        return header
    header.set_xyzt_units("mm")
    header.set_sform(volume.affine, code=1)
    axes = volume.affine[:3, :3] / np.array(volume.spacing_mm)
    orthogonal = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)  # a qform cannot say shear
    header.set_qform(volume.affine, code=1 if orthogonal else 0, strip_shears=True)
    return header


def _read_nifti_grid(path: Path, ending: str) -> Volume:
    stated_in = path.with_suffix(".hdr") if ending in PAIR_ENDINGS else path
    with stated_in.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            start = gzip.GzipFile(fileobj=file).read(NIFTI_HEADER_BYTES) if zipped else file.read(NIFTI_HEADER_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            message = f"the file '{path}' is damaged or not NIfTI: {_short(error)}. Fetch or export it again."
            raise InputError(message) from error
    header = _stated_header(path, start)
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    _check_affine(path, affine)
    shape = _three_axes(path, header.get_data_shape())
    return Volume(np.broadcast_to(np.zeros((), header.get_data_dtype()), shape), affine, header)


def _read_nifti(path: Path, ending: str) -> Volume:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, ImageDataError
    from nibabel.wrapstruct import WrapStructError

    damaged: tuple[type[Exception], ...] = (ImageFileError, HeaderDataError, ImageDataError, WrapStructError)
    damaged += (gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError)
    try:
        # The header is judged as it is stated: nibabel mends a zero spacing or an unknown code while it loads.
        if ending in PAIR_ENDINGS:
            with path.with_suffix(".hdr").open("rb") as file:
                stated = _stated_header(path, file.read(NIFTI_HEADER_BYTES))
            _check_length(path, stated, path.with_suffix(".img").stat().st_size)
            image = nibabel.load(path, mmap=False)
        else:
            content = _read_bytes(path)
            stated = _stated_header(path, content)
            _check_length(path, stated, len(content))
            if stated["vox_offset"] < stated.single_vox_offset:  # nibabel takes 0, and reads the header as voxels
                offset = f"{stated['vox_offset']:g}"
                message = f"the file '{path}' states that its voxels start at byte {offset}, in its header"
                raise InputError(message)
            kind = nibabel.Nifti2Image if isinstance(stated, nibabel.Nifti2Header) else nibabel.Nifti1Image
            image = kind.from_bytes(content)
        affine = np.asarray(image.affine, dtype=np.float64)
        _check_affine(path, affine)
        plain = (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
        array: NDArray[Any]
        if not plain:
            array = np.asarray(image.dataobj, dtype=np.float32)
        elif ending in PAIR_ENDINGS:
            array = image.dataobj.get_unscaled()
        else:  # a view of what was read, without another copy
            count, first = math.prod(image.shape), int(image.dataobj.offset)
            array = np.frombuffer(content, image.dataobj.dtype, count, first).reshape(image.shape, order="F")
    except damaged as error:
        message = f"the file '{path}' is damaged or not NIfTI: {_short(error)}. Fetch or export it again."
        raise InputError(message) from error
    if array.dtype.byteorder not in "=|":
        array = array.astype(array.dtype.newbyteorder("="))
    return Volume(array.reshape(_three_axes(path, image.shape), order="F"), affine, image.header.copy())


def _read_bytes(path: Path) -> bytes:
    """Whole content; a gzip stream is decompressed and its checksum and length are verified."""
    content = path.read_bytes()
    if not content:
        message = f"the file '{path}' is empty. Fetch or export it again."
        raise InputError(message)
    zipped = content[:2] == b"\x1f\x8b"
    if path.name.endswith(".gz") and not zipped:
        message = (
            f"the file '{path}' is named .gz but is not gzip. "
            "If it is plain NIfTI, rename it to end with .nii; otherwise fetch it again."
        )
        raise InputError(message)
    return _unpack(path, content) if zipped else content


def _unpack(path: Path, packed: bytes) -> bytes:
    """Unpack a gzip file, of one member or several, each in one call: the gzip module's small steps take longer."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        start = stream.read(NIFTI_HEADER_BYTES)
    promised = _promised_bytes(_stated_header(path, start))
    if promised > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise MemoryError
    room = promised + (1 << 24)  # a hostile gzip can unpack to any size
    pieces = []
    while packed:
        member = zlib.decompressobj(_GZIP)
        try:
            pieces.append(member.decompress(packed, room + 1))
        except zlib.error as error:
            if "data check" not in str(error):
                raise
            message = "gzip CRC check failed, so bytes have changed"
            raise gzip.BadGzipFile(message) from error
        room -= len(pieces[-1])
        if room < 0:
            message = f"the file '{path}' unpacks to far more than the {promised} bytes its header states"
            raise InputError(message)
        if not member.eof:
            message = "the gzip stream ends before its end mark"
            raise EOFError(message)
        packed = member.unused_data.lstrip(b"\0")  # tapes and block devices pad with zeros
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _stated_header(path: Path, start: bytes) -> Any:
    """The header as the file states it, seen to make sense; extensions are left out."""
    import nibabel

    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(start) >= kind.sizeof_hdr and kind.may_contain_header(start[: kind.sizeof_hdr]):
            header = kind(start[: kind.sizeof_hdr], check=False)
            _check_header(path, header)
            return header
    message = f"the file '{path}' is not NIfTI: its first bytes are not a NIfTI header"
    raise InputError(message)


def _promised_bytes(header: Any) -> int:
    count = math.prod(int(n) for n in header.get_data_shape())
    return int(header["vox_offset"]) + count * int(header.get_data_dtype().itemsize)


def _check_length(path: Path, header: Any, num_bytes: int) -> None:
    promised = _promised_bytes(header)
    if num_bytes < promised:
        message = (
            f"the file '{path}' is cut off: {num_bytes} bytes where its header states {promised}. "
            "Fetch or export it again."
        )
        raise InputError(message)


def _check_header(path: Path, header: Any) -> None:
    _three_axes(path, header.get_data_shape())
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        message = f"the file '{path}' states data type {error}, which NIfTI does not know. Fetch or export it again."
        raise InputError(message) from error
    if dtype.kind not in "iuf":
        message = f"the file '{path}' holds {dtype} voxels; one real number a voxel is expected"
        raise InputError(message)
    unit = int(header["xyzt_units"]) % 8
    if unit not in {0, 2}:
        words = {1: "metres", 3: "micrometres"}
        message = f"the file '{path}' measures in {words.get(unit, f'unknown units (code {unit})')}; write it in mm"
        raise GeometryError(message)
    codes = {name: int(header[name]) for name in ("qform_code", "sform_code")}
    if not set(codes.values()) <= set(range(6)):
        message = f"the file '{path}' states {codes}; NIfTI knows 0 to 5. Correct its header, or export it again."
        raise GeometryError(message)
    pixdim = [float(p) for p in header["pixdim"][1:4]]
    low, high = SPACING_LIMITS_MM
    # A negative spacing is harmless where the sform gives the axes; elsewhere it may or may not mean a mirror.
    sizes = [abs(p) for p in pixdim] if codes["sform_code"] else pixdim
    if not all(low <= size <= high for size in sizes):  # NaN fails too
        message = (
            f"the file '{path}' states a voxel spacing of {_triple(pixdim)} mm. "
            "Correct pixdim in its header, or export it again."
        )
        raise GeometryError(message)


def _check_affine(path: Path, affine: NDArray[np.float64]) -> None:
    low, high = SPACING_LIMITS_MM
    spacing = spacing_of(affine)
    if not np.isfinite(affine).all() or not all(low <= s <= high for s in spacing):
        message = f"the affine of '{path}' makes no sense: spacing {_triple(spacing)} mm"
        raise GeometryError(message)
    flatness = voxel_volume_ml(affine) * 1000.0 / float(np.prod(spacing))
    if flatness < 1e-3:
        message = f"the affine of '{path}' makes no sense: its axes lie in one plane"
        raise GeometryError(message)


def _three_axes(path: Path, shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in shape)
    if any(n <= 0 for n in shape):
        message = f"the file '{path}' has an axis without voxels: shape {shape}"
        raise InputError(message)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        message = (
            f"the file '{path}' has {len(shape)} axes, shape {shape}; 3 are expected. "
            "Write each channel or time point into a file of its own."
        )
        raise InputError(message)
    i, j, k = shape[:3]
    return (i, j, k)


def _itk_reader(path: Path) -> Any:
    """A reader that has read the header, seen to be of three axes and one number a voxel."""
    import SimpleITK as sitk  # noqa: N813  the name its own documentation uses

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        message = f"the file '{path}' is damaged or cannot be read: {_short(error)}"
        raise InputError(message) from error
    _three_axes(path, reader.GetSize())
    if reader.GetNumberOfComponents() != 1:
        count = reader.GetNumberOfComponents()
        message = f"the file '{path}' holds {count} numbers a voxel; 1 is expected"
        raise InputError(message)
    return reader


def _read_itk_grid(path: Path) -> Volume:
    reader = _itk_reader(path)
    affine = _itk_affine(path, reader)
    import SimpleITK as sitk  # noqa: N813  the name its own documentation uses

    dtype = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
    return Volume(np.broadcast_to(np.zeros((), dtype), _three_axes(path, reader.GetSize())), affine)


def _read_itk(path: Path) -> Volume:
    import SimpleITK as sitk  # noqa: N813  the name its own documentation uses

    reader = _itk_reader(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        message = f"the file '{path}' is damaged or cannot be read: {_short(error)}"
        raise InputError(message) from error
    if image.GetDimension() == 4:
        image = image[:, :, :, 0]
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    if array.dtype.kind not in "iuf":
        message = f"the file '{path}' holds {array.dtype} voxels; one real number a voxel is expected"
        raise InputError(message)
    return Volume(array, _itk_affine(path, image))


def _itk_affine(path: Path, source: Any) -> NDArray[np.float64]:
    """Of an ITK image or reader; of four axes, the last of length 1, the first three count."""
    num_axes = source.GetDimension()
    affine = np.eye(4)
    direction = np.array(source.GetDirection()).reshape(num_axes, num_axes)[:3, :3]
    affine[:3, :3] = direction * np.array(source.GetSpacing()[:3])
    affine[:3, 3] = source.GetOrigin()[:3]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's world is LPS
    _check_affine(path, affine)
    return affine


def _known_ending(path: Path) -> str:
    """The ending of a file that is there and has one that can be read."""
    ending = _ending(path.name)
    if not ending:
        message = f"'{path}' is not an image that can be read; endings known: {', '.join(IMAGE_ENDINGS)}"
        raise InputError(message)
    if not path.is_file():
        message = f"the file '{path}' does not exist" if not path.exists() else f"'{path}' is not a file"
        raise InputError(message)
    return ending


def _ending(name: str) -> str:
    lower = name.lower()
    for ending in IMAGE_ENDINGS:
        if lower.endswith(ending) and len(lower) > len(ending):
            return ending
    return ""


def _triple(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in values) + ")"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
