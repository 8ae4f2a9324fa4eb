"""Counts and figures of other programs: those in peers.json, and slow ones written here from their definitions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lesion_cases import TOY_CASES, random_masks
from scipy import ndimage
from tables import named, parts, table_of

from medfocal.components import find_components
from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.judge import Verdict, judge
from medfocal.evaluate.pool import pool
from medfocal.evaluate.published import LUNA16_RATES, mean_sensitivity, published_figures
from medfocal.volume import read_labels

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text())
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "lesion_metrics_case"
PROTOCOLS = {
    "panoptica": named("panoptica_iou50"),
    "bipartite": named("panoptica_iou50", hit_rule="dice", hit_threshold=1e-6, assignment="one_to_one_max_sum"),
    "picai": named("picai"),
    "picai_any": named("picai", hit_threshold=1e-6),
    "brats": named("brats2023_met"),
}
MASKS = {
    "toy_cases": {toy.name: (toy.reference, toy.prediction) for toy in TOY_CASES},
    "random_masks": {seed: random_masks(int(seed)) for seed in PEERS["random_masks"]},
}
ALL = [(group, name) for group, cases in MASKS.items() for name in cases]
CORNERS = np.ones((3, 3, 3))


def judged(masks, protocol, affine=None, case="a"):
    affine = np.eye(4) if affine is None else affine
    return judge(evaluate_case(*masks, affine, case=case, protocol=protocol), protocol)


def counts(outcome):
    """Found lesions, false candidates and missed lesions."""
    found = int((outcome.lesion_candidate > 0).sum())
    false = int((outcome.candidate_verdict == Verdict.FALSE).sum())
    return found, false, int((~outcome.lesion_ignored).sum()) - found


def marks_counted(marks):
    """The same of picai_eval's marks, in which a missed lesion has confidence 0."""
    true = [sure > 0 for is_lesion, sure in marks if is_lesion]
    return sum(true), len(marks) - len(true), len(true) - sum(true)


@pytest.mark.parametrize("toy", TOY_CASES, ids=lambda toy: toy.name)
@pytest.mark.parametrize("program", PROTOCOLS)
def test_toy_cases_are_counted_as_the_program_counts_them(toy, program):
    assert counts(judged((toy.reference, toy.prediction), PROTOCOLS[program])) == toy.counts[program]


@pytest.mark.parametrize("toy", TOY_CASES, ids=lambda toy: toy.name)
def test_toy_cases_have_the_lesion_wise_dice_of_brats(toy):
    outcome = judged((toy.reference, toy.prediction), PROTOCOLS["brats"])
    assert published_figures([outcome], "brats2023_met")["lesion_wise_dice"] == pytest.approx(toy.lesion_wise_dice)


def test_glioma_grows_by_three_steps_and_leaves_out_up_to_50_mm3():
    """The missed lesion of 27 mm3 no longer counts, so that one found and one false candidate are left."""
    outcome = judged((TOY_CASES[0].reference, TOY_CASES[0].prediction), named("brats2023_gli"))
    assert counts(outcome) == (1, 1, 0)
    assert published_figures([outcome], "brats2023_gli")["lesion_wise_dice"] == 1 / 2


@pytest.mark.parametrize("toy", TOY_CASES, ids=lambda toy: toy.name)
def test_stored_counts_of_toy_cases_are_those_of_the_table(toy):
    """peers.json is what the programs gave; the table of toy cases says it again in a readable form."""
    stored = PEERS["toy_cases"][toy.name]
    for program in ("panoptica", "bipartite"):
        assert tuple(stored[program]) == toy.counts[program]
    for program in ("picai", "picai_any"):
        assert marks_counted(stored[program]) == toy.counts[program]
    rates = [
        math.nan if stored["lesion_metrics"][name] is None else stored["lesion_metrics"][name]
        for name in ("ltpr", "lfdr")
    ]
    assert rates == pytest.approx([toy.ltpr, toy.lfdr], nan_ok=True)


