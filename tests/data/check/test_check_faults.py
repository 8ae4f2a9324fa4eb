"""Every fault of a file is found under its name, and a sound file is left in peace."""

from __future__ import annotations

import contextlib
import gzip
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from made_datasets import AFFINE, SHAPE, TWO, checked, image_of, kinds, label_of, make_dataset, write

from medfocal.data.cases import read_case
from medfocal.data.check import SEVERITIES, CheckLimits, Kind, Severity, check_dataset
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.errors import GeometryError

AWKWARD = Path(__file__).resolve().parents[4] / "shared" / "data" / "awkward"


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_after_unpacking(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))


def bad_checksum(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 255
    path.write_bytes(content)


def not_gzip(path):
    path.write_bytes(gzip.decompress(path.read_bytes()))


def edited(path, edit):
    """Change the header of a gzip NIfTI file as raw bytes."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    edit(header)
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


def header(**fields):
    def edit(header):
        for name, value in fields.items():
            header[name] = value

    return lambda path: edited(path, edit)


def moved(mm):
    def shift(path):
        affine = AFFINE.copy()
        affine[0, 3] += mm
        write(path, label_of(TWO), affine)

    return shift


def zero_spacing(path):
    edited(path, lambda header: header["pixdim"].__setitem__(slice(1, 4), (0.5, 0, 3)))


def qform_elsewhere(path):
    def edit(header):
        header["qoffset_x"] += 7

    edited(path, edit)


def holding(array, affine=AFFINE):
    return lambda path: write(path, array, affine)


def four_axes(path, length=2):
    image = nibabel.Nifti1Image(np.stack([image_of(n) for n in range(length)], axis=-1), AFFINE)
    image.set_qform(AFFINE, code=2)
    nibabel.save(image, path)


def with_value(value, voxel=(5, 5, 4)):
    array = image_of(0)
    array[voxel] = value
    return array


IMAGE_FAULTS = {
    "cut in half": (truncated, "truncated"),
    "cut before it was packed": (cut_after_unpacking, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "a byte of the checksum": (bad_checksum, "bad_checksum"),
    "plain NIfTI named .gz": (not_gzip, "not_gzip"),
    "text in gzip": (lambda path: path.write_bytes(gzip.compress(b"no image" * 200)), "unreadable"),
    "gone": (Path.unlink, "missing"),
    "two volumes": (four_axes, "wrong_axes"),
    "pixdim 0": (zero_spacing, "impossible_spacing"),
    "in metres": (header(xyzt_units=1), "impossible_spacing"),
    "both codes 0": (header(sform_code=0, qform_code=0), "no_form_code"),
    "only a qform": (header(sform_code=0), "one_form"),
    "qform 7 mm away": (qform_elsewhere, "forms_disagree"),
    "a fourth axis of 1": (lambda path: four_axes(path, 1), "fourth_axis"),
    "30 mm slices": (holding(image_of(0), np.diag([0.5, 1, 30, 1])), "odd_spacing"),
    "NaN inside": (holding(with_value(np.nan)), "not_finite_inside"),
    "infinite inside": (holding(with_value(np.inf)), "not_finite_inside"),
    "NaN at the border": (holding(with_value(np.nan, (0, 5, 4))), "not_finite_outside"),
    "all one value": (holding(np.full(SHAPE, 3.0, np.float32)), "constant_image"),
    "all NaN": (holding(np.full(SHAPE, np.nan, np.float32)), "constant_image"),
    "a value far out": (holding(with_value(1e4)), "extreme_values"),
    "the limit of int16": (holding((3000 * with_value(32767 / 3000)).round().astype(np.int16)), "extreme_values"),
}  # fmt: skip
LABEL_FAULTS = {
    "5 mm away": (moved(5.0), "grids_differ"),
    "a little more than rounding": (moved(0.06), "grids_differ"),
    "0.004 mm away": (moved(0.004), "grids_rounded"),
    "a slice short": (holding(label_of(TWO, (12, 10, 7))), "grids_differ"),
    "0.99999997": (holding(label_of(TWO).astype(np.float64) * 0.99999997), "label_rounded"),
    "whole numbers as floats": (holding(label_of(TWO).astype(np.float64)), "label_stored_as_float"),
    "a half": (holding(label_of(TWO).astype(np.float32) / 2), "label_not_whole"),
    "NaN": (holding(np.where(label_of(TWO) > 0, np.nan, 0).astype(np.float32)), "label_not_whole"),
    "0 and 255": (holding(label_of(TWO) * 255), "label_0_255"),
    "0, 1 and 255": (holding(label_of(TWO) + 254 * label_of(TWO[:1])), "label_unnamed"),
    "a value without a name": (holding(label_of(TWO) * 2), "label_unnamed"),
    "a negative value": (holding(-label_of(TWO, dtype=np.int16)), "label_unnamed"),
    "all lesion": (holding(np.ones(SHAPE, np.uint8)), "label_without_background"),
    "no lesion": (holding(label_of([])), "label_empty"),
    "a voxel": (holding(label_of([*TWO, (7, 2, 5)])), "specks"),
    "cut in half": (truncated, "truncated"),
}


def test_sound_files_have_no_finding(tmp_path):
    cases = {"a": ("training", TWO), "b": ("training", TWO[:3])}
    assert kinds(checked(make_dataset(tmp_path, cases))) == []


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_fault_of_an_image_is_found_under_its_name(fault, tmp_path):
    spoil, kind = IMAGE_FAULTS[fault]
    dataset = make_dataset(tmp_path, {"a": ("training", None), "b": ("training", TWO)} | {"a": ("test", None)})
    manifest = checked(dataset).manifest  # missing files are refused later on
    spoil(tmp_path / "a_MR.nii.gz")
    report = check_dataset(manifest)
    assert kinds(report, "a") == [kind]
    found = next(finding for finding in report.findings if finding.case == "a")
    assert found.file == str(tmp_path / "a_MR.nii.gz")
    assert found.file in found.message
    assert found.advice.endswith(".")


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_a_fault_of_a_label_is_found_under_its_name(fault, tmp_path):
    spoil, kind = LABEL_FAULTS[fault]
    dataset = make_dataset(tmp_path)
    spoil(tmp_path / "a_label.nii.gz")
    report = checked(dataset)
    assert kinds(report, "a") == [kind]
    assert kinds(report, "b") == ["label_empty"]


def test_a_difference_of_grids_is_told_in_mm(tmp_path):
    dataset = make_dataset(tmp_path)
    moved(5.0)(tmp_path / "a_label.nii.gz")
    found = next(finding for finding in checked(dataset).findings if finding.kind is Kind.GRIDS_DIFFER)
    assert found.values["corners_mm"] == pytest.approx(5.0, abs=1e-4)
    assert "5 mm apart" in found.message


def test_channels_may_have_grids_of_their_own_only_where_that_is_said(tmp_path):
    dataset = make_dataset(tmp_path, channels=("T1", "T2"))
    write(tmp_path / "a_T2.nii.gz", image_of(0, (6, 10, 8)), AFFINE @ np.diag([2, 1, 1, 1.0]))
    manifest = checked(dataset).manifest
    assert kinds(check_dataset(manifest), "a") == ["grids_differ"]
    cases = tuple(Case(**{**vars(case), "resample_channels": True}) for case in manifest.cases)
    assert kinds(check_dataset(Manifest(**{**vars(manifest), "cases": cases})), "a") == []


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ((866, 0, 0), ["grids_differ"]),
        ((0, 0, -866), ["grids_differ"]),
        ((0, 9.4, 0), []),  # ten voxels of 1 mm: half a voxel beyond the last centre still overlaps
        ((0, 9.6, 0), ["grids_differ"]),
        ((0, 0, -22.4), []),  # eight voxels of 3 mm
        ((0, 0, -22.6), ["grids_differ"]),
    ],
)
def test_channels_that_lie_apart_are_an_error_just_where_training_refuses_them(shift, expected, tmp_path):
    dataset = make_dataset(tmp_path, {"a": ("training", TWO)}, channels=("T1", "T2"))
    affine = AFFINE.copy()
    affine[:3, 3] += shift
    write(tmp_path / "a_T2.nii.gz", image_of(9), affine)
    manifest = checked(dataset).manifest
    case = replace(manifest.cases[0], resample_channels=True)
    report = check_dataset(replace(manifest, cases=(case,)))
    assert kinds(report) == expected
    with pytest.raises(GeometryError, match="lie apart") if expected else contextlib.nullcontext():
        read_case(case, manifest.scheme)
    assert all("image T2 and image T1 lie apart" in finding.message for finding in report.findings)


def test_a_channel_of_one_slice_lies_apart_by_its_own_slice(tmp_path):
    """The first channel, one slice at 12 mm, does not reach a second that starts one slice of 3 mm above it."""
    dataset = make_dataset(tmp_path, {"a": ("test", None)}, channels=("T1", "T2"))
    above = AFFINE.copy()
    above[2, 3] += 3
    write(tmp_path / "a_T1.nii.gz", image_of(0, (12, 10, 1)))
    write(tmp_path / "a_T2.nii.gz", image_of(1), above)
    manifest = checked(dataset).manifest
    case = replace(manifest.cases[0], resample_channels=True)
    assert kinds(check_dataset(replace(manifest, cases=(case,)))) == ["grids_differ"]


@pytest.mark.parametrize(
    ("values", "named"),
    [(None, "1 (lesion)"), ({0: 0, 2: 1}, "2 (lesion)"), ({0: 0, 1: 0, 7: 1, 5: 1}, "5 (lesion)")],
)
def test_255_is_held_against_the_value_that_the_dataset_names(values, named, tmp_path):
    manifest = checked(make_dataset(tmp_path, {"a": ("training", TWO)})).manifest
    write(tmp_path / "a_label.nii.gz", label_of(TWO) * 255)
    scheme = LabelScheme({0: "background", 1: "lesion"}, values=values)
    report = check_dataset(replace(manifest, scheme=scheme))
    found = report.findings[0]
    assert (found.kind, len(report.findings)) == (Kind.LABEL_0_255, 1)
    assert found.message.endswith(f"marks lesions by 255, for which the dataset names {named}")
    assert found.advice.startswith(f"Store {named[0]} instead of 255")


@pytest.mark.parametrize(
    ("channel", "low", "expected"),
    [
        ("CT", -900, []),
        ("CT", 0, ["ct_without_negatives"]),
        ("FACT", 0, []),
        ("ct_portal", 10, ["ct_without_negatives"]),
    ],
)
def test_a_ct_has_negative_values(channel, low, expected, tmp_path):
    dataset = make_dataset(tmp_path, {"a": ("training", TWO)}, channels=(channel,))
    write(tmp_path / f"a_{channel}.nii.gz", (low + 1000 * image_of(0)).astype(np.int16))
    assert kinds(checked(dataset)) == expected


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        (CheckLimits(speck_voxels=2, speck_mm3=0), None),
        (CheckLimits(speck_voxels=3, speck_mm3=0), 2),
        (CheckLimits(speck_voxels=0, speck_mm3=4.4), None),
        (CheckLimits(speck_voxels=0, speck_mm3=4.6), 2),
    ],
)
def test_specks_go_by_voxels_and_by_volume(limits, number, tmp_path):
    """Two lesions of three voxels of 1.5 mm3 each."""
    report = checked(make_dataset(tmp_path, {"a": ("training", TWO)}), limits=limits)
    assert [finding.values["num_specks"] for finding in report.findings] == ([] if number is None else [number])


def test_a_value_that_nobody_judged_is_no_lesion_and_no_fault(tmp_path):
    manifest = checked(make_dataset(tmp_path, {"a": ("training", TWO)})).manifest
    label = label_of(TWO[:3])
    label[8:, 5:] = 9
    write(tmp_path / "a_label.nii.gz", label)
    scheme = LabelScheme({0: "background", 1: "lesion"}, ignore_value=9)
    report = check_dataset(Manifest(**{**vars(manifest), "scheme": scheme}))
    assert kinds(report) == []
    assert report.cases[0].lesion_voxels == (3,)


def test_values_that_mean_the_background_are_no_lesions(tmp_path):
    manifest = checked(make_dataset(tmp_path, {"a": ("training", TWO)})).manifest
    label = label_of(TWO) * 7
    label[0] = 4
    write(tmp_path / "a_label.nii.gz", label)
    scheme = LabelScheme({0: "background", 1: "lesion"}, values={0: 0, 4: 0, 7: 1})
    report = check_dataset(Manifest(**{**vars(manifest), "scheme": scheme}))
    assert kinds(report) == []
    assert report.cases[0].lesion_voxels == (3, 3)


def test_every_kind_has_a_severity_and_a_row_in_the_documentation():
    page = (Path(__file__).resolve().parents[3] / "docs" / "check.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert [(kind, severity) for kind, severity, _ in rows] == [(str(kind), str(SEVERITIES[kind])) for kind in Kind]
    assert all(meaning.endswith(".") for _, _, meaning in rows)


#: File of the shared data, what it stands for, and what is found in it.
VERDICTS = {
    "4d_2ch.nii.gz": ("image", ["wrong_axes"]),
    "bad_crc.nii.gz": ("image", ["bad_checksum"]),
    "int16_slope_inter.nii.gz": ("image", ["one_form"]),
    "nan_inf.nii.gz": ("image", ["one_form", "not_finite_inside"]),
    "not_gzip.nii.gz": ("image", ["not_gzip"]),
    "truncated_gz_half.nii.gz": ("image", ["truncated"]),
    "zero_length_axis.nii": ("image", ["wrong_axes"]),
    "oblique_image.nii.gz": ("image", ["one_form"]),
    "mask_0.9999999.nii.gz": ("label", ["one_form", "label_rounded"]),
    "mask_affine_off_0.004mm.nii.gz": ("label", ["one_form", "grids_rounded"]),
    "mask_affine_off_5mm.nii.gz": ("label", ["one_form", "grids_differ"]),
    "mask_empty.nii.gz": ("label", ["one_form", "label_empty"]),
    "mask_one_slice_short.nii.gz": ("label", ["one_form", "grids_differ"]),
    "oblique_mask.nii.gz": ("oblique label", ["one_form"]),
}


@pytest.mark.skipif(not AWKWARD.is_dir(), reason="no ../shared/data beside the repository")
def test_the_table_has_every_awkward_file():
    assert {path.name for path in AWKWARD.iterdir()} == set(VERDICTS)


@pytest.mark.skipif(not AWKWARD.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize("name", VERDICTS)
def test_an_awkward_file_gets_the_right_verdict(name):
    what, expected = VERDICTS[name]
    sound = AWKWARD / ("oblique_image.nii.gz" if what == "oblique label" else "int16_slope_inter.nii.gz")
    image, label = (AWKWARD / name, None) if what == "image" else (sound, AWKWARD / name)
    scheme = LabelScheme({0: "background", 1: "lesion"})
    case = Case("a", "a", "test", (image,), label)
    report = check_dataset(Manifest(Path("set"), "set", ("MR",), scheme, (case,)))
    found = [str(f.kind) for f in report.cases[0].findings if f.file == str(AWKWARD / name)]
    assert found == expected
    assert bool(report.of(Severity.ERROR)) == any(SEVERITIES[Kind(kind)] is Severity.ERROR for kind in expected)
