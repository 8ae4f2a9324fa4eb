from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest

from medfocal.errors import GeometryError
from medfocal.report.pictures import (
    MAX_PIXELS,
    MIN_PIXELS,
    CaseImages,
    cut_planes,
    grey_png,
    look_at,
    outline_path,
    to_ras,
    voxel_to_ras,
)

SHAPE = (12, 10, 8)  # to the right, to anterior, to superior
SPACING_MM = (0.5, 1.0, 3.0)
# One voxel at the patient's right, anterior, superior side: 1, 2 and 1 voxels from the ends of the axes.
MARKER = (10, 7, 6)


def turned(array, codes):
    """The same patient stored with other axes; written out by hand, without nibabel."""
    if codes == "RAS":
        return array
    if codes == "LPS":
        return array[::-1, ::-1, :]
    if codes == "SAR":
        return array.transpose(2, 1, 0)
    assert codes == "PIR"
    return array[:, ::-1, ::-1].transpose(1, 2, 0)


STORED = {  # where the marker lies in the stored array, and the spacing of the stored axes
    "RAS": ((10, 7, 6), (0.5, 1.0, 3.0)),
    "LPS": ((1, 2, 6), (0.5, 1.0, 3.0)),
    "SAR": ((6, 7, 10), (3.0, 1.0, 0.5)),
    "PIR": ((2, 1, 10), (1.0, 3.0, 0.5)),
}


def marked(codes, **parts):
    image = np.zeros(SHAPE, np.float32)
    image[MARKER] = 1.0
    mask = image > 0
    spacing_mm = STORED[codes][1]
    arrays = {"image": image, "reference": mask, "predicted": mask} | parts
    return CaseImages(
        **{name: turned(array, codes) for name, array in arrays.items()},
        spacing_mm=spacing_mm,
        axis_codes=tuple(codes),
    )


def only(mask):
    ((row, column),) = np.argwhere(mask)
    return int(row), int(column)


@pytest.mark.parametrize("codes", STORED)
def test_a_voxel_at_right_anterior_superior_lands_at_left_and_top_of_every_plane(codes):
    axial, coronal, sagittal = cut_planes(marked(codes), STORED[codes][0])
    assert only(axial.image) == (2, 1)  # 2 voxels below anterior, 1 from the patient's right on the left
    assert only(coronal.image) == (1, 1)
    assert only(sagittal.image) == (1, 2)
    for plane in (axial, coronal, sagittal):
        assert only(plane.reference) == only(plane.predicted) == only(plane.image) == plane.centre


@pytest.mark.parametrize("codes", STORED)
def test_pixels_keep_the_size_of_the_voxels_they_come_from(codes):
    axial, coronal, sagittal = cut_planes(marked(codes), STORED[codes][0])
    assert (axial.image.shape, axial.spacing_mm) == ((10, 12), (1.0, 0.5))
    assert (coronal.image.shape, coronal.spacing_mm) == ((8, 12), (3.0, 0.5))
    assert (sagittal.image.shape, sagittal.spacing_mm) == ((8, 10), (3.0, 1.0))


def test_letters_follow_the_radiological_convention():
    top_right_bottom_left = [plane.letters for plane in cut_planes(marked("LPS"), (0, 0, 0))]
    assert top_right_bottom_left == [("A", "L", "P", "R"), ("S", "L", "I", "R"), ("S", "P", "I", "A")]


@pytest.mark.parametrize("codes", STORED)
def test_a_place_between_voxels_keeps_its_fraction(codes):
    stored, _ = STORED[codes]
    shape = turned(np.zeros(SHAPE), codes).shape
    # A quarter voxel along each stored axis is a quarter voxel towards or away from R, A and S.
    place = voxel_to_ras([along + 0.25 for along in stored], shape, codes)
    signs = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1), "SAR": (1, 1, 1), "PIR": (1, -1, -1)}[codes]
    assert place == pytest.approx([at + 0.25 * sign for at, sign in zip(MARKER, signs, strict=True)])


@pytest.mark.parametrize("codes", STORED)
def test_all_orientations_give_the_same_ras_array(codes):
    rng = np.random.default_rng(3)
    image = rng.normal(size=SHAPE).astype(np.float32)
    ras = to_ras(marked(codes, image=image))
    np.testing.assert_array_equal(ras.image, image)
    assert ras.spacing_mm == SPACING_MM
    assert ras.axis_codes == ("R", "A", "S")


def corners(path):
    loops = [
        np.array([[float(value) for value in point.split(" ")] for point in loop.strip("MZ").split("L")])
        for loop in re.findall(r"M[^Z]*Z", path)
    ]
    assert "".join(re.findall(r"M[^Z]*Z", path)) == path
    return loops


def signed_area(loop):
    """Shoelace formula; positive for a loop drawn clockwise on a page whose y points down."""
    x, y = loop.T
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


@pytest.mark.parametrize("seed", range(5))
def test_outlines_enclose_exactly_the_area_of_the_mask(seed):
    mask = np.random.default_rng(seed).random((9, 7)) < 0.55
    loops = corners(outline_path(mask, height=3.0, width=0.5))
    # Holes run the other way round and count negative.
    assert sum(signed_area(loop) for loop in loops) == pytest.approx(mask.sum() * 1.5)


