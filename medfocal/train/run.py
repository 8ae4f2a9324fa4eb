"""A run folder from its first file to its last: what was asked, what was used, what came out."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medfocal import __version__
from medfocal.annotations.fusion import Fusion
from medfocal.annotations.target import AnnotationSettings, Smoothing
from medfocal.data.cache import Cache
from medfocal.data.formats.source import read_json
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.data.stored import Precision, TrainingCase
from medfocal.data.targets import (
    Recipe,
    check_room,
    log_annotations,
    prepare_evaluation,
    prepare_training,
    read_case_with_reference,
)
from medfocal.data.transforms import Preprocessing, prepare_case
from medfocal.errors import ConfigError, DatasetError, ResourceError
from medfocal.evaluate import Evaluation, Protocol, evaluate_case, evaluate_cases, write_evaluation
from medfocal.files import make_folder, write_json
from medfocal.infer.many import write_case
from medfocal.infer.predict import predict_case
from medfocal.model import (
    CARD,
    PLAIN_CANDIDATES,
    Member,
    Model,
    ModelCard,
    OperatingPoint,
    load_model,
    read_card,
    save_model,
)
from medfocal.progress import track
from medfocal.train.batches import Augmentation
from medfocal.train.curriculum import Curriculum
from medfocal.train.loop import Tracking, train, training_type
from medfocal.train.pretrained import load_initial_weights
from medfocal.train.ranks import ALONE, Ranks
from medfocal.train.records import (
    environment,
    failures_logged,
    has_learnt,
    keep_silent,
    only_one,
    refuse_other_data,
    start_log,
    write_records,
)
from medfocal.train.settings import CacheSettings, SamplingSettings, TrainerSettings
from medfocal.train.tracking import NoTracking

LOG = logging.getLogger("medfocal.train")

#: What `load_initial_weights` reports, in a run folder.
INITIAL_WEIGHTS = "initial_weights.json"
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


def is_finished(folder: Path, manifest: Manifest, settings: TrainerSettings) -> bool:
    """Whether a run folder has every report, and a model of all epochs or of as many as this patience allows."""
    if not (folder / "model" / CARD).is_file():
        return False
    card, _ = read_card(folder / "model")
    reports = [folder / split / "report.html" for split in EVALUATED if _labelled(manifest.split(split))]
    num_epochs, patience = card.training.get("num_epochs"), card.training.get("patience")
    is_trained = isinstance(num_epochs, int) and num_epochs >= settings.max_epochs
    if card.training.get("stopped_early") is True and isinstance(patience, int):
        is_trained = is_trained or (settings.patience is not None and settings.patience <= patience)
    return is_trained and all(report.is_file() for report in reports)


def run_training(  # noqa: C901, PLR0915  a run from its first file to its last
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
    build_loss: Callable[..., Any],
    build_network: Callable[..., torch.nn.Module],
    build_optimizer: Callable[..., torch.optim.Optimizer],
    schedule: Callable[[float], float],
    settings: TrainerSettings,
    protocol: Protocol,
    seed: int,
    device: torch.device,
    tracking: Tracking,
    resume: str = "last",
    ranks: Ranks = ALONE,
) -> RunResult | None:
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
        build_loss: Makes a `medfocal.losses.TrainingLoss`, with other arguments than configured where some are given.
        build_network: Takes `in_channels` and `out_channels`.
        build_optimizer: Takes the parameters.
        schedule: Factor on the learning rate from the share of training done.
        settings: How long and how.
        protocol: Rules of validation and test.
        seed: Of weights, patches and random changes.
        device: Where to compute.
        tracking: Shows the run elsewhere.
        resume: "last" or "previous", the checkpoint to go on from where there is one.
        ranks: The processes that train together.

    Returns:
        What is there; None in all processes but the first.

    Raises:
        InputError: A case cannot be read or its files do not belong together.
        DatasetError: There is no training case, none has a lesion, or no lesion can be transplanted.
        ConfigError: The folder was started with another configuration.
        ResourceError: Prepared cases do not fit into the cache, or another process trains this run.
    """
    if not manifest.split("training"):
        message = f"'{manifest.path}' has no 'training' case"
        raise DatasetError(message)
    _set_up_torch(settings, seed)
    scheme, loss = manifest.scheme, build_loss()
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
    with contextlib.ExitStack() as held:
        if ranks.is_first:
            is_new = not folder.exists()
            if not is_new:
                held.enter_context(only_one(make_folder(folder)))
            refuse_other_data(folder, manifest, annotations)
            check_room(manifest.split("training"), manifest.split("validation"), recipe, store)
        else:
            ranks.wait()  # for the first one, so that the others find all cases prepared
        taught = prepare_training(manifest.split("training"), recipe, store, workers=cache.workers)
        training = taught.cases
        validation = prepare_evaluation(manifest.split("validation"), recipe, store, workers=cache.workers)
        if ranks.is_first:
            ranks.wait()
        _refuse_without_lesions(manifest, training)
        if taught.smoothing is not None:
            build_loss = functools.partial(build_loss, label_smoothing=taught.smoothing)
        is_soft = taught.membership(scheme) is not None
        _refuse_unfit_loss(build_loss(), num_outputs, manifest.labels, soft=is_soft, weighted=taught.is_weighted)

        report = None
        if settings.initial_weights is not None and has_learnt(folder):  # it began with them
            report = read_json(folder / INITIAL_WEIGHTS, "record of the weights that the run began with")
        elif settings.initial_weights is not None:
            report = load_initial_weights(network, Path(settings.initial_weights))
        ranks.wait()  # all have looked into the folder
        if ranks.is_first:
            if is_new:
                held.enter_context(only_one(make_folder(folder)))
                _refuse_begun(folder)
            start_log(folder / "train.log")
            held.enter_context(failures_logged())
            reduced = training_type(network, sampling.patch_size, settings.precision, device)
            now = environment(device, settings, ranks.count, reduced)
            write_records(folder, configuration, manifest, annotations, now)
            _write_reports(folder, taught.record, report)
        else:
            keep_silent()
            tracking = NoTracking()
        card = ModelCard(
            name=name,
            members=(Member(network={"name": type(network).__name__, "arguments": network.arguments}),),
            channels=manifest.channels,
            labels=scheme.learnt,
            activation=loss.activation,
            overlapping=bool(scheme.regions),
            preprocessing=preprocessing,
            window=asdict(settings.window(sampling.patch_size)),
            candidates={
                **{k: getattr(protocol, k) for k in ("extent_ratio", "floor", "connectivity", "confidence")},
                **PLAIN_CANDIDATES,
            },
            operating_points=(OperatingPoint(name="default", threshold=protocol.threshold, source="default"),),
        )
        held.enter_context(_tracked(tracking))
        trained = train(
            folder,
            training=taught,
            validation=validation,
            scheme=scheme,
            card=card,
            network=network,
            fresh_heads=fresh_heads(network, report),
            build_loss=build_loss,
            build_optimizer=build_optimizer,
            schedule=schedule,
            augmentation=augmentation,
            sampling=sampling,
            settings=settings,
            protocol=protocol,
            seed=seed,
            device=device,
            resume=resume,
            configuration=configuration,
            tracking=tracking,
            ranks=ranks,
        )
        result = None
        if ranks.is_first:
            progress = (trained.epoch - 1) / settings.max_epochs
            kept = Curriculum(settings.curriculum or {}).loss_at(progress, build_loss)  # of the epoch that was kept
            provenance = {
                "medfocal": __version__,
                "dataset": manifest.name,
                "num_training_cases": len(training),
                "num_validation_cases": len(validation),
                "epoch": trained.epoch,
                "num_epochs": trained.num_epochs,
                "stopped_early": trained.num_epochs < settings.max_epochs,
                "patience": settings.patience,
                "initial_weights": None if report is None else report["sha256"],
                "seed": seed,
                "loss": {"gamma": kept.gamma, "alpha": kept.alpha},
            }
            member = replace(card.members[0], training=provenance)
            card = replace(card, operating_points=trained.operating_points, members=(member,))
            for split in EVALUATED:  # of fewer epochs; the report is what a finished run has last
                (folder / split / "report.html").unlink(missing_ok=True)
            save_model(folder / "model", [trained.network], card)
            del training, taught
            result = _evaluate_model(folder, manifest, protocol, device, settings, annotations.fusion)
        ranks.wait()
        return result


