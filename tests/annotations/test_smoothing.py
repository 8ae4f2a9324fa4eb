"""Smoothings: each against its definition in loops, where it ends, in which unit it counts, what it leaves alone."""

from __future__ import annotations

import heapq
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from medfocal.annotations.smoothing import (
    SVLS,
    GeodesicSmoothing,
    NoSmoothing,
    OneSidedSmoothing,
    SoftBoundary,
    UniformSmoothing,
)
from medfocal.losses import focal_loss
from medfocal.losses.activation import Activation
from medfocal.losses.options import class_probabilities

SHAPE, SPACING = (12, 10, 8), (0.5, 1.0, 3.0)
#: Of shares stored as float32.
TOLERANCE = 1e-6
KINDS = (NoSmoothing, UniformSmoothing, OneSidedSmoothing, SVLS, SoftBoundary, GeodesicSmoothing)
#: Of each kind at least one that softens this spacing along every axis.
SMOOTHINGS = [
    NoSmoothing(),
    UniformSmoothing(rate=0.1),
    OneSidedSmoothing(fg=0.2, bg=0.01),
    SVLS(sigma=0.7),
    SoftBoundary(width_mm=2.0),
    SoftBoundary(width_mm=7.5),
    GeodesicSmoothing(amount=0.3, reach_mm=5.0, intensity_weight=1.5),
]
LOCAL = [smoothing for smoothing in SMOOTHINGS if isinstance(smoothing, SVLS | SoftBoundary | GeodesicSmoothing)]
EVERY_NEIGHBOUR = [offset for offset in itertools.product((-1, 0, 1), repeat=3) if any(offset)]


def labelled(*blocks, shape=SHAPE):
    """A label with blocks `(class, (from, to), (from, to), (from, to))`."""
    label = np.zeros(shape, np.uint8)
    for value, *sides in blocks:
        label[tuple(slice(*side) for side in sides)] = value
    return label


def noise(shape=SHAPE, channels=2, seed=5):
    return np.random.default_rng(seed).normal(0, 0.8, (channels, *shape)).astype(np.float32)


def flat(shape=SHAPE):
    return np.zeros((1, *shape), np.float32)


def smoothed(smoothing, label, *, num_classes=3, spacing_mm=SPACING, image=None):
    image = flat(label.shape) if image is None else image
    shares = smoothing(label, num_classes=num_classes, spacing_mm=spacing_mm, image=image)
    assert shares.dtype == np.float32
    assert shares.shape == (num_classes, *label.shape)
    return shares


def one_hot(label, num_classes=3):
    return np.eye(num_classes, dtype=np.float32)[label].transpose(3, 0, 1, 2)


def voxels(shape):
    return itertools.product(*map(range, shape))


#: Two classes that touch over faces and over an edge, a lesion at three borders of the volume, and a single voxel.
TOUCHING = labelled(
    (1, (3, 6), (2, 5), (2, 4)),
    (2, (6, 9), (3, 6), (3, 5)),
    (1, (10, 12), (8, 10), (6, 8)),
    (2, (0, 1), (7, 8), (1, 2)),
)
LABELS = {
    "touching": TOUCHING,
    "a corner": labelled((1, (0, 3), (0, 2), (0, 2))),
    "half the volume": labelled((2, (0, 12), (0, 4), (0, 8))),
    "no background": labelled((1, (0, 12), (0, 10), (0, 8)), (2, (5, 8), (4, 7), (3, 5))),
    "one class all over": labelled((1, (0, 12), (0, 10), (0, 8))),
    "random": np.random.default_rng(2).choice(3, SHAPE, p=[0.8, 0.1, 0.1]).astype(np.uint8),
}


def svls_by_loop(label, num_classes, sigma):
    """Every neighbour's one-hot, those outside taken from the nearest voxel inside."""
    weight = {n: math.exp(-sum(step * step for step in n) / (2 * sigma**2)) for n in EVERY_NEIGHBOUR}
    total = sum(weight.values())
    shares = np.zeros((num_classes, *label.shape))
    for place in voxels(label.shape):
        shares[(label[place], *place)] += total
        for offset, w in weight.items():
            inside = np.clip(np.add(place, offset), 0, np.subtract(label.shape, 1))
            shares[(label[tuple(inside)], *place)] += w
    return shares / (2 * total)


