"""What is compared between settings, and the mean and spread of it over replicates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfocal.report.summary_folds import CrossValidation
from medfocal.report.summary_runs import Run
from medfocal.report.summary_settings import Grouping, Setting
from medfocal.report.tables import count

#: The figure that training selects by, and that settings are compared by.
PRIMARY = "validation_lesion_sensitivity"


@dataclass(frozen=True)
class Figure:
    """A figure of a run.

    Attributes:
        key: Its name in summary.csv and summary.json.
        label: Its name for readers; `{rate}` stands for the declared rate of false positives per case.
        short: A shorter one for a terminal.
        split: The split that it is of, or "" for the training.
        source: Its name among the figures of a split's result, or "" where `of` tells it.
        digits: Decimals it is shown with.
    """

    key: str
    label: str
    short: str
    split: str
    source: str
    digits: int = 3


FIGURES = (
    Figure(PRIMARY, "Validation: lesion sensitivity at {rate}", "val sens", "validation", "lesion_sensitivity_at_rate"),
    Figure("validation_cpm", "Validation: CPM", "val CPM", "validation", "cpm"),
    Figure("validation_voxel_dice", "Validation: voxel Dice", "val Dice", "validation", "voxel_dice"),
    Figure(
        "test_lesion_sensitivity_at_1",
        "Test: lesion sensitivity at 1 FP per case",
        "test sens",
        "test",
        "lesion_sensitivity_at_rate",
    ),
    Figure("test_cpm", "Test: CPM", "test CPM", "test", "cpm"),
    Figure(
        "test_lesion_sensitivity",
        "Test: lesion sensitivity at the operating point",
        "test sens op",
        "test",
        "lesion_sensitivity",
    ),
    Figure(
        "test_false_positives_per_case",
        "Test: FP per case at the operating point",
        "test FP op",
        "test",
        "false_positives_per_case",
        2,
    ),
    Figure("test_voxel_dice", "Test: voxel Dice", "test Dice", "test", "voxel_dice"),
    Figure("training_hours", "Training (hours)", "hours", "", "", 3),
    Figure("epoch", "Epoch kept", "epoch", "", "", 1),
)


@dataclass(frozen=True)
class Spread:
    """A figure over replicates; NaN is undefined.

    Attributes:
        values: Of each replicate that has it.
        mean: Their mean; NaN without any.
        sd: Standard deviation, by n - 1. NaN for one: one value has no spread.
        low: The least; NaN for one.
        high: The largest; NaN for one.
    """

    values: Sequence[float]
    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up the values that are defined."""
        known = [value for value in values if math.isfinite(value)]
        if len(known) < 2:
            return cls(known, known[0] if known else math.nan, math.nan, math.nan, math.nan)
        return cls(known, statistics.fmean(known), statistics.stdev(known), min(known), max(known))


@dataclass(frozen=True)
class Row:
    """A setting with its figures.

    Attributes:
        setting: The setting.
        folds: Its cross-validations, one a seed of which all folds are finished.
        figures: Spread of each figure by its key.
        interval: Ends of the interval of one evaluation's validation lesion sensitivity, each the mean over the
            replicates; NaN where there is none.
        size: Cases, patients and lesions that stand behind one figure, by split: "validation" and "test".
        why: Why the validation figures are undefined, or "".
    """

    setting: Setting
    folds: Sequence[CrossValidation]
    figures: Mapping[str, Spread]
    interval: tuple[float, float]
    size: Mapping[str, tuple[int, int, int]]
    why: str = ""

    @property
    def primary(self) -> Spread:
        """The figure that settings are compared by."""
        return self.figures[PRIMARY]


def summarize_setting(setting: Setting, folds: Sequence[CrossValidation], *, is_folded: bool, why: str = "") -> Row:
    """Make the row of a setting.

    Args:
        setting: The setting.
        folds: Its cross-validations.
        is_folded: Whether its runs are folds, so that the validation figures are those of `folds`.
        why: Why there is no cross-validation, where that is so.
    """
    validations = _of_folds(folds) if is_folded else _of_runs(setting.runs, "validation")
    tests = _of_runs(setting.runs, "test")
    spreads = {}
    for figure in FIGURES:
        if figure.split:
            found = validations if figure.split == "validation" else tests
            spreads[figure.key] = Spread.of([of[figure.source] for of in found.figures])
        else:
            spreads[figure.key] = Spread.of([_OF_TRAINING[figure.key](run) for run in setting.runs])
    ends = [[end for end in side if math.isfinite(end)] for side in zip(*validations.intervals, strict=True)]
    low, high = (statistics.fmean(side) if side else math.nan for side in ends or ([], []))
    size = {name: found.size for name, found in (("validation", validations), ("test", tests)) if found.size}
    return Row(setting, folds, spreads, (low, high), size, why)


@dataclass(frozen=True)
class _Found:
    figures: Sequence[Mapping[str, float]]
    intervals: Sequence[tuple[float, float]]
    size: tuple[int, int, int] | None


