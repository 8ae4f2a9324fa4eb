"""Targets of training cases: which fusion and smoothing teach what, and what is worth a record."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medfocal.annotations.fusion import Fusion
from medfocal.annotations.smoothing import SVLS, NoSmoothing, SoftBoundary, UniformSmoothing
from medfocal.annotations.target import AnnotationSettings, Disagreement, as_marks, as_shares, fused_label, make_target
from medfocal.errors import DatasetError
from medfocal.losses import focal_loss

SHAPE, SPACING = (12, 10, 8), (0.5, 1.0, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
IMAGE = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)


def box(i, j, k, value=1):
    label = np.zeros(SHAPE, np.uint8)
    label[slice(*i), slice(*j), slice(*k)] = value
    return label


#: Three readers: all mark the first lesion (the third a larger one), two the second, one the third.
FIRST, LARGER, SECOND, THIRD = (
    box((2, 5), (2, 4), (1, 3)),
    box((2, 6), (2, 4), (1, 3)),
    box((8, 10), (6, 8), (4, 6)),
    box((1, 3), (7, 9), (5, 7)),
)
READERS = np.stack([FIRST + SECOND, FIRST + SECOND, LARGER + THIRD])


def target(fusion="reference", smoothing=None, *, reference=FIRST, readers=READERS, num_classes=2, **settings):
    weight = settings.pop("weight", None)
    return make_target(
        "c1",
        reference=reference,
        readers=readers,
        settings=AnnotationSettings(fusion=fusion, **settings),
        smoothing=smoothing or NoSmoothing(),
        num_classes=num_classes,
        affine=AFFINE,
        image=IMAGE,
        weight=weight,
    )


def test_the_reference_is_taught_as_it_is_and_no_reader_is_believed():
    found = target()
    assert not found.is_soft
    assert np.array_equal(found.alternatives[0], FIRST)
    assert np.array_equal(found.lesions, FIRST)
    assert found.weight is None


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [("majority", FIRST + SECOND), ("union", LARGER + SECOND + THIRD), ("intersection", FIRST)],
)
def test_a_vote_gives_classes(fusion, expected):
    found = target(fusion)
    assert len(found.alternatives) == 1
    assert np.array_equal(found.alternatives[0], expected)
    assert np.array_equal(found.lesions, expected)


def test_the_mean_is_the_share_of_the_readers_and_every_mark_counts_as_a_place_to_look():
    found = target("mean")
    assert found.alternatives[0].dtype == np.float16
    assert np.allclose(found.alternatives[0][0], READERS.mean(axis=0), atol=1e-3)
    assert np.array_equal(found.lesions, READERS.max(axis=0))


def test_each_reader_is_an_alternative_of_the_random_reader():
    found = target("random")
    assert all(np.array_equal(a, r) for a, r in zip(found.alternatives, READERS, strict=True))
    assert np.array_equal(found.lesions, READERS.max(axis=0))


def test_staple_teaches_its_probabilities_and_records_its_rates():
    found = target("staple")
    assert found.is_soft
    assert (found.alternatives[0][0][FIRST > 0] > 0.99).all()
    assert np.array_equal(found.lesions, (found.alternatives[0][0] > 0.5).astype(np.uint8))
    assert np.shape(found.record["staple"]["sensitivity"]) == (3, 1)


def test_a_staple_that_is_not_to_be_believed_leaves_its_reason_in_the_record():
    found = target("staple", readers=np.stack([FIRST, np.zeros_like(FIRST), np.zeros_like(FIRST)]))
    assert "problem" in found.record
    assert not found.lesions.any()


def test_a_smoothing_takes_the_most_probable_class_of_staple():
    found = target("staple", SVLS())
    assert np.allclose(found.alternatives[0], target("majority", SVLS(), readers=found.lesions[None]).alternatives[0])


def test_readers_who_are_averaged_are_smoothed_one_by_one():
    smoothing = SoftBoundary(width_mm=2.0)
    each = [smoothing(r, num_classes=2, spacing_mm=SPACING, image=IMAGE)[1] for r in READERS]
    assert np.allclose(target("mean", smoothing).alternatives[0][0], np.mean(each, axis=0), atol=1e-3)
    found = target("random", smoothing)
    assert all(np.allclose(a[0], e, atol=1e-3) for a, e in zip(found.alternatives, each, strict=True))
    fused = smoothing(FIRST + SECOND, num_classes=2, spacing_mm=SPACING, image=IMAGE)[1]
    assert np.allclose(target("majority", smoothing).alternatives[0][0], fused, atol=1e-3)


def test_shares_of_several_classes_leave_the_rest_to_the_background():
    readers = np.stack([box((2, 5), (2, 4), (1, 3), value) for value in (1, 2, 2)])
    found = target("mean", readers=readers, num_classes=3).alternatives[0]
    assert found.shape == (2, *SHAPE)
    assert np.allclose(found[:, 3, 3, 2], [1 / 3, 2 / 3], atol=1e-3)
    assert not found[:, 8, 8, 2].any()


def test_one_reader_alone_teaches_classes_by_the_mean_too():
    found = target("mean", readers=READERS[:1])
    assert not found.is_soft
    assert np.array_equal(found.alternatives[0], READERS[0])


def test_a_case_without_annotations_is_taught_by_its_label_and_says_so():
    found = target("union", readers=None)
    assert np.array_equal(found.alternatives[0], FIRST)
    assert "no annotations" in found.record["problem"]


def test_a_case_with_annotations_only_needs_a_fusion():
    with pytest.raises(DatasetError, match=r"'c1' has no 'label'.*annotations=majority"):
        target(reference=None)
    assert target("union", reference=None).lesions.any()


def test_weights_of_disagreement_are_the_share_that_agrees():
    found = target("majority", disagreement="weight").weight
    votes = READERS.sum(axis=0)
    assert np.allclose(found, np.maximum(votes, 3 - votes) / 3)
    assert np.allclose(found[3, 3, 2], 1)
    assert np.allclose(found[9, 7, 5], 2 / 3)


def test_ignored_disagreement_weighs_nothing_and_given_weights_are_kept():
    given = np.full(SHAPE, 0.5, np.float32)
    found = target("majority", disagreement="ignore", weight=given).weight
    agreed = (READERS[0] == READERS).all(axis=0)
    assert np.array_equal(found, np.where(agreed, np.float32(0.5), np.float32(0)))


def test_one_reader_cannot_disagree():
    assert target("majority", readers=READERS[:1], disagreement="ignore").weight is None


def test_disagreement_counts_for_the_reference_too():
    found = target(disagreement="ignore")
    assert np.array_equal(found.alternatives[0], FIRST)
    assert found.weight is not None


def test_shares_of_readers_are_averaged_and_count_as_marks_from_one_half_on():
    soft = np.stack([READERS[0] * np.float32(0.4), READERS[1] * np.float32(0.5)])
    assert np.allclose(target("mean", readers=soft).alternatives[0][0], soft.mean(axis=0), atol=1e-3)
    assert np.array_equal(as_marks(soft), np.stack([np.zeros(SHAPE), READERS[1]]))
    assert np.array_equal(target("union", readers=soft).lesions, READERS[1])
    with pytest.raises(DatasetError, match=r"'c1'.*shares between 0 and 1.*smoothing=none"):
        target("mean", SVLS(), readers=soft)


#: Each class alone, and three regions of three lesion classes, each within the one before.
EACH = np.eye(4, dtype=np.float32)[:, 1:]
NESTED = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], np.float32)


def test_classes_become_shares_where_another_case_has_shares():
    classes = box((2, 5), (2, 4), (1, 3), 2)
    found = as_shares(classes, EACH)
    assert (found.shape, found.dtype) == ((3, *SHAPE), np.float32)
    assert found.flags.c_contiguous
    assert np.array_equal(found[1], classes > 0)
    assert not found[0].any()
    assert not found[2].any()


def test_shares_of_classes_stay_what_they_are():
    shares = np.random.default_rng(0).dirichlet((8, 1, 1, 1), SHAPE).transpose(3, 0, 1, 2)[1:].astype(np.float16)
    found = as_shares(shares, EACH)
    assert found.dtype == np.float32
    assert np.array_equal(found, shares.astype(np.float32))


def test_regions_lie_within_each_other_as_their_classes_say():
    classes = box((2, 8), (2, 8), (1, 7), 1)
    classes[3:7, 3:7, 2:6], classes[4:6, 4:6, 3:5] = 2, 3
    whole, core, enhancing = as_shares(classes, NESTED)
    assert np.array_equal(whole, classes >= 1)
    assert np.array_equal(core, classes >= 2)
    assert np.array_equal(enhancing, classes == 3)


def test_shares_of_regions_are_the_sums_of_those_of_their_classes():
    shares = np.random.default_rng(0).dirichlet((2, 1, 1, 1), SHAPE).transpose(3, 0, 1, 2)[1:].astype(np.float16)
    found = as_shares(shares, NESTED)
    assert found.dtype == np.float32
    exact = shares.astype(np.float32)
    assert np.allclose(found, [exact.sum(axis=0), exact[1:].sum(axis=0), exact[2]])
    assert (found[0] >= found[1]).all()
    assert (found[1] >= found[2]).all()


def test_regions_need_not_hold_a_class_alone_nor_every_class():
    """Of classes 1 and 2 only 2 is learnt."""
    membership = np.array([[0], [0], [1]], np.float32)
    classes = box((2, 5), (2, 4), (1, 3), 2) + SECOND
    assert np.array_equal(as_shares(classes, membership)[0], classes == 2)
    shares = np.stack([classes == 1, classes == 2]).astype(np.float16) / 2
    assert np.array_equal(as_shares(shares, membership)[0], shares[1])


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("majority", FIRST + SECOND),
        ("mean", FIRST + SECOND),
        ("random", FIRST + SECOND),
        ("union", READERS.max(axis=0)),
    ],
)
def test_a_case_without_a_reference_is_evaluated_by_its_fused_readers(fusion, expected):
    assert np.array_equal(fused_label(READERS, Fusion(fusion), num_classes=2), expected)


def test_flipping_all_flips_the_target():
    for axis, fusion in itertools.product(range(3), ("mean", "majority", "random")):
        straight = target(fusion, UniformSmoothing(rate=0.1))
        turned = target(fusion, UniformSmoothing(rate=0.1), readers=np.flip(READERS, axis + 1))
        for a, b in zip(straight.alternatives, turned.alternatives, strict=True):
            assert np.array_equal(np.flip(a, axis + 1), b)


def test_the_expected_gradient_of_a_random_reader_is_that_of_the_mean_of_the_readers():
    """Of the expected form of the focal loss: it is linear in the target. Half precision of the shares is the limit."""
    logits = torch.randn(1, 2, *SHAPE, dtype=torch.float64, requires_grad=True)
    shares = torch.from_numpy(target("mean").alternatives[0].astype(np.float64))

    def gradient(target_of_loss):
        loss = focal_loss(logits, target_of_loss, gamma=2.0, alpha=0.75)
        return torch.autograd.grad(loss, logits)[0]

    of_mean = gradient(torch.stack([1 - shares[0], shares[0]])[None])
    each = [gradient(torch.from_numpy(r.astype(np.int64))[None]) for r in target("random").alternatives]
    assert (sum(each) / len(each) - of_mean).abs().max() < 5e-4 * of_mean.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "average"}, "average"),
        ({"disagreement": "drop"}, "disagreement must be one of keep, weight, ignore, got 'drop'"),
        ({"estimate_smoothing": True}, "fusion='reference', which is not made of the readers' marks"),
        ({"estimate_smoothing": True, "fusion": "mean"}, "fusion='mean', which is soft already"),
        ({"estimate_smoothing": True, "fusion": "staple"}, "fusion='staple', which is soft already"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AnnotationSettings(**settings)


def test_readers_are_read_only_where_something_is_made_of_them():
    assert not AnnotationSettings().uses_readers
    assert AnnotationSettings(fusion="mean").uses_readers
    assert AnnotationSettings(disagreement=Disagreement.IGNORE).uses_readers
