"""Phantoms: what is promised about splits, geometry, lesions, lookalikes and readers."""

import itertools
import math

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medfocal.data.phantom import LOOKS, make_phantom, plan_cases, write_phantoms

# Unequal axes; the field spans 44 x 48 x 54 mm.
SHAPE = (44, 40, 27)
SPACING_MM = (1.0, 1.2, 2.0)
DEFAULTS = {"prevalence": 3e-4, "shape": (64, 64, 48), "spacing_mm": (1.0, 1.0, 1.5), "channels": ("FLAIR",)}
SMALL = {"prevalence": 1e-3, "shape": SHAPE, "spacing_mm": SPACING_MM, "channels": ("FLAIR",)}


def draw(number, *, seed=3, **arguments):
    return make_phantom(plan_cases(18, seed=seed, lesion_free_share=0)[number], seed=seed, **arguments)


@pytest.fixture(scope="module")
def default_phantoms():
    return [draw(number, **DEFAULTS) for number in range(6)]


@pytest.fixture(scope="module")
def small_phantoms():
    return [draw(number, **SMALL) for number in range(12)]


def values(image):
    return image.stored * np.float64(image.slope) + image.inter


@pytest.mark.parametrize(("num_cases", "sizes"), [(36, (18, 6, 12)), (6, (3, 1, 2)), (3, (1, 1, 1))])
def test_splits_are_half_a_sixth_and_a_third(num_cases, sizes):
    splits = [plan.split for plan in plan_cases(num_cases, seed=1, lesion_free_share=0)]
    assert tuple(splits.count(name) for name in ("training", "validation", "test")) == sizes


@pytest.mark.parametrize("num_cases", [3, 7, 12, 36, 100])
def test_no_patient_is_in_two_splits(num_cases):
    plans = plan_cases(num_cases, seed=1, lesion_free_share=0)
    for _, group in itertools.groupby(sorted(plans, key=lambda plan: plan.patient), key=lambda plan: plan.patient):
        assert len({plan.split for plan in group}) == 1


def test_36_cases_come_from_30_patients():
    assert len({plan.patient for plan in plan_cases(36, seed=1, lesion_free_share=0)}) == 30


@pytest.mark.parametrize(
    ("share", "counts"), [(1 / 6, (3, 1, 2)), (0, (0, 0, 0)), (0.5, (9, 3, 6)), (33 / 36, (17, 5, 11))]
)
def test_lesion_free_cases_are_exact_and_spread_over_the_splits(share, counts):
    plans = plan_cases(36, seed=1, lesion_free_share=share)
    free = [plan.split for plan in plans if not plan.has_lesions]
    assert tuple(free.count(name) for name in ("training", "validation", "test")) == counts


def test_a_third_of_the_grids_are_oblique_and_some_axes_are_flipped():
    plans = plan_cases(36, seed=1, lesion_free_share=0)
    assert sum(plan.oblique for plan in plans) == 12
    assert {plan.axis_codes for plan in plans} == {"RAS", "LAS", "LPS"}
    assert [plan.oblique for plan in plans if plan.qform_only] == [True]


def test_default_lesions_keep_number_radii_and_share(default_phantoms):
    for phantom in default_phantoms:
        assert 1 <= len(phantom.lesions.radii_mm) <= 5
        assert phantom.lesions.radii_mm.min() >= 1 - 1e-9
        assert phantom.lesions.radii_mm.max() <= 3.5 + 1e-9
        assert 1e-4 <= phantom.label.mean() <= 6e-4


@pytest.mark.parametrize("prevalence", [1e-2, 1e-5])
def test_other_prevalences_are_kept_within_a_third_and_twice(prevalence):
    arguments = DEFAULTS | {"prevalence": prevalence}
    shares = [draw(number, **arguments).label.mean() for number in range(3)]
    assert all(prevalence / 3 <= share <= 2 * prevalence for share in shares)


def test_each_lesion_is_one_part_of_the_label(small_phantoms):
    for phantom in small_phantoms:
        _, number = ndimage.label(phantom.label, np.ones((3, 3, 3)))
        assert number == len(phantom.lesions.radii_mm)


