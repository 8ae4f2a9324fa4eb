"""What a dataset is like: its grids, its intensities and its lesions, measured case by case."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.fusion import majority
from medfocal.annotations.target import as_marks
from medfocal.components import Components, find_components
from medfocal.components.boxes import box_of_mask
from medfocal.data.cases import classes_of, empty_grid, read_annotations, read_case
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.errors import DatasetError, InputError
from medfocal.files import write_json
from medfocal.parallel import in_processes
from medfocal.progress import track
from medfocal.volume import Volume, read_grid, read_labels

#: Percentiles of intensities that are kept.
PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)

#: Of a channel with values below this and nothing but air there, values are Hounsfield units.
AIR_HU = -200.0
#: What is denser than this is no air.
BODY_HU = -500.0

#: Around a lesion, tissue to compare it with; at least one voxel wide along every axis.
SHELL_MM = 3.0
#: A standard deviation of fewer voxels says nothing.
LEAST_SHELL_VOXELS = 8

#: Splits that are measured. Nothing that is chosen for training may depend on the test cases.
MEASURED = ("training", "validation")


@dataclass(frozen=True)
class LesionFingerprint:
    """One lesion: a 26-connected part of all lesion classes together.

    Attributes:
        num_voxels: On its own grid.
        volume_mm3: Its volume.
        diameter_mm: Of the sphere of the same volume.
        extent_mm: Of the box around it, along R, A and S.
        contrast: Of each channel: mean inside minus mean of the shell around it, in standard deviations of the shell;
            None where the shell has fewer than `LEAST_SHELL_VOXELS` voxels or no spread. Empty without images.
    """

    num_voxels: int
    volume_mm3: float
    diameter_mm: float
    extent_mm: tuple[float, float, float]
    contrast: tuple[float | None, ...]


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensities of one channel of one case.

    Attributes:
        body: `PERCENTILES` inside the body.
        lesions: The same inside lesions, None without any.
        lowest: Of all voxels.
        highest: Of all voxels.
        zero_share: Of all voxels that are exactly 0.
        is_integral: Whether all values are whole.
        clipped_lesion_share: Of the lesion voxels, those outside percentiles 0.5 to 99.5 of all voxels; None without
            lesions.
    """

    body: tuple[float, ...]
    lesions: tuple[float, ...] | None
    lowest: float
    highest: float
    zero_share: float
    is_integral: bool
    clipped_lesion_share: float | None

    @property
    def is_hounsfield(self) -> bool:
        """Whether the values look like those of a CT: air, which no other modality has below 0 so far."""
        return self.lowest < AIR_HU and self.is_integral


