"""Any dataset by one function: telling formats apart, settings that hold for all, and writing what was read."""

import json
import time
from dataclasses import replace

import pytest

from medfocal.data.formats import DatasetFormat, find_format, read_dataset, write_manifest
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.errors import DatasetError, InputError

TWO = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"0": "background", "1": "cyst", "2": "tumour"},
    "training": [{"case": "p1_a", "image": ["a0.nii", "a1.nii"], "label": "a.nii"}],
    "test": [{"case": "p2_b", "patient": "p2", "image": ["b0.nii", "b1.nii"], "annotations": ["br.nii", "bs.nii"]}],
}
FILES = ("a0.nii", "a1.nii", "a.nii", "b0.nii", "b1.nii", "br.nii", "bs.nii")


@pytest.fixture
def dataset(touch):
    folder = touch(*FILES)
    (folder / "dataset.json").write_text(json.dumps(TWO))
    return folder


def test_each_format_can_be_asked_for_by_name(dataset):
    with pytest.raises(ValueError, match="'nifti' is not a valid DatasetFormat"):
        read_dataset(dataset, format="nifti")
    assert read_dataset(dataset, format="decathlon").cases == read_dataset(dataset).cases
    with pytest.raises(DatasetError, match="'0' must have a label value or a list of them"):
        read_dataset(dataset, format="nnunet")
    with pytest.raises(InputError, match="is not a folder, which a dataset of format bids is"):
        read_dataset(dataset / "dataset.json", format=DatasetFormat.BIDS)
    with pytest.raises(InputError, match=r"the table '.*' cannot be read"):
        read_dataset(dataset, format="table")


def test_what_is_no_dataset_is_an_input_error(dataset):
    with pytest.raises(InputError, match=r"is neither a \.json nor a \.csv file nor a folder"):
        find_format(dataset / "a.nii")
    with pytest.raises(InputError, match=r"the dataset '.*gone' does not exist\. Set data\.dataset"):
        find_format(dataset / "gone")


def test_channels_can_be_chosen_and_put_in_order(dataset):
    manifest = read_dataset(dataset, channels=["FLAIR"])
    assert manifest.channels == ("FLAIR",)
    assert [[file.name for file in case.images] for case in manifest.cases] == [["a1.nii"], ["b1.nii"]]
    assert [file.name for file in read_dataset(dataset, channels=["FLAIR", "T1"]).cases[0].images] == [
        "a1.nii",
        "a0.nii",
    ]
    with pytest.raises(DatasetError, match="there is no channel T2; there are T1, FLAIR"):
        read_dataset(dataset, channels=["T2"])


def test_classes_take_the_place_of_what_the_dataset_says_even_where_that_is_wrong(dataset):
    classes = {"lesion": [1, 2]}
    assert read_dataset(dataset, classes=classes).scheme.values == {0: 0, 1: 1, 2: 1}
    (dataset / "dataset.json").write_text(json.dumps(TWO | {"labels": {"0": "b", "1": "x", "2": "x"}}))
    assert read_dataset(dataset, classes=classes).labels == {0: "background", 1: "lesion"}


def test_an_ignored_value_is_added_and_may_not_be_a_class(dataset):
    assert read_dataset(dataset, ignore_value=255).scheme.ignore_value == 255
    with pytest.raises(DatasetError, match="2 is both the ignored value and the value of a class"):
        read_dataset(dataset, ignore_value=2)


