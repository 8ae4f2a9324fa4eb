"""The page in a browser: sorting, filtering, the gallery and the viewer, by clicks and keys, with nothing asked for."""

from __future__ import annotations

import importlib.util
import io
import itertools
import shlex
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from hand_made_evaluations import HandMade, bare
from matplotlib.image import imread

from medfocal.report import CaseImages, write_report
from medfocal.report.viewer import PACKAGE, serve_command

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
needs_viewer = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="needs ipyniivue: make viewer")

SHAPE = (48, 40, 16)
# The columns of the table of cases.
CASE, PATIENT, LESIONS, FOUND, MISSED, FALSE, DICE = range(7)
HOSTILE = "<img src=x onerror='window.pwned=1'>\"'</script><script>window.pwned=2</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def volumes(lesions, false):
    """A block of 400 in noise; the marked boxes are brighter. Axes run to the left, posterior and superior."""
    image = np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
    image[6:42, 5:35, 2:14] += 400
    masks = []
    for places in (lesions, false):
        mask = np.zeros(SHAPE, bool)
        for i, j, k in places:
            mask[i - 2 : i + 3, j - 2 : j + 3, k - 1 : k + 2] = True
        image[mask] += 200
        masks.append(mask)
    affine = np.array([[-1.0, 0, 0, 30], [0, -1.2, 0, 25], [0, 0, 2.5, -10], [0, 0, 0, 1]])
    return CaseImages(image, masks[0], masks[1], (1.0, 1.2, 2.5), ("L", "P", "S"), affine)


MISSED_PLACE, FALSE_PLACE = (34, 12, 10), (15, 28, 5)


def evaluation():
    """Cases whose order differs by name, by each number and by patient."""
    made = HandMade(changes=bare().changes)
    made.add_case("case 10", patient="p2", lesions=[(MISSED_PLACE, 90, None)], dice=0.125)
    made.add_case("case 9", patient="p1", false=[(FALSE_PLACE, 75, 0.9), ((20, 20, 8), 30, 0.6)], dice=None)
    made.add_case("case 1", patient="p3", lesions=[((1, 1, 1), 9, 0.9)] * 10, dice=0.5)
    made.add_case(HOSTILE, patient="p10", lesions=[((9, 9, 9), 20, 0.2)], false=[((9, 9, 5), 40, 0.7)], dice=0.0625)
    return made


def images(case):
    return {
        "case 10": volumes([MISSED_PLACE], []),
        "case 9": volumes([], [FALSE_PLACE, (20, 20, 8)]),
    }.get(case)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(
        tmp_path_factory.mktemp("page") / "report.html", title="T", evaluation=evaluation(), images=images
    )


@pytest.fixture
def page(browser, written):
    """The page, freshly opened; afterwards nothing may have been asked for or complained about."""
    browser.open(written.as_uri())
    yield browser
    assert outside(browser) == []
    assert browser.problems == []
    assert browser.value("window.pwned") is None


def outside(browser):
    """What the page asked for beyond itself."""
    return [address for address in browser.requests if not address.startswith(("data:", "blob:"))]


def column(browser, number):
    return browser.value(
        f"[...document.querySelectorAll('#case-table tbody tr')].map(r => r.cells[{number}].innerText.trim())"
    )


def head(number):
    return f"#case-table thead th:nth-child({number + 1}) button"


def sort_states(browser):
    return browser.value("[...document.querySelectorAll('#case-table thead th')].map(h => h.getAttribute('aria-sort'))")


@pytest.mark.parametrize(
    ("number", "rising"),
    [
        (CASE, [HOSTILE, "case 1", "case 9", "case 10"]),
        (PATIENT, ["p1", "p2", "p3", "p10"]),
        (LESIONS, ["0", "1", "1", "10"]),
        (FOUND, ["0", "0", "0", "10"]),
        (MISSED, ["0", "0", "1", "1"]),
        (FALSE, ["0", "0", "1", "2"]),
    ],
)
def test_a_click_on_a_heading_sorts_and_another_reverses(page, number, rising):
    page.click(head(number))
    assert column(page, number) == rising
    assert sort_states(page)[number] == "ascending"
    page.click(head(number))
    assert column(page, number) == rising[::-1]
    assert [state for state in sort_states(page) if state] == ["descending"]


def test_what_is_undefined_comes_last_in_both_directions(page):
    page.click(head(DICE))
    assert [cell[:4] for cell in column(page, DICE)] == ["0.06", "0.12", "0.50", "unde"]
    page.click(head(DICE))
    assert [cell[:4] for cell in column(page, DICE)] == ["0.50", "0.12", "0.06", "unde"]


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_keyboard_sorts_too(page, key):
    page.value(f"document.querySelector('{head(LESIONS)}').focus()")
    page.press(key)
    assert column(page, LESIONS) == ["0", "1", "1", "10"]


