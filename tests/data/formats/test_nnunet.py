"""nnU-Net's raw data: what its folders and its dataset.json say together."""

import json

import pytest

from medfocal.data.formats import find_format, read_dataset
from medfocal.errors import DatasetError

TWO = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}


@pytest.fixture
def raw(touch):
    """Makes a raw dataset: `raw(files, changes of the dataset.json)`."""

    def make(names, **changes):
        folder = touch(*names)
        content = {key: value for key, value in (TWO | changes).items() if value is not None}
        (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make


TRAINING = [
    *(f"imagesTr/{case}_{channel}.nii.gz" for case in ("b_1", "a") for channel in ("0001", "0000")),
    *("labelsTr/a.nii.gz", "labelsTr/b_1.nii.gz"),
]


def test_cases_are_found_with_channels_in_order_and_each_is_a_patient(raw):
    folder = raw([*TRAINING, "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz"])
    manifest = read_dataset(folder)
    assert find_format(folder) == "nnunet"
    assert manifest.path == folder / "dataset.json"
    assert manifest.channels == ("T1", "FLAIR")
    assert [(c.name, c.patient, c.split) for c in manifest.cases] == [
        ("a", "a", "training"), ("b_1", "b_1", "training"), ("c", "c", "test"),
    ]  # fmt: skip
    assert manifest.cases[1].images == tuple(folder / f"imagesTr/b_1_000{n}.nii.gz" for n in (0, 1))
    assert [case.label for case in manifest.cases] == [*(folder / f"labelsTr/{c}.nii.gz" for c in ("a", "b_1")), None]


def test_the_dataset_json_alone_stands_for_the_folder(raw):
    folder = raw(TRAINING)
    assert read_dataset(folder / "dataset.json").cases == read_dataset(folder).cases


def test_test_cases_may_have_labels(raw):
    test = ["imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz", "labelsTs/c.nii.gz"]
    folder = raw([*TRAINING, *test])
    assert read_dataset(folder).split("test")[0].label == folder / "labelsTs/c.nii.gz"


def test_a_pattern_finds_patients_that_nnunet_does_not_know(raw):
    manifest = read_dataset(raw(TRAINING), patient_pattern="^([a-z])")
    assert [case.patient for case in manifest.cases] == ["a", "b"]


def test_labels_are_named_the_other_way_round(raw):
    labels = {"background": 0, "oedema": 2, "tumour": "1", "ignore": 3}
    scheme = read_dataset(raw(TRAINING, labels=labels)).scheme
    assert scheme.ignore_value == 3
    assert {value: scheme.names[number] for value, number in scheme.values.items()} == {
        0: "background", 2: "oedema", 1: "tumour",
    }  # fmt: skip
    assert scheme.regions == {}


def test_lists_of_values_are_regions(raw):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    scheme = read_dataset(raw(TRAINING, labels=labels, regions_class_order=[1, 2])).scheme
    assert scheme.regions == {"whole": (1, 2), "core": (2,)}
    assert scheme.names == {0: "background", 1: "value 1", 2: "core"}
    assert scheme.ignore_value == 3
    apart = read_dataset(raw(TRAINING, labels={"background": 0, "tumour": [1, 2], "cyst": 3})).scheme
    assert apart.regions == {"tumour": (1, 2), "cyst": (3,)}


def test_a_list_for_the_background_makes_no_regions(raw):
    assert read_dataset(raw(TRAINING, labels={"background": [0], "lesion": 1})).scheme.regions == {}


def test_only_files_of_the_ending_count(raw):
    folder = raw([*TRAINING, "imagesTr/a_0000.nrrd", "imagesTr/notes.txt", "labelsTr/a.nrrd"])
    assert read_dataset(folder).cases[0].images[0].name == "a_0000.nii.gz"
    assert read_dataset(folder).cases[0].label.name == "a.nii.gz"


def test_cases_may_be_listed_with_files_elsewhere(raw):
    listed = {"x": {"images": ["../one.nrrd", "two.nrrd"], "label": "deep/../three.nrrd"}}
    folder = raw(["sub/two.nrrd", "one.nrrd", "sub/three.nrrd", "sub/deep/z"], dataset=listed, file_ending=".nrrd")
    (folder / "dataset.json").rename(folder / "sub/dataset.json")
    (case,) = read_dataset(folder / "sub").cases
    assert (case.name, case.split) == ("x", "training")
    assert case.images == (folder / "one.nrrd", folder / "sub/two.nrrd")
    assert case.label == folder / "sub/three.nrrd"


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ([*TRAINING, "labelsTr/z.nii.gz"], {}, "labels without images in imagesTr: z"),
        (TRAINING[:-1], {}, "'label' and 'annotations' are missing of 1 case to learn from: b_1"),
        (TRAINING[:4], {}, r"there is no label that ends with '\.nii\.gz' in 'labelsTr'"),
        (TRAINING[1:], {}, "case 'b_1' has the channels 0000 where the dataset has 2"),
        ([*TRAINING, "imagesTr/a_0002.nii.gz"], {}, "case 'a' has the channels 0000, 0001, 0002 where"),
        ([*TRAINING, "imagesTr/c.nii.gz"], {}, r"named <case>_0000\.nii\.gz; not so in imagesTr: c\.nii\.gz"),
        ([], {}, "lists no case"),
        (TRAINING, {"file_ending": None}, "'file_ending' must be an ending such as"),
        (TRAINING, {"file_ending": "nii"}, "'file_ending' must be an ending such as"),
        (TRAINING, {"channel_names": None}, "no usable 'channel_names'"),
        (TRAINING, {"channel_names": {"1": "T1", "2": "T2"}}, r"channels must be numbered 0, 1, 2, …, got \[1, 2\]"),
        (TRAINING, {"labels": ["background"]}, "'labels': an object such as"),
        (TRAINING, {"labels": {"background": 0, "lesion": "x"}}, "'lesion' must have a label value or a list of them"),
        (TRAINING, {"labels": {"background": 0, "lesion": []}}, "'lesion' must have a label value or a list of them"),
        (TRAINING, {"labels": {"background": 0, "a": 1, "b": 1}}, "label value 1 belongs to more than one of"),
        (TRAINING, {"labels": {"background": 0, "a": 1, "ignore": 1}}, "1 is both the ignored value and"),
        (TRAINING, {"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "'ignore' must have one value"),
        ([], {"dataset": ["x"]}, "'dataset' must be an object of cases, got list"),
        ([], {"dataset": {"x": {"images": ["a.nii.gz"]}}}, "case 'x': an object with a list 'images' and a 'label'"),
        ([], {"dataset": {"x": {"images": "a", "label": "b"}}}, "case 'x': an object with a list 'images' and"),
        ([], {"dataset": {"x": {"images": ["a"], "label": "b"}}}, "case 'x': 1 images where the dataset has 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(raw, names, changes, message):
    with pytest.raises(DatasetError, match=message):
        read_dataset(raw(names, **changes), format="nnunet")


def test_images_without_a_dataset_json_are_refused_with_what_to_do(touch):
    with pytest.raises(DatasetError, match=r"has no dataset\.json.*data\.dataset=.*imagesTr data\.labels=.*labelsTr"):
        read_dataset(touch(*TRAINING))


def test_folders_of_nnunet_can_be_read_without_a_dataset_json_as_two_folders(touch):
    folder = touch(*TRAINING)
    manifest = read_dataset(folder / "imagesTr", labels=str(folder / "labelsTr"))
    assert manifest.channels == ("0000", "0001")
    assert [case.name for case in manifest.cases] == ["a", "b_1"]
