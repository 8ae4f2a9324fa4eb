"""What a grid is, when two are the same, and what a file name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfocal.volume import Volume, is_volume, spacing_of, volume_name, voxel_volume_ml

AFFINE = np.array([[-0.5, 0, 0, 31], [0, -1, 0, 17], [0, 0, 3, -42], [0, 0, 0, 1.0]])


def on(affine, shape=(12, 10, 8)):
    return Volume(np.zeros(shape), affine)


def shifted(mm, axis=1):
    affine = AFFINE.copy()
    affine[axis, 3] += mm
    return affine


def test_spacing_volume_and_axes_of_an_anisotropic_grid():
    volume = on(AFFINE)
    assert volume.spacing_mm == (0.5, 1.0, 3.0)
    assert volume.voxel_volume_ml == pytest.approx(0.0015)
    assert volume.axis_codes == ("L", "P", "S")


def test_voxel_volume_of_a_sheared_grid_is_not_the_product_of_spacings():
    sheared = np.eye(4)
    sheared[0, 1] = 1.0  # second axis leans by 45 degrees: base 1, height 1, length sqrt(2)
    assert spacing_of(sheared)[1] == pytest.approx(np.sqrt(2))
    assert voxel_volume_ml(sheared) == pytest.approx(1e-3)


def test_rounding_of_4_micrometres_is_the_same_grid_and_5_mm_is_not():
    assert on(AFFINE).same_grid(on(shifted(0.004)))
    assert not on(AFFINE).same_grid(on(shifted(5.0)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tolerance_is_a_distance_along_any_axis(axis):
    assert on(AFFINE).same_grid(on(shifted(0.049, axis)))
    assert not on(AFFINE).same_grid(on(shifted(0.051, axis)))
    assert on(AFFINE).same_grid(on(shifted(0.9, axis)), tolerance_mm=1.0)


def test_a_spacing_error_that_only_shows_at_the_far_corner_is_found():
    stretched = AFFINE.copy()
    stretched[0, 0] *= 1.011  # 11 voxels of 0.5 mm: 0.0605 mm at the far side, 0 at the origin
    assert not on(AFFINE).same_grid(on(stretched))


def test_a_flipped_axis_with_the_same_spacing_is_another_grid():
    flipped = AFFINE @ np.diag([-1, 1, 1, 1.0])
    flipped[:3, 3] = (AFFINE @ [11, 0, 0, 1])[:3]
    assert not on(AFFINE).same_grid(on(flipped))
    assert on(AFFINE).grid_difference(on(flipped)) == "axes LPS and RPS"


def test_difference_names_both_shapes_spacings_and_origins():
    assert on(AFFINE).grid_difference(on(AFFINE, (12, 10, 7))) == "shape (12, 10, 8) and (12, 10, 7) voxels"
    wider = AFFINE @ np.diag([2, 1, 1, 1.0])
    assert on(AFFINE).grid_difference(on(wider)) == "spacing (0.5, 1, 3) and (1, 1, 3) mm"
    assert "corners up to 5 mm apart" in on(AFFINE).grid_difference(on(shifted(5)))
    assert "(31, 17, -42) and (31, 22, -42) mm" in on(AFFINE).grid_difference(on(shifted(5)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_T1.nii.gz", "sub-01_T1"),
        ("a.b.nii", "a.b"),
        ("A.NII.GZ", "A"),
        ("a.mha", "a"),
        ("a.img", "a"),
        ("notes.txt", "notes.txt"),
    ],
)
def test_volume_name_drops_the_image_ending_alone(name, expected):
    assert volume_name(Path("/data") / name) == expected


def test_a_pair_counts_once_and_other_files_do_not_count():
    names = ["a.hdr", "a.img", "b.nii.gz", "c.NRRD", "d.txt", ".nii", "e.nii.gz.part"]
    assert [name for name in names if is_volume(Path(name))] == ["a.hdr", "b.nii.gz", "c.NRRD"]
