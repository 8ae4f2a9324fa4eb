"""Cases that are unlike those of the calibration are told, and those that are like them are not."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_cases import AFFINE, Blob, known_model, voxels_of
from small_models import CPU, image, unet, window

from medfocal.data.cases import CaseVolumes, empty_grid
from medfocal.data.manifest import Case
from medfocal.errors import InputError, ModelError
from medfocal.infer import PredictSettings, predict
from medfocal.infer.familiar import (
    AXES,
    FEATURE_MARGIN,
    Familiar,
    Features,
    Figures,
    Watch,
    deepest_module,
    describe_cases,
    image_figures,
    read_familiar,
    unfamiliar,
    watched,
)
from medfocal.infer.voxels import predict_voxels
from medfocal.networks import ResidualUNet3d
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)


def volumes(array, affine=AFFINE):
    array = np.asarray(array, np.float32)
    array = array if array.ndim == 4 else array[None]
    return CaseVolumes(Case("a", "a", "test", ()), array, empty_grid(Volume(array[0], affine)), None)


def head(seed=0, *, scale=1.0, zeros=0.4):
    random = np.random.default_rng(seed)
    array = random.gamma(4.0, 25.0, SHAPE) * scale
    array[random.random(SHAPE) < zeros] = 0
    return array


# Figures of a case


def test_figures_of_a_channel_are_those_of_its_voxels_that_are_not_0():
    array = head()
    found = image_figures(volumes(array), ["T1"])
    inside = np.sort(array.astype(np.float32)[array != 0])
    low, middle, high = (float(np.interp(q * (len(inside) - 1), range(len(inside)), inside)) for q in (0.01, 0.5, 0.99))
    assert found["T1.zeros"] == pytest.approx((array == 0).mean())
    expected = {"quantile_1": low, "quantile_50": middle, "quantile_99": high}
    for name, value in expected.items():
        assert found[f"T1.{name}"] == pytest.approx(value, rel=1e-5)
    assert found["T1.median_place"] == pytest.approx((middle - low) / (high - low), rel=1e-5)


def test_the_place_of_the_median_does_not_depend_on_the_scale():
    one, other = (image_figures(volumes(head(scale=scale)), ["T1"]) for scale in (1.0, 37.0))
    assert one["T1.median_place"] == pytest.approx(other["T1.median_place"], rel=1e-4)
    assert one["T1.zeros"] == other["T1.zeros"]


def test_axes_are_told_by_the_body_whatever_their_order_in_the_file():
    """Array axes: up, to the right, to the back; 3, 0.5 and 1 mm."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3.0, 0.5, -1.0, 1.0
    found = image_figures(volumes(head(), affine), ["T1"])
    assert [found[f"spacing_mm_{axis}"] for axis in AXES] == [0.5, 1.0, 3.0]
    assert [found[f"extent_mm_{axis}"] for axis in AXES] == [10 * 0.5, 8 * 1.0, 12 * 3.0]


def test_channels_have_figures_of_their_own_and_those_of_one_value_have_no_place_of_the_median():
    both = np.stack([head(), np.where(head(1) > 0, 7.0, 0.0)])
    found = image_figures(volumes(both), ["T1", "PD"])
    assert found["PD.quantile_1"] == found["PD.quantile_99"] == 7.0
    assert "PD.median_place" not in found
    assert "T1.median_place" in found


# Like, or unlike


def cases(num=8, *, features=True):
    random = np.random.default_rng(5)
    return [
        Figures(
            image_figures(volumes(head(seed)), ["T1"]), tuple(random.normal(2, 0.5, 4).tolist()) if features else None
        )
        for seed in range(num)
    ]


@pytest.mark.parametrize("num", [1, 2, 8])
def test_a_calibration_case_is_like_the_others(num):
    familiar = describe_cases(cases(num))
    assert familiar.num_cases == num
    for one in cases(num):
        assert unfamiliar(familiar, one) == []


def test_another_case_of_the_kind_is_like_them():
    for seed in range(20, 40):
        assert unfamiliar(describe_cases(cases()), Figures(image_figures(volumes(head(seed)), ["T1"]))) == []


def other(**changes):
    """A case of the kind with another affine, or other voxels."""
    array = changes.pop("array", None)
    return Figures(image_figures(volumes(head(99) if array is None else array, **changes), ["T1"]))


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (other(array=head(99, zeros=0.0)), ["channel T1: the share of voxels that are 0 is 0, and 0."]),
        (other(array=head(99, scale=5.0)), ["the 99 % quantile of voxels that are not 0 is", "the 50 % quantile"]),
        (other(array=np.where(head(99) > 0, 300 - head(99), 0)), ["the median lies, between the 1 % and the 99 %"]),
        (other(affine=np.diag([0.5, 1.0, 6.0, 1.0])), ["the spacing in mm (down to up) is 6, and 3 to 3 in the 8"]),
        (other(affine=np.diag([1.0, 0.5, 3.0, 1.0])), ["(left to right)", "the field of view in mm (back to front)"]),
    ],
    ids=["nothing is 0", "brighter", "inverted", "thicker slices", "turned"],
)
def test_what_is_unlike_is_said_in_words_with_both_values(figures, words):
    found = unfamiliar(describe_cases(cases()), figures)
    assert all(any(part in sentence for sentence in found) for part in words), found


