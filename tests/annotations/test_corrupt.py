"""Corrupted labels: the severity asked comes out, in mm, by chance that can be repeated, and nothing else changes."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from medfocal.annotations.corrupt import (
    BoundaryJitter,
    ClassFlips,
    Composed,
    Dilation,
    Erosion,
    MissedLesions,
    NoCorruption,
    Shift,
    SimulatedReader,
    SkippedSlices,
    SpuriousLesions,
    case_rng,
)
from medfocal.annotations.corrupt.corruption import Corruption, rounded_at_random
from medfocal.annotations.corrupt.distance import signed_distance_mm, smooth_noise
from medfocal.annotations.severity import severity

SPACING = (0.5, 1.0, 3.0)
# Turned axes and an origin, which must not matter.
AFFINE = np.array([[0, -1.0, 0, 12], [0.5, 0, 0, -7], [0, 0, 3.0, 40], [0, 0, 0, 1]])
FULL = np.ones((3, 3, 3))

EVERY = [
    NoCorruption(),
    Erosion(dice=0.7),
    Dilation(dice=0.7),
    BoundaryJitter(dice=0.75, correlation_mm=3.0, bias=0.5),
    Shift(distance_mm=3.0),
    MissedLesions(rate=0.4),
    SpuriousLesions(per_case=1.5, diameter_mm=(1.0, 4.0)),
    ClassFlips(matrix=[[0.5, 0.5], [0.3, 0.7]]),
    SkippedSlices(every=2),
    SimulatedReader(),
    Composed(parts=[MissedLesions(rate=0.3), Dilation(dice=0.8)]),
]


def names(corruption):
    return type(corruption).__name__


def ellipsoids(*parts, shape=(48, 30, 14), spacing=SPACING):
    """A label of ellipsoids: centre voxel, radius in mm, class."""
    label = np.zeros(shape, np.uint8)
    index = np.moveaxis(np.indices(shape), 0, -1)
    for centre, radius_mm, value in parts:
        label[np.linalg.norm((index - centre) * spacing, axis=-1) <= radius_mm] = value
    return label


def some_lesions():
    """Three lesions of two classes, off-centre: one large, one small, one at the border."""
    return ellipsoids(((14, 9, 5), 6.0, 1), ((36, 22, 9), 3.2, 2), ((46, 3, 12), 2.1, 1))


def corrupted(corruption, label, *, seed=5, case="case_a", affine=AFFINE, **given):
    return corruption(label, affine=affine, rng=case_rng(seed, case), **given)


def dice_of(a, b):
    a, b = a > 0, b > 0
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def parts_of(mask):
    labels, number = ndimage.label(mask, FULL)
    return [labels == n for n in range(1, number + 1)]


# ---------------------------------------------------------------- what holds for each of them


@pytest.mark.parametrize("corruption", EVERY, ids=names)
def test_the_label_and_all_else_that_is_given_stays_as_it_is(corruption):
    label, affine = some_lesions(), AFFINE.copy()
    image = np.random.default_rng(0).normal(5, 1, (2, *label.shape)).astype(np.float32)
    spots = np.array([[5, 25, 3], [40, 10, 2]])
    given = [label, affine, image, spots]
    before = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    noisy = corruption(label, affine=affine, rng=case_rng(1, "a"), spots=spots, image=image)
    assert noisy.dtype == np.uint8
    assert noisy.shape == label.shape
    assert not np.shares_memory(noisy, label)
    noisy[:] = 7
    assert all(np.array_equal(array, old) for array, old in zip(given, before, strict=True))


@pytest.mark.parametrize("corruption", EVERY, ids=names)
def test_the_same_seed_and_case_give_the_same_label(corruption):
    label = some_lesions()
    assert np.array_equal(corrupted(corruption, label), corrupted(corruption, label))


@pytest.mark.parametrize(
    "corruption", [c for c in EVERY if names(c) not in {"NoCorruption", "Dilation", "Erosion"}], ids=names
)
def test_another_seed_or_case_gives_another_label(corruption):
    label = some_lesions()
    found = {corrupted(corruption, label, seed=seed, case=case).tobytes() for seed in range(8) for case in "ab"}
    assert len(found) > 1


@pytest.mark.parametrize(
    "corruption", [c for c in EVERY if names(c) not in {"SpuriousLesions", "SimulatedReader"}], ids=names
)
def test_an_empty_label_stays_empty(corruption):
    assert not corrupted(corruption, np.zeros((12, 10, 8), np.uint8)).any()


@pytest.mark.parametrize("corruption", EVERY, ids=names)
def test_a_volume_that_is_all_lesion_is_no_error(corruption):
    noisy = corrupted(corruption, np.ones((6, 5, 4), np.uint8))
    assert noisy.shape == (6, 5, 4)


@pytest.mark.parametrize("corruption", EVERY, ids=names)
def test_only_classes_that_exist_come_out(corruption):
    for seed in range(5):
        assert set(np.unique(corrupted(corruption, some_lesions(), seed=seed))) <= {0, 1, 2}


@pytest.mark.parametrize(
    "corruption", [Erosion(dice=0.3), Dilation(dice=0.5), BoundaryJitter(dice=0.5), Shift(distance_mm=4)], ids=names
)
def test_boundary_errors_keep_lesions_of_one_voxel_and_at_the_border(corruption):
    label = np.zeros((12, 10, 8), np.uint8)
    label[0, 0, 0] = label[11, 4, 7] = label[5, 9, 3] = 1
    for seed in range(10):
        noisy = corrupted(corruption, label, seed=seed)
        if isinstance(corruption, Shift):
            assert noisy.sum() == 3
        else:
            assert all(noisy[part].any() for part in parts_of(label))


def test_a_label_of_another_type_or_shape_is_refused():
    for label, affine in [
        (np.zeros((4, 3, 2), np.int16), np.eye(4)),
        (np.zeros((4, 3), np.uint8), np.eye(4)),
        (np.zeros((4, 3, 2), np.uint8), np.eye(3)),
    ]:
        with pytest.raises(ValueError, match=r"label must be uint8 \(I, J, K\) and affine \(4, 4\), got"):
            corrupted(NoCorruption(), label, affine=affine)


def test_an_image_or_spots_that_do_not_belong_are_refused():
    label = np.zeros((4, 3, 2), np.uint8)
    with pytest.raises(ValueError, match="image must have the label's shape"):
        corrupted(NoCorruption(), label, image=np.zeros((1, 4, 3, 3), np.float32))
    with pytest.raises(ValueError, match="spots must lie inside"):
        corrupted(NoCorruption(), label, spots=np.array([[0, 0, 0], [4, 0, 0]]))
    for spots in (np.array([[0.5, 0, 0]]), np.array([0, 0, 0]), np.array([[0, 0]])):
        with pytest.raises(ValueError, match="spots must be voxel indices"):
            corrupted(NoCorruption(), label, spots=spots)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Erosion(dice=0), r"dice must be in \(0, 1\], got 0"),
        (lambda: Dilation(dice=1.1), r"dice must be in \(0, 1\], got 1.1"),
        (lambda: BoundaryJitter(dice=math.nan), "dice must be"),
        (lambda: BoundaryJitter(correlation_mm=0), "correlation_mm must be a length above 0, got 0"),
        (lambda: BoundaryJitter(bias=math.inf), "bias must be a number"),
        (lambda: Shift(distance_mm=-1), "distance_mm must be"),
        (lambda: MissedLesions(rate=1.2), r"rate must be in \[0, 1\], got 1.2"),
        (lambda: MissedLesions(size_exponent=-1), "size_exponent must be 0 or more"),
        (lambda: SpuriousLesions(per_case=-0.1), "per_case must be 0 or more"),
        (lambda: SpuriousLesions(diameter_mm=(5, 2)), "diameter_mm must be a shortest and a longest"),
        (lambda: SpuriousLesions(diameter_mm=(5,)), "diameter_mm must be"),
        (ClassFlips, "give matrix, or rate and num_lesion_classes"),
        (lambda: ClassFlips(rate=0.5), "give matrix, or rate and num_lesion_classes"),
        (lambda: ClassFlips(rate=0.5, num_lesion_classes=2, matrix=np.eye(2).tolist()), "and not both"),
        (lambda: ClassFlips(rate=0.5, num_lesion_classes=1), "two lesion classes or more, got 1"),
        (lambda: ClassFlips(matrix=[[1.0]]), "two lesion classes or more, got 1"),
        (lambda: ClassFlips(matrix=[[0.5, 0.4], [0, 1]]), "rows add up to 1"),
        (lambda: ClassFlips(matrix=[[1.0, 0.0]]), "matrix must be square"),
        (lambda: ClassFlips(rate=-0.1, num_lesion_classes=2), "rate must be in"),
        (lambda: SkippedSlices(every=0), "every must be 1 or more"),
        (lambda: SkippedSlices(axis=3), "axis must be 0, 1, 2 or None"),
        (lambda: SimulatedReader(miss_rate=2), "rate must be in"),
        (lambda: SimulatedReader(boundary_dice=0), "dice must be in"),
        (lambda: Composed(parts=[]), "at least one corruption"),
        (lambda: case_rng(-1, "a"), "seed must be 0 or more, got -1"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


# ---------------------------------------------------------------- chance


def test_random_numbers_of_a_case_are_the_same_on_every_machine_and_in_every_run():
    """Python's own hash of a text differs from run to run."""
    assert case_rng(7, "case_012").integers(1000, size=4).tolist() == [313, 366, 793, 961]
    assert case_rng(7, "Fälle/ü\udcff").random() != case_rng(7, "Fälle/u\udcff").random()


