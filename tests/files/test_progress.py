"""Progress: every item once, in order, whatever shows it."""

from __future__ import annotations

import io
import sys

import pytest

from medfocal import progress
from medfocal.progress import say, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_items_come_in_order_and_a_short_run_says_nothing(capsys):
    assert list(track(["a", "b", "c"], "read")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_elsewhere_than_on_a_terminal_lines_tell_how_far(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(track((n for n in range(3)), "read", total=3)) == [0, 1, 2]
    assert capsys.readouterr().err == "read: 1 of 3\nread: 2 of 3\n"


def test_on_a_terminal_a_bar_is_shown(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(track([1, 2], "read")) == [1, 2]
    assert "read" in terminal.getvalue()


@pytest.mark.parametrize("tty", [True, False])
def test_nothing_to_do_is_no_error(monkeypatch, tty):
    monkeypatch.setattr(sys, "stderr", Terminal() if tty else io.StringIO())
    assert list(track([], "read")) == []


def test_say_prints_one_line(capsys):
    say("the report is 'a'")
    assert capsys.readouterr().out == "the report is 'a'\n"
