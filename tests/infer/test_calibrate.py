"""Operating points on cases whose every probability is known, and what is fitted before they are chosen."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_cases import SHAPE, Blob, as_is, card, known_model, write_cases
from scipy.optimize import minimize
from small_models import CPU
from torch import nn

from medfocal.data.cases import read_case
from medfocal.data.manifest import LabelScheme
from medfocal.data.transforms import prepare_case
from medfocal.errors import ConfigError, DatasetError, ModelError
from medfocal.evaluate.protocols import Protocol
from medfocal.infer import fit
from medfocal.infer.calibrate import CalibrateSettings, _fitting_patients, calibrate
from medfocal.infer.correction import corrected
from medfocal.infer.predict import predict_case
from medfocal.model import NO_CORRECTION, Member, read_card

PROTOCOL = Protocol(num_resamples=200)
SOUND = {"false_positives": (0.5, 1.0), "sensitivity": None}


def false(probability):
    return Blob(probability, is_lesion=False)


def calibrated(tmp_path, cases, model=None, *, split="validation", **settings):
    manifest = write_cases(tmp_path / "data", cases, split=split)
    return calibrate(
        known_model() if model is None else model,
        manifest,
        tmp_path / "new",
        settings=CalibrateSettings(**{**SOUND, "split": split, **settings}),
        protocol=PROTOCOL,
        device=CPU,
    )


def predicted(tmp_path, found, network=None):
    """Confidences of the candidates of every case with the new model, as `predict` forms them, by case."""
    model = replace(known_model() if network is None else network, card=found.card)
    images = sorted((tmp_path / "data").glob("c*.nii.gz"), key=lambda path: int(path.name[1:-7]))[1:]
    answers = []
    for path in images:
        prepared = prepare_case(read_case(case_of(path), LabelScheme({})), found.card.preprocessing)
        answers.append(predict_case(model, prepared, device=CPU).candidates.confidence)
    return answers


def case_of(path):
    from medfocal.data.manifest import Case

    return Case(path.name, path.name, "test", (path,))


#: Four cases of three patients; five lesions, of which one is in no candidate, and false candidates.
FOUR = [
    ("a", [Blob(0.9), Blob(0.6), false(0.7)]),
    ("a", [false(0.8), false(0.3)]),
    ("b", [Blob(0.5), Blob(None)]),
    ("c", [Blob(0.2), false(0.4)]),
]


# Operating points


def test_thresholds_are_the_lowest_that_keep_so_few_false_candidates(tmp_path):
    """False ones have 0.8, 0.7, 0.4 and 0.3: two may count at 0.5 a case, so that all above 0.4 do; four at 1."""
    found = calibrated(tmp_path, FOUR)
    first, second = found.card.operating_points
    assert (first.name, second.name) == ("0.5 false positives per case", "1 false positive per case")
    assert first.threshold == pytest.approx(0.5, abs=1e-4)
    assert (first.lesion_sensitivity, first.false_positives_per_case) == (3 / 5, 0.5)
    assert second.threshold == pytest.approx(0.2, abs=1e-4)
    assert (second.lesion_sensitivity, second.false_positives_per_case) == (4 / 5, 1.0)
    for point in (first, second):
        assert (point.num_lesions, point.num_patients, point.guarantee) == (5, 3, None)
        assert 0 < point.lesion_sensitivity_low < point.lesion_sensitivity < point.lesion_sensitivity_high <= 1
        assert point.source == "validation of made: 4 cases of 3 patients"
    assert found.left_out == ()


def test_the_first_that_was_asked_for_is_the_default(tmp_path):
    found = calibrated(tmp_path, FOUR, false_positives=(1.0, 0.5))
    assert [point.name[0] for point in found.card.operating_points] == ["1", "0"]


def test_a_rate_that_is_never_reached_takes_all_candidates_and_says_so(tmp_path):
    found = calibrated(tmp_path, FOUR, false_positives=(3.0,))
    (point,) = found.card.operating_points
    assert (point.threshold, point.false_positives_per_case) == (pytest.approx(0.2, abs=1e-4), 1.0)
    assert "3 false positives per case: all candidates count there" in found.notes[-1]


def test_a_rate_at_which_no_candidate_may_count_is_left_out_with_the_reason(tmp_path):
    found = calibrated(tmp_path, FOUR, false_positives=(0.1, 0.25))
    cases = [("a", [Blob(0.5), false(0.9)]), ("b", [Blob(0.4), false(0.8)])]
    assert [point.name for point in found.card.operating_points] == [
        "0.1 false positives per case",
        "0.25 false positives per case",
    ]
    found = calibrated(tmp_path, cases, false_positives=(0.1, 2.0))
    assert [point.name for point in found.card.operating_points] == ["2 false positives per case"]
    assert found.left_out[0].startswith("0.1 false positives per case: the surest candidates of the 2 cases are false")
    with pytest.raises(DatasetError, match="no operating point could be chosen"):
        calibrated(tmp_path, cases, false_positives=(0.1,))


# How candidates are formed, and of which views


def test_candidates_are_formed_as_asked_and_the_card_says_so(tmp_path):
    large = (3, 3, 3)  # of voxels of 1.5 mm^3, so 0.0405 ml; the others have 0.012
    cases = [("a", [Blob(0.9, size=large), Blob(0.6), false(0.7)]), ("b", [Blob(0.8, size=large), false(0.3)])]
    plain = calibrated(tmp_path, cases)
    assert sorted(np.concatenate(predicted(tmp_path, plain))) == pytest.approx([0.3, 0.6, 0.7, 0.8, 0.9], abs=1e-4)
    cut = calibrated(tmp_path, cases, cut=0.65)
    assert (cut.card.candidates["cut"], read_card(tmp_path / "new")[0].candidates["cut"]) == (0.65, 0.65)
    assert sorted(np.concatenate(predicted(tmp_path, cut))) == pytest.approx([0.7, 0.8, 0.9], abs=1e-4)
    small = calibrated(tmp_path, cases, min_volume_ml=0.02, separate=True)
    assert sorted(np.concatenate(predicted(tmp_path, small))) == pytest.approx([0.8, 0.9], abs=1e-4)
    assert (small.card.candidates["separate"], small.card.candidates["cut"]) == (True, None)
    assert small.card.operating_points[0].lesion_sensitivity == 2 / 3
    made = replace(known_model(), card=cut.card)
    assert calibrated(tmp_path, cases, made).card.candidates["cut"] == 0.65
    assert calibrated(tmp_path, cases, made, cut=0.0).card.candidates["cut"] is None


class Sided(nn.Module):
    """Surer at one end of a window than at the other, so that views differ."""

    def forward(self, x):
        logit = x * torch.linspace(0.5, 1.5, x.shape[2], device=x.device)[:, None, None]
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def test_thresholds_of_mirrored_views_are_confidences_of_mirrored_views_and_say_so(tmp_path):
    model = replace(known_model(), networks=(Sided(),))
    found = calibrated(tmp_path, FOUR, model, tta="mirror", false_positives=(3.0,))
    (point,) = found.card.operating_points
    assert point.mirrored
    assert read_card(tmp_path / "new")[0].operating_points[0].mirrored
    lowest = {}
    for mirror in (False, True):
        each = []
        for path in sorted((tmp_path / "data").glob("c*.nii.gz")):
            prepared = prepare_case(read_case(case_of(path), LabelScheme({})), found.card.preprocessing)
            each.append(predict_case(model, prepared, device=CPU, mirror=mirror).candidates.confidence)
        lowest[mirror] = np.concatenate(each)
    assert np.abs(lowest[True] - point.threshold).min() < 1e-6
    assert np.abs(lowest[False] - point.threshold).min() > 1e-3


def test_a_correction_is_fitted_on_the_views_that_are_asked_for(tmp_path, monkeypatch):
    seen = []
    whole = fit.predict_voxels
    monkeypatch.setattr(fit, "predict_voxels", lambda *a, **k: seen.append(k["mirror"]) or whole(*a, **k))
    member = Member(network={"name": "UNet3d", "arguments": {}}, training={"loss": {"gamma": 2.0, "alpha": None}})
    calibrated(tmp_path, FOUR, known_model(members=(member,)), tta="mirror", correct=True)
    assert seen == [True] * len(seen)
    assert seen


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cut": 1.5}, "cut must be a probability, or 0 for none, got 1.5"),
        ({"min_volume_ml": -1.0}, "min_volume_ml must be from 0 to"),
        ({"min_volume_ml": math.nan}, "min_volume_ml must be from 0 to"),
        ({"tta": "flip"}, "tta must be one of none, mirror"),
    ],
)
def test_candidates_and_views_out_of_range_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        CalibrateSettings(**settings)


def test_settings_that_leave_no_candidate_are_told_as_such(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no candidate in the 4 cases\. The card's candidates, or cut and"):
        calibrated(tmp_path, FOUR, min_volume_ml=1e3)


# The output


def test_a_model_that_no_calibration_wrote_is_not_replaced(tmp_path):
    calibrated(tmp_path, FOUR)
    calibrated(tmp_path, FOUR, tta="mirror")  # of an earlier calibration it may
    (tmp_path / "new" / "calibration.json").unlink()
    before = (tmp_path / "new" / "model.json").read_bytes()
    with pytest.raises(ConfigError, match=r"new' holds a model that was not written by calibrate and would be lost"):
        calibrated(tmp_path, FOUR)
    assert (tmp_path / "new" / "model.json").read_bytes() == before


def test_a_calibration_that_fails_leaves_no_empty_folder(tmp_path):
    with pytest.raises(DatasetError, match="no lesion"):
        calibrated(tmp_path, [("a", [false(0.9)]), ("b", [false(0.8)])])
    assert not (tmp_path / "new").exists()


def many(miss=(), count=10):
    """Patients with a lesion of their own probability each; those of `miss` have a second one that nobody sees."""
    return [(f"p{n}", [Blob(0.5 + n / 40), *([Blob(None)] if n in miss else []), false(0.45)]) for n in range(count)]


def test_the_guaranteed_threshold_is_that_of_the_theorem(tmp_path):
    """With 19 patients, (misses + 1) / 20 <= 0.1 allows one miss: the second lowest confidence."""
    found = calibrated(tmp_path, many(count=19), sensitivity=0.9, min_diameter_mm=0.0)
    point = found.card.operating_points[-1]
    assert point.name == "lesion sensitivity 0.9"
    assert point.threshold == pytest.approx(0.5 + 1 / 40, abs=1e-4)
    assert (point.lesion_sensitivity, point.false_positives_per_case) == (pytest.approx(18 / 19), 0.0)
    assert 0 < point.lesion_sensitivity_low < 18 / 19 < point.lesion_sensitivity_high
    guarantee = point.guarantee
    assert (guarantee.miss_rate, guarantee.min_diameter_mm, guarantee.num_patients) == (0.1, 0.0, 19)
    assert guarantee.confidence is None


def test_a_guarantee_with_a_probability_says_so(tmp_path):
    found = calibrated(
        tmp_path, many(count=10), sensitivity=0.5, min_diameter_mm=0, guarantee="probability", confidence_level=0.8
    )
    point = found.card.operating_points[-1]
    assert (point.guarantee.confidence, point.guarantee.miss_rate) == (0.8, 0.5)
    in_expectation = calibrated(tmp_path, many(count=10), sensitivity=0.5, min_diameter_mm=0).card.operating_points[-1]
    assert point.threshold < in_expectation.threshold


def test_only_patients_with_large_lesions_count_and_the_others_are_told(tmp_path):
    """Boxes of (2, 2, 2) voxels are 6.4 mm long, those of one voxel 3.2 mm."""
    small = [("s", [Blob(0.3, size=(1, 1, 1))])]
    found = calibrated(tmp_path, [*many(count=9), *small], sensitivity=0.9, min_diameter_mm=4.0)
    point = found.card.operating_points[-1]
    assert point.guarantee.num_patients == 9
    assert point.threshold == pytest.approx(0.5, abs=1e-4)
    assert "9 patients have lesions of 4 mm or more, 1 have none and don't count" in found.notes[-1]


def test_too_few_patients_are_told_how_many_it_takes_and_the_other_points_are_there(tmp_path):
    found = calibrated(tmp_path, many(count=8), sensitivity=0.9, min_diameter_mm=0)
    assert [point.guarantee for point in found.card.operating_points] == [None, None]
    (why,) = found.left_out
    assert "lesion sensitivity 0.9: 8 patients have lesions" in why
    assert "it takes 9 patients to promise that at most 10 % are missed" in why


def test_lesions_in_no_candidate_are_told_to_be_past_mending(tmp_path):
    """2 of 8 patients miss half of theirs: 12.5 %."""
    (why,) = calibrated(tmp_path, many((2, 5), count=8), sensitivity=0.9, min_diameter_mm=0).left_out
    assert "12.5 % of a patient's are in no candidate at all, on average, and at most 10 % may be missed" in why
    assert "No threshold and no number of patients mends that" in why
    (why,) = calibrated(tmp_path, many((2,), count=8), sensitivity=0.9, min_diameter_mm=0).left_out
    assert "it takes 24 patients" in why  # 0.9 / (0.1 - 0.0625)


def test_no_lesion_large_enough_is_told(tmp_path):
    (why,) = calibrated(tmp_path, many(count=3), sensitivity=0.9, min_diameter_mm=80).left_out
    assert why == "lesion sensitivity 0.9 from 80 mm: no patient has lesions of 80 mm or more"


# The folder


def test_the_new_folder_has_the_weights_and_a_record_beside_its_card(tmp_path):
    found = calibrated(tmp_path, FOUR)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "calibration.json",
        "model.json",
        "weights.safetensors",
    ]
    read, _ = read_card(tmp_path / "new")
    assert read == found.card
    record = json.loads((tmp_path / "new" / "calibration.json").read_text("utf-8"))
    assert (record["num_cases"], record["num_patients"], record["num_fitted"]) == (4, 3, 0)
    assert record["protocol"]["name"] == "any_overlap"
    assert [point["name"] for point in record["operating_points"]] == [point.name for point in read.operating_points]


def test_all_members_are_written(tmp_path):
    one = Member(network={"name": "UNet3d", "arguments": {}})
    model = replace(known_model(members=(one, one)), networks=(as_is(), as_is()), weights_sha256=("0", "1"))
    found = calibrated(tmp_path, FOUR, model)
    assert len(found.card.members) == 2
    assert (tmp_path / "new" / "weights_2.safetensors").is_file()


def trained(**training):
    return known_model(members=(Member(network={"name": "UNet3d", "arguments": {}}, training=training),))


@pytest.mark.parametrize(
    ("training", "split", "is_told"),
    [
        ({"dataset": "made", "num_validation_cases": 4}, "validation", True),
        ({"dataset": "made", "num_validation_cases": 0}, "validation", False),
        ({"dataset": "other", "num_validation_cases": 4}, "validation", False),
        ({"dataset": "made", "num_validation_cases": 4}, "test", False),
    ],
)
def test_a_split_that_chose_the_epoch_is_told_and_stands_in_the_source(tmp_path, training, split, is_told):
    found = calibrated(tmp_path, FOUR, trained(**training), split=split)
    assert any("the model's epoch was chosen on this split" in note for note in found.notes) == is_told
    assert found.card.operating_points[0].source.endswith("which chose the epoch too") == is_told


# What is refused


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (
            [("a", [Blob(0.5)]), ("a", [Blob(0.4)])],
            "2 annotated cases of one patient, 'a', which say nothing of others",
        ),
        ([("a", [false(0.5)]), ("b", [false(0.4)])], "no lesion in the 2 cases"),
        ([], "nothing can be chosen on the split 'validation': it has no case"),
    ],
)
def test_a_split_that_says_nothing_is_refused(tmp_path, cases, message):
    with pytest.raises(DatasetError, match=message):
        calibrated(tmp_path, cases)
    assert not (tmp_path / "new" / "model.json").exists()


def test_a_split_without_labels_is_refused(tmp_path):
    manifest = write_cases(tmp_path, FOUR, split="test")
    bare = replace(manifest, cases=tuple(replace(case, label=None) for case in manifest.cases))
    settings = CalibrateSettings(**SOUND, split="test")
    with pytest.raises(DatasetError, match="its 4 cases have neither label nor annotations"):
        calibrate(known_model(), bare, tmp_path / "new", settings=settings, protocol=PROTOCOL, device=CPU)


def test_other_channels_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"has the channels \['MR'\], the model was trained on \['CT'\]"):
        calibrated(tmp_path, FOUR, known_model(channels=("CT",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sensitivity": 1.0}, r"sensitivity must be in \(0, 1\), got 1.0"),
        ({"sensitivity": 0.0}, "sensitivity must be"),
        ({"confidence_level": 1.0}, "confidence_level must be"),
        ({"fit_share": 0.0}, "fit_share must be"),
        ({"guarantee": "always"}, "guarantee must be one of expectation, probability, got 'always'"),
        ({"split": "training"}, "split must be one of validation, test"),
        ({"confidence": "mean"}, "confidence must be one of None, logistic, max, mean_top"),
        ({"false_positives": [0.0]}, "false_positives must be distinct rates above 0"),
        ({"false_positives": [1.0, 1.0]}, "false_positives must be distinct"),
        ({"false_positives": [math.inf]}, "false_positives must be"),
        ({"false_positives": [], "sensitivity": None}, "there is no operating point to choose"),
        ({"min_diameter_mm": -1.0}, "min_diameter_mm must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CalibrateSettings(**settings)


# Correction of voxels


def drawn_voxels(correction, activation="softmax", num=200_000, num_classes=1, seed=0):
    """Probabilities of a network, and labels drawn from what they become under a correction."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1, 2, (num, num_classes))
    if activation == "softmax":
        odds = np.exp(logits)
        probability = (odds / (1 + odds.sum(axis=1, keepdims=True))).astype(np.float32)
    else:
        probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    truth = corrected(torch.from_numpy(probability.T.copy()), correction, activation).numpy().T.astype(np.float64)
    if activation == "softmax":
        edges = np.cumsum(truth, axis=1)
        place = (random.random((num, 1)) > edges).sum(axis=1)
        target = np.arange(num_classes) == place[:, None]
    else:
        target = random.random(truth.shape) < truth
    return fit.LabelledVoxels(probability, target, np.ones(num))


