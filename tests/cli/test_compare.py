"""`medfocal compare` from files to the page, and what it refuses."""

import csv
import json
import math
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from commands import assert_refused, run

from medfocal.volume import Volume, read_volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1.0]])
CASES = [f"c{number}" for number in range(9)]
OUTPUTS = {"comparison.json", "comparison.csv", "comparison.html", "tables_a.jsonl", "tables_b.jsonl"}
WORDS = ("compare", "reference=labels", "a=first", "b=second", "output=o")


@pytest.fixture
def files(tmp_path):
    """Nine cases of one lesion each, but the last has none: a finds two of them and b all eight, surely.

    a has a false candidate of .6 in the last case, b one of .7: 1/9 per case each.
    """
    for number, case in enumerate(CASES):
        label = np.zeros(SHAPE, np.uint8)
        label[8:11, 1:3, 5] = number < 8
        first, second = np.full(SHAPE, 0.001, np.float32), np.full(SHAPE, 0.001, np.float32)
        first[8:11, 1:3, 5] = 0.9 if number < 2 else 0.001
        second[8:11, 1:3, 5] = 0.8 if number < 8 else 0.001
        if number == 8:
            first[1, 8, 2], second[2, 7, 1] = 0.6, 0.7
        write_volume(tmp_path / "labels" / f"{case}.nii.gz", Volume(label, AFFINE))
        write_volume(tmp_path / "first" / f"{case}_probability.nii.gz", Volume(first, AFFINE))
        write_volume(tmp_path / "second" / f"{case}_probability.nii.gz", Volume(second, AFFINE))
    return tmp_path


def results(folder):
    summary = json.loads((folder / "comparison.json").read_text("utf-8"))
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        return summary, list(csv.DictReader(file))


def test_b_is_better_in_the_files_on_the_page_and_on_the_terminal(files):
    ended = run(*WORDS, folder=files)
    assert (ended.code, ended.err) == (0, "")
    assert {path.name for path in (files / "o").iterdir()} == OUTPUTS
    summary, rows = results(files / "o")
    assert (summary["a"], summary["b"], summary["verdict"]) == ("first", "second", "better")
    assert (summary["num_cases"], summary["num_patients"], summary["num_lesions"]) == (9, 9, 8)
    primary = summary["primary"]
    assert (primary["a"], primary["b"], primary["difference"]) == (0.25, 1, 0.75)
    assert 0 < primary["low"] < 0.75 < primary["high"] <= 1
    # Of all 2^9 swaps, those of the six patients in whom the models differ must all be to one side.
    assert (primary["p"], summary["is_exact"], summary["num_permutations"]) == (2 / 2**6, True, 512)
    assert (summary["mcnemar"]["num_only_a"], summary["mcnemar"]["num_only_b"]) == (0, 6)
    assert summary["mcnemar"]["statistic"] == 6
    assert (summary["threshold_a"], summary["threshold_b"]) == (pytest.approx(0.6), pytest.approx(0.7))
    # The lesion is 3 x 2 x 1 voxels of .5 x 1 x 3 mm: corners sqrt(1.5^2 + 2^2 + 3^2) = 3.9 mm apart.
    assert [row["num_lesions"] for row in summary["by_size"]] == [0, 8, 0, 0]
    assert summary["protocol"]["name"] == "any_overlap"
    assert [row["figure"] for row in rows] == [row["figure"] for row in summary["differences"]]
    of_verdict = [row for row in rows if row["false_positives_per_case"] == "1.0"]
    assert [float(row["difference"]) for row in of_verdict] == [0.75]
    page = (files / "o" / "comparison.html").read_text("utf-8")
    assert summary["sentence"] in page
    assert summary["sentence"] in ended.out
    assert summary["sentence"].startswith(
        "b is better: it finds more lesions than a at 1 false positive per case: 100.0 %"
    )
    assert "o/comparison.html" in ended.out


def test_it_imports_neither_torch_nor_monai(files):
    program = textwrap.dedent(f"""
        import sys
        from medfocal import cli
        try:
            cli.main({list(WORDS)!r})
        except SystemExit as ended:
            print("ended with", ended.code, sorted({{"torch", "monai"}} & set(sys.modules)))
    """)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=files, capture_output=True, text=True, check=False, timeout=120)
    assert ended.stdout.splitlines()[-1:] == ["ended with 0 []"], ended.stderr


def test_the_page_loads_nothing_and_every_link_within_it_has_its_place(files):
    run(*WORDS, "protocol.num_resamples=0", folder=files)
    page = (files / "o" / "comparison.html").read_text("utf-8")
    assert not re.findall(r"(?:src|href|srcset)=\"(?!data:|#)", page)
    assert not re.search(r"<script|@import|url\(", page)
    places = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= places
    assert "no interval: no resamples were asked for" in page


def test_names_on_the_page_are_text_and_not_markup(files):
    (files / "second").rename(files / "<b>second&")
    run("compare", "reference=labels", "a=first", "b='<b>second&'", "output=o", folder=files)
    assert "&lt;b&gt;second&amp;" in (files / "o" / "comparison.html").read_text("utf-8")


