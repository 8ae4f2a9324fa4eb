"""From a dataset to a report through the commands alone: check, train, predict, evaluate, info."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, assert_refused, make_dataset, run
from omegaconf import OmegaConf

from medfocal.data.formats import read_dataset
from medfocal.volume import read_volume

EVALUATION = {"evaluation.json", "cases.csv", "lesions.csv", "candidates.csv", "report.html"}


def done(*words, folder):
    ended = run(*words, folder=folder)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return ended.out


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(folder, dataset):
    out = done("train", *TINY, f"data.dataset={dataset}", "run.id=story", "seed=4", folder=folder)
    return folder / "runs" / "default" / "story", out


@pytest.fixture(scope="module")
def manifest(dataset):
    return read_dataset(dataset)


@pytest.fixture(scope="module")
def story(tmp_path_factory, dataset):
    """The run folder, and what training said."""
    return train(tmp_path_factory.mktemp("story"), dataset)


@pytest.fixture(scope="module")
def home(story):
    return story[0]


@pytest.fixture(scope="module")
def predicted(home, manifest, tmp_path_factory):
    """Predictions of a folder that holds the test images, with probability maps."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "images").mkdir()
    for case in manifest.split("test"):
        (folder / "images" / f"{case.name}.nii.gz").symlink_to(case.images[0])
    words = [f"model={home / 'model'}", "input=images", "output=o", "save_probability=true"]
    assert f"{len(manifest.split('test'))} cases" in done("predict", *words, folder=folder)
    return folder / "o"


def test_check_finds_no_fault_and_counts_the_cases(dataset, tmp_path):
    out = done("check", f"data.dataset={dataset}", "output=report", folder=tmp_path)
    assert re.search(r"training: 3 cases, \d+ lesions", out)
    assert "no error in 6 cases" in out
    assert read_json(tmp_path / "report" / "dataset_report.json")["num_findings"]["error"] == 0


def test_the_run_folder_holds_what_the_contract_says_and_nothing_else(home, manifest):
    wanted = {"config.yaml", "environment.json", "split.json", "metrics.csv", "visits.csv", "train.log", "curves.png"}
    wanted |= {
        ".lock",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "checkpoints/best.pt",
        "model/model.json",
        "model/weights.safetensors",
    }
    wanted |= {f"{split}/{name}" for split in ("validation", "test") for name in EVALUATION}
    tails = ("mask.nii.gz", "probability.nii.gz", "candidates.csv")
    wanted |= {f"test/predictions/{case.name}_{tail}" for case in manifest.split("test") for tail in tails}
    assert {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()} == wanted
    assert sorted(path.name for path in home.parents[2].iterdir()) == ["cache", "runs"]


def test_training_says_where_its_results_are(story):
    home, out = story
    for name in ("test/report.html", "model", "curves.png"):
        assert f"{home.relative_to(home.parents[2])}/{name}" in out


def test_metrics_have_a_row_an_epoch_and_the_columns_of_the_contract(home):
    columns = ["epoch", "step", "loss", "dropped_share", "num_skipped", "learning_rate", "seconds", "wait_share"]
    columns += [
        "patches_per_second",
        "lesion_sensitivity",
        "lesion_sensitivity_low",
        "lesion_sensitivity_high",
        "cpm",
        "threshold",
        "voxel_dice",
        "num_lesions",
    ]
    table = rows(home / "metrics.csv")
    assert list(table[0]) == columns
    assert [(row["epoch"], row["step"]) for row in table] == [("1", "3"), ("2", "6")]
    assert all(0 < float(row["loss"]) < 10 for row in table)
    assert len((home / "train.log").read_text("utf-8").splitlines()) >= len(table)


def test_the_configuration_is_kept_resolved(home, dataset):
    text = (home / "config.yaml").read_text("utf-8")
    kept = OmegaConf.to_container(OmegaConf.create(text))
    assert "${" not in text
    assert kept["data"]["dataset"] == str(dataset)
    assert (kept["seed"], kept["run"]["id"], kept["network"]["channels"]) == (4, "story", [4, 8, 16])


def test_the_environment_names_versions_and_the_digest_of_every_input(home, manifest):
    found = read_json(home / "environment.json")
    files = [manifest.path, *(f for case in manifest.cases for f in (*case.images, case.label, *case.annotations))]
    assert found["inputs"] == {str(file): sha256(file) for file in files}
    assert found["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", found["git_commit"])
    assert {"torch", "monai", "numpy"} <= set(found["packages"])


