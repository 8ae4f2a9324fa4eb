"""One HTML file that tells how good a prediction is, and shows the lesions it missed and its false candidates."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import platform
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medfocal import __version__
from medfocal.files import atomic_write, plain
from medfocal.report.figures import best_epoch, draw_froc, draw_training, read_metrics
from medfocal.report.gallery import Gallery, Images, make_gallery
from medfocal.report.hit_rules import hit_rules_section
from medfocal.report.pictures import FIELD_MM
from medfocal.report.readers import readers_section
from medfocal.report.reliability import reliability_section
from medfocal.report.strata import strata_section
from medfocal.report.tables import (
    MEASURES,
    SHARES,
    Notes,
    Records,
    Shown,
    SupportsEvaluation,
    answer,
    count,
    false_positive_words,
    hit_rule_words,
    interval,
    number,
    percent,
    protocol_rows,
    records_of,
    sensitivity_words,
    volume,
)
from medfocal.report.viewer import LIMIT_MB, Viewer, ViewerFiles, find_library, remove_volumes, serve_command
from medfocal.report.visits import draw_visits, read_visits

PACKAGES = ("numpy", "scipy", "connected-components-3d", "nibabel", "SimpleITK", "torch", "monai", "matplotlib")
#: Most names of failed or missing cases that the page lists; evaluation.json has them all.
NUM_NAMED = 20

# How the evaluation names these in its list of what is undefined.
ALL_CASES = "all cases"
FROC_UNDEFINED = "froc: lesion_sensitivity of points and curve, cpm"
DICE_UNDEFINED = "voxel_dice: mean and median"

SURFACES = {
    "hd95_mm": "HD95, larger of both directions (mm)",
    "hd95_pooled_mm": "HD95, both directions pooled (mm)",
    "assd_mm": "ASSD (mm)",
    "masd_mm": "MASD (mm)",
    "nsd": "NSD",
}


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: SupportsEvaluation | str | Path,
    images: Images,
    metrics: Path | None = None,
    visits: Path | None = None,
    facts: Mapping[str, str] | None = None,
    max_pictures: int = 60,
    viewer_limit_mb: float = LIMIT_MB,
) -> Path:
    """Write the report of an evaluation as one HTML file that needs no network.

    Where there are more missed lesions and false candidates than `max_pictures`, the largest lesions and the most
    confident candidates are shown, as many of the one as of the other while both last, and the page says how many were
    left out.

    With the extra `viewer` installed, a click on a finding opens its case in NiiVue. The volumes of the cases shown
    stand in the page, or beside it in the folder `viewer` where they are more than `viewer_limit_mb`; browsers read
    that folder only from a server (`serve_command`). Volumes of an earlier report in that folder are removed.

    Args:
        path: Of the HTML file; it appears once it is complete.
        title: Heading of the page.
        evaluation: What `evaluate_cases` gave, or a folder that `write_evaluation` wrote.
        images: Gives the volumes of a case by its name, or None where no picture can be had. It is asked once for each
            case that has something to show.
        metrics: metrics.csv of a training run, for the training curves.
        visits: visits.csv of the same run, for how often it saw each lesion.
        facts: Further lines about the run, label and text.
        max_pictures: Most findings to show.
        viewer_limit_mb: Most megabytes of compressed volumes that the page holds itself.

    Returns:
        `path`.

    Raises:
        InputError: A folder or `metrics` cannot be used, or `viewer` beside the page is something else.
        GeometryError: The volumes of a case do not fit each other.
    """
    if max_pictures < 0:
        message = f"max_pictures must be 0 or more, got {max_pictures}"
        raise ValueError(message)
    path = Path(path)
    remove_volumes(path.parent)
    records = records_of(evaluation)
    notes = Notes.of(records.summary)
    library = find_library()
    with contextlib.ExitStack() as stack:
        files = None if library is None else stack.enter_context(ViewerFiles(path, library))
        gallery = make_gallery(records, images, notes, max_pictures=max_pictures, files=files)
        viewer = None if files is None else files.finish(viewer_limit_mb)
    content = _content(title, records, notes, facts or {}) | _training(metrics, visits)
    content |= _findings(gallery, records, notes) | _viewer(viewer, path.parent, has_library=library is not None)
    # Last: the sections above have added what they met.
    return write_page(path, "page.html.j2", content | {"undefined": notes.lines})


def _training(metrics: Path | None, visits: Path | None) -> dict[str, Any]:
    """What the page says of the run that made a model."""
    if metrics is None:
        return {"training": None, "best": None, "visits": None}
    epochs = read_metrics(metrics)
    seen = None if visits is None else draw_visits(read_visits(visits))
    figures = [*draw_training(epochs), *([] if seen is None else [seen])]
    return {"training": figures, "best": best_epoch(epochs), "visits": None if seen is None else seen.words}


def _content(title: str, records: Records, notes: Notes, facts: Mapping[str, str]) -> dict[str, Any]:
    summary = records.summary
    return {
        "title": title,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": _subtitle(records),
        "answer": answer(summary),
        "claim": summary["claim"],
        "alerts": _alerts(summary),
        "headlines": _headlines(records, notes),
        "hit_rule": hit_rule_words(summary["protocol"]),
        "level": percent(summary["protocol"]["level"]),
        "protocol": protocol_rows(summary["protocol"]),
        "strata": strata_section(summary),
        "measures": _measures(summary, notes),
        "counts": _counts(summary),
        "froc": draw_froc(summary),
        "points": _points(summary, notes),
        "cpm": notes.show(number(summary["froc"]["cpm"], 3), FROC_UNDEFINED, ALL_CASES),
        "hit_rules": hit_rules_section(summary),
        "reliability": reliability_section(summary, notes),
        "threshold": f"{summary['protocol']['threshold']:.3g}",
        "readers": readers_section(summary, notes),
        "classes": _classes(summary, notes),
        "surfaces": _surfaces(summary, notes),
        "published": _published(summary, notes),
        "facts": [(str(label), str(text)) for label, text in facts.items()],
        "versions": package_versions(),
    }


def _findings(gallery: Gallery, records: Records, notes: Notes) -> dict[str, Any]:
    surfaces = records.summary["surface"] is not None
    return {
        "gallery": gallery,
        "field_mm": f"{FIELD_MM:g}",
        "surface_columns": surfaces,
        "cases": _case_rows(records, notes, gallery, surfaces=surfaces),
    }


def _viewer(viewer: Viewer | None, folder: Path, *, has_library: bool) -> dict[str, Any]:
    scripts = [_own_script("script.js"), *([] if viewer is None else [_own_script("viewer.js")])]
    sources = [f"'sha256-{_sha256(script)}'" for script in scripts]
    connect = ""
    if viewer is not None:
        # The script of the viewer becomes a blob, which only the scripts named by their hashes can make.
        sources.append("blob:" if viewer.embedded else "'self'")
        connect = "" if viewer.embedded else "; connect-src 'self'"
    return {
        "viewer": viewer,
        "has_library": has_library,
        "serve_command": serve_command(folder),
        "scripts": scripts,
        "script_policy": f"script-src {' '.join(sources)}{connect}",
    }


def _own_script(name: str) -> str:
    from markupsafe import Markup

    return Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))  # noqa: S704  our own file, not input


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fill one of the templates beside this module; a name that it uses and `content` lacks is an error.

    Returns:
        `path`, which appears once it is complete.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medfocal.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(content)
    with atomic_write(path) as file:
        file.write(html)
    return path


def _subtitle(records: Records) -> str:
    summary = records.summary
    return ", ".join(
        (
            count(summary["num_cases"], "case"),
            count(summary["num_patients"], "patient"),
            count(summary["num_lesions"], "lesion"),
            *([count(summary["num_ignored_lesions"], "lesion") + " ignored"] if summary["num_ignored_lesions"] else []),
            f"protocol {summary['protocol']['name']}",
            f"confidence threshold {summary['protocol']['threshold']:.3g}",
        )
    )


def _alerts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a reader must know before any number: cases that are not in it, and the evaluation's warnings."""
    alerts: list[dict[str, Any]] = []
    failed, missing = summary["failed"], summary["missing"]
    if failed:
        words = f"{count(len(failed), 'case')} could not be evaluated and {_is(len(failed))} in no number of this page."
        alerts.append({"words": words, "names": [f"{line['case']}: {line['error']}" for line in failed]})
    if missing:
        words = f"{count(len(missing), 'case')} had no prediction and {_is(len(missing))} counted as nothing found."
        alerts.append({"words": words, "names": [str(name) for name in missing]})
    for alert in alerts:
        more = len(alert["names"]) - NUM_NAMED
        alert["more"] = max(0, more)
        alert["names"] = alert["names"][:NUM_NAMED]
    return alerts + [{"words": str(words), "names": [], "more": 0} for words in summary["warnings"]]


