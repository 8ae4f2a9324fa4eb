"""Several models as one: the mean of what they say, and only where it means the same."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medfocal.data.cases import read_case
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.transforms import Preprocessing, prepare_case
from medfocal.errors import ModelError
from medfocal.infer import Ensemble, load_model, load_models, predict, predict_case
from medfocal.infer.ensemble import mean_probabilities
from medfocal.model import ModelCard, OperatingPoint, save_model
from medfocal.networks import UNet3d
from medfocal.volume import Volume, read_volume, write_volume

CPU = torch.device("cpu")
SHAPE, SPACING_MM = (14, 12, 10), (0.5, 1.0, 3.0)
POINT = OperatingPoint(name="1 false positive per case", threshold=0.25, source="validation")


def network(seed, out_channels=2):
    torch.manual_seed(seed)
    return UNet3d(in_channels=1, out_channels=out_channels, channels=[4, 8, 8]).eval()


def card(made, **changes):
    values = {
        "name": "trial",
        "network": {"name": "UNet3d", "arguments": made.arguments},
        "channels": ("MR",),
        "labels": {0: "background", 1: "lesion"},
        "activation": "softmax",
        "preprocessing": Preprocessing(orientation="RAS", spacing_mm=None, intensity="zscore_nonzero"),
        "window": {"size": [8, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"},
        "candidates": {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max"},
        "operating_points": (POINT,),
    }
    return ModelCard(**{**values, **changes})


def saved(folder, seed, **changes):
    made = network(seed)
    return save_model(folder / f"model{seed}", made, card(made, **changes))


@pytest.fixture
def three(tmp_path):
    return [saved(tmp_path, seed) for seed in (1, 2, 3)]


@pytest.fixture
def image(tmp_path):
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    path = tmp_path / "images" / "a.nii.gz"
    path.parent.mkdir()
    write_volume(path, Volume(values, np.diag([*SPACING_MM, 1.0])))
    return path


def prepared(path, preprocessing):
    return prepare_case(read_case(Case("a", "a", "test", (path,)), LabelScheme({})), preprocessing)


def test_the_probability_is_the_mean_of_the_members(three, image):
    ensemble = load_models(three)
    case = prepared(image, ensemble.card.preprocessing)
    each = [predict_case(load_model(folder), case, device=CPU).probability.astype(np.float64) for folder in three]
    found = predict_case(ensemble, case, device=CPU)
    np.testing.assert_allclose(found.probability, np.mean(each, axis=0), atol=1e-6)
    assert min(np.abs(found.probability - one).max() for one in each) > 0.01  # the members do differ


def test_members_are_averaged_before_the_way_back_to_the_native_grid(tmp_path, image):
    """Each keeps its window; the sum is of what the network's grid holds."""
    folders = [
        saved(tmp_path, 1),
        saved(tmp_path, 2, window={"size": [16, 12, 12], "overlap": 0.25, "batch": 1, "precision": "float32"}),
    ]
    models = [load_model(folder) for folder in folders]
    case = prepared(image, models[0].card.preprocessing)
    own = [mean_probabilities([model], case.image, CPU) for model in models]
    moved = mean_probabilities([replace(models[1], card=models[0].card)], case.image, CPU)
    assert np.abs(moved - own[1]).max() > 1e-4  # its own window makes a difference
    np.testing.assert_allclose(mean_probabilities(models, case.image, CPU), (own[0] + own[1]) / 2, atol=1e-7)


def test_an_ensemble_of_one_is_the_model_to_the_bit(three, image, tmp_path):
    one = load_model(three[0])
    assert load_models(three[:1]).weights_sha256 == one.weights_sha256
    wrapped = Ensemble((one,), one.card)
    for model, name in ((one, "alone"), (wrapped, "wrapped")):
        predict(model, image, tmp_path / name, device=CPU, save_probability=True)
    for kind in ("probability", "mask"):
        alone, other = (read_volume(tmp_path / name / f"a_{kind}.nii.gz").array for name in ("alone", "wrapped"))
        np.testing.assert_array_equal(alone, other)
    tables = [(tmp_path / name / "a_candidates.csv").read_bytes() for name in ("alone", "wrapped")]
    assert tables[0] == tables[1]


