"""Batches: the same seed, epoch and step give the same batch, whatever came before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medfocal.annotations.target import Target
from medfocal.data.augment import BatchAugmentation
from medfocal.data.manifest import Case
from medfocal.data.sampling import LesionBalancedSampler, cut_body, cut_patch
from medfocal.data.stored import training_case
from medfocal.data.transforms import PreparedCase
from medfocal.data.transplant import LesionTransplants
from medfocal.errors import DatasetError
from medfocal.train.batches import BatchSource
from medfocal.volume import Volume

SHAPE, PATCH = (14, 12, 10), (8, 6, 4)
WIDE, WIDE_PATCH = (30, 28, 26), (11, 12, 10)  # room for lesions of 2 x 3 x 1 voxels with three around them


def cases(shape=SHAPE):
    found = []
    for number, value in enumerate((1, 2)):
        rng = np.random.default_rng(number)
        label = np.zeros(shape, np.uint8)
        label[6:8, 5:8, 4] = value
        image = torch.from_numpy(rng.uniform(1, 2, (2, *shape)).astype(np.float32))
        image[:, 0, 0, 0] = 0  # air, so that all else belongs to the body
        grid = Volume(np.zeros(shape), np.eye(4))
        case = Case(f"c{number}", f"c{number}", "training", ())
        prepared = PreparedCase(case, image, np.eye(4), torch.from_numpy(label), grid, label.astype(np.int16))
        found.append(training_case(prepared, Target(label, (label,))))
    return found


def source(
    *, augment=True, seed=3, batch_size=3, lesion_fraction=0.5, probability=0.0, known=None, patch=PATCH, num_outputs=2
):
    known = known or cases()
    sampler = LesionBalancedSampler(known, patch_size=patch, lesion_fraction=lesion_fraction, seed=seed)
    soft, weighted = any(c.target.is_soft for c in known), any(c.target.weight is not None for c in known)
    form = {"membership": np.eye(num_outputs + 1, dtype=np.float32)[:, 1:] if soft else None, "weighted": weighted}
    transplants = LesionTransplants(known, patch_size=patch, probability=probability, seed=seed, **form)
    changes = BatchAugmentation(rotation_probability=0.5) if augment else None
    return BatchSource(
        known, sampler, transplants=transplants, augment=changes, batch_size=batch_size, seed=seed, **form
    )


def with_transplants(**changes):
    settings = {"lesion_fraction": 0.3, "probability": 0.6, "known": cases(WIDE), "patch": WIDE_PATCH}
    return source(**settings | changes)


def same(first, second):
    return torch.equal(first.image, second.image) and torch.equal(first.target, second.target)


def test_a_batch_has_plain_tensors_of_the_promised_shape_and_type():
    batch = source().batch(0, 0)
    assert (batch.image.shape, batch.image.dtype) == ((3, 2, *PATCH), torch.float32)
    assert (batch.target.shape, batch.target.dtype) == ((3, *PATCH), torch.int64)
    assert type(batch.image) is torch.Tensor
    assert type(batch.target) is torch.Tensor


@pytest.mark.parametrize("make", [source, with_transplants])
@pytest.mark.parametrize("augment", [True, False])
def test_an_epoch_gives_the_batches_of_its_steps_in_order(make, augment):
    whole = list(make(augment=augment).epoch(4, 5))
    alone = make(augment=augment)
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
        image = cut_patch(known[place.case].image, place.start, PATCH)
        label = cut_patch(known[place.case].target.lesions, place.start, PATCH)
        np.testing.assert_array_equal(batch.image[place_in_batch], image)
        np.testing.assert_array_equal(batch.target[place_in_batch], label)


def test_with_transplants_a_batch_is_what_these_make_of_each_case_epoch_and_index():
    """The cases differ in spacing, so that each gets lesions of its own only."""
    known = cases(WIDE)
    known[1] = replace(known[1], affine=np.diag([1, 1, 2, 1.0]))
    batch = with_transplants(known=known, augment=False, batch_size=20).batch(2, 1)
    sampler = LesionBalancedSampler(known, patch_size=WIDE_PATCH, lesion_fraction=0.3, seed=3)
    transplants = LesionTransplants(known, patch_size=WIDE_PATCH, probability=0.6, seed=3)
    for place_in_batch in range(20):
        index = 20 + place_in_batch
        place = sampler.draw(2, index)
        image = cut_patch(known[place.case].image, place.start, WIDE_PATCH)
        label = cut_patch(known[place.case].target.lesions, place.start, WIDE_PATCH)
        transplants(
            image,
            label,
            body=cut_body(known[place.case], place.start, WIDE_PATCH),
            case=place.case,
            epoch=2,
            index=index,
        )
        np.testing.assert_array_equal(batch.image[place_in_batch], image)
        np.testing.assert_array_equal(batch.target[place_in_batch], label)


def test_transplants_bring_lesions_of_both_cases_into_patches_of_either():
    """Patches anywhere, without and with: the same places, more lesions, and values of the other case's class."""
    settings = {"augment": False, "batch_size": 40, "lesion_fraction": 0.0}
    before, after = (with_transplants(**settings, probability=q).batch(0, 0) for q in (0.0, 0.6))
    known = cases(WIDE)
    places = LesionBalancedSampler(known, patch_size=WIDE_PATCH, lesion_fraction=0.0, seed=3)
    seen = set()
    for index in range(40):
        case = places.draw(0, index).case
        new = (after.target[index] > 0) & (before.target[index] == 0)
        far = torch.from_numpy(~ndimage.binary_dilation(new.numpy(), iterations=4))
        assert torch.equal(after.image[index][:, far], before.image[index][:, far])
        assert torch.equal(after.target[index][~new], before.target[index][~new])
        seen |= {(case, int(value)) for value in after.target[index][new].unique()}
    assert seen == {(case, value) for case in (0, 1) for value in (1, 2)}


