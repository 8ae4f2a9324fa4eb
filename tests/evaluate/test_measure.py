"""Files to tables: classes, instances, regions to be ignored, other grids, missing files, bad files, a killed run."""

import dataclasses
import json
import os

import numpy as np
import pytest
from lesion_cases import AFFINE, bar, fill

from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.evaluate import Protocol, Reading, evaluate_measured, measure_pairs
from medfocal.evaluate.measure import measure_pair
from medfocal.evaluate.pairs import Pair, find_pairs
from medfocal.evaluate.table import CaseTable
from medfocal.volume import Volume, write_volume


def write(path, boxes, *, affine=AFFINE, dtype=np.uint8):
    path.parent.mkdir(exist_ok=True, parents=True)
    write_volume(path, Volume(fill(boxes).astype(dtype), affine))
    return path


@pytest.fixture
def pair(tmp_path):
    """Two lesions, of classes 1 and 2; a candidate of class 1 on the first."""
    reference = write(tmp_path / "reference" / "a.nii.gz", [(bar(1, 4), 1), (bar(6, 9), 2)])
    prediction = write(tmp_path / "prediction" / "a.nii.gz", [(bar(2, 4), 1)])
    return Pair("a", "p1", reference, prediction)


def same(first, second):
    """Whether two tables hold the same numbers."""
    return json.dumps(first.to_dict()) == json.dumps(second.to_dict())


def test_table_of_files_is_that_of_their_arrays(pair):
    (table,) = measure_pair(pair).values()
    assert (table.case, table.patient, table.is_mask, table.missing) == ("a", "p1", True, False)
    assert table.lesions.num_voxels.tolist() == [12, 12]
    assert table.overlaps.num_voxels.tolist() == [8]


def test_classes_and_merged_groups_have_a_table_each_and_all_together_one(pair):
    reading = Reading(classes={"core": [1], "whole": [1, 2]})
    tables = measure_pair(pair, reading=reading)
    assert {name: len(table.lesions) for name, table in tables.items()} == {"": 2, "core": 1, "whole": 2}
    assert [len(table.candidates) for table in tables.values()] == [1, 1, 1]


def test_candidate_of_another_class_does_not_find_a_lesion(pair):
    write(pair.prediction, [(bar(2, 4), 2)])
    tables = measure_pair(pair, reading=Reading(classes={"first": [1], "second": [2]}))
    assert len(tables[""].overlaps) == 1
    assert len(tables["first"].overlaps) == len(tables["second"].overlaps) == 0
    assert len(tables["second"].candidates) == 1


@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_value_that_no_class_names_is_refused_with_file_value_and_classes(pair, side):
    write(getattr(pair, side), [(bar(1, 4), 1), (bar(6, 9), 3)])
    said = rf"case 'a': '.*{side}.*' holds the value 3, which no class names: x \[1, 2\]"
    with pytest.raises(InputError, match=said):
        measure_pair(pair, reading=Reading(classes={"x": [1, 2]}))


def test_one_class_may_be_predicted_by_a_probability_map(pair):
    write(pair.prediction, [(bar(2, 4), 0.7)], dtype=np.float32)
    table = measure_pair(pair, reading=Reading(classes={"x": [1, 2]}))["x"]
    assert table.candidates.confidence == pytest.approx([0.7])
    with pytest.raises(InputError, match="not a whole number"):
        measure_pair(pair, reading=Reading(classes={"x": [1], "y": [2]}))


def test_ignored_value_is_no_lesion_and_a_region_to_be_ignored(pair):
    (table,) = measure_pair(pair, reading=Reading(ignore_value=2)).values()
    assert table.lesions.num_voxels.tolist() == [12]
    assert table.scanned_litres == pytest.approx((960 - 12) * 1.5e-6)
    write(pair.prediction, [(bar(2, 4), 1), (bar(7, 8), 1)])
    (table,) = measure_pair(pair, reading=Reading(ignore_value=2)).values()
    assert table.candidates.ignored_voxels.tolist() == [0, 4]


def test_file_of_the_region_to_be_ignored_is_read_and_held_against_the_grid(pair, tmp_path):
    with_region = dataclasses.replace(pair, ignore=write(tmp_path / "ignore" / "a.nii.gz", [(bar(6, 9), 1)]))
    (table,) = measure_pair(with_region).values()
    assert table.lesions.ignored_voxels.tolist() == [0, 12]
    write(with_region.ignore, [], affine=AFFINE @ np.diag([1, 1, 2, 1]))
    with pytest.raises(GeometryError, match=r"ignore.*differ: spacing \(0.5, 1, 3\) and \(0.5, 1, 6\) mm"):
        measure_pair(with_region)