def test_lesions_are_three_mm_apart(default_phantoms):
    """A voxel is marked where half covered, so that centres of marked voxels lie inside the surfaces."""
    for phantom in default_phantoms:
        numbers = phantom.lesions.numbers
        for number in range(1, numbers.max() + 1):
            far = ndimage.distance_transform_edt(numbers != number, sampling=DEFAULTS["spacing_mm"])
            others = (numbers > 0) & (numbers != number)
            assert not others.any() or far[others].min() >= 3


def test_lesion_volume_agrees_with_its_radius(default_phantoms):
    """Drawn and marked volumes differ by the boundary's rounding: a few voxels of 1.5 mm3 each way."""
    for phantom in default_phantoms:
        drawn = 4 / 3 * math.pi * np.sum(phantom.lesions.radii_mm**3)
        assert phantom.label.sum() * 1.5 == pytest.approx(drawn, rel=0.25)


def test_full_coverage_adds_the_contrast_and_partial_coverage_less(default_phantoms):
    for phantom in default_phantoms:
        lesions = phantom.lesions
        for number, contrast in enumerate(lesions.contrasts, start=1):
            added = lesions.added[lesions.numbers == number]
            assert 0.2 <= contrast <= 0.5
            assert added.max() <= contrast + 1e-12
            assert len(added) == 1 or added.min() >= contrast / 2 - 1e-12
        # Voxels covered by less than a half hold lesion too, but are not marked.
        assert lesions.added[(lesions.added > 0) & (lesions.numbers == 0)].size


def test_every_lesion_is_brighter_than_what_lies_around_it(default_phantoms):
    """Contrast to noise is 3.5 at least in a filled voxel: of the best voxels of a lesion, the mean must stand out."""
    for phantom in default_phantoms:
        image = values(phantom.images[0])
        for number in range(1, len(phantom.lesions.radii_mm) + 1):
            lesion = phantom.lesions.numbers == number
            near = ndimage.binary_dilation(lesion, iterations=4)
            around = near & ~ndimage.binary_dilation(lesion, iterations=2)
            assert image[lesion].mean() > 1.08 * np.median(image[around])


def test_lesions_are_dark_on_the_second_channel():
    phantom = draw(1, **(SMALL | {"channels": ("FLAIR", "T1"), "prevalence": 3e-3}))
    lesion = phantom.lesions.numbers > 0
    around = ndimage.binary_dilation(lesion, iterations=4) & ~ndimage.binary_dilation(lesion, iterations=2)
    bright, dark = (values(image)[lesion].mean() / np.median(values(image)[around]) for image in phantom.images)
    assert bright > 1.05
    assert dark < 0.95


def test_air_is_exactly_zero_and_the_body_is_not(small_phantoms):
    for phantom in small_phantoms:
        image = values(phantom.images[0])
        body = image != 0
        _, parts = ndimage.label(body)
        assert parts == 1
        assert np.array_equal(ndimage.binary_fill_holes(body), body)
        assert image.min() == 0
        assert 0.2 < body.mean() < 0.6
        assert body[phantom.label > 0].all()


def test_bright_voxels_that_are_no_lesion_exist_in_every_case(small_phantoms):
    """Lookalikes: away from lesions, 20 voxels of the inner brain stand out by more than .2 of its median."""
    for phantom in small_phantoms:
        image = values(phantom.images[0])
        depth = ndimage.distance_transform_edt(image != 0, sampling=SPACING_MM)
        inner = (depth > 7) & ~ndimage.binary_dilation(phantom.label > 0, iterations=3)
        assert np.count_nonzero(image[inner] > 1.2 * np.median(image[inner])) >= 20


def test_a_case_depends_on_seed_and_number_only():
    first, again, other = draw(2, **SMALL), draw(2, **SMALL), draw(2, seed=4, **SMALL)
    assert np.array_equal(first.images[0].stored, again.images[0].stored)
    assert np.array_equal(first.annotations[1], again.annotations[1])
    assert not np.array_equal(first.images[0].stored, other.images[0].stored)