@pytest.mark.parametrize(
    ("activation", "num_classes"), [("softmax", 1), ("softmax", 3), ("sigmoid", 1), ("sigmoid", 2)]
)
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_the_temperature_of_the_labels_is_found_behind_the_loss(activation, num_classes, temperature):
    """Within the sampling error of 200,000 labels, some 0.005."""
    loss = {"gamma": 2.0, "alpha": 0.75 if num_classes == 1 else None}
    voxels = drawn_voxels({**loss, "temperature": temperature}, activation, num_classes=num_classes)
    found = fit.fit_correction(voxels, loss, activation)
    assert found["temperature"] == pytest.approx(temperature, rel=0.03)
    assert (found["gamma"], found["alpha"]) == (loss["gamma"], loss["alpha"])


def test_a_voxel_that_stands_for_many_counts_like_many():
    voxels = drawn_voxels({**NO_CORRECTION, "temperature": 1.4}, num=3000)
    twice = np.flatnonzero((voxels.probability > 0.5)[:, 0] != voxels.target[:, 0])  # those that are wrong
    doubled = fit.LabelledVoxels.of([voxels, *[fit.LabelledVoxels(*(part[twice] for part in parts_of(voxels)))] * 2])
    weight = np.ones(3000)
    weight[twice] = 3
    loss = {"gamma": 0.0, "alpha": None}
    weighted = replace(voxels, weight=weight)
    assert fit.fit_correction(weighted, loss, "softmax")["temperature"] == pytest.approx(
        fit.fit_correction(doubled, loss, "softmax")["temperature"], rel=1e-3
    )
    a, b = (fit.voxel_reliability(given, NO_CORRECTION, "softmax") for given in (weighted, doubled))
    assert (a.ece, a.brier, a.log_loss) == pytest.approx((b.ece, b.brier, b.log_loss), rel=1e-6)


