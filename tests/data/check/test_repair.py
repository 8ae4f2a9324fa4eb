"""A repaired copy is a whole dataset: what can be told for sure is mended, the rest is left, and both are listed."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from made_datasets import AFFINE, SHAPE, TWO, annotate, checked, image_of, kinds, label_of, make_dataset, write

from medfocal.data.check import SEVERITIES, Severity, check_dataset
from medfocal.data.check.findings import Kind
from medfocal.data.check.repair import CHANGES, WHY_NOT, print_repairs, repair_dataset
from medfocal.data.formats import read_dataset
from medfocal.errors import DatasetError, InputError
from medfocal.volume import read_volume


def repaired(dataset, folder, **settings):
    report = checked(dataset)
    return report, repair_dataset(report, folder, **settings)


def shifted(mm):
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


@pytest.mark.parametrize(
    "spoilt",
    [
        label_of(TWO).astype(np.float64) * 0.99999997,
        label_of(TWO).astype(np.float64),
        label_of(TWO) * 255,
        label_of(TWO).astype(np.float32) * 255,
    ],
    ids=["0.99999997", "float64", "255", "255 as float"],
)
def test_a_label_becomes_small_whole_numbers(spoilt, tmp_path):
    dataset = make_dataset(tmp_path / "in")
    write(tmp_path / "in" / "a_label.nii.gz", spoilt)
    _, repairs = repaired(dataset, tmp_path / "out")
    found = read_volume(tmp_path / "out" / "labels" / "a.nii.gz").array
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, label_of(TWO))
    assert kinds(checked(repairs.dataset)) == ["label_empty"]


@pytest.mark.parametrize("value", [2, 300])
@pytest.mark.parametrize("file", ["label", "reader1"])
def test_255_becomes_the_value_that_the_copy_names(file, value, tmp_path, capsys):
    dataset = make_dataset(tmp_path / "in", {"a": ("training", TWO)})
    annotate(dataset, {"a": [TWO]})
    content = json.loads(dataset.read_text())
    content["labels"] = {"0": "background", str(value): "lesion"}
    dataset.write_text(json.dumps(content))
    for name in ("label", "reader1"):
        write(tmp_path / "in" / f"a_{name}.nii.gz", label_of(TWO, dtype=np.uint16) * value)
    write(tmp_path / "in" / f"a_{file}.nii.gz", label_of(TWO) * 255)
    report, repairs = repaired(dataset, tmp_path / "out")
    assert kinds(report) == ["label_0_255"]
    report.raise_for_errors(repairs.repaired)
    assert kinds(checked(repairs.dataset)) == []
    case = read_dataset(repairs.dataset).cases[0]
    for path in (case.label, *case.annotations):
        np.testing.assert_array_equal(read_volume(path).array, label_of(TWO, dtype=np.uint16) * value)
    print_repairs(repairs)
    assert f"255 became {value}\n" in capsys.readouterr().out


def test_a_grid_off_by_rounding_becomes_that_of_the_image(tmp_path):
    dataset = make_dataset(tmp_path / "in")
    write(tmp_path / "in" / "a_label.nii.gz", label_of(TWO), shifted(0.004))
    _, repairs = repaired(dataset, tmp_path / "out")
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "labels" / "a.nii.gz").affine, AFFINE)
    assert [finding.kind for finding in repairs.repaired] == [Kind.GRIDS_ROUNDED]


def test_nan_outside_the_body_becomes_0_and_other_voxels_stay(tmp_path):
    dataset = make_dataset(tmp_path / "in")
    image = image_of(0)
    image[0] = np.nan
    write(tmp_path / "in" / "a_MR.nii.gz", image)
    repaired(dataset, tmp_path / "out")
    found = read_volume(tmp_path / "out" / "images" / "a_0000.nii.gz").array
    np.testing.assert_array_equal(found, np.nan_to_num(image, nan=0))


@pytest.mark.parametrize("only", ["qform", "sform"])
def test_one_form_is_stated_twice_with_its_code(only, tmp_path):
    dataset = make_dataset(tmp_path / "in")
    image = nibabel.Nifti1Image(label_of(TWO), None)
    image.set_qform(AFFINE, code=3 * (only == "qform"))
    image.set_sform(AFFINE, code=3 * (only == "sform"))
    if only == "sform":
        image.header["qoffset_x"] += 9  # what a form without a code says means nothing
    nibabel.save(image, tmp_path / "in" / "a_label.nii.gz")
    repaired(dataset, tmp_path / "out")
    header = nibabel.load(tmp_path / "out" / "labels" / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (3, 3)
    np.testing.assert_allclose(header.get_sform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3])
def test_a_file_of_other_than_so_many_channels_is_not_split(length, tmp_path):
    dataset = make_dataset(tmp_path / "in", {"a": ("training", TWO)}, channels=("T1", "T2"))
    stacked = np.stack([image_of(n) for n in range(length)], axis=-1)
    path = tmp_path / "in" / "some.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stacked, AFFINE), path)
    manifest = read_dataset(dataset)
    manifest = replace(manifest, cases=(replace(manifest.cases[0], images=(path,)),))
    repairs = repair_dataset(check_dataset(manifest), tmp_path / "out")
    assert len(next(file for file in repairs.files if file.source == str(path)).target) == 1
    assert [str(finding.kind) for finding, _ in repairs.left] == ["wrong_axes"] * (length == 3)


def test_channels_in_one_file_are_split_where_the_dataset_has_so_many(tmp_path):
    dataset = make_dataset(tmp_path / "in", {"a": ("training", TWO)}, channels=("T1", "T2"))
    channels = [image_of(1), image_of(2)]
    nibabel.save(nibabel.Nifti1Image(np.stack(channels, axis=-1), AFFINE), tmp_path / "in" / "both.nii.gz")
    manifest = read_dataset(dataset)
    case = replace(manifest.cases[0], images=(tmp_path / "in" / "both.nii.gz",))
    report = check_dataset(replace(manifest, cases=(case,)))
    assert [str(finding.kind) for finding in report.of(Severity.ERROR)] == ["wrong_axes"]
    repairs = repair_dataset(report, tmp_path / "out")
    report.raise_for_errors(repairs.repaired)
    copy = read_dataset(repairs.dataset).cases[0]
    for path, channel in zip(copy.images, channels, strict=True):
        np.testing.assert_array_equal(read_volume(path).array, channel)


def test_a_fourth_axis_of_one_is_left_out(tmp_path):
    dataset = make_dataset(tmp_path / "in")
    image = nibabel.Nifti1Image(image_of(3)[..., None], AFFINE)
    image.set_qform(AFFINE, code=2)
    nibabel.save(image, tmp_path / "in" / "a_MR.nii.gz")
    repaired(dataset, tmp_path / "out")
    assert nibabel.load(tmp_path / "out" / "images" / "a_0000.nii.gz").shape == SHAPE


def test_what_cannot_be_told_is_left_as_it_is_and_listed_with_the_reason(tmp_path, capsys):
    cases = {name: ("training", TWO if name == "a" else []) for name in "abcd"}
    dataset = make_dataset(tmp_path / "in", cases)
    folder = tmp_path / "in"
    content = bytearray((folder / "a_MR.nii.gz").read_bytes())
    content[-6] ^= 255
    (folder / "a_MR.nii.gz").write_bytes(content)
    (folder / "b_MR.nii.gz").write_bytes((folder / "b_MR.nii.gz").read_bytes()[:300])
    write(folder / "c_label.nii.gz", label_of(TWO[:3]), shifted(5.0))
    report, repairs = repaired(dataset, tmp_path / "out")
    assert [(f.case, str(f.kind)) for f, _ in repairs.left] == [
        ("a", "bad_checksum"), ("b", "truncated"), ("c", "grids_differ"),
    ]  # fmt: skip
    for name in ("a_MR", "b_MR"):
        copy = tmp_path / "out" / "images" / f"{name[0]}_0000.nii.gz"
        assert copy.read_bytes() == (folder / f"{name}.nii.gz").read_bytes()
    assert (tmp_path / "out" / "labels" / "c.nii.gz").read_bytes() == (folder / "c_label.nii.gz").read_bytes()
    with pytest.raises(DatasetError, match="3 errors"):
        report.raise_for_errors(repairs.repaired)
    print_repairs(repairs)
    out = capsys.readouterr().out
    assert "not repaired: case 'a'" in out
    assert "some of its bytes have changed, and nobody knows which" in out
    assert "0 files written anew, 8 copied as they are" in out
    written = json.loads((tmp_path / "out" / "repairs.json").read_text())
    assert [entry["kind"] for entry in written["not_repaired"]] == ["bad_checksum", "truncated", "grids_differ"]
    assert all(entry["why"] for entry in written["not_repaired"])


def test_the_copy_has_the_cases_patients_splits_and_readers_of_the_original(tmp_path):
    cases = {"a b ä": ("training", TWO), "b": ("validation", []), "c": ("test", None)}
    dataset = make_dataset(tmp_path / "in", cases, channels=("T1", "T2"))
    annotate(dataset, {"a b ä": [TWO, TWO[:3]]})
    content = json.loads(dataset.read_text())
    content["training"][0]["patient"] = "p9"
    dataset.write_text(json.dumps(content))
    report, repairs = repaired(dataset, tmp_path / "out", workers=2)
    copy = read_dataset(repairs.dataset)
    assert (copy.channels, copy.scheme) == (report.manifest.channels, report.manifest.scheme)
    for case, original in zip(copy.cases, report.manifest.cases, strict=True):
        assert (case.name, case.patient, case.split) == (original.name, original.patient, original.split)
        for mine, theirs in zip(case.files, original.files, strict=True):
            assert (tmp_path / "out") in mine.parents
            assert mine.read_bytes() == theirs.read_bytes()
            assert mine.stat().st_ino != theirs.stat().st_ino  # a copy, so that editing it leaves the original


def test_other_formats_become_nifti(tmp_path):
    import SimpleITK

    dataset = make_dataset(tmp_path / "in")
    volume = read_volume(tmp_path / "in" / "a_MR.nii.gz")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "in" / "a_MR.nii.gz")), str(tmp_path / "in" / "a_MR.nrrd"))
    dataset.write_text(dataset.read_text().replace("a_MR.nii.gz", "a_MR.nrrd"))
    _, repairs = repaired(dataset, tmp_path / "out")
    copy = read_volume(read_dataset(repairs.dataset).cases[0].images[0])
    np.testing.assert_array_equal(copy.array, volume.array)
    np.testing.assert_allclose(copy.affine, volume.affine, atol=1e-5)
    assert [file.repairs for file in repairs.files if file.repairs] == [("written as .nii.gz",)]


def test_a_file_with_several_faults_is_mended_of_all(tmp_path):
    dataset = make_dataset(tmp_path / "in")
    path = write(tmp_path / "in" / "a_label.nii.gz", label_of(TWO).astype(np.float32) * 255, shifted(0.02))
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    header["qform_code"] = 0
    path.write_bytes(gzip.compress(header.binaryblock + bytes(content[348:])))
    report, repairs = repaired(dataset, tmp_path / "out")
    assert kinds(report, "a") == ["one_form", "grids_rounded", "label_stored_as_float", "label_0_255"]
    assert kinds(checked(repairs.dataset), "a") == []


def test_a_second_repair_finds_nothing_to_do(tmp_path):
    dataset = make_dataset(tmp_path / "in")
    write(tmp_path / "in" / "a_label.nii.gz", label_of(TWO) * 255, shifted(0.004))
    _, first = repaired(dataset, tmp_path / "out")
    _, second = repaired(first.dataset, tmp_path / "again")
    assert not [file for file in second.files if file.repairs]


@pytest.mark.parametrize("place", ["in", "."])
def test_the_dataset_is_never_written_over(place, tmp_path):
    dataset = make_dataset(tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    with pytest.raises(InputError, match="which holds files of the dataset, such as"):
        repaired(dataset, tmp_path / place)
    assert {path: path.read_bytes() for path in Path(tmp_path / "in").iterdir()} == before


def test_what_is_repaired_and_what_never_is_are_told_apart():
    assert not set(CHANGES) & set(WHY_NOT)
    assert set(CHANGES) | set(WHY_NOT) >= {kind for kind in Kind if SEVERITIES[kind] is not Severity.NOTE}
    never = {Kind.BAD_CHECKSUM, Kind.TRUNCATED, Kind.GRIDS_DIFFER, Kind.LABEL_MIRRORED}
    assert never <= set(WHY_NOT)
