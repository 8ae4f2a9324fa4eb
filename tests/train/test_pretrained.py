"""Weights of others: whose names are known, what is copied, and files that must not be trusted."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medfocal.errors import ModelError
from medfocal.networks import ResidualUNet3d, UNet3d
from medfocal.train.pretrained import load_initial_weights

STRIDES = [[1, 1, 1], [2, 2, 1], [2, 2, 2], [1, 2, 2]]
KERNELS = [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
CHANNELS = [3, 4, 5, 5]
BLOCKS = [1, 2, 1, 2]
IMAGE = torch.linspace(-1, 1, 2 * 8 * 16 * 8).mul(40).sin().reshape(1, 2, 8, 16, 8)


class NnUNet:
    """nnU-Net's networks, written as one function of a state dict that this makes, with its names.

    Args:
        residual: ResidualEncoderUNet, with one convolution a level on the way up; else PlainConvUNet, with two.
        axes: Which of our axes its axes are; kernels and strides are given in ours.
    """

    def __init__(
        self,
        *,
        residual,
        in_channels=2,
        num_classes=3,
        kernels=KERNELS,
        strides=STRIDES,
        channels=CHANNELS,
        axes=(2, 1, 0),
    ):
        self.residual, self.channels, self.axes = residual, channels, axes
        self.kernels, self.strides = ([[each[axis] for axis in axes] for each in of] for of in (kernels, strides))
        self.random = torch.Generator().manual_seed(8)
        self.state = {}
        self.last = len(channels) - 1
        before = in_channels
        if residual:
            self.convolution("encoder.stem.convs.0", before, channels[0], self.kernels[0])
            before = channels[0]
        for level, features in enumerate(channels):
            self.stage(level, before, features)
            before = features
        for at in range(self.last):
            level = self.last - 1 - at
            below, features, step = channels[level + 1], channels[level], self.strides[level + 1]
            self.state[f"decoder.transpconvs.{at}.weight"] = self.values(below, features, *step)
            self.state[f"decoder.transpconvs.{at}.bias"] = self.values(features)
            for number in range(1 if residual else 2):
                name = f"decoder.stages.{at}.convs.{number}"
                self.convolution(name, 2 * features if number == 0 else features, features, self.kernels[level])
            self.state[f"decoder.seg_layers.{at}.weight"] = self.values(num_classes, features, 1, 1, 1)
            self.state[f"decoder.seg_layers.{at}.bias"] = self.values(num_classes)
        twice = {name.replace(".conv.", ".all_modules.0."): value for name, value in self.state.items()}
        twice |= {f"decoder.{name}": value for name, value in self.state.items() if name.startswith("encoder.")}
        self.state |= twice

    def values(self, *shape):
        return torch.randn(*shape, generator=self.random)

    def convolution(self, name, before, features, kernel, *, bias=True):
        self.state[f"{name}.conv.weight"] = self.values(features, before, *kernel)
        if bias:
            self.state[f"{name}.conv.bias"] = self.values(features)
        self.state[f"{name}.norm.weight"] = self.values(features)
        self.state[f"{name}.norm.bias"] = self.values(features)

    def stage(self, level, before, features):
        if not self.residual:
            for number in range(2):
                name = f"encoder.stages.{level}.0.convs.{number}"
                self.convolution(name, before if number == 0 else features, features, self.kernels[level])
            return
        for number in range(BLOCKS[level]):
            name, inputs = f"encoder.stages.{level}.blocks.{number}", before if number == 0 else features
            self.convolution(f"{name}.conv1", inputs, features, self.kernels[level])
            self.convolution(f"{name}.conv2", features, features, self.kernels[level])
            if inputs != features:
                pooled = int(max(self.strides[level]) > 1)
                self.convolution(f"{name}.skip.{pooled}", inputs, features, [1, 1, 1], bias=False)

    def compute(self, name, features, stride=1, *, activate=True):
        """Convolution, normalisation and leaky rectifier."""
        weight = self.state[f"{name}.conv.weight"]
        padding = [size // 2 for size in weight.shape[2:]]
        bias = self.state.get(f"{name}.conv.bias")
        found = F.conv3d(features, weight, bias, stride=stride, padding=padding)
        found = F.instance_norm(found, weight=self.state[f"{name}.norm.weight"], bias=self.state[f"{name}.norm.bias"])
        return F.leaky_relu(found, 0.01) if activate else found

    def compute_stage(self, level, features):
        stride = self.strides[level]
        if not self.residual:
            features = self.compute(f"encoder.stages.{level}.0.convs.0", features, stride)
            return self.compute(f"encoder.stages.{level}.0.convs.1", features)
        for number in range(BLOCKS[level]):
            name = f"encoder.stages.{level}.blocks.{number}"
            shortcut = F.avg_pool3d(features, stride) if number == 0 else features
            for at in (0, 1):
                if f"{name}.skip.{at}.conv.weight" in self.state:
                    shortcut = self.compute(f"{name}.skip.{at}", shortcut, activate=False)
            inner = self.compute(f"{name}.conv1", features, stride if number == 0 else 1)
            features = F.leaky_relu(self.compute(f"{name}.conv2", inner, activate=False) + shortcut, 0.01)
        return features

    def __call__(self, image):
        """Logits of all levels, full resolution first, in our axes as the image."""
        image = image.permute(0, 1, *(2 + axis for axis in self.axes))
        features = self.compute("encoder.stem.convs.0", image) if self.residual else image
        skips = []
        for level in range(len(self.channels)):
            features = self.compute_stage(level, features)
            skips.append(features)
        logits = []
        for at in range(self.last):
            level, up = self.last - 1 - at, f"decoder.transpconvs.{at}"
            step = self.strides[level + 1]
            features = F.conv_transpose3d(features, self.state[f"{up}.weight"], self.state[f"{up}.bias"], stride=step)
            features = torch.cat([features, skips[level]], dim=1)
            for number in range(1 if self.residual else 2):
                features = self.compute(f"decoder.stages.{at}.convs.{number}", features)
            head = f"decoder.seg_layers.{at}"
            logits.append(F.conv3d(features, self.state[f"{head}.weight"], self.state[f"{head}.bias"]))
        return [level.permute(0, 1, *(2 + self.axes.index(axis) for axis in range(3))) for level in logits[::-1]]


def network(*, residual=False, **arguments):
    kind, own = (ResidualUNet3d, {"blocks": BLOCKS}) if residual else (UNet3d, {})
    stated = {"in_channels": 2, "out_channels": 3, "channels": CHANNELS, "kernel_sizes": KERNELS, "strides": STRIDES}
    return kind(**{**stated, **own, **arguments})


def save(path, values):
    torch.save(values, path)
    return path


def checkpoint_of_nnunet(weights, plans=None):
    """What nnU-Net 2 writes: numpy scalars among the curves, and a device."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float32(0.3)], "val_losses": [np.float64(-0.2)], "lrs": [0.01]},
        "_best_ema": np.float64(0.4),
        "current_epoch": np.int64(1000),
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