def test_patients_come_from_the_dataset_then_from_the_pattern_then_from_the_case(dataset):
    assert [case.patient for case in read_dataset(dataset).cases] == ["p1_a", "p2"]
    found = read_dataset(dataset, patient_pattern="^(p[0-9])")
    assert [case.patient for case in found.cases] == ["p1", "p2"]
    with pytest.raises(DatasetError, match=r"data\.patient_pattern '\^\(q\)' finds no patient in p1_a$"):
        read_dataset(dataset, patient_pattern="^(q)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, "channels must be different names, and one at least"),
        ({"channels": ["T1", "T1"]}, "channels must be different names"),
        ({"patient_pattern": "^p"}, "patient_pattern must have one group"),
        ({"patient_pattern": "^(p)(q)"}, "patient_pattern must have one group"),
        ({"patient_pattern": "^(p"}, "patient_pattern is no regular expression: missing \\)"),
        ({"classes": {"lesion": 0}}, "label value 0 belongs to more than one"),
        ({"ignore_value": 0}, "ignore_value must be 1 or more, got 0"),
        ({"classes": {"lesion": 3}, "ignore_value": 3}, "3 is both the ignored value"),
    ],
)
def test_settings_that_make_no_sense_are_refused(dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        read_dataset(dataset, **settings)


def test_settings_that_have_no_effect_are_refused(dataset):
    with pytest.raises(
        DatasetError, match=r"data\.labels has no effect on a dataset of format decathlon; leave it out"
    ):
        read_dataset(dataset, labels="mask")
    with pytest.raises(DatasetError, match=r"data\.root has no effect on a dataset of format folders"):
        read_dataset(dataset, format="folders", root=dataset)


def test_what_was_understood_is_said_in_one_line(dataset):
    assert (
        read_dataset(dataset).understood_as
        == "decathlon: 2 cases, channels T1, FLAIR, 2 readers; classes cyst=1, tumour=2"
    )
    classes = {"whole": [1, 2], "core": 2}
    said = read_dataset(dataset, classes=classes, ignore_value=9).understood_as
    assert said.endswith("; regions whole=1+2, core=2, ignored 9")


SCHEMES = {
    "one lesion": LabelScheme({0: "background", 1: "lesion"}),
    "other names": LabelScheme({0: "background", 1: "tumour"}),
    "gaps": LabelScheme({0: "background", 1: "oedema", 2: "tumour"}, values={0: 0, 2: 1, 4: 2}),
    "another order": LabelScheme({0: "background", 1: "tumour", 2: "oedema"}, values={0: 0, 4: 1, 2: 2}),
    "merged": LabelScheme({0: "background", 1: "tumour"}, values={0: 0, 7: 0, 1: 1, 4: 1}),
    "ignored": LabelScheme({0: "background", 1: "lesion"}, ignore_value=255),
    "regions": LabelScheme({0: "background", 1: "value 1", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}),
    "regions with gaps": LabelScheme(
        {0: "background", 1: "value 3", 2: "core"}, {0: 0, 3: 1, 5: 2}, {"whole": (1, 2), "core": (2,)}, 9
    ),
}


def a_manifest(folder, scheme=SCHEMES["one lesion"], **more):
    first = Case("a", "p1", "training", (folder / "a0.nii", folder / "a1.nii"), folder / "a.nii")
    second = Case(
        "b", "p2", "test", (folder / "b0.nii", folder / "b1.nii"), None, (folder / "br.nii", folder / "bs.nii")
    )
    return Manifest(folder, "x", ("T1", "FLAIR"), scheme, tuple(replace(case, **more) for case in (first, second)))


def what_counts(manifest):
    return manifest.channels, manifest.scheme, manifest.cases


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("name", ["d.json", "d.csv", "deep/er/d.json", "deep/d.csv"])
@pytest.mark.parametrize("resample_channels", [False, True])
def test_what_is_written_is_read_back_equal(touch, scheme, name, resample_channels):
    folder = touch(*FILES)
    manifest = a_manifest(folder, scheme, resample_channels=resample_channels)
    settings = write_manifest(manifest, folder / name)
    again = read_dataset(folder / name, **settings)
    assert what_counts(again) == what_counts(manifest)
    assert again.cases[0].resample_channels == resample_channels
    if name.endswith(".json"):
        assert settings == {}
        assert again.name == "x"


@pytest.mark.parametrize("name", ["d.json", "d.csv"])
def test_paths_are_written_relative_and_survive_a_move_of_the_folder(touch, name):
    folder = touch(*(f"old/{file}" for file in FILES))
    write_manifest(a_manifest(folder / "old"), folder / "old" / name)
    (folder / "old").rename(folder / "new")
    assert str(folder) not in (folder / "new" / name).read_text()
    assert what_counts(read_dataset(folder / "new" / name)) == what_counts(a_manifest(folder / "new"))


def test_masks_only_and_a_single_channel_are_read_back_equal(touch):
    folder = touch(*FILES)
    for images, channels in (((), ()), ((folder / "a0.nii",), ("image",)), ((folder / "a0.nii",), ("PET (SUV)",))):
        case = Case("a", "a", "training", images, None, (folder / "br.nii", folder / "bs.nii"))
        manifest = Manifest(folder, "x", channels, SCHEMES["one lesion"], (case,))
        for name in ("d.json", "d.csv"):
            write_manifest(manifest, folder / name)
            assert what_counts(read_dataset(folder / name, need_images=False)) == what_counts(manifest)


def test_files_reached_through_a_link_are_the_same_after_reading_back(touch):
    folder = touch(*(f"real/{file}" for file in FILES))
    (folder / "link").symlink_to(folder / "real")
    for name in ("d.json", "deep/d.csv"):
        write_manifest(a_manifest(folder / "link"), folder / name)
        for case, expected in zip(read_dataset(folder / name).cases, a_manifest(folder / "link").cases, strict=True):
            assert all(file.samefile(other) for file, other in zip(case.files, expected.files, strict=True))


def test_a_file_written_into_a_linked_folder_leads_to_the_same_files(touch):
    folder = touch(*FILES, "deep/er/x")
    (folder / "link").symlink_to(folder / "deep/er")
    for name in ("link/d.json", "link/d.csv"):
        write_manifest(a_manifest(folder), folder / name)
        assert read_dataset(folder / name).cases[0].images[0].samefile(folder / "a0.nii")


def test_classes_that_regions_consist_of_are_written_with_their_values(touch):
    folder = touch(*FILES)
    write_manifest(a_manifest(folder, SCHEMES["regions with gaps"]), folder / "d.json")
    content = json.loads((folder / "d.json").read_text())
    assert content["labels"] == {"0": "background", "1": "value 3", "2": "core"}
    assert content["values"] == {"0": "0", "3": "1", "5": "2"}
    assert content["regions"] == {"whole": [1, 2], "core": [2]}


def test_what_a_form_cannot_hold_is_refused(touch):
    folder = touch(*FILES, "r;1.nii")
    with pytest.raises(ValueError, match=r"a manifest is written as \.json or \.csv, got '.*\.yaml'"):
        write_manifest(a_manifest(folder), folder / "d.yaml")
    with pytest.raises(DatasetError, match="case 'a': ';' stands between annotations"):
        write_manifest(a_manifest(folder, annotations=(folder / "r;1.nii",)), folder / "d.csv")
    mixed = a_manifest(folder)
    mixed = replace(mixed, cases=(mixed.cases[0], replace(mixed.cases[1], resample_channels=True)))
    with pytest.raises(DatasetError, match="resample_channels holds for all cases of a dataset file or for none"):
        write_manifest(mixed, folder / "d.json")


def test_five_thousand_cases_are_read_in_a_second(touch):
    folder = touch("i/readme", "l/readme")
    for number in range(5000):
        (folder / f"i/c{number}_T1.nii").touch()
        (folder / f"l/c{number}.nii").touch()
    manifest = read_dataset(folder / "i", labels=str(folder / "l"))
    for name in ("d.json", "d.csv"):
        write_manifest(manifest, folder / name)
        seconds = []
        for _ in range(3):  # of the processor, and the least, since other work may be going on
            start = time.process_time()
            assert len(read_dataset(folder / name).cases) == 5000
            seconds.append(time.process_time() - start)
        assert min(seconds) < 1
