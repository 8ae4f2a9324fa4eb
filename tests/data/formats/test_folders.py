"""Images and labels told apart by folders and names; what has two meanings is refused."""

from pathlib import Path

import pytest

from medfocal.data.formats import find_format, read_dataset
from medfocal.errors import DatasetError, InputError

SHARED = Path(__file__).resolve().parents[4] / "shared/data"


def described(manifest):
    """Channels; and each case's name, files of its images, of its label and of its readers."""
    return manifest.channels, [
        (case.name, [file.name for file in case.images], case.label and case.label.name,
         [file.name for file in case.annotations])
        for case in manifest.cases
    ]  # fmt: skip


def test_images_and_labels_in_one_folder_are_told_apart_by_how_their_names_end(touch):
    folder = touch("p19_FLAIR.nii.gz", "p19_mask.nii.gz", "p2_FLAIR.nii.gz", "p2_mask.nii.gz", "readme.txt", ".p3.nii")
    manifest = read_dataset(folder)
    assert find_format(folder) == "folders"
    assert described(manifest) == (
        ("FLAIR",),
        [("p19", ["p19_FLAIR.nii.gz"], "p19_mask.nii.gz", []), ("p2", ["p2_FLAIR.nii.gz"], "p2_mask.nii.gz", [])],
    )
    assert manifest.understood_as == "folders: 2 cases, channel FLAIR, labels *_mask; class lesion=1"
    assert all(case.split == "training" and case.patient == case.name for case in manifest.cases)
    assert manifest.cases[0].images[0].is_absolute()


def test_what_all_names_have_at_their_end_belongs_to_the_channel(touch):
    manifest = read_dataset(touch(*(f"STS_00{n}_PET_{what}.nii.gz" for n in (1, 2) for what in ("image", "mask"))))
    assert described(manifest)[0] == ("PET_image",)
    assert [case.name for case in manifest.cases] == ["STS_001", "STS_002"]
    assert "labels *_PET_mask" in manifest.understood_as


def test_a_number_that_all_names_have_at_their_end_stays_with_the_case(touch):
    manifest = read_dataset(touch(*(f"{p}_ses1_{what}.nii" for p in ("a", "b") for what in ("T1", "seg"))))
    assert [case.name for case in manifest.cases] == ["a_ses1", "b_ses1"]
    assert manifest.channels == ("T1",)


def test_one_case_alone_is_named_by_what_image_and_label_share(touch):
    manifest = read_dataset(touch("brain1_image.nrrd", "brain1_label.nrrd"))
    assert described(manifest) == (("image",), [("brain1", ["brain1_image.nrrd"], "brain1_label.nrrd", [])])


def test_labels_of_one_channel_belong_to_all_channels_of_the_case(touch):
    names = [f"{case}_{what}.nii" for case in ("c1", "c2") for what in ("FLAIR", "T1", "FLAIR_lesion")]
    assert described(read_dataset(touch(*names))) == (
        ("FLAIR", "T1"),
        [(c, [f"{c}_FLAIR.nii", f"{c}_T1.nii"], f"{c}_FLAIR_lesion.nii", []) for c in ("c1", "c2")],
    )


def test_an_image_belongs_to_the_case_of_the_longest_name_it_begins_with(touch):
    names = ["a_T1.nii", "a_mask.nii", "a_b_T1.nii", "a_b_mask.nii", "a_bc_T1.nii", "a_bc_mask.nii"]
    found = {case.name: case.images[0].name for case in read_dataset(touch(*names)).cases}
    assert found == {"a": "a_T1.nii", "a_b": "a_b_T1.nii", "a_bc": "a_bc_T1.nii"}


def test_images_and_labels_lie_in_two_folders_with_the_same_names(touch):
    folder = touch("images/a b.nii.gz", "images/ü.nii.gz", "labels/a b.nii.gz", "labels/ü.nii.gz")
    for labels in (str(folder / "labels"), "../labels"):
        manifest = read_dataset(folder / "images", labels=labels)
        assert described(manifest) == (
            ("image",), [("a b", ["a b.nii.gz"], "a b.nii.gz", []), ("ü", ["ü.nii.gz"], "ü.nii.gz", [])],
        )  # fmt: skip
        assert manifest.cases[0].label.samefile(folder / "labels/a b.nii.gz")


def test_two_folders_may_have_names_that_end_differently(touch):
    folder = touch("i/c1_0000.nii", "i/c1_0001.nii", "l/c1_seg.nii")
    assert described(read_dataset(folder / "i", labels=str(folder / "l"))) == (
        ("0000", "0001"), [("c1", ["c1_0000.nii", "c1_0001.nii"], "c1_seg.nii", [])],
    )  # fmt: skip


def test_a_label_of_an_images_whole_name_is_its_label_however_it_ends(touch):
    folder = touch("i/s_r1.nii", "i/s_mask.nii", "l/s_r1.nii", "l/s_mask.nii")
    assert described(read_dataset(folder / "i", labels=str(folder / "l"))) == (
        ("image",), [("s_mask", ["s_mask.nii"], "s_mask.nii", []), ("s_r1", ["s_r1.nii"], "s_r1.nii", [])],
    )  # fmt: skip


def test_readers_may_lie_in_a_folder_of_labels(touch):
    folder = touch("i/s.nii", "l/s_r1.nii", "l/s_r2.nii")
    manifest = read_dataset(folder / "i", labels=str(folder / "l"))
    assert described(manifest) == (("image",), [("s", ["s.nii"], None, ["s_r1.nii", "s_r2.nii"])])
    assert ", 2 readers;" in manifest.understood_as


def test_a_folder_for_each_case_may_hold_files_of_the_same_names(touch):
    folder = touch("p1/FLAIR.nii", "p1/mask.nii", "p2/FLAIR.nii", "p2/mask.nii")
    assert described(read_dataset(folder)) == (
        ("FLAIR",), [("p1", ["FLAIR.nii"], "mask.nii", []), ("p2", ["FLAIR.nii"], "mask.nii", [])],
    )  # fmt: skip
    brats = touch(*(f"b/B_{n}/B_{n}_{what}.nii.gz" for n in ("01", "02") for what in ("t1", "flair", "seg")))
    manifest = read_dataset(brats / "b")
    assert manifest.channels == ("flair", "t1")
    assert [case.name for case in manifest.cases] == ["B_01", "B_02"]


def test_numbers_of_readers_make_annotations_in_their_order(touch):
    folder = touch("n1_r10.nii", "n1_r2.nii", "n1_mask.nii", "n1_CT.nii", "n2_r2.nii", "n2_r10.nii", "n2_CT.nii")
    assert described(read_dataset(folder)) == (
        ("CT",),
        [("n1", ["n1_CT.nii"], "n1_mask.nii", ["n1_r2.nii", "n1_r10.nii"]),
         ("n2", ["n2_CT.nii"], None, ["n2_r2.nii", "n2_r10.nii"])],
    )  # fmt: skip
    assert "2 readers" in read_dataset(folder).understood_as


@pytest.mark.parametrize("reader", ["r1", "R1", "rater1", "reader-1", "mask_r1", "Seg_rater1"])
def test_readers_are_known_by_these_endings(touch, reader):
    (case,) = read_dataset(touch("n1_CT.nii", f"n1_{reader}.nii")).cases
    assert (case.name, case.label, len(case.annotations)) == ("n1", None, 1)


def test_masks_without_images_are_read_where_none_are_needed(touch):
    folder = touch("L-1_n0_r1.nii", "L-1_n0_r2.nii", "L-1_n2_r1.nii", "L-1_n2_r2.nii", "index.json")
    manifest = read_dataset(folder, need_images=False, patient_pattern=r"^(L-\d+)")
    assert [(c.name, c.patient, c.images, len(c.annotations)) for c in manifest.cases] == [
        ("L-1_n0", "L-1", (), 2), ("L-1_n2", "L-1", (), 2),
    ]  # fmt: skip
    assert manifest.channels == ()
    assert "no images, masks only" in manifest.understood_as
    with pytest.raises(DatasetError, match="2 cases without an image, of which masks only are known: L-1_n0, L-1_n2"):
        read_dataset(folder)


def test_channels_can_be_chosen_and_put_in_order(touch):
    folder = touch("a_T1.nii", "a_T2.nii", "a_brain_mask.nii", "a_lesion_mask.nii", "b_T1.nii", "b_lesion_mask.nii")
    with pytest.raises(DatasetError, match=r"(?s)no label begins like.*labels are of|named like a label too"):
        read_dataset(folder, labels="lesion_mask")
    manifest = read_dataset(folder, labels="lesion_mask", channels=["T1"])
    assert described(manifest) == (
        ("T1",), [("a", ["a_T1.nii"], "a_lesion_mask.nii", []), ("b", ["b_T1.nii"], "b_lesion_mask.nii", [])],
    )  # fmt: skip


@pytest.mark.parametrize("labels", ["roi2", "_roi2", "*_roi2"])
def test_the_ending_of_labels_can_be_said(touch, labels):
    manifest = read_dataset(touch("a_T1.nii", "a_roi2.nii"), labels=labels)
    assert described(manifest) == (("T1",), [("a", ["a_T1.nii"], "a_roi2.nii", [])])


def test_a_link_that_leads_nowhere_is_missed(touch):
    folder = touch("a_mask.nii")
    (folder / "a_T1.nii").symlink_to(folder / "elsewhere/gone.nii")
    with pytest.raises(DatasetError, match=r"1 file named in it does not exist:\n    case 'a': '.*a_T1\.nii'"):
        read_dataset(folder)
    touch("elsewhere/gone.nii")
    assert read_dataset(folder).cases[0].images == (folder / "a_T1.nii",)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ([], {}, "holds no image, and no folders with images"),
        (["images/a.nii", "labels/a.nii"], {}, r"in folders of their own: images, labels\. Give both, such as data"),
        (["a_T1.nii", "b_T1.nii"], {}, r"no label was recognised among a_T1, b_T1\. Say where they are"),
        (["a_T1.nii", "b_T1.nii"], {"labels": "mask"}, r"no name ends in '_mask', so no label was recognised"),
        (["a_T1.nii", "a_mask.nii"], {"labels": "gone/labels"}, r"the folder 'gone/labels' does not exist"),
        (["a_T1.nii", "a_mask.nii", "b_T1.nii"], {}, "no label begins like this image: b_T1; labels are of a$"),
        (["a_T1.nii", "a_mask.nii", "b_mask.nii"], {}, "case 'b' has no image T1. Choose channels that all"),
        (["a_T1.nii", "a_T2.nii", "a_mask.nii", "b_T1.nii", "b_mask.nii"], {}, "case 'b' has no image T2; it has T1"),
        (["a_T1.nii", "a_mask.nii"], {"channels": ["T2"]}, "case 'a' has no image T2"),
        (["a_T1.nii", "a_mask.nii", "a_seg.nii"], {}, r"case 'a' has more than one label: a_mask\.nii, a_seg\.nii"),
        (["a_T1.nii", "a_r1.nii", "a_rater1.nii"], {}, r"case 'a' has more than one label: a_r1\.nii, a_rater1\.nii"),
        (
            ["a_T1.nii", "a_T1.nrrd", "a_mask.nii"],
            {},
            r"'a_T1\.nii' and 'a_T1\.nrrd' in .* differ in their ending only",
        ),
        (["a_brain_mask.nii", "a_lesion.nii"], {"labels": "lesion"}, "a_brain_mask is named like a label too"),
    ],
)
def test_what_is_missing_or_has_two_meanings_is_refused(touch, names, settings, message):
    with pytest.raises(InputError, match=message):
        read_dataset(touch(*names), format="folders", **settings)


def test_an_empty_folder_of_labels_is_refused(touch):
    folder = touch("i/a.nii", "l/readme")
    with pytest.raises(DatasetError, match=r"the folder of labels .* holds no image"):
        read_dataset(folder / "i", labels=str(folder / "l"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="real data are not beside the repository")
@pytest.mark.parametrize(
    ("name", "channels", "num_cases", "num_patients"),
    [
        ("ms_flair", ("FLAIR",), 2, 2),
        ("sts_pet", ("PET_image",), 34, 34),
        ("mr_nrrd", ("image",), 1, 1),
        ("nodule_raters", (), 20, 16),
        ("ms_masks", (), 13, 13),
    ],
)
def test_real_folders_are_understood(name, channels, num_cases, num_patients):
    pattern = "^(LIDC-IDRI-[0-9]+)" if name == "nodule_raters" else None
    manifest = read_dataset(SHARED / name, need_images=bool(channels), patient_pattern=pattern)
    assert manifest.channels == channels
    assert len(manifest.cases) == num_cases
    assert len({case.patient for case in manifest.cases}) == num_patients
    assert {len(case.annotations) for case in manifest.cases} == ({4} if name == "nodule_raters" else {0})
