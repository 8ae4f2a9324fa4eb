import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lesion_cases import AFFINE, LESION_CASES
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medfocal.components import find_candidates, find_components
from medfocal.evaluate.matching import match_lesions
from medfocal.evaluate.overlap import Overlaps, find_overlaps, voxel_dice


def overlaps_of(table: np.ndarray) -> Overlaps:
    """Overlaps from a table of shared voxels, lesions down and candidates across."""
    lesion, candidate = np.nonzero(table)
    return Overlaps(lesion + 1, candidate + 1, table[lesion, candidate])


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_pairs_of_each_lesion_case_are_those_worked_out_by_hand(case):
    lesions = find_components(case.reference, AFFINE)
    candidates = find_candidates(case.probability, AFFINE)
    assert len(lesions) == case.num_lesions
    pairs = match_lesions(find_overlaps(lesions.labels, candidates.labels), candidates.confidence)
    assert pairs == case.pairs
    assert len(candidates) - len(pairs) == case.num_false


def test_best_overlap_wins_among_equally_sure_candidates():
    """Lesion 1 shares 6 and 1, lesion 2 shares 2 voxels: 1-1 and nothing for 2, or 1-2 and 2-1: more pairs first."""
    table = np.array([[6, 1], [2, 0]])
    assert match_lesions(overlaps_of(table), np.ones(2)) == {1: 2, 2: 1}
    assert match_lesions(overlaps_of(np.array([[6, 3], [2, 1]])), np.ones(2)) == {1: 1, 2: 2}


def test_surer_candidate_keeps_its_lesion_when_another_shares_more():
    assert match_lesions(overlaps_of(np.array([[1, 1000]])), np.array([0.9, 0.8])) == {1: 1}


def test_lesions_without_overlap_are_not_paired():
    assert match_lesions(overlaps_of(np.zeros((3, 2), int)), np.ones(2)) == {}


def count_by_bipartite_matching(table, confidence, threshold):
    graph = csr_array(table[:, confidence >= threshold] > 0)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


tables = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.tuples(
        st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda cells: np.reshape(cells, shape)
        ),
        st.lists(st.sampled_from([0.2, 0.4, 0.6, 0.8]), min_size=shape[1], max_size=shape[1]).map(np.array),
    )
)


@settings(max_examples=150, deadline=None)
@given(tables)
def test_as_many_lesions_as_possible_are_found_at_every_threshold(drawn):
    table, confidence = drawn
    pairs = match_lesions(overlaps_of(table), confidence)
    assert len(set(pairs.values())) == len(pairs)
    assert all(table[lesion - 1, candidate - 1] > 0 for lesion, candidate in pairs.items())
    for threshold in (0.2, 0.4, 0.6, 0.8):
        found = sum(confidence[candidate - 1] >= threshold for candidate in pairs.values())
        assert found == count_by_bipartite_matching(table, confidence, threshold)


@settings(max_examples=60, deadline=None)
@given(tables.filter(lambda drawn: max(drawn[0].shape) <= 4))
def test_pairing_is_the_best_of_all_pairings(drawn):
    """By trying every pairing: most pairs from the highest confidence down, then most shared voxels."""
    table, confidence = drawn

    def quality(pairs):
        ratings = [confidence[candidate] for _, candidate in pairs]
        counts = [sum(rating >= threshold for rating in ratings) for threshold in (0.8, 0.6, 0.4, 0.2)]
        return (*counts, sum(int(table[pair]) for pair in pairs))

    num_lesions, num_candidates = table.shape
    # A lesion may stay without a candidate: as many places for nothing as there are lesions.
    places = range(num_candidates + num_lesions)
    pairings = [
        [pair for pair in enumerate(chosen) if pair[1] < num_candidates and table[pair] > 0]
        for chosen in itertools.permutations(places, num_lesions)
    ]
    ours = [(lesion - 1, candidate - 1) for lesion, candidate in match_lesions(overlaps_of(table), confidence).items()]
    assert quality(ours) == max(quality(pairs) for pairs in pairings)


def test_shared_voxels_are_counted_for_each_pair():
    lesions, candidates = np.zeros((12, 10, 8), np.int32), np.zeros((12, 10, 8), np.int32)
    lesions[0:4, 0, 0], lesions[6:9, 2, 1] = 1, 2
    candidates[2:7, 0, 0], candidates[8, 2, 1], candidates[6, 2, 1] = 1, 3, 1
    overlaps = find_overlaps(lesions, candidates)
    found = zip(overlaps.lesion, overlaps.candidate, overlaps.num_voxels, strict=True)
    assert list(found) == [(1, 1, 2), (2, 1, 1), (2, 3, 1)]


def test_voxel_dice_is_undefined_where_both_masks_are_empty_and_zero_where_one_is():
    assert np.isnan(voxel_dice(0, 0, 0))
    assert voxel_dice(0, 0, 5) == 0
    assert voxel_dice(3, 4, 6) == 0.6
