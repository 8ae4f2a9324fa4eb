"""The page as a file: what it says, that nothing breaks out of it, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hand_made_evaluations import PROTOCOL, HandMade, bare, example, figure, share
from lesion_cases import AFFINE, LESION_CASES, SHAPE, bar, fill

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
        if not {"style", "script"} & set(self._open):
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


def images_of(cases):
    """The axis codes are those of AFFINE, worked out by hand: i runs to the left, j to anterior, k to superior."""

    def images(case):
        reference, predicted = cases[case]
        return CaseImages(
            image=np.random.default_rng(0).normal(size=SHAPE).astype(np.float32),
            reference=reference,
            predicted=predicted,
            spacing_mm=(0.5, 1.0, 3.0),
            axis_codes=("L", "A", "S"),
            affine=AFFINE,
        )

    return images


EMPTY = np.zeros(SHAPE, bool)
MISSED = fill([(bar(1, 4), 1), (((8, 10), (6, 8), (4, 6)), 1)]) != 0
FALSE = fill([(((5, 6), (8, 9), (6, 7)), 1)]) != 0
VOLUMES = {"first": (MISSED, fill([(bar(1, 3), 1)]) != 0), "second": (EMPTY, FALSE), "third": (EMPTY, EMPTY)}


def no_images(_):
    return None


def report(folder, evaluation, *, images=no_images, title="Trial", **arguments):
    return Page(write_report(folder / "report.html", title=title, evaluation=evaluation, images=images, **arguments))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of the example, which tests only read."""
    return report(tmp_path_factory.mktemp("page"), example(), images=images_of(VOLUMES))


def test_the_answer_comes_first_in_one_sentence(page):
    assert page.source.index('<p class="answer">') < page.source.index('<p class="claim">')
    assert "1 of 2 lesions found (50 %, 95 % interval 25 to 75 %) at 0.33 false positives per case." in page.text
    assert "Fewer than 36 lesions cannot show a sensitivity above 90 %." in page.text


def test_without_lesions_the_answer_says_that_there_is_nothing_to_find(tmp_path):
    made = HandMade()
    made.add_case("a", false=[((5, 8, 6), 1.5, 0.7)], dice=0.0)
    page = report(tmp_path, made)
    assert "There is no lesion to find; 1 false positive per case." in page.text
    assert "0 of 0" not in page.part("froc")
    assert page.part("froc").count("undefined [") >= 8  # CPM and the seven points
    assert re.search(r"Lesions found undefined \[\d+\] There is no lesion to find\.", page.text)


def test_the_headlines_say_what_the_numbers_mean(page):
    assert "3 cases, 3 patients, 2 lesions, protocol any_overlap, confidence threshold 0.5" in page.text
    assert (
        "Lesions found 1 of 2 = 50 % In patients like these, the true rate is plausibly between 25 % and" in page.text
    )
    assert "False candidates per case 0.33 1 in 3 cases About one in every 3 cases." in page.text
    # Of 16 / 28 and 0.
    assert "Voxel Dice 0.29 Mean of 2 cases, median 0.29. Undefined in 1 case, left out." in page.text
    assert "Cases 3 of 3 patients 2 cases without any lesion." in page.text


def test_cases_that_are_not_in_the_numbers_are_named_before_the_numbers(tmp_path):
    failed = [{"case": f"x{n}", "error": "is not gzip"} for n in range(23)]
    page = report(tmp_path, bare(failed=failed, missing=["y"], warnings=["Only 3 patients."]))
    alerts = page.source.split('class="alerts"')[1].split("</section>")[0]
    assert page.source.index('class="alerts"') < page.source.index('class="headlines"')
    assert "23 cases could not be evaluated and are in no number of this page." in alerts
    assert "x19: is not gzip" in alerts
    assert "x20" not in alerts
    assert "and 3 more, in <code>evaluation.json</code>" in alerts
    assert "1 case had no prediction and is counted as nothing found." in alerts
    assert "Only 3 patients." in alerts


def test_without_anything_amiss_there_is_no_alert(page):
    assert "Mind this first" not in page.text


