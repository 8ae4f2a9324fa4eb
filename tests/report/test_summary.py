"""`summarize_runs`: what is a setting and what a replicate, mean and spread, folds, states of runs, noise."""

import math
import os
import re
import statistics
import time

import numpy as np
import pytest
from summary_folders import (
    PROTOCOL,
    TRAINING_CASES,
    VALIDATION_CASES,
    TinyCase,
    make_run,
    read_csv,
    read_json,
    write_metrics,
)

from medfocal.errors import ConfigError, DatasetError, InputError
from medfocal.evaluate import evaluate_cases
from medfocal.files import write_json
from medfocal.report.summary import compare_runs, summarize_runs, write_tables
from medfocal.report.summary_runs import State, read_run, read_settings
from medfocal.report.summary_table import print_summary

SOME = [
    (TinyCase("v1", (0.9, None), (0.2,)), TinyCase("v2", (0.8,), ())),
    (TinyCase("v1", (0.9, 0.7), (0.95,)), TinyCase("v2", (None,), ())),
    (TinyCase("v1", (None, None), (0.5,)), TinyCase("v2", (0.8,), ())),
]


def found(place, output, **more):
    """Without page and figures, which take most of the time."""
    summary = compare_runs([place], **more)
    write_tables(summary, output)
    return summary


def sensitivity(cases, rate=1.0):
    points = evaluate_cases([case.table() for case in cases], PROTOCOL).froc.points
    return next(point.lesion_sensitivity for point in points if point.false_positives_per_case == rate)


def test_mean_and_spread_over_seeds_are_those_of_the_evaluations(tmp_path):
    for seed, cases in enumerate(SOME, start=1):
        make_run(tmp_path / "runs" / "try" / f"r{seed}", seed=seed, validation=cases)
    summary = found(tmp_path / "runs", tmp_path / "o")
    (row,) = read_csv(tmp_path / "o" / "summary.csv")
    values = [sensitivity(cases) for cases in SOME]
    assert len(set(values)) > 1
    assert float(row["validation_lesion_sensitivity_mean"]) == pytest.approx(np.mean(values))
    assert float(row["validation_lesion_sensitivity_sd"]) == pytest.approx(np.std(values, ddof=1))
    assert (row["validation_lesion_sensitivity_low"], row["validation_lesion_sensitivity_high"]) == (
        str(min(values)),
        str(max(values)),
    )
    assert (row["num_runs"], row["seeds"], row["folds"]) == ("3", "1 2 3", "")
    assert float(row["training_hours_mean"]) == 0.5
    assert (row["validation_cases"], row["validation_patients"], row["validation_lesions"]) == ("2", "2", "3")
    assert "the mean of 3" in summary.answer


def test_test_figures_are_those_of_the_evaluation(tmp_path):
    run = make_run(tmp_path / "runs" / "r")
    found(tmp_path / "runs", tmp_path / "o")
    (row,) = read_csv(tmp_path / "o" / "summary.csv")
    test = read_json(run / "test" / "evaluation.json")
    point = next(p for p in test["froc"]["points"] if p["false_positives_per_case"] == 1)
    wanted = {
        "test_lesion_sensitivity_at_1": point["lesion_sensitivity"],
        "test_cpm": test["froc"]["cpm"],
        "test_lesion_sensitivity": test["lesion_sensitivity"]["value"],
        "test_false_positives_per_case": test["false_positives_per_case"]["value"],
        "test_voxel_dice": test["voxel_dice"]["mean"],
    }
    assert {key: float(row[f"{key}_mean"]) for key in wanted} == wanted
    assert len(set(wanted.values())) >= 4


def test_one_run_has_no_spread_and_says_so(tmp_path, capsys):
    make_run(tmp_path / "runs" / "r")
    summarize_runs([tmp_path / "runs"], tmp_path / "o")
    (row,) = read_csv(tmp_path / "o" / "summary.csv")
    assert [row[f"test_cpm_{part}"] for part in ("sd", "low", "high", "n")] == ["", "", "", "1"]
    content = read_json(tmp_path / "o" / "summary.json")
    figure = content["settings"][0]["figures"]["test_cpm"]
    assert (figure["sd"], figure["low"], figure["high"]) == (None, None, None)
    assert any("one run" in line["why"] for line in content["undefined"])
    out = capsys.readouterr().out
    assert "one run" in out
    assert "±" not in out