def test_a_random_rounding_has_the_mean_asked_and_is_next_to_it():
    rng = np.random.default_rng(3)
    found = [rounded_at_random(2.3, rng) for _ in range(4000)]
    assert set(found) == {2, 3}
    # The standard error of the mean is sqrt(.3 * .7 / 4000) = .007.
    assert np.mean(found) == pytest.approx(2.3, abs=0.03)
    assert {rounded_at_random(2.0, rng) for _ in range(100)} == {2}


# ---------------------------------------------------------------- distance


def signed_by_loop(mask, spacing):
    """The definition: to the nearest voxel of the other kind, less half a voxel along the line."""
    places = np.argwhere(np.ones(mask.shape))
    found = np.zeros(mask.shape)
    for place in places:
        others = np.argwhere(mask != mask[tuple(place)])
        vectors = np.abs(others - place)
        lengths = np.linalg.norm(vectors * spacing, axis=1)
        nearest = np.isclose(lengths, lengths.min())
        choices = lengths[nearest] * (1 - 0.5 / vectors[nearest].max(axis=1))
        found[tuple(place)] = choices.min() if mask[tuple(place)] else -choices.min()
    return found


def test_signed_distances_are_measured_in_mm_to_the_border_between_voxels():
    rng = np.random.default_rng(2)
    mask = ndimage.gaussian_filter(rng.standard_normal((12, 10, 8)), 1.2) > 0.15
    spacing = (0.51, 1.07, 2.93)  # no two ways are equally long but for mirror images
    np.testing.assert_allclose(signed_distance_mm(mask, spacing), signed_by_loop(mask, spacing), atol=1e-12)


