"""Every file in conf/ is composed, checked and built; none is forgotten."""

import functools
import inspect
import json
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from medfocal import config
from medfocal.annotations.corrupt import Corruption
from medfocal.annotations.target import AnnotationSettings
from medfocal.data.formats import read_dataset
from medfocal.data.transforms import Preprocessing
from medfocal.evaluate import Protocol
from medfocal.infer.window import choose_device

CONF = config.conf_directory()
FILES = {path.relative_to(CONF) for path in CONF.rglob("*") if path.is_file()}
DATASETS = sorted(path for path in FILES if path.parts[0] == "datasets")
NEEDED = {
    "train": ["data.dataset=d.json"],
    "predict": ["model=m", "input=i", "output=o"],
    "evaluate": ["output=o"],
    "compare": ["reference=r", "a=a", "b=b", "output=o"],
    "phantom": ["output=o"],
    "check": ["data.dataset=d.json"],
    "plan": ["data.dataset=d.json", "output=o"],
    "suspect": ["output=o"],
    "calibrate": ["model=m", "data.dataset=d.json", "output=o"],
    "summarize": ["runs=r"],
    "export": ["model=m", "format=onnx", "output=o.onnx"],
    "info": [],
}
# The groups that other verbs than train have too are chosen in these as well.
SHARED = {"paths": [(verb, "paths") for verb in config.VERBS]}

# Groups that train has not, or under another name.
OTHERS = {
    "corruption": [("phantom", "corruption")],
    "protocol": [("train", "protocol@evaluate"), ("evaluate", "protocol"), ("compare", "protocol")],
}


def compositions():
    """Verb and overrides: each verb as it is, and each file of each group in a verb that has the group."""
    for verb in config.VERBS:
        yield verb, NEEDED[verb]
    for path in sorted(FILES):
        if path.suffix != ".yaml" or len(path.parts) == 1:
            continue
        group, choice = path.parent.as_posix(), path.stem
        for verb, key in OTHERS.get(group, [("train", group), *SHARED.get(group, [])]):
            extra = ["data.root=r"] if group == "experiment" and choice != "quickstart" else []
            extra += NEEDED[verb] if group != "experiment" else []
            yield verb, [f"{key}={choice}", *extra]


def names(pair):
    return "-".join([pair[0], *pair[1][:1]])


ALL = list(compositions())
opened = set()
listening = False


def _note(event, arguments):
    if listening and event == "open" and isinstance(arguments[0], str):
        opened.add(arguments[0])


sys.addaudithook(_note)


@functools.cache
def composed(verb, *overrides):
    """The configuration; which files were opened for it is noted."""
    global listening  # noqa: PLW0603  an audit hook cannot be taken away, so it must be told when to listen
    listening = True
    try:
        return config.compose(verb, overrides)
    finally:
        listening = False


def test_every_file_of_conf_is_read_by_one_of_these_tests(tmp_path):
    for verb, overrides in ALL:
        composed(verb, *overrides)
    reached = {path for path in FILES if str(CONF / path) in opened}
    reached |= {path for path in FILES if path.suffix == ".sbatch"}  # tests/clusters starts them
    reached |= {read_shipped_dataset(path, tmp_path).path.relative_to(CONF) for path in DATASETS}
    assert len(reached) == len(FILES), f"not reached: {sorted(map(str, FILES - reached))}"


def read_shipped_dataset(path, root):
    """Read a manifest of public data, with empty files in place of the images."""
    content = json.loads((CONF / path).read_text("utf-8"))
    for entry in (entry for split in ("training", "validation", "test") for entry in content[split]):
        for name in (entry["image"], entry["label"]):
            (root / name).touch()
    return read_dataset(CONF / path, root=root)


