"""The grid of a file from its header alone is the grid that reading it whole gives."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its own documentation uses

from medfocal.errors import GeometryError, InputError
from medfocal.volume import Volume, read_grid, read_volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 31], [0, 0, 3, 17], [0, -1, 0, -42], [0, 0, 0, 1.0]])
VALUES = np.random.default_rng(3).integers(0, 900, SHAPE).astype(np.int16)


def stored(folder, ending, values=VALUES):
    path = folder / f"a{ending}"
    if ending in (".mha", ".mhd", ".nrrd"):
        image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
        image.SetSpacing((0.5, 1.0, 3.0))
        image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
        image.SetOrigin((-31, -17, -42))
        sitk.WriteImage(image, str(path))
    elif ending in (".hdr", ".img"):
        nibabel.save(nibabel.Nifti1Pair(values, AFFINE), path)
    else:
        kind = nibabel.Nifti2Image if values is not VALUES else nibabel.Nifti1Image
        nibabel.save(kind(values, AFFINE), path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr", ".img", ".mha", ".mhd", ".nrrd"])
def test_the_header_tells_the_grid_and_the_type_that_reading_gives(tmp_path, ending):
    path = stored(tmp_path, ending)
    grid, whole = read_grid(path), read_volume(path)
    assert grid.shape == SHAPE == whole.shape
    np.testing.assert_array_equal(grid.affine, whole.affine)
    assert grid.same_grid(whole, tolerance_mm=0)
    assert grid.array.strides == (0, 0, 0)
    assert not grid.array.any()
    if ending.startswith((".nii", ".hdr", ".img")):
        assert grid.array.dtype == np.int16
        np.testing.assert_array_equal(grid.header.get_qform(), whole.header.get_qform())


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_longer_header_of_nifti_2_is_read_too(tmp_path, ending):
    path = stored(tmp_path, ending, VALUES.astype(np.float32))
    grid = read_grid(path)
    assert grid.shape == SHAPE
    np.testing.assert_array_equal(grid.affine, AFFINE)
    assert grid.array.dtype == np.float32


def test_a_fourth_axis_of_length_1_is_no_axis(tmp_path):
    assert read_grid(stored(tmp_path, ".nii.gz", VALUES[..., None].astype(np.float32))).shape == SHAPE


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_cut_off_after_its_header_still_tells_its_grid(tmp_path, ending):
    path = stored(tmp_path, ending)
    path.write_bytes(path.read_bytes()[:1200])
    assert read_grid(path).shape == SHAPE
    with pytest.raises(InputError, match=r"cut off|damaged"):
        read_volume(path)


def test_the_voxels_of_a_large_file_are_not_read(tmp_path):
    """Its header promises 8 GB, which are not there."""
    raw = bytearray(nibabel.Nifti1Image(VALUES, AFFINE).to_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]))
    header.set_data_shape((2000, 2000, 1000))
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(raw[348:]))
    assert read_grid(tmp_path / "a.nii").shape == (2000, 2000, 1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not NIfTI"),
        (b"nothing", "not NIfTI"),
        (b"\x1f\x8b broken", "damaged or not NIfTI"),
        (gzip.compress(b"nothing"), "not NIfTI"),
        (gzip.compress(nibabel.Nifti1Image(VALUES, AFFINE).to_bytes())[:40], "damaged or not NIfTI"),
    ],
    ids=["empty", "text", "broken gzip", "text in gzip", "cut off gzip"],  # gzip bytes hold the time of day
)
def test_what_has_no_header_is_refused_with_its_name(tmp_path, content, message):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.nii\.gz' is {message}"):
        read_grid(tmp_path / "a.nii.gz")


def test_a_missing_file_a_folder_and_an_unknown_ending_are_refused(tmp_path):
    (tmp_path / "b.nii").mkdir()
    for name, message in (("a.nii", "does not exist"), ("b.nii", "is not a file"), ("c.txt", "endings known")):
        with pytest.raises(InputError, match=message):
            read_grid(tmp_path / name)


def test_a_broken_file_of_another_kind_is_refused_with_its_name(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\nbroken")
    with pytest.raises(InputError, match=r"a\.nrrd' is damaged or cannot be read"):
        read_grid(tmp_path / "a.nrrd")


def test_a_grid_that_makes_no_sense_is_refused(tmp_path):
    flat = nibabel.Nifti1Image(VALUES, AFFINE)
    flat.header["pixdim"][2] = 0
    raw = flat.header.binaryblock + flat.to_bytes()[348:]
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(GeometryError, match=r"voxel spacing of \(0\.5, 0, 3\) mm"):
        read_grid(tmp_path / "a.nii")
    volumes = nibabel.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), AFFINE)
    nibabel.save(volumes, tmp_path / "b.nii")
    with pytest.raises(InputError, match="has 4 axes"):
        read_grid(tmp_path / "b.nii")


def test_what_write_volume_wrote_has_the_grid_it_was_given(tmp_path):
    write_volume(tmp_path / "a.nii.gz", Volume(VALUES, AFFINE))
    np.testing.assert_array_equal(read_grid(tmp_path / "a.nii.gz").affine, AFFINE)
