from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pytest
from matplotlib.image import imread

from medfocal.errors import InputError
from medfocal.report import figures, write_curves
from medfocal.report.figures import (
    COLUMNS,
    DARK,
    LIGHT,
    NEWER_COLUMNS,
    best_epoch,
    draw_froc,
    draw_training,
    read_metrics,
    visible,
)
from medfocal.train.position import METRICS

EPOCHS = [
    "1,250,0.9,0.001,31.0,,,,,",
    "2,500,0.6,0.0008,30.5,0.5,0.41,0.3,0.2,31",
    "3,750,0.5,0.0005,30.1,,,,,",
    "4,1000,0.45,0.0002,30.2,0.75,0.60,0.4,0.5,31",
    "5,1250,0.44,0.0001,30.2,0.75,0.62,0.4,0.4,31",
    "6,1500,0.43,0.0,30.2,0.75,0.62,0.5,0.6,31",
    "7,1750,0.43,0.0,30.2,0.75,0.61,0.5,0.7,31",
]

# Of the same epochs: num_skipped, lesion_sensitivity_low, lesion_sensitivity_high.
NEWER = ["0,,", "0,0.3,0.7", "3,,", "0,0.5,0.9", "1,0.55,0.9", "0,0.5,0.95", ",0.5,0.9"]
WITH_NEWER = [f"{old},{new}" for old, new in zip(EPOCHS, NEWER, strict=True)]


def metrics_file(folder, rows=EPOCHS, columns=COLUMNS):
    path = folder / "metrics.csv"
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


def summary(points, curve, *, value=0.8, false_positives=0.5):
    def rate(middle):
        low, high = (None, None) if middle is None else (middle / 2, middle * 1.2)
        return {"value": middle, "low": low, "high": high}

    keys = ("false_positives_per_case", "lesion_sensitivity")
    return {
        "protocol": {"threshold": 0.5},
        "lesion_sensitivity": rate(value),
        "false_positives_per_case": rate(false_positives),
        "froc": {
            "points": [dict(zip((*keys, "reached"), point, strict=True)) for point in points],
            "curve": [dict(zip(keys, point, strict=True)) for point in curve],
            "band": [{"false_positives_per_case": 0.25, "low": 0.1, "high": 0.7}],
        },
    }


POINTS = [(0.125, 0.0, True), (0.25, 0.4, True), (0.5, 0.8, True), (1.0, 0.8, False)]
CURVE = [(0.25, 0.4), (0.25, 0.6), (0.5, 0.8)]


def froc_axes(content):
    axes = figures._figure((5.0, 4.0), LIGHT).add_subplot()
    figures._froc(axes, content, LIGHT)
    return axes


def line(axes, label):
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.column_stack([found.get_xdata(), found.get_ydata()]).tolist()


def test_the_froc_starts_at_nothing_and_shows_reached_points_apart_from_the_others():
    axes = froc_axes(summary(POINTS, CURVE))
    assert line(axes, "curve") == [[0, 0], [0.25, 0.4], [0.25, 0.6], [0.5, 0.8]]
    assert line(axes, "the points") == [[0.125, 0.0], [0.25, 0.4], [0.5, 0.8]]
    assert line(axes, "point not reached: last value held") == [[1.0, 0.8]]


def test_the_froc_marks_the_operating_threshold_with_both_intervals():
    axes = froc_axes(summary(POINTS, CURVE, value=0.8, false_positives=0.5))
    (marker,) = axes.containers
    assert marker.get_label() == "threshold 0.5, with intervals"
    assert marker[0].get_xydata().tolist() == [[0.5, 0.8]]
    horizontal, vertical = (bars.get_segments()[0] for bars in marker[2])
    np.testing.assert_allclose(horizontal, [[0.25, 0.8], [0.6, 0.8]])
    np.testing.assert_allclose(vertical, [[0.5, 0.4], [0.5, 0.96]])


@pytest.mark.parametrize(("false_positives", "right"), [(0.5, 1.15), (3.0, 3.45)])
def test_the_froc_ends_after_the_last_rate_or_the_operating_threshold(false_positives, right):
    axes = froc_axes(summary(POINTS, [*CURVE, (400.0, 0.9)], false_positives=false_positives))
    assert axes.get_xlim()[1] == pytest.approx(right)


def test_a_froc_without_any_lesion_is_drawn_and_says_so():
    points = [(rate, None, reached) for rate, _, reached in POINTS]
    axes = froc_axes(summary(points, [(0.5, None)], value=None))
    assert not axes.get_lines()
    assert [text.get_text() for text in axes.texts] == ["no curve: nothing to find, or nothing proposed"]