@pytest.mark.parametrize("seed", PEERS["random_masks"])
def test_random_masks_are_counted_as_the_program_counts_them(seed):
    stored, masks = PEERS["random_masks"][seed], MASKS["random_masks"][seed]
    for program in ("panoptica", "bipartite"):
        assert counts(judged(masks, PROTOCOLS[program])) == tuple(stored[program])
    for program in ("picai", "picai_any"):
        assert counts(judged(masks, PROTOCOLS[program])) == marks_counted(stored[program])


@pytest.mark.parametrize("seed", PEERS["random_masks"])
def test_detection_maps_give_the_marks_of_picai_eval(seed):
    """Each part of the mask has one confidence, which is drawn as make_peers.py draws it."""
    reference, prediction = MASKS["random_masks"][seed]
    parts, num_parts = ndimage.label(prediction, CORNERS)
    drawn = np.random.RandomState(int(seed)).randint(1, 10, num_parts) / 10
    protocol = named("picai")
    outcome = judged((reference, np.concatenate([[0.0], drawn])[parts]), protocol)
    false = outcome.table.candidates.confidence[outcome.candidate_verdict == Verdict.FALSE]
    marks = [[1, 0 if math.isnan(sure) else sure] for sure in outcome.lesion_confidence] + [[0, sure] for sure in false]
    assert sorted(marks) == [pytest.approx(mark) for mark in PEERS["random_masks"][seed]["picai"]]


@pytest.mark.parametrize(("group", "name"), ALL)
def test_panoptic_quality_is_that_of_panoptica(group, name):
    outcome = judged(MASKS[group][name], PROTOCOLS["panoptica"])
    figures = published_figures([outcome], "panoptica_iou50")
    expected = [math.nan if value is None else value for value in PEERS[group][name]["quality"]]
    if not outcome.lesion_candidate.any() and not math.isnan(expected[0]):
        expected[1] = math.nan  # panoptica gives 0 for the quality of no pair
    assert [figures["rq"], figures["sq"], figures["pq"]] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", PEERS["random_masks"])
def test_panoptic_quality_is_that_of_monai(seed):
    """MONAI adds 1e-6 to its denominators, asks for more than half, and gives 0 where nothing is paired."""
    figures = published_figures([judged(MASKS["random_masks"][seed], PROTOCOLS["panoptica"])], "panoptica_iou50")
    ours = np.nan_to_num([figures["rq"], figures["sq"], figures["pq"]])
    assert ours == pytest.approx(PEERS["random_masks"][seed]["monai"], abs=5e-6)


@pytest.mark.parametrize(("group", "name"), ALL)
def test_figures_of_lesion_metrics_are_the_same(group, name):
    protocol = named("lesion_metrics")
    figures = published_figures([judged(MASKS[group][name], protocol)], "lesion_metrics")
    for key, value in PEERS[group][name]["lesion_metrics"].items():
        ours = figures["absolute_volume_difference" if key == "avd" else key]
        assert ours == pytest.approx(math.nan if value is None else value, nan_ok=True), key


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the case of lesion-metrics is not beside this repository")
def test_case_of_lesion_metrics_has_its_published_figures():
    reference = read_labels(PUBLISHED / "truth" / "truth.nii.gz")
    prediction = read_labels(PUBLISHED / "pred" / "pred.nii.gz")
    outcome = judged((reference.array, prediction.array), named("lesion_metrics"), reference.affine)
    assert published_figures([outcome], "lesion_metrics") == pytest.approx(
        {
            "dice": 6 / 14,
            "jaccard": 3 / 11,
            "ppv": 0.75,
            "tpr": 0.3,
            "lfdr": 1 / 3,
            "ltpr": 2 / 3,
            "absolute_volume_difference": 0.6,
            "isbi15_score": (6 / 14 / 8 + 0.75 / 8 + 2 / 3 / 4 + 2 / 3 / 4) * 4 / 3,
        }
    )


# Definitions written as slow loops over voxels.


def parts_of(mask, structure=CORNERS):
    parts, num_parts = ndimage.label(mask, structure)
    return [parts == number + 1 for number in range(num_parts)]