def soft_boundary_by_loop(label, num_classes, spacing_mm, width_mm):
    """The nearest point of each voxel's box, for every pair of voxels."""
    places = np.array(list(voxels(label.shape)))
    steps = np.abs(places[:, None] - places)
    to_box = np.sqrt(((np.maximum(steps - 0.5, 0) * spacing_mm) ** 2).sum(axis=-1))
    values = label.ravel()
    shares = np.zeros((num_classes, label.size))
    for c in range(num_classes):
        for row, value in enumerate(values):
            others = to_box[row, (values == c) != (value == c)]
            nearest = others.min(initial=np.inf)
            shares[c, row] = min(max(0.5 + (nearest if value == c else -nearest) / width_mm, 0), 1)
    return (shares / shares.sum(axis=0)).reshape(num_classes, *label.shape)


def geodesic_distance_by_loop(source, image, spacing_mm, intensity_weight):
    distance = np.where(source, 0.0, np.inf)
    queue = [(0.0, place) for place in voxels(source.shape) if source[place]]
    while queue:
        so_far, place = heapq.heappop(queue)
        if so_far > distance[place]:
            continue
        for offset in EVERY_NEIGHBOUR:
            other = tuple(a + b for a, b in zip(place, offset, strict=True))
            if all(0 <= n < length for n, length in zip(other, source.shape, strict=True)):
                squared = sum((n * side) ** 2 for n, side in zip(offset, spacing_mm, strict=True))
                squared += sum((intensity_weight * (float(plane[place]) - float(plane[other]))) ** 2 for plane in image)
                if so_far + math.sqrt(squared) < distance[other]:
                    distance[other] = so_far + math.sqrt(squared)
                    heapq.heappush(queue, (distance[other], other))
    return distance


def geodesic_by_loop(label, num_classes, image, spacing_mm, smoothing):
    hard = one_hot(label, num_classes)
    weight = np.zeros(hard.shape)
    for c in range(num_classes):
        distance = geodesic_distance_by_loop(label == c, image, spacing_mm, smoothing.intensity_weight)
        weight[c] = np.where(distance <= smoothing.reach_mm, np.exp(-5 * distance / smoothing.reach_mm), 0)
    return (1 - smoothing.amount) * hard + smoothing.amount * weight / weight.sum(axis=0)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=repr)
def test_shares_are_in_range_and_sum_to_one_and_the_own_class_keeps_most(smoothing, name):
    label = LABELS[name]
    shares = smoothed(smoothing, label, image=noise())
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(axis=0, dtype=np.float64), 1, atol=TOLERANCE)
    own = np.take_along_axis(shares, label[None].astype(int), axis=0)[0]
    assert (own >= shares.max(axis=0) - TOLERANCE).all()


@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=repr)
@pytest.mark.parametrize("flipped", [axes for n in range(4) for axes in itertools.combinations(range(3), n)], ids=str)
def test_flipping_the_volume_flips_the_shares(smoothing, flipped):
    image = noise()
    expected = np.flip(smoothed(smoothing, TOUCHING, image=image), [axis + 1 for axis in flipped])
    turned = np.flip(image, [axis + 1 for axis in flipped])
    np.testing.assert_allclose(smoothed(smoothing, np.flip(TOUCHING, flipped), image=turned), expected, atol=TOLERANCE)


@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=repr)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_swapping_axes_with_their_spacing_swaps_those_of_the_shares(smoothing, order):
    image = noise()
    turn = [0, *(axis + 1 for axis in order)]
    expected = smoothed(smoothing, TOUCHING, image=image).transpose(turn)
    spacing = tuple(SPACING[axis] for axis in order)
    found = smoothed(smoothing, TOUCHING.transpose(order), spacing_mm=spacing, image=image.transpose(turn))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=repr)
def test_the_integer_type_of_the_label_does_not_matter_and_nothing_given_is_changed(smoothing, dtype):
    label, image = TOUCHING.astype(dtype), noise()
    label.flags.writeable = image.flags.writeable = False
    np.testing.assert_array_equal(smoothed(smoothing, label, image=image), smoothed(smoothing, TOUCHING, image=noise()))


@pytest.mark.parametrize("smoothing", LOCAL, ids=repr)
def test_an_empty_label_is_background_with_share_one(smoothing):
    np.testing.assert_array_equal(smoothed(smoothing, labelled()), one_hot(labelled()))


