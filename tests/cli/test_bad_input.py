"""Input that cannot be used: each fault by its exit code, with the case named and nothing written."""

import hashlib
import json
import shutil

import nibabel
import numpy as np
import pytest
from commands import TINY, assert_refused, run

from medfocal.volume import Volume, read_volume, write_volume

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])


@pytest.fixture
def copy(dataset, tmp_path):
    """A copy of the dataset that a test may spoil."""
    shutil.copytree(dataset.parent, tmp_path / "data")
    return tmp_path / "data" / "dataset.json"


def first_case(path):
    entry = json.loads(path.read_text("utf-8"))["training"][0]
    image = entry["image"][0] if isinstance(entry["image"], list) else entry["image"]
    return entry["case"], path.parent / image, path.parent / entry["label"]


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | keys))


def missing_file(path):
    name, _, label = first_case(path)
    label.unlink()
    return name, "does not exist"


def truncated_gzip(path):
    name, image, _ = first_case(path)
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    return name, image.name, "damaged"


def label_on_another_grid(path):
    name, _, label = first_case(path)
    volume = read_volume(label)
    moved = volume.affine.copy()
    moved[2, 3] += 2
    write_volume(label, Volume(volume.array, moved))
    return name, "label and image grids differ", "corners up to 2 mm apart"


def label_of_another_shape(path):
    name, _, label = first_case(path)
    volume = read_volume(label)
    write_volume(label, Volume(volume.array[:-1], volume.affine))
    return name, "shape (27, 26, 20) and (28, 26, 20) voxels"


def nan_in_the_body(path):
    name, image, _ = first_case(path)
    volume = read_volume(image)
    array = volume.array.astype(np.float32)
    centre = tuple(n // 2 for n in array.shape)
    assert array[tuple(slice(c - 1, c + 2) for c in centre)].all()
    array[centre] = np.nan
    write_volume(image, volume.with_array(array))
    return name, "NaN or infinite inside the body", str(centre)


def unnamed_label_value(path):
    name, _, label = first_case(path)
    volume = read_volume(label)
    array = volume.array.copy()
    array[3, 4, 5] = 7
    write_volume(label, volume.with_array(array.astype(np.uint8)))
    return name, "holds 7, which the dataset does not name"


def four_axes(path):
    name, image, _ = first_case(path)
    volume = read_volume(image)
    nibabel.save(nibabel.Nifti1Image(np.stack([volume.array] * 2, axis=-1), volume.affine), image)
    return name, "has 4 axes, shape (28, 26, 20, 2)"


def axis_without_voxels(path):
    name, image, _ = first_case(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((28, 26, 0), np.int16), np.diag([1.5, 1.6, 2.0, 1.0])), image)
    return name, "an axis without voxels: shape (28, 26, 0)"


def empty_dataset(path):
    change(path, training=[], validation=[], test=[])
    return ("lists no case",)


def patient_in_two_splits(path):
    content = json.loads(path.read_text("utf-8"))
    content["test"][0]["patient"] = content["training"][0]["patient"]
    change(path, **content)
    return content["training"][0]["patient"], "1 patient is in more than one of 'training', 'test'"


def no_lesion_in_training(path):
    for entry in json.loads(path.read_text("utf-8"))["training"]:
        volume = read_volume(path.parent / entry["label"])
        write_volume(path.parent / entry["label"], volume.with_array(np.zeros_like(volume.array)))
    return ("no lesion in the whole training set",)


def not_json(path):
    path.write_text("{")
    return "dataset.json", "not JSON"


