"""What the README and the pages in docs/ tell users to type must be accepted, and their links must lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from medfocal import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in [
            *re.findall(r"^ *((?:\.venv/bin/)?medfocal .*)$", text, re.MULTILINE),
            *re.findall(r"`(medfocal [^`]+=[^`]+)`", text),
        ]:
            if line.split()[1] in config.VERBS:  # else a line of prose that begins with the name
                words = shlex.split(line, comments=True)
                found[" ".join(words)] = words[1:]
    return found


def test_the_pages_show_every_command():
    assert {words[0] for words in commands().values()} >= {"train", "check", "predict", "evaluate", "info"}


@pytest.mark.parametrize("line", list(commands()))
def test_a_shown_command_is_accepted(line):
    verb, *overrides = commands()[line]
    # A series `key=1,2` is taken at its first value; `-m` itself is Hydra's.
    overrides = [re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in overrides if word != "-m"]
    config.check(config.compose(verb, overrides))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []
