"""Prediction from Python: three lines, an image in any form, and the numbers that the command writes."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from medfocal.data.transforms import Preprocessing
from medfocal.errors import ConfigError, DatasetError, GeometryError, InputError, ModelError
from medfocal.infer import Found, Predictor, PredictSettings, load_model, predict
from medfocal.model import PLAIN_CANDIDATES, Member, ModelCard, OperatingPoint, save_model
from medfocal.networks import UNet3d
from medfocal.volume import Volume, read_volume, write_volume

ROOT = Path(__file__).parents[2]
SHAPE, SPACING_MM = (14, 12, 10), (0.5, 1.0, 3.0)
POINTS = (
    OperatingPoint(name="1 false positive; per case", threshold=0.5, source="validation"),
    OperatingPoint(name="few", threshold=0.8, source="validation"),
)


def network(seed=0, in_channels=1):
    torch.manual_seed(seed)
    made = UNet3d(in_channels=in_channels, out_channels=2, channels=[4, 6, 8]).eval()
    with torch.no_grad():
        made.head.weight.mul_(3)
    return made


def card(arguments, channels=("MR",), intensity="zscore_nonzero"):
    return ModelCard(
        name="trial",
        members=(Member(network={"name": "UNet3d", "arguments": arguments}),),
        channels=channels,
        labels={0: "background", 1: "lesion"},
        activation="softmax",
        preprocessing=Preprocessing(orientation="RAS", spacing_mm=None, intensity=intensity),
        window={"size": [8, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        candidates={"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES},
        operating_points=POINTS,
    )


def saved(folder, seed=0, channels=("MR",)):
    made = network(seed, len(channels))
    return save_model(folder, [made], card(made.arguments, channels))


def brightness():
    """A model of one 1x1x1 convolution: the logit of a lesion is twice what a voxel is above 5."""
    made = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1, 1))
        made.bias.copy_(torch.tensor([0.0, -10.0]))
    return Predictor((made.eval(),), card({}, intensity="none"), ("0" * 64,), torch.device("cpu"))


#: Value and place of three lesions; the probabilities are 0.998, 0.646 and 0.269.
LESIONS = {8.0: (slice(1, 4), slice(2, 4), slice(7, 9)), 5.3: (11, 9, slice(1, 5)), 4.5: (slice(7, 9), 1, 1)}


def with_lesions():
    array = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE).astype(np.float32)
    for value, place in LESIONS.items():
        array[place] = value
    return Volume(array, turned())


def turned():
    """Axes (P, S, L), off-centre."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -SPACING_MM[0], SPACING_MM[1], -SPACING_MM[2], 1
    affine[:3, 3] = (31.0, -17.0, 42.5)
    return affine


def volume(seed=0, shape=SHAPE):
    return Volume(np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32), turned())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture
def three(tmp_path):
    write_volume(tmp_path / "three.nii.gz", with_lesions())
    return tmp_path / "three.nii.gz"


@pytest.fixture
def path(tmp_path):
    write_volume(tmp_path / "case.nii.gz", volume())
    return tmp_path / "case.nii.gz"


def three_lines(page):
    (block,) = re.findall(r"```python\n(from medfocal\.infer import load_model\n.*?)```", page.read_text(), re.DOTALL)
    return block


@pytest.mark.parametrize("page", [ROOT / "docs" / "python.md", ROOT / "README.md"], ids=lambda page: page.name)
@pytest.mark.usefixtures("path")
def test_the_three_lines_of_the_page_predict_a_case(tmp_path, monkeypatch, page):
    lines = three_lines(page)
    assert len([line for line in lines.splitlines() if line]) == 3
    saved(tmp_path / re.search(r'load_model\("([^"]+)"', lines)[1])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines, names)
    assert isinstance(names["model"], Predictor)
    assert isinstance(names["found"], Found)
    assert names["found"].mask.shape == SHAPE


def same(one, other):
    np.testing.assert_array_equal(one.mask.array, other.mask.array)
    np.testing.assert_array_equal(one.probability.array, other.probability.array)
    assert (one.candidates, one.threshold) == (other.candidates, other.threshold)


