"""Curves of one cell of the table, as inline SVG that follows the light or dark colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from gaussad_pl.reporting.runs import Forgetting
from gaussad_pl.reporting.scores import Scores

# placeholder colours, replaced by the CSS variables of the page
INK, MUTED, GRID, GOOD, BAD, BEFORE = (f"#{i:02}{i:02}{i:02}" for i in range(1, 7))
THRESHOLD = "threshold at 5 %"
HEADROOM = 1.4  # height of a histogram in units of its content: room for the legend
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", GOOD: "--good", BAD: "--bad", BEFORE: "--warn"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9.5,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": GRID,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def roc_figure(final: Sequence[Scores], frozen: Sequence[Scores], name: str) -> Markup | None:
    """Draw one ROC curve per run; ``frozen`` is empty if fine-tuning changed none of the runs.

    Returns:
        None if no run has scores of both classes.
    """
    final, frozen = ([one for one in many if one.both_classes] for many in (final, frozen))
    if not final:
        return None
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"roc {name}"}):
        figure, axes = _figure("false positive rate", "true positive rate")
        axes.plot([0, 1], [0, 1], color=GRID, linewidth=0.8)
        for many, colour, label in ((frozen, BEFORE, "frozen"), (final, GOOD, "final")):
            for i, one in enumerate(many):
                fpr, tpr, _ = roc_curve(one.labels, one.scores)
                axes.plot(fpr, tpr, color=colour, linewidth=_thin(many), label="" if i else f"{label}, {_count(many)}")
        axes.legend(loc="lower right")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        return _svg(figure, f"ROC curves of {name}")


def histogram_figure(final: Sequence[Scores], thresholds: Sequence[float], name: str) -> Markup | None:
    """Draw the scores of good and bad images in common bins, one outline per run; the last bin holds the far tail.

    ``thresholds`` are those of the runs for a false-alarm rate of 5 %; infinite ones and NaN are left out.
    """
    if not final:
        return None
    pooled = np.concatenate([one.scores for one in final])
    low, high, most = pooled.min(), np.quantile(pooled, 0.98), pooled.max()
    cut = bool(most > high + 0.5 * (high - low))  # otherwise a few outliers would squeeze all other scores into one bin
    edges = np.linspace(low, high if cut else most, 26) if most > low else np.linspace(low - 0.5, low + 0.5, 26)
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"histogram {name}"}):
        figure, axes = _figure("image score" + (" (last bin: and above)" if cut else ""), "images")
        for label, colour, title in ((0, GOOD, "good"), (1, BAD, "bad")):
            groups = [one.scores[one.labels == label].clip(max=edges[-1]) for one in final]
            groups = [group for group in groups if len(group)]
            for i, group in enumerate(groups):
                counts, _ = np.histogram(group, edges)
                axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25 / len(groups))
                axes.stairs(counts, edges, color=colour, linewidth=_thin(groups), label="" if i else title)
        inside = [each for each in thresholds if edges[0] <= each <= edges[-1]]
        for i, threshold in enumerate(inside):
            name_once = "" if i else THRESHOLD
            axes.axvline(threshold, 0, 1 / HEADROOM, color=INK, ls="--", lw=_thin(inside), label=name_once)
        axes.set_ylim(top=HEADROOM * axes.get_ylim()[1])
        axes.legend(loc="upper right")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure, f"score histogram of {name}")


def forgetting_figure(curves: Sequence[Forgetting], name: str) -> Markup | None:
    """Draw the forgetting signal over the epochs, one line per run.

    A dot marks the epoch used, a ring the best epoch of a run that used none.
    """
    curves = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not curves:
        return None
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"forgetting {name}"}):
        figure, axes = _figure("epoch (0: frozen)", f"held out: {', '.join({curve.signal for curve in curves})}")
        for curve in curves:
            axes.plot(curve.epochs, curve.values, color=GOOD, linewidth=_thin(curves))
            chosen = [value for epoch, value in zip(curve.epochs, curve.values, strict=True) if epoch == curve.chosen]
            face = BAD if curve.used else "none"
            axes.plot([curve.chosen] * len(chosen), chosen, "o", color=BAD, markerfacecolor=face, markersize=5)
        for used, label in ((True, "epoch used"), (False, "best epoch, not used")):
            if any(curve.used == used for curve in curves):
                axes.plot([], [], "o", color=BAD, markerfacecolor=BAD if used else "none", markersize=5, label=label)
        axes.legend(loc="best")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure, f"forgetting curves of {name}")


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.7, 2.8), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    return figure, axes


def _thin(many: Sequence[object]) -> float:
    return 1.6 if len(many) == 1 else 0.9


def _count(many: Sequence[object]) -> str:
    return f"{len(many)} run{'s' if len(many) > 1 else ''}"


def _svg(figure: Figure, title: str) -> Markup:
    """Return a figure as SVG for an HTML page: without prologue, metadata and unreferenced ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    view = re.search(r'viewBox="[^"]*"', text)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)  # the page's own font
    body = re.sub(r"\s*\n\s*", "\n", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    label = Markup.escape(title)
    return Markup(f'<svg {view[0] if view else ""} role="img" aria-label="{label}">{body}')
