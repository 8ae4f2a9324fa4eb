"""`medfocal summarize`: exit codes, where it writes, what it imports."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from commands import assert_refused, run

sys.path.append(str(Path(__file__).parent.parent / "report"))
from summary_folders import make_run


def test_a_summary_lies_beside_the_runs_and_is_no_run_the_next_time(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "runs" / "try" / f"s{seed}", seed=seed)
    for _ in range(2):
        ended = run("summarize", "runs=runs", folder=tmp_path)
        assert (ended.code, ended.err) == (0, "")
        assert "1 setting, 2 runs: 2 finished" in ended.out
    names = {path.name for path in (tmp_path / "runs" / "summary").iterdir()}
    assert names == {"summary.csv", "summary.json", "summary.html", "curves.png"}


def test_several_folders_need_an_output(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name / "r", settings={"loss.gamma": len(name)}, seed=ord(name))
    assert_refused(run("summarize", "runs=[a,b]", folder=tmp_path), 2, "output must be given", "a, b")
    ended = run("summarize", "runs=[a,b]", "output=o", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "o" / "summary.csv").is_file()


@pytest.mark.parametrize("words", [["runs=[]"], ["runs=3"], ["runs=[a,2]", "output=o"], ["runs=a", "experiments=[]"]])
def test_what_names_no_folder_or_experiment_is_refused(words, tmp_path):
    key = words[-1].split("=")[0] if "experiments" in words[-1] else "runs"
    assert_refused(run("summarize", *words, folder=tmp_path), 2, f"{key} must be a")


def test_experiments_are_chosen_by_name(tmp_path):
    make_run(tmp_path / "runs" / "try" / "r")
    make_run(tmp_path / "runs" / "other" / "r", settings={"experiment": "other"})
    assert_refused(run("summarize", "runs=runs", folder=tmp_path), 2, "2 experiments")
    ended = run("summarize", "runs=runs", "experiments=other", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "Summary of other: 1 setting, 1 run" in ended.out


def test_no_run_and_a_broken_run_are_input_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(run("summarize", "runs=empty", folder=tmp_path), 3, "no run of 'medfocal train'")
    make_run(tmp_path / "runs" / "good")
    (make_run(tmp_path / "runs" / "bad", seed=2) / "metrics.csv").write_text("epoch\n")
    assert_refused(run("summarize", "runs=runs", folder=tmp_path), 3, "bad/metrics.csv' has no column loss")
    assert (tmp_path / "runs" / "summary" / "summary.html").is_file()


def test_it_imports_neither_torch_nor_monai(tmp_path):
    make_run(tmp_path / "runs" / "r")
    program = textwrap.dedent("""
        import sys
        from medfocal import cli
        try:
            cli.main(["summarize", "runs=runs"])
        except SystemExit as ended:
            print("ended with", ended.code, sorted({"torch", "monai", "SimpleITK"} & set(sys.modules)))
    """)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert ended.stdout.splitlines()[-1:] == ["ended with 0 []"], ended.stderr