def test_the_split_is_that_of_the_dataset(home, manifest):
    stated = read_json(home / "split.json")
    assert stated.pop("split_from") == "the dataset"
    assert set(stated) == {"training", "validation", "test"}
    for split, cases in stated.items():
        assert cases == [{"case": case.name, "patient": case.patient} for case in manifest.split(split)]


def test_the_model_names_the_digest_of_its_weights(home):
    (member,) = read_json(home / "model" / "model.json")["members"]
    assert member["weights"] == {
        "file": "weights.safetensors",
        "sha256": sha256(home / "model" / "weights.safetensors"),
    }
    assert member["training"]["seed"] == 4
    assert "_target_" not in (home / "model" / "model.json").read_text("utf-8")


def test_the_model_counts_at_the_threshold_of_the_validation(home):
    best = max(
        rows(home / "metrics.csv"), key=lambda row: (*map(float, (row["lesion_sensitivity"], row["cpm"])), row["epoch"])
    )
    (point,) = read_json(home / "model" / "model.json")["operating_points"]
    assert point["threshold"] == float(best["threshold"])
    for split in ("validation", "test"):
        assert read_json(home / split / "evaluation.json")["protocol"]["threshold"] == point["threshold"]


def test_prediction_of_a_folder_equals_that_of_the_run(home, predicted, manifest):
    names = [case.name for case in manifest.split("test")]
    tails = ("mask.nii.gz", "probability.nii.gz", "candidates.csv")
    files = {"run.json", *(f"{name}_{tail}" for name in names for tail in (*tails, "run.json"))}
    assert {path.name for path in predicted.iterdir()} == files
    for name in names:
        for tail in tails:
            ours, theirs = (folder / f"{name}_{tail}" for folder in (predicted, home / "test" / "predictions"))
            assert ours.read_bytes() == theirs.read_bytes(), ours.name
    record = read_json(predicted / "run.json")
    assert [row["case"] for row in record["cases"]] == names
    assert record["weights_sha256"] == [sha256(home / "model" / "weights.safetensors")]


def test_a_mask_lies_on_the_grid_of_its_image_and_holds_the_kept_candidates(home, predicted, manifest, tmp_path):
    for case in manifest.split("test"):
        # Two epochs teach little: whatever the model is surest of shall count.
        threshold = 0.9 * max(float(row["confidence"]) for row in rows(predicted / f"{case.name}_candidates.csv"))
        words = [f"input={predicted.parent / 'images' / case.name}.nii.gz", "output=o", f"threshold={threshold}"]
        done("predict", f"model={home / 'model'}", *words, folder=tmp_path)
        image, mask = read_volume(case.images[0]), read_volume(tmp_path / "o" / f"{case.name}_mask.nii.gz")
        assert image.same_grid(mask, tolerance_mm=1e-3)
        kept = [row for row in rows(tmp_path / "o" / f"{case.name}_candidates.csv") if row["kept"] == "true"]
        assert np.count_nonzero(mask.array) == sum(int(row["num_voxels"]) for row in kept) > 0
        assert all(float(row["confidence"]) >= threshold for row in kept)
        probability = read_volume(predicted / f"{case.name}_probability.nii.gz").array
        assert probability[mask.array > 0].min() >= 0.45 * threshold  # half of its own height, or a step below


def test_one_file_and_a_dataset_are_predicted_alike(home, predicted, manifest, dataset, tmp_path):
    case = manifest.split("test")[0]
    for given, output in ((case.images[0], "one"), (dataset, "all")):
        done("predict", f"model={home / 'model'}", f"input={given}", f"output={output}", folder=tmp_path)
        name = case.name if output == "all" else case.images[0].name.removesuffix(".nii.gz")
        found = tmp_path / output / f"{name}_mask.nii.gz"
        assert found.read_bytes() == (predicted / f"{case.name}_mask.nii.gz").read_bytes()
    assert not list(tmp_path.rglob("*_probability.nii.gz")), "only if asked"


def test_a_threshold_of_1_leaves_no_candidate(home, manifest, tmp_path):
    case = manifest.split("test")[0]
    words = [f"model={home / 'model'}", f"input={case.images[0]}", "output=o", "threshold=1"]
    done("predict", *words, folder=tmp_path)
    (mask,) = (tmp_path / "o").glob("*_mask.nii.gz")
    assert not read_volume(mask).array.any()
    assert read_json(tmp_path / "o" / "run.json")["threshold"] == 1