def test_the_froc_is_drawn_alike_every_time_for_both_kinds_of_page():
    first, second = draw_froc(summary(POINTS, CURVE)), draw_froc(summary(POINTS, CURVE))
    assert first == second
    assert first.light != first.dark
    svg = base64.b64decode(first.light.removeprefix("data:image/svg+xml;base64,")).decode()
    assert svg.rstrip().endswith("</svg>")
    assert "0.80 at 0.50 false candidates per case" in first.words


def test_the_band_is_drawn_where_there_is_one():
    (band,) = froc_axes(summary(POINTS, CURVE)).collections[:1]
    assert band.get_label() == "interval of the curve"
    content = summary(POINTS, CURVE)
    content["froc"]["band"] = []
    assert "interval of the curve" not in [part.get_label() for part in froc_axes(content).collections]


def test_a_long_curve_is_thinned_where_nobody_sees_it():
    steps = np.arange(100_000)
    curve = list(zip(steps / 1000, 1 - np.exp(-steps / 1000), strict=True))
    kept = visible(curve, 9.2)
    assert kept[0] == curve[0]
    assert 9.2 < kept[-1][0] < 9.3
    assert 300 < len(kept) < 600
    x, y = np.array(kept).T
    held = y[np.searchsorted(x, steps[:9200] / 1000, side="right") - 1]
    assert np.abs(held - (1 - np.exp(-steps[:9200] / 1000))).max() < 0.004
    assert visible(CURVE, 9.2) == CURVE
    flat = [(0.1, 0.5), (0.2, 0.5), (3.0, 0.5)]
    assert visible(flat, 9.2) == [flat[0], flat[-1]]


def test_the_dark_figure_has_no_colour_of_the_light_one():
    drawing = draw_froc(summary(POINTS, CURVE))
    light, dark = (
        set(re.findall("#[0-9a-f]{6}", base64.b64decode(uri.partition(",")[2]).decode()))
        for uri in (drawing.light, drawing.dark)
    )
    assert light <= set(astuple(LIGHT))
    assert dark <= set(astuple(DARK))


def test_an_epoch_without_validation_reads_as_nan(tmp_path):
    rows = read_metrics(metrics_file(tmp_path))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert math.isnan(rows[0]["lesion_sensitivity"])
    assert rows[1]["cpm"] == 0.41


def test_the_best_epoch_has_the_highest_sensitivity_then_cpm_then_comes_last(tmp_path):
    best = best_epoch(read_metrics(metrics_file(tmp_path)))
    assert best is not None
    assert best["epoch"] == 6


def test_the_report_reads_the_columns_that_training_writes():
    assert {*COLUMNS, *NEWER_COLUMNS} <= set(METRICS)


def test_without_validation_there_is_no_best_epoch(tmp_path):
    assert best_epoch(read_metrics(metrics_file(tmp_path, EPOCHS[:1]))) is None


def test_a_metrics_file_without_a_column_is_refused_by_name(tmp_path):
    path = metrics_file(tmp_path, ["1,2"], ("epoch", "loss"))
    with pytest.raises(InputError, match=r"metrics.csv' has no column step, learning_rate, .*; found epoch, loss\."):
        read_metrics(path)


def test_a_word_in_a_metrics_file_is_refused_with_its_place(tmp_path):
    path = metrics_file(tmp_path, [EPOCHS[0], EPOCHS[1].replace("0.6", "much")])
    with pytest.raises(InputError, match=r"row 2, column loss: 'much' is not a number"):
        read_metrics(path)


def test_a_missing_metrics_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing.csv"):
        read_metrics(tmp_path / "nothing.csv")


def test_training_panels_share_their_epochs_and_mark_the_best(tmp_path):
    metrics = read_metrics(metrics_file(tmp_path))
    limits = []
    for draw in figures.TRAINING:
        axes = figures._figure((4.0, 3.0), LIGHT).add_subplot()
        draw(axes, metrics, LIGHT)
        limits.append(axes.get_xlim())
        assert list(axes.get_lines()[-1].get_xdata()) == [6, 6]
    assert limits == [(0.5, 7.5)] * 3


def test_the_words_of_the_training_curves_hold_the_numbers(tmp_path):
    loss, rate, validation = draw_training(read_metrics(metrics_file(tmp_path)))
    assert loss.words == "Training loss per epoch, 0.9 in the first and 0.43 in the last."
    assert rate.words == "Learning rate per epoch, 0 in the last."
    assert validation.words == "Validation: lesion sensitivity is highest at epoch 6, 0.75."