def test_strata_count_lesions_and_patients_and_give_no_estimate_for_few(page):
    assert "under 3 mm 0 0 0 fewer than 10 lesions: no estimate 0 0.00 0.00 to 0.20" in page.part("sizes")
    assert "3 to under 5 mm 2 2 1 fewer than 10 lesions: no estimate 1 0.50 0.10 to 1.20" in page.part("sizes")
    assert "1000 mm³ or more" in page.part("sizes")


def test_a_stratum_of_enough_lesions_has_an_estimate_with_its_interval(tmp_path):
    made = HandMade()
    made.add_case("a", lesions=[((1, 1, 1), 12, 0.9 if n < 9 else None) for n in range(12)])
    assert "3 to under 5 mm 12 2 9 75 % 38 % to 88 %" in report(tmp_path, made).part("sizes")


def test_a_missed_lesion_says_how_many_candidates_hit_it(tmp_path):
    """Each of these is paired with another lesion."""
    made = HandMade()
    made.add_case("a", lesions=[((1, 1, 1), 12, 0.4), ((5, 5, 5), 12, None)])
    assert report(tmp_path, made).source.count("Hit, but not found, by</dt><dd>1 candidate") == 1


def test_without_strata_there_is_no_section_of_sizes(tmp_path):
    assert "#sizes" not in report(tmp_path, bare(by_size=[])).source


def test_the_froc_points_have_intervals_and_say_what_was_not_reached(page):
    froc = page.part("froc")
    assert "0.25 25 % 17 % to 50 % 0.75" in froc
    assert "0.125 0 % 17 % to 50 % undefined [" in froc
    assert froc.count("not reached") == 4
    assert "Their mean (CPM) is 0.500." in froc


def test_the_curve_over_the_hit_rule_is_told_in_a_sentence_and_tables(page):
    part = page.part("hit-rules")
    # 2 lesions of which 1 - 0.9 / 20 x step are found: both up to 0.25, then one, from 0.85 none.
    assert (
        "The same candidates find 2 of 2 lesions (100 %) at IoU 0.1 or more, and 1 of 2 lesions (50 %) at IoU 0.5"
        in part
    )
    assert "By share of the lesion covered." in part
    assert "0.5 1 50 % 25 % to 75 % 3" in part


def test_a_curve_without_lesions_or_points_has_no_section(tmp_path):
    assert "hit-rules" not in report(tmp_path, bare(hit_rule_curves=[])).source


def test_the_reliability_is_told_by_its_fullest_bin_and_a_table_without_empty_bins(page):
    part = page.part("reliability")
    assert "Of the 12 candidates of confidence 0 to 0.2, 0.11 on average, 17 % are true (8 % to 58 %)." in part
    assert "0.8 to 1 0.91 9 3 78 % 39 % to 89 %" in part
    assert "0.4 to 0.6" not in part
    assert "Brier score 0.181 (0.100 to 0.300), D-ECE 0.093 (0.050 to 0.200)." in part


def test_a_mask_has_no_confidence_to_calibrate(tmp_path):
    page = report(tmp_path, bare(calibration=None))
    assert "reliability" not in page.source
    assert "Brier" not in page.text


def test_every_figure_of_the_evaluation_is_among_all_measures(page):
    measures = page.part("measures")
    for words in (
        "Lesion sensitivity 50 % 25 % to 75 % 1 / 2 3 1.00 Clopper-Pearson",
        "False candidates per lesion-free case 0.50 0.10 to 1.00",
        "wAFROC1, area (false candidates of all cases) 0.79",
        "Case AUROC (any lesion or none) 0.90 0.80 to 0.97 3 1.00 DeLong",
        "Case specificity 50 % 25 % to 75 % 1 / 2",
        "Panoptic quality (PQ) 0.45 0.35 to 0.55",
        "Volume difference, prediction \u2212 reference, mean of cases (ml) \u22120.10",
        "Lesions hit by two or more candidates (splits) 1",
    ):
        assert words in measures
    rates = [key for key, rate in example().to_dict().items() if isinstance(rate, dict) and "value" in rate]
    # CPM, Brier, D-ECE, voxel Dice and both volume differences have other forms.
    assert len(
        re.findall(r"<tr><th", page.source.split('<table class="wide measures">')[1].split("</table>")[0])
    ) - 1 == (len(rates) + 6)


