"""Models for other runtimes: each file is run there, and says what the network says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medfocal.data.cases import read_case
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.transforms import Preprocessing, prepare_case
from medfocal.errors import ConfigError, ModelError, ResourceError
from medfocal.infer import Format, PredictSettings, export_model, predict
from medfocal.model import PLAIN_CANDIDATES, Member, Model, ModelCard, OperatingPoint
from medfocal.networks import ResidualUNet3d, UNet3d
from medfocal.volume import Volume, read_volume, write_volume

CPU = torch.device("cpu")
WINDOW, SPACING_MM = (16, 12, 8), (0.5, 1.0, 3.0)
ROOT = Path(__file__).parents[2]


def needs(extra, *packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"of the extra '{extra}' are missing: {', '.join(missing)}")


ONNX = needs("onnx", "onnx", "onnxruntime", "onnxscript")
BUNDLE = needs("bundle", "fire", "ignite")


def unet(seed=0, *, kind=UNet3d, **changes):
    """A network whose logits spread, so that a wrong weight shows in the probabilities."""
    torch.manual_seed(seed)
    arguments = {"in_channels": 1, "out_channels": 2, "channels": [4, 6, 8], "strides": [1, 2, [2, 2, 1]]}
    network = kind(**{**arguments, **changes}).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm3d | nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        network.head.weight.mul_(2)
        network.head.bias.uniform_(-1, 1)
    return network


def model(*networks, **changes):
    networks = networks or (unet(),)
    values = {
        "name": "trial",
        "members": tuple(Member(network={"name": type(one).__name__, "arguments": {}}) for one in networks),
        "channels": ("T1",),
        "labels": {0: "background", 1: "lesion"},
        "activation": "softmax",
        "preprocessing": Preprocessing(orientation="RAS", spacing_mm=None, intensity="zscore_nonzero"),
        "window": {"size": list(WINDOW), "overlap": 0.5, "batch": 2, "precision": "float32"},
        "candidates": {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES},
        "operating_points": (OperatingPoint(name="default", threshold=0.5, source="default"),),
    }
    return Model(networks, ModelCard(**{**values, **changes}), tuple(f"{n:064x}" for n in range(len(networks))))


def windows(count, channels=1):
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, channels, *WINDOW)).astype(np.float32))


def softmax(logits):
    """Of the lesion classes, by numpy."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True))[:, 1:]


def logits_of(network, given):
    with torch.no_grad():
        return network(given).numpy()


def run_onnx(path, given):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probability"], {"image": given.numpy()})[0]


def run_pt2(path, given):
    with torch.no_grad():
        return torch.export.load(path).module()(given).numpy()


RUNNERS = [
    pytest.param(Format.ONNX, "m.onnx", run_onnx, marks=ONNX, id="onnx"),
    pytest.param(Format.TORCH_EXPORT, "m.pt2", run_pt2, id="torch_export"),
]


@pytest.mark.parametrize(("kind", "name", "run"), RUNNERS)
def test_a_graph_says_what_the_network_says_for_any_number_of_windows(tmp_path, kind, name, run):
    network = unet(out_channels=3)
    made = export_model(model(network, labels={0: "none", 1: "small", 2: "large"}), kind, tmp_path / name)
    assert (made.path, made.shape) == (tmp_path / name, (1, 1, *WINDOW))
    assert made.difference < 1e-5
    for count in (1, 3):
        given = windows(count)
        said = run(made.path, given)
        assert said.shape == (count, 2, *WINDOW)
        np.testing.assert_allclose(said, softmax(logits_of(network, given)), atol=1e-5)  # float32, another order
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("kind", "name", "run"), RUNNERS)
def test_a_graph_of_several_members_gives_the_mean_of_their_probabilities(tmp_path, kind, name, run):
    """Of sigmoids here, with two channels, and one of the networks with batch normalisation."""
    networks = [unet(seed, in_channels=2, norm=norm) for seed, norm in enumerate(("batch", "instance", "instance"))]
    changes = {"channels": ("T1", "T2"), "labels": {0: "none", 1: "outer", 2: "inner"}, "activation": "sigmoid"}
    export_model(model(*networks, **changes), kind, tmp_path / name)
    given = windows(2, channels=2)
    each = [1 / (1 + np.exp(-logits_of(network, given))) for network in networks]
    np.testing.assert_allclose(run(tmp_path / name, given), np.mean(each, axis=0), atol=1e-5)
    assert np.ptp(each, axis=0).max() > 0.1  # a file with one of them would be told from the mean


