"""Training cases and cases to validate on, in arrays that may be mapped from the cache.

Patches are cut out of these; nothing here is read as a whole during a training. A case's arrays lie in three kinds of
entries, so that trainings that differ in one share the others: `image` (what the network sees), `target` (what is
taught, and the table of lesions) and `reference` (what a validation judges by, on the case's own grid).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.confusion import MarkCounts
from medfocal.annotations.target import AnnotationSettings, Smoothing, Target, as_marks
from medfocal.components import find_components
from medfocal.data.cache import Cache, Entry, Writer, digest, file_digest
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.resampling import map_to_spacing
from medfocal.data.transforms import AXIS_LETTERS, Intensity, PreparedCase, Preprocessing
from medfocal.errors import DatasetError, InputError, ResourceError
from medfocal.volume import GRID_TOLERANCE_MM, PAIR_ENDINGS, Volume, read_grid, read_volume, spacing_of

#: Share of the voxels on the faces of a volume from which 0 is its background.
COMMON = 0.01
#: Largest value of half precision but one, so that each has a next; what lies above 65504 would become infinite.
LARGEST_HALF = 65472.0
#: What the arrays of an entry depend on beside its inputs and settings.
MADE_BY = ("medfocal", "numpy", "scipy", "monai", "nibabel", "SimpleITK", "connected-components-3d")


class Precision(StrEnum):
    """How images are stored.

    float16 keeps three digits, which is plenty for scaled intensities, in half of the memory; auto takes it where
    intensities are scaled, and float32 where they are as they come.
    """

    AUTO = "auto"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    def dtype(self, intensity: Intensity) -> np.dtype[Any]:
        """What an image of such intensities is stored as."""
        if self is Precision.AUTO:
            return np.dtype(np.float32 if intensity is Intensity.NONE else np.float16)
        return np.dtype(str(self))


@dataclass(frozen=True, eq=False)
class LesionTable:
    """The lesions of one case, 26-connected, on the network's grid; row `n` is lesion `n`, from 0.

    Attributes:
        shape: Of the volume.
        num_voxels: int64 (n,).
        volume_ml: (n,).
        low: First index of its box, int64 (n, 3).
        high: The index after the last, int64 (n, 3).
        bounds: Lesion `n` has the voxels `bounds[n]` to `bounds[n + 1]`, int64 (n + 1,).
        voxels: Flat C-order indices of all voxels of all lesions, lesion by lesion; none is left out.
    """

    shape: tuple[int, int, int]
    num_voxels: NDArray[np.int64]
    volume_ml: NDArray[np.float64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    bounds: NDArray[np.int64]
    voxels: NDArray[Any]

    def __len__(self) -> int:
        """Number of lesions."""
        return len(self.num_voxels)

    def voxel(self, lesion: int, place: int) -> tuple[int, int, int]:
        """Index of the voxel at a place from 0 within a lesion."""
        i, j, k = np.unravel_index(int(self.voxels[self.bounds[lesion] + place]), self.shape)
        return int(i), int(j), int(k)


def lesion_table(lesions: NDArray[np.uint8], affine: NDArray[np.float64]) -> LesionTable:
    """Find the lesions of classes `(I, J, K)`, 0 the background."""
    found = find_components(lesions > 0, affine)
    voxels = found.voxels[np.argsort(found.part, kind="stable")]
    i, j, k = lesions.shape
    return LesionTable(
        shape=(i, j, k),
        num_voxels=found.num_voxels,
        volume_ml=found.volume_ml,
        low=found.bounding_box[:, :, 0],
        high=found.bounding_box[:, :, 1],
        bounds=np.concatenate([[0], np.cumsum(found.num_voxels)]).astype(np.int64),
        voxels=voxels.astype(np.uint32 if lesions.size < 1 << 32 else np.int64),
    )


@dataclass(frozen=True)
class ReaderFacts:
    """What a set of training cases is told of the readers of one.

    Attributes:
        num_readers: 0 where the case has no annotations, or none are used.
        gave_shares: Whether they gave shares of the lesion.
        counts: Voxels by pattern of marks, for estimating the readers' error rates.
    """

    num_readers: int = 0
    gave_shares: bool = False
    counts: MarkCounts = field(default_factory=MarkCounts)


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A case to cut patches from, on the network's grid.

    Attributes:
        case: Names and files.
        image: float16 or float32 `(C, I, J, K)`.
        background: Value of each channel outside of the body, `(C,)`: a voxel is of the body where a channel differs.
        body_low: First index of the body's box, `(3,)`.
        body_high: The index after the last.
        affine: Of the grid, `(4, 4)`.
        target: What is taught; its arrays may be mapped too. Where its only alternative is its lesions, both are one.
        table: Its lesions.
        readers: What is known of its readers.
    """

    case: Case
    image: NDArray[Any]
    background: NDArray[np.float32]
    body_low: NDArray[np.int64]
    body_high: NDArray[np.int64]
    affine: NDArray[np.float64]
    target: Target
    table: LesionTable
    readers: ReaderFacts = ReaderFacts()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels `(I, J, K)`."""
        return self.table.shape

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Of the three axes."""
        return spacing_of(self.affine)


