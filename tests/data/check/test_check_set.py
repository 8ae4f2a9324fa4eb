"""What only the set shows: copies, odd cases among many, splits without lesions; what is said of it."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_datasets import AFFINE, SHAPE, TWO, annotate, checked, image_of, kinds, label_of, make_dataset, write

from medfocal.data.check import Kind, check_dataset, print_dataset_report, write_dataset_report
from medfocal.data.check.visits import NUM_PATCHES, expected_visits
from medfocal.errors import DatasetError
from medfocal.volume import read_volume

OTHER = [(2, 7, 2), (3, 7, 2), (4, 7, 2)]


def refill(path, array, affine=AFFINE):
    """The same voxels packed in another way, under another header."""
    write(path, array, affine)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))


def copy_image(folder, source, target):
    affine = AFFINE.copy()
    affine[1, 3] += 30
    refill(folder / f"{target}_MR.nii.gz", read_volume(folder / f"{source}_MR.nii.gz").array, affine)
    if (folder / f"{target}_label.nii.gz").exists():
        refill(folder / f"{target}_label.nii.gz", read_volume(folder / f"{target}_label.nii.gz").array, affine)


@pytest.mark.parametrize(
    ("split", "kind"), [("training", "duplicate_image"), ("validation", "duplicate_across_splits")]
)
def test_a_copy_is_found_though_it_is_packed_and_placed_otherwise(split, kind, tmp_path):
    dataset = make_dataset(tmp_path, {"a": ("training", TWO), "b": ("training", OTHER), "c": (split, TWO[:3])})
    assert kind not in kinds(checked(dataset))
    copy_image(tmp_path, "a", "c")
    found = [finding for finding in checked(dataset).findings if "duplicate" in finding.kind]
    assert [(str(f.kind), f.values["cases"], f.values["patients"]) for f in found] == [(kind, ["a", "c"], ["a", "c"])]


def test_images_that_differ_in_one_voxel_off_the_sample_are_no_copies(tmp_path):
    shape = (64, 60, 40)  # far more voxels than are sampled
    dataset = make_dataset(tmp_path, {"a": ("training", []), "b": ("training", [])})
    image = image_of(0, shape)
    other = image.copy()
    other[1, 0, 0] += 1
    for name, array in (("a", image), ("b", other)):
        write(tmp_path / f"{name}_MR.nii.gz", array)
        write(tmp_path / f"{name}_label.nii.gz", np.zeros(shape, np.uint8))
    report = checked(dataset)
    assert report.cases[0].files[0].fingerprint == report.cases[1].files[0].fingerprint
    assert Kind.DUPLICATE_IMAGE not in [finding.kind for finding in report.findings]


def test_one_label_for_two_images_is_found_and_empty_labels_are_not(tmp_path):
    cases = {"a": ("training", TWO), "b": ("training", TWO), "c": ("training", []), "d": ("training", [])}
    report = checked(make_dataset(tmp_path, cases))
    assert [f.values["cases"] for f in report.findings if f.kind is Kind.DUPLICATE_LABEL] == [["a", "b"]]


def test_mixed_orders_of_axes_and_spacings_are_notes(tmp_path):
    dataset = make_dataset(tmp_path)
    flipped = AFFINE @ np.diag([-1, 2.0, 1, 1])
    write(tmp_path / "b_MR.nii.gz", image_of(5), flipped)
    write(tmp_path / "b_label.nii.gz", label_of([]), flipped)
    findings = checked(dataset).findings
    found = {f.kind: f.values for f in findings}
    assert ["transforms.spacing_mm" in f.advice for f in findings if f.kind is Kind.MIXED_SPACING] == [True]
    assert found[Kind.MIXED_ORIENTATION] == {"orientations": {"LAS": 1, "RAS": 1}}
    assert found[Kind.MIXED_SPACING]["lowest_mm"] == pytest.approx([0.5, 1, 3])
    assert found[Kind.MIXED_SPACING]["highest_mm"] == pytest.approx([0.5, 2, 3])


def test_spacings_are_compared_along_the_body_and_not_by_array_axis(tmp_path):
    dataset = make_dataset(tmp_path)
    turned = AFFINE[:, [2, 0, 1, 3]]
    write(tmp_path / "b_MR.nii.gz", image_of(5, (8, 12, 10)), turned)
    write(tmp_path / "b_label.nii.gz", label_of([], (8, 12, 10)), turned)
    assert kinds(checked(dataset)) == ["mixed_orientation", "label_empty"]


@pytest.mark.parametrize(
    ("change", "odd"),
    [(lambda x: 10 * x, True), (lambda x: x + 20, True), (lambda x: 2.5 * x, False), (lambda x: x / 10, True)],
)
def test_a_case_of_another_scale_or_level_stands_out_of_eight(change, odd, tmp_path):
    cases = {f"c{n}": ("training", TWO[:3] if n == 0 else []) for n in range(8)}
    dataset = make_dataset(tmp_path, cases)
    write(tmp_path / "c3_MR.nii.gz", change(image_of(7)).astype(np.float32))
    found = [finding.case for finding in checked(dataset).findings if finding.kind is Kind.UNUSUAL_INTENSITY]
    assert found == ["c3"] * odd


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [([], ["split_without_lesion"]), ([(2, 2, 2), (9, 8, 6)], ["few_lesions"]), (None, [])],
)
def test_a_split_without_or_with_few_lesions_is_a_warning(voxels, expected, tmp_path):
    dataset = make_dataset(tmp_path, {"a": ("training", TWO), "v": ("test", voxels)})
    assert [kind for kind in kinds(checked(dataset)) if "split" in kind or "few" in kind] == expected


def test_no_lesion_in_the_whole_training_set_is_an_error(tmp_path):
    report = checked(make_dataset(tmp_path, {"a": ("training", []), "b": ("training", [])}))
    with pytest.raises(DatasetError, match=r"1 error:\n  - no lesion in the whole training set: all 2 labels are empt"):
        report.raise_for_errors()


def test_an_unreadable_label_is_not_said_to_be_a_set_without_lesions(tmp_path):
    dataset = make_dataset(tmp_path)
    (tmp_path / "a_label.nii.gz").write_bytes(b"nothing")
    assert "no_lesion_to_learn" not in kinds(checked(dataset))


def test_expected_visits_by_voxel_and_by_lesion(tmp_path):
    """Case a: lesions of 5 and 1 voxels; case b: one of 4. By voxels 1/2 of the draws go to each case."""
    five, one, four = [(n, 2, 2) for n in range(5)], [(9, 8, 6)], [(n, 5, 3) for n in range(4)]
    cases = {"a": ("training", five + one), "b": ("training", four), "c": ("training", []), "d": ("test", TWO)}
    visits = expected_visits(checked(make_dataset(tmp_path, cases)).cases)
    assert (visits.by_voxel / NUM_PATCHES).tolist() == pytest.approx([5 / 12, 1 / 12, 1 / 2])
    assert visits.by_lesion == pytest.approx(NUM_PATCHES / 3)
    assert visits.volumes_mm3.tolist() == pytest.approx([7.5, 1.5, 6.0])
    row = visits.rows()[0]
    assert (len(visits.rows()), row.low_mm3, row.high_mm3, row.num_lesions) == (1, 0, 10, 3)
    assert [row.by_voxel_lowest, row.by_voxel_median, row.by_voxel_highest] == pytest.approx(
        [NUM_PATCHES * share for share in (1 / 12, 5 / 12, 1 / 2)]
    )


def test_there_are_no_visits_without_lesions(tmp_path):
    assert checked(make_dataset(tmp_path, {"a": ("training", [])})).visits is None


def test_cases_are_counted_printed_and_written(tmp_path, capsys):
    cases = {"a": ("training", TWO), "b": ("training", []), "c": ("validation", TWO[:1]), "d": ("test", None)}
    report = checked(make_dataset(tmp_path, cases))
    assert [(case.case, case.split, case.num_lesions) for case in report.cases] == [
        ("a", "training", 2), ("b", "training", 0), ("c", "validation", 1), ("d", "test", None),
    ]  # fmt: skip
    assert report.cases[0].lesion_share == pytest.approx(6 / 960)
    assert report.cases[0].largest_lesion in [(3.0, 2.0, 2.0), (9.0, 7.0, 6.0)]
    file = report.cases[0].files[0]
    assert (file.role, file.shape, file.axis_codes, file.dtype) == ("image MR", SHAPE, "LAS", "float32")
    assert file.spacing_mm == pytest.approx((0.5, 1, 3))
    assert file.percentiles["p50"] == pytest.approx(0.5, abs=0.05)
    print_dataset_report(report)
    out = capsys.readouterr().out
    assert "training: 2 cases, 2 lesions, 1 case without, lesion share of the others 6.3e-03 to 6.3e-03" in out
    assert "warning: the validation split has 1 lesion in 1 case" in out
    assert "notes: label_empty 1, specks 1" in out
    assert "no error in 4 cases" in out
    written = json.loads(write_dataset_report(report, tmp_path / "out" / "report.json").read_text())
    assert written["num_findings"] == {"error": 0, "warning": 1, "note": 2}
    assert [case["findings"] for case in written["cases"]] == [[], ["label_empty"], ["specks"], []]
    assert written["cases"][0]["lesion_voxels"] == [3, 3]
    assert written["splits"][0]["num_lesion_free"] == 1
    assert written["visits"]["rows"][0]["num_lesions"] == 2


def test_all_errors_are_told_at_once_with_what_to_do(tmp_path):
    dataset = make_dataset(tmp_path, {"a": ("training", TWO), "c": ("validation", TWO[:3])})
    (tmp_path / "a_MR.nii.gz").write_bytes(b"nothing")
    write(tmp_path / "c_label.nii.gz", label_of([], (12, 10, 7)))
    with pytest.raises(
        DatasetError, match=r"(?s)has 2 errors:.*case 'a': image MR.*fetch it.*case 'c': label and image grids"
    ):
        checked(dataset).raise_for_errors()


def test_many_findings_of_one_kind_are_cut_short_on_the_terminal(tmp_path, capsys):
    dataset = make_dataset(tmp_path, {f"c{n:02d}": ("test", None) for n in range(12)})
    for n in range(12):
        write(tmp_path / f"c{n:02d}_MR.nii.gz", image_of(n), np.diag([0.5, 1, 30, 1]))
    print_dataset_report(checked(dataset))
    out = capsys.readouterr().out
    assert out.count("warning: case") == 10
    assert "warning: odd_spacing: and 2 more" in out


def test_processes_find_what_one_process_finds(tmp_path):
    dataset = make_dataset(tmp_path)
    annotate(dataset, {"a": [TWO, OTHER]})
    assert checked(dataset, workers=2).findings == checked(dataset).findings


def test_agreement_of_readers_is_printed_by_split_and_pair(tmp_path, capsys):
    """In 'a' the readers share 1 of 2 + 3 voxels and the second has a lesion more; in 'b' both marked nothing."""
    cases = {"a": ("training", TWO), "b": ("training", []), "c": ("validation", TWO[:1]), "d": ("test", TWO[:1])}
    dataset = make_dataset(tmp_path, cases)
    annotate(dataset, {
        "a": [[(2, 2, 2), (2, 3, 2)], [(2, 2, 2), (9, 8, 6), (9, 8, 5)], [(2, 2, 2)]],
        "b": [[], []],
        "c": [[], []],
        "d": [[(5, 5, 5)]],
    })  # fmt: skip
    report = checked(dataset)
    print_dataset_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("; ") for line in lines if ": readers " in line and "warning" not in line] == [
        [
            "training: readers 1 and 2: mean voxel Dice 0.400 over 1 of 2 cases",
            "0 of 1 lesions of reader 1 and 1 of 2 of reader 2 missed by the other",
        ],
        [
            "training: readers 1 and 3: mean voxel Dice 0.667 over 1 of 1 case",
            "0 of 1 lesions of reader 1 and 0 of 1 of reader 3 missed by the other",
        ],
        [
            "training: readers 2 and 3: mean voxel Dice 0.500 over 1 of 1 case",
            "1 of 2 lesions of reader 2 and 0 of 1 of reader 3 missed by the other",
        ],
        [
            "validation: readers 1 and 2: voxel Dice undefined, neither marked a lesion in 1 case",
            "0 of 0 lesions of reader 1 and 0 of 0 of reader 2 missed by the other",
        ],
    ]
    assert [case.num_reader_lesions for case in report.cases] == [(1, 2, 1), (0, 0), (0, 0), (1,)]
    written = json.loads(write_dataset_report(report, tmp_path / "report.json").read_text())
    assert [len(case["agreement"]) for case in written["cases"]] == [3, 1, 1, 0]
    assert written["cases"][1]["agreement"][0]["voxel_dice"] is None


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([(9, 8, 6)], ["readers_disjoint"]),
        ([(2, 2, 2), *[(n, 7, 3) for n in range(8)]], ["readers_disagree"]),  # Dice 2 / 10
        ([(2, 2, 2), (2, 3, 2)], []),
        ([], []),
    ],
)
def test_readers_who_disagree_strongly_are_a_warning(second, expected, tmp_path):
    dataset = make_dataset(tmp_path)
    annotate(dataset, {"a": [[(2, 2, 2)], second]})
    report = checked(dataset)
    assert kinds(report, "a") == expected
    report.raise_for_errors()


def test_a_fault_of_an_annotation_is_a_fault_of_its_case(tmp_path):
    dataset = make_dataset(tmp_path, {"a": ("training", TWO), "b": ("training", []), "c": ("training", [])})
    annotate(dataset, {"a": [TWO, TWO], "b": [[], []], "c": [[], []]})
    write(tmp_path / "a_reader2.nii.gz", label_of(TWO) * 4)
    write(tmp_path / "b_reader1.nii.gz", label_of([], (12, 10, 7)))
    shares = np.full(SHAPE, 0.5, np.float32)
    shares[0] = 1.5
    write(tmp_path / "c_reader1.nii.gz", shares)
    report = checked(dataset)
    assert {case: kinds(report, case) for case in "abc"} == {
        "a": ["label_unnamed"],
        "b": ["label_empty", "grids_differ"],
        "c": ["label_empty", "unusable_annotation"],
    }


def test_shares_of_a_reader_count_as_marks_from_one_half_on(tmp_path):
    dataset = make_dataset(tmp_path)
    annotate(dataset, {"a": [[(2, 2, 2)], []]})
    shares = np.zeros(SHAPE, np.float32)
    shares[2, 2, 2], shares[9, 8, 6] = 0.5, 0.4
    write(tmp_path / "a_reader2.nii.gz", shares)
    report = checked(dataset).cases[0]
    assert report.num_reader_lesions == (1, 1)
    assert report.agreement[0].voxel_dice == 1


def readers_only(folder, marks, split="training", labelled=()):
    """A dataset of cases that readers marked, of which those of `labelled` have an empty label too."""
    cases = {case: (split, [] if case in labelled else None) for case in (*marks, *labelled)}
    dataset = make_dataset(folder, cases)
    annotate(dataset, marks)
    return dataset


@pytest.mark.parametrize(
    ("marks", "number"),
    [
        ([TWO, TWO, []], 2),
        ([TWO[:3], TWO, []], 1),
        ([TWO, TWO[:3], TWO[3:]], 2),
        ([TWO, []], 0),  # of two readers both are needed
        ([TWO[:3], TWO[3:]], 0),
    ],
)
def test_lesions_of_a_case_without_label_are_those_of_the_majority(marks, number, tmp_path):
    report = checked(readers_only(tmp_path, {"v": marks}, "validation"))
    assert report.cases[0].num_majority_lesions == number
    found = {finding.kind: finding for finding in report.findings}
    if number == 0:
        words = "no lesion in the validation split: no label and no majority of readers marks any"
        assert found[Kind.SPLIT_WITHOUT_LESION].message == words
    else:
        assert found[Kind.FEW_LESIONS].values["num_lesions"] == number


def test_a_label_counts_before_the_majority_of_readers(tmp_path):
    report = checked(readers_only(tmp_path, {"v": [TWO, TWO, TWO]}, "validation", labelled=("v",)))
    assert (report.cases[0].num_lesions, report.cases[0].num_majority_lesions) == (0, None)
    found = [f.message for f in report.findings if f.kind is Kind.SPLIT_WITHOUT_LESION]
    assert found == ["no lesion in the validation split: all 1 labels are empty"]


@pytest.mark.parametrize(
    ("readers", "labelled", "spoilt", "expected"),
    [
        ("ab", "", "", "training: 2 cases, marked by readers only"),
        (
            "ab",
            "c",
            "",
            "training: 3 cases, 1 with a usable label, 2 marked by readers only, 0 lesions, 1 case without",
        ),
        ("a", "c", "c_label", "training: 2 cases, none with a usable label, 1 marked by readers only"),
        ("a", "", "a_reader1", "training: 1 case, none with a usable label"),
        ("a", "a", "a_label", "training: 1 case, none with a usable label"),
    ],
)
def test_cases_that_only_readers_marked_are_said_to_be(readers, labelled, spoilt, expected, tmp_path):
    dataset = readers_only(tmp_path, {case: [TWO, TWO] for case in readers}, labelled=tuple(labelled))
    if spoilt:
        (tmp_path / f"{spoilt}.nii.gz").write_bytes(b"nothing")
    assert checked(dataset).split_rows()[0].words == expected


@pytest.mark.parametrize("lesions", [[], [(2, 2, 2)]])
def test_without_labels_a_training_set_has_the_lesions_of_its_readers(lesions, tmp_path):
    report = checked(readers_only(tmp_path, {"a": [lesions, []], "b": [[], []]}))
    assert [case.num_lesions for case in report.cases] == [None, None]
    found = [f.message for f in report.findings if f.kind is Kind.NO_LESION_TO_LEARN]
    assert found == ([] if lesions else ["no lesion in the whole training set: all 2 labels or annotations are empty"])


def test_masks_of_readers_without_any_image_are_compared(tmp_path):
    dataset = make_dataset(tmp_path)
    annotate(dataset, {"a": [[(2, 2, 2)], [(2, 2, 2), (2, 3, 2)]]})
    case = replace(checked(dataset).manifest.cases[0], images=(), label=None)
    report = check_dataset(replace(checked(dataset).manifest, cases=(case,), channels=()))
    assert report.cases[0].agreement[0].voxel_dice == pytest.approx(2 / 3)
    assert report.cases[0].largest_lesion == (2.0, 2.0, 2.0)
    assert [file.role for file in report.cases[0].files] == ["reader 1", "reader 2"]


def test_the_original_is_not_touched(tmp_path):
    dataset = make_dataset(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    checked(dataset)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(tmp_path).iterdir()} == before
