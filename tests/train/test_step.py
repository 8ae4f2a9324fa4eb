"""A step: the same whether a batch is computed whole, in parts or by several processes; left out where not finite."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_steps import CASES, CPU, batch, everything, steps
from sound_settings import SOUND
from two_ranks import together

from medfocal.errors import ConfigError
from medfocal.losses import FocalLoss
from medfocal.networks import UNet3d
from medfocal.train.ranks import ALONE
from medfocal.train.settings import Compile
from medfocal.train.step import TrainingStep, compiled


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two gloo processes computed."""
    return together(everything, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def whole():
    """Losses and weights of each case, each batch at once in one process."""
    return {name: steps(name) for name in CASES}


def assert_same(found, expected, rel=1e-5):
    assert found[0] == pytest.approx(expected[0], rel=rel)
    np.testing.assert_allclose(found[1], expected[1], rtol=rel, atol=rel)  # weights are of the order of 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_one_after_the_other_are_the_whole(name, accumulate, whole):
    assert_same(steps(name, accumulate=accumulate), whole[name])


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name, two, whole):
    for answer in two:
        assert_same(answer["in two"][name, 1, "none"], whole[name])


@pytest.mark.parametrize(
    "key",
    [("positives", 2, "none"), ("levels", 2, "none"), ("positives", 1, "fsdp"), ("positives", 2, "fsdp")],
    ids=str,
)
def test_two_processes_with_parts_or_shares_of_the_weights_are_one(key, two, whole):
    for answer in two:
        assert_same(answer["in two"][key], whole[key[0]], rel=1e-4 if key[2] == "fsdp" else 1e-5)


def test_all_processes_end_with_the_same_weights_to_the_bit(two):
    for key, (losses, weights) in two[0]["in two"].items():
        assert two[1]["in two"][key] == (losses, weights), key


def test_the_cases_tell_losses_of_parts_from_those_of_the_whole(whole):
    """Frameworks average the losses of parts: for these that is another loss, so that the tests above can fail."""
    for name in ("positives", "weights", "dice and focal"):
        build_loss, kind, network = CASES[name]
        torch.manual_seed(3)
        net, given = UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16), **network), batch(1, **kind)
        parts = [build_loss()(net(p.image), p.target, weight=p.weight).item() for p in given.parts(2)]
        assert abs(np.mean(parts) / whole[name][0][0] - 1) > 1e-3, name


def test_what_one_process_finds_or_is_asked_all_know(two):
    """Nothing finite in the last one's patch; a signal to it; its clock, which does not count; nothing."""
    for answer in two:
        assert answer["faults"] == [
            (False, True, False, False, True),
            (True, False, True, False, False),
            (True, False, False, False, False),
            (True, False, False, False, False),
        ]


def stepper(*, network=None, lr=0.1, **changes):
    torch.manual_seed(0)
    return TrainingStep(
        network or UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16)),
        partial(torch.optim.SGD, lr=lr, momentum=0.9),
        settings=replace(SOUND, batch_size=4, **changes),
        autocast=None,
        ranks=ALONE,
        device=CPU,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_finite_loss_leaves_weights_and_momentum_as_they_were_and_the_next_learns(value):
    made = stepper()
    made.take(batch(1), FocalLoss(), stop=False, save=False)
    before = copy.deepcopy(made.spread.state())
    spoilt = batch(2)
    spoilt.image[3, 0, 1, 1, 1] = value
    taken = made.take(spoilt, FocalLoss(), stop=False, save=False)
    assert (taken.is_finite, taken.is_fault) == (False, True)
    after = made.spread.state()
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    for number, state in before[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], after[1]["state"][number]["momentum_buffer"])
    taken = made.take(batch(3), FocalLoss(), stop=False, save=False)
    assert taken.is_finite
    assert not torch.equal(before[0]["head.weight"], made.spread.network.head.weight)


def test_a_step_without_finite_loss_leaves_batch_statistics_as_they_were():
    made = stepper(network=UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16), norm="batch"))
    made.take(batch(1), FocalLoss(), stop=False, save=False)
    before = {key: value.clone() for key, value in made.spread.network.named_buffers()}
    assert before
    spoilt = batch(2)
    spoilt.image[3, 0, 1, 1, 1] = float("nan")
    made.take(spoilt, FocalLoss(), stop=False, save=False)
    assert all(torch.equal(before[key], value) for key, value in made.spread.network.named_buffers())
    made.take(batch(3), FocalLoss(), stop=False, save=False)
    assert not all(torch.equal(before[key], value) for key, value in made.spread.network.named_buffers())


class InfiniteLoss(FocalLoss):
    """Infinite, with gradients that are finite."""

    def forward(self, logits, target, **given):
        return super().forward(logits, target, **given) + float("inf")


def test_with_the_scaler_of_float16_too_an_infinite_loss_leaves_the_weights():
    made = stepper()
    made.scaler = torch.amp.GradScaler("cpu", enabled=True)
    before = copy.deepcopy(made.spread.network.state_dict())
    taken = made.take(batch(1), InfiniteLoss(), stop=False, save=False)
    assert not taken.is_finite
    assert all(torch.equal(before[key], value) for key, value in made.spread.network.state_dict().items())
    assert made.take(batch(2), FocalLoss(), stop=False, save=False).is_finite
    assert not torch.equal(before["head.weight"], made.spread.network.head.weight)


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):  # noqa: ARG004
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return gradient * float("inf")


class SteepLoss(FocalLoss):
    def forward(self, logits, target, **given):
        return super().forward(InfiniteGradient.apply(logits), target, **given)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_that_are_not_finite_are_a_fault_though_the_loss_is(clip):
    made = stepper(gradient_clip_norm=clip)
    before = copy.deepcopy(made.spread.state()[0])
    taken = made.take(batch(1), SteepLoss(), stop=False, save=False)
    assert np.isfinite(taken.loss)
    assert (taken.is_finite, taken.is_fault) == (False, True)
    assert all(torch.equal(value, made.spread.network.state_dict()[key]) for key, value in before.items())


def test_gradients_are_clipped_to_the_norm_over_all_parts():
    made = stepper(gradient_clip_norm=1e-3, lr=1.0, accumulate=2)
    before = torch.cat([p.detach().flatten().clone() for p in made.spread.network.parameters()])
    made.take(batch(1), FocalLoss(), stop=False, save=False)
    after = torch.cat([p.detach().flatten() for p in made.spread.network.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_voxels_are_counted_over_all_parts_and_levels():
    network = UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16), deep_supervision=1).train()
    made = stepper(network=network, accumulate=2)
    made.take(batch(1), FocalLoss(), stop=False, save=False)
    assert made.num_voxels == 4 * (8**3 + 4**3)


def test_other_memory_layout_and_activations_computed_twice_give_the_same_steps():
    expected = [stepper().take(batch(1), FocalLoss(), stop=False, save=False).loss]
    for changes in ({"channels_last": True}, {"checkpoint_activations": True}):
        found = [stepper(**changes).take(batch(1), FocalLoss(), stop=False, save=False).loss]
        assert found == pytest.approx(expected, rel=1e-5), changes


def test_cuda_graphs_need_a_gpu_and_auto_leaves_the_cpu_alone():
    network = UNet3d(in_channels=1, out_channels=2, channels=(4, 8, 16))
    for choice in (Compile.AUTO, Compile.OFF):
        assert compiled(network, choice, CPU) is network
    with pytest.raises(ConfigError, match="cuda_graphs needs a GPU"):
        compiled(network, Compile.CUDA_GRAPHS, CPU)