def test_the_table_is_filtered_by_case_and_by_patient_and_says_how_many_are_left(page):
    page.type("#case-filter [name=text]", "CASE 1")
    assert column(page, CASE) == ["case 10", "case 1"]
    assert page.value("document.getElementById('case-count').textContent") == "2 of 4 cases"
    page.value("document.querySelector('#case-filter').reset()")
    page.type("#case-filter [name=text]", "p10")
    assert column(page, PATIENT) == ["p10"]


def choose(browser, selector, value):
    browser.value(
        f"(() => {{ const s = document.querySelector('{selector}'); s.value = '{value}';"
        " for (const e of ['input', 'change']) s.dispatchEvent(new Event(e, {bubbles: true})); })()"
    )


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("missed", ["case 10", HOSTILE]),
        ("false", ["case 9", HOSTILE]),
        ("free", ["case 9"]),
        ("", ["case 10", "case 9", "case 1", HOSTILE]),
    ],
)
def test_the_table_is_filtered_by_what_happened(page, kind, cases):
    choose(page, "#case-filter [name=kind]", kind)
    assert column(page, CASE) == cases


def test_counts_of_filters_are_spoken(page):
    assert (
        page.value("[...document.querySelectorAll('output')].map(o => o.getAttribute('aria-live'))") == ["polite"] * 2
    )


def findings(browser):
    return browser.value("[...document.querySelectorAll('.finding')].filter(f => !f.hidden).map(f => f.id)")


def test_the_gallery_is_filtered_by_kind_and_by_case(page):
    assert findings(page) == ["missed-1", "missed-2", "false-1", "false-2", "false-3"]
    choose(page, "#finding-filter [name=kind]", "false")
    assert findings(page) == ["false-1", "false-2", "false-3"]
    page.type("#finding-filter [name=text]", "case 9")
    assert findings(page) == ["false-1", "false-3"]
    assert page.value("document.getElementById('finding-count').textContent") == "2 of 5 shown"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("size-", ["missed-1", "false-1", "false-2", "false-3", "missed-2"]),
        ("size+", ["missed-2", "false-3", "false-2", "false-1", "missed-1"]),
        ("confidence-", ["false-1", "false-2", "false-3", "missed-2", "missed-1"]),
        ("confidence+", ["missed-1", "missed-2", "false-3", "false-2", "false-1"]),
    ],
)
def test_the_gallery_is_sorted_and_goes_back_to_the_listed_order(page, order, expected):
    choose(page, "#finding-filter [name=order]", order)
    assert findings(page) == expected
    choose(page, "#finding-filter [name=order]", "")
    assert findings(page) == ["missed-1", "missed-2", "false-1", "false-2", "false-3"]


def test_a_link_from_the_table_reaches_its_finding_even_if_it_was_filtered_away(page):
    choose(page, "#finding-filter [name=kind]", "missed")
    page.click("#case-table a[href='#false-1']")
    page.wait("!document.getElementById('false-1').hidden")
    page.wait("document.getElementById('false-1').getBoundingClientRect().top < innerHeight", 5)


def test_the_outlines_can_be_hidden(page):
    page.click(".toggle input")
    assert page.value("getComputedStyle(document.querySelector('.finding .outline')).visibility") == "hidden"


def test_names_break_out_of_nothing(page):
    assert HOSTILE in column(page, CASE)
    assert page.value("document.querySelectorAll('img[src=x]').length") == 0


def test_the_tab_key_reaches_everything_that_can_be_used_and_starts_at_the_way_past_the_contents(page):
    wanted = page.value(
        "[...document.querySelectorAll('a[href], button, input, select, summary, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility() && !e.disabled).map((e, n) => e.dataset.n = n).length"
    )
    seen = []
    while len(seen) <= wanted:
        page.press("Tab")
        number = page.value("document.activeElement.dataset.n")
        if number is None:
            break
        seen.append(int(number))
    assert seen == list(range(wanted))
    assert page.value("document.querySelector('a').className") == "skip"


