import math
from dataclasses import asdict, astuple, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lesion_cases import AFFINE, LESION_CASES, bar, fill

from medfocal.errors import DatasetError
from medfocal.evaluate import Protocol, evaluate_case, evaluate_cases


def result_of(name, lesions, candidates, patient=None):
    reference = fill([(box, 1) for box in lesions]) != 0
    return evaluate_case(reference, fill(candidates), AFFINE, case=name, patient=patient)


def two_cases():
    """One lesion found at .9, one at .3, one missed; a false candidate at .6 and, without lesions, one at .8."""
    small = ((9, 11), (8, 9), (6, 7))
    first = result_of("a", [bar(1, 3), bar(6, 9), small], [(bar(1, 3), 0.9), (bar(8, 11), 0.3), (bar(4, 5), 0.6)])
    return [first, result_of("b", [], [(bar(1, 3), 0.8)])]


def test_counts_are_of_candidates_at_or_above_the_threshold():
    evaluation = evaluate_cases(two_cases(), Protocol(threshold=0.6))
    assert (evaluation.num_cases, evaluation.num_patients, evaluation.num_lesions) == (2, 2, 3)
    assert evaluation.num_detected_lesions == evaluation.num_true_candidates == 1
    assert (evaluation.num_candidates, evaluation.num_false_candidates) == (3, 2)


def test_another_threshold_needs_no_second_look_at_the_images():
    assert evaluate_cases(two_cases(), Protocol(threshold=0.3)).num_detected_lesions == 2
    assert evaluate_cases(two_cases(), Protocol(threshold=0.85)).num_false_candidates == 0


def test_rates_have_the_numerators_and_denominators_of_the_counts():
    evaluation = evaluate_cases(two_cases(), Protocol(threshold=0.6))
    for rate, numerator, denominator in (
        (evaluation.lesion_sensitivity, 1, 3),
        (evaluation.lesion_precision, 1, 3),
        (evaluation.lesion_f1, 2, 6),
        (evaluation.false_positives_per_case, 2, 2),
    ):
        assert (rate.numerator, rate.denominator) == (numerator, denominator)
        assert rate.value == pytest.approx(numerator / denominator)
    assert evaluation.false_positives_per_litre.value == pytest.approx(2 / (2 * 960 * 1.5e-6))


def test_case_without_lesions_counts_for_false_candidates_only():
    free = result_of("free", [], [(((2 * n, 2 * n + 1), (0, 1), (0, 1)), 0.9) for n in range(6)])
    both = evaluate_cases([result_of("found", [bar(1, 3)], [(bar(1, 3), 0.9)]), free])
    assert both.num_false_candidates == 6
    assert both.false_positives_per_case.value == 3
    assert (both.lesion_sensitivity.value, both.lesion_sensitivity.num_patients) == (1, 1)
    assert both.false_positives_per_case.num_patients == 2


def test_macro_sensitivity_is_the_mean_over_patients_with_lesions():
    many = [((2 * n, 2 * n + 1), (0, 1), (0, 1)) for n in range(6)]
    results = [
        result_of("a", many, [(box, 0.9) for box in many], "p1"),
        result_of("b", [bar(1, 3)], [], "p2"),
        result_of("c", [], [], "p3"),
    ]
    evaluation = evaluate_cases(results)
    assert evaluation.lesion_sensitivity.value == pytest.approx(6 / 7)
    assert evaluation.lesion_sensitivity_macro.value == 0.5


def test_two_cases_of_a_patient_are_one_patient():
    results = [result_of("a", [bar(1, 3)], [(bar(1, 3), 0.9)], "p"), result_of("b", [bar(1, 3)], [], "p")]
    evaluation = evaluate_cases(results)
    assert (evaluation.num_cases, evaluation.num_patients) == (2, 1)
    assert "one patient" in evaluation.lesion_sensitivity.method
    assert evaluation.lesion_sensitivity_macro.denominator == 1
    assert evaluation.false_positives_per_case.denominator == 2


def test_interval_is_there_for_three_cases_with_one_lesion():
    results = [result_of("a", [bar(1, 3)], [(bar(1, 3), 0.9)]), result_of("b", [], []), result_of("c", [], [])]
    sensitivity = evaluate_cases(results).lesion_sensitivity
    assert (sensitivity.low, sensitivity.high) == (pytest.approx(0.025), 1)


