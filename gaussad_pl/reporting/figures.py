"""Curves of one cell of the table, drawn once: for the page, whose colours they follow, and as SVG and PDF files."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from gaussad_pl.reporting.runs import Forgetting
from gaussad_pl.reporting.scores import Scores

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports each font in a PDF file line by line

# the light colours of page.css; the page replaces each by its CSS variable
INK, MUTED, GRID, GOOD, BAD = "#1d2329", "#5b6670", "#dfe3e6", "#1f7896", "#c23b33"
RUNS = ("#2a6fbb", "#c2571a", "#4b8b3b", "#8a4fa3", "#9a7d00", "#c2407a", "#00857a", "#7a4a2b")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", GOOD: "--good", BAD: "--bad"}
VARIABLES |= {colour: f"--run-{i}" for i, colour in enumerate(RUNS, start=1)}
Place = Literal["lower right", "best"]
THRESHOLD = "threshold at 5 %"
HEADROOM = 1.4  # height of a histogram in units of its content: room for the legend
PANELS = 6  # most histograms of a cell
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False, "font.size": 9.5, "legend.fontsize": 8.5,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": GRID,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure as text of an SVG file and content of a PDF file."""

    title: str
    svg: str
    pdf: bytes

    @property
    def inline(self) -> Markup:
        """The figure for an HTML page: without prologue, metadata and unreferenced ids, in the colours of the page."""
        body = self.svg[self.svg.index(">", self.svg.index("<svg")) + 1 :]
        view = re.search(r'viewBox="[^"]*"', self.svg)
        body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
        body = re.sub(r'<g id="[^"]*"', "<g", body)
        body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
        body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)  # the page's own font
        body = re.sub(r"\s*\n\s*", "\n", body)
        for colour, variable in VARIABLES.items():
            body = body.replace(colour, f"var({variable})")
        label = Markup.escape(self.title)
        return Markup(f'<svg {view[0] if view else ""} role="img" aria-label="{label}">{body}')


def roc_figure(final: Mapping[str, Scores], frozen: Mapping[str, Scores], name: str) -> Drawing | None:
    """Draw the ROC curve of each run, by label; ``frozen`` is empty if fine-tuning changed none of the runs.

    Returns:
        None if no run has scores of both classes.
    """
    final, frozen = ({run: one for run, one in many.items() if one.both_classes} for many in (final, frozen))
    if not final:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _figure("false positive rate", "true positive rate")
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=0.8)
        colours = _colours([*final, *frozen])
        for many, style in ((frozen, "--"), (final, "-")):
            for run, one in many.items():
                fpr, tpr, _ = roc_curve(one.labels, one.scores)
                axes.plot(fpr, tpr, style, color=colours[run], linewidth=_width(final))
        _run_legend(axes, colours, {"frozen": {"color": MUTED, "linestyle": "--"}} if frozen else {}, "lower right")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        return _drawing(figure, f"ROC curves of {name}")


def histogram_figure(final: Mapping[str, Scores], thresholds: Mapping[str, float], name: str) -> Drawing | None:
    """Draw the scores of good and bad images of each run, by label; the last bin holds the far tail.

    The scores of different runs have different scales, so that each run has axes of its own, at most `PANELS` runs.

    Args:
        final: scores of the runs.
        thresholds: of the runs for a false-alarm rate of 5 %; infinite ones and NaN are left out.
        name: of the cell.
    """
    if not final:
        return None
    shown = dict(list(final.items())[:PANELS])
    with mpl.rc_context(STYLE):
        height = 2.8 if len(shown) == 1 else 0.6 + 1.1 * len(shown)
        figure = Figure(figsize=(3.7, height), layout="constrained")
        for i, (run, one) in enumerate(shown.items()):
            axes = figure.add_subplot(len(shown), 1, i + 1)
            _histogram(axes, one, thresholds.get(run, np.nan))
            if len(shown) > 1:
                axes.set_title(run, loc="left", fontsize=8.5, color=MUTED, pad=2)
            if i == 0:
                axes.legend(loc="upper right", ncols=1 if len(shown) == 1 else 3)
        figure.axes[-1].set_xlabel("image score" + ("" if len(shown) == 1 else ", on the scale of each run"))
        return _drawing(figure, f"score histogram of {name}")


