"""The page of two models beside each other, and what `medfocal compare` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.evaluate.compare import Difference, PairedComparison, SizeDifference, place_of
from medfocal.evaluate.mcnemar import McNemar
from medfocal.report.figures import Drawing, Theme, draw_figure, dress
from medfocal.report.page import package_versions, write_page
from medfocal.report.tables import Notes, Shown, count, hit_rule_words, number, percent, protocol_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "lesion_sensitivity": "Lesion sensitivity",
    "false_positives_per_case": "False positives per case",
    "cpm": "CPM, mean lesion sensitivity of the protocol's rates",
    "wafroc": "wAFROC",
    "wafroc1": "wAFROC1, with the false candidates of all cases",
}
#: Figures whose difference is drawn in one axis, all being shares.
DRAWN = ("lesion_sensitivity", "cpm", "wafroc", "wafroc1")


def write_comparison_page(path: Path, comparison: PairedComparison, *, a: str, b: str) -> Path:
    """Write one HTML file that needs nothing else.

    Args:
        path: Of the HTML file; it appears once it is complete.
        comparison: What to show.
        a: What a is, such as its folder.
        b: What b is.

    Returns:
        `path`.
    """
    c = comparison
    summary = c.to_dict()
    notes = Notes.of(summary)
    content = {
        "title": "Two models compared",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": ", ".join(
            (count(c.num_cases, "case"), count(c.num_patients, "patient"), count(c.num_lesions, "lesion"))
        ),
        "models": (("a", a), ("b", b)),
        "answer": c.sentence,
        "warnings": c.warnings,
        "drawing": draw_differences(c),
        "rows": [_row(difference, c, notes) for difference in c.differences],
        "method": next((d.method for d in c.differences if not math.isnan(d.low)), "no interval"),
        "level": f"{100 * c.primary.level:g}",
        "swaps": count(c.num_permutations, "swap"),
        "is_exact": c.is_exact,
        "tests": _tests(c, notes),
        "test_method": c.mcnemar.method,
        "thresholds": [
            (name, "no candidate may count" if math.isinf(threshold) else f"{threshold:.4g}")
            for name, threshold in (("a", c.threshold_a), ("b", c.threshold_b))
        ],
        "hit_rule": hit_rule_words(summary["protocol"]),
        "rules": protocol_rows(summary["protocol"]),
        "versions": package_versions(),
        "undefined": notes.lines,
    }
    return write_page(path, "comparison.html.j2", content)


def print_comparison(comparison: PairedComparison, places: Mapping[str, Path]) -> None:
    """Print the verdict, every figure with the interval of its difference, and where the results lie."""
    names = {d: _name(d) for d in comparison.differences}
    width = max(map(len, names.values()))
    lines = [comparison.sentence, *(f"warning: {line}" for line in comparison.warnings), ""]
    lines.append(f"  {'':<{width}}       a       b   b - a  interval            p")
    for difference, name in names.items():
        lines.append(f"  {name:<{width}}  {_printed(difference)}")
    place_width = max(map(len, places))
    lines += ["", *(f"  {name:<{place_width}}  {place}" for name, place in places.items())]
    print("\n".join(lines), flush=True)


def draw_differences(comparison: PairedComparison) -> Drawing:
    """Draw the difference of every figure that is a share, with its interval; the figure of the verdict stands out."""
    drawn = [d for d in comparison.differences if d.figure in DRAWN and not math.isnan(d.difference)]
    words = f"Differences b less a with intervals. {comparison.sentence} The table holds the same numbers."
    height = 1.1 + 0.3 * max(1, len(drawn))

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.add_subplot()
        dress(
            axes, theme, "Difference, b \u2212 a", "worse than a  \u2190  percentage points  \u2192  better than a", ""
        )
        axes.axvline(0, color=theme.muted, linewidth=1)
        for place, difference in enumerate(drawn):
            is_primary = difference == comparison.primary
            axes.errorbar(
                [100 * difference.difference],
                [place],
                xerr=_arms(difference),
                fmt="D" if is_primary else "o",
                color=theme.second if is_primary else theme.first,
                markersize=6,
                elinewidth=1.4,
                capsize=3,
            )
        axes.set_yticks(range(len(drawn)), labels=[_short(difference) for difference in drawn])
        axes.set_ylim(max(1, len(drawn)) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")

    return draw_figure((7.0, height), words, draw)


def _arms(difference: Difference) -> list[list[float]] | None:
    if math.isnan(difference.low):
        return None
    value = difference.difference
    return [[100 * max(0.0, value - difference.low)], [100 * max(0.0, difference.high - value)]]


def _name(difference: Difference) -> str:
    rate = difference.false_positives_per_case
    if difference.figure in {"lesion_sensitivity", "false_positives_per_case"}:
        where = (
            "at the threshold" if math.isnan(rate) else f"at {rate:g} false positive{'' if rate == 1 else 's'} per case"
        )
        return f"{LABELS[difference.figure]} {where}"
    return LABELS[difference.figure]


def _short(difference: Difference) -> str:
    rate = difference.false_positives_per_case
    if difference.figure == "lesion_sensitivity":
        return "sensitivity at the threshold" if math.isnan(rate) else f"sensitivity at {rate:g} FP per case"
    return {"cpm": "CPM", "wafroc": "wAFROC", "wafroc1": "wAFROC1"}[difference.figure]


def _row(difference: Difference, comparison: PairedComparison, notes: Notes) -> dict[str, Any]:
    where = place_of(difference.false_positives_per_case)

    def shown(value: float) -> Shown:
        return notes.show(number(value, 3), difference.figure, where)

    is_defined = not math.isnan(difference.difference)
    ends = f"{_signed(difference.low)} to {_signed(difference.high)}" if not math.isnan(difference.low) else None
    what = f"{difference.figure}: interval" if is_defined else difference.figure
    return {
        "name": _name(difference),
        "is_primary": difference == comparison.primary,
        "a": shown(difference.a),
        "b": shown(difference.b),
        "difference": notes.show(_signed(difference.difference) if is_defined else None, difference.figure, where),
        "interval": notes.show(ends, what, where),
        "p": notes.show(_p(difference.p), difference.figure, where),
    }


def _tests(comparison: PairedComparison, notes: Notes) -> list[dict[str, Any]]:
    every = comparison.mcnemar
    shares = (comparison.primary.a, comparison.primary.b)
    rows = [_test("All lesions", "all lesions", shares, every, notes) | {"p_holm": Shown("")}]
    return rows + [_test_of_size(row, notes) for row in comparison.by_size]


def _test_of_size(row: SizeDifference, notes: Notes) -> dict[str, Any]:
    label = f"{row.low:g} to {row.high:g} mm" if math.isfinite(row.high) else f"{row.low:g} mm and more"
    where = f"lesions of {row.low:g} to {row.high:g} mm"
    of_test = _test(label, where, (row.a, row.b), row.mcnemar, notes)
    return of_test | {"p_holm": notes.show(_p(row.p_holm), "mcnemar", where)}


def _test(label: str, where: str, shares: Sequence[float], test: McNemar, notes: Notes) -> dict[str, Any]:
    return {
        "label": label,
        "num_lesions": test.num_both + test.num_only_a + test.num_only_b + test.num_neither,
        "num_patients": test.num_patients,
        "shares": [notes.show(percent(share), "mcnemar", where) for share in shares],
        "num_only_a": test.num_only_a,
        "num_only_b": test.num_only_b,
        "p": notes.show(_p(test.p), "mcnemar", where),
    }


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + (number(value, 3) or "")


def _p(p: float) -> str | None:
    if math.isnan(p):
        return None
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _printed(difference: Difference) -> str:
    if math.isnan(difference.difference):
        return "undefined"
    values = f"{difference.a:>6.3f}  {difference.b:>6.3f}  {difference.difference:>+6.3f}"
    interval = "none" if math.isnan(difference.low) else f"{difference.low:+.3f} to {difference.high:+.3f}"
    return f"{values}  {interval:<16}  {_p(difference.p):>7}"
