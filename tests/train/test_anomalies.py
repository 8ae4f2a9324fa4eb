"""Steps without finite loss or gradients: named, kept, counted, and the end of a training that makes nothing else."""

import math

import numpy as np
import pytest
import torch

from medfocal.errors import ConfigError
from medfocal.train.anomalies import MOST_KEPT, Anomalies
from medfocal.train.batches import Batch
from medfocal.train.ranks import ALONE
from medfocal.train.step import Taken

GOOD = Taken(0.5, is_finite=True, is_fault=False, stops=False, saves=False)
FAULT = Taken(math.nan, is_finite=False, is_fault=True, stops=False, saves=False)
SEARCH = Taken(0.5, is_finite=False, is_fault=False, stops=False, saves=False)  # of a factor for float16


def batch(*names, weighted=False):
    image = torch.arange(len(names) * 8, dtype=torch.float32).reshape(-1, 1, 2, 2, 2)
    target = torch.ones(len(names), 2, 2, 2, dtype=torch.long)
    return Batch(image, target, torch.full((len(names), 2, 2, 2), 0.25) if weighted else None, names)


def judge(anomalies, *steps, first=1, given=None):
    for number, taken in enumerate(steps, first):
        anomalies.judge(taken, given or batch("p2", "p1", "p2"), epoch=3, step=number, ranks=ALONE)


def test_a_fault_names_the_cases_once_and_where_the_batch_is(tmp_path, caplog):
    anomalies = Anomalies(tmp_path / "anomalies", most_in_a_row=3)
    judge(anomalies, FAULT, first=7)
    (message,) = caplog.messages
    path = tmp_path / "anomalies" / "epoch-0003-step-00007-process-0.npz"
    assert message.startswith("epoch 3, step 7: loss nan or its gradients are not finite")
    assert "patches of p1, p2;" in message
    assert message.endswith(f"the batch is kept in '{path}'")


@pytest.mark.parametrize("weighted", [True, False])
def test_the_batch_can_be_looked_at_without_unpickling(weighted, tmp_path):
    given = batch("a", "b", weighted=weighted)
    judge(Anomalies(tmp_path, most_in_a_row=3), FAULT, given=given)
    with np.load(tmp_path / "epoch-0003-step-00001-process-0.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["image"], given.image)
        np.testing.assert_array_equal(kept["target"], given.target)
        assert kept["cases"].tolist() == ["a", "b"]
        assert ("weight" in kept) == weighted
        if weighted:
            np.testing.assert_array_equal(kept["weight"], given.weight)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_only_the_first_batches_are_kept_but_all_are_named(tmp_path, caplog):
    anomalies = Anomalies(tmp_path, most_in_a_row=99)
    judge(anomalies, *[FAULT] * (MOST_KEPT + 2))
    assert len(list(tmp_path.iterdir())) == MOST_KEPT
    assert len(caplog.messages) == MOST_KEPT + 2
    assert "the batch is kept" not in caplog.messages[-1]


def test_one_more_in_a_row_than_allowed_ends_the_training(tmp_path):
    anomalies = Anomalies(tmp_path, most_in_a_row=3)
    judge(anomalies, FAULT, FAULT, FAULT, GOOD, FAULT, FAULT, FAULT)
    assert (anomalies.num_in_a_row, anomalies.num_in_epoch) == (3, 6)
    with pytest.raises(
        ConfigError, match=r"4 steps in a row .* epoch 3, step 8, with patches of p1, p2\. .*optimizer\.lr"
    ):
        judge(anomalies, FAULT, first=8)


def test_with_0_allowed_the_first_fault_ends_it(tmp_path):
    with pytest.raises(ConfigError, match="1 steps in a row"):
        judge(Anomalies(tmp_path, most_in_a_row=0), FAULT)


def test_the_search_for_a_factor_is_counted_and_is_no_fault(tmp_path, caplog):
    anomalies = Anomalies(tmp_path, most_in_a_row=0)
    judge(anomalies, *[SEARCH] * 5)
    assert (anomalies.num_in_a_row, anomalies.num_in_epoch) == (0, 5)
    assert not caplog.messages
    assert not list(tmp_path.iterdir())


def test_counts_that_a_checkpoint_kept_go_on(tmp_path):
    anomalies = Anomalies(tmp_path, most_in_a_row=3, num_in_a_row=3, num_in_epoch=5)
    with pytest.raises(ConfigError, match="4 steps in a row"):
        judge(anomalies, FAULT)
    assert anomalies.num_in_epoch == 6