def test_the_epoch_that_the_model_is_of_is_told_not_the_last(tmp_path):
    make_run(tmp_path / "runs" / "r", kept=1)
    found(tmp_path / "runs", tmp_path / "o")
    assert read_csv(tmp_path / "o" / "summary.csv")[0]["epoch_mean"] == "1.0"


def test_a_rate_that_is_no_point_of_the_froc_is_read_from_the_metrics(tmp_path):
    make_run(tmp_path / "runs" / "r", rate=0.75, kept=1, sensitivities=[0.3, 0.6])
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert summary.rows[0].primary.mean == 0.3
    assert summary.rows[0].interval == pytest.approx((0.1, 0.5))
    assert "0.75 FP per case" in summary.answer


def test_names_places_and_threads_make_no_setting_and_gamma_does(tmp_path):
    make_run(tmp_path / "runs" / "a", seed=1, settings={"loss.gamma": 2, "device": "cuda:0"})
    make_run(tmp_path / "runs" / "deep" / "b", seed=2, settings={"loss.gamma": 2.0, "tracking.name": "x"})
    make_run(tmp_path / "runs" / "c", seed=1, settings={"loss.gamma": 0.5})
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert summary.grouping.keys == ["loss.gamma"]
    assert [(row["loss.gamma"], row["num_runs"]) for row in read_csv(tmp_path / "o" / "summary.csv")] == [
        ("0.5", "1"),
        ("2", "2"),
    ]


def test_settings_stand_in_the_order_of_numbers_not_of_text(tmp_path):
    for value in (10, 9, 0.5):
        make_run(tmp_path / "runs" / f"r{value}", settings={"loss.gamma": value})
    found(tmp_path / "runs", tmp_path / "o")
    assert [row["loss.gamma"] for row in read_csv(tmp_path / "o" / "summary.csv")] == ["0.5", "9", "10"]


def test_lists_are_one_value_and_a_filled_mapping_tells_of_itself(tmp_path):
    make_run(tmp_path / "runs" / "a", settings={"network.channels": [4, 8], "trainer.curriculum": {}})
    filled = {"network.channels": [4, 8, 16], "trainer.curriculum": {"gamma": [[0, 0], [0.5, 2]]}}
    make_run(tmp_path / "runs" / "b", settings=filled)
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert summary.grouping.keys == ["network.channels", "trainer.curriculum.gamma"]
    assert summary.rows[0].setting.name == "network.channels=[4,8], trainer.curriculum.gamma=not stated"


def test_arguments_of_another_loss_follow_from_it(tmp_path):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", settings={"loss": {"_target_": "medfocal.losses.DiceLoss", "smooth": 1.0}})
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert summary.grouping.keys == ["loss._target_"]
    assert summary.grouping.implied == ["loss.alpha", "loss.gamma", "loss.smooth"]


def test_a_swept_argument_of_one_of_two_losses_stays_a_setting(tmp_path):
    for gamma in (0.0, 1.0):
        make_run(tmp_path / "runs" / f"f{gamma:g}", settings={"loss.gamma": gamma})
    make_run(tmp_path / "runs" / "b", settings={"loss": {"_target_": "medfocal.losses.DiceLoss"}})
    assert found(tmp_path / "runs", tmp_path / "o").grouping.keys == ["loss._target_", "loss.gamma"]


