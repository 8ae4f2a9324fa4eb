"""Training cases with what their annotations teach, and cases to evaluate with a reference, whoever drew it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfocal.annotations.confusion import MarkCounts, estimate_rates, smoothing_matrix
from medfocal.annotations.fusion import Fusion
from medfocal.annotations.smoothing import NoSmoothing
from medfocal.annotations.target import (
    AnnotationSettings,
    Disagreement,
    Smoothing,
    Target,
    as_marks,
    fused_label,
    make_target,
)
from medfocal.data.cases import CaseVolumes, read_case
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.data.transforms import PreparedCase, Preprocessing, prepare_case
from medfocal.errors import DatasetError
from medfocal.progress import track

LOG = logging.getLogger("medfocal.data")


@dataclass(frozen=True)
class TaughtCases:
    """Training cases and what is known of their annotations.

    Attributes:
        cases: With a target each; without one where the label alone is the target.
        smoothing: Rows of class probabilities for the loss's `label_smoothing`, estimated from the readers, or None.
        record: For `annotations.json`.
    """

    cases: list[PreparedCase]
    smoothing: list[list[float]] | None
    record: dict[str, Any]

    @property
    def is_soft(self) -> bool:
        """Whether the targets are shares."""
        return any(case.target is not None and case.target.is_soft for case in self.cases)

    @property
    def is_weighted(self) -> bool:
        """Whether voxels have weights."""
        return any(case.target is not None and case.target.weight is not None for case in self.cases)


def read_training(manifest: Manifest, preprocessing: Preprocessing, settings: AnnotationSettings) -> list[PreparedCase]:
    """Read and prepare the training split with all that `teach` may need of it, with progress.

    Raises:
        InputError: A case cannot be read or its files do not belong together; it is named.
        DatasetError: No case has a weight map where some are asked for.
    """
    cases = manifest.split("training")
    weights = find_weights(cases, settings)
    prepared = []
    for case in track(cases, "read training"):
        weight = weights.get(case.name)
        volumes = read_case(case, manifest.scheme, with_readers=settings.uses_readers, weight=weight)
        prepared.append(prepare_case(volumes, preprocessing))
    return prepared


def teach(
    cases: Sequence[PreparedCase], settings: AnnotationSettings, smoothing: Smoothing, num_classes: int
) -> TaughtCases:
    """Give training cases their targets.

    Args:
        cases: From `read_training`, with the same settings.
        settings: Who is believed.
        smoothing: Of what was drawn.
        num_classes: With the background.

    Raises:
        DatasetError: The annotations cannot serve as the settings ask.
    """
    weights = [case.weight is not None for case in cases]
    record: dict[str, Any] = {
        "fusion": settings.fusion,
        "disagreement": settings.disagreement,
        "num_weight_maps": sum(weights),
        "cases": [],
    }
    if not settings.uses_readers and isinstance(smoothing, NoSmoothing) and not any(weights):
        _refuse_without_label(cases)
        return TaughtCases(list(cases), None, record)
    if settings.uses_readers:
        _refuse_idle_readers(cases, settings)
    taught = [_with_target(case, settings, smoothing, num_classes) for case in cases]
    taught = _alike(taught, num_classes - 1)
    record["cases"] = [case.target.record | _mean_weights(case.target) for case in taught if case.target is not None]
    matrix = None
    if settings.estimate_smoothing:
        matrix, record["readers"] = _estimate_smoothing(cases, settings.fusion, num_classes)
        record["label_smoothing"] = matrix
    return TaughtCases([replace(case, readers=None, weight=None) for case in taught], matrix, record)


def read_case_with_reference(case: Case, scheme: LabelScheme, fusion: Fusion) -> CaseVolumes:
    """Read a case to evaluate; without a label its annotations, fused, are the reference.

    Raises:
        InputError: See `read_case`.
    """
    volumes = read_case(case, scheme, with_readers=case.label is None)
    if volumes.readers is None:
        return volumes
    return replace(volumes, label=fused_label(volumes.readers, fusion, num_classes=scheme.num_classes).astype(np.int16))


def _with_target(
    case: PreparedCase, settings: AnnotationSettings, smoothing: Smoothing, num_classes: int
) -> PreparedCase:
    """A case with its target; what patches are centred on replaces its label."""
    import torch

    target = make_target(
        case.case.name,
        reference=None if case.label is None else case.label.numpy(),
        readers=case.readers,
        settings=settings,
        smoothing=smoothing,
        num_classes=num_classes,
        affine=case.affine,
        image=case.image.numpy(),
        weight=case.weight,
    )
    return replace(case, label=torch.from_numpy(target.lesions), target=target)


def _mean_weights(target: Target) -> dict[str, float]:
    """Of a target with weights, over all voxels and over the marked ones; NaN where none is marked."""
    if target.weight is None:
        return {}
    marked = target.weight[target.lesions > 0]
    of_lesions = float(marked.mean()) if len(marked) else math.nan
    return {"mean_weight": float(target.weight.mean()), "mean_weight_of_lesions": of_lesions}


def _alike(cases: Sequence[PreparedCase], num_lesion_classes: int) -> list[PreparedCase]:
    """Shares for all where one case has shares, weights for all where one has weights."""
    targets = [case.target for case in cases if case.target is not None]
    if any(target.is_soft for target in targets):
        targets = [target.with_shares(num_lesion_classes) for target in targets]
    if any(target.weight is not None for target in targets):
        targets = [
            target if target.weight is not None else replace(target, weight=np.ones(target.lesions.shape, np.float32))
            for target in targets
        ]
    return [replace(case, target=target) for case, target in zip(cases, targets, strict=True)]


def find_weights(cases: Sequence[Case], settings: AnnotationSettings) -> dict[str, Path]:
    """The map of voxel weights of each case that has one, by its name.

    Raises:
        DatasetError: No case has one where the settings name a folder of them.
    """
    if settings.weights is None:
        return {}
    folder = Path(settings.weights)
    named = {case.name: folder / f"{case.name}_weight.nii.gz" for case in cases}
    found = {name: path for name, path in named.items() if path.is_file()}
    if not found:
        message = (
            f"annotations.weights: '{folder}' holds no weight map of any of the {len(cases)} training cases; "
            f"they are looked for under names such as '{next(iter(named.values())).name}'"
        )
        raise DatasetError(message)
    return found


def _refuse_without_label(cases: Sequence[PreparedCase]) -> None:
    without = [case.case.name for case in cases if case.label is None]
    if without:
        message = (
            f"{len(without)} training cases have annotations and no 'label', such as '{without[0]}'. "
            "Choose annotations=majority or another fusion to learn from the readers."
        )
        raise DatasetError(message)


def _refuse_idle_readers(cases: Sequence[PreparedCase], settings: AnnotationSettings) -> None:
    """Refuse settings that no case could follow; they would have no effect, and the user would not know."""
    most = max((0 if case.readers is None else len(case.readers) for case in cases), default=0)
    if most == 0:
        message = (
            f"no training case has 'annotations', which annotations={settings.fusion} with "
            f"annotations.disagreement={settings.disagreement} is about. Name them in the dataset file, or set "
            "annotations=reference annotations.disagreement=keep."
        )
        raise DatasetError(message)
    if settings.estimate_smoothing and any(c.readers is not None and c.readers.dtype.kind == "f" for c in cases):
        message = (
            "annotations.estimate_smoothing is of readers who gave classes, and some gave shares between 0 and 1, "
            "which hold their doubt already. Set it to false."
        )
        raise DatasetError(message)
    needs_two = settings.estimate_smoothing or settings.disagreement is not Disagreement.KEEP
    if most == 1 and needs_two:
        what = "estimate_smoothing" if settings.estimate_smoothing else f"disagreement={settings.disagreement}"
        message = f"annotations.{what} needs cases with two readers or more, and every training case has at most one"
        raise DatasetError(message)


def _estimate_smoothing(
    cases: Sequence[PreparedCase], fusion: Fusion, num_classes: int
) -> tuple[list[list[float]], dict[str, Any]]:
    counts = MarkCounts()
    for case in cases:
        if case.readers is not None:
            counts.add(as_marks(case.readers))
    rates = estimate_rates(counts, num_classes)
    matrix = smoothing_matrix(rates, fusion)
    record = {
        "confusion": rates.confusion.tolist(),
        "prior": rates.prior.tolist(),
        "num_iterations": rates.num_iterations,
        "converged": rates.converged,
    }
    return [[float(value) for value in row] for row in matrix], record


def log_annotations(record: Mapping[str, Any]) -> None:
    """Log how many readers there were, how well they agree, and for which cases another way was taken."""
    cases = record["cases"]
    if record["num_weight_maps"]:
        LOG.info("%d of %d training cases have voxel weights", record["num_weight_maps"], len(cases))
    weights = [case["mean_weight"] for case in cases if "mean_weight" in case]
    of_lesions = [case["mean_weight_of_lesions"] for case in cases if "mean_weight_of_lesions" in case]
    of_lesions = [value for value in of_lesions if not math.isnan(value)]
    if weights and of_lesions:
        LOG.info(
            "voxels weigh %.3f on average, marked ones %.3f; least of a case: %.3f and %.3f",
            sum(weights) / len(weights), sum(of_lesions) / len(of_lesions), min(weights), min(of_lesions),
        )  # fmt: skip
    counts = [case["num_readers"] for case in cases if "num_readers" in case]
    if counts:
        by_number = ", ".join(f"{counts.count(n)} with {n}" for n in sorted(set(counts)))
        LOG.info("readers of the training cases: %s; fusion %s", by_number, record["fusion"])
    dice = [pair["voxel_dice"] for case in cases for pair in case.get("agreement", [])]
    dice = [value for value in dice if not math.isnan(value)]
    if dice:
        LOG.info("pairs of readers agree with a Dice of %.2f on average (%d pairs)", sum(dice) / len(dice), len(dice))
    for case in cases:
        if "problem" in case:
            LOG.warning("case '%s': %s", case["case"], case["problem"])
    if "readers" in record:
        for number, confusion in enumerate(record["readers"]["confusion"], start=1):
            marked = ", ".join(f"{1 - row[0]:.2g}" for row in confusion[1:])
            LOG.info(
                "reader %d marks %s of a lesion's voxels, and %.2g of the others", number, marked, 1 - confusion[0][0]
            )
        if not record["readers"]["converged"]:
            LOG.warning("the rates of the readers had not settled after %d steps", record["readers"]["num_iterations"])
        rows = [", ".join(f"{value:.3g}" for value in row) for row in record["label_smoothing"]]
        rows = [f"where the label is {label}, classes 0, 1, … by {row}" for label, row in enumerate(rows)]
        LOG.info("label smoothing by the readers' rates: %s", "; ".join(rows))