def training_case(prepared: PreparedCase, target: Target, precision: Precision = Precision.FLOAT32) -> TrainingCase:
    """Hold a prepared case with its target in memory as it would come from the cache."""
    image, background = stored_image(prepared.image.numpy(), np.dtype(str(precision)))
    low, high = _body_box(image, background, prepared.case.name)
    return TrainingCase(
        case=prepared.case,
        image=image,
        background=background,
        body_low=low,
        body_high=high,
        affine=prepared.affine,
        target=target,
        table=lesion_table(target.lesions, prepared.affine),
        readers=_facts(prepared),
    )


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """A case to validate on.

    Attributes:
        case: Names and files.
        image: As that of `TrainingCase`.
        affine: Of the network's grid.
        grid: The case's own grid.
        reference: Classes on the case's own grid, integers `(I, J, K)`.
        ignore: Where nothing is right or wrong, bool on that grid, or None.
    """

    case: Case
    image: NDArray[Any]
    affine: NDArray[np.float64]
    grid: Volume
    reference: NDArray[Any]
    ignore: NDArray[np.bool_] | None

    def prepared(self) -> PreparedCase:
        """The case as prediction takes it, in memory."""
        import torch

        image = torch.from_numpy(np.array(self.image)).float()
        return PreparedCase(self.case, image, self.affine, None, self.grid, np.asarray(self.reference, np.int16))


