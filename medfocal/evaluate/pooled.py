"""Putting cases together: counts at the threshold, and every figure with its interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import DatasetError
from medfocal.evaluate.bootstrap import warn_of_few_patients
from medfocal.evaluate.calibration import measure_calibration
from medfocal.evaluate.figures import Values, distributions, panoptic
from medfocal.evaluate.froc import Froc, FrocCurve, FrocPoint, froc, of_one_operating_point
from medfocal.evaluate.intervals import Rate, f1, mean_proportion, proportion, rate
from medfocal.evaluate.judge import CURVE_RULES, CaseOutcome, hit_rule_curve, judge
from medfocal.evaluate.measure import WHOLE, Failure, Measurement, Reading, measure_pairs
from medfocal.evaluate.merit import figures_of_merit
from medfocal.evaluate.pairs import find_pairs
from medfocal.evaluate.pool import Pool, pool
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.published import published_figures
from medfocal.evaluate.results import Evaluation, Surface
from medfocal.evaluate.rows import (
    COUNTED,
    Row,
    candidate_rows,
    case_rows,
    detected,
    lesion_rows,
    pair_overlap,
    pair_surface,
)
from medfocal.evaluate.strata import Size, Stratum, by_size, claim
from medfocal.evaluate.surface import WHY_UNDEFINED
from medfocal.evaluate.table import SURFACE_FIGURES, CaseTable
from medfocal.evaluate.undefined import Undefined


def evaluate_files(
    reference: Path | None,
    prediction: Path | None,
    *,
    manifest: Path | None = None,
    protocol: Protocol = ANY_OVERLAP,
    reading: Reading = Reading(),  # noqa: B008  frozen
    workers: int = 1,
) -> Evaluation:
    """Evaluate the predictions of a folder against the references of another.

    Args:
        reference: As of `medfocal.evaluate.pairs.find_pairs`. Any label but 0 is lesion, unless `reading` names
            classes.
        prediction: As of `find_pairs`: masks or probability maps.
        manifest: As of `find_pairs`.
        protocol: The rules.
        reading: What the values of files mean.
        workers: Processes that read and measure.

    Returns:
        The evaluation.

    Raises:
        ConfigError: The files are named twice, by arguments and by the manifest, or not at all.
        DatasetError: There is no case, or reference and prediction don't pair one to one.
        GeometryError: Reference and prediction of a case lie on different grids.
        InputError: A file is missing, unreadable, or its values make no sense.
    """
    pairs = find_pairs(reference, prediction, manifest=manifest)
    return evaluate_measured(measure_pairs(pairs, protocol, reading, workers=workers), protocol)


def evaluate_measured(measured: Measurement, protocol: Protocol = ANY_OVERLAP) -> Evaluation:
    """Evaluate what `measure_pairs` measured: all classes together, and each class."""
    whole = evaluate_cases(measured.tables[WHOLE], protocol, failed=measured.failed)
    classes = {
        name: evaluate_cases(tables, protocol, failed=measured.failed)
        for name, tables in measured.tables.items()
        if name != WHOLE
    }
    return replace(whole, classes=classes)


def evaluate_cases(
    tables: Sequence[CaseTable], protocol: Protocol = ANY_OVERLAP, *, failed: Sequence[Failure] = ()
) -> Evaluation:
    """Judge cases by a protocol, count at its threshold, and estimate figures with intervals by patient.

    Cases without lesions count for false candidates and never for sensitivity.

    Args:
        tables: From `evaluate_case` or `measure_pairs`, made by the protocol's shaping rules. Everything else may
            differ from call to call, without another look at the images.
        protocol: The rules.
        failed: Cases that could not be measured, to be listed.

    Returns:
        The evaluation; what could not be estimated is NaN and listed in `undefined`.

    Raises:
        DatasetError: There is no case, or two of one name.
        ValueError: A table was made by other shaping rules.
    """
    _check(tables)
    outcomes = [judge(table, protocol) for table in tables]
    cases = pool(outcomes)
    rows = list(case_rows(outcomes, protocol.threshold))
    rates = _rates(rows, cases, protocol)
    iou = np.concatenate([pair_overlap(outcome)[0][~outcome.lesion_ignored] for outcome in outcomes])
    quality = panoptic(cases, iou, protocol)
    merits, undefined_merits = figures_of_merit(cases, protocol)
    curve = froc(
        cases,
        protocol.false_positive_rates,
        level=protocol.level,
        num_resamples=protocol.num_resamples,
        seed=protocol.seed,
        interval=protocol.interval,
    )
    if _are_masks(tables):
        curve = of_one_operating_point(curve)
    of_cases = distributions(
        {name: Values.of_rows(rows, name, cases.case_patient) for name in ("voxel_dice", "volume_difference_ml")},
        cases.num_patients,
        protocol,
    )
    calibration, undefined_calibration = measure_calibration(cases, protocol)
    strata = _strata(cases, protocol)
    surface = _surface(outcomes, rows, cases, protocol)
    counts = {name: sum(row[name] for row in rows) for name in COUNTED}
    figures: dict[str, Any] = {**counts, **rates, **merits, **quality}
    return Evaluation(
        protocol=protocol,
        num_cases=cases.num_cases,
        num_patients=cases.num_patients,
        num_lesion_free_cases=int(cases.case_is_lesion_free.sum()),
        **figures,
        claim=claim(rates["lesion_sensitivity"]),
        by_size=strata,
        froc=curve,
        hit_rule_curves=_hit_rule_curves(tables, protocol),
        calibration=calibration,
        recognition_quality=rates["lesion_f1"],
        voxel_dice=of_cases["voxel_dice"],
        volume_difference_ml=of_cases["volume_difference_ml"],
        mean_absolute_volume_difference_ml=float(np.mean([abs(row["volume_difference_ml"]) for row in rows])),
        surface=surface,
        published=published_figures(outcomes, protocol.name),
        missing=[table.case for table in tables if table.missing],
        failed=list(failed),
        warnings=_warnings(tables, rows, cases),
        undefined=[
            *_undefined_rates({**rates, "recognition_quality": rates["lesion_f1"], **quality}),
            *undefined_merits,
            *undefined_calibration,
            *_undefined_strata(strata),
            *_undefined_froc(curve, cases.num_lesions),
            *_undefined_dice(rows),
            *_undefined_surface(surface, rows),
        ],
        cases=rows,
        lesions=lesion_rows(outcomes, protocol.threshold),
        candidates=candidate_rows(outcomes, protocol.threshold),
    )


def _check(tables: Sequence[CaseTable]) -> None:
    if not tables:
        message = "there is no case to evaluate. Give at least one reference with its prediction."
        raise DatasetError(message)
    double = [name for name, times in Counter(table.case for table in tables).items() if times > 1]
    if double:
        message = f"{len(double)} cases were given more than once: {', '.join(double[:10])}. Name each case once."
        raise DatasetError(message)


def _are_masks(tables: Sequence[CaseTable]) -> bool:
    """Whether all predictions are masks, and some hold candidates."""
    return all(table.is_mask for table in tables) and any(len(table.candidates) for table in tables)


def _rates(rows: Sequence[Row], cases: Pool, protocol: Protocol) -> dict[str, Rate]:
    def by_patient(name: str, *, only: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        values = np.array([row[name] for row in rows], np.float64)
        return np.bincount(cases.case_patient, values if only is None else values * only).astype(np.float64)

    free = cases.case_is_lesion_free
    lesions, detected = by_patient("num_lesions"), by_patient("num_detected_lesions")
    true, false = by_patient("num_true_candidates"), by_patient("num_false_candidates")
    level, method = protocol.level, protocol.interval
    return {
        "lesion_sensitivity": proportion(detected, lesions, level=level, method=method),
        "lesion_sensitivity_macro": mean_proportion(detected, lesions, level=level, method=method),
        "lesion_precision": proportion(true, true + false, level=level, method=method),
        "lesion_f1": f1(detected, false, lesions - detected, level=level, method=method),
        "false_positives_per_case": rate(false, np.bincount(cases.case_patient), level=level),
        "false_positives_per_lesion_free_case": rate(
            by_patient("num_false_candidates", only=free), np.bincount(cases.case_patient, free), level=level
        ),
        "false_positives_per_litre": rate(false, np.bincount(cases.case_patient, cases.case_litres), level=level),
    }


def _strata(cases: Pool, protocol: Protocol) -> list[Stratum]:
    sizes: tuple[tuple[Size, tuple[float, ...], str], ...] = (
        ("diameter_mm", protocol.diameter_edges_mm, f"{protocol.diameter}_diameter_mm"),
        ("volume_mm3", protocol.volume_edges_mm3, "volume_mm3"),
    )
    return [
        stratum
        for size, edges, measure in sizes
        for stratum in by_size(
            cases,
            size,
            edges,
            measure=measure,
            threshold=protocol.threshold,
            level=protocol.level,
            interval=protocol.interval,
            min_lesions=protocol.min_lesions,
        )
    ]


def _hit_rule_curves(tables: Sequence[CaseTable], protocol: Protocol) -> list[Row]:
    """Sensitivity over the threshold of each hit rule that is a share."""
    curves: list[Row] = []
    for hit_rule in CURVE_RULES:
        curve = hit_rule_curve(tables, protocol, hit_rule)
        points = []
        for number, threshold in enumerate(curve.thresholds.tolist()):
            found = proportion(
                curve.num_detected[:, number], curve.num_lesions, level=protocol.level, method=protocol.interval
            )
            points.append(
                {
                    "hit_threshold": threshold,
                    "num_detected_lesions": int(curve.num_detected[:, number].sum()),
                    "lesion_sensitivity": found.value,
                    "low": found.low,
                    "high": found.high,
                    "num_false_candidates": int(curve.num_false[:, number].sum()),
                }
            )
        curves.append({"hit_rule": hit_rule, "points": points})
    return curves


def _surface(outcomes: Sequence[CaseOutcome], rows: Sequence[Row], cases: Pool, protocol: Protocol) -> Surface | None:
    """Sum up distances of surfaces, where every case has them at this threshold and tolerance."""
    at = {(outcome.table.surface_threshold, outcome.table.tolerance_mm) for outcome in outcomes}
    if at != {(protocol.threshold, protocol.tolerance_mm)}:
        return None
    found = [detected(outcome, protocol.threshold) & ~outcome.lesion_ignored for outcome in outcomes]
    per_lesion = np.concatenate([pair_surface(o)[kept] for o, kept in zip(outcomes, found, strict=True)])
    patients = np.repeat(cases.case_patient, [kept.sum() for kept in found])
    return Surface(
        threshold=protocol.threshold,
        tolerance_mm=protocol.tolerance_mm,
        cases=distributions(
            {name: Values.of_rows(rows, name, cases.case_patient) for name in SURFACE_FIGURES},
            cases.num_patients,
            protocol,
        ),
        lesions=distributions(
            {name: Values(per_lesion[:, number], patients) for number, name in enumerate(SURFACE_FIGURES)},
            cases.num_patients,
            protocol,
        ),
    )


def _warnings(tables: Sequence[CaseTable], rows: Sequence[Row], cases: Pool) -> list[str]:
    """What a reader should know before he trusts the figures."""
    found = []
    num_hit = sum(row["num_hit_missed_lesions"] for row in rows)
    if num_hit:
        num_missed = sum(row["num_lesions"] - row["num_detected_lesions"] for row in rows)
        are = "is" if num_hit == 1 else "are"
        found.append(
            f"{num_hit} of the {num_missed} missed lesions {are} hit by a candidate that counts for another lesion, or"
            " for none. protocol.assignment=many_to_many would count every hit."
        )
    few = warn_of_few_patients(cases.num_patients)
    if few is not None:
        found.append(few)
    masks = sum(table.is_mask and len(table.candidates) > 0 for table in tables)
    maps = sum(not table.is_mask for table in tables)
    if masks and not maps:
        found.append(
            "The predictions are masks, whose candidates all have confidence 1: there is one operating point, and what"
            " ranks by confidence says little. Evaluate probability maps for a curve."
        )
    if masks and maps:
        found.append(
            f"{masks} predictions are masks, whose candidates all have confidence 1, and {maps} are probability maps:"
            " FROC and ranking mix the two."
        )
    return found


def _undefined_rates(rates: Mapping[str, Rate]) -> list[Undefined]:
    reasons = {
        "lesion_sensitivity": "there is no lesion",
        "lesion_sensitivity_macro": "there is no lesion",
        "lesion_precision": "there is no candidate at the threshold",
        "lesion_f1": "there is no lesion and no candidate at the threshold",
        "false_positives_per_lesion_free_case": "there is no case without lesions",
        "false_positives_per_litre": "nothing was scanned outside of the regions to be ignored",
        "recognition_quality": "there is no lesion and no candidate at the threshold",
        "segmentation_quality": "no lesion is found at the threshold",
        "panoptic_quality": "there is no lesion and no candidate at the threshold",
    }
    return [Undefined(name, "all cases", reasons[name]) for name, rate in rates.items() if math.isnan(rate.value)]


def _undefined_strata(strata: Sequence[Stratum]) -> list[Undefined]:
    return [
        Undefined(
            "by_size: lesion_sensitivity",
            f"{stratum.measure} from {stratum.low:g} to {stratum.high:g}",
            stratum.lesion_sensitivity.method.removeprefix("undefined: "),
        )
        for stratum in strata
        if math.isnan(stratum.lesion_sensitivity.value)
    ]


def _undefined_froc(found: Froc, num_lesions: int) -> list[Undefined]:
    lines = []
    what = "froc: lesion_sensitivity of points and curve, cpm"
    if not num_lesions:
        lines.append(Undefined(what, "all cases", "there is no lesion"))
        lines.append(Undefined("hit_rule_curves: lesion_sensitivity", "all cases", "there is no lesion"))
    elif math.isnan(found.cpm):
        why = "masks have one operating point, and it has more false positives per case than some of the rates"
        lines.append(Undefined(what, "all cases", why))
    for point in found.points:
        if math.isinf(point.threshold):
            where = f"{point.false_positives_per_case:g} false positives per case"
            lines.append(Undefined("froc: threshold", where, _why_no_candidate_counts(found.curve, point)))
    return lines


def _why_no_candidate_counts(curve: FrocCurve, point: FrocPoint) -> str:
    if not len(curve.threshold):
        return "there is no candidate"
    first = curve.false_positives_per_case[0]
    return (
        f"from the highest confidence on there are {first:.4g} false positives per case, more than"
        f" {point.false_positives_per_case:g}, so no candidate may count"
    )


def _undefined_dice(rows: Sequence[Row]) -> list[Undefined]:
    why = "reference and prediction at the threshold are both empty"
    lines = [Undefined("voxel_dice", f"case '{row['case']}'", why) for row in rows if math.isnan(row["voxel_dice"])]
    if len(lines) == len(rows):
        lines.append(Undefined("voxel_dice: mean and median", "all cases", "no case has a voxel Dice"))
    return lines


def _undefined_surface(surface: Surface | None, rows: Sequence[Row]) -> list[Undefined]:
    if surface is None:
        why = "distances of surfaces were not measured at this threshold and tolerance"
        return [Undefined("surface", "all cases", why)]
    lines = [
        Undefined(name, f"case '{row['case']}'", WHY_UNDEFINED[name])
        for row in rows
        for name in SURFACE_FIGURES
        if math.isnan(row[name])
    ]
    lines += [
        Undefined(f"surface: {name} of cases", "all cases", "no case has it")
        for name, found in surface.cases.items()
        if not found.num_cases
    ]
    lines += [
        Undefined(f"surface: {name} of lesions", "all cases", "no lesion is found")
        for name, found in surface.lesions.items()
        if not found.num_cases
    ]
    return lines
