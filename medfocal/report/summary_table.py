"""What a summary holds, as values, as files, and as a table on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medfocal import __version__
from medfocal.report.summary_runs import Run, State
from medfocal.report.summary_settings import Grouping, text_of
from medfocal.report.summary_spread import (
    FIGURES,
    PRIMARY,
    Figure,
    Row,
    Spread,
    best_row,
    rate_words,
    replicate_words,
    why_undefined,
)
from medfocal.report.tables import count

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class OutOfFold:
    """A table of held-out predictions.

    Attributes:
        path: The CSV.
        setting: Number of the setting.
        seed: Of its runs.
    """

    path: Path
    setting: int
    seed: Any


def _spread_words(spread: Spread) -> str:
    number = len(spread.values)
    if number < 2:
        return "one run"
    return f"the mean of {number}, which lie between {spread.low:.3f} and {spread.high:.3f}"


@dataclass(frozen=True)
class Summary:
    """Runs, settings and what is to be said of them.

    Attributes:
        places: Where the runs lie.
        experiments: Their experiments.
        rate: Declared rate of false positives per case; NaN where runs declare different ones.
        grouping: The settings and their runs.
        rows: One a setting.
        runs: All, broken ones too.
        warnings: What limits the comparison.
        notes: How it was made.
        faults: Files that cannot be used, each with the reason; what they concern is in no figure.
        out_of_fold: Tables of held-out predictions that were written.
    """

    places: Sequence[Path]
    experiments: Sequence[str]
    rate: float
    grouping: Grouping
    rows: Sequence[Row]
    runs: Sequence[Run]
    warnings: Sequence[str]
    notes: Sequence[str]
    faults: Sequence[str]
    out_of_fold: Sequence[OutOfFold]

    @property
    def states(self) -> dict[State, list[Run]]:
        """The runs by how far they came."""
        return {state: [run for run in self.runs if run.state is state] for state in State}

    @property
    def title(self) -> str:
        """Its experiments."""
        return f"Summary of {' and '.join(self.experiments) or 'runs'}"

    @property
    def counts(self) -> str:
        """How many settings and runs there are, and how far these came."""
        states = ", ".join(f"{len(runs)} {state}" for state, runs in self.states.items() if runs)
        return f"{count(len(self.rows), 'setting')}, {count(len(self.runs), 'run')}: {states}"

    @property
    def answer(self) -> str:
        """Which setting is highest, in one sentence."""
        best = best_row(self.rows)
        if best is None:
            return "No setting has a validation lesion sensitivity yet."
        what = f"validation lesion sensitivity at {self.rate_words}"
        value, spread = f"{best.primary.mean:.3f}", best.primary
        if len(self.rows) < 2:
            return f"V{what[1:]}: {value}, {_spread_words(spread)}."
        equal = sum(row.primary.mean == spread.mean for row in self.rows)
        if equal > 1:
            return f"{equal} of {len(self.rows)} settings share the highest {what}: {value}."
        return f"{best.setting.name} has the highest {what}: {value}, {_spread_words(spread)}."

    @property
    def rate_words(self) -> str:
        """The declared rate in words."""
        return rate_words(self.rate)

    @property
    def shown_figures(self) -> list[Figure]:
        """The figures that any setting has, and the one that settings are compared by."""
        return [f for f in FIGURES if f.key == PRIMARY or any(row.figures[f.key].values for row in self.rows)]

    def name_of(self, figure: Figure) -> str:
        """Name of a figure for readers."""
        return figure.label.format(rate=self.rate_words)

    def to_dict(self) -> dict[str, Any]:
        """Give what summary.json holds. Undefined is NaN."""
        return {
            "medfocal": __version__,
            "runs_from": list(self.places),
            "experiments": self.experiments,
            "validation_false_positives": self.rate,
            "keys": self.grouping.keys,
            "implied_keys": self.grouping.implied,
            "answer": self.answer,
            "warnings": self.warnings,
            "notes": self.notes,
            "faults": self.faults,
            "settings": [_setting(row, self.grouping) for row in self.rows],
            "runs": [_run(run, self.rows) for run in self.runs],
            "out_of_fold": [asdict(table) for table in self.out_of_fold],
            "undefined": [
                {"what": figure.key, "where": row.setting.name, "why": why_undefined(row, figure)}
                for row in self.rows
                for figure in FIGURES
                if not row.figures[figure.key].values
            ]
            + [
                {
                    "what": f"{figure.key}: sd, low, high",
                    "where": row.setting.name,
                    "why": "one run, which has no spread",
                }
                for row in self.rows
                for figure in FIGURES
                if len(row.figures[figure.key].values) == 1
            ],
        }

    def csv_rows(self) -> tuple[list[dict[str, object]], list[str]]:
        """Give the rows of summary.csv and its columns."""
        rows = [_csv_row(row) for row in self.rows]
        columns = ["setting", *self.grouping.keys, "num_runs", "num_other_runs", "seeds", "folds"]
        columns += [f"{split}_{what}" for split in SPLITS for what in ("cases", "patients", "lesions")]
        columns += [f"{figure.key}_{part}" for figure in FIGURES for part in ("mean", "sd", "low", "high", "n")]
        return rows, [*columns, f"{PRIMARY}_interval_low", f"{PRIMARY}_interval_high"]


def _setting(row: Row, grouping: Grouping) -> dict[str, Any]:
    runs = row.setting.runs
    first = (*runs, *row.setting.others)[0].settings
    return {
        "number": row.setting.number,
        "values": row.setting.values,
        "implied": {key: first.get(key) for key in grouping.implied},
        "runs": [run.folder for run in runs],
        "other_runs": [run.folder for run in row.setting.others],
        "replicates": replicate_words(row),
        "figures": {key: {**asdict(spread), "n": len(spread.values)} for key, spread in row.figures.items()},
        "interval": {"low": row.interval[0], "high": row.interval[1], "of": f"one evaluation's {PRIMARY}"},
        "sizes": {
            split: dict(zip(("num_cases", "num_patients", "num_lesions"), size, strict=True))
            for split, size in row.size.items()
        },
        "cross_validations": [
            {
                "seed": found.seed,
                "folds": [run.fold for run in found.runs],
                "num_cases": found.num_cases,
                "num_patients": found.num_patients,
                "num_lesions": found.num_lesions,
                "figures": found.figures,
                "interval": found.interval,
            }
            for found in row.folds
        ],
    }


def _run(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "folder": run.folder,
        "setting": setting_of(run, rows),
        "seed": run.seed,
        "fold": run.fold,
        "state": str(run.state),
        "words": run.words,
    }


def setting_of(run: Run, rows: Sequence[Row]) -> int | None:
    """Number of the setting of a run; None where its configuration could not be read."""
    return next((r.setting.number for r in rows if run in (*r.setting.runs, *r.setting.others)), None)


def _csv_row(row: Row) -> dict[str, object]:
    runs = row.setting.runs
    found: dict[str, object] = {
        "setting": row.setting.number,
        **{key: text_of(value) for key, value in row.setting.values.items()},
        "num_runs": len(runs),
        "num_other_runs": len(row.setting.others),
        "seeds": " ".join(dict.fromkeys(text_of(run.seed) for run in runs)),
        "folds": " ".join(dict.fromkeys(text_of(run.fold) for run in runs if run.fold is not None)),
    }
    for split, size in row.size.items():
        found |= {f"{split}_{what}": n for what, n in zip(("cases", "patients", "lesions"), size, strict=True)}
    for key, spread in row.figures.items():
        found |= {f"{key}_{part}": getattr(spread, part) for part in ("mean", "sd", "low", "high")}
        found[f"{key}_n"] = len(spread.values)
    return found | dict(zip((f"{PRIMARY}_interval_low", f"{PRIMARY}_interval_high"), row.interval, strict=True))


def print_summary(summary: Summary, places: Mapping[str, Path]) -> None:
    """Print the table, what limits it, every run that is not in it, and where the results lie."""
    lines = [f"{summary.title}: {summary.counts}", *_table(summary), ""]
    lines.append(summary.answer)
    lines += [f"{_size_words(summary, split)}" for split in SPLITS if _size_words(summary, split)]
    lines += [f"warning: {line}" for line in summary.warnings]
    lines += [f"note: {line}" for line in summary.notes]
    others = [run for run in summary.runs if run.state is not State.FINISHED]
    if others:
        lines += ["", "not in the table:", *(f"  {run.folder}: {run.words}" for run in others)]
    width = max(map(len, places))
    lines += ["", *(f"  {name:<{width}}  {place}" for name, place in places.items())]
    print("\n".join(lines), flush=True)


def _table(summary: Summary) -> list[str]:
    figures = summary.shown_figures
    head = [*summary.grouping.keys, "runs", *(figure.short for figure in figures)]
    body = [
        [
            *(text_of(value) for value in row.setting.values.values()),
            replicate_words(row),
            *(_cell(row, figure) for figure in figures),
        ]
        for row in summary.rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    num_left = len(summary.grouping.keys) + 1
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    ]


def _cell(row: Row, figure: Figure) -> str:
    spread = row.figures[figure.key]
    return cell_words(spread.mean, spread.sd, figure.digits) or "undefined"


def cell_words(mean: float, sd: float, digits: int) -> str | None:
    """Write a mean and its standard deviation; the mean alone where there is no spread, None where there is neither."""
    if math.isnan(mean):
        return None
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" \u00b1 {sd:.{digits}f}")


def _size_words(summary: Summary, split: str) -> str:
    """What stands behind the figures of a split: "validation: 20 cases of 18 patients with 71 lesions"."""
    sizes = sorted({row.size[split] for row in summary.rows if split in row.size})
    if not sizes:
        return ""
    words = " or ".join(
        f"{count(cases, 'case')} of {count(patients, 'patient')} with {count(lesions, 'lesion')}"
        for cases, patients, lesions in sizes
    )
    return f"{split}: {words} behind each figure"


def size_lines(summary: Summary) -> list[str]:
    """What stands behind the figures of each split."""
    return [words for split in SPLITS if (words := _size_words(summary, split))]