def test_patients_of_a_manifest_are_what_is_drawn(files):
    """All cases of one patient but for the last: nothing can be decided from him."""
    lines = ["case,patient", *(f"{case},{'anna' if case != 'c8' else 'bert'}" for case in CASES)]
    (files / "patients.csv").write_text("\n".join(lines))
    ended = run(*WORDS, "manifest=patients.csv", folder=files)
    summary, _ = results(files / "o")
    assert (summary["num_patients"], summary["mcnemar"]["num_patients"], summary["verdict"]) == (2, 1, "undecided")
    assert "by 8 lesions of 1 patient." in ended.out
    assert "warning: 1 patient with lesions: among fewer than 6" in ended.out


def test_masks_are_compared_at_the_threshold(files):
    ended = run(*WORDS, "primary_rate=null", "protocol.threshold=0.85", folder=files)
    summary, _ = results(files / "o")
    assert (summary["primary"]["a"], summary["primary"]["b"]) == (0.25, 0)
    assert summary["primary_rate"] is None
    assert (summary["threshold_a"], summary["threshold_b"]) == (0.85, 0.85)
    assert "at the threshold 0.85" in ended.out


def test_another_hit_rule_and_another_rate_are_taken_over(files):
    ended = run(
        *WORDS, "protocol=panoptica_iou50", "primary_rate=0.3", "num_permutations=20", "workers=2", folder=files
    )
    assert ended.code == 0
    summary, rows = results(files / "o")
    assert summary["protocol"]["name"] == "panoptica_iou50"
    assert "0.3" in [row["false_positives_per_case"] for row in rows]
    assert (summary["num_permutations"], summary["is_exact"]) == (20, False)


def test_a_model_against_itself_is_undecided(files):
    ended = run("compare", "reference=labels", "a=first", "b=first", "output=o", folder=files)
    assert ended.out.startswith("Undecided whether b finds more or fewer lesions than a")
    summary, _ = results(files / "o")
    assert summary["mcnemar"]["p"] is None
    assert {"what": "mcnemar", "where": "all lesions"}.items() <= summary["undefined"][0].items()
    assert not any(math.isnan(float(row["p"])) for row in results(files / "o")[1])


def test_without_lesions_the_false_candidates_are_still_compared(files):
    for case in CASES[:8]:
        (files / "labels" / f"{case}.nii.gz").unlink()
    ended = run(*WORDS, "extra=skip", folder=files)
    assert ended.out.startswith("Undecided: there is no lesion to find")
    summary, rows = results(files / "o")
    assert [row["figure"] for row in rows if row["difference"]] == ["false_positives_per_case"]
    assert {line["why"] for line in summary["undefined"]} >= {"there is no lesion"}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("output=first",), 2, ("output 'first'", "one of the folders to compare")),
        (("primary_rate=-1",), 2, ("primary_rate", "-1")),
        (("num_permutations=0",), 2, ("num_permutations", "1 or more")),
        (("missing=perhaps",), 2, ("missing", "perhaps")),
        (("b=nowhere",), 3, ("nowhere", "does not exist")),
        (("protocol.hit_rule=iuo",), 2, ("hit_rule", "iuo")),
        (("expect=mask",), 3, ("c0", "probability map", "expect=mask")),
    ],
)
def test_what_makes_no_sense_is_refused(files, words, code, told):
    assert_refused(run(*WORDS, *words, folder=files), code, *told)
    assert not (files / "o" / "comparison.json").exists()


def test_what_must_be_given_is_named(files):
    assert_refused(run("compare", "reference=labels", "a=first", "output=o", folder=files), 2, "b must be given")


def test_a_case_that_only_one_model_has_is_refused_by_name(files):
    (files / "second" / "c3_probability.nii.gz").unlink()
    assert_refused(run(*WORDS, folder=files), 3, "'second'", "c3.nii.gz")


def test_a_case_that_counts_as_nothing_found_is_one_for_both_models(files):
    (files / "second" / "c3_probability.nii.gz").unlink()
    assert run(*WORDS, "missing=empty", folder=files).code == 0
    assert results(files / "o")[0]["primary"]["b"] == 7 / 8


def test_another_grid_is_refused(files):
    write_volume(files / "second" / "c0_probability.nii.gz", Volume(np.zeros(SHAPE, np.float32), np.eye(4)))
    assert_refused(run(*WORDS, folder=files), 3, "case 'c0'", "grids")


def test_case_without_a_prediction_of_one_model_is_named(files):
    min((files / "second").iterdir()).unlink()
    ended = run(*WORDS, "missing=empty", folder=files)
    assert ended.code == 0, ended.err
    assert "b has no prediction of" in ended.out


def test_masks_are_compared_at_their_one_operating_point_only(files):
    for path in (files / "second").iterdir():
        volume = read_volume(path)
        write_volume(path, volume.with_array((volume.array > 0.5).astype(np.uint8)))
    assert run(*WORDS, folder=files).code == 0
    summary, rows = results(files / "o")
    assert summary["primary_rate"] is None
    figures = {row["figure"] for row in rows}
    assert figures == {"lesion_sensitivity", "false_positives_per_case", "wafroc", "wafroc1"}
    assert len(rows) == 4
