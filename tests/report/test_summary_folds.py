"""The table of held-out predictions, and the page and figures of a summary."""

import base64
import re
import urllib.parse
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from summary_folders import AFFINE, SHAPE, TinyCase, make_run, read_csv, read_json

from medfocal.evaluate import Protocol, evaluate_case, evaluate_cases, judge, write_evaluation
from medfocal.evaluate.pairs import find_pairs
from medfocal.evaluate.pool import pool
from medfocal.report.summary import compare_runs, summarize_runs
from medfocal.report.summary_figures import draw_heat_map
from medfocal.report.summary_folds import pool_rows, write_out_of_fold
from medfocal.report.summary_page import write_summary_page
from medfocal.report.tables import read_records
from medfocal.volume import Volume, write_volume

CASES = [
    (TinyCase("c1", (0.9,)), TinyCase("c2", (0.8,), (), "shared")),
    (TinyCase("c3", (0.7,)), TinyCase("c4", (0.1,))),
]


@pytest.fixture
def dataset(tmp_path):
    """Masks of the four cases in a folder, as a CSV that names them."""
    lines = ["case,patient,split,label"]
    for case in (case for group in CASES for case in group):
        path = tmp_path / "labels" / f"{case.name}.nii.gz"
        write_volume(path, Volume(np.ones(SHAPE, np.uint8), np.eye(4)))
        lines.append(f"{case.name},{case.patient or case.name},training,labels/{case.name}.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "cases.csv"


DATA = {
    "format": "auto", "root": None, "labels": None, "channels": None, "classes": {"tumour": [1]}, "ignore_value": None,
    "resample_channels": False, "patient_pattern": None, "split": None, "fold_seed": 0,
}  # fmt: skip


def make_folds(folder, dataset, *, seed=1, settings=None, folds=(0, 1)):
    made = []
    for fold in folds:
        conf = {"data": {"dataset": str(dataset), "num_folds": 2, "fold": fold, **DATA}, **(settings or {})}
        run = make_run(
            folder / f"s{seed}f{fold}", seed=seed, fold=fold, num_folds=2, settings=conf, validation=CASES[fold],
            training=CASES[1 - fold],
        )  # fmt: skip
        for case in CASES[fold]:
            path = run / "validation" / "predictions" / f"{case.name}_probability.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"a map")
        made.append(run)
    return made


def test_each_case_is_paired_with_the_prediction_of_the_fold_that_validated_it(tmp_path, dataset):
    first, second = make_folds(tmp_path / "runs", dataset)
    summary = compare_runs([tmp_path / "runs"])
    assert write_out_of_fold(tmp_path / "o" / "x.csv", summary.rows[0].folds[0].runs) is None
    pairs = find_pairs(None, None, manifest=tmp_path / "o" / "x.csv")
    assert [(pair.case, pair.patient) for pair in pairs] == [
        ("c1", "c1"),
        ("c2", "shared"),
        ("c3", "c3"),
        ("c4", "c4"),
    ]
    homes = [first, first, second, second]
    for pair, home in zip(pairs, homes, strict=True):
        assert pair.prediction == home / "validation" / "predictions" / f"{pair.case}_probability.nii.gz"
        assert pair.reference == tmp_path / "labels" / f"{pair.case}.nii.gz"


def test_seeds_and_settings_have_a_table_each_and_a_single_one_the_plain_name(tmp_path, dataset):
    make_folds(tmp_path / "a", dataset)
    summarize_runs([tmp_path / "a"], tmp_path / "o")
    assert [path.name for path in (tmp_path / "o").glob("*fold*")] == ["out_of_fold.csv"]
    make_folds(tmp_path / "a", dataset, seed=2)
    make_folds(tmp_path / "a" / "other", dataset, settings={"loss.gamma": 0.0})
    summarize_runs([tmp_path / "a"], tmp_path / "o")
    names = {"out_of_fold_setting1_seed1.csv", "out_of_fold_setting2_seed1.csv", "out_of_fold_setting2_seed2.csv"}
    assert {path.name for path in (tmp_path / "o").glob("*fold*")} == names
    (row, *_) = read_csv(tmp_path / "o" / "out_of_fold_setting1_seed1.csv")
    assert "/other/" in row["prediction"]
    tables = read_json(tmp_path / "o" / "summary.json")["out_of_fold"]
    assert {Path(table["path"]).name for table in tables} == names


def test_without_kept_predictions_the_reason_is_told_and_nothing_written(tmp_path, dataset):
    _, second = make_folds(tmp_path / "runs", dataset)
    runs = compare_runs([tmp_path / "runs"]).rows[0].folds[0].runs
    (second / "validation" / "predictions" / "c4_probability.nii.gz").unlink()
    assert "c4_probability.nii.gz' does not exist" in write_out_of_fold(tmp_path / "x.csv", runs)
    for path in (second / "validation" / "predictions").iterdir():
        path.unlink()
    (second / "validation" / "predictions").rmdir()
    assert "save_validation_predictions=true" in write_out_of_fold(tmp_path / "x.csv", runs)
    assert not (tmp_path / "x.csv").exists()
    summary = summarize_runs([tmp_path / "runs"], tmp_path / "o")
    assert any("No out_of_fold.csv" in note for note in summary.notes)


def test_a_dataset_that_has_moved_is_told_as_the_reason(tmp_path, dataset):
    make_folds(tmp_path / "runs", dataset)
    dataset.unlink()
    runs = compare_runs([tmp_path / "runs"]).rows[0].folds[0].runs
    assert "cases.csv" in write_out_of_fold(tmp_path / "x.csv", runs)


def test_a_case_without_a_label_is_told_as_the_reason(tmp_path, dataset):
    make_folds(tmp_path / "runs", dataset)
    dataset.write_text(dataset.read_text().replace("c3,c3,", "c9,c9,"))
    runs = compare_runs([tmp_path / "runs"]).rows[0].folds[0].runs
    assert "case 'c3' has no label file" in write_out_of_fold(tmp_path / "x.csv", runs)


# Page and figures


def make_grid(folder, *, gammas=(0, 1), alphas=(0.25, 0.5), left_out=((1, 0.5),), **more):
    for gamma in gammas:
        for alpha in alphas:
            if (gamma, alpha) not in left_out:
                settings = {"loss.gamma": gamma, "loss.alpha": alpha}
                make_run(folder / f"g{gamma}a{alpha}", settings=settings, **more)


def svg(uri):
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def test_a_heat_map_says_which_pairs_have_no_run_or_no_finished_one(tmp_path):
    make_grid(tmp_path)
    make_run(tmp_path / "stopped", settings={"loss.gamma": 2, "loss.alpha": 0.25}, finished=False)
    summary = compare_runs([tmp_path])
    drawing = draw_heat_map(summary.grouping.keys, summary.rows, "1 FP per case")
    assert "2 values of loss.alpha and 3 of loss.gamma" in drawing.words
    assert "2 pairs of values have no run (hatched)" in drawing.words
    assert "1 pair of values has no finished figure (hatched)" in drawing.words
    assert svg(drawing.light).count("url(#h") == 3


def test_cells_stand_at_their_values_and_colours_follow_the_figures(tmp_path, monkeypatch):
    many = [tuple(TinyCase(f"m{n}", (confidence,) * 9) for n in range(12)) for confidence in (None, 0.9)]
    make_grid(tmp_path, left_out=((1, 0.5), (0, 0.25)), validation=many[0])
    make_grid(tmp_path / "high", left_out=((1, 0.5), (0, 0.5), (1, 0.25)), validation=many[1])
    summary = compare_runs([tmp_path])
    figures = []
    monkeypatch.setattr("medfocal.report.figures._svg", lambda figure: figures.append(figure) or "")
    draw_heat_map(summary.grouping.keys, summary.rows, "")
    (axes,) = figures[0].axes
    places = {text.get_text(): tuple(map(round, text.get_position())) for text in axes.texts if "." in text.get_text()}
    assert places["1.000"] == (0, 0)  # gamma 0 along the bottom, alpha 0.25 down the side
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.25", "0.5"]
    colours = {
        tuple(round(v + 0.5) for v in patch.get_xy()): sum(patch.get_facecolor()[:3])
        for patch in axes.patches
        if not patch.get_hatch()
    }
    assert colours[0, 0] < min(colours[1, 0], colours[0, 1])  # the higher the deeper


@pytest.mark.parametrize("keys", [1, 3])
def test_there_is_a_heat_map_for_exactly_two_settings(keys, tmp_path):
    for value in (0, 1):
        settings = dict(list({"loss.gamma": value, "loss.alpha": value, "loss.cap": value}.items())[:keys])
        make_run(tmp_path / "runs" / f"r{value}", settings=settings)
    summarize_runs([tmp_path / "runs"], tmp_path / "o")
    assert not (tmp_path / "o" / "heatmap.png").exists()
    assert 'id="heat-map"' not in (tmp_path / "o" / "summary.html").read_text("utf-8")


def test_figures_are_pictures_and_the_page_needs_nothing_else(tmp_path):
    make_grid(tmp_path / "runs")
    summarize_runs([tmp_path / "runs"], tmp_path / "o")
    for name in ("curves.png", "heatmap.png"):
        with Image.open(tmp_path / "o" / name) as picture:
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5
    html = (tmp_path / "o" / "summary.html").read_text("utf-8")
    assert html.count("<picture>") == 3
    addresses = re.findall(r'(?:src|href|srcset)="([^"]+)"', html)
    assert all(address.startswith(("data:image/svg+xml", "#", "./../runs/")) for address in addresses)
    reports = [address for address in addresses if address.endswith("report.html")]
    assert len(reports) == 6
    assert all((tmp_path / "o" / address).is_file() for address in reports)
    assert "default-src 'none'" in html


def test_a_curve_is_the_mean_of_the_runs_with_their_range(tmp_path, monkeypatch):
    from medfocal.report.summary_figures import draw_curves

    make_run(tmp_path / "a", seed=1, sensitivities=[0.2, 0.6])
    make_run(tmp_path / "b", seed=2, sensitivities=[0.4, 1.0])
    figures = []
    monkeypatch.setattr("medfocal.report.figures._svg", lambda figure: figures.append(figure) or "")
    draw_curves(compare_runs([tmp_path]).rows, "")
    (axes,) = figures[0].axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.3], [2, 0.8]])
    (band,) = axes.collections
    ends = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert ends == {(1, 0.2), (2, 0.6), (1, 0.4), (2, 1.0)}


