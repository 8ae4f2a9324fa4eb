import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from medfocal.components import find_components, find_grown

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)
STRUCTURE = {
    connectivity: ndimage.generate_binary_structure(3, rank) for connectivity, rank in ((6, 1), (18, 2), (26, 3))
}


def two_voxels(gap):
    """Two voxels along i with `gap` empty ones between them."""
    mask = np.zeros(SHAPE, bool)
    mask[3, 4, 3] = mask[4 + gap, 4, 3] = True
    return mask


@pytest.mark.parametrize(
    ("gap", "steps", "num_parts"), [(1, 0, 2), (1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 2, 1), (5, 2, 2)]
)
def test_lesions_that_grow_together_are_one(gap, steps, num_parts):
    """Growing both by n closes a gap of 2 n."""
    parts, _ = find_grown(two_voxels(gap), AFFINE, steps=steps)
    assert len(parts) == num_parts
    assert parts.num_voxels.sum() == 2


def test_parts_are_measured_on_their_own_voxels():
    parts, grown = find_grown(two_voxels(2), AFFINE, steps=1)
    assert parts.volume_ml.tolist() == [pytest.approx(0.003)]
    assert parts.bounding_box.tolist() == [[[3, 7], [4, 5], [3, 4]]]
    # The 18-neighbourhood with its middle has 19 voxels; the two lie beside each other.
    assert len(grown.voxels) == 38


def test_corner_is_not_grown_into():
    _, grown = find_grown(two_voxels(5), AFFINE, steps=1)
    assert grown.labels[2, 3, 3] == 1
    assert grown.labels[2, 3, 2] == 0


def test_numbers_follow_the_first_voxel_of_the_mask_and_not_of_the_grown_one():
    mask = np.zeros(SHAPE, bool)
    mask[4, 0, 5] = mask[4, 1, 1] = True  # grown they begin at (3, 0, 4) and (3, 0, 1)
    parts, grown = find_grown(mask, AFFINE, steps=1)
    assert (parts.labels[4, 0, 5], parts.labels[4, 1, 1]) == (1, 2)
    assert (grown.labels[3, 0, 4], grown.labels[3, 0, 1]) == (1, 2)


@settings(max_examples=80, deadline=None)
@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=8)), st.integers(0, 3), st.sampled_from([6, 18, 26]))
def test_grown_parts_are_those_of_scipy(mask, steps, connectivity):
    expected = ndimage.binary_dilation(mask, STRUCTURE[18], iterations=steps) if steps else mask
    expected, num_parts = ndimage.label(expected, STRUCTURE[connectivity])
    parts, grown = find_grown(mask, AFFINE, connectivity=connectivity, steps=steps)
    assert len(parts) == num_parts
    pairs = np.unique(np.stack([grown.labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected)) == len(np.unique(grown.labels))
    np.testing.assert_array_equal(parts.labels, np.where(mask, grown.labels, 0))
    first = [np.flatnonzero(parts.labels == number)[0] for number in range(1, num_parts + 1)]
    assert first == sorted(first)


def test_no_step_gives_the_components():
    mask = np.random.default_rng(0).random(SHAPE) < 0.2
    parts, grown = find_grown(mask, AFFINE, connectivity=18, steps=0)
    np.testing.assert_array_equal(parts.labels, find_components(mask, AFFINE, connectivity=18).labels)
    np.testing.assert_array_equal(parts.labels, grown.labels)


def test_empty_mask_has_nothing_to_grow():
    parts, grown = find_grown(np.zeros(SHAPE, bool), AFFINE, steps=3)
    assert len(parts) == len(grown.voxels) == 0


def test_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="steps must be 0 or more, got -1"):
        find_grown(two_voxels(1), AFFINE, steps=-1)
