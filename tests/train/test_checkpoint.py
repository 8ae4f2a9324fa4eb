"""Checkpoints come back to the bit, or not at all, and never run anything."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from medfocal.errors import ModelError, ResourceError
from medfocal.train.checkpoint import (
    FORMAT_VERSION,
    keep_as,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _random_state_is_put_back():
    before = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
    with torch.random.fork_rng():
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def state():
    weights = torch.arange(3000, dtype=torch.float32)
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    (parameter**2).sum().backward()
    optimizer.step()
    return {"epoch": 3, "network": {"w": weights}, "optimizer": optimizer.state_dict(), "best": [0.5, float("-inf")]}


def test_a_checkpoint_gives_back_values_and_leaves_random_generators_alone(tmp_path):
    save_checkpoint(tmp_path / "deep" / "last.pt", state())
    torch.manual_seed(77)
    expected = torch.rand(4)
    torch.manual_seed(77)
    found = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert torch.equal(torch.rand(4), expected)
    assert found["epoch"] == 3
    assert found["best"] == [0.5, float("-inf")]
    assert torch.equal(found["network"]["w"], state()["network"]["w"])
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg_sq"], state()["optimizer"]["state"][0]["exp_avg_sq"])
    assert names(tmp_path / "deep") == ["last.pt"]


def draw():
    """Of each generator, also the half of a pair of normal numbers that numpy and Python keep for the next call."""
    python = [random.gauss(0, 1), random.random()]
    return [*python, *np.random.standard_normal(3), *np.random.random(2), *torch.rand(3).tolist()]  # noqa: NPY002


def test_random_generators_go_on_where_they_were_after_a_way_through_a_file(tmp_path):
    draw()
    save_checkpoint(tmp_path / "last.pt", {"random": [random_state(CPU)]})
    expected = draw()
    draw()
    set_random_state(load_checkpoint(tmp_path / "last.pt")["random"], 0, CPU)
    assert draw() == expected


def test_each_process_gets_its_own_generators_back_and_a_new_one_gets_its_own():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(random_state(CPU))
    drawn = []
    for rank in range(4):
        set_random_state(states, rank, CPU)
        drawn.append(torch.rand(3).tolist())
    for rank, seed in enumerate((1, 2)):
        torch.manual_seed(seed)
        assert torch.rand(3).tolist() == drawn[rank]
    assert len({tuple(values) for values in drawn}) == 4


@pytest.mark.parametrize(
    "states",
    [[], [None], [{}], [{"python": [3, [1, 2], None]}], [{"python": "x"}], [{"torch": torch.ones(3)}], "no list"],
)
def test_states_of_generators_that_make_no_sense_are_refused(states):
    whole = random_state(CPU)
    states = [whole | entry if isinstance(entry, dict) and entry else entry for entry in states]
    with pytest.raises(ModelError, match="states of random generators make no sense"):
        set_random_state(states, 0, CPU)


def test_the_checkpoint_before_keeps_a_second_name(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    keep_as(last, previous)
    assert names(tmp_path) == []
    for number in range(4):
        keep_as(last, previous)
        assert last.exists() == (number > 0)  # at no moment is there none
        save_checkpoint(last, {"number": number})
        keep_as(previous, tmp_path / "other.pt")  # a third name changes nothing
    assert [load_checkpoint(path)["number"] for path in (last, previous)] == [3, 2]
    keep_as(last, previous)
    keep_as(last, previous)  # as after a kill in between: both names are of one file
    assert load_checkpoint(previous)["number"] == 3
    assert names(tmp_path) == ["last.pt", "other.pt", "previous.pt"]


def saved(folder):
    save_checkpoint(folder / "last.pt", state())
    return folder / "last.pt"


def test_one_flipped_bit_in_the_weights_is_found_though_torch_reads_on(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.find(np.arange(100, 200, dtype=np.float32).tobytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    assert torch.load(path, weights_only=True)["epoch"] == 3
    with pytest.raises(ModelError, match=r"'.*last\.pt' is damaged .* checksum of 'archive/data/\d' does not match"):
        load_checkpoint(path)


def test_cut_off_empty_and_random_content_is_damaged_and_advice_can_be_given(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    cuts = [whole[:length] for length in np.linspace(1, len(whole) - 1, 20).astype(int)]
    for content in (*cuts, b"", b"\x80\x02", np.random.default_rng(0).bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"is damaged or not one of medfocal's: .* Ask the cook\.$"):
            load_checkpoint(path, advice="Ask the cook.")


def test_random_damage_is_a_model_error_or_harmless(tmp_path):
    path = saved(tmp_path)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    edges = [*range(600), *range(len(whole) - 1500, len(whole))]  # the pickle and the directory of the archive
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.choice(edges, 3):
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content))
        try:
            load_checkpoint(path)
        except ModelError:
            refused += 1
    assert refused > 75


def test_a_missing_checkpoint_and_a_folder_are_model_errors(tmp_path):
    for path in (tmp_path / "last.pt", tmp_path):
        with pytest.raises(ModelError, match="is damaged or not one of medfocal's"):
            load_checkpoint(path)


class Bomb:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_foreign_pickle_is_refused_without_running_it(tmp_path, legacy):
    content = io.BytesIO()
    torch.save(
        {"format_version": FORMAT_VERSION, "network": Bomb(tmp_path / "ran")},
        content,
        _use_new_zipfile_serialization=not legacy,
    )
    path = tmp_path / "last.pt"
    for data in (content.getvalue(), pickle.dumps(Bomb(tmp_path / "ran"))):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="is damaged or not one of medfocal's"):
            load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(content.getvalue())
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # the bomb works


@pytest.mark.parametrize("content", [{"format_version": 2}, {}, [1, 2], torch.ones(3)])
def test_another_version_and_another_kind_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ModelError, match=rf"has format version .*; this program reads {FORMAT_VERSION}"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_writer_that_fails_leaves_the_old_checkpoint(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_checkpoint(path, {"loss": lambda x: x})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["last.pt"]


def test_a_file_in_the_way_is_a_resource_error(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(ResourceError, match="cannot make the folder"):
        save_checkpoint(tmp_path / "checkpoints" / "last.pt", {})


FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from medfocal.errors import ResourceError
from medfocal.train.checkpoint import save_checkpoint
path = Path(sys.argv[1])
limit = path.stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_checkpoint(path, {"more": torch.ones(limit)})
except ResourceError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(tmp_path):
    """In a process whose files may not grow larger than the checkpoint there is."""
    path = saved(tmp_path)
    before = path.read_bytes()
    command = [sys.executable, "-c", FILL_THE_DISK, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.startswith(f"cannot write '{path}': ")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["last.pt"]
