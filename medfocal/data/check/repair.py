"""A repaired copy of a dataset. Only what can be told for sure is repaired, and everything that was done is listed.

The original is never changed; files without a fault are copied byte by byte. Linked files would be the same files, and
whoever edits the copy later would edit the original.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.check.dataset import DatasetReport
from medfocal.data.check.files import is_rigid
from medfocal.data.check.findings import Finding, Kind, Severity
from medfocal.data.check.labels import lesion_value
from medfocal.data.formats import write_manifest
from medfocal.data.manifest import Case, Manifest
from medfocal.errors import InputError
from medfocal.files import atomic_write, make_folder, write_json
from medfocal.parallel import in_processes
from medfocal.progress import say, track
from medfocal.volume import NIFTI_ENDINGS, Volume, read_grid, read_volume, write_volume

#: Why nothing is done about the errors and warnings of all other kinds.
WHY_NOT: Mapping[Kind, str] = {
    Kind.MISSING: "there is no file",
    Kind.UNREADABLE: "its voxels cannot be read",
    Kind.TRUNCATED: "the missing voxels are nowhere",
    Kind.BAD_CHECKSUM: "some of its bytes have changed, and nobody knows which",
    Kind.NOT_GZIP: "what it is cannot be told by its name",
    Kind.WRONG_AXES: "it does not hold as many volumes as the dataset has channels",
    Kind.IMPOSSIBLE_SPACING: "the true spacing stands nowhere",
    Kind.ODD_SPACING: "the true spacing stands nowhere",
    Kind.NO_FORM_CODE: "its orientation stands nowhere",
    Kind.FORMS_DISAGREE: "which of the two is right stands nowhere",
    Kind.GRIDS_DIFFER: "a shift or another shape may be a fault of the drawing, the export or the pairing",
    Kind.LABEL_MIRRORED: "it is a suspicion, and somebody must look",
    Kind.NOT_FINITE_INSIDE: "what belongs there cannot be told",
    Kind.CONSTANT_IMAGE: "the right image is elsewhere",
    Kind.LABEL_NOT_WHOLE: "where a probability becomes a lesion is a decision",
    Kind.LABEL_UNNAMED: "what the values mean stands nowhere",
    Kind.LABEL_WITHOUT_BACKGROUND: "the right label is elsewhere",
    Kind.UNUSABLE_ANNOTATION: "what its values mean stands nowhere",
    Kind.LESION_OUTSIDE_BODY: "somebody must look",
    Kind.DUPLICATE_ACROSS_SPLITS: "which of them to keep is a decision",
    Kind.DUPLICATE_IMAGE: "which of them to keep is a decision",
    Kind.DUPLICATE_LABEL: "which of them is right stands nowhere",
    Kind.EXTREME_VALUES: "what belongs there cannot be told",
    Kind.UNUSUAL_INTENSITY: "the true scale stands nowhere",
    Kind.CT_WITHOUT_NEGATIVES: "the true scale stands nowhere",
    Kind.READERS_DISJOINT: "somebody must look",
    Kind.READERS_DISAGREE: "somebody must look",
    Kind.NO_LESION_TO_LEARN: "somebody must draw the lesions",
    Kind.SPLIT_WITHOUT_LESION: "how to split is a decision",
    Kind.FEW_LESIONS: "how to split is a decision",
}


@dataclass(frozen=True)
class Written:
    """A file of the copy.

    Attributes:
        case: Whose.
        source: What it was made from.
        target: The files that were written: one, or one a channel.
        repairs: What was changed, in words; none where it is a copy byte by byte.
        kinds: Findings that this settles.
    """

    case: str
    source: str
    target: tuple[str, ...]
    repairs: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = ()


@dataclass(frozen=True)
class Repairs:
    """What was done to a dataset.

    Attributes:
        dataset: The `dataset.json` of the copy.
        files: All of its files.
        repaired: Findings that it settles.
        left: Errors and warnings that it does not settle, and why.
    """

    dataset: Path
    files: tuple[Written, ...]
    repaired: tuple[Finding, ...]
    left: tuple[tuple[Finding, str], ...]


@dataclass(frozen=True)
class _Job:
    """One file to bring over.

    Attributes:
        case: Whose.
        source: The file.
        stem: Where it goes, without the ending.
        kinds: What was found in it.
        first: The first file of its case, which states the grid; None where that is the file itself.
        num_channels: Of the dataset, where it is the one image of its case; else 0.
        lesion_value: What marks lesions, where the dataset has one class.
    """

    case: str
    source: Path
    stem: Path
    kinds: frozenset[Kind]
    first: Path | None
    num_channels: int
    lesion_value: int


Change = Callable[[Volume, _Job], Volume]


def repair_dataset(report: DatasetReport, folder: Path, *, workers: int = 1) -> Repairs:
    """Write a copy of a dataset in which everything that can be told for sure is repaired.

    The copy has every case and every file that is there, also those that cannot be repaired, as
    `images/<case>_0000.nii.gz`, `labels/<case>.nii.gz` and `annotations/<case>_reader1.nii.gz`, under a
    `dataset.json`. `repairs.json` says what was done and what was not.

    Args:
        report: What `check_dataset` found.
        folder: Of the copy.
        workers: Processes that write.

    Returns:
        What was done.

    Raises:
        InputError: Files of the dataset lie in `folder`.
        ResourceError: The copy cannot be written.
    """
    manifest = report.manifest
    refuse_own_folder(manifest, folder)
    make_folder(folder)
    jobs = [job for case in manifest.cases for job in _jobs(case, report, folder)]
    with in_processes(_bring_over, jobs, workers, what="wrote files", name=lambda job: job.source.name) as written:
        files = tuple(track(written, "repair", total=len(jobs)))
    target = {file.source: file.target for file in files if file.target}
    copy = replace(manifest, path=folder, cases=tuple(_moved(case, target) for case in manifest.cases))
    dataset = folder / "dataset.json"
    write_manifest(copy, dataset)
    settled = {(file.source, kind) for file in files for kind in file.kinds}
    repaired = tuple(finding for finding in report.findings if (finding.file, finding.kind) in settled)
    left = tuple(
        (finding, WHY_NOT.get(finding.kind, "its file could not be written anew"))
        for finding in report.findings
        if finding.severity is not Severity.NOTE and not _is_in(finding, repaired)
    )
    repairs = Repairs(dataset, files, repaired, left)
    _write_repairs(repairs, folder / "repairs.json")
    return repairs


def print_repairs(repairs: Repairs) -> None:
    """Print each repair, and each thing that was not repaired with the reason."""
    for file in repairs.files:
        for words in file.repairs:
            say(f"repaired: case '{file.case}': '{file.source}': {words}")
    for finding, why in repairs.left:
        say(f"not repaired: {finding.words}: {why}")
    changed = sum(bool(file.repairs) for file in repairs.files)
    copied = sum(bool(file.target) for file in repairs.files) - changed
    say(f"the repaired dataset is '{repairs.dataset}': {changed} files written anew, {copied} copied as they are")


def _write_repairs(repairs: Repairs, path: Path) -> None:
    content = {
        "dataset": repairs.dataset,
        "files": [asdict(file) for file in repairs.files],
        "not_repaired": [{**finding.to_dict(), "why": why} for finding, why in repairs.left],
    }
    write_json(path, content)


def refuse_own_folder(manifest: Manifest, folder: Path) -> None:
    """See that a copy would not be written over the dataset.

    Raises:
        InputError: Files of the dataset lie in `folder`, or it is described there.
    """
    place = folder.resolve()
    inside = [file for case in manifest.cases for file in case.files if place in file.resolve().parents]
    if inside or manifest.path.resolve() in {place, place / "dataset.json"}:
        example = f", such as '{inside[0]}'" if inside else ""
        message = (
            f"the repaired copy would be written to '{folder}', which holds files of the dataset{example}. "
            "Choose another output; the original is never changed."
        )
        raise InputError(message)


def _jobs(case: Case, report: DatasetReport, folder: Path) -> list[_Job]:
    places = [(path, folder / "images" / f"{case.name}_{number:04d}") for number, path in enumerate(case.images)]
    if case.label is not None:
        places.append((case.label, folder / "labels" / case.name))
    places += [
        (path, folder / "annotations" / f"{case.name}_reader{number}")
        for number, path in enumerate(case.annotations, start=1)
    ]
    found = [finding for of in report.cases if of.case == case.name for finding in of.findings]
    first = places[0][0] if places else None
    return [
        _Job(
            case=case.name,
            source=path,
            stem=stem,
            kinds=frozenset(finding.kind for finding in found if finding.file == str(path)),
            first=None if path == first else first,
            num_channels=len(report.manifest.channels) if path in case.images and len(case.images) == 1 else 0,
            lesion_value=lesion_value(report.manifest.scheme),
        )
        for path, stem in places
    ]


def _moved(case: Case, target: Mapping[str, tuple[str, ...]]) -> Case:
    def new(path: Path) -> tuple[Path, ...]:
        return tuple(Path(place).absolute() for place in target.get(str(path), ())) or (path,)

    return replace(
        case,
        images=tuple(place for path in case.images for place in new(path)),
        label=None if case.label is None else new(case.label)[0],
        annotations=tuple(place for path in case.annotations for place in new(path)),
    )


def _bring_over(job: _Job) -> Written:
    """Copy a file, or write it anew without what can be repaired."""
    if Kind.WRONG_AXES in job.kinds and job.num_channels > 1:
        channels = _split_channels(job)
        if channels is not None:
            return channels
    try:
        return _mended(job) or _copied(job)
    except InputError:  # it is one that cannot be repaired, and is listed as such
        return _copied(job)


def _copied(job: _Job) -> Written:
    if not job.source.is_file():
        return Written(job.case, str(job.source), ())
    endings = [ending for ending in NIFTI_ENDINGS if job.source.name.endswith(ending)]
    target = job.stem.with_name(job.stem.name + (endings[0] if endings else job.source.suffix))
    with job.source.open("rb") as source, atomic_write(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 22)
    return Written(job.case, str(job.source), (str(target),))


def _mended(job: _Job) -> Written | None:
    """The file written anew; None where there is nothing to do."""
    kinds = [kind for kind in CHANGES if kind in job.kinds]
    is_nifti = job.source.name.endswith(NIFTI_ENDINGS)
    if not kinds and is_nifti:
        return None
    volume = read_volume(job.source)
    repairs = [] if is_nifti else ["written as .nii.gz"]
    for kind in kinds:
        words, change = CHANGES[kind]
        volume = change(volume, job)
        repairs.append(words.format(lesion_value=job.lesion_value))
    stored = None if volume.header is None else volume.header.get_data_dtype()
    if stored is not None and stored.kind in "iu" and volume.array.dtype.kind == "f":
        repairs.append(f"values with slope and intercept stored as {volume.array.dtype}")
    target = job.stem.with_name(job.stem.name + ".nii.gz")
    write_volume(target, volume)
    return Written(job.case, str(job.source), (str(target),), tuple(repairs), tuple(kinds))


def _split_channels(job: _Job) -> Written | None:
    """One file a channel, where the fourth axis of a NIfTI file is as long as the dataset has channels."""
    import nibabel

    content = job.source.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    image = nibabel.Nifti1Image.from_bytes(content)
    if len(image.shape) != 4 or image.shape[3] != job.num_channels:
        return None
    array: NDArray[Any] = np.asanyarray(image.dataobj)
    targets = []
    for number in range(job.num_channels):
        stem = f"{job.stem.name.rpartition('_')[0]}_{number:04d}.nii.gz"
        volume = Volume(np.ascontiguousarray(array[..., number]), np.asarray(image.affine, np.float64), image.header)
        write_volume(job.stem.with_name(stem), volume)
        targets.append(str(job.stem.with_name(stem)))
    words = f"its {job.num_channels} channels were written to a file each"
    return Written(job.case, str(job.source), tuple(targets), (words,), (Kind.WRONG_AXES,))


def _rounded(volume: Volume, _job: _Job) -> Volume:
    whole = np.rint(volume.array)
    return volume.with_array(whole.astype(np.uint8 if whole.min() >= 0 and whole.max() <= 255 else np.int32))


def _named_for_255(volume: Volume, job: _Job) -> Volume:
    stored = np.min_scalar_type(job.lesion_value)
    return volume.with_array(np.where(volume.array > 0, job.lesion_value, 0).astype(stored))


def _without_nan(volume: Volume, _job: _Job) -> Volume:
    return volume.with_array(np.where(np.isfinite(volume.array), volume.array, 0).astype(volume.array.dtype))


def _on_grid_of_first(volume: Volume, job: _Job) -> Volume:
    grid = volume if job.first is None else read_grid(job.first)
    return _with_both_forms(Volume(volume.array, grid.affine, grid.header), job)


def _same(volume: Volume, _job: _Job) -> Volume:
    return volume


def _with_both_forms(volume: Volume, _job: _Job) -> Volume:
    if volume.header is None or not is_rigid(volume):
        return volume
    header = volume.header.copy()
    code = max(int(header["sform_code"]), int(header["qform_code"]))
    header.set_sform(volume.affine, code=code)
    header.set_qform(volume.affine, code=code)
    return Volume(volume.array, volume.affine, header)


#: What is done about each kind that can be repaired, in this order; in words, and how.
CHANGES: Mapping[Kind, tuple[str, Change]] = {
    Kind.LABEL_ROUNDED: ("values rounded and stored as whole numbers", _rounded),
    Kind.LABEL_STORED_AS_FLOAT: ("values stored as whole numbers", _rounded),
    Kind.LABEL_0_255: ("255 became {lesion_value}", _named_for_255),
    Kind.NOT_FINITE_OUTSIDE: ("NaN and infinity outside the body became 0", _without_nan),
    Kind.FOURTH_AXIS: ("the fourth axis of length 1 was left out", _same),
    Kind.GRIDS_ROUNDED: ("its place in the world was made that of the case's first file", _on_grid_of_first),
    Kind.ONE_FORM: ("sform and qform now state the same place", _with_both_forms),
}


def _is_in(finding: Finding, findings: Sequence[Finding]) -> bool:
    return any(finding is other for other in findings)