def test_instances_that_touch_stay_apart_only_in_the_files_that_number_them(pair):
    write(pair.reference, [(bar(1, 3), 5), (bar(3, 5), 7)])
    write(pair.prediction, [(bar(1, 2), 9), (bar(2, 4), 4)])
    found = {
        kind: measure_pair(pair, reading=Reading(instances=kind))[""]
        for kind in ("none", "reference", "prediction", "both")
    }
    assert {kind: len(table.lesions) for kind, table in found.items()} == {
        "none": 1,
        "reference": 2,
        "prediction": 1,
        "both": 2,
    }
    assert [len(table.candidates) for table in found.values()] == [1, 1, 2, 2]
    assert set(found["both"].candidates.confidence) == {1}


@pytest.mark.parametrize(
    ("expect", "value", "dtype", "said"),
    [
        ("mask", 0.4, np.float32, "is a probability map, but a mask is expected"),
        ("probability", 1, np.uint8, "is a mask, but a probability map is expected"),
    ],
)
def test_prediction_of_the_other_kind_is_refused_if_one_is_expected(pair, expect, value, dtype, said):
    write(pair.prediction, [(bar(2, 4), value)], dtype=dtype)
    with pytest.raises(InputError, match=f"case 'a': '.*a.nii.gz' {said} .expect={expect}."):
        measure_pair(pair, reading=Reading(expect=expect))


def test_empty_prediction_is_of_either_kind(pair):
    write(pair.prediction, [], dtype=np.float32)
    for expect in ("mask", "probability"):
        assert len(measure_pair(pair, reading=Reading(expect=expect))[""].candidates) == 0


def test_probability_map_as_reference_is_refused(pair):
    write(pair.reference, [(bar(2, 4), 0.4)], dtype=np.float32)
    match = r"case 'a': the reference '.*' holds 0.4 at voxel \(2, 3, 2\).*not a whole number"
    with pytest.raises(InputError, match=match):
        measure_pair(pair)


def test_prediction_on_another_grid_is_brought_onto_the_references_if_asked_for(pair):
    """Every second slice of the prediction's grid is missing: slices 2 and 3 of the reference both take its slice 1."""
    coarse = np.zeros((12, 10, 4), np.uint8)
    coarse[2:4, 3:5, 1] = 1
    affine = AFFINE.copy()
    affine[:3, 2] *= 2
    affine[:3, 3] += AFFINE[:3, 2] / 2
    write_volume(pair.prediction, Volume(coarse, affine))
    with pytest.raises(GeometryError, match=r"shape \(12, 10, 8\) and \(12, 10, 4\).*resample=nearest"):
        measure_pair(pair)
    (table,) = measure_pair(pair, reading=Reading(resample="nearest")).values()
    assert table.candidates.num_voxels.tolist() == [8]
    assert table.overlaps.num_voxels.tolist() == [8]


@pytest.mark.parametrize("value", [4e-4, 0.9996])
def test_quiet_or_very_sure_map_is_a_map_if_one_is_expected(pair, value):
    """As a model gives it for a case without lesions; by its values alone it might be a mask."""
    write(pair.prediction, [(bar(2, 4), value)], dtype=np.float32)
    table = measure_pair(pair, Protocol(floor=1e-4), Reading(expect="probability"))[""]
    assert not table.is_mask
    assert table.candidates.confidence == pytest.approx([value])


def test_prediction_that_lies_elsewhere_is_not_resampled(pair):
    far = AFFINE.copy()
    far[0, 3] += 1000
    write(pair.prediction, [(bar(2, 4), 1)], affine=far)
    with pytest.raises(GeometryError, match=r"lie apart: origin .*corners up to 1e\+03 mm apart"):
        measure_pair(pair, reading=Reading(resample="nearest"))


@pytest.mark.usefixtures("pair")
def test_missing_prediction_counts_as_nothing_found_only_if_asked_for(tmp_path):
    write(tmp_path / "reference" / "b.nii.gz", [(bar(1, 2), 1)])
    folders = tmp_path / "reference", tmp_path / "prediction"
    with pytest.raises(DatasetError, match=r"1 of 2 references have no prediction .*missing=empty"):
        find_pairs(*folders)
    pairs = find_pairs(*folders, missing="empty")
    assert [pair.prediction is None for pair in pairs] == [False, True]
    evaluation = evaluate_measured(measure_pairs(pairs))
    assert (evaluation.num_lesions, evaluation.num_detected_lesions) == (3, 1)
    assert list(evaluation.missing) == ["b"]


def test_folders_of_which_no_file_fits_are_refused_even_so(pair, tmp_path):
    pair.prediction.rename(pair.prediction.with_name("x.nii.gz"))
    with pytest.raises(DatasetError, match=r"none of the 1 references \(such as 'a.nii.gz'\) has a prediction"):
        find_pairs(tmp_path / "reference", tmp_path / "prediction", missing="empty", extra="skip")


