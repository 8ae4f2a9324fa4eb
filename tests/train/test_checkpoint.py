"""Checkpoints come back to the bit, or not at all, and never run anything."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
import torch

from medfocal.errors import ModelError, ResourceError
from medfocal.train.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def _random_state_is_put_back():
    with torch.random.fork_rng():
        yield


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def state():
    weights = torch.arange(3000, dtype=torch.float32)
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    (parameter**2).sum().backward()
    optimizer.step()
    return {"epoch": 3, "network": {"w": weights}, "optimizer": optimizer.state_dict(), "best": [0.5, float("-inf")]}


def test_a_checkpoint_gives_back_values_and_random_numbers(tmp_path):
    torch.manual_seed(5)
    save_checkpoint(tmp_path / "deep" / "last.pt", state())
    expected = torch.rand(4)
    torch.manual_seed(77)
    found = load_checkpoint(tmp_path / "deep" / "last.pt")
    assert torch.equal(torch.rand(4), expected)
    assert found["epoch"] == 3
    assert found["best"] == [0.5, float("-inf")]
    assert torch.equal(found["network"]["w"], state()["network"]["w"])
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg_sq"], state()["optimizer"]["state"][0]["exp_avg_sq"])
    assert names(tmp_path / "deep") == ["last.pt"]


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


def test_cut_off_empty_and_random_content_is_damaged(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-30], b"", b"\x80\x02", np.random.default_rng(0).bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"is damaged or not one of medfocal's: .* Remove it to start"):
            load_checkpoint(path)


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
        {"format_version": 2, "network": Bomb(tmp_path / "ran")}, content, _use_new_zipfile_serialization=not legacy
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


@pytest.mark.parametrize("content", [{"format_version": 1}, {}, [1, 2], torch.ones(3)])
def test_another_version_and_another_kind_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ModelError, match=r"has format version .*; this program reads 2"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("random", [None, {}, {"cpu": torch.ones(3)}, {"cpu": torch.ones(3, dtype=torch.uint8)}])
def test_a_checkpoint_without_a_usable_random_state_is_refused(tmp_path, random):
    torch.save({"format_version": 2, "random": random}, tmp_path / "last.pt")
    with pytest.raises(ModelError, match="is damaged or not one of medfocal's"):
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
