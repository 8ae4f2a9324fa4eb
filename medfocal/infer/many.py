"""Predicting many cases: reading, network and writing overlap, a fault of one stops no other, nothing is done twice."""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import glob
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal import __version__
from medfocal.data.cache import file_digest
from medfocal.data.cases import read_case
from medfocal.data.formats import read_dataset
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.transforms import PreparedCase, prepare_case
from medfocal.errors import (
    ConfigError,
    DatasetError,
    GeometryError,
    InputError,
    MedfocalError,
    ModelError,
    ResourceError,
)
from medfocal.files import make_folder, plain, unfinished, write_csv, write_json
from medfocal.infer.candidates import COLUMNS, candidate_rows
from medfocal.infer.cases import find_cases, is_dataset
from medfocal.infer.familiar import Familiar, Figures, deepest_module, image_figures, read_familiar, unfamiliar, watched
from medfocal.infer.predict import Prediction, other_views, predict_case
from medfocal.model import Model, OperatingPoint
from medfocal.progress import say, track
from medfocal.volume import Volume, read_labels, write_volume

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("medfocal.infer")

#: Of a header that names the file with the voxels.
MOST_HEADER_BYTES = 65536

#: Of images whose voxels may lie in a file of their own.
HEADER_ENDINGS = (".hdr", ".mhd", ".nrrd")


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How cases are predicted, and what is written of them.

    Args:
        threshold: Confidence from which a candidate enters the mask; None: the model's first operating point.
        save_probability: Whether to write `<case>_probability.nii.gz`, float32.
        save_spread: Whether to write `<case>_spread.nii.gz`, float32, and the column `spread` of candidates.
        mirror: Whether to average over the eight mirrored views of every window, in eight times the time.
        max_memory_mb: What a case may take beside the program and the model; None: no bound, and the next case is read
            meanwhile.
        allow_cpu: Whether to go on on the CPU where the GPU's memory does not suffice for one window.
        exclude: Folder of masks `<case>.nii.gz`: a candidate whose highest voxel lies in one is none.
        keep_going: Whether the other cases are predicted when one cannot be.
        resume: Whether to leave out cases whose results are there, of the same images, model and settings.
        strict: Whether a case that is unlike those that the model was calibrated on is refused rather than noted.
        shard: `(i, n)`: the i-th of n shares of the cases, from 1.
    """

    threshold: float | None = None
    save_probability: bool = False
    save_spread: bool = False
    mirror: bool = False
    max_memory_mb: float | None = None
    allow_cpu: bool = False
    exclude: Path | None = None
    keep_going: bool = True
    resume: bool = True
    strict: bool = False
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        number, count = self.shard
        if not 1 <= number <= count:
            message = f"shard must be i/n with i from 1 to n, got {number}/{count}"
            raise ValueError(message)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            message = f"threshold must be in [0, 1], got {self.threshold}"
            raise ValueError(message)
        if self.max_memory_mb is not None and not self.max_memory_mb > 0:
            message = f"max_memory_mb must be above 0, got {self.max_memory_mb}"
            raise ValueError(message)

    @property
    def record_name(self) -> str:
        """`run.json`, of a share with its number."""
        number, count = self.shard
        return "run.json" if count == 1 else f"run_{number}of{count}.json"


def predict(
    model: Model,
    input_path: Path,
    output: Path,
    *,
    device: torch.device,
    settings: PredictSettings | None = None,
) -> list[Path]:
    """Predict a file, a folder of files or the test split of a dataset.

    A case is written once it is complete: `<case>_mask.nii.gz` (uint8 classes) on the input's own grid,
    `<case>_candidates.csv` with every candidate, maps if asked, and last `<case>_run.json`, by which it is known to be
    complete; at the end of all `run.json`.

    Args:
        model: From `load_model` or `load_models`, on `device`.
        input_path: An image, a folder, or a `dataset.json`. A model of several channels takes files
            `<case>_0000.nii.gz`, `<case>_0001.nii.gz`, … in the order of its channels.
        output: Folder, made if missing.
        device: Where to compute.
        settings: None takes the defaults.

    Returns:
        The masks of all cases of the share, in order; also those that were there.

    Raises:
        InputError: The input, or the folder of exclusion masks, does not exist; or a case cannot be read, after the
            others were predicted.
        DatasetError: No image in it, or channels are missing.
        ConfigError: A spread is asked for, and there is one member and one view.
        ModelError: It is to be `strict`, and the model does not know what is familiar.
        ResourceError: The output cannot be written, or memory does not suffice.
    """
    settings = PredictSettings() if settings is None else settings
    input_path, output = Path(input_path), Path(output)
    cases = find_cases(input_path, model.card.channels)
    _refuse_own_input(input_path, output, cases)
    if settings.exclude is not None and not settings.exclude.is_dir():
        message = f"exclude: '{settings.exclude}' is not a folder; it should hold a mask <case>.nii.gz of each case"
        raise InputError(message)
    if settings.save_spread and len(model.networks) == 1 and not settings.mirror:
        message = (
            f"save_spread is how far members and mirrored views differ, and '{model.card.name}' has one member, with "
            "tta=none. Give several models, or tta=mirror."
        )
        raise ConfigError(message)
    notes = other_views(model.card, threshold=settings.threshold, mirror=settings.mirror)
    for note in notes:
        LOG.warning("%s", note)
    number, count = settings.shard
    cases = cases[number - 1 :: count]
    familiar = _familiar_to(model, settings)
    output = make_folder(output)
    (output / settings.record_name).unlink(missing_ok=True)  # it would tell of an earlier run should this one fail
    key = _key_of(model, settings)
    job = _Job(model, output, device, settings, key, familiar, notes)
    rows = list(track(job.rows(cases), "predict", len(cases)))
    write_json(output / settings.record_name, _run_record(model, settings, device, rows))
    num_there = sum(row.get("resumed", False) for row in rows)
    if num_there:
        say(f"{num_there} of {len(rows)} cases were complete before, of the same images, model and settings")
    failed = [row for row in rows if "error" in row]
    if failed:
        listed = "".join(f"\n  - {row['error']}" for row in failed[:10])
        more = f"\n  … and {len(failed) - 10} more" if len(failed) > 10 else ""
        message = f"{len(failed)} of {len(cases)} cases could not be predicted:{listed}{more}"
        if len(failed) < len(cases):
            message += f"\n    The others are in '{output}', and the same command leaves them out."
        lacks_room = all(row["error_kind"] == ResourceError.__name__ for row in failed)
        raise (ResourceError if lacks_room else InputError)(message)
    return [output / f"{case.name}_mask.nii.gz" for case in cases]


@dataclass(frozen=True)
class _Job:
    """What all cases of a prediction share."""

    model: Model
    output: Path
    device: torch.device
    settings: PredictSettings
    key: str
    familiar: Familiar | None
    notes: Sequence[str] = ()

    @functools.cached_property
    def deepest(self) -> str:
        """The module whose features are compared with those of familiar cases."""
        card = self.model.card
        return deepest_module(self.model.networks[0], len(card.channels), card.window["size"])

    @property
    def threshold(self) -> float:
        given = self.settings.threshold
        return self.model.card.operating_points[0].threshold if given is None else given

    def rows(self, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """Predict the cases that are not done, one after the other, and tell of each.

        One thread reads the next case and one writes the last while this one computes; where memory is bounded
        nothing is read ahead.
        """
        ahead = 1 if self.settings.max_memory_mb is None else 0
        with (
            concurrent.futures.ThreadPoolExecutor(1, "read") as reader,
            concurrent.futures.ThreadPoolExecutor(1, "write") as writer,
        ):
            reads: dict[int, concurrent.futures.Future[_Read]] = {}
            written: concurrent.futures.Future[dict[str, Any]] | None = None
            try:
                for place, case in enumerate(cases):
                    for soon in range(place, min(place + ahead, len(cases) - 1) + 1):
                        if soon not in reads:
                            reads[soon] = reader.submit(self._read, cases[soon])
                    made = self._compute(reads.pop(place))
                    if written is not None:
                        yield written.result()
                    written = writer.submit(self._write, case, made)
                    if not ahead:
                        yield written.result()
                        written = None
                if written is not None:
                    yield written.result()
            finally:
                for read in reads.values():
                    read.cancel()

    def _read(self, case: Case) -> _Read:
        start = time.monotonic()
        digests = [file_digest(path) for image in case.images for path in _files_of_image(image)]
        key = hashlib.sha256(json.dumps([self.key, *map(file_digest, self._files_of(case))]).encode()).hexdigest()
        done = self._done(case, key) if self.settings.resume else None
        if done is not None:
            return _Read(key, digests, done, None, None, {}, 0.0)
        volumes = read_case(case, LabelScheme({}))
        exclude = None
        if self.settings.exclude is not None:
            exclude = _read_exclusion(self.settings.exclude, case, volumes.grid)
        figures = {} if self.familiar is None else image_figures(volumes, self.model.card.channels)
        prepared = prepare_case(volumes, self.model.card.preprocessing)
        return _Read(key, digests, None, prepared, exclude, figures, time.monotonic() - start)

    def _files_of(self, case: Case) -> list[Path]:
        """All files that a case is read from."""
        files = [file for image in case.images for file in _files_of_image(image)]
        if self.settings.exclude is not None:
            mask = _exclusion_path(self.settings.exclude, case)
            files += [mask] if mask.exists() else []
        return files

    def _done(self, case: Case, key: str) -> dict[str, Any] | None:
        """The record of a case that is complete: it is there, of the same inputs, and so is every result."""
        try:
            record = json.loads((self.output / f"{case.name}_run.json").read_text("utf-8"))
            row = record["row"]
            is_same = record["key"] == key and row["case"] == case.name and "error" not in row
            results = dict(record["results"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not is_same or set(results) != set(self._results_of(case)):
            return None
        is_there = all(
            (self.output / name).is_file() and file_digest(self.output / name) == digest
            for name, digest in results.items()
        )
        return {**row, "resumed": True} if is_there else None

    def _results_of(self, case: Case) -> list[str]:
        """Names of the files that are written of a case."""
        settings = self.settings
        return result_names(case.name, probability=settings.save_probability, spread=settings.save_spread)

    def _compute(self, reading: concurrent.futures.Future[_Read]) -> _Made:
        settings = self.settings
        try:
            read = reading.result()
            if read.prepared is None:
                return _Made(read, None, 0.0, None)
            start = time.monotonic()
            with watched(self.model.networks[0], None if self.familiar is None else self.deepest) as watch:
                found = predict_case(
                    self.model,
                    read.prepared,
                    device=self.device,
                    mirror=settings.mirror,
                    with_spread=settings.save_spread,
                    max_memory_mb=settings.max_memory_mb,
                    allow_cpu=settings.allow_cpu,
                    exclude=read.exclude,
                )
            unlike = self._compared(read.prepared.case, Figures(read.figures, watch.mean))
            grid = read.prepared.grid
            return _Made(replace(read, prepared=None, exclude=None), found, time.monotonic() - start, grid, unlike)
        except (InputError, GeometryError, DatasetError, ResourceError) as error:  # of this case, not of the output
            if not settings.keep_going:
                raise
            return _Made(None, None, 0.0, None, error=error)

    def _compared(self, case: Case, figures: Figures) -> list[str] | None:
        """In what a case is unlike those that the model was calibrated on; None: the model knows none.

        Raises:
            InputError: It is, and that is to be refused.
        """
        if self.familiar is None:
            return None
        unlike = unfamiliar(self.familiar, figures)
        if unlike:
            message = f"case '{case.name}' is unlike those that the model was calibrated on: {'; '.join(unlike)}"
            if self.settings.strict:
                raise InputError(message)
            LOG.warning("%s", message)
        return unlike

    def _write(self, case: Case, made: _Made) -> dict[str, Any]:
        images = [str(path) for path in case.images]
        if made.error is not None:
            self._clear(case)  # what an earlier run wrote was of other images or settings
            kind = type(made.error).__name__
            return {"case": case.name, "images": images, "error": str(made.error), "error_kind": kind}
        assert made.read is not None, "what is no error was read"
        if made.found is None:
            assert made.read.done is not None, "what was not computed was there"
            return made.read.done
        assert made.grid is not None, "what was computed has a grid"
        self._clear(case)
        write_case(
            self.output,
            case.name,
            made.grid,
            made.found,
            self.threshold,
            points=self.model.card.operating_points,
            save_probability=self.settings.save_probability,
        )
        row = {
            "case": case.name,
            "images": images,
            "input_sha256": made.read.digests,
            "num_candidates": int((made.found.candidates.confidence >= self.threshold).sum()),
            "seconds": round(made.read.seconds + made.seconds, 2),
            "notes": [*made.found.notes, *self.notes],
            "unfamiliar": made.unfamiliar,
        }
        results = {name: file_digest(self.output / name) for name in self._results_of(case)}
        write_json(self.output / f"{case.name}_run.json", {"key": made.read.key, "row": row, "results": results})
        return row

    def _clear(self, case: Case) -> None:
        """Take away what an earlier run left of a case: its record would vouch for files of this one."""
        names = (f"{case.name}_run.json", *result_names(case.name, probability=True, spread=True))
        halves = [half for name in names for half in unfinished(self.output / name)]
        for path in (*(self.output / name for name in names), *halves):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:  # then there is none
                    continue
                message = f"cannot replace '{path}': {error.strerror or error}. Choose another output folder."
                raise ResourceError(message) from error


@dataclass(frozen=True)
class _Read:
    """A case that was read, or found to be done."""

    key: str
    digests: list[str]
    done: dict[str, Any] | None
    prepared: PreparedCase | None
    exclude: NDArray[np.bool_] | None
    figures: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class _Made:
    """What was computed of a case, or why it was not."""

    read: _Read | None
    found: Prediction | None
    seconds: float
    grid: Volume | None
    unfamiliar: list[str] | None = None
    error: MedfocalError | None = None


def write_case(
    output: Path,
    name: str,
    grid: Volume,
    found: Prediction,
    threshold: float,
    *,
    points: Sequence[OperatingPoint] = (),
    save_probability: bool,
) -> None:
    """Write one case's table of candidates, maps and, last, mask."""
    rows = candidate_rows(name, found.candidates, threshold, points, found.spread)
    write_csv(output / f"{name}_candidates.csv", rows, COLUMNS)
    maps = {"probability": found.probability if save_probability else None, "spread": found.spread}
    for kind, values in (*maps.items(), ("mask", found.mask(threshold))):
        if values is not None:
            write_volume(output / f"{name}_{kind}.nii.gz", grid.with_array(values))