@pytest.mark.parametrize("smoothing", LOCAL, ids=repr)
def test_background_far_from_every_lesion_keeps_exactly_one(smoothing):
    label = labelled((1, (7, 10), (11, 14), (4, 6)), (2, (10, 12), (11, 13), (5, 7)), shape=(40, 34, 30))
    # Lesions at both ends make the box around all lesions the whole volume: this isn't only what was cropped away.
    label[0, 0, 0] = label[-1, -1, -1] = 1
    shares = smoothed(smoothing, label, image=noise(label.shape))
    # The longest reach is 5 mm from centre to centre, 3.75 mm from face to centre, or a neighbour 3.2 mm away.
    far = ndimage.distance_transform_edt(label == 0, sampling=SPACING) > 7
    assert far.sum() > 1000
    assert (shares[0][far] == 1).all()
    assert (shares[1:, far] == 0).all()
    assert ((shares[0] < 1) & (label == 0)).sum() > 10


@pytest.mark.parametrize("smoothing", LOCAL, ids=repr)
def test_background_added_to_the_volume_changes_nothing(smoothing):
    """At the sides where the label is background already; the lesion touches the three others."""
    label = labelled((1, (9, 12), (8, 10), (6, 8)), (2, (9, 12), (6, 8), (6, 8)))
    image = noise()
    margin = [(20, 0), (10, 0), (6, 0)]
    after = smoothed(smoothing, np.pad(label, margin), image=np.pad(image, [(0, 0), *margin], mode="edge"))
    before = smoothed(smoothing, label, image=image)
    np.testing.assert_allclose(after[:, 20:, 10:, 6:], before, atol=TOLERANCE)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize(
    "smoothing",
    [
        NoSmoothing(),
        UniformSmoothing(rate=0.0),
        OneSidedSmoothing(fg=0.0, bg=0.0),
        SoftBoundary(width_mm=1e-9),
        SoftBoundary(width_mm=0.5),
        GeodesicSmoothing(amount=0.0),
        GeodesicSmoothing(reach_mm=0.49),
    ],
    ids=repr,
)
def test_a_smoothing_by_nothing_is_the_label(smoothing, name):
    """Also a border no wider than the least spacing, 0.5 mm, and a reach below one step."""
    np.testing.assert_array_equal(smoothed(smoothing, LABELS[name], image=noise()), one_hot(LABELS[name]))


def test_uniform_smoothing_keeps_one_minus_the_rate_and_its_part_of_the_rate():
    shares = smoothed(UniformSmoothing(rate=0.3), TOUCHING)
    np.testing.assert_allclose(shares, 0.7 * one_hot(TOUCHING) + 0.1, atol=TOLERANCE)


def test_one_sided_smoothing_doubts_marks_for_the_background_and_background_for_each_class():
    shares = smoothed(OneSidedSmoothing(fg=0.2, bg=0.01), TOUCHING)
    rows = np.array([[0.99, 0.005, 0.005], [0.2, 0.8, 0], [0.2, 0, 0.8]])
    np.testing.assert_allclose(shares, rows[TOUCHING].transpose(3, 0, 1, 2), atol=TOLERANCE)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize(
    ("smoothing", "label_smoothing"),
    [
        (OneSidedSmoothing(fg=0.2, bg=0.01), {"fg": 0.2, "bg": 0.01}),
        (OneSidedSmoothing(fg=0.0, bg=0.01), {"fg": 0.0, "bg": 0.01}),
        (OneSidedSmoothing(fg=0.2, bg=0.0), {"fg": 0.2, "bg": 0.0}),
        (UniformSmoothing(rate=0.2), 0.2),
    ],
    ids=repr,
)
def test_the_loss_of_the_shares_is_the_loss_with_label_smoothing(smoothing, label_smoothing, num_classes):
    label = np.arange(60, dtype=np.uint8).reshape(5, 4, 3) % num_classes
    table = class_probabilities(label_smoothing, activation=Activation.SOFTMAX, num_channels=num_classes)
    shares = smoothed(smoothing, label, num_classes=num_classes)
    np.testing.assert_allclose(shares, np.array(table)[label].transpose(3, 0, 1, 2), atol=TOLERANCE)
    logits = torch.randn(1, num_classes, 5, 4, 3, generator=torch.Generator().manual_seed(1)) * 2
    target = torch.from_numpy(label.astype(np.int64))[None, None]
    expected = focal_loss(logits, target, label_smoothing=label_smoothing, backend="eager")
    found = focal_loss(logits, torch.from_numpy(shares)[None], soft="expected", backend="eager")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_svls_is_what_its_definition_says(sigma, name):
    expected = svls_by_loop(LABELS[name], 3, sigma)
    np.testing.assert_allclose(smoothed(SVLS(sigma=sigma), LABELS[name]), expected, atol=TOLERANCE)


