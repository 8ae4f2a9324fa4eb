import csv
import json
import math

import numpy as np
import pytest
from lesion_cases import AFFINE, bar, fill

from medfocal.evaluate import evaluate_case, evaluate_cases, write_evaluation


@pytest.fixture
def evaluation():
    reference = fill([(bar(1, 3), 1), (bar(6, 9), 1)]) != 0
    prediction = fill([(bar(2, 4), 0.75), (((0, 1), (9, 10), (7, 8)), 0.25)])
    results = [
        evaluate_case(reference, prediction, AFFINE, case="a", patient="p1"),
        evaluate_case(np.zeros_like(reference), np.zeros_like(prediction), AFFINE, case="b"),
    ]
    return evaluate_cases(results)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_json_holds_the_keys_that_scripts_rely_on(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(written) == [
        "protocol",
        "num_cases",
        "num_patients",
        "num_lesions",
        "num_detected_lesions",
        "num_candidates",
        "num_true_candidates",
        "num_false_candidates",
        "num_ignored_lesions",
        "lesion_sensitivity",
        "lesion_sensitivity_macro",
        "lesion_precision",
        "lesion_f1",
        "false_positives_per_case",
        "false_positives_per_litre",
        "froc",
        "voxel_dice",
        "undefined",
    ]
    rate = ["value", "low", "high", "level", "method", "numerator", "denominator", "num_patients", "deff"]
    assert all(list(written[name]) == rate for name in list(written)[9:15])
    assert list(written["froc"]) == ["points", "cpm", "curve"]
    point = ["false_positives_per_case", "lesion_sensitivity", "threshold", "reached"]
    assert all(list(read) == point for read in written["froc"]["points"])
    columns = ["threshold", "false_positives_per_case", "lesion_sensitivity"]
    assert all(list(read) == columns for read in written["froc"]["curve"])
    assert list(written["voxel_dice"]) == ["mean", "median", "num_cases", "num_undefined"]


def test_json_says_what_the_evaluation_says(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["num_cases"], written["num_lesions"], written["num_detected_lesions"]) == (2, 2, 1)
    assert written["lesion_sensitivity"]["value"] == 0.5
    assert written["froc"]["points"][2] == {
        "false_positives_per_case": 0.5,
        "lesion_sensitivity": 0.5,
        "threshold": 0.25,
        "reached": True,
    }


def test_undefined_is_null_in_json_and_listed_with_its_reason(tmp_path):
    empty = np.zeros((12, 10, 8), bool)
    write_evaluation(evaluate_cases([evaluate_case(empty, empty, AFFINE, case="b")]), tmp_path)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    written = json.loads(text)
    assert written["lesion_sensitivity"]["value"] is None
    assert written["froc"]["points"][0]["threshold"] is None
    assert {"what": "lesion_sensitivity", "where": "all cases", "why": "there is no lesion"} in written["undefined"]


def test_every_null_in_json_has_a_line_in_undefined(tmp_path):
    """Where a figure is null a line names it, by the first word of its `what`."""
    empty = np.zeros((12, 10, 8), bool)
    write_evaluation(evaluate_cases([evaluate_case(empty, empty, AFFINE, case="b")]), tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    named = {line["what"].split(":")[0] for line in written["undefined"]}

    def has_null(value):
        if isinstance(value, dict):
            return any(map(has_null, value.values()))
        if isinstance(value, list):
            return any(map(has_null, value))
        return value is None

    assert {name for name, value in written.items() if has_null(value)} == named


def test_cases_csv_has_a_row_for_each_case(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    first, second = rows(tmp_path / "cases.csv")
    assert list(first) == [
        "case",
        "patient",
        "num_lesions",
        "num_detected_lesions",
        "num_candidates",
        "num_true_candidates",
        "num_false_candidates",
        "voxel_dice",
        "reference_volume_ml",
        "predicted_volume_ml",
    ]
    assert (first["case"], first["patient"], second["patient"]) == ("a", "p1", "b")
    # 8 + 12 voxels of 1.5 mm3 in the reference, 8 in the candidate that counts, 4 of them shared.
    assert float(first["reference_volume_ml"]) == pytest.approx(0.03)
    assert float(first["predicted_volume_ml"]) == pytest.approx(0.012)
    assert float(first["voxel_dice"]) == pytest.approx(8 / 28)
    assert second["voxel_dice"] == ""


def test_lesions_csv_has_a_row_for_each_lesion(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    found, missed = rows(tmp_path / "lesions.csv")
    assert ",".join(found) == (
        "case,patient,lesion,num_voxels,volume_ml,equivalent_diameter_mm,i,j,k,x_mm,y_mm,z_mm,detected,candidate,"
        "overlap_voxels,confidence"
    )
    assert (found["detected"], found["candidate"], found["overlap_voxels"], found["confidence"]) == (
        "true",
        "1",
        "4",
        "0.75",
    )
    assert [float(found[name]) for name in ("i", "j", "k")] == [1.5, 3.5, 2.5]
    assert [float(found[name]) for name in ("x_mm", "y_mm", "z_mm")] == [19.25, -3.5, 11.5]
    assert float(found["equivalent_diameter_mm"]) == pytest.approx((6 * 12 / math.pi) ** (1 / 3))
    assert (missed["detected"], missed["candidate"], missed["confidence"]) == ("false", "", "")


def test_candidates_csv_has_a_row_for_each_candidate_those_below_the_threshold_too(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    true, false = rows(tmp_path / "candidates.csv")
    assert ",".join(true) == (
        "case,patient,candidate,confidence,above_threshold,true,lesion,overlap_voxels,num_voxels,volume_ml,"
        "equivalent_diameter_mm,i,j,k,x_mm,y_mm,z_mm"
    )
    assert (true["confidence"], true["above_threshold"], true["true"], true["lesion"]) == ("0.75", "true", "true", "1")
    assert (false["above_threshold"], false["true"], false["lesion"]) == ("false", "false", "")


def test_tables_without_rows_keep_their_columns(tmp_path):
    empty = np.zeros((12, 10, 8), bool)
    write_evaluation(evaluate_cases([evaluate_case(empty, empty, AFFINE, case="b")]), tmp_path)
    assert (tmp_path / "lesions.csv").read_text().startswith("case,patient,lesion,")
    assert (tmp_path / "candidates.csv").read_text().startswith("case,patient,candidate,")
