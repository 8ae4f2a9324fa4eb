"""`medfocal plan`, and `medfocal train plan=FILE`."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, assert_refused, run
from omegaconf import OmegaConf
from scipy import ndimage

from medfocal import config
from medfocal.data.plan.file import read_plan
from medfocal.losses import FocalLoss
from medfocal.networks import UNet3d
from medfocal.train.capacity import time_step
from medfocal.volume import Volume, read_volume, write_volume

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def planned(tmp_path_factory, dataset):
    """The command's end and the folder it wrote."""
    folder = tmp_path_factory.mktemp("planned")
    words = ("plan", f"data.dataset={dataset}", "output=out", "memory_gb=4", "budget=quick", "device=cpu")
    return run(*words, folder=folder), folder / "out"


def job(*words, folder):
    """What `train` composes."""
    ended = run("train", *words, "--cfg", "job", folder=folder)
    assert ended.code == 0, ended.err
    return OmegaConf.create(ended.out), ended


def test_a_plan_is_written_and_told(planned, dataset):
    ended, output = planned
    assert (ended.code, ended.err) == (0, "")
    assert sorted(path.name for path in output.iterdir()) == ["fingerprint.json", "plan.json", "plan.yaml"]
    assert "4 cases of" in ended.out
    assert "medfocal train plan=out/plan.yaml takes it" in ended.out
    assert "measured on random patches" in ended.out
    content = json.loads((output / "plan.json").read_text("utf-8"))
    settings = read_plan(output / "plan.yaml")
    assert {proposal["key"]: proposal["value"] for proposal in content["proposals"]}.items() <= settings.items()
    assert content["step"]["seconds"] > 0
    assert content["hours"]["validation"] > 0
    assert settings["data.dataset"] == str(dataset)


def test_every_proposal_fits_the_configuration(planned, tmp_path):
    _, output = planned
    values, _ = job(f"plan={output / 'plan.yaml'}", folder=tmp_path)
    assert values.plan == str(output / "plan.yaml")
    for key, value in read_plan(output / "plan.yaml").items():
        assert OmegaConf.select(values, key) == value
    config.check(config.compose("train", config.plan_overrides(output / "plan.yaml", values, {})[0]))


def test_training_takes_the_plan_and_the_command_line_wins(planned, tmp_path):
    words = [word for word in TINY if not word.startswith("network")]
    ended = run("train", f"plan={planned[1] / 'plan.yaml'}", *words, "run.id=r", "loss.gamma=0.5", folder=tmp_path)
    assert ended.code == 0, ended.err
    values = OmegaConf.load(tmp_path / "runs" / "default" / "r" / "config.yaml")
    assert (values.loss.gamma, values.loss.alpha) == (0.5, 0.75)
    assert values.sampling.patch_size == [16, 16, 16]
    assert values.network.channels == read_plan(planned[1] / "plan.yaml")["network.channels"]


def test_the_plan_works_in_a_sweep(planned, tmp_path):
    words = ("train", "-m", f"plan={planned[1] / 'plan.yaml'}", *TINY, "seed=1,2", "run.id=r${seed}")
    words = (*words, "network.strides=null", "network.kernel_sizes=null", "trainer.window_size=null")
    words = (*words, "trainer.max_epochs=1", "trainer.steps_per_epoch=1")
    ended = run(*words, folder=tmp_path)
    assert ended.code == 0, ended.err
    for seed in (1, 2):
        values = OmegaConf.load(tmp_path / "runs" / "default" / f"r{seed}" / "config.yaml")
        assert (values.seed, values.loss.gamma, values.network.channels) == (seed, 1.0, [4, 8, 16])


@pytest.fixture(scope="module")
def two_classes(dataset, tmp_path_factory):
    """The shared dataset with every other lesion in a second class, and some of each in every training case."""
    folder = shutil.copytree(dataset.parent, tmp_path_factory.mktemp("two") / "data")
    content = json.loads(dataset.read_text("utf-8"))
    content["labels"] = {"0": "background", "1": "plaque", "2": "bleed"}
    for split in ("training", "validation", "test"):
        for entry in content[split]:
            entry.pop("annotations")
            found = read_volume(folder / entry["label"])
            parts, _ = ndimage.label(found.array, np.ones((3, 3, 3)))
            classes = np.where(parts > 0, 1 + parts % 2, 0).astype(np.uint8)
            if split == "training":
                classes[10, 10, 10], classes[10, 14, 10] = 1, 2
            write_volume(folder / entry["label"], Volume(classes, found.affine))
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