@dataclass(frozen=True)
class CaseFingerprint:
    """One case.

    Attributes:
        case: Its name.
        patient: Of the case.
        split: "training" or "validation".
        shape: Voxels along the file's axes.
        spacing_mm: Along the file's axes.
        orientation: Nearest direction of each axis of the file, such as "LPS".
        body_shape: Voxels of the box around the body, along the file's axes; the whole shape without images.
        body_share: Of the voxels inside the body, None without images.
        channels: Intensities; empty without images.
        class_voxels: Lesion class to number of voxels; classes that do not occur have 0.
        lesions: Every one.
        has_label: Whether that is what was measured; else what most readers marked.
    """

    case: str
    patient: str
    split: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    body_shape: tuple[int, int, int]
    body_share: float | None
    channels: tuple[ChannelFingerprint, ...]
    class_voxels: dict[int, int]
    lesions: tuple[LesionFingerprint, ...]
    has_label: bool = True

    @property
    def lesion_share(self) -> float:
        """Share of the voxels that are lesion."""
        return sum(self.class_voxels.values()) / float(np.prod(self.shape))

    def along(self, orientation: str, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Values of the file's axes in the order of the axes of an orientation."""
        order = _order(self.orientation, orientation)
        first, second, third = (values[axis] for axis in order)
        return first, second, third


@dataclass(frozen=True)
class Fingerprint:
    """A dataset.

    Attributes:
        dataset: The file or folder.
        name: Of the dataset.
        channels: Their names.
        labels: Number to name of what a model tells apart: 0, the background, then regions or lesion classes.
        num_readers: Most annotations that a case has.
        cases: Those measured.
        regions: Name to the classes that it consists of, where regions are learnt; empty: classes are.
    """

    dataset: Path
    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    num_readers: int
    cases: tuple[CaseFingerprint, ...]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def has_images(self) -> bool:
        """Whether every case has images."""
        return all(case.channels for case in self.cases)

    @property
    def label_voxels(self) -> dict[str, int]:
        """Name of a lesion class or a region to its voxels in all cases; regions may share them."""
        classes = self.regions or {name: (number,) for number, name in self.labels.items() if number}
        return {
            name: sum(case.class_voxels[number] for case in self.cases for number in own)
            for name, own in classes.items()
        }

    @property
    def lesions(self) -> tuple[LesionFingerprint, ...]:
        """Of all cases."""
        return tuple(lesion for case in self.cases for lesion in case.lesions)

    @property
    def num_free_cases(self) -> int:
        """Cases without a lesion."""
        return sum(not case.lesions for case in self.cases)

    @property
    def lesion_share(self) -> float:
        """Share of all voxels of all cases that are lesion."""
        voxels = sum(float(np.prod(case.shape)) for case in self.cases)
        return sum(sum(case.class_voxels.values()) for case in self.cases) / voxels

    @property
    def patients_with_lesions(self) -> frozenset[str]:
        """Names of the patients who have one."""
        return frozenset(case.patient for case in self.cases if case.lesions)


def measure_dataset(manifest: Manifest, *, workers: int = 1) -> Fingerprint:
    """Read every training and validation case, in parallel and with progress, and measure it.

    Args:
        manifest: The dataset; cases may be without images.
        workers: Processes.

    Returns:
        The fingerprint; test cases are not looked at.

    Raises:
        DatasetError: There is no such case, or some cannot be read (all are named).
        ResourceError: A process was ended.
    """
    cases = [case for case in manifest.cases if case.split in MEASURED and case.is_annotated]
    if not cases:
        message = f"'{manifest.path}' has no training or validation case with a label or annotations to measure"
        raise DatasetError(message)
    measure = functools.partial(_measure_or_tell, scheme=manifest.scheme)
    with in_processes(measure, cases, workers, what="measured cases", name=attrgetter("name")) as answers:
        found = list(track(answers, "measure", len(cases)))
    faults = [answer for answer in found if isinstance(answer, str)]
    if faults:
        more = f"\n  … and {len(faults) - 10} more" if len(faults) > 10 else ""
        listed = "".join(f"\n  - {fault}" for fault in faults[:10]) + more
        message = (
            f"{len(faults)} of {len(cases)} cases of '{manifest.path}' cannot be measured:{listed}\n"
            "    medfocal check names everything that is wrong with a dataset."
        )
        raise DatasetError(message)
    return Fingerprint(
        dataset=manifest.path,
        name=manifest.name,
        channels=manifest.channels,
        labels=manifest.scheme.learnt,
        num_readers=max(len(case.annotations) for case in cases),
        cases=tuple(answer for answer in found if isinstance(answer, CaseFingerprint)),
        regions=manifest.scheme.regions,
    )


def _measure_or_tell(case: Case, *, scheme: LabelScheme) -> CaseFingerprint | str:
    try:
        return measure_case(case, scheme)
    except InputError as error:
        return str(error)


def measure_case(case: Case, scheme: LabelScheme) -> CaseFingerprint:
    """Measure one case.

    Where it has no label, what most of its readers marked stands for it.

    Args:
        case: With a label or annotations, with or without images.
        scheme: What label values mean.

    Raises:
        InputError: A file cannot be read, or files do not belong together.
    """
    image, grid, label = _read(case, scheme)
    body = None if image is None else find_body(image)
    box = None if body is None else box_of_mask(body)
    body_shape = grid.shape if box is None else _triple(part.stop - part.start for part in box)
    lesions = find_components(label > 0, grid.affine)
    counts = np.bincount(label.ravel(), minlength=scheme.num_classes)
    return CaseFingerprint(
        case=case.name,
        patient=case.patient,
        split=case.split,
        shape=grid.shape,
        spacing_mm=_triple(round(float(s), 6) for s in grid.spacing_mm),
        orientation="".join(grid.axis_codes),
        body_shape=body_shape,
        body_share=None if body is None else float(body.mean()),
        channels=() if image is None or body is None else tuple(_channel(values, body, label > 0) for values in image),
        class_voxels={number: int(counts[number]) for number in sorted(scheme.names) if number},
        lesions=_measure_lesions(lesions, image, grid, body),
        has_label=case.label is not None,
    )


def _read(case: Case, scheme: LabelScheme) -> tuple[NDArray[np.float32] | None, Volume, NDArray[np.integer[Any]]]:
    """Image or None, grid, and classes."""
    if case.images:
        volumes = read_case(case, scheme, with_readers=case.label is None)
        if volumes.label is not None:
            return volumes.image, volumes.grid, volumes.label
        assert volumes.readers is not None, "the case is annotated"
        return volumes.image, volumes.grid, majority(as_marks(volumes.readers), num_classes=scheme.num_classes)
    where = f"case '{case.name}'"
    try:
        if case.label is not None:
            volume = read_labels(case.label)
            classes, _ = classes_of(volume.array, scheme, f"{where}: the label '{case.label}'")
            return None, empty_grid(volume), classes
        grid = empty_grid(read_grid(case.annotations[0]))
    except InputError as error:
        message = str(error) if str(error).startswith(where) else f"{where}: {error}"
        raise type(error)(message) from error
    readers, _ = read_annotations(replace(case, images=case.annotations[:1]), grid, scheme)
    return None, grid, majority(as_marks(readers), num_classes=scheme.num_classes)


def find_body(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Voxels of the body: of a CT what is no air; else where some channel is not 0, or above its lowest without zeros.

    Args:
        image: `(C, I, J, K)`, not scaled.

    Returns:
        Bool `(I, J, K)`; everything where the rule finds nothing.
    """
    of_channels = [_body_of(values) for values in image]
    body: NDArray[np.bool_] = np.logical_or.reduce(of_channels)
    return body if body.any() else np.ones_like(body)


def _body_of(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    lowest = values.min()
    if lowest < AIR_HU and _is_integral(values):
        return np.asarray(values > BODY_HU)
    return np.asarray(values != 0 if (values == 0).any() else values > lowest)


def _channel(values: NDArray[np.float32], body: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> ChannelFingerprint:
    inside = values[lesion]
    low, high = np.percentile(values, (PERCENTILES[0], PERCENTILES[-1]))
    return ChannelFingerprint(
        body=_percentiles(values[body]),
        lesions=_percentiles(inside) if inside.size else None,
        lowest=float(values.min()),
        highest=float(values.max()),
        zero_share=float((values == 0).mean()),
        is_integral=_is_integral(values),
        clipped_lesion_share=float(((inside < low) | (inside > high)).mean()) if inside.size else None,
    )


def _is_integral(values: NDArray[np.float32]) -> bool:
    return bool((values == np.rint(values)).all())


def _percentiles(values: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, PERCENTILES))


def _measure_lesions(
    lesions: Components, image: NDArray[np.float32] | None, grid: Volume, body: NDArray[np.bool_] | None
) -> tuple[LesionFingerprint, ...]:
    order = _order("".join(grid.axis_codes), "RAS")
    voxels = np.split(lesions.voxels[np.argsort(lesions.part, kind="stable")], np.cumsum(lesions.num_voxels)[:-1])
    is_any = np.zeros(grid.shape, bool)
    is_any.reshape(-1)[lesions.voxels] = True
    found = []
    for row in range(len(lesions)):
        box = lesions.bounding_box[row]
        extent = (box[:, 1] - box[:, 0]) * np.array(grid.spacing_mm)
        contrast: tuple[float | None, ...] = ()
        if image is not None and body is not None:
            contrast = _contrasts(voxels[row], box, is_any, image, grid, body)
        found.append(
            LesionFingerprint(
                num_voxels=int(lesions.num_voxels[row]),
                volume_mm3=float(lesions.volume_ml[row] * 1000),
                diameter_mm=float(lesions.equivalent_diameter_mm[row]),
                extent_mm=_triple(float(extent[axis]) for axis in order),
                contrast=contrast,
            )
        )
    return tuple(found)


def _contrasts(
    voxels: NDArray[np.int64],
    box: NDArray[np.int64],
    is_any: NDArray[np.bool_],
    image: NDArray[np.float32],
    grid: Volume,
    body: NDArray[np.bool_],
) -> tuple[float | None, ...]:
    """Of each channel, of one lesion; other lesions are no part of the shell."""
    from scipy import ndimage

    spacing = np.array(grid.spacing_mm)
    reach = np.maximum(np.ceil(SHELL_MM / spacing), 1).astype(int)
    low = np.maximum(box[:, 0] - reach, 0)
    cut = tuple(slice(a, b) for a, b in zip(low, np.minimum(box[:, 1] + reach, grid.shape), strict=True))
    own = np.zeros(tuple(part.stop - part.start for part in cut), bool)
    own[tuple(index - start for index, start in zip(np.unravel_index(voxels, grid.shape), low, strict=True))] = True
    away_mm = ndimage.distance_transform_edt(~own, sampling=spacing)
    # A voxel that touches a face belongs to it, however far its centre is.
    near = (away_mm <= SHELL_MM) | ndimage.binary_dilation(own)
    shell = near & ~is_any[cut] & body[cut]
    if np.count_nonzero(shell) < LEAST_SHELL_VOXELS:
        return (None,) * len(image)
    contrasts: list[float | None] = []
    for values in image:
        part = values[cut].astype(np.float64)
        spread = float(part[shell].std())
        contrasts.append(float((part[own].mean() - part[shell].mean()) / spread) if spread > 0 else None)
    return tuple(contrasts)


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write `fingerprint.json`: the dataset, a summary, and every case with its lesions."""
    write_json(
        path,
        {
            "dataset": fingerprint.dataset,
            "name": fingerprint.name,
            "channels": fingerprint.channels,
            "labels": fingerprint.labels,
            "regions": fingerprint.regions,
            "percentiles": PERCENTILES,
            "summary": summarize(fingerprint),
            "cases": [_plain_case(case) for case in fingerprint.cases],
        },
    )


def summarize(fingerprint: Fingerprint) -> dict[str, Any]:
    """Figures over all cases; None where there is nothing to take them of."""
    cases, lesions = fingerprint.cases, fingerprint.lesions
    edges = (10.0, 50.0, 90.0)
    contrasts = [
        [lesion.contrast[number] for lesion in lesions if lesion.contrast and lesion.contrast[number] is not None]
        for number in range(len(fingerprint.channels) if fingerprint.has_images else 0)
    ]
    shares = [case.lesion_share for case in cases if case.lesions]
    return {
        "num_cases": len(cases),
        "num_patients": len({case.patient for case in cases}),
        "num_free_cases": fingerprint.num_free_cases,
        "num_lesions": len(lesions),
        "num_one_voxel_lesions": sum(lesion.num_voxels == 1 for lesion in lesions),
        "lesion_share_of_voxels": fingerprint.lesion_share,
        "lesion_share_of_cases_with_lesions": _spread(shares, (0.0, 50.0, 100.0)),
        "lesion_volume_mm3": _spread([lesion.volume_mm3 for lesion in lesions], edges),
        "lesion_diameter_mm": _spread([lesion.diameter_mm for lesion in lesions], edges),
        "lesion_contrast": {
            name: _spread(values, edges)
            for name, values in zip(fingerprint.channels, contrasts, strict=fingerprint.has_images)
        },
        "label_voxels": fingerprint.label_voxels,
        "body_shape": [int(n) for n in np.median([case.along("RAS", case.body_shape) for case in cases], axis=0)],
    }


def _spread(values: Sequence[float | None], percentiles: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(np.array(values, float), percentiles)
    return {f"p{edge:g}": float(value) for edge, value in zip(percentiles, found, strict=True)}


def _plain_case(case: CaseFingerprint) -> dict[str, Any]:
    return {
        **{name: value for name, value in vars(case).items() if name not in {"channels", "lesions"}},
        "lesion_share": case.lesion_share,
        "channels": [vars(channel) for channel in case.channels],
        "lesions": [vars(lesion) for lesion in case.lesions],
    }


def _order(of: str, wanted: str) -> tuple[int, ...]:
    """For each letter of the wanted orientation, the axis of the other one that runs along it, either way."""
    line = {letter: pair for pair in ("LR", "PA", "IS") for letter in pair}
    lines = [line[letter] for letter in of]
    return tuple(lines.index(line[letter]) for letter in wanted)


def _triple(values: Any) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third
