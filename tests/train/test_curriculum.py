"""Arguments of the loss that move with the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medfocal.losses import (
    ActivePassiveLoss,
    BlobDiceLoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralisedCrossEntropyLoss,
    TrimmedLoss,
)
from medfocal.train.curriculum import Curriculum

GAMMA = {"gamma": [[0.2, 0], [0.5, 3], [0.9, 1]]}


def test_nothing_moves_without_settings():
    assert Curriculum({}).at(0.3) == {}


def test_values_lie_on_the_line_through_the_points():
    curriculum = Curriculum(GAMMA)
    for progress in np.linspace(0, 1, 41):
        (value,) = curriculum.at(progress).values()
        assert value == pytest.approx(np.interp(progress, [0.2, 0.5, 0.9], [0, 3, 1]))


def test_value_at_a_point_is_the_given_one_exactly():
    curriculum = Curriculum({"gamma": [[0.1, 0.3], [0.7, 1.1], [0.8, 1.1], [0.9, 0.7]]})
    assert [curriculum.at(share)["gamma"] for share in (0.1, 0.7, 0.75, 0.8, 0.9)] == [0.3, 1.1, 1.1, 1.1, 0.7]


def test_whole_numbers_come_back_as_fractions():
    assert all(isinstance(Curriculum(GAMMA).at(share)["gamma"], float) for share in (0, 0.3, 1))


def test_each_value_of_a_list_moves():
    assert Curriculum({"gamma": [[0, [0, 4]], [1, [2, 0]]]}).at(0.25) == {"gamma": [0.5, 3.0]}


def test_text_in_a_list_stays():
    curriculum = Curriculum({"cap": [[0.25, ["zero", 0.125]], [0.75, ["zero", 0.375]]]})
    assert [curriculum.at(share)["cap"] for share in (0, 0.5, 1)] == [["zero", 0.125], ["zero", 0.25], ["zero", 0.375]]


def test_arguments_move_independently():
    curriculum = Curriculum({"gamma": [[0, 0], [1, 2]], "alpha": [[0.5, 0.5], [1, 0.75]]})
    assert curriculum.at(0.5) == {"gamma": 1.0, "alpha": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([["gamma", 0]], r"maps arguments of the loss to points, got \[\['gamma', 0\]\]; give points as in"),
        (None, "maps arguments of the loss to points, got None"),
        ({"gamma": 2.0}, r"'gamma' needs two points \[share, value\] or more, got 2.0"),
        ({"gamma": "01"}, "'gamma' needs two points .* got '01'"),
        ({"gamma": []}, "'gamma' needs two points .* got \\[\\]"),
        ({"gamma": [[0, 1]]}, r"'gamma' needs two points .* got \[\[0, 1\]\]"),
        ({"gamma": [[0, 1], [1, 2, 3]]}, "'gamma' needs two points"),
        ({"gamma": [[0, 1], 2]}, "'gamma' needs two points"),
        ({"gamma": [[0.5, 1], [0.5, 2]]}, "'gamma': shares of training must rise, got 0.5 after 0.5"),
        ({"gamma": [[0.5, 1], [0.2, 2]]}, "'gamma': shares of training must rise, got 0.2 after 0.5"),
        ({"gamma": [[-0.1, 1], [1, 2]]}, r"'gamma': a share of training must be in \[0, 1\], got -0.1"),
        ({"gamma": [[0, 1], [20, 2]]}, r"'gamma': a share of training must be in \[0, 1\], got 20"),
        ({"gamma": [[0, 1], [True, 2]]}, r"'gamma': a share of training must be in \[0, 1\], got True"),
        ({"gamma": [["0", 1], [1, 2]]}, "a share of training must be in"),
        (
            {"gamma": [[0, 1], [1, float("nan")]]},
            "'gamma': a value must be a finite number or a list with some, got nan",
        ),
        ({"gamma": [[0, 1], [1, True]]}, "a value must be a finite number .* got True"),
        ({"gamma": [[0, 1], [1, None]]}, "a value must be a finite number .* got None"),
        ({"gamma": [[0, []], [1, []]]}, "a value must be a finite number .* got \\[\\]"),
        ({"soft": [[0, "quality"], [1, "mixture"]]}, "a value must be a finite number .* got 'quality'"),
        ({"cap": [[0, ["zero"]], [1, ["zero"]]]}, "a value must be a finite number .* got \\['zero'\\]"),
        ({"gamma": [[0, [1, True]], [1, [1, 2]]]}, "a value must be a finite number"),
        ({"gamma": [[0, 1], [1, [1, 2]]]}, r"'gamma': values must be alike, .* got 1.0 and \[1.0, 2.0\]"),
        ({"gamma": [[0, [1, 2, 3]], [1, [1, 2]]]}, r"values must be alike, .* got \[1.0, 2.0, 3.0\] and \[1.0, 2.0\]"),
        ({"cap": [[0, ["zero", 0.1]], [1, ["linear", 0.1]]]}, "values must be alike, .*'zero'.*'linear'"),
    ],
    ids=str,
)
def test_malformed_settings_are_refused_with_what_they_are(settings, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(settings)


@pytest.mark.parametrize(
    ("loss", "stated", "settings"),
    [
        (FocalLoss, {"gamma": 2.0}, {"gamma": [[0, 0], [1, 2]]}),
        (FocalLoss, {"gamma": 2.0}, {"gamma": [[0, [0, 0]], [1, [2, 1]]]}),
        (FocalLoss, {"cap": None}, {"cap": [[0, ["linear", 0.01]], [1, ["linear", 0.1]]]}),
        (DiceFocalLoss, {}, {"focal_weight": [[0, 1], [1, 20]], "alpha": [[0, 0.5], [1, 0.75]]}),
        (TrimmedLoss, {"rates": [0.0, 0.0]}, {"rates": [[0, [0, 0]], [1, [0.1, 0.2]]]}),
        (GeneralisedCrossEntropyLoss, {}, {"q": [[0, 0], [1, 0.7]]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fractions_of_a_loss_may_move(loss, stated, settings):
    Curriculum(settings).check_against(loss, stated)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (FocalLoss, {"gama": [[0, 0], [1, 2]]}, r"FocalLoss has no 'gama' \(did you mean 'gamma'\?\)"),
        (DiceLoss, {"temperature": [[0, 0], [1, 2]]}, "DiceLoss has no 'temperature'; it has activation, ignore_index"),
        (FocalLoss, {"cap_start_epoch": [[0, 0], [1, 20]]}, "'cap_start_epoch' of FocalLoss cannot move: between"),
        (TrimmedLoss, {"ramp_epochs": [[0, 0], [1, 20]]}, "'ramp_epochs' of TrimmedLoss cannot move"),
        (FocalLoss, {"ignore_index": [[0, 0], [1, 2]]}, "'ignore_index' of FocalLoss cannot move"),
        (BlobDiceLoss, {"connectivity": [[0, 6], [1, 26]]}, "'connectivity' of BlobDiceLoss cannot move"),
        (DiceFocalLoss, {"batch_dice": [[0, 0], [1, 1]]}, "'batch_dice' of DiceFocalLoss cannot move"),
        (FocalLoss, {"normalize": [[0, 0], [1, 1]]}, "'normalize' of FocalLoss cannot move"),
        (
            FocalLoss,
            {"gamma": [[0, 0], [0.4, -1], [1, 2]]},
            "FocalLoss at 0.4 of the training: gamma must be .* got -1",
        ),
        (FocalLoss, {"cap": [[0, ["none", 0.1]], [1, ["none", 0.2]]]}, "at 0 of the training: cap must be"),
        (ActivePassiveLoss, {"gamma": [[0, [0, 1]], [1, [2, 1]]]}, "ActivePassiveLoss at 0 of the training: "),
        (DiceFocalLoss, {"gamma": [[0, 0], [1, 2]], "alpha": [[0.5, 0.5], [0.7, 1.5]]}, "at 0.7 of .* alpha must be"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_loss_cannot_have_is_refused(loss, settings, message):
    stated = {"rates": [0.0, 0.0]} if loss is TrimmedLoss else {}
    with pytest.raises(ValueError, match=message):
        Curriculum(settings).check_against(loss, stated)


def test_loss_at_a_share_is_the_loss_of_these_values():
    curriculum = Curriculum({"gamma": [[0, 0], [0.5, 2]], "cap": [[0, ["zero", 0.1]], [1, ["zero", 0.2]]]})
    logits, labels = torch.randn(2, 2, 4, 3, 2), torch.randint(0, 2, (2, 4, 3, 2))
    found = curriculum.loss_at(0.25, lambda **moved: FocalLoss(alpha=0.7, **moved))(logits, labels)
    assert found == FocalLoss(alpha=0.7, gamma=1.0, cap=("zero", 0.125))(logits, labels)


@pytest.mark.parametrize(
    ("settings", "eager"),  # of the shares below
    [
        ({}, []),
        (GAMMA, [0.2, 0.3, 0.5, 0.6]),
        ({"gamma": [[0, 0], [0.3, 2], [0.6, 2], [1, 1]]}, [0, 0.2, 0.6, 0.9]),
        ({"cap": [[0.2, ["zero", 0.1]], [0.6, ["zero", 0.2]]]}, [0.2, 0.3, 0.5]),
        ({"focal_weight": [[0, 1], [1, 20]]}, []),  # a factor on what the compiled code gives
    ],
    ids=str,
)
def test_loss_is_compiled_only_while_its_constants_stay(settings, eager):
    curriculum = Curriculum(settings)
    shares = (0, 0.2, 0.3, 0.5, 0.6, 0.9, 1)
    found = [share for share in shares if curriculum.loss_at(share, DiceFocalLoss).backend == "eager"]
    assert found == eager


def test_compiling_at_each_value_can_be_asked_for():
    curriculum = Curriculum(GAMMA)
    assert curriculum.loss_at(0.3, lambda **moved: FocalLoss(backend="compiled", **moved)).backend == "compiled"


def test_loss_without_a_backend_moves_too():
    assert Curriculum(GAMMA).loss_at(0.3, ActivePassiveLoss).gamma == pytest.approx(1.0)