@pytest.mark.usefixtures("pair")
def test_surplus_prediction_is_left_out_only_if_asked_for(tmp_path):
    write(tmp_path / "prediction" / "b.nii.gz", [])
    folders = tmp_path / "reference", tmp_path / "prediction"
    with pytest.raises(DatasetError, match=r"1 of 2 predictions have no reference .*extra=skip"):
        find_pairs(*folders)
    assert [pair.case for pair in find_pairs(*folders, extra="skip")] == ["a"]


@pytest.mark.usefixtures("pair")
def test_bad_file_is_listed_and_the_rest_goes_on_if_asked_for(tmp_path):
    write(tmp_path / "reference" / "b.nii.gz", [(bar(1, 2), 1)])
    (tmp_path / "prediction" / "b.nii.gz").write_bytes(b"not gzip")
    pairs = find_pairs(tmp_path / "reference", tmp_path / "prediction")
    with pytest.raises(InputError, match=r"b.nii.gz"):
        measure_pairs(pairs)
    measured = measure_pairs(pairs, keep_going=True)
    assert [table.case for table in measured.tables[""]] == ["a"]
    assert [failure.case for failure in measured.failed] == ["b"]
    assert "InputError: the file" in measured.failed[0].error
    with pytest.raises(DatasetError, match="none of the 1 cases can be evaluated; the first says InputError"):
        measure_pairs(pairs[1:], keep_going=True)


def test_two_processes_give_the_same_tables_in_the_same_order(tmp_path):
    for number in range(5):
        write(tmp_path / "reference" / f"c{number}.nii.gz", [(bar(1, 2 + number), 1)])
        write(tmp_path / "prediction" / f"c{number}.nii.gz", [(bar(2, 4), 1)])
    (tmp_path / "prediction" / "c3.nii.gz").write_bytes(b"")
    pairs = find_pairs(tmp_path / "reference", tmp_path / "prediction")
    one, two = (measure_pairs(pairs, workers=workers, keep_going=True) for workers in (1, 2))
    assert one.failed == two.failed
    assert all(same(a, b) for a, b in zip(one.tables[""], two.tables[""], strict=True))


def test_table_survives_json_to_the_last_bit(pair):
    ignore = Reading(ignore_value=2, surface=True)
    for reading in (Reading(), ignore):
        table = measure_pair(pair, reading=reading)[""]
        back = CaseTable.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False)))
        assert same(table, back)
        assert np.isnan(back.lesions.confidence).all()
        assert back.lesions.centroid_mm.dtype == np.float64
        assert back.lesions.bounding_box.shape == table.lesions.bounding_box.shape


def test_table_without_parts_survives_json(pair):
    write(pair.reference, [])
    write(pair.prediction, [])
    table = measure_pair(pair, reading=Reading(surface=True))[""]
    back = CaseTable.from_dict(json.loads(json.dumps(table.to_dict(), allow_nan=False)))
    assert back.lesions.centroid_mm.shape == (0, 3)
    assert back.candidates.bounding_box.shape == (0, 3, 2)
    assert back.pair_surface.shape == (0, 5)


