"""Stored cases: what keys depend on, what precision costs, and the table of lesions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its own documentation uses
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpies
from scipy import ndimage

from medfocal.annotations.fusion import Fusion
from medfocal.annotations.smoothing import SVLS, NoSmoothing, SoftBoundary
from medfocal.annotations.target import AnnotationSettings, Target
from medfocal.data.cache import Cache
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.stored import (
    Keys,
    Precision,
    body_of,
    find_missing,
    image_key,
    lesion_table,
    open_evaluation,
    open_training,
    reference_key,
    store_image,
    store_reference,
    store_target,
    stored_image,
    target_key,
    training_case,
)
from medfocal.data.transforms import Intensity, PreparedCase, Preprocessing
from medfocal.errors import DatasetError, InputError, ResourceError
from medfocal.files import plain
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 31], [0, -1, 0, 17], [0, 0, 3, -42], [0, 0, 0, 1.0]])
SCHEME = LabelScheme({0: "background", 1: "lesion"})
HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
EVERYWHERE = np.ones((3, 3, 3))
MAJORITY = AnnotationSettings(fusion="majority")


def a_label(*boxes):
    label = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        label[tuple(slice(*side) for side in box)] = 1
    return label


LABEL = a_label(((2, 5), (4, 7), (3, 5)), ((8, 9), (1, 2), (6, 7)))


def write(folder, name, array):
    write_volume(folder / name, Volume(array, AFFINE))
    return folder / name


@pytest.fixture
def case(tmp_path):
    """Two channels, a label and two readers."""
    rng = np.random.default_rng(0)
    images = [rng.normal(100, 10, SHAPE).astype(np.float32) for _ in range(2)]
    arrays = {"a.nii.gz": images[0], "b.nii.gz": images[1], "l.nii.gz": LABEL}
    arrays |= {"r1.nii.gz": LABEL, "r2.nii.gz": a_label(((2, 5), (4, 8), (3, 5)))}
    a, b, label, *readers = (write(tmp_path, name, array) for name, array in arrays.items())
    return Case("c1", "p1", "training", (a, b), label, tuple(readers))


@dataclasses.dataclass(frozen=True)
class Asked:
    """All that keys are made of."""

    case: Case
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    dtype: np.dtype = HALF
    scheme: LabelScheme = SCHEME
    annotations: AnnotationSettings = MAJORITY
    smoothing: object = SVLS(sigma=1.0)
    weight: object = None

    def keys(self):
        image = image_key(self.case, self.preprocessing, self.dtype)
        target = target_key(image, self.case, self.scheme, self.annotations, self.smoothing, self.weight)
        return Keys(image, target, reference_key(self.case, self.scheme, self.annotations.fusion))


def differing(before, **changes):
    """Which keys change with what was asked for."""
    first, second = before.keys(), dataclasses.replace(before, **changes).keys()
    return {name for name in ("image", "target", "reference") if getattr(first, name) != getattr(second, name)}


ALL, TAUGHT = {"image", "target"}, {"target"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"preprocessing": Preprocessing(spacing_mm=(1, 1, 3))}, ALL),
        ({"preprocessing": Preprocessing(orientation="LPS")}, ALL),
        ({"preprocessing": Preprocessing(intensity="none")}, ALL),
        ({"dtype": SINGLE}, ALL),
        ({"annotations": AnnotationSettings(fusion="union")}, {"target", "reference"}),
        ({"annotations": AnnotationSettings(fusion="majority", disagreement="weight")}, TAUGHT),
        ({"annotations": AnnotationSettings(fusion="majority", estimate_smoothing=True)}, set()),
        ({"smoothing": SVLS(sigma=1.5)}, TAUGHT),
        ({"smoothing": SoftBoundary(width_mm=1.0)}, TAUGHT),
        ({"smoothing": NoSmoothing()}, TAUGHT),
        ({"scheme": LabelScheme({0: "background", 1: "lesion", 2: "other"})}, {"target", "reference"}),
        ({"scheme": LabelScheme({0: "b", 1: "l"}, values={0: 0, 255: 1})}, {"target", "reference"}),
        ({"scheme": LabelScheme({0: "b", 1: "l"}, ignore_value=9)}, {"target", "reference"}),
        ({"scheme": LabelScheme({0: "nothing", 1: "tumour"})}, set()),
        ({"scheme": LabelScheme(SCHEME.names, regions={"whole": (1,)})}, set()),
    ],
)
def test_a_key_changes_with_what_its_entry_depends_on_and_with_nothing_else(case, changes, expected):
    assert differing(Asked(case), **changes) == expected


def test_keys_of_a_case_without_a_label_depend_on_the_fusion_of_its_readers(case):
    bare = Asked(dataclasses.replace(case, label=None))
    assert differing(bare, annotations=AnnotationSettings(fusion="union")) == {"target", "reference"}
    assert differing(Asked(case), case=bare.case) == {"target", "reference"}


def test_a_weight_map_changes_what_is_taught(case, tmp_path):
    weights = np.full(SHAPE, 0.5, np.float32)
    known = Asked(case, weight=write(tmp_path, "w.nii.gz", weights))
    assert differing(Asked(case), weight=known.weight) == TAUGHT
    before = known.keys()
    write(tmp_path, "w.nii.gz", weights / 2)
    assert (known.keys().image, known.keys().target == before.target) == (before.image, False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", {"image", "target", "reference"}),
        ("b", {"image", "target"}),
        ("l", {"target", "reference"}),
        ("r1", {"target"}),
        ("r2", {"target"}),
    ],
)
def test_one_other_voxel_in_any_file_is_another_entry(case, tmp_path, name, expected):
    before = Asked(case).keys()
    path = tmp_path / f"{name}.nii.gz"
    volume = nibabel.load(path)
    array = np.asanyarray(volume.dataobj).copy()
    array[3, 5, 4] = 0
    write(tmp_path, path.name, array)
    after = Asked(case).keys()
    assert {key for key in expected | ALL if getattr(before, key) != getattr(after, key)} == expected


def test_readers_who_are_not_asked_do_not_count(case, tmp_path):
    known = Asked(case, annotations=AnnotationSettings())
    before = known.keys()
    write(tmp_path, "r1.nii.gz", 1 - LABEL)
    assert known.keys() == before
    assert differing(known, case=dataclasses.replace(case, annotations=())) == set()


def test_the_order_of_channels_and_of_readers_counts(case):
    assert differing(Asked(case), case=dataclasses.replace(case, images=case.images[::-1])) == {
        "image",
        "target",
        "reference",
    }
    assert differing(Asked(case), case=dataclasses.replace(case, annotations=case.annotations[::-1])) == TAUGHT


def test_names_places_and_times_of_files_do_not_count(case, tmp_path):
    moved = []
    for number, path in enumerate(case.files):
        place = tmp_path / "another folder" / f"ä {number}.nii.gz"
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
        os.utime(place, (0, 0))
        moved.append(place)
    other = Case("c2", "p2", "validation", tuple(moved[:2]), moved[2], tuple(moved[3:]))
    assert differing(Asked(case), case=other) == set()


def test_the_grids_of_channels_count_where_they_may_differ(case):
    assert differing(Asked(case), case=dataclasses.replace(case, resample_channels=True)) == ALL


def _pair(folder, array):
    nibabel.save(nibabel.Nifti1Pair(array, AFFINE), folder / "image.hdr")
    return folder / "image.hdr"


def _pair_by_its_voxels(folder, array):
    return _pair(folder, array).with_suffix(".img")


def _itk(name):
    def make(folder, array):
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return make


def _nrrd(field):
    def make(folder, array):
        (folder / "voxels.raw").write_bytes(array.astype("<f4").tobytes(order="F"))
        header = ["NRRD0004", "# made by hand", "type: float", "dimension: 3", "space: left-posterior-superior"]
        header += ["sizes: 12 10 8", "space directions: (0.5,0,0) (0,1,0) (0,0,3)", "space origin: (0,0,0)"]
        header += ["kinds: domain domain domain", "endian: little", "encoding: raw", f"{field} voxels.raw"]
        (folder / "image.nrrd").write_text("\n".join(header) + "\n\n")
        return folder / "image.nrrd"

    return make


@pytest.mark.parametrize(
    "make",
    [
        *(_pair, _pair_by_its_voxels, _itk("image.mhd"), _itk("image.mha"), _itk("image.nrrd")),
        *(_nrrd("data file:"), _nrrd("datafile:")),
    ],
    ids=["hdr", "img", "mhd", "mha", "nrrd", "nrrd of two files", "nrrd of two files in other words"],
)
def test_voxels_in_a_file_of_their_own_count(tmp_path, make):
    """The file that the dataset names is the same to the byte where its voxels lie elsewhere."""
    array = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    known = Case("c", "c", "training", (make(tmp_path, array),))
    before = image_key(known, Preprocessing(), HALF)
    assert image_key(known, Preprocessing(), HALF) == before
    array[3, 5, 4] += 1
    make(tmp_path, array)
    assert image_key(known, Preprocessing(), HALF) != before


def test_the_grid_of_a_pair_counts_by_whichever_file_it_is_named(tmp_path):
    array = np.ones(SHAPE, np.float32)
    for known in (_pair(tmp_path, array), _pair_by_its_voxels(tmp_path, array)):
        found = Case("c", "c", "training", (known,))
        before = image_key(found, Preprocessing(), HALF)
        nibabel.save(nibabel.Nifti1Pair(array, AFFINE @ np.diag([1, 1, 2, 1])), tmp_path / "image.hdr")
        assert image_key(found, Preprocessing(), HALF) != before
        nibabel.save(nibabel.Nifti1Pair(array, AFFINE), tmp_path / "image.hdr")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.hdr", "a.mhd", "a.nrrd"])
def test_a_file_that_is_gone_names_the_case(tmp_path, name):
    with pytest.raises(InputError, match=r"case 'c1': .*(cannot be read|does not exist)"):
        image_key(Case("c1", "c1", "training", (tmp_path / name,)), Preprocessing(), HALF)


def test_precision_follows_the_intensities_unless_it_is_told():
    assert Precision("auto").dtype(Intensity.ZSCORE_NONZERO) == HALF
    assert Precision("auto").dtype(Intensity.NONE) == SINGLE
    assert Precision("float16").dtype(Intensity.NONE) == HALF
    assert Precision("float32").dtype(Intensity.ZSCORE_NONZERO) == SINGLE


def test_single_precision_is_kept_to_the_bit():
    image = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    stored, _ = stored_image(image, SINGLE)
    assert stored.tobytes() == image.tobytes()


#: Values around what half precision cannot tell apart: near 0, near each other, and near its end.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0001, 0.9999, 1e-9, -1e-9, 6e-8, -6e-8, 2e-5, 65472.0, 65471.9, -65472.0]),
    st.floats(-65472, 65472, width=32),
    st.floats(-1.0078125, -0.9921875, width=32),
)


@settings(max_examples=400, deadline=None)
@given(numpies.arrays(np.float32, st.tuples(st.integers(1, 2), *[st.integers(1, 3)] * 3), elements=VALUES))
def test_half_precision_keeps_the_body_and_three_digits(image):
    """Rounding is by 2^-11 of a value at most (2^-25 near 0), and 2^-10 more where the body would be lost."""
    body = body_of(*stored_image(image, np.dtype(np.float32)))
    half, background = stored_image(image, HALF)
    assert half.dtype == np.float16
    assert np.isfinite(half).all()
    assert np.array_equal(body_of(half, background), body)
    allowed = np.maximum(np.abs(image) * 2.0**-11, 2.0**-25)
    rounded = image.astype(np.float16)
    moved = half != rounded
    assert (np.abs(half.astype(np.float64) - image) <= np.where(moved, 3, 1) * allowed).all()
    assert not moved[1:].any()
    assert (rounded[:, moved[0]] == background.astype(np.float16)[:, None]).all()


@pytest.mark.parametrize("value", [65473.0, 65520.0, 1e6, -70000.0])
def test_what_half_precision_cannot_hold_is_refused(value):
    image = np.zeros((1, *SHAPE), np.float32)
    image[0, 1, 2, 3] = value
    with pytest.raises(DatasetError, match=r"case 'c1': values up to .* Set cache\.dtype=float32"):
        stored_image(image, HALF, "c1")


def test_background_is_0_where_0_is_common_on_the_faces_and_else_the_lowest_of_each_channel():
    image = np.stack([np.full(SHAPE, 5.0), np.full(SHAPE, -3.0)]).astype(np.float32)
    image[0, 2, 3, 4], image[1, 5, 6, 7] = 9, 2
    stored, background = stored_image(image, SINGLE)
    assert background.tolist() == [5, -3]
    assert np.argwhere(body_of(stored, background)).tolist() == [[2, 3, 4], [5, 6, 7]]
    image[:, 0] = 0
    stored, background = stored_image(image, SINGLE)
    assert background.tolist() == [0, 0]
    assert np.array_equal(body_of(stored, background), np.arange(SHAPE[0])[:, None, None] > np.zeros(SHAPE))


def prepared(label=LABEL, image=None, **changes):
    if image is None:
        image = np.random.default_rng(0).normal(2, 0.1, (2, *SHAPE)).astype(np.float32)
        image[:, :1] = image[:, :, 9:] = 0
    grid = Volume(np.zeros(SHAPE), AFFINE)
    found = Case("c1", "p1", "training", ())
    return PreparedCase(found, torch.from_numpy(image), AFFINE, torch.from_numpy(label), grid, None, **changes)


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.FLOAT32])
def test_the_box_of_the_body_holds_all_of_it_and_no_more(precision):
    found = training_case(prepared(), Target(LABEL, (LABEL,)), precision)
    assert found.body_low.tolist() == [1, 0, 0]
    assert found.body_high.tolist() == [12, 9, 8]
    assert found.image.dtype == np.dtype(str(precision))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_an_image_of_which_nothing_is_left_is_refused(value):
    image = np.full((2, *SHAPE), value, np.float32)
    with pytest.raises(DatasetError, match="case 'c1': nothing is left of the image"):
        training_case(prepared(image=image), Target(LABEL, (LABEL,)))


def brute_force(label):
    """Each lesion's voxels as flat indices, by scipy."""
    parts, count = ndimage.label(label > 0, EVERYWHERE)
    return [np.flatnonzero(parts == number) for number in range(1, count + 1)]


