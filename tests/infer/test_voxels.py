"""What networks say of whole cases: as MONAI averages, as brute force averages, and as regions are told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_models import CPU, image, pointwise, unet, window
from torch import nn

from medfocal.errors import ModelError
from medfocal.infer.memory import outline_of, plan_memory
from medfocal.infer.sliding import SIGMA, slide
from medfocal.infer.voxels import lesion_of, predict_voxels
from medfocal.infer.window import class_probabilities

SIZE = (16, 8, 12)


def predicted(networks, case, *, size=SIZE, overlap=0.5, batch=4, activation="softmax", **settings):
    networks = networks if isinstance(networks, list) else [networks]
    own = window(size, overlap=overlap, batch=batch)
    with torch.inference_mode():
        made = outline_of(networks[0])(torch.empty(1, case.shape[0], *size, device="meta"))
    num = made.shape[1] - (activation == "softmax")
    return predict_voxels(networks, case, window=own, activation=activation, num_classes=num, device=CPU, **settings)


def summed(network, case, *, size=SIZE, overlap=0.5, activation="softmax"):
    """Averages of every class `(K, I, J, K)`, of a case that is at least as large as a window."""
    with torch.inference_mode():
        num_channels = class_probabilities(network(case[None][..., : size[0], : size[1], : size[2]]), activation).shape[
            1
        ]
        total = torch.full((num_channels, *case.shape[1:]), torch.nan)

        def say(windows):
            return class_probabilities(network(windows), activation)

        own = window(size, overlap=overlap)
        for depth, columns, found in slide(say, case, window=own, num_channels=num_channels, device=CPU):
            total[:, depth, columns] = found
    return total.numpy()


def gaussian(size):
    away = [(torch.arange(n) - (n - 1) / 2) / (SIGMA * n) for n in size]
    return torch.exp(-0.5 * (away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2))


def by_monai(network, case, *, size=SIZE, overlap=0.5, activation="softmax"):
    from monai.inferers import sliding_window_inference

    def say(windows):
        return class_probabilities(network(windows), activation)

    with torch.inference_mode():
        found = sliding_window_inference(
            case[None], size, 4, say, overlap=overlap, mode="gaussian", roi_weight_map=gaussian(size)
        )
    return found[0].numpy()


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(21, 13, 15), (16, 8, 12), (33, 8, 17)])
def test_the_average_of_a_network_is_that_of_monai_with_the_same_gaussian(shape, overlap):
    network, case = unet(out_channels=2, in_channels=2), image(*shape)
    expected = by_monai(network, case, overlap=overlap)
    found = predicted(network, case, overlap=overlap)
    assert found.probability.dtype == np.float32
    assert found.probability.shape == shape
    np.testing.assert_allclose(found.probability, expected[0], atol=1e-4)
    assert np.ptp(expected) > 0.5
    assert found.classes is None
    assert found.spread is None


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("num_classes", [1, 2, 24])
def test_every_class_of_a_network_is_as_monai_averages_it(num_classes, activation):
    network = unet(in_channels=2, out_channels=num_classes + (activation == "softmax"))
    case = image(21, 13, 15)
    expected = by_monai(network, case, activation=activation)
    assert expected.shape == (num_classes, 21, 13, 15)
    np.testing.assert_allclose(summed(network, case, activation=activation), expected, atol=1e-4)
    found = predicted(network, case, activation=activation)
    lesion = expected.sum(axis=0) if activation == "softmax" else expected.max(axis=0)
    np.testing.assert_allclose(found.probability, lesion, atol=1e-4)
    if num_classes == 1:
        assert found.classes is None
        return
    assert found.classes.dtype == np.uint8
    highest, second = np.sort(expected, axis=0)[[-1, -2]]
    is_clear = highest - second > 1e-4
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(found.classes[is_clear], expected.argmax(axis=0)[is_clear] + 1)
    assert len(np.unique(found.classes)) > 1


@pytest.mark.parametrize("shape", [(9, 20, 6), (3, 5, 7), (16, 3, 12), (1, 1, 2), (20, 11, 1)])
def test_a_case_smaller_than_a_window_is_padded_as_monai_does(shape):
    network, case = unet(in_channels=2), image(*shape)
    np.testing.assert_allclose(predicted(network, case).probability, by_monai(network, case)[0], atol=1e-4)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("shape", [(12, 10, 8), (8, 6, 4), (13, 7, 5), (5, 17, 3), (2, 2, 2)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_pointwise_network_gives_the_same_as_on_the_whole_case(shape, overlap, activation):
    network, case = pointwise(), image(*shape)
    with torch.inference_mode():
        expected = class_probabilities(network(case[None]), activation)[0].numpy()
    found = predicted(network, case, size=(8, 6, 4), overlap=overlap, activation=activation)
    lesion = expected.sum(axis=0) if activation == "softmax" else expected.max(axis=0)
    np.testing.assert_allclose(found.probability, lesion, atol=5e-6)  # weights of 1e-3 and up, summed in float32
    np.testing.assert_array_equal(found.classes, expected.argmax(axis=0) + 1)


def test_the_number_of_windows_at_once_changes_nothing():
    network, case = unet(in_channels=2), image(21, 13, 15)
    found = [predicted(network, case, batch=batch).probability for batch in (1, 3, 64)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


def test_the_middle_of_a_window_counts_more_than_its_border():
    """The last window of a row is moved back to fit; each says where it stands, and the nearer one wins."""

    class Position(nn.Module):
        def forward(self, x):
            ramp = torch.linspace(-4, 4, x.shape[2], device=x.device).reshape(1, 1, -1, 1, 1)
            ramp = ramp.expand(x.shape[0], 1, *x.shape[2:])
            return torch.cat([-ramp, ramp], dim=1)

    case = torch.rand(2, 12, 4, 4)
    found = predicted(Position(), case, size=(8, 4, 4)).probability[:, 1, 2]  # windows at 0 and 4
    alone = predicted(Position(), case[:, :8], size=(8, 4, 4)).probability[:, 1, 2]
    np.testing.assert_allclose(found[:4], alone[:4], atol=1e-6)
    np.testing.assert_allclose(found[8:], alone[4:], atol=1e-6)
    assert abs(found[4] - alone[4]) < abs(found[4] - alone[0])
    assert abs(found[7] - alone[3]) < abs(found[7] - alone[7])


def test_a_bound_on_memory_changes_nothing():
    network, case = unet(in_channels=2, out_channels=25), image(21, 40, 15)
    own = window(SIZE, batch=1)
    plan = plan_memory(network, case.shape, own, 24, num_results=5, max_memory_mb=None)
    bound = plan.megabytes - 0.5
    assert plan_memory(network, case.shape, own, 24, num_results=5, max_memory_mb=bound).num_tiles > 1
    free = predicted(network, case, batch=1)
    tight = predicted(network, case, batch=1, max_memory_mb=bound)
    np.testing.assert_allclose(tight.probability, free.probability, atol=1e-5)
    np.testing.assert_array_equal(tight.classes, free.classes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_network_that_gives_nan_is_a_model_error(value, activation):
    network = pointwise()
    nn.init.constant_(network.bias, value if activation == "softmax" else float("nan"))
    with pytest.raises(ModelError, match="the network gives NaN"):
        predicted(network, image(8, 6, 4), size=(8, 6, 4), activation=activation)


def test_nan_in_one_voxel_of_one_class_is_seen():
    class Rare(nn.Module):
        def forward(self, x):
            made = torch.zeros(x.shape[0], 3, *x.shape[2:], device=x.device)
            made[:, 2][x[:, 0] > 50] = float("nan")
            return made

    case = image(20, 10, 14)
    case[0, 19, 9, 13] = 100
    with pytest.raises(ModelError, match="the network gives NaN"):
        predicted(Rare(), case)


def test_bfloat16_is_used_where_asked_and_stays_close():
    network, case = pointwise(), image(12, 10, 8)
    exact, rough = (
        predict_voxels(
            [network],
            case,
            window=window((8, 6, 4), precision=precision),
            activation="softmax",
            num_classes=2,
            device=CPU,
        ).probability
        for precision in ("float32", "bf16")
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.03  # 8 bits of mantissa on logits up to 5


def test_a_probability_never_leaves_0_to_1_by_rounding():
    class Sure(nn.Module):
        def forward(self, x):
            made = torch.randn(x.shape[0], 25, *x.shape[2:], generator=torch.Generator().manual_seed(0))
            made[:, 0] = -60
            return made.to(x.device)

    found = predicted(Sure(), image(33, 17, 25), overlap=0.7).probability
    assert found.max() <= 1
    assert found.min() >= 0.999


# Lesions, classes, regions


def test_lesion_classes_add_under_softmax_and_the_highest_counts_under_sigmoid():
    each = torch.tensor([0.3, 0.6]).reshape(2, 1, 1, 1)
    assert lesion_of(each, "softmax", dim=0).item() == pytest.approx(0.9)
    assert lesion_of(each, "sigmoid", dim=0).item() == pytest.approx(0.6)
    assert lesion_of(each[:1], "softmax", dim=0).item() == pytest.approx(0.3)
    assert lesion_of(each[None], "softmax", dim=1).shape == (1, 1, 1, 1, 1)


def saying(*probabilities):
    """An image that `nn.Identity` with sigmoids makes these probabilities of, each `(n,)` along the first axis."""
    return torch.logit(torch.tensor(probabilities)).reshape(len(probabilities), -1, 1, 1)


def test_a_voxel_of_several_regions_has_the_label_of_the_innermost():
    case = saying([0.9, 0.9, 0.4, 0.2], [0.1, 0.6, 0.3, 0.3])  # whole, core
    for overlapping, expected in ((True, [1, 2, 1, 2]), (False, [1, 1, 1, 2])):
        found = predicted(nn.Identity(), case, size=(4, 1, 1), activation="sigmoid", overlapping=overlapping)
        assert found.classes.ravel().tolist() == expected
        np.testing.assert_allclose(found.probability.ravel(), [0.9, 0.9, 0.4, 0.3], atol=1e-6)


# What says nothing


def test_far_from_the_body_there_is_no_lesion_and_about_it_all_is_as_of_that_part_alone():
    """An eighth of a window about it is seen too, and what costs no further window."""
    network, body = unet(in_channels=2), image(21, 13, 15)
    case = torch.tensor([-3.0, 7.0]).reshape(2, 1, 1, 1).repeat(1, 40, 24, 24)
    inside = (slice(4, 25), slice(7, 20), slice(0, 15))
    case[:, *inside] = body
    about = (slice(0, 32), slice(6, 22), slice(0, 18))
    found, alone = predicted(network, case).probability, predicted(network, case[:, *about]).probability
    np.testing.assert_allclose(found[about], alone, atol=1e-6)
    outside = np.ones(found.shape, bool)
    outside[about] = False
    assert (found[outside] == 0).all()


def test_a_small_body_is_seen_in_a_whole_window():
    network, case = unet(), torch.zeros(1, 40, 30, 30)
    case[0, 20, 15, 14] = 5.0
    seen = []
    network.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    found = predicted(network, case)
    computed = [windows for windows in seen if windows.device.type == "cpu"]
    assert [tuple(windows.shape) for windows in computed] == [(1, 1, *SIZE)]
    assert found.probability[20, 15, 14] > 0


@pytest.mark.parametrize("value", [0.0, 4.0])
def test_a_constant_image_has_no_lesion_and_is_not_computed(value):
    network, seen = unet(out_channels=4), []
    network.register_forward_hook(lambda _, given, __: seen.append(given[0].device.type))
    found = predicted(network, torch.full((1, 20, 9, 14), value), with_spread=True)
    assert set(seen) == {"meta"}
    assert found.probability.shape == found.classes.shape == found.spread.shape == (20, 9, 14)
    assert not found.probability.any()
    assert not found.spread.any()
    assert (found.classes == 1).all()


# Members, mirrored views and their spread


class Flipped(nn.Module):
    """What a network says of mirrored windows, mirrored back."""

    def __init__(self, network, axes):
        super().__init__()
        self.network, self.axes = network, axes

    def forward(self, x):
        return self.network(x.flip(self.axes)).flip(self.axes)


def views(*networks):
    axes = [chosen for size in range(4) for chosen in itertools.combinations((2, 3, 4), size)]
    return [Flipped(network, flips) for network in networks for flips in axes]


@pytest.mark.parametrize("out_channels", [2, 4])
def test_members_are_averaged_as_probabilities(out_channels):
    networks = [unet(seed, in_channels=2, out_channels=out_channels) for seed in (1, 2, 3)]
    case = image(21, 13, 15)
    each = np.stack([summed(network, case) for network in networks]).astype(np.float64)
    found = predicted(networks, case)
    np.testing.assert_allclose(found.probability, each.mean(axis=0).sum(axis=0), atol=1e-5)
    if out_channels > 2:
        mean = each.mean(axis=0)
        is_clear = np.diff(np.sort(mean, axis=0)[-2:], axis=0)[0] > 1e-4
        np.testing.assert_array_equal(found.classes[is_clear], mean.argmax(axis=0)[is_clear] + 1)
    assert min(np.abs(each.mean(axis=0) - one).max() for one in each) > 0.05  # the members do differ


def test_mirroring_is_the_mean_over_the_eight_flips():
    network, case = unet(in_channels=2), image(21, 13, 15)
    each = [predicted(view, case).probability.astype(np.float64) for view in views(network)]
    assert len(each) == 8
    found = predicted(network, case, mirror=True).probability
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(found - each[0]).max() > 0.05
    count = []
    network.register_forward_hook(lambda _, given, __: count.append(given[0].device.type))
    predicted(network, case[:, :16, :8, :12], mirror=True)
    assert count.count("cpu") == 8


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("activation", "out_channels"), [("softmax", 2), ("softmax", 4), ("sigmoid", 1)])
def test_spread_is_the_standard_deviation_over_members_and_views(activation, out_channels, mirror):
    networks = [unet(seed, in_channels=2, out_channels=out_channels) for seed in (1, 2, 3)]
    case = image(21, 13, 15)
    voices = views(*networks) if mirror else networks
    each = [predicted(voice, case, activation=activation).probability.astype(np.float64) for voice in voices]
    found = predicted(networks, case, activation=activation, mirror=mirror, with_spread=True)
    np.testing.assert_allclose(found.spread, np.std(each, axis=0), atol=1e-5)
    np.testing.assert_allclose(found.probability, np.mean(each, axis=0), atol=1e-5)
    assert found.spread.dtype == np.float32
    assert found.spread.max() > 0.05


def test_spread_of_regions_is_that_of_their_highest():
    networks = [unet(seed, in_channels=2, out_channels=3) for seed in (1, 2)]
    case = image(*SIZE)  # one window, so that the highest of averages is the average of the highest
    each = [predicted(network, case, activation="sigmoid").probability for network in networks]
    found = predicted(networks, case, activation="sigmoid", with_spread=True)
    np.testing.assert_allclose(found.spread, np.std(each, axis=0), atol=1e-5)


def test_one_voice_has_no_spread():
    found = predicted(unet(in_channels=2), image(21, 13, 15), with_spread=True)
    assert not found.spread.any()


# Correction


def test_averages_are_corrected_and_not_what_each_window_says():
    network, case = unet(in_channels=2, out_channels=4), image(21, 13, 15)
    plain = summed(network, case).astype(np.float64)
    every = np.concatenate([1 - plain.sum(axis=0, keepdims=True), plain])
    cold = every ** (1 / 0.5)
    cold /= cold.sum(axis=0)
    found = predicted(network, case, correction={"gamma": 0.0, "alpha": None, "temperature": 0.5})
    np.testing.assert_allclose(found.probability, cold[1:].sum(axis=0), atol=1e-5)
    assert np.abs(found.probability - plain.sum(axis=0)).max() > 0.05
