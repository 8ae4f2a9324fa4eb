"""BIDS: subjects, sessions and runs become cases, suffixes channels, and masks in derivatives labels."""

import pytest

from medfocal.data.formats import find_format, read_dataset
from medfocal.errors import DatasetError, InputError


def lesion(name, pipeline="lesions", sub="sub-01/anat"):
    return f"derivatives/{pipeline}/{sub}/{name}_label-lesion_mask.nii.gz"


ONE = ["sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_T1w.nii", lesion("sub-01")]


def test_a_case_is_a_subject_a_session_and_a_run_and_the_patient_is_the_subject(touch):
    folder = touch(
        *ONE,
        *(f"sub-02/ses-a/anat/sub-02_ses-a_run-{run}_{suffix}.nii.gz" for run in (1, 2) for suffix in ("T1w", "FLAIR")),
        *(lesion(f"sub-02_ses-a_run-{run}", sub="sub-02/ses-a/anat") for run in (1, 2)),
        "sub-01/anat/sub-01_FLAIR.json", "dataset_description.json", "sub-01/func/sub-01_bold.nii.gz",
    )  # fmt: skip
    manifest = read_dataset(folder)
    assert find_format(folder) == "bids"
    assert manifest.channels == ("FLAIR", "T1w")
    assert [(c.name, c.patient, c.split) for c in manifest.cases] == [
        ("sub-01", "sub-01", "training"),
        ("sub-02_ses-a_run-1", "sub-02", "training"),
        ("sub-02_ses-a_run-2", "sub-02", "training"),
    ]
    assert manifest.cases[0].images == (folder / ONE[0], folder / ONE[1])
    assert manifest.cases[0].label == folder / ONE[2]
    assert manifest.cases[2].label.name == "sub-02_ses-a_run-2_label-lesion_mask.nii.gz"


def test_a_mask_that_names_no_run_is_of_the_only_one(touch):
    folder = touch("sub-1/anat/sub-1_run-1_T1w.nii", lesion("sub-1", sub="sub-1/anat"))
    assert read_dataset(folder).cases[0].name == "sub-1_run-1"


@pytest.mark.parametrize(
    "mask",
    [
        "derivatives/x/sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
        "derivatives/sub-01/anat/sub-01_label-lesion_roi.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_space-FLAIR_desc-T1lesion_dseg.nii",
        "derivatives/x/sub-01/anat/sub-01_label-L_desc-Tumor_mask.nii.gz",
    ],
)
def test_lesion_masks_are_known_by_label_or_desc_and_suffix(touch, mask):
    folder = touch(*ONE[:2], mask, "derivatives/x/sub-01/anat/sub-01_label-brain_mask.nii.gz")
    assert read_dataset(folder).cases[0].label == folder / mask


def test_a_word_in_its_path_chooses_among_several_masks(touch):
    names = [lesion("sub-01", pipeline) for pipeline in ("auto", "manual")]
    folder = touch(*ONE[:2], *names)
    with pytest.raises(DatasetError, match=r"case 'sub-01' has derivatives/auto/.*, derivatives/manual/.*needs one"):
        read_dataset(folder)
    assert read_dataset(folder, labels="manual").cases[0].label == folder / names[1]
    other = touch("derivatives/labels/sub-01/anat/sub-01_T2w_lesion-hand.nii.gz")
    assert read_dataset(other, labels="lesion-hand").cases[0].label.name == "sub-01_T2w_lesion-hand.nii.gz"


def test_what_else_a_name_says_tells_channels_of_one_suffix_apart(touch):
    extra = "sub-01/anat/sub-01_acq-fast_T1w.nii.gz"
    folder = touch(*ONE, extra)
    assert read_dataset(folder).channels == ("FLAIR", "T1w", "acq-fast_T1w")
    assert read_dataset(folder, channels=["acq-fast_T1w", "FLAIR"]).cases[0].images[0] == folder / extra
    assert read_dataset(folder, channels=["T1w"]).cases[0].images == (folder / ONE[1],)


def test_a_suffix_is_enough_where_one_image_has_it(touch):
    folder = touch("sub-1/anat/sub-1_acq-fast_T1w.nii", lesion("sub-1", sub="sub-1/anat"), *ONE)
    manifest = read_dataset(folder, channels=["T1w"])
    assert [case.images[0].name for case in manifest.cases] == ["sub-01_T1w.nii", "sub-1_acq-fast_T1w.nii"]
    more = touch("sub-1/anat/sub-1_acq-slow_T1w.nii")
    with pytest.raises(DatasetError, match="case 'sub-1' has more than one T1w, but acq-fast_T1w, acq-slow_T1w"):
        read_dataset(more, channels=["T1w"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sub-01/anat/sub-01_T1w.json", "derivatives/x"], "holds no image in sub-"),
        (ONE[:2], "no file in derivatives/.* is named like"),
        ([*ONE, "sub-02/anat/sub-02_FLAIR.nii.gz"], r"case 'sub-02' has no T1w, but FLAIR\. Choose channels that all"),
        ([*ONE, "sub-02/anat/sub-02_FLAIR.nii.gz"], "case 'sub-02' has no label; it needs one"),
        (
            [*ONE, lesion("sub-03", sub="sub-03/anat")],
            "labels without an image: derivatives/lesions/sub-03/anat/sub-03",
        ),
        ([*ONE, "sub-01/anat/sub-01_FLAIR.nii"], "differ in their ending only"),
    ],
)
def test_what_is_missing_or_ambiguous_is_refused(touch, names, message):
    with pytest.raises(InputError, match=message):
        read_dataset(touch(*names), format="bids")


def test_patients_of_bids_are_never_taken_from_elsewhere(touch):
    with pytest.raises(DatasetError, match=r"data\.patient_pattern has no effect"):
        read_dataset(touch(*ONE), patient_pattern="(0)")


def test_a_folder_that_is_bids_and_has_a_dataset_file_too_is_refused(touch):
    folder = touch(*ONE)
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"could be of format decathlon or bids; choose one by data\.format"):
        read_dataset(folder)
    assert len(read_dataset(folder, format="bids").cases) == 1


@pytest.mark.parametrize("name", ["label-nonlesion", "desc-lesionfilled", "desc-nonlesions"])
def test_a_mask_of_what_is_no_lesion_is_no_label(touch, name):
    folder = touch(*ONE, f"derivatives/x/sub-01/anat/sub-01_{name}_mask.nii.gz")
    manifest = read_dataset(folder)
    assert manifest.cases[0].label.name == "sub-01_label-lesion_mask.nii.gz"
