"""Many runs of `medfocal train` as one table: a row a setting, with the mean and spread over its seeds and folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medfocal.errors import ConfigError, InputError
from medfocal.evaluate.pairs import some
from medfocal.files import make_folder, write_csv, write_json
from medfocal.progress import track
from medfocal.report.summary_figures import write_curves_png, write_heat_map_png
from medfocal.report.summary_folds import CrossValidation, check_held_out, pool_folds, write_out_of_fold
from medfocal.report.summary_page import write_summary_page
from medfocal.report.summary_runs import Run, State, find_run_folders, read_run
from medfocal.report.summary_settings import Grouping, Setting, choose_experiments, group_runs, text_of
from medfocal.report.summary_spread import (
    Row,
    is_cross_validated,
    noise_words,
    rate_words,
    summarize_setting,
    wanted_folds,
)
from medfocal.report.summary_table import OutOfFold, Summary, print_summary
from medfocal.report.tables import count

#: Written by an earlier summary, these would tell of other runs.
FILES = ("summary.csv", "summary.json", "summary.html", "curves.png", "heatmap.png")


def summarize_runs(places: Sequence[Path], output: Path, *, experiments: Sequence[str] | None = None) -> Summary:
    """Read runs, compare their settings, write tables, figures and a page into `output`, and print the table.

    Everything is written before a broken run is told as an error.

    Args:
        places: Folders that run folders lie in, a few levels down.
        output: Folder for summary.csv, summary.json, summary.html, curves.png, heatmap.png where exactly two settings
            differ, and a table of held-out predictions for each setting and seed whose folds kept them.
        experiments: Which to set side by side; None: the only one there is.

    Returns:
        What was found.

    Raises:
        ConfigError: There are runs of several experiments and none is named, or `output` is a run folder.
        InputError: There is no run, or one has a file that cannot be used.
        DatasetError: A case was validated in two folds, or by a model that learnt from its patient.
    """
    summary = compare_runs(places, experiments=experiments)
    if output.resolve() in {run.folder.resolve() for run in summary.runs}:
        message = f"output '{output}' is a run folder; choose another, so that the run stays as it is"
        raise ConfigError(message)
    make_folder(output)
    for path in [*(output / name for name in FILES), *output.glob("out_of_fold*.csv")]:
        path.unlink(missing_ok=True)
    out_of_fold, missing = _write_out_of_fold(summary.rows, output)
    summary = replace(summary, notes=[*summary.notes, *missing], out_of_fold=out_of_fold)
    written = write_tables(summary, output) | _write_figures(summary, output)
    print_summary(summary, written | _named(out_of_fold))
    if summary.faults:
        lines = "".join(f"\n    {fault}" for fault in summary.faults)
        what = f"{count(len(summary.faults), 'fault')} in {count(len(summary.runs), 'run')}"
        message = f"{what}; what it concerns is in no figure:{lines}"
        raise InputError(message)
    return summary


def compare_runs(places: Sequence[Path], *, experiments: Sequence[str] | None = None) -> Summary:
    """Read runs and compare their settings, without writing anything; see `summarize_runs`."""
    folders = find_run_folders(places)
    runs = choose_experiments([read_run(folder) for folder in track(folders, "read runs")], experiments, places)
    grouping = group_runs(runs)
    rows, broken = _rows(grouping)
    rates = {run.rate for run in runs if run.settings}
    rate = rates.pop() if len(rates) == 1 else math.nan
    return Summary(
        places=places,
        experiments=sorted({run.experiment for run in runs if run.settings}),
        rate=rate,
        grouping=grouping,
        rows=rows,
        runs=runs,
        warnings=_warnings(rows, grouping, rate),
        notes=_notes(grouping),
        faults=[*(run.words for run in runs if run.state is State.BROKEN), *broken],
        out_of_fold=[],
    )


def write_tables(summary: Summary, output: Path) -> dict[str, Path]:
    """Write summary.csv and summary.json; give them by name."""
    table, values = output / "summary.csv", output / "summary.json"
    write_csv(table, *summary.csv_rows())
    write_json(values, summary.to_dict())
    return {"table": table, "values": values}


def _rows(grouping: Grouping) -> tuple[list[Row], list[str]]:
    """A row a setting, and the files of folds that could not be put together."""
    is_folded = is_cross_validated(grouping)
    rows, broken = [], []
    for setting in track(grouping.settings, "sum up settings"):
        folds: list[CrossValidation] = []
        why = ""
        if is_folded:
            whole, lacking = _seeds_with_all_folds(setting, grouping)
            for seed, runs in whole:
                check_held_out(runs)
                try:
                    folds.append(pool_folds(seed, runs))
                except InputError as error:
                    why = str(error)
                    broken.append(why)
            why = why or "; ".join(lacking)
        rows.append(summarize_setting(setting, folds, is_folded=is_folded, why=why))
    return rows, broken


def _seeds_with_all_folds(setting: Setting, grouping: Grouping) -> tuple[list[tuple[object, list[Run]]], list[str]]:
    """The runs of each seed that has all folds, and of the others what they lack."""
    wanted = wanted_folds(setting, grouping)
    whole: list[tuple[object, list[Run]]] = []
    lacking = []
    for seed in dict.fromkeys(run.seed for run in setting.runs):
        runs = [run for run in setting.runs if run.seed == seed]
        absent = [fold for fold in wanted if fold not in {run.fold for run in runs}]
        if absent:
            which = ", ".join(map(text_of, absent))
            lacking.append(f"seed {text_of(seed)} lacks fold {which} of {len(wanted)}")
        else:
            whole.append((seed, runs))
    return whole, lacking


def _warnings(rows: Sequence[Row], grouping: Grouping, rate: float) -> list[str]:
    found = []
    if (noise := noise_words(rows, rate_words(rate))) is not None:
        found.append(noise)
    single = [row for row in rows if len(row.setting.runs) == 1]
    if single:
        found.append(
            f"One run stands behind {count(len(single), 'setting')} of {len(rows)}: nothing tells how far another seed "
            "would move it."
        )
    if math.isnan(rate) and any(row.setting.runs for row in rows):
        found.append("Runs declare different trainer.validation_false_positives: their figures are of different rates.")
    rules = [key for key in (*grouping.keys, *grouping.implied) if key.startswith("evaluate.")]
    if rules:
        found.append(f"Settings differ in the rules of evaluation ({some(rules)}), so figures do not compare.")
    found += _split_warnings(rows, is_folded=is_cross_validated(grouping))
    for row in rows:
        if row.folds and row.why:
            found.append(f"{row.setting.name}: {row.why}; the seed is in no validation figure.")
        elif row.why and row.setting.runs:
            found.append(f"{row.setting.name}: no validation figure, since {row.why}.")
    for earlier, later in grouping.repeated:
        found.append(
            f"'{earlier.folder}' and '{later.folder}' have the same settings, seed and fold; the later one counts."
        )
    failed = [run for row in rows for run in row.setting.runs for result in run.results.values() if result.num_failed]
    if failed:
        found.append(
            f"{count(len(failed), 'evaluation')} left cases out that failed: {some(str(r.folder) for r in failed)}"
        )
    return found


def _split_warnings(rows: Sequence[Row], *, is_folded: bool) -> list[str]:
    """Whether all figures are of the same cases."""
    found = []
    for split in ("validation", "test"):
        if split == "validation" and is_folded:
            sets = [
                frozenset(c for r in fold.runs for c in r.split.get(split, {})) for row in rows for fold in row.folds
            ]
        else:
            sets = [frozenset(run.split.get(split, {})) for row in rows for run in row.setting.runs]
        if len(set(sets)) > 1:
            found.append(f"The runs do not have the same {split} cases, so their {split} figures do not compare.")
    return found


def _notes(grouping: Grouping) -> list[str]:
    found = ["Validation figures flatter: the epoch and the operating point were chosen on the same cases."]
    if is_cross_validated(grouping):
        found.append(
            "Folds validate different patients, so those of one seed are put together as one evaluation, and the "
            "spread of validation figures is over seeds. All runs share the test split: its spread is over all of them."
        )
    if grouping.implied:
        found.append(f"What follows from the settings shown is left out of their names: {some(grouping.implied)}.")
    return found


def _write_out_of_fold(rows: Sequence[Row], output: Path) -> tuple[list[OutOfFold], list[str]]:
    """Write a table for each setting and seed with all folds; say why where there is none."""
    num_settings = len([row for row in rows if row.folds])
    num_seeds = len({text_of(found.seed) for row in rows for found in row.folds})
    written, reasons = [], []
    for row in rows:
        for found in row.folds:
            parts = ["out_of_fold"]
            parts += [f"setting{row.setting.number}"] if num_settings > 1 else []
            parts += [f"seed{text_of(found.seed)}"] if num_seeds > 1 else []
            path = output / f"{'_'.join(parts)}.csv"
            why = write_out_of_fold(path, found.runs)
            if why is None:
                written.append(OutOfFold(path, row.setting.number, found.seed))
            else:
                reasons.append(f"No {path.name}: {why}.")
    return written, reasons


def _write_figures(summary: Summary, output: Path) -> dict[str, Path]:
    """Write the page and the figures; give them by name."""
    keys = summary.grouping.keys
    written = {"page": write_summary_page(output / "summary.html", summary)}
    written["curves"] = write_curves_png(output / "curves.png", summary.rows)
    if len(keys) == 2:
        written["heat map"] = write_heat_map_png(output / "heatmap.png", keys, summary.rows, summary.rate_words)
    return written


def _named(tables: Sequence[OutOfFold]) -> dict[str, Path]:
    """Tables of held-out predictions, by a name that tells them apart."""
    if len(tables) == 1:
        return {"held out": tables[0].path}
    return {f"held out, setting {table.setting}, seed {text_of(table.seed)}": table.path for table in tables}
