"""Datasets with wrong training labels: what is written, what it names, and that the originals stay as they are."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest

from medfocal.annotations.corrupt import (
    ClassFlips,
    Composed,
    Dilation,
    Erosion,
    MissedLesions,
    NoCorruption,
    SpuriousLesions,
    case_rng,
)
from medfocal.annotations.severity import severity
from medfocal.data.corrupted import corrupt_dataset
from medfocal.data.formats import read_dataset
from medfocal.data.phantom import make_phantom, plan_cases, write_phantoms
from medfocal.errors import DatasetError
from medfocal.volume import Volume, read_labels, read_volume, write_volume

AFFINE = np.array([[0, -1.0, 0, 12], [0.5, 0, 0, -7], [0, 0, 3.0, 40], [0, 0, 0, 1]])
SHAPE = (24, 20, 10)
SMALL = {"num_cases": 6, "seed": 4, "prevalence": 1e-3, "shape": (44, 40, 27), "spacing_mm": (1.0, 1.2, 2.0)}


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def a_case(folder, name, *, seed):
    """An image and a label with six lesions."""
    label = np.zeros(SHAPE, np.uint8)
    for n in range(6):
        label[2 + 3 * n : 4 + 3 * n, 3 + 2 * n : 5 + 2 * n, 1 + n] = 1
    image = np.random.default_rng(seed).normal(5, 1, SHAPE).astype(np.float32)
    write_volume(folder / "img" / f"{name}.nii.gz", Volume(image, AFFINE))
    write_volume(folder / "lab" / f"{name}_seg.nii.gz", Volume(label, AFFINE))


@pytest.fixture
def dataset(tmp_path):
    """Three training, one validation and two test cases, the last a bare path as the Decathlon lists them."""
    folder = tmp_path / "original"
    names = ["a", "b", "c", "v", "t", "u"]
    for number, name in enumerate(names):
        a_case(folder, name, seed=number)
    entries = [
        {"case": f"case_{n}", "patient": f"p_{n}", "image": f"img/{n}.nii.gz", "label": f"lab/{n}_seg.nii.gz"}
        for n in names
    ]
    entries[0] |= {"annotations": ["lab/b_seg.nii.gz"], "site": "north"}
    content = {
        "name": "six",
        "channel_names": {"0": "CT"},
        "labels": {"0": "background", "1": "lesion"},
        "note": "kept",
        "training": entries[:3],
        "validation": entries[3:4],
        "test": [entries[4], "img/u.nii.gz"],
    }
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def test_training_labels_are_wrong_and_all_other_files_are_the_original_ones(dataset, tmp_path):
    written = corrupt_dataset(dataset, tmp_path / "wrong", MissedLesions(rate=0.5), seed=3)
    assert written == tmp_path / "wrong" / "dataset.json"
    old, new = read_dataset(dataset), read_dataset(written)
    for before, after in zip(old.cases, new.cases, strict=True):
        assert (after.name, after.patient, after.split) == (before.name, before.patient, before.split)
        assert [path.resolve() for path in after.images] == [path.resolve() for path in before.images]
        assert [path.resolve() for path in after.annotations] == [path.resolve() for path in before.annotations]
        if after.split != "training":
            assert after.label is before.label is None or after.label.resolve() == before.label.resolve()
            continue
        clean, noisy = read_labels(before.label), read_labels(after.label)
        assert after.label.resolve() == tmp_path / "wrong" / "labels" / f"{before.name}.nii.gz"
        assert noisy.same_grid(clean)
        expected = MissedLesions(rate=0.5)(
            clean.array.astype(np.uint8), affine=clean.affine, rng=case_rng(3, before.name)
        )
        assert np.array_equal(noisy.array, expected)
        assert noisy.array.sum() == clean.array.sum() / 2  # three of six lesions of equal size


def test_no_original_file_changes(dataset, tmp_path):
    before = digests(dataset.parent)
    corrupt_dataset(dataset, tmp_path / "wrong", Dilation(dice=0.7), seed=3, splits=("training", "validation"))
    assert digests(dataset.parent) == before


def test_paths_are_relative_so_that_both_folders_can_move_together(dataset, tmp_path):
    corrupt_dataset(dataset, tmp_path / "wrong" / "deep", Erosion(dice=0.7), seed=3)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("original", "wrong"):
        shutil.move(tmp_path / name, moved / name)
    assert len(read_dataset(moved / "wrong" / "deep" / "dataset.json").cases) == 6


def test_an_output_reached_through_a_link_names_files_that_exist(dataset, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert read_dataset(corrupt_dataset(dataset, tmp_path / "link" / "wrong", NoCorruption(), seed=0)).cases


def test_what_the_original_says_beside_is_kept_and_the_clean_label_is_named(dataset, tmp_path):
    written = corrupt_dataset(dataset, tmp_path / "wrong", Erosion(dice=0.7), seed=3)
    content = json.loads(written.read_text())
    assert (content["note"], content["training"][0]["site"]) == ("kept", "north")
    assert content["training"][0]["label"] == "labels/case_a.nii.gz"
    assert content["training"][0]["clean_label"] == "../original/lab/a_seg.nii.gz"
    assert content["validation"][0]["label"] == "../original/lab/v_seg.nii.gz"
    assert "clean_label" not in content["validation"][0]
    assert content["test"][1] == {"case": "u", "patient": "u", "image": "../original/img/u.nii.gz"}


def test_the_record_tells_arguments_seed_and_severity(dataset, tmp_path):
    corruption = Composed(parts=[MissedLesions(rate=0.5), SpuriousLesions(per_case=1, diameter_mm=(0.5, 1.0))])
    written = corrupt_dataset(dataset, tmp_path / "wrong", corruption, seed=3)
    record = json.loads((tmp_path / "wrong" / "corruption.json").read_text())
    assert record["corruption"]["parts"][0] == {"kind": "MissedLesions", "rate": 0.5, "size_exponent": 1.0}
    assert (record["seed"], record["splits"]) == (3, ["training"])
    assert list(record["cases"]) == ["case_a", "case_b", "case_c"]
    pooled = record["pooled"]
    assert (pooled["num_cases"], pooled["num_lesions"], pooled["omission_rate"]) == (3, 18, 0.5)
    assert pooled["spurious_per_case"] == 1
    case = read_dataset(written).cases[1]
    clean, noisy = read_labels(read_dataset(dataset).cases[1].label), read_labels(case.label)
    assert record["cases"]["case_b"]["voxel_dice"] == severity(clean.array, noisy.array, clean.affine).voxel_dice


def test_a_case_is_corrupted_in_the_same_way_whatever_else_is_in_the_set(dataset, tmp_path):
    corruption = Composed(parts=[MissedLesions(rate=0.5), Dilation(dice=0.6)])
    corrupt_dataset(dataset, tmp_path / "all", corruption, seed=3)
    content = json.loads(dataset.read_text())
    del content["training"][0]
    dataset.write_text(json.dumps(content))
    corrupt_dataset(dataset, tmp_path / "fewer", corruption, seed=3)
    corrupt_dataset(dataset, tmp_path / "other", corruption, seed=4)
    name = "labels/case_c.nii.gz"
    assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "fewer" / name).read_bytes()
    assert (tmp_path / "all" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_files_may_lie_elsewhere_than_the_dataset_file(dataset, tmp_path):
    lone = tmp_path / "lone" / "dataset.json"
    lone.parent.mkdir()
    shutil.move(dataset, lone)
    written = corrupt_dataset(lone, tmp_path / "wrong", Erosion(dice=0.7), seed=3, root=dataset.parent)
    assert len(read_dataset(written).cases) == 6


def test_an_output_that_would_replace_the_dataset_is_refused_before_anything_is_written(dataset):
    before = digests(dataset.parent)
    with pytest.raises(ValueError, match="would be replaced; choose another output"):
        corrupt_dataset(dataset, dataset.parent, Erosion(dice=0.7), seed=3)
    content = json.loads(dataset.read_text())
    content["validation"][0]["label"] = "lab/labels/case_a.nii.gz"
    shutil.copytree(dataset.parent / "lab", dataset.parent / "lab" / "labels")
    shutil.copy(dataset.parent / "lab" / "v_seg.nii.gz", dataset.parent / "lab" / "labels" / "case_a.nii.gz")
    dataset.write_text(json.dumps(content))
    before = digests(dataset.parent)
    with pytest.raises(ValueError, match=r"labels/case_a\.nii\.gz' belongs to the dataset"):
        corrupt_dataset(dataset, dataset.parent / "lab", Erosion(dice=0.7), seed=3)
    assert digests(dataset.parent) == before


def test_files_that_no_corruption_wrote_are_never_replaced(dataset, tmp_path):
    """Another dataset file may own labels that this one does not name."""
    folder = tmp_path / "noisy"
    corrupt_dataset(dataset, folder, MissedLesions(rate=0.5), seed=1)
    (folder / "corruption.json").unlink()
    before = digests(tmp_path)
    with pytest.raises(ValueError, match="is there already and no corruption wrote it"):
        corrupt_dataset(dataset, folder, Dilation(dice=0.7), seed=1)
    assert digests(tmp_path) == before


def test_an_earlier_corruption_is_written_anew(dataset, tmp_path):
    corrupt_dataset(dataset, tmp_path / "noisy", MissedLesions(rate=0.5), seed=1)
    corrupt_dataset(dataset, tmp_path / "noisy", Dilation(dice=0.7), seed=1)
    corrupt_dataset(dataset, tmp_path / "other", Dilation(dice=0.7), seed=1)
    assert digests(tmp_path / "noisy") == digests(tmp_path / "other")


def test_the_clean_label_stays_the_clean_one_when_labels_are_corrupted_again(dataset, tmp_path):
    first = corrupt_dataset(dataset, tmp_path / "first", MissedLesions(rate=0.5), seed=1)
    clean = {case.name: case.label for case in read_dataset(dataset).cases}
    for splits in (("training",), ("validation",)):
        again = corrupt_dataset(first, tmp_path / "deep" / splits[0], Dilation(dice=0.7), seed=1, splits=splits)
        entries = json.loads(again.read_text("utf-8"))["training"]
        assert all((again.parent / e["clean_label"]).samefile(clean[e["case"]]) for e in entries)


def test_what_cannot_be_done_is_refused_before_anything_is_written(dataset, tmp_path):
    output = tmp_path / "wrong"
    with pytest.raises(ValueError, match=r"splits must be some of training, validation, test, got \('train',\)"):
        corrupt_dataset(dataset, output, Erosion(), seed=3, splits=("train",))
    with pytest.raises(ValueError, match="splits must be some of"):
        corrupt_dataset(dataset, output, Erosion(), seed=3, splits=())
    with pytest.raises(ValueError, match="the labels have 1; one class"):
        corrupt_dataset(dataset, output, ClassFlips(rate=0.5, num_lesion_classes=2), seed=3)
    with pytest.raises(DatasetError, match="1 of the cases to corrupt have no 'label', first 'u'"):
        corrupt_dataset(dataset, output, Erosion(), seed=3, splits=("test",))
    assert not output.exists()


# ---------------------------------------------------------------- phantoms


def test_phantoms_keep_their_true_labels_and_name_the_wrong_ones(tmp_path):
    clean = write_phantoms(tmp_path / "clean", **SMALL)
    wrong = write_phantoms(tmp_path / "wrong", **SMALL, corruption=Dilation(dice=0.7))
    old, new = digests(clean.parent), digests(wrong.parent)
    record = json.loads((wrong.parent / "corruption.json").read_text())
    for name in set(new) - set(old):
        assert name.parts[0] in {"corrupted", "corruption.json"}
    assert {name: found for name, found in old.items() if new[name] != found}.keys() == {
        wrong.relative_to(wrong.parent)
    }
    content = json.loads(wrong.read_text())
    for entry in content["training"]:
        assert entry["label"] == f"corrupted/{entry['case']}.nii.gz"
        assert entry["clean_label"] == f"labels/{entry['case']}.nii.gz"
        truth, noisy = (read_labels(wrong.parent / entry[key]) for key in ("clean_label", "label"))
        assert truth.same_grid(noisy)
        found = severity(truth.array, noisy.array, truth.affine)
        assert found.voxel_dice == pytest.approx(0.7, abs=0.02) or math.isnan(found.voxel_dice)
        assert record["cases"][entry["case"]]["num_noisy_voxels"] == found.num_noisy_voxels
    assert all(entry["label"].startswith("labels/") for split in ("validation", "test") for entry in content[split])
    assert len(read_dataset(wrong).cases) == 6


def test_no_corruption_writes_the_same_bytes_as_none(tmp_path):
    none = write_phantoms(tmp_path / "none", **SMALL)
    other = write_phantoms(tmp_path / "other", **SMALL, corruption=NoCorruption())
    assert digests(none.parent) == digests(other.parent)


def test_lesions_are_invented_on_the_lookalikes_of_a_phantom(tmp_path):
    path = write_phantoms(tmp_path, **SMALL, corruption=SpuriousLesions(per_case=3, diameter_mm=(1.0, 3.0)))
    arguments = {key: value for key, value in SMALL.items() if key != "num_cases"} | {"channels": ("FLAIR",)}
    plans = {plan.case: plan for plan in plan_cases(6, seed=4, lesion_free_share=1 / 6)}
    for entry in json.loads(path.read_text())["training"]:
        spots = make_phantom(plans[entry["case"]], **arguments).spots
        noisy, truth = (read_volume(tmp_path / entry[key]).array > 0 for key in ("label", "clean_label"))
        assert (noisy & ~truth)[tuple(spots.T)].sum() >= 3
        assert np.array_equal(noisy & truth, truth)


def test_spots_of_a_phantom_lie_on_voxels_brighter_than_what_is_around():
    brighter = []
    for plan in plan_cases(6, seed=4, lesion_free_share=0):
        phantom = make_phantom(
            plan, seed=4, prevalence=3e-4, shape=(64, 64, 48), spacing_mm=(1.0, 1.0, 1.5), channels=("FLAIR",)
        )
        image = phantom.images[0].stored * phantom.images[0].slope + phantom.images[0].inter
        for i, j, k in phantom.spots:
            around = image[i - 3 : i + 4, j - 3 : j + 4, k - 3 : k + 4]
            brighter.append(image[i, j, k] > np.median(around))
    # Vessels and rims at the least contrast, in part of a voxel, do not stand out from the noise.
    assert np.mean(brighter) > 0.85


def test_phantoms_refuse_to_flip_their_only_class_before_anything_is_drawn(tmp_path):
    with pytest.raises(ValueError, match="one class cannot be taken for another"):
        write_phantoms(tmp_path / "o", **SMALL, corruption=ClassFlips(rate=0.5, num_lesion_classes=2))
    assert not (tmp_path / "o").exists()


def test_the_command_corrupts_as_its_configuration_says(tmp_path):
    from medfocal import config
    from medfocal.cli import FUNCTIONS

    words = [f"output={tmp_path}", "num_cases=3", "lesion_free_share=0", "shape=[44,40,27]", "spacing_mm=[1,1.2,2]"]
    conf = config.check(config.compose("phantom", [*words, "corruption=missed_lesions", "corruption.rate=1.0"]))
    FUNCTIONS["phantom"](conf)
    record = json.loads((tmp_path / "corruption.json").read_text())
    assert record["corruption"] == {"kind": "MissedLesions", "rate": 1.0, "size_exponent": 1.0}
    assert record["pooled"]["omission_rate"] == 1


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["corruption=erosion", "corruption.dice=1.5"], r"corruption: dice must be in \(0, 1\], got 1.5"),
        (["corruption=erosion", "+corruption.dise=0.5"], "has no 'dise' .did you mean 'dice'"),
        (["corruption=erosion", "~corruption.dice"], "needs dice to be stated"),
        (["corruption._target_=medfocal.annotations.severity.Severity"], "is not allowed"),
        (["corruption._target_=medfocal.annotations.corrupt.Corruption"], "abstract"),
        (
            ["corruption._target_=medfocal.annotations.corrupt.Composed", "+corruption.parts=[{rate: 1}]"],
            "corruption.parts: .* takes",
        ),
    ],
)
def test_a_corruption_that_cannot_be_made_is_refused_by_the_check(overrides, told):
    from medfocal import config
    from medfocal.errors import ConfigError

    with pytest.raises(ConfigError, match=told):
        config.check(config.compose("phantom", ["output=o", *overrides]))
