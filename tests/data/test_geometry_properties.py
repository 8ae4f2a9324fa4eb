"""Whatever the spacing, the axes, the type and the shape: a lesion is found at its world coordinate at every step."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medfocal.data.cases import CaseVolumes
from medfocal.data.manifest import Case
from medfocal.data.sampling import cut_patch
from medfocal.data.transforms import Preprocessing, prepare_case, to_native
from medfocal.volume import Volume, read_labels, read_volume, write_volume

AXES = ["".join(codes) for order in itertools.permutations(["RL", "AP", "SI"]) for codes in itertools.product(*order)]
HEADER_MM = 2e-3  # headers store float32; a corner can lie 200 mm off-centre behind a rotation
TOUCHING = np.ones((3, 3, 3))
PLAIN = {"intensity": "none"}

spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
#: Ratios of whole numbers are where two voxels are equally near.
even_spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 6.0])] * 3)
any_spacings = spacings | even_spacings
shapes = st.tuples(st.integers(1, 14), st.integers(1, 11), st.integers(1, 9))
orientations = st.sampled_from(AXES)


@st.composite
def affines(draw, spacing=any_spacings):
    """Voxel to world of one of the 48 ways to order axes, turned by up to 30 degrees in all, off-centre."""
    axes = np.zeros((3, 3))
    for axis, code in enumerate(draw(orientations)):
        axes["RLAPSI".index(code) // 2, axis] = 1 if code in "RAS" else -1
    vector = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    length = np.linalg.norm(vector)
    turn = vector / max(length, 1) * np.deg2rad(30) if draw(st.booleans()) else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ axes * draw(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


def voxel_in(shape):
    return st.tuples(*[st.integers(0, n - 1) for n in shape])


def case_of(label, affine, image=None, **maps):
    image = (label > 0).astype(np.float32) if image is None else image
    return CaseVolumes(Case("c", "p", "training", ()), image[None], Volume(label, affine), label, **maps)


def centre_mm(weights, affine):
    index = np.argwhere(weights)
    return apply_affine(affine, np.average(index, axis=0, weights=weights[tuple(index.T)]))


def steps_between(prepared, case):
    """Voxels of the case from one voxel of the network's grid to the next, along each axis of the latter."""
    steps = np.linalg.inv(case.grid.affine)[:3, :3] @ prepared.affine[:3, :3]
    return np.abs(steps).max(axis=0)


def away_in_voxels(here_mm, there_mm, prepared, case):
    """How far two places lie apart along each axis, in voxels of whichever grid is coarser there."""
    along = np.linalg.inv(prepared.affine[:3, :3]) @ (here_mm - there_mm)
    return np.abs(along) / np.maximum(1, 1 / steps_between(prepared, case))


