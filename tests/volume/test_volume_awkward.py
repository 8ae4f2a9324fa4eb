"""Files with a fault or a trap each, made from a real MR; they lie beside the repository, where they are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfocal.data.cases import clean_image
from medfocal.errors import InputError
from medfocal.volume import read_labels, read_volume

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "awkward"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the awkward files are not beside this repository")

SHAPE = (75, 55, 25)
FAULTS = {
    "4d_2ch.nii.gz": r"has 4 axes, shape \(75, 55, 25, 2\)",
    "bad_crc.nii.gz": "CRC check failed",
    "not_gzip.nii.gz": r"named \.gz but is not gzip",
    "truncated_gz_half.nii.gz": "damaged",
    "zero_length_axis.nii": r"an axis without voxels: shape \(75, 55, 0\)",
}
MASKS = (
    "mask_0.9999999.nii.gz",
    "mask_affine_off_0.004mm.nii.gz",
    "mask_affine_off_5mm.nii.gz",
    "mask_empty.nii.gz",
    "mask_one_slice_short.nii.gz",
    "oblique_mask.nii.gz",
)
IMAGES = ("int16_slope_inter.nii.gz", "nan_inf.nii.gz", "oblique_image.nii.gz")


def test_every_file_of_the_folder_is_in_these_tests():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted([*FAULTS, *MASKS, *IMAGES])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name):
    with pytest.raises(InputError, match=FAULTS[name]):
        read_volume(FOLDER / name)


def test_scaled_int16_gives_real_intensities():
    volume = read_volume(FOLDER / "int16_slope_inter.nii.gz")
    assert (volume.shape, volume.array.dtype) == (SHAPE, np.float32)
    assert (volume.array.min(), volume.array.max()) == (0, 1750)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_holds_0_and_1_only(name):
    labels = read_labels(FOLDER / name).array
    assert labels.dtype == np.int16
    assert set(np.unique(labels)) == ({0} if "empty" in name else {0, 1})


def test_a_rounded_affine_is_the_image_grid_and_other_differences_are_not():
    image = read_volume(FOLDER / "int16_slope_inter.nii.gz")
    same = {name: image.same_grid(read_labels(FOLDER / name)) for name in MASKS[:5]}
    assert same == dict(zip(MASKS[:5], (True, True, False, True, False), strict=True))


def test_oblique_image_and_mask_share_a_grid_that_is_not_the_straight_one():
    image, mask = read_volume(FOLDER / "oblique_image.nii.gz"), read_volume(FOLDER / "oblique_mask.nii.gz")
    assert image.same_grid(mask)
    assert not image.same_grid(read_volume(FOLDER / "int16_slope_inter.nii.gz"))


def test_nan_and_infinity_inside_the_body_are_refused():
    volume = read_volume(FOLDER / "nan_inf.nii.gz")
    with pytest.raises(InputError, match="NaN or infinite inside the body"):
        clean_image(volume.array, "case")