@pytest.mark.parametrize("residual", [False, True])
def test_an_nnunet_checkpoint_gives_the_logits_of_its_network_at_all_levels(tmp_path, residual):
    theirs = NnUNet(residual=residual)
    path = save(tmp_path / "checkpoint_final.pth", checkpoint_of_nnunet(theirs.state))
    ours = network(residual=residual, deep_supervision=2, upsample_bias=True)
    report = load_initial_weights(ours, path)
    for found, expected in zip(ours(IMAGE), theirs(IMAGE), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert report["names"] == "nnU-Net"
    assert report["matched"] == report["of"] == len(ours.state_dict())
    assert report["parameters_matched"] == report["parameters_of"] == sum(p.numel() for p in ours.parameters())
    assert report["left_random"] == report["not_used"] == report["other_shape"] == []
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["source"] == str(path)


def test_a_shortcut_that_changes_the_number_of_features_without_a_stride_is_found(tmp_path):
    strides = [STRIDES[0], STRIDES[1], [1, 1, 1], STRIDES[3]]
    theirs = NnUNet(residual=True, strides=strides)
    assert "encoder.stages.2.blocks.0.skip.0.norm.weight" in theirs.state
    ours = network(residual=True, strides=strides, upsample_bias=True).eval()
    assert load_initial_weights(ours, save(tmp_path / "w.pth", theirs.state))["left_random"] == []
    torch.testing.assert_close(ours(IMAGE), theirs(IMAGE)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("plans", "axes"),
    [
        ({"transpose_forward": [0, 1, 2]}, (2, 1, 0)),
        ({"transpose_forward": [0, 2, 1]}, (2, 0, 1)),
        ({"transpose_forward": [2, 1, 0]}, (0, 1, 2)),
        ({"transpose_forward": [0, 0, 1]}, (2, 1, 0)),
        ({"transpose_forward": "021"}, (2, 1, 0)),
        ({"transpose_forward": 3}, (2, 1, 0)),
        ({"transpose_forward": [torch.zeros(2), 1, 2]}, (2, 1, 0)),
        ("none", (2, 1, 0)),
    ],
)
def test_kernels_are_turned_from_the_axes_of_the_plans_to_ours(tmp_path, plans, axes):
    """transpose_forward [0, 2, 1] of (K, J, I) is (K, I, J), our axes 2, 0 and 1."""
    theirs = NnUNet(residual=False, axes=axes)
    path = save(tmp_path / "checkpoint_final.pth", checkpoint_of_nnunet(theirs.state, plans))
    ours = network(upsample_bias=True).eval()
    assert load_initial_weights(ours, path)["other_shape"] == []
    torch.testing.assert_close(ours(IMAGE), theirs(IMAGE)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_biases_before_instance_norm_are_told_apart_as_without_effect(tmp_path, residual):
    theirs = NnUNet(residual=residual)
    path = save(tmp_path / "w.pth", theirs.state)
    report = load_initial_weights(network(residual=residual, upsample_bias=True), path)
    expected = {name for name in theirs.state if name.endswith(".conv.bias") and not name.startswith("decoder.encoder")}
    assert set(report["without_effect"]) == expected
    assert {name.split(".")[1] for name in report["not_used"]} == {"seg_layers"}


def test_biases_before_batch_norm_are_not_used_and_matter(tmp_path):
    path = save(tmp_path / "w.pth", NnUNet(residual=False).state)
    report = load_initial_weights(network(norm="batch"), path)
    assert report["without_effect"] == []
    assert "encoder.stages.0.0.convs.0.conv.bias" in report["not_used"]


def test_biases_of_transposed_convolutions_are_told_where_the_network_has_none(tmp_path):
    path = save(tmp_path / "w.pth", NnUNet(residual=False).state)
    report = load_initial_weights(network(), path)
    assert {f"decoder.transpconvs.{at}.bias" for at in range(3)} <= set(report["not_used"])


def test_other_channels_and_classes_leave_first_layer_and_head_as_they_were(tmp_path):
    path = save(tmp_path / "w.pth", NnUNet(residual=False, in_channels=1, num_classes=5).state)
    ours = network()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    report = load_initial_weights(ours, path)
    left = ["body.downsample.conv1.conv.weight", "head.weight", "head.bias"]
    assert report["left_random"] == left
    assert report["other_shape"][0] == f"{left[0]}: (3, 1, 3, 3, 1) there, (3, 2, 3, 3, 1) here"
    assert [line.partition(":")[0] for line in report["other_shape"]] == left
    assert "decoder.seg_layers.2.weight" in report["not_used"]
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]) == (name in left), name


