"""Batches: the same seed, epoch and step give the same batch, whatever came before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfocal.data.manifest import Case
from medfocal.data.sampling import LesionBalancedSampler, cut_patch
from medfocal.data.transforms import Augmentation, PreparedCase, RandomTransforms
from medfocal.train.batches import Batch, BatchSource, to_device
from medfocal.volume import Volume

SHAPE, PATCH = (14, 12, 10), (8, 6, 4)


def cases():
    found = []
    for number, value in enumerate((1, 2)):
        rng = np.random.default_rng(number)
        label = np.zeros(SHAPE, np.uint8)
        label[6:8, 5:8, 4] = value
        image = torch.from_numpy(rng.uniform(1, 2, (2, *SHAPE)).astype(np.float32))
        grid = Volume(np.zeros(SHAPE), np.eye(4))
        case = Case(f"c{number}", f"c{number}", "training", ())
        found.append(PreparedCase(case, image, np.eye(4), torch.from_numpy(label), grid, label.astype(np.int16)))
    return found


def source(*, augment=True, seed=3, batch_size=3, lesion_fraction=0.5):
    known = cases()
    sampler = LesionBalancedSampler(known, patch_size=PATCH, lesion_fraction=lesion_fraction, seed=seed)
    chain = RandomTransforms(Augmentation(affine_probability=0.5)) if augment else None
    return BatchSource(known, sampler, augment=chain, batch_size=batch_size, seed=seed)


def same(first, second):
    return torch.equal(first.image, second.image) and torch.equal(first.label, second.label)


def test_a_batch_has_plain_tensors_of_the_promised_shape_and_type():
    batch = source().batch(0, 0)
    assert (batch.image.shape, batch.image.dtype) == ((3, 2, *PATCH), torch.float32)
    assert (batch.label.shape, batch.label.dtype) == ((3, *PATCH), torch.int64)
    assert type(batch.image) is torch.Tensor
    assert type(batch.label) is torch.Tensor


@pytest.mark.parametrize("augment", [True, False])
def test_an_epoch_gives_the_batches_of_its_steps_in_order(augment):
    whole = list(source(augment=augment).epoch(4, 5))
    alone = source(augment=augment)
    assert len(whole) == 5
    for step in (4, 2, 0, 1, 3):  # in another order and from a fresh source
        assert same(whole[step], alone.batch(4, step))


def test_going_on_after_a_stop_gives_the_batches_of_an_unbroken_run():
    unbroken, broken, fresh = source(), source(), source()
    expected = [batch for epoch in range(3) for batch in unbroken.epoch(epoch, 3)]
    steps = broken.epoch(0, 3)
    next(steps)
    steps.close()
    found = [batch for epoch in range(1, 3) for batch in fresh.epoch(epoch, 3)]
    assert all(same(a, b) for a, b in zip(expected[3:], found, strict=True))


def test_seeds_epochs_and_steps_differ():
    drawn = [source().batch(0, 0), source().batch(0, 1), source().batch(1, 0), source(seed=4).batch(0, 0)]
    assert len({batch.image.numpy().tobytes() for batch in drawn}) == 4


def test_without_augmentation_a_batch_is_what_the_sampler_names():
    known, made = cases(), source(augment=False)
    sampler = LesionBalancedSampler(known, patch_size=PATCH, lesion_fraction=0.5, seed=3)
    batch = made.batch(2, 4)
    for place_in_batch in range(3):
        place = sampler.draw(2, 4 * 3 + place_in_batch)
        image = cut_patch(known[place.case].image.numpy(), place.start, PATCH)
        label = cut_patch(known[place.case].label.numpy(), place.start, PATCH)
        np.testing.assert_array_equal(batch.image[place_in_batch], image)
        np.testing.assert_array_equal(batch.label[place_in_batch], label)


def test_foreground_shares_are_those_of_the_first_patches():
    made = source(augment=False, batch_size=64)
    labels = made.batch(0, 0).label
    expected = [float((labels == value).double().mean()) for value in (1, 2)]
    assert made.foreground_shares(3, num_patches=64) == pytest.approx(expected)


def test_a_class_that_no_patch_shows_gets_half_a_voxel():
    shares = source(augment=False).foreground_shares(4, num_patches=10)
    assert shares[2] == pytest.approx(0.5 / (10 * np.prod(PATCH)))
    assert sum(shares) < 1


def test_on_the_cpu_a_batch_is_not_copied():
    batch = Batch(torch.ones(1), torch.ones(1))
    assert to_device(batch, torch.device("cpu")) is batch