def parts_of(voxels):
    return voxels.probability, voxels.target, voxels.weight


def test_reliability_is_what_a_loop_over_bins_gives():
    random = np.random.default_rng(1)
    probability = np.append(random.random(300), [0.0, 0.1, 0.9, 1.0])
    is_lesion = random.random(304) < probability**2
    found = fit.reliability(probability, is_lesion)
    gaps = 0.0
    for n, of_bin in enumerate(found.bins):  # none is empty
        own = (probability >= n / 10) & ((probability < (n + 1) / 10) | (n == 9))
        gaps += own.sum() / 304 * abs(probability[own].mean() - is_lesion[own].mean())
        assert of_bin.mean == pytest.approx(probability[own].mean())
        assert of_bin.share == pytest.approx(is_lesion[own].mean())
        assert (of_bin.low, of_bin.high, of_bin.number) == (n / 10, (n + 1) / 10, own.sum())
    assert len(found.bins) == 10
    assert found.ece == pytest.approx(gaps)
    assert found.brier == pytest.approx(((probability - is_lesion) ** 2).mean())
    clipped = np.clip(np.where(is_lesion, probability, 1 - probability), 1e-7, 1)
    assert found.log_loss == pytest.approx(-np.log(clipped).mean(), rel=1e-6)


def test_no_lesion_voxel_leaves_nothing_to_fit():
    voxels = drawn_voxels(NO_CORRECTION, num=100)
    with pytest.raises(DatasetError, match="no voxel of the patients that the correction is fitted on"):
        fit.fit_correction(
            replace(voxels, target=np.zeros_like(voxels.target)), {"gamma": 0.0, "alpha": None}, "softmax"
        )