def test_three_settings_have_colours_and_the_others_are_counted(tmp_path, monkeypatch):
    from medfocal.report.summary_figures import draw_curves

    for gamma in range(6):
        make_run(tmp_path / f"r{gamma}", settings={"loss.gamma": gamma})
    figures = []
    monkeypatch.setattr("medfocal.report.figures._svg", lambda figure: figures.append(figure) or "")
    draw_curves(compare_runs([tmp_path]).rows, "")
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels == ["loss.gamma=0", "loss.gamma=1", "loss.gamma=2", "3 other settings"]


def test_names_of_files_and_settings_are_no_markup(tmp_path):
    hostile = "<script>alert(1)</script>"
    make_run(tmp_path / "runs" / "a'<b>&#1 %41", settings={"loss.note": hostile})
    make_run(tmp_path / "runs" / "javascript:x", settings={"loss.note": "y"})
    write_summary_page(tmp_path / "o" / "p.html", compare_runs([tmp_path / "runs"]))
    html = (tmp_path / "o" / "p.html").read_text("utf-8")
    assert hostile not in html
    assert "<b>&" not in html
    addresses = [address for address in re.findall(r'href="(\./[^"]+)"', html) if "%3Cb" in address]
    assert len(addresses) == 2
    for address in addresses:
        assert "#" not in address
        assert (tmp_path / "o" / urllib.parse.unquote(address)).is_file()
    assert 'href="javascript' not in html