def test_a_figure_without_a_label_is_shown_by_its_key(tmp_path):
    assert "another_rate 0.250" in report(tmp_path, bare(another_rate=figure(0.25, 0.1, 0.4))).part("measures")


def test_surfaces_are_told_for_cases_and_for_found_lesions(page):
    part = page.part("surfaces")
    assert "within 1 mm of the other" in part
    assert "ASSD (mm) 1.25 0.62 to 1.88 1.25 3 0 patient bootstrap" in part
    assert "ASSD (mm) 0.75 0.38 to 1.12 0.75 5 0 patient bootstrap" in part


def test_surfaces_that_were_not_measured_have_no_section_and_no_column(tmp_path):
    page = report(tmp_path, bare(surface=None))
    assert "surfaces" not in page.source
    assert "HD95" not in page.text


def test_classes_link_to_their_reports_whatever_their_folder_is_called(tmp_path):
    summary = example().to_dict()
    found = {key: summary[key] for key in ("lesion_sensitivity", "false_positives_per_case", "voxel_dice")}
    counts = {"num_lesions": 10, "num_detected_lesions": 8}
    classes = {
        "core": {"folder": "class_core", **counts, **found},
        "odd": {"folder": 'javascript:alert("x")//', **counts, **found},
    }
    page = report(tmp_path, bare(classes=classes))
    assert page.all("a", href="./class_core/report.html")
    assert "core 8 of 10 50 % 25 % to 75 % 0.33 0.25 to 1.50 0.29" in page.part("classes")
    assert all(attrs["href"].startswith(("#", "./")) for attrs in page.all("a"))


def test_published_figures_stand_under_their_own_names(tmp_path):
    page = report(tmp_path, bare(published={"LTPR": 0.8125, "LFDR": None}))
    assert "LTPR 0.8125 LFDR undefined [" in page.part("published")
    assert "published" not in report(tmp_path, bare(published={})).source


def test_the_hit_rule_and_every_setting_of_the_protocol_are_printed_with_words(page):
    assert "Hit rule. A lesion counts as found when a candidate shares at least one voxel with it." in page.text
    protocol = page.part("protocol")
    for key, value in PROTOCOL.items():
        assert re.search(rf"\b{key}\b", protocol)
        assert (
            ", ".join(f"{rate:g}" for rate in value)
            if isinstance(value, list)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        ) in protocol


def test_the_page_needs_nothing_but_itself(page):
    assert not page.all("link")
    assert not [attrs for attrs in page.all("script") if "src" in attrs]
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), attrs
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def policy(page):
    content = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    return {part.split()[0]: part.split()[1:] for part in content.split(";")}


def scripts(page):
    return re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)


def test_only_the_page_s_own_scripts_may_run_and_nothing_may_be_asked_for(page):
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts(page)
    ]
    assert hashes
    allowed = policy(page)
    assert set(allowed["script-src"]) <= {*hashes, "blob:"}
    assert set(hashes) <= set(allowed["script-src"])
    assert allowed["default-src"] == ["'none'"]
    assert allowed["img-src"] == ["data:"]
    assert "connect-src" not in allowed


def test_every_link_leads_somewhere_and_no_place_is_named_twice(page):
    places = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(places) == len(set(places))
    targets = {attrs["href"].removeprefix("#") for attrs in page.all("a")}
    assert targets <= set(places)
    assert {"missed-1", "false-1"} <= targets
    named = [attrs[key] for _, attrs in page.tags for key in ("aria-labelledby", "aria-describedby") if key in attrs]
    assert set(named) <= set(places)


def test_what_scrolls_and_what_shows_has_a_name_and_can_be_reached_by_keyboard(page):
    scrolling = page.all("div", class_="scroll")
    assert scrolling
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["aria-label"] for attrs in page.all("svg", role="img"))
    assert page.all("html", lang="en")


def test_each_table_names_the_file_that_holds_it(page):
    # What the run was told and with which software are facts, not results.
    tables = page.source.split('<section id="about"')[0].split("<table")[1:]
    assert all(re.search(r"<caption>.*<code>[a-z]+\.(json|csv)</code>", table) for table in tables)


