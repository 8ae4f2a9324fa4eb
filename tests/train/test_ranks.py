"""Processes that train together: who they are, and what they tell each other."""

import pytest
from small_steps import shares
from two_ranks import together

from medfocal.errors import ConfigError
from medfocal.train.ranks import ALONE, Ranks, join_ranks

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_three_processes_share_out_and_put_together_again(tmp_path):
    first, second, third = together(shares, tmp_path, count=3)
    assert [answer["own"] for answer in (first, second, third)] == [["a", "d"], ["b", "e"], ["c"]]
    for number, answer in enumerate((first, second, third)):
        assert answer["in order"] == list("ABCDE")
        assert (answer["few"], answer["none"]) == (["a"], [])
        assert answer["gather"] == [0, 10, 20]
        assert answer["told"] == "rank 0"
        assert answer["added"] == 6
        assert answer["first"] == (number == 0)


def test_alone_all_is_its_own():
    assert shares(ALONE) == {
        "own": list("abcde"),
        "in order": list("ABCDE"),
        "few": ["a"],
        "none": [],
        "gather": [0],
        "told": "rank 0",
        "added": 1,
        "first": True,
        "device": "cpu",
    }
    ALONE.wait()


@pytest.mark.parametrize("world_size", [None, "1"])
def test_without_torchrun_or_with_one_process_there_is_one(world_size, monkeypatch):
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with join_ranks() as ranks:
        assert ranks == ALONE


def test_part_of_what_torchrun_tells_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    told = "WORLD_SIZE=2 announces several processes, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"
    with pytest.raises(ConfigError, match=told), join_ranks():
        pass


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1", "cpu"])
def test_without_gpus_and_alone_the_device_is_the_one_that_was_asked_for(name, monkeypatch):
    import torch

    assert Ranks(0, 1, 0).device(name) == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Ranks(1, 2, 1).device(name) == name


def test_each_process_gets_a_gpu_of_its_own_and_one_too_many_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Ranks(rank, 6, rank % 2).device(name) for rank, name in enumerate(("auto", "cuda"))] == ["cuda:0", "cuda:1"]
    assert Ranks(0, 6, 0).device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match=r"process 2 of this machine has no GPU of its own: there are 2\."):
        Ranks(2, 6, 2).device("auto")
