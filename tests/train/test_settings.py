"""Settings of the loop: each limit is held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sound_settings import SOUND

from medfocal.train.settings import SamplingSettings


def test_sound_settings_pass():
    SOUND.check()
    replace(SOUND, gradient_clip_norm=12.0, num_threads=1, window_overlap=0.0, precision="bf16").check()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_epochs", 0, "at least 1, got 0"),
        ("steps_per_epoch", 0, "at least 1, got 0"),
        ("batch_size", -1, "at least 1, got -1"),
        ("validate_every", 0, "at least 1, got 0"),
        ("window_batch", 0, "at least 1, got 0"),
        ("validation_false_positives", 0.0, "above 0, got 0.0"),
        ("validation_false_positives", float("nan"), "above 0, got nan"),
        ("gradient_clip_norm", 0.0, "above 0, got 0.0"),
        ("num_threads", 0, "above 0, got 0"),
        ("window_overlap", 1.0, r"in \[0, 1\), got 1.0"),
        ("window_overlap", float("nan"), r"in \[0, 1\), got nan"),
        ("precision", "fp8", "one of auto, bf16, fp16, float32, got 'fp8'"),
        ("accumulate", 0, "at least 1, got 0"),
        ("patience", 0, "at least 1, got 0"),
        ("max_skipped_steps", -1, "0 or more, got -1"),
        ("ema_decay", 1.0, "above 0 and below 1, or null, got 1.0"),
        ("ema_decay", 0.0, "above 0 and below 1, or null, got 0.0"),
        ("checkpoint_minutes", 0.0, "above 0, got 0.0"),
        ("compile", "yes", "one of auto, on, off, cuda_graphs, got 'yes'"),
        ("sharding", "ddp", "one of none, fsdp, got 'ddp'"),
    ],
)
def test_a_setting_out_of_range_is_named(name, value, message):
    with pytest.raises(ValueError, match=rf"{name.removeprefix('window_')} must be {message}"):
        replace(SOUND, **{name: value}).check()


@pytest.mark.parametrize("changes", [{"size_power": 0.5}, {"hardness": 0.5}])
def test_which_lesions_are_drawn_cannot_be_said_where_none_is(changes):
    settings = SamplingSettings(
        **{"patch_size": [8, 8, 8], "lesion_fraction": 0.0, "size_power": 0.0, "hardness": 0.0} | changes,
        transplant_probability=0.0,
    )
    with pytest.raises(ValueError, match="lesion_fraction 0"):
        settings.check()


def test_parts_of_a_batch_must_be_equal():
    with pytest.raises(ValueError, match=r"batch_size 6 cannot be computed in 4 equal parts \(accumulate\)"):
        replace(SOUND, batch_size=6, accumulate=4).check()
    replace(SOUND, batch_size=6, accumulate=3).check()
