import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lesion_cases import AFFINE, LESION_CASES
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medfocal.components import find_candidates, find_components
from medfocal.evaluate.hits import Hits
from medfocal.evaluate.matching import assign_hits
from medfocal.evaluate.overlap import find_overlaps, voxel_dice

ONE_TO_ONE = (
    "one_to_one_surest_first",
    "one_to_one_most_pairs",
    "one_to_one_max_sum",
    "greedy_by_score",
    "greedy_by_confidence",
)


def hits_of(table) -> Hits:
    """Hits from a table of measures, lesions down and candidates across; 0 is no hit."""
    table = np.asarray(table, float)
    lesion, candidate = np.nonzero(table)
    return Hits(lesion + 1, candidate + 1, table[lesion, candidate], table[lesion, candidate])


def pairs_of(table, confidence, assignment="one_to_one_surest_first") -> dict[int, int]:
    hits = hits_of(table)
    rows = assign_hits(hits, np.asarray(confidence, float), assignment)
    return dict(zip(hits.lesion[rows].tolist(), hits.candidate[rows].tolist(), strict=True))


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_pairs_of_each_lesion_case_are_those_worked_out_by_hand(case):
    lesions = find_components(case.reference, AFFINE)
    candidates = find_candidates(case.probability, AFFINE)
    assert len(lesions) == case.num_lesions
    table = np.zeros((len(lesions), len(candidates)))
    overlaps = find_overlaps(lesions, candidates)
    table[overlaps.lesion - 1, overlaps.candidate - 1] = overlaps.num_voxels
    pairs = pairs_of(table, candidates.confidence)
    assert pairs == case.pairs
    assert len(candidates) - len(pairs) == case.num_false


def test_best_overlap_wins_among_equally_sure_candidates():
    """Lesion 1 shares 6 and 1, lesion 2 shares 2 voxels: 1-1 and nothing for 2, or 1-2 and 2-1: more pairs first."""
    assert pairs_of([[6, 1], [2, 0]], np.ones(2)) == {1: 2, 2: 1}
    assert pairs_of([[6, 3], [2, 1]], np.ones(2)) == {1: 1, 2: 2}


def test_surer_candidate_keeps_its_lesion_when_another_shares_more():
    assert pairs_of([[1, 1000]], [0.9, 0.8]) == {1: 1}


@pytest.mark.parametrize("assignment", [*ONE_TO_ONE, "many_to_many"])
def test_without_hits_nothing_is_paired(assignment):
    assert pairs_of(np.zeros((3, 2)), np.ones(2), assignment) == {}
    assert pairs_of(np.zeros((0, 2)), np.ones(2), assignment) == {}
    assert pairs_of(np.zeros((3, 0)), np.ones(0), assignment) == {}


def test_chain_is_paired_by_each_assignment_as_worked_out_by_hand():
    """Sure 0.3 and 0.9; 1-1 alone is 0.7, 1-2 and 2-1 together 0.1 + 0.3 = 0.4 by measure."""
    table, sure = [[0.7, 0.1], [0.3, 0]], [0.3, 0.9]
    assert pairs_of(table, sure, "one_to_one_surest_first") == {1: 2, 2: 1}
    assert pairs_of(table, sure, "one_to_one_most_pairs") == {1: 2, 2: 1}
    assert pairs_of(table, sure, "one_to_one_max_sum") == {1: 1}
    assert pairs_of(table, sure, "greedy_by_score") == {1: 1}
    # The surest, candidate 2, takes lesion 1; candidate 1 then has lesion 2 left.
    assert pairs_of(table, sure, "greedy_by_confidence") == {1: 2, 2: 1}
    # With confidences swapped, candidate 1 takes the lesion of its highest measure.
    assert pairs_of(table, sure[::-1], "greedy_by_confidence") == {1: 1}


def test_many_to_many_keeps_every_hit():
    assert assign_hits(hits_of([[0.7, 0.1], [0.3, 0]]), np.ones(2), "many_to_many").tolist() == [0, 1, 2]


def test_of_equal_sums_the_one_with_more_pairs_is_taken():
    """panoptica gives a pair that is no hit a cost above 1 for that reason."""
    assert pairs_of([[0.5, 0.25], [0.25, 0]], np.ones(2), "one_to_one_max_sum") == {1: 2, 2: 1}


@pytest.mark.parametrize("assignment", ONE_TO_ONE)
def test_of_equal_hits_the_lowest_numbers_are_paired(assignment):
    assert pairs_of([[2, 2, 2]], np.ones(3), assignment) == {1: 1}
    assert pairs_of([[2], [2], [2]], np.ones(1), assignment) == {1: 1}


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
small_tables = tables.filter(lambda drawn: max(drawn[0].shape) <= 4)


@settings(max_examples=150, deadline=None)
@given(tables)
def test_as_many_lesions_as_possible_are_found_at_every_threshold(drawn):
    table, confidence = drawn
    pairs = pairs_of(table, confidence)
    assert len(set(pairs.values())) == len(pairs)
    assert all(table[lesion - 1, candidate - 1] > 0 for lesion, candidate in pairs.items())
    for threshold in (0.2, 0.4, 0.6, 0.8):
        found = sum(confidence[candidate - 1] >= threshold for candidate in pairs.values())
        assert found == count_by_bipartite_matching(table, confidence, threshold)