def lesions_of(table):
    return [np.sort(table.voxels[a:b]).tolist() for a, b in itertools.pairwise(table.bounds)]


@settings(max_examples=100, deadline=None)
@given(numpies.arrays(np.uint8, SHAPE, elements=st.integers(0, 3), fill=st.just(0)), st.integers(0, 2**32 - 1))
def test_the_table_is_what_scipy_finds_and_no_voxel_is_left_out(label, seed):
    label[np.random.default_rng(seed).random(SHAPE) < 0.06] = 2
    table = lesion_table(label, AFFINE)
    expected = brute_force(label)
    assert sorted(lesions_of(table)) == sorted(voxels.tolist() for voxels in expected)
    assert table.bounds[-1] == len(table.voxels) == np.count_nonzero(label)
    for number, voxels in enumerate(map(np.array, lesions_of(table))):
        places = np.array(np.unravel_index(voxels, SHAPE))
        assert table.num_voxels[number] == len(voxels)
        assert table.volume_ml[number] == pytest.approx(len(voxels) * 1.5e-3)
        assert table.low[number].tolist() == places.min(axis=1).tolist()
        assert table.high[number].tolist() == (places.max(axis=1) + 1).tolist()
        drawn = [table.voxel(number, place) for place in range(len(voxels))]
        assert sorted(np.ravel_multi_index(place, SHAPE) for place in drawn) == voxels.tolist()
    assert table.voxels.dtype == np.uint32
    assert table.shape == SHAPE


def test_a_table_does_not_depend_on_the_order_in_memory():
    first, second = lesion_table(LABEL, AFFINE), lesion_table(np.asfortranarray(LABEL), AFFINE)
    assert np.array_equal(first.voxels, second.voxels)


def test_a_table_of_no_lesion_has_no_row():
    table = lesion_table(np.zeros(SHAPE, np.uint8), AFFINE)
    assert len(table) == 0
    assert table.bounds.tolist() == [0]
    assert (table.low.shape, table.high.shape, table.voxels.shape) == ((0, 3), (0, 3), (0,))


def through_cache(folder, given_case, target, dtype=HALF):
    """A training case as it comes back from the disk."""
    cache = Cache(folder)
    image = cache.get("image", "i" * 32, lambda writer: store_image(writer, given_case, dtype))
    taught = cache.get("target", "t" * 32, lambda writer: store_target(writer, given_case, target))
    return open_training(dataclasses.replace(given_case.case, name="another"), image, taught)


def assert_same(first, second):
    """All of two training cases but the name."""
    for name in ("image", "background", "body_low", "body_high", "affine"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert np.array_equal(a, b), name
    for field in dataclasses.fields(first.table):
        a, b = getattr(first.table, field.name), getattr(second.table, field.name)
        assert np.array_equal(a, b), field.name
        assert field.name == "shape" or a.dtype == b.dtype, field.name
    assert np.array_equal(first.target.lesions, second.target.lesions)
    assert len(first.target.alternatives) == len(second.target.alternatives)
    for a, b in zip(first.target.alternatives, second.target.alternatives, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert (first.target.weight is None) == (second.target.weight is None)
    assert first.target.weight is None or np.array_equal(first.target.weight, second.target.weight)
    assert first.target.record.keys() - {"case"} == second.target.record.keys() - {"case"}
    a, b = first.readers, second.readers
    assert (a.num_readers, a.gave_shares, a.counts.voxels) == (b.num_readers, b.gave_shares, b.counts.voxels)


SHARES = np.stack([LABEL * 0.3, LABEL * 0.5]).astype(np.float16)
TARGETS = {
    "its label": Target(LABEL, (LABEL,)),
    "no lesion": Target(LABEL * 0, (LABEL * 0,)),
    "each reader": Target(LABEL, (LABEL * 0, LABEL), record={"case": "c1", "num_readers": 2}),
    "shares": Target(LABEL, (SHARES,), record={"case": "c1", "agreement": [{"voxel_dice": float("nan")}]}),
    "weights": Target(LABEL, (LABEL,), np.random.default_rng(1).random(SHAPE).astype(np.float32)),
    "weights of 0 and 1": Target(LABEL, (LABEL,), (LABEL == 0).astype(np.float32)),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_a_training_case_comes_back_from_the_cache_as_it_would_be_in_memory(tmp_path, target, dtype):
    readers = np.stack([LABEL, a_label(((2, 5), (4, 8), (3, 5)))])
    given_case = prepared(readers=readers)
    found = through_cache(tmp_path, given_case, target, dtype)
    assert_same(found, training_case(given_case, target, Precision(str(dtype))))
    assert found.case.name == "another"
    assert found.target.record["case"] == "another"
    assert found.readers.num_readers == 2
    assert sum(found.readers.counts.voxels.values()) == LABEL.size
    if target.alternatives[0] is target.lesions:
        assert found.target.alternatives[0] is found.target.lesions
    if target.weight is not None:
        assert found.target.weight.dtype == (np.uint8 if target.weight.max() == 1 else np.float32)


def test_readers_who_gave_shares_are_remembered(tmp_path):
    readers = np.stack([LABEL * np.float32(0.4), LABEL * np.float32(0.7)])
    found = through_cache(tmp_path, prepared(readers=readers), TARGETS["shares"])
    assert found.readers.gave_shares
    assert through_cache(tmp_path / "other", prepared(), TARGETS["shares"]).readers.num_readers == 0


def test_no_name_of_a_case_is_written_into_the_cache(tmp_path):
    """The same files under another name are the same entry."""
    given_case = prepared()
    secret = dataclasses.replace(given_case, case=dataclasses.replace(given_case.case, name="SECRET", patient="SECRET"))
    target = Target(LABEL, (LABEL,), record={"case": "SECRET"})
    through_cache(tmp_path, secret, target)
    assert all(b"SECRET" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("with_ignore", [False, True])
def test_a_case_to_validate_on_comes_back_on_its_own_grid(tmp_path, with_ignore):
    cache, given_case = Cache(tmp_path), prepared()
    ignore = (LABEL == 0) if with_ignore else None
    grid = Volume(np.zeros((5, 6, 7)), AFFINE @ np.diag([2, 2, 1, 1]))
    drawn = np.zeros((5, 6, 7), np.int16)
    drawn[2, 3, 4] = 2
    ignored = None if ignore is None else drawn == 0
    image = cache.get("image", "i" * 32, lambda writer: store_image(writer, given_case, HALF))
    reference = cache.get("reference", "r" * 32, lambda writer: store_reference(writer, grid, drawn, ignored))
    found = open_evaluation(given_case.case, image, reference)
    assert found.grid.same_grid(grid)
    assert found.grid.shape == (5, 6, 7)
    assert np.array_equal(found.reference, drawn)
    assert (found.ignore is None) if ignored is None else np.array_equal(found.ignore, ignored)
    again = found.prepared()
    assert (again.image.dtype, tuple(again.image.shape)) == (torch.float32, (2, *SHAPE))
    assert np.allclose(again.image.numpy(), given_case.image.numpy(), rtol=2.0**-11)
    assert np.array_equal(again.reference, drawn)
    assert np.array_equal(again.affine, AFFINE)
    again.image[:] = 0  # it is a copy; the mapped image cannot be written


def test_what_is_missing_is_said_by_kind(tmp_path):
    cache = Cache(tmp_path)
    keys = Keys("i" * 32, "t" * 32, "r" * 32)
    assert find_missing(cache, keys) == ["image", "target", "reference"]
    cache.get("target", "t" * 32, lambda _: {})
    assert find_missing(cache, keys) == ["image", "reference"]
    assert find_missing(cache, Keys("i" * 32)) == ["image"]


def test_fusions_are_part_of_a_key_by_name(case):
    """Every pair of fusions differs."""
    keys = {Asked(case, annotations=AnnotationSettings(fusion=fusion)).keys().target for fusion in Fusion}
    assert len(keys) == len(Fusion)


def body_in(image):
    return body_of(*stored_image(image, np.dtype(np.float32)))


def test_the_body_of_a_skull_stripped_image_is_what_is_not_0_in_some_channel():
    image = np.zeros((2, 12, 10, 8), np.float32)
    image[0, 2:5, 3, 4] = -1.5  # below the background after z-scoring
    image[1, 7, 3, 4] = 2.0
    expected = np.zeros((12, 10, 8), bool)
    expected[2:5, 3, 4] = expected[7, 3, 4] = True
    np.testing.assert_array_equal(body_in(image), expected)


def test_the_body_of_a_ct_is_what_is_above_the_lowest_value_whatever_is_exactly_0():
    image = np.full((1, 12, 10, 8), -1000, np.float32)
    image[0, 2:5, 3, 4] = 40
    image[0, 3, 3, 4] = 0  # water
    assert body_in(image).sum() == 3


@pytest.mark.parametrize(
    "forge",
    [
        lambda record: record.pop("table"),
        lambda record: record["table"].update(num_voxels=[10**9]),
        lambda record: record.update(shape=[3, 3, 3]),
        lambda record: record.update(num_alternatives="many"),
    ],
)
def test_an_entry_that_somebody_else_wrote_is_a_readable_error(tmp_path, forge):
    given = prepared()
    target = Target(LABEL, (LABEL,))
    cache = Cache(tmp_path)
    image = cache.get("image", "i" * 32, lambda writer: store_image(writer, given, HALF))

    def make(writer):
        record = json.loads(json.dumps(plain(store_target(writer, given, target))))
        forge(record)
        return record

    with pytest.raises(ResourceError, match="is not as medfocal writes it"):
        open_training(given.case, image, cache.get("target", "t" * 32, make))


def test_an_array_of_words_is_refused(tmp_path):
    entry = Cache(tmp_path).get("image", "k" * 32, lambda writer: writer.add("image", np.ones(3)) or {})
    np.save(entry.folder / "image.npy", np.array([["lesion"] * 400]))
    with pytest.raises(ResourceError, match="it holds <U6"):
        entry.array("image")