@pytest.mark.parametrize(("value", "is_like"), [(1.41, True), (1.42, False), (0.59, True), (0.58, False)])
def test_the_margin_is_half_the_range_and_the_tolerance(value, is_like):
    """From 0.85 to 1.15 mm: 0.15 and a tenth of 1.15 beyond either end, so from 0.585 to 1.415."""
    familiar = Familiar(num_cases=3, ranges={"spacing_mm_down_up": (0.85, 1.15)})
    assert (unfamiliar(familiar, Figures({"spacing_mm_down_up": value})) == []) == is_like


def test_a_figure_that_a_case_has_not_is_not_held_against_it():
    assert unfamiliar(describe_cases(cases()), Figures({})) == []


def test_features_are_held_against_the_furthest_calibration_case():
    known = cases()
    table = np.array([one.features for one in known])
    away = []
    for row in range(len(table)):
        rest = np.delete(table, row, axis=0)
        spread = rest.std(axis=0, ddof=1)
        spread = np.maximum(spread, 0.1 * spread.mean())
        away.append(np.sqrt((((table[row] - rest.mean(axis=0)) / spread) ** 2).mean()))
    familiar = describe_cases(known)
    assert familiar.features.largest_distance == pytest.approx(max(away))
    np.testing.assert_allclose(familiar.features.mean, table.mean(axis=0))
    mean, spread = np.array(familiar.features.mean), np.array(familiar.features.spread)
    for factor, is_like in ((0.99, True), (1.01, False)):
        values = mean + factor * FEATURE_MARGIN * max(away) * spread
        found = unfamiliar(familiar, replace(known[0], features=tuple(values.tolist())))
        assert (found == []) == is_like
    assert "the network's features are" in found[0]


@pytest.mark.parametrize("known", [cases(4), cases(8, features=False), [*cases(7), *cases(1, features=False)]])
def test_nothing_is_said_of_features_of_too_few_cases(known):
    assert describe_cases(known).features is None


# What the card holds


def test_what_a_card_holds_is_read_back_through_json():
    for familiar in (describe_cases(cases()), describe_cases(cases(2))):
        assert read_familiar(json.loads(json.dumps(familiar.to_dict()))) == familiar
    assert read_familiar(None) is None


GOOD = describe_cases(cases()).to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"ranges": {"spacing_mm_down_up": [2.0, 1.0]}},
        {"ranges": {"spacing_mm_down_up": [1.0, float("inf")]}},
        {"ranges": {"spacing_mm_down_up": [float("nan"), 1.0]}},
        {"ranges": {"weight": [1.0, 2.0]}},
        {"ranges": {"T1.zeros": 3}},
        {"ranges": 5},
        {"num_cases": "many"},
        {"features": {"mean": [1.0], "spread": [1.0, 2.0], "largest_distance": 1.0}},
        {"features": {"mean": [], "spread": [], "largest_distance": 1.0}},
        {"features": {"mean": [1.0], "spread": [0.0], "largest_distance": 1.0}},
        {"features": {"mean": [1.0], "spread": [1.0], "largest_distance": float("nan")}},
        {"features": {"mean": [1.0], "spread": [1.0], "largest_distance": 1.0, "_target_": "os.system"}},
        {"features": [1, 2]},
        {"other": 1},
    ],
    ids=str,
)
def test_a_card_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ModelError, match="says of familiar cases what makes no sense"):
        read_familiar({**GOOD, **changes})


@pytest.mark.parametrize("name", list(GOOD))
def test_a_card_that_lacks_a_part_is_refused(name):
    with pytest.raises(ModelError, match="makes no sense"):
        read_familiar({key: value for key, value in GOOD.items() if key != name})


# Features of the network


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_deepest_module_sees_the_fewest_places(kind):
    network = unet() if kind == "plain" else ResidualUNet3d(in_channels=1, out_channels=2, channels=(4, 6, 8)).eval()
    name = deepest_module(network, 1, (16, 8, 8))
    shapes = []
    with watched_shapes(network, name, shapes), torch.inference_mode():
        network(torch.zeros(1, 1, 16, 8, 8))
    assert set(shapes) == {(4, 2, 2)}
    assert not any(True for _ in network.get_submodule(name).children())


def watched_shapes(network, name, shapes):
    hook = network.get_submodule(name).register_forward_hook(lambda _a, _b, made: shapes.append(tuple(made.shape[2:])))
    return removing(hook)


class removing:  # noqa: N801  reads as a word where it is used
    def __init__(self, hook):
        self.hook = hook

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


def test_a_network_of_one_layer_is_its_own_deepest_module():
    assert deepest_module(torch.nn.Conv3d(1, 2, 1), 1, (4, 4, 4)) == ""