@pytest.mark.parametrize(("group", "name"), ALL)
def test_isles22_is_its_definition(group, name):
    reference, prediction = MASKS[group][name]
    lesions, candidates = parts_of(reference), parts_of(prediction)
    found = sum((lesion & prediction).any() for lesion in lesions)
    false = sum(not (candidate & reference).any() for candidate in candidates)
    missed = len(lesions) - found
    voxels = reference.sum() + prediction.sum()
    expected = {
        "dice": 2 * (reference & prediction).sum() / voxels if voxels else 1,
        "lesion_f1": found / (found + (false + missed) / 2) if found + false + missed else 1,
        "absolute_lesion_count_difference": abs(len(lesions) - len(candidates)),
        "absolute_volume_difference_ml": abs(int(reference.sum()) - int(prediction.sum())) * 0.006,
    }
    outcome = judged((reference, prediction), named("isles22"), np.diag([1, 2, 3, 1]))
    assert counts(outcome) == (found, false, missed)
    assert published_figures([outcome], "isles22") == pytest.approx(expected)


@pytest.mark.parametrize(("group", "name"), ALL)
def test_autopet3_is_its_definition(group, name):
    reference, prediction = MASKS[group][name]
    edges = ndimage.generate_binary_structure(3, 2)
    false = sum(part.sum() for part in parts_of(prediction, edges) if not (part & reference).any())
    missed = sum(part.sum() for part in parts_of(reference, edges) if not (part & prediction).any())
    with_lesions = reference.any()
    total = reference.sum() + prediction.sum()
    expected = {
        "dice": 2 * (reference & prediction).sum() / total if with_lesions else math.nan,
        "false_positive_volume_ml": false * 0.006,
        "false_negative_volume_ml": missed * 0.006 if with_lesions else math.nan,
    }
    outcome = judged((reference, prediction), named("autopet3"), np.diag([1, 2, 3, 1]))
    assert published_figures([outcome], "autopet3") == pytest.approx(expected, nan_ok=True)


def brats(reference, prediction, steps, least):
    """Counts and lesion-wise Dice of masks of 1 mm3 voxels."""
    edges = ndimage.generate_binary_structure(3, 2)
    # scipy grows over the whole volume for 0 steps
    grown = ndimage.binary_dilation(reference, edges, iterations=steps)
    candidates = parts_of(prediction)
    touched = [False] * len(candidates)
    found, missed, dice = 0, 0, []
    for region in parts_of(grown):
        lesion = region & reference
        near = ndimage.binary_dilation(lesion, edges, iterations=steps)
        own = [number for number, candidate in enumerate(candidates) if (candidate & near).any()]
        for number in own:
            touched[number] = True
        if lesion.sum() <= least:
            continue
        union = sum((candidates[number] for number in own), np.zeros_like(reference))
        found, missed = found + bool(own), missed + (not own)
        dice.append(2 * (union & lesion).sum() / (union.sum() + lesion.sum()))
    num_parts = len(dice) + touched.count(False)
    return (found, touched.count(False), missed), sum(dice) / num_parts if num_parts else 1


@pytest.mark.parametrize(("group", "name"), ALL)
@pytest.mark.parametrize(("protocol", "steps", "least"), [("brats2023_met", 1, 2), ("brats2023_gli", 3, 50)])
def test_brats2023_is_its_definition(group, name, protocol, steps, least):
    expected, dice = brats(*MASKS[group][name], steps, least)
    outcome = judged(MASKS[group][name], named(protocol))
    assert counts(outcome) == expected
    assert published_figures([outcome], protocol)["lesion_wise_dice"] == pytest.approx(dice)


def found_together(lesions, candidates, prediction, reference):
    """MSSEG: how many lesions are covered by a tenth and not by candidates that stray."""
    found = 0
    for lesion in lesions:
        shares = sorted(((int((lesion & part).sum()), part) for part in candidates), key=lambda pair: -pair[0])
        covered = int((lesion & prediction).sum())
        if covered == 0 or covered / lesion.sum() < 0.1:
            continue
        held, strays = 0, False
        for shared, part in shares:
            if held / covered >= 0.65 or shared == 0:
                break
            strays |= (part & ~reference).sum() / part.sum() > 0.7
            held += shared
        found += not strays
    return found


