"""dataset.json in the form of the Decathlon: what it says, and every reason to refuse it."""

from __future__ import annotations

import json

import pytest

from medfocal.data.formats import read_dataset
from medfocal.errors import DatasetError, InputError


def entry(name, patient=None, **more):
    return {"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz", "patient": patient or f"p_{name}", **more}


def content(**more):
    return {
        "name": "Rare",
        "channel_names": {"0": "FLAIR"},
        "labels": {"0": "background", "1": "lesion"},
        "training": [entry("a"), entry("b")],
        "validation": [entry("c")],
        "test": [entry("d")],
        **more,
    }


@pytest.fixture
def dataset(tmp_path):
    """Writes a manifest, and an empty file for every path in it: `dataset(content, missing=[...])`."""

    def write(values, missing=()):
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        for split in ("training", "validation", "test"):
            for given in values.get(split, []):
                item = {"image": given} if isinstance(given, str) else given
                files = item["image"] if isinstance(item["image"], list) else [item["image"]]
                for name in (*files, item.get("label"), *item.get("annotations", [])):
                    if name and name not in missing:
                        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                        (tmp_path / name).write_bytes(b"")
        return path

    return write


def test_cases_channels_and_labels_are_read_in_order(dataset, tmp_path):
    values = content(channel_names={"10": "c", "2": "b", "0": "a"})
    images = ["x_0.nii.gz", "x_1.nii.gz", "x_2.nii.gz"]
    values["training"] = [{"image": images, "label": "x.nii.gz", "annotations": ["r1.nii", "r2.nii"], "case": "x"}]
    values["validation"], values["test"] = [], []
    manifest = read_dataset(dataset(values))
    assert manifest.name == "Rare"
    assert manifest.channels == ("a", "b", "c")  # by number, not by text
    assert manifest.labels == {0: "background", 1: "lesion"}
    (case,) = manifest.split("training")
    assert (case.name, case.patient, case.split) == ("x", "x", "training")
    assert case.images == tuple(tmp_path / name for name in images)
    assert case.label == tmp_path / "x.nii.gz"
    assert case.annotations == (tmp_path / "r1.nii", tmp_path / "r2.nii")


def test_a_case_is_named_for_its_image_unless_it_has_a_name(dataset):
    values = content(training=[entry("sub/a"), entry("b", case=7, patient=12)], validation=[], test=[])
    names = [(case.name, case.patient) for case in read_dataset(dataset(values)).cases]
    assert names == [("a", "p_sub/a"), ("7", "12")]


def test_test_cases_may_do_without_a_label_and_may_be_plain_paths(dataset):
    manifest = read_dataset(dataset(content(test=["d.nii.gz", {"image": "e.nii.gz"}])))
    assert [(case.name, case.label) for case in manifest.split("test")] == [("d", None), ("e", None)]


def test_modality_of_the_decathlon_names_the_channels(dataset):
    values = content(modality={"0": "MRI"})
    del values["channel_names"]
    assert read_dataset(dataset(values)).channels == ("MRI",)


def test_root_says_where_the_paths_start(dataset, tmp_path):
    path = dataset(content())
    elsewhere = tmp_path / "conf" / "dataset.json"
    elsewhere.parent.mkdir()
    path.rename(elsewhere)
    assert len(read_dataset(elsewhere, root=tmp_path).cases) == 4
    with pytest.raises(DatasetError, match=r"8 files named in .* do not exist"):
        read_dataset(elsewhere)


def test_a_patient_in_two_splits_is_refused(dataset):
    values = content(validation=[entry("c", "p_a")], test=[entry("d", "p_b")])
    with pytest.raises(
        DatasetError, match=r"2 patients are in more than one of 'training', 'validation', 'test': p_a, p_b\. Split by"
    ):
        read_dataset(dataset(values))


def test_a_case_without_a_patient_is_its_own_patient_and_can_still_collide(dataset):
    values = content(validation=[{"image": "c.nii.gz", "label": "c_l.nii.gz", "case": "c", "patient": "a"}])
    del values["training"][0]["patient"]
    with pytest.raises(DatasetError, match="1 patient is in more than one of 'training', 'validation': a"):
        read_dataset(dataset(values))


def test_two_cases_of_a_patient_in_one_split_are_welcome(dataset):
    assert len(read_dataset(dataset(content(training=[entry("a", "p"), entry("b", "p")]))).cases) == 4


def test_a_case_listed_twice_is_refused_even_across_splits_and_folders(dataset):
    with pytest.raises(DatasetError, match="lists a more than once"):
        read_dataset(dataset(content(validation=[entry("other/a", "q")])))


