import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lesion_cases import AFFINE, LESION_CASES, TOY_CASES, random_masks
from tables import named, parts, table_of

from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.judge import HIT_THRESHOLDS, Verdict, hit_rule_curve, judge
from medfocal.evaluate.pool import pool
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.published import mean_sensitivity, published_figures
from medfocal.volume import read_labels

FALSE, TRUE, DOUBLE, IGNORED = Verdict.FALSE, Verdict.TRUE, Verdict.DOUBLE, Verdict.IGNORED


def verdicts(outcome):
    return [Verdict(value) for value in outcome.candidate_verdict.tolist()]


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_lesion_cases_are_judged_as_worked_out_by_hand(case):
    table = evaluate_case(case.reference, case.probability, AFFINE, case="a")
    outcome = judge(table, ANY_OVERLAP)
    assert {i + 1: j for i, j in enumerate(outcome.lesion_candidate.tolist()) if j} == case.pairs
    assert verdicts(outcome).count(FALSE) == case.num_false
    for lesion, candidate in case.pairs.items():
        assert outcome.lesion_confidence[lesion - 1] == table.candidates.confidence[candidate - 1]
        assert outcome.candidate_lesion[candidate - 1] == lesion
        pair = (table.overlaps.lesion == lesion) & (table.overlaps.candidate == candidate)
        shared = table.overlaps.num_voxels[pair].tolist()
        assert [outcome.lesion_overlap_voxels[lesion - 1]] == shared
        assert [outcome.candidate_overlap_voxels[candidate - 1]] == shared
    missed = [i for i in range(case.num_lesions) if i + 1 not in case.pairs]
    assert np.isnan(outcome.lesion_confidence[missed]).all()
    assert (outcome.lesion_overlap_voxels[missed] == 0).all()


@pytest.mark.parametrize(("duplicates", "verdict"), [("false", FALSE), ("ignored", DOUBLE)])
def test_a_second_candidate_on_a_found_lesion_is_false_or_a_double(duplicates, verdict):
    outcome = judge(table_of([[3, 2]], [0.4, 0.9]), Protocol(duplicates=duplicates))
    assert verdicts(outcome) == [verdict, TRUE]
    assert outcome.candidate_lesion.tolist() == [0, 1]
    assert outcome.lesion_candidate.tolist() == [2]


def test_splits_and_merges_can_be_read_from_the_hits():
    """Lesion 1 is hit by both candidates, candidate 1 hits both lesions; three hits, two pairs."""
    outcome = judge(table_of([[3, 2], [1, 0]]), ANY_OVERLAP)
    assert np.bincount(outcome.hit_lesion).tolist() == [0, 2, 1]
    assert np.bincount(outcome.hit_candidate).tolist() == [0, 2, 1]
    assert list(zip(outcome.pair_lesion.tolist(), outcome.pair_candidate.tolist(), strict=True)) == [(1, 2), (2, 1)]


def test_a_lesion_that_is_too_small_is_neither_found_nor_missed():
    lesions = parts([10, 10, 10], diameter_mm=[2.9, 3.0, 8.0])
    outcome = judge(table_of(np.eye(3), lesions=lesions), Protocol(min_diameter_mm=3))
    assert outcome.lesion_ignored.tolist() == [True, False, False]
    assert outcome.lesion_candidate.tolist() == [0, 2, 3]
    assert verdicts(outcome) == [IGNORED, TRUE, TRUE]


def test_the_diameter_that_is_asked_for_decides():
    lesions = replace(parts([10]), longest_diameter_mm=np.array([5.0]), axial_diameter_mm=np.array([2.0]))
    table = table_of([[1]], lesions=lesions)
    for diameter, ignored in (("longest", False), ("axial", True), ("equivalent", True)):
        outcome = judge(table, Protocol(min_diameter_mm=3, diameter=diameter))
        assert (outcome.diameter, outcome.lesion_ignored.tolist()) == (diameter, [ignored])


def test_the_least_volume_is_in_mm3_and_counts():
    lesions = parts([10, 10], volume_mm3=[49.9, 50.0])
    outcome = judge(table_of(np.eye(2), lesions=lesions), Protocol(min_volume_mm3=50))
    assert outcome.lesion_ignored.tolist() == [True, False]


