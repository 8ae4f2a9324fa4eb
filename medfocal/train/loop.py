"""The training loop. It reads from top to bottom: prepare, draw, forward, loss, backward, step, validate, save."""

from __future__ import annotations

import itertools
import logging
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medfocal.data.manifest import LabelScheme
from medfocal.data.sampling import LesionBalancedSampler
from medfocal.data.stored import EvaluationCase
from medfocal.data.targets import TaughtCases
from medfocal.data.transplant import LesionTransplants
from medfocal.errors import ConfigError
from medfocal.evaluate import Evaluation, Protocol, evaluate_case, evaluate_cases
from medfocal.evaluate.froc import read_froc
from medfocal.files import write_csv
from medfocal.infer.predict import predict_case
from medfocal.infer.window import uses_bfloat16
from medfocal.losses import init_prior_bias_, smoothed_shares
from medfocal.model import Model, ModelCard, OperatingPoint
from medfocal.progress import track
from medfocal.train.batches import Augmentation, BatchSource
from medfocal.train.checkpoint import load_checkpoint, save_checkpoint
from medfocal.train.settings import SamplingSettings, TrainerSettings
from medfocal.train.visits import VISITS, missed_lesions, tell_visits, write_visits

LOG = logging.getLogger("medfocal.train")

#: Columns of metrics.csv. The last five are empty for epochs without validation. dropped_share is the share of voxels
#: that the loss took for mislabelled (cap, trimming), empty for a loss that does not judge labels.
METRICS = (
    "epoch", "step", "loss", "dropped_share", "learning_rate", "seconds",
    "lesion_sensitivity", "cpm", "threshold", "voxel_dice", "num_lesions",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The network of the kept epoch, on the device, and how it did on the validation split.

    Attributes:
        network: In evaluation mode.
        epoch: That epoch, from 1.
        operating_points: From the validation split; one by default where there is none.
    """

    network: nn.Module
    epoch: int
    operating_points: tuple[OperatingPoint, ...]


def train(  # noqa: C901, PLR0915  one loop, read from top to bottom
    folder: Path,
    *,
    training: TaughtCases,
    validation: Sequence[EvaluationCase],
    scheme: LabelScheme,
    card: ModelCard,
    network: nn.Module,
    loss: Any,
    build_optimizer: Callable[..., torch.optim.Optimizer],
    schedule: Callable[[float], float],
    augmentation: Augmentation,
    sampling: SamplingSettings,
    settings: TrainerSettings,
    protocol: Protocol,
    seed: int,
    device: torch.device,
) -> Trained:
    """Train a network and keep the epoch that finds most lesions on the validation split.

    After each epoch `metrics.csv` and `checkpoints/last.pt` are written, `checkpoints/best.pt` when the epoch is the
    best so far. Where `last.pt` exists training goes on from it, to the same weights as without the interruption.

    Args:
        folder: Run folder.
        training: Cases to learn from.
        validation: Cases to choose the epoch and the operating point on; none keeps the last epoch.
        scheme: What label values mean.
        card: Describes the model; its operating points are replaced.
        network: With a `head`, on the CPU.
        loss: A `medfocal.losses.TrainingLoss`.
        build_optimizer: Takes the parameters.
        schedule: Factor on the learning rate from the share of training done.
        augmentation: Random changes of batches.
        sampling: Where patches are cut, and what is set into them.
        settings: How long and how.
        protocol: Rules of the validation.
        seed: Of patches and random changes. The caller has seeded the weights.
        device: Where to compute.

    Returns:
        The kept network.

    Raises:
        ConfigError: The augmentation does not suit the cases, or the loss is no longer finite.
        DatasetError: No training case has a lesion, or none can be transplanted.
        ModelError: A checkpoint is damaged.
    """
    if sampling.hardness > 0 and not validation:
        message = (
            f"sampling.hardness={sampling.hardness:g} follows the lesions missed in the validation, and no case is for "
            "validation. Set it to 0, or data.num_folds and data.fold."
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
    )
    shares = batches.foreground_shares(len(card.labels) - 1)
    LOG.info(
        "%d training cases with %d lesions, %d validation cases; lesion share of patches %.2e",
        len(cases), len(sampler.lesions), len(validation), sum(shares),
    )  # fmt: skip
    if settings.prior_bias:
        smoothed = smoothed_shares(shares, label_smoothing=loss.label_smoothing, activation=loss.activation)
        head = network.get_submodule("head")
        init_prior_bias_(head, smoothed, gamma=loss.gamma, alpha=loss.alpha, activation=loss.activation)
    network.to(device)
    optimizer = build_optimizer(network.parameters())
    base_rates = [group["lr"] for group in optimizer.param_groups]
    bfloat16 = trains_in_bfloat16(network, patch_size, settings.precision, device)
    total_steps = settings.max_epochs * settings.steps_per_epoch

    first_epoch, rows, best = 0, [], (-math.inf, -math.inf)
    visits = np.zeros((2, len(sampler.lesions)), np.int64)
    last_file, best_file = folder / "checkpoints" / "last.pt", folder / "checkpoints" / "best.pt"
    if last_file.exists():
        state = load_checkpoint(last_file)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, rows, best = state["epoch"], state["metrics"], tuple(state["best"])
        visits = np.array(state["visits"], np.int64).reshape(2, -1)
        sampler.set_miss_rates(state["miss_rates"])
        write_csv(folder / "metrics.csv", rows, METRICS)  # a kill after the checkpoint left it a row short
        LOG.info("continuing after epoch %d", first_epoch)

    for epoch in range(first_epoch, settings.max_epochs):
        started, loss_sum = time.monotonic(), torch.zeros((), device=device)
        network.train()
        loss.start_epoch(epoch)
        steps = track(batches.epoch(epoch, settings.steps_per_epoch), f"epoch {epoch + 1}", settings.steps_per_epoch)
        for step, batch in enumerate(steps):
            factor = schedule((epoch * settings.steps_per_epoch + step) / total_steps)
            for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = base_rate * factor
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
                logits = network(batch.image)
            batch_loss = loss(logits.float(), batch.target, weight=batch.weight)
            optimizer.zero_grad(set_to_none=True)
            batch_loss.backward()
            if settings.gradient_clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip_norm)
            optimizer.step()
            loss_sum += batch_loss.detach()

        visits += sampler.visits(epoch, settings.steps_per_epoch * settings.batch_size)
        mean_loss = float(loss_sum) / settings.steps_per_epoch
        if not math.isfinite(mean_loss):
            message = (
                f"the loss of epoch {epoch + 1} is {mean_loss}; lower optimizer.lr or set trainer.precision=float32"
            )
            raise ConfigError(message)
        num_dropped = loss.take_num_dropped()
        num_voxels = settings.steps_per_epoch * settings.batch_size * math.prod(patch_size)
        dropped_share = None if num_dropped is None else num_dropped / num_voxels
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * settings.steps_per_epoch,
            "loss": mean_loss,
            "dropped_share": dropped_share,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
        }
        score: tuple[float, float] | None = None
        is_last = epoch + 1 == settings.max_epochs
        if validation and ((epoch + 1) % settings.validate_every == 0 or is_last):
            network.eval()
            found = evaluate_network(network, validation, card, protocol, device)
            figures = validation_figures(found, settings.validation_false_positives)
            if figures["num_lesions"]:
                score = (figures["lesion_sensitivity"], figures["cpm"])
            sampler.judge(*missed_lesions(found, figures["threshold"]))
            row |= figures
        row["seconds"] = round(time.monotonic() - started, 3)
        rows.append(row)
        LOG.info(describe(row, settings))

        is_best = score is not None and score >= best
        best = score if score is not None and is_best else best
        state = {
            "epoch": epoch + 1,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "metrics": rows,
            "best": list(best),
            "visits": visits.tolist(),
            "miss_rates": sampler.miss_rates,
        }
        if is_best or (is_last and best[0] == -math.inf):  # none was scored: the last epoch is kept
            save_checkpoint(best_file, state)
        save_checkpoint(last_file, state)
        write_csv(folder / "metrics.csv", rows, METRICS)
        write_visits(folder / VISITS, sampler, cases, visits)

    tell_visits(sampler, visits)
    state = load_checkpoint(best_file if best_file.exists() else last_file)
    network.load_state_dict(state["network"])
    network.to(device).eval()
    points = choose_operating_points(state["metrics"][-1], settings, protocol)
    return Trained(network, int(state["epoch"]), points)


def trains_in_bfloat16(network: Any, patch_size: Sequence[int], precision: str, device: torch.device) -> bool:
    """Whether to train in bfloat16.

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
    if not uses_bfloat16(precision, device) or device.type != "cpu":
        return uses_bfloat16(precision, device)
    reduced = itertools.accumulate((stride[0] for stride in network.arguments["strides"]), operator.mul)
    if all(patch_size[0] // factor != 2 for factor in reduced):
        return True
    what = (
        f"patches of {list(patch_size)} voxels leave 2 along the first axis of a level of the network, for which "
        "bfloat16 gives wrong gradients on a CPU"
    )
    if precision == "bf16":
        message = f"{what}. Set trainer.precision=auto, or sampling.patch_size larger or smaller along the first axis."
        raise ConfigError(message)
    LOG.info("%s; training in float32", what)
    return False


def evaluate_network(
    network: nn.Module,
    cases: Sequence[EvaluationCase],
    card: ModelCard,
    protocol: Protocol,
    device: torch.device,
) -> Evaluation:
    """Evaluate whole cases on their own grids."""
    model = Model(network, card, weights_sha256="")
    results = []
    for case in track(cases, "validate", len(cases)):
        found = predict_case(model, case.prepared(), device=device)
        results.append(
            evaluate_case(
                np.asarray(case.reference),
                found.probability,
                case.grid.affine,
                case=case.case.name,
                patient=case.case.patient,
                protocol=protocol,
                ignore=None if case.ignore is None else np.asarray(case.ignore),
            )
        )
    # The choice of an epoch asks for no interval.
    return evaluate_cases(results, replace(protocol, num_resamples=0))


def validation_figures(evaluation: Evaluation, rate: float) -> dict[str, Any]:
    """What metrics.csv keeps of a validation: the FROC at `rate` false positives per case."""
    (point,) = read_froc(evaluation.froc.curve, (rate,), num_lesions=evaluation.num_lesions)
    return {
        "lesion_sensitivity": point.lesion_sensitivity,
        "cpm": evaluation.froc.cpm,
        "threshold": min(point.threshold, 1.0),  # infinite: not even the surest candidate may count
        "voxel_dice": evaluation.voxel_dice.mean,
        "num_lesions": evaluation.num_lesions,
    }


def choose_operating_points(
    row: Mapping[str, Any], settings: TrainerSettings, protocol: Protocol
) -> tuple[OperatingPoint, ...]:
    """The operating point of the kept epoch, from its row of metrics.csv."""
    rate = settings.validation_false_positives
    if not row.get("num_lesions"):
        return (OperatingPoint(name="default", threshold=protocol.threshold, source="default"),)
    return (
        OperatingPoint(
            name=f"{rate:g} false positive{'' if rate == 1 else 's'} per case",
            threshold=row["threshold"],
            source="validation",
            lesion_sensitivity=row["lesion_sensitivity"],
            false_positives_per_case=rate,
            num_lesions=row["num_lesions"],
        ),
    )


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
