from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from lesion_cases import AFFINE, LESION_CASES, SHAPE, bar, fill

from medfocal.evaluate import Protocol, evaluate_case, evaluate_cases, write_evaluation
from medfocal.report import CaseImages, write_report
from medfocal.report.figures import COLUMNS
from medfocal.report.pictures import look_at

VOID = {"meta", "link", "img", "br", "hr", "input", "source"}


class Page(HTMLParser):
    """An HTML file as a reader gets it; fails on tags that do not close."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.words, self._open = [], [], []
        self.feed(self.source)
        self.close()
        assert self._open == []
        self.text = re.sub(r"\s+", " ", "".join(self.words)).replace("\u00a0", " ")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    def all(self, tag, **wanted):
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and all(attrs.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]

    def part(self, anchor):
        """The text of a section."""
        source = self.source.split(f'<section id="{anchor}"')[1].split("</section>")[0]
        source = re.sub(r"</?(td|th|dt|dd|div|p|li|h2|h3)\b[^>]*>", " ", "<" + source)
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", source))).replace("\u00a0", " ")


def evaluated(cases, **protocol):
    """Evaluate reference and probability of each case, one patient each."""
    rules = Protocol(**protocol)
    results = [
        evaluate_case(reference, probability, AFFINE, case=name, protocol=rules)
        for name, (reference, probability) in cases.items()
    ]
    return evaluate_cases(results, rules)


def images_of(cases, threshold=0.5):
    """The axis codes are those of AFFINE, worked out by hand: i runs to the left, j to anterior, k to superior."""

    def images(case):
        reference, probability = cases[case]
        return CaseImages(
            image=np.random.default_rng(0).normal(size=SHAPE).astype(np.float32),
            reference=reference,
            predicted=probability >= threshold,
            spacing_mm=(0.5, 1.0, 3.0),
            axis_codes=("L", "A", "S"),
        )

    return images


def no_images(_):
    return None


def report(folder, cases, *, images=None, title="Trial", rules=None, **arguments):
    path = write_report(
        folder / "report.html",
        title=title,
        evaluation=evaluated(cases, **rules or {}),
        images=images or images_of(cases),
        **arguments,
    )
    return Page(path)


EMPTY = (np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32))


def example():
    """Three cases: a lesion found, one missed (volume 8 voxels of 1.5 mm³), one false candidate; and an empty case."""
    reference = fill([(bar(1, 4), 1), (((8, 10), (6, 8), (4, 6)), 1)]) != 0
    found = fill([(bar(1, 3), 0.9), (((8, 9), (6, 7), (4, 5)), 0.3)])
    false = fill([(((5, 6), (8, 9), (6, 7)), 0.7)])
    return {"first": (reference, found), "second": (np.zeros(SHAPE, bool), false), "third": EMPTY}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of the example, which tests only read."""
    return report(tmp_path_factory.mktemp("page"), example())


def test_the_numbers_that_matter_come_first_in_words(page):
    text = page.text
    assert "3 cases, 3 patients, 2 lesions, confidence threshold 0.5" in text
    assert (
        "Lesions found 1 of 2 = 50 % In patients like these, the true rate is plausibly between 1 % and 99 %." in text
    )
    # Garwood for 1 event in 3 cases: 0.0253 / 3 and 5.572 / 3.
    assert (
        "False candidates per case 0.33 1 in 3 cases About one in every 3 cases. "
        "In patients like these, the true rate is plausibly between 0.01 and 1.86 per case." in text
    )
    assert "Cases 3 of 3 patients 2 cases without any lesion." in text


def test_the_voxel_dice_says_over_which_cases_it_is_a_mean(tmp_path):
    # First case: 8 voxels of 12 + 8 found: 16 / 28. Second: nothing shared: 0. Third: undefined.
    assert (
        "Voxel Dice 0.29 Mean of 2 cases, median 0.29. Undefined in 1 case, left out."
        in report(tmp_path, example()).text
    )


