import itertools

import numpy as np
import pytest
from lesion_cases import AFFINE, SHAPE, random_masks
from tables import parts, table_of

from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.hits import find_claims, find_hits, measure_overlaps, shared_voxels
from medfocal.evaluate.protocols import Protocol


def found(table, **rules):
    hits = find_hits(table, Protocol(**rules))
    return dict(
        zip(zip(hits.lesion.tolist(), hits.candidate.tolist(), strict=True), hits.measure.tolist(), strict=True)
    )


# Lesions of 10 and 40 voxels, candidates of 10 and 5: lesion 1 shares 5 with the first, 1 with the second; lesion 2
# shares 5 with the first.
SIZES = {"lesions": parts([10, 40]), "candidates": parts([10, 5], confidence=[0.9, 0.4])}
SHARED = [[5, 1], [5, 0]]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("any_overlap", {(1, 1): 5, (1, 2): 1, (2, 1): 5}),
        ("lesion_covered", {(1, 1): 5 / 10, (1, 2): 1 / 10, (2, 1): 5 / 40}),
        ("iou", {(1, 1): 5 / 15, (1, 2): 1 / 14, (2, 1): 5 / 45}),
        ("dice", {(1, 1): 10 / 20, (1, 2): 2 / 15, (2, 1): 10 / 50}),
    ],
)
def test_measures_are_those_worked_out_by_hand(rule, expected):
    assert found(table_of(SHARED, **SIZES), hit_rule=rule) == expected


def test_a_share_must_reach_the_threshold_and_may_equal_it():
    table = table_of(SHARED, **SIZES)
    assert list(found(table, hit_rule="lesion_covered", hit_threshold=0.125)) == [(1, 1), (2, 1)]
    assert list(found(table, hit_rule="lesion_covered", hit_threshold=0.126)) == [(1, 1)]
    assert list(found(table, hit_rule="dice", hit_threshold=0.5)) == [(1, 1)]


@pytest.mark.parametrize("rule", ["iou", "dice", "lesion_covered"])
def test_every_threshold_in_twentieths_is_met_by_its_own_share(rule):
    """A share that is one twentieth by whole numbers must not miss the threshold 0.05 by rounding."""
    for step in range(1, 20):
        sizes = {"iou": (20, step), "dice": (20, 20), "lesion_covered": (20, 30)}[rule]
        table = table_of([[step]], lesions=parts([sizes[0]]), candidates=parts([sizes[1]], confidence=[1]))
        assert list(found(table, hit_rule=rule, hit_threshold=step / 20)) == [(1, 1)]


def test_candidates_that_are_too_small_hit_nothing():
    """Their volumes are 10 and 5 mm3."""
    table = table_of(SHARED, **SIZES)
    assert list(found(table, min_candidate_volume_mm3=5)) == [(1, 1), (1, 2), (2, 1)]
    assert list(found(table, min_candidate_volume_mm3=5.5)) == [(1, 1), (2, 1)]


def test_centroids_are_compared_in_mm_on_unequal_axes():
    """Voxels of 0.5 x 1 x 3 mm: two slices along k are 6 mm, two voxels along i 1 mm."""
    reference, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    reference[4, 5, 2] = True
    prediction[6, 5, 2] = prediction[4, 5, 4] = True
    table = evaluate_case(reference, prediction, AFFINE, case="a")
    # Candidates are numbered by their first voxel: (4, 5, 4) is the first.
    assert found(table, hit_rule="centroid_distance", hit_threshold=2) == {(1, 2): 0.5}
    assert found(table, hit_rule="centroid_distance", hit_threshold=6) == pytest.approx({(1, 1): 0, (1, 2): 5 / 6})
    assert found(table, hit_rule="centroid_distance", hit_threshold=5.9) == pytest.approx({(1, 2): 1 - 1 / 5.9})


