"""Two to four readers whose marks are bars along i; what each finds of the others' is counted by hand."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lesion_cases import AFFINE, bar, fill

from medfocal.errors import ConfigError, DatasetError, GeometryError, InputError
from medfocal.evaluate import (
    Protocol,
    Reader,
    compare_readers,
    evaluate_case,
    evaluate_cases,
    evaluate_measured,
    find_readers,
    measure_pairs,
    write_evaluation,
)
from medfocal.evaluate.pairs import Pair, find_pairs
from medfocal.evaluate.readers import fuse, readers_of_annotations, write_fused
from medfocal.volume import Volume, read_labels, write_volume

FIRST, SECOND, THIRD = bar(1, 3), bar(5, 7), bar(9, 11)


def write(path, boxes, *, dtype=np.uint8, affine=AFFINE):
    write_volume(path, Volume(fill([(box, 1) for box in boxes]).astype(dtype), affine))
    return path


@pytest.fixture
def study(tmp_path):
    """Case a, patient p: three readers, of whom C marked nothing. Case b, patient p: A and B. Case c, patient q: A.

    The model finds FIRST with confidence .9 and THIRD with .4 in a, marks FIRST in b, nothing in c.
    """
    marks = {
        "A": {"a": [FIRST, SECOND], "b": [FIRST], "c": [FIRST]},
        "B": {"a": [FIRST, THIRD], "b": []},
        "C": {"a": []},
    }
    readers = [
        Reader(name, name, {case: write(tmp_path / name / f"{case}.nii.gz", boxes) for case, boxes in cases.items()})
        for name, cases in marks.items()
    ]
    predicted = {"a": fill([(FIRST, 0.9), (THIRD, 0.4)]), "b": fill([(FIRST, 0.9)]), "c": fill([])}
    for case, array in predicted.items():
        write_volume(tmp_path / "model" / f"{case}.nii.gz", Volume(array.astype(np.float32), AFFINE))
    pairs = [
        Pair(case, patient, tmp_path / "no.nii.gz", tmp_path / "model" / f"{case}.nii.gz")
        for case, patient in (("a", "p"), ("b", "p"), ("c", "q"))
    ]
    return pairs, readers


def of(found, kind, reader=""):
    (comparison,) = [c for c in found.comparisons if (c.kind, c.reader) == (kind, reader)]
    return comparison


def counts(comparison):
    c = comparison
    return c.num_cases, c.num_lesions, c.num_detected_lesions, c.num_candidates, c.num_false_candidates


def test_of_two_others_both_and_of_one_other_he_judges(study):
    """A: in a nothing (B and C share none), in b nothing (B marked none): 3 candidates, all false. c has no other."""
    found = compare_readers(*study)
    assert counts(of(found, "reader_against_others", "A")) == (2, 0, 0, 3, 3)
    # B: in a A and C share nothing, his two marks are false; in b A's FIRST is missed.
    assert counts(of(found, "reader_against_others", "B")) == (2, 1, 0, 2, 2)
    # C: read a only, where A and B share FIRST.
    assert counts(of(found, "reader_against_others", "C")) == (1, 1, 0, 0, 0)


def test_the_model_is_judged_by_the_same_marks_in_the_same_cases_from_its_threshold_on(study):
    found = compare_readers(*study)
    assert counts(of(found, "model_against_others", "A")) == (2, 0, 0, 2, 2)
    assert counts(of(found, "model_against_others", "B")) == (2, 1, 1, 2, 1)
    assert counts(of(found, "model_against_others", "C")) == (1, 1, 1, 1, 0)
    found = compare_readers(*study, Protocol(threshold=0.3))
    assert counts(of(found, "model_against_others", "C")) == (1, 1, 1, 2, 1)


def test_the_model_is_judged_by_each_reader_alone_in_all_that_he_read(study):
    found = compare_readers(*study, Protocol(threshold=0.3))
    assert counts(of(found, "model_against_reader", "A")) == (3, 4, 2, 3, 1)
    assert counts(of(found, "model_against_reader", "B")) == (2, 2, 2, 3, 1)
    assert counts(of(found, "model_against_reader", "C")) == (1, 0, 0, 2, 2)


def test_of_all_readers_more_than_half_of_those_of_the_case_judge(study):
    """a: FIRST has 2 of 3; b: FIRST has 1 of 2, which is not more than half; c: FIRST has 1 of 1."""
    assert counts(of(compare_readers(*study), "model_against_all")) == (3, 2, 1, 2, 1)


def test_figures_are_those_of_evaluate_cases_with_the_marks_as_prediction(study):
    pairs, readers = study
    b_of_a, a_of_a, a_of_b = (
        fill([(box, 1) for box in boxes]) != 0 for boxes in ([FIRST, THIRD], [FIRST, SECOND], [FIRST])
    )
    none = np.zeros_like(b_of_a)
    results = [
        evaluate_case(b_of_a, a_of_a, AFFINE, case="a", patient="p"),
        evaluate_case(none, a_of_b, AFFINE, case="b", patient="p"),
    ]
    expected = evaluate_cases(results)
    found = of(compare_readers(pairs, readers[:2]), "reader_against_others", "A")
    for name in ("lesion_sensitivity", "lesion_precision", "lesion_f1", "false_positives_per_case", "voxel_dice"):
        assert getattr(found, name) == getattr(expected, name)
    # One of two lesions; one of three marks; 2 false marks in two cases of one patient; 8 of 16 voxels, and 0.
    assert found.lesion_sensitivity.value == 1 / 2
    assert found.lesion_precision.value == 1 / 3
    assert found.false_positives_per_case.value == 1
    assert found.voxel_dice.mean == 0.25
    assert found.num_patients == 1


def test_patients_and_not_cases_make_the_interval(study):
    pairs, readers = study
    rate = of(compare_readers(pairs, readers), "model_against_reader", "A").lesion_sensitivity
    assert (rate.num_patients, rate.denominator) == (2, 4)
    apart = [replace(pair, patient=pair.case) for pair in pairs]
    assert of(compare_readers(apart, readers), "model_against_reader", "A").lesion_sensitivity.num_patients == 3


def test_swapping_two_readers_swaps_sensitivity_and_precision(study):
    pairs, readers = study
    found = compare_readers(pairs, readers[:2])
    a, b = (of(found, "reader_against_others", name) for name in "AB")
    assert a.lesion_sensitivity.value == b.lesion_precision.value == 1 / 2
    assert b.lesion_sensitivity.value == a.lesion_precision.value == 1 / 3
    assert a.voxel_dice == b.voxel_dice


def test_the_order_of_the_readers_changes_only_the_order_of_the_comparisons(study):
    pairs, readers = study
    forward, backward = compare_readers(pairs, readers), compare_readers(pairs, readers[::-1])
    for comparison in forward.comparisons:
        assert of(backward, comparison.kind, comparison.reader).to_row() == pytest.approx(
            comparison.to_row(), nan_ok=True
        )


def test_no_lesion_of_the_others_is_undefined_with_its_reason(study):
    found = of(compare_readers(*study), "reader_against_others", "A")
    assert math.isnan(found.lesion_sensitivity.value)
    assert found.lesion_precision.value == 0
    assert [(line.what, line.why) for line in found.undefined] == [("lesion_sensitivity", "there is no lesion")]


def test_a_reader_who_shares_no_case_is_undefined_and_stays_in_the_table(study):
    pairs, (a, b, _) = study
    readers = [replace(a, files={"c": a.files["c"]}), replace(b, files={"a": b.files["a"]})]
    found = compare_readers(pairs, readers)
    row = of(found, "reader_against_others", "A")
    assert (row.num_cases, row.num_patients) == (0, 0)
    assert math.isnan(row.lesion_f1.value)
    assert [line.why for line in row.undefined] == ["no case was read by this reader and by another"]
    assert found.num_cases_unread == 1
    assert [reader["num_cases"] for reader in found.readers] == [1, 1]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [([1], True), ([0], False), ([1, 0], False), ([1, 1], True), ([1, 1, 0], True), ([1, 1, 0, 0], False)],
)
def test_more_than_half_is_needed(votes, expected):
    assert fuse([np.array([bool(vote)]) for vote in votes]).tolist() == [expected]


def test_fused_marks_are_written_as_the_reference_on_the_grid_of_the_readers(study, tmp_path):
    pairs, readers = study
    pairs = find_pairs(None, tmp_path / "model", fused=tmp_path / "fused")
    write_fused(pairs, readers)
    written = {pair.case: read_labels(pair.reference) for pair in pairs}
    assert np.array_equal(written["a"].array, fill([(FIRST, 1)]))
    assert not written["b"].array.any()
    assert np.array_equal(written["c"].array, fill([(FIRST, 1)]))
    assert np.allclose(written["a"].affine, AFFINE)
    evaluation = evaluate_measured(measure_pairs(pairs))
    by_all = of(compare_readers(pairs, readers), "model_against_all")
    assert evaluation.lesion_sensitivity.value == by_all.lesion_sensitivity.value == 1 / 2


def test_a_case_without_reader_cannot_be_fused_and_nothing_is_written(study, tmp_path):
    pairs, readers = study
    pairs = [replace(pair, reference=tmp_path / "fused" / pair.reference.name) for pair in pairs]
    with pytest.raises(DatasetError, match="1 of 3 cases have no reader, and no reference is given: c"):
        write_fused(pairs, readers[1:])
    assert not (tmp_path / "fused").exists()


def test_a_share_counts_as_a_mark_from_one_half_on(study):
    pairs, (a, b, _) = study
    path = a.files["a"]
    write_volume(path, Volume(fill([(FIRST, 0.5), (SECOND, 0.49)]).astype(np.float32), AFFINE))
    found = of(compare_readers(pairs[:1], [a, b]), "reader_against_others", "A")
    assert counts(found) == (1, 2, 1, 1, 0)
    write_volume(path, Volume(fill([(FIRST, 1.5)]).astype(np.float32), AFFINE))
    with pytest.raises(InputError, match=r"case 'a': the marks .* of reader 'A' hold fractions.* from 0 to 1.5"):
        compare_readers(pairs[:1], [a, b])


def test_other_grids_are_refused_with_case_files_and_both_values(study):
    pairs, (a, b, _) = study
    write(b.files["a"], [FIRST], affine=AFFINE @ np.diag([1, 1, 2, 1]))
    match = r"case 'a': .*A.*a.nii.gz' and '.*B.*a.nii.gz' differ: spacing \(0.5, 1, 3\) and \(0.5, 1, 6\) mm"
    with pytest.raises(GeometryError, match=match):
        compare_readers(pairs, [a, b])
    write(a.files["a"], [FIRST], affine=AFFINE @ np.diag([1, 1, 2, 1]))
    match = r"case 'a': .*prediction '.*model.*a.nii.gz' and the marks of reader 'A'"
    with pytest.raises(GeometryError, match=match):
        compare_readers(pairs, [a, b])


def test_reader_file_that_cannot_be_read_names_case_and_reader(study):
    pairs, (a, b, _) = study
    b.files["a"].write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.nii\.gz"):
        compare_readers(pairs, [a, b])


def test_folders_and_patterns_of_readers_are_paired_by_case(tmp_path):
    for name in ("a_reader1", "b_reader1", "z_reader1", "a_reader2"):
        write(tmp_path / "marks" / f"{name}.nii.gz", [])
    for name in ("a_mask", "b"):
        write(tmp_path / "senior" / f"{name}.nii.gz", [])
    places = [str(tmp_path / place) for place in ("marks/*_reader1.nii.gz", "marks/*_reader2.nii*", "senior")]
    readers = find_readers(places[::2], ["a", "b"])
    assert [reader.name for reader in readers] == ["reader1", "senior"]
    assert {case: file.name for case, file in readers[0].files.items()} == {
        "a": "a_reader1.nii.gz",
        "b": "b_reader1.nii.gz",
    }
    assert readers[1].files["a"].name == "a_mask.nii.gz"
    with pytest.raises(DatasetError, match="has marks of none of the 2 cases"):  # two stars: which is the case?
        find_readers(places, ["a", "b"])


def test_readers_whose_short_names_are_equal_are_called_by_their_places(tmp_path):
    places = [str(write(tmp_path / name / "masks" / "a.nii.gz", []).parent) for name in ("one", "two")]
    assert [reader.name for reader in find_readers(places, ["a"])] == places


def test_one_file_a_reader_is_enough_where_there_is_one_case(tmp_path):
    places = [str(write(tmp_path / f"{name}.nii.gz", [])) for name in ("x", "y")]
    readers = find_readers(places, ["a"])
    assert [(reader.name, list(reader.files)) for reader in readers] == [("x", ["a"]), ("y", ["a"])]


def test_places_that_are_no_two_readers_are_refused(tmp_path):
    place = str(write(tmp_path / "one" / "a.nii.gz", []).parent)
    with pytest.raises(ConfigError, match="at least two places, got 1"):
        find_readers([place], ["a"])
    with pytest.raises(ConfigError, match="twice"):
        find_readers([place, place], ["a"])
    with pytest.raises(ConfigError, match="twice"):
        find_readers([place, place + "/"], ["a"])
    with pytest.raises(InputError, match="nowhere' does not exist"):
        find_readers([place, str(tmp_path / "nowhere")], ["a"])
    with pytest.raises(DatasetError, match=r"has marks of none of the 1 cases \(such as 'b'\): a.nii.gz"):
        find_readers([place, place + "/*.nii.gz"], ["b"])


def test_readers_of_a_dataset_are_told_apart_by_their_order():
    lists = {"a": [Path("a1"), Path("a2")], "b": [Path("b1")], "z": [Path("z1"), Path("z2"), Path("z3")], "e": []}
    readers = readers_of_annotations(lists, ["a", "b", "e"], "d.json")
    assert [(reader.name, dict(reader.files)) for reader in readers] == [
        ("reader 1", {"a": Path("a1"), "b": Path("b1")}),
        ("reader 2", {"a": Path("a2")}),
    ]
    with pytest.raises(DatasetError, match=r"'d.json' lists the annotations of at most 1 readers for the 2 cases"):
        readers_of_annotations(lists, ["b", "e"], "d.json")


def test_files_hold_every_comparison_and_undefined_is_null(study, tmp_path):
    pairs, readers = study
    results = [evaluate_case(fill([]) != 0, fill([]) != 0, AFFINE, case="a")]
    evaluation = replace(evaluate_cases(results), readers=compare_readers(pairs, readers))
    write_evaluation(evaluation, tmp_path / "o")
    with (tmp_path / "o" / "readers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())["readers"]
    kinds = ["reader_against_others"] * 3 + ["model_against_others"] * 3 + ["model_against_reader"] * 3
    assert [row["kind"] for row in rows] == [*kinds, "model_against_all"]
    assert [row["reader"] for row in rows] == [*"ABCABCABC", ""]
    assert [c["kind"] for c in found["comparisons"]] == [row["kind"] for row in rows]
    assert rows[0]["lesion_sensitivity"] == rows[0]["lesion_sensitivity_low"] == ""
    assert found["comparisons"][0]["lesion_sensitivity"]["value"] is None
    assert [(reader["name"], reader["num_cases"]) for reader in found["readers"]] == [("A", 3), ("B", 2), ("C", 1)]
    assert float(rows[4]["lesion_sensitivity_high"]) == found["comparisons"][4]["lesion_sensitivity"]["high"] == 1


def test_without_readers_there_is_no_key_and_an_earlier_table_goes(study, tmp_path):
    pairs, readers = study
    plain = evaluate_cases([evaluate_case(fill([]) != 0, fill([]) != 0, AFFINE, case="a")])
    write_evaluation(replace(plain, readers=compare_readers(pairs, readers)), tmp_path / "o")
    write_evaluation(plain, tmp_path / "o")
    assert not (tmp_path / "o" / "readers.csv").exists()
    assert "readers" not in json.loads((tmp_path / "o" / "evaluation.json").read_text())