def test_the_cases_themselves_keep_their_lesions():
    known = cases(WIDE)
    before = [(case.image.copy(), case.target.lesions.copy()) for case in known]
    for step in range(10):
        with_transplants(known=known, lesion_fraction=0.0).batch(0, step)
    for case, (image, label) in zip(known, before, strict=True):
        np.testing.assert_array_equal(case.image, image)
        np.testing.assert_array_equal(case.target.lesions, label)


@pytest.mark.parametrize("make", [source, with_transplants])
def test_foreground_shares_are_those_of_the_first_patches(make):
    """With transplants: the loss sees these too."""
    made = make(augment=False, batch_size=64)
    labels = made.batch(0, 0).target
    expected = [float((labels == value).double().mean()) for value in (1, 2)]
    assert made.foreground_shares(2, num_patches=64) == pytest.approx(expected)


def test_a_class_that_no_patch_shows_gets_half_a_voxel():
    shares = source(augment=False).foreground_shares(3, num_patches=10)
    assert shares[2] == pytest.approx(0.5 / (10 * np.prod(PATCH)))
    assert sum(shares) < 1


def with_targets(targets, weights=None):
    """The two cases with targets in place of their labels."""
    found = []
    for number, (case, alternatives) in enumerate(zip(cases(), targets, strict=True)):
        weight = None if weights is None else weights[number]
        found.append(replace(case, target=Target(case.target.lesions, tuple(alternatives), weight)))
    return found


def readers_of(values):
    """One alternative a value: the whole volume is of that class, so that each voxel tells which one was taken."""
    return [np.full(SHAPE, value, np.uint8) for value in values]


