"""Prediction: the lesion lands where it lies in the world, and the folder holds what the contract says."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from medfocal.data.cases import read_case
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.transforms import Preprocessing, prepare_case
from medfocal.errors import DatasetError, GeometryError, InputError, ResourceError
from medfocal.infer import PredictSettings, predict, predict_case
from medfocal.infer.candidates import COLUMNS
from medfocal.infer.cases import find_cases
from medfocal.model import PLAIN_CANDIDATES, Member, Model, ModelCard, OperatingPoint, load_model, save_model
from medfocal.networks import UNet3d
from medfocal.volume import Volume, read_volume, write_volume

SHAPE, SPACING_MM = (24, 20, 16), (0.5, 1.0, 3.0)
CPU = torch.device("cpu")
PROBABILITY = PredictSettings(save_probability=True)


def thresholding(in_channels=1, at=5.0):
    """A real network of one 1x1x1 convolution: sure of a lesion where the first channel is above `at`."""
    network = nn.Conv3d(in_channels, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[1, 0] = 2.0
        network.bias.copy_(torch.tensor([0.0, -2.0 * at]))
    return network.eval()


def card(*, channels=("MR",), spacing_mm=None, orientation="RAS", labels=None):
    return ModelCard(
        name="bright",
        members=(Member(network={"name": "UNet3d", "arguments": {}}),),
        channels=channels,
        labels=labels or {0: "background", 1: "lesion"},
        activation="softmax",
        preprocessing=Preprocessing(orientation=orientation, spacing_mm=spacing_mm, intensity="none"),
        window={"size": [16, 16, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        candidates={"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES},
        operating_points=(OperatingPoint(name="default", threshold=0.5, source="default"),),
    )


def model(**changes):
    made = card(**changes)
    return Model((thresholding(len(made.channels)),), made, weights_sha256=("0" * 64,))


def grid(name):
    """Affines whose axes point about as the letters say; oblique ones are turned about all axes."""
    codes, degrees = {"RAS": ("RAS", (0, 0, 0)), "oblique LPS": ("LPS", (20, -11, 7)), "SAL": ("SAL", (5, 9, -8))}[name]
    axes = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        axes["RLAPSI".index(code) // 2, axis] = 1 if code in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ axes * SPACING_MM
    affine[:3, 3] = (31.0, -17.0, 42.5)
    return affine


LESION = (slice(14, 20), slice(3, 8), slice(9, 12))


def bright(lesion=LESION):
    """A body of about 1 with a lesion of 10, off-centre on every axis."""
    image = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE).astype(np.float32)
    if lesion is not None:
        image[lesion] = 10
    return image


def stored(folder, name, image=None, affine=None):
    folder.mkdir(parents=True, exist_ok=True)
    affine = grid("oblique LPS") if affine is None else affine
    write_volume(folder / f"{name}.nii.gz", Volume(bright() if image is None else image, affine))
    return folder / f"{name}.nii.gz"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["RAS", "oblique LPS", "SAL"])
@pytest.mark.parametrize("orientation", ["RAS", "LSP"])
def test_the_mask_is_the_lesion_on_the_native_grid(tmp_path, name, orientation):
    path = stored(tmp_path, "a", affine=grid(name))
    (mask,) = predict(model(orientation=orientation), path, tmp_path / "out", device=CPU)
    found = nibabel.load(mask)
    expected = np.zeros(SHAPE, np.uint8)
    expected[LESION] = 1
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    np.testing.assert_array_equal(found.affine, nibabel.load(path).affine)
    (row,) = rows(tmp_path / "out" / "a_candidates.csv")
    centre = grid(name) @ [16.5, 5, 10, 1]
    np.testing.assert_allclose([float(row[key]) for key in ("x_mm", "y_mm", "z_mm")], centre[:3], atol=1e-4)


@pytest.mark.parametrize("name", ["RAS", "oblique LPS", "SAL"])
def test_after_resampling_the_candidate_still_lies_at_its_place_in_the_world(tmp_path, name):
    path = stored(tmp_path, "a", affine=grid(name))
    predict(model(spacing_mm=(0.8, 0.8, 1.5)), path, tmp_path / "out", device=CPU, settings=PROBABILITY)
    (row,) = rows(tmp_path / "out" / "a_candidates.csv")
    found = np.array([float(row[key]) for key in ("x_mm", "y_mm", "z_mm")])
    moved = np.linalg.inv(grid(name)) @ [*found, 1] - [16.5, 5, 10, 1]
    assert np.abs(moved).max() < 0.5  # voxels of the native grid
    assert float(row["volume_ml"]) == pytest.approx(6 * 5 * 3 * 1.5e-3, rel=0.5)
    for kind in ("mask", "probability"):
        assert nibabel.load(tmp_path / "out" / f"a_{kind}.nii.gz").shape == SHAPE


def test_classes_of_several_lesion_classes_are_told_apart(tmp_path):
    network = nn.Conv3d(1, 3, 1)  # class 1 above 5, class 2 above 15
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -10.0, -40.0]))
    image = bright()
    image[2:5, 14:18, 2:4] = 40
    made = card(labels={0: "background", 1: "lesion", 2: "cyst"})
    predict(Model((network.eval(),), made, ("",)), stored(tmp_path, "a", image), tmp_path / "out", device=CPU)
    expected = np.zeros(SHAPE, np.uint8)
    expected[LESION], expected[2:5, 14:18, 2:4] = 1, 2
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "a_mask.nii.gz").array, expected)


def test_the_output_folder_holds_exactly_what_the_contract_says(tmp_path):
    for name in ("b", "a"):
        stored(tmp_path / "in", name)
    made = predict(model(), tmp_path / "in", tmp_path / "out", device=CPU)
    assert made == [tmp_path / "out" / "a_mask.nii.gz", tmp_path / "out" / "b_mask.nii.gz"]
    files = [f"{case}_{kind}" for case in "ab" for kind in ("candidates.csv", "mask.nii.gz", "run.json")] + ["run.json"]
    assert names(tmp_path / "out") == files
    assert tuple(rows(tmp_path / "out" / "a_candidates.csv")[0]) == COLUMNS
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["model"], record["weights_sha256"], record["threshold"]) == ("bright", ["0" * 64], 0.5)
    assert [(case["case"], case["num_candidates"]) for case in record["cases"]] == [("a", 1), ("b", 1)]
    assert record["cases"][0]["images"] == [str(tmp_path / "in" / "a.nii.gz")]
    assert record["intended_use"]


def test_the_probability_map_is_written_if_asked_as_float32(tmp_path):
    path = stored(tmp_path, "a")
    predict(model(), path, tmp_path / "out", device=CPU, settings=PROBABILITY)
    files = ["a_candidates.csv", "a_mask.nii.gz", "a_probability.nii.gz", "a_run.json", "run.json"]
    assert names(tmp_path / "out") == files
    found = read_volume(tmp_path / "out" / "a_probability.nii.gz")
    expected = 1 / (1 + np.exp(-(2.0 * bright().astype(np.float64) - 10)))
    assert found.array.dtype == np.float32
    np.testing.assert_allclose(found.array, expected, atol=0.01)  # bfloat16 where the CPU has it


def test_a_threshold_decides_what_enters_the_mask_and_not_the_table(tmp_path):
    image = bright()
    image[2:4, 14:16, 2] = 4.9  # p = 0.45
    path = stored(tmp_path, "a", image)
    for threshold, kept in ((0.3, 2), (0.5, 1), (0.999, 1), (1.0, 0)):
        predict(model(), path, tmp_path / "out", device=CPU, settings=PredictSettings(threshold=threshold))
        table = rows(tmp_path / "out" / "a_candidates.csv")
        assert sum(row["kept"] == "true" for row in table) == kept
        assert len(table) == 2
        mask = read_volume(tmp_path / "out" / "a_mask.nii.gz").array
        assert int(mask.sum()) == sum(int(row["num_voxels"]) for row in table if row["kept"] == "true")


def test_a_case_without_candidates_has_an_empty_mask_and_a_table_of_columns(tmp_path):
    predict(model(), stored(tmp_path, "a", bright(None)), tmp_path / "out", device=CPU)
    assert read_volume(tmp_path / "out" / "a_mask.nii.gz").array.sum() == 0
    assert (tmp_path / "out" / "a_candidates.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_the_same_input_gives_the_same_bytes(tmp_path):
    path = stored(tmp_path, "a")
    for out in ("one", "two"):
        predict(model(), path, tmp_path / out, device=CPU, settings=PROBABILITY)
    for name in ("a_mask.nii.gz", "a_probability.nii.gz", "a_candidates.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_bad_case_leaves_those_before_and_after_it_complete_and_nothing_half(tmp_path):
    for name in ("a", "b"):
        stored(tmp_path / "in", name)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"\x1f\x8bnothing")
    stored(tmp_path / "in", "c")
    with pytest.raises(InputError, match=r"case 'b': the file '.*b\.nii\.gz'"):
        predict(model(), tmp_path / "in", tmp_path / "out", device=CPU)
    files = [f"{case}_{kind}" for case in "ac" for kind in ("candidates.csv", "mask.nii.gz", "run.json")] + ["run.json"]
    assert names(tmp_path / "out") == files
    for case in "ac":
        assert read_volume(tmp_path / "out" / f"{case}_mask.nii.gz").array.sum() == 90


def test_a_run_that_fails_leaves_no_record_of_an_earlier_one(tmp_path):
    stored(tmp_path / "in", "a")
    predict(model(), tmp_path / "in", tmp_path / "out", device=CPU)
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"")
    settings = PredictSettings(threshold=0.9, keep_going=False)
    with pytest.raises(InputError):
        predict(model(), tmp_path / "in", tmp_path / "out", device=CPU, settings=settings)
    assert names(tmp_path / "out") == ["a_candidates.csv", "a_mask.nii.gz", "a_run.json"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_nan_inside_the_body_is_refused(tmp_path, value):
    image = bright()
    image[12, 10, 8] = value
    with pytest.raises(InputError, match=r"case 'a': .*inside the body"):
        predict(model(), stored(tmp_path, "a", image), tmp_path / "out", device=CPU)


def test_a_file_in_the_way_of_the_output_is_a_resource_error(tmp_path):
    path = stored(tmp_path, "a")
    (tmp_path / "out").write_text("mine")
    for output in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(ResourceError, match="cannot make the folder"):
            predict(model(), path, output, device=CPU)
    assert (tmp_path / "out").read_text() == "mine"


def test_no_output_folder_is_made_for_input_that_is_none(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        predict(model(), tmp_path / "nowhere", tmp_path / "out", device=CPU)
    assert not (tmp_path / "out").exists()


def test_a_model_folder_predicts_through_the_public_door(tmp_path):
    torch.manual_seed(0)
    net = UNet3d(in_channels=1, out_channels=2, channels=(4, 6, 8), strides=[1, 2, [2, 2, 1]])
    made = replace(card(), members=(Member(network={"name": "UNet3d", "arguments": net.arguments}),))
    loaded = load_model(save_model(tmp_path / "model", [net], made))
    (mask,) = predict(loaded, stored(tmp_path, "a"), tmp_path / "out", device=CPU)
    assert mask.exists()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["weights_sha256"] == list(loaded.weights_sha256)


# Too little memory


class Heavy(nn.Module):
    """Fits `most` windows into the memory of a device, and fails as PyTorch does."""

    def __init__(self, most, error=torch.OutOfMemoryError, only=None):
        super().__init__()
        self.inner, self.most, self.error, self.only, self.seen = thresholding(), most, error, only, []

    def forward(self, x):
        if x.device.type != "meta" and self.only in (None, x.device.type):
            self.seen.append(len(x))
            if len(x) > self.most:
                raise self.error("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return self.inner(x)


def heavy_case(tmp_path):
    path = stored(tmp_path, "a")
    return prepare_case(read_case(Case("a", "a", "test", (path,)), LabelScheme({})), card().preprocessing)


def eight_at_once():
    made = card()
    return replace(made, window={**made.window, "batch": 8})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_with_too_little_memory_it_goes_on_with_fewer_windows_and_says_so(tmp_path, error, caplog):
    case = heavy_case(tmp_path)
    found = predict_case(Model((Heavy(2, error),), eight_at_once(), ("",)), case, device=CPU)
    assert found.notes == (
        "out of memory on cpu: went on with 4 windows at once",
        "out of memory on cpu: went on with 2 windows at once",
    )
    assert [record.message for record in caplog.records] == list(found.notes)
    whole = predict_case(Model((thresholding(),), eight_at_once(), ("",)), case, device=CPU)
    assert whole.notes == ()
    np.testing.assert_allclose(found.probability, whole.probability, atol=1e-6)


def test_what_was_done_for_want_of_memory_stands_in_run_json(tmp_path):
    path = stored(tmp_path / "in", "a")
    predict(Model((Heavy(4),), eight_at_once(), ("",)), path, tmp_path / "out", device=CPU)
    (row,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert row["notes"] == ["out of memory on cpu: went on with 4 windows at once"]


def test_not_even_one_window_is_a_resource_error(tmp_path):
    network = Heavy(0)
    with pytest.raises(ResourceError, match="not enough memory on cpu for one window of 16x16x8 voxels") as told:
        predict_case(Model((network,), eight_at_once(), ("",)), heavy_case(tmp_path), device=CPU, allow_cpu=True)
    assert network.seen == [6, 4, 2, 1]  # a plane has 6 windows
    assert "allow_cpu" not in str(told.value)  # there is no other device


def test_another_error_of_a_network_is_not_taken_for_want_of_memory(tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            if x.device.type != "meta":
                raise RuntimeError("shapes do not fit")
            return torch.empty(len(x), 2, *x.shape[2:], device="meta")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predict_case(Model((Broken(),), eight_at_once(), ("",)), heavy_case(tmp_path), device=CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_case_after_case_a_gpu_is_tried_before_the_cpu_is_taken(tmp_path):
    network, device = Heavy(0, only="cuda").to("cuda"), torch.device("cuda", 0)
    for _ in range(2):
        found = predict_case(
            Model((network,), eight_at_once(), ("",)), heavy_case(tmp_path), device=device, allow_cpu=True
        )
        assert found.notes[-1] == "out of memory on cuda:0 with one window: went on on the CPU"
    assert network.seen == [6, 4, 2, 1] * 2
    with pytest.raises(ResourceError, match="Or allow_cpu=true, which goes on there"):
        predict_case(Model((network,), eight_at_once(), ("",)), heavy_case(tmp_path), device=device)


# Which cases there are


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_gives_a_case_a_file_by_name(tmp_path):
    folder = touch(tmp_path, "b.nii.gz", "a.nrrd", "c.hdr", "c.img", "notes.txt", "d.nii.gz.part", "._b.nii.gz")
    (folder / "deeper.nii").mkdir()
    assert [case.name for case in find_cases(folder, ("MR",))] == ["a", "b", "c"]


def test_a_file_is_one_case(tmp_path):
    (case,) = find_cases(touch(tmp_path, "sub-1_T1.nii.gz") / "sub-1_T1.nii.gz", ("MR",))
    assert (case.name, case.images, case.label) == ("sub-1_T1", (tmp_path / "sub-1_T1.nii.gz",), None)


def test_two_files_of_one_name_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="more than one file of the same case: a"):
        find_cases(touch(tmp_path / "x", "a.nii", "a.nii.gz"), ("MR",))
    with pytest.raises(DatasetError, match="holds no image"):
        find_cases(touch(tmp_path / "y", "notes.txt"), ("MR",))


def test_cases_of_several_channels_are_refused_by_a_model_of_one(tmp_path):
    folder = touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    with pytest.raises(DatasetError, match=r"several channels .* takes one \(MR\)"):
        find_cases(folder, ("MR",))
    (folder / "a_0001.nii.gz").unlink()
    assert len(find_cases(folder, ("MR",))) == 1


def test_channels_are_grouped_by_their_number(tmp_path):
    folder = touch(tmp_path, "a_b_0001.nii.gz", "a_b_0000.nrrd", "c_0000.nii", "c_0001.nii")
    found = [(case.name, [path.name for path in case.images]) for case in find_cases(folder, ("T1", "T2"))]
    assert found == [("a_b", ["a_b_0000.nrrd", "a_b_0001.nii.gz"]), ("c", ["c_0000.nii", "c_0001.nii"])]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_0000.nii"], "case 'a' in .* has _0000; the model takes 2 channels"),
        (["a_0001.nii", "a_0002.nii"], "has _0001, _0002"),
        (["a_0000.nii", "a_0001.nii", "a_0002.nii"], "has _0000, _0001, _0002"),
        (["a_0000.nii", "a_0001.nii", "b.nii"], r"must be named <case>_0000, <case>_0001, …; 'b\.nii' is not"),
        (["_0000.nii", "_0001.nii"], "is not"),
        (["a_0000.nii", "a_0001.nii", "a_0000.nii.gz"], "channel 0000 of case 'a' twice"),
    ],
)
def test_missing_surplus_doubled_and_misnamed_channels_are_refused(tmp_path, names, message):
    with pytest.raises(DatasetError, match=message):
        find_cases(touch(tmp_path, *names), ("T1", "T2"))


def test_channels_of_a_case_go_in_their_order_into_the_network(tmp_path):
    """The network looks at the first channel alone."""
    stored(tmp_path / "in", "a_0000")
    stored(tmp_path / "in", "a_0001", bright((slice(1, 3),) * 3))
    (mask,) = predict(model(channels=("T1", "T2")), tmp_path / "in", tmp_path / "out", device=CPU)
    assert mask.name == "a_mask.nii.gz"
    assert read_volume(mask).array.sum() == 90


def test_channels_on_different_grids_are_refused(tmp_path):
    stored(tmp_path / "in", "a_0000")
    stored(tmp_path / "in", "a_0001", affine=grid("RAS"))
    told = r"case 'a': the grids of '.*_0000\.nii\.gz' and '.*_0001\.nii\.gz' differ"
    for keep_going, kind in ((True, InputError), (False, GeometryError)):
        settings = PredictSettings(keep_going=keep_going)
        with pytest.raises(kind, match=told):
            predict(model(channels=("T1", "T2")), tmp_path / "in", tmp_path / "out", device=CPU, settings=settings)


def dataset(folder, **changes):
    content = {"channel_names": {"0": "MR"}, "labels": {"0": "background", "1": "lesion"}, "test": ["t.nii.gz"]}
    content["training"] = [{"image": "a.nii.gz", "label": "l.nii.gz"}]
    touch(folder, "t.nii.gz", "a.nii.gz", "l.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))
    return folder / "dataset.json"


def test_a_dataset_gives_its_test_cases_without_their_labels(tmp_path):
    (case,) = find_cases(dataset(tmp_path, test=[{"image": "t.nii.gz", "label": "l.nii.gz", "case": "x"}]), ("MR",))
    assert (case.name, case.images, case.label) == ("x", (tmp_path / "t.nii.gz",), None)


def test_a_dataset_of_other_channels_or_without_test_cases_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"has the channels \['MR'\], the model was trained on \['CT'\]"):
        find_cases(dataset(tmp_path), ("CT",))
    with pytest.raises(DatasetError, match="has no 'test' case"):
        find_cases(dataset(tmp_path, test=[]), ("MR",))


def test_a_file_of_an_unknown_kind_is_refused_by_its_ending(tmp_path):
    with pytest.raises(InputError, match="is not an image that can be read"):
        predict(model(), touch(tmp_path, "a.dcm") / "a.dcm", tmp_path / "out", device=CPU)