def test_a_lesion_that_counts_is_served_before_one_that_is_ignored():
    """Candidate 1 shares most with the ignored lesion, and still finds lesion 2."""
    lesions = parts([10, 10], diameter_mm=[2, 8])
    outcome = judge(table_of([[9], [1]], lesions=lesions), Protocol(min_diameter_mm=3))
    assert outcome.lesion_candidate.tolist() == [0, 1]
    assert outcome.candidate_lesion.tolist() == [2]
    assert verdicts(outcome) == [TRUE]


def test_every_candidate_on_an_ignored_lesion_is_ignored():
    lesions = parts([10], diameter_mm=[2])
    assert verdicts(judge(table_of([[3, 2, 0]], lesions=lesions), Protocol(min_diameter_mm=3))) == [IGNORED] * 2 + [
        FALSE
    ]


def test_a_second_candidate_on_a_found_lesion_stays_false_though_it_hits_an_ignored_one():
    lesions = parts([10, 10], diameter_mm=[8, 2])
    outcome = judge(table_of([[5, 1], [0, 1]], lesions=lesions), Protocol(min_diameter_mm=3))
    assert verdicts(outcome) == [TRUE, FALSE]


def test_a_lesion_or_candidate_mostly_in_the_region_is_ignored():
    """Of 10 voxels 5 are not more than half, 6 are."""
    lesions = parts([10, 10], ignored=[5, 6])
    candidates = parts([10, 10, 10, 10], ignored=[0, 0, 5, 6], confidence=np.ones(4))
    outcome = judge(table_of([[1, 0, 0, 0], [0, 1, 0, 0]], lesions=lesions, candidates=candidates), ANY_OVERLAP)
    assert outcome.lesion_ignored.tolist() == [False, True]
    assert verdicts(outcome) == [TRUE, IGNORED, FALSE, IGNORED]
    strict = judge(outcome.table, Protocol(max_ignored_share=0))
    assert strict.lesion_ignored.tolist() == [True, True]
    assert verdicts(strict) == [IGNORED] * 4


def test_a_candidate_in_the_region_that_finds_a_lesion_is_true_and_a_second_one_is_ignored():
    candidates = parts([10, 10], ignored=[9, 9], confidence=[0.9, 0.4])
    assert verdicts(judge(table_of([[1, 1]], candidates=candidates), ANY_OVERLAP)) == [TRUE, IGNORED]


def test_candidates_that_are_too_small_are_left_out_before_they_can_find_anything():
    candidates = parts([2, 10, 2], confidence=[0.9, 0.4, 0.9])
    outcome = judge(table_of([[2, 3, 0]], candidates=candidates), Protocol(min_candidate_volume_mm3=3))
    assert outcome.lesion_candidate.tolist() == [2]
    assert verdicts(outcome) == [IGNORED, TRUE, IGNORED]
    assert outcome.hit_candidate.tolist() == [2]


def test_a_candidate_of_just_the_least_volume_counts():
    candidates = parts([3, 3], confidence=[0.9, 0.9])
    outcome = judge(table_of([[1, 0]], candidates=candidates), Protocol(min_candidate_volume_mm3=3))
    assert verdicts(outcome) == [TRUE, FALSE]


def test_many_to_many_finds_by_the_surest_and_counts_every_hit_as_true():
    """Candidate 1 hits both lesions and shares most with the second; lesion 1 has its surest candidate in 2."""
    outcome = judge(table_of([[3, 2], [4, 0]], [0.4, 0.9]), Protocol(assignment="many_to_many"))
    assert verdicts(outcome) == [TRUE, TRUE]
    assert outcome.lesion_candidate.tolist() == [2, 1]
    assert outcome.lesion_confidence.tolist() == [0.9, 0.4]
    assert outcome.candidate_lesion.tolist() == [2, 1]
    assert outcome.candidate_overlap_voxels.tolist() == [4, 2]
    assert len(outcome.pair_lesion) == 3


