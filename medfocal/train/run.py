"""A run folder from its first file to its last: what was asked, what was used, what came out."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medfocal import __version__
from medfocal.annotations.fusion import Fusion
from medfocal.annotations.target import AnnotationSettings, Smoothing
from medfocal.data.cache import Cache, file_digest
from medfocal.data.formats.source import read_json
from medfocal.data.manifest import Case, LabelScheme, Manifest, listed
from medfocal.data.splits import write_split
from medfocal.data.stored import Precision, TrainingCase
from medfocal.data.targets import (
    Recipe,
    check_room,
    find_weights,
    log_annotations,
    prepare_evaluation,
    prepare_training,
    read_case_with_reference,
)
from medfocal.data.transforms import Preprocessing, prepare_case
from medfocal.errors import ConfigError, DatasetError
from medfocal.evaluate import Evaluation, Protocol, evaluate_case, evaluate_cases, write_evaluation
from medfocal.files import atomic_write, make_folder, write_json
from medfocal.infer.predict import predict_case, write_case
from medfocal.model import CARD, Model, ModelCard, OperatingPoint, load_model, read_card, save_model
from medfocal.progress import track
from medfocal.train.batches import Augmentation
from medfocal.train.loop import train
from medfocal.train.settings import CacheSettings, SamplingSettings, TrainerSettings

LOG = logging.getLogger("medfocal.train")

#: Configuration that may differ between the start of a run and its continuation.
MAY_CHANGE = (
    *("run.id", "plan", "paths.runs", "paths.cache", "cache.max_gb", "cache.compress", "cache.workers"),
    *("trainer.max_epochs", "trainer.num_threads", "device", "debug"),
)


#: Splits that a run evaluates at its end.
EVALUATED = ("validation", "test")


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: The run folder.
        operating_point: The model's first operating point.
        validation: Evaluation of the validation split at that point, None where it has no case.
        test: Likewise of the test split.
    """

    folder: Path
    operating_point: OperatingPoint
    validation: Evaluation | None
    test: Evaluation | None


