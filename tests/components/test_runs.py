"""Both ways to connect voxels, runs and cc3d in a box, against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from medfocal.components import find_components
from medfocal.components.boxes import label
from medfocal.components.runs import Runs

STRUCTURE = {
    connectivity: ndimage.generate_binary_structure(3, rank) for connectivity, rank in ((6, 1), (18, 2), (26, 3))
}
MASKS = arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=7))


def by_runs(mask, connectivity):
    """Labels that say which voxels belong together, by runs."""
    runs = Runs.of(np.flatnonzero(mask), mask.shape)
    labels = np.zeros(mask.shape, int)
    labels[mask] = np.repeat(runs.parts(connectivity), runs.length) + 1
    return labels


def in_box(mask, connectivity):
    return label(mask, connectivity)[0].astype(int)


def assert_same_parts(labels, expected):
    """The same voxels together, under whatever numbers."""
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(labels)) == len(np.unique(expected))


@pytest.mark.parametrize("connect", [by_runs, in_box])
@settings(max_examples=100, deadline=None)
@given(MASKS, st.sampled_from([6, 18, 26]))
def test_parts_are_those_of_scipy(connect, mask, connectivity):
    expected, _ = ndimage.label(mask, STRUCTURE[connectivity])
    assert_same_parts(connect(mask, connectivity), expected)


@pytest.mark.parametrize("connect", [by_runs, in_box])
@pytest.mark.parametrize("density", [0.03, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_parts_of_random_volumes_of_all_shapes_are_those_of_scipy(connectivity, density, connect):
    rng = np.random.default_rng(int(100 * density))
    for _ in range(25):
        mask = rng.random(rng.integers(1, 14, 3)) < density
        expected, _ = ndimage.label(mask, STRUCTURE[connectivity])
        assert_same_parts(connect(mask, connectivity), expected)


@pytest.mark.parametrize("connect", [by_runs, in_box])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0, 7), (0, 1, 0)),  # end of a line, begin of the next
        ((0, 9, 7), (1, 0, 0)),  # end of a plane, begin of the next
        ((0, 9, 3), (1, 0, 3)),  # last line of a plane, first of the next
        ((0, 9, 3), (2, 0, 3)),
        ((0, 0, 0), (11, 9, 7)),
        ((4, 0, 3), (4, 9, 3)),
        ((0, 4, 3), (11, 4, 3)),
    ],
)
def test_opposite_borders_of_a_volume_do_not_touch(one, other, connect):
    mask = np.zeros((12, 10, 8), bool)
    mask[one] = mask[other] = True
    assert connect(mask, 26).max() == 2


def test_few_and_many_voxels_give_the_same_parts_in_the_same_order():
    """A volume so empty that runs are used, and the box around the same voxels, where cc3d is."""
    rng = np.random.default_rng(5)
    wide = np.zeros((120, 100, 80), bool)
    wide[40:60, 30:50, 20:40] = rng.random((20, 20, 20)) < 0.15
    narrow = wide[40:60, 30:50, 20:40]
    assert np.count_nonzero(wide) < 0.002 * wide.size
    for connectivity in (6, 18, 26):
        found = [find_components(mask, np.eye(4), connectivity=connectivity) for mask in (wide, narrow)]
        assert len(found[0]) > 10
        np.testing.assert_array_equal(found[0].labels[40:60, 30:50, 20:40], found[1].labels)
        np.testing.assert_array_equal(found[0].bounding_box - [[40], [30], [20]], found[1].bounding_box)
        np.testing.assert_allclose(found[0].centroid_voxel - [40, 30, 20], found[1].centroid_voxel, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_runs_hold_the_voxels_they_were_made_of(mask):
    runs = Runs.of(np.flatnonzero(mask), mask.shape)
    np.testing.assert_array_equal(runs.positions(), np.flatnonzero(mask))
    assert len(runs) == np.count_nonzero(np.diff(mask.astype(int), axis=2, prepend=0) == 1)


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_grown_runs_are_the_dilation_of_scipy(mask):
    grown = Runs.of(np.flatnonzero(mask), mask.shape).grown()
    np.testing.assert_array_equal(grown.positions(), np.flatnonzero(ndimage.binary_dilation(mask, STRUCTURE[18])))
    assert (grown.first[1:] > grown.end[:-1]).all()
