"""The training loop. It reads from top to bottom: prepare, go on, draw, step, save, validate, keep the best."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from torch import nn

from medfocal.data.manifest import LabelScheme
from medfocal.data.sampling import LesionBalancedSampler
from medfocal.data.stored import EvaluationCase
from medfocal.data.targets import TaughtCases
from medfocal.data.transplant import LesionTransplants
from medfocal.errors import ConfigError, ModelError
from medfocal.evaluate import Protocol
from medfocal.files import write_csv
from medfocal.infer.window import reduced_type
from medfocal.losses import init_prior_bias_, smoothed_shares
from medfocal.model import ModelCard, OperatingPoint
from medfocal.progress import track
from medfocal.train.anomalies import Anomalies
from medfocal.train.average import RunningMean
from medfocal.train.batches import Augmentation, BatchSource
from medfocal.train.checkpoint import (
    keep_as,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from medfocal.train.curriculum import Curriculum
from medfocal.train.position import METRICS, Position
from medfocal.train.ranks import ALONE, Ranks
from medfocal.train.records import conf_digest, has_learnt
from medfocal.train.settings import SamplingSettings, Sharding, TrainerSettings
from medfocal.train.signals import stop_requests
from medfocal.train.speed import Speed
from medfocal.train.step import TrainingStep
from medfocal.train.validation import choose_operating_points, tell_choice, validate
from medfocal.train.visits import VISITS, tell_visits, write_visits

LOG = logging.getLogger("medfocal.train")

#: Where they are kept in a run folder: the last, the one before it, and the epoch that is kept.
LAST, PREVIOUS, BEST = (Path("checkpoints") / f"{name}.pt" for name in ("last", "previous", "best"))


class Tracking(TypingProtocol):
    """What shows a run elsewhere: a class of `medfocal.train.tracking`."""

    def start(self, folder: Path, *, name: str, configuration: Mapping[str, Any], first_epoch: int) -> None:
        """Begin, or go on after `first_epoch` epochs."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Show an epoch, a row of metrics.csv."""

    def finish(self, status: str) -> None:
        """End with "FINISHED", "FAILED" or "KILLED"."""


@dataclass(frozen=True)
class Trained:
    """The network of the kept epoch, on the device, and how it did on the validation split.

    Attributes:
        network: In evaluation mode.
        epoch: That epoch, from 1.
        num_epochs: How many there were.
        operating_points: From the validation split; one by default where there is none.
    """

    network: nn.Module
    epoch: int
    num_epochs: int
    operating_points: tuple[OperatingPoint, ...]


