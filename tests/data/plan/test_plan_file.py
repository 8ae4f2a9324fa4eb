"""A plan is written with its reasons, and read back as plain settings only."""

import pytest
from omegaconf import OmegaConf

from medfocal.data.plan.file import LINE_LENGTH, MOST_BYTES, read_plan, write_plan
from medfocal.data.plan.proposal import Proposal
from medfocal.errors import ConfigError

PROPOSALS = (
    Proposal("transforms.spacing_mm", None, "all share it"),
    Proposal("transforms.orientation", "RAS", "always"),
    Proposal("sampling.patch_size", [32, 24, 16], "as large as fits; " * 20),
    Proposal("trainer.prior_bias", value=True, reason="rare"),
    Proposal("loss.gamma", 1.0, "mild"),
    Proposal("transforms.intensity", "zscore_nonzero", "no CT"),
    Proposal("network.strides", [[1, 1, 1], [2, 2, 1]], "unequal"),
    Proposal("evaluate.min_volume_mm3", 2.5e-05, "specks"),
)
DATA = {"dataset": "/a b/Käse: 'x' \"y\" #1.json", "root": None}


def write(path, **changes):
    write_plan(path, PROPOSALS, **({"head": ["One.", "Two."], "data": DATA} | changes))
    return path


def test_what_is_written_is_read_back(tmp_path):
    found = read_plan(write(tmp_path / "plan.yaml"))
    wanted = {proposal.key: proposal.value for proposal in PROPOSALS}
    assert found == {"data.dataset": DATA["dataset"], "data.root": None} | wanted
    assert isinstance(found["loss.gamma"], float)


def test_each_value_has_its_reason_above_it_and_groups_stand_together(tmp_path):
    lines = write(tmp_path / "plan.yaml").read_text("utf-8").splitlines()
    assert lines[:2] == ["# One.", "# Two."]
    assert lines[lines.index("transforms:") :][:7] == [
        "transforms:",
        "  # all share it",
        "  spacing_mm: null",
        "  # always",
        '  orientation: "RAS"',
        "  # no CT",
        '  intensity: "zscore_nonzero"',
    ]
    assert max(map(len, lines)) <= LINE_LENGTH
    assert sum(line.startswith("  # as large") for line in lines) == 1


def test_a_name_out_of_a_dataset_cannot_end_its_comment(tmp_path):
    path = write(tmp_path / "plan.yaml", head=["Proposed for a\nloss:\n  gamma: 9\r\x85\u2028seed: 7\x00"])
    assert read_plan(path)["loss.gamma"] == 1
    assert "seed" not in read_plan(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1\n- 2\n", "holds no settings"),
        ("just text", "cannot be the name of a setting"),
        ("loss: {gamma: 1", "is not YAML"),
        ("loss:\n  gamma: 1\n  gamma: 2\n", "is not YAML"),
        ("loss: {gamma: '${seed}'}", "loss.gamma refers to another value"),
        ("loss: {gamma: ['a', '${oc.env:HOME}']}", "loss.gamma refers to another value"),
        ("a: &x [1]\nb: *x\n", "uses YAML's & and *"),
        ("a: [&x 1, *x]", "uses YAML's & and *"),
        ("loss: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("plan: other.yaml", "names another plan"),
        ("loss: {'ga ma': 1}", "'loss.ga ma' cannot be the name of a setting"),
        ("loss: {1: 1}", "'loss.1' cannot be the name of a setting"),
        ("'loss=x,seed': 1", "cannot be the name of a setting"),
        ("loss: {gamma: [{a: 1}]}", "loss.gamma must be a number"),
        ("loss: {gamma: {}}", "loss.gamma must be a number"),
        ("loss: " + "[" * 3000, "is not YAML"),
        ("#" * (MOST_BYTES + 1), "has 200001 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_plan_is_refused(tmp_path, text, told):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        read_plan(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("make", [None, "folder", "binary"])
def test_what_cannot_be_read_is_refused(tmp_path, make):
    path = tmp_path / "bad.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(path)


def test_what_is_proposed_of_the_data_stands_for_what_was_given(tmp_path):
    proposals = [*PROPOSALS, Proposal("data.num_folds", 5, "no case validates"), Proposal("fold", 0, "the first")]
    path = tmp_path / "plan.yaml"
    write_plan(path, proposals, head=[], data=DATA | {"num_folds": None, "fold": None, "fold_seed": 3})
    found = read_plan(path)
    assert (found["data.num_folds"], found["data.fold_seed"]) == (5, 3)
    assert found["fold"] == 0
    assert "data.fold" not in found  # which would outlast fold=1 on the command line


def test_a_fold_that_was_given_is_that_of_the_training(tmp_path):
    path = tmp_path / "plan.yaml"
    write_plan(path, PROPOSALS, head=[], data=DATA | {"num_folds": 3, "fold": 2})
    assert read_plan(path)["fold"] == 2


def test_a_mapping_is_a_value_where_a_setting_may_have_one(tmp_path):
    path = tmp_path / "plan.yaml"
    classes = {"large tumour": [1, 2], "cyst": 3}
    write_plan(path, PROPOSALS, head=[], data={"classes": classes})
    assert read_plan(path, {"data.classes"})["data.classes"] == classes
    with pytest.raises(ConfigError, match=r"'data\.classes\.large tumour' cannot be the name of a setting"):
        read_plan(path)


def test_an_empty_plan_says_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    for text in ("", "\n", "# only words\n"):
        path.write_text(text)
        assert read_plan(path) == {}


def test_ands_and_stars_in_words_are_no_anchors(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("# &a *b - &c\ndata: {dataset: 'R&D 2 * 3 & x'}\n")
    assert read_plan(path) == {"data.dataset": "R&D 2 * 3 & x"}


def test_the_file_is_yaml_to_others_too(tmp_path):
    assert OmegaConf.load(write(tmp_path / "plan.yaml")).network.strides[1] == [2, 2, 1]