FAULTS = [
    missing_file,
    truncated_gzip,
    label_on_another_grid,
    label_of_another_shape,
    nan_in_the_body,
    unnamed_label_value,
    four_axes,
    axis_without_voxels,
    empty_dataset,
    patient_in_two_splits,
    no_lesion_in_training,
    not_json,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_train_refuses_and_leaves_no_run(fault, copy, tmp_path):
    told = fault(copy)
    assert_refused(run("train", *TINY, "data.dataset=data/dataset.json", folder=tmp_path), 3, *told)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.parent.name != "runs"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_check_refuses(fault, copy, tmp_path):
    told = fault(copy)
    assert_refused(run("check", "data.dataset=data/dataset.json", folder=tmp_path), 3, *told)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_check_names_every_fault_and_writes_them_if_asked(copy, tmp_path):
    truncated_gzip(copy)
    entry = json.loads(copy.read_text("utf-8"))["test"][1]
    (copy.parent / entry["label"]).write_bytes(b"no gzip")
    ended = run("check", "data.dataset=data/dataset.json", "output=report", folder=tmp_path)
    assert_refused(ended, 3, "2 errors", first_case(copy)[0], entry["case"])
    report = json.loads((tmp_path / "report" / "dataset_report.json").read_text())
    assert report["num_findings"]["error"] == 2


@pytest.mark.usefixtures("copy")
def test_classes_that_the_loss_does_not_fit_are_refused_before_the_run(tmp_path):
    words = ["train", *TINY, "data.dataset=data/dataset.json", "loss.alpha=[0.2,0.3,0.5]"]
    assert_refused(run(*words, folder=tmp_path), 2, "loss: ", "alpha")
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(device, tmp_path):
    words = ["train", *TINY, "data.dataset=data/dataset.json", f"device={device}"]
    assert_refused(run(*words, folder=tmp_path), 2, f"device: '{device}'")


@pytest.mark.usefixtures("copy")
def test_a_folder_for_runs_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("mine")
    words = ["train", *TINY, "data.dataset=data/dataset.json"]
    assert_refused(run(*words, folder=tmp_path), 5, "runs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bare):
    """A model folder."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train", *TINY, f"data.dataset={bare}", "trainer.max_epochs=1", "run.id=r"]
    assert run(*words, folder=folder).code == 0
    return folder / "runs" / "default" / "r" / "model"


@pytest.mark.parametrize(
    "fault",
    [truncated_gzip, nan_in_the_body, four_axes, axis_without_voxels],
    ids=lambda fault: fault.__name__,
)
def test_predict_refuses_an_image_and_writes_nothing_for_it(fault, trained, copy, tmp_path):
    told = fault(copy)
    ended = run("predict", f"model={trained}", f"input={first_case(copy)[1]}", "output=o", folder=tmp_path)
    assert_refused(ended, 3, *told)
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["run.json"]  # which says why


def predict_refuses(code, told, *words, folder):
    """And makes no output folder."""
    assert_refused(run("predict", *words, "output=o", folder=folder), code, *told)
    assert not (folder / "o").exists()


def test_predict_refuses_an_input_that_is_missing_or_empty(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, told in (("nowhere", "does not exist"), ("empty", "holds no image")):
        predict_refuses(3, ["'" + name + "'", told], f"model={trained}", f"input={name}", folder=tmp_path)


def test_predict_refuses_a_model_whose_weights_were_altered(trained, dataset, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    was = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    weights.write_bytes(content)
    told = ["weights.safetensors", was, hashlib.sha256(content).hexdigest()]
    predict_refuses(4, told, "model=model", f"input={first_case(dataset)[1]}", folder=tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("members", [{"network": {"name": "system", "arguments": {}}}]),
        ("members", []),
        ("format_version", 99),
        ("operating_points", []),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["predict", "info"])
def test_a_model_card_that_makes_no_sense_is_refused(verb, key, value, trained, dataset, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    change(tmp_path / "model" / "model.json", **{key: value})
    words = {"predict": [f"input={first_case(dataset)[1]}", "output=o"], "info": []}[verb]
    ended = run(verb, "model=model", *words, folder=tmp_path)
    if (verb, key, value) == ("info", "network", {"name": "system", "arguments": {}}):
        assert ended.code == 0, "info builds no network"
        return
    assert_refused(ended, 4, "model.json")
    assert not (tmp_path / "o").exists()


def test_predict_refuses_an_output_that_is_a_file(trained, dataset, tmp_path):
    (tmp_path / "o").write_text("mine")
    ended = run("predict", f"model={trained}", f"input={first_case(dataset)[1]}", "output=o", folder=tmp_path)
    assert_refused(ended, 5, "'o'")
    assert (tmp_path / "o").read_text() == "mine"


def write_masks(folder, *names, shape=(12, 10, 8), affine=AFFINE, first=2):
    folder.mkdir()
    for name in names:
        array = np.zeros(shape, np.uint8)
        array[first : first + 2, 3:5, 1:3] = 1
        write_volume(folder / f"{name}.nii.gz", Volume(array, affine))


def evaluate_refuses(told, *words, folder, code=3):
    """And makes no output folder."""
    ended = run("evaluate", "reference=reference", "prediction=prediction", "output=o", *words, folder=folder)
    assert_refused(ended, code, *told)
    assert not (folder / "o").exists()


def test_evaluate_refuses_files_that_do_not_pair(tmp_path):
    write_masks(tmp_path / "reference", "a", "b")
    write_masks(tmp_path / "prediction", "a")
    evaluate_refuses(["1 of 2 references have no prediction", "b.nii.gz"], folder=tmp_path)


def test_evaluate_refuses_another_grid_and_names_the_case(tmp_path):
    write_masks(tmp_path / "reference", "a")
    write_masks(tmp_path / "prediction", "a", affine=np.diag([0.5, 1.0, 2.0, 1.0]))
    evaluate_refuses(["case 'a'", "spacing (0.5, 1, 3) and (0.5, 1, 2) mm"], folder=tmp_path)


def test_evaluate_refuses_without_files(tmp_path):
    assert_refused(run("evaluate", "output=o", folder=tmp_path), 2, "give reference=FOLDER and prediction=FOLDER")


def test_evaluate_refuses_images_that_are_missing_or_of_no_case_before_it_writes(tmp_path):
    write_masks(tmp_path / "reference", "a")
    write_masks(tmp_path / "prediction", "a")
    write_masks(tmp_path / "images", "z")
    evaluate_refuses(["'nowhere'", "do not exist"], "images=nowhere", folder=tmp_path)
    evaluate_refuses(["'images'", "a.nii.gz"], "images=images", folder=tmp_path)


def test_evaluate_refuses_readers_that_are_no_two_of_the_cases(tmp_path):
    for folder in ("reference", "prediction", "reader"):
        write_masks(tmp_path / folder, "a")
    write_masks(tmp_path / "other", "z")
    evaluate_refuses(["readers", "[DIR1,DIR2]", "'reader'"], "readers=reader", folder=tmp_path, code=2)
    evaluate_refuses(["readers", "[1, 2]"], "readers=[1,2]", folder=tmp_path, code=2)
    evaluate_refuses(["readers", "at least two places, got 1"], "readers=[reader]", folder=tmp_path, code=2)
    evaluate_refuses(["'other' has marks of none"], "readers=[reader,other]", folder=tmp_path)
    evaluate_refuses(["'nowhere' does not exist"], "readers=[reader,nowhere]", folder=tmp_path)
    evaluate_refuses(["nowhere.json"], "readers=nowhere.json", folder=tmp_path)


def test_evaluate_without_reference_refuses_a_case_that_nobody_read_before_it_writes(tmp_path):
    write_masks(tmp_path / "prediction", "a", "b")
    for folder in ("one", "two"):
        write_masks(tmp_path / folder, "a")
    ended = run("evaluate", "prediction=prediction", "output=o", "readers=[one,two]", folder=tmp_path)
    assert_refused(ended, 3, "1 of 2 cases have no reader", "b")
    assert not (tmp_path / "o").exists()


def test_evaluate_refuses_to_write_into_the_folder_of_a_reader(tmp_path):
    for folder in ("reference", "prediction", "one", "two"):
        write_masks(tmp_path / folder, "a")
    words = ["reference=reference", "prediction=prediction", "output=two", "readers=[one,two]"]
    assert_refused(run("evaluate", *words, folder=tmp_path), 2, "'two' is one of the folders")


def test_evaluate_refuses_images_on_another_grid(tmp_path):
    write_masks(tmp_path / "reference", "a")
    write_masks(tmp_path / "prediction", "a", first=7)  # a miss and a false candidate: what pictures are of
    write_masks(tmp_path / "images", "a", shape=(12, 10, 9))
    words = ["reference=reference", "prediction=prediction", "output=o", "images=images"]
    assert_refused(run("evaluate", *words, folder=tmp_path), 3, "case 'a'", "shape (12, 10, 9) and (12, 10, 8) voxels")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("num_cases=2", "num_cases must be at least 3"),
        ("spacing_mm=[1,1]", "spacing_mm must be three"),
        ("prevalence=0.5", "prevalence must"),
        ("seed=-1", "seed must be 0 or more"),
        ("channels=[PET]", "channels must be"),
    ],
)
def test_phantom_refuses_what_cannot_be_drawn(override, told, tmp_path):
    assert_refused(run("phantom", "output=o", override, folder=tmp_path), 2, told)
    assert not (tmp_path / "o").exists()


def test_phantom_refuses_an_output_that_is_a_file(tmp_path):
    (tmp_path / "o").write_text("mine")
    assert_refused(run("phantom", "output=o", "num_cases=3", folder=tmp_path), 5, "'o")
