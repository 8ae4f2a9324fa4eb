"""`medfocal check` as a command: exit codes, what is written where, and a repaired copy."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, run

from medfocal.volume import read_volume, write_volume

sys.path.insert(0, str(Path(__file__).parent.parent / "data" / "check"))
from made_datasets import AFFINE, TWO, annotate, image_of, label_of, make_dataset, write


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data", {"a": ("training", TWO), "b": ("validation", TWO[:3])})


WORDS = ("check", "data.dataset=data/dataset.json")


@pytest.mark.usefixtures("dataset")
def test_warnings_and_notes_leave_the_exit_code_0_and_without_output_nothing_is_written(tmp_path):
    ended = run(*WORDS, folder=tmp_path)
    assert ended.code == 0
    assert "warning: the validation split has 1 lesion" in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_error_is_3_after_report_and_page_are_written(dataset, tmp_path):
    (dataset.parent / "a_label.nii.gz").write_bytes(b"no gzip")
    assert_refused(run(*WORDS, "output=out", folder=tmp_path), 3, "1 error", "case 'a'")
    found = json.loads((tmp_path / "out" / "dataset_report.json").read_text("utf-8"))
    assert [entry["kind"] for entry in found["findings"] if entry["severity"] == "error"] == ["not_gzip"]
    assert "not gzip" in (tmp_path / "out" / "dataset_report.html").read_text("utf-8")


def test_what_was_repaired_is_no_error_any_more(dataset, tmp_path):
    write(dataset.parent / "a_label.nii.gz", label_of(TWO) * 255)
    assert_refused(run(*WORDS, folder=tmp_path), 3, "255")
    ended = run(*WORDS, "output=out", "fix=true", folder=tmp_path)
    assert (ended.code, ended.err.count("Error")) == (0, 0)
    assert "repaired: case 'a'" in ended.out
    assert run("check", "data.dataset=out/dataset.json", folder=tmp_path).code == 0
    assert read_volume(dataset.parent / "a_label.nii.gz").array.max() == 255


@pytest.mark.usefixtures("dataset")
def test_a_repair_needs_a_folder_of_its_own(tmp_path):
    assert_refused(run(*WORDS, "fix=true", folder=tmp_path), 2, "give output=FOLDER")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert_refused(run(*WORDS, "fix=true", "output=data", folder=tmp_path), 3, "holds files of the dataset")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


@pytest.mark.usefixtures("dataset")
def test_limits_are_settings(tmp_path):
    assert "specks 2" in run(*WORDS, "limits.speck_voxels=3", folder=tmp_path).out
    assert_refused(run(*WORDS, "limits.speck_voxels=-1", folder=tmp_path), 2, "speck_voxels must be 0 or more")


def test_a_patient_in_two_splits_is_refused_with_all_other_faults_before_a_report_is_written(dataset, tmp_path):
    content = json.loads(dataset.read_text())
    content["training"][0]["patient"] = content["validation"][0]["patient"] = "p1"
    content["validation"][0]["image"] = ["gone.nii.gz"]
    dataset.write_text(json.dumps(content))
    assert_refused(run(*WORDS, "output=out", folder=tmp_path), 3, "2 faults", "1 patient is in more than one", "gone")
    assert not (tmp_path / "out").exists()


def test_channels_that_training_could_not_bring_together_are_an_error(tmp_path):
    dataset = make_dataset(tmp_path / "data", {"a": ("training", TWO)}, channels=("T1", "T2"))
    affine = AFFINE.copy()
    affine[:3, 3] += 500
    write(dataset.parent / "a_T2.nii.gz", image_of(9), affine)
    ended = run(*WORDS, "data.resample_channels=true", folder=tmp_path)
    assert_refused(ended, 3, "1 error", "image T2 and image T1 lie apart", "866 mm apart")


def test_cases_that_only_readers_marked_are_told_on_terminal_page_and_report(tmp_path):
    dataset = make_dataset(tmp_path / "data", {"a": ("training", None)})
    annotate(dataset, {"a": [TWO, TWO]})
    ended = run(*WORDS, "output=out", folder=tmp_path)
    assert (ended.code, "training: 1 case, marked by readers only" in ended.out) == (0, True)
    found = json.loads((tmp_path / "out" / "dataset_report.json").read_text("utf-8"))
    assert (found["splits"][0]["num_by_readers"], found["cases"][0]["num_majority_lesions"]) == (1, 2)
    page = (tmp_path / "out" / "dataset_report.html").read_text("utf-8")
    heads, cells = (
        re.findall(part, page[page.index('id="set"') :]) for part in (r"<th scope=\"col\".*?>(.*?)<", r"<td.*?>(.*?)<")
    )
    assert dict(zip(heads[1:7], cells, strict=False))["Marked by readers only"] == "1"


def test_hostile_values_end_with_a_message(dataset, tmp_path):
    volume = read_volume(dataset.parent / "a_label.nii.gz")
    array = np.full(volume.shape, np.finfo(np.float64).max)
    write_volume(dataset.parent / "a_label.nii.gz", volume.with_array(array))
    assert_refused(run(*WORDS, "output=out", folder=tmp_path), 3, "case 'a'")
