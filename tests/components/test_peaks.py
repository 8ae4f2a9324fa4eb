import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from medfocal.components import find_candidates, find_components, find_instances

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def index_of(peak):
    return [tuple(map(int, np.unravel_index(voxel, SHAPE))) for voxel in peak]


def test_peak_of_a_hill_is_its_highest_voxel_and_of_equals_the_first_in_c_order():
    probability = np.zeros(SHAPE)
    probability[2:6, 4, 3] = 0.5, 0.6, 0.8, 0.7
    probability[9, 2, 1] = probability[9, 1, 2] = probability[8, 2, 2] = 0.4
    assert index_of(find_candidates(probability, AFFINE).peak) == [(4, 4, 3), (8, 2, 2)]


def test_peak_of_a_part_of_a_mask_is_the_voxel_nearest_in_mm_to_its_centroid_which_may_lie_outside():
    ring = np.zeros(SHAPE, bool)
    # Around (4, 4, 4): two voxels 2 steps away along i (1 mm), four 1 step along i and k, two 2 steps along k (6 mm).
    ring[[2, 6, 3, 5, 3, 5, 4, 4], 4, [4, 4, 3, 3, 5, 5, 2, 6]] = True
    part = find_components(ring, AFFINE)
    assert part.centroid_voxel.tolist() == [[4, 4, 4]]
    assert index_of(part.peak) == [(2, 4, 4)]
    assert index_of(find_components(ring, np.eye(4)).peak) == [(3, 4, 3)]


def test_of_voxels_at_one_distance_the_first_is_taken_whatever_the_rounding():
    """Three steps of 0.1 mm are as long as one of 0.3 mm, but not to a computer."""
    numbers = np.zeros(SHAPE, np.uint8)
    numbers[[1, 7, 4, 4], [4, 4, 3, 5], 3] = 9
    part, _ = find_instances(numbers, np.diag([0.1, 0.3, 1, 1]))
    assert part.centroid_voxel.tolist() == [[4, 4, 3]]
    assert index_of(part.peak) == [(1, 4, 3)]


@settings(max_examples=40, deadline=None)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_no_voxel_is_nearer_than_the_peak(mask):
    parts = find_components(mask, AFFINE)
    for number, peak in enumerate(parts.peak, start=1):
        voxels = np.argwhere(parts.labels == number)
        away = np.linalg.norm((voxels - voxels.mean(axis=0)) * [0.5, 1, 3], axis=1)
        chosen = (voxels == np.unravel_index(peak, mask.shape)).all(axis=1)
        assert away[chosen].tolist() == [pytest.approx(away.min(), abs=1e-9)]