def test_the_two_sides_of_a_face_lie_half_a_spacing_from_the_border():
    mask = np.zeros((12, 10, 8), bool)
    mask[:, :, 3:] = True
    assert signed_distance_mm(mask, SPACING)[4, 4].tolist() == [-7.5, -4.5, -1.5, 1.5, 4.5, 7.5, 10.5, 13.5]


def test_a_mask_without_border_is_infinitely_far_from_it():
    assert (signed_distance_mm(np.ones((3, 2, 2), bool), SPACING) == math.inf).all()
    assert (signed_distance_mm(np.zeros((3, 2, 2), bool), SPACING) == -math.inf).all()


def test_noise_has_unit_deviation_and_falls_to_1_over_e_at_the_correlation_length_along_each_axis():
    """Along the axes of .5, 1 and 3 mm spacing, 6 mm are 12, 6 and 2 voxels."""
    spacing = np.array(SPACING)
    products, squares = [[], [], []], []
    for seed in range(12):
        field = smooth_noise(np.random.default_rng(seed), (60, 40, 20), spacing, 6.0)
        squares.append((field**2).mean())
        for axis, step in enumerate((12, 6, 2)):
            first = np.take(field, range(field.shape[axis] - step), axis)
            products[axis].append((first * np.take(field, range(step, field.shape[axis]), axis)).mean())
    # About a thousand independent values in all.
    assert np.mean(squares) == pytest.approx(1, abs=0.12)
    for product in products:
        assert np.mean(product) / np.mean(squares) == pytest.approx(math.exp(-1), abs=0.08)


# ---------------------------------------------------------------- boundaries


