"""Putting cases together: counts at the threshold, rates with intervals, FROC and voxel Dice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import DatasetError
from medfocal.evaluate.cases import CaseResult, Part
from medfocal.evaluate.froc import FrocCurve, FrocPoint, corners, froc_curve, read_froc
from medfocal.evaluate.intervals import Rate, f1, mean_proportion, proportion, rate
from medfocal.evaluate.overlap import voxel_dice
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.results import Evaluation, Froc, Row, Undefined, VoxelDice


def evaluate_cases(results: Sequence[CaseResult], protocol: Protocol = ANY_OVERLAP) -> Evaluation:
    """Count over all cases at the protocol's threshold, and estimate rates with intervals by patient.

    Cases without lesions count for false candidates and never for sensitivity.

    Args:
        results: From `evaluate_case`. Threshold, level and FROC rates of their protocol may differ from those
            given here; the rules of candidates and hits may not.
        protocol: The rules.

    Returns:
        The evaluation; what could not be estimated is NaN and listed in `undefined`.

    Raises:
        DatasetError: There is no case, or two of one name.
        ValueError: A result was made by other rules.
    """
    _check(results, protocol)
    cases = [_case_row(result, protocol.threshold) for result in results]
    lesions = [row for result in results for row in _lesion_rows(result, protocol.threshold)]
    candidates = [row for result in results for row in _candidate_rows(result, protocol.threshold)]

    _, patient = np.unique([result.patient for result in results], return_inverse=True)

    def by_patient(values: Sequence[float]) -> NDArray[np.float64]:
        return np.bincount(patient, values).astype(np.float64)

    num_lesions = by_patient([row["num_lesions"] for row in cases])
    num_detected = by_patient([row["num_detected_lesions"] for row in cases])
    num_candidates = by_patient([row["num_candidates"] for row in cases])
    num_false = by_patient([row["num_false_candidates"] for row in cases])
    litres = by_patient([result.scanned_litres for result in results])
    level = protocol.level
    rates = {
        "lesion_sensitivity": proportion(num_detected, num_lesions, level=level),
        "lesion_sensitivity_macro": mean_proportion(num_detected, num_lesions, level=level),
        "lesion_precision": proportion(num_candidates - num_false, num_candidates, level=level),
        "lesion_f1": f1(num_detected, num_false, num_lesions - num_detected, level=level),
        "false_positives_per_case": rate(num_false, np.bincount(patient), level=level),
        "false_positives_per_litre": rate(num_false, litres, level=level),
    }
    froc = _froc(results, protocol.false_positive_rates)
    return Evaluation(
        protocol=protocol,
        num_cases=len(results),
        num_patients=len(litres),
        num_lesions=len(lesions),
        num_detected_lesions=int(num_detected.sum()),
        num_candidates=int(num_candidates.sum()),
        num_true_candidates=int((num_candidates - num_false).sum()),
        num_false_candidates=int(num_false.sum()),
        **rates,
        froc=froc,
        voxel_dice=_voxel_dice(cases),
        undefined=[*_undefined_rates(rates), *_undefined_froc(froc), *_undefined_dice(cases)],
        cases=cases,
        lesions=lesions,
        candidates=candidates,
        readers=None,
    )


def _check(results: Sequence[CaseResult], protocol: Protocol) -> None:
    if not results:
        message = "there is no case to evaluate. Give at least one reference with its prediction."
        raise DatasetError(message)
    double = [name for name, times in Counter(result.case for result in results).items() if times > 1]
    if double:
        message = f"{len(double)} cases were given more than once: {', '.join(double[:10])}. Name each case once."
        raise DatasetError(message)
    for result in results:
        free = {name: getattr(protocol, name) for name in ("name", "threshold", "false_positive_rates", "level")}
        if replace(result.protocol, **free) != protocol:
            message = f"case '{result.case}' was evaluated by other rules: {result.protocol}, not {protocol}"
            raise ValueError(message)


def _case_row(result: CaseResult, threshold: float) -> Row:
    counted = [candidate for candidate in result.candidates if candidate.confidence >= threshold]
    num_true = sum(candidate.lesion is not None for candidate in counted)
    num_reference = sum(lesion.part.num_voxels for lesion in result.lesions)
    # The predicted mask at the threshold is all voxels of the candidates that count.
    num_predicted = sum(candidate.part.num_voxels for candidate in counted)
    num_shared = sum(candidate.reference_voxels for candidate in counted)
    return {
        "case": result.case,
        "patient": result.patient,
        "num_lesions": len(result.lesions),
        "num_detected_lesions": num_true,
        "num_candidates": len(counted),
        "num_true_candidates": num_true,
        "num_false_candidates": len(counted) - num_true,
        "voxel_dice": voxel_dice(num_shared, num_reference, num_predicted),
        "reference_volume_ml": num_reference * result.voxel_volume_ml,
        "predicted_volume_ml": num_predicted * result.voxel_volume_ml,
    }


def _lesion_rows(result: CaseResult, threshold: float) -> list[Row]:
    return [
        {
            "case": result.case,
            "patient": result.patient,
            "lesion": lesion.part.number,
            **_size(lesion.part),
            **_place(lesion.part),
            "detected": lesion.confidence >= threshold,
            "candidate": lesion.candidate,
            "overlap_voxels": lesion.overlap_voxels,
            "confidence": lesion.confidence,
        }
        for lesion in result.lesions
    ]


def _candidate_rows(result: CaseResult, threshold: float) -> list[Row]:
    return [
        {
            "case": result.case,
            "patient": result.patient,
            "candidate": candidate.part.number,
            "confidence": candidate.confidence,
            "above_threshold": candidate.confidence >= threshold,
            "true": candidate.lesion is not None,
            "lesion": candidate.lesion,
            "overlap_voxels": candidate.overlap_voxels,
            **_size(candidate.part),
            **_place(candidate.part),
        }
        for candidate in result.candidates
    ]


def _size(part: Part) -> Row:
    return {
        "num_voxels": part.num_voxels,
        "volume_ml": part.volume_ml,
        "equivalent_diameter_mm": part.equivalent_diameter_mm,
    }


def _place(part: Part) -> Row:
    names = ("i", "j", "k", "x_mm", "y_mm", "z_mm")
    return dict(zip(names, (*part.centroid_voxel, *part.centroid_mm), strict=True))


def _froc(results: Sequence[CaseResult], false_positive_rates: tuple[float, ...]) -> Froc:
    candidates = [candidate for result in results for candidate in result.candidates]
    num_lesions = sum(len(result.lesions) for result in results)
    curve = froc_curve(
        [candidate.confidence for candidate in candidates],
        [candidate.lesion is not None for candidate in candidates],
        num_lesions=num_lesions,
        num_cases=len(results),
    )
    points = read_froc(curve, false_positive_rates, num_lesions=num_lesions)
    cpm = sum(point.lesion_sensitivity for point in points) / len(points)
    return Froc(points=points, cpm=cpm, curve=corners(curve))


def _voxel_dice(cases: list[Row]) -> VoxelDice:
    defined = [row["voxel_dice"] for row in cases if not math.isnan(row["voxel_dice"])]
    return VoxelDice(
        mean=float(np.mean(defined)) if defined else math.nan,
        median=float(np.median(defined)) if defined else math.nan,
        num_cases=len(defined),
        num_undefined=len(cases) - len(defined),
    )


def _undefined_rates(rates: dict[str, Rate]) -> list[Undefined]:
    reasons = {
        "lesion_sensitivity": "there is no lesion",
        "lesion_sensitivity_macro": "there is no lesion",
        "lesion_precision": "there is no candidate at the threshold",
        "lesion_f1": "there is no lesion and no candidate at the threshold",
    }
    return [Undefined(name, "all cases", reasons[name]) for name, rate in rates.items() if math.isnan(rate.value)]


def _undefined_froc(froc: Froc) -> list[Undefined]:
    lines = []
    if math.isnan(froc.cpm):
        what = "froc: lesion_sensitivity of points and curve, cpm"
        lines.append(Undefined(what, "all cases", "there is no lesion"))
    for point in froc.points:
        if math.isinf(point.threshold):
            where = f"{point.false_positives_per_case:g} false positives per case"
            lines.append(Undefined("froc: threshold", where, _why_no_candidate_counts(froc.curve, point)))
    return lines


def _why_no_candidate_counts(curve: FrocCurve, point: FrocPoint) -> str:
    if not len(curve.threshold):
        return "there is no candidate"
    first = curve.false_positives_per_case[0]
    return (
        f"from the highest confidence on there are {first:.4g} false positives per case, more than"
        f" {point.false_positives_per_case:g}, so no candidate may count"
    )


def _undefined_dice(cases: list[Row]) -> list[Undefined]:
    why = "reference and prediction at the threshold are both empty"
    lines = [Undefined("voxel_dice", f"case '{row['case']}'", why) for row in cases if math.isnan(row["voxel_dice"])]
    if len(lines) == len(cases):
        lines.append(Undefined("voxel_dice: mean and median", "all cases", "no case has a voxel Dice"))
    return lines
