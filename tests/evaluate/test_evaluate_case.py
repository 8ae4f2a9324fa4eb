import numpy as np
import pytest
from lesion_cases import AFFINE, LESION_CASES, SHAPE, bar, fill

from medfocal.errors import GeometryError, InputError
from medfocal.evaluate import Protocol, evaluate_case
from medfocal.evaluate.judge import Verdict, judge


def evaluate(lesions, candidates, **arguments):
    reference = fill([(box, 1) for box in lesions]).astype(np.uint8)
    return evaluate_case(reference, fill(candidates), AFFINE, case="one", **arguments)


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_mask_finds_as_many_lesions_as_the_probability_map_it_was_drawn_from(case):
    mask = judge(evaluate_case(case.reference, case.probability > 0, AFFINE, case="one"), Protocol())
    assert (mask.lesion_candidate > 0).sum() == len(case.pairs)
    assert (mask.candidate_verdict == Verdict.FALSE).sum() == case.num_false
    assert set(mask.table.candidates.confidence) <= {1.0}
    assert mask.table.is_mask


def test_table_holds_sizes_places_and_what_lesions_share_with_candidates():
    table = evaluate([bar(1, 5)], [(bar(4, 7), 0.7), (((0, 1), (0, 1), (7, 8)), 0.9)])
    assert table.lesions.num_voxels.tolist() == [16]
    assert table.lesions.volume_ml == pytest.approx([0.024])  # 16 voxels of 1.5 mm3
    assert table.lesions.centroid_voxel.tolist() == [[2.5, 3.5, 2.5]]
    assert table.lesions.centroid_mm == pytest.approx(np.array([[18.75, -3.5, 11.5]]))
    assert table.candidates.confidence.tolist() == [0.9, 0.7]
    overlaps = table.overlaps
    assert (overlaps.lesion.tolist(), overlaps.candidate.tolist(), overlaps.num_voxels.tolist()) == ([1], [2], [4])
    assert not table.is_mask


def test_diameters_are_from_corner_to_corner():
    """bar(1, 5): 4 voxels of 0.5 mm, 2 of 1 mm and 2 slices of 3 mm."""
    table = evaluate([bar(1, 5)], [])
    assert table.lesions.longest_diameter_mm == pytest.approx([np.sqrt(2**2 + 2**2 + 6**2)])
    assert table.lesions.axial_diameter_mm == pytest.approx([np.sqrt(2**2 + 2**2)])


def test_point_of_a_candidate_tells_the_lesion_it_lies_in():
    prediction = fill([(bar(2, 5), 0.5), (bar(3, 4), 0.9), (bar(8, 9), 0.3)])
    table = evaluate_case(fill([(bar(3, 4), 1)]) != 0, prediction, AFFINE, case="one")
    assert table.candidate_point_lesion.tolist() == [1, 0]


def test_region_to_be_ignored_is_counted_for_parts_and_pairs_and_left_out_of_the_scanned_volume():
    """bar(1, 5) and bar(3, 7) share i 3 and 4; the region covers i 0 to 3."""
    ignore = np.zeros(SHAPE, bool)
    ignore[:4] = True
    table = evaluate([bar(1, 5)], [(bar(3, 7), 0.9)], ignore=ignore)
    assert table.lesions.ignored_voxels.tolist() == [12]
    assert table.candidates.ignored_voxels.tolist() == [4]
    assert table.overlaps.num_voxels.tolist() == [8]
    assert table.pair_ignored_voxels.tolist() == [4]
    assert table.scanned_litres == pytest.approx(8 / 12 * 960 * 1.5e-6)


def test_surfaces_are_measured_if_asked_for():
    plain = evaluate([bar(1, 5)], [(bar(1, 5), 0.9)])
    assert plain.pair_surface is None
    assert plain.surface == {}
    table = evaluate([bar(1, 5)], [(bar(1, 5), 0.9)], surface=True)
    assert table.surface == {"hd95_mm": 0, "hd95_pooled_mm": 0, "assd_mm": 0, "masd_mm": 0, "nsd": 1}
    assert table.pair_surface.tolist() == [[0, 0, 0, 0, 1]]


def test_surface_of_the_case_is_of_the_candidates_that_count():
    candidates = [(bar(1, 5), 0.9), (bar(8, 10), 0.4)]
    far = evaluate([bar(1, 5)], candidates, surface=True, protocol=Protocol(threshold=0.4))
    near = evaluate([bar(1, 5)], candidates, surface=True, protocol=Protocol(threshold=0.5))
    assert near.surface["hd95_mm"] == 0 < far.surface["hd95_mm"]


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
    assert evaluate([], [(bar(1, 3), value)]).candidates.confidence.tolist() == [1]


def test_float_array_with_a_fraction_is_a_probability_map():
    result = evaluate([], [(bar(1, 3), 1.0), (bar(6, 8), 0.25)])
    assert result.candidates.confidence.tolist() == [1, 0.25]


def test_rounding_beyond_the_ends_of_0_to_1_is_no_error():
    result = evaluate([], [(bar(1, 3), 1.00001), (bar(6, 8), 0.25), (bar(9, 10), -1e-6)])
    assert result.candidates.confidence.tolist() == [1, 0.25]


def test_connectivity_of_the_protocol_holds_for_lesions_and_candidates():
    corner = [((1, 3), (1, 3), (1, 3)), ((3, 5), (3, 5), (3, 5))]
    result = evaluate(corner, [(box, 0.9) for box in corner], protocol=Protocol(connectivity=6))
    assert (len(result.lesions), len(result.candidates)) == (2, 2)


def test_floor_and_extent_of_the_protocol_hold_for_candidates():
    candidates = [(bar(1, 3), 0.8), (bar(3, 4), 0.5), (bar(8, 9), 0.2)]
    found = evaluate([], candidates, protocol=Protocol(floor=0.3, extent_ratio=0.8)).candidates
    assert found.num_voxels.tolist() == [8]


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