def _histogram(axes: Axes, one: Scores, threshold: float) -> None:
    low, high, most = one.scores.min(), np.quantile(one.scores, 0.98), one.scores.max()
    cut = bool(most > high + 0.5 * (high - low))  # otherwise a few outliers would squeeze all other scores into one bin
    edges = np.linspace(low, high if cut else most, 26) if most > low else np.linspace(low - 0.5, low + 0.5, 26)
    for label, colour, title in ((0, GOOD, "good"), (1, BAD, "bad")):
        group = one.scores[one.labels == label].clip(max=edges[-1])
        if len(group):
            counts, _ = np.histogram(group, edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(counts, edges, color=colour, linewidth=1.2, label=title)
    if edges[0] <= threshold <= edges[-1]:
        axes.axvline(threshold, 0, 1 / HEADROOM, color=INK, ls="--", lw=1, label=THRESHOLD)
    axes.set_ylim(top=HEADROOM * axes.get_ylim()[1])
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if cut:
        axes.set_title("last bin: and above", loc="right", fontsize=8.5, color=MUTED, pad=2)


def forgetting_figure(curves: Mapping[str, Forgetting], name: str) -> Drawing | None:
    """Draw the forgetting signal over the epochs of each run, by label.

    A dot marks the epoch used, a ring the best epoch of a run that used none.
    """
    curves = {run: curve for run, curve in curves.items() if np.isfinite(curve.values).any()}
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        signals = dict.fromkeys(curve.signal for curve in curves.values())
        figure, axes = _figure("epoch (0: frozen)", f"held out: {', '.join(signals)}")
        colours = _colours(list(curves))
        for run, curve in curves.items():
            axes.plot(curve.epochs, curve.values, color=colours[run], linewidth=_width(curves))
            chosen = [value for epoch, value in zip(curve.epochs, curve.values, strict=True) if epoch == curve.chosen]
            face = colours[run] if curve.used else "none"
            axes.plot([curve.chosen] * len(chosen), chosen, "o", color=colours[run], markerfacecolor=face, markersize=5)
        marks = {
            label: {"color": MUTED, "marker": "o", "linestyle": "", "markerfacecolor": MUTED if used else "none"}
            for used, label in ((True, "epoch used"), (False, "best epoch, not used"))
            if any(curve.used == used for curve in curves.values())
        }
        _run_legend(axes, colours, marks, "best")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _drawing(figure, f"forgetting curves of {name}")


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.7, 2.8), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    return figure, axes


def _colours(runs: Sequence[str]) -> dict[str, str]:
    """Give each run a colour; with more runs than `RUNS`, they begin again."""
    return {run: RUNS[i % len(RUNS)] for i, run in enumerate(dict.fromkeys(runs))}


def _run_legend(axes: Axes, colours: Mapping[str, str], marks: Mapping[str, dict[str, Any]], place: Place) -> None:
    """Name the runs, unless there are more than colours, and the marks."""
    if 1 < len(colours) <= len(RUNS):
        for run, colour in colours.items():
            axes.plot([], [], color=colour, label=run)
    for label, look in marks.items():
        axes.plot([], [], label=label, **look)
    if entries := len(axes.get_legend_handles_labels()[0]):
        axes.legend(loc=place, ncols=1 if entries <= 4 else 2)


def _width(many: Mapping[str, object]) -> float:
    return 1.6 if len(many) == 1 else 1.1


def _drawing(figure: Figure, title: str) -> Drawing:
    """Render a figure; equal figures become equal files."""
    text, pdf = io.StringIO(), io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    figure.savefig(pdf, format="pdf", transparent=True, metadata={"CreationDate": None})
    return Drawing(title, text.getvalue(), pdf.getvalue())
