import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from medfocal.components import find_candidates
from medfocal.components.hills import label_hills, levels_of, number_hills

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)
STRUCTURE = {
    connectivity: ndimage.generate_binary_structure(3, rank) for connectivity, rank in ((6, 1), (18, 2), (26, 3))
}


def line(*values: float) -> np.ndarray:
    """A map that holds the values along i, at j = 4, k = 3."""
    probability = np.zeros(SHAPE, np.float32)
    probability[: len(values), 4, 3] = values
    return probability


def extents(candidates) -> list[list[int]]:
    return [np.flatnonzero(candidates.labels[:, 4, 3] == n + 1).tolist() for n in range(len(candidates))]


def test_hill_reaches_down_to_half_its_height():
    # 0.8 is rounded down to the level 2 ** (-3 / 8) = 0.771, of which half is 0.386.
    hill = find_candidates(line(0.1, 0.38, 0.39, 0.8, 0.5, 0.3), AFFINE)
    assert extents(hill) == [[2, 3, 4]]
    assert hill.confidence.tolist() == [pytest.approx(0.8)]
    assert hill.volume_ml.tolist() == [pytest.approx(0.0045)]


def test_low_hill_beside_a_high_one_is_a_candidate_if_the_valley_is_below_half_of_it():
    hills = find_candidates(line(0.9, 0.6, 0.1, 0.3, 0.2), AFFINE)
    assert extents(hills) == [[0, 1], [3, 4]]
    np.testing.assert_allclose(hills.confidence, [0.9, 0.3])


def test_bump_on_a_shoulder_is_part_of_the_skirt_and_no_candidate():
    # The valley, 0.2, is above half of 0.3; and 0.3 is below half of 0.9.
    assert extents(find_candidates(line(0.9, 0.2, 0.3, 0.2), AFFINE)) == [[0]]


def test_two_peaks_with_a_shallow_valley_are_one_candidate():
    assert extents(find_candidates(line(0.9, 0.6, 0.8, 0.2), AFFINE)) == [[0, 1, 2]]


def test_two_equal_peaks_with_a_deep_valley_are_two_candidates():
    assert extents(find_candidates(line(0.8, 0.2, 0.8), AFFINE)) == [[0], [2]]


def test_plateau_is_one_candidate():
    assert extents(find_candidates(line(0.5, 0.5, 0.5), AFFINE)) == [[0, 1, 2]]


def test_extent_ratio_sets_how_far_a_hill_reaches():
    probability = line(0.1, 0.3, 0.8, 0.5, 0.2)
    assert extents(find_candidates(probability, AFFINE, extent_ratio=0.25)) == [[1, 2, 3, 4]]
    assert extents(find_candidates(probability, AFFINE, extent_ratio=0.75)) == [[2]]


def test_hill_below_the_floor_is_not_formed():
    probability = line(0.049, 0, 0.051)
    assert extents(find_candidates(probability, AFFINE, floor=0.05)) == [[2]]


def test_floor_holds_for_the_height_itself_and_not_for_its_level():
    assert len(find_candidates(line(0.05), AFFINE, floor=float(np.float32(0.05)))) == 1
    assert len(find_candidates(line(0.05), AFFINE, floor=0.0501)) == 0


def test_map_without_foreground_has_no_candidates():
    assert len(find_candidates(np.full(SHAPE, 0.001), AFFINE)) == 0


def test_constant_map_is_one_candidate():
    whole = find_candidates(np.full(SHAPE, 0.3), AFFINE)
    assert whole.num_voxels.tolist() == [960]


def test_mean_top_is_the_mean_of_the_five_highest_voxels():
    probability = line(0.5, 0.6, 0.9, 0.8, 0.7, 0.55, 0, 0.3, 0.2)
    candidates = find_candidates(probability, AFFINE, confidence="mean_top")
    np.testing.assert_allclose(candidates.confidence, [(0.9 + 0.8 + 0.7 + 0.6 + 0.55) / 5, 0.25], rtol=1e-6)


def test_candidates_are_numbered_by_falling_confidence_and_then_by_first_voxel():
    candidates = find_candidates(line(0.3, 0, 0.9, 0, 0.3), AFFINE)
    assert extents(candidates) == [[2], [0], [4]]


def test_faces_only_keep_diagonal_peaks_apart():
    probability = np.zeros(SHAPE)
    probability[4, 4, 4], probability[5, 5, 5] = 0.9, 0.8
    assert len(find_candidates(probability, AFFINE)) == 1
    assert len(find_candidates(probability, AFFINE, connectivity=6)) == 2


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_value_that_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\] without NaN"):
        find_candidates(line(0.5, value), AFFINE)


@pytest.mark.parametrize(
    ("argument", "value"), [("extent_ratio", 1.0), ("extent_ratio", 0.0), ("floor", 0.0), ("confidence", "mean")]
)
def test_argument_out_of_range_is_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be"):
        find_candidates(line(0.5), AFFINE, **{argument: value})


def brute_force(probability, *, extent_ratio, floor, connectivity):
    """For each height of the rounded map label everything above its share, and keep the parts of that height."""
    depth = np.array(
        [next((k for k in range(400) if extent_ratio ** (k / 8) <= p), 10**6) for p in probability.ravel().tolist()]
    ).reshape(probability.shape)
    found = set()
    for top in np.unique(depth[depth < 10**6]):
        parts, num_parts = ndimage.label(depth <= top + 8, structure=STRUCTURE[connectivity])
        for part in range(1, num_parts + 1):
            inside = parts == part
            if depth[inside].min() == top and probability[inside].max() >= floor:
                found.add(frozenset(np.flatnonzero(inside).tolist()))
    return found


