"""The section of the report on readers, from marks in bars whose answer is counted by hand."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest
from lesion_cases import AFFINE, bar, fill

from medfocal.evaluate import Reader, compare_readers, evaluate_case, evaluate_cases, write_evaluation
from medfocal.evaluate.pairs import Pair
from medfocal.files import plain
from medfocal.report import write_report
from medfocal.report.readers import draw_readers, reader_lines
from medfocal.volume import Volume, write_volume

EMPTY = np.zeros((12, 10, 8), bool)


@pytest.fixture
def evaluation(tmp_path):
    """A marks two lesions, `<b>B</b>` one of them and one more, the model what A marks; all in one case."""
    marks = {"A": [bar(1, 3), bar(5, 7)], "<b>B</b>": [bar(1, 3), bar(9, 11)], "model": [bar(1, 3), bar(5, 7)]}
    files = {name: tmp_path / f"{number}.nii.gz" for number, name in enumerate(marks)}
    for name, path in files.items():
        write_volume(path, Volume(fill([(box, 1) for box in marks[name]]).astype(np.uint8), AFFINE))
    pairs = [Pair("a", "p", files["A"], files["model"])]
    readers = [Reader(name, f"{name}/place", {"a": files[name]}) for name in ("A", "<b>B</b>")]
    found = evaluate_cases([evaluate_case(EMPTY, EMPTY, AFFINE, case="a")])
    return replace(found, readers=compare_readers(pairs, readers))


def section(path):
    """Text of the section and the text of its rows."""
    source = path.read_text("utf-8").split('<section id="readers"')[1].split("</section>")[0]
    rows = [
        re.sub(r"<[^>]*>", " ", row) for row in re.findall(r"<tr>(.*?)</tr>", source.split("<tbody>")[1], re.DOTALL)
    ]

    def tidy(text):
        return re.sub(r"\s+", " ", html.unescape(text)).replace("\u00a0", " ").strip()

    return tidy(re.sub(r"<[^>]*>", " ", "<" + source)), [tidy(row) for row in rows]


def report(evaluation, folder):
    return write_report(folder / "r.html", title="t", evaluation=evaluation, images=lambda _: None)


def test_each_reader_is_followed_by_the_model_judged_by_the_same_marks(evaluation, tmp_path):
    text, rows = section(report(evaluation, tmp_path))
    assert [" ".join(row.split()[:5]) for row in rows] == [
        "A the others 1 1",
        "model all but A 1",
        "<b>B</b> the others 1 1",
        "model all but <b>B</b> 1",
        "model A alone 1 2",
        "model <b>B</b> alone 1 1",
        "model all readers 1 1",
    ]
    assert "1 of 2 50 % (1 % to 99 %)" in rows[0]
    assert "2 of 2 100 %" in rows[3]
    assert "Readers, each by the marks of the others, find 50 % of the lesions at 1.00 false candidates" in text
    assert "The model, by the same marks, finds 50 % to 100 % at 0.00 to 1.00 false candidates" in text


def test_names_of_readers_are_shown_and_never_obeyed(evaluation, tmp_path):
    assert "<b>" not in report(evaluation, tmp_path).read_text("utf-8")


def test_a_written_folder_gives_the_same_section(evaluation, tmp_path):
    direct = section(report(evaluation, tmp_path))
    write_evaluation(evaluation, tmp_path / "o")
    assert section(report(tmp_path / "o", tmp_path)) == direct


def test_without_readers_there_is_no_section_and_no_link_to_it(evaluation, tmp_path):
    page = report(replace(evaluation, readers=None), tmp_path).read_text("utf-8")
    assert "#readers" not in page
    assert 'id="readers"' not in page


def test_what_is_undefined_points_to_the_reason(evaluation, tmp_path):
    comparisons = [
        replace(c, lesion_sensitivity=replace(c.lesion_sensitivity, value=float("nan"))) if not c.reader else c
        for c in evaluation.readers.comparisons
    ]
    found = compare_readers([], [Reader("A", "A", {}), Reader("B", "B", {})])
    study = replace(evaluation.readers, comparisons=[*comparisons[:-1], *found.comparisons[:1]])
    page = report(replace(evaluation, readers=study), tmp_path).read_text("utf-8")
    notes = dict(re.findall(r'<li id="undefined-(\d+)">(.*?)</li>', page))
    (number,) = [n for n, text in notes.items() if "no case was read by this reader and by another" in text]
    assert f'href="#undefined-{number}"' in page
    assert "A, by the marks of the others" in notes[number]


def test_the_picture_is_drawn_for_light_and_dark_pages_and_says_what_it_shows(evaluation):
    drawing = draw_readers(plain(evaluation.readers.to_dict()))
    assert drawing.light != drawing.dark
    assert drawing.light.startswith("data:image/svg+xml;base64,")
    assert "lesion sensitivity" in drawing.words


def test_lines_for_the_terminal_hold_the_bar_and_the_model(evaluation):
    lines = reader_lines(evaluation.readers)
    assert list(lines) == [
        "A, by the others",
        "model, by all but A",
        "<b>B</b>, by the others",
        "model, by all but <b>B</b>",
        "model, by all readers",
    ]
    assert lines["A, by the others"].startswith(
        "sensitivity 0.50 (0.01 to 0.99), precision 0.50 (0.01 to 0.99), 1.00 ("
    )
    nothing = reader_lines(compare_readers([], [Reader("A", "A", {}), Reader("B", "B", {})]))
    assert set(nothing.values()) == {
        "sensitivity undefined, precision undefined, undefined FP per case, voxel Dice undefined"
    }