def test_runs_of_two_experiments_are_refused_and_stand_side_by_side_if_asked(tmp_path):
    make_run(tmp_path / "runs" / "try" / "a")
    other = {"experiment": "other", "loss.gamma": 0.0, "trainer.batch_size": 4}
    make_run(tmp_path / "runs" / "other" / "b", settings=other)
    with pytest.raises(ConfigError, match=r"2 experiments .*other \(1\), try \(1\).*experiments=\[other,try\]"):
        found(tmp_path / "runs", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert [len(found(tmp_path / "runs", tmp_path / "o", experiments=[name]).runs) for name in ("try", "other")] == [
        1,
        1,
    ]
    assert found(tmp_path / "runs", tmp_path / "o", experiments=["try", "other"]).grouping.keys == ["experiment"]
    with pytest.raises(ConfigError, match="no run of experiment third"):
        found(tmp_path / "runs", tmp_path / "o", experiments=["try", "third"])


def test_of_two_finished_runs_that_are_the_same_the_later_counts(tmp_path):
    early, late = (
        make_run(tmp_path / "runs" / name, validation=cases) for name, cases in zip("ab", SOME, strict=False)
    )
    os.utime(early / "model" / "model.json", (5, 5))
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert [run.folder for run in summary.rows[0].setting.runs] == [late]
    assert summary.rows[0].primary.mean == sensitivity(SOME[1])
    assert any("the later one counts" in line for line in summary.warnings)


def test_runs_that_are_not_finished_are_listed_and_in_no_figure(tmp_path, capsys):
    make_run(tmp_path / "runs" / "done")
    make_run(tmp_path / "runs" / "stopped", seed=2, epochs=1, finished=False)
    os.utime(make_run(tmp_path / "runs" / "alive", seed=3, epochs=1, finished=False) / "metrics.csv")
    unreported = make_run(tmp_path / "runs" / "unreported", seed=4)
    (unreported / "test" / "report.html").unlink()
    make_run(tmp_path / "runs" / "longer", seed=5, epochs=2, max_epochs=2)
    prolonged = make_run(tmp_path / "runs" / "prolonged", seed=6, epochs=2)
    text = (prolonged / "config.yaml").read_text()
    (prolonged / "config.yaml").write_text(text.replace("max_epochs: 2", "max_epochs: 3"))
    os.utime(prolonged / "config.yaml", (5, 5))
    summary = found(tmp_path / "runs", tmp_path / "o")
    print_summary(summary, {"table": tmp_path})
    states = {run.folder.name: run.state for run in summary.runs}
    assert states == {
        "alive": State.RUNNING,
        "done": State.FINISHED,
        "longer": State.FINISHED,
        "prolonged": State.UNFINISHED,
        "stopped": State.UNFINISHED,
        "unreported": State.UNFINISHED,
    }
    out = capsys.readouterr().out
    assert "stopped: stopped after epoch 1 of 2; last in train.log: epoch 1 of 2  loss 0.5" in out
    assert "unreported: stopped after its last epoch, before its reports" in out
    assert "alive: wrote something within the last 1 minute, after epoch 1 of 2" in out


def test_a_run_before_its_first_epoch_is_listed(tmp_path):
    run = make_run(tmp_path / "runs" / "r", finished=False)
    (run / "metrics.csv").unlink()
    summary = summarize_runs([tmp_path / "runs"], tmp_path / "o")
    assert summary.runs[0].words.startswith("stopped before the end of its first epoch")
    assert math.isnan(summary.rows[0].primary.mean)
    assert summary.answer == "No setting has a validation lesion sensitivity yet."
    assert "no run of it is finished" in (tmp_path / "o" / "summary.html").read_text("utf-8")


BROKEN = {
    "config.yaml": "a: [1",
    "metrics.csv": "epoch,loss,seconds,lesion_sensitivity,cpm\n1,much,1,0.5,0.5\n",
    "split.json": '{"training": 3}',
    "model/model.json": "{}",
    "validation/evaluation.json": '{"protocol": {"name": "x"}}',
    "test/evaluation.json": "not JSON",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_names_itself_and_the_rest_is_summarized(name, tmp_path):
    make_run(tmp_path / "runs" / "good")
    bad = make_run(tmp_path / "runs" / "bad", seed=2)
    (bad / name).write_text(BROKEN[name])
    (fault,) = found(tmp_path / "runs", tmp_path / "o").faults
    assert str(bad / name) in fault
    (row,) = read_csv(tmp_path / "o" / "summary.csv")
    assert row["num_runs"] == "1"
    states = {entry["folder"]: entry["state"] for entry in read_json(tmp_path / "o" / "summary.json")["runs"]}
    assert states == {str(tmp_path / "runs" / "good"): "finished", str(bad): "broken"}


def test_a_broken_run_is_an_error_once_everything_is_written(tmp_path, capsys):
    make_run(tmp_path / "runs" / "good")
    bad = make_run(tmp_path / "runs" / "bad", seed=2)
    (bad / "config.yaml").write_text(BROKEN["config.yaml"])
    with pytest.raises(
        InputError, match=r"1 fault in 2 runs; .*\n    the configuration '.*bad/config.yaml' is not YAML"
    ):
        summarize_runs([tmp_path / "runs"], tmp_path / "o")
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        *("summary.csv", "summary.json", "summary.html", "curves.png"),
    }
    assert "bad: the configuration" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1, 2]\nb: *x\n", r"YAML's \*"),
        ("- 1\n", "no settings"),
        ("experiment: e\nseed: one\n", "seed is 'one'"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("x" * 1_000_001, "bytes"),
        ("\0", "not YAML"),
    ],
)
def test_a_configuration_that_is_none_is_refused(text, words, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_settings(tmp_path / "config.yaml")


def test_nothing_in_a_configuration_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    run = make_run(tmp_path / "r", settings={"loss.note": "PLACE"})
    text = (run / "config.yaml").read_text().replace("PLACE", "${oc.env:SECRET}")
    (run / "config.yaml").write_text(text)
    assert read_settings(run / "config.yaml")["loss.note"] == "${oc.env:SECRET}"


def test_run_folders_are_found_a_few_levels_down_each_once(tmp_path):
    make_run(tmp_path / "runs" / "1" / "2" / "3" / "4")
    make_run(tmp_path / "runs" / "1" / "2" / "3" / "x" / "5", seed=2)
    make_run(tmp_path / "runs" / ".hidden" / "r", seed=3)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "runs" / "1", target_is_directory=True)
    (tmp_path / "runs" / "multirun" / "0").mkdir(parents=True)
    (tmp_path / "runs" / "config.yaml").write_text("name: of another program\n")
    summary = compare_runs([tmp_path / "runs", tmp_path / "runs" / "1"])
    assert [run.folder.name for run in summary.runs] == ["4", "5"]