def result_names(name: str, *, probability: bool, spread: bool) -> list[str]:
    """Names of the files that `write_case` writes of a case."""
    maps = [kind for kind, is_asked in (("probability", probability), ("spread", spread)) if is_asked]
    return [f"{name}_candidates.csv", *(f"{name}_{kind}.nii.gz" for kind in (*maps, "mask"))]


def _files_of_image(path: Path) -> list[Path]:
    """An image file, and beside a header those of the same name: voxels may lie in one of them."""
    if path.suffix.lower() not in HEADER_ENDINGS:
        return [path]
    files = {file for file in path.parent.glob(f"{glob.escape(path.stem)}.*") if file.is_file()}
    with path.open("rb") as header:
        named = re.findall(rb"(?im)^(?:ElementDataFile\s*=|data ?file:)\s*(\S+)\s*$", header.read(MOST_HEADER_BYTES))
    files |= {path.parent / os.fsdecode(name) for name in named if (path.parent / os.fsdecode(name)).is_file()}
    return sorted(files)


def _exclusion_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.nii.gz"


def _read_exclusion(folder: Path, case: Case, grid: Volume) -> NDArray[np.bool_]:
    """A case's mask of where no lesion can be.

    Raises:
        InputError: There is none, or it cannot be read.
        GeometryError: It lies on another grid.
    """
    path = _exclusion_path(folder, case)
    if not path.exists():
        message = f"case '{case.name}': no exclusion mask '{path}'. Write one, empty where nothing is excluded."
        raise InputError(message)
    mask = read_labels(path)
    if not grid.same_grid(mask):
        message = f"case '{case.name}': image and exclusion mask '{path}' differ: {grid.grid_difference(mask)}"
        raise GeometryError(message)
    return np.asarray(mask.array > 0)


