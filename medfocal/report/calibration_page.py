"""What a calibration found: lines for the terminal, and a reliability diagram before and after."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medfocal.model import ModelCard, OperatingPoint
from medfocal.progress import say
from medfocal.report.figures import Theme, dress, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medfocal.infer.calibrate import Calibration
    from medfocal.infer.fit import Reliability

    Before = tuple[Reliability, Reliability]

FIGURE = "reliability.png"


def print_calibration(found: Calibration, figure: Path | None) -> None:
    """Tell points, reliability, what is left out and where everything is."""
    fitted = f", {found.num_fitted} of which correction and confidence were fitted on" if found.num_fitted else ""
    say(f"{found.num_cases} cases of {found.num_patients} patients{fitted}")
    if found.voxels is not None:
        made = found.card.correction
        say(f"correction: gamma {made['gamma']}, alpha {made['alpha']} undone, temperature {made['temperature']:.3g}")
        _say_reliability("voxels", found.voxels)
    if found.candidates is not None:
        _say_reliability("candidates", found.candidates)
    for point in found.card.operating_points:
        say(describe_point(point))
    for why in found.left_out:
        say(f"left out: {why}")
    for note in found.notes:
        say(note)
    if figure is not None:
        say(f"the figure is '{figure}'")
    say(f"the record is '{found.record}'")
    say(f"the model is '{found.folder}'")


def describe_point(point: OperatingPoint) -> str:
    """One line: threshold, sensitivity with interval, false positives and guarantee."""
    line = f"{point.name}: threshold {point.threshold:.4g} (from: {point.source})"
    if point.lesion_sensitivity is not None:
        line += f", lesion sensitivity {point.lesion_sensitivity:.2f}"
        if point.lesion_sensitivity_low is not None and point.lesion_sensitivity_high is not None:
            line += f" ({point.lesion_sensitivity_low:.2f} to {point.lesion_sensitivity_high:.2f})"
        line += f" on {point.num_lesions} lesions"
    if point.false_positives_per_case is not None:
        line += f", {point.false_positives_per_case:.2f} false positives per case"
    return line + (f". {guarantee_words(point)}" if point.guarantee is not None else "")


def guarantee_words(point: OperatingPoint) -> str:
    """What a point promises, and for whom; nothing where it promises nothing."""
    made = point.guarantee
    if made is None:
        return ""
    size = f" of {made.min_diameter_mm:g} mm or more" if made.min_diameter_mm else ""
    lesions = f"at most {100 * made.miss_rate:.3g} % of a patient's lesions{size}"
    if made.confidence is None:
        return f"Misses {lesions} in expectation, by patients exchangeable with the {made.num_patients} of calibration"
    return (
        f"Misses {lesions} on average, with a probability of {made.confidence:g} over calibration sets of "
        f"{made.num_patients} patients drawn as future ones are"
    )


def describe_correction(card: ModelCard) -> list[str]:
    """Lines of a model's card on how probabilities, confidences and cases are looked at; nothing where plain."""
    made, lines = card.correction, []
    if card.is_corrected:
        lines.append(
            f"corrected  gamma {made['gamma']}, alpha {made['alpha']} undone, temperature {made['temperature']:.3g}"
        )
    if card.candidates["logistic"] is not None:
        lines.append("confidence by logistic regression on volume, mean and highest probability")
    if card.familiar is not None:
        lines.append(f"familiar   with {card.familiar.get('num_cases')} calibration cases: predict tells others apart")
    return lines


def write_calibration_figure(found: Calibration) -> Path | None:
    """Draw `reliability.png` in the folder of the model; None where nothing was fitted."""
    pairs = {"Voxels": found.voxels, "Candidates": found.candidates}
    drawn = {title: pair for title, pair in pairs.items() if pair is not None}
    if not drawn:
        (found.folder / FIGURE).unlink(missing_ok=True)  # of an earlier calibration
        return None
    return write_png(found.folder / FIGURE, (4.4 * len(drawn), 4.4), partial(_draw, drawn=drawn))


def _draw(figure: Figure, theme: Theme, *, drawn: dict[str, Before]) -> None:
    for place, (title, pair) in enumerate(drawn.items(), start=1):
        _draw_pair(figure.add_subplot(1, len(drawn), place), theme, title, pair)


def _draw_pair(axes: Axes, theme: Theme, title: str, pair: Before) -> None:
    dress(axes, theme, title, "mean probability of a bin", "share that is lesion")
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
    looks = (("before", theme.second, "s"), ("after", theme.first, "o"))
    for made, (name, colour, marker) in zip(pair, looks, strict=True):
        axes.plot(
            [one.mean for one in made.bins],
            [one.share for one in made.bins],
            marker=marker,
            color=colour,
            linewidth=1.4,
            label=f"{name}: ECE {made.ece:.3g}",
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(loc="upper left", fontsize=8, labelcolor=theme.ink, facecolor=theme.paper, edgecolor=theme.grid)


def _say_reliability(what: str, pair: Before) -> None:
    names = {"ece": "ECE", "brier": "Brier score", "log_loss": "log loss"}
    told = (f"{words} {getattr(pair[0], name):.3g} to {getattr(pair[1], name):.3g}" for name, words in names.items())
    say(f"reliability of {what}, before to after: {', '.join(told)}")