def _of_runs(runs: Sequence[Run], split: str) -> _Found:
    results = [run.results[split] for run in runs if split in run.results]
    figures = [dict(result.figures) for result in results]
    intervals = [result.interval for result in results]
    if split == "validation":
        # The rate that training selects at need not be one of the FROC's points; metrics.csv has it.
        kept = [epoch for run in runs if split in run.results for epoch in run.epochs if epoch.number == run.kept]
        for number, epoch in enumerate(kept):
            if math.isnan(figures[number]["lesion_sensitivity_at_rate"]):
                figures[number]["lesion_sensitivity_at_rate"] = epoch.lesion_sensitivity
                intervals[number] = (epoch.low, epoch.high)
    sizes = [(result.num_cases, result.num_patients, result.num_lesions) for result in results]
    return _Found(figures, intervals, max(sizes) if sizes else None)


def _of_folds(folds: Sequence[CrossValidation]) -> _Found:
    sizes = [(found.num_cases, found.num_patients, found.num_lesions) for found in folds]
    return _Found(
        [found.figures for found in folds], [found.interval for found in folds], max(sizes) if sizes else None
    )


_OF_TRAINING: Mapping[str, Callable[[Run], float]] = {
    "training_hours": lambda run: sum(e.seconds for e in run.epochs if math.isfinite(e.seconds)) / 3600,
    "epoch": lambda run: float(run.kept),
}


def best_row(rows: Sequence[Row]) -> Row | None:
    """The row of highest mean in the figure that settings are compared by, of equals the first; None without any."""
    known = [row for row in rows if math.isfinite(row.primary.mean)]
    return max(known, key=lambda row: row.primary.mean) if known else None


def rate_words(rate: float) -> str:
    """Write the declared rate of false positives; NaN where runs declare different ones."""
    return "its own declared rate" if math.isnan(rate) else f"{rate:g} FP per case"


def noise_words(rows: Sequence[Row], at: str) -> str | None:
    """Say which settings the highest one cannot be told from; None where there is nothing to compare.

    The yardstick is the interval of the highest setting's own evaluation: it says how far the lesion sensitivity of one
    model would move on other patients.
    """
    best = best_row(rows)
    known = [row for row in rows if math.isfinite(row.primary.mean)]
    if best is None or len(known) < 2:
        return None
    figure = f"validation lesion sensitivity at {at}"
    low, high = best.interval
    if math.isnan(low):
        return (
            f"No interval of the {figure} is known, so differences between settings cannot be told from noise here. "
            "medfocal evaluate and medfocal compare give intervals."
        )
    near = [row for row in known if row is not best and row.primary.mean >= low]
    _, patients, lesions = best.size["validation"]
    basis = f"{count(lesions, 'lesion')} of {count(patients, 'patient')}"
    width = f"{low:.2f} to {high:.2f}"
    if not near:
        return None
    paired = "medfocal compare tests two of them on the same cases."
    if len(near) == len(known) - 1:
        least = min(row.primary.mean for row in known)
        return (
            f"Noise: the {figure} of all {len(known)} settings lies between {least:.3f} and {best.primary.mean:.3f}, "
            f"within the interval of one evaluation of the highest ({width}, {basis}). Their order may be chance. "
            f"{paired}"
        )
    names = "; ".join(row.setting.name for row in near)
    return (
        f"Noise: {count(len(near), 'setting')} cannot be told from the highest in {figure}, being within the interval "
        f"of one evaluation of it ({width}, {basis}): {names}. {paired}"
    )


def why_undefined(row: Row, figure: Figure) -> str:
    """Say why a setting has no value of a figure."""
    if not row.setting.runs:
        return "no run of it is finished"
    if figure.split == "validation" and row.why:
        return row.why
    if figure.split and figure.split not in row.size:
        return f"no run of it has an evaluation of the {figure.split} split"
    return "it is undefined in every run; their evaluation.json says why"


def replicate_words(row: Row) -> str:
    """Say how many runs stand behind a setting: "one run", "3 seeds", "5 folds of 2 seeds"."""
    runs = row.setting.runs
    seeds, folds = {run.seed for run in runs}, {run.fold for run in runs}
    if len(runs) < 2:
        return "one run" if runs else "none finished"
    if len(folds) < 2:
        return count(len(seeds), "seed")
    return f"{len(folds)} folds of {count(len(seeds), 'seed')}"


def is_cross_validated(grouping: Grouping) -> bool:
    """Whether the runs, finished or not, are of more than one fold."""
    runs = [run for setting in grouping.settings for run in (*setting.runs, *setting.others)]
    return len({run.fold for run in runs if run.fold is not None}) > 1


def wanted_folds(setting: Setting, grouping: Grouping) -> list[Any]:
    """The folds of a whole cross-validation: all that its configuration asks for, else all that any run has."""
    for run in (*setting.runs, *setting.others):
        number = run.settings.get("data.num_folds")
        if isinstance(number, int):
            return list(range(number))
    runs = [run for of in grouping.settings for run in (*of.runs, *of.others)]
    return sorted({run.fold for run in runs if run.fold is not None})