def test_a_place_without_runs_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no run of 'medfocal train' lies in '.*empty'"):
        found(tmp_path / "empty", tmp_path / "o")
    with pytest.raises(InputError, match="absent' does not exist"):
        found(tmp_path / "absent", tmp_path / "o")


def test_a_run_folder_is_no_output(tmp_path):
    run = make_run(tmp_path / "runs" / "r")
    with pytest.raises(ConfigError, match="is a run folder"):
        summarize_runs([tmp_path / "runs"], run)


# Folds


FOLDS = [
    (TinyCase("c1", (0.9, None), (0.2, 0.6)), TinyCase("c2", (0.8,), (0.85,))),
    (TinyCase("c3", (0.7, 0.3), (0.65,)), TinyCase("c4", (), (0.1,))),
    (TinyCase("c5", (0.55, None, 0.15), (0.4,)), TinyCase("c6", (0.95,), (), "p5")),
]


def make_folds(runs, *, seed=1, folds=(0, 1, 2), cases=FOLDS, **more):
    for fold in folds:
        learnt = [case for other, group in enumerate(cases) if other != fold for case in group]
        make_run(
            runs / f"s{seed}f{fold}", seed=seed, fold=fold, num_folds=3, validation=cases[fold], training=learnt, **more
        )


def test_folds_of_a_seed_are_evaluated_as_one_set(tmp_path):
    make_folds(tmp_path / "runs")
    summary = found(tmp_path / "runs", tmp_path / "o")
    whole = evaluate_cases([case.table() for group in FOLDS for case in group], PROTOCOL)
    (folds,) = summary.rows[0].folds
    point = next(p for p in whole.froc.points if p.false_positives_per_case == 1)
    assert 0 < point.lesion_sensitivity < 1
    assert folds.figures == {
        "lesion_sensitivity_at_rate": point.lesion_sensitivity,
        "cpm": whole.froc.cpm,
        "lesion_sensitivity": whole.lesion_sensitivity.value,
        "false_positives_per_case": whole.false_positives_per_case.value,
        "voxel_dice": pytest.approx(whole.voxel_dice.mean),
    }
    assert folds.interval == pytest.approx((point.low, point.high))
    assert (folds.num_cases, folds.num_patients, folds.num_lesions) == (6, whole.num_patients, whole.num_lesions)
    assert summary.rows[0].primary.values == [point.lesion_sensitivity]
    mean_of_folds = statistics.fmean(sensitivity(group) for group in FOLDS)
    assert abs(mean_of_folds - point.lesion_sensitivity) > 0.01


def test_validation_spreads_over_seeds_and_test_over_all_runs(tmp_path):
    make_folds(tmp_path / "runs")
    others = [tuple(TinyCase(c.name, tuple(None for _ in c.lesions), c.false, c.patient) for c in g) for g in FOLDS]
    make_folds(tmp_path / "runs", seed=2, cases=others)
    found(tmp_path / "runs", tmp_path / "o")
    (row,) = read_csv(tmp_path / "o" / "summary.csv")
    assert (row["validation_lesion_sensitivity_n"], row["test_cpm_n"], row["folds"]) == ("2", "6", "0 1 2")
    assert row["validation_lesion_sensitivity_low"] == "0.0"


