from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from medfocal.errors import InputError
from medfocal.evaluate.protocols import Protocol
from medfocal.report.tables import (
    CHOICES,
    PROTOCOL,
    Notes,
    Shown,
    answer,
    count,
    false_positive_words,
    hit_rule_words,
    number,
    percent,
    protocol_rows,
    rate,
    read_records,
    sensitivity_words,
    volume,
)

HEADERS = {
    "cases.csv": "case,patient,num_lesions,voxel_dice",
    "lesions.csv": "case,patient,lesion,volume_ml,detected,confidence",
    "candidates.csv": "case,patient,candidate,confidence,above_threshold,verdict",
}


def folder_with(folder, **rows):
    (folder / "evaluation.json").write_text(json.dumps({"undefined": []}))
    for name, header in HEADERS.items():
        lines = [header, *rows.get(name.removesuffix(".csv"), [])]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_names_stay_text_and_numbers_become_numbers(tmp_path):
    records = read_records(folder_with(tmp_path, cases=["007,true,3,0.5"], lesions=["1e5,,2,0.25,false,"]))
    assert records.cases == [{"case": "007", "patient": "true", "num_lesions": 3, "voxel_dice": 0.5}]
    (lesion,) = records.lesions
    assert lesion == {
        "case": "1e5", "patient": None, "lesion": 2, "volume_ml": 0.25, "detected": False, "confidence": None,
    }  # fmt: skip


def test_a_table_without_rows_is_an_empty_list(tmp_path):
    assert read_records(folder_with(tmp_path)).candidates == []


@pytest.mark.parametrize("name", ["evaluation.json", *HEADERS])
def test_a_missing_file_is_named(tmp_path, name):
    (folder_with(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=rf"{name}'.*Give a folder that 'medfocal evaluate' wrote"):
        read_records(tmp_path)


def test_half_a_json_file_is_an_input_error(tmp_path):
    (folder_with(tmp_path) / "evaluation.json").write_text('{"undefined": [')
    with pytest.raises(InputError, match=r"evaluation.json"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,a,1,0.5,yes,true", "row 1: above_threshold is 'yes', not true or false"),
        ("a,a,1,high,true,true", "row 1: confidence is 'high', not a number"),
    ],
)
def test_a_cell_of_the_wrong_kind_is_named_with_its_row(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_records(folder_with(tmp_path, candidates=[row]))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        *((0.0, "0 %"), (1.0, "100 %"), (0.88, "88 %"), (0.998, "99.8 %"), (0.9996, "99.96 %"), (0.003, "0.3 %")),
        *((1 - 1e-8, "over 99.999 %"), (1e-8, "under 0.001 %"), (0.99999, "99.999 %"), (0.00001, "0.001 %")),
    ],
)
def test_a_percentage_is_never_rounded_to_none_or_all(share, text):
    assert percent(share) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize("form", [percent, number, volume])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_a_number_has_no_text(form, value):
    assert form(value) is None


@pytest.mark.parametrize(
    ("value_ml", "text"), [(0.0, "0.00\u00a0ml"), (0.012, "12\u00a0mm³"), (1234.5, "1\u202f234.50\u00a0ml")]
)
def test_small_volumes_are_told_in_cubic_millimetres(value_ml, text):
    assert volume(value_ml) == text


def test_negative_numbers_have_a_minus_sign():
    assert number(-1.25, 1) == "\u22121.2"


def test_counts_agree_with_their_noun():
    assert [count(1, "case"), count(0, "case"), count(2, "patient")] == ["1 case", "0 cases", "2 patients"]


def test_intervals_that_cannot_be_had_are_said_to_be_so():
    nothing = {"value": None, "low": None, "high": None}
    assert sensitivity_words(nothing) == false_positive_words(nothing) == "No interval can be given."


@pytest.mark.parametrize(
    ("value", "start"), [(0.1, "About one in every 10 cases. In"), (0.9, "In patients"), (3.0, "In"), (0.0, "In")]
)
def test_rare_false_candidates_are_told_as_one_in_so_many_cases(value, start):
    assert false_positive_words({"value": value, "low": 0.0, "high": 4.0}).startswith(start)


