"""`medfocal calibrate`: from a training to a prediction at a point that was chosen on other patients."""

import json

import pytest
from commands import TINY, assert_refused, make_dataset, run

WORDS = ("data.dataset=d/dataset.json", "device=cpu", "protocol.num_resamples=100")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset with one training, one validation and four test cases, and a model of it."""
    place = tmp_path_factory.mktemp("calibrate")
    make_dataset(place / "d")
    path = place / "d" / "dataset.json"
    content = json.loads(path.read_text("utf-8"))
    cases = content["training"] + content["validation"] + content["test"]
    cases = sorted(cases, key=lambda case: case["patient"])
    patients = list(dict.fromkeys(case["patient"] for case in cases))
    own = {"training": patients[:1], "validation": patients[1:2], "test": patients[2:]}
    content |= {split: [case for case in cases if case["patient"] in names] for split, names in own.items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    words = [*TINY, "trainer.max_epochs=1", "trainer.steps_per_epoch=40", "loss.gamma=1", "run.id=r"]
    ended = run("train", *words, "data.dataset=d/dataset.json", folder=place)
    assert ended.code == 0, ended.err
    return place


MODEL = "runs/default/r/model"


def calibrate(folder, *words, model=MODEL, output="new"):
    return run("calibrate", f"model={model}", f"output={output}", *WORDS, *words, folder=folder)


@pytest.fixture(scope="module")
def done(folder):
    """The split of one patient in each of four cases: no guarantee, but points."""
    ended = calibrate(folder, "split=test", "correct=true", "false_positives=[2,50]", output="corrected")
    assert ended.code == 0, ended.err
    return ended


def test_training_tells_the_loss_that_a_correction_undoes(folder):
    card = json.loads((folder / MODEL / "model.json").read_text("utf-8"))
    assert card["members"][0]["training"]["loss"] == {"gamma": 1.0, "alpha": 0.75}


def test_points_reliability_and_places_are_told(done, folder):
    told = " ".join(done.out.split())
    assert "reliability of voxels, before to after: ECE" in told
    assert "correction: gamma 1.0, alpha 0.75 undone, temperature" in told
    assert "50 false positives per case: threshold" in told
    assert "left out: lesion sensitivity 0.9 from 3 mm:" in told
    assert "the figure is 'corrected/reliability.png'" in told
    assert told.endswith("the model is 'corrected'")
    names = ["calibration.json", "model.json", "reliability.png", "weights.safetensors"]
    assert sorted(path.name for path in (folder / "corrected").iterdir()) == names
    assert (folder / "corrected" / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_the_new_model_is_shown_with_what_it_promises(done, folder):
    assert done.code == 0
    ended = run("info", "model=corrected", folder=folder)
    assert (ended.code, ended.err) == (0, "")
    assert "corrected  gamma 1.0, alpha 0.75 undone, temperature" in ended.out
    assert "operating  50 false positives per case: threshold" in ended.out
    assert "(from: test of medfocal phantoms:" in ended.out
    assert "familiar   with" in ended.out


def test_prediction_with_the_new_model_takes_its_threshold_and_knows_its_cases(done, folder):
    assert done.code == 0
    ended = run(
        "predict", "model=corrected", "input=d/dataset.json", "output=p", "device=cpu", "strict=true", folder=folder
    )
    assert ended.code == 0, ended.err
    record = json.loads((folder / "p" / "run.json").read_text("utf-8"))
    card = json.loads((folder / "corrected" / "model.json").read_text("utf-8"))
    assert record["threshold"] == card["operating_points"][0]["threshold"]
    assert all(row["unfamiliar"] == [] for row in record["cases"])


def test_a_guarantee_is_told_and_stands_in_the_card(folder):
    """A sensitivity so low that what this model finds suffices."""
    ended = calibrate(
        folder, "split=test", "false_positives=[]", "sensitivity=0.05", "min_diameter_mm=0", output="kept"
    )
    assert ended.code == 0, ended.err
    assert "Misses at most 95 % of a patient's lesions in expectation, by patients exchangeable with the" in ended.out
    (point,) = json.loads((folder / "kept" / "model.json").read_text("utf-8"))["operating_points"]
    assert point["guarantee"]["miss_rate"] == 0.95
    shown = run("info", "model=kept", folder=folder)
    assert "Misses at most 95 %" in shown.out


def test_several_models_become_one_folder(folder):
    words = [*TINY, "trainer.max_epochs=1", "trainer.steps_per_epoch=40", "loss.gamma=1", "run.id=s", "seed=2"]
    assert run("train", *words, "data.dataset=d/dataset.json", folder=folder).code == 0
    model = f"[{MODEL},runs/default/s/model]"
    ended = calibrate(folder, "split=test", "sensitivity=null", "false_positives=[50]", model=model, output="both")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (folder / "both").glob("*.safetensors")) == [
        "weights_1.safetensors",
        "weights_2.safetensors",
    ]
    shown = run("info", "model=both", folder=folder)
    assert "operating  50 false positives per case" in shown.out


# What is refused


def test_models_that_differ_are_refused(folder):
    words = [*TINY, "trainer.max_epochs=1", "run.id=t", "transforms.spacing_mm=[2,2,2]"]
    assert run("train", *words, "data.dataset=d/dataset.json", folder=folder).code == 0
    ended = calibrate(folder, model=f"[{MODEL},runs/default/t/model]")
    assert_refused(ended, 4, "cannot be averaged: preprocessing.spacing_mm is")


def test_one_patient_is_refused(folder):
    assert_refused(calibrate(folder), 3, "of one patient", "Take a split of more patients")
    assert not (folder / "new").exists()


def test_too_few_candidates_for_a_regression_are_refused_with_both_numbers(folder):
    ended = calibrate(folder, "split=test", "confidence=logistic")
    assert_refused(ended, 3, "true and", "false candidates; it takes 10 of each")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sensitivity=1"], "sensitivity must be in (0, 1), got 1"),
        (["sensitivity=0"], "sensitivity must be in (0, 1), got 0"),
        (["split=training"], "split must be one of validation, test, got 'training'"),
        (["guarantee=sure"], "guarantee must be one of expectation, probability"),
        (["false_positives=[1,-1]"], "false_positives must be distinct rates above 0"),
        (["output=m"], "output must name another folder than the model"),
        (["output=./x/../m/"], "output must name another folder than the model"),
        (["output=n", "model=[m,n]"], "output must name another folder than the model"),
        (["model=[]"], "model must be a model's folder or a list"),
        (["confidence=median"], "confidence must be one of"),
        (["protocol=msseg"], "protocol.hit_rule=covered_together judges candidates together at one threshold"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(tmp_path, words, told):
    ended = run("calibrate", "model=m", "output=o", "data.dataset=d.json", *words, folder=tmp_path)
    assert_refused(ended, 2, told)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    ended = run("calibrate", "model=m", "output=o", "data.dataset=d.json", folder=tmp_path)
    assert_refused(ended, 4, "'m' is not a model folder")
    assert list(tmp_path.iterdir()) == []