def test_a_seed_that_lacks_a_fold_is_in_no_validation_figure(tmp_path):
    make_folds(tmp_path / "runs", folds=(0, 2))
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert summary.rows[0].primary.values == []
    why = "seed 1 lacks fold 1 of 3"
    assert any(why in line for line in summary.warnings)
    assert any(why in line["why"] for line in read_json(tmp_path / "o" / "summary.json")["undefined"])
    assert len(summary.rows[0].figures["test_cpm"].values) == 2


def test_one_fold_with_several_seeds_is_no_cross_validation(tmp_path):
    for seed in (1, 2):
        make_folds(tmp_path / "runs", seed=seed, folds=(0,))
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert len(summary.rows[0].primary.values) == 2
    assert summary.rows[0].folds == []


def test_a_case_in_the_validation_of_two_folds_is_named(tmp_path):
    make_folds(tmp_path / "runs", cases=[FOLDS[0], (*FOLDS[1], FOLDS[0][1]), FOLDS[2]], folds=(1, 2))
    make_run(tmp_path / "runs" / "s1f0", fold=0, num_folds=3, validation=FOLDS[0])
    with pytest.raises(DatasetError, match=r"case 'c2' is in the validation of two folds: .*s1f0.*s1f1"):
        found(tmp_path / "runs", tmp_path / "o")


def test_a_fold_that_learnt_from_a_patient_it_validates_on_is_named(tmp_path):
    make_folds(tmp_path / "runs", folds=(0, 1))
    learnt = (*FOLDS[0], TinyCase("c9", (), (), "p5"))
    make_run(tmp_path / "runs" / "s1f2", fold=2, num_folds=3, validation=FOLDS[2], training=learnt)
    with pytest.raises(DatasetError, match=r"s1f2' learnt from the patient of case 'c6'"):
        found(tmp_path / "runs", tmp_path / "o")


def test_folds_of_different_rules_are_not_put_together(tmp_path):
    from dataclasses import replace

    make_folds(tmp_path / "runs", folds=(0, 1))
    other = replace(PROTOCOL, hit_rule="iou", hit_threshold=0.1)
    make_folds(tmp_path / "runs", folds=(2,), protocol=other)
    (fault,) = found(tmp_path / "runs", tmp_path / "o").faults
    assert "different rules (hit_rule, hit_threshold)" in fault
    assert read_csv(tmp_path / "o" / "summary.csv")[0]["validation_cpm_mean"] == ""


def test_thresholds_of_folds_may_differ(tmp_path):
    from dataclasses import replace

    make_folds(tmp_path / "runs", folds=(0, 1))
    make_folds(tmp_path / "runs", folds=(2,), protocol=replace(PROTOCOL, threshold=0.1))
    (folds,) = found(tmp_path / "runs", tmp_path / "o").rows[0].folds
    own = [case.table() for group in FOLDS[:2] for case in group]
    at_half = evaluate_cases(own, PROTOCOL).num_detected_lesions
    last = replace(PROTOCOL, threshold=0.1)
    at_tenth = evaluate_cases([case.table(last) for case in FOLDS[2]], last).num_detected_lesions
    assert folds.figures["lesion_sensitivity"] == pytest.approx((at_half + at_tenth) / folds.num_lesions)


@pytest.mark.parametrize("name", ["cases.csv", "lesions.csv", "candidates.csv"])
def test_a_broken_table_of_a_fold_is_told_with_its_place(name, tmp_path):
    make_folds(tmp_path / "runs")
    (tmp_path / "runs" / "s1f1" / "validation" / name).write_text("case,patient,verdict\nc3,c3,true\n")
    (fault,) = found(tmp_path / "runs", tmp_path / "o").faults
    assert str(tmp_path / "runs" / "s1f1" / "validation") in fault


# Noise


def test_settings_within_the_interval_of_the_highest_are_called_noise(tmp_path):
    for gamma, cases in zip((0, 1, 2), SOME, strict=True):
        make_run(tmp_path / "runs" / f"r{gamma}", settings={"loss.gamma": gamma}, validation=cases)
    summary = found(tmp_path / "runs", tmp_path / "o")
    (noise,) = [line for line in summary.warnings if line.startswith("Noise")]
    assert "of all 3 settings" in noise
    assert "3 lesions of 2 patients" in noise
    assert any(line.startswith("One run stands behind 3 settings of 3") for line in summary.warnings)


def many(confidence):
    return tuple(TinyCase(f"m{number}", (confidence,) * 8, ()) for number in range(12))