def test_many_to_many_of_equally_sure_candidates_prefers_the_larger_overlap():
    outcome = judge(table_of([[2, 3, 3]]), Protocol(assignment="many_to_many"))
    assert outcome.lesion_candidate.tolist() == [2]


def test_a_small_lesion_must_be_covered_better_and_its_weak_pair_is_neither_true_nor_false():
    """Dice 2 / 20 of both; the lesion of 10 mm3 is small and must reach 0.2, the one of 30 mm3 need not."""
    lesions = parts([10, 10], volume_mm3=[10, 30])
    rules = {"hit_rule": "dice", "small_volume_mm3": 20, "assignment": "one_to_one_max_sum"}
    table = table_of(np.eye(2), lesions=lesions)
    outcome = judge(table, Protocol(small_hit_threshold=0.2, **rules))
    assert outcome.lesion_candidate.tolist() == [0, 2]
    assert verdicts(outcome) == [DOUBLE, TRUE]
    assert not outcome.lesion_ignored.any()
    assert verdicts(judge(table, Protocol(small_hit_threshold=0.1, **rules))) == [TRUE, TRUE]
    just_not_small = table_of([[1]], lesions=parts([10], volume_mm3=[20]))
    assert verdicts(judge(just_not_small, Protocol(small_hit_threshold=0.2, **rules))) == [TRUE]


def test_by_distance_a_candidate_finds_a_lesion_it_shares_no_voxel_with():
    lesions = parts([10], centroid_mm=[[0, 0, 0]])
    candidates = parts([5, 5], centroid_mm=[[0, 3, 0], [0, 1, 0]], confidence=[0.5, 0.5])
    table = table_of([[0, 0]], lesions=lesions, candidates=candidates)
    outcome = judge(table, Protocol(hit_rule="centroid_distance", hit_threshold=4))
    assert outcome.lesion_candidate.tolist() == [2]
    assert outcome.lesion_overlap_voxels.tolist() == outcome.candidate_overlap_voxels.tolist()[1:] == [0]
    assert verdicts(outcome) == [FALSE, TRUE]


def test_covered_together_judges_lesions_and_candidates_apart():
    """Candidate 1 lies in lesion 1 by half and is true, though its 5 of 100 voxels don't find the lesion."""
    protocol = named("msseg", min_volume_mm3=0, min_candidate_volume_mm3=0, outside_share=1)
    candidates = parts([10, 100], confidence=[1, 1])
    table = table_of([[5, 0]], lesions=parts([100]), candidates=candidates, protocol=protocol)
    outcome = judge(table, protocol)
    assert outcome.lesion_candidate.tolist() == [0]
    assert verdicts(outcome) == [TRUE, FALSE]
    assert outcome.candidate_lesion.tolist() == [1, 0]


def test_covered_together_ignores_a_candidate_that_an_ignored_lesion_covers():
    protocol = named("msseg", min_candidate_volume_mm3=0)
    sizes = {"lesions": parts([3, 30]), "candidates": parts([3, 30], confidence=[1, 1])}
    outcome = judge(table_of(np.diag([3, 30]), **sizes, protocol=protocol), protocol)
    assert outcome.lesion_ignored.tolist() == [True, False]
    assert outcome.candidate_lesion.tolist() == [0, 2]
    assert verdicts(outcome) == [IGNORED, TRUE]


def test_tables_of_other_shaping_rules_are_refused_with_both_values():
    table = table_of([[1]])
    with pytest.raises(ValueError, match="'a' was measured with connectivity 26, not 6 as protocol 'six' asks"):
        judge(table, Protocol(name="six", connectivity=6))
    with pytest.raises(ValueError, match="candidates 'own_height', not 'threshold', threshold None, not 0"):
        judge(table, Protocol(candidates="threshold", threshold=0.3))
    judge(table, Protocol(threshold=0.3))
    with pytest.raises(ValueError, match="connectivity 26, not 6"):
        hit_rule_curve([table], Protocol(connectivity=6))