def test_voxel_dice_is_of_all_voxels_of_the_candidates_that_count():
    """Reference 8 + 12 + 2 voxels; at .6 the candidates have 8 + 4 + 0 in it of 8 + 4: 2 * 8 / (22 + 12)."""
    evaluation = evaluate_cases(two_cases(), Protocol(threshold=0.6))
    assert evaluation.cases[0]["voxel_dice"] == pytest.approx(16 / 34)
    assert evaluation.cases[1]["voxel_dice"] == 0
    assert evaluation.voxel_dice.mean == pytest.approx(8 / 34)
    # At .3 bar(8, 11) adds 12 voxels, 4 of them in bar(6, 9).
    assert evaluate_cases(two_cases(), Protocol(threshold=0.3)).cases[0]["voxel_dice"] == pytest.approx(24 / 46)


def test_voxel_dice_counts_every_lesion_that_a_candidate_lies_on():
    """bar(1, 8) has 28 voxels, 8 and 12 of them in the two lesions it merges: 2 * 20 / (20 + 28)."""
    evaluation = evaluate_cases([result_of("a", [bar(1, 3), bar(5, 8)], [(bar(1, 8), 0.9)])])
    assert evaluation.cases[0]["voxel_dice"] == pytest.approx(40 / 48)


def test_voxel_dice_of_two_empty_masks_is_undefined_and_listed():
    evaluation = evaluate_cases([result_of("empty", [], []), result_of("a", [bar(1, 3)], [(bar(1, 3), 0.9)])])
    assert (evaluation.voxel_dice.mean, evaluation.voxel_dice.num_cases) == (1, 1)
    assert evaluation.voxel_dice.num_undefined == 1
    assert ("voxel_dice", "case 'empty'") in [(line.what, line.where) for line in evaluation.undefined]


def test_without_any_lesion_sensitivity_is_nan_and_listed_and_false_candidates_are_counted():
    evaluation = evaluate_cases([result_of("a", [], [(bar(1, 3), 0.9)])])
    assert math.isnan(evaluation.lesion_sensitivity.value)
    assert math.isnan(evaluation.froc.cpm)
    assert evaluation.false_positives_per_case.value == 1
    listed = {line.what: line.why for line in evaluation.undefined}
    assert listed["lesion_sensitivity"] == listed["lesion_sensitivity_macro"] == "there is no lesion"
    assert any(what.startswith("froc: lesion_sensitivity") for what in listed)


def test_without_any_candidate_precision_is_nan_and_listed_and_sensitivity_is_0():
    evaluation = evaluate_cases([result_of("a", [bar(1, 3)], [])])
    assert math.isnan(evaluation.lesion_precision.value)
    assert (evaluation.lesion_sensitivity.value, evaluation.froc.cpm) == (0, 0)
    assert "lesion_precision" in [line.what for line in evaluation.undefined]


def test_rate_at_which_no_candidate_may_count_has_its_missing_threshold_listed():
    evaluation = evaluate_cases([result_of("a", [bar(6, 8)], [(bar(1, 3), 0.9), (bar(6, 8), 0.3)])])
    wheres = [line.where for line in evaluation.undefined if line.what == "froc: threshold"]
    assert wheres == [f"{rate} false positives per case" for rate in ("0.125", "0.25", "0.5")]


def test_everything_empty_is_nan_without_an_error():
    evaluation = evaluate_cases([result_of("a", [], [])])
    listed = {line.what for line in evaluation.undefined}
    assert {"lesion_sensitivity", "lesion_precision", "lesion_f1", "voxel_dice: mean and median"} <= listed
    assert evaluation.false_positives_per_case.value == 0


def test_no_case_is_refused():
    with pytest.raises(DatasetError, match="there is no case to evaluate"):
        evaluate_cases([])


def test_case_given_twice_is_refused_by_name():
    with pytest.raises(DatasetError, match="1 cases were given more than once: a"):
        evaluate_cases([result_of("a", [], []), result_of("b", [], []), result_of("a", [], [])])


