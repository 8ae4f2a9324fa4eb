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