def all_pairings(table):
    num_lesions, num_candidates = table.shape
    # A lesion may stay without a candidate: as many places for nothing as there are lesions.
    places = range(num_candidates + num_lesions)
    return [
        [pair for pair in enumerate(chosen) if pair[1] < num_candidates and table[pair] > 0]
        for chosen in itertools.permutations(places, num_lesions)
    ]


def quality(pairs, table, confidence, assignment):
    """What the best pairing has most of, foremost first."""
    total = round(sum(float(table[pair]) for pair in pairs), 9)
    if assignment == "one_to_one_max_sum":
        return total, len(pairs)
    if assignment == "one_to_one_most_pairs":
        return len(pairs), total
    ratings = [confidence[candidate] for _, candidate in pairs]
    return (*[sum(rating >= threshold for rating in ratings) for threshold in (0.8, 0.6, 0.4, 0.2)], total)


@pytest.mark.parametrize("assignment", ONE_TO_ONE[:3])
@settings(max_examples=60, deadline=None)
@given(small_tables)
def test_pairing_is_the_best_of_all_pairings(assignment, drawn):
    table, confidence = drawn
    table = table / 5 if assignment == "one_to_one_max_sum" else table
    pairs = pairs_of(table, confidence, assignment)
    ours = [(lesion - 1, candidate - 1) for lesion, candidate in pairs.items()]
    best = max(quality(pairs, table, confidence, assignment) for pairs in all_pairings(table))
    assert quality(ours, table, confidence, assignment) == best


@pytest.mark.parametrize("assignment", ONE_TO_ONE[3:])
@settings(max_examples=100, deadline=None)
@given(tables)
def test_greedy_takes_the_best_that_is_left_until_nothing_is_left(assignment, drawn):
    table, confidence = drawn
    left = table.astype(float)
    expected = {}
    while left.any():
        cells = [tuple(cell) for cell in np.argwhere(left)]
        sure = confidence if assignment == "greedy_by_confidence" else np.ones(len(confidence))
        lesion, candidate = max(cells, key=lambda cell: (sure[cell[1]], left[cell], -cell[0], -cell[1]))
        expected[int(lesion) + 1] = int(candidate) + 1
        left[lesion, :] = left[:, candidate] = 0
    assert pairs_of(table, confidence, assignment) == expected


@pytest.mark.parametrize("assignment", ONE_TO_ONE[1:3])
def test_blocks_give_what_one_table_of_all_gives(assignment):
    """Sparse tables fall into many blocks; the sum over all pairs is compared with that of one large assignment."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        table = np.where(random.random((40, 50)) < 0.03, random.random((40, 50)), 0)
        offset = {"one_to_one_most_pairs": 1000.0, "one_to_one_max_sum": 0.0}[assignment]
        whole = np.where(table > 0, table + offset, 0)
        expected = whole[linear_sum_assignment(whole, maximize=True)].sum()
        pairs = pairs_of(table, np.ones(50), assignment)
        assert sum(whole[i - 1, j - 1] for i, j in pairs.items()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("assignment", ONE_TO_ONE)
def test_pairs_do_not_depend_on_how_lesions_and_candidates_are_numbered(assignment):
    random = np.random.default_rng(3)
    table = np.where(random.random((30, 40)) < 0.06, random.random((30, 40)), 0)
    sure = random.permutation(40) / 40
    rows, columns = random.permutation(30), random.permutation(40)
    pairs = pairs_of(table, sure, assignment)
    shuffled = pairs_of(table[rows][:, columns], sure[columns], assignment)
    assert {int(rows[i - 1]) + 1: int(columns[j - 1]) + 1 for i, j in shuffled.items()} == pairs


@pytest.mark.parametrize("assignment", ONE_TO_ONE)
def test_a_thousand_lesions_and_candidates_are_paired_without_a_table_of_all(assignment):
    """Blocks of two lesions and two candidates, which an assignment of all at once takes many times longer for."""
    table = np.kron(np.eye(500), [[3, 1], [2, 0]])
    hits = hits_of(table)
    start = time.perf_counter()
    rows = assign_hits(hits, np.ones(1000), assignment)
    assert time.perf_counter() - start < 1.0
    assert len(rows) == {True: 500, False: 1000}[assignment.startswith("greedy")]


def test_a_lesion_with_ten_thousand_candidates_keeps_ranks_exact():
    shared = np.full((1, 10_000), 1_000_000)
    sure = np.linspace(0.1, 0.9, 10_000)
    assert pairs_of(shared, sure) == {1: 10_000}


def test_shared_voxels_are_counted_for_each_pair():
    lesions, candidates = np.zeros((12, 10, 8), np.uint8), np.zeros((12, 10, 8), np.uint8)
    lesions[0:4, 0, 0] = lesions[6:9, 2, 1] = 1
    candidates[2:7, 0, 0] = candidates[8, 2, 1] = candidates[6, 2, 1] = 1
    overlaps = find_overlaps(find_components(lesions, AFFINE), find_components(candidates, AFFINE))
    found = zip(overlaps.lesion, overlaps.candidate, overlaps.num_voxels, strict=True)
    assert list(found) == [(1, 1, 2), (2, 2, 1), (2, 3, 1)]


def test_voxel_dice_is_undefined_where_both_masks_are_empty_and_zero_where_one_is():
    assert np.isnan(voxel_dice(0, 0, 0))
    assert voxel_dice(0, 0, 5) == 0
    assert voxel_dice(3, 4, 6) == 0.6
