"""`medfocal evaluate` from the command line to its files: bad cases, classes, other rules, a kill in the middle."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run, start

from medfocal.volume import Volume, write_volume

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
WORDS = ("evaluate", "reference=reference", "prediction=prediction", "output=out")
FEW = "protocol.num_resamples=20"


def write(path, boxes, *, shape=(12, 10, 8), affine=AFFINE):
    """Boxes along i, 2 x 2 voxels thick, each with its value."""
    array = np.zeros(shape, np.uint8)
    for first, end, value in boxes:
        array[first:end, 3:5, 2:4] = value
    path.parent.mkdir(exist_ok=True)
    write_volume(path, Volume(array, affine))


@pytest.fixture
def home(tmp_path):
    """Three cases: class 1 found and class 2 missed in each."""
    for name in "abc":
        write(tmp_path / "reference" / f"{name}.nii.gz", [(1, 4, 1), (6, 9, 2)])
        write(tmp_path / "prediction" / f"{name}.nii.gz", [(2, 4, 1)])
    return tmp_path


def written(home, name="evaluation.json"):
    return json.loads((home / "out" / name).read_text("utf-8"))


@pytest.mark.parametrize("fault", ["cut off", "grid", "probability above 1"])
def test_bad_case_is_named_and_left_out_and_the_rest_goes_on_with_exit_code_3(home, fault):
    bad = home / "prediction" / "b.nii.gz"
    if fault == "cut off":
        bad.write_bytes(bad.read_bytes()[:40])
    elif fault == "grid":
        write(bad, [(2, 4, 1)], affine=np.diag([0.5, 1.0, 4.0, 1.0]))
    else:
        write_volume(bad, Volume(np.linspace(0, 1.5, 960).reshape(12, 10, 8), AFFINE))
    ended = run(*WORDS, FEW, folder=home)
    assert ended.code == 3
    assert "InputError: 1 of 3 cases could not be evaluated and are left out:\n" in ended.err
    assert "case 'b'" in ended.err or "b.nii.gz" in ended.err
    assert "Traceback" not in ended.err
    found = written(home)
    assert (found["num_cases"], found["num_lesions"], found["num_detected_lesions"]) == (2, 4, 2)
    assert [failure["case"] for failure in found["failed"]] == ["b"]
    page = (home / "out" / "report.html").read_text("utf-8")
    assert "could not be evaluated" in page
    assert "b.nii.gz" in page


def test_classes_have_a_folder_each_and_stand_in_the_figures_of_all(home):
    ended = run(*WORDS, FEW, "classes={first: [1], second: [2], both: [1, 2]}", folder=home)
    assert (ended.code, ended.err) == (0, "")
    found = written(home)
    assert (found["num_lesions"], found["num_detected_lesions"]) == (6, 3)
    counts = {name: (of["num_detected_lesions"], of["num_lesions"]) for name, of in found["classes"].items()}
    assert counts == {"first": (3, 3), "second": (0, 3), "both": (3, 6)}
    second = written(home, "class_second/evaluation.json")
    assert second["num_lesions"] == 3
    assert (home / "out" / "class_second" / "report.html").is_file()
    assert "class second" in ended.out


def test_another_protocol_reads_no_image_again(home):
    assert run(*WORDS, FEW, "surface=false", folder=home).code == 0
    for path in (home / "prediction").iterdir():  # unreadable, but of the same size and time
        state = path.stat()
        path.write_bytes(b"x" * state.st_size)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    ended = run(
        *WORDS,
        FEW,
        "surface=false",
        "protocol.hit_rule=iou",
        "protocol.hit_threshold=0.7",
        "max_pictures=0",
        folder=home,
    )
    assert (ended.code, ended.err) == (0, "")
    assert written(home)["num_detected_lesions"] == 0


def test_killed_evaluation_goes_on_with_the_next_case(tmp_path):
    shape = (120, 110, 90)
    for number in range(40):
        write(tmp_path / "reference" / f"{number:02}.nii.gz", [(1, 40, 1), (60, 90, 1)], shape=shape)
        write(tmp_path / "prediction" / f"{number:02}.nii.gz", [(2, 40, 1)], shape=shape)
    tables = tmp_path / "out" / "tables.jsonl"
    started = start(*WORDS, FEW, folder=tmp_path)
    while not tables.exists() or tables.read_bytes().count(b"\n") < 4:
        assert started.process.is_alive(), "it was done before it could be killed"
        time.sleep(0.001)
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.join()
    done = [line for line in tables.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 4 <= len(done) < 41
    assert not (tmp_path / "out" / "evaluation.json").exists()
    assert run(*WORDS, FEW, folder=tmp_path).code == 0
    after = tables.read_bytes().splitlines(keepends=True)
    assert after[: len(done)] == done
    assert len(after) == 41
    assert written(tmp_path)["num_detected_lesions"] == 40


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("missing=none", "missing must be one of"),
        ("extra=drop", "extra must be one of"),
        ("instances=all", "instances must be one of"),
        ("expect=masks", "expect must be one of"),
        ("resample=linear", "resample must be nearest or null"),
        ("output=", "output must name a folder"),
        ("protocol.false_positive_rates=[1,inf]", "false_positive_rates must be positive and rising"),
        ("workers=0", "workers must be 1 or more, got 0"),
        ("classes={a: [0]}", "classes: 'a' must have"),
        ("protocol.hit_rule=iou", "give the share that a hit needs, such as protocol.hit_threshold=0.25"),
        ("protocol.hit_threshold=0.5", "hit_rule=any_overlap has no hit_threshold"),
        ("protocol=nothing", "nothing"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_before_any_file_is_read(home, override, said):
    ended = run(*WORDS, override, folder=home)
    assert ended.code == 2
    assert said in ended.err
    assert not (home / "out").exists()


def test_readers_and_classes_together_are_refused(home):
    ended = run(*WORDS, "readers=[a,b]", "classes={x: [1]}", folder=home)
    assert ended.code == 2
    assert "readers are compared without classes" in ended.err


def test_two_processes_write_the_same_files(home):
    assert run(*WORDS, FEW, folder=home).code == 0
    first = {path.name: path.read_bytes() for path in (home / "out").iterdir() if path.suffix != ".html"}
    assert run(*WORDS[:-1], "output=two", FEW, "workers=2", folder=home).code == 0
    assert {path.name: path.read_bytes() for path in (home / "two").iterdir() if path.suffix != ".html"} == first


def test_changed_rules_are_named_and_the_places_stand_in_the_files(home):
    ended = run(*WORDS, FEW, "protocol.hit_rule=iou", "protocol.hit_threshold=0.25", folder=home)
    assert ended.code == 0
    assert written(home)["protocol"]["name"] == "any_overlap, changed: hit_rule=iou, hit_threshold=0.25"
    assert written(home)["inputs"] == {"reference": "reference", "prediction": "prediction"}
    assert run(*WORDS, FEW, "protocol.threshold=0.25", folder=home).code == 0
    assert written(home)["protocol"]["name"] == "any_overlap"


def test_folder_of_a_class_that_is_none_any_more_goes(home):
    assert run(*WORDS, FEW, "classes={first: [1], second: [2]}", folder=home).code == 0
    (home / "out" / "class_second" / "mine.txt").write_text("kept")
    assert run(*WORDS, FEW, folder=home).code == 0
    assert not (home / "out" / "class_first").exists()
    assert [path.name for path in (home / "out" / "class_second").iterdir()] == ["mine.txt"]


def test_patterns_pair_by_what_the_star_stands_for(home):
    for path in (home / "prediction").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_model.nii")))
    ended = run(
        "evaluate", "reference=reference", "prediction=prediction/*_model.nii.gz", "output=out", FEW, folder=home
    )
    assert (ended.code, ended.err) == (0, "")
    assert written(home)["num_cases"] == 3


@pytest.mark.parametrize("images", ["images", "images/*_T1.nii.gz"])
def test_images_may_have_a_channel_behind_the_name_of_the_case(home, images):
    for name in "abc":
        write(home / "images" / f"{name}_T1.nii.gz", [(1, 4, 100)])
    ended = run(*WORDS, FEW, f"images={images}", folder=home)
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_workers_end_with_the_command_however_it_ends(tmp_path):
    shape = (120, 110, 90)
    for number in range(60):
        write(tmp_path / "reference" / f"{number:02}.nii.gz", [(1, 40, 1)], shape=shape)
        write(tmp_path / "prediction" / f"{number:02}.nii.gz", [(2, 40, 1)], shape=shape)
    started = start(*WORDS, FEW, "workers=2", folder=tmp_path)
    tables = tmp_path / "out" / "tables.jsonl"
    while not tables.exists() or tables.read_bytes().count(b"\n") < 3:
        assert started.process.is_alive(), "it was done before it could be killed"
        time.sleep(0.001)
    children = [int(pid) for pid in child_pids(started.process.pid)]
    assert len(children) >= 2
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.join()
    deadline = time.monotonic() + 60
    while alive := [pid for pid in children if (Path("/proc") / str(pid)).exists()]:
        assert time.monotonic() < deadline, f"{alive} go on"
        time.sleep(0.05)


def child_pids(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def test_an_older_page_does_not_stay_beside_new_figures(home):
    assert run(*WORDS, FEW, folder=home).code == 0
    write(home / "images" / "a.nii.gz", [], affine=np.diag([0.5, 1.0, 4.0, 1.0]))
    assert run(*WORDS, FEW, "images=images", "protocol.threshold=0.4", folder=home).code == 3
    assert written(home)["protocol"]["threshold"] == 0.4
    assert not (home / "out" / "report.html").exists()