def _refuse_begun(folder: Path) -> None:
    """Another program that was quicker may have made the folder, and even be done with it."""
    if (folder / "config.yaml").exists():
        message = f"another program has begun the run '{folder}' meanwhile. Start again to continue it."
        raise ResourceError(message)


@contextlib.contextmanager
def _tracked(tracking: Tracking) -> Iterator[None]:
    """Tell how it ended to what shows the run elsewhere."""
    try:
        yield
    except Exception:
        tracking.finish("FAILED")
        raise
    except BaseException:  # a signal, or the keyboard
        tracking.finish("KILLED")
        raise
    tracking.finish("FINISHED")


def fresh_heads(network: Any, report: Mapping[str, Any] | None) -> list[torch.nn.Conv3d]:
    """Last layers with random weights, whose bias may start at the prior: all, or what other weights did not fill."""
    if report is None:
        return list(network.all_heads)
    names = {module: name for name, module in network.named_modules()}
    return [head for head in network.all_heads if f"{names[head]}.weight" in report["left_random"]]


def _write_reports(folder: Path, record: Mapping[str, Any], initial: Mapping[str, Any] | None) -> None:
    if record["cases"]:
        write_json(folder / "annotations.json", record)
        log_annotations(record)
    if initial is not None:
        write_json(folder / INITIAL_WEIGHTS, initial)
        LOG.info("%s", initial["summary"])


def _evaluate_model(
    folder: Path,
    manifest: Manifest,
    protocol: Protocol,
    device: torch.device,
    settings: TrainerSettings,
    fusion: Fusion,
) -> RunResult:
    """Evaluate what was written, read back as prediction will read it, on the validation and the test split."""
    model = load_model(folder / "model", device)
    point = model.card.operating_points[0]
    protocol = replace(protocol, threshold=point.threshold)
    keeps = {"validation": settings.save_validation_predictions, "test": True}
    evaluations = []
    for split in EVALUATED:
        found, cases = None, _labelled(manifest.split(split))
        _tell_references(manifest, split, cases)
        if cases:
            keep = folder / split / "predictions" if keeps[split] else None
            found = _evaluate_split(model, manifest, cases, protocol, device, keep, settings, fusion)
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
            save = case.split == "validation" or settings.save_test_predictions
            points = model.card.operating_points
            write_case(keep, case.name, prepared.grid, found, protocol.threshold, points=points, save_probability=save)
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
    ignored = loss.ignore_index
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
    in_float32 = "tf32" if settings.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = in_float32
    torch.backends.cudnn.conv.fp32_precision = in_float32  # type: ignore[attr-defined]  # its stub lags behind
