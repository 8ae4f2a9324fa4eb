import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from medfocal.components import find_at_threshold

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def line(*values):
    """A map that holds the values along i, at j = 4, k = 3."""
    probability = np.zeros(SHAPE, np.float32)
    probability[: len(values), 4, 3] = values
    return probability


def extents(candidates):
    return [np.flatnonzero(candidates.labels[:, 4, 3] == n + 1).tolist() for n in range(len(candidates))]


def test_candidates_are_cut_at_the_threshold_and_numbered_by_falling_confidence():
    candidates = find_at_threshold(line(0.3, 0.6, 0.4, 0.5, 0.9), AFFINE, threshold=0.5)
    assert extents(candidates) == [[3, 4], [1]]
    np.testing.assert_allclose(candidates.confidence, [0.9, 0.6], rtol=1e-6)
    assert candidates.peak.tolist() == [4 * 80 + 4 * 8 + 3, 80 + 4 * 8 + 3]


def test_candidates_of_equal_confidence_are_numbered_by_first_voxel():
    assert extents(find_at_threshold(line(0.5, 0, 0.9, 0, 0.5), AFFINE, threshold=0.5)) == [[2], [0], [4]]


def test_threshold_zero_takes_every_voxel_above_zero_and_no_other():
    assert extents(find_at_threshold(line(0.001, 0, 1e-30), AFFINE, threshold=0)) == [[0], [2]]


def test_threshold_one_takes_certain_voxels():
    assert extents(find_at_threshold(line(1, 0.99, 1), AFFINE, threshold=1)) == [[0], [2]]


@pytest.mark.parametrize(("threshold", "num_candidates"), [(0.7, 0), (float(np.float32(0.7)), 1)])
def test_threshold_is_not_rounded_to_the_precision_of_the_map(threshold, num_candidates):
    """0.7 in single precision is 0.69999999: a candidate with this confidence does not count at 0.7."""
    candidates = find_at_threshold(line(0.7), AFFINE, threshold=threshold)
    assert len(candidates) == num_candidates
    assert (candidates.confidence >= threshold).all()


def test_mean_top_is_the_mean_of_the_five_highest_voxels():
    probability = line(0.5, 0.6, 0.9, 0.8, 0.7, 0.55, 0, 0.3, 0.2)
    candidates = find_at_threshold(probability, AFFINE, threshold=0.1, confidence="mean_top")
    np.testing.assert_allclose(candidates.confidence, [(0.9 + 0.8 + 0.7 + 0.6 + 0.55) / 5, 0.25], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.sampled_from([0, 0.2, 0.4, 0.7])),
    st.sampled_from([0, 0.2, 0.4, 0.6]),
    st.sampled_from([6, 18, 26]),
)
def test_candidates_are_the_parts_that_scipy_finds(probability, threshold, connectivity):
    inside = probability > 0 if threshold == 0 else probability.astype(float) >= threshold
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    expected, num_parts = ndimage.label(inside, structure)
    candidates = find_at_threshold(probability, AFFINE, threshold=threshold, connectivity=connectivity)
    pairs = np.unique(np.stack([candidates.labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(expected)) == len(np.unique(candidates.labels))
    assert len(candidates) == num_parts
    place = [np.flatnonzero(candidates.labels == number)[0] for number in range(1, num_parts + 1)]
    ranking = list(zip(-candidates.confidence, place, strict=True))
    assert ranking == sorted(ranking)
    for number in range(1, num_parts + 1):
        own = np.flatnonzero(candidates.labels == number)
        values = probability.ravel()[own]
        assert candidates.confidence[number - 1] == values.max()
        assert candidates.peak[number - 1] == own[np.argmax(values)]


def test_map_below_the_threshold_has_no_candidates():
    assert len(find_at_threshold(line(0.3), AFFINE, threshold=0.4)) == 0


@pytest.mark.parametrize(("argument", "value"), [("threshold", -0.1), ("threshold", 1.1), ("confidence", "mean")])
def test_argument_out_of_range_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be"):
        find_at_threshold(line(0.5), AFFINE, **({"threshold": 0.5} | {argument: value}))


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_value_that_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\] without NaN"):
        find_at_threshold(line(0.5, value), AFFINE, threshold=0.5)