HOSTILE = (
    "<script>alert('x')</script>\"&{{ 7 * 7 }}",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\u202eevil\u0000\ud83d",
    "n" * 3000,
)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_shown_and_never_obeyed(tmp_path, page, name):
    made = bare(missing=[name], failed=[{"case": name, "error": name}], warnings=[name], published={name: None})
    for row in (*made.cases, *made.lesions, *made.candidates):
        row["case"] = row["patient"] = f"{row['case']}{name}"
    volumes = {f"{case}{name}": arrays for case, arrays in VOLUMES.items()}
    found = report(tmp_path, made, images=images_of(volumes), title=name, facts={name: name})
    assert scripts(found) == scripts(page)
    assert len(found.all("script")) == len(page.all("script"))
    assert [tag for tag, attrs in found.tags if any(key.startswith("on") for key in attrs)] == []
    assert not found.all("img", src="x")
    if name.isprintable():
        assert f"Missed lesion 2 in case first{name}" in found.text
        # In attributes, too: the description of each picture holds the name.
        labels = [attrs["aria-label"] for attrs in found.all("svg", role="img")]
        assert f"axial plane, Missed lesion 2 in case first{name}" in labels
    assert all(re.fullmatch(r"[a-z0-9.-]+", attrs["id"]) for _, attrs in found.tags if "id" in attrs)