def test_whatever_can_be_used_or_seen_has_a_name_for_a_screen_reader(page):
    page.call("Accessibility.enable")
    roles = {
        "button",
        "link",
        "image",
        "combobox",
        "searchbox",
        "checkbox",
        "region",
        "navigation",
        "article",
        "heading",
    }
    nodes = [n for n in page.call("Accessibility.getFullAXTree")["nodes"] if n["role"]["value"] in roles]
    assert len({n["role"]["value"] for n in nodes}) >= 8
    assert [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value", "").strip()] == []
    levels = page.value(
        "[...document.querySelectorAll('h1, h2, h3, h4')].filter(h => h.checkVisibility()).map(h => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_sticks_out_of_the_screen_and_the_colours_follow_the_wish(browser, written, width, scheme):
    browser.open(written.as_uri(), width=width, scheme=scheme)
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    dark = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")


def test_without_script_the_page_is_whole_and_shows_no_dead_control(browser, written):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(written.as_uri())
        assert len(column(browser, CASE)) == 4
        assert browser.value("[...document.querySelectorAll('form, .open, .pages')].every(e => !e.checkVisibility())")
        assert browser.value("document.querySelectorAll('.finding').length") == 5
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_it_can_be_printed(page):
    assert page.pdf().startswith(b"%PDF")
    assert page.value("getComputedStyle(document.querySelector('.controls')).display") == "none"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    made = HandMade(changes=bare().changes)
    for n in range(10_000):
        made.add_case(f"case-{n:05d}", dice=((n * 7919) % 10_000) / 10_000)
    path = tmp_path_factory.mktemp("large") / "report.html"
    return write_report(path, title="T", evaluation=made, images=lambda _: None)


def test_ten_thousand_cases_are_sorted_and_filtered_without_waiting(browser, large):
    browser.open(large.as_uri())
    assert len(column(browser, CASE)) == 200
    for number in (DICE, CASE):
        took = browser.value(
            f"(() => {{ const start = performance.now(); document.querySelector('{head(number)}').click();"
            " document.body.offsetHeight; return performance.now() - start; })()"
        )
        # It takes a tenth of a second; a busy machine may need some times as long.
        assert took < 2000
    browser.click(head(DICE))
    assert column(browser, DICE)[:2] == ["0.00", "0.00"]
    assert column(browser, CASE)[1] == "case-07679"  # 7679 x 7919 = 60810001
    browser.type("#case-filter [name=text]", "case-0999")
    assert len(column(browser, CASE)) == 10
    assert browser.problems == []


def test_a_long_table_is_shown_in_pages_and_printed_whole(browser, large):
    browser.open(large.as_uri())
    browser.click("#case-pages [name=after]")
    assert column(browser, CASE)[0] == "case-00200"
    assert browser.value("document.querySelector('#case-pages span').textContent") == "Rows 201 to 400 of 10000"
    browser.click("#case-pages [name=before]")
    assert column(browser, CASE)[0] == "case-00000"
    assert browser.value("document.querySelector('#case-pages [name=before]').disabled")
    browser.value("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.value("document.querySelectorAll('#case-table tbody tr').length") == 10_000
    browser.value("window.dispatchEvent(new Event('afterprint'))")
    assert len(column(browser, CASE)) == 200


def stage(browser):
    """The picture of the viewer: (rows, columns, 3), 0 to 1."""
    top, bottom, left, right = browser.value(
        "(() => { const box = document.querySelector('#viewer canvas').getBoundingClientRect();"
        " return [box.top, box.bottom, box.left, box.right].map(Math.round); })()"
    )
    return imread(io.BytesIO(browser.screenshot()))[top:bottom, left:right, :3]


def is_bluish(picture):
    return (picture[..., 2] - picture[..., 0] > 0.1).sum()


def open_viewer(browser, anchor):
    browser.click(f"#{anchor} .open button")
    wait_for_viewer(browser)


def wait_for_viewer(browser):
    browser.wait("document.getElementById('viewer').dataset.shown !== undefined")
    browser.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def place(browser):
    return browser.value("document.querySelector('#viewer .place').textContent").replace("\u2212", "-")


@needs_viewer
def test_the_viewer_shows_the_volume_with_the_cross_on_the_lesion(page):
    open_viewer(page, "missed-1")
    picture = stage(page)
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50
    assert (picture.mean(axis=-1) > 0.4).mean() > 0.1
    assert is_bluish(picture) > 50
    # (34, 12, 10) by the affine.
    assert place(page).startswith("x -4.0, y 10.6, z 15.0 mm (RAS); grey value ")
    assert place(page).endswith("; in the reference, outside the prediction")
    assert page.value("document.getElementById('viewer-title').textContent") == "Missed lesion 1 in case case 10"


@needs_viewer
def test_a_click_on_a_picture_opens_the_viewer_and_escape_gives_the_focus_back(page):
    page.value("document.querySelector('#false-1 .open button').focus()")
    page.click("#false-1 .plane svg")
    wait_for_viewer(page)
    assert place(page).startswith("x 15.0, y -8.6, z 2.5 mm")
    assert place(page).endswith("; outside the reference, in the prediction")
    page.press("Escape")
    assert page.value("document.getElementById('viewer').open") is False
    assert page.value("document.activeElement.closest('.finding').id") == "false-1"


@needs_viewer
def test_one_case_after_the_other_is_shown(page):
    open_viewer(page, "missed-1")
    page.press("Escape")
    open_viewer(page, "false-1")
    assert place(page).endswith("; outside the reference, in the prediction")
    page.press("Escape")
    open_viewer(page, "missed-1")
    assert place(page).startswith("x -4.0, y 10.6, z 15.0 mm")


@needs_viewer
def test_masks_are_switched_and_faded(page):
    open_viewer(page, "missed-1")
    before = is_bluish(stage(page))
    page.click("#viewer [name=reference]")
    time.sleep(0.2)
    assert is_bluish(stage(page)) < before / 10
    page.click("#viewer [name=reference]")
    choose(page, "#viewer [name=strength]", "0")
    time.sleep(0.2)
    assert is_bluish(stage(page)) < before / 10


@needs_viewer
def test_arrow_keys_move_the_cross_as_it_is_seen_and_it_can_be_brought_back(page):
    open_viewer(page, "missed-1")
    page.value("document.querySelector('#viewer canvas').focus()")
    page.press("ArrowRight")  # the patient's left, lower x
    page.press("ArrowUp")
    page.press("PageUp")
    assert place(page).startswith("x -5.0, y 11.8, z 17.5 mm")
    page.click("#viewer [name=back]")
    assert place(page).startswith("x -4.0, y 10.6, z 15.0 mm")


@needs_viewer
def test_one_plane_can_fill_the_view(page):
    open_viewer(page, "missed-1")
    before = stage(page)
    choose(page, "#viewer [name=view]", "0")
    time.sleep(0.2)
    assert np.abs(stage(page) - before).mean() > 0.02


@needs_viewer
@pytest.mark.parametrize(("view", "right", "down"), [("0", 1, -1), ("1", 1, -1), ("2", -1, -1)])
def test_the_patient_lies_in_the_viewer_as_in_the_pictures(page, view, right, down):
    """The lesion lies to the left, anterior and superior of the middle of the block."""
    open_viewer(page, "missed-1")
    choose(page, "#viewer [name=view]", view)
    time.sleep(0.2)
    picture = stage(page)
    lesion = np.argwhere(picture[..., 2] - picture[..., 0] > 0.1).mean(axis=0)
    block = np.argwhere(picture.mean(axis=-1) > 0.4)
    middle = (block.min(axis=0) + block.max(axis=0)) / 2
    assert (np.sign(lesion - middle) == (down, right)).all()


@needs_viewer
def test_everything_in_the_viewer_has_a_name_and_the_tab_key_stays_inside(page):
    open_viewer(page, "missed-1")
    for _ in range(12):
        page.press("Tab")
        assert page.value("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    page.call("Accessibility.enable")
    roles = {"button", "checkbox", "slider", "combobox", "dialog"}
    nodes = [n for n in page.call("Accessibility.getFullAXTree")["nodes"] if n["role"]["value"] in roles]
    assert {n["role"]["value"] for n in nodes} == roles
    assert all(n["name"]["value"] for n in nodes)


@needs_viewer
def test_without_webgl_the_viewer_says_so(page):
    page.value("HTMLCanvasElement.prototype.getContext = () => null")
    page.click("#missed-1 .open button")
    page.wait("document.querySelector('#viewer .state').textContent.includes('no WebGL 2')")


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A page whose volumes lie beside it."""
    path = tmp_path_factory.mktemp("beside") / "report.html"
    return write_report(path, title="T", evaluation=evaluation(), images=images, viewer_limit_mb=0)


@pytest.fixture
def served(beside):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.split(serve_command(beside.parent))
    assert command[-1] == "8000"
    server = subprocess.Popen(
        [sys.executable, *command[1:-1], str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(200):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@needs_viewer
def test_volumes_beside_the_page_are_shown_from_a_server_of_this_machine(browser, served, beside):
    assert beside.stat().st_size < 1e6
    browser.open(f"{served}/report.html")
    open_viewer(browser, "missed-1")
    assert is_bluish(stage(browser)) > 50
    asked = {address.removeprefix(served) for address in outside(browser)} - {"/favicon.ico"}
    names = {f"/viewer/case-0001-{part}.nii.gz" for part in ("image", "reference", "predicted")}
    assert asked == {"/viewer/widget.js", *names}
    assert [problem for problem in browser.problems if "404" not in problem] == []  # of the icon that browsers look for


@needs_viewer
def test_a_page_opened_as_a_file_says_how_to_serve_the_volumes_beside_it(browser, beside):
    browser.open(beside.as_uri())
    assert "python -m http.server --bind 127.0.0.1" in browser.value(
        "document.querySelector('.viewer-hint').textContent"
    )
    browser.click("#missed-1 .open button")
    browser.wait("document.querySelector('#viewer .state').textContent.includes('Serve the folder')")
    assert browser.problems == []
