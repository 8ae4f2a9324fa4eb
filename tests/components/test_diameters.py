"""Longest distances between corners of voxels, against all pairs of all corners."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from scipy.spatial.distance import pdist

from medfocal.components import find_components
from medfocal.components.diameters import longest_distances

SHAPE = (12, 10, 8)
# 0.5 x 1 x 3 mm, first axis to the left, off-centre.
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def brute_force(components):
    """Both diameters of each part from all corners of all its voxels."""
    columns = components.affine[:3, :3]
    across = int(np.argmax(np.abs(columns[2]) / np.linalg.norm(columns, axis=0)))
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    longest, axial = [], []
    for number in range(1, len(components) + 1):
        voxels = np.argwhere(components.labels == number)
        longest.append(pdist((voxels[:, None] + corners).reshape(-1, 3) @ columns.T).max())
        flat = corners[corners[:, across] == 0]
        slices = [voxels[voxels[:, across] == place] for place in np.unique(voxels[:, across])]
        axial.append(max(pdist((part[:, None] + flat).reshape(-1, 3) @ columns.T).max() for part in slices))
    return longest, axial


def assert_exact(components):
    longest, axial = brute_force(components)
    # Squares of distances are found with rounding of some 1e-15 of their size.
    np.testing.assert_allclose(components.longest_diameter_mm, longest, rtol=1e-12)
    np.testing.assert_allclose(components.axial_diameter_mm, axial, rtol=1e-12)


def test_single_voxel_is_as_long_as_its_diagonal_and_in_its_slice_as_that_of_its_face():
    mask = np.zeros(SHAPE, bool)
    mask[7, 2, 5] = True
    part = find_components(mask, AFFINE)
    assert part.longest_diameter_mm.tolist() == [pytest.approx(math.sqrt(0.25 + 1 + 9))]
    assert part.axial_diameter_mm.tolist() == [pytest.approx(math.sqrt(0.25 + 1))]


def test_box_is_as_long_as_its_diagonal():
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 2:4, 3:6] = True  # 2 x 2 x 9 mm
    part = find_components(mask, AFFINE)
    assert part.longest_diameter_mm.tolist() == [pytest.approx(math.sqrt(4 + 4 + 81))]
    assert part.axial_diameter_mm.tolist() == [pytest.approx(math.sqrt(8))]


def test_axial_diameter_is_that_of_the_slice_where_it_is_longest():
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 4, 2] = mask[0:10, 4, 3] = mask[9, 4, 4:7] = True
    part = find_components(mask, AFFINE)
    assert part.axial_diameter_mm.tolist() == [pytest.approx(math.sqrt(25 + 1))]


@pytest.mark.parametrize("across", [0, 1, 2])
def test_slices_are_those_of_the_axis_nearest_to_the_worlds_z(across):
    """A rod along one array axis has its length in slices of the others only."""
    order = [axis for axis in range(3) if axis != across]
    affine = np.eye(4)
    affine[:3, :3] = 0
    # The slice axis runs downwards, somewhat obliquely.
    affine[2, across], affine[0, across] = -2, 0.5
    affine[0, order[0]] = affine[1, order[1]] = 1
    mask = np.zeros((9, 9, 9), bool)
    rod = [4, 4, 4]
    rod[across] = slice(1, 8)
    mask[tuple(rod)] = True
    part = find_components(mask, affine)
    assert part.axial_diameter_mm.tolist() == [pytest.approx(math.sqrt(2))]
    assert_exact(part)


@settings(max_examples=80, deadline=None)
@given(
    arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6)),
    st.integers(0, 10**6),
    st.sampled_from([6, 26]),
)
def test_diameters_are_those_of_all_corners_on_oblique_and_sheared_grids(mask, seed, connectivity):
    affine = np.eye(4)
    affine[:3] = np.random.default_rng(seed).standard_normal((3, 4))
    assert_exact(find_components(mask, affine, connectivity=connectivity))


@pytest.mark.parametrize("seed", range(3))
def test_diameters_of_smooth_parts_of_all_sizes_are_those_of_all_corners(seed):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((24, 30, 18)), 2)
    affine = np.eye(4)
    affine[:3, :3] = rng.standard_normal((3, 3))
    parts = find_components(field > 1.3 * field.std(), affine)
    assert len(parts) > 5
    assert parts.num_voxels.max() > 100
    assert_exact(parts)


def test_large_ball_whose_hull_is_taken_is_as_long_as_all_its_surface_corners_say():
    index = np.indices((72, 70, 68)) - np.array([35, 34, 33])[:, None, None, None]
    ball = (index**2).sum(axis=0) <= 33.2**2
    affine = np.diag([0.7, 0.9, 1.3, 1])
    part = find_components(ball, affine)
    # The ball is symmetric about the middle of a voxel, so that its longest distance leads through it: a corner at
    # voxel steps a, b, c (all taken positive) from the middle is half a voxel further out on each axis.
    steps = np.abs(np.argwhere(ball) - [35, 34, 33])
    assert part.longest_diameter_mm[0] == pytest.approx(
        2 * np.linalg.norm((steps + 0.5) * [0.7, 0.9, 1.3], axis=1).max(), rel=1e-12
    )
    flat = steps[:, :2] + 0.5
    assert part.axial_diameter_mm[0] == pytest.approx(2 * np.linalg.norm(flat * [0.7, 0.9], axis=1).max(), rel=1e-12)


@pytest.mark.parametrize("num_coordinates", [2, 3])
def test_distances_of_large_sets_are_those_of_all_pairs(num_coordinates):
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 256, 257, 3000, 5]
    points = rng.integers(0, 100, (sum(sizes), num_coordinates))
    start = np.cumsum([0, *sizes[:-1]])
    columns = rng.standard_normal((3, num_coordinates))
    expected = [pdist(part @ columns.T).max(initial=0) for part in np.split(points, start[1:])]
    np.testing.assert_allclose(longest_distances(points, start, columns), expected, rtol=1e-12)


def test_no_part_has_no_diameter():
    parts = find_components(np.zeros(SHAPE, bool), AFFINE)
    assert parts.longest_diameter_mm.shape == parts.axial_diameter_mm.shape == (0,)
