"""Predicting cases with a model folder: NIfTI in, masks and candidate tables on the case's own grid out."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal import __version__
from medfocal.components import Components
from medfocal.data.cases import read_case
from medfocal.data.formats import read_dataset
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.transforms import PreparedCase, prepare_case, to_native
from medfocal.errors import DatasetError, InputError
from medfocal.files import make_folder, write_csv, write_json
from medfocal.infer.candidates import COLUMNS, candidate_rows, form_candidates, mask_at
from medfocal.infer.ensemble import Ensemble, mean_probabilities
from medfocal.infer.window import lesion_probability
from medfocal.model import Model
from medfocal.progress import track
from medfocal.volume import Volume, is_volume, volume_name, write_volume

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prediction:
    """What a model says of one case, on the case's own grid.

    Attributes:
        probability: Of any lesion, float32 `(I, J, K)`.
        classes: Lesion class of each voxel, or the innermost region, from 1, uint8 `(I, J, K)`.
        candidates: All of them, whatever their confidence.
    """

    probability: NDArray[np.float32]
    classes: NDArray[np.uint8]
    candidates: Components

    def mask(self, threshold: float) -> NDArray[np.uint8]:
        """Classes within candidates of at least this confidence, 0 elsewhere."""
        return np.where(mask_at(self.candidates, threshold), self.classes, np.uint8(0))


def predict_case(model: Model | Ensemble, prepared: PreparedCase, *, device: torch.device) -> Prediction:
    """Predict one prepared case.

    Args:
        model: Its network, or its members', is on `device`.
        prepared: By the model's own preprocessing.
        device: Where to compute.

    Returns:
        Everything on the case's own grid.
    """
    card = model.card
    members = model.members if isinstance(model, Ensemble) else (model,)
    per_class = mean_probabilities(members, prepared.image, device)
    native = np.stack([to_native(values, prepared) for values in per_class])
    probability = lesion_probability(native, card.activation)
    classes = label_of_voxels(native, overlapping=card.overlapping)
    candidates = form_candidates(probability, prepared.grid.affine, card.candidates)
    return Prediction(probability, classes, candidates)


def label_of_voxels(per_class: NDArray[np.float32], *, overlapping: bool) -> NDArray[np.uint8]:
    """The label of each voxel if it is of a lesion at all.

    Args:
        per_class: Probabilities of the lesion classes, or regions, `(K, I, J, K)`.
        overlapping: Whether they are regions. Then a voxel has the label of the last region, in the model's order, that
            is as likely as not, as if they were painted one after another; else that of the most likely one.

    Returns:
        From 1, uint8 `(I, J, K)`.
    """
    label: NDArray[np.uint8] = (per_class.argmax(axis=0) + 1).astype(np.uint8)
    if overlapping:
        for number, probability in enumerate(per_class, start=1):
            label[probability >= 0.5] = number
    return label


def predict(
    model: Model | Ensemble,
    input_path: Path,
    output: Path,
    *,
    device: torch.device,
    threshold: float | None = None,
    save_probability: bool = False,
) -> list[Path]:
    """Predict a file, a folder of files or the test split of a dataset.

    A case is written once it is complete: `<case>_mask.nii.gz` (uint8 classes) on the input's own grid,
    `<case>_candidates.csv` with every candidate, `<case>_probability.nii.gz` if asked; at last `run.json`.

    Args:
        model: From `load_model` or `load_models`, on `device`.
        input_path: An image, a folder, or a `dataset.json`. A model of several channels takes files
            `<case>_0000.nii.gz`, `<case>_0001.nii.gz`, … in the order of its channels.
        output: Folder, made if missing.
        device: Where to compute.
        threshold: Confidence from which a candidate enters the mask; None: the model's first operating point, of an
            ensemble the mean of its members'.
        save_probability: Whether to write the probability map, float32.

    Returns:
        The masks written, in order.

    Raises:
        InputError: The input does not exist or cannot be read.
        DatasetError: No image in it, or channels are missing.
        ResourceError: The output cannot be written.
    """
    card = model.card
    cases = find_cases(Path(input_path), card.channels)
    if Path(input_path).resolve() == Path(output).resolve():
        message = f"input and output are the same folder '{output}': masks would be taken for images the next time"
        raise InputError(message)
    threshold = card.operating_points[0].threshold if threshold is None else threshold
    output = make_folder(Path(output))
    (output / "run.json").unlink(missing_ok=True)  # it would tell of an earlier run should this one fail
    masks, rows = [], []
    for case in track(cases, "predict"):
        start = time.monotonic()
        volumes = read_case(case, LabelScheme({}))
        found = predict_case(model, prepare_case(volumes, card.preprocessing), device=device)
        write_case(output, case.name, volumes.grid, found, threshold, save_probability=save_probability)
        masks.append(output / f"{case.name}_mask.nii.gz")
        kept = int((found.candidates.confidence >= threshold).sum())
        seconds = round(time.monotonic() - start, 2)
        rows.append({"case": case.name, "images": case.images, "num_candidates": kept, "seconds": seconds})
    write_json(output / "run.json", _run_record(model, threshold, device, rows))
    return masks


def write_case(
    output: Path, name: str, grid: Volume, found: Prediction, threshold: float, *, save_probability: bool
) -> None:
    """Write one case's mask, table of candidates and, if asked, probability map."""
    write_csv(output / f"{name}_candidates.csv", candidate_rows(name, found.candidates, threshold), COLUMNS)
    if save_probability:
        write_volume(output / f"{name}_probability.nii.gz", grid.with_array(found.probability))
    write_volume(output / f"{name}_mask.nii.gz", grid.with_array(found.mask(threshold)))