def test_svls_leaves_half_of_a_single_voxel_and_gives_a_face_neighbour_its_weight():
    """With sigma 1: e = exp(-1/2) over a face; 6 e + 12 e^2 + 8 e^3 of all neighbours; half of that part."""
    e = math.exp(-0.5)
    shares = smoothed(SVLS(sigma=1.0), labelled((1, (5, 6), (4, 5), (3, 4))))
    assert shares[1, 5, 4, 3] == pytest.approx(0.5)
    assert shares[1, 5, 4, 4] == pytest.approx(e / (6 * e + 12 * e**2 + 8 * e**3) / 2)
    assert shares[1].sum() == pytest.approx(1, abs=1e-5)


def test_svls_of_a_tiny_sigma_looks_over_the_six_faces():
    """Gaussian weights of sigma 0.01 are 0 in double precision; what they tend to, a twelfth for each face, is not."""
    shares = smoothed(SVLS(sigma=0.01), labelled((1, (5, 6), (4, 5), (3, 4))))
    np.testing.assert_allclose(shares[1, 4:7, 3:6, 3], np.array([[0, 1, 0], [1, 6, 1], [0, 1, 0]]) / 12, atol=TOLERANCE)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("width_mm", [0.8, 2.0, 4.3, 30.0, 1e9])
def test_a_soft_boundary_is_what_its_definition_says(width_mm, name):
    expected = soft_boundary_by_loop(LABELS[name], 3, SPACING, width_mm)
    np.testing.assert_allclose(smoothed(SoftBoundary(width_mm=width_mm), LABELS[name]), expected, atol=TOLERANCE)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width_mm", [2.0, 8.0])
def test_a_soft_boundary_is_as_wide_in_mm_along_each_axis(axis, width_mm):
    """The upper half is lesion: the ramp by the distance of each centre to the plane between the halves."""
    shape = (32, 32, 32)
    label = np.zeros(shape, np.uint8)
    np.moveaxis(label, axis, 0)[15:] = 1
    shares = smoothed(SoftBoundary(width_mm=width_mm), label, num_classes=2)
    from_plane_mm = (np.arange(32) - 14.5) * SPACING[axis]
    profile = np.moveaxis(shares[1], axis, 0)
    np.testing.assert_allclose(profile, np.broadcast_to(profile[:, :1, :1], profile.shape), atol=TOLERANCE)
    np.testing.assert_allclose(profile[:, 0, 0], np.clip(0.5 + from_plane_mm / width_mm, 0, 1), atol=TOLERANCE)
    assert ((profile[:, 0, 0] > 0) & (profile[:, 0, 0] < 1)).sum() == 2 * math.ceil(width_mm / 2 / SPACING[axis] - 0.5)


def test_three_classes_at_a_soft_boundary_share_by_their_ramps():
    """Slabs of 1 mm: class 1 is two voxels of 0.5 mm between the background and class 2; a ramp of 4 mm.

    The first voxel of class 1 has d = .25 of its own, -.25 of the background, -.75 of class 2.
    """
    label = labelled((1, (5, 7), (0, 10), (0, 8)), (2, (7, 12), (0, 10), (0, 8)))
    shares = smoothed(SoftBoundary(width_mm=4.0), label)[:, 5, 4, 3]
    ramps = 0.5 + np.array([-0.25, 0.25, -0.75]) / 4
    np.testing.assert_allclose(shares, ramps / ramps.sum(), atol=TOLERANCE)


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize(
    "smoothing",
    [
        GeodesicSmoothing(amount=0.3, reach_mm=5.0, intensity_weight=1.5),
        GeodesicSmoothing(amount=1.0, reach_mm=3.2, intensity_weight=0.0),
        GeodesicSmoothing(amount=0.5, reach_mm=40.0, intensity_weight=3.0),
    ],
    ids=repr,
)
def test_geodesic_smoothing_is_what_its_definition_says(smoothing, name):
    image = noise()
    expected = geodesic_by_loop(LABELS[name], 3, image, SPACING, smoothing)
    np.testing.assert_allclose(smoothed(smoothing, LABELS[name], image=image), expected, atol=TOLERANCE)


