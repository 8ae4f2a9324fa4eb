"""The page of a checked dataset: what is wrong first, pictures of cases, nothing loaded, nothing broken out of."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from medfocal.data.check import Severity, check_dataset
from medfocal.data.formats import read_dataset
from medfocal.data.manifest import Case
from medfocal.report.dataset_page import draw_case, write_dataset_page
from medfocal.volume import Volume, write_volume

sys.path.insert(0, str(Path(__file__).parent.parent / "data" / "check"))
from made_datasets import AFFINE, TWO, annotate, image_of, label_of, make_dataset, write

HOSTILE = "<img src=x onerror='window.pwned=1'>\"'&"
VOID = {"meta", "img", "br", "input", "source"}


class Closing(HTMLParser):
    """Fails on tags that do not close."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def dataset(tmp_path):
    cases = {"sound": ("training", TWO), "free": ("training", []), "late": ("validation", TWO[:3])}
    made = make_dataset(tmp_path, cases)
    affine = AFFINE.copy()
    affine[0, 3] += 5
    write(tmp_path / "late_label.nii.gz", label_of(TWO[:3]), affine)
    return made


def page_of(dataset, **settings):
    report = check_dataset(read_dataset(dataset))
    return report, write_dataset_page(dataset.parent / "page.html", report, **settings).read_text("utf-8")


def text_of(source):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", source)))


def test_errors_come_first_and_each_finding_stands_on_the_page(dataset):
    report, source = page_of(dataset)
    text = text_of(source)
    assert "1 error and 1 warning: training would refuse this dataset" in text
    assert all(text_of(html.escape(finding.message)) in text for finding in report.findings)
    order = re.findall(r'<summary><span class="severity (\w+)">', source)
    assert order == sorted(order, key=["error", "warning", "note"].index)
    assert order[0] == "error"
    assert re.findall(r'<article class="finding" id="case-\d+">\s*<h3>(\w+)', source) == ["late", "free", "sound"]


def test_a_sound_set_is_said_to_be_sound(tmp_path):
    _, source = page_of(make_dataset(tmp_path, {"a": ("training", TWO)}))
    assert "No error and no warning." in source
    assert "Nothing was found." in source


def test_the_page_is_whole_and_loads_nothing(dataset):
    _, source = page_of(dataset)
    page = Closing(source)
    addresses = [attrs.get(name, "") for _, attrs in page.tags for name in ("src", "href", "srcset")]
    assert all(address == "" or address.startswith(("#", "data:")) for address in addresses)
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "iframe"}]
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors


def test_names_cannot_break_out_of_the_page(dataset):
    content = json.loads(dataset.read_text())
    content["training"][0] |= {"case": HOSTILE.replace("/", ""), "patient": HOSTILE}
    content["channel_names"]["0"] = HOSTILE
    content["name"] = HOSTILE
    dataset.write_text(json.dumps(content))
    _, source = page_of(dataset)
    assert "<img src=x" not in source
    assert Closing(source)


def test_pictures_go_through_the_largest_lesion_with_its_outline(tmp_path):
    make_dataset(tmp_path, {"a": ("training", TWO[:1])})
    label = label_of([(9, 7, 6), (9, 6, 6), (8, 6, 6), (2, 2, 2)])
    write(tmp_path / "a_label.nii.gz", label)
    report = check_dataset(read_dataset(tmp_path / "dataset.json"))
    assert report.cases[0].largest_lesion == pytest.approx((26 / 3, 19 / 3, 6))
    views, why = draw_case((report.manifest.cases[0], report.cases[0]), ignore_value=None)
    assert (len(views), why) == (4, "")
    assert all(view.reference for view in views[:3])
    assert not any(view.predicted for view in views)


def test_a_case_that_cannot_be_read_says_why_there_is_no_picture(dataset):
    (dataset.parent / "sound_MR.nii.gz").write_bytes(b"nothing")
    _, source = page_of(dataset)
    assert "No picture. the file" in source


