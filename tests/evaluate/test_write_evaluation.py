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


RATES = (
    "lesion_sensitivity",
    "lesion_sensitivity_macro",
    "lesion_precision",
    "lesion_f1",
    "false_positives_per_case",
    "false_positives_per_lesion_free_case",
    "false_positives_per_litre",
    "wafroc",
    "wafroc1",
    "free_response_ap",
    "case_auroc",
    "case_ap",
    "case_sensitivity",
    "case_specificity",
    "recognition_quality",
    "segmentation_quality",
    "panoptic_quality",
)
COUNTS = (
    "num_cases",
    "num_patients",
    "num_lesion_free_cases",
    "num_lesions",
    "num_detected_lesions",
    "num_ignored_lesions",
    "num_candidates",
    "num_true_candidates",
    "num_false_candidates",
    "num_double_candidates",
    "num_ignored_candidates",
    "num_split_lesions",
    "num_merging_candidates",
    "num_hit_missed_lesions",
)
OTHERS = (
    *("protocol", "claim", "by_size", "froc", "hit_rule_curves", "calibration", "voxel_dice", "volume_difference_ml"),
    *(
        "mean_absolute_volume_difference_ml",
        "surface",
        "published",
        "missing",
        "failed",
        "warnings",
        "undefined",
        "inputs",
    ),
)


def test_json_holds_the_keys_that_scripts_rely_on(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(written) == {*RATES, *COUNTS, *OTHERS}
    rate = ["value", "low", "high", "level", "method", "numerator", "denominator", "num_patients", "deff"]
    assert all(list(written[name]) == rate for name in RATES)
    assert list(written["froc"]) == ["points", "cpm", "cpm_low", "cpm_high", "method", "curve", "band"]
    point = ["false_positives_per_case", "lesion_sensitivity", "threshold", "reached", "low", "high"]
    assert all(list(read) == point for read in written["froc"]["points"])
    columns = ["threshold", "false_positives_per_case", "lesion_sensitivity"]
    assert all(list(read) == columns for read in written["froc"]["curve"])
    dice = ["mean", "median", "low", "high", "level", "method", "num_cases", "num_undefined", "num_patients"]
    assert list(written["voxel_dice"]) == dice


def test_json_says_what_the_evaluation_says(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["num_cases"], written["num_lesions"], written["num_detected_lesions"]) == (2, 2, 1)
    assert written["lesion_sensitivity"]["value"] == 0.5
    point = written["froc"]["points"][2]
    assert (point["false_positives_per_case"], point["lesion_sensitivity"]) == (0.5, 0.5)
    assert (point["threshold"], point["reached"]) == (0.25, True)


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
    """Where a figure is null a line names it, by the first word of its `what`.

    Figures that are no quotient have no numerator, denominator and design effect, and the last stratum has no end.
    """
    empty = np.zeros((12, 10, 8), bool)
    write_evaluation(evaluate_cases([evaluate_case(empty, empty, AFFINE, case="b")]), tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    named = {name.strip() for line in written["undefined"] for name in line["what"].split(":")[0].split(",")}
    without = {"numerator", "denominator", "deff"}

    def has_null(value):
        if isinstance(value, dict):
            ends = {"high"} if "measure" in value else set()
            return any(has_null(item) for name, item in value.items() if name not in without | ends)
        if isinstance(value, list):
            return any(map(has_null, value))
        return value is None

    assert {name for name, value in written.items() if has_null(value)} == named


def test_cases_csv_has_a_row_for_each_case(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    first, second = rows(tmp_path / "cases.csv")
    assert ",".join(first) == (
        "case,patient,num_lesions,num_detected_lesions,num_ignored_lesions,num_candidates,num_true_candidates,"
        "num_false_candidates,num_double_candidates,num_ignored_candidates,num_split_lesions,num_merging_candidates,"
        "num_hit_missed_lesions,"
        "voxel_dice,reference_volume_ml,predicted_volume_ml,volume_difference_ml,"
        "hd95_mm,hd95_pooled_mm,assd_mm,masd_mm,nsd"
    )
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
        "case,patient,lesion,num_voxels,volume_ml,equivalent_diameter_mm,longest_diameter_mm,axial_diameter_mm,"
        "i,j,k,x_mm,y_mm,z_mm,ignored,detected,candidate,num_hits,overlap_voxels,iou,dice,confidence,"
        "hd95_mm,hd95_pooled_mm,assd_mm,masd_mm,nsd"
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
        "case,patient,candidate,confidence,above_threshold,verdict,lesion,num_hits,overlap_voxels,num_voxels,volume_ml,"
        "equivalent_diameter_mm,longest_diameter_mm,axial_diameter_mm,i,j,k,x_mm,y_mm,z_mm"
    )
    assert (true["confidence"], true["above_threshold"], true["verdict"]) == ("0.75", "true", "true")
    assert (true["lesion"], true["num_hits"]) == ("1", "1")
    assert (false["above_threshold"], false["verdict"], false["lesion"]) == ("false", "false", "")


def test_tables_without_rows_keep_their_columns(tmp_path):
    empty = np.zeros((12, 10, 8), bool)
    write_evaluation(evaluate_cases([evaluate_case(empty, empty, AFFINE, case="b")]), tmp_path)
    assert (tmp_path / "lesions.csv").read_text().startswith("case,patient,lesion,")
    assert (tmp_path / "candidates.csv").read_text().startswith("case,patient,candidate,")
