"""A dataset whose training labels were made wrong on purpose, beside the original, which stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.corrupt import Corruption, case_rng
from medfocal.annotations.severity import Severity, pool_severities, severity
from medfocal.data.cases import read_case
from medfocal.data.formats import DatasetFormat, read_dataset
from medfocal.data.formats.source import Ways
from medfocal.data.manifest import SPLITS, Case, Manifest
from medfocal.errors import DatasetError
from medfocal.files import make_folder, write_json
from medfocal.progress import track
from medfocal.volume import write_volume

#: What was done to the labels and how wrong they are, beside `dataset.json`.
RECORD = "corruption.json"


def corrupt_dataset(
    dataset: Path,
    output: Path,
    corruption: Corruption,
    *,
    seed: int,
    splits: Sequence[str] = ("training",),
    root: Path | None = None,
) -> Path:
    """Write wrong labels for some splits of a dataset, and a `dataset.json` that names them.

    The new file names the original images and annotations, and for the other splits the original labels, by paths
    relative to itself. Corrupted cases name their clean label as `clean_label`. A case's wrong label depends on the
    seed and its name only. `corruption.json` states the arguments, the seed and how wrong the labels are.

    Args:
        dataset: A `dataset.json`.
        output: Folder, made if missing. Of an earlier corruption it is written anew; what else stands in the way of its
            files is refused.
        corruption: What is done to the labels; it sees the images too.
        seed: 0 or more.
        splits: Which cases get wrong labels.
        root: Folder that the paths in `dataset` start from; by default the one that holds it.

    Returns:
        Path of the new `dataset.json`; the labels lie in `labels/` beside it.

    Raises:
        ValueError: A split does not exist, the corruption does not fit the number of classes, or a file that no
            corruption wrote would be replaced in `output`.
        InputError: A file cannot be read.
        DatasetError: The dataset is unsound, or a case of the splits has no label.
        ResourceError: The folder cannot be written.
    """
    if not splits or not set(splits) <= set(SPLITS):
        message = f"splits must be some of {', '.join(SPLITS)}, got {tuple(splits)}"
        raise ValueError(message)
    manifest = read_dataset(dataset, format=DatasetFormat.DECATHLON, root=root)
    corruption.check_classes(len(manifest.labels) - 1)
    chosen = [case for case in manifest.cases if case.split in splits]
    targets = {case.name: Path(output) / "labels" / f"{case.name}.nii.gz" for case in chosen}
    path, record = Path(output) / "dataset.json", Path(output) / RECORD
    _check_before(manifest, chosen, [*targets.values(), path], record)
    make_folder(Path(output))
    if record.exists():  # of an earlier corruption: where this one is stopped, nothing may describe half of its labels
        path.unlink(missing_ok=True)
    severities: dict[str, Severity] = {}
    for case in track(chosen, "corrupt"):
        volumes = read_case(case, manifest.scheme)
        assert volumes.label is not None, "checked above"
        clean = volumes.label.astype(np.uint8)
        noisy, severities[case.name] = corrupt_case(
            case.name, clean, corruption, seed=seed, affine=volumes.grid.affine, image=volumes.image
        )
        write_volume(targets[case.name], volumes.grid.with_array(noisy))
    write_record(record, corruption, seed=seed, splits=splits, severities=severities)
    write_json(path, _content(manifest, path.parent, targets))
    return path


def corrupt_case(
    case: str,
    clean: NDArray[np.uint8],
    corruption: Corruption,
    *,
    seed: int,
    affine: NDArray[np.float64],
    image: NDArray[np.float32],
    spots: NDArray[Any] | None = None,
) -> tuple[NDArray[np.uint8], Severity]:
    """The wrong label of one case, and how wrong it is."""
    noisy = corruption(clean, affine=affine, rng=case_rng(seed, case), image=image, spots=spots)
    return noisy, severity(clean, noisy, affine)


def write_record(
    path: Path, corruption: Corruption, *, seed: int, splits: Sequence[str], severities: Mapping[str, Severity]
) -> None:
    """Write what was done to the labels, and how wrong they are, by case and over all."""
    write_json(
        path,
        {
            "corruption": corruption.describe(),
            "seed": seed,
            "splits": list(splits),
            "pooled": asdict(pool_severities(list(severities.values()))),
            "cases": {case: asdict(found) for case, found in severities.items()},
        },
    )


def _check_before(manifest: Manifest, chosen: Sequence[Case], targets: Sequence[Path], record: Path) -> None:
    """See that all labels are there and that nothing but an earlier corruption would be replaced."""
    without = [case.name for case in chosen if case.label is None]
    if without:
        message = f"{len(without)} of the cases to corrupt have no 'label', first '{without[0]}', in '{manifest.path}'"
        raise DatasetError(message)
    if len(manifest.labels) > np.iinfo(np.uint8).max + 1:
        message = f"'{manifest.path}' has {len(manifest.labels)} label values; labels are corrupted as uint8, up to 256"
        raise DatasetError(message)
    originals = {manifest.path.resolve()}
    for case in manifest.cases:
        originals |= {file.resolve() for file in (*case.images, *case.annotations)}
        originals |= set() if case.label is None else {case.label.resolve()}
    replaced = [path for path in targets if path.resolve() in originals]
    if replaced:
        message = (
            f"'{replaced[0]}' belongs to the dataset '{manifest.path}' and would be replaced; choose another output"
        )
        raise ValueError(message)
    standing = [path for path in targets if path.exists()]
    if standing and not record.exists():
        message = f"'{standing[0]}' is there already and no corruption wrote it; choose another output"
        raise ValueError(message)


def _content(manifest: Manifest, folder: Path, targets: Mapping[str, Path]) -> dict[str, Any]:
    """The original file with paths that start from the new one, and the wrong labels."""
    content: dict[str, Any] = json.loads(manifest.path.read_text(encoding="utf-8"))
    way_to = Ways(folder)
    for split in SPLITS:
        cases = manifest.split(split)
        if cases:
            entries = [{} if isinstance(entry, str) else entry for entry in content[split]]
            content[split] = [
                entry | _entry(case, way_to, targets.get(case.name), entry.get("clean_label"), manifest.path.parent)
                for entry, case in zip(entries, cases, strict=True)
            ]
    return content


def _entry(case: Case, way_to: Ways, target: Path | None, clean: str | None, before: Path) -> dict[str, Any]:
    """What the new file says of a case; `clean` is its clean label where its label was made wrong before."""
    images = [way_to(image) for image in case.images]
    entry: dict[str, Any] = {
        "case": case.name,
        "patient": case.patient,
        "image": images[0] if len(images) == 1 else images,
    }
    if case.label is not None:
        entry["label"] = way_to(case.label)
    if clean is not None:
        entry["clean_label"] = way_to(before / clean)
    if target is not None:
        entry = {"clean_label": entry["label"]} | entry | {"label": way_to(target)}
    if case.annotations:
        entry["annotations"] = [way_to(annotation) for annotation in case.annotations]
    return entry