def train(  # noqa: C901, PLR0912, PLR0915  one loop, read from top to bottom
    folder: Path,
    *,
    training: TaughtCases,
    validation: Sequence[EvaluationCase],
    scheme: LabelScheme,
    card: ModelCard,
    network: nn.Module,
    build_loss: Callable[..., Any],
    build_optimizer: Callable[..., torch.optim.Optimizer],
    schedule: Callable[[float], float],
    augmentation: Augmentation,
    sampling: SamplingSettings,
    settings: TrainerSettings,
    protocol: Protocol,
    seed: int,
    device: torch.device,
    fresh_heads: Sequence[nn.Conv3d],
    resume: str = "last",
    configuration: Mapping[str, Any],
    tracking: Tracking,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train a network and keep the epoch that finds most lesions on the validation split.

    After each epoch, before each validation, every `settings.checkpoint_minutes` and when a signal asks to stop,
    `checkpoints/last.pt` is written; after each epoch `metrics.csv`, and `checkpoints/best.pt` when the epoch is the
    best so far. Where `last.pt` exists training goes on from it, to the same weights as without the interruption.

    Args:
        folder: Run folder.
        training: Cases to learn from.
        validation: Cases to choose the epoch and the operating point on; none keeps the last epoch.
        scheme: What label values mean.
        card: Describes the model; its operating points are replaced.
        network: With `all_heads`, on the CPU.
        build_loss: Makes a `medfocal.losses.TrainingLoss`, with what the curriculum changes of it.
        build_optimizer: Takes the parameters.
        schedule: Factor on the learning rate from the share of training done.
        augmentation: Random changes of batches.
        sampling: Where patches are cut, and what is set into them.
        settings: How long and how.
        protocol: Rules of the validation.
        seed: Of patches and random changes. The caller has seeded the weights.
        device: Where to compute.
        fresh_heads: Last layers with random weights, whose bias `settings.prior_bias` sets.
        resume: "last" or "previous", the checkpoint to go on from where there is one.
        configuration: Resolved; a checkpoint of another one is refused.
        tracking: Takes each row of metrics.csv.
        ranks: The processes that train together.

    Returns:
        The kept network.

    Raises:
        ConfigError: The augmentation does not suit the cases, the loss is no longer finite, or patches cannot be
            shared out.
        DatasetError: No training case has a lesion, or none can be transplanted.
        ModelError: A checkpoint is damaged.
        ResourceError: Memory or disk is full.
        SystemExit: With 143, when a signal asked to stop and the checkpoint is written.
    """
    if sampling.hardness > 0 and not validation:
        message = (
            f"sampling.hardness={sampling.hardness:g} follows the lesions missed in the validation, and no case is for "
            "validation. Set it to 0, or data.num_folds and fold."
        )
        raise ConfigError(message)
    if settings.patience is not None and not validation:
        message = (
            f"trainer.patience={settings.patience} counts validations, and no case is for validation. Set it to null."
        )
        raise ConfigError(message)
    cases, patch_size = training.cases, sampling.patch_size
    augmentation.check(patch_size, {case.case.name: case.spacing_mm for case in cases})
    sampler = LesionBalancedSampler(
        cases,
        patch_size=patch_size,
        lesion_fraction=sampling.lesion_fraction,
        seed=seed,
        size_power=sampling.size_power,
        hardness=sampling.hardness,
    )
    membership, weighted = training.membership(scheme), training.is_weighted
    transplants = LesionTransplants(
        cases,
        patch_size=patch_size,
        probability=sampling.transplant_probability,
        seed=seed,
        membership=membership,
        weighted=weighted,
    )
    curriculum = Curriculum(settings.curriculum or {})
    loss = curriculum.loss_at(0.0, build_loss)
    _refuse_parts(loss, network, settings, ranks)
    batches = BatchSource(
        cases,
        sampler,
        transplants=transplants,
        augment=augmentation,
        batch_size=settings.batch_size,
        seed=seed,
        with_background=loss.activation == "softmax",
        membership=membership,
        weighted=weighted,
        device=device,
        ranks=ranks,
    )
    shares = batches.foreground_shares(len(card.labels) - 1)
    LOG.info(
        "%d training cases with %d lesions, %d validation cases; lesion share of patches %.2e",
        len(cases), len(sampler.lesions), len(validation), sum(shares),
    )  # fmt: skip
    if settings.prior_bias:
        smoothed = smoothed_shares(shares, label_smoothing=loss.label_smoothing, activation=loss.activation)
        for head in fresh_heads:
            init_prior_bias_(head, smoothed, gamma=loss.gamma, alpha=loss.alpha, activation=loss.activation)
    network.to(device)
    mean = None if settings.ema_decay is None else RunningMean(network, settings.ema_decay)
    autocast = training_type(network, patch_size, settings.precision, device)
    stepper = TrainingStep(network, build_optimizer, settings=settings, autocast=autocast, ranks=ranks, device=device)
    optimizer = stepper.spread.optimizer
    base_rates = [group["lr"] for group in optimizer.param_groups]
    total_steps = settings.max_epochs * settings.steps_per_epoch
    anomalies = Anomalies(folder / "anomalies", settings.max_skipped_steps)
    at = Position(visits=np.zeros((2, len(sampler.lesions)), np.int64))

    if ranks.rank:  # all have built the same weights; from here on each draws its own, as dropout must
        torch.manual_seed(seed + (ranks.rank << 32))

    last_file, best_file, digest = folder / LAST, folder / BEST, conf_digest(configuration)
    if has_learnt(folder):
        state = read_state(folder, resume, digest)
        with refuse_nonsense(folder / (LAST if resume == "last" else PREVIOUS)):
            stepper.spread.load_state(state["network"], state["optimizer"])
            stepper.scaler.load_state_dict(state["scaler"])
            if mean is not None:
                mean.load_state_dict(state["mean"])
            at = Position.from_state(state["position"], num_lesions=len(sampler.lesions))
            at.check(settings)
            anomalies.set_counts(*state["anomalies"])
            sampler.set_miss_rates(state["miss_rates"])
            _check_finite(stepper.spread.network)
        set_random_state(state["random"], ranks.rank, device)
        if resume == "previous" and ranks.is_first:
            keep_as(folder / PREVIOUS, last_file)  # both are the sound one now
        LOG.info("continuing after %d epochs and %d steps", at.epoch, at.step)
        if at.epoch >= settings.max_epochs and not best_file.exists():
            message = (
                f"the run '{folder}' has done {at.epoch} epochs, none of them validated, and trainer.max_epochs is "
                f"{settings.max_epochs} now: nothing could be kept. It may grow, not shrink."
            )
            raise ConfigError(message)

    if ranks.is_first:
        write_csv(folder / "metrics.csv", at.rows, METRICS)  # a kill after the checkpoint left it a row short
        tracking.start(folder, name=card.name, configuration=configuration, first_epoch=at.epoch)

    def save() -> None:
        states, random_states = stepper.spread.state(), ranks.gather(random_state(device))
        if not ranks.is_first:
            return
        keep_as(last_file, folder / PREVIOUS)
        state = {
            "configuration": digest,
            "position": at.to_state(),
            "network": states[0],
            "optimizer": states[1],
            "scaler": stepper.scaler.state_dict(),
            "mean": None if mean is None else mean.state_dict(),
            "anomalies": [anomalies.num_in_a_row, anomalies.num_in_epoch],
            "miss_rates": sampler.miss_rates,
            "random": random_states,
        }
        save_checkpoint(last_file, state)

    saved = time.monotonic()
    while at.epoch < settings.max_epochs and not _has_no_patience(at, settings):
        epoch = at.epoch
        network.train()
        loss = curriculum.loss_at(epoch / settings.max_epochs, build_loss)
        loss.start_epoch(epoch)
        stepper.num_voxels = 0
        patches = batches.epoch(epoch, settings.steps_per_epoch, at.step)
        speed = Speed(at, settings, device)
        with contextlib.ExitStack() as held:
            stop = held.enter_context(stop_requests())
            held.enter_context(contextlib.closing(patches))
            left = settings.steps_per_epoch - at.step
            for batch in track(speed.waiting(patches), f"epoch {epoch + 1}", left, status=speed.describe):
                factor = schedule((epoch * settings.steps_per_epoch + at.step) / total_steps)
                for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = base_rate * factor
                is_time = time.monotonic() - saved > 60 * settings.checkpoint_minutes
                taken = stepper.take(batch, loss, stop=bool(stop), save=is_time)
                anomalies.judge(taken, batch, epoch=epoch + 1, step=at.step + 1, ranks=ranks)
                if mean is not None and taken.is_finite:
                    mean.add(network)
                at.step += 1
                speed.step(taken.loss, is_finite=taken.is_finite)
                if taken.stops or taken.saves:
                    _count_voxels(at, loss, stepper, ranks, device)
                    save()
                    saved = time.monotonic()
                if taken.stops:
                    _tell_stop(at)
                    ranks.wait()  # a process that ended first would have the others killed
                    stop.raise_if_any()
                    raise SystemExit(143)
            _count_voxels(at, loss, stepper, ranks, device)

            is_last = epoch + 1 == settings.max_epochs
            is_validated = bool(validation) and ((epoch + 1) % settings.validate_every == 0 or is_last)
            if is_validated:
                save()
                held.close()  # from here on a signal ends the program at once, as the steps are saved
                stop.raise_if_any()
            at.visits += sampler.visits(epoch, settings.steps_per_epoch * settings.batch_size)
            row = at.row(settings, num_skipped=anomalies.num_in_epoch, learning_rate=optimizer.param_groups[0]["lr"])
            score: tuple[float, float] | None = None
            started = time.monotonic()
            kept = stepper.spread.gather() if mean is None else mean.network
            if is_validated:
                figures, missed = validate(kept, validation, card, protocol, settings, device, ranks)
                if figures["num_lesions"]:
                    score = (figures["lesion_sensitivity"], figures["cpm"])
                sampler.judge(*missed)
                row |= figures
            row["seconds"] = round(at.seconds + time.monotonic() - started, 3)
            at.rows.append(row)
            LOG.info(describe(row, settings))

            is_best = score is not None and score >= at.best
            if score is not None:
                at.num_worse = 0 if score > at.best else at.num_worse + 1
                at.best = max(at.best, score)
            at.start_epoch()
            anomalies.num_in_epoch = 0
            is_kept = is_best or (is_last and at.best[0] == -math.inf)  # none was scored: the last is kept
            if ranks.is_first and is_kept:
                save_checkpoint(best_file, {"epoch": epoch + 1, "network": kept.state_dict(), "metrics": at.rows})
            save()
            saved = time.monotonic()
            if ranks.is_first:
                write_csv(folder / "metrics.csv", at.rows, METRICS)
                write_visits(folder / VISITS, sampler, cases, at.visits)
                tracking.row(row)
            if stop and not is_validated:
                _tell_stop(at)
        stop.raise_if_any()  # an epoch without a validation is saved as a whole

    if at.epoch < settings.max_epochs:
        LOG.info("patience: no better validation among the last %d; stopped after epoch %d", at.num_worse, at.epoch)
    ranks.wait()  # for what the first one has written
    tell_visits(sampler, at.visits)
    state = load_checkpoint(best_file)
    network = stepper.spread.whole
    network.load_state_dict(state["network"])
    network.to(device).eval()
    tell_choice(at.rows, int(state["epoch"]))
    points = choose_operating_points(state["metrics"][-1], settings, protocol)
    return Trained(network, int(state["epoch"]), at.epoch, points)


def _refuse_parts(loss: Any, network: torch.nn.Module, settings: TrainerSettings, ranks: Ranks) -> None:
    """Refuse what cannot be computed in parts."""
    if settings.accumulate * ranks.count > 1 and list(network.buffers()):
        message = (
            "network.norm=batch takes its statistics from the patches that are computed together, so a batch in parts "
            "is another training. Set network.norm=instance, or trainer.accumulate=1 and train in one process."
        )
        raise ConfigError(message)
    if settings.accumulate * ranks.count > 1 and loss.why_not_split is not None:
        message = (
            f"loss: {loss.why_not_split}, so a batch cannot be computed in parts. Change that, or set "
            "trainer.accumulate=1 and train in one process."
        )
        raise ConfigError(message)
    if settings.batch_size % (ranks.count * settings.accumulate):
        message = (
            f"trainer.batch_size={settings.batch_size} cannot be shared out to {ranks.count} processes in "
            f"{settings.accumulate} equal parts each (trainer.accumulate); take a multiple of "
            f"{ranks.count * settings.accumulate}"
        )
        raise ConfigError(message)
    if ranks.count > 1 and settings.sharding == Sharding.FSDP and settings.ema_decay is not None:
        message = "trainer.ema_decay follows whole weights; set it to null, or trainer.sharding=none"
        raise ConfigError(message)


def _tell_stop(at: Position) -> None:
    LOG.info("stopped by a signal after %d epochs and %d steps; saved: the same run.id goes on", at.epoch, at.step)


def _has_no_patience(at: Position, settings: TrainerSettings) -> bool:
    return settings.patience is not None and at.num_worse >= settings.patience


def _count_voxels(at: Position, loss: Any, stepper: TrainingStep, ranks: Ranks, device: torch.device) -> None:
    """Take over what the losses of all processes have counted of the epoch since they were last asked."""
    dropped = loss.take_num_dropped()
    counts = torch.tensor([dropped or 0, stepper.num_voxels], dtype=torch.float64, device=device)
    num_dropped, num_voxels = (int(count) for count in ranks.add(counts).tolist())
    if dropped is not None:
        at.num_dropped = num_dropped + (at.num_dropped or 0)
    at.num_voxels += num_voxels
    stepper.num_voxels = 0


def read_state(folder: Path, resume: str, digest: str) -> dict[str, Any]:
    """The checkpoint to go on from.

    Args:
        folder: Run folder.
        resume: "last" or "previous".
        digest: Of the configuration now.

    Raises:
        ModelError: It is damaged, or there is none; whether the other one is sound is said.
        ConfigError: It is of another configuration.
    """
    paths = {"last": folder / LAST, "previous": folder / PREVIOUS}
    path = paths.pop(resume)
    ((other, other_path),) = paths.items()
    try:
        state = load_checkpoint(path)
    except ModelError as error:
        advice = f"Remove '{folder}' to start the run anew, or take another run.id."
        with contextlib.suppress(ModelError):
            with refuse_nonsense(other_path):
                found = Position.from_state(load_checkpoint(other_path)["position"])
            advice = f"'{other_path}' is sound, after {found.epoch} epochs and {found.step} steps: run.resume={other}"
        message = f"{str(error).removesuffix(' Take another run.id.')} {advice}"
        raise ModelError(message) from error
    if state.get("configuration") != digest:
        message = (
            f"the checkpoint '{path}' is of another configuration than '{folder / 'config.yaml'}': it came from "
            "another run. Put the run's own back, or take another run.id."
        )
        raise ConfigError(message)
    return state


@contextlib.contextmanager
def refuse_nonsense(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint's content is taken over into words.

    Raises:
        ModelError: Something did.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        message = (
            f"the checkpoint '{path}' is whole but holds what no run of this version writes: {reason}. Try "
            "run.resume=previous, or take another run.id."
        )
        raise ModelError(message) from error


def _check_finite(network: torch.nn.Module) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        message = "weights that are not finite"
        raise ValueError(message)


def training_type(network: Any, patch_size: Sequence[int], precision: str, device: torch.device) -> torch.dtype | None:
    """What convolutions compute in while training, None for float32.

    On a CPU torch 2.13 gives wrong weight gradients, often not finite, for 3 x 3 x 3 convolutions in bfloat16 over 2
    voxels along the first axis (seen with oneDNN on AVX-512; `tests/train/test_precision.py` measures it). There
    "auto" takes float32.

    Args:
        network: With the `strides` of its levels among its `arguments`.
        patch_size: Voxels `(I, J, K)`.
        precision: Of the settings.
        device: Where to train.

    Raises:
        ConfigError: bf16 is asked for where it goes wrong.
    """
    reduced = reduced_type(precision, device)
    if reduced is not torch.bfloat16 or device.type != "cpu":
        return reduced
    sizes = itertools.accumulate((stride[0] for stride in network.arguments["strides"]), operator.mul)
    if all(patch_size[0] // factor != 2 for factor in sizes):
        return reduced
    what = (
        f"patches of {list(patch_size)} voxels leave 2 along the first axis of a level of the network, for which "
        "bfloat16 gives wrong gradients on a CPU"
    )
    if precision == "bf16":
        message = f"{what}. Set trainer.precision=auto, or sampling.patch_size larger or smaller along the first axis."
        raise ConfigError(message)
    LOG.info("%s; training in float32", what)
    return None


def describe(row: Mapping[str, Any], settings: TrainerSettings) -> str:
    """One line for an epoch."""
    line = f"epoch {row['epoch']:>3} of {settings.max_epochs}  loss {row['loss']:.5f}  {row['seconds']:.1f} s"
    if row.get("dropped_share") is not None:
        line += f"  {row['dropped_share']:.2e} of the voxels taken for mislabelled"
    if "lesion_sensitivity" in row:
        found = round(row["lesion_sensitivity"] * row["num_lesions"]) if row["num_lesions"] else 0
        line += (
            f"  validation: {found} of {row['num_lesions']} lesions found "
            f"at {settings.validation_false_positives:g} false positive per case, CPM {row['cpm']:.2f}"
        )
    return line