@pytest.fixture(scope="module")
def unlabelled(dataset):
    """The shared dataset without the labels of training and validation: their readers are all there is."""
    content = json.loads(dataset.read_text("utf-8"))
    for entry in content["training"] + content["validation"]:
        entry.pop("label")
    path = dataset.with_name("unlabelled.json")
    path.write_text(json.dumps(content))
    return path


def trained_by_its_plan(folder, *data):
    """Plan, take a training step by it, and give the plan and the configuration of the run."""
    ended = run("plan", *data, "output=out", "memory_gb=4", "budget=quick", "device=cpu", folder=folder)
    assert ended.code == 0, ended.err
    assert "measured on random patches" in ended.out
    words = [word for word in TINY if not word.startswith("network")]
    words += ["trainer.max_epochs=1", "trainer.steps_per_epoch=1", "run.id=r"]
    ended = run("train", "plan=out/plan.yaml", *words, folder=folder)
    assert ended.code == 0, ended.err
    return read_plan(folder / "out/plan.yaml", {"data.classes"}), OmegaConf.load(folder / "runs/default/r/config.yaml")


def test_two_lesion_classes_train_by_their_plan(two_classes, tmp_path):
    plan, values = trained_by_its_plan(tmp_path, f"data.dataset={two_classes}")
    assert plan["loss.alpha"] == values.loss.alpha == [0.25, 0.75, 0.75]
    assert values.loss.activation == "softmax"


def test_nested_regions_train_by_their_plan(two_classes, tmp_path):
    regions = "data.classes={whole:[1,2],bleed:[2]}"
    plan, values = trained_by_its_plan(tmp_path, f"data.dataset={two_classes}", regions)
    assert plan["loss.alpha"] == values.loss.alpha == [0.75, 0.75]
    assert plan["loss.activation"] == values.loss.activation == "sigmoid"
    content = json.loads((tmp_path / "out/plan.json").read_text("utf-8"))
    levels = {name: plan[f"network.{name}"] for name in ("channels", "kernel_sizes", "strides")}
    network = UNet3d(in_channels=1, out_channels=2, **levels)
    assert content["num_parameters"] == sum(parameter.numel() for parameter in network.parameters())


def test_cases_with_readers_only_train_by_their_plan(unlabelled, tmp_path):
    plan, values = trained_by_its_plan(tmp_path, f"data.dataset={unlabelled}")
    assert plan["annotations.fusion"] == values.annotations.fusion == "majority"
    _, ended = job("plan=out/plan.yaml", "annotations=staple", folder=tmp_path)
    assert "annotations=staple takes the place of what plan 'out/plan.yaml' says of annotations" in ended.err


class Watched(torch.nn.Module):
    """Focal loss that keeps the shapes it is given."""

    def __init__(self, activation):
        super().__init__()
        self.loss, self.activation, self.shapes = FocalLoss(activation=activation), activation, set()

    def forward(self, logits, target):
        self.shapes.add((tuple(logits.shape), tuple(target.shape)))
        return self.loss(logits, target)


@pytest.mark.parametrize(("activation", "channels"), [("softmax", ()), ("sigmoid", (2,))])
def test_a_step_is_timed_on_targets_such_as_training_has(activation, channels):
    loss = Watched(activation)
    network = functools.partial(UNet3d, channels=[4, 8, 16])
    sizes = {"in_channels": 1, "out_channels": 2, "patch_size": (16, 12, 8), "batch_size": 3}
    found = time_step(network, loss, torch.optim.AdamW, **sizes, device=torch.device("cpu"))
    assert 0 < found.forward_seconds < found.seconds
    assert loss.shapes == {((3, 2, 16, 12, 8), (3, *channels, 16, 12, 8))}


