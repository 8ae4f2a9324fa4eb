"""Checking a dataset looks at every case before it complains, and says what it saw."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medfocal.data.check import check_dataset
from medfocal.errors import DatasetError
from medfocal.volume import Volume, write_volume

SHAPE, AFFINE = (12, 10, 8), np.diag([0.5, 1.0, 3.0, 1.0])


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    splits = {"training": ["a", "b"], "validation": ["c"], "test": ["d"]}
    lesions = {"a": [(2, 2, 2), (9, 8, 6)], "b": [], "c": [(5, 5, 5)], "d": [(5, 5, 5)]}
    content = {"labels": {"0": "background", "1": "lesion"}, "channel_names": {"0": "MR"}}
    for split, names in splits.items():
        content[split] = [{"image": f"{n}.nii.gz", "label": f"{n}_label.nii.gz"} for n in names]
        for name in names:
            label = np.zeros(SHAPE, np.uint8)
            for voxel in lesions[name]:
                label[voxel] = 1
            write_volume(tmp_path / f"{name}.nii.gz", Volume(rng.random(SHAPE, np.float32), AFFINE))
            write_volume(tmp_path / f"{name}_label.nii.gz", Volume(label, AFFINE))
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "dataset.json"


def empty(path):
    write_volume(path, Volume(np.zeros(SHAPE, np.uint8), AFFINE))


def test_a_sound_dataset_is_counted_and_reported(dataset, tmp_path, capsys):
    reports = check_dataset(dataset, output=tmp_path / "out")
    assert [(r.case, r.split, r.num_lesions, r.error) for r in reports] == [
        ("a", "training", 2, None), ("b", "training", 0, None), ("c", "validation", 1, None), ("d", "test", 1, None),
    ]  # fmt: skip
    assert reports[0].lesion_share == pytest.approx(2 / 960)
    assert (reports[0].shape, reports[0].spacing_mm) == (SHAPE, (0.5, 1.0, 3.0))
    written = json.loads((tmp_path / "out" / "dataset_report.json").read_text())
    assert (written["errors"], len(written["cases"])) == ([], 4)
    out = capsys.readouterr().out
    assert "training: 2 cases, 2 lesions, 1 cases without, lesion share of the others 2.1e-03 to 2.1e-03" in out
    assert "no fault in 4 cases" in out


def test_all_faults_are_told_at_once_and_stand_in_the_report(dataset, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    write_volume(tmp_path / "c_label.nii.gz", Volume(np.zeros((12, 10, 7), np.uint8), AFFINE))
    with pytest.raises(DatasetError, match=r"(?s)has 2 faults:.*case 'a'.*case 'c': label and image grids differ"):
        check_dataset(dataset, output=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "dataset_report.json").read_text())
    assert len(written["errors"]) == 2
    assert [case["error"] is None for case in written["cases"]] == [False, True, False, True]


def test_no_lesion_in_the_whole_training_set_is_a_fault(dataset, tmp_path):
    empty(tmp_path / "a_label.nii.gz")
    with pytest.raises(DatasetError, match="1 fault:\n  - no lesion in the whole training set: all 2 labels are empty"):
        check_dataset(dataset)


def test_cases_without_label_are_read_and_have_no_lesion_count(dataset):
    content = json.loads(dataset.read_text())
    content["test"] = ["d.nii.gz"]
    dataset.write_text(json.dumps(content))
    report = check_dataset(dataset)[-1]
    assert (report.case, report.num_lesions, report.lesion_share) == ("d", None, None)


def annotate(dataset, marks):
    """Give cases annotations: by case, for each reader, the voxels that he marked."""
    content = json.loads(dataset.read_text())
    for entry in [entry for split in ("training", "validation", "test") for entry in content[split]]:
        name = entry["image"].removesuffix(".nii.gz")
        for number, voxels in enumerate(marks.get(name, []), start=1):
            annotation = np.zeros(SHAPE, np.uint8)
            for voxel in voxels:
                annotation[voxel] = 1
            file = f"{name}_reader{number}.nii.gz"
            write_volume(dataset.parent / file, Volume(annotation, AFFINE))
            entry.setdefault("annotations", []).append(file)
    dataset.write_text(json.dumps(content))


def test_agreement_of_readers_is_printed_by_split_and_pair_and_stands_in_the_report(dataset, tmp_path, capsys):
    """In 'a' the readers share 1 of 2 + 3 voxels and the second has a lesion more; in 'b' both marked nothing."""
    annotate(dataset, {
        "a": [[(2, 2, 2), (2, 3, 2)], [(2, 2, 2), (9, 8, 6), (9, 8, 5)], [(2, 2, 2)]],
        "b": [[], []],
        "c": [[], []],
        "d": [[(5, 5, 5)]],
    })  # fmt: skip
    reports = check_dataset(dataset, output=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("; ") for line in lines if ": readers " in line] == [
        [
            "training: readers 1 and 2: mean voxel Dice 0.400 over 1 of 2 cases",
            "0 of 1 lesions of reader 1 and 1 of 2 of reader 2 missed by the other",
        ],
        [
            "training: readers 1 and 3: mean voxel Dice 0.667 over 1 of 1 cases",
            "0 of 1 lesions of reader 1 and 0 of 1 of reader 3 missed by the other",
        ],
        [
            "training: readers 2 and 3: mean voxel Dice 0.500 over 1 of 1 cases",
            "1 of 2 lesions of reader 2 and 0 of 1 of reader 3 missed by the other",
        ],
        [
            "validation: readers 1 and 2: voxel Dice undefined, neither marked a lesion in 1 cases",
            "0 of 0 lesions of reader 1 and 0 of 0 of reader 2 missed by the other",
        ],
    ]
    assert [report.num_reader_lesions for report in reports] == [(1, 2, 1), (0, 0), (0, 0), (1,)]
    written = json.loads((tmp_path / "out" / "dataset_report.json").read_text())
    assert written["warnings"] == []
    assert [len(case["agreement"]) for case in written["cases"]] == [3, 1, 1, 0]
    assert written["cases"][0]["agreement"][0] == {
        "first": 1, "second": 2, "voxel_dice": 0.4, "num_lesions_first": 1, "num_lesions_second": 2,
        "num_only_first": 0, "num_only_second": 1,
    }  # fmt: skip
    assert written["cases"][1]["agreement"][0]["voxel_dice"] is None


def test_readers_who_share_no_voxel_are_a_warning_and_no_fault(dataset, tmp_path, capsys):
    annotate(dataset, {"a": [[(2, 2, 2)], [(9, 8, 6)], [(2, 2, 2)]], "b": [[(2, 2, 2)], []]})
    check_dataset(dataset, output=tmp_path / "out")
    out = capsys.readouterr().out
    assert "no fault in 4 cases" in out
    warnings = json.loads((tmp_path / "out" / "dataset_report.json").read_text())["warnings"]
    assert [warning.partition(" both")[0] for warning in warnings] == [
        "case 'a': readers 1 and 2", "case 'a': readers 2 and 3",
    ]  # fmt: skip
    assert f"warning: {warnings[0]}" in out


def test_a_fault_of_an_annotation_is_a_fault_of_its_case(dataset, tmp_path):
    annotate(dataset, {"a": [[(2, 2, 2)], [(2, 2, 2)]], "c": [[], []]})
    label = np.zeros(SHAPE, np.uint8)
    label[3, 7, 2] = 4
    write_volume(tmp_path / "a_reader2.nii.gz", Volume(label, AFFINE))
    write_volume(tmp_path / "c_reader1.nii.gz", Volume(np.zeros((12, 10, 7), np.uint8), AFFINE))
    with pytest.raises(
        DatasetError, match=r"(?s)has 2 faults:.*case 'a': reader 2.*holds 4.*case 'c': reader 1.*grids"
    ):
        check_dataset(dataset)


def test_shares_of_a_reader_count_as_marks_from_one_half_on(dataset, tmp_path):
    annotate(dataset, {"a": [[(2, 2, 2)], []]})
    shares = np.zeros(SHAPE, np.float32)
    shares[2, 2, 2], shares[9, 8, 6] = 0.5, 0.4
    write_volume(tmp_path / "a_reader2.nii.gz", Volume(shares, AFFINE))
    report = check_dataset(dataset)[0]
    assert report.num_reader_lesions == (1, 1)
    assert report.agreement[0].voxel_dice == 1


@pytest.mark.parametrize("lesions", [[], [(2, 2, 2)]])
def test_without_labels_a_training_set_has_the_lesions_of_its_readers(dataset, lesions):
    annotate(dataset, {"a": [lesions, []], "b": [[], []]})
    content = json.loads(dataset.read_text())
    for entry in content["training"]:
        del entry["label"]
    dataset.write_text(json.dumps(content))
    if lesions:
        assert [report.num_lesions for report in check_dataset(dataset)[:2]] == [None, None]
    else:
        with pytest.raises(DatasetError, match="no lesion in the whole training set: all 2 labels or annotations are"):
            check_dataset(dataset)


def test_empty_labels_are_a_fault_though_readers_marked_lesions(dataset, tmp_path):
    annotate(dataset, {"a": [[(2, 2, 2)], [(2, 2, 2)]]})
    empty(tmp_path / "a_label.nii.gz")
    with pytest.raises(DatasetError, match="no lesion in the whole training set: all 2 labels are empty"):
        check_dataset(dataset)