def prepared_case(tmp_path, blobs):
    manifest = write_cases(tmp_path, [("a", blobs)])
    (case,) = manifest.split("validation")
    return prepare_case(read_case(case, manifest.scheme), card().preprocessing), manifest.scheme


def test_all_lesion_voxels_are_looked_at_and_the_others_stand_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "VOXELS_OF_CASE", 5)
    prepared, scheme = prepared_case(tmp_path, [Blob(0.9), Blob(None), false(0.3)])
    found = fit.sample_voxels([as_is()], prepared, card(), scheme, device=CPU, seed=0)
    assert found.target.sum() == 16
    np.testing.assert_array_equal(found.weight[found.target[:, 0]], 1)
    assert len(found.weight) == 16 + 5 + 5
    assert found.weight.sum() == pytest.approx(math.prod(SHAPE))
    seen = ~found.target[:, 0] & (found.probability[:, 0] >= 0.01)
    assert found.weight[seen].sum() == pytest.approx(8)
    np.testing.assert_allclose(found.probability[seen, 0], 0.3, atol=1e-5)
    assert sorted(found.probability[found.target].round(4).tolist())[8:] == [pytest.approx(0.9, abs=1e-4)] * 8


def test_voxels_that_nobody_judged_are_left_out(tmp_path):
    prepared, scheme = prepared_case(tmp_path, [Blob(0.9), false(0.3)])
    ignore = np.zeros(SHAPE, bool)
    ignore[:3] = True
    found = fit.sample_voxels([as_is()], replace(prepared, ignore=ignore), card(), scheme, device=CPU, seed=0)
    assert found.weight.sum() == pytest.approx((~ignore).sum())
    assert found.target.sum() == 4


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_one_class_of_several_networks_is_their_mean(activation):
    torch.manual_seed(0)
    networks = [nn.Conv3d(2, 3, 1), nn.Conv3d(2, 3, 1)]
    windows = torch.randn(2, 2, 4, 3, 2)
    with torch.inference_mode():
        said = [network(windows) for network in networks]
        means = [values.softmax(1)[:, 1:] if activation == "softmax" else values.sigmoid() for values in said]
        expected = sum(means) / 2
        for number in range(expected.shape[1]):
            found = torch.sigmoid(fit.one_class(networks, activation, number)(windows))
            torch.testing.assert_close(found, expected[:, [number]])