def test_result_of_another_rule_is_refused():
    with pytest.raises(ValueError, match="case 'a' was measured with connectivity 26, not 6"):
        evaluate_cases([result_of("a", [], [])], Protocol(connectivity=6))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_rows_add_up_to_the_counts(threshold):
    results = [evaluate_case(case.reference, case.probability, AFFINE, case=case.name) for case in LESION_CASES]
    evaluation = evaluate_cases(results, Protocol(threshold=threshold))
    detected = [row for row in evaluation.lesions if row["detected"]]
    counted = [row for row in evaluation.candidates if row["above_threshold"]]
    assert len(evaluation.lesions) == evaluation.num_lesions
    assert len(detected) == evaluation.num_detected_lesions
    assert len(counted) == evaluation.num_candidates
    assert sum(row["verdict"] == "true" for row in counted) == evaluation.num_true_candidates
    for name in ("num_lesions", "num_detected_lesions", "num_candidates", "num_false_candidates"):
        assert sum(row[name] for row in evaluation.cases) == getattr(evaluation, name)
    # The two tables tell of the same pairs.
    pairs = {(row["case"], row["lesion"], row["candidate"]) for row in detected}
    assert pairs == {(row["case"], row["lesion"], row["candidate"]) for row in counted if row["verdict"] == "true"}


def test_threshold_of_a_froc_point_gives_its_sensitivity_and_no_more_false_candidates():
    results = [evaluate_case(case.reference, case.probability, AFFINE, case=case.name) for case in LESION_CASES]
    points = evaluate_cases(results, Protocol(false_positive_rates=(0.2, 0.3, 0.5))).froc.points
    for point in points:
        at_threshold = evaluate_cases(results, Protocol(threshold=point.threshold))
        assert point.lesion_sensitivity == at_threshold.lesion_sensitivity.value
        assert at_threshold.false_positives_per_case.value <= point.false_positives_per_case


@settings(max_examples=40, deadline=None)
@given(
    arrays(bool, (6, 5, 4)),
    arrays(np.float64, (6, 5, 4), elements=st.integers(0, 40).map(lambda n: (n / 40) ** 4)),
    st.permutations([0, 1, 2]),
    st.sets(st.sampled_from([0, 1, 2])),
)
def test_turning_both_maps_changes_no_count(reference, probability, axes, flipped):
    def turn(array):
        return np.flip(array, tuple(flipped)).transpose(axes)

    few = Protocol(num_resamples=20)
    plain = evaluate_cases([evaluate_case(reference, probability, np.eye(4), case="a")], few)
    turned = evaluate_cases([evaluate_case(turn(reference), turn(probability), np.eye(4), case="a")], few)
    np.testing.assert_equal(asdict(turned.froc.curve), asdict(plain.froc.curve))
    columns = [[astuple(point) for point in found.froc.points] for found in (turned, plain)]
    # Lesions come in another order, and sums of them differ in the last digit.
    np.testing.assert_allclose(*columns, rtol=1e-12)
    counts = ("num_lesions", "num_detected_lesions", "num_candidates", "num_false_candidates")
    assert [getattr(turned, name) for name in counts] == [getattr(plain, name) for name in counts]
    np.testing.assert_equal(asdict(turned.voxel_dice), asdict(plain.voxel_dice))


def test_protocol_is_printed_whole():
    protocol = Protocol(name="mine", threshold=0.3)
    printed = evaluate_cases([result_of("a", [], [])], protocol).to_dict()["protocol"]
    assert set(printed) == {field.name for field in fields(Protocol)}
    assert (printed["name"], printed["threshold"], printed["connectivity"]) == ("mine", 0.3, 26)
    assert printed["false_positive_rates"] == [0.125, 0.25, 0.5, 1, 2, 4, 8]


def test_ignored_lesion_is_neither_found_nor_missed_and_its_candidate_neither_true_nor_false():
    """Of two lesions found, the one of 2 voxels (3 mm3) lies under 4 mm3."""
    small = ((9, 11), (8, 9), (6, 7))
    result = result_of("a", [bar(1, 3), small], [(bar(1, 3), 0.9), (small, 0.8)])
    evaluation = evaluate_cases([result], Protocol(min_volume_mm3=4))
    assert (evaluation.num_lesions, evaluation.num_ignored_lesions, evaluation.num_detected_lesions) == (1, 1, 1)
    assert (evaluation.num_candidates, evaluation.num_ignored_candidates) == (1, 1)
    assert [(row["ignored"], row["detected"]) for row in evaluation.lesions] == [(False, True), (True, None)]
    assert [row["verdict"] for row in evaluation.candidates] == ["true", "ignored"]