def test_it_finds_what_the_command_writes(tmp_path, three):
    model = brightness()
    found = model.predict(three)
    output = tmp_path / "output"
    predict(model, three, output, device=model.device, settings=PredictSettings(save_probability=True))
    mask, probability = (read_volume(output / f"three_{kind}.nii.gz") for kind in ("mask", "probability"))
    np.testing.assert_array_equal(found.mask.array, mask.array)
    np.testing.assert_array_equal(found.probability.array, probability.array)
    assert (found.mask.array.dtype, found.probability.array.dtype) == (np.uint8, np.float32)
    for given in (found.mask, found.probability):
        assert given.same_grid(read_volume(three))
    with (output / "three_candidates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.candidates) == 3
    for row, candidate in zip(rows, found.candidates, strict=True):
        assert int(row["candidate"]) == candidate.number
        assert int(row["num_voxels"]) == candidate.num_voxels
        assert row["kept"] == str(candidate.kept).lower()
        assert row["operating_points"] == "; ".join(candidate.operating_points)
        named = ("confidence", "volume_ml", "equivalent_diameter_mm", "longest_diameter_mm", "axial_diameter_mm")
        for name in named:
            assert float(row[name]) == getattr(candidate, name)
        assert tuple(float(row[name]) for name in ("i", "j", "k")) == candidate.centre_voxel
        assert tuple(float(row[f"{axis}_mm"]) for axis in "xyz") == candidate.centre_mm
    assert found.notes == ()


def test_candidates_lie_where_the_lesions_do_and_name_their_operating_points():
    found = brightness().predict(with_lesions())
    assert [candidate.number for candidate in found.candidates] == [1, 2, 3]
    np.testing.assert_allclose(
        [candidate.confidence for candidate in found.candidates],
        [1 / (1 + np.exp(-2 * (value - 5))) for value in LESIONS],
        rtol=1e-5,
    )
    sizes, centres = (12, 4, 2), ((2, 2.5, 7.5), (11, 9, 2.5), (7.5, 1, 1))
    for candidate, size, centre in zip(found.candidates, sizes, centres, strict=True):
        assert (candidate.num_voxels, candidate.centre_voxel) == (size, centre)
        np.testing.assert_allclose(candidate.volume_ml, size * 0.5 * 1.0 * 3.0 / 1000)
        np.testing.assert_allclose(candidate.centre_mm, (turned() @ [*centre, 1])[:3])
    names = [point.name for point in POINTS]
    assert [list(candidate.operating_points) for candidate in found.candidates] == [names, names[:1], []]
    assert [candidate.kept for candidate in found.candidates] == [True, True, False]
    assert (found.threshold, int(found.mask.array.sum())) == (0.5, 16)


def test_another_threshold_keeps_others():
    model, image = brightness(), with_lesions()
    for threshold, num_voxels in ((0.8, 12), (0.0, 18), (1.0, 0)):
        found = model.predict(image, threshold=threshold)
        assert (found.threshold, int(found.mask.array.sum()), len(found.candidates)) == (threshold, num_voxels, 3)
        assert [c.kept for c in found.candidates] == [c.confidence >= threshold for c in found.candidates]


def test_a_path_a_volume_and_nibabels_image_are_the_same_image(model, path):
    expected = model.predict(path)
    loaded = nibabel.load(path)
    with_last_axis = nibabel.Nifti1Image(np.asarray(loaded.dataobj)[..., None], loaded.affine)
    for given in (str(path), read_volume(path), loaded, with_last_axis, [path], (volume(),)):
        same(model.predict(given), expected)


def test_the_header_of_nibabels_image_goes_with_the_mask(tmp_path, model, path):
    image = nibabel.load(path)
    image.header.set_xyzt_units("mm", "sec")
    image.header["sform_code"] = 2
    write_volume(tmp_path / "mask.nii.gz", model.predict(image).mask)
    assert nibabel.load(tmp_path / "mask.nii.gz").header["sform_code"] == 2
    other = nibabel.MGHImage(np.asarray(image.dataobj), image.affine)
    write_volume(tmp_path / "other.nii.gz", model.predict(other).mask)
    np.testing.assert_allclose(nibabel.load(tmp_path / "other.nii.gz").affine, image.affine, atol=1e-4)


def test_mirrored_views_change_the_probability(model, path):
    assert not np.array_equal(model.predict(path, mirror=True).probability.array, model.predict(path).probability.array)


def test_channels_are_a_list_in_the_order_of_the_card(tmp_path):
    two = load_model(saved(tmp_path / "m", channels=("T1", "T2")), "cpu")
    first, second = volume(1), volume(2)
    write_volume(tmp_path / "a_0000.nii.gz", first)
    write_volume(tmp_path / "a_0001.nii.gz", second)
    paths = [tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"]
    found = two.predict([first, second])
    same(two.predict(paths), found)
    same(two.predict([paths[0], second]), found)
    assert not np.array_equal(two.predict([second, first]).probability.array, found.probability.array)
    (mask,) = predict(two, tmp_path, tmp_path.parent / "output_of_two", device=two.device)
    np.testing.assert_array_equal(read_volume(mask).array, found.mask.array)
    with pytest.raises(DatasetError, match=r"takes 2 images, one a channel \(T1, T2\), and 1 was given"):
        two.predict(first)
    moved = dataclasses.replace(second, affine=np.diag([2.0, 1.0, 1.0, 1.0]) @ second.affine)
    with pytest.raises(GeometryError, match="the image of channel 'T1' and the image of channel 'T2' differ: "):
        two.predict([first, moved])


def test_several_models_are_averaged(tmp_path, folder, path):
    other = saved(tmp_path / "other", seed=1)
    both = load_model([folder, str(other)], "cpu")
    assert len(both.networks) == 2
    each = [load_model(one, "cpu").predict(path).probability.array for one in (folder, other)]
    np.testing.assert_allclose(both.predict(path).probability.array, np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ("nowhere.nii.gz", InputError, "nowhere.nii.gz"),
        (np.zeros(SHAPE), TypeError, "channel 'MR' must be a path, a medfocal.volume.Volume or an image of nibabel"),
        (None, TypeError, "got NoneType"),
        ([volume(), volume()], DatasetError, r"takes 1 images?, one a channel \(MR\), and 2 were given"),
        (Volume(np.ones(SHAPE), turned()), InputError, "channel 'MR' is constant: every voxel is 1"),
        (Volume(np.zeros((3, 4)), turned()), InputError, r"three axes of real numbers, got float64 of shape \(3, 4\)"),
        (Volume(np.zeros((0, 4, 5)), turned()), InputError, "three axes"),
        (Volume(np.zeros(SHAPE, complex), turned()), InputError, "got complex128"),
        (Volume(volume().array, np.zeros((4, 4))), GeometryError, "affine of the image of channel 'MR' makes no sense"),
        (Volume(volume().array, np.diag([1, 1, np.nan, 1])), GeometryError, "makes no sense"),
        (Volume(volume().array, np.eye(3)), GeometryError, "makes no sense"),
        (Volume(volume().array, np.ones((4, 4)) + np.eye(4) * 1e-9), GeometryError, "makes no sense"),
        (nibabel.Nifti1Image(np.zeros((4, 4, 4, 3)), np.eye(4)), InputError, r"of shape \(4, 4, 4, 3\)"),
        (nibabel.Nifti1Image(volume().array, None), GeometryError, "makes no sense"),
    ],
)  # fmt: skip
def test_an_image_that_is_none_is_refused(model, given, kind, told):
    with pytest.raises(kind, match=told):
        model.predict(given)


def test_a_file_that_breaks_off_is_told_of_nibabels_image_too(tmp_path, model):
    path = tmp_path / "cut.nii.gz"
    write_volume(path, volume())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="the image of channel 'MR' cannot be read: "):
        model.predict(nibabel.load(path))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_of_0_to_1_is_refused(model, threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got"):
        model.predict(volume(), threshold=threshold)


def test_a_folder_that_is_no_model_and_a_device_that_is_none_are_told(tmp_path, folder):
    with pytest.raises(ModelError, match="is not a model folder"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="say auto, cpu, cuda or cuda:N"):
        load_model(folder, "nowhere")


def test_the_image_that_is_given_is_left_as_it_is(model):
    given = volume()
    given.array[:2] = np.nan  # outside of the body, to be taken for 0
    before = given.array.copy()
    model.predict(given)
    np.testing.assert_array_equal(given.array, before)