def test_centroid_in_radius_is_strict_as_in_luna16():
    """The lesion's sphere has a diameter of 6 mm: a candidate 3 mm from its centre is not inside."""
    volume = np.pi * 6**3 / 6
    lesions = parts([100], volume_mm3=[volume], centroid_mm=[[1, 2, 3]])
    candidates = parts([5, 5], centroid_mm=[[1, 2, 6], [1, 2, 5.9]], confidence=[0.5, 0.5])
    table = table_of([[0, 0]], lesions=lesions, candidates=candidates)
    assert found(table, hit_rule="centroid_in_radius", hit_threshold=1) == pytest.approx({(1, 2): 1 - 2.9 / 3})
    assert list(found(table, hit_rule="centroid_in_radius", hit_threshold=1.1)) == [(1, 1), (1, 2)]


def test_distances_are_those_of_a_loop_over_all_pairs():
    random = np.random.default_rng(5)
    lesions = parts(np.full(30, 10), centroid_mm=random.uniform(0, 50, (30, 3)))
    candidates = parts(np.full(40, 10), centroid_mm=random.uniform(0, 50, (40, 3)), confidence=np.ones(40))
    table = table_of(np.zeros((30, 40), int), lesions=lesions, candidates=candidates)
    expected = {
        (i + 1, j + 1)
        for i, j in itertools.product(range(30), range(40))
        if sum((lesions.centroid_mm[i] - candidates.centroid_mm[j]) ** 2) <= 144
    }
    assert set(found(table, hit_rule="centroid_distance", hit_threshold=12)) == expected
    assert len(expected) > 10


def test_point_inside_asks_for_the_point_and_not_for_any_voxel():
    table = table_of([[3, 2], [1, 0]], point_lesion=[2, 0])
    assert found(table, hit_rule="point_inside") == {(2, 1): 1}


def test_hits_of_points_lie_by_lesion_as_all_others_do():
    hits = find_hits(table_of([[0, 2], [3, 0]], point_lesion=[2, 1]), Protocol(hit_rule="point_inside"))
    assert (hits.lesion.tolist(), hits.candidate.tolist(), hits.measure.tolist()) == ([1, 2], [2, 1], [2, 3])


def test_points_of_a_mask_and_of_a_map_lie_where_they_should():
    """The L has its centroid at (3.4, 3.6), in mm nearest to (4, 4); of a map the highest voxel counts, elsewhere."""
    prediction = np.zeros(SHAPE)
    for voxel in ((2, 3), (3, 3), (4, 3), (4, 4), (4, 5)):
        prediction[*voxel, 2] = 0.5
    nearest, tip = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    nearest[4, 4, 2] = tip[4, 5, 2] = True
    hit = Protocol(hit_rule="point_inside")
    for reference, by_mask in ((nearest, 1), (tip, 0)):
        assert len(find_hits(evaluate_case(reference, prediction > 0, AFFINE, case="a"), hit)) == by_mask
    prediction[4, 5, 2] = 0.9
    for reference, by_map in ((nearest, 0), (tip, 1)):
        assert len(find_hits(evaluate_case(reference, prediction, AFFINE, case="a"), hit)) == by_map


def test_a_grown_lesion_is_hit_by_a_candidate_beside_it():
    table = table_of([[0, 4]], grown=[[2, 9]], protocol=Protocol(hit_rule="dilated_overlap", reference_dilation=1))
    assert found(table, hit_rule="dilated_overlap", reference_dilation=1) == {(1, 1): 2, (1, 2): 9}
    assert found(table, reference_dilation=1) == {(1, 2): 4}


def test_shared_voxels_are_zero_for_pairs_that_do_not_overlap():
    table = table_of([[0, 4], [3, 0]])
    shared = shared_voxels(table, np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]))
    assert shared.tolist() == [0, 4, 3, 0]
    assert shared_voxels(table_of([[0]]), np.array([1]), np.array([1])).tolist() == [0]


TOGETHER = {"hit_rule": "covered_together", "assignment": "many_to_many", "candidates": "threshold"}