def new_run_id(seed: int) -> str:
    """A name that no other run has: time, seed and four random digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}-{secrets.token_hex(2)}"


def is_finished(folder: Path, manifest: Manifest, max_epochs: int) -> bool:
    """Whether a run folder holds a model of at least this many epochs and the report of every split to evaluate."""
    if not (folder / "model" / CARD).is_file():
        return False
    card, _ = read_card(folder / "model")
    reports = [folder / split / "report.html" for split in EVALUATED if _labelled(manifest.split(split))]
    return card.training["num_epochs"] >= max_epochs and all(report.is_file() for report in reports)


def check_same_configuration(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Refuse to continue a run under another configuration; more epochs are welcome.

    Raises:
        ConfigError: It differs, with both values.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return
    from omegaconf import OmegaConf

    before = _flat(OmegaConf.to_container(OmegaConf.load(path)))
    now = _flat(configuration)
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and k not in MAY_CHANGE]
    if changed:
        lines = "\n".join(f"    {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        message = (
            f"the run '{folder}' was started with another configuration:\n{lines}\n"
            "    Repeat its settings to continue it, or choose another run.id."
        )
        raise ConfigError(message)


def run_training(
    folder: Path,
    *,
    configuration: Mapping[str, Any],
    name: str,
    manifest: Manifest,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    sampling: SamplingSettings,
    cache: CacheSettings,
    cache_folder: Path,
    annotations: AnnotationSettings,
    smoothing: Smoothing,
    loss: Any,
    smooth_loss: Callable[[list[list[float]]], Any],
    build_network: Callable[..., torch.nn.Module],
    build_optimizer: Callable[..., torch.optim.Optimizer],
    schedule: Callable[[float], float],
    settings: TrainerSettings,
    protocol: Protocol,
    seed: int,
    device: torch.device,
) -> RunResult:
    """Read the data, train, write the model folder, and evaluate the validation and the test split.

    Nothing is written to the run folder before all training and validation cases have been read and found sound.

    Args:
        folder: Run folder; what an interrupted run left there is continued.
        configuration: Resolved, for `config.yaml`.
        name: Of the model.
        manifest: The dataset.
        preprocessing: Travels with the model.
        augmentation: Random changes of batches.
        sampling: Where patches are cut, and what is set into them.
        cache: How prepared cases are stored.
        cache_folder: Where; shared by all trainings.
        annotations: Who is believed about the training cases.
        smoothing: Of what was drawn.
        loss: See `medfocal.train.loop.train`.
        smooth_loss: Makes the loss with label smoothing by a matrix, for `annotations.estimate_smoothing`.
        build_network: Takes `in_channels` and `out_channels`.
        build_optimizer: Takes the parameters.
        schedule: Factor on the learning rate from the share of training done.
        settings: How long and how.
        protocol: Rules of validation and test.
        seed: Of weights, patches and random changes.
        device: Where to compute.

    Raises:
        InputError: A case cannot be read or its files do not belong together.
        DatasetError: There is no training case, none has a lesion, or no lesion can be transplanted.
        ConfigError: The folder was started with another configuration.
        ResourceError: Prepared cases do not fit into the cache.
    """
    if not manifest.split("training"):
        message = f"'{manifest.path}' has no 'training' case"
        raise DatasetError(message)
    _set_up_torch(settings, seed)
    scheme = manifest.scheme
    num_outputs = len(scheme.learnt) - (loss.activation == "sigmoid")
    _refuse_regions(loss, scheme)
    _refuse_unfit_loss(loss, num_outputs, manifest.labels)
    network = build_network(in_channels=len(manifest.channels), out_channels=num_outputs)
    recipe = Recipe(
        scheme=scheme,
        preprocessing=preprocessing,
        precision=Precision(cache.dtype),
        annotations=annotations,
        smoothing=smoothing,
    )
    store = Cache(cache_folder, max_gb=cache.max_gb, compress=cache.compress)
    _refuse_other_data(folder, manifest, annotations)
    check_room(manifest.split("training"), manifest.split("validation"), recipe, store)
    taught = prepare_training(manifest.split("training"), recipe, store, workers=cache.workers)
    training = taught.cases
    validation = prepare_evaluation(manifest.split("validation"), recipe, store, workers=cache.workers)
    _refuse_without_lesions(manifest, training)
    if taught.smoothing is not None:
        loss = smooth_loss(taught.smoothing)
    is_soft = taught.membership(scheme) is not None
    _refuse_unfit_loss(loss, num_outputs, manifest.labels, soft=is_soft, weighted=taught.is_weighted)

    make_folder(folder)
    _start_log(folder / "train.log")
    _write_records(folder, configuration, manifest, device, annotations)
    if taught.record["cases"]:
        write_json(folder / "annotations.json", taught.record)
        log_annotations(taught.record)
    card = ModelCard(
        name=name,
        network={"name": type(network).__name__, "arguments": network.arguments},
        channels=manifest.channels,
        labels=scheme.learnt,
        activation=loss.activation,
        overlapping=bool(scheme.regions),
        preprocessing=preprocessing,
        window=asdict(settings.window(sampling.patch_size)),
        candidates={k: getattr(protocol, k) for k in ("extent_ratio", "floor", "connectivity", "confidence")},
        operating_points=(OperatingPoint(name="default", threshold=protocol.threshold, source="default"),),
    )
    trained = train(
        folder,
        training=taught,
        validation=validation,
        scheme=scheme,
        card=card,
        network=network,
        loss=loss,
        build_optimizer=build_optimizer,
        schedule=schedule,
        augmentation=augmentation,
        sampling=sampling,
        settings=settings,
        protocol=protocol,
        seed=seed,
        device=device,
    )
    provenance = {
        "medfocal": __version__,
        "dataset": manifest.name,
        "num_training_cases": len(training),
        "num_validation_cases": len(validation),
        "epoch": trained.epoch,
        "num_epochs": settings.max_epochs,
        "seed": seed,
    }
    card = replace(card, operating_points=trained.operating_points, training=provenance)
    for split in EVALUATED:  # of fewer epochs; the report is what a finished run has last
        (folder / split / "report.html").unlink(missing_ok=True)
    save_model(folder / "model", trained.network, card)
    del training

    # What is evaluated is what was written, read back as prediction will read it.
    model = load_model(folder / "model", device)
    point = card.operating_points[0]
    protocol = replace(protocol, threshold=point.threshold)
    evaluations = []
    for split in EVALUATED:
        found, cases = None, _labelled(manifest.split(split))
        _tell_references(manifest, split, cases)
        if cases:
            keep = folder / "test" / "predictions" if split == "test" else None
            found = _evaluate_split(model, manifest, cases, protocol, device, keep, settings, annotations.fusion)
            write_evaluation(found, folder / split)
        evaluations.append(found)
    return RunResult(folder, point, *evaluations)


def _evaluate_split(
    model: Model,
    manifest: Manifest,
    cases: Sequence[Case],
    protocol: Protocol,
    device: torch.device,
    keep: Path | None,
    settings: TrainerSettings,
    fusion: Fusion,
) -> Evaluation:
    results = []
    for case in track(cases, f"evaluate {cases[0].split}"):
        volumes = read_case_with_reference(case, manifest.scheme, fusion)
        prepared = prepare_case(volumes, model.card.preprocessing)
        found = predict_case(model, prepared, device=device)
        if keep is not None:
            save = settings.save_test_predictions
            write_case(keep, case.name, prepared.grid, found, protocol.threshold, save_probability=save)
        assert prepared.reference is not None, "only labelled cases come here"
        results.append(
            evaluate_case(
                prepared.reference,
                found.probability,
                prepared.grid.affine,
                case=case.name,
                patient=case.patient,
                protocol=protocol,
                surface=True,
                ignore=volumes.ignore,
            )
        )
    return evaluate_cases(results, protocol)


def _tell_references(manifest: Manifest, split: str, cases: Sequence[Case]) -> None:
    """Log which cases of a split are judged by fused readers, and which cannot be judged."""
    num_unknown = len(manifest.split(split)) - len(cases)
    if num_unknown:
        LOG.info("%d %s cases have neither label nor annotations and are not evaluated", num_unknown, split)
    num_fused = sum(case.label is None for case in cases)
    if num_fused:
        LOG.info(
            "%d of %d %s cases have no label; their readers, fused, are the reference", num_fused, len(cases), split
        )


def _labelled(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.is_annotated]


def _refuse_without_lesions(manifest: Manifest, training: Sequence[TrainingCase]) -> None:
    """Before anything is written; the sampler would refuse as well, but later."""
    if not any(len(case.table) for case in training):
        message = (
            f"no lesion in the whole training set: all {len(training)} labels of '{manifest.path}' are empty, or what "
            "annotations made of its readers is (shares count from one half on). Nothing can be learnt from it."
        )
        raise DatasetError(message)


def _refuse_regions(loss: Any, scheme: LabelScheme) -> None:
    if scheme.regions and loss.activation != "sigmoid":
        message = (
            f"the dataset's regions ({', '.join(scheme.regions)}) lie within each other, and the classes of a softmax "
            "exclude each other. Set loss.activation=sigmoid."
        )
        raise ConfigError(message)


def _refuse_unfit_loss(
    loss: Any, num_outputs: int, labels: Mapping[int, str], *, soft: bool = False, weighted: bool = False
) -> None:
    """How many classes there are and what their targets are only the dataset says; the configuration's check cannot."""
    shape = (1, num_outputs, 2, 2, 2)
    target = torch.full(shape, 1 / num_outputs) if soft else torch.zeros(1, 2, 2, 2, dtype=torch.long)
    try:
        loss(torch.zeros(shape), target, weight=torch.ones(1, 2, 2, 2) if weighted else None)
    except ValueError as error:
        why = (
            ". The targets are shares, made so by annotations=… or smoothing=…; with annotations=majority or random "
            "and smoothing=none they are classes"
        )
        why = why if soft else ""
        message = f"loss: {error}{why}"
        raise ConfigError(message) from error
    loss.take_num_dropped()  # those of this trial
    ignored = getattr(loss, "ignore_index", None)
    if ignored == 0 or set(labels) - {0} == {ignored}:
        classes = ", ".join(f"{number} is {name}" for number, name in labels.items())
        message = (
            f"loss.ignore_index={ignored} leaves nothing to tell apart: in the dataset {classes}. "
            "Give the label of voxels that nobody looked at, or null."
        )
        raise ConfigError(message)


