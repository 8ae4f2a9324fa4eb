"""Reading and writing NIfTI: values, place, codes and units survive; bytes repeat; nobody's name is copied."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medfocal.errors import GeometryError, InputError
from medfocal.volume import Volume, read_labels, read_volume, write_volume

SHAPE, SPACING_MM = (12, 10, 8), (0.5, 1.0, 3.0)
ORIGIN_MM = (-31.25, 17.5, 42.0)


def grid(*, degrees=(0.0, 0.0, 0.0), signs=(1, 1, 1), shear=0.0):
    """Affine of an anisotropic grid, turned, mirrored and sheared."""
    affine = np.eye(4)
    sheared = np.eye(3)
    sheared[0, 1] = shear
    turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = turned @ sheared @ np.diag(np.multiply(signs, SPACING_MM))
    affine[:3, 3] = ORIGIN_MM
    return affine


GRIDS = {
    "straight": grid(),
    "oblique": grid(degrees=(20, -11, 7)),
    "flipped": grid(signs=(-1, -1, 1)),
    "mirrored": grid(signs=(1, -1, 1), degrees=(0, 15, 0)),
    "permuted": grid()[:, [1, 2, 0, 3]],
}


def values(dtype=np.int16):
    return np.random.default_rng(4).integers(-900, 3000, SHAPE).astype(dtype)


def stored(path, affine, *, qform_code, sform_code, kind=nibabel.Nifti1Image, dtype=np.int16):
    """Write with nibabel: an independent writer."""
    image = kind(values(dtype), None)
    image.header.set_xyzt_units("mm", "sec")
    if qform_code:
        image.header.set_qform(affine, qform_code)
    if sform_code:
        image.header.set_sform(affine, sform_code)
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    nibabel.save(type(image)(values(dtype), None, image.header), path)
    return path


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("codes", [(1, 2), (1, 0), (0, 4)], ids=["both", "qform only", "sform only"])
def test_round_trip_keeps_values_place_codes_and_units(tmp_path, name, codes):
    source = stored(tmp_path / "in.nii.gz", GRIDS[name], qform_code=codes[0], sform_code=codes[1])
    volume = read_volume(source)
    write_volume(tmp_path / "out.nii.gz", volume)
    before, after = nibabel.load(source), nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(volume.affine, GRIDS[name], atol=1e-4)  # quaternions are float32
    np.testing.assert_array_equal(volume.affine, before.affine)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), values())
    assert after.get_data_dtype() == np.int16
    for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x", "srow_x"):
        np.testing.assert_array_equal(np.ravel(after.header[field])[:4], np.ravel(before.header[field])[:4], field)
    assert after.header.get_xyzt_units() == ("mm", "sec")


def test_qform_and_sform_that_disagree_are_both_kept_and_the_sform_counts(tmp_path):
    path = stored(tmp_path / "in.nii", GRIDS["straight"], qform_code=1, sform_code=2)
    image = nibabel.load(path)
    image.header.set_qform(GRIDS["oblique"], 1)
    nibabel.save(nibabel.Nifti1Image(values(), None, image.header), path)
    volume = read_volume(path)
    write_volume(tmp_path / "out.nii", volume)
    after = nibabel.load(tmp_path / "out.nii")
    np.testing.assert_allclose(volume.affine, GRIDS["straight"], atol=1e-5)
    np.testing.assert_allclose(after.get_qform(), GRIDS["oblique"], atol=1e-4)
    np.testing.assert_allclose(after.get_sform(), GRIDS["straight"], atol=1e-5)


def test_sheared_grid_survives_in_the_sform(tmp_path):
    affine = grid(degrees=(10, 0, 5), shear=0.3)
    path = stored(tmp_path / "in.nii", affine, qform_code=0, sform_code=1)
    write_volume(tmp_path / "out.nii", read_volume(path))
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii").affine, affine, atol=1e-5)


def test_new_sheared_volume_gets_no_qform_and_an_orthogonal_one_gets_both(tmp_path):
    for name, affine, qform_code in (("a", grid(shear=0.3), 0), ("b", GRIDS["oblique"], 1)):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(values(), affine))
        header = nibabel.load(tmp_path / f"{name}.nii.gz").header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (qform_code, 1)
        np.testing.assert_allclose(header.get_best_affine(), affine, atol=1e-5)
        np.testing.assert_allclose(read_volume(tmp_path / f"{name}.nii.gz").affine, affine, atol=1e-5)
        assert header.get_xyzt_units()[0] == "mm"


def test_a_new_affine_wins_over_the_header_of_the_source(tmp_path):
    path = stored(tmp_path / "in.nii", GRIDS["straight"], qform_code=1, sform_code=1)
    moved = read_volume(path)
    write_volume(tmp_path / "out.nii", Volume(moved.array, GRIDS["oblique"], moved.header))
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii").affine, GRIDS["oblique"], atol=1e-5)


def test_a_shift_of_a_micrometre_far_from_the_origin_is_not_lost_to_the_header_of_the_source(tmp_path):
    far = grid()
    far[0, 3] = 512.0
    volume = read_volume(stored(tmp_path / "in.nii", far, qform_code=1, sform_code=1))
    moved = far.copy()
    moved[0, 3] += 0.001
    write_volume(tmp_path / "out.nii", Volume(volume.array, moved, volume.header))
    assert nibabel.load(tmp_path / "out.nii").affine[0, 3] == pytest.approx(512.001, abs=1e-4)


def test_big_endian_nifti_is_read_in_native_order_and_written_with_its_place(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_qform(GRIDS["oblique"], 1)
    nibabel.save(nibabel.Nifti1Image(values(), None, header), tmp_path / "big.nii.gz")
    assert gzip.decompress((tmp_path / "big.nii.gz").read_bytes())[:4] == b"\x00\x00\x01\x5c"
    volume = read_volume(tmp_path / "big.nii.gz")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, values())
    write_volume(tmp_path / "out.nii", volume)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out.nii").affine, volume.affine)
    np.testing.assert_allclose(volume.affine, GRIDS["oblique"], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_unscaled_values_keep_their_type(tmp_path, dtype):
    path = stored(tmp_path / "in.nii", GRIDS["oblique"], qform_code=1, sform_code=1, dtype=dtype)
    assert read_volume(path).array.dtype == dtype
    np.testing.assert_array_equal(read_volume(path).array, values(dtype))


def test_nifti_2_is_read_and_its_place_is_written_as_nifti_1(tmp_path):
    path = stored(tmp_path / "in.nii.gz", GRIDS["oblique"], qform_code=1, sform_code=0, kind=nibabel.Nifti2Image)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, values())
    write_volume(tmp_path / "out.nii.gz", volume)
    after = nibabel.load(tmp_path / "out.nii.gz")
    assert type(after) is nibabel.Nifti1Image
    np.testing.assert_allclose(after.affine, GRIDS["oblique"], atol=1e-4)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (1, 0)


@pytest.mark.parametrize("ending", [".hdr", ".img"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_is_read_from_either_of_its_files(tmp_path, ending, kind):
    nibabel.save(kind(values(), GRIDS["oblique"]), tmp_path / "a.hdr")
    volume = read_volume(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(volume.array, values())
    np.testing.assert_allclose(volume.affine, GRIDS["oblique"], atol=1e-5)
    write_volume(tmp_path / "out.nii", volume)
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii").affine, GRIDS["oblique"], atol=1e-5)


def test_slope_and_intercept_give_float32_values_and_are_not_written_again(tmp_path):
    image = nibabel.Nifti1Image(values(), GRIDS["oblique"])
    image.header.set_slope_inter(0.25, -7.5)
    raw = bytearray(image.to_bytes())  # nibabel resets the slope while it saves: put it into the bytes
    header = np.frombuffer(raw, nibabel.Nifti1Header.template_dtype, 1).copy()
    header["scl_slope"], header["scl_inter"] = 0.25, -7.5
    (tmp_path / "in.nii").write_bytes(header.tobytes() + bytes(raw[header.nbytes :]))
    volume = read_volume(tmp_path / "in.nii")
    expected = values().astype(np.float64) * 0.25 - 7.5  # exact in float32
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, expected)
    write_volume(tmp_path / "out.nii", volume)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii").array, expected)
    assert nibabel.load(tmp_path / "out.nii").dataobj.slope == 1


def test_a_mask_on_a_scaled_image_is_written_without_its_scale(tmp_path):
    image = nibabel.Nifti1Image(np.linspace(0, 1, 960).reshape(SHAPE).astype(np.float32), GRIDS["flipped"])
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "in.nii.gz")
    source = read_volume(tmp_path / "in.nii.gz")
    mask = source.array > 0.5
    write_volume(tmp_path / "mask.nii.gz", source.with_array(mask))
    after = nibabel.load(tmp_path / "mask.nii.gz")
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), mask)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_same_volume_gives_the_same_bytes(tmp_path, ending):
    volume = Volume(values(), GRIDS["oblique"])
    write_volume(tmp_path / f"a{ending}", volume)
    write_volume(tmp_path / f"b{ending}", volume)
    first = (tmp_path / f"a{ending}").read_bytes()
    assert first == (tmp_path / f"b{ending}").read_bytes()
    assert ending == ".nii" or first[4:8] == bytes(4)  # gzip's clock


def test_text_and_extensions_of_the_source_are_not_copied(tmp_path):
    image = nibabel.Nifti1Image(values(), GRIDS["oblique"])
    for field, text in {"descrip": "DOE^JANE 1931", "db_name": "DOE", "aux_file": "DOE.dcm"}.items():
        image.header[field] = text
    image.header["intent_name"] = b"DOE"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE" * 400))
    nibabel.save(image, tmp_path / "in.nii")
    assert b"DOE" in (tmp_path / "in.nii").read_bytes()
    write_volume(tmp_path / "out.nii", read_volume(tmp_path / "in.nii"))
    assert b"DOE" not in (tmp_path / "out.nii").read_bytes()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_long_extension_does_not_hinder_reading(tmp_path, ending):
    image = nibabel.Nifti1Image(values(), GRIDS["oblique"])
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("afni", b"<AFNI/>" * 900))
    nibabel.save(image, tmp_path / f"in{ending}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"in{ending}").array, values())


def test_a_fourth_axis_of_length_one_is_dropped_and_written_as_3d(tmp_path):
    nibabel.save(nibabel.Nifti1Image(values()[..., None], GRIDS["oblique"]), tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert volume.shape == SHAPE
    write_volume(tmp_path / "out.nii", volume)
    assert nibabel.load(tmp_path / "out.nii").shape == SHAPE


def test_gzip_content_under_a_plain_name_is_read(tmp_path):
    nibabel.save(nibabel.Nifti1Image(values(), GRIDS["oblique"]), tmp_path / "in.nii.gz")
    (tmp_path / "in.nii.gz").rename(tmp_path / "in.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "in.nii").array, values())


def test_both_codes_zero_keep_the_grid_that_nibabel_gives_such_a_file(tmp_path):
    image = nibabel.Nifti1Image(values(), None)
    image.header["pixdim"][1:4] = SPACING_MM
    nibabel.save(nibabel.Nifti1Image(values(), None, image.header), tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert volume.spacing_mm == SPACING_MM
    write_volume(tmp_path / "out.nii", volume)
    after = nibabel.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(after.affine, nibabel.load(tmp_path / "in.nii").affine)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (0, 0)


def test_int64_that_fits_is_written_as_int32_and_else_refused(tmp_path):
    array = values(np.int64)
    write_volume(tmp_path / "a.nii", Volume(array, GRIDS["straight"]))
    assert read_volume(tmp_path / "a.nii").array.dtype == np.int32
    array[0, 0, 0] = 2**31
    with pytest.raises(InputError, match="2147483648 do not fit 32 bits"):
        write_volume(tmp_path / "b.nii", Volume(array, GRIDS["straight"]))
    assert not (tmp_path / "b.nii").exists()


def test_only_nifti_is_written(tmp_path):
    with pytest.raises(InputError, match=r"written as \.nii or \.nii\.gz, got 'a\.nrrd'"):
        write_volume(tmp_path / "a.nrrd", Volume(values(), GRIDS["straight"]))


def test_an_array_of_another_shape_does_not_fit_the_grid():
    with pytest.raises(GeometryError, match=r"\(10, 12, 8\) does not fit the grid of shape \(12, 10, 8\)"):
        Volume(values(), GRIDS["straight"]).with_array(np.zeros((10, 12, 8)))


def test_labels_written_by_us_are_labels_again(tmp_path):
    labels = (values() > 0).astype(np.uint8)
    write_volume(tmp_path / "a.nii.gz", Volume(labels, GRIDS["oblique"]))
    found = read_labels(tmp_path / "a.nii.gz")
    assert found.array.dtype == np.int16
    np.testing.assert_array_equal(found.array, labels)