LOSS = {"gamma": 2.0, "alpha": 0.75}


def corrected_cases():
    """Twelve patients with lesions and false candidates of probabilities that focal loss has raised."""
    random = np.random.default_rng(0)
    return [
        (f"p{n}", [Blob(float(p), is_lesion=bool(random.random() < p**3)) for p in random.uniform(0.1, 0.97, 9)])
        for n in range(12)
    ]


def test_corrected_probabilities_are_better_and_no_candidate_is_lost(tmp_path):
    plain = calibrated(tmp_path, corrected_cases(), trained(loss=LOSS))
    before = predicted(tmp_path, plain)
    found = calibrated(tmp_path, corrected_cases(), trained(loss=LOSS), correct=True)
    after = predicted(tmp_path, found)
    assert [len(case) for case in after] == [len(case) for case in before]
    assert found.card.correction["gamma"] == 2.0
    assert found.card.correction["temperature"] != 1
    first, second = found.voxels
    assert second.log_loss < first.log_loss
    assert second.ece < first.ece
    assert found.card.candidates["floor"] < plain.card.candidates["floor"]
    assert found.num_fitted == 4  # 0.3 of 12
    assert found.card.operating_points[0].num_patients == 8


@pytest.mark.parametrize("settings", [{}, {"correct": True}, {"confidence": "logistic"}, {"confidence": "mean_top"}])
def test_predict_finds_as_many_candidates_as_a_point_says_in_the_patients_that_chose_it(tmp_path, settings):
    found = calibrated(tmp_path, corrected_cases(), trained(loss=LOSS), **settings)
    patients = sorted(f"p{n}" for n in range(12))
    fitting = _fitting_patients(patients, CalibrateSettings(**settings), PROTOCOL.seed)
    assert found.num_fitted == len(fitting) == (4 if settings.get("correct") or "logistic" in settings.values() else 0)
    chose = [f"p{n}" not in fitting for n in range(12)]
    num_lesions = sum(
        blob.is_lesion for (_, blobs), own in zip(corrected_cases(), chose, strict=True) if own for blob in blobs
    )
    for point in found.card.operating_points:
        num_kept = [int((of >= point.threshold).sum()) for of in predicted(tmp_path, found)]
        true = point.lesion_sensitivity * point.num_lesions
        assert (point.num_patients, point.num_lesions) == (sum(chose), num_lesions)
        assert sum(n for n, own in zip(num_kept, chose, strict=True) if own) == pytest.approx(
            true + point.false_positives_per_case * sum(chose)
        )
        assert point.false_positives_per_case <= float(point.name.split()[0])