def test_outline_of_a_block_has_only_its_four_corners():
    mask = np.zeros((6, 5), bool)
    mask[1:4, 2:4] = True
    (loop,) = corners(outline_path(mask, height=3.0, width=0.5, top=-9.0, left=10.0))
    assert sorted(map(tuple, loop.tolist())) == [(11.0, -6.0), (11.0, 3.0), (12.0, -6.0), (12.0, 3.0)]


def test_pixels_that_touch_by_a_corner_are_outlined_apart():
    loops = corners(outline_path(np.array([[True, False], [False, True]]), height=1.0, width=1.0))
    assert [signed_area(loop) for loop in loops] == [1.0, 1.0]


def test_an_empty_mask_has_no_outline():
    assert outline_path(np.zeros((4, 3), bool), height=1.0, width=1.0) == ""


def test_the_outline_of_the_centre_voxel_lies_around_the_middle_of_each_close_up():
    axial, coronal, sagittal, _ = look_at(marked("SAR"), STORED["SAR"][0])
    for view, half_height, half_width in ((axial, 0.5, 0.25), (coronal, 1.5, 0.25), (sagittal, 1.5, 0.5)):
        for path in (view.reference, view.predicted):
            (loop,) = corners(path)
            assert loop.min(axis=0).tolist() == [-half_width, -half_height]
            assert loop.max(axis=0).tolist() == [half_width, half_height]


def pixels(view):
    from matplotlib.image import imread

    return imread(io.BytesIO(base64.b64decode(view.source.removeprefix("data:image/png;base64,"))))


def test_the_bright_voxel_of_the_picture_lies_under_its_outline():
    axial, *_ = look_at(marked("LPS"), STORED["LPS"][0])
    grey = pixels(axial)
    row, column = np.unravel_index(np.argmax(grey), grey.shape)
    y = axial.top + (row + 0.5) / grey.shape[0] * axial.height
    x = axial.left + (column + 0.5) / grey.shape[1] * axial.width
    assert abs(y) < 0.5
    assert abs(x) < 0.25


def test_the_field_is_40_mm_and_grows_with_a_large_component():
    images, place = marked("RAS"), STORED["RAS"][0]
    assert {view.field_mm for view in look_at(images, place, diameter_mm=8.0)[:3]} == {40.0}
    assert {view.field_mm for view in look_at(images, place, diameter_mm=30.0)[:3]} == {60.0}
    assert look_at(images, place, diameter_mm=30.0)[3].frame_mm == 60.0


def test_the_whole_slice_is_shown_whole_and_says_where_the_component_lies():
    whole = look_at(marked("RAS"), STORED["RAS"][0])[3]
    assert (whole.width, whole.height) == (6.0, 10.0)
    assert whole.field_mm == 10.0
    # The component lies 1.5 voxels of 0.5 mm from the right end of 6 mm: the middle is 2.25 mm farther left.
    assert whole.middle == (2.25, 2.5)


def test_a_large_slice_is_averaged_and_a_small_field_filled_in():
    images = CaseImages(
        image=np.random.default_rng(0).normal(size=(512, 400, 5)).astype(np.float32),
        reference=np.zeros((512, 400, 5), bool),
        predicted=np.zeros((512, 400, 5), bool),
        spacing_mm=(0.5, 0.5, 5.0),
        axis_codes=("R", "A", "S"),
    )
    for view in look_at(images, (256, 200, 2)):
        assert MIN_PIXELS <= min(pixels(view).shape) <= max(pixels(view).shape) <= MAX_PIXELS


@pytest.mark.parametrize("fill", [0.0, np.nan, 7.0])
def test_an_image_without_contrast_or_numbers_still_gives_a_picture(fill):
    images = marked("RAS", image=np.full(SHAPE, fill, np.float32))
    assert all(pixels(view).max() == 0 for view in look_at(images, (0, 0, 0)))


def test_a_png_gives_back_its_grey_levels():
    from matplotlib.image import imread

    levels = np.random.default_rng(1).integers(0, 256, (13, 9), np.uint8)
    np.testing.assert_array_equal(np.round(imread(io.BytesIO(grey_png(levels))) * 255), levels)


def test_a_mask_on_another_grid_is_refused():
    with pytest.raises(GeometryError, match=r"image and predicted differ in shape: \(12, 10, 8\) and \(8, 10, 12\)"):
        marked("RAS", predicted=np.zeros((8, 10, 12), bool))


def test_a_mask_that_is_not_bool_is_refused():
    with pytest.raises(ValueError, match="reference must be a bool mask, got float32"):
        marked("RAS", reference=np.zeros(SHAPE, np.float32))


@pytest.mark.parametrize("codes", ["RLS", "XAS", "RA"])
def test_axis_codes_that_name_no_orientation_are_refused(codes):
    mask = np.zeros(SHAPE, bool)
    with pytest.raises(ValueError, match="one of R/L, one of A/P and one of S/I"):
        CaseImages(mask.astype(np.float32), mask, mask, SPACING_MM, tuple(codes))


def test_a_spacing_of_zero_is_refused():
    mask = np.zeros(SHAPE, bool)
    with pytest.raises(ValueError, match=r"3 positive numbers, got \(0.5, 0.0, 3.0\)"):
        CaseImages(mask.astype(np.float32), mask, mask, (0.5, 0.0, 3.0), ("R", "A", "S"))