def test_the_hit_rule_and_every_setting_of_the_protocol_are_printed(page):
    assert "Hit rule. A lesion counts as found when a candidate shares at least one voxel with it." in page.text
    protocol = page.part("protocol")
    for key, value in Protocol().to_dict().items():
        assert key in protocol
        assert (", ".join(f"{rate:g}" for rate in value) if isinstance(value, list) else str(value)) in protocol


def test_the_page_needs_nothing_but_itself(page):
    assert not page.all("script")
    assert not page.all("link")
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), attrs
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def test_every_link_leads_somewhere_and_no_place_is_named_twice(page):
    places = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(places) == len(set(places))
    targets = {attrs["href"].removeprefix("#") for attrs in page.all("a")}
    assert targets <= set(places)
    assert {"missed-1", "false-1"} <= targets


def test_what_scrolls_and_what_shows_has_a_name_and_can_be_reached_by_keyboard(page):
    scrolling = page.all("div", class_="scroll")
    assert scrolling
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["aria-label"] for attrs in page.all("svg", role="img"))
    assert page.all("html", lang="en")


HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}"


def test_names_that_hold_markup_are_shown_and_never_obeyed(tmp_path):
    cases = {HOSTILE if name == "first" else name: case for name, case in example().items()}
    cases["second" + HOSTILE] = cases.pop("second")
    page = report(tmp_path, cases, title=HOSTILE, facts={HOSTILE: HOSTILE})
    assert not page.all("script")
    assert page.source.count("<script") == 0
    assert f"Missed lesion 2 in case {HOSTILE}" in page.text
    assert f"False candidate 1 in case second{HOSTILE}" in page.text
    assert page.text.count(HOSTILE) >= 6
    # In attributes, too: the description of each picture holds the name.
    assert f"axial plane, Missed lesion 2 in case {HOSTILE}" in [
        attrs["aria-label"] for attrs in page.all("svg", role="img")
    ]


def test_a_missed_lesion_is_shown_with_its_measures_and_both_outlines(page):
    missed = page.part("missed")
    assert "Missed lesion 2 in case first" in missed
    # 8 voxels of 1.5 mm³; the sphere of 12 mm³ is 2.8 mm wide; voxel (8.5, 6.5, 4.5) lies at (15.75, -0.5, 17.5) mm.
    assert "Volume 12 mm³ Diameter 2.8 mm Found from confidence 0.300" in missed
    assert "World x, y, z (RAS) 15.8, \u22120.5, 17.5 mm Voxel i, j, k 8.5, 6.5, 4.5" in missed
    source = page.source.split('id="missed-1"')[1].split("</article>")[0]
    assert source.count('class="outline reference"') == 3
    assert source.count('class="outline predicted"') == 0
    assert "Radiological convention: the patient\u2019s right is on the left" in missed


def test_a_false_candidate_is_shown_with_its_confidence_and_outline(page):
    assert "False candidate 1 in case second" in page.part("false")
    assert "Confidence 0.700" in page.part("false")
    source = page.source.split('id="false-1"')[1].split("</article>")[0]
    assert source.count('class="outline predicted"') == 3
    assert source.count('class="outline reference"') == 0
    assert source.count("<image ") == 4


def test_a_candidate_below_the_threshold_is_not_a_false_alarm(tmp_path):
    cases = {"only": (EMPTY[0], fill([(bar(1, 4), 0.4)]))}
    assert "There are no false candidates at the threshold 0.5." in report(tmp_path, cases).text


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_every_way_lesions_and_candidates_meet_gives_a_report_with_its_counts(tmp_path, case):
    # At threshold 0 every candidate counts, as in the table of cases.
    page = report(tmp_path, {case.name: (case.reference, case.probability)}, rules={"threshold": 0.0})
    num_missed = case.num_lesions - len(case.pairs)
    assert f"Missed lesions ({num_missed})" in page.text
    assert f"False candidates ({case.num_false})" in page.text
    assert len(page.all("article")) == num_missed + case.num_false
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())