def test_the_patients_that_something_is_fitted_on_are_some_and_not_all():
    patients = [f"p{n}" for n in range(10)]
    for share, expected in ((0.3, 3), (0.01, 1), (0.99, 9)):
        found = _fitting_patients(patients, CalibrateSettings(correct=True, fit_share=share), 0)
        assert len(found) == expected
        assert found < set(patients)
    assert len(_fitting_patients(["a", "b"], CalibrateSettings(correct=True, fit_share=0.9), 0)) == 1


def test_the_rule_of_corrected_probabilities_keeps_the_hills():
    rule = {"floor": 0.01, "cut": 0.3, "connectivity": 26}
    correction = {"gamma": 2.0, "alpha": 0.75, "temperature": 1.3}
    found = fit.corrected_rule(rule, correction, "softmax", num_classes=1)
    for name in ("floor", "cut"):
        expected = corrected(torch.tensor([[rule[name]]]), correction, "softmax").item()
        assert found[name] == pytest.approx(expected, rel=1e-5)
    assert found["connectivity"] == 26
    several = fit.corrected_rule({"floor": 0.01, "cut": None}, {**correction, "alpha": None}, "sigmoid", num_classes=2)
    assert several["cut"] is None
    assert several["floor"] < 0.01
    assert fit.corrected_rule(rule, NO_CORRECTION, "softmax", num_classes=2)["floor"] == pytest.approx(0.01)