def test_levels_are_counted_from_full_resolution_where_theirs_are_more(tmp_path):
    theirs = NnUNet(residual=False)
    path = save(tmp_path / "w.pth", theirs.state)
    ours = network(channels=CHANNELS[:3], kernel_sizes=KERNELS[:3], strides=STRIDES[:3])
    report = load_initial_weights(ours, path)
    assert report["left_random"] == []
    state = ours.state_dict()
    for name, other in {
        "body.upsample.transp_conv.conv.weight": "decoder.transpconvs.2.weight",
        "body.next_layer.next_layer.conv1.conv.weight": "encoder.stages.2.0.convs.0.conv.weight",
    }.items():
        assert torch.equal(state[name], theirs.state[other].transpose(2, 4))
    assert "encoder.stages.3.0.convs.0.conv.weight" in report["not_used"]


@pytest.mark.parametrize("levels", [3, 4])
def test_a_dynunet_in_a_bundle_gives_its_logits(tmp_path, levels):
    from monai.networks.nets.dynunet import DynUNet

    strides, channels = STRIDES[:levels], CHANNELS[:levels]
    kernels, norm = KERNELS[:levels], ("INSTANCE", {"affine": True})
    theirs = DynUNet(
        3, 2, 3, kernels, strides, strides[1:], filters=channels, norm_name=norm, trans_bias=True,
        deep_supervision=True, deep_supr_num=1,
    )  # fmt: skip
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    (tmp_path / "models").mkdir()
    save(tmp_path / "models" / "model.pt", {"epoch": torch.tensor(3), "model": theirs.state_dict()})
    ours = network(channels=channels, kernel_sizes=kernels, strides=strides, upsample_bias=True, deep_supervision=1)
    report = load_initial_weights(ours, tmp_path)
    assert report["names"] == "MONAI DynUNet"
    assert report["left_random"] == report["not_used"] == []
    assert torch.equal(ours.eval()(IMAGE), theirs.eval()(IMAGE))
    assert torch.equal(ours.all_heads[1].weight, theirs.state_dict()["deep_supervision_heads.0.conv.conv.weight"])


