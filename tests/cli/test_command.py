"""The command itself: exit codes, messages, help, and what help does not import."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import TINY, assert_refused, call, run

from medfocal.config import conf_directory
from medfocal.volume import Volume, write_volume

VERBS = (
    *("phantom", "check", "plan", "train", "predict", "evaluate", "compare", "suspect"),
    *("summarize", "calibrate", "export", "info"),
)


def test_done_is_0_from_a_cold_start(tmp_path):
    ended = call("info", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("medfocal 0.")


def test_a_wrong_configuration_is_2_from_a_cold_start(tmp_path):
    assert_refused(call("train", "loss.gama=1", folder=tmp_path), 2, "did you mean 'loss.gamma'?")


def test_a_missing_input_is_3_from_a_cold_start(tmp_path):
    ended = call("evaluate", "reference=nowhere", "prediction=nowhere", "output=o", folder=tmp_path)
    assert_refused(ended, 3, "the reference 'nowhere' does not exist")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_4_from_a_cold_start(tmp_path):
    assert_refused(call("predict", "model=nowhere", "input=i", "output=o", folder=tmp_path), 4, "'nowhere'")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_5_from_a_cold_start(tmp_path):
    for name in ("reference.nii.gz", "prediction.nii.gz"):
        write_volume(tmp_path / name, Volume(np.zeros((12, 10, 8), np.uint8), np.diag([0.5, 1.0, 3.0, 1.0])))
    (tmp_path / "o").write_text("mine")
    words = ("evaluate", "reference=reference.nii.gz", "prediction=prediction.nii.gz", "output=o")
    assert_refused(call(*words, folder=tmp_path), 5, "'o'")
    assert (tmp_path / "o").read_text() == "mine"


def test_sigterm_ends_a_cold_start_with_143_and_no_half_written_file(tmp_path, bare):
    words = ["train", *TINY, f"data.dataset={bare}", "trainer.max_epochs=500", "run.id=r"]
    command = [sys.executable, "-m", "medfocal.cli", *words]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        run_folder = tmp_path / "runs" / "default" / "r"
        wait_for((run_folder / "checkpoints" / "last.pt").exists, process.poll)
        wait_for(lambda: list(run_folder.glob("checkpoints/.*.part")), process.poll)  # the next is being written
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert err in ("", "terminated\n")  # the first where the signal waits until the epoch is saved
    assert not list(tmp_path.rglob("*.part"))
    assert not (run_folder / "model").exists()


def wait_for(happened, ended, seconds=300):
    deadline = time.monotonic() + seconds
    while not happened():
        assert ended() is None, "it ended before"
        assert time.monotonic() < deadline, "it never happened"


def test_a_patch_that_no_machine_could_hold_is_refused_before_any_work(tmp_path, dataset):
    words = ["train", *TINY, f"data.dataset={dataset}", "sampling.patch_size=[80000,80000,80000]"]
    assert_refused(run(*words, folder=tmp_path), 2, "[80000, 80000, 80000]", "voxels")
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback_and_the_same_code(tmp_path):
    quiet, loud = (run("info", "model=nowhere", f"debug={debug}", folder=tmp_path) for debug in ("false", "true"))
    assert_refused(quiet, 4, "'nowhere' is not a model folder")
    assert loud.code == 4
    assert "Traceback" in loud.err
    assert loud.err.endswith(quiet.err)


def test_without_a_verb_the_usage_is_an_error(tmp_path):
    ended = call(folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "usage: medfocal VERB" in ended.err


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_verb(word, tmp_path):
    ended = run(word, folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert all(f"\n  {verb} " in ended.out for verb in VERBS)


def test_the_version_is_that_of_the_package(tmp_path):
    from medfocal import __version__

    assert run("--version", folder=tmp_path).out == f"medfocal {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_its_settings_and_choices(verb, tmp_path):
    ended = run(verb, "--help", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert f"# medfocal {verb}" in ended.out
    assert "_self_" not in ended.out
    if verb == "train":
        losses = sorted(path.stem for path in (conf_directory() / "loss").iterdir())
        assert f"{' | '.join(losses)}   (default: focal)" in ended.out
        assert "seed: 1" in ended.out


@pytest.mark.parametrize(
    "words", [("--help",), ("train", "--help"), ("predict", "--help"), ("--version",)], ids=" ".join
)
def test_help_imports_no_slow_package(words):
    code = f"""