def test_case_whose_only_lesion_is_ignored_is_not_lesion_free():
    result = result_of("a", [bar(1, 3)], [(bar(8, 9), 0.9)])
    evaluation = evaluate_cases([result, result_of("b", [], [])], Protocol(min_volume_mm3=1000))
    assert evaluation.num_lesion_free_cases == 1
    assert evaluation.false_positives_per_lesion_free_case.value == 0
    assert evaluation.false_positives_per_case.value == 0.5


def test_split_and_merged_lesions_are_counted():
    split = result_of("a", [bar(1, 8)], [(bar(1, 3), 0.6), (bar(5, 8), 0.8)])
    merged = result_of("b", [bar(1, 3), bar(5, 8)], [(bar(1, 8), 0.7)])
    evaluation = evaluate_cases([split, merged])
    assert (evaluation.num_split_lesions, evaluation.num_merging_candidates) == (1, 1)
    assert evaluate_cases([split, merged], Protocol(threshold=0.7)).num_split_lesions == 0


def test_region_to_be_ignored_is_left_out_of_voxel_dice_and_volumes():
    """Reference bar(1, 5), prediction bar(3, 7), i 0 to 3 ignored: 4 and 12 voxels remain, 4 shared."""
    ignore = np.zeros((12, 10, 8), bool)
    ignore[:4] = True
    table = evaluate_case(fill([(bar(1, 5), 1)]) != 0, fill([(bar(3, 7), 1)]) != 0, AFFINE, case="a", ignore=ignore)
    (row,) = evaluate_cases([table], Protocol(max_ignored_share=1)).cases
    assert row["voxel_dice"] == pytest.approx(2 * 4 / 16)
    assert row["reference_volume_ml"] == pytest.approx(4 * 1.5e-3)
    assert row["volume_difference_ml"] == pytest.approx(8 * 1.5e-3)


def test_panoptic_quality_is_f1_times_mean_overlap_of_found_lesions():
    """bar(1, 5) and bar(2, 5) have IoU 3/4; one more lesion is missed and one candidate false."""
    result = result_of("a", [bar(1, 5), bar(8, 10)], [(bar(2, 5), 0.9), (((0, 1), (0, 1), (7, 8)), 0.6)])
    evaluation = evaluate_cases([result])
    assert evaluation.segmentation_quality.value == pytest.approx(3 / 4)
    assert evaluation.recognition_quality.value == pytest.approx(1 / 2)
    assert evaluation.panoptic_quality.value == pytest.approx(3 / 8)


def test_surfaces_are_summed_up_where_they_were_measured_at_this_threshold():
    reference = fill([(bar(1, 5), 1)]) != 0
    table = evaluate_case(reference, fill([(bar(2, 6), 0.9)]), AFFINE, case="a", surface=True)
    found = evaluate_cases([table]).surface
    assert found.cases["hd95_mm"].mean == pytest.approx(0.5)
    assert found.lesions["hd95_mm"].mean == pytest.approx(0.5)
    other = evaluate_cases([table], Protocol(threshold=0.6))
    assert other.surface is None
    assert "surface" in [line.what for line in other.undefined]


def test_no_lesion_is_found_so_no_lesion_has_a_surface():
    table = evaluate_case(fill([(bar(1, 5), 1)]) != 0, fill([]), AFFINE, case="a", surface=True)
    evaluation = evaluate_cases([table])
    assert math.isnan(evaluation.surface.cases["hd95_mm"].mean)
    whys = {line.what: line.why for line in evaluation.undefined}
    assert whys["surface: hd95_mm of lesions"] == "no lesion is found"
    assert evaluation.surface.cases["hd95_mm"].num_undefined == 1


def test_few_patients_and_masks_beside_maps_are_warned_of():
    mask = evaluate_case(fill([(bar(1, 5), 1)]) != 0, fill([(bar(1, 5), 1)]) != 0, AFFINE, case="mask")
    warnings = evaluate_cases([*two_cases(), mask]).warnings
    assert any("3 patients" in warning for warning in warnings)
    assert any("1 predictions are masks" in warning and "2 are probability maps" in warning for warning in warnings)