@pytest.mark.parametrize("nested", [None, "state_dict", "network", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model."])
def test_state_dicts_are_found_under_known_keys_and_prefixes(tmp_path, nested, prefix):
    theirs, ours = network(), network()
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    path = save(tmp_path / "w.pt", state if nested is None else {"epoch": 4, nested: state})
    report = load_initial_weights(ours, path)
    assert report["names"] == "medfocal"
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_safetensors_and_half_precision_are_read(tmp_path):
    from safetensors.torch import save_file

    theirs, ours = network().half(), network()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    report = load_initial_weights(ours, tmp_path / "w.safetensors")
    assert report["left_random"] == []
    assert ours.head.weight.dtype == torch.float32
    assert torch.equal(ours.head.weight, theirs.head.weight.float())


def test_running_statistics_of_batch_norm_are_copied_too(tmp_path):
    theirs, ours = network(norm="batch"), network(norm="batch")
    theirs(IMAGE)
    load_initial_weights(ours, save(tmp_path / "w.pt", theirs.state_dict()))
    assert torch.equal(ours.eval()(IMAGE), theirs.eval()(IMAGE))
    assert int(ours.state_dict()["body.downsample.norm1.num_batches_tracked"]) == 1


def test_a_report_is_plain_json_and_has_a_line_for_people(tmp_path):
    path = save(tmp_path / "w.pth", NnUNet(residual=False, num_classes=5).state)
    report = load_initial_weights(network(upsample_bias=True), path)
    assert json.loads(json.dumps(report)) == report
    assert report["summary"].startswith(f"{report['matched']} of {report['of']} tensors")
    assert "left random: head.weight, head.bias; not used: decoder.seg_layers" in report["summary"]


# What is refused, and that a refusal leaves the network as it was.


def refused(path, match, ours=None):
    ours = network() if ours is None else ours
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ModelError, match=match):
        load_initial_weights(ours, path)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_weights_of_another_kind_of_network_are_refused_with_what_was_found_and_wanted(tmp_path):
    path = save(tmp_path / "w.pth", NnUNet(residual=True).state)
    refused(path, r"less than half.*encoder\.stem\.convs\.0\.conv\.weight \(3, 2, 1, 3, 3\).*wanted.*body\.downsample")


def test_weights_of_other_widths_are_refused_with_both_shapes(tmp_path):
    path = save(tmp_path / "w.pth", NnUNet(residual=False, channels=[6, 8, 10, 10]).state)
    refused(
        path, r"shapes differ: body\.downsample\.conv1\.conv\.weight: \(6, 2, 3, 3, 1\) there, \(3, 2, 3, 3, 1\) here"
    )


def test_half_of_the_parameters_is_enough_and_less_is_not(tmp_path):
    """Sizes of tensors count, not their number."""
    state = network().state_dict()
    small = {name: value for name, value in state.items() if value.ndim < 5}
    assert len(small) > len(state) / 2
    refused(save(tmp_path / "small.pt", small), "less than half")
    large = {name: value for name, value in state.items() if value.ndim == 5 and value.numel() > 300}
    assert len(large) < len(state) / 2
    load_initial_weights(network(), save(tmp_path / "large.pt", large))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = network().state_dict()
    state["head.bias"][1] = value
    refused(save(tmp_path / "w.pt", state), "not finite")


def test_names_that_are_many_or_cannot_be_printed_do_not_fill_the_message(tmp_path):
    state = {f"\x1b[2Jred{number}": torch.zeros(1) for number in range(999)}
    with pytest.raises(ModelError) as refusal:
        load_initial_weights(network(), save(tmp_path / "w.pt", state))
    assert str(refusal.value).isprintable()
    assert "'\\x1b[2Jred0 (1,)'" in str(refusal.value)
    assert "and 996 more" in str(refusal.value)


def test_a_missing_file_and_a_folder_of_another_kind_are_refused(tmp_path):
    refused(tmp_path / "w.pt", r"'.*w\.pt' cannot be read: No such file")
    refused(tmp_path, "neither a model folder of medfocal .* nor a MONAI bundle")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02}q", b"PK\x03\x04 no archive", os.urandom(3000), b"<html></html>"])
