import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medfocal.components import find_instances

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def test_touching_numbers_are_two_parts_and_a_number_in_two_pieces_is_one():
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[5, 4, 2:4] = 700
    numbers[5, 4, 4:6] = 30
    numbers[0, 0, 0] = numbers[11, 9, 7] = 41
    parts, values = find_instances(numbers, AFFINE)
    assert values.tolist() == [41, 700, 30]
    assert parts.num_voxels.tolist() == [2, 2, 2]
    assert parts.bounding_box[0].tolist() == [[0, 12], [0, 10], [0, 8]]
    np.testing.assert_allclose(parts.centroid_voxel, [[5.5, 4.5, 3.5], [5, 4, 2.5], [5, 4, 4.5]])
    assert np.isnan(parts.confidence).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.int16, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(-3, 5)))
def test_values_put_back_into_the_labels_give_the_map(numbers):
    parts, values = find_instances(numbers, AFFINE)
    np.testing.assert_array_equal(np.concatenate([[0], values])[parts.labels], numbers)
    assert len(np.unique(values)) == len(values) == len(parts)
    first = [np.flatnonzero(parts.labels == number)[0] for number in range(1, len(parts) + 1)]
    assert first == sorted(first)


def test_numbers_stored_as_floats_are_told_apart_too():
    numbers = np.zeros(SHAPE, np.float32)
    numbers[3, 3, 3], numbers[3, 3, 4] = 2, 1
    parts, values = find_instances(numbers, AFFINE, confidence=1.0)
    assert (values.tolist(), parts.confidence.tolist()) == ([2, 1], [1, 1])


def test_map_without_numbers_has_no_parts():
    parts, values = find_instances(np.zeros(SHAPE, np.int32), AFFINE)
    assert len(parts) == len(values) == 0


def test_nan_is_no_number():
    numbers = np.zeros(SHAPE)
    numbers[3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="one number for each part, got NaN in 1 voxel"):
        find_instances(numbers, AFFINE)


def test_map_that_is_not_3d_is_refused():
    with pytest.raises(ValueError, match=r"3D array is needed, got shape \(12, 10\)"):
        find_instances(np.zeros((12, 10), int), AFFINE)