def test_features_are_the_mean_over_windows_and_places_that_were_computed():
    network, given = unet(), image(8, 12, 8, channels=1)
    name = deepest_module(network, 1, (8, 8, 8))
    with watched(network, name) as watch:
        own = window(overlap=0.5, batch=2)
        predict_voxels([network], given, window=own, activation="softmax", num_classes=1, device=CPU)
    by_hand = []
    hook = network.get_submodule(name).register_forward_hook(
        lambda _a, _b, made: by_hand.append(made.mean((0, 2, 3, 4)))
    )
    with torch.inference_mode():
        for start in (0, 4):
            network(given[None, :, :, start : start + 8])
    hook.remove()
    np.testing.assert_allclose(watch.mean, torch.stack(by_hand).mean(0).numpy(), rtol=1e-4, atol=1e-6)
    assert not network.get_submodule(name)._forward_hooks


def test_nothing_that_passed_has_no_features_and_neither_has_what_is_not_finite():
    watch = Watch()
    assert watch.mean is None
    watch.see(torch.empty(1, 2, 3, 3, 3, device="meta"))
    watch.see("text")
    assert watch.mean is None
    watch.see(torch.full((1, 2, 3, 3, 3), float("inf")))
    assert watch.mean is None
    with watched(unet(), None) as nothing:
        assert nothing.mean is None


# In prediction


def stored(folder, name, *, offset=0.0, affine=AFFINE):
    folder.mkdir(exist_ok=True)
    array = voxels_of([Blob(0.9)], seed=len(name))[0] + np.float32(offset)
    write_volume(folder / f"{name}.nii.gz", Volume(array, affine))


def familiar_model():
    figures = []
    for seed in range(3):
        array = voxels_of([Blob(0.9)], seed=seed)[0]
        figures.append(Figures(image_figures(volumes(array), ["MR"])))
    return known_model(familiar=describe_cases(figures).to_dict())


def rows(folder):
    return {row["case"]: row for row in json.loads((folder / "run.json").read_text("utf-8"))["cases"]}


def test_run_json_names_the_cases_that_are_unlike(tmp_path, caplog):
    stored(tmp_path / "in", "same")
    stored(tmp_path / "in", "thick", affine=np.diag([0.5, 1.0, 7.0, 1.0]))
    with caplog.at_level(logging.WARNING, "medfocal.infer"):
        predict(familiar_model(), tmp_path / "in", tmp_path / "out", device=CPU)
    found = rows(tmp_path / "out")
    assert found["same"]["unfamiliar"] == []
    assert any("spacing in mm (down to up) is 7" in words for words in found["thick"]["unfamiliar"])
    assert "case 'thick' is unlike those that the model was calibrated on" in caplog.text
    assert "case 'same'" not in caplog.text


def test_a_strict_prediction_refuses_them_and_goes_on_with_the_others(tmp_path):
    stored(tmp_path / "in", "thick", affine=np.diag([0.5, 1.0, 7.0, 1.0]))
    stored(tmp_path / "in", "very same")
    with pytest.raises(InputError, match="case 'thick' is unlike"):
        predict(
            familiar_model(),
            tmp_path / "in",
            tmp_path / "out",
            device=CPU,
            settings=PredictSettings(strict=True),
        )
    assert (tmp_path / "out" / "very same_mask.nii.gz").is_file()
    assert not (tmp_path / "out" / "thick_mask.nii.gz").exists()


def test_what_was_done_without_being_strict_is_done_anew(tmp_path):
    stored(tmp_path / "in", "thick", affine=np.diag([0.5, 1.0, 7.0, 1.0]))
    model = familiar_model()
    predict(model, tmp_path / "in", tmp_path / "out", device=CPU)
    with pytest.raises(InputError, match="case 'thick' is unlike"):
        predict(model, tmp_path / "in", tmp_path / "out", device=CPU, settings=PredictSettings(strict=True))


def test_a_model_without_familiar_cases_says_nothing_and_cannot_be_strict(tmp_path):
    stored(tmp_path / "in", "same")
    predict(known_model(), tmp_path / "in", tmp_path / "out", device=CPU)
    assert rows(tmp_path / "out")["same"]["unfamiliar"] is None
    with pytest.raises(ModelError, match="'known' was calibrated on none"):
        predict(known_model(), tmp_path / "in", tmp_path / "new", device=CPU, settings=PredictSettings(strict=True))
    assert not (tmp_path / "new").exists()


def test_a_damaged_card_is_refused_before_anything_is_written(tmp_path):
    stored(tmp_path / "in", "same")
    with pytest.raises(ModelError, match="familiar cases"):
        predict(known_model(familiar={"num_cases": 3}), tmp_path / "in", tmp_path / "out", device=CPU)
    assert not (tmp_path / "out").exists()


def test_a_case_far_from_the_features_is_told(tmp_path):
    stored(tmp_path / "in", "same")
    model = familiar_model()
    features = Features(mean=(0.0, 5.0), spread=(0.1, 0.1), largest_distance=2.0)
    known = replace(read_familiar(model.card.familiar), features=features)
    predict(
        replace(model, card=replace(model.card, familiar=known.to_dict())),
        tmp_path / "in",
        tmp_path / "out",
        device=CPU,
    )
    (words,) = rows(tmp_path / "out")["same"]["unfamiliar"]
    assert "the furthest is 2 from the others" in words