@pytest.mark.parametrize("dice", [0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("make", [Erosion, Dilation, BoundaryJitter], ids=lambda make: make.__name__)
def test_the_dice_asked_comes_out(make, dice):
    label = some_lesions()
    noisy = corrupted(make(dice=dice), label)
    assert dice_of(noisy, label) == pytest.approx(dice, abs=0.01)


@pytest.mark.parametrize(("bias", "low", "high"), [(-1.5, 0.4, 0.85), (1.5, 1.2, 2.5)])
def test_biased_jitter_reaches_its_dice_too_and_moves_the_volume(bias, low, high):
    label = some_lesions()
    for seed in range(3):
        noisy = corrupted(BoundaryJitter(dice=0.7, bias=bias), label, seed=seed)
        assert dice_of(noisy, label) == pytest.approx(0.7, abs=0.02)
        assert low < (noisy > 0).sum() / (label > 0).sum() < high


def test_erosion_takes_the_outermost_voxels_by_their_distance_in_mm():
    label = some_lesions()
    lost = (label > 0) & (corrupted(Erosion(dice=0.6), label) == 0)
    kept = (label > 0) & ~lost
    depth = signed_distance_mm(label > 0, SPACING)
    innermost = [depth[part].max() for part in parts_of(label > 0)]
    assert depth[lost].max() <= depth[kept & ~np.isin(depth, innermost)].min() + 1e-9


def test_erosion_of_lesions_too_small_for_it_leaves_one_voxel_of_each():
    label = np.zeros((12, 10, 8), np.uint8)
    label[2:4, 3:5, 2] = label[8, 6:8, 5] = 1
    noisy = corrupted(Erosion(dice=0.05), label)
    assert [int(noisy[part].sum()) for part in parts_of(label)] == [1, 1]


def test_the_innermost_voxel_of_a_lesion_is_what_stays():
    """A ball of 2.1 mm in voxels of (0.5, 1, 3) mm: the centre is deepest."""
    label = ellipsoids(((20, 15, 7), 4.1, 1))
    noisy = corrupted(Erosion(dice=1e-6), label)
    assert np.argwhere(noisy).tolist() == [[20, 15, 7]]


def test_dilation_adds_the_nearest_voxels_in_mm_before_all_others():
    label = ellipsoids(((9, 6, 3), 2.5, 1), ((19, 11, 6), 1.2, 1), shape=(24, 14, 8))
    noisy = corrupted(Dilation(dice=0.35), label)
    outside = -signed_by_loop(label > 0, SPACING)
    added, left = (noisy > 0) & (label == 0), noisy == 0
    assert outside[added].max() <= outside[left].min() + 1e-9


def test_a_voxel_grows_along_the_axes_of_short_spacing_first():
    """Centres of the neighbours along the axes of .5, 1 and 3 mm spacing lie .25, .5 and 1.5 mm from its border."""
    label = np.zeros((13, 11, 9), np.uint8)
    label[6, 5, 4] = 1
    affine = np.diag([0.5, 1.0, 3.0, 1.0])
    for num_added, expected in [(2, [[5, 5, 4], [7, 5, 4]]), (4, [[5, 5, 4], [6, 4, 4], [6, 6, 4], [7, 5, 4]])]:
        grown = corrupted(Dilation(dice=2 / (2 + num_added)), label, affine=affine)
        assert np.argwhere((grown > 0) & (label == 0)).tolist() == expected


@pytest.mark.parametrize("num_added", [2999, 4000, 9000])
def test_dilation_reaches_far_beyond_its_first_box(num_added):
    label = np.zeros((60, 40, 14), np.uint8)
    label[30, 15, 6] = 1
    noisy = corrupted(Dilation(dice=2 / (2 + num_added)), label)
    assert noisy.sum() == 1 + num_added
    depth = -signed_distance_mm(label > 0, SPACING)
    assert depth[noisy > 0].max() <= depth[noisy == 0].min() + 1e-9


def test_a_full_volume_ends_dilation():
    label = np.zeros((4, 3, 2), np.uint8)
    label[1, 1, 1] = 1
    assert (corrupted(Dilation(dice=0.001), label) == 1).all()


def test_added_voxels_have_the_class_of_the_nearest_lesion():
    label = np.zeros((20, 10, 8), np.uint8)
    label[3:5, 4:7, 3] = 1
    label[12:14, 4:7, 3] = 2
    for corruption in (Dilation(dice=0.5), BoundaryJitter(dice=0.5, bias=1.0)):
        noisy = corrupted(corruption, label)
        assert (noisy > 0).sum() > (label > 0).sum()
        # Class 1 ends at index 4, class 2 begins at 12: index 8 lies half-way.
        assert set(noisy[:8].ravel()) <= {0, 1}
        assert set(noisy[9:].ravel()) <= {0, 2}


@pytest.mark.parametrize("bias", [-2.0, 0.0, 2.0])
def test_jitter_keeps_every_lesion_and_makes_no_part_away_from_them(bias):
    label = some_lesions()
    for seed, dice in itertools.product(range(4), (0.3, 0.8)):
        noisy = corrupted(BoundaryJitter(dice=dice, correlation_mm=1.0, bias=bias), label, seed=seed)
        found = severity(label, noisy, AFFINE)
        assert (found.num_omitted, found.num_spurious) == (0, 0)


def test_a_long_correlation_moves_a_whole_boundary_one_way_and_a_short_one_does_not():
    """The errors of opposite ends of one lesion, 12 mm apart, agree in sign if correlated over 200 mm."""
    label = ellipsoids(((24, 15, 6), 6.0, 1))

    def share_of_one_way(correlation_mm):
        shares = []
        for seed in range(12):
            noisy = corrupted(BoundaryJitter(dice=0.8, correlation_mm=correlation_mm), label, seed=seed)
            added, lost = ((noisy > 0) & (label == 0)).sum(), ((noisy == 0) & (label > 0)).sum()
            shares.append(max(added, lost) / (added + lost))
        return np.mean(shares)

    assert share_of_one_way(200.0) > 0.95
    assert share_of_one_way(1.5) < 0.8


def test_a_shift_moves_each_lesion_by_its_own_vector_of_the_length_asked():
    label = ellipsoids(((14, 9, 5), 3.0, 1), ((34, 20, 9), 3.0, 2))
    vectors = {1: [], 2: []}
    for seed in range(40):
        noisy = corrupted(Shift(distance_mm=6.0), label, seed=seed)
        for value, found in vectors.items():
            moved = np.argwhere(noisy == value).min(axis=0) - np.argwhere(label == value).min(axis=0)
            assert np.array_equal(
                np.argwhere(noisy == value) - np.argwhere(noisy == value).min(axis=0),
                np.argwhere(label == value) - np.argwhere(label == value).min(axis=0),
            )
            found.append(moved * SPACING)
    for found in vectors.values():
        # Half a voxel of rounding along each axis: sqrt(.25^2 + .5^2 + 1.5^2) = 1.6.
        assert np.linalg.norm(found, axis=1) == pytest.approx(6.0, abs=1.6)
        assert np.abs(np.mean(found, axis=0)).max() < 2  # no direction is preferred
    assert not np.allclose(vectors[1], vectors[2])


def test_a_lesion_in_the_corner_is_shifted_inwards_and_stays_whole():
    label = np.zeros((20, 16, 10), np.uint8)
    label[:3, :2, :2] = 1
    for seed in range(20):
        noisy = corrupted(Shift(distance_mm=4.0), label, seed=seed)
        assert noisy.sum() == 12
        assert len(parts_of(noisy)) == 1


# ---------------------------------------------------------------- whole lesions


def many_lesions():
    """Twelve lesions: six of one voxel, six of eight."""
    label = np.zeros((26, 20, 10), np.uint8)
    for row, column in itertools.product(range(6), range(2)):
        side = 1 + column
        label[2 + 4 * row : 2 + 4 * row + side, 4 + 8 * column : 4 + 8 * column + side, 3 : 3 + side] = 1
    return label


@pytest.mark.parametrize("rate", [0.0, 0.17, 0.4, 1.0])
def test_the_share_of_missed_lesions_is_exact_in_the_mean_and_nearly_so_in_each_case(rate):
    label = many_lesions()
    missed = [12 - len(parts_of(corrupted(MissedLesions(rate=rate), label, case=str(n)))) for n in range(300)]
    assert set(missed) <= {math.floor(12 * rate), math.ceil(12 * rate)}
    # Standard deviation of one case .5 at most, of the mean .03.
    assert np.mean(missed) == pytest.approx(12 * rate, abs=0.1)


def test_a_missed_lesion_is_missed_whole_and_the_others_stay_whole():
    label = some_lesions()
    for seed in range(10):
        noisy = corrupted(MissedLesions(rate=0.5), label, seed=seed)
        for part in parts_of(label > 0):
            assert np.array_equal(noisy[part], label[part]) or not noisy[part].any()


@pytest.mark.parametrize(("exponent", "expected"), [(0.0, 0.5), (1.0, 8 / 9), (400.0, 1.0)])
def test_small_lesions_are_missed_more_often_by_the_weight_of_their_volume(exponent, expected):
    """One of twelve is missed: one of the six small ones with odds of 8^exponent to 1."""
    label = many_lesions()
    small = 0
    for n in range(400):
        noisy = corrupted(MissedLesions(rate=1 / 12, size_exponent=exponent), label, case=str(n))
        small += int((label > 0).sum() - (noisy > 0).sum() == 1)
    # Standard error of a share of 400 is .025 at most.
    assert small / 400 == pytest.approx(expected, abs=0.08)


def test_lesions_that_touch_at_a_corner_are_missed_together():
    label = np.zeros((12, 10, 8), np.uint8)
    label[3, 3, 3] = label[4, 4, 4] = 1
    label[8, 8, 6] = 2
    for seed in range(20):
        noisy = corrupted(MissedLesions(rate=0.5), label, seed=seed)
        assert noisy[3, 3, 3] == noisy[4, 4, 4]


@pytest.mark.parametrize("per_case", [0.0, 0.35, 2.0])
def test_the_number_of_invented_lesions_is_exact_in_the_mean(per_case):
    label = some_lesions()
    corruption = SpuriousLesions(per_case=per_case, diameter_mm=(1.0, 4.0))
    found = [severity(label, corrupted(corruption, label, case=str(n)), AFFINE).num_spurious for n in range(200)]
    assert set(found) <= {math.floor(per_case), math.ceil(per_case)}
    assert np.mean(found) == pytest.approx(per_case, abs=0.11)


def test_invented_lesions_never_touch_a_lesion_or_each_other():
    label = some_lesions()
    for n in range(30):
        noisy = corrupted(SpuriousLesions(per_case=6, diameter_mm=(1.0, 6.0)), label, case=str(n))
        assert np.array_equal(noisy[label > 0], label[label > 0])
        assert len(parts_of(noisy > 0)) == 3 + 6


def test_a_spot_beside_a_lesion_is_passed_over():
    label = np.zeros((12, 10, 8), np.uint8)
    label[5, 5, 4] = 1
    spots = np.array([[6, 6, 5], [7, 5, 4]])  # at the lesion's corner; and one voxel free between
    noisy = corrupted(SpuriousLesions(per_case=1, diameter_mm=(0.2, 0.2)), label, spots=spots)
    assert np.argwhere(noisy).tolist() == [[5, 5, 4], [7, 5, 4]]


def test_invented_lesions_lie_on_the_spots_before_all_else():
    label, spots = some_lesions(), np.array([[5, 25, 3], [40, 10, 2], [30, 5, 6]])
    used = set()
    for n in range(40):
        noisy = corrupted(SpuriousLesions(per_case=1, diameter_mm=(0.5, 2.0)), label, case=str(n), spots=spots)
        (new,) = parts_of((noisy > 0) & (label == 0))
        used |= {tuple(spot) for spot in spots.tolist() if new[tuple(spot)]}
    assert len(used) == 3


def test_where_spots_are_too_few_others_are_found():
    label, spots = some_lesions(), np.array([[5, 25, 3]])
    noisy = corrupted(SpuriousLesions(per_case=3, diameter_mm=(0.5, 2.0)), label, spots=spots)
    assert noisy[5, 25, 3] > 0
    assert severity(label, noisy, AFFINE).num_spurious == 3


def test_balls_have_the_diameter_asked_in_mm_along_each_axis():
    """7 mm: up to 3.5 mm from the centre, 7, 3 and 1 voxels."""
    label = np.zeros((40, 20, 9), np.uint8)
    noisy = corrupted(SpuriousLesions(per_case=1, diameter_mm=(7.0, 7.0)), label, spots=np.array([[20, 10, 4]]))
    index = np.moveaxis(np.indices(label.shape), 0, -1)
    expected = np.linalg.norm((index - (20, 10, 4)) * SPACING, axis=-1) <= 3.5
    assert np.array_equal(noisy > 0, expected)


def test_without_spots_lesions_are_invented_where_the_image_looks_like_the_lesions():
    """Of three places away from lesions one is as bright as they are in both channels; what is near them is so too."""
    label = some_lesions()
    image = np.random.default_rng(4).normal(1.0, 0.02, (2, *label.shape))
    image[:, label > 0] += 1
    near = (label == 0) & (ndimage.distance_transform_edt(label == 0, sampling=SPACING) < 2.5)
    twin, other = (slice(4, 8), slice(22, 25), slice(2, 5)), (slice(22, 26), slice(24, 27), slice(3, 6))
    brightness = image[0][label > 0].mean()
    image[:, near] = image[:, *twin] = image[0][other] = brightness
    image[:, 2:8, 15:19, 9:12] = 2 * brightness
    for n in range(10):
        noisy = corrupted(
            SpuriousLesions(per_case=1, diameter_mm=(0.2, 0.2)), label, case=str(n), image=image.astype(np.float32)
        )
        ((place,),) = [np.argwhere((noisy > 0) & (label == 0)).tolist()]
        assert all(side.start <= i < side.stop for i, side in zip(place, twin, strict=True))


def test_without_lesions_to_compare_with_the_brightest_places_are_taken():
    label = np.zeros((12, 10, 8), np.uint8)
    image = np.random.default_rng(1).normal(5, 0.1, (1, 12, 10, 8)).astype(np.float32)
    image[0, 3:5, 6:8, 2] = 9  # 4 voxels of 960, of which the brightest 2 % are 20
    image[0, 3:5, 2:6, 5] = 8
    image[0, 8:10, 2:6, 5] = 7
    for n in range(10):
        noisy = corrupted(SpuriousLesions(per_case=1, diameter_mm=(0.2, 0.2)), label, case=str(n), image=image)
        assert image[0][noisy > 0].min() >= 7
        assert set(noisy[noisy > 0]) == {1}


def test_invented_lesions_stay_in_the_body():
    label = np.zeros((20, 16, 8), np.uint8)
    image = np.zeros((1, 20, 16, 8), np.float32)
    image[0, 4:12, 3:9, 2:6] = 1
    for n in range(20):
        noisy = corrupted(SpuriousLesions(per_case=1, diameter_mm=(6, 6)), label, case=str(n), image=image)
        assert noisy.any()
        assert (image[0][noisy > 0] == 1).all()


def test_an_invented_lesion_has_the_class_of_some_lesion():
    label = some_lesions()  # two of class 1, one of class 2
    classes = []
    for n in range(150):
        noisy = corrupted(SpuriousLesions(per_case=1, diameter_mm=(0.2, 0.2)), label, case=str(n))
        classes.append(int(noisy[(noisy > 0) & (label == 0)][0]))
    assert np.mean(np.array(classes) == 2) == pytest.approx(1 / 3, abs=0.12)


def test_where_there_is_no_place_none_is_invented():
    label = np.zeros((5, 5, 5), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    assert np.array_equal(corrupted(SpuriousLesions(per_case=2), label), label)


def test_classes_flip_whole_and_at_the_rates_of_the_matrix():
    label = many_lesions()
    label[:, 10:] *= 2  # the six large ones
    became = {1: [], 2: []}
    for n in range(150):
        noisy = corrupted(ClassFlips(matrix=[[0.8, 0.2], [0.5, 0.5]]), label, case=str(n))
        assert np.array_equal(noisy > 0, label > 0)
        for part in parts_of(label > 0):
            (value,) = set(noisy[part].tolist())
            became[int(label[part][0])].append(value)
    # Standard error of a share of 900 is .017 at most.
    assert np.mean(np.array(became[1]) == 2) == pytest.approx(0.2, abs=0.05)
    assert np.mean(np.array(became[2]) == 1) == pytest.approx(0.5, abs=0.05)


def test_a_rate_of_flips_is_exact_in_the_mean_and_never_gives_the_same_class():
    label = many_lesions()
    counts, values = [], set()
    for n in range(200):
        noisy = corrupted(ClassFlips(rate=0.3, num_lesion_classes=3), label, case=str(n))
        changed = [part for part in parts_of(label) if noisy[part][0] != 1]
        counts.append(len(changed))
        values |= {int(noisy[part][0]) for part in changed}
    assert set(counts) == {3, 4}
    assert np.mean(counts) == pytest.approx(3.6, abs=0.12)
    assert values == {2, 3}


def test_touching_lesions_of_two_classes_flip_apart():
    label = np.zeros((12, 10, 8), np.uint8)
    label[3:5, 3:5, 3] = 1
    label[5:7, 3:5, 3] = 2
    noisy = corrupted(ClassFlips(matrix=[[0, 1], [1, 0]]), label)
    assert np.array_equal(noisy, np.array([0, 2, 1])[label])


def test_flips_are_refused_where_there_is_one_class_only_or_an_unknown_one():
    flips = ClassFlips(matrix=[[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="the labels have 1; one class cannot be taken for another"):
        flips.check_classes(1)
    with pytest.raises(ValueError, match="for 2 lesion classes, the labels have 3"):
        Composed(parts=[MissedLesions(), flips]).check_classes(3)
    with pytest.raises(ValueError, match="for 2 lesion classes, the labels have 3"):
        corrupted(flips, np.full((2, 2, 2), 3, np.uint8))
    flips.check_classes(2)


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize(("axis", "across"), [(None, 2), (0, 0), (1, 1), (2, 2)])
def test_every_third_slice_is_drawn_and_the_others_are_empty(axis, across):
    label = np.ones((12, 10, 8), np.uint8)
    starts = set()
    for seed in range(20):
        noisy = corrupted(SkippedSlices(every=3, axis=axis), label, seed=seed)
        lines = np.moveaxis(noisy, across, 0).reshape(label.shape[across], -1)
        assert (lines.min(axis=1) == lines.max(axis=1)).all()
        drawn = np.flatnonzero(lines[:, 0])
        assert (np.diff(drawn) == 3).all()
        assert drawn[-1] + 3 >= label.shape[across]
        starts.add(int(drawn[0]))
    assert starts == {0, 1, 2}


def test_slices_lie_across_the_last_axis_where_all_spacings_are_equal():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 0] += 1e-7  # what a float32 header makes of it
    noisy = corrupted(SkippedSlices(every=2), np.ones((6, 5, 4), np.uint8), affine=affine)
    assert sorted(noisy.min(axis=(0, 1)).tolist()) == [0, 0, 1, 1]


def test_a_reader_misses_wavers_and_invents_at_once():
    label = many_lesions()
    reader = SimulatedReader(
        miss_rate=0.25, boundary_dice=0.6, bias=1.0, correlation_mm=2, spurious_per_case=1, diameter_mm=(0.5, 1.5)
    )
    for n in range(10):
        found = severity(label, corrupted(reader, label, case=str(n)), AFFINE)
        assert found.num_omitted <= 3
        assert found.num_spurious == 1
    larger, smaller = (corrupted(replace(reader, bias=bias), label) > 0 for bias in (2.0, -2.0))
    assert larger.sum() > smaller.sum()
    faultless = SimulatedReader(miss_rate=0, boundary_dice=1, spurious_per_case=0)
    assert np.array_equal(corrupted(faultless, label), label)


def test_an_invented_lesion_never_lies_on_a_missed_one():
    """All twelve are missed; spots lie on them and on one voxel away from them."""
    label = many_lesions()
    spots = np.concatenate([np.argwhere(label)[::5], [[1, 18, 8]]])
    reader = Composed(parts=[MissedLesions(rate=1), SpuriousLesions(per_case=1, diameter_mm=(0.2, 0.2))])
    for n in range(5):
        assert np.argwhere(corrupted(reader, label, case=str(n), spots=spots)).tolist() == [[1, 18, 8]]


def test_parts_are_applied_in_order():
    label = many_lesions()
    first = corrupted(Composed(parts=[SkippedSlices(every=2, axis=0), MissedLesions(rate=1)]), label)
    assert not first.any()
    both = corrupted(Composed(parts=[MissedLesions(rate=1), SpuriousLesions(per_case=2)]), label)
    assert both.any()


@pytest.mark.parametrize("corruption", EVERY, ids=names)
def test_a_record_names_the_kind_and_every_argument(corruption):
    described = corruption.describe()
    assert described["kind"] == names(corruption)
    if not isinstance(corruption, Composed):
        again = type(corruption)(**{key: value for key, value in described.items() if key != "kind"})
        assert again == corruption
    else:
        assert [part["kind"] for part in described["parts"]] == ["MissedLesions", "Dilation"]


def test_every_public_corruption_is_in_the_tests_above():
    from medfocal.annotations import corrupt

    public = {name for name in corrupt.__all__ if isinstance(getattr(corrupt, name), type)}
    assert public - {"Corruption"} == {names(corruption) for corruption in EVERY}
    assert all(isinstance(corruption, Corruption) for corruption in EVERY)
