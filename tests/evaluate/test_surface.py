import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from scipy.spatial.distance import cdist

from medfocal.components import find_components, find_instances
from medfocal.evaluate.overlap import find_overlaps
from medfocal.evaluate.surface import (
    WHY_UNDEFINED,
    case_surface,
    pair_surfaces,
    surface_distances,
    surface_figures,
)
from medfocal.evaluate.table import SURFACE_FIGURES

SHAPE = (12, 10, 8)
SPACING = (0.5, 1.0, 3.0)
TOLERANCE = 1.0
STRAIGHT = np.diag([*SPACING, 1.0])
FLIPPED = np.array([[-0.5, 0, 0, 40.0], [0, -1.0, 0, 30.0], [0, 0, 3.0, -20.0], [0, 0, 0, 1]])
# Axes swapped and sheared, none at a right angle to another.
SHEARED = np.array([[0.1, -0.9, 0.4, 7.0], [0.5, 0.3, 0.2, -50.0], [-0.2, 0.4, 2.5, 11.0], [0, 0, 0, 1]])
AFFINES = {"straight": STRAIGHT, "flipped": FLIPPED, "sheared": SHEARED}


def box(low, size, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + side) for start, side in zip(low, size, strict=True))] = True
    return mask


def random_blobs(seed, shape=SHAPE):
    """A mask with surfaces and insides that reaches the edges of the volume."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return smooth > np.quantile(smooth, 0.75)


def figures(reference, prediction, affine=STRAIGHT, tolerance_mm=TOLERANCE):
    voxels = (np.flatnonzero(mask) for mask in (reference, prediction))
    return case_surface(*voxels, reference.shape, affine, tolerance_mm=tolerance_mm)


def border_in_world(mask, affine):
    border = mask & ~ndimage.binary_erosion(mask)
    index = np.argwhere(border)
    return (np.column_stack([index, np.ones(len(index))]) @ affine.T)[:, :3]


def brute_force(reference, prediction, affine, tolerance_mm=TOLERANCE):
    """All distances between all border voxels, and the figures as numpy gives them."""
    distance = cdist(border_in_world(reference, affine), border_in_world(prediction, affine))
    there, back = distance.min(axis=1), distance.min(axis=0)
    both = np.concatenate([there, back])
    return {
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "hd95_pooled_mm": np.percentile(both, 95),
        "assd_mm": both.mean(),
        "masd_mm": (there.mean() + back.mean()) / 2,
        "nsd": (both <= tolerance_mm + 1e-9).mean(),
    }


@pytest.mark.parametrize(("axis", "step_mm", "length", "nsd"), [(0, 0.5, 4, 1.0), (1, 1.0, 3, 2 / 3), (2, 3.0, 2, 0.5)])
def test_box_moved_by_one_voxel_is_one_step_away_on_its_leading_face(axis, step_mm, length, nsd):
    """The box of 4 x 3 x 2 voxels has no inside: one face of each box is a step away, all the rest coincides."""
    moved = np.array([5, 4, 3]) + np.eye(3, dtype=int)[axis]
    found = figures(box((5, 4, 3), (4, 3, 2)), box(moved, (4, 3, 2)), tolerance_mm=0.75)
    mean = step_mm / length
    expected = {"hd95_mm": step_mm, "hd95_pooled_mm": step_mm, "assd_mm": mean, "masd_mm": mean, "nsd": nsd}
    assert found == pytest.approx(expected)


def test_five_figures_of_a_line_and_its_first_voxel():
    """Distances 0, 3 and 6 mm one way and 0 the other, where no two figures are equal."""
    found = figures(box((7, 2, 3), (1, 1, 3)), box((7, 2, 3), (1, 1, 1)), tolerance_mm=3.0)
    assert found == pytest.approx(
        {
            "hd95_mm": 5.7,  # 0.9 of the way from 3 to 6
            "hd95_pooled_mm": 5.55,  # of 0, 0, 3, 6: 0.85 of the way from 3 to 6
            "assd_mm": 9 / 4,
            "masd_mm": (3 + 0) / 2,
            "nsd": 3 / 4,
        }
    )
    assert tuple(found) == SURFACE_FIGURES


def test_distances_belong_to_the_mask_that_they_start_from():
    line, point = box((7, 2, 3), (1, 1, 3)), box((7, 2, 3), (1, 1, 1))
    found = surface_distances(line, point, FLIPPED)
    assert found.from_reference.tolist() == [0, 3, 6]
    assert found.from_prediction.tolist() == [0]


def test_inside_of_a_box_is_no_surface():
    found = surface_distances(box((3, 2, 1), (5, 5, 5)), box((0, 0, 0), (1, 1, 1)), STRAIGHT)
    assert len(found.from_reference) == 5**3 - 3**3


def test_voxels_at_the_edge_of_the_volume_are_surface():
    full = np.ones(SHAPE, bool)
    found = surface_distances(full, full, STRAIGHT)
    assert len(found.from_reference) == 12 * 10 * 8 - 10 * 8 * 6


def test_nearest_voxel_is_of_the_border_not_of_the_inside():
    """A voxel in the centre of a 5 x 5 x 5 box is 2 voxels from its border along each axis, the nearest 2 * 0.5 mm."""
    found = surface_distances(box((5, 4, 3), (1, 1, 1)), box((3, 2, 1), (5, 5, 5)), STRAIGHT)
    assert found.from_reference.tolist() == [1.0]


def test_sheared_axes_give_true_millimetres():
    """Two steps along an axis that leans by 45 degrees are 2 mm up and 2 mm aside."""
    leaning = np.array([[1.0, 1.0, 0, 5], [0, 1.0, 0, 5], [0, 0, 1.0, 5], [0, 0, 0, 1]])
    found = surface_distances(box((3, 3, 3), (1, 1, 1)), box((3, 5, 3), (1, 1, 1)), leaning)
    assert found.from_reference == pytest.approx([math.hypot(2, 2)])


def test_the_nearest_voxel_on_sheared_axes_need_not_be_the_nearest_by_index():
    """Axis 1 leans so far that going back along axis 0 brings (2, 1) steps to (0, 1) mm."""
    leaning = np.array([[1.0, 2.0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    prediction = box((5, 5, 3), (1, 1, 1)) | box((3, 5, 3), (1, 1, 1))
    found = surface_distances(box((5, 4, 3), (1, 1, 1)), prediction, leaning)
    assert found.from_reference == pytest.approx([1.0])


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("seed", range(6))
def test_figures_agree_with_all_distances_between_all_border_voxels(affine, seed):
    reference, prediction = random_blobs(seed), random_blobs(seed + 100)
    expected = brute_force(reference, prediction, affine)
    assert figures(reference, prediction, affine) == pytest.approx(expected, abs=1e-9)
    dense = surface_figures(surface_distances(reference, prediction, affine), tolerance_mm=TOLERANCE)
    assert dense == pytest.approx(expected, abs=1e-9)


masks = hnp.arrays(np.bool_, st.shared(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), key="shape"))


@settings(max_examples=200, deadline=None)
@given(masks, masks, st.sampled_from(sorted(AFFINES)))
def test_any_two_masks_agree_with_brute_force(reference, prediction, name):
    assume(reference.any() and prediction.any())
    expected = brute_force(reference, prediction, AFFINES[name])
    assert figures(reference, prediction, AFFINES[name]) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(masks, masks, st.sampled_from(sorted(AFFINES)))
def test_reference_and_prediction_are_interchangeable(reference, prediction, name):
    there, back = (figures(*pair, AFFINES[name]) for pair in ((reference, prediction), (prediction, reference)))
    assert there == pytest.approx(back, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("axes", [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)])
@pytest.mark.parametrize("name", sorted(AFFINES))
def test_turning_axes_with_their_affine_changes_nothing(axes, name):
    reference, prediction, affine = random_blobs(5), random_blobs(6), AFFINES[name]
    turned = affine.copy()
    for axis in axes:
        turned[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        turned[:3, axis] *= -1
    found = figures(np.flip(reference, axes), np.flip(prediction, axes), turned)
    assert found == pytest.approx(figures(reference, prediction, affine), abs=1e-9)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_reordering_axes_with_their_affine_changes_nothing(order):
    reference, prediction = random_blobs(5), random_blobs(6)
    found = figures(reference.transpose(order), prediction.transpose(order), SHEARED[:, [*order, 3]])
    assert found == pytest.approx(figures(reference, prediction, SHEARED), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(masks, masks, st.sampled_from(sorted(AFFINES)), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_air_around_a_volume_changes_nothing(reference, prediction, name, air):
    """Lesions cut off by the edge of the volume included: the crop is the volume itself."""
    around = list(zip(air[:3], air[3:], strict=True))
    found = figures(np.pad(reference, around), np.pad(prediction, around), AFFINES[name])
    assert found == pytest.approx(figures(reference, prediction, AFFINES[name]), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_monai(seed):
    """Its percentile is the larger of the two, its symmetric average the pooled one, and it works in float32."""
    reference, prediction = random_blobs(seed), random_blobs(seed + 100)
    pair = (torch.from_numpy(prediction)[None, None], torch.from_numpy(reference)[None, None])
    common = {"include_background": True, "spacing": SPACING}
    found = figures(reference, prediction, tolerance_mm=1.2)
    theirs = {
        "hd95_mm": compute_hausdorff_distance(*pair, percentile=95, **common),
        "assd_mm": compute_average_surface_distance(*pair, symmetric=True, **common),
        "nsd": compute_surface_dice(*pair, class_thresholds=[1.2], **common),
    }
    for name, value in theirs.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-6), name


def test_two_empty_masks_have_no_figure_at_all():
    empty = np.zeros(SHAPE, bool)
    found = figures(empty, empty)
    assert tuple(found) == SURFACE_FIGURES
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("which", [0, 1])
def test_one_empty_mask_has_no_distance_and_nothing_within_tolerance(which):
    pair = [np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)]
    pair[which] = box((2, 3, 4), (2, 2, 2))
    found = figures(*pair, tolerance_mm=1e6)
    assert found.pop("nsd") == 0
    assert all(math.isnan(value) for value in found.values())
    distances = surface_distances(*pair, STRAIGHT)
    lengths = [len(distances.from_reference), len(distances.from_prediction)]
    assert lengths == ([8, 0], [0, 8])[which]
    assert np.isinf([*distances.from_reference, *distances.from_prediction]).all()


def test_every_figure_has_its_reason_to_be_undefined():
    assert tuple(WHY_UNDEFINED) == SURFACE_FIGURES
    assert "both empty" in WHY_UNDEFINED["nsd"]
    assert "both" not in WHY_UNDEFINED["hd95_mm"]


def test_step_rounded_to_float32_is_within_a_tolerance_of_one_step():
    """As a NIfTI header stores it, 0.1 mm is longer than 0.1; a step longer by a hundredth is outside."""
    for step, expected in ((float(np.float32(0.1)), 1.0), (0.101, 0.0)):
        affine = np.diag([step, 1.0, 1.0, 1.0])
        pair = (box((4, 4, 4), (1, 1, 1)), box((5, 4, 4), (1, 1, 1)))
        assert step > 0.1
        assert figures(*pair, affine, tolerance_mm=0.1)["nsd"] == expected


def test_tolerance_of_nothing_counts_voxels_that_coincide():
    assert figures(box((5, 4, 3), (4, 1, 1)), box((6, 4, 3), (4, 1, 1)), tolerance_mm=0)["nsd"] == 6 / 8


def test_volume_far_larger_than_memory_is_measured_by_its_voxels():
    """10^15 voxels, two of them inside."""
    shape = (100_000, 100_000, 100_000)
    voxels = [np.array([np.ravel_multi_index(at, shape)]) for at in ((10, 99_999, 99_999), (14, 99_999, 99_999))]
    assert case_surface(*voxels, shape, STRAIGHT, tolerance_mm=1.0)["hd95_mm"] == pytest.approx(2.0)


def split_and_merged():
    """A lesion with two candidates, a candidate with two lesions, a cut-off pair, and parts without partner."""
    lesions = (
        box((1, 1, 0), (3, 5, 2)) | box((5, 1, 4), (2, 2, 1)) | box((9, 1, 4), (2, 2, 3)) | box((10, 8, 6), (2, 2, 2))
    )
    lesions |= box((0, 9, 7), (1, 1, 1))
    candidates = (
        box((1, 0, 0), (4, 2, 2)) | box((2, 4, 1), (2, 2, 2)) | box((5, 2, 4), (5, 1, 2)) | box((11, 7, 5), (1, 3, 2))
    )
    candidates |= box((6, 8, 0), (1, 1, 1))
    return lesions, candidates


#: Lesions 1 to 5 and candidates 1 to 5 are numbered by their first voxel in C order; lesion 1 is the lone voxel.
EXPECTED_PAIRS = [(2, 1), (2, 2), (3, 3), (4, 3), (5, 5)]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_each_pair_is_measured_as_if_it_were_alone(affine):
    lesions, candidates = (find_components(mask, affine) for mask in split_and_merged())
    overlaps = find_overlaps(lesions, candidates)
    assert list(zip(overlaps.lesion.tolist(), overlaps.candidate.tolist(), strict=True)) == EXPECTED_PAIRS
    found = pair_surfaces(lesions, candidates, overlaps, tolerance_mm=TOLERANCE)
    assert found.shape == (len(EXPECTED_PAIRS), len(SURFACE_FIGURES))
    for row, (lesion, candidate) in zip(found, EXPECTED_PAIRS, strict=True):
        alone = brute_force(lesions.labels == lesion, candidates.labels == candidate, affine)
        assert row.tolist() == pytest.approx([alone[name] for name in SURFACE_FIGURES], abs=1e-9)


def test_parts_that_touch_by_their_faces_have_a_surface_between_them():
    """Halves of one box, numbered apart: the inside of the box between them is surface of each."""
    numbers = np.where(box((3, 2, 1), (3, 5, 5)), 7, 4) * box((3, 2, 1), (6, 5, 5))
    halves, values = find_instances(numbers, STRAIGHT)
    candidate = find_components(box((6, 4, 3), (1, 1, 1)), STRAIGHT)
    found = pair_surfaces(halves, candidate, find_overlaps(halves, candidate), tolerance_mm=TOLERANCE)
    alone = brute_force(numbers == 4, candidate.labels == 1, STRAIGHT)
    assert values.tolist() == [7, 4]
    assert found.tolist() == [pytest.approx([alone[name] for name in SURFACE_FIGURES])]


def test_no_pair_gives_no_row():
    lesions, nothing = (find_components(mask, STRAIGHT) for mask in (box((1, 1, 1), (2, 2, 2)), np.zeros(SHAPE, bool)))
    found = pair_surfaces(lesions, nothing, find_overlaps(lesions, nothing), tolerance_mm=TOLERANCE)
    assert found.shape == (0, len(SURFACE_FIGURES))


def test_parts_of_two_shapes_are_refused():
    mask = box((1, 1, 1), (2, 2, 2))
    lesions, fewer_slices = (find_components(some, STRAIGHT) for some in (mask, mask[:, :, :7]))
    with pytest.raises(ValueError, match=r"one shape, got \(12, 10, 8\) and \(12, 10, 7\)"):
        pair_surfaces(lesions, fewer_slices, find_overlaps(lesions, lesions), tolerance_mm=TOLERANCE)


@pytest.mark.parametrize("tolerance_mm", [-0.1, math.inf, math.nan])
def test_tolerance_that_is_no_length_is_refused(tolerance_mm):
    with pytest.raises(ValueError, match="tolerance_mm must be 0 or more and finite"):
        figures(box((1, 1, 1), (2, 2, 2)), box((1, 1, 1), (2, 2, 2)), tolerance_mm=tolerance_mm)


@pytest.mark.parametrize("voxels", [[3, 2], [2, 2]], ids=["falling", "repeated"])
@pytest.mark.parametrize("which", [0, 1])
def test_voxels_that_do_not_rise_are_refused(voxels, which):
    both = [np.array([1, 2]), np.array([1, 2])]
    both[which] = np.array(voxels)
    with pytest.raises(ValueError, match="flat indices in C order that rise"):
        case_surface(*both, SHAPE, STRAIGHT, tolerance_mm=TOLERANCE)


@pytest.mark.parametrize("voxels", [[-1, 2], [5, 960]])
def test_voxels_outside_of_the_volume_are_refused(voxels):
    with pytest.raises(ValueError, match=r"must lie in a volume of shape \(12, 10, 8\), got indices"):
        case_surface(np.array(voxels), np.array([1]), SHAPE, STRAIGHT, tolerance_mm=TOLERANCE)


def test_masks_of_two_shapes_and_flat_masks_are_refused():
    mask = box((1, 1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match=r"shapes \(12, 10, 8\) and \(12, 10, 7\)"):
        surface_distances(mask, mask[:, :, :7], STRAIGHT)
    with pytest.raises(ValueError, match="two 3D masks of one shape"):
        surface_distances(mask[0], mask[0], STRAIGHT)


def test_affine_of_three_rows_is_refused():
    mask = box((1, 1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match=r"affine must have shape \(4, 4\), got \(3, 3\)"):
        surface_distances(mask, mask, np.eye(3))