def plan_of(folder, text, name="plan.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return f"plan={name}"


def test_a_plan_wins_over_an_experiment_and_the_command_line_over_both(tmp_path):
    plan = plan_of(tmp_path, "trainer: {batch_size: 3, max_epochs: 7}\n")
    values, _ = job("experiment=quickstart", plan, "trainer.max_epochs=9", folder=tmp_path)
    assert (values.trainer.batch_size, values.trainer.max_epochs, values.trainer.steps_per_epoch) == (3, 9, 100)
    values, _ = job("trainer.max_epochs=9", plan, folder=tmp_path)
    assert values.trainer.max_epochs == 9


def test_a_group_that_is_chosen_takes_the_place_of_what_the_plan_says_of_it(tmp_path):
    plan = plan_of(tmp_path, "loss: {gamma: 0.25}\nevaluate: {min_volume_mm3: 9.0}\nseed: 5\n")
    values, ended = job(plan, "data.dataset=d", "loss=dice", "protocol@evaluate=msseg", folder=tmp_path)
    assert values.loss._target_ == "medfocal.losses.DiceLoss"
    assert values.evaluate.min_volume_mm3 == 3.001
    assert values.seed == 5
    assert "loss=dice takes the place of what plan 'plan.yaml' says of loss\n" in ended.err
    assert "protocol@evaluate=msseg takes the place of what plan 'plan.yaml' says of evaluate\n" in ended.err


TEXTS = [
    "plain",
    "with space",
    "a,b=c:d",
    "quo'te",
    'dou"ble',
    "back\\slash",
    "end\\",
    "mix\\'ed\\\\'",
    "[1,2]",
    "1",
    "null",
]
TEXTS += ["true", "{a: 1}", "Käse ß 雪", "", " edge ", "%$#@!", "~x", "a\tb"]


@pytest.mark.parametrize("value", TEXTS)
def test_texts_come_through_as_they_are(tmp_path, value):
    (tmp_path / "plan.yaml").write_text(json.dumps({"data": {"dataset": value}}))
    overrides, _ = config.plan_overrides(tmp_path / "plan.yaml", config.compose("train"), {})
    assert config.compose("train", overrides).data.dataset == value


CLASSES = {"tumour": [1, 2], "cyst, (old): a=b": 3, "necrosis [x] {y}": 4, "7": 5, "back\\slash": 6}


def test_a_mapping_comes_through_as_it_is(tmp_path):
    (tmp_path / "plan.yaml").write_text(json.dumps({"data": {"classes": CLASSES}}))
    overrides, _ = config.plan_overrides(tmp_path / "plan.yaml", config.compose("train"), {})
    found = OmegaConf.to_container(config.compose("train", overrides).data.classes)
    assert {str(key): value for key, value in found.items()} == CLASSES


VALUES = [0, -1, 2.5e-05, 1e300, True, False, None, [1, 2, 3], [[1, 1], [2, 2]], [], [None, "a,b"]]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_other_values_come_through_as_they_are(tmp_path, value):
    (tmp_path / "plan.yaml").write_text(json.dumps({"network": {"strides": value}}))
    overrides, _ = config.plan_overrides(tmp_path / "plan.yaml", config.compose("train"), {})
    found = config.compose("train", overrides).network.strides
    assert found == value
    assert type(found) is type(value) or isinstance(value, list)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loss: {gama: 1}", "plan 'plan.yaml': there is no setting 'loss.gama' (did you mean 'loss.gamma'?)"),
        ("hydra: {run: {dir: x}}", "there is no setting 'hydra.run.dir'"),
        ("loss: {_target_: os.system}", "'loss._target_' cannot be the name of a setting"),
        ("loss: {gamma: high}", "loss.gamma: medfocal.losses.FocalLoss takes"),
        ("trainer: {max_epochs: many}", "max_epochs"),
        ("defaults: [x]", "there is no setting 'defaults'"),
        ("trainer: {batch_size: 0}", "batch_size must be at least 1"),
        ("loss: {gamma: 1", "is not YAML"),
    ],
    ids=lambda text: text[:30],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path, text, told):
    ended = run("train", plan_of(tmp_path, text), "data.dataset=d.json", folder=tmp_path)
    assert_refused(ended, 2, told)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan=nowhere.yaml"], "plan 'nowhere.yaml' cannot be read: No such file"),
        (["-m", "plan=a.yaml,b.yaml"], "one file for all of a sweep"),
        (["plna=a.yaml"], "no setting 'plna' (did you mean 'plan'?)"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_found_is_refused(words, told, tmp_path):
    assert_refused(run("train", "data.dataset=d.json", *words, folder=tmp_path), 2, told)
    assert list(tmp_path.iterdir()) == []


def test_no_plan_is_no_plan(tmp_path):
    values, _ = job("plan=null", "data.dataset=d.json", folder=tmp_path)
    assert values.plan is None


def test_a_plan_in_an_experiment_is_refused_as_it_would_have_no_effect(tmp_path):
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nexperiment: mine\nplan: other.yaml\n")
    words = [f"hydra.searchpath=[file://{own.parent}]", "experiment=mine", "data.dataset=d.json"]
    assert_refused(run("train", *words, folder=tmp_path), 2, "plan 'other.yaml' stands in an experiment")
    swept = run("train", "-m", *words, folder=tmp_path)
    assert swept.code == 2
    assert "ConfigError: plan 'other.yaml' stands in an experiment" in swept.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["budget=fast"], 2, "budget must be one of quick, standard, got 'fast'"),
        (["memory_gb=0.5"], 2, "memory_gb=0.5 is too little"),
        (["memory_gb=-1"], 2, "memory_gb must be 0 or more"),
        (["output=''"], 2, "output must name a folder"),
        (["device=tpu"], 2, "'tpu'"),
        (["workers=0"], 2, "workers must be 1 or more"),
        (["data.dataset=nowhere.json"], 3, "nowhere.json"),
        (["output=taken"], 5, "'taken'"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_refused(words, code, told, tmp_path, dataset):
    (tmp_path / "taken").write_text("mine")
    given = ["plan", f"data.dataset={dataset}", "output=out", "device=cpu", *words]
    assert_refused(run(*given, folder=tmp_path), code, told)
    assert not (tmp_path / "out" / "plan.yaml").exists()


def test_a_plan_can_be_used_from_another_folder(tmp_path, dataset):
    shutil.copytree(dataset.parent, tmp_path / "my data")
    words = (
        f"data.dataset='my data/{dataset.name}'",
        "data.root='my data'",
        "output=out",
        "device=cpu",
        "budget=quick",
    )
    ended = run("plan", *words, folder=tmp_path)
    assert ended.code == 0, ended.err
    settings = read_plan(tmp_path / "out" / "plan.yaml")
    assert settings["data.root"] == str(tmp_path / "my data")
    (tmp_path / "elsewhere").mkdir()
    values, _ = job("plan=../out/plan.yaml", folder=tmp_path / "elsewhere")
    assert values.data.dataset == str(tmp_path / "my data" / dataset.name)


def test_a_gpu_that_is_elsewhere_is_planned_for_by_its_memory(tmp_path, dataset):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = ["plan", f"data.dataset={dataset}", "output=out", "device=cuda"]
    ended = run(*words, "memory_gb=24", folder=tmp_path)
    assert ended.code == 0, ended.err
    assert "No step was timed" in ended.out
    assert json.loads((tmp_path / "out" / "plan.json").read_text("utf-8"))["step"] is None
    assert read_plan(tmp_path / "out" / "plan.yaml")["network.channels"][0] == 32
    assert_refused(run(*words, folder=tmp_path), 2, "device=cuda: this machine has no GPU to ask; give memory_gb=…")


def test_a_case_that_cannot_be_read_is_named(tmp_path, dataset):
    copy = shutil.copytree(dataset.parent, tmp_path / "copy")
    content = json.loads(dataset.read_text("utf-8"))
    broken = content["training"][0]
    (copy / broken["label"]).write_bytes(b"no gzip")
    ended = run("plan", f"data.dataset={copy / dataset.name}", "output=out", "device=cpu", folder=tmp_path)
    assert_refused(ended, 3, "1 of 4 cases", broken["label"])


@pytest.mark.parametrize("name", ["sts_pet", "ms_flair"])
def test_real_data_needs_no_hand(name, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    words = [f"data.dataset={config.conf_directory() / 'datasets' / name}.json", f"data.root={SHARED / name}"]
    ended = run("plan", *words, "output=out", "budget=quick", "device=cpu", "memory_gb=8", folder=tmp_path)
    assert ended.code == 0, ended.err
    values, _ = job("plan=out/plan.yaml", folder=tmp_path)
    assert config.check(config.compose("train", config.plan_overrides(tmp_path / "out/plan.yaml", values, {})[0]))
    assert (values.transforms.spacing_mm is None) == (name == "ms_flair")