def test_the_order_in_which_models_are_given_changes_no_bit(three, image):
    case = prepared(image, load_model(three[0]).card.preprocessing)
    found = [predict_case(load_models(order), case, device=CPU).probability for order in itertools.permutations(three)]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_the_threshold_is_the_mean_of_the_members_unless_given(tmp_path, image):
    thresholds = (0.1, 0.25, 0.7)
    folders = [
        saved(tmp_path, seed, operating_points=(replace(POINT, threshold=threshold),))
        for seed, threshold in enumerate(thresholds)
    ]
    ensemble = load_models(folders)
    (point,) = ensemble.card.operating_points
    assert point.threshold == pytest.approx(0.35)
    assert (point.source, point.lesion_sensitivity) == ("default", None)  # chosen on no case
    predict(ensemble, image, tmp_path / "own", device=CPU)
    predict(ensemble, image, tmp_path / "given", device=CPU, threshold=0.9)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("own", "given")]
    assert [record["threshold"] for record in records] == [pytest.approx(0.35), 0.9]


def test_run_json_names_every_member_by_its_weights(three, image, tmp_path):
    predict(load_models(three), image, tmp_path / "out", device=CPU)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    digests = {load_model(folder).weights_sha256 for folder in three}
    assert {member["weights_sha256"] for member in record["members"]} == digests
    assert record["model"] == "ensemble of 3 models"
    assert "weights_sha256" not in record


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"channels": ("CT",)}, r"channels is \['MR'\] and \['CT'\]"),
        ({"labels": {0: "background", 1: "tumour"}}, r"labels\.1 is 'lesion' and 'tumour'"),
        (
            {"preprocessing": Preprocessing(orientation="RAS", spacing_mm=(1.0, 1.0, 3.0), intensity="zscore_nonzero")},
            r"preprocessing\.spacing_mm is None and \[1\.0, 1\.0, 3\.0\]",
        ),
        (
            {"preprocessing": Preprocessing(orientation="LPS", spacing_mm=None, intensity="zscore_nonzero")},
            r"preprocessing\.orientation is 'RAS' and 'LPS'",
        ),
        (
            {"preprocessing": Preprocessing(orientation="RAS", spacing_mm=None, intensity="none")},
            r"preprocessing\.intensity is 'zscore_nonzero' and 'none'",
        ),
        (
            {"candidates": {"extent_ratio": 0.25, "floor": 0.01, "connectivity": 26, "confidence": "max"}},
            r"candidates\.extent_ratio is 0\.5 and 0\.25",
        ),
    ],
)
def test_models_that_mean_different_things_are_refused_with_both_values(tmp_path, changes, told):
    folders = [saved(tmp_path, 1), saved(tmp_path, 2), saved(tmp_path, 3, **changes)]
    with pytest.raises(ModelError, match=rf"model1' and '.*model3' cannot be averaged: {told}"):
        load_models(folders)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({}, {"activation": "sigmoid"}, "activation is 'softmax' and 'sigmoid'"),
        ({"activation": "sigmoid"}, {"activation": "sigmoid", "overlapping": True}, "overlapping is False and True"),
    ],
)
def test_models_whose_outputs_are_other_probabilities_are_refused(tmp_path, one, other, told):
    folders = []
    for seed, changes in ((1, one), (2, other)):
        made = network(seed, out_channels=2 if not changes else 1)
        folders.append(save_model(tmp_path / f"model{seed}", made, card(made, **changes)))
    with pytest.raises(ModelError, match=told):
        load_models(folders)


def test_networks_may_differ(tmp_path, image):
    torch.manual_seed(5)
    other = UNet3d(in_channels=1, out_channels=2, channels=[6, 6, 6])
    folders = [saved(tmp_path, 1), save_model(tmp_path / "other", other, card(other, name="other"))]
    assert len(predict(load_models(folders), image, tmp_path / "out", device=CPU)) == 1


def test_a_model_named_twice_is_refused(three):
    with pytest.raises(ModelError, match=r"model1' and '.*model1' have the same weights"):
        load_models([three[0], three[1], three[0]])
