import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from medfocal.components import find_components

SHAPE = (12, 10, 8)
# 0.5 x 1 x 3 mm, first axis to the left, off-centre: 1.5 mm3 a voxel.
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)
FULL = np.ones((3, 3, 3))


def test_two_boxes_are_measured_in_voxels_millimetres_and_millilitres():
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 2:4, 6] = 255
    mask[8, 9, 0:3] = 1
    parts = find_components(mask, AFFINE)
    assert len(parts) == 2
    assert parts.num_voxels.tolist() == [8, 3]
    np.testing.assert_allclose(parts.volume_ml, [0.012, 0.0045])
    np.testing.assert_allclose(parts.centroid_voxel, [[2.5, 2.5, 6], [8, 9, 1]])
    np.testing.assert_allclose(parts.centroid_mm, [[18.75, -4.5, 22], [16, 2, 7]])
    assert parts.bounding_box.tolist() == [[[1, 5], [2, 4], [6, 7]], [[8, 9], [9, 10], [0, 3]]]
    # A sphere of 12 mm3 has a diameter of (72 / pi) ** (1 / 3) mm.
    assert parts.equivalent_diameter_mm[0] == pytest.approx((72 / math.pi) ** (1 / 3))
    assert np.isnan(parts.confidence).all()


def test_labels_are_int32_and_lie_where_the_parts_are():
    mask = np.zeros(SHAPE, bool)
    mask[11, 9, 7] = mask[3, 0, 2] = True
    labels = find_components(mask, AFFINE).labels
    assert labels.dtype == np.int32
    assert (labels[3, 0, 2], labels[11, 9, 7], np.count_nonzero(labels)) == (1, 2, 2)


@pytest.mark.parametrize(("connectivity", "num_parts"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity_says_whether_edges_and_corners_join(connectivity, num_parts):
    mask = np.zeros(SHAPE, bool)
    mask[4, 4, 4] = mask[5, 5, 4] = mask[6, 6, 5] = True  # by an edge, then by a corner
    assert len(find_components(mask, AFFINE, connectivity=connectivity)) == num_parts


def test_empty_mask_has_no_parts():
    parts = find_components(np.zeros(SHAPE, bool), AFFINE)
    assert len(parts) == 0
    assert not parts.labels.any()
    assert parts.centroid_mm.shape == (0, 3)
    assert parts.bounding_box.shape == (0, 3, 2)


def test_every_part_gets_the_confidence_asked_for():
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0] = mask[11, 9, 7] = True
    assert find_components(mask, AFFINE, confidence=1.0).confidence.tolist() == [1, 1]


def test_mask_that_is_not_3d_is_refused():
    with pytest.raises(ValueError, match=r"3D array is needed, got shape \(12, 10\)"):
        find_components(np.zeros((12, 10), bool), AFFINE)


def test_unknown_connectivity_is_refused():
    with pytest.raises(ValueError, match=r"one of \(6, 18, 26\), got 8"):
        find_components(np.zeros(SHAPE, bool), AFFINE, connectivity=8)


def test_affine_of_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"affine must have shape \(4, 4\), got \(3, 3\)"):
        find_components(np.zeros(SHAPE, bool), np.eye(3))


@settings(max_examples=60, deadline=None)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=7)))
def test_parts_are_those_of_scipy(mask):
    """scipy numbers by first voxel in C order too, so even the numbers agree."""
    expected, num_parts = ndimage.label(mask, structure=FULL)
    parts = find_components(mask, AFFINE)
    np.testing.assert_array_equal(parts.labels, expected)
    index = np.arange(1, num_parts + 1)
    assert parts.num_voxels.tolist() == np.bincount(expected.ravel(), minlength=num_parts + 1)[1:].tolist()
    if num_parts:
        np.testing.assert_allclose(parts.centroid_voxel, ndimage.center_of_mass(mask, expected, index))
        boxes = [[[side.start, side.stop] for side in box] for box in ndimage.find_objects(expected)]
        assert parts.bounding_box.tolist() == boxes


def test_memory_order_changes_no_number():
    mask = np.zeros(SHAPE, bool)
    mask[0, 9, 7] = mask[5, 4, 3] = mask[11, 0, 0] = True
    labels = find_components(np.asfortranarray(mask), AFFINE).labels
    assert (labels[0, 9, 7], labels[5, 4, 3], labels[11, 0, 0]) == (1, 2, 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 5), (3, 3, 3), (5, 7, 1)])
def test_isolated_voxels_packed_as_densely_as_can_be_are_all_found(shape):
    """cc3d alone gives up on these: its table of parts is too short by the last odd row."""
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    assert len(find_components(mask, AFFINE)) == mask.sum()
