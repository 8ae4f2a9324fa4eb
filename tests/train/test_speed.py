"""What is said of the speed of a training, worked out by hand."""

import math
import re
import time
from types import SimpleNamespace

import pytest
import torch

from medfocal.train.speed import Speed, duration

CPU = torch.device("cpu")
SETTINGS = SimpleNamespace(steps_per_epoch=10, max_epochs=4, batch_size=3)


def at(**changes):
    return SimpleNamespace(**{"epoch": 1, "step": 0, "loss_sum": 0.0, "seconds": 0.0, "waited": 0.0} | changes)


def slow(count, seconds):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_seconds_hold_steps_and_waiting_and_waited_the_waiting_alone():
    where = at()
    speed = Speed(where, SETTINGS, CPU)
    for _ in speed.waiting(slow(4, 0.05)):
        time.sleep(0.1)
        speed.step(0.5, is_finite=True)
    assert 0.2 <= where.waited <= where.seconds - 0.4
    assert where.loss_sum == 2.0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_the_loss_of_a_step_that_is_left_out_adds_nothing(loss):
    where = at(loss_sum=1.5)
    speed = Speed(where, SETTINGS, CPU)
    speed.step(loss, is_finite=False)
    speed.step(7.0, is_finite=False)  # finite itself, but not its gradients
    speed.step(0.25, is_finite=True)
    assert where.loss_sum == 1.75


def told(where, *, seconds, waited, steps):
    speed = Speed(where, SETTINGS, CPU)
    for _ in range(steps):
        where.step += 1
        speed.step(0.5, is_finite=True)
    where.seconds, where.waited = seconds, waited
    return speed.describe()


def test_the_line_tells_loss_throughput_waiting_and_the_time_of_all_that_is_left():
    """Five steps of 2 s with 3 patches; 25 of the 40 steps are left, after an epoch and five steps."""
    line = told(at(), seconds=10.0, waited=1.0, steps=5)
    assert line == "loss 0.50000, 1.5 patches/s, waits 10%, 50 s left"


def test_steps_of_before_a_stop_do_not_count_in_the_speed_of_this_machine():
    """Six steps of 100 s elsewhere, two of 1 s here: 22 are left at 1 s."""
    assert "3.0 patches/s" in told(at(step=6, seconds=600.0), seconds=602.0, waited=0.0, steps=2)
    assert "22 s left" in told(at(step=6, seconds=600.0), seconds=602.0, waited=0.0, steps=2)


def test_before_the_first_step_there_is_a_line_too():
    assert re.fullmatch(r"loss nan, .* patches/s, waits 0%, 0 s left", Speed(at(), SETTINGS, CPU).describe())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, words):
    assert duration(seconds) == words
