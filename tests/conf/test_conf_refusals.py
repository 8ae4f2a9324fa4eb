"""What a configuration may not say is a ConfigError before anything is called."""

import os

import conf_canary
import numpy as np
import pytest
import torch
from commands import assert_refused, run
from hydra.utils import instantiate

from medfocal import config
from medfocal.data import phantom
from medfocal.errors import ConfigError

TRAIN = ["data.dataset=d.json"]


def refuse(match, *overrides, verb="train"):
    with pytest.raises(ConfigError, match=match):
        config.check(config.compose(verb, [*(TRAIN if verb == "train" else []), *overrides]))


@pytest.fixture(autouse=True)
def silence(monkeypatch):
    """Whatever could be called by name sings instead; at the end nobody has sung."""
    for module, name in ((os, "system"), (torch, "load"), (np, "load"), (phantom, "write_phantoms")):
        monkeypatch.setattr(module, name, conf_canary.sing)
    conf_canary.SONGS.clear()
    yield
    assert conf_canary.SONGS == []


def test_the_canary_sings_when_called_by_name():
    instantiate({"_target_": "conf_canary.sing"})
    assert conf_canary.SONGS.pop() == ((), {})


TARGETS = ["os.system", "torch.load", "numpy.load", "medfocal.data.phantom.write_phantoms", "conf_canary.sing"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("group", ["loss", "network", "optimizer", "schedule", "smoothing", "augment"])
def test_a_target_outside_the_list_is_refused(group, target):
    refuse(rf"{group}: the _target_ '{target}' is not allowed. Allowed are", f"{group}._target_={target}")


@pytest.mark.parametrize(
    "override",
    [
        "+transforms._target_={}",
        "+transforms.more._target_={}",
        "+evaluate._target_={}",
        "+trainer._target_={}",
        "+sampling._target_={}",
        "+_target_={}",
        "+loss.alpha._target_={}",
        "loss.alpha=[{{_target_:{}}}]",
        "loss.alpha={{_target_:{}}}",
        "transforms.spacing_mm=[1,[{{_target_:{}}}],1]",
        "network.strides=[1,{{_target_:{}}}]",
        "+augment.more.deeper._target_={}",
    ],
)
def test_a_target_where_none_belongs_is_refused(override):
    refuse("_target_|alpha", override.format("conf_canary.sing"))


@pytest.mark.parametrize("word", ["_args_", "_partial_", "_recursive_", "_convert_"])
def test_other_words_of_instantiation_are_refused(word):
    refuse(rf"loss\.{word}: only {', '.join(config.TARGETS)} may have a _target_", f"+loss.{word}=[1]")


def test_a_class_that_is_allowed_in_one_group_is_refused_in_another():
    refuse(
        "schedule: the _target_ 'medfocal.losses.FocalLoss' is not allowed",
        "schedule._target_=medfocal.losses.FocalLoss",
    )


def test_a_function_beside_the_allowed_classes_is_refused():
    refuse("the _target_ 'medfocal.losses.focal_loss' is not allowed", "loss._target_=medfocal.losses.focal_loss")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["loss.gama=1"], "no setting 'loss.gama' .did you mean 'loss.gamma'"),
        (["+loss.gama=1"], "FocalLoss has no 'gama' .did you mean 'gamma'"),
        (["++loss.gama=1"], "FocalLoss has no 'gama' .did you mean 'gamma'"),
        (["sede=1"], "no setting 'sede' .did you mean 'seed'"),
        (["+sede=1"], "no setting 'sede' .did you mean 'seed'"),
        (["+run.ids=1"], "no setting 'run.ids' .did you mean 'run.id'"),
        (["+paths.run=x"], "no setting 'paths.run' .did you mean 'paths.runs'"),
        (["+data.roots=x"], "no setting 'data.roots' .did you mean 'data.root'"),
        (["+trainer.max_epoch=1"], "no setting 'trainer.max_epoch' .did you mean 'trainer.max_epochs'"),
        (["sampling.transplant_probabilty=0"], "did you mean 'sampling.transplant_probability'"),
        (["+sampling.lesion_fractoin=1"], "did you mean 'sampling.lesion_fraction'"),
        (["+transforms.orientatoin=RAS"], "Preprocessing has no 'orientatoin' .did you mean 'orientation'"),
        (["+augment.noise_sdt=1"], "BatchAugmentation has no 'noise_sdt' .did you mean 'noise_std'"),
        (["augment=monai", "+augment.gibs_alpha=1"], "did you mean 'gibbs_alpha'"),
        (["+evaluate.treshold=1"], "Protocol has no 'treshold' .did you mean 'threshold'"),
        (["+network.chanels=[1]"], "UNet3d has no 'chanels' .did you mean 'channels'"),
        (["+optimizer.learning=1"], "AdamW has no 'learning'; it has lr"),
        (["loss=dice_focal", "loss.dice_wieght=2"], "did you mean 'loss.dice_weight'"),
        (["loss=focl"], "Could not find 'loss/focl'"),
        (["experiment=quikstart"], "Available options in 'experiment':.*quickstart"),
    ],
    ids=str,
)
def test_an_unknown_name_is_refused_and_the_near_one_told(overrides, match):
    refuse(f"(?s){match}", *overrides)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("~loss.gamma", "loss: medfocal.losses.FocalLoss needs gamma to be stated"),
        ("~augment.scaling", "augment: .* needs scaling to be stated"),
        ("~evaluate.level", "evaluate: .* needs level to be stated"),
        ("~seed", "seed must be stated and was removed"),
        ("~loss", "loss must be given"),
        ("~loss._target_", "loss: the _target_ None is not allowed"),
        ("transforms=null", "got NoneType, in: .*transforms=null"),
        ("augment=null", "got NoneType, in: .*augment=null"),
        ("loss=null", "got NoneType, in: .*loss=null"),
        ("loss.gamma=???", "loss.gamma must be given"),
    ],
)
def test_a_name_that_is_not_stated_is_refused(override, match):
    refuse(f"(?i){match}", override)