def test_a_clear_difference_is_not_called_noise_and_a_near_one_is_named(tmp_path):
    groups = {0: many(None), 1: many(0.9), 2: (*many(0.9)[:-1], TinyCase("m11", (0.9,) * 7 + (None,), ()))}
    for gamma in (0, 1):
        make_run(tmp_path / "two" / f"r{gamma}", settings={"loss.gamma": gamma}, validation=groups[gamma])
    assert not [line for line in found(tmp_path / "two", tmp_path / "o").warnings if line.startswith("Noise")]
    for gamma, cases in groups.items():
        make_run(tmp_path / "three" / f"r{gamma}", settings={"loss.gamma": gamma}, validation=cases)
    (noise,) = [line for line in found(tmp_path / "three", tmp_path / "o").warnings if line.startswith("Noise")]
    assert re.search(r"1 setting cannot be told from the highest .*: loss\.gamma=2\.", noise)


def test_runs_on_other_cases_are_called_incomparable(tmp_path):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", seed=2, test=(TinyCase("t9", (0.9,), ()),))
    warnings = found(tmp_path / "runs", tmp_path / "o").warnings
    assert any("not have the same test cases" in line for line in warnings)
    assert not any("same validation cases" in line for line in warnings)


def test_different_rules_and_rates_are_called_incomparable(tmp_path):
    make_run(tmp_path / "runs" / "a", settings={"evaluate.hit_rule": "iou"})
    make_run(tmp_path / "runs" / "b", settings={"evaluate.hit_rule": "dice"}, rate=2.0)
    summary = found(tmp_path / "runs", tmp_path / "o")
    assert any("rules of evaluation (evaluate.hit_rule)" in line for line in summary.warnings)
    assert any("different trainer.validation_false_positives" in line for line in summary.warnings)
    assert read_json(tmp_path / "o" / "summary.json")["validation_false_positives"] is None


def test_settings_that_share_the_highest_figure_are_told_so(tmp_path):
    for gamma in (0, 1):
        make_run(tmp_path / "runs" / f"r{gamma}", settings={"loss.gamma": gamma})
    assert found(tmp_path / "runs", tmp_path / "o").answer.startswith("2 of 2 settings share the highest")


def test_a_run_that_its_patience_ended_is_finished(tmp_path):
    run = make_run(tmp_path / "r", epochs=3, max_epochs=9, finished=True, kept=2)
    for training, state in (
        ({"num_epochs": 3}, State.UNFINISHED),
        ({"num_epochs": 3, "stopped_early": True}, "finished"),
    ):
        card = read_json(run / "model" / "model.json")
        card["members"][0]["training"] = {"epoch": 2, **training}
        write_json(run / "model" / "model.json", card)
        os.utime(run / "model" / "model.json", (5, 5))
        assert read_run(run).state == state
    assert read_run(run).words == "finished, epoch 2 of 3 kept"


def test_a_metrics_row_of_the_kept_epoch_must_exist(tmp_path):
    run = make_run(tmp_path / "r", kept=2)
    write_metrics(run / "metrics.csv", 1)
    assert read_run(run).state is State.BROKEN
    assert "no row of epoch 2" in read_run(run).words


def test_summarizing_a_second_time_removes_what_is_no_longer_so(tmp_path):
    for gamma in (0, 1):
        for alpha in (0.25, 0.5):
            settings = {"loss.gamma": gamma, "loss.alpha": alpha}
            make_run(tmp_path / "runs" / f"g{gamma}a{alpha}", settings=settings, training=TRAINING_CASES)
    summarize_runs([tmp_path / "runs"], tmp_path / "o")
    assert (tmp_path / "o" / "heatmap.png").is_file()
    (tmp_path / "o" / "out_of_fold_seed7.csv").write_text("old")
    make_run(tmp_path / "other" / "r", validation=VALIDATION_CASES)
    summarize_runs([tmp_path / "other"], tmp_path / "o")
    assert not (tmp_path / "o" / "heatmap.png").exists()
    assert not (tmp_path / "o" / "out_of_fold_seed7.csv").exists()


def test_a_run_counts_as_alive_by_its_newest_sign(tmp_path):
    run = make_run(tmp_path / "r", epochs=1, finished=False)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").write_bytes(b"")
    os.utime(run / "checkpoints", (5, 5))
    assert read_run(run).state is State.RUNNING
    past = time.time() - 21 * 60
    os.utime(run / "checkpoints" / "last.pt", (past, past))
    assert read_run(run).state is State.UNFINISHED