def test_a_pool_of_written_rows_is_the_pool_of_the_cases(tmp_path):
    """Ignored lesions, their candidates and doubles among them."""
    protocol = Protocol(num_resamples=0, threshold=0.5, min_volume_mm3=4.0, duplicates="ignored")
    tables = []
    for case, patient, high in (("x", "p2", 0.9), ("y", "p1", 0.3), ("z", "p2", 0.0)):
        reference, probability = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE)
        reference[2:9, 3:5, 1] = 1  # a lesion with a candidate at each end
        reference[15, 15, 4] = reference[20, 5, 6] = 1  # two that are too small
        for place, confidence in (((2, 3, 1), high), ((8, 4, 1), 0.55), ((15, 15, 4), 0.95), ((12, 18, 2), 0.8)):
            probability[place] = confidence
        tables.append(evaluate_case(reference, probability, AFFINE, case=case, patient=patient, protocol=protocol))
    tables.append(evaluate_case(reference * 0, probability * 0, AFFINE, case="empty", protocol=protocol))
    small = np.zeros(SHAPE, np.uint8)
    small[15, 15, 4] = 1
    tables.append(evaluate_case(small, probability, AFFINE, case="uncertain", protocol=protocol))
    write_evaluation(evaluate_cases(tables, protocol), tmp_path)
    read = read_records(tmp_path)
    assert {row["verdict"] for row in read.candidates} == {"true", "false", "double", "ignored"}
    found = pool_rows(read.cases, read.lesions, read.candidates, diameter=protocol.diameter)
    wanted = pool([judge(table, protocol) for table in tables])
    for field in fields(wanted):
        if field.name != "case_litres":  # the files do not hold it
            np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name), err_msg=field.name)