def _is(amount: int) -> str:
    return "is" if amount == 1 else "are"


def _headlines(records: Records, notes: Notes) -> list[dict[str, Any]]:
    summary = records.summary
    sensitivity, false_positives = summary["lesion_sensitivity"], summary["false_positives_per_case"]
    dice = summary["voxel_dice"]
    share = percent(sensitivity["value"])
    dice_words = f"Mean of {count(dice['num_cases'], 'case')}"
    dice_words += f", median {number(dice['median'])}." if dice["median"] is not None else "."
    if dice["num_undefined"]:
        dice_words += f" Undefined in {count(dice['num_undefined'], 'case')}, left out."
    return [
        {
            "label": "Lesions found",
            "value": notes.show(
                share and f"{summary['num_detected_lesions']} of {summary['num_lesions']}",
                "lesion_sensitivity",
                ALL_CASES,
            ),
            "unit": f"= {share}" if share else "",
            "words": sensitivity_words(sensitivity) if share else "There is no lesion to find.",
        },
        {
            "label": "False candidates per case",
            "value": notes.show(number(false_positives["value"]), "false_positives_per_case", ALL_CASES),
            "unit": f"{summary['num_false_candidates']} in {count(summary['num_cases'], 'case')}",
            "words": false_positive_words(false_positives),
        },
        {
            "label": "Voxel Dice",
            "value": notes.show(number(dice["mean"]), DICE_UNDEFINED, ALL_CASES),
            "unit": "",
            "words": dice_words,
        },
        {
            "label": "Cases",
            "value": Shown(str(summary["num_cases"])),
            "unit": f"of {count(summary['num_patients'], 'patient')}",
            "words": f"{count(summary['num_lesion_free_cases'], 'case')} without any lesion.",
        },
    ]


