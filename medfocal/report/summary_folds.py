"""Cross-validation: the folds of a setting put together, as figures and as a table of predictions that learnt nothing.

Each fold validates other patients, so folds are no replicates: their lesions and candidates are put into one set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfocal.data.formats import read_dataset
from medfocal.errors import DatasetError, InputError, MedfocalError
from medfocal.evaluate import Protocol
from medfocal.evaluate.froc import froc
from medfocal.evaluate.intervals import proportion, rate
from medfocal.evaluate.pool import Pool
from medfocal.files import write_csv
from medfocal.report.summary_runs import Run
from medfocal.report.tables import Records, read_records

OUT_OF_FOLD_COLUMNS = ("case", "patient", "reference", "prediction")


@dataclass(frozen=True)
class CrossValidation:
    """All folds of one setting and seed as one evaluation.

    Attributes:
        seed: Of the runs.
        runs: One a fold, in the order of the folds.
        num_cases: Cases of all folds.
        num_patients: Their patients.
        num_lesions: Their lesions.
        figures: As those of a run, by name; NaN is undefined.
        interval: Of the lesion sensitivity at the declared rate, by patient.
    """

    seed: Any
    runs: Sequence[Run]
    num_cases: int
    num_patients: int
    num_lesions: int
    figures: Mapping[str, float]
    interval: tuple[float, float]


def check_held_out(runs: Sequence[Run]) -> None:
    """Hold the folds against what a cross-validation is.

    Args:
        runs: One a fold, of one setting and seed.

    Raises:
        DatasetError: A case is in the validation of two folds, or a run learnt from a patient that it validates on.
    """
    home: dict[str, Run] = {}
    for run in runs:
        for case in run.split.get("validation", {}):
            if case in home:
                message = (
                    f"case '{case}' is in the validation of two folds: '{home[case].folder}' (fold {home[case].fold}) "
                    f"and '{run.folder}' (fold {run.fold}). Each case belongs to one; train with the same "
                    "data.fold_seed and the same cases, or give only runs of one division."
                )
                raise DatasetError(message)
            home[case] = run
        learnt = set(run.split.get("training", {}).values())
        known = sorted(case for case, patient in run.split.get("validation", {}).items() if patient in learnt)
        if known:
            message = f"'{run.folder}' learnt from the patient of case '{known[0]}', which it validates on"
            raise DatasetError(message)


def pool_folds(seed: Any, runs: Sequence[Run]) -> CrossValidation:
    """Read the tables of all folds' validation and evaluate them as one set.

    Lesion sensitivity at a rate of false positives and CPM are read from one FROC of all folds, as `medfocal evaluate
    manifest=out_of_fold.csv` reads it; what is found at the operating point is what each fold's model found at its own.

    Args:
        seed: Of the runs.
        runs: One a fold, finished.

    Raises:
        InputError: A table cannot be used, or the folds were evaluated by different rules.
    """
    for run in runs:
        if "validation" not in run.results:
            message = f"'{run.folder}' has no evaluation of its validation split"
            raise InputError(message)
    protocol = _same_protocol(runs)
    records = [read_records(run.folder / "validation") for run in runs]
    try:
        return _evaluate(seed, runs, records, protocol)
    except (KeyError, TypeError, ValueError) as error:
        places = ", ".join(f"'{run.folder / 'validation'}'" for run in runs)
        message = f"the tables in {places} are not what 'medfocal evaluate' writes: {type(error).__name__} {error}"
        raise InputError(message) from error


def _same_protocol(runs: Sequence[Run]) -> Protocol:
    """The rules of all, but for the threshold, which each model has its own of."""
    first = runs[0].results["validation"].protocol
    for run in runs[1:]:
        other = replace(run.results["validation"].protocol, threshold=first.threshold)
        if other != first:
            names = [name for name, value in first.to_dict().items() if other.to_dict()[name] != value]
            message = (
                f"'{runs[0].folder}' and '{run.folder}' were evaluated by different rules ({', '.join(names)}), so "
                "their folds cannot be put together"
            )
            raise InputError(message)
    return first


def _evaluate(seed: Any, runs: Sequence[Run], records: Sequence[Records], protocol: Protocol) -> CrossValidation:
    cases, lesions, candidates = (
        [row for of in records for row in getattr(of, kind)] for kind in ("cases", "lesions", "candidates")
    )
    pooled = pool_rows(cases, lesions, candidates, diameter=protocol.diameter)
    at = runs[0].rate
    found = froc(
        pooled,
        (at, *protocol.false_positive_rates),
        level=protocol.level,
        num_resamples=protocol.num_resamples,
        seed=protocol.seed,
        interval=protocol.interval,
    )
    declared, *points = found.points

    def by_patient(name: str) -> Any:
        return np.bincount(pooled.case_patient, np.array([row[name] for row in cases], np.float64))

    sensitivity = proportion(
        by_patient("num_detected_lesions"),
        by_patient("num_lesions"),
        level=protocol.level,
        method=protocol.interval,
    )
    false = rate(by_patient("num_false_candidates"), np.bincount(pooled.case_patient), level=protocol.level)
    dice = [row["voxel_dice"] for row in cases if row["voxel_dice"] is not None]
    return CrossValidation(
        seed=seed,
        runs=runs,
        num_cases=pooled.num_cases,
        num_patients=pooled.num_patients,
        num_lesions=pooled.num_lesions,
        figures={
            "lesion_sensitivity_at_rate": declared.lesion_sensitivity,
            "cpm": sum(point.lesion_sensitivity for point in points) / len(points),
            "lesion_sensitivity": sensitivity.value,
            "false_positives_per_case": false.value,
            "voxel_dice": float(np.mean(dice)) if dice else math.nan,
        },
        interval=(declared.low, declared.high),
    )


def pool_rows(
    cases: Sequence[Mapping[str, Any]],
    lesions: Sequence[Mapping[str, Any]],
    candidates: Sequence[Mapping[str, Any]],
    *,
    diameter: str,
) -> Pool:
    """Make of the rows of cases.csv, lesions.csv and candidates.csv what `medfocal.evaluate.pool.pool` makes of cases.

    The files hold every confidence in full, so a FROC of the pool is that of the cases. The scanned volume of a case is
    not in them: it is NaN.

    Args:
        cases: Rows of all cases.
        lesions: Rows of all lesions, ignored ones among them.
        candidates: Rows of all candidates, ignored ones and doubles among them.
        diameter: Which diameter counts, "longest", "axial" or "equivalent".

    Raises:
        KeyError, TypeError, ValueError: A row lacks a column, or belongs to no case.
    """
    number = {str(row["case"]): place for place, row in enumerate(cases)}
    if len(number) < len(cases):
        message = "a case has two rows"
        raise ValueError(message)
    names, case_patient = np.unique([str(row["patient"]) for row in cases], return_inverse=True)
    counted = [row for row in lesions if not row["ignored"]]
    judged = [row for row in candidates if row["verdict"] in {"true", "false"}]
    heard = [row for row in candidates if row["verdict"] != "ignored"]
    lesion_case = np.array([number[str(row["case"])] for row in counted], np.int64)
    candidate_case = np.array([number[str(row["case"])] for row in judged], np.int64)
    highest = np.zeros(len(cases))
    np.maximum.at(
        highest,
        np.array([number[str(row["case"])] for row in heard], np.int64),
        np.array([row["confidence"] for row in heard], np.float64),
    )
    num_lesions = np.array([row["num_lesions"] for row in cases], np.int64)
    found = [-math.inf if row["confidence"] is None else row["confidence"] for row in counted]
    measure = f"{diameter}_diameter_mm"
    return Pool(
        num_patients=len(names),
        case_patient=case_patient.astype(np.int64),
        case_litres=np.full(len(cases), math.nan),
        case_num_lesions=num_lesions,
        case_is_certain=(num_lesions > 0) | (np.array([row["num_ignored_lesions"] for row in cases]) == 0),
        case_confidence=highest,
        lesion_case=lesion_case,
        lesion_patient=case_patient[lesion_case].astype(np.int64),
        lesion_confidence=np.array(found, np.float64),
        lesion_diameter_mm=np.array([row[measure] for row in counted], np.float64),
        lesion_volume_mm3=1000 * np.array([row["volume_ml"] for row in counted], np.float64),
        candidate_case=candidate_case,
        candidate_patient=case_patient[candidate_case].astype(np.int64),
        candidate_confidence=np.array([row["confidence"] for row in judged], np.float64),
        candidate_is_true=np.array([row["verdict"] == "true" for row in judged], np.bool_),
        candidate_diameter_mm=np.array([row[measure] for row in judged], np.float64),
        candidate_volume_mm3=1000 * np.array([row["volume_ml"] for row in judged], np.float64),
    )


def write_out_of_fold(path: Path, runs: Sequence[Run]) -> str | None:
    """Write which prediction of which fold belongs to which reference: for `evaluate` and `suspect` as manifest.

    Args:
        path: The CSV; its paths are absolute.
        runs: One a fold, held out as `check_held_out` asks.

    Returns:
        None, or why nothing was written.
    """
    rows = []
    for run in runs:
        predictions = run.folder / "validation" / "predictions"
        if not predictions.is_dir():
            return f"'{predictions}' does not exist; trainer.save_validation_predictions=true keeps it"
        try:
            labels = _labels(run)
        except (MedfocalError, ValueError, TypeError) as error:
            return f"the dataset of '{run.folder}' cannot be read: {' '.join(str(error).split())}"
        for case, patient in run.split.get("validation", {}).items():
            prediction = predictions / f"{case}_probability.nii.gz"
            if not prediction.is_file():
                return f"'{prediction}' does not exist"
            if labels.get(case) is None:
                return f"case '{case}' has no label file in the dataset of '{run.folder}'"
            rows.append(
                {
                    "case": case,
                    "patient": patient,
                    "reference": labels[case],
                    "prediction": prediction.absolute(),
                }
            )
    write_csv(path, sorted(rows, key=lambda row: str(row["case"])), OUT_OF_FOLD_COLUMNS)
    return None


def _labels(run: Run) -> dict[str, Path]:
    """Label file of each case of the run's dataset that has one."""
    of_data = {key.removeprefix("data."): value for key, value in run.settings.items() if key.startswith("data.")}
    given = {key: value for key, value in of_data.items() if key in _READING}
    classes = {key.removeprefix("classes."): value for key, value in of_data.items() if key.startswith("classes.")}
    dataset = of_data.get("dataset")
    if not isinstance(dataset, str):
        message = f"data.dataset is {dataset!r}"
        raise InputError(message)
    found = read_dataset(dataset, **given, classes=classes or None, need_images=False)
    return {case.name: case.label for case in found.cases if case.label is not None}


#: Settings of the group `data` that say how the dataset is read; how it is split the run has recorded.
_READING = ("format", "root", "labels", "channels", "ignore_value", "resample_channels", "patient_pattern")