@pytest.mark.parametrize(("group", "name"), ALL)
def test_msseg_is_its_definition(group, name):
    """Voxels of 6 mm3, so that no part is too small."""
    reference, prediction = MASKS[group][name]
    faces = ndimage.generate_binary_structure(3, 1)
    lesions, candidates = parts_of(reference, faces), parts_of(prediction, faces)
    found = found_together(lesions, candidates, prediction, reference)
    true = found_together(candidates, lesions, reference, prediction)
    outcome = judged((reference, prediction), named("msseg"), np.diag([1, 2, 3, 1]))
    assert counts(outcome) == (found, len(candidates) - true, len(lesions) - found)
    figures = published_figures([outcome], "msseg")
    sensitivity = found / len(lesions) if lesions else math.nan
    value = true / len(candidates) if candidates else math.nan
    assert [figures["sensl"], figures["ppvl"]] == pytest.approx([sensitivity, value], nan_ok=True)
    if lesions and candidates:
        total = sensitivity + value
        assert figures["f1"] == pytest.approx(2 * sensitivity * value / total if total else 0)


def test_f1_of_msseg_is_zero_where_one_side_is_empty_and_undefined_where_both_are():
    protocol = named("msseg")
    f1 = [
        published_figures([judged((toy.reference, toy.prediction), protocol)], "msseg")["f1"] for toy in TOY_CASES[7:10]
    ]
    assert f1 == pytest.approx([0, math.nan, 0], nan_ok=True)


def test_luna16_asks_for_the_centre_within_the_radius_in_every_direction():
    """A ball of radius 4 mm on voxels of 1 x 1 x 2 mm: a candidate 3.6 mm away finds it, one 5 mm away does not."""
    index = np.indices((20, 20, 10)) * np.array([1, 1, 2])[:, None, None, None]
    reference = ((index - np.array([10, 10, 10])[:, None, None, None]) ** 2).sum(0) < 16.5
    prediction = np.zeros(reference.shape)
    prediction[12, 10, 5 + 1], prediction[10, 15, 5] = 0.4, 0.9  # 2 and 2 mm: 2.8 mm; and 5 mm
    outcome = judged((reference, prediction), named("luna16"), np.diag([1, 1, 2, 1]))
    assert outcome.lesion_confidence.tolist() == [0.4]
    assert outcome.candidate_verdict.tolist() == [Verdict.FALSE, Verdict.TRUE]


def test_mean_sensitivity_is_read_between_points_as_luna16_does():
    """Three cases, two lesions, marks of 0.9 (true), 0.5 (false) and 0.3 (true): at 1/8 and 1/4 on the level part."""
    reference, prediction = np.zeros((12, 10, 8), bool), np.zeros((12, 10, 8))
    reference[1:5, 1:5, 1:3] = reference[1:5, 6:9, 5:7] = True
    prediction[1:5, 1:5, 1:3], prediction[1:5, 6:9, 5:7], prediction[9, 3, 3] = 0.9, 0.3, 0.5
    empty = np.zeros_like(reference)
    protocol = named("luna16")
    cases = [(reference, prediction), (empty, empty), (empty, empty)]
    outcomes = [judged(masks, protocol, case=str(row)) for row, masks in enumerate(cases)]
    # The curve: (0, 0), (0, 1/2), (1/3, 1/2), (1/3, 1); at 1/3 and beyond 1.
    expected = (2 * 0.5 + 5) / 7
    assert published_figures(outcomes, "luna16")["cpm"] == pytest.approx(expected)
    assert mean_sensitivity(pool(outcomes), LUNA16_RATES) == pytest.approx(expected)
    assert published_figures(outcomes, "camelyon")["froc_score"] == pytest.approx((0.5 + 5) / 6)