def test_the_other_network_and_heads_of_coarser_levels_are_exported_too(tmp_path):
    network = unet(kind=ResidualUNet3d, deep_supervision=1)
    export_model(model(network), Format.TORCH_EXPORT, tmp_path / "m.pt2")
    given = windows(2)
    np.testing.assert_allclose(run_pt2(tmp_path / "m.pt2", given), softmax(logits_of(network, given)), atol=1e-5)


@ONNX
def test_an_onnx_file_carries_the_card_and_is_sound(tmp_path):
    import onnx

    given = model(intended_use="Naïve trials only: 病変.")
    export_model(given, Format.ONNX, tmp_path / "m.onnx")
    found = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(found, full_check=True)
    card = json.loads({entry.key: entry.value for entry in found.metadata_props}["model.json"])
    assert card == {"format_version": 2, **given.card.to_dict(), "weights_sha256": [f"{0:064x}"]}
    batch, *others = [dim.dim_value or dim.dim_param for dim in found.graph.input[0].type.tensor_type.shape.dim]
    assert (isinstance(batch, str), others) == (True, [1, *WINDOW])


def test_a_torch_export_carries_the_card(tmp_path):
    export_model(model(), Format.TORCH_EXPORT, tmp_path / "m.pt2")
    extra = {"model.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    assert json.loads(extra["model.json"])["name"] == "trial"


class Wavering(nn.Module):
    """Says something else each time, as a network with dropout left on would."""

    def forward(self, images):
        return torch.cat([images, images + torch.rand_like(images)], dim=1)


def test_a_file_that_computes_otherwise_is_not_left(tmp_path):
    path = tmp_path / "m.pt2"
    path.write_text("an earlier one")
    with pytest.raises(ModelError, match=r"differ by up to 0\.[12]\d*, and 0\.0001 is allowed. Nothing was written"):
        export_model(model(Wavering()), Format.TORCH_EXPORT, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt2"]
    assert path.read_text() == "an earlier one"


@pytest.mark.parametrize("kind", [Format.TORCH_EXPORT, Format.MONAI_BUNDLE])
def test_weights_that_are_not_finite_are_not_written(tmp_path, kind):
    network = unet()
    with torch.no_grad():
        network.head.bias[0] = torch.nan
    with pytest.raises(ModelError, match="differ by up to nan"):
        export_model(model(network), kind, tmp_path / f"m{kind.ending}")
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """Asks a voxel which way to go, which no graph can hold."""

    def forward(self, images):
        return torch.cat([images, images], dim=1) if images.sum() > 0 else torch.cat([images, -images], dim=1)


def test_a_network_that_cannot_be_traced_is_told(tmp_path):
    with pytest.raises(ModelError, match=r"the network cannot be written as torch.export: .+"):
        export_model(model(Branching()), Format.TORCH_EXPORT, tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime.*pip install 'medfocal\[onnx\]'"):
        export_model(model(), Format.ONNX, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("kind", "output", "told"),
    [
        (Format.ONNX, "m.pt2", r"must end in \.onnx, which is what format=onnx writes, got 'm\.pt2'"),
        (Format.TORCH_EXPORT, "m.onnx", r"must end in \.pt2"),
        (Format.MONAI_BUNDLE, " ", "output must name a folder, got ' '"),
        (Format.ONNX, "..", "must end in"),
        (Format.MONAI_BUNDLE, ".", "output must name a folder"),
    ],
)
def test_an_output_of_another_kind_is_refused(kind, output, told):
    with pytest.raises(ValueError, match=told):
        kind.check_output(output)


def bundle(tmp_path, given):
    folder = tmp_path / "deep" / "bundle"
    made = export_model(given, Format.MONAI_BUNDLE, folder)
    assert made.path == folder
    assert made.difference < 1e-6
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    return folder


def stated(folder, name="inference"):
    return json.loads((folder / "configs" / f"{name}.json").read_text("utf-8"))


def built(folder, names):
    """The network of a bundle as MONAI builds it, with its weights, by nothing of medfocal's export."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(stated(folder))
    parser["bundle_root"] = str(folder)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    assert type(network).__name__ == names
    return network.eval()


@pytest.mark.parametrize(
    ("kind", "changes", "names"),
    [
        (UNet3d, {}, "DynUNet"),
        (UNet3d, {"norm": "batch", "dropout": 0.2, "upsample_bias": True, "deep_supervision": 1}, "DynUNet"),
        (UNet3d, {"kernel_sizes": [[3, 3, 1], 3, 3]}, "DynUNet"),
        (ResidualUNet3d, {"deep_supervision": 1}, "ResidualUNet3d"),
    ],
)
def test_a_bundle_builds_the_network_with_monai(tmp_path, kind, changes, names):
    network = unet(kind=kind, **changes)
    folder = bundle(tmp_path, model(network))
    given = windows(2)
    with torch.no_grad():
        np.testing.assert_array_equal(built(folder, names)(given), network(given))
    needs_medfocal = "medfocal" in stated(folder, "metadata")["required_packages_version"]
    assert needs_medfocal == (names == "ResidualUNet3d") == ("medfocal==" in (folder / "docs/README.md").read_text())


def test_a_bundle_holds_what_its_reader_looks_for(tmp_path):
    given = model(labels={0: "background", 1: "metastasis"}, intended_use="Trial only.")
    folder = bundle(tmp_path, given)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        *("LICENSE", "configs/inference.json", "configs/metadata.json"),
        *("docs/README.md", "docs/model.json", "models/model.pt"),
    ]
    page = (folder / "docs" / "README.md").read_text()
    assert "metastasis" in page
    assert "Trial only." in page
    assert "Research use. Not a medical device" in page
    assert json.loads((folder / "docs" / "model.json").read_text())["name"] == "trial"
    said = stated(folder, "metadata")
    assert (said["intended_use"], said["monai_version"]) == ("Trial only.", "1.6.1")
    data = said["network_data_format"]
    assert data["inputs"]["image"]["spatial_shape"] == list(WINDOW)
    assert data["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "metastasis"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "$__import__('pathlib').Path('touched').touch()"},
        {"channels": ("@network",)},
        {"labels": {0: "background", 1: "%configs/other.json"}},
        {"intended_use": "$1"},
    ],
)
def test_text_that_monai_would_evaluate_is_refused(tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"MONAI would evaluate text that begins with \$, @, %"):
        export_model(model(**changes), Format.MONAI_BUNDLE, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_correction_of_anything_but_numbers_is_refused(tmp_path):
    correction = {"gamma": 2.0, "alpha": ["$print(1)"], "temperature": 1.0}
    with pytest.raises(ModelError, match="correction must hold numbers only"):
        export_model(model(correction=correction), Format.MONAI_BUNDLE, tmp_path / "bundle")


def test_a_bundle_of_several_members_is_refused_and_told_where_they_fit(tmp_path):
    with pytest.raises(ModelError, match=r"has 2 members and a MONAI bundle has one network.*format=onnx"):
        export_model(model(unet(1), unet(2)), Format.MONAI_BUNDLE, tmp_path / "bundle")


def test_a_bundle_of_another_network_is_refused(tmp_path):
    with pytest.raises(ModelError, match="names its network, and Wavering is none of"):
        export_model(model(Wavering()), Format.MONAI_BUNDLE, tmp_path / "bundle")


def test_a_bundle_replaces_nothing_but_an_empty_folder(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    export_model(model(), Format.MONAI_BUNDLE, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for taken in (folder, folder / "LICENSE"):
        with pytest.raises(ConfigError, match="exists and a bundle replaces nothing"):
            export_model(model(unet(1)), Format.MONAI_BUNDLE, taken)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_bundle_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="file"):
        export_model(model(), Format.MONAI_BUNDLE, tmp_path / "file" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def image_at(path, shape, affine, seed=0):
    """A body of noise within air, so that one value means outside."""
    path.parent.mkdir(exist_ok=True)
    array = np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
    write_volume(path, Volume(array, affine))


def turned():
    """Axes (P, S, L), off-centre, unequal spacing."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -SPACING_MM[1], SPACING_MM[2], -SPACING_MM[0], 1
    affine[:3, 3] = (31.0, -17.0, 42.5)
    return affine


def monai_run(folder, images, output):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(folder / "configs/inference.json")]
    command += ["--bundle_root", str(folder), "--dataset_dir", str(images), "--output_dir", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=output.parent, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def both(tmp_path, given):
    """Probability maps of `<case>` by the bundle under MONAI's own command, and by medfocal."""
    folder, images = bundle(tmp_path, given), tmp_path / "images"
    monai_run(folder, images, tmp_path / "theirs")
    predict(given, images, tmp_path / "ours", device=CPU, settings=PredictSettings(save_probability=True))
    pairs = {}
    for mine in sorted((tmp_path / "ours").glob("*_probability.nii.gz")):
        name = mine.name.removesuffix("_probability.nii.gz")
        (theirs,) = (tmp_path / "theirs").glob(f"{name}*_probability.nii.gz")
        pairs[name] = (read_volume(theirs), read_volume(mine))
        assert pairs[name][0].same_grid(pairs[name][1]), pairs[name][0].grid_difference(pairs[name][1])
        assert np.ptp(pairs[name][1].array) > 0.1
    return pairs


@BUNDLE
def test_monai_runs_a_bundle_to_the_same_probabilities(tmp_path):
    """One window, less than one, one with its axes turned, and many of which each voxel is an average."""
    given = model(unet(out_channels=3), labels={0: "none", 1: "small", 2: "large"})
    image_at(tmp_path / "images" / "full.nii.gz", WINDOW, np.diag([*SPACING_MM, 1]))
    image_at(tmp_path / "images" / "small.nii.gz", (11, 12, 7), np.diag([*SPACING_MM, 1]), seed=1)
    image_at(tmp_path / "images" / "turned.nii.gz", (12, 8, 16), turned(), seed=2)
    image_at(tmp_path / "images" / "wide.nii.gz", (27, 12, 25), turned(), seed=3)
    pairs = both(tmp_path, given)
    assert list(pairs) == ["full", "small", "turned", "wide"]
    for theirs, ours in pairs.values():
        np.testing.assert_allclose(theirs.array, ours.array, atol=1e-4)


@BUNDLE
def test_monai_runs_a_bundle_with_channels_percentiles_regions_and_a_correction(tmp_path):
    correction = {"gamma": [1.0, 2.0, 2.0], "alpha": None, "temperature": 1.5}
    given = model(
        unet(in_channels=2, out_channels=2),
        channels=("T1", "T2"),
        labels={0: "none", 1: "outer", 2: "inner"},
        activation="sigmoid",
        overlapping=True,
        preprocessing=Preprocessing(orientation="LPS", spacing_mm=None, intensity="percentile_zscore"),
        correction=correction,
    )
    for channel in (0, 1):
        image_at(tmp_path / "images" / f"a_000{channel}.nii.gz", (12, 8, 16), turned(), seed=channel)
    theirs, ours = both(tmp_path, given)["a"]
    np.testing.assert_allclose(theirs.array, ours.array, atol=1e-4)
    plain = replace(given, card=replace(given.card, correction={"gamma": 0.0, "alpha": None, "temperature": 1.0}))
    predict(plain, tmp_path / "images", tmp_path / "plain", device=CPU, settings=PredictSettings(save_probability=True))
    uncorrected = read_volume(tmp_path / "plain" / "a_probability.nii.gz").array
    assert np.abs(uncorrected - theirs.array).max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"orientation": "RAS", "spacing_mm": (0.5, 0.5, 1.5), "intensity": "zscore_nonzero"},
        {"orientation": "PSL", "spacing_mm": None, "intensity": "percentile_zscore"},
        {"orientation": "LPI", "spacing_mm": None, "intensity": "none"},
    ],
)
def test_a_bundle_shows_the_network_what_medfocal_shows_it(tmp_path, settings):
    """Also where it resamples, to a grid that is nowhere coarser."""
    from monai.bundle import ConfigParser

    array = np.random.default_rng(0).normal(100, 30, (27, 12, 25)).astype(np.float32)
    array[:5] = 0  # air
    array[20] -= 300  # values beyond the percentiles
    path = tmp_path / "images" / "a.nii.gz"
    write_volume(path, Volume(array, turned()))
    parser = ConfigParser(stated(bundle(tmp_path, model(preprocessing=Preprocessing(**settings)))))
    parser["dataset_dir"] = str(path.parent)
    (shown,) = [entry["image"] for entry in parser.get_parsed_content("dataset")]
    prepared = prepare_case(read_case(Case("a", "a", "test", (path,)), LabelScheme({})), Preprocessing(**settings))
    np.testing.assert_allclose(shown.numpy(), prepared.image, atol=1e-4 * float(prepared.image.max()))
    np.testing.assert_allclose(shown.affine, prepared.affine, atol=1e-4)


@BUNDLE
def test_monai_finds_the_shapes_of_a_bundle_as_its_metadata_says(tmp_path):
    folder = bundle(tmp_path, model())
    command = [sys.executable, "-m", "monai.bundle", "verify_net_in_out", "network_def"]
    command += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_bundles_weights_start_a_training(tmp_path):
    from medfocal.train.pretrained import load_initial_weights

    network, other = unet(3), unet(4)
    report = load_initial_weights(other, bundle(tmp_path, model(network)))
    assert (report["names"], report["left_random"]) == ("MONAI DynUNet", [])
    for name, value in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
