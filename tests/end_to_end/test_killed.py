"""A run that is killed, at whatever moment, and started again by the same command ends as if nothing had happened."""

import os
import random
import re
import signal
import time

import pytest
import torch
from commands import TINY, start
from killing import outcome, start_until_ended, when_changed

#: Checkpoints within epochs: after nearly each step.
OFTEN = ("trainer.max_epochs=3", "trainer.steps_per_epoch=4", "trainer.checkpoint_minutes=0.0001")
#: All that has a state, or that moves with the position.
WHOLE_RECIPE = (
    "trainer.ema_decay=0.9",
    "network.dropout=0.2",
    "network.deep_supervision=1",
    "trainer.accumulate=2",
    "trainer.curriculum={gamma:[[0,0],[0.5,2]]}",
    "sampling.hardness=0.5",
    "sampling.transplant_probability=0.5",
    "optimizer=sgd",
    "optimizer.lr=0.01",
)
HOME = "runs/default/r"
RECIPES = {"plain": (), "whole": WHOLE_RECIPE}


def train(dataset, recipe, *overrides):
    return ["train", *TINY, *OFTEN, *RECIPES[recipe], f"data.dataset={dataset}", *overrides]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset):
    """The folder of a run of each recipe without a kill."""
    folders = {recipe: tmp_path_factory.mktemp(recipe) for recipe in RECIPES}
    running = [start(*train(dataset, recipe, "run.id=r"), folder=folder) for recipe, folder in folders.items()]
    for started in running:
        ended = started.end()
        assert (ended.code, ended.err) == (0, "")
    return {recipe: folder / HOME for recipe, folder in folders.items()}


@pytest.mark.parametrize(("recipe", "seed"), [("plain", 1), ("whole", 2)])
def test_killed_at_random_moments_a_run_ends_with_the_weights_metrics_and_report_of_an_undisturbed_one(
    recipe, seed, undisturbed, tmp_path, dataset
):
    """While cases are read, within epochs or validations, and while the end is evaluated."""
    home, rng = tmp_path / HOME, random.Random(seed)
    last = home / "checkpoints" / "last.pt"
    moments = [
        when_changed(tmp_path / "cache", then_seconds=rng.uniform(0, 0.3)),
        *(when_changed(last, rng.randint(1, 7), then_seconds=rng.uniform(0, 0.1)) for _ in range(2)),
        when_changed(home / "model" / "model.json", then_seconds=rng.uniform(0, 0.3)),
    ]
    kills = start_until_ended(train(dataset, recipe, "run.id=r"), tmp_path, moments, rng)
    assert len(kills) > 3
    assert any(kill.went_on for kill in kills)
    assert outcome(home) == outcome(undisturbed[recipe])


def wait_for(path, started):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        assert started.process.is_alive()
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(signal.SIGTERM, 143, ""), (signal.SIGUSR1, 143, ""), (signal.SIGINT, 130, "interrupted\n")],
)
def test_a_signal_within_an_epoch_ends_the_step_saves_and_says_so(number, code, told, tmp_path, dataset):
    words = train(dataset, "plain", "run.id=r", "trainer.steps_per_epoch=300", "trainer.checkpoint_minutes=10")
    home = tmp_path / HOME
    started = start(*words, folder=tmp_path)
    wait_for(home / "train.log", started)
    time.sleep(0.5)
    os.kill(started.process.pid, number)
    ended = started.end()
    assert (ended.code, ended.err) == (code, told)
    stopped = re.search(r"stopped by a signal after (\d+) epochs and (\d+) steps; saved", ended.out)
    position = torch.load(home / "checkpoints" / "last.pt", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (int(stopped[1]), int(stopped[2]))
    assert 0 < position["step"] < 300
    assert not list(tmp_path.rglob("*.part"))