def test_a_missed_lesion_is_shown_with_its_measures_and_both_outlines(page):
    missed = page.source.split('id="missed-1"')[1].split("</article>")[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", missed)).replace("\u00a0", " ")
    assert "Missed lesion 2 in case first" in text
    assert "Longest diameter 4.4 mm Axial diameter 3.1 mm Volume 12 mm³ Found from confidence 0.300" in text
    # Voxel (8.5, 6.5, 4.5) lies at (15.75, -0.5, 17.5) mm.
    assert "World x, y, z (RAS) 15.8, \u22120.5, 17.5 mm Voxel i, j, k 8.5, 6.5, 4.5" in text
    assert missed.count('class="outline reference"') == 3
    assert missed.count('class="outline predicted"') == 0
    assert "Radiological convention: the patient\u2019s right is on the left" in page.part("gallery")


def test_a_false_candidate_is_shown_with_its_confidence_and_outline(page):
    source = page.source.split('id="false-1"')[1].split("</article>")[0]
    assert "False candidate 1" in source
    assert "<dt>Confidence</dt><dd>0.700</dd>" in source
    assert source.count('class="outline predicted"') == 3
    assert source.count('class="outline reference"') == 0
    assert source.count("<image ") == 4


@pytest.mark.parametrize(
    "change",
    [{"verdict": "true"}, {"verdict": "double"}, {"verdict": "ignored"}, {"above_threshold": False}],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_only_false_candidates_that_count_are_in_the_gallery(tmp_path, change):
    made = bare()
    made.candidates[0].update(change)
    assert "There are no false candidates at the threshold 0.5." in report(tmp_path, made).text


def test_an_ignored_lesion_is_not_missed(tmp_path):
    made = bare()
    made.lesions[1]["ignored"] = True
    assert "There are no missed lesions at the threshold 0.5." in report(tmp_path, made).text


def test_no_reason_means_the_page_says_so_and_a_given_reason_is_linked(tmp_path):
    why = "reference and prediction at the threshold are both empty"
    made = bare(undefined=[{"what": "voxel_dice", "where": "case 'third'", "why": why}])
    made.lesions[1]["confidence"] = None
    page = report(tmp_path, made)
    assert f"voxel_dice, case 'third': {why}" in page.part("undefined")
    assert "confidence, case 'first', lesion 2: no candidate finds this lesion at any threshold" in page.part(
        "undefined"
    )
    row = page.source.split('<th scope="row" class="name">third</th>')[1].split("</tr>")[0]
    assert 'href="#undefined-1"' in row


def test_many_cases_that_are_undefined_for_one_reason_share_one_line(tmp_path):
    made = HandMade(changes=bare().changes)
    for n in range(12):
        made.add_case(f"c{n}", dice=None)
    page = report(tmp_path, made)
    (line,) = re.findall(r"voxel_dice, case[^:]*:", page.part("undefined"))
    assert line == "voxel_dice, case 'c0'; case 'c1'; case 'c2'; case 'c3'; case 'c4' and 7 more:"


def test_every_undefined_number_points_to_the_line_that_tells_why(tmp_path):
    page = report(tmp_path, bare(lesion_precision=share(0, 0), wafroc=figure(None)))
    numbered = {attrs["id"] for attrs in page.all("li") if attrs.get("id", "").startswith("undefined-")}
    notes = {attrs["href"].removeprefix("#") for attrs in page.all("a", class_="note")}
    assert notes
    assert notes <= numbered
    assert len(page.all("span", class_="undefined")) == len(page.all("a", class_="note"))


def test_where_everything_is_defined_the_page_says_so(tmp_path):
    made = HandMade(changes=bare().changes)
    made.add_case("a", lesions=[((1, 1, 1), 12, 0.9)])
    made.changes["froc"] = made.to_dict()["froc"] | {"points": []}
    page = report(tmp_path, made)
    assert "Nothing: every number of this evaluation is defined." in page.part("undefined")
    assert "There are no missed lesions at the threshold 0.5." in page.text


def test_without_images_the_findings_are_told_and_the_lack_is_said(tmp_path):
    page = report(tmp_path, bare())
    assert page.text.count("No picture: the image of this case was not at hand.") == 2
    assert not page.all("image")
    assert "Radiological convention" not in page.text
    assert "Volume 12 mm³" in page.part("gallery")
    assert not page.all("dialog")


def test_a_case_is_read_once_and_only_if_it_has_something_to_show(tmp_path):
    made = HandMade()
    made.add_case("first", lesions=[((2, 4, 3), 18, None), ((8, 6, 4), 12, None)], false=[((5, 8, 6), 1.5, 0.7)])
    made.add_case("third", dice=None)
    asked = []

    def images(case):
        asked.append(case)
        return images_of(VOLUMES)(case)

    report(tmp_path, made, images=images)
    assert asked == ["first"]


def many(num_missed, num_false):
    made = HandMade(changes=bare().changes)
    made.add_case("c", lesions=[((1, 1, 1), 10 + n, None) for n in range(num_missed)])
    made.add_case("d", false=[((1, 1, 1), 10, 0.6 + 0.01 * n) for n in range(num_false)])
    return made


@pytest.mark.parametrize(
    ("num_missed", "num_false", "most", "shown"),
    [(9, 7, 6, (3, 3)), (9, 2, 6, (4, 2)), (1, 7, 6, (1, 5)), (9, 7, 5, (3, 2)), (9, 7, 0, (0, 0)), (3, 3, 6, (3, 3))],
)
def test_too_many_pictures_are_left_out_and_counted(tmp_path, num_missed, num_false, most, shown):
    page = report(tmp_path, many(num_missed, num_false), max_pictures=most)
    for kind, total, number, things, table in (
        ("missed", num_missed, shown[0], "missed lesions", "lesions.csv"),
        ("false", num_false, shown[1], "false candidates", "candidates.csv"),
    ):
        left_out = total - number
        assert len(page.all("article", **{"data-kind": kind})) == number
        sentence = (
            f"{number} of {total} {things} are shown here; {left_out} {'is' if left_out == 1 else 'are'} left out. "
            f"All of them are in {table}."
        )
        assert (sentence in page.part("gallery")) == (left_out > 0)


def test_the_largest_lesions_and_the_most_confident_candidates_are_the_ones_shown(tmp_path):
    text = report(tmp_path, many(7, 7), max_pictures=4).part("gallery")
    assert re.findall(r"Confidence (0\.\d+)", text) == ["0.660", "0.650"]
    assert re.findall(r"Volume (\d+) mm³", text)[:2] == ["16", "15"]


def test_a_negative_number_of_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_pictures must be 0 or more, got -1"):
        report(tmp_path, example(), max_pictures=-1)


def test_a_page_with_all_its_pictures_stays_under_6_megabytes(tmp_path):
    """Noise is what compresses worst, about twice as much as an image; the rest of the page is measured with it."""
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


def test_training_curves_appear_with_the_best_epoch_where_metrics_are_given(tmp_path, page):
    found = report(tmp_path, example(), metrics=metrics_file(tmp_path))
    assert "Best epoch: 2, the one of highest lesion sensitivity" in found.part("training")
    assert len(found.all("img")) == len(page.all("img")) + 3


def test_without_metrics_there_is_no_training_section(page):
    assert 'id="training"' not in page.source


def test_facts_versions_and_the_intended_use_are_printed(tmp_path):
    page = report(tmp_path, bare(), facts={"Model": "runs/a/model"})
    assert "Model runs/a/model" in page.part("about")
    assert f"Python {'.'.join(map(str, sys.version_info[:3]))}" in page.part("about")
    assert f"numpy {np.__version__}" in page.part("about")
    assert page.text.count("Research use, not a medical device.") == 2


def test_a_page_of_ten_thousand_cases_is_written_within_a_minute_and_12_megabytes(tmp_path):
    made = HandMade(changes=bare().changes)
    for n in range(10_000):
        made.add_case(f"case-{n:05d}", dice=None if n % 3 else 0.5)
    page = write_report(tmp_path / "r.html", title="t", evaluation=made, images=no_images)
    assert page.stat().st_size < 12e6


def evaluated(reference, probability, **protocol):
    from medfocal.evaluate import Protocol, evaluate_case, evaluate_cases

    rules = Protocol(**{"num_resamples": 20} | protocol)
    return evaluate_cases([evaluate_case(reference, probability, AFFINE, case="a", protocol=rules)], rules)


@pytest.mark.parametrize("case", LESION_CASES, ids=lambda case: case.name)
def test_every_way_lesions_and_candidates_meet_gives_a_report_with_its_counts(tmp_path, case):
    # At threshold 0 every candidate counts, as in the table of cases.
    page = report(tmp_path, evaluated(case.reference, case.probability, threshold=0.0))
    num_missed = case.num_lesions - len(case.pairs)
    assert f"Missed lesions ({num_missed})" in page.text
    assert f"False candidates ({case.num_false})" in page.text
    assert len(page.all("article")) == num_missed + case.num_false
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())


def test_a_folder_gives_the_same_page_as_the_evaluation_it_was_written_from(tmp_path):
    from medfocal.evaluate import write_evaluation

    evaluation = evaluated(MISSED, fill([(bar(1, 3), 0.9), (((5, 6), (8, 9), (6, 7)), 0.7)]))
    pages = []
    for name, source in (("a", evaluation), ("b", write_evaluation(evaluation, tmp_path / "evaluation"))):
        path = write_report(tmp_path / f"{name}.html", title="T", evaluation=source, images=no_images)
        pages.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "now", path.read_text(encoding="utf-8")))
    assert pages[0] == pages[1]