def test_an_epoch_takes_one_reader_of_each_case_and_others_take_others():
    known = with_targets([readers_of((1, 2, 3)), readers_of((4, 5, 6))])
    made = source(augment=False, known=known, batch_size=16)
    seen = set()
    for epoch in range(12):
        values = [int(v) for step in range(2) for patch in made.batch(epoch, step).target for v in patch.unique()]
        assert len(set(values) & {1, 2, 3}) <= 1
        assert len(set(values) & {4, 5, 6}) <= 1
        seen |= set(values)
    assert seen == {1, 2, 3, 4, 5, 6}
    assert same(made.batch(3, 1), source(augment=False, known=known, batch_size=16).batch(3, 1))


def test_shares_become_channels_that_sum_to_1_and_move_with_the_image():
    """The share of each voxel is made of its intensity, so that after any move both still belong together."""
    known = cases()
    shares = [np.stack([case.image[0] / 4, case.image[1] / 8]).astype(np.float16) for case in known]
    known = with_targets([[s] for s in shares])
    sampler = LesionBalancedSampler(known, patch_size=PATCH, lesion_fraction=0.5, seed=3)
    names = ("low_resolution", "blur", "noise", "brightness", "contrast", "gamma", "gamma_inverted")
    spatial = BatchAugmentation(**{f"{name}_probability": 0.0 for name in (*names, "rotation", "scaling")})
    settings = {
        "transplants": LesionTransplants(known, patch_size=PATCH, probability=0, seed=3),
        "batch_size": 4,
        "membership": np.eye(3, dtype=np.float32)[:, 1:],
    }
    made = BatchSource(known, sampler, augment=spatial, seed=3, **settings)
    batch = made.batch(0, 1)
    assert (batch.target.shape, batch.target.dtype) == ((4, 3, *PATCH), torch.float32)
    assert torch.allclose(batch.target.sum(dim=1), torch.ones(4, *PATCH), atol=1e-3)
    assert torch.allclose(batch.target[:, 1], batch.image[:, 0] / 4, atol=1e-3)
    assert torch.allclose(batch.target[:, 2], batch.image[:, 1] / 8, atol=1e-3)
    sigmoid = BatchSource(known, sampler, augment=spatial, seed=3, with_background=False, **settings)
    assert torch.equal(sigmoid.batch(0, 1).target, batch.target[:, 1:])


def test_weights_move_with_the_image_and_count_in_the_share_of_lesions():
    known = cases()
    weights = [np.asarray(case.image[0] / 4) for case in known]
    known = with_targets([[case.target.lesions] for case in known], weights)
    batch = source(augment=False, known=known).batch(0, 0)
    assert torch.allclose(batch.weight, batch.image[:, 0] / 4)
    lesion_only = [np.where(case.target.lesions > 0, 1.0, 0.1).astype(np.float32) for case in cases()]
    heavy = source(known=with_targets([[case.target.lesions] for case in cases()], lesion_only))
    plain = source()
    assert sum(heavy.foreground_shares(2)) > 5 * sum(plain.foreground_shares(2))


def test_a_target_that_is_the_label_gives_the_same_batches_as_none():
    known = with_targets([[case.target.lesions] for case in cases()])
    assert same(source(known=known).batch(1, 2), source().batch(1, 2))


def test_the_share_of_lesions_is_that_of_soft_targets_too():
    known = with_targets(
        [[(case.target.lesions == np.array([1, 2])[:, None, None, None]) * np.float16(0.5)] for case in cases()]
    )
    assert np.allclose(np.array(source(known=known).foreground_shares(2)) * 2, source().foreground_shares(2), rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_factor_on_all_weights_leaves_the_share_of_lesions(scale):
    weights = [np.full(SHAPE, scale, np.float32)] * 2
    known = with_targets([[case.target.lesions] for case in cases()], weights)
    assert source(known=known).foreground_shares(3) == pytest.approx(source().foreground_shares(3))


def test_weights_that_are_all_0_are_refused():
    known = with_targets([[case.target.lesions] for case in cases()], [np.zeros(SHAPE, np.float32)] * 2)
    with pytest.raises(DatasetError, match="the voxel weights are 0"):
        source(known=known).foreground_shares(2)
