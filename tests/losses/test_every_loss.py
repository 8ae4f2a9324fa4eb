"""What holds for all losses that a training can choose."""

from __future__ import annotations

import inspect

import pytest
import torch

from medfocal import losses
from medfocal.losses import TrainingLoss, focal_loss

IGNORED = 255
CLASSES = [
    value
    for name in losses.__all__
    if inspect.isclass(value := getattr(losses, name)) and value is not TrainingLoss and issubclass(value, TrainingLoss)
]
every_loss = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
both_activations = pytest.mark.parametrize("activation", ["softmax", "sigmoid"])


def build(kind, **options):
    needed = {"rates": [0.0, 0.0]} if kind is losses.TrimmedLoss else {}
    return kind(**needed, **options)


def example(activation):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 1 if activation == "sigmoid" else 2, 5, 4, 3, generator=generator)
    labels = torch.randint(0, 2, (2, 5, 4, 3), generator=generator)
    labels[0, 1, 2, 0] = IGNORED
    return logits, labels


def test_all_exported_classes_are_here():
    assert len(CLASSES) == 15


@every_loss
@both_activations
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_stands_in_an_ignored_voxel_changes_neither_loss_nor_gradient(kind, activation, value):
    loss = build(kind, activation=activation, ignore_index=IGNORED)
    found = []
    for content in (0.5, value):
        logits, labels = example(activation)
        weight = torch.full(labels.shape, 0.7)
        logits[0, :, 1, 2, 0] = weight[0, 1, 2, 0] = content
        logits.requires_grad_()
        result = loss(logits, labels, weight)
        result.backward()
        found.append((result.detach(), logits.grad))
    torch.testing.assert_close(found[1], found[0])
    assert found[0][1].abs().sum() > 0


@every_loss
@both_activations
@pytest.mark.parametrize("where", ["logits", "weight"])
def test_nan_in_a_voxel_that_counts_makes_the_loss_nan(kind, activation, where):
    """Else the training's guard would see nothing."""
    logits, labels = example(activation)
    weight = torch.ones(labels.shape)
    {"logits": logits[:, 0], "weight": weight}[where][1, 0, 0, 0] = torch.nan
    assert build(kind, activation=activation, ignore_index=IGNORED)(logits, labels, weight).isnan()


@pytest.mark.parametrize("soft", ["quality", "mixture"])
@both_activations
def test_nan_in_an_ignored_voxel_reaches_no_gradient_of_soft_losses(soft, activation):
    logits, labels = example(activation)
    logits[0, :, 1, 2, 0] = torch.nan
    logits.requires_grad_()
    focal_loss(logits, labels, soft=soft, activation=activation, ignore_index=IGNORED).backward()
    assert logits.grad.isfinite().all()


def test_weight_that_requires_a_gradient_is_refused():
    logits, labels = example("softmax")
    with pytest.raises(ValueError, match=r"flows to the logits only, but weight requires one; give weight.detach\(\)"):
        focal_loss(logits, labels, weight=torch.ones(labels.shape, requires_grad=True), ignore_index=IGNORED)


def test_target_that_requires_a_gradient_is_refused():
    logits, _ = example("softmax")
    with pytest.raises(ValueError, match="but target requires one"):
        focal_loss(logits, logits.softmax(dim=1).requires_grad_())


def test_logits_without_channels_are_refused():
    with pytest.raises(ValueError, match=r"must be a floating point tensor .B, C, .*got .* of shape .2, 0, 4"):
        focal_loss(torch.zeros(2, 0, 4), torch.zeros(2, 4, dtype=torch.long), activation="sigmoid")
