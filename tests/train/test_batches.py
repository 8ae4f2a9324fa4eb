"""Batches: the same seed, epoch and step give the same batch, whatever came before."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medfocal.annotations.target import Target
from medfocal.data.augment import BatchAugmentation
from medfocal.data.cache import Cache
from medfocal.data.manifest import Case
from medfocal.data.sampling import LesionBalancedSampler, cut_body, cut_patch
from medfocal.data.stored import Precision, open_training, store_image, store_target, training_case
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
    *,
    augment=True,
    seed=3,
    batch_size=3,
    lesion_fraction=0.5,
    probability=0.0,
    known=None,
    patch=PATCH,
    num_outputs=2,
    membership=None,
    with_background=True,
):
    known = known or cases()
    sampler = LesionBalancedSampler(known, patch_size=patch, lesion_fraction=lesion_fraction, seed=seed)
    soft, weighted = any(c.target.is_soft for c in known), any(c.target.weight is not None for c in known)
    if membership is None and soft:
        membership = np.eye(num_outputs + 1, dtype=np.float32)[:, 1:]
    form = {"membership": membership, "weighted": weighted}
    transplants = LesionTransplants(known, patch_size=patch, probability=probability, seed=seed, **form)
    changes = BatchAugmentation(rotation_probability=0.5) if augment is True else augment or None
    settings = {"batch_size": batch_size, "seed": seed, "with_background": with_background}
    return BatchSource(known, sampler, transplants=transplants, augment=changes, **settings, **form)


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


def test_a_case_without_weights_weighs_one_beside_a_case_that_has_some():
    first, second = cases()
    weighted = replace(first, target=replace(first.target, weight=np.full(SHAPE, 0.25, np.float32)))
    made = source(known=[weighted, second], augment=False)
    weights = [made.cut(0, step).planes["weight"] for step in range(4)]
    assert {float(value) for planes in weights for value in planes.unique()} == {0.25, 1.0}


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


def test_weights_count_in_the_share_of_soft_targets_too():
    """Half and a quarter everywhere, and only lesions weigh something: the shares are those of all weight."""
    known = []
    for case in cases():
        lesion = case.target.lesions > 0
        shares = np.stack([np.full(SHAPE, 0.5, np.float16), np.full(SHAPE, 0.25, np.float16)])
        known.append(replace(case, target=Target(case.target.lesions, (shares,), lesion.astype(np.float32))))
    assert source(known=known).foreground_shares(2) == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_factor_on_all_weights_leaves_the_share_of_lesions(scale):
    weights = [np.full(SHAPE, scale, np.float32)] * 2
    known = with_targets([[case.target.lesions] for case in cases()], weights)
    assert source(known=known).foreground_shares(3) == pytest.approx(source().foreground_shares(3))


def test_weights_that_are_all_0_are_refused():
    known = with_targets([[case.target.lesions] for case in cases()], [np.zeros(SHAPE, np.float32)] * 2)
    with pytest.raises(DatasetError, match="the voxel weights are 0"):
        source(known=known).foreground_shares(2)


class Wider:
    """Asks for more than the patch, and then takes its middle, as changes do that need what lies around."""

    margin = (3, 2, 5)

    def input_size(self, patch_size, spacings_mm):
        assert len(spacings_mm) == 2
        return tuple(n + 2 * m for n, m in zip(patch_size, self.margin, strict=True))

    def __call__(self, batch, *, seeds, spacing_mm, patch_size):
        assert len(seeds) == len(spacing_mm) == len(batch["image"])
        inner = tuple(slice(m, m + n) for m, n in zip(self.margin, patch_size, strict=True))
        return {key: values[(..., *inner)] for key, values in batch.items()}


def soft_and_weighted(shape):
    """The two cases with shares made of their intensities, one of them with weights."""
    first, second = cases(shape)
    shares = [np.stack([case.image[0] / 4, case.image[1] / 8]).astype(np.float16) for case in (first, second)]
    weight = np.random.default_rng(5).uniform(0.1, 1, shape).astype(np.float32)
    first = replace(first, target=replace(first.target, alternatives=(shares[0],), weight=weight))
    return [first, replace(second, target=replace(second.target, alternatives=(shares[1],)))]


@pytest.mark.parametrize("make_cases", [cases, soft_and_weighted])
def test_what_is_cut_around_a_patch_changes_nothing_in_it(make_cases):
    """Lesions that are set in among it: they stay within the patch, at the same places."""
    settings = {"known": make_cases(WIDE), "batch_size": 30}
    narrow, wide = (with_transplants(augment=changes, **settings).batch(1, 2) for changes in (False, Wider()))
    assert same(narrow, wide)
    assert narrow.weight is None or torch.equal(narrow.weight, wide.weight)
    alone = with_transplants(augment=False, probability=0.0, **settings).batch(1, 2)
    assert not torch.equal(alone.image, narrow.image)


def test_changes_that_never_happen_change_nothing_however_much_they_ask_for():
    names = ("low_resolution", "blur", "noise", "brightness", "contrast", "gamma", "gamma_inverted", "mirror")
    never = BatchAugmentation(
        rotation_probability=1e-12, scaling_probability=1e-12, **{f"{name}_probability": 0.0 for name in names}
    )
    settings = {"known": soft_and_weighted(WIDE), "batch_size": 30}
    assert never.input_size(WIDE_PATCH, [(1, 1, 1)]) != WIDE_PATCH
    plain, changed = (with_transplants(augment=changes, **settings).batch(1, 2) for changes in (False, never))
    assert same(plain, changed)
    assert torch.equal(plain.weight, changed.weight)


def test_lesions_are_set_into_the_patch_and_nothing_around_it_is_touched():
    settings = {"augment": Wider(), "known": soft_and_weighted(WIDE), "batch_size": 30}
    before, after = (with_transplants(probability=q, **settings).cut(0, 0).planes for q in (0.0, 0.8))
    inner = tuple(slice(m, m + n) for m, n in zip(Wider.margin, WIDE_PATCH, strict=True))
    for key in ("image", "shares", "weight"):
        assert not torch.equal(before[key], after[key])
        before[key][(..., *inner)] = after[key][(..., *inner)]
        assert torch.equal(before[key], after[key])


def test_nothing_depends_on_the_number_of_threads():
    made, num_threads = with_transplants(batch_size=4), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = list(made.epoch(1, 2))
        torch.set_num_threads(4)
        together = list(with_transplants(batch_size=4).epoch(1, 2))
    finally:
        torch.set_num_threads(num_threads)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


class Slow:
    """Changes nothing, slowly, and counts how often it was asked."""

    def __init__(self, seconds=0.1):
        self.num_batches = 0
        self._seconds = seconds

    def input_size(self, patch_size, spacings_mm):  # noqa: ARG002
        return tuple(patch_size)

    def __call__(self, batch, **_):
        time.sleep(self._seconds)
        self.num_batches += 1
        return dict(batch)


def test_an_epoch_that_is_left_early_leaves_no_work_behind():
    before, changes = threading.active_count(), Slow(seconds=1.0)
    steps = source(augment=changes).epoch(0, 100)
    next(steps)
    steps.close()
    assert changes.num_batches == 2  # the one that was taken, and the one under way, which is awaited
    assert threading.active_count() == before
    time.sleep(1.5)
    assert changes.num_batches == 2


def test_batches_are_made_ahead_but_not_all_of_them():
    changes = Slow()
    steps = source(augment=changes).epoch(0, 100)
    next(steps)
    time.sleep(1.5)
    assert changes.num_batches == 3
    steps.close()


class Broken(Slow):
    def __call__(self, batch, **_):  # noqa: ARG002
        raise DatasetError("this batch cannot be changed")


def test_what_fails_in_the_background_is_raised_where_batches_are_taken():
    with pytest.raises(DatasetError, match="this batch cannot be changed"):
        list(source(augment=Broken()).epoch(0, 5))


#: All that moves voxels, and often.
MOVING = BatchAugmentation(rotation_probability=0.9, scaling_probability=0.9, elastic_probability=0.5)


def test_voxels_that_nobody_judged_weigh_nothing_after_any_change():
    """Here they have a class of their own, 7, that shows where they went: no voxel next to one may teach it."""
    known, unjudged = [], np.random.default_rng(0).random(WIDE) < 0.05
    for case in cases(WIDE):
        classes = np.where(unjudged, 7, case.target.lesions).astype(np.uint8)
        weight = (~unjudged).astype(np.uint8)
        known.append(replace(case, target=Target(case.target.lesions, (classes,), weight)))
    batch = source(augment=MOVING, known=known, patch=WIDE_PATCH, batch_size=20).batch(0, 0)
    assert (batch.target == 7).float().mean() > 0.02
    assert not batch.weight[batch.target == 7].any()
    assert (batch.weight > 0).float().mean() > 0.3
    assert (batch.weight >= 0).all()
    assert (batch.weight <= 1.001).all()


def test_without_changes_voxels_that_nobody_judged_weigh_nothing_and_all_others_1():
    unjudged = np.random.default_rng(0).random(SHAPE) < 0.3
    known = [
        replace(case, target=replace(case.target, weight=np.where(unjudged, 0, 1).astype(np.uint8))) for case in cases()
    ]
    made = source(augment=False, known=known)
    sampler = LesionBalancedSampler(known, patch_size=PATCH, lesion_fraction=0.5, seed=3)
    batch = made.batch(0, 0)
    assert batch.weight.dtype == torch.float32
    for index in range(3):
        expected = ~cut_patch(unjudged, sampler.draw(0, index).start, PATCH)
        np.testing.assert_array_equal(batch.weight[index], expected)


def test_weights_that_are_not_0_are_interpolated_as_they_are():
    weights = [np.full(WIDE, 0.3, np.float32)] * 2
    known = [replace(c, target=replace(c.target, weight=w)) for c, w in zip(cases(WIDE), weights, strict=True)]
    small = BatchAugmentation(scaling_probability=1.0, scaling=(1.05, 1.2), rotation_probability=0.0)
    batch = source(augment=small, known=known, patch=WIDE_PATCH).batch(0, 0)
    assert torch.allclose(batch.weight, torch.tensor(0.3), atol=1e-6)


NESTED = np.array([[0, 0], [1, 0], [1, 1]], np.float32)


@pytest.mark.parametrize("make_cases", [cases, soft_and_weighted])
@pytest.mark.parametrize("augment", [False, MOVING])
def test_regions_are_channels_that_lie_within_each_other(make_cases, augment):
    settings = {"known": make_cases(WIDE), "membership": NESTED, "with_background": False, "batch_size": 10}
    batch = with_transplants(augment=augment, **settings).batch(0, 0)
    assert (batch.target.shape, batch.target.dtype) == ((10, 2, *WIDE_PATCH), torch.float32)
    whole, core = batch.target[:, 0], batch.target[:, 1]
    assert (whole >= core).all()
    assert core.any()
    assert (whole > core).any()
    assert (whole <= 1).all()
    if make_cases is cases and augment is False:
        classes = with_transplants(augment=False, known=cases(WIDE), batch_size=10).batch(0, 0).target
        assert torch.equal(whole, (classes >= 1).float())
        assert torch.equal(core, (classes >= 2).float())


def test_the_share_of_regions_is_that_of_their_classes():
    first, second = source().foreground_shares(2)
    assert source(membership=NESTED).foreground_shares(2) == pytest.approx([first + second, second])


def test_shares_sum_to_1_where_a_transplant_stands_in_the_margin_of_another_class():
    """Shares of 0.9 all around, of the class that the case's lesions do not have."""
    known = []
    for case, value in zip(cases(WIDE), (1, 2), strict=True):
        lesion = case.target.lesions > 0
        shares = np.full((2, *WIDE), 0.9, np.float16) * ~lesion
        shares[value - 1] = np.where(lesion, 0.9, 0)
        known.append(replace(case, target=Target(case.target.lesions, (shares,))))
    batch = with_transplants(known=known, augment=False, batch_size=40, lesion_fraction=0.0).batch(0, 0)
    assert torch.allclose(batch.target.sum(dim=1), torch.ones(()), atol=1e-3)
    assert (batch.target >= 0).all()
    assert (batch.target[:, 1] > 0.4).any()


def test_cases_from_the_cache_give_the_batches_that_those_in_memory_give(tmp_path):
    """Their arrays are mapped and cannot be written."""
    in_memory, mapped = [], []
    for number, case in enumerate(soft_and_weighted(WIDE)):
        grid = Volume(np.zeros(WIDE), case.affine)
        alone = PreparedCase(case.case, torch.from_numpy(np.array(case.image)), case.affine, None, grid, None)
        in_memory.append(training_case(alone, case.target, Precision.FLOAT16))
        cache, target = Cache(tmp_path), case.target
        image = cache.get("image", str(number), lambda writer, c=alone: store_image(writer, c, np.dtype(np.float16)))
        taught = cache.get("target", str(number), lambda writer, c=alone, t=target: store_target(writer, c, t))
        mapped.append(open_training(case.case, image, taught))
        assert not mapped[-1].image.flags.writeable
    first, second = (with_transplants(known=known, augment=MOVING, batch_size=12) for known in (in_memory, mapped))
    for step in range(3):
        a, b = first.batch(0, step), second.batch(0, step)
        assert same(a, b)
        assert torch.equal(a.weight, b.weight)
    assert first.foreground_shares(2) == second.foreground_shares(2)
