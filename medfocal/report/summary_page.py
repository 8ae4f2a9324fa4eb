"""The page of many runs: one HTML file that needs nothing else."""

from __future__ import annotations

import os
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfocal.report.page import package_versions, write_page
from medfocal.report.summary_figures import draw_curves, draw_heat_map
from medfocal.report.summary_runs import Run, State
from medfocal.report.summary_settings import text_of
from medfocal.report.summary_spread import Figure, Row, best_row, replicate_words, why_undefined
from medfocal.report.summary_table import Summary, cell_words, setting_of, size_lines
from medfocal.report.tables import Notes, hit_rule_words


def write_summary_page(path: Path, summary: Summary) -> Path:
    """Write the page.

    Args:
        path: Of the HTML file; it appears once it is complete.
        summary: What to show.

    Returns:
        `path`.
    """
    notes = Notes()
    best = best_row(summary.rows)
    if best is not None and sum(row.primary.mean == best.primary.mean for row in summary.rows) > 1:
        best = None  # shared by several
    keys = summary.grouping.keys
    protocols = [result.protocol for run in summary.runs for result in run.results.values()]
    figures = summary.shown_figures
    content = {
        "title": summary.title,
        "subtitle": summary.counts,
        "answer": summary.answer,
        "sizes": size_lines(summary),
        "warnings": [*summary.warnings, *(f"In no figure: {fault}" for fault in summary.faults)],
        "notes": summary.notes,
        "hit_rule": hit_rule_words(protocols[0].to_dict()) if protocols else None,
        "keys": keys,
        "figures": [summary.name_of(figure) for figure in figures],
        "rows": [_row(row, figures, notes, is_best=row is best and len(summary.rows) > 1) for row in summary.rows],
        "heat_map": draw_heat_map(keys, summary.rows, summary.rate_words) if len(keys) == 2 else None,
        "num_keys": len(keys),
        "curves": draw_curves(summary.rows, summary.rate_words),
        "runs": [_run(run, summary, path.parent) for run in _in_order(summary)],
        "out_of_fold": [
            {"name": table.path.name, "setting": table.setting, "seed": text_of(table.seed)}
            for table in summary.out_of_fold
        ],
        "versions": package_versions(),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "undefined": notes.lines,
    }
    return write_page(path, "summary.html.j2", content)


def _row(row: Row, figures: list[Figure], notes: Notes, *, is_best: bool) -> dict[str, Any]:
    return {
        "number": row.setting.number,
        "values": [text_of(value) for value in row.setting.values.values()],
        "replicates": replicate_words(row),
        "is_best": is_best,
        "cells": [_cell(row, figure, notes) for figure in figures],
    }


def _cell(row: Row, figure: Figure, notes: Notes) -> dict[str, Any]:
    spread, where = row.figures[figure.key], f"setting {row.setting.number}"
    text = cell_words(spread.mean, spread.sd, figure.digits)
    if text is None:
        notes.add(figure.key, where, why_undefined(row, figure))
    ends = f"{spread.low:.{figure.digits}f} to {spread.high:.{figure.digits}f}" if len(spread.values) > 1 else ""
    return {"shown": notes.show(text, figure.key, where), "range": ends}


def _in_order(summary: Summary) -> list[Run]:
    """The runs by setting, seed and fold; those whose configuration could not be read come last."""
    grouped = [run for row in summary.rows for run in (*row.setting.runs, *row.setting.others)]
    return [*grouped, *summary.grouping.unknown]


def _run(run: Run, summary: Summary, folder: Path) -> dict[str, Any]:
    reports = [
        (split, _address(run.folder / split / "report.html", folder))
        for split in ("validation", "test")
        if run.state is State.FINISHED and split in run.results
    ]
    return {
        "name": str(run.folder),
        "setting": setting_of(run, summary.rows),
        "seed": text_of(run.seed) if run.settings else "",
        "fold": "" if run.fold is None else text_of(run.fold),
        "state": str(run.state),
        "words": run.words,
        "reports": reports,
    }


def _address(path: Path, folder: Path) -> str:
    """A relative address; a folder may have any name, and must not become an address of another kind."""
    return "./" + urllib.parse.quote(os.fsencode(os.path.relpath(path, folder)))