def test_an_undefined_value_is_numbered_by_the_line_of_the_evaluation():
    notes = Notes.of(
        {"undefined": [{"what": "a", "where": "b", "why": "c"}, {"what": "cpm", "where": "all", "why": "d"}]}
    )
    assert notes.show(None, "cpm", "all") == Shown("undefined", 2)
    assert notes.show("0.5", "cpm", "all") == Shown("0.5", 0)
    assert len(notes.lines) == 2


def test_an_undefined_value_without_a_line_gets_one_and_only_one():
    notes = Notes.of({"undefined": []})
    assert (
        notes.show(None, "confidence", "lesion 1")
        == notes.show(None, "confidence", "lesion 1")
        == Shown("undefined", 1)
    )
    assert notes.lines == [
        {"what": "confidence", "where": "lesion 1", "why": "no candidate finds this lesion at any threshold"}
    ]


def test_every_setting_has_a_label_and_every_choice_has_words():
    hints = get_type_hints(Protocol)
    names = [field.name for field in fields(Protocol)]
    assert [name for name in names if name not in PROTOCOL] == []
    choices = [
        (name, choice) for name in names if get_origin(hints[name]) is Literal for choice in get_args(hints[name])
    ]
    assert len(choices) > 20
    assert [pair for pair in choices if pair not in CHOICES] == []


def test_a_hit_rule_is_told_with_what_it_asks_for():
    rules = {
        "hit_rule": "centroid_distance",
        "hit_threshold": 5.0,
        "duplicates": "ignored",
        "assignment": "many_to_many",
    }
    assert hit_rule_words(rules) == (
        "A lesion counts as found when a candidate's centroid is near enough to its own. Asked for: 5\u00a0mm."
    )
    asked = {"hit_rule": "iou", "hit_threshold": 0.1, "duplicates": "false", "assignment": "greedy_by_score"}
    assert hit_rule_words(asked).endswith(
        "Asked for: 0.1. One candidate finds one lesion: of lesions merged in one candidate the others count as missed."
        " A second candidate on a found lesion counts as false."
    )


def test_the_answer_is_one_sentence():
    summary = {
        "num_detected_lesions": 31,
        "num_lesions": 34,
        "lesion_sensitivity": {"value": 31 / 34, "low": 0.763, "high": 0.981, "level": 0.95},
        "false_positives_per_case": {"value": 0.9},
    }
    text = "31 of 34 lesions found (91 %, 95 % interval 76 to 98 %) at 0.9 false positives per case."
    assert answer(summary).replace("\u00a0", " ") == text
    summary["lesion_sensitivity"] |= {"low": None, "high": None}
    assert answer(summary).replace("\u00a0", " ") == "31 of 34 lesions found (91 %) at 0.9 false positives per case."
    summary["lesion_sensitivity"]["value"] = None
    assert answer(summary) == "There is no lesion to find; 0.9 false positives per case."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.041, "0.041"),
        (0.9, "0.9"),
        (1.0, "1"),
        (12.4, "12"),
        (99.4, "99"),
        (99.6, "100"),
        (2500, "2\u202f500"),
    ],
)
def test_rates_of_false_candidates_have_two_digits_that_count(value, text):
    assert rate(value) == text


def test_what_is_undefined_for_one_reason_is_one_line():
    notes = Notes.of({"undefined": [{"what": "a", "where": f"case {n}", "why": "c"} for n in range(1, 8)]})
    assert notes.show(None, "a", "case 7") == Shown("undefined", 1)
    assert notes.lines == [{"what": "a", "where": "case 1; case 2; case 3; case 4; case 5 and 2 more", "why": "c"}]


def test_a_setting_without_a_label_is_printed_by_its_key():
    (row,) = protocol_rows({"min_overlap": 0.1})
    assert row == {"key": "min_overlap", "label": "min_overlap", "value": "0.1", "words": ""}