class TestStore:
    """Tables are kept in a file, so that a killed evaluation goes on."""

    @pytest.fixture
    def pairs(self, tmp_path):
        for name in "abc":
            write(tmp_path / "reference" / f"{name}.nii.gz", [(bar(1, 4), 1)])
            write(tmp_path / "prediction" / f"{name}.nii.gz", [(bar(2, 4), 1)])
        return find_pairs(tmp_path / "reference", tmp_path / "prediction")

    def lines(self, store):
        return [json.loads(line) for line in store.read_text().splitlines()]

    def test_cases_in_the_file_are_not_read_again(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        first = measure_pairs(pairs, store=store)
        assert [line["case"] for line in self.lines(store)[1:]] == ["a", "b", "c"]
        states = [pair.prediction.stat() for pair in pairs]
        for pair, state in zip(pairs, states, strict=True):  # unreadable, but of the same size and time
            pair.prediction.write_bytes(b"x" * state.st_size)
            os.utime(pair.prediction, ns=(state.st_atime_ns, state.st_mtime_ns))
        second = measure_pairs(pairs, store=store)
        assert all(same(a, b) for a, b in zip(first.tables[""], second.tables[""], strict=True))

    def test_killed_in_the_middle_of_a_line_it_goes_on_with_the_next_case(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        whole = store.read_bytes()
        for length in (len(whole) - 1, len(whole) - 40, len(whole.splitlines(keepends=True)[0]) // 2, 0):
            store.write_bytes(whole[:length])
            measured = measure_pairs(pairs, store=store)
            assert len(measured.tables[""]) == 3
            assert store.read_bytes() == whole

    def test_changed_file_is_read_again(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        write(pairs[1].prediction, [])
        measured = measure_pairs(pairs, store=store)
        assert [len(table.candidates) for table in measured.tables[""]] == [1, 0, 1]

    @pytest.mark.parametrize("reading", [Reading(surface=True), Reading(ignore_value=7)])
    def test_tables_of_files_read_otherwise_are_made_again(self, pairs, tmp_path, reading):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        before = self.lines(store)[0]
        measure_pairs(pairs, reading=reading, store=store)
        assert len(self.lines(store)) == 4
        assert self.lines(store)[0] != before

    def test_other_shaping_rules_measure_again_and_both_are_kept(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        faces = Protocol(connectivity=6)
        tables = measure_pairs(pairs, faces, store=store).tables[""]
        assert [table.shaping["connectivity"] for table in tables] == [6, 6, 6]
        assert len(self.lines(store)) == 7
        for protocol in (Protocol(), faces):
            again = measure_pairs(pairs, protocol, store=store).tables[""]
            assert {table.shaping["connectivity"] for table in again} == {protocol.connectivity}
        assert len(self.lines(store)) == 7

    def test_rules_of_how_maps_become_candidates_do_not_concern_masks(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        cut = Protocol(candidates="threshold", threshold=0.3)
        assert evaluate_measured(measure_pairs(pairs, cut, store=store), cut).num_detected_lesions == 3
        assert len(self.lines(store)) == 4
        write_volume(pairs[0].prediction, Volume(0.4 * fill([(bar(2, 4), 1)]), AFFINE))
        for protocol in (Protocol(), cut, Protocol()):
            measure_pairs(pairs, protocol, store=store)
        assert len(self.lines(store)) == 6  # the map was measured for either

    @pytest.mark.parametrize(
        "fault",
        [
            {"lesions": 1},
            {"overlaps": {}},
            {"overlaps": {"lesion": [9], "candidate": [1], "num_voxels": [8], "num_grown": [8]}},
            {"shaping": 3},
            {"candidates": None},
            {"candidate_point_lesion": [1, 1]},
            {"scanned_litres": -1.0},
            {"is_mask": "yes"},
            {"surface": {"hd95_mm": 0}},
            {"patient": "another"},
            {"voxel_volume_ml": 10**400},
        ],
    )
    def test_line_that_was_tampered_with_is_measured_again(self, pairs, tmp_path, fault):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        lines = self.lines(store)
        lines[2]["tables"][""] |= fault
        store.write_text("".join(json.dumps(line) + "\n" for line in lines))
        measured = measure_pairs(pairs, store=store)
        assert [len(table.candidates) for table in measured.tables[""]] == [1, 1, 1]

    def test_another_hit_rule_and_threshold_use_the_same_tables(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        before = store.read_bytes()
        strict = Protocol(hit_rule="iou", hit_threshold=0.7, threshold=0.9)
        evaluation = evaluate_measured(measure_pairs(pairs, strict, store=store), strict)
        assert evaluation.num_detected_lesions == 0
        assert store.read_bytes() == before

    def test_file_of_something_else_is_replaced(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        store.write_text("hello\n")
        measure_pairs(pairs, store=store)
        assert len(self.lines(store)) == 4

    def test_patient_named_otherwise_is_measured_again(self, pairs, tmp_path):
        store = tmp_path / "tables.jsonl"
        measure_pairs(pairs, store=store)
        renamed = [dataclasses.replace(pair, patient="p") for pair in pairs]
        assert {table.patient for table in measure_pairs(renamed, store=store).tables[""]} == {"p"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"classes": {"a": []}}, "classes: 'a' must have"),
        ({"classes": {"a": 1}}, "classes: 'a' must have"),
        ({"classes": {"a": [1.5]}}, "classes: 'a' must have"),
        ({"classes": {}}, "classes must name label values"),
        ({"classes": [1, 2]}, r"classes must name label values.*\[1, 2\]"),
        ({"classes": {"": [1]}}, "must have a name"),
        ({"classes": {"a": [0]}}, r"label values of 1 or more.*\[0\]"),
        ({"classes": {"a": [1, 9]}, "ignore_value": 9}, "other than ignore_value .9."),
        ({"classes": {"a": [1]}, "instances": "both"}, "instances=both numbers parts"),
        ({"ignore_value": 0}, "ignore_value must be a label value of 1 or more, or null, got 0"),
        ({"instances": "all"}, "instances must be one of"),
        ({"expect": "masks"}, "expect must be one of"),
        ({"resample": "linear"}, "resample must be nearest or null, got 'linear'"),
    ],
)
def test_reading_that_makes_no_sense_is_refused_by_name(arguments, said):
    with pytest.raises(ValueError, match=said):
        Reading(**arguments)