@pytest.mark.parametrize(("verb", "missing"), [("predict", "input, model, output"), ("phantom", "output")])
def test_what_must_be_given_is_named(verb, missing):
    refuse(rf"^{missing} must be given", verb=verb)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("seed=abc", "seed=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("trainer.max_epochs=1.5", "Value '1.5' of type 'float' could not be converted to Integer"),
        ("trainer.max_epochs=null", "not Optional"),
        ("debug=perhaps", "could not be converted to bool|not a valid bool"),
        ("sampling.patch_size=32", "sampling.patch_size=32"),
        ("loss.gamma=abc", r"loss.gamma: medfocal.losses.FocalLoss takes float . Sequence.float., got 'abc'"),
        ("loss.gamma=null", r"loss.gamma: medfocal.losses.FocalLoss takes float . Sequence.float., got None"),
        ("loss.gamma=true", r"loss.gamma: medfocal.losses.FocalLoss takes float . Sequence.float., got True"),
        ("loss.alpha=[a]", "loss.alpha: medfocal.losses.FocalLoss takes float | .*, got .'a'."),
        ("loss.ignore_index=1.5", "loss.ignore_index: .* takes int . None, got 1.5"),
        ("optimizer.lr=fast", "optimizer.lr: torch.optim.AdamW takes float .* got 'fast'"),
        ("transforms.spacing_mm=1", "transforms.spacing_mm: .* got 1"),
        ("transforms.orientation=5", "transforms.orientation: .* takes str, got 5"),
        ("network.channels=[8,16,32.5]", "network.channels: .* got .8, 16, 32.5"),
        ("evaluate.false_positive_rates=5", "evaluate.false_positive_rates: .* got 5"),
        ("loss.label_smoothing=${nowhere}", "Interpolation key 'nowhere' not found"),
    ],
)
def test_a_value_of_another_type_is_refused(override, match):
    refuse(match, override)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("seed=-1", "seed must be 0 or more, got -1"),
        ("loss.gamma=-1", "loss: gamma must be .*got -1"),
        ("loss.alpha=1.5", "loss: alpha .*1.5"),
        ("loss.activation=relu", "loss: .*relu"),
        ("loss.label_smoothing=1", "loss: label_smoothing must be in .0, 1., got 1"),
        ("schedule.warmup_share=1", "schedule: warmup_share must be in .0, 1., got 1"),
        ("optimizer.lr=-0.5", "optimizer: .*-0.5"),
        ("network.norm=layer", "network: norm must be .*got 'layer'"),
        ("network.channels=[8]", "network: channels must name at least 3 levels, got .8."),
        ("network.dropout=1", "network: dropout must be .*got 1"),
        ("network.deep_supervision=2", "network: deep_supervision must be in 0..1, .* of 3, got 2"),
        ("sampling.lesion_fraction=1.5", "sampling: lesion_fraction must be in .0, 1., got 1.5"),
        (
            "sampling.transplant_probability=1",
            "sampling: transplant_probability must be in .0, 1., got 1.0: .* would never end",
        ),
        ("sampling.transplant_probability=-0.5", "sampling: transplant_probability must be in .0, 1., got -0.5"),
        ("sampling.patch_size=[32,32]", "sampling: patch_size must be three positive numbers, got .32, 32."),
        ("sampling.patch_size=[32,32,-8]", "sampling: patch_size must be three positive numbers"),
        (
            "sampling.patch_size=[30,32,31]",
            r"sampling.patch_size: .*multiple of the divisor .*got \(30, 32, 31",
        ),
        ("transforms.orientation=RAX", "transforms: orientation .*'RAX'"),
        ("transforms.spacing_mm=[1,1,0]", "transforms: spacing_mm must be three positive numbers"),
        ("transforms.intensity=loud", "transforms: 'loud'"),
        ("augment.mirror_probability=2", "augment: mirror_probability must be in .0, 1., got 2"),
        ("augment.scaling=[1.2,0.9]", "augment: scaling must be two rising numbers in .*got .1.2, 0.9."),
        ("augment.mirror_axes=[3]", "augment: mirror_axes must be some of 0, 1 and 2"),
        ("trainer.max_epochs=0", "trainer: max_epochs must be at least 1, got 0"),
        ("trainer.window_overlap=1", "trainer: overlap must be in .0, 1., got 1"),
        ("trainer.precision=fp8", "trainer: precision must be one of auto, bf16, fp16, float32, got 'fp8'"),
        ("evaluate.level=1", "evaluate: level must be in .0, 1., got 1"),
        ("evaluate.confidence=mean", "evaluate: confidence must be one of .*'mean'"),
        ("evaluate.connectivity=8", "evaluate: connectivity must be one of .*got 8"),
        ("run.id=../elsewhere", "run.id becomes the name of a folder, so '../elsewhere' cannot be one"),
        ("run.id=..", "run.id becomes the name of a folder"),
        ("run.id=''", "run.id becomes the name of a folder"),
    ],
)
def test_a_value_out_of_range_is_refused(override, match):
    refuse(match, override)


