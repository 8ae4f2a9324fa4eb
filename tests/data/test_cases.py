"""One case: its files are read, held against each other, and refused with its name."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medfocal.data.cases import classes_of, clean_image, empty_grid, read_case, read_weights
from medfocal.data.manifest import Case, LabelScheme
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 31], [0, -1, 0, 17], [0, 0, 3, -42], [0, 0, 0, 1.0]])
LABELS = LabelScheme({0: "background", 1: "lesion"})


def body():
    """A body of intensities around 100 in air of 0, away from every face."""
    image = np.zeros(SHAPE, np.float32)
    image[2:10, 2:8, 1:7] = np.random.default_rng(0).normal(100, 10, (8, 6, 6))
    return image


def stored(folder, name, array, affine=AFFINE):
    write_volume(folder / f"{name}.nii.gz", Volume(array, affine))
    return folder / f"{name}.nii.gz"


def case(images, label=None):
    return Case("c1", "p1", "training", tuple(images), label)


def test_images_are_stacked_as_channels_and_the_label_is_kept(tmp_path):
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[4:6, 4:6, 3] = 1
    second = (body() * 7).astype(np.int16)
    images = [stored(tmp_path, "a", body()), stored(tmp_path, "b", second)]
    found = read_case(case(images, stored(tmp_path, "l", lesion)), LABELS)
    assert found.image.dtype == np.float32
    np.testing.assert_array_equal(found.image, np.stack([body(), second]))
    np.testing.assert_array_equal(found.label, lesion)
    assert found.label.dtype == np.int16
    np.testing.assert_array_equal(found.grid.affine, AFFINE)


def test_a_case_to_predict_has_no_label(tmp_path):
    assert read_case(case([stored(tmp_path, "a", body())]), LabelScheme({})).label is None


def test_the_kept_grid_has_the_shape_and_takes_no_memory():
    grid = empty_grid(Volume(body(), AFFINE))
    assert grid.shape == SHAPE
    assert grid.array.strides == (0, 0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_outside_the_body_becomes_0(value):
    image = body()
    image[image == 0] = value
    np.testing.assert_array_equal(clean_image(image, "case"), body())


def test_nan_in_air_of_0_becomes_0_though_it_does_not_touch_the_border():
    image = body()
    image[1, 4, 4] = np.nan
    np.testing.assert_array_equal(clean_image(image, "case"), body())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_inside_the_body_is_refused_with_its_voxel(value):
    image = body()
    image[5, 4, 3] = image[5, 4, 4] = value
    with pytest.raises(InputError, match=r"case holds 2 voxels that are NaN or infinite .* first at \(5, 4, 3\)"):
        clean_image(image, "case")


def test_a_hole_that_reaches_the_border_only_across_a_corner_is_inside():
    image = np.full(SHAPE, 5.0)
    image[0, 0, 0] = 0
    image[1, 1, 0] = image[1, 1, 1] = 0  # (1, 1, 0) is on the border itself
    image[2, 2, 1] = np.nan  # touches (1, 1, 1) by an edge only
    with pytest.raises(InputError, match=r"\(2, 2, 1\)"):
        clean_image(image, "case")


@pytest.mark.parametrize("value", [0, 7, -1000.5])
def test_a_constant_image_is_refused(value):
    with pytest.raises(InputError, match=rf"case is constant: every voxel is {value}"):
        clean_image(np.full(SHAPE, value), "case")


def test_nothing_but_nan_is_a_constant_image():
    with pytest.raises(InputError, match="is constant: every voxel is 0"):
        clean_image(np.full(SHAPE, np.nan), "case")


def test_the_given_array_is_not_changed():
    image = body()
    image[0, 0, 0] = np.nan
    clean_image(image, "case")
    assert np.isnan(image[0, 0, 0])


def test_faults_of_a_file_name_the_case_and_the_file(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"case 'c1': the file '.*a\.nii\.gz'"):
        read_case(case([tmp_path / "a.nii.gz"]), LABELS)
    bad = body()
    bad[5, 4, 3] = np.nan
    with pytest.raises(InputError, match=r"case 'c1': '.*b\.nii\.gz' holds 1 voxels"):
        read_case(case([stored(tmp_path, "b", bad)]), LABELS)


def test_a_grid_that_makes_no_sense_stays_a_geometry_error(tmp_path):
    image = nibabel.Nifti1Image(body(), AFFINE)
    image.header["xyzt_units"] = 1
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(GeometryError, match=r"case 'c1': .* measures in metres"):
        read_case(case([tmp_path / "a.nii.gz"]), LABELS)


def test_a_faulty_label_keeps_its_kind_of_error_and_names_the_case(tmp_path):
    half = np.zeros(SHAPE, np.float32)
    half[1, 2, 3] = 0.5
    with pytest.raises(InputError, match=r"case 'c1': the label file '.*l\.nii\.gz' holds 0\.5 at voxel \(1, 2, 3\)"):
        read_case(case([stored(tmp_path, "a", body())], stored(tmp_path, "l", half)), LABELS)


def moved(mm):
    affine = AFFINE.copy()
    affine[2, 3] += mm
    return affine


def test_label_and_image_4_micrometres_apart_are_one_grid_and_5_mm_are_not(tmp_path):
    image, lesion = stored(tmp_path, "a", body()), np.zeros(SHAPE, np.uint8)
    assert read_case(case([image], stored(tmp_path, "l", lesion, moved(0.004))), LABELS).label is not None
    with pytest.raises(GeometryError, match=r"case 'c1': label and image grids differ: origin .* 5 mm apart"):
        read_case(case([image], stored(tmp_path, "m", lesion, moved(5))), LABELS)


def test_channels_on_different_grids_are_refused_with_both_files(tmp_path):
    images = [stored(tmp_path, "a", body()), stored(tmp_path, "b", body()[:-1])]
    with pytest.raises(
        GeometryError, match=r"'.*a\.nii\.gz' and '.*b\.nii\.gz' differ: shape \(12, 10, 8\) and \(11, 10, 8\) voxels"
    ):
        read_case(case(images), LABELS)


def test_label_values_that_the_dataset_does_not_name_are_refused(tmp_path):
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[4, 4, 3], lesion[5, 4, 3] = 255, 2
    with pytest.raises(DatasetError, match=r"case 'c1': .* holds 2, 255, which .* it names 0 \(background\), 1 \(les"):
        read_case(case([stored(tmp_path, "a", body())], stored(tmp_path, "l", lesion)), LABELS)


def annotated(folder, *readers):
    """A case with annotations; each is an array or a path."""
    files = [r if not isinstance(r, np.ndarray) else stored(folder, f"r{n}", r) for n, r in enumerate(readers, start=1)]
    return Case("c1", "p1", "training", (stored(folder, "a", body()),), None, tuple(files))


def mark(value=1, dtype=np.uint8):
    marks = np.zeros(SHAPE, dtype)
    marks[4:6, 4:6, 3] = value
    return marks


def test_annotations_are_read_when_asked_for(tmp_path):
    known = annotated(tmp_path, mark(), np.zeros(SHAPE, np.uint8))
    assert read_case(known, LABELS).readers is None
    found = read_case(known, LABELS, with_readers=True).readers
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([mark(), np.zeros(SHAPE)]))


def test_a_reader_who_gave_shares_makes_all_of_the_case_shares(tmp_path):
    found = read_case(annotated(tmp_path, mark(0.3, np.float32), mark()), LABELS, with_readers=True).readers
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 4, 4, 3], [0.3, 1])


@pytest.mark.parametrize("value", [1.3, -0.2])
def test_a_share_outside_0_to_1_is_refused_with_the_reader_and_the_range(tmp_path, value):
    with pytest.raises(DatasetError, match=r"'c1': reader 2:.*must lie in\s\[0, 1\]"):
        read_case(annotated(tmp_path, mark(), mark(value, np.float32)), LABELS, with_readers=True)


def test_shares_of_several_classes_are_no_labels(tmp_path):
    several = LabelScheme({0: "background", 1: "a", 2: "b"})
    with pytest.raises(InputError, match=r"'c1': reader 1:.*not a whole number"):
        read_case(annotated(tmp_path, mark(0.3, np.float32)), several, with_readers=True)


def test_label_values_that_another_reader_uses_alone_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"'c1': reader 2:.*holds 255,.*names 0 \(background\), 1 \(lesion\)"):
        read_case(annotated(tmp_path, mark(), mark(255)), LABELS, with_readers=True)


def test_an_annotation_on_another_grid_is_refused_with_both(tmp_path):
    other = stored(tmp_path, "other", mark(), np.diag([1.0, 1, 1, 1]))
    with pytest.raises(GeometryError, match=r"'c1': reader 2: annotation and image grids differ: spacing"):
        read_case(annotated(tmp_path, mark(), other), LABELS, with_readers=True)


def test_a_missing_annotation_is_refused_with_its_reader(tmp_path):
    with pytest.raises(InputError, match="'c1': reader 1"):
        read_case(annotated(tmp_path, tmp_path / "gone.nii.gz"), LABELS, with_readers=True)


def test_weights_are_read_on_the_grid_of_the_case(tmp_path):
    known, weight = annotated(tmp_path), mark(0.25, np.float32)
    found = read_case(known, LABELS, weight=stored(tmp_path, "w", weight)).weight
    np.testing.assert_array_equal(found, weight)
    grid = read_case(known, LABELS).grid
    with pytest.raises(InputError, match=r"'c1': the weight map .* from -0.5 to 0"):
        read_weights(known, grid, stored(tmp_path, "negative", mark(-0.5, np.float32)))
    with pytest.raises(InputError, match=r"'c1': the weight map .* to 1e\+300"):
        read_weights(known, grid, stored(tmp_path, "huge", mark(1e300, np.float64)))
    with pytest.raises(GeometryError, match=r"'c1': weight map and image grids differ"):
        read_weights(known, grid, stored(tmp_path, "far", weight, np.eye(4)))


def test_a_share_that_is_no_number_is_refused_as_such(tmp_path):
    with pytest.raises(InputError, match=r"'c1': reader 1:.*NaN or infinite"):
        read_case(annotated(tmp_path, mark(np.nan, np.float32)), LABELS, with_readers=True)


# What label values mean

COILED = LabelScheme({0: "background", 1: "lesion", 2: "coil"}, values={0: 0, 255: 1, 40: 2}, ignore_value=7)


def test_values_of_a_file_become_classes_and_what_nobody_judged_is_background():
    array = np.zeros(SHAPE, np.int16)
    array[1, 2, 3], array[4, 5, 6], array[7, 8, 1] = 255, 40, 7
    classes, ignore = classes_of(array, COILED, "the label")
    assert [int(classes[place]) for place in ((1, 2, 3), (4, 5, 6), (7, 8, 1), (0, 0, 0))] == [1, 2, 0, 0]
    assert np.argwhere(ignore).tolist() == [[7, 8, 1]]
    assert array[1, 2, 3] == 255


def test_where_all_was_judged_there_is_no_map_of_what_was_not():
    array = np.zeros(SHAPE, np.int16)
    array[1, 2, 3] = 255
    assert classes_of(array, COILED, "the label")[1] is None
    array[1, 2, 3] = 1
    assert classes_of(array, LABELS, "the label")[1] is None


def test_values_that_are_their_own_classes_are_not_copied():
    array = np.zeros(SHAPE, np.int16)
    array[1, 2, 3] = 1
    assert classes_of(array, LABELS, "the label")[0] is array


def test_a_class_that_is_no_value_of_the_file_is_refused_with_the_values_that_are():
    """1 is a class here, and the file writes it as 255."""
    array = np.zeros(SHAPE, np.int16)
    array[1, 2, 3] = 1
    with pytest.raises(DatasetError, match=r"it names 0 \(background\), 40 \(coil\), 255 \(lesion\)"):
        classes_of(array, COILED, "the label")


def test_values_beyond_16_bits_are_known_or_refused_like_others():
    array = np.zeros(SHAPE, np.int32)
    array[1, 2, 3] = 100_000
    known = LabelScheme({0: "background", 1: "lesion"}, values={0: 0, 100_000: 1})
    assert int(classes_of(array, known, "the label")[0].sum()) == 1
    with pytest.raises(DatasetError, match="the label holds 100000"):
        classes_of(array, LABELS, "the label")


def test_a_label_of_another_scheme_is_read_as_classes_with_what_nobody_judged(tmp_path):
    label = np.zeros(SHAPE, np.uint8)
    label[4:6, 4:6, 3], label[2, 2, 2] = 255, 7
    found = read_case(case([stored(tmp_path, "a", body())], stored(tmp_path, "l", label)), COILED)
    assert found.label.dtype == np.int16
    np.testing.assert_array_equal(found.label, label == 255)
    np.testing.assert_array_equal(found.ignore, label == 7)


def test_what_any_reader_or_the_label_did_not_judge_is_ignored(tmp_path):
    places = [(2, 2, 2), (3, 3, 3), (4, 4, 4)]
    maps = [np.zeros(SHAPE, np.uint8) for _ in places]
    for array, place in zip(maps, places, strict=True):
        array[place] = 7
    both = Case(
        "c1", "p1", "training", (stored(tmp_path, "a", body()),), stored(tmp_path, "l", maps[0]),
        (stored(tmp_path, "r1", maps[1]), stored(tmp_path, "r2", maps[2])),
    )  # fmt: skip
    found = read_case(both, COILED, with_readers=True)
    assert [tuple(place) for place in np.argwhere(found.ignore).tolist()] == places
    assert not found.readers.any()
    alone = read_case(both, COILED)
    assert np.argwhere(alone.ignore).tolist() == [[2, 2, 2]]
    without = Case("c1", "p1", "training", both.images, None, both.annotations)
    assert np.argwhere(read_case(without, COILED, with_readers=True).ignore).tolist() == [[3, 3, 3], [4, 4, 4]]


# Channels on grids of their own


def apart(images, **kinds):
    return Case("c1", "p1", "training", tuple(images), None, (), resample_channels=True, **kinds)


def test_a_channel_on_a_grid_of_its_own_is_brought_onto_that_of_the_first(tmp_path):
    """Linear in the world, so that interpolation is exact wherever the second channel has voxels on both sides."""

    def ramp(shape, affine):
        world = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        return (500 + world @ [3.0, -2.0, 1.0]).astype(np.float32)

    other = np.array([[0, 0.8, 0, 24.0], [-2.0, 0, 0, 19.0], [0, 0, 2.5, -44.0], [0, 0, 0, 1.0]])
    images = [stored(tmp_path, "a", body()), stored(tmp_path, "b", ramp((10, 12, 12), other), other)]
    found = read_case(apart(images), LABELS)
    assert found.image.shape == (2, *SHAPE)
    np.testing.assert_array_equal(found.image[0], body())
    np.testing.assert_array_equal(found.grid.affine, AFFINE)
    np.testing.assert_allclose(found.image[1], ramp(SHAPE, AFFINE), rtol=1e-5)


def test_a_channel_that_covers_less_is_0_where_it_does_not_reach(tmp_path):
    half = body()[:6]
    found = read_case(apart([stored(tmp_path, "a", body()), stored(tmp_path, "b", half)]), LABELS)
    np.testing.assert_allclose(found.image[1, :6], half, atol=1e-3)
    assert not found.image[1, 7:].any()


def test_a_channel_on_the_same_grid_is_not_interpolated(tmp_path):
    images = [stored(tmp_path, "a", body()), stored(tmp_path, "b", body() * 3, moved(0.004))]
    np.testing.assert_array_equal(read_case(apart(images), LABELS).image[1], body() * 3)


def test_channels_that_do_not_meet_are_refused_with_the_distance(tmp_path):
    images = [stored(tmp_path, "a", body()), stored(tmp_path, "b", body(), moved(500))]
    with pytest.raises(GeometryError, match=r"lie apart: origin"):
        read_case(apart(images), LABELS)


def test_the_label_must_lie_on_the_grid_of_the_first_channel_though_channels_differ(tmp_path):
    label = np.zeros((11, 10, 8), np.uint8)
    second = stored(tmp_path, "b", body()[:-1])
    known = Case(
        "c1", "p1", "training", (stored(tmp_path, "a", body()), second), stored(tmp_path, "l", label), (),
        resample_channels=True,
    )  # fmt: skip
    with pytest.raises(GeometryError, match="label and image grids differ: shape"):
        read_case(known, LABELS)