def test_two_studies_of_a_patient_share_the_head_but_not_the_lesions():
    plans = plan_cases(18, seed=3, lesion_free_share=0)
    one, two = next(pair for pair in itertools.pairwise(plans) if pair[0].patient == pair[1].patient)
    first, second = (make_phantom(plan, seed=3, **SMALL) for plan in (one, two))
    sizes = [np.count_nonzero(values(phantom.images[0])) for phantom in (first, second)]
    # The grids cut the same ellipsoid at other places.
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert len(first.lesions.radii_mm) != len(second.lesions.radii_mm) or not np.allclose(
        first.lesions.radii_mm, second.lesions.radii_mm
    )


def test_readers_err_in_every_way_and_differently(small_phantoms):
    missed, spurious, found, identical = [0, 0], [0, 0], 0, 0
    for phantom in small_phantoms:
        identical += np.array_equal(*phantom.annotations)
        for reader, marks in enumerate(phantom.annotations):
            lesions, num_lesions = ndimage.label(phantom.label, np.ones((3, 3, 3)))
            drawn, num_drawn = ndimage.label(marks, np.ones((3, 3, 3)))
            touched = len(np.unique(lesions[(lesions > 0) & (marks > 0)]))
            missed[reader] += num_lesions - touched
            spurious[reader] += num_drawn - len(np.unique(drawn[(drawn > 0) & (lesions > 0)]))
            found += touched
    assert identical == 0
    assert min(missed) > 0
    assert min(spurious) > 0
    assert found > sum(missed)


def test_written_files_are_the_same_bytes_each_time(tmp_path):
    arguments = {"num_cases": 3, "seed": 9, "prevalence": 1e-3, "shape": SHAPE, "spacing_mm": SPACING_MM}
    once, twice = (write_phantoms(tmp_path / name, **arguments).parent for name in ("once", "twice"))
    names = sorted(path.relative_to(once) for path in once.rglob("*") if path.is_file())
    # 3 images, 3 labels, 6 annotations and dataset.json.
    assert len(names) == 13
    for name in names:
        assert (once / name).read_bytes() == (twice / name).read_bytes()


def test_stored_slope_and_intercept_give_the_values_back(tmp_path):
    write_phantoms(tmp_path, num_cases=6, seed=9, prevalence=1e-3, shape=SHAPE, spacing_mm=SPACING_MM)
    for plan in plan_cases(6, seed=9, lesion_free_share=1 / 6):
        file = nibabel.load(tmp_path / "images" / f"{plan.case}.nii.gz")
        phantom = make_phantom(plan, seed=9, **SMALL)
        assert file.get_data_dtype() == np.int16
        assert np.array_equal(file.get_fdata(), values(phantom.images[0]))
        assert np.array_equal(file.affine, phantom.affine) or plan.qform_only
        assert np.allclose(file.affine, phantom.affine, atol=1e-3)
        assert file.header.get_zooms() == pytest.approx(SPACING_MM)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_cases", 2, "num_cases must be at least 3"),
        ("prevalence", 0.5, "prevalence must lie in"),
        ("prevalence", 1e-6, "prevalence must lie in"),
        ("prevalence", float("nan"), "prevalence must lie in"),
        ("lesion_free_share", 1.0, "lesion_free_share must lie in"),
        ("lesion_free_share", -0.1, "lesion_free_share must lie in"),
        ("lesion_free_share", 0.9, "leave each split a case with lesions"),
        ("shape", (20, 40, 32), "the field must span 36 mm"),
        ("shape", (40, 40), "three positive numbers"),
        ("spacing_mm", (1.0, 1.0, 0.0), "three positive numbers"),
        ("spacing_mm", (1.0, 1.0, 5.0), "voxels of at most 3 mm"),
        ("channels", ("PET",), "channels must be different names out of FLAIR, T1"),
        ("channels", ("T1", "T1"), "channels must be different names"),
        ("channels", (), "channels must be different names"),
        ("seed", -1, "seed must be 0 or more"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, argument, value, message):
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "out", **({"num_cases": 6} | {argument: value}))
    assert not (tmp_path / "out").exists()


def test_all_looks_show_lesions():
    assert all(abs(look.lesion) == 1 for look in LOOKS.values())