def test_a_card_that_does_not_tell_its_loss_cannot_be_corrected(tmp_path):
    with pytest.raises(ModelError, match="the model's card does not say which loss"):
        calibrated(tmp_path, FOUR, correct=True)
    with pytest.raises(ModelError, match="which no loss has"):
        calibrated(tmp_path, FOUR, trained(loss={"gamma": "two", "alpha": None}), correct=True)


def test_members_of_other_losses_cannot_be_corrected(tmp_path):
    members = tuple(
        Member(network={"name": "UNet3d", "arguments": {}}, training={"loss": {"gamma": gamma, "alpha": None}})
        for gamma in (1.0, 2.0)
    )
    model = replace(known_model(members=members), networks=(as_is(), as_is()), weights_sha256=("0", "1"))
    with pytest.raises(ModelError, match="the members differ in it"):
        calibrated(tmp_path, FOUR, model, correct=True)


def test_what_is_corrected_already_is_not_corrected_twice(tmp_path):
    model = known_model(
        correction={"gamma": 2.0, "alpha": 0.75, "temperature": 1.0},
        members=(Member(network={"name": "UNet3d", "arguments": {}}, training={"loss": LOSS}),),
    )
    with pytest.raises(ModelError, match="corrected already"):
        calibrated(tmp_path, FOUR, model, correct=True)
    assert calibrated(tmp_path, FOUR, model).card.correction == model.card.correction