def test_no_lesion_means_undefined_with_its_reason_and_never_zero(tmp_path):
    page = report(tmp_path, {"second": example()["second"]})
    assert re.search(r"Lesions found undefined \[\d+\] There is no lesion to find\.", page.text)
    assert "0 of 0" not in page.text
    assert page.part("froc").count("undefined [") >= 8  # CPM and the seven points
    assert "lesion_sensitivity, all cases: there is no lesion" in page.part("undefined")


def test_no_candidate_means_undefined_thresholds_with_their_reason(tmp_path):
    page = report(tmp_path, {"first": (example()["first"][0], EMPTY[1])})
    assert "0 of 2 = 0 %" in page.text
    assert "froc: threshold, 0.125 false positives per case: there is no candidate" in page.part("undefined")
    assert "lesion_precision, all cases: there is no candidate at the threshold" in page.part("undefined")
    assert "confidence, case 'first', lesion 1: no candidate finds this lesion at any threshold" in page.part(
        "undefined"
    )


def test_every_undefined_number_points_to_the_line_that_tells_why(tmp_path):
    page = report(tmp_path, {"third": EMPTY})
    lines = page.all("li")
    numbered = {attrs["id"] for attrs in lines if attrs.get("id", "").startswith("undefined-")}
    notes = {attrs["href"].removeprefix("#") for attrs in page.all("a", class_="note")}
    assert notes
    assert notes <= numbered
    assert len(page.all("span", class_="undefined")) == len(page.all("a", class_="note"))


def test_where_everything_is_defined_the_page_says_so(tmp_path):
    reference = fill([(bar(1, 4), 1)]) != 0
    page = report(tmp_path, {"one": (reference, fill([(bar(1, 4), 0.9)]))})
    assert "Nothing: every number of this evaluation is defined." in page.part("undefined")
    assert "1 case, 1 patient, 1 lesion," in page.text
    assert "Lesions found 1 of 1 = 100 %" in page.text
    assert "There are no missed lesions at the threshold 0.5." in page.part("missed")


def test_points_that_the_curve_does_not_reach_are_marked(page):
    # One false candidate in three cases: 1/8 and 1/4 are passed, 1/2 and more are not reached.
    assert page.part("froc").count("not reached") == 5


def test_without_images_the_findings_are_told_and_the_lack_is_said(tmp_path):
    page = report(tmp_path, example(), images=no_images)
    assert page.text.count("No picture: the image of this case was not at hand.") == 2
    assert not page.all("image")
    assert "Radiological convention" not in page.text
    assert "Volume 12 mm³" in page.part("missed")


def test_a_case_is_read_once_and_only_if_it_has_something_to_show(tmp_path):
    cases = example()
    cases["first"] = (cases["first"][0], fill([(((5, 6), (8, 9), (6, 7)), 0.7)]))  # both missed, and one false
    asked = []

    def images(case):
        asked.append(case)
        return images_of(cases)(case)

    report(tmp_path, cases, images=images)
    assert sorted(asked) == ["first", "second"]


def many(num_missed, num_false):
    """Single voxels apart from each other; case 'c' misses lesions, case 'd' has false candidates."""
    grid = [(i, j, k) for i in range(0, 12, 2) for j in range(0, 10, 2) for k in range(0, 8, 2)]
    reference = np.zeros(SHAPE, bool)
    probability = np.zeros(SHAPE)
    for place in grid[:num_missed]:
        reference[place] = True
    for number, place in enumerate(grid[:num_false]):
        probability[place] = 0.6 + 0.01 * number
    return {"c": (reference, EMPTY[1]), "d": (EMPTY[0], probability)}