def voxel_sets(candidates):
    return {frozenset(np.flatnonzero(candidates.labels == n + 1).tolist()) for n in range(len(candidates))}


@settings(max_examples=60, deadline=None)
@given(
    # Squares of evenly spread values: heights over the whole ladder, with ties and voxels below the floor.
    arrays(np.float32, (7, 5, 4), elements=st.integers(0, 20).map(lambda n: (n / 20) ** 3)),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.sampled_from([6, 18, 26]),
)
def test_candidates_are_those_of_a_brute_force_search(probability, extent_ratio, connectivity):
    rules = {"extent_ratio": extent_ratio, "floor": 0.02, "connectivity": connectivity}
    candidates = find_candidates(probability, AFFINE, **rules)
    assert voxel_sets(candidates) == brute_force(probability, **rules)


@pytest.mark.parametrize("seed", range(4))
def test_candidates_of_a_smooth_field_are_those_of_a_brute_force_search(seed):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((20, 16, 12)), 1.2)
    probability = 1 / (1 + np.exp(4 - 8 * field / field.std() / 2))
    rules = {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26}
    candidates = find_candidates(probability, AFFINE, **rules)
    assert len(candidates) > 5
    assert voxel_sets(candidates) == brute_force(probability, **rules)


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float32, (7, 5, 4), elements=st.integers(0, 20).map(lambda n: (n / 20) ** 3)),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.sampled_from([6, 18, 26]),
)
def test_hills_joined_by_runs_are_those_labelled_in_a_box(probability, extent_ratio, connectivity):
    levels = levels_of(extent_ratio, 0.02)
    inside = np.flatnonzero(probability >= levels[-1])
    by_runs = number_hills(inside, probability.ravel()[inside], probability.shape, levels, connectivity)
    in_box = label_hills(probability, levels, connectivity).ravel()[inside]
    pairs = np.unique(np.stack([by_runs, in_box]), axis=1)
    assert pairs.shape[1] == len(np.unique(by_runs)) == len(np.unique(in_box))
    np.testing.assert_array_equal(by_runs > 0, in_box > 0)
    assert by_runs.max(initial=0) == len(np.setdiff1d(by_runs, 0))


@pytest.mark.parametrize("seed", range(4))
def test_hills_in_an_almost_empty_volume_are_those_of_a_brute_force_search(seed):
    """Less than 2 % of the volume: runs are joined. The fields touch two of its borders."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((20, 16, 12)), 1.2)
    block = 1 / (1 + np.exp(4 - 8 * field / field.std() / 2))
    probability = np.zeros((100, 50, 40))
    place = np.s_[-20:, :16, 9:21]
    probability[place] = block
    candidates = find_candidates(probability, AFFINE)
    inside = np.arange(probability.size).reshape(probability.shape)[place].ravel()
    expected = brute_force(block, extent_ratio=0.5, floor=0.01, connectivity=26)
    assert len(candidates) > 5
    assert voxel_sets(candidates) == {frozenset(inside[sorted(hill)].tolist()) for hill in expected}
    assert (probability.ravel()[candidates.peak] == candidates.confidence).all()


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (6, 5, 4), elements=st.floats(0, 1)))
def test_candidates_are_disjoint_and_each_keeps_to_its_own_height(probability):
    """Labels can't overlap; that sizes add up shows that no candidate was painted over by another."""
    candidates = find_candidates(probability, AFFINE)
    assert candidates.num_voxels.sum() == np.count_nonzero(candidates.labels)
    assert set(np.unique(candidates.labels)) - {0} == set(range(1, len(candidates) + 1))
    for number, confidence in enumerate(candidates.confidence, start=1):
        values = probability[candidates.labels == number]
        assert confidence == values.max() >= 0.01
        # Rounding to a level may take in voxels below half by one level, 2 ** (-1 / 8).
        assert values.min() >= 0.5 * confidence * 2 ** (-1 / 8) * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(arrays(np.int64, (6, 5, 4), elements=st.integers(0, 60)), st.integers(0, 24))
def test_scaling_the_map_changes_no_candidate(depth, steps):
    """Values in the middle between two levels, so that rounding of the product moves none across."""
    ladder = 0.5 ** ((depth + 0.5) / 8)
    plain = find_candidates(ladder, AFFINE, floor=1e-4)
    scaled = find_candidates(ladder * 0.5 ** (steps / 8), AFFINE, floor=1e-4)
    np.testing.assert_array_equal(plain.labels, scaled.labels)


def test_memory_order_changes_no_number():
    probability = np.zeros(SHAPE)
    probability[0, 9, 7] = probability[5, 4, 3] = probability[11, 0, 0] = 0.5
    labels = find_candidates(np.asfortranarray(probability), AFFINE).labels
    assert (labels[0, 9, 7], labels[5, 4, 3], labels[11, 0, 0]) == (1, 2, 3)


@settings(max_examples=30, deadline=None)
@given(
    arrays(np.float64, (6, 5, 4), elements=st.floats(0, 1)),
    st.permutations([0, 1, 2]),
    st.sets(st.sampled_from([0, 1, 2])),
)
def test_turning_the_map_turns_the_candidates(probability, axes, flipped):
    def turn(array):
        return np.flip(array, tuple(flipped)).transpose(axes)

    turned = find_candidates(turn(probability), AFFINE)
    plain = find_candidates(probability, AFFINE)
    assert sorted(turned.confidence) == sorted(plain.confidence)
    np.testing.assert_array_equal(turned.labels > 0, turn(plain.labels > 0))