import sys
from medfocal.cli import main
try:
    main({list(words)!r})
finally:
    slow = {{"torch", "hydra", "monai", "nibabel", "SimpleITK", "matplotlib", "scipy"}} & set(sys.modules)
    print("slow:", sorted(slow), file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr == "slow: []\n"


def test_an_unknown_verb_is_refused_and_the_near_one_told(tmp_path):
    assert_refused(run("trian", folder=tmp_path), 2, "there is no verb 'trian' (did you mean 'train'?)", *VERBS)


@pytest.mark.parametrize("word", ["--verbose", "-x", "--config-dir=conf", "--multi"])
def test_an_unknown_option_is_refused(word, tmp_path):
    assert_refused(run("info", word, folder=tmp_path), 2, f"there is no option {word}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["modle=x"], "no setting 'modle' (did you mean 'model'?)"),
        (["+modle=x"], "no setting 'modle' (did you mean 'model'?)"),
        (["-m", "modle=x,y"], "no setting 'modle' (did you mean 'model'?)"),
        (["model"], "model"),
        (["model=[x"], "[x"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: a setting of Hydra's own has no effect without -m"),
    ],
    ids=str,
)
def test_an_override_that_does_not_fit_is_refused(words, told, tmp_path):
    assert_refused(run("info", *words, folder=tmp_path), 2, told)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_can_be_looked_at_without_running(tmp_path):
    ended = run("train", "--cfg", "job", "loss.gamma=1", folder=tmp_path)
    assert ended.code == 0
    assert "gamma: 1\n" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_command_leaves_nothing_of_hydras_behind(tmp_path):
    assert run("info", folder=tmp_path).code == 0
    assert list(tmp_path.iterdir()) == []


def test_info_draws_the_loss_and_tells_where_it_wrote(tmp_path):
    named, default = (
        run("info", "figure=focal_loss", *words, folder=tmp_path) for words in (["output=deep/er.png"], [])
    )
    assert (named.code, named.out, named.err) == (0, "the figure is 'deep/er.png'\n", "")
    assert (default.code, default.out, default.err) == (0, "the figure is 'focal_loss.png'\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "focal_loss.png"]
    drawn = (tmp_path / "focal_loss.png").read_bytes()
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "deep" / "er.png").read_bytes() == drawn


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["figure=focal_lss"], "no figure 'focal_lss' (did you mean 'focal_loss'?). Figures: focal_loss."),
        (["figure=x"], "no figure 'x'. Figures: focal_loss."),
        (["figure=focal_loss", "model=m"], "figure 'focal_loss' has nothing to do with model 'm'; give one of them"),
        (["figure=focal_loss", "output=a.svg"], "output 'a.svg' must end in .png"),
        (["figure=focal_loss", "output=''"], "output '' must end in .png"),
        (["output=a.png"], "output 'a.png' is where a figure goes; choose one: figure=focal_loss"),
    ],
    ids=str,
)
def test_a_figure_that_cannot_be_drawn_is_refused(words, told, tmp_path):
    assert_refused(run("info", *words, folder=tmp_path), 2, told)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_after_a_fault_and_ends_with_its_code(tmp_path):
    ended = run("info", "-m", "model=nowhere,null", folder=tmp_path)
    assert ended.code == 4
    assert "model=nowhere" in ended.err
    assert "ModelError: 'nowhere' is not a model folder" in ended.err
    assert "Traceback" not in ended.err
    assert "torch" in ended.out, "the second job ran"
    assert not list(tmp_path.rglob("*.log"))


def test_own_experiments_are_found_by_the_search_path(tmp_path):
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nexperiment: mine\nloss: {gamma: 1.5}\n")
    words = ["train", "--cfg", "job", f"hydra.searchpath=[file://{own.parent}]", "experiment=mine"]
    ended = run(*words, folder=tmp_path)
    assert ended.code == 0
    assert "experiment: mine\n" in ended.out
    assert "gamma: 1.5\n" in ended.out