def ball(affine, radius_mm, margin_mm, wish):
    """A ball and its centre in a volume that leaves `margin_mm` round it; `wish` moves it against the grid."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = np.ceil((radius_mm + margin_mm) / spacing) + np.array(wish)
    index = np.moveaxis(np.indices([int(n) for n in 2 * np.ceil(middle) + 1]), 0, -1)
    return (np.linalg.norm((index - middle) * spacing, axis=-1) <= radius_mm).astype(np.int16)


@given(data=st.data(), affine=affines(), shape=shapes, ending=st.sampled_from([".nii", ".nii.gz"]))
@settings(max_examples=150, deadline=None)
def test_a_lesion_is_read_where_another_library_wrote_it_and_again_where_we_write_it(
    data, affine, shape, ending, tmp_path_factory
):
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]))
    slope, intercept = data.draw(st.sampled_from([(1, 0), (0.5, 0), (2, -7), (1 / 255, 0)]))
    voxel = data.draw(voxel_in(shape))
    stored = np.zeros(shape, dtype)
    stored[voxel] = 100
    image = nibabel.Nifti1Image(stored, affine)
    path = tmp_path_factory.mktemp("written") / f"a{ending}"
    nibabel.save(image, path)
    nibabel.save(image, path.with_name("plain.nii"))
    # nibabel divides by a slope while it writes; the stored numbers are wanted as they are.
    raw = bytearray(path.with_name("plain.nii").read_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]))
    header["scl_slope"], header["scl_inter"] = slope, intercept
    raw[:348] = header.binaryblock
    path.with_name("scaled.nii").write_bytes(raw)

    volume = read_volume(path.with_name("scaled.nii"))
    expected_mm = apply_affine(affine, voxel)
    background = np.float32(intercept)
    found = np.argwhere(volume.array != background)
    assert found.tolist() == [list(voxel)]
    assert volume.array[voxel] == pytest.approx(100 * slope + intercept, rel=1e-6)
    np.testing.assert_allclose(apply_affine(volume.affine, found[0]), expected_mm, atol=HEADER_MM)

    write_volume(path.with_name(f"again{ending}"), read_volume(path))
    again = read_labels(path.with_name(f"again{ending}"))
    assert np.argwhere(again.array).tolist() == [list(voxel)]
    np.testing.assert_allclose(apply_affine(again.affine, voxel), expected_mm, atol=HEADER_MM)


@given(data=st.data(), affine=affines(), shape=shapes, orientation=orientations)
@settings(max_examples=150, deadline=None)
def test_turning_axes_alone_keeps_every_voxel_at_its_place_and_goes_back_exactly(data, affine, shape, orientation):
    voxel = data.draw(voxel_in(shape))
    label = np.zeros(shape, np.int16)
    label[voxel] = 1
    image = np.arange(label.size, dtype=np.float32).reshape(shape)
    prepared = prepare_case(case_of(label, affine, image), Preprocessing(orientation=orientation, **PLAIN))
    (found,) = np.argwhere(prepared.label.numpy())
    assert prepared.image[0][tuple(found)] == image[voxel]
    np.testing.assert_allclose(apply_affine(prepared.affine, found), apply_affine(affine, voxel), atol=1e-9)
    np.testing.assert_array_equal(to_native(prepared.image[0].numpy(), prepared), image)
    np.testing.assert_array_equal(to_native(prepared.label.numpy(), prepared), label)


@given(affine=affines(), shape=shapes, orientation=orientations)
@settings(max_examples=100, deadline=None)
def test_turned_axes_point_where_they_should(affine, shape, orientation):
    case = case_of(np.ones(shape, np.int16), affine)
    assert nibabel.aff2axcodes(prepare_case(case, Preprocessing(orientation=orientation, **PLAIN)).affine) == tuple(
        orientation
    )


@given(data=st.data(), affine=affines(), shape=shapes, orientation=orientations, spacing_mm=any_spacings)
@settings(max_examples=300, deadline=None)
def test_a_lesion_of_one_voxel_is_within_half_a_voxel_of_the_coarser_grid_after_each_step(
    data, affine, shape, orientation, spacing_mm
):
    voxel = data.draw(voxel_in(shape))
    label = np.zeros(shape, np.int16)
    label[voxel] = 1
    case = case_of(label, affine)
    prepared = prepare_case(case, Preprocessing(orientation=orientation, spacing_mm=spacing_mm, **PLAIN))
    expected_mm, drawn = apply_affine(affine, voxel), prepared.label.numpy()

    assert drawn.any()
    assert away_in_voxels(centre_mm(drawn, prepared.affine), expected_mm, prepared, case).max() < 0.5 + 1e-3
    seen = prepared.image[0].numpy()
    assert seen.max() > 0
    assert away_in_voxels(centre_mm(seen, prepared.affine), expected_mm, prepared, case).max() < 0.5 + 1e-3

    # A patch round it, partly outside of the volume.
    index = np.argwhere(drawn)[0]
    start = index - data.draw(st.tuples(*[st.integers(0, 4)] * 3))
    patch = cut_patch(drawn, start, (5, 5, 5))
    inside = np.argwhere(patch) + start
    assert inside.tolist() == [place for place in np.argwhere(drawn).tolist() if (place < start + 5).all()
                               and (place >= start).all()]  # fmt: skip

    back = to_native(drawn.astype(np.float32), prepared)
    assert back.shape == shape
    assert back.max() > 0
    highest_mm = apply_affine(affine, np.argwhere(back >= back.max() - 1e-3))
    drawn_mm = centre_mm(drawn, prepared.affine)
    assert min(away_in_voxels(mm, drawn_mm, prepared, case).max() for mm in highest_mm) < 0.5 + 1e-3


@given(data=st.data(), affine=affines(), shape=shapes, orientation=orientations, spacing_mm=any_spacings)
@settings(max_examples=200, deadline=None)
def test_no_lesion_is_lost_and_none_appears(data, affine, shape, orientation, spacing_mm):
    """Against lesions numbered by scipy and the nearest voxel of each of their voxels, worked out in the world."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    label = (rng.random(shape) < data.draw(st.sampled_from([0.01, 0.1, 0.4]))).astype(np.int16)
    prepared = prepare_case(
        case_of(label, affine), Preprocessing(orientation=orientation, spacing_mm=spacing_mm, **PLAIN)
    )
    drawn = prepared.label.numpy()
    lesions, num_lesions = ndimage.label(label, TOUCHING)
    voxels = np.argwhere(label)
    exact = apply_affine(np.linalg.inv(prepared.affine), apply_affine(affine, voxels))
    last = np.array(drawn.shape) - 1
    for number in range(1, num_lesions + 1):
        own = exact[lesions[tuple(voxels.T)] == number]
        # Of two equally near voxels either may hold it.
        ways = [np.clip(np.rint(own + nudge), 0, last).astype(int)
                for nudge in itertools.product((-1e-6, 1e-6), repeat=3)]  # fmt: skip
        assert any(drawn[tuple(place)] for places in ways for place in places)
    for place in np.argwhere(drawn):
        reach = np.maximum(1, 1 / steps_between(prepared, case_of(label, affine)))
        assert (np.abs(np.clip(exact, 0, last) - place) <= reach).all(axis=1).any()