def _familiar_to(model: Model, settings: PredictSettings) -> Familiar | None:
    """What is familiar to a model.

    Raises:
        ModelError: Its card makes no sense, or says nothing of it where it is asked for.
    """
    familiar = read_familiar(model.card.familiar)
    if settings.strict and familiar is None:
        message = (
            f"strict refuses cases unlike those that the model was calibrated on, and '{model.card.name}' was "
            "calibrated on none. medfocal calibrate does that; or leave strict=false."
        )
        raise ModelError(message)
    return familiar


def _refuse_own_input(input_path: Path, output: Path, cases: Sequence[Case]) -> None:
    """See that no file of the input can be replaced, and no mask be taken for an image the next time.

    Raises:
        InputError: The output lies in the input folder, or is a folder of images or labels.
    """
    mine, theirs = output.resolve(), input_path.resolve()
    holding = {file.resolve().parent for case in cases for file in case.images}
    if input_path.is_dir():
        is_within = mine == theirs or theirs in mine.parents
    else:
        is_within = mine == theirs.parent
        if is_dataset(input_path):  # whose labels may have the names of our masks
            holding |= {file.resolve().parent for case in read_dataset(input_path).cases for file in case.files}
    if is_within or mine in holding:
        message = (
            f"the output '{output}' lies in the input '{input_path}' or holds files of it, which masks could replace, "
            "or be taken for the next time. Choose a folder of its own."
        )
        raise InputError(message)


def _key_of(model: Model, settings: PredictSettings) -> str:
    """Digest of all that a case's results depend on beside its images."""
    own = {k: v for k, v in asdict(settings).items() if k not in ("keep_going", "resume", "shard", "max_memory_mb")}
    told = plain([__version__, model.weights_sha256, model.card.to_dict(), own])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _run_record(
    model: Model, settings: PredictSettings, device: torch.device, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    card = model.card
    threshold = card.operating_points[0].threshold if settings.threshold is None else settings.threshold
    return {
        "medfocal": __version__,
        "model": card.name,
        "weights_sha256": list(model.weights_sha256),
        "threshold": threshold,
        "settings": plain(asdict(settings)),
        "device": str(device),
        "cases": rows,
        "intended_use": card.intended_use,
    }
