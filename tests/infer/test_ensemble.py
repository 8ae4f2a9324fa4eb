"""Several models as one: the mean of what they say, and only where it means the same."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from small_models import CPU, POINT, RULE, card, unet

from medfocal.data.cases import read_case
from medfocal.data.manifest import Case, LabelScheme
from medfocal.data.transforms import Preprocessing, prepare_case
from medfocal.errors import ModelError
from medfocal.infer import PredictSettings, load_models, predict, predict_case
from medfocal.model import NO_CORRECTION, load_model, save_model
from medfocal.volume import Volume, write_volume

SHAPE, SPACING_MM = (14, 12, 10), (0.5, 1.0, 3.0)


def saved(folder, seed, **changes):
    made = unet(seed)
    return save_model(folder / f"model{seed}", [made], card(made, **changes))


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
    """What is averaged is what the network's grid holds; the way back is taken once."""
    spacing = Preprocessing(orientation="LPS", spacing_mm=(0.8, 0.8, 2.0), intensity="zscore_nonzero")
    folders = [saved(tmp_path, seed, preprocessing=spacing) for seed in (1, 2)]
    case = prepared(image, spacing)
    each = [predict_case(load_model(folder), case, device=CPU).probability.astype(np.float64) for folder in folders]
    found = predict_case(load_models(folders), case, device=CPU)
    assert found.probability.shape == SHAPE
    np.testing.assert_allclose(found.probability, np.mean(each, axis=0), atol=1e-6)  # interpolation is linear


def test_one_folder_gives_the_model_to_the_bit(three, image, tmp_path):
    one, listed = load_model(three[0]), load_models(three[:1])
    assert listed.weights_sha256 == one.weights_sha256
    assert listed.card == one.card
    for model, name in ((one, "alone"), (listed, "listed")):
        predict(model, image, tmp_path / name, device=CPU, settings=PredictSettings(save_probability=True))
    for name in ("a_probability.nii.gz", "a_mask.nii.gz", "a_candidates.csv"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "listed" / name).read_bytes()


def test_a_model_of_several_members_is_the_same_as_its_members_given_apart(three, image, tmp_path):
    apart = load_models(three)
    folder = save_model(tmp_path / "together", apart.networks, apart.card)
    together = load_model(folder)
    assert together.weights_sha256 == apart.weights_sha256
    assert together.card == apart.card
    case = prepared(image, apart.card.preprocessing)
    found = [predict_case(model, case, device=CPU).probability for model in (apart, together)]
    np.testing.assert_array_equal(*found)


def test_models_of_several_members_are_taken_apart_and_no_weights_count_twice(tmp_path, three):
    two = save_model(tmp_path / "two", load_models(three[:2]).networks, load_models(three[:2]).card)
    assert load_models([two, three[2]]).weights_sha256 == load_models(three).weights_sha256
    with pytest.raises(ModelError, match="have the same weights"):
        load_models([two, three[1]])


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
    predict(ensemble, image, tmp_path / "given", device=CPU, settings=PredictSettings(threshold=0.9))
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("own", "given")]
    assert [record["threshold"] for record in records] == [pytest.approx(0.35), 0.9]


@pytest.mark.parametrize("views", [(False, False), (True, False), (True, True)])
def test_thresholds_of_mirrored_views_make_one_of_mirrored_views_only_together(tmp_path, views):
    folders = [
        saved(tmp_path, seed, operating_points=(replace(POINT, mirrored=mirrored),))
        for seed, mirrored in enumerate(views)
    ]
    assert load_models(folders).card.operating_points[0].mirrored is all(views)


def test_run_json_names_every_member_by_its_weights(three, image, tmp_path):
    predict(load_models(three), image, tmp_path / "out", device=CPU)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["weights_sha256"] == sorted(
        digest for folder in three for digest in load_model(folder).weights_sha256
    )
    assert record["model"] == "ensemble of 3 models"


def test_members_keep_their_own_networks_and_provenance(tmp_path):
    folders = []
    for seed in (1, 2):
        made = unet(seed, channels=(4, 4, 4 + seed))
        plain = card(made)
        member = replace(plain.members[0], training={"seed": seed})
        folders.append(save_model(tmp_path / f"model{seed}", [made], replace(plain, members=(member,))))
    ensemble = load_models(folders)
    for network, member in zip(ensemble.networks, ensemble.card.members, strict=True):
        assert member.network["arguments"]["channels"] == [4, 4, 4 + member.training["seed"]]
        assert network.arguments["channels"] == member.network["arguments"]["channels"]
    assert ensemble.card.training == {}


def test_what_is_known_of_the_cases_of_one_member_is_not_claimed_for_all(tmp_path):
    folders = [saved(tmp_path, seed, familiar={"cases": seed}) for seed in (1, 2)]
    assert load_models(folders).card.familiar is None


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
            {"candidates": {**RULE, "extent_ratio": 0.25}},
            r"candidates\.extent_ratio is 0\.5 and 0\.25",
        ),
        (
            {"candidates": {**RULE, "logistic": {"intercept": 0.0, "log_volume": 1.0, "mean": 2.0, "max": 3.0}}},
            r"candidates\.logistic\.intercept is None and 0\.0",
        ),
        ({"correction": {**NO_CORRECTION, "temperature": 2.0}}, r"correction\.temperature is 1\.0 and 2\.0"),
        (
            {"window": {"size": [16, 8, 8], "overlap": 0.5, "batch": 2, "precision": "float32"}},
            r"window\.size is \[8, 8, 8\] and \[16, 8, 8\]",
        ),
        (
            {"window": {"size": [8, 8, 8], "overlap": 0.25, "batch": 2, "precision": "float32"}},
            r"window\.overlap is 0\.5 and 0\.25",
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
        made = unet(seed, out_channels=2 if not changes else 1)
        folders.append(save_model(tmp_path / f"model{seed}", [made], card(made, **changes)))
    with pytest.raises(ModelError, match=told):
        load_models(folders)


def test_networks_may_differ(tmp_path, image):
    other = unet(5, channels=(6, 6, 6))
    folders = [saved(tmp_path, 1), save_model(tmp_path / "other", [other], card(other, name="other"))]
    assert len(predict(load_models(folders), image, tmp_path / "out", device=CPU)) == 1


def test_a_model_named_twice_is_refused(three):
    with pytest.raises(ModelError, match=r"model1' and '.*model1' have the same weights"):
        load_models([three[0], three[1], three[0]])