@pytest.mark.parametrize("pair", ALL, ids=names)
def test_it_is_checked_and_built(pair):
    values = config.check(composed(pair[0], *pair[1]))
    if pair[0] == "evaluate":
        assert isinstance(config.construct("protocol", values["protocol"]), Protocol)
    if pair[0] == "phantom":
        corruption = config.build("corruption", values["corruption"])
        assert isinstance(corruption, Corruption)
        assert set(corruption.describe()) - {"kind"} == set(values["corruption"]) - {"_target_"}
    if pair[0] != "train":
        return
    loss = config.build("loss", values["loss"])
    assert torch.isfinite(loss(torch.zeros(1, 2, 4, 3, 2), torch.ones(1, 4, 3, 2, dtype=torch.long)))
    network = config.build("network", values["network"])(in_channels=1, out_channels=2)
    optimizer = config.build("optimizer", values["optimizer"])(network.parameters())
    assert optimizer.param_groups[0]["lr"] > 0
    assert 0 <= config.build("schedule", values["schedule"])(0.5) <= 1
    assert isinstance(config.construct("annotations", values["annotations"]), AnnotationSettings)
    label = np.zeros((4, 3, 2), np.uint8)
    smoothing = config.build("smoothing", values["smoothing"])
    shares = smoothing(label, num_classes=2, spacing_mm=(1, 1, 1), image=np.zeros((1, 4, 3, 2), np.float32))
    assert np.allclose(shares.sum(axis=0), 1)
    assert isinstance(config.construct("transforms", values["transforms"]), Preprocessing)
    assert_augments(config.build("augment", values["augment"]))
    assert isinstance(config.construct("evaluate", values["evaluate"]), Protocol)
    assert choose_device(values["device"])


def assert_augments(augment):
    patch_size, spacing_mm = (6, 6, 4), (1.0, 1.0, 1.0)
    augment.check(patch_size, {"s1": spacing_mm})
    size = augment.input_size(patch_size, [spacing_mm])
    batch = {"image": torch.rand(2, 1, *size), "label": torch.ones(2, 1, *size, dtype=torch.uint8)}
    changed = augment(batch, seeds=[1, 2], spacing_mm=[spacing_mm] * 2, patch_size=patch_size)
    assert {key: (values.shape, values.dtype) for key, values in changed.items()} == {
        "image": ((2, 1, *patch_size), torch.float32),
        "label": ((2, 1, *patch_size), torch.uint8),
    }


@pytest.mark.parametrize("pair", [pair for pair in ALL if pair[0] == "train"], ids=names)
def test_the_yaml_names_exactly_the_arguments_of_its_constructor(pair):
    values = OmegaConf.to_container(composed(pair[0], *pair[1]))
    for group in ("loss", "network", "schedule", "smoothing", "augment", "tracking"):
        target = config.resolve_target(group, values[group])
        wanted = set(inspect.signature(target).parameters) - {"in_channels", "out_channels"}
        assert set(values[group]) - {"_target_"} == wanted
    assert set(values["annotations"]) == set(inspect.signature(AnnotationSettings).parameters)
    assert set(values["transforms"]) == set(inspect.signature(Preprocessing).parameters)
    assert set(values["evaluate"]) == set(inspect.signature(Protocol).parameters)


@pytest.mark.parametrize("path", DATASETS, ids=str)
def test_a_shipped_dataset_can_be_read_and_leaves_a_test_split(path, tmp_path):
    manifest = read_shipped_dataset(path, tmp_path)
    assert manifest.split("training")
    assert manifest.split("test")


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES if path.parts[0] == "experiment"))
def test_an_experiment_opens_with_its_question_and_wins_over_the_groups(name):
    path = CONF / "experiment" / f"{name}.yaml"
    assert "?" in path.read_text("utf-8").split("defaults:")[0]
    stated = OmegaConf.load(path)
    composed_values = OmegaConf.to_container(composed("train", f"experiment={name}"))
    assert stated.experiment == name
    del stated["defaults"]
    assert OmegaConf.to_container(OmegaConf.merge(composed_values, stated)) == composed_values


@pytest.mark.parametrize(
    ("overrides", "lesion_fraction", "transplant_probability"),
    [
        (["data.dataset=d.json"], 0.5, 0.0),
        (["data.dataset=d.json", "sampling=anywhere"], 0.0, 0.0),
        (["experiment=quickstart"], 0.5, 0.5),
    ],
    ids=str,
)
def test_lesions_are_transplanted_where_it_is_asked_for(overrides, lesion_fraction, transplant_probability):
    sampling = composed("train", *overrides).sampling
    assert sampling.lesion_fraction == lesion_fraction
    assert sampling.transplant_probability == transplant_probability


def test_every_verb_has_a_schema_a_file_and_a_function():
    from medfocal.cli import DESCRIPTION, FUNCTIONS

    roots = {path.stem for path in FILES if len(path.parts) == 1} - {"common"}
    assert set(config.VERBS) == roots == set(config.SCHEMAS) == set(FUNCTIONS)
    assert all(f"\n  {verb} " in DESCRIPTION for verb in config.VERBS)
