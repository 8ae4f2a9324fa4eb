"""The position of a training: through a checkpoint and back, and the row that an epoch becomes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sound_settings import SOUND

from medfocal.train.checkpoint import load_checkpoint, save_checkpoint
from medfocal.train.position import Position
from medfocal.train.validation import choose_operating_points, tell_choice

PLACE = Position(
    visits=np.array([[3, 0, 1], [4, 2, 2]], np.int64),
    epoch=2,
    step=5,
    rows=[{"epoch": 1, "loss": 0.5, "dropped_share": None}, {"epoch": 2, "loss": math.nan}],
    best=(0.5, math.nan),
    num_worse=1,
    loss_sum=0.75,
    num_dropped=7,
    num_voxels=70,
    seconds=2.5,
    waited=0.5,
)


def test_a_position_comes_back_from_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "last.pt", {"position": PLACE.to_state()})
    found = Position.from_state(load_checkpoint(tmp_path / "last.pt")["position"])
    assert found.visits.dtype == np.int64
    np.testing.assert_array_equal(found.visits, PLACE.visits)
    assert repr(found) == repr(PLACE)


def test_a_position_without_lesions_and_before_any_validation_comes_back(tmp_path):
    place = Position(visits=np.zeros((2, 0), np.int64))
    save_checkpoint(tmp_path / "last.pt", {"position": place.to_state()})
    found = Position.from_state(load_checkpoint(tmp_path / "last.pt")["position"])
    assert found.visits.shape == (2, 0)
    assert found.best == (-math.inf, -math.inf)


def test_the_next_epoch_knows_nothing_of_the_steps_before():
    place = replace(PLACE)
    place.start_epoch()
    fresh = Position(visits=PLACE.visits)
    assert (place.epoch, place.step) == (3, 0)
    for name in ("loss_sum", "num_dropped", "num_voxels", "seconds", "waited"):
        assert getattr(place, name) == getattr(fresh, name), name
    for name in ("rows", "best", "num_worse"):
        assert getattr(place, name) is getattr(PLACE, name), name


def test_the_row_of_an_epoch_is_worked_out_from_its_finite_steps():
    """Three steps of two patches in 2.5 s, one of them without a finite loss."""
    settings = replace(SOUND, steps_per_epoch=3, batch_size=2)
    assert PLACE.row(settings, num_skipped=1, learning_rate=0.1) == {
        "epoch": 3,
        "step": 9,
        "loss": 0.375,
        "dropped_share": 0.1,
        "num_skipped": 1,
        "learning_rate": 0.1,
        "wait_share": 0.2,
        "patches_per_second": 2.4,
    }


def test_without_a_finite_step_there_is_no_loss_and_without_judging_no_share():
    row = replace(PLACE, num_dropped=None).row(replace(SOUND, steps_per_epoch=3), num_skipped=3, learning_rate=0.1)
    assert math.isnan(row["loss"])
    assert row["dropped_share"] is None


def validated(epoch, sensitivity, low=0.2, high=0.7, num_lesions=9):
    figures = {"lesion_sensitivity": sensitivity, "lesion_sensitivity_low": low, "lesion_sensitivity_high": high}
    return {"epoch": epoch, **figures, "num_lesions": num_lesions, "threshold": 0.25}


def test_the_log_says_how_many_epochs_did_as_well_as_the_kept_one(caplog):
    caplog.set_level("INFO", logger="medfocal")
    rows = [validated(1, 0.1), validated(2, 0.2), {"epoch": 3}, validated(4, 0.5), validated(5, 0.4)]
    tell_choice(rows, 4)
    assert caplog.messages == [
        (
            "kept epoch 4: lesion sensitivity 0.50, interval 0.20 to 0.70 on 9 lesions; 2 of the 3 other validated "
            "epochs lie within it, so the choice among them may be chance"
        )
    ]
    caplog.clear()
    tell_choice([validated(1, 0.1), validated(2, 0.5)], 2)
    assert caplog.messages == ["kept epoch 2: lesion sensitivity 0.50, interval 0.20 to 0.70 on 9 lesions"]


@pytest.mark.parametrize("row", [{"epoch": 1}, validated(1, math.nan, math.nan, math.nan, num_lesions=0)])
def test_without_lesions_nothing_is_said_of_a_choice_and_the_threshold_is_the_default(row, caplog):
    from medfocal.evaluate import Protocol

    caplog.set_level("INFO", logger="medfocal")
    tell_choice([row], 1)
    assert not caplog.messages
    (point,) = choose_operating_points(row, SOUND, Protocol())
    assert (point.source, point.threshold) == ("default", Protocol().threshold)


def test_the_operating_point_is_that_of_the_kept_epoch():
    from medfocal.evaluate import Protocol

    (point,) = choose_operating_points(validated(4, 0.5), replace(SOUND, validation_false_positives=2.0), Protocol())
    assert (point.name, point.threshold, point.source) == ("2 false positives per case", 0.25, "validation")
    assert (point.lesion_sensitivity, point.num_lesions) == (0.5, 9)
