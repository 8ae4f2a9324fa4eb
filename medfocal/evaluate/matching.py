"""Assigning candidates to lesions: which of the hits count.

Hits fall into blocks, lesions and candidates that are joined by hits. Each block is solved alone, as what happens in
one cannot change another: a thousand lesions and a thousand candidates never make a table of a million cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medfocal.evaluate.hits import Hits
from medfocal.evaluate.protocols import Assignment

# What a pair adds to a sum of measures, so that of equal sums the one of more pairs is taken. panoptica's cost of a
# pair that is no hit, 1 + 1e-6 against 1 - score, comes to the same.
OF_A_PAIR = 1e-6

Rows = NDArray[np.int64]


def assign_hits(hits: Hits, confidence: NDArray[np.floating[Any]], assignment: Assignment) -> Rows:
    """Choose the hits that count.

    "one_to_one_surest_first" finds as many lesions as possible at every threshold at once: the pairs of which the
    candidate's confidence is at least t are a largest possible pairing of the candidates with confidence at least t,
    for every t. Among all pairings of this kind the one with the largest sum of preferences (shared voxels) is taken.
    That such a pairing exists, and how it is found: sets of candidates that can be paired at the same time are the
    independent sets of a transversal matroid. A set of largest weight in a matroid has, for any weights that rise with
    confidence, the largest possible number of members at or above every confidence. So the weight of a pair is the
    rank of its candidate's confidence, with the preference as a tie-break too small to outweigh a rank.

    Args:
        hits: Pairs that may be made.
        confidence: Confidence of each candidate, row `n - 1` for number `n`.
        assignment: Which of them count, see `Protocol`. Of equals the pair of lower numbers.

    Returns:
        Rows of the hits that count, rising. No hits: none.

    References:
        J. Edmonds, "Matroids and the greedy algorithm", Mathematical Programming 1 (1971) 127-136.
        A. Saha et al., PI-CAI (2024): "one_to_one_most_pairs". F. Kofler et al., panoptica (2023):
        "one_to_one_max_sum" and "greedy_by_score". T.-Y. Lin et al., COCO (2014): "greedy_by_confidence".
    """
    if assignment == "many_to_many" or len(hits) == 0:
        return np.arange(len(hits))
    sure = np.asarray(confidence, np.float64)[hits.candidate - 1]
    keys = {
        "one_to_one_surest_first": (hits.preference, sure),
        "greedy_by_confidence": (hits.measure, sure),
    }.get(assignment, (hits.measure,))
    best_first = np.lexsort((hits.candidate, hits.lesion, *(-key for key in keys)))
    if assignment in ("greedy_by_score", "greedy_by_confidence"):
        return _take_free(hits, best_first)
    hub, mixed = _hubs(hits)
    alone = best_first[~mixed[best_first]]
    chosen = [alone[np.unique(hub[alone], return_index=True)[1]]]
    for rows in _blocks(hits, np.flatnonzero(mixed)):
        weight = _weights(hits, sure, rows, assignment)
        chosen.append(rows[_heaviest(hits.lesion[rows], hits.candidate[rows], weight)])
    return np.sort(np.concatenate(chosen))


def _take_free(hits: Hits, order: Rows) -> Rows:
    """Take hits in this order, each if its lesion and its candidate are free."""
    lesions: set[int] = set()
    candidates: set[int] = set()
    taken = []
    for row, lesion, candidate in zip(
        order.tolist(), hits.lesion[order].tolist(), hits.candidate[order].tolist(), strict=True
    ):
        if lesion not in lesions and candidate not in candidates:
            lesions.add(lesion)
            candidates.add(candidate)
            taken.append(row)
    return np.sort(np.array(taken, np.int64))


def _hubs(hits: Hits) -> tuple[Rows, NDArray[np.bool_]]:
    """Tell blocks around one lesion or one candidate, in which the best hit alone counts, from all others.

    Returns:
        The block of each hit by its hub, the lesion's number, or for candidates minus the candidate's; and whether the
        hit's block has no such hub.
    """
    shared_lesion = np.bincount(hits.lesion)[hits.lesion] > 1
    shared_candidate = np.bincount(hits.candidate)[hits.candidate] > 1
    # A lesion is a hub if none of its candidates hits another lesion, and so the other way round.
    around_lesion = np.bincount(hits.lesion, shared_candidate)[hits.lesion] == 0
    around_candidate = np.bincount(hits.candidate, shared_lesion)[hits.candidate] == 0
    return np.where(around_lesion, hits.lesion, -hits.candidate), ~(around_lesion | around_candidate)


def _blocks(hits: Hits, rows: Rows) -> Iterator[Rows]:
    """Give the rows of each block among these."""
    if len(rows) == 0:
        return
    lesions, row = np.unique(hits.lesion[rows], return_inverse=True)
    candidates, column = np.unique(hits.candidate[rows], return_inverse=True)
    num_nodes = len(lesions) + len(candidates)
    graph = coo_array((np.ones(len(rows)), (row, len(lesions) + column)), shape=(num_nodes, num_nodes))
    num_blocks, block_of_node = connected_components(graph, directed=False)
    block = block_of_node[row]
    order = np.argsort(block, kind="stable")
    yield from np.split(rows[order], np.searchsorted(block[order], np.arange(1, num_blocks)))


def _weights(hits: Hits, sure: NDArray[np.float64], rows: Rows, assignment: Assignment) -> NDArray[np.float64]:
    """Weigh the hits of a block so that the heaviest pairing is the one wanted."""
    if assignment == "one_to_one_max_sum":
        return hits.measure[rows] + OF_A_PAIR
    if assignment == "one_to_one_most_pairs":
        return np.asarray(hits.measure[rows] + hits.measure[rows].sum() + 1, np.float64)
    _, rank = np.unique(sure[rows], return_inverse=True)
    one_rank = hits.preference[rows].sum() + 1
    weight = np.asarray((rank + 1) * one_rank + hits.preference[rows], np.float64)
    # Whole numbers below 2 ** 53 are exact in float64, so no rank is lost to rounding.
    num_pairs = min(len(np.unique(hits.lesion[rows])), len(np.unique(hits.candidate[rows])))
    assert weight.max() * num_pairs < 2**53
    return weight


def _heaviest(lesion: Rows, candidate: Rows, weight: NDArray[np.float64]) -> Rows:
    """Find the one-to-one pairing of largest sum; places of its hits."""
    lesions, row = np.unique(lesion, return_inverse=True)
    candidates, column = np.unique(candidate, return_inverse=True)
    table = np.zeros((len(lesions), len(candidates)))
    place = np.full(table.shape, -1)
    table[row, column], place[row, column] = weight, np.arange(len(weight))
    pairs = place[linear_sum_assignment(table, maximize=True)]
    return np.asarray(pairs[pairs >= 0], np.int64)
