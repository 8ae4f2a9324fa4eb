"""A volume on another grid: read at its world coordinate, 0 outside, refused where the two lie apart."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial.transform import Rotation

from medfocal.errors import GeometryError
from medfocal.volume import Volume, resample_linear, resample_nearest

SHAPE = (12, 10, 8)
SOURCE = np.array([[-0.5, 0, 0, 3], [0, 1, 0, -17], [0, 0, 3, -42], [0, 0, 0, 1.0]])


def turned():
    """Coarser, permuted, oblique, and partly outside of the source."""
    affine = np.eye(4)
    axes = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0.0]])
    affine[:3, :3] = Rotation.from_euler("xyz", (12, -7, 5), degrees=True).as_matrix() @ axes * (0.9, 2.1, 0.7)
    affine[:3, 3] = (-3, -14, -25)
    return Volume(np.zeros((7, 9, 6)), affine)


def where_in_source(like):
    world = apply_affine(like.affine, np.moveaxis(np.indices(like.shape), 0, -1))
    return apply_affine(np.linalg.inv(SOURCE), world)


def test_linear_values_are_those_of_an_independent_interpolator_and_0_outside():
    values = np.random.default_rng(0).uniform(1, 2, SHAPE)
    like = turned()
    found = resample_linear(Volume(values, SOURCE), like)
    padded = np.pad(values, 1)  # outside, voxels of 0 follow
    axes = [np.arange(-1, n + 1) for n in SHAPE]
    expected = RegularGridInterpolator(axes, padded, bounds_error=False, fill_value=0)(where_in_source(like))
    np.testing.assert_allclose(found.array, expected, atol=1e-12)
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_array_equal(found.affine, like.affine)


def test_the_nearest_voxel_gives_its_value_and_type_and_0_outside():
    values = np.random.default_rng(1).integers(1, 200, SHAPE).astype(np.int16)
    like = turned()
    found = resample_nearest(Volume(values, SOURCE), like)
    nearest = np.floor(where_in_source(like) + 0.5).astype(int)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(axis=-1)
    expected = np.where(inside, values[tuple(np.clip(np.moveaxis(nearest, -1, 0), 0, np.array(SHAPE)[:, None, None, None] - 1))], 0)  # fmt: skip  # noqa: E501
    np.testing.assert_array_equal(found.array, expected)
    assert found.array.dtype == np.int16
    assert 0 < inside.sum() < inside.size


def test_integers_are_interpolated_as_numbers_with_fractions():
    values = np.zeros(SHAPE, np.uint8)
    values[5, 4, 3] = 200
    like = Volume(np.zeros(SHAPE), SOURCE @ np.array([[1, 0, 0, 0.25], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    found = resample_linear(Volume(values, SOURCE), like).array
    assert found.dtype == np.float32
    assert (found[4, 4, 3], found[5, 4, 3]) == (50, 150)


@pytest.mark.parametrize("resample", [resample_nearest, resample_linear])
def test_a_grid_of_flipped_and_permuted_axes_gives_the_same_voxels(resample):
    values = np.random.default_rng(2).random(SHAPE, np.float32)
    swap = np.array([[0, -1, 0, 11], [0, 0, 1, 0], [-1, 0, 0, 7], [0, 0, 0, 1.0]])
    like = Volume(np.zeros((8, 12, 10)), SOURCE @ swap)
    expected = values[::-1, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_allclose(resample(Volume(values, SOURCE), like).array, expected, atol=1e-6)


@pytest.mark.parametrize("resample", [resample_nearest, resample_linear])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_grids_that_lie_apart_are_refused_and_grids_that_touch_are_not(resample, axis, side):
    values = np.ones(SHAPE, np.float32)

    def beside(voxels):
        shift = np.eye(4)
        shift[axis, 3] = side * voxels
        return Volume(np.zeros(SHAPE), SOURCE @ shift)

    with pytest.raises(GeometryError, match=r"lie apart: origin"):
        resample(Volume(values, SOURCE), beside(SHAPE[axis] + 0.1))
    assert resample(Volume(values, SOURCE), beside(SHAPE[axis] - 1)).array.any()