# Confidence of candidates


def features_and_truth(seed=0, num=120):
    random = np.random.default_rng(seed)
    features = np.stack([random.normal(-3, 1, num), random.uniform(0, 0.6, num), random.uniform(0, 1, num)], axis=1)
    odds = 1.5 * (features[:, 0] + 3) + 4 * (features[:, 2] - 0.5)
    return features, random.random(num) < 1 / (1 + np.exp(-odds))


def test_the_regression_minimises_its_objective():
    features, is_true = features_and_truth()
    found = fit.fit_logistic(features, is_true)
    spread = features.std(axis=0)

    def objective(values):
        margin = np.where(is_true, 1, -1) * (values[0] + features @ values[1:])
        return np.log1p(np.exp(-margin)).sum() + 0.5 * ((values[1:] * spread) ** 2).sum()

    start = np.zeros(4)
    other = minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 8000}).x
    values = [found[name] for name in ("intercept", "log_volume", "mean", "max")]
    np.testing.assert_allclose(values, other, atol=2e-3)


def test_candidates_that_are_told_apart_without_an_error_have_finite_coefficients():
    features, is_true = np.zeros((40, 3)), np.arange(40) < 20
    features[:20, 2] = 1
    found = fit.fit_logistic(features, is_true)
    assert all(math.isfinite(value) for value in found.values())
    assert 1 < found["max"] < 20
    assert (found["log_volume"], found["mean"]) == (0.0, 0.0)  # they do not vary


@pytest.mark.parametrize(("num_true", "num_false"), [(9, 30), (30, 9), (0, 0)])
def test_too_few_candidates_of_a_kind_are_refused_with_both_numbers(num_true, num_false):
    is_true = np.arange(num_true + num_false) < num_true
    with pytest.raises(DatasetError, match=f"fitted on {num_true} true and {num_false} false candidates; it takes 10"):
        fit.fit_logistic(np.zeros((len(is_true), 3)), is_true)


def test_a_fitted_confidence_is_written_and_says_more_of_candidates(tmp_path):
    found = calibrated(tmp_path, corrected_cases(), confidence="logistic", fit_share=0.5)
    logistic = found.card.candidates["logistic"]
    assert set(logistic) == {"intercept", "log_volume", "mean", "max"}
    before, after = found.candidates
    assert after.log_loss < before.log_loss
    assert found.num_fitted == 6
    assert sum(one.number for one in after.bins) == 6 * 9  # candidates of those patients
    again = calibrated(tmp_path, corrected_cases(), replace(known_model(), card=found.card), confidence="max")
    assert again.card.candidates["logistic"] is None


def test_a_confidence_of_other_probabilities_is_not_kept_beside_a_correction(tmp_path):
    found = calibrated(tmp_path, corrected_cases(), trained(loss=LOSS), confidence="logistic", fit_share=0.5)
    model = replace(known_model(), card=found.card)
    with pytest.raises(ModelError, match="fitted on probabilities without this correction"):
        calibrated(tmp_path, corrected_cases(), model, correct=True)
    assert calibrated(tmp_path, corrected_cases(), model).card.candidates["logistic"] is not None