def test_a_label_on_another_grid_is_drawn_where_its_header_places_it(tmp_path):
    make_dataset(tmp_path, {"a": ("training", TWO)})
    shifted = AFFINE @ np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write(tmp_path / "a_label.nii.gz", label_of([(2, 5, 4)]), shifted)
    report = check_dataset(read_dataset(tmp_path / "dataset.json"))
    case = report.manifest.cases[0]
    views, _ = draw_case((case, report.cases[0]), ignore_value=None)
    write(tmp_path / "a_label.nii.gz", label_of([(4, 5, 4)]))
    there, _ = draw_case((case, report.cases[0]), ignore_value=None)
    assert [view.reference for view in views] == [view.reference for view in there]


def test_readers_without_label_or_image_are_drawn_as_two_outlines(tmp_path):
    paths = [write(tmp_path / f"r{n}.nii.gz", label_of([(5, 5, 4 + n)])) for n in range(2)]
    case = Case("a", "a", "training", (), None, tuple(paths))
    report = check_dataset(read_dataset(make_dataset(tmp_path))).cases[0]
    views, _ = draw_case((case, report), ignore_value=None)
    assert len(views) == 4


def test_as_many_cases_are_pictured_as_asked(dataset):
    _, source = page_of(dataset, max_pictures=1)
    assert source.count('<article class="finding"') == 1
    assert "1 of 3 cases are pictured" in text_of(source)
    assert '<article class="finding"' not in page_of(dataset, max_pictures=0)[1]


def test_visits_of_lesions_stand_on_the_page_where_there_are_lesions_to_learn(dataset, tmp_path):
    _, source = page_of(dataset)
    assert "below 10 mm³ 2 50 000" in text_of(source).replace("\u202f", " ").replace("  ", " ")
    (tmp_path / "none").mkdir()
    assert 'id="visits"' not in page_of(make_dataset(tmp_path / "none", {"a": ("training", [])}))[1]


def test_agreement_of_readers_stands_on_the_page(dataset):
    annotate(dataset, {"sound": [[(2, 2, 2)], [(2, 2, 2), (2, 3, 2)]]})
    _, source = page_of(dataset)
    assert "training 1 and 2 1 0.667 1" in re.sub(r" +", " ", text_of(source))


def test_processes_draw_what_one_process_draws(dataset):
    cut = re.compile(r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert cut.sub("", page_of(dataset, workers=2)[1]) == cut.sub("", page_of(dataset)[1])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_in_a_browser_nothing_is_asked_for_and_a_phone_needs_no_sideways_scrolling(dataset, tmp_path):
    page_of(dataset)
    browser = Browser(tmp_path / "profile")
    try:
        for scheme in ("light", "dark"):
            browser.open((dataset.parent / "page.html").as_uri(), width=390, height=800, scheme=scheme)
            assert browser.problems == []
            assert [address for address in browser.requests if not address.startswith("data:")] == []
            assert browser.value("document.documentElement.scrollWidth") <= 390
        dark = browser.value("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(20, 23, 27)"
    finally:
        browser.close()


def test_errors_of_many_cases_are_cut_short(tmp_path):
    dataset = make_dataset(tmp_path, {f"c{n:02d}": ("test", None) for n in range(35)})
    for n in range(35):
        write_volume(tmp_path / f"c{n:02d}_MR.nii.gz", Volume(np.full((12, 10, 8), 2.0, np.float32), AFFINE))
    report, source = page_of(dataset, max_pictures=0)
    assert len(report.of(Severity.ERROR)) == 35
    assert "and 5 more, in dataset_report.json" in re.sub(r" +", " ", text_of(source))
    assert source.count("is constant: every voxel is 2") == 30


def test_images_with_nan_are_drawn(tmp_path):
    make_dataset(tmp_path, {"a": ("training", TWO)})
    image = image_of(0)
    image[0] = np.nan
    write(tmp_path / "a_MR.nii.gz", image)
    report = check_dataset(read_dataset(tmp_path / "dataset.json"))
    assert len(draw_case((report.manifest.cases[0], report.cases[0]), ignore_value=None)[0]) == 4
