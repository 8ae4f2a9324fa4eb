"""Cases, patients and files of a dataset are sound, or all that is wrong with them is told at once."""

import os

import pytest

from medfocal.data.manifest import NUM_FAULTS, Case, LabelScheme, Manifest, check_manifest, listed, refuse
from medfocal.errors import DatasetError


@pytest.fixture
def manifest(tmp_path):
    """A manifest of cases `(name, patient, split)` whose files exist: `manifest(*cases)`."""

    def make(*given):
        cases = []
        for name, patient, split in given:
            files = [tmp_path / f"{name}_{what}.nii" for what in ("image", "label")]
            for file in files:
                file.touch()
            cases.append(Case(name, patient, split, (files[0],), files[1]))
        return Manifest(tmp_path / "d.json", "d", ("T1",), LabelScheme({0: "background", 1: "lesion"}), tuple(cases))

    return make


def test_a_sound_dataset_passes(manifest):
    check_manifest(manifest(("a", "p", "training"), ("b", "p", "training"), ("c", "q", "test")))


def test_faults_of_entries_are_told_together_with_those_of_cases(manifest):
    with pytest.raises(DatasetError, match=r"(?s)d\.json' has 2 faults:\n  - line 7 is odd\n  - 1 patient is in more"):
        check_manifest(manifest(("a", "p", "training"), ("b", "p", "test")), faults=["line 7 is odd"])


def test_without_cases_the_entries_that_were_wrong_are_the_reason(manifest):
    with pytest.raises(DatasetError, match=r"d\.json': lists no case"):
        check_manifest(manifest())
    with pytest.raises(DatasetError, match=r"d\.json': line 7 is odd$"):
        check_manifest(manifest(), faults=["line 7 is odd"])


def test_many_faults_are_counted_after_the_first(tmp_path):
    with pytest.raises(DatasetError) as caught:
        refuse(tmp_path, [f"fault {number}" for number in range(NUM_FAULTS + 2)])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"'{tmp_path}' has {NUM_FAULTS + 2} faults:"
    assert lines[-2:] == [f"  - fault {NUM_FAULTS - 1}", "  - and 2 more"]


def test_lines_of_a_fault_stay_together(tmp_path):
    with pytest.raises(DatasetError, match=r"  - one\n    more of it\n  - two$"):
        refuse(tmp_path, ["one\nmore of it", "two"])


def test_nothing_is_refused_without_a_fault(tmp_path):
    refuse(tmp_path, [])


def test_ten_names_are_listed_in_order_and_the_others_counted():
    assert listed(["b", "a"]) == "a, b"
    assert listed(f"n{number:02d}" for number in reversed(range(12))).endswith("n08, n09 and 2 more")


@pytest.mark.parametrize("num_files", [1, 20])
def test_missing_files_are_found_whether_a_folder_is_listed_or_not(manifest, num_files):
    found = manifest(*((f"c{number}", "p", "training") for number in range(num_files)))
    check_manifest(found)
    found.cases[0].label.unlink()
    with pytest.raises(DatasetError, match=r"1 file named in it does not exist:\n    case 'c0': '.*c0_label\.nii'"):
        check_manifest(found)


@pytest.mark.parametrize("num_cases", [1, 20])
def test_a_folder_and_a_dead_link_are_no_files_and_a_link_to_a_file_is_one(manifest, num_cases, tmp_path):
    found = manifest(*((f"c{number}", "p", "training") for number in range(num_cases)))
    label = found.cases[0].label
    label.rename(tmp_path / "real.nii")
    label.symlink_to(tmp_path / "real.nii")
    check_manifest(found)
    (tmp_path / "real.nii").unlink()
    with pytest.raises(DatasetError, match="1 file named in it does not exist"):
        check_manifest(found)
    label.unlink()
    label.mkdir()
    with pytest.raises(DatasetError, match="1 file named in it does not exist"):
        check_manifest(found)


def test_each_folder_of_many_files_is_asked_once(manifest, monkeypatch):
    found = manifest(*((f"c{number}", "p", "training") for number in range(50)))
    asked = []
    listing, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or listing(path))
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(path) or stat(path, **more))
    check_manifest(found)
    assert len(asked) == 1
