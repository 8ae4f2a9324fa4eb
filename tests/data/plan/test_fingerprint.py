"""What is measured of a dataset, against answers worked out by hand or voxel by voxel."""

import itertools
import json

import numpy as np
import pytest

from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.data.plan.fingerprint import (
    LEAST_SHELL_VOXELS,
    PERCENTILES,
    SHELL_MM,
    find_body,
    measure_case,
    measure_dataset,
    summarize,
    write_fingerprint,
)
from medfocal.errors import DatasetError
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)
SPACING_MM = (0.5, 1.0, 3.0)
#: First axis to the left, second to the front, third upwards; off centre.
AFFINE = np.array([[-0.5, 0, 0, 40], [0, 1, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]], float)
#: The same spacings along S, L and P.
TURNED = np.array([[0, -1, 0, 40], [0, 0, -3, 30], [0.5, 0, 0, 7], [0, 0, 0, 1]], float)
SCHEME = LabelScheme({0: "background", 1: "lesion"})
TWO = LabelScheme({0: "background", 1: "plaque", 2: "bleed", 3: "never seen"})


@pytest.fixture
def image():
    """Head of noise around 100, with air of exactly 0 in the first two planes along each axis."""
    image = np.random.default_rng(5).normal(100, 10, SHAPE).astype(np.float32)
    image[:2], image[:, :2], image[:, :, :2] = 0, 0, 0
    return image


@pytest.fixture
def label():
    """A lesion of 2 x 3 x 1 voxels, one of a single voxel, and 26-connected to neither a third of two."""
    label = np.zeros(SHAPE, np.uint8)
    label[4:6, 4:7, 4] = 1
    label[8, 6, 4] = 1
    label[10:12, 8, 7] = 1
    return label