def test_a_file_of_something_else_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    refused(path, r"are damaged, or hold more than tensors")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = save(tmp_path / "w.pth", checkpoint_of_nnunet(NnUNet(residual=False).state))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, r"damaged")


def test_an_altered_byte_of_a_tensor_is_refused(tmp_path):
    state = network().state_dict()
    path = save(tmp_path / "w.pt", state)
    content = bytearray(path.read_bytes())
    at = content.find(state["body.downsample.conv2.conv.weight"].numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    refused(path, "checksum of '.*' does not match")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile_files(folder, marker):
    values = {"network_weights": network().state_dict(), "logging": Hostile(marker)}
    yield save(folder / "checkpoint_final.pth", values)
    old = folder / "old.pth"
    torch.save(values, old, _use_new_zipfile_serialization=False)
    yield old
    plain = folder / "pickle.pt"
    plain.write_bytes(pickle.dumps(values))
    yield plain


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    for path in hostile_files(tmp_path, marker):
        refused(path, r"hold more than tensors and plain values: ")
        assert not marker.exists(), path


def test_the_hostile_files_of_these_tests_would_run(tmp_path):
    for number, path in enumerate(hostile_files(tmp_path, tmp_path / "ran")):
        if number < 2:
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
        (tmp_path / "ran").rmdir()


def test_names_of_numpy_stand_for_nothing_and_only_while_a_file_is_read(tmp_path):
    """A dtype with an object in it, which numpy would take apart, is not even made."""
    values = {"state_dict": network().state_dict(), "best": np.float64(0.5), "curve": np.arange(3.0)}
    path = save(tmp_path / "w.pt", values)
    load_initial_weights(network(), path)
    assert not [name for name in torch.serialization.get_safe_globals() if "numpy" in str(name)]
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)
    refused(
        save(tmp_path / "objects.pt", values | {"best": np.array([Hostile(tmp_path / "ran")])}), "more than tensors"
    )
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_refused_with_advice(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.ts"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"model/{name}", b"x")
    refused(path, r"are TorchScript, which would run\. Take the bundle's models/model\.pt")
    refused(tmp_path, r"bundle '.*' holds its network as TorchScript only.*Take the bundle's models/model\.pt")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(10_000_000))
    refused(path, "are a compressed archive")


