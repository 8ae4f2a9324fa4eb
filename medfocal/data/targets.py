"""Training cases with what their annotations teach, and cases to evaluate with a reference, whoever drew it."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.confusion import MarkCounts, estimate_rates, smoothing_matrix
from medfocal.annotations.fusion import Fusion
from medfocal.annotations.smoothing import NoSmoothing
from medfocal.annotations.target import (
    AnnotationSettings,
    Disagreement,
    Smoothing,
    Target,
    fused_label,
    make_target,
)
from medfocal.data.cache import Cache, Entry, Writer
from medfocal.data.cases import CaseVolumes, read_case
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.stored import (
    EvaluationCase,
    Keys,
    Precision,
    TrainingCase,
    estimated_bytes,
    find_missing,
    image_key,
    open_evaluation,
    open_training,
    reference_key,
    store_image,
    store_reference,
    store_target,
    target_key,
)
from medfocal.data.transforms import PreparedCase, Preprocessing, prepare_case
from medfocal.errors import DatasetError, InputError, ResourceError
from medfocal.parallel import available_cores, in_processes
from medfocal.progress import track

LOG = logging.getLogger("medfocal.data")

#: A process takes seconds to start, as long as several cases.
CASES_PER_WORKER = 16


@dataclass(frozen=True)
class TaughtCases:
    """Training cases and what is known of their annotations.

    Attributes:
        cases: With a target each.
        smoothing: Rows of class probabilities for the loss's `label_smoothing`, estimated from the readers, or None.
        record: For `annotations.json`.
    """

    cases: list[TrainingCase]
    smoothing: list[list[float]] | None
    record: dict[str, Any]

    @property
    def is_soft(self) -> bool:
        """Whether some target is shares, so that all are taught as shares."""
        return any(case.target.is_soft for case in self.cases)

    def membership(self, scheme: LabelScheme) -> NDArray[np.float32] | None:
        """Share of each class in what the network tells apart, `(classes, T)`; None where classes are taught."""
        if scheme.regions:
            columns = [[float(number in region) for number in scheme.names] for region in scheme.regions.values()]
            return np.array(columns, np.float32).T
        return np.eye(scheme.num_classes, dtype=np.float32)[:, 1:] if self.is_soft else None

    @property
    def is_weighted(self) -> bool:
        """Whether voxels of some case have weights, so that all have."""
        return any(case.target.weight is not None for case in self.cases)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How cases become arrays.

    Attributes:
        scheme: What label values mean.
        preprocessing: Travels with the model.
        precision: Of stored images.
        annotations: Who is believed about the training cases.
        smoothing: Of what was drawn.
    """

    scheme: LabelScheme
    preprocessing: Preprocessing
    precision: Precision
    annotations: AnnotationSettings
    smoothing: Smoothing

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of stored images."""
        return self.precision.dtype(self.preprocessing.intensity)

    def taught_bytes(self, case: Case, weight: Path | None) -> int:
        """Bytes a voxel of what a case teaches, if its readers gave classes, and left voxels out if they may."""
        fusion, num_readers = self.annotations.fusion, len(case.annotations)
        each = shares = 2 * (self.scheme.num_classes - 1)
        if isinstance(self.smoothing, NoSmoothing):
            of_readers = {Fusion.STAPLE: shares, Fusion.MEAN: shares if num_readers > 1 else 1, Fusion.RANDOM: 1}
            each = of_readers.get(fusion, 0) if num_readers else 0
        num_targets = max(num_readers, 1) if fusion is Fusion.RANDOM else 1
        disagreement = self.annotations.disagreement if num_readers > 1 else Disagreement.KEEP
        weights = int(disagreement is Disagreement.IGNORE or self.scheme.ignore_value is not None)
        if weight is not None or disagreement is Disagreement.WEIGHT:
            weights = 4
        return 1 + num_targets * each + weights


def prepare_training(cases: Sequence[Case], recipe: Recipe, cache: Cache, *, workers: int | None = None) -> TaughtCases:
    """Bring training cases into the cache, where they are not, and open them; with progress.

    Args:
        cases: The training split.
        recipe: How they become arrays.
        cache: Where the arrays lie.
        workers: Processes that make arrays; None: as many as pay.

    Raises:
        InputError: A case cannot be read or its files do not belong together; it is named.
        DatasetError: The annotations cannot serve as the settings ask.
        ResourceError: The arrays do not fit into the cache.
    """
    settings = recipe.annotations
    _refuse_idle_readers(cases, settings)
    _refuse_without_label(cases, settings)
    weights = find_weights(cases, settings)
    jobs = _training_jobs(cases, recipe, weights)
    _make_missing(jobs, recipe, cache, workers, "prepare training")
    opened = []
    for job in jobs:
        entries = _entry(cache, "image", job.keys.image), _entry(cache, "target", job.keys.target)
        opened.append(open_training(job.case, *entries))
    return taught(opened, settings, recipe.smoothing, recipe.scheme.num_classes, num_weight_maps=len(weights))


def prepare_evaluation(
    cases: Sequence[Case], recipe: Recipe, cache: Cache, *, workers: int | None = None
) -> list[EvaluationCase]:
    """Bring cases to validate on into the cache, where they are not, and open them; with progress.

    Without a label the annotations of a case, fused, are its reference.

    Raises:
        InputError: A case cannot be read or its files do not belong together; it is named.
        ResourceError: The arrays do not fit into the cache.
    """
    jobs = _evaluation_jobs(cases, recipe)
    _make_missing(jobs, recipe, cache, workers, "prepare validation")
    return [
        open_evaluation(
            job.case, _entry(cache, "image", job.keys.image), _entry(cache, "reference", job.keys.reference)
        )
        for job in jobs
    ]


@dataclass(frozen=True)
class _Job:
    case: Case
    keys: Keys
    weight: Path | None = None


def check_room(training: Sequence[Case], validation: Sequence[Case], recipe: Recipe, cache: Cache) -> None:
    """See before anything is made that what the cache lacks of all these cases fits into it.

    Raises:
        InputError: A file is missing or its header cannot be read.
        DatasetError: No case has a weight map where some are asked for.
        ResourceError: They do not fit; says how much is needed.
    """
    weights = find_weights(training, recipe.annotations)
    jobs = [*_training_jobs(training, recipe, weights), *_evaluation_jobs(validation, recipe)]
    cache.check_room(sum(_bytes_needed(job, recipe, find_missing(cache, job.keys, verify=False)) for job in jobs))


def _training_jobs(cases: Sequence[Case], recipe: Recipe, weights: Mapping[str, Path]) -> list[_Job]:
    jobs = []
    for case in track(cases, "digest training"):
        weight = weights.get(case.name)
        jobs.append(_Job(case, _keys_of(case, recipe, weight, is_taught=True), weight))
    return jobs


def _evaluation_jobs(cases: Sequence[Case], recipe: Recipe) -> list[_Job]:
    return [_Job(case, _keys_of(case, recipe, None, is_taught=False)) for case in track(cases, "digest validation")]


def _keys_of(case: Case, recipe: Recipe, weight: Path | None, *, is_taught: bool) -> Keys:
    """The keys of what a case's files hold now."""
    image = image_key(case, recipe.preprocessing, recipe.dtype)
    if not is_taught:
        return Keys(image, reference=reference_key(case, recipe.scheme, recipe.annotations.fusion))
    return Keys(image, target=target_key(image, case, recipe.scheme, recipe.annotations, recipe.smoothing, weight))


def _bytes_needed(job: _Job, recipe: Recipe, missing: Sequence[str]) -> float:
    return estimated_bytes(
        job.case,
        recipe.preprocessing,
        recipe.dtype,
        missing=missing,
        taught_bytes=recipe.taught_bytes(job.case, job.weight),
    )


def _entry(cache: Cache, kind: str, key: str | None) -> Entry:
    found = None if key is None else cache.find(kind, key, verify=False)
    if found is None:
        message = f"'{cache.folder / f'{kind}-{key}'}' was there a moment ago; was the cache deleted meanwhile?"
        raise ResourceError(message)
    return found


def _make_missing(jobs: Sequence[_Job], recipe: Recipe, cache: Cache, workers: int | None, description: str) -> None:
    """Make the entries that the cache lacks, once it is known that they fit."""
    missing = {job.case.name: find_missing(cache, job.keys) for job in jobs}
    todo = [job for job in jobs if missing[job.case.name]]
    cache.check_room(sum(_bytes_needed(job, recipe, missing[job.case.name]) for job in todo))
    if not todo:
        return
    if workers is None:
        workers = max(1, min(available_cores(), len(todo) // CASES_PER_WORKER))
    task = functools.partial(_make, recipe=recipe, cache=cache)
    with in_processes(
        task, todo, workers, what="prepared cases", name=lambda job: job.case.name, setting="cache.workers"
    ) as answers:
        for _ in track(answers, description, len(todo)):
            pass


def _make(job: _Job, *, recipe: Recipe, cache: Cache) -> None:
    """Read a case and make what the cache lacks of it.

    It is read, and its image made, while what is made of it is locked, so that another process that wants the same
    waits instead of reading it too.
    """
    settings, case, keys = recipe.annotations, job.case, job.keys

    @functools.cache
    def volumes() -> CaseVolumes:
        if keys.target is None:
            found = read_case_with_reference(case, recipe.scheme, settings.fusion)
        else:
            found = read_case(case, recipe.scheme, with_readers=settings.uses_readers, weight=job.weight)
        # What was read must not be kept under the digest of what stood there before.
        if _keys_of(case, recipe, job.weight, is_taught=keys.target is not None) != keys:
            message = f"case '{case.name}': a file was changed while it was read. Start again once all is in place."
            raise InputError(message)
        return found

    @functools.cache
    def prepared() -> PreparedCase:
        return prepare_case(volumes(), recipe.preprocessing)

    def have_image() -> None:
        cache.get("image", keys.image, lambda writer: store_image(writer, prepared(), recipe.dtype))

    def make_target_entry(writer: Writer) -> Mapping[str, Any]:
        have_image()
        target = teach(prepared(), settings, recipe.smoothing, recipe.scheme.num_classes)
        return store_target(writer, prepared(), target)

    def make_reference(writer: Writer) -> Mapping[str, Any]:
        have_image()
        found = volumes()
        assert found.label is not None, "the manifest sees to it"
        return store_reference(writer, found.grid, found.label, found.ignore)

    if keys.target is not None:
        cache.get("target", keys.target, make_target_entry)
    if keys.reference is not None:
        cache.get("reference", keys.reference, make_reference)
    have_image()  # where only that was missing


def teach(case: PreparedCase, settings: AnnotationSettings, smoothing: Smoothing, num_classes: int) -> Target:
    """What a training case teaches; voxels that nobody judged weigh nothing.

    Args:
        case: With what the settings ask for: readers, weights.
        settings: Who is believed.
        smoothing: Of what was drawn.
        num_classes: With the background.

    Raises:
        DatasetError: The annotations cannot serve as the settings ask.
    """
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
    if case.ignore is None:
        return target
    weight = np.ones(case.ignore.shape, np.float32) if target.weight is None else target.weight
    return replace(target, weight=np.where(case.ignore, np.float32(0), weight))


def taught(
    cases: Sequence[TrainingCase],
    settings: AnnotationSettings,
    smoothing: Smoothing,
    num_classes: int,
    *,
    num_weight_maps: int = 0,
) -> TaughtCases:
    """What the training cases teach together.

    Raises:
        DatasetError: Readers' error rates are asked for and cannot be estimated.
    """
    record: dict[str, Any] = {
        "fusion": settings.fusion,
        "disagreement": settings.disagreement,
        "num_weight_maps": num_weight_maps,
        "cases": [],
    }
    found = TaughtCases(list(cases), None, record)
    if settings.uses_readers or not isinstance(smoothing, NoSmoothing) or found.is_weighted:
        weighted = found.is_weighted
        record["cases"] = [case.target.record | _mean_weights(case.target, weighted=weighted) for case in cases]
    if not settings.estimate_smoothing:
        return found
    _refuse_shares(cases)
    matrix, record["readers"] = _estimate_smoothing(cases, settings.fusion, num_classes)
    record["label_smoothing"] = matrix
    return replace(found, smoothing=matrix)


def read_case_with_reference(case: Case, scheme: LabelScheme, fusion: Fusion) -> CaseVolumes:
    """Read a case to evaluate; without a label its annotations, fused, are the reference.

    Raises:
        InputError: See `read_case`.
    """
    volumes = read_case(case, scheme, with_readers=case.label is None)
    if volumes.readers is None:
        return volumes
    return replace(volumes, label=fused_label(volumes.readers, fusion, num_classes=scheme.num_classes).astype(np.int16))


def _mean_weights(target: Target, *, weighted: bool) -> dict[str, float]:
    """Of the voxels, over all and over the marked ones; NaN where none is marked, nothing where no case has any."""
    if not weighted:
        return {}
    inside = np.asarray(target.lesions) > 0
    if target.weight is None:
        return {"mean_weight": 1.0, "mean_weight_of_lesions": 1.0 if inside.any() else math.nan}
    weight = np.asarray(target.weight)
    of_lesions = float(weight[inside].mean()) if inside.any() else math.nan
    return {"mean_weight": float(weight.mean()), "mean_weight_of_lesions": of_lesions}


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


def _refuse_without_label(cases: Sequence[Case], settings: AnnotationSettings) -> None:
    without = [case.name for case in cases if case.label is None]
    if without and settings.fusion is Fusion.REFERENCE:
        message = (
            f"{len(without)} training cases have annotations and no 'label', such as '{without[0]}'. "
            "Choose annotations=majority or another fusion to learn from the readers."
        )
        raise DatasetError(message)


def _refuse_idle_readers(cases: Sequence[Case], settings: AnnotationSettings) -> None:
    """Refuse settings that no case could follow; they would have no effect, and the user would not know."""
    if not settings.uses_readers:
        return
    most = max((len(case.annotations) for case in cases), default=0)
    if most == 0:
        message = (
            f"no training case has 'annotations', which annotations={settings.fusion} with "
            f"annotations.disagreement={settings.disagreement} is about. Name them in the dataset file, or set "
            "annotations=reference annotations.disagreement=keep."
        )
        raise DatasetError(message)
    needs_two = settings.estimate_smoothing or settings.disagreement is not Disagreement.KEEP
    if most == 1 and needs_two:
        what = "estimate_smoothing" if settings.estimate_smoothing else f"disagreement={settings.disagreement}"
        message = f"annotations.{what} needs cases with two readers or more, and every training case has at most one"
        raise DatasetError(message)


def _refuse_shares(cases: Sequence[TrainingCase]) -> None:
    if any(case.readers.gave_shares for case in cases):
        message = (
            "annotations.estimate_smoothing is of readers who gave classes, and some gave shares between 0 and 1, "
            "which hold their doubt already. Set it to false."
        )
        raise DatasetError(message)


def _estimate_smoothing(
    cases: Sequence[TrainingCase], fusion: Fusion, num_classes: int
) -> tuple[list[list[float]], dict[str, Any]]:
    counts = MarkCounts()
    for case in cases:
        counts.voxels.update(case.readers.counts.voxels)
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