@pytest.mark.parametrize(
    ("num_missed", "num_false", "most", "shown"),
    [(9, 7, 6, (3, 3)), (9, 2, 6, (4, 2)), (1, 7, 6, (1, 5)), (9, 7, 5, (3, 2)), (9, 7, 0, (0, 0)), (3, 3, 6, (3, 3))],
)
def test_too_many_pictures_are_left_out_and_counted(tmp_path, num_missed, num_false, most, shown):
    page = report(tmp_path, many(num_missed, num_false), max_pictures=most)
    for anchor, total, number, things, table in (
        ("missed", num_missed, shown[0], "missed lesions", "lesions.csv"),
        ("false", num_false, shown[1], "false candidates", "candidates.csv"),
    ):
        left_out = total - number
        assert page.source.count(f'id="{anchor}-') == number + 1  # and the heading
        sentence = (
            f"{number} of {total} {things} are shown here; {left_out} {'is' if left_out == 1 else 'are'} left out. "
            f"All of them are in {table}."
        )
        assert (sentence in page.part(anchor)) == (left_out > 0)


def test_the_most_confident_false_candidates_are_the_ones_shown(tmp_path):
    shown = re.findall(r"Confidence (0\.\d+)", report(tmp_path, many(0, 7), max_pictures=3).part("false"))
    assert shown == ["0.660", "0.650", "0.640"]


def test_a_negative_number_of_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_pictures must be 0 or more, got -1"):
        report(tmp_path, example(), max_pictures=-1)


def test_a_page_with_all_its_pictures_stays_under_6_megabytes(tmp_path):
    """Noise is what compresses worst; the rest of the page is measured with it."""
    page = report(tmp_path, example(), metrics=metrics_file(tmp_path))
    shape = (300, 280, 60)
    images = CaseImages(
        image=np.random.default_rng(0).normal(size=shape).astype(np.float32),
        reference=np.zeros(shape, bool),
        predicted=np.zeros(shape, bool),
        spacing_mm=(0.8, 0.8, 2.5),
        axis_codes=("L", "P", "S"),
    )
    picture = sum(len(view.source) for view in look_at(images, (150, 140, 30)))
    assert len(page.source) + 60 * picture < 6e6


def metrics_file(folder):
    path = folder / "metrics.csv"
    rows = ["1,10,0.5,0.001,3.0,,,,,", "2,20,0.4,0.0005,3.0,0.5,0.4,0.3,0.2,9", "3,30,0.3,0.0,3.0,0.4,0.4,0.3,0.2,9"]
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def test_training_curves_appear_with_the_best_epoch_where_metrics_are_given(tmp_path):
    page = report(tmp_path, example(), metrics=metrics_file(tmp_path))
    assert "Best epoch: 2, the one of highest lesion sensitivity" in page.part("training")
    assert len(page.all("img")) == 4


def test_without_metrics_there_is_no_training_section(page):
    assert 'id="training"' not in page.source
    assert len(page.all("img")) == 1


def test_facts_versions_and_the_intended_use_are_printed(tmp_path):
    page = report(tmp_path, example(), facts={"Model": "runs/a/model"})
    assert "Model runs/a/model" in page.part("about")
    assert f"Python {'.'.join(map(str, sys.version_info[:3]))}" in page.part("about")
    assert f"numpy {np.__version__}" in page.part("about")
    assert page.text.count("Research use, not a medical device.") == 2


def test_a_folder_gives_the_same_page_as_the_evaluation_it_was_written_from(tmp_path):
    cases = example()
    evaluation = evaluated(cases)
    pages = []
    for name, source in (("a", evaluation), ("b", write_evaluation(evaluation, tmp_path / "evaluation"))):
        path = write_report(tmp_path / f"{name}.html", title="T", evaluation=source, images=images_of(cases))
        pages.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "now", path.read_text(encoding="utf-8")))
    assert pages[0] == pages[1]


def test_the_pictures_of_a_case_show_the_lesion_on_the_side_where_the_table_says_it_lies():
    lesion = evaluated(example()).lesions[1]
    assert not lesion["detected"]
    axial, *_, whole = look_at(images_of(example())("first"), (lesion["i"], lesion["j"], lesion["k"]))
    assert axial.letters[1] == "L"
    # World x falls to the patient's left, which is on the right: the middle of the slice, voxel 5.5, is at 17.25 mm.
    right_of_the_middle_mm = 17.25 - lesion["x_mm"]
    assert -whole.middle[0] == pytest.approx(right_of_the_middle_mm) == pytest.approx(1.5)
