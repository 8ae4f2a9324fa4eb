"""The volumes that the report's viewer shows, and its script, which an installed package brings: none of it is ours."""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
import importlib.util
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import InputError
from medfocal.files import make_folder
from medfocal.report.pictures import GREY_PERCENTILES, CaseImages, voxel_to_ras

PACKAGE = "ipyniivue"
FOLDER = "viewer"
SCRIPT = "widget.js"
LIMIT_MB = 24.0
#: Grey values that are not whole numbers are stored in so many steps.
GREY_STEPS = 4095
MASKS = ("reference", "predicted")


@dataclass(frozen=True)
class Library:
    """NiiVue as an installed package brings it.

    Attributes:
        script: An ES module whose default export is an anywidget.
        version: Of the package.
        licence: Its text, which has to go with every copy.
    """

    script: Path
    version: str
    licence: str


def find_library() -> Library | None:
    """Find the viewer's script among the installed packages, importing none; None without the extra `viewer`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    script = Path(spec.origin).parent / "static" / SCRIPT
    if not script.is_file():
        return None
    package = importlib.metadata.distribution(PACKAGE)
    return Library(script, package.version, package.read_text("licenses/LICENSE") or "")


@dataclass(frozen=True)
class Viewer:
    """The viewer as the page needs it.

    Attributes:
        settings: What viewer.js reads.
        blocks: Names and base64 texts that stand in the page; empty where the files lie beside it.
        version: Of the package that the script comes from.
        licence: Of the script.
    """

    settings: Mapping[str, Any]
    blocks: Sequence[tuple[str, str]]
    version: str
    licence: str

    @property
    def embedded(self) -> bool:
        """Whether the page holds the volumes and the script."""
        return bool(self.settings["embedded"])


@dataclass
class ViewerFiles:
    """Writes the volumes of one case after the other into a folder beside the page.

    A page with few of them holds them itself (`finish`). Used as a context: what is not finished is removed.

    Attributes:
        page: Of the report.
        library: Where the script comes from.
        cases: Names of the files of each case and the grey values that are shown black and white.
    """

    page: Path
    library: Library
    cases: list[dict[str, Any]] = field(default_factory=list)
    _partial: Path = field(init=False)

    def __enter__(self) -> Self:
        """Make a folder that will take its name once it is complete."""
        self._partial = Path(tempfile.mkdtemp(dir=make_folder(self.page.parent), prefix=f".{FOLDER}."))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what is not finished."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, images: CaseImages) -> int:
        """Write the volumes of a case.

        Returns:
            The number that the page knows the case by.
        """
        number = len(self.cases)
        # Numbers, since a case may have any name.
        names = {part: f"case-{number + 1:04d}-{part}.nii.gz" for part in ("image", *MASKS)}
        (self._partial / names["image"]).write_bytes(pack_image(images))
        for part in MASKS:
            (self._partial / names[part]).write_bytes(pack_mask(images, getattr(images, part)))
        self.cases.append({**names, "grey": _grey(images.image)})
        return number

    def finish(self, limit_mb: float) -> Viewer | None:
        """Take the files into the page if they are no more than `limit_mb` together, else leave them in the folder.

        Returns:
            What the page needs, or None if there is no case.

        Raises:
            InputError: The folder has a name that something else bears.
        """
        folder = self.page.parent / FOLDER
        if not self.cases:
            return None
        files = sorted(self._partial.iterdir())
        embedded = sum(file.stat().st_size for file in files) <= 1e6 * limit_mb
        blocks: list[tuple[str, str]] = []
        if embedded:
            blocks = [(file.name, _text(file.read_bytes())) for file in files]
            blocks.append((SCRIPT, _text(gzip.compress(self.library.script.read_bytes(), 9, mtime=0))))
        else:
            if folder.exists():
                message = f"'{folder}' is where the report's volumes go, and holds something else. Rename it."
                raise InputError(message)
            shutil.copyfile(self.library.script, self._partial / SCRIPT)
            (self._partial / "LICENSE").write_text(self.library.licence, encoding="utf-8")
            self._partial.chmod(self.page.parent.stat().st_mode & 0o777)
            self._partial.rename(folder)
        settings = {"embedded": embedded, "script": SCRIPT, "cases": self.cases}
        return Viewer(settings, blocks, self.library.version, self.library.licence)


def serve_command(folder: Path) -> str:
    """The command that lets a browser on this machine, and no other, read a report and the volumes beside it."""
    return f"python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(folder))} 8000"


def remove_volumes(folder: Path) -> None:
    """Remove the volumes of an earlier report beside a page: they would belong to other findings."""
    if (folder / FOLDER / SCRIPT).is_file():
        shutil.rmtree(folder / FOLDER)


def place_in_volume(images: CaseImages, voxel: Sequence[float]) -> tuple[float, float, float]:
    """Where a voxel coordinate lies along the axes to the right, anterior and superior, as shares of their lengths."""
    ras = voxel_to_ras(voxel, images.image.shape, images.axis_codes)
    lengths = [0, 0, 0]
    for axis, code in enumerate(images.axis_codes):
        lengths["RAS".index({"L": "R", "P": "A", "I": "S"}.get(code, code))] = images.image.shape[axis]
    return ((ras[0] + 0.5) / lengths[0], (ras[1] + 0.5) / lengths[1], (ras[2] + 0.5) / lengths[2])


def pack_image(images: CaseImages) -> bytes:
    """The image as a compressed NIfTI file of int16; other values than whole numbers in 4,096 steps."""
    values = images.image
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low >= -32768 and high <= 32767 and np.array_equal(values, np.rint(values)):
        return _nifti(images, values.astype("<i2"))
    slope = (high - low) / GREY_STEPS or 1.0
    return _nifti(images, np.rint((values - low) / slope).astype("<i2"), slope=slope, intercept=low)


def pack_mask(images: CaseImages, mask: NDArray[np.bool_]) -> bytes:
    """A mask on the grid of the image as a compressed NIfTI file."""
    return _nifti(images, mask.astype(np.uint8))


def _nifti(images: CaseImages, voxels: NDArray[Any], *, slope: float = 1.0, intercept: float = 0.0) -> bytes:
    import nibabel as nib

    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(_affine(images), code=1)
    header.set_zooms(images.spacing_mm)
    header.set_slope_inter(slope, intercept)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    # The fastest level: of the time it takes to read a case this is the larger part already.
    return gzip.compress(header.binaryblock + b"\0\0\0\0" + voxels.tobytes(order="F"), 1, mtime=0)


def _affine(images: CaseImages) -> NDArray[np.float64]:
    if images.affine is not None:
        return images.affine
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, (code, spacing) in enumerate(zip(images.axis_codes, images.spacing_mm, strict=True)):
        affine["RLAPSI".index(code) // 2, axis] = spacing if code in "RAS" else -spacing
    return affine


def _grey(image: NDArray[np.float32]) -> list[float]:
    """Grey values to show black and white; every second voxel along each axis tells them well enough."""
    low, high = np.percentile(image[::2, ::2, ::2], GREY_PERCENTILES)
    return [float(low), float(high if high > low else low + 1)]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