def together(table, **rules):
    protocol = Protocol(**TOGETHER, **rules)
    hits = find_hits(table, protocol)
    claims = find_claims(table, protocol, hits)
    return [list(zip(side.lesion.tolist(), side.candidate.tolist(), strict=True)) for side in (hits, claims)]


def test_candidates_cover_a_lesion_together_though_none_does_alone():
    """Each covers 2 of 40 voxels, both a tenth; each lies by a half inside the lesion."""
    table = table_of([[2, 2]], lesions=parts([40]), candidates=parts([4, 4], confidence=[1, 1]))
    assert together(table, hit_threshold=0.1)[0] == [(1, 1), (1, 2)]
    assert together(table, hit_threshold=0.11)[0] == []


def test_a_contributing_candidate_that_lies_outside_undoes_the_lesion():
    """The second candidate holds 8 of 10 covered voxels and lies outside by 92 of 100."""
    sizes = {"lesions": parts([20]), "candidates": parts([2, 100], confidence=[1, 1])}
    table = table_of([[2, 8]], **sizes)
    assert together(table, hit_threshold=0.1, outside_share=0.7)[0] == []
    assert together(table, hit_threshold=0.1, outside_share=0.92)[0] == [(1, 1), (1, 2)]


def test_a_candidate_that_lies_outside_does_no_harm_if_others_hold_enough():
    """The first holds 8 of 10, which is 65 % and more, so that the second is not looked at."""
    sizes = {"lesions": parts([20]), "candidates": parts([8, 100], confidence=[1, 1])}
    table = table_of([[8, 2]], **sizes)
    assert together(table, hit_threshold=0.1, outside_share=0.7, contributing_share=0.65)[0] == [(1, 1), (1, 2)]
    assert together(table, hit_threshold=0.1, outside_share=0.7, contributing_share=0.81)[0] == []


def test_no_further_candidate_is_looked_at_once_the_share_is_held_exactly():
    """The first holds 65 of 100; as in Anima the second, which lies outside by 90 %, is not looked at."""
    sizes = {"lesions": parts([200]), "candidates": parts([65, 350], confidence=[1, 1])}
    table = table_of([[65, 35]], **sizes)
    assert together(table, hit_threshold=0.1, outside_share=0.7, contributing_share=0.65)[0] == [(1, 1), (1, 2)]


def test_candidates_are_judged_by_the_same_rule_with_sides_swapped():
    """Lesion 1 is covered by 5 of 100 and not found; candidate 1 lies inside it by 5 of 10, and the lesion outside."""
    table = table_of([[5]], lesions=parts([100]), candidates=parts([10], confidence=[1]))
    assert together(table, hit_threshold=0.1) == [[], [(1, 1)]]
    assert together(table, hit_threshold=0.1, outside_share=0.9)[1] == []


@pytest.mark.parametrize("rule", ["iou", "dice", "lesion_covered"])
def test_measures_of_random_masks_are_those_of_voxel_loops(rule):
    for seed in range(5):
        reference, prediction = random_masks(seed)
        table = evaluate_case(reference, prediction, np.eye(4), case="a")
        hits = measure_overlaps(table, rule)
        lesions, candidates = (label_of(mask) for mask in (reference, prediction))
        expected = {}
        for i, j in itertools.product(range(1, lesions.max() + 1), range(1, candidates.max() + 1)):
            a, b = lesions == i, candidates == j
            if (a & b).any():
                shares = {"iou": (a | b).sum(), "dice": (a.sum() + b.sum()) / 2, "lesion_covered": a.sum()}
                expected[i, j] = (a & b).sum() / shares[rule]
        numbers = zip(hits.lesion.tolist(), hits.candidate.tolist(), strict=True)
        assert dict(zip(numbers, hits.measure.tolist(), strict=True)) == pytest.approx(expected)


def label_of(mask):
    from scipy import ndimage

    return ndimage.label(mask, np.ones((3, 3, 3)))[0]
