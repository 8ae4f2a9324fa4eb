"""Sweeps by Ray and by Optuna, each the real one; skipped where the extra is not installed."""

import hashlib

import pytest
import yaml
from commands import TINY, call


def weights(folder, run_id):
    path = folder / "runs" / "default" / run_id / "model" / "weights.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_tasks_of_ray_train_what_one_command_after_the_other_does(tmp_path, dataset):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs pip install 'medfocal[ray]'")
    words = [*TINY, f"data.dataset={dataset}"]
    sweep = ["hydra/launcher=ray", "hydra.sweep.dir=runs/multirun/s", "seed=1,2"]
    ended = call("train", "-m", *words, *sweep, folder=tmp_path)
    assert ended.code == 0, ended.err
    for seed in (1, 2):
        alone = call("train", *words, f"seed={seed}", f"run.id=alone{seed}", folder=tmp_path)
        assert alone.code == 0, alone.err
        assert weights(tmp_path, f"s-{seed - 1}-seed{seed}") == weights(tmp_path, f"alone{seed}")


def test_optuna_maximises_the_sensitivity_of_the_runs(tmp_path, dataset):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'medfocal[sweep]'")
    sweep = ["hydra/sweeper=lesion_sensitivity", "hydra.sweeper.n_trials=4", "hydra.sweep.dir=runs/multirun/s"]
    sweep += ["loss.gamma=interval(0.0,3.0)"]
    ended = call("train", "-m", *TINY, f"data.dataset={dataset}", *sweep, folder=tmp_path)
    assert ended.code == 0, ended.err
    found = yaml.safe_load((tmp_path / "runs" / "multirun" / "s" / "optimization_results.yaml").read_text())
    assert 0 <= found["best_params"]["loss.gamma"] <= 3
    reached = [best_sensitivity(folder) for folder in sorted((tmp_path / "runs" / "default").glob("s-*"))]
    assert len(reached) == 4
    assert found["best_value"] == max(reached)


def best_sensitivity(folder):
    """Of the epoch whose weights were kept, as its metrics tell."""
    import csv

    with (folder / "metrics.csv").open() as file:
        return max(float(row["lesion_sensitivity"]) for row in csv.DictReader(file))