def test_missing_files_are_all_named_up_to_ten(dataset):
    with pytest.raises(DatasetError, match=r"1 file named in .* does not exist:\n    case 'b': '.*b_label\.nii\.gz'"):
        read_dataset(dataset(content(), missing=["b_label.nii.gz"]))
    many = content(training=[entry(f"t{n:02d}") for n in range(12)])
    with pytest.raises(DatasetError, match=r"(?s)12 files .*t09_label.*… and 2 more"):
        read_dataset(dataset(many, missing=[f"t{n:02d}_label.nii.gz" for n in range(12)]))
    with pytest.raises(DatasetError, match="r1"):
        read_dataset(dataset(content(test=[entry("z", annotations=["r1.nii"])]), missing=["r1.nii"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": [], "validation": [], "test": []}, "lists no case"),
        ({"training": {"a": 1}}, "'training' must be a list of cases, got dict"),
        ({"training": [5]}, "entry 1 of 'training': an object with 'image' is expected, got 5"),
        ({"training": [{"case": "a"}]}, "an object with 'image' is expected"),
        ({"training": [{"label": "a"}]}, "1 case without an image, of which masks only are known: a"),
        ({"training": [{"image": 3, "label": "a"}]}, "must be paths"),
        ({"training": [{"image": "a", "label": ["a"]}]}, "must be paths"),
        ({"training": [{"image": "a", "label": "a", "annotations": "r.nii"}]}, "must be paths"),
        ({"training": [{"image": "a", "label": "a", "annotations": [None]}]}, "must be paths"),
        ({"training": [{"image": ["a", "b"], "label": "a"}]}, "2 images where the dataset has 1 channels"),
        ({"training": [{"image": [], "label": "a"}]}, "0 images where the dataset has 1 channels"),
        ({"training": [{"image": "a.nii"}]}, "'label' and 'annotations' are missing of 1 case to learn from: a; only"),
        ({"validation": [{"image": "v.nii", "label": None}]}, "are missing of 1 case to learn from: v; only test"),
        (
            {"training": [{"image": "a.nii", "label": "l", "annotations": ["r", "s", "r"]}]},
            "'annotations' names a file twice",
        ),
        (
            {"training": [{"image": "a.nii", "label": "l", "annotation": ["r"]}]},
            r"there is no 'annotation' \(did you mean 'annotations'\?\)",
        ),
        ({"labels": {str(n): "x" for n in range(257)}}, "257 label values.*at most 256"),
        ({"labels": {"0": "background"}}, r"0 \(background\) and at least one more, got \[0\]"),
        ({"labels": {"1": "lesion", "2": "cyst"}}, r"0 \(background\) and at least one more, got \[1, 2\]"),
        ({"labels": {"0": "background", "70000": "lesion"}}, r"label values must be in \[0, 65535\], got 70000"),
        (
            {"labels": {"0": "b", "1": "x", "4": "x"}},
            r"the label values 1, 4 are all named 'x'.*data\.classes=\{x: \[1, 4\]\}",
        ),
        ({"labels": {"background": 0, "lesion": 1}}, "no usable 'labels'"),
        ({"label": {"0": "b", "1": "x"}}, r"there is no 'label' \(did you mean 'labels'\?\)"),
        ({"ignore_value": 1}, "1 is both the ignored value and the value of a class"),
        ({"ignore_value": "9"}, "'ignore_value' must be a label value, got '9'"),
        ({"resample_channels": 1}, "'resample_channels' must be true or false, got 1"),
        ({"regions": {"whole": [1, 2]}}, "'regions' must be names with lists of lesion classes"),
        ({"regions": {"whole": []}}, "'regions' must be names with lists of lesion classes"),
        ({"regions": {"whole": [0, 1]}}, "'regions' must be names with lists of lesion classes"),
        ({"values": {"0": "0", "3": "2"}}, "with 'values' the 'labels' are classes"),
        ({"values": {"0": "0", "3": "x"}}, "with 'values' the 'labels' are classes"),
        ({"values": {"1": "0", "0": "1"}}, "with 'values' the 'labels' are classes"),
        ({"values": {"0": "0", "3": "1"}, "ignore_value": 3}, "3 is both the ignored value and"),
        ({"channel_names": {"0": "T1", "1": "T1"}}, "'channel_names' names two channels 'T1'"),
        ({"labels": {"0": "b", "1": "l", "01": "m"}}, "no usable 'labels'"),
        ({"labels": {"0": "b", "²": "l"}}, "no usable 'labels'"),
        ({"labels": {"0": "b", "9" * 5000: "l"}}, "no usable 'labels'"),
        ({"labels": ["background", "lesion"]}, "no usable 'labels'"),
        ({"channel_names": {}}, "no usable 'channel_names'"),
        ({"channel_names": "FLAIR"}, "no usable 'channel_names'"),
        ({"training": [entry("a", case=None)]}, "'case' must be a name, got None"),
        ({"training": [entry("a", case="")]}, "'case' must be a name, got ''"),
        ({"training": [entry("a", case={"x": 1})]}, "'case' must be a name"),
        ({"training": [entry("a", case=True)]}, "'case' must be a name, got True"),
        ({"training": [{"image": "a.nii", "label": "a", "patient": None}]}, "'patient' must be a name, got None"),
        ({"training": [{"image": "a.nii", "label": "a", "patient": " "}]}, "'patient' must be a name, got ' '"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, change, message):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content(**change)))
    with pytest.raises(DatasetError, match=message):
        read_dataset(path)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", ".hidden", "a\\b", "a\nb", "a\0b", "a\x1b[2J", "a\u202eb", "n" * 300],
)
def test_a_case_name_that_would_be_no_plain_file_name_is_refused(tmp_path, name):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content(training=[entry("a", case=name)])))
    with pytest.raises(DatasetError, match=r"a case name becomes a file name, so .* cannot be one"):
        read_dataset(path)