def panel(draw, metrics):
    axes = figures._figure((4.0, 3.0), LIGHT).add_subplot()
    draw(axes, metrics, LIGHT)
    return axes


def test_the_interval_of_the_validation_is_shaded_over_the_validated_epochs(tmp_path):
    metrics = read_metrics(metrics_file(tmp_path, WITH_NEWER, (*COLUMNS, *NEWER_COLUMNS)))
    axes = panel(figures._validation, metrics)
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    low, high = {(2, 0.3), (4, 0.5), (5, 0.55), (6, 0.5), (7, 0.5)}, {(2, 0.7), (4, 0.9), (5, 0.9), (6, 0.95), (7, 0.9)}
    assert corners == low | high
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["lesion sensitivity", "its interval", "CPM", "voxel Dice", "kept epoch: 6"]


def test_the_interval_of_one_validation_is_a_bar(tmp_path):
    metrics = read_metrics(metrics_file(tmp_path, WITH_NEWER[:3], (*COLUMNS, *NEWER_COLUMNS)))
    (bar,) = panel(figures._validation, metrics).collections
    assert bar.get_segments()[0].tolist() == [[2, 0.3], [2, 0.7]]


def test_skipped_steps_are_marked_at_their_epochs_and_counted(tmp_path):
    metrics = read_metrics(metrics_file(tmp_path, WITH_NEWER, (*COLUMNS, *NEWER_COLUMNS)))
    axes = panel(figures._loss, metrics)
    (label,) = [text.get_text() for text in axes.get_legend().get_texts()]
    assert label == "4 steps skipped, in 2 epochs"
    assert [x for x, _ in line(axes, label)] == [3, 5]


def test_where_no_step_was_skipped_nothing_is_said_of_it(tmp_path):
    rows = [f"{epoch},0,," for epoch in EPOCHS]
    axes = panel(figures._loss, read_metrics(metrics_file(tmp_path, rows, (*COLUMNS, *NEWER_COLUMNS))))
    assert axes.get_legend() is None


def test_an_older_metrics_file_gives_curves_without_intervals(tmp_path):
    metrics = read_metrics(metrics_file(tmp_path))
    assert all(math.isnan(row[name]) for row in metrics for name in NEWER_COLUMNS)
    assert not panel(figures._validation, metrics).collections
    assert panel(figures._loss, metrics).get_legend() is None


def test_the_words_hold_the_interval_and_the_skipped_steps(tmp_path):
    metrics = read_metrics(metrics_file(tmp_path, WITH_NEWER, (*COLUMNS, *NEWER_COLUMNS)))
    loss, _, validation = draw_training(metrics)
    assert loss.words == (
        "Training loss per epoch, 0.9 in the first and 0.43 in the last; 4 steps skipped in 2 epochs."
    )
    assert validation.words == "Validation: lesion sensitivity is highest at epoch 6, 0.75 (interval 0.50 to 0.95)."


@pytest.mark.parametrize("rows", [EPOCHS, EPOCHS[:1], []], ids=["seven epochs", "one epoch", "no epoch"])
def test_curves_are_written_as_a_png_with_something_on_it(tmp_path, rows):
    path = write_curves(metrics_file(tmp_path, rows), tmp_path / "run" / "curves.png")
    picture = imread(path)
    assert picture.shape[:2] == (652, 2112)
    assert picture[..., :3].std() > 0.01
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def run_python(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curves_are_drawn_where_the_home_folder_cannot_be_written(tmp_path):
    metrics_file(tmp_path)
    code = (
        "from medfocal.report import write_curves; from pathlib import Path; import sys;"
        f"print(write_curves(Path({str(tmp_path / 'metrics.csv')!r}), Path({str(tmp_path / 'curves.png')!r})))"
    )
    run_python(code, HOME="/proc/nowhere", XDG_CONFIG_HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_importing_the_report_loads_no_drawing_library_and_drawing_loads_no_pyplot(tmp_path):
    metrics_file(tmp_path)
    code = (
        "import sys, json; import medfocal.report as r; heavy = ['matplotlib', 'jinja2', 'nibabel', 'torch'];"
        "before = [name for name in heavy if name in sys.modules];"
        f"r.write_curves({str(tmp_path / 'metrics.csv')!r}, {str(tmp_path / 'curves.png')!r});"
        "print(json.dumps([before, 'matplotlib.pyplot' in sys.modules]))"
    )
    assert json.loads(run_python(code)) == [[], False]