@given(data=st.data(), affine=affines(), orientation=orientations, spacing_mm=any_spacings)
@settings(max_examples=60, deadline=None)
def test_a_ball_drawn_in_image_and_label_has_one_centre_and_keeps_its_volume(data, affine, orientation, spacing_mm):
    coarsest = max(*spacing_mm, *np.linalg.norm(affine[:3, :3], axis=0))
    finest = min(*spacing_mm, *np.linalg.norm(affine[:3, :3], axis=0))
    if coarsest > 6 * finest:  # keeps the arrays small
        spacing_mm = (coarsest / 2, coarsest, coarsest / 3)
        affine = affine.copy()
        affine[:3, :3] *= coarsest / 2 / np.linalg.norm(affine[:3, :3], axis=0)
    radius_mm = 3 * coarsest
    label = ball(affine, radius_mm, 2 * coarsest, data.draw(st.tuples(*[st.floats(0, 1)] * 3)))
    case = case_of(label, affine)
    prepared = prepare_case(case, Preprocessing(orientation=orientation, spacing_mm=spacing_mm, **PLAIN))
    drawn, seen = prepared.label.numpy(), prepared.image[0].numpy()
    truth_mm = centre_mm(label, affine)
    assert away_in_voxels(centre_mm(seen, prepared.affine), truth_mm, prepared, case).max() < 0.05
    # A face between two planes goes to either side. One plane more at one end and one less at the other move the centre
    # of a ball six voxels across by 2 x 2.75 x 2.5 / 36 voxels (area and distance of the outermost planes over volume).
    assert away_in_voxels(centre_mm(drawn, prepared.affine), truth_mm, prepared, case).max() < 0.4

    before = label.sum() * abs(np.linalg.det(affine[:3, :3]))
    after = drawn.sum() * abs(np.linalg.det(prepared.affine[:3, :3]))
    # Each side may move by a quarter of a voxel of the coarser grid.
    thinner, thicker = ((radius_mm + way * coarsest / 4) ** 3 / radius_mm**3 for way in (-1, 1))
    assert thinner < after / before < thicker
    back = to_native(seen, prepared)
    assert away_in_voxels(centre_mm(back, affine), truth_mm, prepared, case).max() < 0.05


@given(data=st.data(), affine=affines(), shape=shapes, orientation=orientations, spacing_mm=any_spacings)
@settings(max_examples=100, deadline=None)
def test_readers_weights_and_what_nobody_judged_stay_on_the_label_and_the_image(
    data, affine, shape, orientation, spacing_mm
):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    marks = (rng.random(shape) < 0.2).astype(np.uint8)
    share = rng.random(shape, np.float32)
    preprocessing = Preprocessing(orientation=orientation, spacing_mm=spacing_mm, **PLAIN)
    maps = {"weight": share, "ignore": marks.astype(bool)}
    hard = prepare_case(case_of(marks, affine, share, readers=np.stack([marks, 0 * marks]), **maps), preprocessing)
    soft = prepare_case(case_of(marks, affine, share, readers=np.stack([share, 0 * share])), preprocessing)
    label, image = hard.label.numpy(), hard.image[0].numpy()
    assert (hard.readers.dtype, soft.readers.dtype, hard.weight.dtype) == (np.uint8, np.float32, np.float32)
    assert hard.ignore.dtype == np.bool_
    np.testing.assert_array_equal(hard.readers, np.stack([label, 0 * label]))
    np.testing.assert_array_equal(soft.readers, np.stack([image, 0 * image]))
    np.testing.assert_array_equal(hard.weight, image)
    np.testing.assert_array_equal(hard.ignore, label > 0)
    assert (soft.weight, soft.ignore) == (None, None)
    assert image.min() >= share.min() - 1e-6  # averages, so shares stay shares
    assert image.max() <= share.max() + 1e-6