def find_cases(path: Path, channels: Sequence[str]) -> list[Case]:
    """The cases of an image file, a folder of images, or a `dataset.json` or CSV (its test split).

    Raises:
        InputError: It does not exist.
        DatasetError: It holds no image, or a case lacks a channel.
    """
    if not path.exists():
        message = f"the input '{path}' does not exist"
        raise InputError(message)
    if path.is_file() and path.suffix.lower() in {".json", ".csv"}:
        manifest = read_dataset(path)
        if manifest.channels != tuple(channels):
            message = f"'{path}' has the channels {list(manifest.channels)}, the model was trained on {list(channels)}"
            raise DatasetError(message)
        cases = [replace(case, label=None, annotations=()) for case in manifest.split("test")]
        if not cases:
            message = f"'{path}' has no 'test' case"
            raise DatasetError(message)
        return cases
    files = [path] if path.is_file() else _images_in(path)
    if not files:
        message = f"the folder '{path}' holds no image (.nii, .nii.gz, .hdr, .mha, .mhd, .nrrd)"
        raise DatasetError(message)
    if len(channels) == 1:
        return _unique([Case(volume_name(p), volume_name(p), "test", (p,)) for p in files], path)
    return _grouped(files, path, channels)


def _images_in(folder: Path) -> list[Path]:
    """Image files by name; hidden ones, such as macOS leaves beside each file, are none."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if is_volume(path))


def _unique(cases: list[Case], path: Path) -> list[Case]:
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"'{path}' holds more than one file of the same case: {', '.join(twice[:10])}"
        raise DatasetError(message)
    return cases


def _grouped(files: Sequence[Path], path: Path, channels: Sequence[str]) -> list[Case]:
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        match = re.fullmatch(r"(.+)_(\d{4})", volume_name(file))
        if match is None:
            message = (
                f"the model takes {len(channels)} channels ({', '.join(channels)}), so files must be named "
                f"<case>_0000, <case>_0001, …; '{file.name}' is not"
            )
            raise DatasetError(message)
        images = found.setdefault(match[1], {})
        other = images.setdefault(int(match[2]), file)
        if other is not file:
            message = f"'{path}' holds channel {match[2]} of case '{match[1]}' twice: '{other.name}' and '{file.name}'"
            raise DatasetError(message)
    cases = []
    for name, images in found.items():
        if sorted(images) != list(range(len(channels))):
            have = ", ".join(f"_{n:04d}" for n in sorted(images))
            message = f"case '{name}' in '{path}' has {have}; the model takes {len(channels)} channels from _0000"
            raise DatasetError(message)
        cases.append(Case(name, name, "test", tuple(images[n] for n in range(len(channels)))))
    return cases


def _run_record(
    model: Model | Ensemble, threshold: float, device: torch.device, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "medfocal": __version__,
        "model": model.card.name,
        **(
            {"members": [{"model": one.card.name, "weights_sha256": one.weights_sha256} for one in model.members]}
            if isinstance(model, Ensemble)
            else {"weights_sha256": model.weights_sha256}
        ),
        "threshold": threshold,
        "device": str(device),
        "cases": rows,
        "intended_use": model.card.intended_use,
    }
