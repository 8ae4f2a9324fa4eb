"""What a run folder says of the run, and who may continue it."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from sound_settings import SOUND

from medfocal.annotations.target import AnnotationSettings
from medfocal.data.manifest import Case
from medfocal.errors import ConfigError, DatasetError, ResourceError
from medfocal.train import records
from medfocal.train.records import (
    COMPUTED_WITH,
    check_same_configuration,
    conf_digest,
    environment,
    failures_logged,
    only_one,
    refuse_other_data,
    write_records,
)

CPU = torch.device("cpu")
CONF = {
    "seed": 1,
    "device": "cpu",
    "run": {"id": "r", "resume": "last"},
    "trainer": {"max_epochs": 4, "batch_size": 2, "checkpoint_minutes": 10.0},
    "loss": {"gamma": 2.0, "alpha": [0.25, 0.75]},
    "paths": {"runs": "runs", "cache": "cache"},
}


def changed(**groups):
    return {
        key: {**value, **groups.get(key, {})} if isinstance(value, dict) else groups.get(key, value)
        for key, value in CONF.items()
    }


@pytest.fixture
def begun(tmp_path):
    """A run folder with a configuration."""
    from omegaconf import OmegaConf

    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(CONF)))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    return tmp_path


def test_a_run_that_learnt_nothing_yet_may_be_begun_with_other_settings(begun):
    (begun / "checkpoints" / "last.pt").unlink()
    check_same_configuration(begun, changed(loss={"gamma": 1.0}))


ALLOWED = [
    {"trainer": {"max_epochs": 9}},
    {"trainer": {"checkpoint_minutes": 1.0}},
    {"run": {"resume": "previous"}},
    {"paths": {"runs": "elsewhere", "cache": "there"}},
    {"device": "cuda:1"},
    {"trainer": {"accumulate": 4}},
    {"trainer": {"checkpoint_activations": True}},
]


@pytest.mark.parametrize("groups", ALLOWED, ids=str)
def test_what_changes_no_figure_may_change(groups, begun):
    check_same_configuration(begun, changed(**groups))
    assert conf_digest(changed(**groups)) == conf_digest(CONF)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"loss": {"gamma": 1.0}}, "loss.gamma: 2.0 then, 1.0 now"),
        ({"loss": {"alpha": [0.5, 0.5]}}, r"loss.alpha: \[0.25, 0.75\] then, \[0.5, 0.5\] now"),
        ({"trainer": {"batch_size": 4}}, "trainer.batch_size: 2 then, 4 now"),
        ({"loss": {"cap": 1}}, "loss.cap: None then, 1 now"),
        ({"seed": 2}, "seed: 1 then, 2 now"),
    ],
    ids=str,
)
def test_anything_else_is_refused_with_both_values(groups, told, begun):
    with pytest.raises(ConfigError, match=told):
        check_same_configuration(begun, changed(**groups))
    assert conf_digest(changed(**groups)) != conf_digest(CONF)


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert conf_digest(dict(reversed(CONF.items()))) == conf_digest(CONF)


def test_where_nothing_has_begun_any_configuration_will_do(tmp_path):
    check_same_configuration(tmp_path, CONF)


HOLD = """
import sys
from pathlib import Path
from medfocal.train.records import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_program_learns_who_trains_the_run_until_that_one_has_ended(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    told = rf"is being trained by process {holder.pid} on {socket.gethostname()}\."
    with pytest.raises(ResourceError, match=told), only_one(tmp_path):
        pass
    holder.kill()  # leaves the file behind, which holds nobody off
    holder.communicate()
    with only_one(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_within_one_program_two_cannot_hold_it_either(tmp_path):
    with only_one(tmp_path), pytest.raises(ResourceError, match=f"process {os.getpid()}"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


@pytest.mark.parametrize("error", [ValueError("why"), SystemExit(143), KeyboardInterrupt()])
def test_what_ends_a_run_stands_in_its_log_and_goes_on(error, tmp_path):
    log = logging.getLogger("medfocal")
    handler = logging.FileHandler(tmp_path / "train.log")
    log.addHandler(handler)
    try:
        with pytest.raises(type(error)), failures_logged():
            raise error
    finally:
        log.removeHandler(handler)
        handler.close()
    assert (tmp_path / "train.log").read_text() == f"{type(error).__name__}: {error}\n"


def test_the_environment_says_what_a_run_is_computed_with():
    found = environment(CPU, replace(SOUND, precision="bf16", tf32=False), 2, torch.bfloat16)
    assert set(COMPUTED_WITH) <= set(found)
    assert (found["num_processes"], found["computed_in"], found["tf32"]) == (2, "bfloat16", False)
    assert (
        found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    )


class Dataset:
    """A manifest of one training and one validation case, with their files."""

    def __init__(self, folder):
        self.path = folder / "dataset.json"
        self.name = "two"
        self.cases = []
        for name, split in (("a", "training"), ("b", "validation")):
            image, label = folder / f"{name}.nii", folder / f"{name}_label.nii"
            image.write_text(f"image {name}")
            label.write_text(f"label {name}")
            self.cases.append(Case(name, f"patient {name}", split, (image,), label))
        self.path.write_text("{}")

    def split(self, name):
        return [case for case in self.cases if case.split == name]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The dataset of a run that has a checkpoint; what splits came from is not looked at here."""
    (tmp_path / "data").mkdir()
    found = Dataset(tmp_path / "data")

    def write_split(path, manifest):
        splits = {
            s: [{"case": c.name, "patient": c.patient} for c in manifest.split(s)] for s in ("training", "validation")
        }
        path.write_text(json.dumps(splits))

    monkeypatch.setattr(records, "write_split", write_split)
    return found


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def now(**changes):
    return environment(CPU, SOUND, 1, None) | changes


def write(run, data, **changes):
    write_records(run, CONF, data, AnnotationSettings(), now(**changes))
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "last.pt").touch()
    return json.loads((run / "environment.json").read_text())


def test_the_same_data_may_go_on_and_before_a_checkpoint_any_data(run, data):
    refuse_other_data(run, data, AnnotationSettings())
    write(run, data)
    refuse_other_data(run, data, AnnotationSettings())


@pytest.mark.parametrize("name", ["a.nii", "b_label.nii"])
def test_a_file_that_was_changed_since_the_run_began_is_named(name, run, data):
    write(run, data)
    (data.path.parent / name).write_text("other")
    with pytest.raises(DatasetError, match=rf"files of 1 cases are not those .* began with: {name[0]}\."):
        refuse_other_data(run, data, AnnotationSettings())


def test_a_case_with_another_file_than_the_run_began_with_is_refused(run, data):
    """The dataset names another label, of another name; the old file is still there."""
    write(run, data)
    other = data.path.parent / "other_label.nii"
    other.write_text("shifted")
    data.cases[0] = replace(data.cases[0], label=other)
    with pytest.raises(DatasetError, match=r"files of 1 cases .*: a\."):
        refuse_other_data(run, data, AnnotationSettings())


def test_the_same_data_in_another_place_go_on(run, data, tmp_path):
    write(run, data)
    moved = tmp_path / "moved"
    shutil.copytree(data.path.parent, moved)
    cases = [
        replace(
            case,
            images=tuple(moved / path.name for path in case.images),
            label=None if case.label is None else moved / case.label.name,
        )
        for case in data.cases
    ]
    data.cases[:] = cases
    refuse_other_data(run, data, AnnotationSettings())


def test_other_cases_are_named_with_the_way_to_the_old_split(run, data):
    write(run, data)
    data.cases[0] = replace(data.cases[0], name="c")
    with pytest.raises(DatasetError, match=r"began with other training cases: a, c\. .* data\.split="):
        refuse_other_data(run, data, AnnotationSettings())


def test_another_version_is_warned_of_and_recorded_once(run, data, caplog):
    first = write(run, data)
    assert "continued" not in first
    assert "continued" not in write(run, data)
    packages = first["packages"] | {"numpy": "9.9"}
    found = write(run, data, medfocal="9.0", git_commit="f" * 40, packages=packages)
    (entry,) = found["continued"]
    assert entry["now"] == {"medfocal": "9.0", "git_commit": "f" * 40, "packages": packages}
    assert {key: found[key] for key in first} == first
    assert f"another medfocal: {first['medfocal']} before, 9.0 now" in caplog.text
    assert (
        f"another packages: {{'numpy': '{first['packages']['numpy']}'}} before, {{'numpy': '9.9'}} now" in caplog.text
    )
    caplog.clear()
    again = write(run, data, medfocal="9.0", git_commit="f" * 40, packages=packages)
    assert again == found
    assert not caplog.messages
    back = write(run, data)
    assert [set(entry["now"]) for entry in back["continued"]] == [{"medfocal", "git_commit", "packages"}] * 2


def test_what_shows_a_run_elsewhere_is_no_part_of_it():
    shown = {"tracking": {"_target_": "medfocal.train.tracking.TensorBoard", "folder": "tb"}, "seed": 1}
    silent = {"tracking": {"_target_": "medfocal.train.tracking.NoTracking"}, "seed": 1}
    assert conf_digest(shown) == conf_digest(silent)
    assert conf_digest(shown) != conf_digest(shown | {"seed": 2})
