"""What both networks do with their levels in training: logits of coarser ones, activations computed again."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from medfocal.networks import ResidualUNet3d, UNet3d

BOTH = [UNet3d, ResidualUNet3d]
STRIDES = [1, [1, 2, 2], 2, [2, 2, 1]]
IMAGE = torch.linspace(-1, 1, 2 * 8 * 8 * 16).sin().reshape(1, 2, 8, 8, 16)


def network(kind, **arguments):
    torch.manual_seed(5)
    return kind(in_channels=2, out_channels=3, channels=(4, 5, 6, 7), strides=STRIDES, **arguments)


@pytest.mark.parametrize("kind", BOTH)
def test_training_gives_logits_of_each_level_and_evaluation_those_of_the_first(kind):
    net = network(kind, deep_supervision=2)
    outputs = net(IMAGE)
    assert [tuple(logits.shape) for logits in outputs] == [(1, 3, 8, 8, 16), (1, 3, 8, 4, 8), (1, 3, 4, 2, 4)]
    assert torch.equal(net.eval()(IMAGE), outputs[0])


@pytest.mark.parametrize("kind", BOTH)
def test_without_deep_supervision_training_gives_one_tensor(kind):
    net = network(kind)
    assert net(IMAGE).shape == (1, 3, 8, 8, 16)
    assert net.all_heads == [net.head]


@pytest.mark.parametrize("kind", BOTH)
def test_all_heads_make_the_logits_of_their_levels_in_this_order(kind):
    net = network(kind, deep_supervision=2)
    assert net.all_heads[0] is net.head
    for number, head in enumerate(net.all_heads):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, float(number))
    for number, logits in enumerate(net(IMAGE)):
        assert (logits == number).all()


@pytest.mark.parametrize("kind", BOTH)
def test_coarser_heads_read_the_features_that_go_on_to_the_next_level(kind):
    """Each level's gradient reaches the blocks below it and none above."""
    net = network(kind, deep_supervision=2)
    for number, (prefix, below) in enumerate(
        [("body.", 0), ("body.next_layer.", 1), ("body.next_layer.next_layer.", 2)]
    ):
        net.zero_grad()
        net(IMAGE)[number].square().sum().backward()
        up = {name: p.grad for name, p in net.named_parameters() if ".upsample." in name}
        for name, grad in up.items():
            reached = name.count("next_layer.") >= below
            assert (grad is not None and bool(grad.any())) == reached, (prefix, name)


@pytest.mark.parametrize("kind", BOTH)
def test_heads_of_coarser_levels_start_with_bias_0_and_change_no_other_weight(kind):
    with_heads = network(kind, deep_supervision=2)
    assert all(not head.bias.any() and head.weight.any() for head in with_heads.all_heads)
    if kind is UNet3d:
        plain = network(kind).state_dict()
        assert all(torch.equal(with_heads.state_dict()[name], value) for name, value in plain.items())


@pytest.mark.parametrize("kind", BOTH)
def test_a_model_written_before_these_arguments_still_loads(kind):
    net = network(kind)
    arguments = json.loads(json.dumps(net.arguments))
    assert (arguments.pop("deep_supervision"), arguments.pop("upsample_bias")) == (0, False)
    kind(**arguments).load_state_dict(net.state_dict())


def test_names_of_weights_stay_those_that_older_models_have():
    names = set(network(UNet3d).state_dict())
    assert {
        "body.downsample.conv1.conv.weight",
        "body.next_layer.next_layer.next_layer.norm2.bias",
        "body.next_layer.upsample.transp_conv.conv.weight",
        "body.upsample.conv_block.conv2.conv.weight",
        "head.bias",
    } <= names
    assert len(names) == 2 + 4 * 6 + 3 * 7
    assert set(network(UNet3d, deep_supervision=1).state_dict()) - names == {
        "coarse_heads.0.weight",
        "coarse_heads.0.bias",
    }


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_computed_again_give_the_same_gradients_to_the_bit(kind, norm, dropout):
    kept = network(kind, deep_supervision=1, norm=norm, dropout=dropout)
    for parameter in kept.parameters():
        nn.init.normal_(parameter, std=0.3)  # residual blocks start as their shortcuts, which would hide theirs
    again = copy.deepcopy(kept)
    again.checkpoint_activations = True
    for net in (kept, again):
        torch.manual_seed(1)
        for image in (IMAGE, 2 - IMAGE):  # the second step takes what the first left in running statistics
            sum(logits.square().mean() for logits in net(image)).backward()
    for (name, ours), theirs in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(kept.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def bytes_kept(net, image):
    """What autograd holds for the backward pass, parameters apart."""
    own = {parameter.data_ptr() for parameter in net.parameters()}
    sizes = {}

    def note(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = net(image)
    return sum(sizes.values()), logits


@pytest.mark.parametrize("kind", BOTH)
def test_activations_computed_again_are_not_kept(kind):
    net = network(kind)
    kept, _ = bytes_kept(net, IMAGE)
    net.checkpoint_activations = True
    assert 0 < bytes_kept(net, IMAGE)[0] < 0.5 * kept


@pytest.mark.parametrize("kind", BOTH)
def test_activations_are_not_computed_again_where_nothing_is_learnt(kind, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("medfocal.networks.levelled.checkpoint", refuse)
    net = network(kind)
    net.checkpoint_activations = True
    with torch.no_grad():
        net(IMAGE)
    net.eval()(IMAGE)
    with pytest.raises(AssertionError, match="computed again"):
        net.train()(IMAGE)


@pytest.mark.parametrize("kind", BOTH)
def test_computing_again_is_no_argument_of_the_model(kind):
    net = network(kind)
    assert net.checkpoint_activations is False
    net.checkpoint_activations = True
    assert "checkpoint_activations" not in net.arguments