def test_many_to_many_counts_lesions_found_and_candidates_true_apart():
    """One candidate over two lesions and one more on the first: 2 lesions found by 2 true candidates, none false."""
    result = result_of("a", [bar(1, 4), bar(5, 8)], [(bar(3, 8), 0.7), (bar(1, 2), 0.9)])
    evaluation = evaluate_cases([result], Protocol(assignment="many_to_many"))
    assert (evaluation.num_detected_lesions, evaluation.num_true_candidates) == (2, 2)
    assert evaluation.lesion_f1.value == evaluation.lesion_precision.value == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hit_rule", "touch"),
        ("duplicates", "true"),
        ("connectivity", 4),
        ("threshold", 1.5),
        ("extent_ratio", 1.0),
        ("floor", 0.0),
        ("confidence", "mean"),
        ("false_positive_rates", (1.0, 0.5)),
        ("false_positive_rates", ()),
        ("level", 95.0),
        ("num_resamples", -1),
        ("diameter_edges_mm", (5.0, 3.0)),
        ("tolerance_mm", 0.0),
        ("min_volume_mm3", -1.0),
        ("interval", "wald"),
        ("assignment", "hungarian"),
    ],
)
def test_rule_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Protocol(**{name: value})


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"hit_rule": "iou", "hit_threshold": 1.5}, r"hit_threshold must be in \[0, 1\] for hit_rule=iou"),
        ({"hit_rule": "centroid_distance"}, "hit_threshold must be above 0 for hit_rule=centroid_distance"),
        ({"hit_threshold": 0.2}, "hit_rule=any_overlap has no hit_threshold, got 0.2"),
        ({"hit_rule": "dilated_overlap"}, "dilated_overlap needs reference_dilation above 0"),
        ({"hit_rule": "covered_together"}, "needs assignment=many_to_many"),
        ({"outside_share": 0.5}, "outside_share"),
        ({"small_hit_threshold": 0.5}, "small_hit_threshold has no effect"),
    ],
)
def test_rules_that_do_not_belong_together_are_refused(rules, said):
    with pytest.raises(ValueError, match=said):
        Protocol(**rules)


def masks(*false_boxes):
    """One lesion found and as many false candidates as boxes, by a mask."""
    reference = fill([(bar(1, 3), 1)]) != 0
    prediction = fill([(bar(1, 3), 1), *((box, 1) for box in false_boxes)]) != 0
    return evaluate_case(reference, prediction, AFFINE, case="a")


def test_masks_without_false_candidates_reach_every_point_of_the_froc():
    froc = evaluate_cases([masks()]).froc
    assert [point.lesion_sensitivity for point in froc.points] == [1] * 7
    assert froc.cpm == 1


def test_nobody_knows_what_a_mask_would_find_at_fewer_false_candidates_than_it_has():
    evaluation = evaluate_cases([masks(bar(6, 7), bar(9, 10))])
    values = [point.lesion_sensitivity for point in evaluation.froc.points]
    np.testing.assert_array_equal(values, [np.nan] * 4 + [1] * 3)
    assert math.isnan(evaluation.froc.cpm)
    assert (evaluation.froc.band.false_positives_per_case >= 2).all()
    assert any("one operating point" in line.why for line in evaluation.undefined)


def test_surest_candidates_of_maps_that_are_too_often_false_find_nothing_at_lower_rates():
    result = result_of("a", [bar(1, 3)], [(bar(1, 3), 0.9), (bar(6, 7), 0.9), (bar(9, 10), 0.9)])
    assert [point.lesion_sensitivity for point in evaluate_cases([result]).froc.points] == [0] * 4 + [1] * 3


def test_missed_lesions_that_a_candidate_hits_are_counted_and_told_of():
    """bar(1, 8) lies on both lesions and finds the larger."""
    evaluation = evaluate_cases([result_of("a", [bar(1, 3), bar(5, 8)], [(bar(1, 8), 0.7)])])
    assert (evaluation.num_detected_lesions, evaluation.num_hit_missed_lesions) == (1, 1)
    assert any("1 of the 1 missed lesions is hit" in warning for warning in evaluation.warnings)
    assert evaluate_cases([result_of("a", [bar(1, 3)], [(bar(6, 8), 0.7)])]).num_hit_missed_lesions == 0