def stored_image(
    image: NDArray[np.float32], dtype: np.dtype[Any], name: str = ""
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """An image in the precision that it is stored in, and each channel's value outside of the body.

    Background is 0 where 0 is common on the faces of the volume (as in skull-stripped MR; a CT has a few zeros in
    water), else each channel's lowest value. A voxel of the body that rounding would make equal to the background in
    every channel is moved to the next number, so that the body stays what it was.

    Args:
        image: `(C, I, J, K)`, finite.
        dtype: float16 or float32.
        name: The case, for messages.

    Raises:
        DatasetError: A value is too large for half precision.
    """
    background = np.zeros(len(image), np.float32)
    faces = [np.take(image, side, axis=axis).reshape(len(image), -1) for axis in (1, 2, 3) for side in (0, -1)]
    if np.mean((np.concatenate(faces, axis=1) == 0).all(axis=0)) < COMMON:
        background = image.reshape(len(image), -1).min(axis=1)
    if dtype == np.float32:
        return image, background
    if np.abs(image).max() > LARGEST_HALF:
        message = (
            f"case '{name}': values up to {np.abs(image).max():g} do not fit half precision, which ends at "
            f"{LARGEST_HALF:g}. Set cache.dtype=float32, or scale intensities (transforms.intensity)."
        )
        raise DatasetError(message)
    column = (slice(None), None, None, None)
    half = image.astype(np.float16)
    rounded = background.astype(np.float16)
    lost = (half == rounded[column]).all(axis=0) & (image != background[column]).any(axis=0)
    if lost.any():
        away = np.where(image[0, lost] < background[0], -np.inf, np.inf).astype(np.float16)
        half[0, lost] = np.nextafter(half[0, lost], away)
    return half, rounded.astype(np.float32)


def body_of(image: NDArray[Any], background: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which voxels of a stored image, or a patch of one, are of the body, bool `(I, J, K)`."""
    level = background.astype(image.dtype)
    inside: NDArray[np.bool_] = image[0] != level[0]
    for channel, value in zip(image[1:], level[1:], strict=True):
        inside |= channel != value
    return inside


def _body_box(
    image: NDArray[Any], background: NDArray[np.float32], name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    body = body_of(image, background)
    if not body.any():
        message = (
            f"case '{name}': nothing is left of the image once its intensities are scaled: all voxels have one value. "
            "Was the right file exported, and does transforms.intensity suit it?"
        )
        raise DatasetError(message)
    sides = [np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low, high = [side[0] for side in sides], [side[-1] + 1 for side in sides]
    return np.array(low, np.int64), np.array(high, np.int64)


def _facts(prepared: PreparedCase) -> ReaderFacts:
    if prepared.readers is None:
        return ReaderFacts()
    counts = MarkCounts()
    counts.add(as_marks(prepared.readers))
    return ReaderFacts(len(prepared.readers), prepared.readers.dtype.kind == "f", counts)


@dataclass(frozen=True)
class Keys:
    """Which entries hold a case.

    Attributes:
        image: Of the images under a preprocessing.
        target: Of what it teaches; None where it is not trained on.
        reference: Of what a validation judges by; None where there is none.
    """

    image: str
    target: str | None = None
    reference: str | None = None


def _content(case: Case, path: Path) -> str:
    """Digest of a file of a case, and of those beside it that hold its voxels or its grid.

    Raises:
        InputError: One cannot be read; the case is named.
    """
    try:
        suffix = path.suffix.lower()
        if suffix in PAIR_ENDINGS:
            return digest(pair=[file_digest(path.with_suffix(ending)) for ending in PAIR_ENDINGS])
        if suffix == ".mhd" or (suffix in {".mha", ".nrrd"} and _names_other_files(path)):
            voxels = np.ascontiguousarray(read_volume(path).array)
            return digest(header=file_digest(path), voxels=hashlib.sha256(voxels.data).hexdigest())
        return file_digest(path)
    except InputError as error:
        message = f"case '{case.name}': {error}"
        raise type(error)(message) from error


def _names_other_files(path: Path) -> bool:
    """Whether the voxels of a NRRD or MHA file lie elsewhere; a NRRD header ends with an empty line."""
    try:
        with path.open("rb") as file:
            lines = (line.lower().replace(b" ", b"").strip() for line in iter(file.readline, b""))
            if path.suffix.lower() == ".mha":
                found = next((line for line in lines if line.startswith(b"elementdatafile=")), b"")
                return found != b"elementdatafile=local"
            return any(line.startswith(b"datafile:") for line in itertools.takewhile(bool, lines))
    except OSError as error:
        message = f"the file '{path}' cannot be read: {error.strerror or error}"
        raise InputError(message) from error


def image_key(case: Case, preprocessing: Preprocessing, dtype: np.dtype[Any]) -> str:
    """Key of the images of a case, from the contents of its files."""
    return digest(
        images=[_content(case, path) for path in case.images],
        preprocessing=preprocessing.to_dict(),
        dtype=str(dtype),
        resample_channels=case.resample_channels,
        made_by=_made_by(),
    )


@functools.cache
def _made_by() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in MADE_BY}


def target_key(
    image: str,
    case: Case,
    scheme: LabelScheme,
    settings: AnnotationSettings,
    smoothing: Smoothing,
    weight: Path | None,
) -> str:
    """Key of what a case teaches."""
    return digest(
        image=image,
        label=None if case.label is None else _content(case, case.label),
        annotations=[_content(case, path) for path in case.annotations] if settings.uses_readers else [],
        weight=None if weight is None else _content(case, weight),
        scheme=_meaning(scheme),
        fusion=settings.fusion,
        disagreement=settings.disagreement,
        smoothing={"name": type(smoothing).__name__, **asdict(smoothing)},  # type: ignore[call-overload]  # each is a dataclass
    )


def reference_key(case: Case, scheme: LabelScheme, fusion: str) -> str:
    """Key of what a validation judges a case by; it lies on the grid of the first image."""
    return digest(
        grid=_content(case, case.images[0]),
        label=None if case.label is None else _content(case, case.label),
        annotations=[] if case.label is not None else [_content(case, path) for path in case.annotations],
        scheme=_meaning(scheme),
        fusion=fusion,
        made_by=_made_by(),
    )


def _meaning(scheme: LabelScheme) -> dict[str, Any]:
    values = None if scheme.values is None else sorted(scheme.values.items())
    return {"num_classes": scheme.num_classes, "values": values, "ignore_value": scheme.ignore_value}


def store_image(writer: Writer, prepared: PreparedCase, dtype: np.dtype[Any]) -> Mapping[str, Any]:
    """Write the entry of a case's images."""
    image, background = stored_image(prepared.image.numpy(), dtype, prepared.case.name)
    low, high = _body_box(image, background, prepared.case.name)
    writer.add("image", image)
    return {"affine": prepared.affine, "background": background, "body_low": low, "body_high": high}


def store_target(writer: Writer, prepared: PreparedCase, target: Target) -> Mapping[str, Any]:
    """Write the entry of what a case teaches."""
    table = lesion_table(target.lesions, prepared.affine)
    writer.add("lesions", target.lesions)
    is_label = len(target.alternatives) == 1 and target.alternatives[0] is target.lesions
    alternatives = () if is_label else target.alternatives
    for number, array in enumerate(alternatives):
        writer.add(f"target_{number}", array)
    if target.weight is not None:
        weight = target.weight
        is_binary = bool(((weight == 0) | (weight == 1)).all())
        writer.add("weight", weight.astype(np.uint8) if is_binary else weight)
    writer.add("voxels", table.voxels)
    facts = _facts(prepared)
    return {
        "num_alternatives": len(alternatives),
        "has_weight": target.weight is not None,
        "record": {name: value for name, value in target.record.items() if name != "case"},
        "shape": table.shape,
        "table": {name: getattr(table, name) for name in ("num_voxels", "volume_ml", "low", "high")},
        "readers": {
            "num_readers": facts.num_readers,
            "gave_shares": facts.gave_shares,
            "counts": [[list(pattern), count] for pattern, count in sorted(facts.counts.voxels.items())],
        },
    }


def store_reference(
    writer: Writer, grid: Volume, reference: NDArray[Any], ignore: NDArray[np.bool_] | None
) -> Mapping[str, Any]:
    """Write the entry of what a validation judges by."""
    writer.add("reference", reference.astype(np.uint8))
    if ignore is not None:
        writer.add("ignore", ignore)
    return {"affine": grid.affine, "has_ignore": ignore is not None}


def open_training(case: Case, image: Entry, target: Entry) -> TrainingCase:
    """A training case from its entries.

    Raises:
        ResourceError: They hold something else.
    """
    with _only_ours(image, target):
        found = _training_of(case, image, target)
        shape, table = found.shape, found.table
        shapes = {tuple(a.shape[-3:]) for a in (found.image, found.target.lesions, *found.target.alternatives)}
        fits = shapes == {shape} and len(table.voxels) == table.bounds[-1]
        if not fits or (len(table.voxels) and int(table.voxels.max()) >= math.prod(shape)):
            message = f"arrays of {shapes} voxels and a table of {len(table)} lesions in {shape}"
            raise ValueError(message)
    return found


@contextlib.contextmanager
def _only_ours(*entries: Entry) -> Iterator[None]:
    """Tell what an entry lacks that was not written by `store_…`, though its checksum fits."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        folders = " or ".join(f"'{entry.folder}'" for entry in entries)
        message = (
            f"the cache entry {folders} is not as medfocal writes it: {error!r}. Delete it, so that it is made anew."
        )
        raise ResourceError(message) from error


def _training_of(case: Case, image: Entry, target: Entry) -> TrainingCase:
    record, taught = image.record, target.record
    lesions = target.array("lesions")
    alternatives = tuple(target.array(f"target_{number}") for number in range(taught["num_alternatives"]))
    columns = taught["table"]
    num_voxels = np.array(columns["num_voxels"], np.int64)
    i, j, k = taught["shape"]
    table = LesionTable(
        shape=(i, j, k),
        num_voxels=num_voxels,
        volume_ml=np.array(columns["volume_ml"], np.float64),
        low=np.array(columns["low"], np.int64).reshape(-1, 3),
        high=np.array(columns["high"], np.int64).reshape(-1, 3),
        bounds=np.concatenate([[0], np.cumsum(num_voxels)]).astype(np.int64),
        voxels=target.array("voxels"),
    )
    counts = MarkCounts()
    counts.voxels.update({tuple(pattern): count for pattern, count in taught["readers"]["counts"]})
    facts = ReaderFacts(taught["readers"]["num_readers"], taught["readers"]["gave_shares"], counts)
    return TrainingCase(
        case=case,
        image=image.array("image"),
        background=np.array(record["background"], np.float32),
        body_low=np.array(record["body_low"], np.int64),
        body_high=np.array(record["body_high"], np.int64),
        affine=np.array(record["affine"], np.float64),
        target=Target(
            lesions,
            alternatives or (lesions,),
            target.array("weight") if taught["has_weight"] else None,
            # The name is this training's: the same files may be listed under another.
            dict(taught["record"]) | {"case": case.name},
        ),
        table=table,
        readers=facts,
    )


def open_evaluation(case: Case, image: Entry, reference: Entry) -> EvaluationCase:
    """A case to validate on from its entries.

    Raises:
        ResourceError: They hold something else.
    """
    with _only_ours(image, reference):
        return _evaluation_of(case, image, reference)


def _evaluation_of(case: Case, image: Entry, reference: Entry) -> EvaluationCase:
    drawn = reference.array("reference")
    affine = np.array(reference.record["affine"], np.float64)
    return EvaluationCase(
        case=case,
        image=image.array("image"),
        affine=np.array(image.record["affine"], np.float64),
        grid=Volume(np.broadcast_to(np.uint8(0), drawn.shape), affine),
        reference=drawn,
        ignore=reference.array("ignore") if reference.record["has_ignore"] else None,
    )


def estimated_bytes(
    case: Case, preprocessing: Preprocessing, dtype: np.dtype[Any], *, missing: Sequence[str], taught_bytes: int = 1
) -> float:
    """About what the missing entries of a case will take, from the headers of its files.

    Args:
        case: Its images are there.
        preprocessing: Says the spacing.
        dtype: Of images.
        missing: Kinds: "image", "target", "reference".
        taught_bytes: A voxel of what is taught.

    Raises:
        InputError: A header cannot be read; the case is named.
    """
    if not missing:
        return 0.0
    try:
        grid = read_grid(case.images[0])
    except InputError as error:
        message = f"case '{case.name}': {error}"
        raise type(error)(message) from error
    native = float(math.prod(grid.shape))
    network = float(math.prod(_prepared_shape(grid, preprocessing)))
    each = {
        "image": len(case.images) * dtype.itemsize * network,
        "target": taught_bytes * network,
        "reference": native,
    }
    return sum(each[kind] for kind in missing)


def _prepared_shape(grid: Volume, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Voxels along each axis that a case has after preprocessing, in the order of its own axes."""
    if preprocessing.spacing_mm is None:
        return grid.shape
    pair_of = {letter: pair for pair in AXIS_LETTERS for letter in pair}
    order = [pair_of[letter] for letter in preprocessing.orientation]
    spacing_mm = [preprocessing.spacing_mm[order.index(pair_of[letter])] for letter in grid.axis_codes]
    grids, _ = map_to_spacing(grid.shape, grid.affine, spacing_mm, tolerance_mm=GRID_TOLERANCE_MM)
    return grids.new_shape


def find_missing(cache: Cache, keys: Keys, *, verify: bool = True) -> list[str]:
    """Kinds of entries of a case that the cache does not hold."""
    wanted = {"image": keys.image, "target": keys.target, "reference": keys.reference}
    return [kind for kind, key in wanted.items() if key is not None and cache.find(kind, key, verify=verify) is None]
