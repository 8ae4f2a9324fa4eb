from dataclasses import fields, replace

import hydra
import pytest
from omegaconf import OmegaConf
from tables import named

from medfocal.config import conf_directory
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol

NAMES = sorted(path.stem for path in (conf_directory() / "protocol").glob("*.yaml"))
WANTED = (
    *("any_overlap", "autopet3", "brats2023_gli", "brats2023_met", "brats_met_20mm3", "camelyon"),
    *("isles22", "lesion_metrics", "luna16", "msseg", "panoptica_iou50", "picai"),
)
FIELDS = [field.name for field in fields(Protocol)]


def test_these_protocols_have_names():
    assert tuple(NAMES) == WANTED


@pytest.mark.parametrize("name", NAMES)
def test_every_file_states_every_rule_under_its_own_name(name):
    with hydra.initialize_config_dir(str(conf_directory()), version_base="1.3"):
        stated = OmegaConf.to_container(hydra.compose(f"protocol/{name}"))["protocol"]
    assert sorted(stated) == sorted(FIELDS)
    assert Protocol(**stated).name == name


def test_any_overlap_is_the_default_of_python_too():
    assert named("any_overlap") == ANY_OVERLAP


@pytest.mark.parametrize("name", [name for name in NAMES if name != "any_overlap"])
def test_every_other_protocol_names_its_source(name):
    comment = (conf_directory() / "protocol" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert comment.startswith("#")
    assert any(mark in comment for mark in ("commit ", "0.1.12", "1.4.13", "2.1.7", ".py")), comment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hit_rule": "iuo"}, r"hit_rule must be one of .*'iou'.*, got 'iuo'"),
        ({"assignment": "hungarian"}, r"assignment must be one of .*, got 'hungarian'"),
        ({"duplicates": "true"}, r"duplicates must be one of \('false', 'ignored'\), got 'true'"),
        ({"connectivity": 8}, r"connectivity must be one of \(6, 18, 26\), got 8"),
        ({"threshold": 1.1}, r"threshold must be in \[0, 1\], got 1.1"),
        ({"max_ignored_share": -0.1}, r"max_ignored_share must be in \[0, 1\], got -0.1"),
        ({"extent_ratio": 1}, r"extent_ratio must be in \(0, 1\), got 1"),
        ({"floor": 0}, r"floor must be in \(0, 1\], got 0"),
        ({"level": 1}, r"level must be in \(0, 1\), got 1"),
        ({"tolerance_mm": 0}, "tolerance_mm must be above 0, got 0"),
        ({"min_diameter_mm": -1}, "min_diameter_mm must be 0 or more, got -1"),
        ({"reference_dilation": -1}, "reference_dilation must be 0 or more, got -1"),
        ({"hit_rule": "iou", "hit_threshold": 1.5}, r"hit_threshold must be in \[0, 1\] for hit_rule=iou, got 1.5"),
        ({"hit_rule": "centroid_distance"}, "hit_threshold must be above 0 for hit_rule=centroid_distance, got 0"),
        ({"hit_threshold": 0.1}, "hit_rule=any_overlap has no hit_threshold, got 0.1"),
        ({"hit_rule": "dilated_overlap"}, "dilated_overlap needs reference_dilation above 0, got 0"),
        ({"hit_rule": "covered_together"}, "covered_together needs assignment=many_to_many, got one_to_one_surest"),
        (
            {"hit_rule": "covered_together", "assignment": "many_to_many"},
            "covered_together needs candidates=threshold, got own_height",
        ),
        ({"duplicates": "ignored", "assignment": "many_to_many"}, "duplicates=ignored has no effect with"),
        ({"outside_share": 0.7}, "outside_share is for hit_rule=covered_together only, got 0.7"),
        ({"contributing_share": 0.7}, "contributing_share is for hit_rule=covered_together only, got 0.7"),
        ({"small_hit_threshold": 0.1}, "small_hit_threshold has no effect without small_volume_mm3"),
        ({"diameter_edges_mm": (5, 3)}, r"diameter_edges_mm must be positive and rising, got \(5, 3\)"),
        ({"false_positive_rates": ()}, r"false_positive_rates must be positive and rising, got \(\)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_rules_that_make_no_sense_are_refused_with_their_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**changes)


def test_the_threshold_shapes_candidates_only_where_it_cuts():
    assert "threshold" not in ANY_OVERLAP.shaping()
    assert replace(ANY_OVERLAP, candidates="threshold", threshold=0.3).shaping()["threshold"] == 0.3


@pytest.mark.parametrize("name", [*ANY_OVERLAP.shaping(), "candidates"])
def test_every_shaping_rule_is_told_apart(name):
    other = {
        "connectivity": 6,
        "candidates": "threshold",
        "extent_ratio": 0.4,
        "floor": 0.1,
        "confidence": "mean_top",
        "reference_dilation": 1,
    }
    assert replace(ANY_OVERLAP, **{name: other[name]}).shaping() != ANY_OVERLAP.shaping()


def test_rules_can_be_printed_and_read_again():
    values = named("camelyon").to_dict()
    assert values["false_positive_rates"] == [0.25, 0.5, 1, 2, 4, 8]
    assert Protocol(**values) == named("camelyon")