def _counts(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Counts that are neither found nor missed, neither true nor false, and how often marks split or merge."""
    labels = {
        "num_ignored_lesions": "Lesions ignored by the protocol",
        "num_ignored_candidates": "Candidates ignored by the protocol",
        "num_double_candidates": "Further candidates on found lesions that count as neither",
        "num_split_lesions": "Lesions hit by two or more candidates (splits)",
        "num_merging_candidates": "Candidates that hit two or more lesions (merges)",
        "num_hit_missed_lesions": "Missed lesions that a candidate hits which counts for another or for none",
    }
    return [(label, summary[key], key) for key, label in labels.items()]


def _measures(summary: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    """List every figure of the evaluation with its interval, those this version has no label for by their key."""
    froc, calibration = summary["froc"], summary["calibration"] or {}
    cpm = {"value": froc["cpm"], "low": froc["cpm_low"], "high": froc["cpm_high"], "method": froc["method"]}
    rates = dict(summary) | {"cpm": cpm} | {key: calibration[key] for key in ("brier", "d_ece") if key in calibration}
    for key in ("voxel_dice", "volume_difference_ml"):
        rates[key] = rates[key] | {"value": rates[key]["mean"]}
    absolute = "mean_absolute_volume_difference_ml"
    rates[absolute] = {"value": summary[absolute]}
    known = [key for key in MEASURES if key in rates]
    others = [
        key for key, rate in rates.items() if key not in MEASURES and isinstance(rate, Mapping) and "value" in rate
    ]
    return [_measure(key, rates[key], notes) for key in (*known, *others)]


def _measure(key: str, rate: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    text = percent if key in SHARES else _three_digits if "method" in rate and key not in MEASURES else number
    fraction = [_amount(rate.get(part)) for part in ("numerator", "denominator")]
    what = {"cpm": FROC_UNDEFINED, "voxel_dice": DICE_UNDEFINED}.get(key, key)
    return {
        "label": MEASURES.get(key, key),
        "key": key,
        "value": notes.show(text(rate["value"]), what, ALL_CASES),
        "interval": interval(rate, text),
        "fraction": f"{fraction[0]} / {fraction[1]}" if all(fraction) else "",
        "patients": number(rate.get("num_patients"), 0) or "",
        "deff": number(rate.get("deff")) or "",
        "method": rate.get("method") or "",
    }


def _three_digits(value: float | None) -> str | None:
    return number(value, 3)


def _amount(value: float | None) -> str | None:
    """Write a count, or an amount such as a mean over patients or a volume, which need not be whole."""
    if value is None or float(value).is_integer():
        return number(value, 0)
    return f"{value:.4g}"


def _points(summary: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    rows = []
    for point in summary["froc"]["points"]:
        at = f"{point['false_positives_per_case']:g}"
        threshold = None if point["threshold"] is None else f"{point['threshold']:.3g}"
        rows.append(
            {
                "rate": at,
                "value": notes.show(percent(point["lesion_sensitivity"]), FROC_UNDEFINED, ALL_CASES),
                "interval": interval(point, percent),
                "threshold": notes.show(threshold, "froc: threshold", f"{at} false positives per case"),
                "reached": point["reached"],
            }
        )
    return rows


def _classes(summary: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            # A folder may have any name; it must not become an address of another kind.
            "href": "./" + urllib.parse.quote(f"{found['folder']}/report.html"),
            "lesions": f"{found['num_detected_lesions']} of {found['num_lesions']}",
            "sensitivity": notes.show(
                percent(found["lesion_sensitivity"]["value"]), "lesion_sensitivity", f"class {name}"
            ),
            "sensitivity_interval": interval(found["lesion_sensitivity"], percent),
            "false": notes.show(
                number(found["false_positives_per_case"]["value"]), "false_positives_per_case", f"class {name}"
            ),
            "false_interval": interval(found["false_positives_per_case"], number),
            "dice": notes.show(number(found["voxel_dice"]["mean"]), "voxel_dice", f"class {name}"),
        }
        for name, found in summary.get("classes", {}).items()
    ]


def _surfaces(summary: Mapping[str, Any], notes: Notes) -> dict[str, Any] | None:
    found = summary["surface"]
    if found is None:
        return None
    groups = [
        {
            "title": title,
            "rows": [
                {
                    "label": SURFACES[key],
                    "mean": notes.show(number(of["mean"]), f"surface: {key} of {kind}", ALL_CASES),
                    "median": number(of["median"]) or "",
                    "interval": interval(of, number),
                    "number": of[f"num_{kind}"],
                    "undefined": of["num_undefined"],
                    "method": of["method"] or "",
                }
                for key, of in found[kind].items()
            ],
        }
        for kind, title in (("cases", "Whole cases"), ("lesions", "Found lesions, each with its candidate"))
    ]
    return {"tolerance": f"{found['tolerance_mm']:g}", "groups": groups}


def _published(summary: Mapping[str, Any], notes: Notes) -> list[tuple[str, Shown]]:
    figures = summary.get("published") or {}
    return [(str(name), notes.show(_amount(value), str(name), "published figures")) for name, value in figures.items()]


def _case_rows(records: Records, notes: Notes, gallery: Gallery, *, surfaces: bool) -> list[dict[str, Any]]:
    anchors: dict[tuple[str, str], str] = {}
    for finding in (*gallery.missed, *gallery.false):
        anchors.setdefault((finding.kind, finding.case), finding.anchor)
    return [_case_row(plain(row), notes, anchors, surfaces=surfaces) for row in records.cases]


def _case_row(
    row: Mapping[str, Any], notes: Notes, anchors: Mapping[tuple[str, str], str], *, surfaces: bool
) -> dict[str, Any]:
    numbers = {
        "voxel_dice": number(row["voxel_dice"]),
        "reference_volume_ml": volume(row["reference_volume_ml"]),
        "predicted_volume_ml": volume(row["predicted_volume_ml"]),
        "volume_difference_ml": number(row["volume_difference_ml"]),
    }
    if surfaces:
        numbers |= {"hd95_mm": number(row["hd95_mm"], 1), "nsd": number(row["nsd"])}
    where = f"case '{row['case']}'"
    return {
        "case": row["case"],
        "patient": row["patient"] if row["patient"] is not None else "not given",
        "lesions": row["num_lesions"],
        "found": row["num_detected_lesions"],
        "missed": row["num_lesions"] - row["num_detected_lesions"],
        "missed_anchor": anchors.get(("missed", row["case"])),
        "false": row["num_false_candidates"],
        "false_anchor": anchors.get(("false", row["case"])),
        "numbers": [(row[key], notes.show(text, key, where)) for key, text in numbers.items()],
    }


def package_versions() -> list[tuple[str, str]]:
    """Names and versions of this package and of those that its numbers come from."""
    rows = [("medfocal", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows
