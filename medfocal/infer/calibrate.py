"""Operating points of a model from cases that it has not learnt from, with a guarantee where patients suffice."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.fusion import Fusion
from medfocal.components import Confidence
from medfocal.data.manifest import Case, Manifest
from medfocal.data.targets import read_case_with_reference
from medfocal.data.transforms import prepare_case
from medfocal.errors import ConfigError, DatasetError, ModelError
from medfocal.evaluate.bootstrap import replicate
from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.froc import froc
from medfocal.evaluate.intervals import mean_score
from medfocal.evaluate.judge import CaseOutcome, Verdict, judge
from medfocal.evaluate.operating_points import (
    false_positives_per_case_at,
    sensitivity_at,
    sensitivity_at_rates,
    threshold_at_rate,
)
from medfocal.evaluate.pool import Pool, pool
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.risk import (
    MissCurve,
    controlled_threshold,
    hoeffding_bentkus,
    miss_curve,
    patients_needed,
)
from medfocal.evaluate.table import CaseTable
from medfocal.files import make_folder, plain, write_json
from medfocal.infer.candidates import calibrated_confidence, candidate_features
from medfocal.infer.familiar import Figures, deepest_module, describe_cases, image_figures, watched
from medfocal.infer.fit import (
    TEMPERATURES,
    LabelledVoxels,
    Reliability,
    corrected_rule,
    fit_correction,
    fit_logistic,
    reliability,
    sample_voxels,
    voxel_reliability,
)
from medfocal.infer.predict import VIEWS, predict_case
from medfocal.model import CARD, MOST_ML, NO_CORRECTION, Guarantee, Model, ModelCard, OperatingPoint, save_model
from medfocal.progress import track

if TYPE_CHECKING:
    import torch

Promise = Literal["expectation", "probability"]
#: Splits that a model has not learnt from.
SPLITS = ("validation", "test")
#: What is written beside the model.
RECORD = "calibration.json"
#: A label for cases without one: what most of the readers marked.
FUSION = Fusion.MAJORITY
REUSED = (
    "warning: the model's epoch was chosen on this split, so all figures are somewhat too good, and a guarantee does "
    "not strictly hold. Take a split that chose nothing, such as split=test of other patients."
)


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """What a model is calibrated for.

    Args:
        split: Of the dataset, "validation" or "test".
        false_positives: Rates of false candidates per case, each an operating point; the first is the default.
        sensitivity: Share of a patient's lesions that is to be found; None: no such operating point.
        min_diameter_mm: Of the lesions that the sensitivity is of.
        guarantee: Whether misses are bounded in "expectation" or, over calibration sets, with a "probability".
        confidence_level: That probability.
        correct: Whether voxel probabilities are corrected.
        confidence: "logistic", "max" or "mean_top"; None: as the model has it.
        cut: Probability above which connected voxels are one candidate; 0: none, candidates of every height; None: as
            the model has it.
        separate: Whether a candidate with several hills is split into them; None: as the model has it.
        min_volume_ml: Below which there is no candidate; None: as the model has it.
        tta: "mirror" averages over the eight mirrored views of every window, as predict then has to.
        fit_share: Share of the patients that correction and logistic confidence are fitted on. The others choose the
            thresholds, since a guarantee holds for a confidence that they had no say in. Without either, all choose.
    """

    split: str = "validation"
    false_positives: Sequence[float] = (0.5, 1.0, 2.0)
    sensitivity: float | None = 0.9
    min_diameter_mm: float = 3.0
    guarantee: Promise = "expectation"
    confidence_level: float = 0.9
    correct: bool = False
    confidence: str | None = None
    cut: float | None = None
    separate: bool | None = None
    min_volume_ml: float | None = None
    tta: str = "none"
    fit_share: float = 0.3

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "split": SPLITS,
            "guarantee": get_args(Promise),
            "confidence": (None, "logistic", *get_args(Confidence)),
            "tta": VIEWS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                message = f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}"
                raise ValueError(message)
        for name in ("sensitivity", "confidence_level", "fit_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                message = f"{name} must be in (0, 1), got {value}"
                raise ValueError(message)
        rates = list(self.false_positives)
        if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            message = f"false_positives must be distinct rates above 0, got {rates}"
            raise ValueError(message)
        if not rates and self.sensitivity is None:
            message = "false_positives is empty and sensitivity null: there is no operating point to choose"
            raise ValueError(message)
        if not 0 <= self.min_diameter_mm < math.inf:
            message = f"min_diameter_mm must be 0 or more, got {self.min_diameter_mm}"
            raise ValueError(message)
        if self.cut is not None and not 0 <= self.cut <= 1:
            message = f"cut must be a probability, or 0 for none, got {self.cut}"
            raise ValueError(message)
        if self.min_volume_ml is not None and not 0 <= self.min_volume_ml <= MOST_ML:
            message = f"min_volume_ml must be from 0 to {MOST_ML:g}, got {self.min_volume_ml}"
            raise ValueError(message)

    @property
    def is_fitted(self) -> bool:
        """Whether anything is fitted on cases before thresholds are chosen."""
        return self.correct or self.confidence == "logistic"

    @property
    def is_mirrored(self) -> bool:
        """Whether probabilities are the mean over mirrored views."""
        return self.tta == "mirror"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a calibration found.

    Attributes:
        folder: Of the new model.
        card: Of the new model.
        num_cases: Cases of the split that are annotated.
        num_patients: Their patients.
        num_fitted: Of the patients those that correction or confidence were fitted on; 0: none were.
        left_out: Why operating points that were asked for are not there.
        notes: What else there is to know.
        voxels: Reliability of voxel probabilities before and after the correction; None: not corrected.
        candidates: Of the confidence of candidates before and after the logistic regression; None: there was none.
    """

    folder: Path
    card: ModelCard
    num_cases: int
    num_patients: int
    num_fitted: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    voxels: tuple[Reliability, Reliability] | None
    candidates: tuple[Reliability, Reliability] | None

    @property
    def record(self) -> Path:
        """The file with all of it."""
        return self.folder / RECORD


@dataclass(frozen=True, eq=False)
class _Seen:
    """A case that was predicted."""

    table: CaseTable
    features: NDArray[np.float64]
    figures: Figures


def calibrate(
    model: Model,
    manifest: Manifest,
    output: Path,
    *,
    settings: CalibrateSettings,
    protocol: Protocol,
    device: torch.device,
) -> Calibration:
    """Predict the cases of a split, choose operating points on them, and write the model anew with these.

    Lesions are found, and candidates judged, by the protocol; candidates are formed as the model's card says. A case
    without a label has the majority of its readers for one.

    Args:
        model: Its networks are on `device`.
        manifest: The dataset.
        output: Folder of the new model, beside which `calibration.json` is written.
        settings: What for.
        protocol: How candidates are judged.
        device: Where to compute.

    Raises:
        DatasetError: The split has no annotated case, no lesion or one patient; or too little to fit on.
        ModelError: The model lacks what a correction needs.
        ConfigError: The output holds a model that no calibration has written.
        ResourceError: The output cannot be written, or memory does not suffice.
    """
    if (output / CARD).exists() and not (output / RECORD).exists():
        message = f"output '{output}' holds a model that was not written by calibrate and would be lost. Name another."
        raise ConfigError(message)
    was_there = output.exists()
    make_folder(output)  # before hours of work
    try:
        return _calibrate(model, manifest, output, settings=settings, protocol=protocol, device=device)
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):  # something was written
                output.rmdir()
        raise


def _calibrate(
    model: Model,
    manifest: Manifest,
    output: Path,
    *,
    settings: CalibrateSettings,
    protocol: Protocol,
    device: torch.device,
) -> Calibration:
    cases = _cases_of(manifest, model.card, settings)
    patients = sorted({case.patient for case in cases})
    fitting = _fitting_patients(patients, settings, protocol.seed)
    is_reused = chose_epoch(model.card, manifest, settings)
    card, notes, voxels = model.card, [REUSED] if is_reused else [], None
    if settings.correct:
        _refuse_second_correction(card, settings)
        own = [case for case in cases if case.patient in fitting]
        mirror = settings.is_mirrored
        card, voxels, said = _corrected_card(model, manifest, own, device=device, seed=protocol.seed, mirror=mirror)
        notes += said
    card = replace(card, candidates=_rule(card, settings))
    seen = list(_see(replace(model, card=card), manifest, cases, protocol, device, mirror=settings.is_mirrored))
    candidates = None
    if settings.confidence == "logistic":
        card, candidates, seen = _with_logistic(card, seen, fitting, protocol)
    choosing = [one.table for one in seen if one.table.patient not in fitting]
    outcomes = [judge(table, protocol) for table in choosing]
    source = _source(manifest, settings, outcomes, is_reused=is_reused)
    asked, unfit = settings, []
    if settings.sensitivity is not None and _was_fitted(model.card, settings):
        asked = replace(settings, sensitivity=None)
        unfit.append(
            f"lesion sensitivity {settings.sensitivity:g}: the model's correction or confidence was fitted by an "
            "earlier calibration, perhaps on these patients, and no promise holds for those. Calibrate the model that "
            "train wrote"
        )
    points, left_out, said = choose_points(pool(outcomes), asked, protocol, source)
    left_out += unfit
    notes += said
    if not points:
        message = "no operating point could be chosen:" + "".join(f"\n  - {why}" for why in left_out)
        raise DatasetError(message)
    familiar = describe_cases([one.figures for one in seen])
    points = [replace(point, mirrored=settings.is_mirrored) for point in points]
    card = replace(card, operating_points=tuple(points), familiar=familiar.to_dict())
    found = Calibration(
        folder=output,
        card=card,
        num_cases=len(cases),
        num_patients=len(patients),
        num_fitted=len(fitting),
        left_out=tuple(left_out),
        notes=tuple(notes),
        voxels=voxels,
        candidates=candidates,
    )
    write_json(found.record, _record(found, manifest, settings, protocol))
    save_model(output, model.networks, card)
    return found


def choose_points(
    found: Pool, settings: CalibrateSettings, protocol: Protocol, source: str
) -> tuple[list[OperatingPoint], list[str], list[str]]:
    """Choose the operating points that are asked for.

    Args:
        found: Lesions, candidates and cases.
        settings: Which ones.
        protocol: Level, resamples and seed of intervals.
        source: What the points say of where they come from.

    Returns:
        The points, in order; why others are left out; and what else there is to know.

    Raises:
        DatasetError: There is no lesion.
    """
    if not found.num_lesions:
        message = f"no lesion in the {found.num_cases} cases that the operating points are chosen on"
        raise DatasetError(message)
    points, left_out, notes = [], [], []
    make = functools.partial(_point, found, protocol, source)
    rates = tuple(sorted(settings.false_positives))
    read = {}
    if rates:
        curve = froc(
            found,
            rates,
            level=protocol.level,
            num_resamples=protocol.num_resamples,
            seed=protocol.seed,
            interval=protocol.interval,
        )
        read = {point.false_positives_per_case: point for point in curve.points}
    for rate in settings.false_positives:
        name = f"{rate:g} false positive{'' if rate == 1 else 's'} per case"
        threshold, of_curve = threshold_at_rate(found, rate), read[rate]
        if not len(found.candidate_confidence):
            left_out.append(
                f"{name}: there is no candidate in the {found.num_cases} cases. The card's candidates, or cut and "
                "min_volume_ml here, leave none"
            )
            continue
        if math.isinf(threshold):
            left_out.append(
                f"{name}: the surest candidates of the {found.num_cases} cases are false ones, more than {rate:g} a "
                "case, so no threshold keeps any candidate"
            )
            continue
        points.append(make(name, threshold, ends=(of_curve.low, of_curve.high)))
        if not of_curve.reached:
            notes.append(f"{name}: all candidates count there, and they make fewer false positives than that")
    if settings.sensitivity is not None:
        point, why = _guaranteed_point(found, settings, make)
        points += [] if point is None else [point]
        (left_out if point is None else notes).append(why)
    return points, left_out, notes


def _guaranteed_point(found: Pool, settings: CalibrateSettings, make: Any) -> tuple[OperatingPoint | None, str]:
    """The point of the highest threshold at which few enough lesions are missed; or None. With what to say of it."""
    assert settings.sensitivity is not None
    target = round(1 - settings.sensitivity, 12)
    level = settings.confidence_level if settings.guarantee == "probability" else None
    large = found.lesion_diameter_mm >= settings.min_diameter_mm
    curve = miss_curve(found.lesion_confidence[large], found.lesion_patient[large])
    least = settings.min_diameter_mm
    size = f"lesions of {least:g} mm or more" if least else "lesions"
    name = f"lesion sensitivity {settings.sensitivity:g}" + (f" from {least:g} mm" if least else "")
    threshold = controlled_threshold(curve, target, confidence_level=level)
    others = found.num_patients - curve.num_patients
    counted = f"{curve.num_patients} patients have {size}" + (f", {others} have none and don't count" if others else "")
    if threshold is None:
        return None, f"{name}: {_why_uncontrolled(curve, target, level, size, counted)}"
    guarantee = Guarantee(
        miss_rate=target,
        min_diameter_mm=settings.min_diameter_mm,
        num_patients=curve.num_patients,
        confidence=level,
    )
    missed = f"{100 * curve.at(threshold):.3g} % of a patient's are missed there on average"
    if level is not None:
        bound = hoeffding_bentkus(curve.at(threshold), curve.num_patients, confidence_level=level)
        missed += f", at most {100 * bound:.3g} % with a probability of {level:g}"
    return replace(make(name, threshold), guarantee=guarantee), f"{name}: {counted}; {missed}"


def _why_uncontrolled(curve: MissCurve, target: float, level: float | None, size: str, counted: str) -> str:
    if not curve.num_patients:
        return f"no patient has {size}"
    needed = patients_needed(curve.residual, target, confidence_level=level)
    missed = f"{100 * curve.residual:.3g} % of a patient's are in no candidate at all, on average"
    if needed is None:
        return (
            f"{counted}; {missed}, and at most {100 * target:.3g} % may be missed. No threshold and no number of "
            "patients mends that: ask for a lower sensitivity or for larger lesions, or train a model that finds more"
        )
    promise = "" if level is None else f" with a probability of {level:g}"
    return (
        f"{counted}, which are too few for a guarantee{promise}: {missed}, and with as many it takes {needed} patients "
        f"to promise that at most {100 * target:.3g} % are missed"
    )


def _point(
    found: Pool,
    protocol: Protocol,
    source: str,
    name: str,
    threshold: float,
    *,
    ends: tuple[float, float] | None = None,
) -> OperatingPoint:
    """A point with what is measured at it; without `ends` the interval is made as those of the FROC."""
    everybody = np.ones((1, found.num_patients))
    rate = float(false_positives_per_case_at(found, everybody, threshold)[0])
    low, high = _interval_at(found, protocol, threshold, rate) if ends is None else ends
    return OperatingPoint(
        name=name,
        threshold=threshold,
        source=source,
        lesion_sensitivity=float(sensitivity_at(found, everybody, threshold)[0]),
        lesion_sensitivity_low=None if math.isnan(low) else low,
        lesion_sensitivity_high=None if math.isnan(high) else high,
        false_positives_per_case=rate,
        num_lesions=found.num_lesions,
        num_patients=found.num_patients,
    )


def _interval_at(found: Pool, protocol: Protocol, threshold: float, rate: float) -> tuple[float, float]:
    """Interval of the sensitivity at a threshold that the data chose: with the variance of the FROC at its rate."""
    if not protocol.num_resamples:
        return math.nan, math.nan
    statistic = functools.partial(sensitivity_at_rates, found, rates=(rate,))
    resampled = replicate(
        statistic, found.num_patients, num_resamples=protocol.num_resamples, seed=protocol.seed
    ).resampled
    estimate = mean_score(
        found.lesion_confidence >= threshold,
        found.lesion_patient,
        float(np.nanvar(resampled)) if np.isfinite(resampled).any() else 0.0,
        level=protocol.level,
        method=protocol.interval,
    )
    return estimate.low, estimate.high


def _cases_of(manifest: Manifest, card: ModelCard, settings: CalibrateSettings) -> list[Case]:
    """The annotated cases of the split.

    Raises:
        DatasetError: There are none, they are of one patient, or the model takes other images.
    """
    if manifest.channels != tuple(card.channels):
        theirs, ours = list(manifest.channels), list(card.channels)
        message = f"'{manifest.path}' has the channels {theirs}, the model was trained on {ours}"
        raise DatasetError(message)
    all_cases = manifest.split(settings.split)
    cases = [case for case in all_cases if case.is_annotated]
    if not cases:
        why = f"its {len(all_cases)} cases have neither label nor annotations" if all_cases else "it has no case"
        message = f"'{manifest.path}': nothing can be chosen on the split '{settings.split}': {why}"
        raise DatasetError(message)
    if len({case.patient for case in cases}) == 1:
        message = (
            f"'{manifest.path}': the split '{settings.split}' has {len(cases)} annotated "
            f"{'case' if len(cases) == 1 else 'cases'} of one patient, '{cases[0].patient}', which say nothing of "
            "others. Take a split of more patients, or make one with data.num_folds."
        )
        raise DatasetError(message)
    if settings.correct and len(manifest.scheme.learnt) != len(card.labels):
        message = (
            f"'{manifest.path}' has the lesion classes {list(manifest.scheme.learnt.values())[1:]}, the model "
            f"{list(card.labels.values())[1:]}: probabilities of classes cannot be held against its labels"
        )
        raise DatasetError(message)
    return cases


def _fitting_patients(patients: Sequence[str], settings: CalibrateSettings, seed: int) -> set[str]:
    """Patients that correction and confidence are fitted on, drawn at random; at least one, and not all."""
    if not settings.is_fitted:
        return set()
    num = min(max(1, round(settings.fit_share * len(patients))), len(patients) - 1)
    drawn = np.random.default_rng(seed).permutation(len(patients))[:num]
    return {patients[place] for place in drawn}


def _was_fitted(card: ModelCard, settings: CalibrateSettings) -> bool:
    """Whether an earlier calibration fitted what this one keeps."""
    keeps_logistic = card.candidates["logistic"] is not None and settings.confidence is None
    return card.is_corrected or keeps_logistic


def _refuse_second_correction(card: ModelCard, settings: CalibrateSettings) -> None:
    if card.is_corrected:
        message = (
            f"the model's probabilities are corrected already, by {dict(card.correction)}. Calibrate the model that "
            "train wrote, or leave correct=false, which keeps this correction."
        )
        raise ModelError(message)
    if card.candidates["logistic"] is not None and settings.confidence is None:
        message = (
            "the model's confidence was fitted on probabilities without this correction. Give confidence=logistic to "
            "fit it anew, or max or mean_top."
        )
        raise ModelError(message)


def _rule(card: ModelCard, settings: CalibrateSettings) -> dict[str, Any]:
    """How candidates are formed, with what is asked for; the confidence of a regression is not known yet."""
    rule = dict(card.candidates)
    if settings.confidence is not None:
        rule["logistic"] = None
    if settings.confidence in get_args(Confidence):
        rule["confidence"] = settings.confidence
    if settings.cut is not None:
        rule["cut"] = settings.cut or None
    for name in ("separate", "min_volume_ml"):
        given = getattr(settings, name)
        rule[name] = rule[name] if given is None else given
    return rule


def chose_epoch(card: ModelCard, manifest: Manifest, settings: CalibrateSettings) -> bool:
    """Whether the split is the one that a member's epoch was chosen on, as far as the card tells."""
    own = [member.training for member in card.members if member.training.get("dataset") == manifest.name]
    return settings.split == "validation" and any(training.get("num_validation_cases") for training in own)


def _source(
    manifest: Manifest, settings: CalibrateSettings, outcomes: Sequence[CaseOutcome], *, is_reused: bool
) -> str:
    num_patients = len({outcome.table.patient for outcome in outcomes})
    chose = ", which chose the epoch too" if is_reused else ""
    return f"{settings.split} of {manifest.name}: {len(outcomes)} cases of {num_patients} patients{chose}"


def training_loss(card: ModelCard) -> dict[str, Any]:
    """`gamma` and `alpha` of the loss that all members were trained with.

    Raises:
        ModelError: The card does not say, or the members differ.
    """
    losses = [member.training.get("loss") for member in card.members]
    for given in losses:
        if not isinstance(given, Mapping) or set(given) != {"gamma", "alpha"}:
            message = (
                "correct=true undoes what the loss did to probabilities, and the model's card does not say which loss "
                "that was: it was trained by an earlier version. Train it anew, or leave correct=false."
            )
            raise ModelError(message)
        if given != losses[0]:
            message = (
                f"correct=true undoes what the loss did to probabilities, and the members differ in it: {losses[0]} "
                f"and {given}. Average members of one loss, or leave correct=false."
            )
            raise ModelError(message)
    return dict(losses[0])  # type: ignore[arg-type]  # the loop has refused all else


def _corrected_card(
    model: Model, manifest: Manifest, cases: Sequence[Case], *, device: torch.device, seed: int, mirror: bool
) -> tuple[ModelCard, tuple[Reliability, Reliability], list[str]]:
    """The card with a correction that is fitted on some cases, and reliability on them before and after."""
    card = model.card
    loss = training_loss(card)
    found = []
    for number, case in enumerate(track(cases, "fit")):
        prepared = prepare_case(read_case_with_reference(case, manifest.scheme, FUSION), card.preprocessing)
        drawn = sample_voxels(
            model.networks, prepared, card, manifest.scheme, device=device, seed=seed + number, mirror=mirror
        )
        found.append(drawn)
    voxels = LabelledVoxels.of(found)
    try:
        correction = fit_correction(voxels, loss, card.activation)
    except (ValueError, TypeError) as error:
        message = f"the model's card says that it was trained with {loss}, which no loss has: {error}"
        raise ModelError(message) from error
    before, after = (voxel_reliability(voxels, made, card.activation) for made in (NO_CORRECTION, correction))
    notes = []
    if not after.log_loss < before.log_loss:
        notes.append(
            f"warning: the correction does not help: the log loss of voxels is {before.log_loss:.4g} without and "
            f"{after.log_loss:.4g} with it. Leave correct=false."
        )
    if not TEMPERATURES[0] * 1.01 < correction["temperature"] < TEMPERATURES[1] / 1.01:
        notes.append(
            f"warning: the temperature {correction['temperature']:.3g} is the last that was tried; the voxels of "
            f"{len(cases)} cases do not determine it"
        )
    rule = corrected_rule(card.candidates, correction, card.activation, num_classes=len(card.labels) - 1)
    return replace(card, correction=correction, candidates=rule), (before, after), notes


def _see(
    model: Model,
    manifest: Manifest,
    cases: Sequence[Case],
    protocol: Protocol,
    device: torch.device,
    *,
    mirror: bool,
) -> Iterator[_Seen]:
    """Predict cases and measure their lesions and candidates."""
    card = model.card
    deepest = deepest_module(model.networks[0], len(card.channels), card.window["size"])
    for case in track(cases, "calibrate", len(cases)):
        volumes = read_case_with_reference(case, manifest.scheme, FUSION)
        values = image_figures(volumes, card.channels)
        prepared = prepare_case(volumes, card.preprocessing)
        with watched(model.networks[0], deepest) as watch:
            found = predict_case(model, prepared, device=device, mirror=mirror)
        assert prepared.reference is not None, "only annotated cases come here"
        yield _Seen(
            table=evaluate_case(
                prepared.reference,
                found.candidates,
                prepared.grid.affine,
                case=case.name,
                patient=case.patient,
                protocol=protocol,
                ignore=volumes.ignore,
            ),
            features=candidate_features(found.candidates, found.probability),
            figures=Figures(values, watch.mean),
        )


def _with_logistic(
    card: ModelCard, seen: Sequence[_Seen], fitting: set[str], protocol: Protocol
) -> tuple[ModelCard, tuple[Reliability, Reliability], list[_Seen]]:
    """The card, reliability and cases with the confidence of a regression on the candidates of some patients."""
    judged = [(one, judge(one.table, protocol).candidate_verdict) for one in seen if one.table.patient in fitting]
    features = np.concatenate([one.features[verdict <= Verdict.TRUE] for one, verdict in judged])
    is_true = np.concatenate([verdict[verdict <= Verdict.TRUE] == Verdict.TRUE for _, verdict in judged])
    logistic = fit_logistic(features, is_true)
    before = np.concatenate([one.table.candidates.confidence[verdict <= Verdict.TRUE] for one, verdict in judged])
    after = calibrated_confidence(features, logistic)
    rated = [
        replace(
            one,
            table=replace(
                one.table,
                candidates=replace(one.table.candidates, confidence=calibrated_confidence(one.features, logistic)),
            ),
        )
        for one in seen
    ]
    card = replace(card, candidates={**card.candidates, "logistic": logistic})
    return card, (reliability(before, is_true), reliability(after, is_true)), rated


def _record(found: Calibration, manifest: Manifest, settings: CalibrateSettings, protocol: Protocol) -> dict[str, Any]:
    """What `calibration.json` holds."""
    told = {name: getattr(found, name) for name in ("num_cases", "num_patients", "num_fitted", "left_out", "notes")}
    pairs = {name: getattr(found, name) for name in ("voxels", "candidates")}
    return dict(
        plain(
            {
                "dataset": manifest.name,
                "settings": asdict(settings),
                "protocol": protocol.to_dict(),
                **told,
                "operating_points": [asdict(point) for point in found.card.operating_points],
                "correction": found.card.correction,
                "logistic": found.card.candidates["logistic"],
                "reliability": {
                    name: None if pair is None else {"before": asdict(pair[0]), "after": asdict(pair[1])}
                    for name, pair in pairs.items()
                },
            }
        )
    )
