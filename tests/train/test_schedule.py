"""Learning-rate schedules at their start, peak and end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medfocal.train.schedule import Cosine, OneCycle, Poly

PROGRESS = np.linspace(0, 1, 1001)


def test_poly_falls_from_1_to_0_as_its_power_says():
    schedule = Poly(power=0.9)
    assert schedule(0) == 1
    assert schedule(0.5) == pytest.approx(0.5**0.9)
    assert schedule(1) == 0
    assert np.all(np.diff([schedule(p) for p in PROGRESS]) < 0)


def test_power_0_is_a_constant():
    assert {Poly(power=0)(p) for p in PROGRESS[:-1]} == {1.0}


def test_cosine_warms_up_in_a_line_and_falls_to_0():
    schedule = Cosine(warmup_share=0.1)
    assert schedule(0) == 0
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == pytest.approx(1)
    assert schedule(0.55) == pytest.approx(0.5)  # half way down
    assert schedule(0.325) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert schedule(1) == pytest.approx(0, abs=1e-12)


def test_cosine_without_warm_up_starts_at_1():
    assert Cosine(warmup_share=0)(0) == 1


def test_one_cycle_rises_from_its_start_factor_to_1_and_falls_to_0():
    schedule = OneCycle(warmup_share=0.25, start_factor=0.04)
    assert schedule(0) == pytest.approx(0.04)
    assert schedule(0.125) == pytest.approx(0.52)  # half way up
    assert schedule(0.25) == pytest.approx(1)
    assert schedule(0.625) == pytest.approx(0.5)
    assert schedule(1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", [Cosine(warmup_share=0.3), OneCycle(warmup_share=0.3)])
def test_there_is_one_peak_and_no_jump(schedule):
    factors = np.array([schedule(p) for p in PROGRESS])
    peak = int(factors.argmax())
    assert peak == 300
    assert np.all(np.diff(factors[: peak + 1]) > 0)
    assert np.all(np.diff(factors[peak:]) < 0)
    assert np.abs(np.diff(factors)).max() < 0.006
    assert factors.min() >= 0
    assert factors.max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Poly(power=-1), "power must be 0 or more, got -1"),
        (lambda: Cosine(warmup_share=1), r"warmup_share must be in \[0, 1\), got 1"),
        (lambda: OneCycle(warmup_share=-0.1), r"warmup_share must be in \[0, 1\), got -0.1"),
        (lambda: OneCycle(start_factor=1.5), r"start_factor must be in \[0, 1\], got 1.5"),
    ],
)
def test_an_argument_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
