"""The sample data are what make.py writes, and the README says what they hold."""

import importlib.util
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

ROOT = Path(__file__).parents[2] / "data_samples"
SPLITS = ("training", "validation", "test")
NEIGHBOURS = np.ones((3, 3, 3))


def entries(name):
    content = json.loads((ROOT / name / "dataset.json").read_text("utf-8"))
    return [(split, entry) for split in SPLITS for entry in content[split]]


def images_of(entry):
    return entry["image"] if isinstance(entry["image"], list) else [entry["image"]]


def files_of(entry):
    return [*images_of(entry), entry["label"], *entry["annotations"]]


def mask(name, file):
    return np.asarray(nibabel.load(ROOT / name / file).dataobj) > 0


ALL = [(name, split, entry) for name in ("brain", "two_channel") for split, entry in entries(name)]
CASES = [pytest.param(name, split, entry, id=f"{name}-{entry['case']}") for name, split, entry in ALL]


def readme_rows():
    """Cells by case, out of the table of right answers."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "/case_" in line]
    return {row[0]: row[1:] for row in rows}


def test_making_the_data_again_gives_the_same_voxels_headers_and_readme(tmp_path):
    spec = importlib.util.spec_from_file_location("data_samples_make", ROOT / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.main(tmp_path)
    kept, made = (
        sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix in {".gz", ".json", ".md"})
        for root in (ROOT, tmp_path)
    )
    assert kept == made
    for name in kept:
        if name.suffix != ".gz":
            assert (ROOT / name).read_bytes() == (tmp_path / name).read_bytes(), name
            continue
        old, new = nibabel.load(ROOT / name), nibabel.load(tmp_path / name)
        assert old.header.binaryblock == new.header.binaryblock, name
        assert np.array_equal(old.dataobj.get_unscaled(), new.dataobj.get_unscaled()), name


def test_the_readme_has_a_row_for_each_case_and_no_other():
    assert list(readme_rows()) == sorted(f"{name}/{entry['case']}" for name, _, entry in ALL)


@pytest.mark.parametrize(("name", "split", "entry"), CASES)
def test_the_readme_agrees_with_the_files(name, split, entry):
    row = readme_rows()[f"{name}/{entry['case']}"]
    reference = mask(name, entry["label"])
    steps = nibabel.load(ROOT / name / entry["label"]).header.get_zooms()
    lesions, num_lesions = ndimage.label(reference, NEIGHBOURS)
    voxels = sorted((int(np.count_nonzero(lesions == number + 1)) for number in range(num_lesions)), reverse=True)
    volumes = [count * float(np.prod(steps)) / 1000 for count in voxels]
    diameters = [2 * (3 * 1000 * volume / (4 * np.pi)) ** (1 / 3) for volume in volumes]
    errors = []
    for file in entry["annotations"]:
        marks = mask(name, file)
        drawn, num_drawn = ndimage.label(marks, NEIGHBOURS)
        missed = sum(not marks[lesions == number + 1].any() for number in range(num_lesions))
        spurious = sum(not reference[drawn == number + 1].any() for number in range(num_drawn))
        errors.append(f"{missed} / {spurious}")
    assert row[:2] == [split, entry["patient"]]
    assert row[3] == f"{np.count_nonzero(reference) / reference.size:.2e}"
    assert row[4] == str(num_lesions)
    assert row[5] == ", ".join(f"{volume:.4f}" for volume in volumes)
    assert row[6] == ", ".join(f"{diameter:.2f}" for diameter in diameters)
    assert row[7:] == errors


def test_splits_have_the_sizes_and_the_lesion_free_cases_that_were_asked_for():
    sizes = {
        split: [entry for _, entry in group] for split, group in itertools.groupby(entries("brain"), lambda x: x[0])
    }
    free = {split: sum(not mask("brain", entry["label"]).any() for entry in group) for split, group in sizes.items()}
    assert {split: len(group) for split, group in sizes.items()} == {"training": 18, "validation": 6, "test": 12}
    assert free == {"training": 3, "validation": 1, "test": 2}
    assert [split for split, _ in entries("two_channel")] == ["training"] * 3 + ["validation"] + ["test"] * 2


def test_no_patient_is_in_two_splits_though_some_have_two_studies():
    homes = {}
    for split, entry in entries("brain"):
        homes.setdefault(entry["patient"], []).append(split)
    assert len(homes) == 30
    assert sum(len(splits) == 2 for splits in homes.values()) == 6
    assert all(len(set(splits)) == 1 for splits in homes.values())


def test_lesions_make_one_to_six_in_ten_thousand_voxels_where_there_are_any():
    masks = [mask("brain", entry["label"]) for _, entry in entries("brain")]
    shares = [reference.mean() for reference in masks if reference.any()]
    assert len(shares) == 30
    assert min(shares) >= 1e-4
    assert max(shares) <= 6e-4
    assert all(1 <= ndimage.label(reference, NEIGHBOURS)[1] <= 5 for reference in masks if reference.any())


@pytest.mark.parametrize(("name", "entry"), [(name, entry) for name, _, entry in ALL])
def test_all_files_of_a_case_lie_on_one_grid(name, entry):
    first, *others = (nibabel.load(ROOT / name / file) for file in files_of(entry))
    for other in others:
        assert other.shape == first.shape
        # The one image that has its qform only is rounded by its quaternion.
        assert np.allclose(other.affine, first.affine, atol=1e-4)
    assert np.linalg.norm(first.affine[:3, :3], axis=0) == pytest.approx((1, 1, 1.5), abs=1e-5)
    assert first.header.get_xyzt_units()[0] == "mm"


def test_a_third_of_the_grids_are_oblique_by_5_to_20_degrees_and_some_axes_point_left_or_to_the_back():
    affines = [nibabel.load(ROOT / "brain" / entry["label"]).affine for _, entry in entries("brain")]
    angles = []
    for affine in affines:
        turned = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) @ np.diag(np.sign(np.diag(affine)[:3]))
        angles.append(np.rad2deg(np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1))))
    oblique = [angle for angle in angles if angle > 1]
    assert len(oblique) == 12
    assert min(oblique) >= 5 - 1e-3
    assert max(oblique) <= 20 + 1e-3
    codes = {"".join(nibabel.aff2axcodes(affine)) for affine in affines}
    assert codes == {"RAS", "LAS", "LPS"}


@pytest.mark.parametrize("name", ["brain", "two_channel"])
def test_one_image_of_a_set_has_its_geometry_in_the_qform_only(name):
    headers = [nibabel.load(ROOT / name / file).header for _, entry in entries(name) for file in files_of(entry)]
    assert all(int(header["qform_code"]) == 1 for header in headers)
    assert sorted(int(header["sform_code"]) for header in headers) == [0] + [1] * (len(headers) - 1)


def test_images_are_int16_with_a_slope_and_some_with_an_intercept():
    images = [nibabel.load(ROOT / name / file) for name, _, entry in ALL for file in images_of(entry)]
    assert all(image.get_data_dtype() == np.int16 for image in images)
    assert all(image.dataobj.slope != 1 for image in images)
    with_intercept = sum(image.dataobj.inter != 0 for image in images)
    assert 0 < with_intercept < len(images)
    # Air is exactly 0 all the same, and nothing is below.
    assert all(image.get_fdata().min() == 0 == image.get_fdata()[0, 0, 0] for image in images)


def test_readers_differ_from_the_reference_and_from_each_other_wherever_there_are_lesions():
    for name, _, entry in ALL:
        reference, one, two = (mask(name, file) for file in (entry["label"], *entry["annotations"]))
        if reference.any():
            assert not np.array_equal(reference, one)
            assert not np.array_equal(reference, two)
            assert not np.array_equal(one, two)


def test_each_reader_misses_more_small_lesions_than_large_ones():
    small, large = [], []
    for name, _, entry in ALL:
        lesions, num_lesions = ndimage.label(mask(name, entry["label"]), NEIGHBOURS)
        for file, number in itertools.product(entry["annotations"], range(1, num_lesions + 1)):
            lesion = lesions == number
            # 15 voxels of 1.5 mm3: a diameter of 3.5 mm.
            (large if lesion.sum() > 15 else small).append(not mask(name, file)[lesion].any())
    assert np.mean(small) > np.mean(large) > 0


def test_lesions_are_bright_on_flair_and_dark_on_t1():
    ratios = []
    for _, entry in entries("two_channel"):
        lesion = mask("two_channel", entry["label"])
        if not lesion.any():
            continue
        around = ndimage.binary_dilation(lesion, iterations=4) & ~ndimage.binary_dilation(lesion, iterations=2)
        values = [nibabel.load(ROOT / "two_channel" / file).get_fdata() for file in entry["image"]]
        ratios.append([value[lesion].mean() / np.median(value[around]) for value in values])
    flair, t1 = np.mean(ratios, axis=0)
    assert flair > 1.1
    assert t1 < 0.9


def test_the_data_stay_small():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 12e6
