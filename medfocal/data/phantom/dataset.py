"""A data set of phantoms on the disk: NIfTI files and `dataset.json`."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medfocal.annotations.corrupt import Corruption, NoCorruption
from medfocal.annotations.severity import Severity
from medfocal.data.corrupted import RECORD, corrupt_case, write_record
from medfocal.data.phantom.case import Phantom, make_phantom
from medfocal.data.phantom.geometry import Array
from medfocal.data.phantom.image import LOOKS, StoredImage
from medfocal.data.phantom.plan import SPLITS, CasePlan, plan_cases
from medfocal.files import atomic_write, write_json
from medfocal.progress import track

HIGHEST_PREVALENCE = 0.01
LEAST_FIELD_MM = 36.0
CORRUPTED_SPLIT = "training"


def write_phantoms(
    output: Path,
    *,
    num_cases: int,
    seed: int = 0,
    prevalence: float = 3e-4,
    lesion_free_share: float = 1 / 6,
    shape: tuple[int, int, int] = (64, 64, 48),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.5),
    channels: Sequence[str] = ("FLAIR",),
    corruption: Corruption | None = None,
) -> Path:
    """Write a data set of phantoms: images, labels, two readers' annotations, and `dataset.json` with the splits.

    The same arguments give the same voxels and headers. Half of the cases are for training, a sixth for validation, a
    third for testing; about every fifth patient has two studies, of one anatomy and in one split.

    Args:
        output: Folder, made if missing; files of the same name are replaced.
        num_cases: At least 3.
        seed: Of everything; 0 or more.
        prevalence: About the mean share of lesion voxels over the cases that have lesions; each case draws its
            own, log-uniform from a third to twice of it. At the default a case has 1 to 5 lesions of 1 to 3.5 mm
            radius; with the mean lesion volume v the number grows as v^(2/3), the radii as v^(1/9). Volumes that find
            no room are drawn anew, which lowers the mean from .005 on (by a fifth at .01, the highest allowed).
        lesion_free_share: Share of cases without lesions, rounded to whole cases and spread over the splits.
        shape: Voxels along each axis; the field must span 36 mm or more.
        spacing_mm: Voxel size.
        channels: Names out of `LOOKS`: lesions are bright on FLAIR and dark on T1.
        corruption: What is done to the labels of the training cases, or None. The wrong labels lie in `corrupted/`, and
            `label` of training cases means them; `clean_label` and all of `labels/` are true. `corruption.json` says
            how wrong they are. Lesions are invented on lookalikes. All else is the same with any corruption.

    Returns:
        Path of `dataset.json` (Medical Segmentation Decathlon form, with lists per split and patient names).

    Raises:
        ValueError: An argument that cannot be fulfilled, or a corruption that needs several lesion classes.
        ResourceError: The folder cannot be written.
    """
    _check_arguments(num_cases, seed, prevalence, shape, spacing_mm, channels)
    if isinstance(corruption, NoCorruption):
        corruption = None
    if corruption is not None:
        corruption.check_classes(1)
    plans = plan_cases(num_cases, seed=seed, lesion_free_share=lesion_free_share)
    output = Path(output)
    entries: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    severities: dict[str, Severity] = {}
    for plan in track(plans, "phantoms"):
        phantom = make_phantom(
            plan, seed=seed, prevalence=prevalence, shape=shape, spacing_mm=spacing_mm, channels=channels
        )
        entry = _write_case(output, plan, phantom)
        if corruption is not None and plan.split == CORRUPTED_SPLIT:
            entry |= {"label": f"corrupted/{plan.case}.nii.gz", "clean_label": entry["label"]}
            noisy, severities[plan.case] = corrupt_case(
                plan.case,
                phantom.label,
                corruption,
                seed=seed,
                affine=phantom.affine,
                image=_values(phantom.images),
                spots=phantom.spots,
            )
            _write_nifti(output / str(entry["label"]), noisy, phantom.affine)
        entries[plan.split].append(entry)
    if corruption is None:
        (output / RECORD).unlink(missing_ok=True)  # of phantoms of another kind that lay here
    else:
        write_record(output / RECORD, corruption, seed=seed, splits=[CORRUPTED_SPLIT], severities=severities)
    names = {str(number): name for number, name in enumerate(channels)}
    path = output / "dataset.json"
    write_json(
        path,
        {
            "name": "medfocal phantoms",
            "description": f"Brain-like phantoms with rare small lesions, lookalikes and two erring readers; "
            f"seed {seed}, prevalence {prevalence:g}, {num_cases} cases. Synthetic: no person was imaged."
            + ("" if corruption is None else f" Training labels were made wrong on purpose: see {RECORD}."),
            "licence": "CC0-1.0",
            "channel_names": names,
            "modality": names,
            "labels": {"0": "background", "1": "lesion"},
            "numTraining": len(entries["training"]),
            "numTest": len(entries["test"]),
            "file_ending": ".nii.gz",
            **entries,
        },
    )
    return path


def _check_arguments(
    num_cases: int,
    seed: int,
    prevalence: float,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    channels: Sequence[str],
) -> None:
    if num_cases < len(SPLITS):
        message = f"num_cases must be at least {len(SPLITS)}, one for each split, got {num_cases}"
        raise ValueError(message)
    if seed < 0:
        message = f"seed must be 0 or more, got {seed}"
        raise ValueError(message)
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 1 or not 0 < min(spacing_mm) <= max(spacing_mm):
        message = f"shape and spacing_mm must be three positive numbers each, got {shape} and {spacing_mm}"
        raise ValueError(message)
    field_mm = [n * step for n, step in zip(shape, spacing_mm, strict=True)]
    if min(field_mm) < LEAST_FIELD_MM or max(spacing_mm) > 3:
        message = (
            f"the field must span {LEAST_FIELD_MM:g} mm or more along each axis in voxels of at most 3 mm, to hold "
            f"vessels of 15 mm and lesions that can be seen; got {shape} voxels of {spacing_mm} mm"
        )
        raise ValueError(message)
    lowest = 1 / math.prod(shape)
    if not lowest <= prevalence <= HIGHEST_PREVALENCE:
        message = (
            f"prevalence must lie in [{lowest:.2g}, {HIGHEST_PREVALENCE}]: one voxel of this shape is {lowest:.2g}, "
            f"and more than {HIGHEST_PREVALENCE} finds no room beside vessels and gaps; got {prevalence}"
        )
        raise ValueError(message)
    unknown = [name for name in channels if name not in LOOKS]
    if unknown or not channels or len(set(channels)) != len(channels):
        message = f"channels must be different names out of {', '.join(LOOKS)}, got {tuple(channels)}"
        raise ValueError(message)


def _write_case(output: Path, plan: CasePlan, phantom: Phantom) -> dict[str, object]:
    """Write the files of a case and return its entry for `dataset.json`."""
    single = len(phantom.images) == 1
    images = [
        f"images/{plan.case}.nii.gz" if single else f"images/{plan.case}_{channel:04d}.nii.gz"
        for channel in range(len(phantom.images))
    ]
    for channel, (name, image) in enumerate(zip(images, phantom.images, strict=True)):
        qform_only = plan.qform_only and channel == 0
        _write_nifti(output / name, image.stored, phantom.affine, (image.slope, image.inter), qform_only=qform_only)
    label = f"labels/{plan.case}.nii.gz"
    _write_nifti(output / label, phantom.label, phantom.affine)
    annotations = []
    for reader, marks in enumerate(phantom.annotations, start=1):
        annotations.append(f"annotations/{plan.case}_reader{reader}.nii.gz")
        _write_nifti(output / annotations[-1], marks, phantom.affine)
    return {
        "case": plan.case,
        "patient": plan.patient,
        "image": images[0] if single else images,
        "label": label,
        "annotations": annotations,
    }


def _values(images: Sequence[StoredImage]) -> Array:
    """What the stored integers mean, float32 (C, I, J, K)."""
    return np.stack([image.stored * image.slope + image.inter for image in images]).astype(np.float32)


def _write_nifti(
    path: Path,
    stored: Array,
    affine: Array,
    scaling: tuple[float, float] = (1.0, 0.0),
    *,
    qform_only: bool = False,
) -> None:
    import nibabel

    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"medfocal phantom, synthetic, CC0-1.0"
    image.set_qform(affine, code=1)
    image.set_sform(None if qform_only else affine, code=0 if qform_only else 1)
    image.header.set_slope_inter(*scaling)
    # No name and no time in the gzip header: the same voxels are the same bytes.
    with atomic_write(path, "wb") as file, gzip.GzipFile("", "wb", 6, fileobj=file, mtime=0) as packed:
        packed.write(image.to_bytes())