@pytest.fixture(scope="module")
def evaluated(home, predicted, manifest, tmp_path_factory):
    """What `evaluate` makes of the saved probability maps, and what it said."""
    folder = tmp_path_factory.mktemp("evaluated")
    lines = ["case,patient,reference,prediction"]
    lines += [f"{c.name},{c.patient},{c.label},{predicted / c.name}_probability.nii.gz" for c in manifest.split("test")]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    (folder / "images").mkdir()
    for case in manifest.split("test"):
        (folder / "images" / f"{case.name}.nii.gz").symlink_to(case.images[0])
    threshold = read_json(home / "model" / "model.json")["operating_points"][0]["threshold"]
    words = ["manifest=pairs.csv", "output=o", "images=images", f"protocol.threshold={threshold!r}"]
    return folder / "o", done("evaluate", *words, folder=folder)


def assert_equal(one, other, where=""):
    """To 1e-6 of each number: label and image headers round the spacing, hence volumes, each for itself."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6), where
    else:
        assert one == other, where


def test_evaluating_the_saved_maps_gives_the_figures_of_the_run(home, evaluated):
    folder, _ = evaluated
    assert {path.name for path in folder.iterdir()} == EVALUATION | {"tables.jsonl"}
    assert rows(folder / "candidates.csv")
    found = [read_json(place / "evaluation.json") for place in (folder, home / "test")]
    assert set(found[0].pop("inputs")) == {"manifest", "images"}
    assert found[1].pop("inputs") == {}  # the run folder says which dataset
    assert_equal(*found)
    for name in ("cases", "lesions", "candidates"):
        ours, theirs = (rows(place / f"{name}.csv") for place in (folder, home / "test"))
        assert len(ours) == len(theirs)
        assert [row["case"] for row in ours] == [row["case"] for row in theirs]


def counts(place):
    found = read_json(place / "evaluation.json")
    return found["num_detected_lesions"], found["num_lesions"], found


def test_the_evaluation_counts_what_the_labels_hold(home, manifest):
    from scipy import ndimage

    touching = np.ones((3, 3, 3))
    labels = [read_volume(case.label).array > 0 for case in manifest.split("test")]
    assert counts(home / "test")[1] == sum(ndimage.label(label, touching)[1] for label in labels) > 0


def test_the_terminal_and_the_report_name_the_counts(home, evaluated, story):
    for place, out in ((evaluated[0], evaluated[1]), (home / "test", story[1])):
        detected, lesions, found = counts(place)
        assert f"{detected} of {lesions}" in out
        text = re.sub(r"<[^>]+>", " ", (place / "report.html").read_text("utf-8"))
        assert re.search(rf"\b{detected} of {lesions}\b", text)
        assert re.search(rf"\b{found['num_false_candidates']}\b", text)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_report_is_one_file_that_fetches_nothing(home, split):
    text = (home / split / "report.html").read_text("utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+""", text)


def test_info_tells_what_the_model_finds(home, tmp_path):
    out = done("info", f"model={home / 'model'}", folder=tmp_path)
    for word in ("lesion", "FLAIR", "UNet3d", "[16, 16, 16]", sha256(home / "model" / "weights.safetensors")):
        assert word in out


def test_two_channels_are_trained_and_predicted_by_their_file_names(tmp_path):
    dataset = make_dataset(tmp_path / "data", channels=("FLAIR", "T1"), seed=5)
    home, _ = train(tmp_path, dataset)
    manifest = read_dataset(dataset)
    images = tmp_path / "images"
    images.mkdir()
    for case in manifest.split("test"):
        for number, image in enumerate(case.images):
            (images / f"{case.name}_{number:04d}.nii.gz").symlink_to(image)
    words = ["predict", f"model={home / 'model'}", "input=images", "save_probability=true"]
    done(*words, "output=o", folder=tmp_path)
    for case in manifest.split("test"):
        for tail in ("mask.nii.gz", "probability.nii.gz"):
            ours, theirs = (place / f"{case.name}_{tail}" for place in (tmp_path / "o", home / "test" / "predictions"))
            assert ours.read_bytes() == theirs.read_bytes()
    assert "channels   FLAIR, T1" in done("info", f"model={home / 'model'}", folder=tmp_path)

    (images / f"{case.name}_0001.nii.gz").unlink()
    assert_refused(run(*words, "output=again", folder=tmp_path), 3, f"case '{case.name}'", "2 channels")
    assert not Path(tmp_path / "again").exists()
