import numpy as np
import pytest
from lesion_cases import AFFINE, LESION_CASES, SHAPE, bar, fill

from medfocal.errors import GeometryError, InputError
from medfocal.evaluate import Protocol, evaluate_case


def evaluate(lesions, candidates, **arguments):
    reference = fill([(box, 1) for box in lesions]).astype(np.uint8)
    return evaluate_case(reference, fill(candidates), AFFINE, case="one", **arguments)


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_mask_finds_as_many_lesions_as_the_probability_map_it_was_drawn_from(case):
    mask = evaluate_case(case.reference, case.probability > 0, AFFINE, case="one")
    assert sum(lesion.candidate is not None for lesion in mask.lesions) == len(case.pairs)
    assert sum(candidate.lesion is None for candidate in mask.candidates) == case.num_false
    assert {candidate.confidence for candidate in mask.candidates} <= {1.0}


def test_lesion_carries_its_size_place_and_the_candidate_that_finds_it():
    (lesion,) = evaluate([bar(1, 5)], [(bar(4, 7), 0.7), (((0, 1), (0, 1), (7, 8)), 0.9)]).lesions
    assert (lesion.part.number, lesion.part.num_voxels) == (1, 16)
    assert lesion.part.volume_ml == pytest.approx(0.024)  # 16 voxels of 1.5 mm3
    assert lesion.part.centroid_voxel == (2.5, 3.5, 2.5)
    assert lesion.part.centroid_mm == pytest.approx((18.75, -3.5, 11.5))
    assert (lesion.candidate, lesion.overlap_voxels, lesion.confidence) == (2, 4, 0.7)


def test_candidate_carries_its_lesion_and_all_its_voxels_on_the_reference():
    (candidate,) = evaluate([bar(1, 3), bar(5, 8)], [(bar(2, 8), 0.7)]).candidates
    assert (candidate.lesion, candidate.overlap_voxels, candidate.reference_voxels) == (2, 12, 16)


def test_missed_lesion_has_no_candidate_and_no_confidence():
    (lesion,) = evaluate([bar(1, 3)], []).lesions
    assert (lesion.candidate, lesion.overlap_voxels) == (None, 0)
    assert np.isnan(lesion.confidence)


def test_scanned_volume_is_the_whole_grid():
    assert evaluate([], []).scanned_litres == pytest.approx(960 * 1.5e-6)


def test_case_is_its_own_patient_unless_told():
    assert evaluate([], []).patient == "one"
    assert evaluate([], [], patient="p7").patient == "p7"


def test_any_label_but_0_is_lesion_and_touching_labels_are_one_lesion():
    reference = np.zeros(SHAPE, np.int16)
    reference[2, 2, 2], reference[3, 2, 2], reference[8, 8, 6] = 1, 2, 7
    assert len(evaluate_case(reference, np.zeros(SHAPE, bool), AFFINE, case="one").lesions) == 2


@pytest.mark.parametrize("value", [1, 255, 0.99999997, 1.0000001])
def test_float_array_of_whole_numbers_is_a_mask(value):
    (candidate,) = evaluate([], [(bar(1, 3), value)]).candidates
    assert candidate.confidence == 1


def test_float_array_with_a_fraction_is_a_probability_map():
    result = evaluate([], [(bar(1, 3), 1.0), (bar(6, 8), 0.25)])
    assert [candidate.confidence for candidate in result.candidates] == [1, 0.25]


def test_rounding_beyond_the_ends_of_0_to_1_is_no_error():
    result = evaluate([], [(bar(1, 3), 1.00001), (bar(6, 8), 0.25), (bar(9, 10), -1e-6)])
    assert [candidate.confidence for candidate in result.candidates] == [1, 0.25]


def test_connectivity_of_the_protocol_holds_for_lesions_and_candidates():
    corner = [((1, 3), (1, 3), (1, 3)), ((3, 5), (3, 5), (3, 5))]
    result = evaluate(corner, [(box, 0.9) for box in corner], protocol=Protocol(connectivity=6))
    assert (len(result.lesions), len(result.candidates)) == (2, 2)


def test_floor_and_extent_of_the_protocol_hold_for_candidates():
    candidates = [(bar(1, 3), 0.8), (bar(3, 4), 0.5), (bar(8, 9), 0.2)]
    (candidate,) = evaluate([], candidates, protocol=Protocol(floor=0.3, extent_ratio=0.8)).candidates
    assert candidate.part.num_voxels == 8


def test_different_shapes_are_refused_with_both():
    with pytest.raises(GeometryError, match=r"case 'one'.*\(12, 10, 8\) and \(12, 8, 10\)"):
        evaluate_case(np.zeros(SHAPE, bool), np.zeros((12, 8, 10), bool), AFFINE, case="one")


@pytest.mark.parametrize(("value", "said"), [(1.5, "holds 1.5"), (-0.25, "holds -0.25"), (np.nan, "holds nan")])
def test_value_that_is_no_probability_is_refused_with_the_case(value, said):
    with pytest.raises(InputError, match=f"case 'one': the prediction {said}"):
        evaluate([], [(bar(1, 3), 0.5), (bar(5, 6), value)])


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_map_in_percent_is_neither_mask_nor_probability(kind):
    percent = np.zeros((12, 10, 8), kind)
    percent[2, 2, 2], percent[5, 5, 5] = 3, 90
    with pytest.raises(InputError, match=r"holds several whole numbers up to 90: .* divide the map"):
        evaluate_case(percent, percent, np.eye(4), case="s1")


def test_a_mask_of_one_high_number_is_a_mask():
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[2, 2, 2] = 255
    assert len(evaluate_case(mask, mask, np.eye(4), case="s1").candidates) == 1
