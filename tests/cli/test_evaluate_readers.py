"""`medfocal evaluate` with readers, from the command line to the page."""

import csv
import json
import shutil

import pytest
from commands import run


@pytest.fixture
def home(dataset, tmp_path):
    """The phantoms' first reader as the model, in a folder of its own."""
    content = json.loads(dataset.read_text("utf-8"))
    cases = [entry for split in ("training", "validation", "test") for entry in content[split]]
    (tmp_path / "model").mkdir()
    for entry in cases:
        shutil.copy(dataset.parent / entry["annotations"][0], tmp_path / "model" / f"{entry['case']}_mask.nii.gz")
    return tmp_path


def marks(dataset):
    return ",".join(str(dataset.parent / "annotations" / f"*_reader{number}.nii.gz") for number in (1, 2))


def rows(folder):
    with (folder / "readers.csv").open(newline="") as file:
        return {(row["kind"], row["reader"]): row for row in csv.DictReader(file)}


def test_readers_of_folders_and_of_a_dataset_give_the_same_figures(home, dataset):
    words = ["evaluate", f"reference={dataset.parent / 'labels'}", "prediction=model"]
    ended = run(*words, f"readers=[{marks(dataset)}]", "output=o", folder=home)
    assert (ended.code, ended.err) == (0, "")
    assert "reader1, by the others" in ended.out
    assert run(*words, f"readers={dataset}", "output=p", folder=home).code == 0
    folders, listed = rows(home / "o"), rows(home / "p")
    assert {reader for _, reader in folders} == {"reader1", "reader2", ""}
    assert {(kind, reader.replace(" ", "")): {**row, "reader": ""} for (kind, reader), row in listed.items()} == {
        key: {**row, "reader": ""} for key, row in folders.items()
    }
    model = folders["model_against_reader", "reader1"]  # which it is
    assert model["lesion_sensitivity"] == model["voxel_dice_mean"] == "1.0"
    page = (home / "o" / "report.html").read_text("utf-8")
    assert 'id="readers"' in page
    assert "all but reader1" in page


def test_without_reference_what_both_readers_marked_is_it(home, dataset):
    words = ["evaluate", "prediction=model", f"readers=[{marks(dataset)}]", "output=o"]
    images = f"images={dataset.parent / 'images'}"
    ended = run(*words, images, folder=home)
    assert (ended.code, ended.err) == (0, "")
    found = json.loads((home / "o" / "evaluation.json").read_text())
    by_all = next(c for c in found["readers"]["comparisons"] if c["kind"] == "model_against_all")
    assert found["lesion_sensitivity"] == by_all["lesion_sensitivity"]
    assert found["num_lesions"] == by_all["num_lesions"] > 0
    assert len(list((home / "o" / "fused_reference").iterdir())) == found["num_cases"] == 6
    ended = run(*words, folder=home)  # again: what is there already is written anew, not taken for more references
    assert ended.code == 0