def test_on_a_flat_image_a_label_leaks_by_mm_along_each_axis():
    """Reach 6.5 mm, scale 1.3 mm: S of the lesion is 1 / (1 + exp(D / 1.3)) up to 13, 6 and 2 voxels away."""
    smoothing = GeodesicSmoothing(amount=0.4, reach_mm=6.5, intensity_weight=1.0)
    label = labelled((1, (14, 15), (8, 9), (4, 5)), shape=(33, 19, 9))
    shares = smoothed(smoothing, label, num_classes=2)[1]
    for axis, num_reached in enumerate((13, 6, 2)):
        line = np.moveaxis(shares, axis, 0)[:, *([14, 8, 4][other] for other in range(3) if other != axis)]
        distance = np.abs(np.arange(len(line)) - (14, 8, 4)[axis]) * SPACING[axis]
        expected = np.where(distance <= 6.5, 0.4 / (1 + np.exp(distance / 1.3)), 0)
        expected[(14, 8, 4)[axis]] = 0.6 + 0.4 / (1 + math.exp(-0.5 / 1.3))  # the background is 0.5 mm away
        np.testing.assert_allclose(line, expected, atol=TOLERANCE)
        assert (line > 0).sum() == 1 + 2 * num_reached


def test_a_bright_edge_stops_a_geodesic_label():
    """Three voxels of 1 mm before the lesion begins tissue that is 4 brighter: a step there costs over 8 mm."""
    smoothing = GeodesicSmoothing(amount=0.2, reach_mm=6.0, intensity_weight=2.0)
    label = labelled((1, (6, 9), (6, 9), (6, 9)), shape=(20, 18, 16))
    image = flat(label.shape)
    image[0, :, 12:] = 4
    spacing = (1.0, 1.0, 1.0)
    open_way = smoothed(smoothing, label, num_classes=2, spacing_mm=spacing)[1]
    stopped = smoothed(smoothing, label, num_classes=2, spacing_mm=spacing, image=image)[1]
    assert open_way[7, 12:15, 7].min() > 0
    assert stopped[:, 12:].max() == 0
    np.testing.assert_array_equal(stopped[:, :12], open_way[:, :12])


def test_a_weak_edge_lengthens_the_way_by_its_height_in_every_channel():
    """Steps of 1 and 2 in two channels, times 0.5: sqrt(1 + .25 + 1) mm instead of 1."""
    smoothing = GeodesicSmoothing(amount=0.2, reach_mm=6.0, intensity_weight=0.5)
    label = np.zeros((9, 8, 7), np.uint8)
    label[:, :4] = 1
    image = np.zeros((2, 9, 8, 7), np.float32)
    image[0, :, 4:], image[1, :, 4:] = 1, -2
    shares = smoothed(smoothing, label, num_classes=2, spacing_mm=(1, 1, 1), image=image)[1]
    np.testing.assert_allclose(shares[:, 4], 0.2 / (1 + math.exp(1.5 / 1.2)), atol=TOLERANCE)
    np.testing.assert_allclose(shares[:, 5], 0.2 / (1 + math.exp(2.5 / 1.2)), atol=TOLERANCE)


def test_a_geodesic_label_goes_round_an_obstacle():
    """A wall with a hole in a plane of voxels of 1 mm: behind it only ways through the hole count."""
    smoothing = GeodesicSmoothing(amount=0.2, reach_mm=9.0, intensity_weight=100.0)
    label = labelled((1, (2, 3), (2, 3), (0, 1)), shape=(9, 7, 1))
    image = flat(label.shape)
    image[0, 4, :5] = 1
    shares = smoothed(smoothing, label, num_classes=2, spacing_mm=(1, 1, 1), image=image)[1]
    # From (2, 2) over (3, 3), (3, 4) or alike, to (4, 5), (5, 4), (6, 3) and (6, 2).
    straight, oblique = 2, 4
    distance = straight + oblique * math.sqrt(2)
    assert shares[6, 2, 0] == pytest.approx(0.2 / (1 + math.exp(distance / 1.8)), abs=TOLERANCE)
    assert shares[4, 2, 0] == 0