def _set_up_torch(settings: TrainerSettings, seed: int) -> None:
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    # cuBLAS is deterministic only with a fixed workspace, which it reads when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic


def _start_log(path: Path) -> None:
    """Send the log of the whole package to the console and to a file; a second run in one process starts anew."""
    log = logging.getLogger("medfocal")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(to_file)
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    log.propagate = False


def _refuse_other_data(folder: Path, manifest: Manifest, annotations: AnnotationSettings) -> None:
    """Refuse to continue a run whose training or validation cases, or their files, are not those it began with."""
    if not (folder / "checkpoints" / "last.pt").exists():
        return
    before = read_json(folder / "split.json", "record of the run's split")
    for split in ("training", "validation"):
        now = [{"case": case.name, "patient": case.patient} for case in manifest.split(split)]
        if before.get(split) != now:
            names = [{entry["case"] for entry in entries} for entries in (before.get(split, []), now)]
            other = sorted(names[0] ^ names[1]) or sorted(names[1])
            message = (
                f"the run '{folder}' began with other {split} cases: {listed(other)}. Take another run.id, or give it "
                f"its split: data.split={folder / 'split.json'}"
            )
            raise DatasetError(message)
    known = read_json(folder / "environment.json", "record of the run's inputs").get("inputs", {})
    cases = [*manifest.split("training"), *manifest.split("validation")]
    files = [file for case in cases for file in case.files]
    files += find_weights(manifest.split("training"), annotations).values()
    changed = [str(file) for file in files if str(file) in known and known[str(file)] != file_digest(file)]
    if changed:
        message = (
            f"{len(changed)} files are not those that the run '{folder}' began with: {listed(changed)}. "
            "Put them back to continue it, or take another run.id."
        )
        raise DatasetError(message)


def _write_records(
    folder: Path,
    configuration: Mapping[str, Any],
    manifest: Manifest,
    device: torch.device,
    annotations: AnnotationSettings,
) -> None:
    from omegaconf import OmegaConf

    with atomic_write(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(dict(configuration))))
    write_split(folder / "split.json", manifest)
    weights = find_weights(manifest.split("training"), annotations)
    write_json(folder / "environment.json", environment(manifest, device, list(weights.values())))


def environment(manifest: Manifest, device: torch.device, weights: Sequence[Path] = ()) -> dict[str, Any]:
    """Versions, device, git commit and the SHA-256 of every input file, maps of voxel weights among them."""
    packages = ("torch", "monai", "numpy", "scipy", "nibabel", "connected-components-3d", "hydra-core", "safetensors")
    files = [manifest.path] if manifest.path.is_file() else []
    files += [file for case in manifest.cases for file in case.files]
    files += weights
    return {
        "medfocal": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "num_threads": torch.get_num_threads(),
        "packages": {package: importlib.metadata.version(package) for package in packages},
        "inputs": {str(file): file_digest(file) for file in files},
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this code runs from, None elsewhere."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
