"""MHA, MHD and NRRD: world coordinates as ITK itself computes them, turned from LPS to RAS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its own documentation uses
from scipy.spatial.transform import Rotation

from medfocal.errors import GeometryError, InputError, MedfocalError
from medfocal.volume import read_labels, read_volume

SHAPE = (12, 10, 8)


def image(dtype=np.int16):
    array = np.random.default_rng(1).integers(0, 500, SHAPE).astype(dtype)
    found = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    found.SetSpacing((0.5, 1.0, 3.0))
    found.SetOrigin((-31.25, 17.5, 42.0))
    turned = Rotation.from_euler("xyz", (20, -11, 7), degrees=True).as_matrix() @ np.diag([1, -1, 1])
    found.SetDirection(turned.ravel())
    return found, array


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_every_corner_lies_where_itk_says(tmp_path, ending):
    written, array = image()
    sitk.WriteImage(written, str(tmp_path / f"a{ending}"))
    volume = read_volume(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.int16
    for corner in itertools.product(*((0, n - 1) for n in SHAPE)):
        left_posterior_superior = np.array(written.TransformIndexToPhysicalPoint(corner))
        expected = left_posterior_superior * [-1, -1, 1]
        np.testing.assert_allclose((volume.affine @ [*corner, 1])[:3], expected, atol=1e-6)


def test_nrrd_and_nifti_of_the_same_image_have_the_same_grid(tmp_path):
    written, _ = image()
    for ending in (".nrrd", ".nii.gz"):
        sitk.WriteImage(written, str(tmp_path / f"a{ending}"))
    assert read_volume(tmp_path / "a.nrrd").same_grid(read_volume(tmp_path / "a.nii.gz"), tolerance_mm=1e-3)


def test_labels_are_read_from_nrrd(tmp_path):
    written, array = image(np.uint8)
    sitk.WriteImage(written, str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.nrrd").array, array)


def test_4d_and_vector_and_complex_and_2d_images_are_refused(tmp_path):
    four = sitk.GetImageFromArray(np.zeros((2, 8, 10, 12), np.int16), isVector=False)
    vector = sitk.GetImageFromArray(np.zeros((8, 10, 12, 3), np.float32), isVector=True)
    pair = sitk.GetImageFromArray(np.zeros((8, 10, 12), np.complex64))
    flat = sitk.GetImageFromArray(np.zeros((10, 12), np.int16))
    for found, message in (
        (four, r"has 4 axes, shape \(12, 10, 8, 2\)"),
        (vector, "holds 3 numbers a voxel"),
        (pair, "complex"),
        (flat, "has 2 axes"),
    ):
        sitk.WriteImage(found, str(tmp_path / "a.mha"))
        with pytest.raises(InputError, match=message):
            read_volume(tmp_path / "a.mha")


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
    array = np.random.default_rng(2).integers(0, 9, (1, 8, 10, 12)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / "a.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").array, array[0].transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"DimSize = 12 10 8", b"DimSize = 12 0 8"),
        (b"DimSize = 12 10 8", b"DimSize = 12000 90000 90000"),
        (b"ElementSpacing = 0.5 1 3", b"ElementSpacing = 0.5 0 3"),
        (b"ElementSpacing = 0.5 1 3", b"ElementSpacing = 0.5 nan 3"),
        (b"ElementType = MET_SHORT", b"ElementType = MET_NONSENSE"),
    ],
)
def test_a_faulty_mha_header_is_an_input_error(tmp_path, old, new):
    written, _ = image()
    sitk.WriteImage(written, str(tmp_path / "a.mha"))
    content = (tmp_path / "a.mha").read_bytes()
    assert old in content
    (tmp_path / "a.mha").write_bytes(content.replace(old, new))
    with pytest.raises(InputError):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("spacing_mm", [1e-6, 1e6])
def test_a_spacing_that_no_scanner_has_is_a_geometry_error(tmp_path, spacing_mm):
    written, _ = image()
    written.SetSpacing((0.5, spacing_mm, 3.0))
    sitk.WriteImage(written, str(tmp_path / "a.mha"))
    with pytest.raises(GeometryError, match=r"the affine of '.*a\.mha' makes no sense: spacing"):
        read_volume(tmp_path / "a.mha")


def test_axes_in_one_plane_are_an_input_error(tmp_path):
    written, _ = image()
    sitk.WriteImage(written, str(tmp_path / "a.nrrd"))
    head, _, voxels = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    lines = [b"space directions: (1,0,0) (1,0,0) (0,0,3)" if b"directions" in t else t for t in head.split(b"\n")]
    (tmp_path / "a.nrrd").write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    with pytest.raises(InputError):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_cut_off_empty_and_random_content_is_an_input_error(tmp_path, ending):
    written, _ = image()
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(written, str(path))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", np.random.default_rng(3).bytes(500)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged or cannot be read"):
            read_volume(path)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_random_corruption_gives_a_volume_or_our_error(tmp_path, ending):
    written, _ = image()
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(written, str(path))
    whole, rng = path.read_bytes(), np.random.default_rng(5)
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, 400, rng.integers(1, 6)):
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content))
        try:
            read_volume(path)
        except MedfocalError:
            continue


def test_geometry_errors_are_input_errors():
    assert issubclass(GeometryError, InputError)