@pytest.mark.parametrize("name", ["sub-01_ses-2", "Jänner 2", "患者7", "a.b", "-rf", "$(id)", "a;b"])
def test_an_unusual_but_possible_case_name_is_welcome(dataset, name):
    assert read_dataset(dataset(content(test=[entry("d", case=name)]))).split("test")[0].name == name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
    ],
)
def test_what_is_no_json_object_is_an_input_error(tmp_path, data, message):
    (tmp_path / "dataset.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "dataset.json")


def test_a_missing_dataset_is_an_input_error_that_says_what_to_set(tmp_path):
    with pytest.raises(InputError, match=r"does not exist\. Set data\.dataset"):
        read_dataset(tmp_path / "dataset.json")


def test_a_folder_that_holds_a_dataset_file_stands_for_it(dataset, tmp_path):
    assert read_dataset(dataset(content()).parent).path == tmp_path / "dataset.json"


def test_everything_that_is_wrong_is_told_at_once(dataset):
    values = content(
        training=[entry("a"), entry("a"), {"image": 5}, entry("b", label=None)],
        validation=[entry("c", "p_a")],
        labels={"0": "background", "1": "x", "2": "x"},
    )
    path = dataset(values | {"training": [entry("a"), entry("b")]})
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError) as caught:
        read_dataset(path)
    assert "has 5 faults:" in str(caught.value)
    told = [line.strip("- ") for line in str(caught.value).splitlines() if line.startswith("  - ")]
    beginnings = [
        "the label values 1, 2 are all named 'x'",
        "entry 3 of 'training': 'image', 'label' and each",
        "lists a more than once",
        "1 patient is in more than one of 'training', 'validation': p_a",
        "'label' and 'annotations' are missing of 1 case to learn from: b",
    ]
    assert len(told) == len(beginnings)
    assert all(begin in line for begin, line in zip(beginnings, told, strict=True))


def test_values_with_gaps_become_classes_without(dataset):
    values = content(labels={"4": "tumour", "0": "background", "2": "oedema"})
    scheme = read_dataset(dataset(values)).scheme
    assert scheme.names == {0: "background", 1: "oedema", 2: "tumour"}
    assert scheme.values == {0: 0, 2: 1, 4: 2}
    assert read_dataset(dataset(content())).scheme.values is None


def test_regions_an_ignored_value_and_merged_values_are_read(dataset):
    more = {"ignore_value": 255, "values": {"0": "0", "3": "1", "5": "1"}, "regions": {"all": [1]}}
    scheme = read_dataset(dataset(content(**more))).scheme
    assert scheme.values == {0: 0, 3: 1, 5: 1}
    assert scheme.ignore_value == 255
    assert scheme.learnt == {0: "background", 1: "all"}


def test_channels_of_their_own_grids_may_be_stated_in_the_file_or_asked_for(dataset):
    stated = read_dataset(dataset(content(resample_channels=True)))
    asked = read_dataset(dataset(content()), resample_channels=True)
    for manifest, expected in ((stated, True), (asked, True), (read_dataset(dataset(content())), False)):
        assert [case.resample_channels for case in manifest.cases] == [expected] * 4


def test_masks_alone_are_read_where_no_image_is_needed(dataset, tmp_path):
    values = content(training=[{"annotations": ["r1.nii", "r2.nii"]}, {"label": "x_label.nii"}], validation=[], test=[])
    path = dataset(values | {"training": []})
    path.write_text(json.dumps(values))
    for name in ("r1.nii", "r2.nii", "x_label.nii"):
        (tmp_path / name).touch()
    cases = read_dataset(path, need_images=False).cases
    assert [(case.name, case.images) for case in cases] == [("r1", ()), ("x_label", ())]


def test_the_keys_of_the_decathlon_that_are_not_read_are_left_alone(dataset):
    more = {"numTraining": 2, "numTest": 1, "licence": "x", "release": "1", "tensorImageSize": "3D", "reference": "y"}
    assert len(read_dataset(dataset(content(**more))).cases) == 4
    with pytest.raises(DatasetError, match=r"there is no 'trainings' \(did you mean 'training'\?\)"):
        read_dataset(dataset(content(trainings=[])))