def test_a_threshold_of_prediction_lies_between_0_and_1():
    refuse("threshold must be in .0, 1., got 1.5", "model=m", "input=i", "output=o", "threshold=1.5", verb="predict")


def test_a_negative_number_of_pictures_is_refused():
    refuse("max_pictures must be 0 or more, got -1", "output=o", "max_pictures=-1", verb="evaluate")


def test_a_patch_of_any_size_is_checked_without_the_memory_for_it():
    config.check(config.compose("train", [*TRAIN, "sampling.patch_size=[1000,1000,1000]"]))


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.launcher._target_=conf_canary.sing"],
        ["-m", "hydra.launcher._target_=conf_canary.sing"],
        ["-m", "hydra.sweeper._target_=conf_canary.sing"],
        ["-m", "+hydra.callbacks.one={_target_:conf_canary.sing}"],
        ["-m", "++hydra.callbacks={one:{_target_:conf_canary.sing}}"],
        ["-m", "hydra.launcher._target_=conf_canary.sing,conf_canary.sing"],
        ["-m", "+bird={_target_:conf_canary.sing}", "+hydra.callbacks.one=${bird}"],
        ["-m", "+bird=conf_canary.sing", "hydra.launcher._target_=${bird}"],
        ["-m", "hydra.searchpath=[file://NEST]", "+bird=one"],
        ["--cfg", "job", "hydra.searchpath=[file://NEST]", "+bird=two"],
        ["--config-dir", "NEST"],
        ["--config-name", "train"],
        ["-cn", "train"],
        ["--config-path", "NEST"],
        ["--experimental-rerun", "NEST/one.pickle"],
    ],
    ids=" ".join,
)
def test_hydra_itself_calls_nothing_else(words, tmp_path, monkeypatch):
    nest, song = tmp_path / "nest" / "bird", tmp_path / "song"
    nest.mkdir(parents=True)
    (nest / "one.yaml").write_text("# @package hydra.callbacks.one\n_target_: conf_canary.sing\n")
    (nest / "two.yaml").write_text('# @package hydra.job_logging.handlers.two\n"()": conf_canary.sing\n')
    monkeypatch.setenv("CANARY", str(song))
    ended = run("info", *[word.replace("NEST", str(nest.parent)) for word in words], folder=tmp_path)
    assert_refused(ended, 2)
    assert not song.exists()


@pytest.mark.parametrize(
    ("message", "overrides"),
    [
        (
            r"smoothing \(SVLS\) and loss.label_smoothing \(0.1\) would smooth",
            ["smoothing=svls", "loss.label_smoothing=0.1"],
        ),
        (
            r"loss.label_smoothing \(0.1\) and annotations.estimate_smoothing would smooth the labels twice",
            ["annotations=random", "annotations.estimate_smoothing=true", "loss.label_smoothing=0.1"],
        ),
        (
            "DiceLoss has no label_smoothing for the readers' rates",
            ["annotations=random", "annotations.estimate_smoothing=true", "loss=dice"],
        ),
        (
            "annotations: estimate_smoothing=true does not go with fusion='mean'",
            ["annotations=mean", "annotations.estimate_smoothing=true"],
        ),
        ("annotations: .*'consensus'", ["annotations.fusion=consensus"]),
        ("annotations: disagreement must be one of", ["annotations.disagreement=drop"]),
        ("smoothing: width_mm", ["smoothing=soft_boundary", "smoothing.width_mm=0"]),
        ("SVLS has no 'sgima'", ["smoothing=svls", "+smoothing.sgima=1"]),
    ],
)
def test_label_options_that_contradict_each_other_are_refused(message, overrides):
    refuse(message, *overrides)


def test_rates_of_0_smooth_nothing():
    config.check(config.compose("train", [*TRAIN, "smoothing=svls", "loss.label_smoothing={fg: 0, bg: 0}"]))