class Files:
    """Writes volumes into a folder and makes cases of them."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, array, affine=AFFINE):
        path = self.folder / f"{name}.nii.gz"
        write_volume(path, Volume(array, affine))
        return path

    def case(self, images, label=None, *, readers=(), affine=AFFINE, name="s1", patient="p1", split="training"):
        return Case(
            name,
            patient,
            split,
            tuple(self.write(f"{name}_image{n}", image, affine) for n, image in enumerate(images)),
            None if label is None else self.write(f"{name}_label", label, affine),
            tuple(self.write(f"{name}_reader{n}", reader, affine) for n, reader in enumerate(readers)),
        )


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def manifest_of(cases, *, channels=("FLAIR",), scheme=SCHEME):
    return Manifest(cases[0].files[0].parent / "dataset.json", "hand-made", channels, scheme, tuple(cases))


def test_the_grid_is_that_of_the_file(files, image, label):
    found = measure_case(files.case([image], label), SCHEME)
    assert (found.shape, found.orientation) == (SHAPE, "LAS")
    assert found.spacing_mm == pytest.approx(SPACING_MM)
    assert found.along("RAS", found.shape) == SHAPE


def test_axes_are_told_by_where_they_run(files, image, label):
    found = measure_case(files.case([image], label, affine=TURNED), SCHEME)
    assert found.orientation == "SLP"
    assert found.along("RAS", found.shape) == (10, 8, 12)
    assert found.along("RAS", found.spacing_mm) == pytest.approx((1, 3, 0.5))
    assert found.along("IPL", found.shape) == (12, 8, 10)


def test_lesions_are_counted_and_sized(files, image, label):
    found = measure_case(files.case([image], label), SCHEME)
    assert [lesion.num_voxels for lesion in found.lesions] == [6, 1, 2]
    assert [lesion.volume_mm3 for lesion in found.lesions] == pytest.approx([9, 1.5, 3])
    assert found.lesions[0].diameter_mm == pytest.approx((6 * 9 / np.pi) ** (1 / 3))
    assert found.lesions[0].extent_mm == pytest.approx((1, 3, 3))
    assert found.class_voxels == {1: 9}
    assert found.lesion_share == 9 / (12 * 10 * 8)


def test_the_extent_of_a_lesion_is_along_r_a_and_s(files, image, label):
    found = measure_case(files.case([image], label, affine=TURNED), SCHEME)
    assert found.lesions[0].extent_mm == pytest.approx((3, 3, 1))


def brute_contrast(image, label, body, lesion, spacing_mm):
    """Voxel by voxel: within 3 mm of a voxel of the lesion, or sharing a face with one."""
    inside = np.argwhere(lesion)
    shell = []
    for index in itertools.product(*map(range, image.shape)):
        if label[index] or not body[index]:
            continue
        steps = np.abs(inside - np.array(index))
        away_mm = np.sqrt(((steps * np.array(spacing_mm)) ** 2).sum(axis=1))
        if away_mm.min() <= SHELL_MM or steps.sum(axis=1).min() == 1:
            shell.append(image[index])
    values = np.array(shell, float)
    return (image[lesion].astype(float).mean() - values.mean()) / values.std()


@pytest.mark.parametrize("affine", [AFFINE, TURNED, np.diag([0.5, 1, 5, 1])], ids=["LAS", "SLP", "thick"])
def test_contrast_is_to_the_tissue_around_that_is_no_lesion(files, image, label, affine):
    image[label > 0] += 35
    found = measure_case(files.case([image, -2 * image], label, affine=affine), SCHEME)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    for number, box in enumerate([np.s_[4:6, 4:7, 4], np.s_[8, 6, 4], np.s_[10:12, 8, 7]]):
        lesion = np.zeros(SHAPE, bool)
        lesion[box] = True
        wanted = brute_contrast(image, label, image != 0, lesion, spacing_mm)
        assert found.lesions[number].contrast == pytest.approx((wanted, -wanted), rel=1e-6)


def test_contrast_is_undefined_where_the_shell_has_no_spread(files, image, label):
    flat = np.where(label > 0, 5, 1).astype(np.float32)
    flat[0, 0, 0] = 0
    found = measure_case(files.case([image, flat], label), SCHEME)
    assert found.lesions[0].contrast[0] is not None
    assert found.lesions[0].contrast[1] is None


def test_contrast_is_undefined_where_the_shell_is_too_small(files, label):
    lonely = np.zeros(SHAPE, np.float32)
    lonely[4:6, 4:7, 4] = 9  # the body is the lesion and a few voxels more
    lonely[4:6, 4:7, 5] = np.arange(6).reshape(2, 3) + 1
    assert LEAST_SHELL_VOXELS > 6
    found = measure_case(files.case([lonely], label), SCHEME)
    assert found.lesions[0].contrast == (None,)


def test_intensities_are_those_inside_the_body_and_inside_lesions(files, image, label):
    second = image * 3 + 7 * (image != 0)
    found = measure_case(files.case([image, second], label), SCHEME)
    body, lesion = image != 0, label > 0
    for channel, values in zip(found.channels, (image, second), strict=True):
        assert channel.body == pytest.approx(np.percentile(values[body], PERCENTILES), rel=1e-5)
        assert channel.lesions == pytest.approx(np.percentile(values[lesion], PERCENTILES), rel=1e-5)
        assert (channel.lowest, channel.highest) == (values.min(), values.max())
        assert channel.zero_share == np.mean(values == 0)
        assert not channel.is_integral
        assert not channel.is_hounsfield
    assert found.body_share == body.mean()
    assert found.body_shape == (10, 8, 6)


def test_lesion_voxels_that_clipping_would_change_are_counted(files, image, label):
    image[4:6, 4:6, 4] = 1000  # 4 of the 9; the 5 voxels above percentile 99.5 are these and the next
    image[10:12, 8, 7] = -300  # 2 of the 9, below percentile 0.5, which is the air
    found = measure_case(files.case([image], label), SCHEME)
    low, high = np.percentile(image, (0.5, 99.5))
    assert found.channels[0].clipped_lesion_share == np.mean([not low <= value <= high for value in image[label > 0]])
    assert found.channels[0].clipped_lesion_share >= 6 / 9


def test_a_ct_is_known_by_its_air_and_its_body_is_what_is_denser(files, label):
    ct = np.full(SHAPE, -1000, np.float32)
    ct[3:9, 2:8, 1:7] = 40
    ct[4, 4, 4] = -800  # a lung, which is air
    found = measure_case(files.case([ct], label), SCHEME)
    assert found.channels[0].is_hounsfield
    assert found.body_share == (6**3 - 1) / (12 * 10 * 8)
    assert found.body_shape == (6, 6, 6)


def test_scaled_values_below_zero_are_no_ct(files, label):
    scaled = np.random.default_rng(1).normal(0, 300, SHAPE).astype(np.float32)
    found = measure_case(files.case([scaled], label), SCHEME)
    assert not found.channels[0].is_hounsfield


def test_a_body_without_zeros_is_what_is_above_the_lowest():
    image = np.full((1, *SHAPE), 3.0, np.float32)
    image[0, 5, 5, 5] = 4
    assert np.argwhere(find_body(image)).tolist() == [[5, 5, 5]]


def test_a_body_is_everything_where_none_is_found():
    assert find_body(np.full((1, *SHAPE), -1000, np.float32)).all()


def test_a_case_without_lesions_has_none_and_says_nothing_of_them(files, image):
    found = measure_case(files.case([image], np.zeros(SHAPE, np.uint8)), SCHEME)
    assert (found.lesions, found.class_voxels, found.lesion_share) == ((), {1: 0}, 0)
    assert found.channels[0].lesions is None
    assert found.channels[0].clipped_lesion_share is None


def test_masks_alone_tell_of_grids_and_lesions(files, label):
    found = measure_case(files.case([], label), SCHEME)
    assert [lesion.num_voxels for lesion in found.lesions] == [6, 1, 2]
    assert {lesion.contrast for lesion in found.lesions} == {()}
    assert (found.channels, found.body_share, found.body_shape) == ((), None, SHAPE)


@pytest.mark.parametrize("with_image", [True, False])
def test_without_a_label_counts_what_most_readers_marked(files, image, label, with_image):
    more, other = label.copy(), np.zeros_like(label)
    more[2, 2, 2] = 1
    other[8, 6, 4] = 1
    found = measure_case(files.case([image] * with_image, readers=[label, more, other]), SCHEME)
    assert [lesion.num_voxels for lesion in found.lesions] == [6, 1, 2]
    found = measure_case(files.case([image] * with_image, readers=[label, other], name="s2"), SCHEME)
    assert [lesion.num_voxels for lesion in found.lesions] == [1], "of two readers both are needed"


def test_a_label_counts_where_there_are_readers_too(files, image, label):
    found = measure_case(files.case([image], label, readers=[np.zeros_like(label)] * 3), SCHEME)
    assert len(found.lesions) == 3


def test_classes_are_counted_apart_and_lesions_together(files, image, label):
    label[5, 4:7, 4] = 2
    found = measure_case(files.case([image], label), TWO)
    assert found.class_voxels == {1: 6, 2: 3, 3: 0}
    assert len(found.lesions) == 3


def test_regions_are_what_is_learnt_and_share_voxels_that_count_once_as_lesion(files, image, label, tmp_path):
    label[5, 4:7, 4] = 2
    scheme = LabelScheme(TWO.names, regions={"whole": (1, 2), "core": (2,)})
    found = measure_dataset(manifest_of([files.case([image], label)], scheme=scheme))
    assert found.labels == {0: "background", 1: "whole", 2: "core"}
    assert found.label_voxels == {"whole": 9, "core": 3}
    assert found.lesion_share == 9 / 960
    write_fingerprint(tmp_path / "fingerprint.json", found)
    content = json.loads((tmp_path / "fingerprint.json").read_text("utf-8"))
    assert content["regions"] == {"whole": [1, 2], "core": [2]}
    assert content["summary"]["label_voxels"] == {"whole": 9, "core": 3}


@pytest.mark.parametrize("with_image", [True, False])
def test_it_is_known_whether_a_label_or_readers_were_measured(files, image, label, with_image):
    images = [image] * with_image
    assert measure_case(files.case(images, label, readers=[label]), SCHEME).has_label
    assert not measure_case(files.case(images, readers=[label], name="s2"), SCHEME).has_label


@pytest.mark.parametrize("with_image", [True, False])
def test_values_of_a_file_are_translated_and_what_nobody_judged_is_no_lesion(files, image, label, with_image):
    label[label > 0] = 255
    label[2, 2, 2] = 9
    scheme = LabelScheme({0: "background", 1: "lesion"}, values={0: 0, 255: 1}, ignore_value=9)
    found = measure_case(files.case([image] * with_image, label), scheme)
    assert found.class_voxels == {1: 9}


def test_test_cases_are_not_looked_at(files, image, label):
    cases = [files.case([image], label), files.case([image], label, name="s2", patient="p2", split="test")]
    for path in cases[1].files:
        path.unlink()
    found = measure_dataset(manifest_of(cases))
    assert [case.case for case in found.cases] == ["s1"]


def test_every_case_that_cannot_be_read_is_named(files, image, label):
    cases = [files.case([image], label, name=f"s{n}", patient=f"p{n}") for n in range(3)]
    cases[0].label.write_bytes(b"no gzip")
    cases[2].images[0].unlink()
    with pytest.raises(DatasetError, match=r"2 of 3 cases.*(?s:.)*case 's0'.*(?s:.)*case 's2'"):
        measure_dataset(manifest_of(cases))


def test_masks_that_cannot_be_read_are_named(files, label):
    cases = [files.case([], label, name="s0"), files.case([], readers=[label], name="s1")]
    for case in cases:
        case.files[0].write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=r"2 of 2 cases.*(?s:.)*case 's0'.*(?s:.)*case 's1'"):
        measure_dataset(manifest_of(cases, channels=()))


def test_a_dataset_with_nothing_to_measure_is_refused(files, image, label):
    with pytest.raises(DatasetError, match="no training or validation case"):
        measure_dataset(manifest_of([files.case([image], label, split="test")]))


def test_processes_do_not_change_what_is_found(files, image, label):
    cases = [files.case([image + n], label, name=f"s{n}", patient=f"p{n}") for n in range(3)]
    assert measure_dataset(manifest_of(cases), workers=2) == measure_dataset(manifest_of(cases), workers=1)


def test_the_summary_counts_over_all_cases(files, image, label):
    none = np.zeros_like(label)
    cases = [files.case([image], label), files.case([image], none, name="s2", split="validation")]
    cases.append(files.case([image], none, name="s3", patient="p3", readers=[none] * 2))
    found = measure_dataset(manifest_of(cases))
    summary = summarize(found)
    wanted = {"num_cases": 3, "num_patients": 2, "num_free_cases": 2, "num_lesions": 3, "num_one_voxel_lesions": 1}
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["lesion_share_of_voxels"] == 9 / (3 * 960)
    assert summary["lesion_share_of_cases_with_lesions"] == {"p0": 9 / 960, "p50": 9 / 960, "p100": 9 / 960}
    assert summary["lesion_volume_mm3"] == pytest.approx({"p10": 1.8, "p50": 3, "p90": 7.8})
    assert summary["label_voxels"] == {"lesion": 9}
    assert (found.num_readers, found.num_free_cases) == (2, 2)
    assert found.patients_with_lesions == {"p1"}
    contrasts = [lesion.contrast[0] for lesion in found.lesions if lesion.contrast[0] is not None]
    assert summary["lesion_contrast"]["FLAIR"]["p50"] == pytest.approx(np.median(contrasts))


def test_the_file_holds_every_case_and_lesion(files, image, label, tmp_path):
    found = measure_dataset(manifest_of([files.case([image], label)]))
    write_fingerprint(tmp_path / "fingerprint.json", found)
    content = json.loads((tmp_path / "fingerprint.json").read_text("utf-8"))
    (case,) = content["cases"]
    assert (case["case"], case["shape"], case["orientation"]) == ("s1", [12, 10, 8], "LAS")
    assert [lesion["num_voxels"] for lesion in case["lesions"]] == [6, 1, 2]
    assert len(case["channels"][0]["body"]) == len(content["percentiles"])


def test_the_file_of_masks_without_lesions_is_json(files, tmp_path):
    found = measure_dataset(manifest_of([files.case([], np.zeros(SHAPE, np.uint8))], channels=()))
    write_fingerprint(tmp_path / "fingerprint.json", found)
    summary = json.loads((tmp_path / "fingerprint.json").read_text("utf-8"))["summary"]
    assert (summary["lesion_volume_mm3"], summary["lesion_contrast"]) == (None, {})