def test_the_hand_made_evaluation_has_the_keys_of_a_real_one():
    from medfocal.evaluate.rows import CANDIDATE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS
    from medfocal.files import plain

    real = plain(evaluated(MISSED, fill([(bar(1, 3), 0.9)])).to_dict())
    made = json.loads(json.dumps(example().to_dict()))
    assert set(made) <= set(real)
    assert set(made["protocol"]) == set(real["protocol"])
    for key in ("lesion_sensitivity", "froc", "case_auroc"):
        assert set(made[key]) <= set(real[key])
    for rows, columns in (("cases", CASE_COLUMNS), ("lesions", LESION_COLUMNS), ("candidates", CANDIDATE_COLUMNS)):
        assert set(getattr(example(), rows)[0]) <= set(columns)


def test_the_pictures_of_a_case_show_the_lesion_on_the_side_where_the_table_says_it_lies():
    lesion = example().lesions[1]
    axial, *_, whole = look_at(images_of(VOLUMES)("first"), (lesion["i"], lesion["j"], lesion["k"]))
    assert axial.letters[1] == "L"
    # World x falls to the patient's left, which is on the right: the middle of the slice, voxel 5.5, is at 17.25 mm.
    right_of_the_middle_mm = 17.25 - lesion["x_mm"]
    assert -whole.middle[0] == pytest.approx(right_of_the_middle_mm) == pytest.approx(1.5)