@pytest.mark.parametrize("values", [3, [torch.zeros(2)], {"state_dict": {"a": 1}}, {"a": {"b": {"c": torch.zeros(2)}}}])
def test_a_file_without_named_tensors_is_refused(tmp_path, values):
    refused(save(tmp_path / "w.pt", values), "hold no tensors under their own names or under network_weights")


@pytest.mark.parametrize("value", [torch.zeros(3, 3).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2) * 1j])
def test_tensors_of_other_kinds_are_not_taken(tmp_path, value):
    refused(save(tmp_path / "w.pt", {"head.bias": value}), "hold no tensors")


def test_a_shape_that_agrees_in_size_only_is_not_taken(tmp_path):
    state = network().state_dict()
    state["head.weight"] = state["head.weight"].reshape(3, 3)
    state["head.bias"] = torch.zeros(3, dtype=torch.int64)
    report = load_initial_weights(network(), save(tmp_path / "w.pt", state))
    assert report["left_random"] == ["head.weight", "head.bias"]


def test_a_narrower_kernel_is_widened_in_an_nnunet_decoder_only(tmp_path):
    """Strides lie between: a kernel of the encoder that is narrower belongs to another grid."""
    narrow = [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3]]
    path = save(tmp_path / "w.pth", NnUNet(residual=False, kernels=narrow).state)
    report = load_initial_weights(network(), path)
    assert [name for name in report["left_random"] if ".upsample." in name] == []
    assert [name for name in report["left_random"] if ".downsample." in name] == [
        "body.next_layer.downsample.conv1.conv.weight",
        "body.next_layer.downsample.conv2.conv.weight",
    ]


def test_a_model_folder_gives_all_its_weights(tmp_path):
    theirs, folder = saved_model(tmp_path)
    ours = UNet3d(**theirs.arguments)
    report = load_initial_weights(ours, folder)
    assert report["left_random"] == []
    assert report["sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert torch.equal(ours(IMAGE[:, :1]), theirs(IMAGE[:, :1]))


def saved_model(folder: Path):
    from medfocal.data.transforms import Preprocessing
    from medfocal.model import PLAIN_CANDIDATES, Member, ModelCard, OperatingPoint, save_model

    theirs = UNet3d(in_channels=1, out_channels=2, channels=CHANNELS)
    card = ModelCard(
        name="test",
        members=(Member(network={"name": "UNet3d", "arguments": theirs.arguments}),),
        channels=("FLAIR",),
        labels={0: "background", 1: "lesion"},
        activation="softmax",
        preprocessing=Preprocessing(orientation="RAS", spacing_mm=(1.0, 1.0, 1.0)),
        window={"size": [16, 16, 16], "overlap": 0.5, "batch": 1, "precision": "auto"},
        candidates={"extent_ratio": 0.5, "floor": 0.1, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES},
        operating_points=(OperatingPoint(name="default", threshold=0.5, source="default"),),
    )
    return theirs, save_model(folder / "model", [theirs], card)