def test_mean_sensitivity_rises_in_a_line_from_nothing_to_the_first_point():
    """One case; a lesion and a false candidate of one confidence: sensitivity x at x false candidates, up to 1."""
    protocol = named("luna16", hit_rule="any_overlap", hit_threshold=0, min_diameter_mm=0)
    outcomes = [judge(table_of([[5, 0]], [0.6, 0.6]), protocol)]
    assert published_figures(outcomes, "luna16")["cpm"] == pytest.approx((0.125 + 0.25 + 0.5 + 4) / 7)


def test_two_sure_masks_without_false_candidates_have_full_sensitivity():
    """Masks have one confidence: programs that drop the lowest threshold give 0 here."""
    masks = [(find_components(toy.reference, np.eye(4)), toy.reference) for toy in TOY_CASES[:2]]
    outcomes = [
        judged(pair, named("luna16", hit_rule="any_overlap", hit_threshold=0), case=str(row))
        for row, pair in enumerate(masks)
    ]
    assert published_figures(outcomes, "luna16") == {"cpm": 1}


def test_picai_ranks_by_the_mean_of_precision_and_auroc():
    """Two cases, one without lesions; the lesion is found by 0.4, the false candidate of the other case has 0.8."""
    reference, prediction = np.zeros((12, 10, 8), bool), np.zeros((12, 10, 8))
    reference[1:5, 1:5, 1:3], prediction[1:5, 1:5, 1:3] = True, 0.4
    protocol = named("picai")
    outcomes = [
        judged((reference, prediction), protocol, case="a"),
        judged((~reference & False, 2 * prediction), protocol, case="b"),
    ]
    assert published_figures(outcomes, "picai") == {"ap": 1 / 2, "auroc": 0, "score": 1 / 4}


def test_a_protocol_of_ones_own_has_no_published_figures_and_neither_has_no_case():
    outcome = judged((TOY_CASES[0].reference, TOY_CASES[0].prediction), named("any_overlap"))
    assert published_figures([outcome], "any_overlap") == {}
    assert published_figures([], "isles22") == {}


def test_figures_of_cases_are_averaged_where_they_are_defined():
    """Dice of autoPET III: undefined in the case without lesions, 0 where nothing was predicted, else 1."""
    protocol = named("autopet3")
    toys = [TOY_CASES[7], TOY_CASES[9], TOY_CASES[9]]
    outcomes = [judged((toy.reference, toy.prediction), protocol) for toy in toys]
    outcomes.append(judged((toys[1].reference, toys[1].reference), protocol))
    assert published_figures(outcomes, "autopet3")["dice"] == pytest.approx(1 / 3)


def test_volumes_of_autopet_leave_out_what_is_ignored():
    """Lesions of 2 and 30 mm3, both missed; the first is ignored, and so is the candidate of 4 mm3 on it."""
    protocol = named("autopet3", min_volume_mm3=3)
    sizes = {"lesions": parts([2, 30]), "candidates": parts([4, 50], confidence=[1, 1])}
    outcome = judge(table_of([[1, 0], [0, 0]], **sizes, protocol=protocol), protocol)
    figures = published_figures([outcome], "autopet3")
    assert figures["false_positive_volume_ml"] == pytest.approx(0.05)
    assert figures["false_negative_volume_ml"] == pytest.approx(0.03)


def test_figures_of_voxels_leave_out_the_region_to_be_ignored():
    """Of 4 x 2 voxels shared 1 x 2 lie in the region: 6 shared of 6 of the reference and 8 predicted."""
    reference, prediction, ignore = np.zeros((3, 12, 10, 8), bool)
    reference[2:6, 3:5, 4], prediction[2:7, 3:5, 4], ignore[2, :, :] = True, True, True
    protocol = named("lesion_metrics")
    table = evaluate_case(reference, prediction, np.eye(4), case="a", protocol=protocol, ignore=ignore)
    figures = published_figures([judge(table, protocol)], "lesion_metrics")
    assert (figures["dice"], figures["tpr"], figures["ppv"]) == pytest.approx((12 / 14, 1, 6 / 8))
