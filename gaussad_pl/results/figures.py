"""Figures of a run: ROC curves, score histogram, forgetting curve, level signals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from gaussad_pl.calibration.threshold import Threshold
from gaussad_pl.files import replacing
from gaussad_pl.metrics.image import auroc, roc

BINS = 30
GOOD, BAD, NEUTRAL = "#2a7f9e", "#c8443c", "#555555"


def roc_curves(scores: Mapping[str, Tensor], labels: Tensor) -> Figure:
    """Plot the ROC curve of each named set of scores ``(N,)``."""
    figure, axes = _figure("false positive rate", "true positive rate")
    for (name, values), colour in zip(scores.items(), (NEUTRAL, GOOD), strict=False):
        fpr, tpr = roc(values, labels)
        axes.plot(fpr, tpr, color=colour, label=f"{name}, AUROC {100 * auroc(values, labels):.1f} %")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, zorder=0)
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False)
    return figure


def histogram(scores: Tensor, labels: Tensor, calibration: Tensor, threshold: Threshold) -> Figure:
    """Plot how calibration, good and bad test scores are distributed, each as shares of its images in common bins.

    Args:
        scores: of the test images, ``(N,)``.
        labels: 1 is bad, ``(N,)``.
        calibration: scores of good images that the model has not seen, ``(n,)``; may be empty.
        threshold: of the scores.
    """
    parts = [
        (calibration, NEUTRAL, "calibration"),
        (scores[labels == 0], GOOD, "good test"),
        (scores[labels == 1], BAD, "bad test"),
    ]
    groups = [(values.double().numpy(), colour, name) for values, colour, name in parts if len(values)]
    edges, cut = bins(np.concatenate([values for values, _, _ in groups]), threshold.value)
    figure, axes = _figure("anomaly score" + (" (last bin: this and above)" if cut else ""), "share of the images in %")
    for values, colour, name in groups:
        shares = 100 * np.histogram(values.clip(max=edges[-1]), edges)[0] / len(values)
        label = f"{name} ({len(values)})"
        if colour == NEUTRAL:
            axes.stairs(shares, edges, color=colour, linewidth=1.6, label=label, zorder=3)
        else:
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.55, label=label)
    title = f"no threshold for {100 * threshold.fpr:g} % false alarms: too few calibration images"
    if not threshold.reason:
        title = f"dashed: threshold {threshold.value:.3g} for {100 * threshold.fpr:g} % false alarms"
        axes.axvline(threshold.value, color="black", linestyle="--", linewidth=1.2)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    return figure


def bins(values: NDArray[np.float64], threshold: float) -> tuple[NDArray[np.float64], bool]:
    """Return the edges of the bins of a histogram, and whether larger values belong in the last bin.

    A few far outliers would otherwise squeeze all other values into one bin. A finite threshold is always inside.
    """
    within = [threshold] if math.isfinite(threshold) else []
    low, most = min([values.min(), *within]), max([values.max(), *within])
    high = max([np.quantile(values, 0.98), *within])
    cut = bool(most > high + 0.5 * (high - low) > low)
    top = high if cut else most
    return np.linspace(low, top if top > low else low + 1, BINS + 1), cut


def forgetting_curve(forgetting: Mapping[str, Any], gains: Sequence[Mapping[str, float]], doubt: float) -> Figure:
    """Plot training loss, forgetting signal and validation AUROC over the epochs, and say which epoch is used and why.

    Args:
        forgetting: that entry of metrics.json.
        gains: the entry ``acceptance``: comparisons of the best epoch with the frozen network, in the order in which
            they were made; empty if the signal alone decides.
        doubt: probability of a gain below which a network is not used.
    """
    figure = Figure(figsize=(6.4, 7), layout="constrained")
    history, signal, best = forgetting["history"], forgetting["signal"], forgetting["epoch_chosen"]
    used = best if forgetting["fine_tuning_used"] else 0
    epochs = [record["epoch"] for record in history]
    curves = {"training loss": "loss", f"held out: {signal}": signal, "augmented copies: AUROC": "auroc"}
    panels = figure.subplots(len(curves), 1, sharex=True)
    for panel, (label, name) in zip(panels, curves.items(), strict=True):
        values = [record.get(name, math.nan) for record in history]
        panel.plot(epochs, values, color=GOOD, marker="o", markersize=4)
        panel.axvline(used, color=BAD, linestyle="--", label=f"used: epoch {used}" + ("" if used else " (frozen)"))
        if name == signal:
            panel.plot([best], [values[best]], "*", color=BAD, markersize=13, label=f"best signal: epoch {best}")
            panel.legend(fontsize=8)
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("\n".join(explanation(forgetting, gains, doubt)), fontsize=9.5)
    panels[-1].set_xlabel("epoch (0 is the frozen network)")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def explanation(forgetting: Mapping[str, Any], gains: Sequence[Mapping[str, float]], doubt: float) -> list[str]:
    """Say in a few lines which epoch is used and why; arguments as in `forgetting_curve`."""
    last, epoch, used = forgetting["history"][-1]["epoch"], forgetting["epoch_chosen"], forgetting["fine_tuning_used"]
    lines = [f"Best signal ({forgetting['signal']} on held-out good images): epoch {epoch} of {last}"]
    if "collapse" in forgetting:
        lines.append("Training collapsed; the best state before it was kept")
    for gain in gains:
        tuned = 100 * gain["share"]
        weights = "Tuned" if tuned == 100 else f"{tuned:g} % tuned, {100 - tuned:g} % frozen"
        decision = "not used, below" if gain["probability"] < doubt else "used, not below"
        lines.append(
            f"{weights} weights: gain {gain['mean']:+.4f} AUROC, "
            f"probability {100 * gain['probability']:.0f} % (of {gain['images']} images): {decision} {100 * doubt:g} %"
        )
    if not used:
        reason = "" if gains else ": no epoch is better than the frozen network" if last else ": no epoch was trained"
        lines.append(f"Fine-tuning not used{reason}")
    elif not gains:
        lines.append(f"Used: epoch {epoch}")
    return lines


def level_bars(levels: Mapping[str, Any]) -> Figure:
    """Plot the AUROC of each level for each augmentation; the darker a bar, the larger the weight of its level."""
    figure, axes = _figure("level (0 is the shallowest)", "AUROC, good vs. augmented copies")
    names = list(levels["weights"])
    heaviest = max(levels["weights"].values())
    for place, name in enumerate(names):
        signals = [signal[name] for signal in levels["signals"].values()]
        mean = sum(signals) / len(signals)
        axes.bar(place, mean, color=GOOD, alpha=0.15 + 0.7 * levels["weights"][name] / heaviest)
        axes.plot([place] * len(signals), signals, ".", color=NEUTRAL, markersize=4)
    axes.axhline(0.5, color="#cccccc", linewidth=1)
    axes.set_xticks(range(len(names)), names)
    return figure


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Save each figure atomically as ``<name>.png`` and ``<name>.pdf``, and return the paths of the former.

    Raises:
        UserError: a file cannot be written.
    """
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        for each in (path, path.with_suffix(".pdf")):
            with replacing(each) as partial:
                figure.savefig(partial, dpi=150)
    return paths


def _figure(x: str, y: str):  # type: ignore[no-untyped-def]  # matplotlib's own return types
    figure = Figure(figsize=(6, 4.2), layout="constrained")  # not pyplot, which needs a display and explicit closing
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
