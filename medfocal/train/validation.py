"""Validations: lesions that a network finds on whole cases, with an interval, and the operating point of the best."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medfocal.data.stored import EvaluationCase
from medfocal.evaluate import CaseTable, Evaluation, Protocol, evaluate_case, evaluate_cases
from medfocal.evaluate.froc import froc
from medfocal.evaluate.judge import judge
from medfocal.evaluate.pool import pool
from medfocal.infer.predict import predict_case
from medfocal.model import Model, ModelCard, OperatingPoint
from medfocal.progress import track
from medfocal.train.ranks import ALONE, Ranks
from medfocal.train.settings import TrainerSettings
from medfocal.train.visits import missed_lesions

LOG = logging.getLogger("medfocal.train")

#: Resamples of patients behind the interval of a validation.
VALIDATION_RESAMPLES = 500


def validate(
    network: nn.Module,
    cases: Sequence[EvaluationCase],
    card: ModelCard,
    protocol: Protocol,
    settings: TrainerSettings,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Any], tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """What metrics.csv keeps of a validation, and the volumes of lesions and which of them were missed.

    The processes share out the cases; each gets the same answer.
    """
    tables = ranks.in_order(evaluate_network(network, ranks.own(cases), card, protocol, device))
    answer = None
    if ranks.is_first:
        found = evaluate_cases(tables, replace(protocol, num_resamples=0))
        figures = validation_figures(found, tables, settings.validation_false_positives, protocol)
        answer = figures, missed_lesions(found, figures["threshold"])
    answer = ranks.told_by_first(answer)
    assert answer is not None, "the first one has said"
    return answer


def evaluate_network(
    network: nn.Module,
    cases: Sequence[EvaluationCase],
    card: ModelCard,
    protocol: Protocol,
    device: torch.device,
) -> list[CaseTable]:
    """Measure whole cases on their own grids."""
    model = Model((network,), card, weights_sha256=("",))
    tables = []
    for case in track(cases, "validate", len(cases)):
        found = predict_case(model, case.prepared(), device=device)
        tables.append(
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
    return tables


def validation_figures(
    evaluation: Evaluation, tables: Sequence[CaseTable], rate: float, protocol: Protocol
) -> dict[str, Any]:
    """What metrics.csv keeps of a validation: the FROC at `rate` false positives per case, with its interval."""
    found = froc(
        pool([judge(table, protocol) for table in tables]),
        (rate,),
        level=protocol.level,
        num_resamples=min(VALIDATION_RESAMPLES, protocol.num_resamples),
        seed=protocol.seed,
        interval=protocol.interval,
    )
    (point,) = found.points
    return {
        "lesion_sensitivity": point.lesion_sensitivity,
        "lesion_sensitivity_low": point.low,
        "lesion_sensitivity_high": point.high,
        "cpm": evaluation.froc.cpm,
        "threshold": min(point.threshold, 1.0),  # infinite: not even the surest candidate may count
        "voxel_dice": evaluation.voxel_dice.mean,
        "num_lesions": evaluation.num_lesions,
    }


def tell_choice(rows: Sequence[Mapping[str, Any]], epoch: int) -> None:
    """Log the kept epoch, and how many others did as well within its interval: among them the choice is chance."""
    chosen = next((row for row in rows if row["epoch"] == epoch), {})
    if not chosen.get("num_lesions"):
        return
    low, high = chosen["lesion_sensitivity_low"], chosen["lesion_sensitivity_high"]
    validated = [row for row in rows if row.get("num_lesions") and row["epoch"] != epoch]
    alike = sum(low <= row["lesion_sensitivity"] <= high for row in validated)
    LOG.info(
        "kept epoch %d: lesion sensitivity %.2f, interval %.2f to %.2f on %d lesions%s",
        epoch, chosen["lesion_sensitivity"], low, high, chosen["num_lesions"],
        f"; {alike} of the {len(validated)} other validated epochs lie within it, so the choice among them may be "
        "chance" if alike else "",
    )  # fmt: skip


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