def test_intensities_away_from_lesions_are_not_asked():
    label, image = labelled((1, (2, 3), (2, 3), (1, 2)), shape=(40, 30, 20)), noise((40, 30, 20))
    expected = smoothed(GeodesicSmoothing(), label, image=image)
    image[:, -1, -1, -1] = np.nan
    np.testing.assert_array_equal(smoothed(GeodesicSmoothing(), label, image=image), expected)
    image[0, 2, 4, 1] = np.inf
    with pytest.raises(ValueError, match=r"image must be finite near lesions, got NaN or infinity"):
        smoothed(GeodesicSmoothing(), label, image=image)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (UniformSmoothing, {"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        (UniformSmoothing, {"rate": -0.1}, r"rate must be in \[0, 1\), got -0.1"),
        (UniformSmoothing, {"rate": math.nan}, r"rate must be in \[0, 1\), got nan"),
        (OneSidedSmoothing, {"fg": 1.5}, r"fg must be in \[0, 1\), got 1.5"),
        (OneSidedSmoothing, {"bg": -1}, r"bg must be in \[0, 1\), got -1"),
        (SVLS, {"sigma": 0.0}, r"sigma must be finite and above 0, got 0.0"),
        (SVLS, {"sigma": math.inf}, r"sigma must be finite and above 0, got inf"),
        (SoftBoundary, {"width_mm": 0}, r"width_mm must be finite and above 0, got 0"),
        (SoftBoundary, {"width_mm": math.nan}, r"width_mm must be finite and above 0, got nan"),
        (GeodesicSmoothing, {"amount": -0.1}, r"amount must be in \[0, 1\], got -0.1"),
        (GeodesicSmoothing, {"amount": 1.1}, r"amount must be in \[0, 1\], got 1.1"),
        (GeodesicSmoothing, {"amount": math.nan}, r"amount must be in \[0, 1\], got nan"),
        (GeodesicSmoothing, {"reach_mm": -5}, r"reach_mm must be finite and above 0, got -5"),
        (GeodesicSmoothing, {"intensity_weight": -1}, r"intensity_weight must be finite and >= 0, got -1"),
        (GeodesicSmoothing, {"intensity_weight": math.inf}, r"intensity_weight must be finite and >= 0, got inf"),
    ],
)
def test_an_option_out_of_range_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=repr)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, r"num_classes must be at least 2, .*, got 1"),
        ({"num_classes": 2}, r"label must hold classes 0 to 1, got 0 to 2"),
        ({"label": TOUCHING.astype(np.int16) - 1}, r"label must hold classes 0 to 2, got -1 to 1"),
        ({"label": TOUCHING.astype(np.float32)}, r"label must be integers \(I, J, K\), got float32 of shape"),
        ({"label": TOUCHING[0]}, r"label must be integers \(I, J, K\), got uint8 of shape \(10, 8\)"),
        ({"label": TOUCHING[:0], "image": noise()[:, :0]}, r"label must be .*, got uint8 of shape \(0, 10, 8\)"),
        ({"spacing_mm": (1.0, 1.0)}, r"spacing_mm must be three finite lengths above 0, got \(1.0, 1.0\)"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, r"spacing_mm must be three finite lengths above 0, got \(1.0, 0.0, 1.0\)"),
        ({"image": noise()[0]}, r"image must be \(C, I, J, K\) .*, got \(12, 10, 8\) and \(12, 10, 8\)"),
        ({"image": noise()[:, 1:]}, r"on the grid of the label, got \(2, 11, 10, 8\) and \(12, 10, 8\)"),
    ],
)
def test_a_case_that_does_not_fit_is_refused_by_every_smoothing(smoothing, change, message):
    case = {"label": TOUCHING, "num_classes": 3, "spacing_mm": SPACING, "image": noise()} | change
    with pytest.raises(ValueError, match=message):
        smoothing(case.pop("label"), **case)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_options_are_keywords_with_defaults_and_become_attributes_of_the_same_name(kind):
    options = inspect.signature(kind).parameters
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options.values())
    for name, option in options.items():
        assert getattr(kind(), name) == option.default
        assert getattr(kind(**{name: option.default / 2}), name) == option.default / 2


@pytest.mark.parametrize(
    ("smoothing", "factor"),
    [
        (SoftBoundary(width_mm=2.0), 1.5),
        (SoftBoundary(width_mm=6.0), 4.0),
        (UniformSmoothing(rate=0.05), 31.0),
        (SVLS(), 1.0),
    ],
)
def test_how_much_lesion_a_smoothing_adds_to_small_lesions(smoothing, factor):
    """The figures of docs/annotations.md: five lesions of 33 voxels of 1 mm in 64 x 64 x 48."""
    label = np.zeros((64, 64, 48), np.uint8)
    ball = np.sum((np.mgrid[:5, :5, :5] - 2) ** 2, axis=0) <= 4
    for number in range(5):
        label[10 * number + 5 : 10 * number + 10, 20:25, 30:35] = ball
    assert label.sum() == 5 * 33
    image = np.zeros((1, *label.shape), np.float32)
    shares = smoothing(label, num_classes=2, spacing_mm=(1, 1, 1), image=image)
    assert shares[1].sum() / label.sum() == pytest.approx(factor, rel=0.05)