RULES = [
    {},
    {"hit_rule": "iou", "hit_threshold": 0.25, "assignment": "one_to_one_max_sum"},
    {"hit_rule": "dice", "assignment": "greedy_by_score", "duplicates": "ignored"},
    {"assignment": "many_to_many", "min_volume_mm3": 30},
    {"hit_rule": "centroid_distance", "hit_threshold": 3, "min_candidate_volume_mm3": 10},
    {"hit_rule": "point_inside", "assignment": "greedy_by_confidence"},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_lesions_and_candidates_add_up_under_every_rule(rules):
    for seed in range(15):
        reference, prediction = random_masks(seed)
        outcome = judge(evaluate_case(reference, prediction, np.eye(4), case="a"), Protocol(**rules))
        verdict, found = outcome.candidate_verdict, outcome.lesion_candidate > 0
        assert ((outcome.candidate_lesion > 0) == (verdict == TRUE)).all()
        assert not (found & outcome.lesion_ignored).any()
        assert (found == ~np.isnan(outcome.lesion_confidence)).all()
        assert set(outcome.lesion_candidate[found]) <= set(np.flatnonzero(verdict == TRUE) + 1)
        if rules.get("assignment") != "many_to_many":
            assert found.sum() == (verdict == TRUE).sum() == len(outcome.pair_lesion)
            back = outcome.candidate_lesion[outcome.lesion_candidate[found] - 1]
            assert (back == np.flatnonzero(found) + 1).all()
        if rules.get("duplicates") != "ignored":
            assert (verdict != DOUBLE).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flipping_both_masks_changes_no_count(axis):
    for seed in range(10):
        masks = random_masks(seed)
        counts = []
        for reference, prediction in (masks, [np.flip(mask, axis) for mask in masks]):
            outcome = judge(evaluate_case(reference, prediction, np.eye(4), case="a"), Protocol(hit_rule="iou"))
            counts.append(((outcome.lesion_candidate > 0).sum(), *np.bincount(outcome.candidate_verdict, minlength=4)))
        assert counts[0] == counts[1]


# The curve over the hit rule's threshold.


def test_curve_over_the_rule_equals_judging_at_each_threshold():
    masks = [random_masks(seed) for seed in range(6)]
    tables = [evaluate_case(*pair, np.eye(4), case=str(row), patient="ab"[row % 2]) for row, pair in enumerate(masks)]
    for rule in ("iou", "dice", "lesion_covered"):
        curve = hit_rule_curve(tables, ANY_OVERLAP, rule)
        assert (curve.hit_rule, curve.patients, curve.num_cases.tolist()) == (rule, ("a", "b"), [3, 3])
        assert curve.thresholds.tolist() == list(HIT_THRESHOLDS)
        for column, threshold in enumerate(HIT_THRESHOLDS):
            judged = [judge(table, Protocol(hit_rule=rule, hit_threshold=threshold)) for table in tables]
            for row in range(2):
                own = judged[row::2]
                assert curve.num_detected[row, column] == sum((o.lesion_candidate > 0).sum() for o in own)
                assert curve.num_false[row, column] == sum((o.candidate_verdict == FALSE).sum() for o in own)
                assert curve.num_lesions[row] == sum(len(o.table.lesions) for o in own)


@pytest.mark.parametrize(
    "rules",
    [
        {"assignment": "one_to_one_max_sum"},
        {"assignment": "greedy_by_confidence", "duplicates": "ignored"},
        {"assignment": "many_to_many"},
        {"min_volume_mm3": 9.0},
        {"min_candidate_volume_mm3": 9.0},
    ],
)
def test_curve_equals_judging_at_each_threshold_under_other_rules_too(rules):
    tables = [evaluate_case(*random_masks(seed), np.eye(4), case=str(seed), patient="a") for seed in range(6)]
    curve = hit_rule_curve(tables, Protocol(**rules), "iou")
    for column, threshold in enumerate(HIT_THRESHOLDS):
        judged = [judge(t, Protocol(hit_rule="iou", hit_threshold=threshold, **rules)) for t in tables]
        found = sum(((o.lesion_candidate > 0) & ~o.lesion_ignored).sum() for o in judged)
        assert curve.num_detected[0, column] == found
        assert curve.num_false[0, column] == sum((o.candidate_verdict == FALSE).sum() for o in judged)


def test_a_stricter_rule_never_finds_more():
    tables = [evaluate_case(*random_masks(seed), np.eye(4), case=str(seed)) for seed in range(10)]
    for rule in ("iou", "dice", "lesion_covered"):
        curve = hit_rule_curve(tables, ANY_OVERLAP, rule)
        assert (np.diff(curve.num_detected.sum(0)) <= 0).all()
        assert curve.num_detected.sum(0)[0] > curve.num_detected.sum(0)[-1]


def test_curve_counts_at_the_operating_point_and_not_the_ignored():
    """Candidates of 0.9 and 0.3: only the first counts at 0.5, and lesion 3 is too small to count."""
    lesions = parts([10, 10, 10], diameter_mm=[8, 8, 1])
    table = table_of(np.diag([10, 10, 10]), [0.9, 0.3, 0.9], lesions=lesions)
    curve = hit_rule_curve([table], Protocol(min_diameter_mm=3), "iou", (0, 1))
    assert (curve.num_lesions.tolist(), curve.num_detected.tolist()) == ([2], [[1, 1]])
    lower = hit_rule_curve([table], Protocol(min_diameter_mm=3, threshold=0.3), "iou", (0, 1))
    assert lower.num_detected.tolist() == [[2, 2]]


def test_curve_counts_false_candidates_at_the_operating_point_only():
    curve = hit_rule_curve([table_of([[0, 0, 1]], [0.9, 0.3, 0.6])], ANY_OVERLAP, "iou", (0, 1))
    assert curve.num_false.tolist() == [[1, 2]]


def test_curve_leaves_out_candidates_that_are_too_small():
    candidates = parts([2, 10], confidence=[0.9, 0.9])
    table = table_of([[2, 0], [0, 10]], candidates=candidates)
    curve = hit_rule_curve([table], Protocol(min_candidate_volume_mm3=3), "iou", (0, 1))
    assert (curve.num_detected.tolist(), curve.num_false.tolist()) == ([[1, 1]], [[0, 0]])


def test_curve_of_grown_lesions_compares_voxels_that_are_not_grown():
    protocol = named("brats2023_met")
    table = table_of([[5]], grown=[[9]], protocol=protocol)
    assert hit_rule_curve([table], protocol, "iou", (0, 1 / 3, 0.34)).num_detected.tolist() == [[1, 1, 0]]


def test_curve_without_cases_has_no_patients_and_other_rules_have_no_curve():
    assert hit_rule_curve([], ANY_OVERLAP).num_detected.shape == (0, 21)
    with pytest.raises(ValueError, match=r"must be one of .*, got 'point_inside'"):
        hit_rule_curve([], ANY_OVERLAP, "point_inside")


# What goes wrong in other programs (docs/protocols.md), with the values that are right.


def test_froc_without_a_true_candidate_is_zero_and_not_undefined():
    outcomes = [judge(table_of([[0, 0]], [0.9, 0.4]), ANY_OVERLAP)]
    assert mean_sensitivity(pool(outcomes), (0.125, 8)) == 0


def test_an_ignored_candidate_does_not_stop_the_froc():
    """One lesion found by 0.5, one ignored by 0.9: at 1/8 false candidates the lesion is found."""
    protocol = named("luna16", hit_rule="any_overlap", hit_threshold=0)
    lesions = parts([10, 10], volume_mm3=[100, 1])
    outcomes = [judge(table_of([[3, 0], [0, 3]], [0.5, 0.9], lesions=lesions), protocol)]
    assert published_figures(outcomes, "luna16") == {"cpm": 1}


def test_figures_of_cases_without_any_candidate_are_undefined_and_not_an_error():
    protocol = named("picai")
    empty = judge(table_of(np.zeros((0, 0)), protocol=protocol), protocol)
    figures = published_figures([empty, empty], "picai")
    assert np.isnan(list(figures.values())).all()
    missed = judge(table_of(np.zeros((1, 0)), protocol=protocol), protocol)
    assert published_figures([missed, empty], "picai")["ap"] == 0


@pytest.mark.parametrize("toy", [TOY_CASES[1], TOY_CASES[2]], ids=lambda toy: toy.name)
def test_a_split_or_merge_is_matched_by_best_sum(toy):
    table = evaluate_case(toy.reference, toy.prediction, np.eye(4), case="a")
    assert len(judge(table, Protocol(hit_rule="iou", assignment="one_to_one_max_sum")).pair_lesion) == 1


def test_greedy_takes_the_best_pair_and_not_the_worst():
    """IoU of lesion 1 and candidate 1 is 0.667, of 2 and 1 0.1, of 1 and 2 0.091."""
    lesions, candidates = parts([10, 1]), parts([10, 2], confidence=[1, 1])
    table = table_of([[8, 1], [1, 0]], lesions=lesions, candidates=candidates)
    outcome = judge(table, Protocol(hit_rule="iou", assignment="greedy_by_score"))
    assert list(zip(outcome.pair_lesion, outcome.pair_candidate, strict=True)) == [(1, 1)]


def test_nothing_at_all_gives_zeros():
    outcome = judge(table_of(np.zeros((0, 0))), ANY_OVERLAP)
    assert (len(outcome.lesion_ignored), len(outcome.candidate_verdict), len(outcome.hit_lesion)) == (0, 0, 0)


def test_false_candidates_of_a_case_without_lesions_count():
    protocol = named("brats_met_20mm3")
    sizes = parts([30] * 3 + [5] * 4, confidence=np.ones(7))
    outcome = judge(table_of(np.zeros((0, 7)), candidates=sizes, protocol=protocol), protocol)
    assert verdicts(outcome).count(FALSE) == 7
    figures = published_figures([outcome], "brats_met_20mm3")
    assert figures["large_lesion_wise_dice"] == figures["small_lesion_f1"] == 0


def test_false_candidates_count_in_the_stratum_of_their_own_size():
    """A large and a small lesion, exactly found, and false candidates of 20, 5 and 6 mm3: F1 2/3 and 2/4."""
    protocol = named("brats_met_20mm3")
    lesions, candidates = parts([20, 8]), parts([20, 8, 20, 5, 6], confidence=np.ones(5))
    shared = [[20, 0, 0, 0, 0], [0, 8, 0, 0, 0]]
    outcome = judge(table_of(shared, lesions=lesions, candidates=candidates, protocol=protocol), protocol)
    assert published_figures([outcome], "brats_met_20mm3") == {
        "large_lesion_wise_dice": 1 / 2,
        "large_lesion_f1": 2 / 3,
        "small_lesion_wise_dice": 1 / 3,
        "small_lesion_f1": 2 / 4,
    }


@pytest.mark.parametrize("name", ["isles22", "brats2023_met", "panoptica_iou50"])
def test_a_false_candidate_in_a_case_without_lesions_is_seen(name):
    toy = TOY_CASES[7]
    protocol = named(name)
    outcome = judge(evaluate_case(toy.reference, toy.prediction, np.eye(4), case="a", protocol=protocol), protocol)
    figure = {"isles22": "lesion_f1", "brats2023_met": "lesion_wise_dice", "panoptica_iou50": "pq"}[name]
    assert published_figures([outcome], name)[figure] == 0


def test_cases_without_lesions_do_not_raise_the_sensitivity():
    """Ten cases with one of two lesions found and ninety without lesions: half of the lesions are found."""
    with_lesions = [judge(table_of([[1], [0]], case=f"w{i}"), ANY_OVERLAP) for i in range(10)]
    without = [judge(table_of(np.zeros((0, 0)), case=f"n{i}"), ANY_OVERLAP) for i in range(90)]
    pooled = pool([*with_lesions, *without])
    assert (pooled.num_cases, pooled.num_lesions, np.isfinite(pooled.lesion_confidence).sum()) == (100, 20, 10)


def test_voxels_that_touch_at_a_corner_are_one_lesion_or_two_as_declared():
    toy = TOY_CASES[3]
    for connectivity, num_lesions in ((26, 1), (18, 2), (6, 2)):
        protocol = Protocol(connectivity=connectivity)
        table = evaluate_case(toy.reference, toy.prediction, np.eye(4), case="a", protocol=protocol)
        assert len(table.lesions) == num_lesions


def test_most_pairs_is_taken_at_its_word():
    """Three pairs of IoU 0.12, 0.108 and 0.111, or two of 0.708 and 0.667: adding 1 to each IoU would take the two."""
    lesions = parts([100, 100, 100])
    candidates = parts([12, 105, 100], confidence=[1, 1, 1])
    shared = [[12, 85, 0], [0, 20, 80], [0, 0, 20]]
    outcome = judge(table_of(shared, lesions=lesions, candidates=candidates), named("picai", extent_ratio=0.5))
    assert list(zip(outcome.pair_lesion, outcome.pair_candidate, strict=True)) == [(1, 1), (2, 2), (3, 3)]
    iou = np.array(shared) / (100 + np.array([12, 105, 100]) - np.array(shared))
    sums = [sum(1 + iou[i, j] for i, j in pairs) for pairs in ([(0, 0), (1, 1), (2, 2)], [(0, 1), (1, 2)])]
    assert sums[0] < sums[1]


MS_MASKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "ms_masks"
MOVED = [
    # Hit rule, threshold, assignment, found of 1,403 real lesions, false candidates: docs/protocols.md
    ("any_overlap", 0, "one_to_one_surest_first", 1220, 183),
    ("lesion_covered", 0.25, "one_to_one_surest_first", 1149, 254),
    ("iou", 0.1, "one_to_one_most_pairs", 1188, 215),
    ("iou", 0.25, "one_to_one_max_sum", 923, 480),
    ("iou", 0.5, "greedy_by_score", 203, 1200),
]


@pytest.mark.skipif(not MS_MASKS.is_dir(), reason="the masks of multiple sclerosis are not beside this repository")
def test_the_rule_alone_moves_the_sensitivity_from_87_to_14_percent():
    """The prediction is the reference moved by one voxel; every lesion has a candidate, so 1,403 of them as well."""
    tables = []
    for path in sorted(MS_MASKS.glob("*.nii.gz")):
        mask = read_labels(path)
        tables.append(evaluate_case(mask.array, np.roll(mask.array, 1, axis=0), mask.affine, case=path.stem))
    assert sum(len(table.lesions) for table in tables) == 1403
    for hit_rule, threshold, assignment, num_found, num_false in MOVED:
        rules = Protocol(hit_rule=hit_rule, hit_threshold=threshold, assignment=assignment)
        outcomes = [judge(table, rules) for table in tables]
        assert sum((outcome.lesion_candidate > 0).sum() for outcome in outcomes) == num_found
        assert sum((outcome.candidate_verdict == FALSE).sum() for outcome in outcomes) == num_false


def test_same_table_under_four_rules_never_reads_an_image_again():
    """The table alone goes in; what is found falls as the rule asks for more."""
    tables = [evaluate_case(*random_masks(seed), np.eye(4), case=str(seed)) for seed in range(20)]
    rules = [("any_overlap", 0), ("lesion_covered", 0.25), ("iou", 0.25), ("iou", 0.5)]
    found = []
    for hit_rule, threshold in rules:
        outcomes = [judge(table, Protocol(hit_rule=hit_rule, hit_threshold=threshold)) for table in tables]
        found.append(int(sum((outcome.lesion_candidate > 0).sum() for outcome in outcomes)))
    assert all(more >= less for more, less in itertools.pairwise(found))
    assert found[0] > 2 * found[-1]


def test_rule_for_small_lesions_is_of_the_protocols_own_measure_and_not_of_a_curves():
    """Lesion of 4 voxels and a candidate of 11 that shares 1: Dice 2 / 15 reaches 0.1, IoU 1 / 14 does not."""
    reference, prediction = (np.zeros((12, 10, 8), bool) for _ in range(2))
    reference[2:6, 3, 3] = True
    prediction[5, 3, 3] = prediction[6:11, 3, 3] = prediction[6:11, 4, 3] = True
    table = evaluate_case(reference, prediction, np.eye(4), case="a", protocol=named("brats_met_20mm3"))
    assert (judge(table, named("brats_met_20mm3")).lesion_candidate > 0).all()
    assert hit_rule_curve([table], named("brats_met_20mm3"), "iou").num_detected[0, 0] == 1
