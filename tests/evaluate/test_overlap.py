import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medfocal.components import find_components, find_grown, find_instances
from medfocal.evaluate.overlap import find_overlaps, voxel_dice

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def rows(overlaps):
    columns = overlaps.lesion, overlaps.candidate, overlaps.num_voxels, overlaps.num_grown
    return list(zip(*(column.tolist() for column in columns), strict=True))


def mask_of(*boxes):
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return mask


def test_shared_voxels_are_counted_for_each_pair_by_lesion_and_then_by_candidate():
    lesions = find_components(mask_of(np.s_[0:4, 0, 0], np.s_[6:9, 2, 1]), AFFINE)
    candidates = find_components(mask_of(np.s_[2:5, 0, 0], np.s_[6, 2, 1], np.s_[8, 2, 1], np.s_[11, 9, 7]), AFFINE)
    assert rows(find_overlaps(lesions, candidates)) == [(1, 1, 2, 2), (2, 2, 1, 1), (2, 3, 1, 1)]


def test_candidate_that_meets_only_the_grown_lesion_shares_none_of_its_own_voxels():
    lesions, grown = find_grown(mask_of(np.s_[4:6, 4, 3], np.s_[4, 4, 7]), AFFINE, steps=1)
    candidates = find_components(mask_of(np.s_[5:8, 4, 3], np.s_[4, 5, 6], np.s_[0, 0, 0]), AFFINE)
    # In C order (0, 0, 0) is the first candidate, then (4, 5, 6) beside lesion 2, then the bar, of which one voxel lies
    # in lesion 1 and one beside it.
    assert rows(find_overlaps(lesions, candidates, grown)) == [(1, 3, 1, 2), (2, 2, 0, 1)]


def test_row_of_a_pair_is_found_and_a_pair_that_shares_nothing_has_none():
    lesions = find_components(mask_of(np.s_[0:4, 0, 0], np.s_[6:9, 2, 1]), AFFINE)
    candidates = find_components(mask_of(np.s_[2:5, 0, 0], np.s_[6, 2, 1], np.s_[11, 9, 7]), AFFINE)
    overlaps = find_overlaps(lesions, candidates)  # pairs (1, 1) and (2, 2); candidate 3 is in none
    # The last of these would be (2, 2) if lesions were told apart by the highest candidate of the pairs.
    wanted = np.array([[2, 2], [1, 1], [2, 1], [1, 0], [1, 3], [1, 5]])
    assert overlaps.rows_of(*wanted.T).tolist() == [1, 0, -1, -1, -1, -1]
    nothing = find_overlaps(lesions, find_components(mask_of(), AFFINE))
    assert nothing.rows_of(*wanted.T).tolist() == [-1] * 6


@settings(max_examples=60, deadline=None)
@given(arrays(np.int8, (5, 4, 3), elements=st.integers(0, 3)), arrays(np.int8, (5, 4, 3), elements=st.integers(0, 4)))
def test_pairs_are_those_of_a_loop_over_all_parts(lesion_numbers, candidate_numbers):
    lesions, candidates = (find_instances(n, AFFINE)[0] for n in (lesion_numbers, candidate_numbers))
    expected = [
        (lesion, candidate, shared, shared)
        for lesion in range(1, len(lesions) + 1)
        for candidate in range(1, len(candidates) + 1)
        if (shared := np.count_nonzero((lesions.labels == lesion) & (candidates.labels == candidate)))
    ]
    assert rows(find_overlaps(lesions, candidates)) == expected


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (7, 6, 5)), arrays(bool, (7, 6, 5)), st.integers(1, 2))
def test_pairs_with_grown_lesions_are_those_of_a_loop_over_all_parts(mask, predicted, steps):
    # Fewer voxels, so that not everything grows into one.
    mask[1::2], mask[:, 1::3] = False, False
    lesions, grown = find_grown(mask, AFFINE, steps=steps)
    candidates = find_components(predicted, AFFINE, connectivity=6)
    expected = [
        (lesion, candidate, np.count_nonzero((lesions.labels == lesion) & own), shared)
        for lesion in range(1, len(lesions) + 1)
        for candidate in range(1, len(candidates) + 1)
        if (shared := np.count_nonzero((grown.labels == lesion) & (own := candidates.labels == candidate)))
    ]
    assert rows(find_overlaps(lesions, candidates, grown)) == expected


@pytest.mark.parametrize("empty", ["lesions", "candidates", "both"])
def test_without_lesions_or_candidates_there_is_no_pair(empty):
    full, none = mask_of(np.s_[2:5, 3, 3]), mask_of()
    lesions, grown = find_grown(none if empty != "candidates" else full, AFFINE, steps=1)
    candidates = find_components(none if empty != "lesions" else full, AFFINE)
    assert len(find_overlaps(lesions, candidates)) == len(find_overlaps(lesions, candidates, grown)) == 0


def test_other_grid_is_refused():
    lesions, other = find_components(mask_of(), AFFINE), find_components(np.zeros((12, 8, 10), bool), AFFINE)
    with pytest.raises(ValueError, match=r"candidates must have one shape, got \(12, 10, 8\) and \(12, 8, 10\)"):
        find_overlaps(lesions, other)
    with pytest.raises(ValueError, match="grown lesions must have one shape"):
        find_overlaps(lesions, lesions, other)


def test_voxel_dice_is_undefined_where_both_masks_are_empty_and_zero_where_one_is():
    assert np.isnan(voxel_dice(0, 0, 0))
    assert voxel_dice(0, 0, 5) == 0
    assert voxel_dice(3, 4, 6) == 0.6
