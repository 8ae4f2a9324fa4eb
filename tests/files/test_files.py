"""A reader sees the old content or the new; nothing half-written stays behind."""

from __future__ import annotations

import csv
import json
import os
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from medfocal.errors import ResourceError
from medfocal.files import atomic_write, make_folder, write_csv, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class HaltError(Exception):
    """Stands for whatever stops a writer."""


def test_the_old_content_stays_when_the_writer_stops_half_way(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(HaltError), atomic_write(path) as file:  # noqa: PT012  the writer is what stops
        file.write("half")
        file.flush()
        assert path.read_text() == "old"
        raise HaltError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_is_utf_8_and_lines_end_as_written(tmp_path):
    with atomic_write(tmp_path / "deep" / "er" / "a.txt") as file:
        file.write("µ\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == b"\xc2\xb5\n"


def test_a_result_is_as_readable_as_any_file_of_the_user(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_write(tmp_path / "ours", "wb") as file:
        file.write(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_in_the_way_of_the_folder_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deeper" / "a.txt"):
        with pytest.raises(ResourceError, match=r"cannot make the folder .*Choose another"), atomic_write(path):
            pytest.fail("nothing may be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_the_way_of_the_file_is_a_resource_error(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ResourceError, match=r"cannot write '.*a\.txt'"), atomic_write(tmp_path / "a.txt") as file:
        file.write("new")
    assert names(tmp_path) == ["a.txt"]


def test_a_name_too_long_for_the_disk_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match="File name too long"), atomic_write(tmp_path / ("n" * 250)):
        pytest.fail("nothing may be written")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_a_resource_error(tmp_path):
    full = Path("/dev/full").open("w")  # noqa: SIM115  closed below
    with pytest.raises(ResourceError, match="No space left"), atomic_write(tmp_path / "a.txt") as file:  # noqa: PT012
        os.dup2(full.fileno(), file.fileno())
        file.write("new")
    full.close()
    assert names(tmp_path) == []


def test_an_error_of_another_file_passes_through_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "elsewhere").read_text()
    assert names(tmp_path) == []


def test_make_folder_returns_an_existing_folder_and_refuses_a_file(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot make the folder"):
        make_folder(tmp_path / "file")


class Word(StrEnum):
    HELLO = "hello"


def test_json_is_strict_and_undefined_is_null(tmp_path):
    value = {
        "rate": np.float64("nan"),
        "far": -np.inf,
        "count": np.int64(3),
        "flag": np.bool_(True),
        "table": np.array([[1.5, np.nan]], np.float32),
        "path": Path("a/b"),
        "word": Word.HELLO,
        7: (1, None, {"µ"}),
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert json.loads(text) == {
        "rate": None, "far": None, "count": 3, "flag": True, "table": [[1.5, None]], "path": "a/b", "word": "hello",
        "7": [1, None, ["µ"]],
    }  # fmt: skip


def test_a_file_name_that_is_no_text_is_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.nii")
    write_json(tmp_path / "a.json", {"image": Path(name)})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"image": name}


def test_what_json_does_not_know_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert names(tmp_path) == []


def test_csv_has_empty_cells_lower_case_truth_and_quotes(tmp_path):
    rows = [
        {"case": 'a,"b"', "rate": np.nan, "hit": np.bool_(True), "n": np.int64(2)},
        {"case": "c", "rate": 0.1, "hit": False},
    ]
    write_csv(tmp_path / "a.csv", rows, ("case", "rate", "hit", "n"))
    assert (tmp_path / "a.csv").read_bytes() == b'case,rate,hit,n\n"a,""b""",,true,2\nc,0.1,false,\n'


def test_csv_without_rows_has_its_columns(tmp_path):
    write_csv(tmp_path / "a.csv", [], ("case", "rate"))
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["case", "rate"]]


def test_a_key_that_is_no_column_is_a_bug_of_ours(tmp_path):
    with pytest.raises(ValueError, match="extra"):
        write_csv(tmp_path / "a.csv", [{"extra": 1}], ("case",))
