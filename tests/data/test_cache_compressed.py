"""A compressed cache: the same patches from less disk, and nothing in a file is evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from medfocal.annotations.smoothing import NoSmoothing
from medfocal.annotations.target import AnnotationSettings
from medfocal.data.cache import Cache
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.sampling import LesionBalancedSampler, cut_body, cut_image, cut_patch
from medfocal.data.stored import Precision
from medfocal.data.targets import Recipe, prepare_evaluation, prepare_training
from medfocal.data.transforms import Preprocessing
from medfocal.errors import ResourceError
from medfocal.volume import Volume, write_volume

blosc2 = pytest.importorskip("blosc2", reason="the extra blosc2 is not installed")

SHAPE = (40, 36, 34)
AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
RECIPE = Recipe(
    scheme=LabelScheme({0: "background", 1: "lesion"}, ignore_value=9),
    preprocessing=Preprocessing(),
    precision=Precision.AUTO,
    annotations=AnnotationSettings(),
    smoothing=NoSmoothing(),
)


@pytest.fixture
def case(tmp_path):
    image = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
    image[:, :9] = 0
    label = np.zeros(SHAPE, np.uint8)
    label[20:23, 20:24, 10:12], label[5, 30, 30], label[30:, 30:, 30:] = 1, 1, 9
    for name, array in (("image", image), ("label", label)):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(array, AFFINE))
    return Case("c", "c", "training", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


def test_patches_and_references_are_the_same_and_take_less_disk(tmp_path, case):
    plain, packed = Cache(tmp_path / "plain"), Cache(tmp_path / "packed", compress=True)
    (first,), (second,) = (prepare_training([case], RECIPE, cache).cases for cache in (plain, packed))
    assert isinstance(second.image, blosc2.NDArray)
    source = LesionBalancedSampler([second], patch_size=(16, 12, 10), lesion_fraction=0.5, seed=1)
    for index in range(20):
        place = source.draw(0, index)
        cut = (place.start, (16, 12, 10))
        np.testing.assert_array_equal(cut_image(second.image, *cut), cut_image(first.image, *cut))
        np.testing.assert_array_equal(cut_patch(second.target.lesions, *cut), cut_patch(first.target.lesions, *cut))
        np.testing.assert_array_equal(cut_patch(second.target.weight, *cut), cut_patch(first.target.weight, *cut))
        np.testing.assert_array_equal(cut_body(second, *cut), cut_body(first, *cut))
    (known,), (found,) = (prepare_evaluation([case], RECIPE, cache) for cache in (plain, packed))
    np.testing.assert_array_equal(np.asarray(found.reference), known.reference)
    np.testing.assert_array_equal(np.asarray(found.ignore), known.ignore)
    np.testing.assert_array_equal(found.prepared().image, known.prepared().image)
    sizes = [
        sum(file.stat().st_size for file in cache.folder.rglob("*") if file.is_file()) for cache in (plain, packed)
    ]
    assert sizes[1] < 0.7 * sizes[0]


def test_what_is_there_uncompressed_is_used_as_it_is(tmp_path, case):
    prepare_training([case], RECIPE, Cache(tmp_path / "cache"))
    before = sorted((tmp_path / "cache").rglob("*.npy"))
    prepare_training([case], RECIPE, Cache(tmp_path / "cache", compress=True))
    assert sorted((tmp_path / "cache").rglob("*.npy")) == before
    assert not list((tmp_path / "cache").rglob("*.b2nd"))


def test_a_file_that_holds_an_expression_is_refused(tmp_path):
    cache = Cache(tmp_path, compress=True)
    entry = cache.get("image", "k", lambda writer: writer.add("image", np.ones((3, 4, 5))) or {})
    path = entry.folder / "image.b2nd"
    operand = blosc2.asarray(np.ones((3, 4, 5)), urlpath=str(tmp_path / "a.b2nd"), mode="w")
    path.unlink()
    (operand + 1).save(urlpath=str(path))
    with pytest.raises(ResourceError, match=r"image\.b2nd"):
        entry.array("image")
