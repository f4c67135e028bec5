"""Figures of a run: ROC curves, score histogram, forgetting curve, level signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from gaussad_pl.files import replacing
from gaussad_pl.metrics.image import auroc, roc

GOOD, BAD, ACCENT = "#2a7f9e", "#c8443c", "#555555"


def roc_curves(scores: Mapping[str, Tensor], labels: Tensor) -> Figure:
    """Plot the ROC curve of each named set of scores ``(N,)``."""
    figure, axes = _figure("false positive rate", "true positive rate")
    for (name, values), colour in zip(scores.items(), (ACCENT, GOOD), strict=False):
        fpr, tpr = roc(values, labels)
        axes.plot(fpr, tpr, color=colour, label=f"{name}, AUROC {100 * auroc(values, labels):.1f} %")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, zorder=0)
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    return figure


def histogram(scores: Tensor, labels: Tensor) -> Figure:
    """Plot a histogram of the scores ``(N,)`` of good and bad images in common bins."""
    figure, axes = _figure("anomaly score", "images")
    groups = [scores[labels == label].numpy() for label in (0, 1)]
    names = [f"good ({len(groups[0])})", f"bad ({len(groups[1])})"]
    axes.hist(groups, bins=30, histtype="stepfilled", alpha=0.65, color=[GOOD, BAD], label=names)
    axes.legend(frameon=False)
    return figure


def forgetting_curve(history: Sequence[Mapping[str, float]], signal: str, chosen: int) -> Figure:
    """Plot training loss, forgetting signal and validation AUROC over the epochs, and mark the ``chosen`` epoch."""
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    epochs = [record["epoch"] for record in history]
    curves = {"training loss": "loss", f"held out: {signal}": signal, "augmented copies: AUROC": "auroc"}
    panels = figure.subplots(len(curves), 1, sharex=True)
    for panel, (label, name) in zip(panels, curves.items(), strict=True):
        panel.plot(epochs, [record.get(name, float("nan")) for record in history], color=GOOD, marker="o")
        panel.axvline(chosen, color=BAD, linestyle="--")
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(f"dashed: chosen epoch {chosen}, selected without defect images", fontsize=10)
    panels[-1].set_xlabel("epoch (0 is the frozen network)")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def level_bars(levels: Mapping[str, Any]) -> Figure:
    """Plot the AUROC of each level for each augmentation; the darker a bar, the larger the weight of its level."""
    figure, axes = _figure("level (0 is the shallowest)", "AUROC, good vs. augmented copies")
    names = list(levels["weights"])
    heaviest = max(levels["weights"].values())
    for place, name in enumerate(names):
        signals = [signal[name] for signal in levels["signals"].values()]
        mean = sum(signals) / len(signals)
        axes.bar(place, mean, color=GOOD, alpha=0.15 + 0.7 * levels["weights"][name] / heaviest)
        axes.plot([place] * len(signals), signals, ".", color=ACCENT, markersize=4)
    axes.axhline(0.5, color="#cccccc", linewidth=1)
    axes.set_xticks(range(len(names)), names)
    return figure


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Save each figure atomically as ``<name>.png`` and return the paths.

    Raises:
        UserError: a file cannot be written.
    """
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150)
    return paths


def _figure(x: str, y: str):  # type: ignore[no-untyped-def]  # matplotlib's own return types
    figure = Figure(figsize=(6, 4.2), layout="constrained")  # not pyplot, which needs a display and explicit closing
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
