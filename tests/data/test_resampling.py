"""Two grids with parallel axes: which voxel lies where, and when both are one."""

from __future__ import annotations

import numpy as np
import pytest

from medfocal.data.resampling import GridMap, map_between, map_to_spacing, resample_classes, resample_values

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 31], [0, 0, 3, 17], [0, -1, 0, -42], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("count", "step", "offset", "same"),
    [
        (200, 1.0, 0.0, True),
        (200, 1.000001, 0.0, True),
        (200, 1.0005, 0.0, False),  # the last voxel lies a tenth of a voxel away
        (200, 1.0, 0.5, False),
        (200, 1.0, -3.0, False),
        (199, 1.0, 0.0, False),
        (200, 0.999, 0.2, False),  # the last voxel is the same, the first is not
    ],
)
def test_grids_are_the_same_along_an_axis_when_every_voxel_is(count, step, offset, same):
    grids = GridMap((200, 10, 8), (count, 10, 8), (step, 1.0, 1.0), (offset, 0.0, 0.0))
    assert grids.is_identity(0) == same
    assert grids.is_same == same


def test_a_grid_that_starts_elsewhere_reads_its_own_voxels():
    """New voxels at 2.5, 3.5 … along the second axis, and beyond the end the last voxel."""
    shift = np.eye(4)
    shift[1, 3] = 2.5
    grids = map_between(SHAPE, AFFINE, SHAPE, AFFINE @ shift)
    assert grids.offsets == pytest.approx((0, 2.5, 0))
    ramp = np.broadcast_to(np.arange(10.0)[:, None], SHAPE)
    found = resample_values(ramp, grids)
    assert found[3, :, 2].tolist() == pytest.approx([2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9, 9, 9])
    label = np.zeros(SHAPE, np.uint8)
    label[4, 4:7, 3] = 1
    assert np.argwhere(resample_classes(label, grids)).tolist() == [[4, j, 3] for j in (1, 2, 3, 4)]
    assert grids.nearest(np.array([[4, 4, 3]])).tolist() == [[4, 2, 3]]


def test_another_spacing_starts_at_the_same_voxel_and_ends_nearest_to_the_last():
    grids, affine = map_to_spacing(SHAPE, AFFINE, (0.8, 1.0, 2.0), tolerance_mm=0.05)
    assert grids.new_shape == (8, 10, 12)  # 11 x 0.5 / 0.8 = 6.9 and 7 x 3 / 2 = 10.5 steps
    assert grids.steps == pytest.approx((1.6, 1.0, 2 / 3))
    np.testing.assert_array_equal(affine[:, 3], AFFINE[:, 3])
    np.testing.assert_allclose(affine[:3, :3], AFFINE[:3, :3] * [1.6, 1, 2 / 3])


def test_sheared_axes_stay_sheared():
    """As of a CT whose gantry was tilted."""
    sheared = AFFINE.copy()
    sheared[:3, 2] = (0.4, 3, 0.3)
    _, affine = map_to_spacing(SHAPE, sheared, (0.5, 1.0, 1.5), tolerance_mm=0.05)
    np.testing.assert_allclose(affine[:3, 2], sheared[:3, 2] * 1.5 / np.linalg.norm(sheared[:3, 2]))


@pytest.mark.parametrize("step", [1.2, 1.5, 2.0, 2.7, 7.3])
def test_no_voxel_is_passed_over_and_each_has_about_the_same_part(step):
    """Each voxel alone, 40 of them, summed over the new grid: 1 / step of it, but for the ends."""
    count = int(39 / step + 0.5) + 1
    grids = GridMap((40, 1, 1), (count, 1, 1), (step, 1.0, 1.0))
    parts = resample_values(np.eye(40, dtype=np.float32)[:, :, None, None], grids)[:, :, 0, 0].sum(axis=1)
    assert (parts > 0).all()
    inner = parts[int(2 * step) + 1 : -int(2 * step) - 1]
    assert inner * step == pytest.approx(np.ones(len(inner)), abs=0.12)


@pytest.mark.parametrize("step", [0.3, 1.001, 1.2, 2.0, 2.7, 7.3])
def test_a_constant_stays_and_a_ramp_stays_away_from_the_ends(step):
    count = int(39 / step + 0.5) + 1
    grids = GridMap((40, 1, 1), (count, 1, 1), (step, 1.0, 1.0))
    constant = resample_values(np.full((40, 1, 1), 7.0), grids)
    assert constant.ravel().tolist() == pytest.approx([7.0] * count)
    ramp = resample_values(np.arange(40.0)[:, None, None], grids).ravel()
    places = grids.places(0)
    inner = (places > step) & (places < 39 - step)
    assert ramp[inner].tolist() == pytest.approx(places[inner].tolist(), abs=1e-4)
