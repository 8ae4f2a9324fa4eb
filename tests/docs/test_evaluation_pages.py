"""The pages on evaluation name all that is written: every key, column and published figure."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from medfocal.config import conf_directory, named_protocol
from medfocal.evaluate import Evaluation, evaluate_case, judge, published_figures
from medfocal.evaluate.rows import CANDIDATE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text("utf-8")
PROTOCOLS = (DOCS / "protocols.md").read_text("utf-8")
NAMES = sorted(path.stem for path in (conf_directory() / "protocol").glob("*.yaml"))
# A key in the page may leave out the beginning that it shares with the one before it.
NAMED = set(re.findall(r"`…?(\w+)`", PAGE))


def is_named(name):
    return any(name == word or name.endswith(f"false_positives{word}") for word in NAMED)


def test_every_key_of_the_evaluation_is_named():
    rows = {"cases", "lesions", "candidates"}
    assert [field.name for field in fields(Evaluation) if field.name not in rows and not is_named(field.name)] == []


@pytest.mark.parametrize("columns", [CASE_COLUMNS, LESION_COLUMNS, CANDIDATE_COLUMNS])
def test_every_column_of_a_table_is_named(columns):
    assert [name for name in columns if name not in NAMED] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_is_listed_with_the_figures_that_it_publishes(name):
    listed = [line for line in PROTOCOLS.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
    protocol = replace(named_protocol(name), num_resamples=0)
    mask = np.zeros((12, 10, 8), bool)
    mask[2:6, 3:6, 2:5] = True
    outcome = judge(evaluate_case(mask, mask, np.eye(4), case="a", protocol=protocol), protocol)
    figures = list(published_figures([outcome], name))
    assert len(listed) == (2 if figures else 1)
    if figures:
        assert re.findall(r"`(\w+)`", listed[1].split("|")[2]) == figures
