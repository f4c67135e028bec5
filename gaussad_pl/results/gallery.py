"""Galleries of notable test images: the image, its anomaly map with the thresholded contour, and the true mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from gaussad_pl.results.evaluation import Evaluation

ROWS = 6  # maximum number of misses and of false alarms shown


def galleries(evaluation: Evaluation, images: Dataset[dict[str, Tensor]], threshold: float) -> dict[str, Figure]:
    """Draw one gallery for each group of `worth_looking_at`.

    Args:
        evaluation: of N test images, with maps.
        images: the test set; the item ``image`` is ``(3, H, W)`` uint8.
        threshold: value of the maps at which the contour is drawn.
    """
    chosen = worth_looking_at(evaluation)
    return {name: overlays(evaluation, images, rows, threshold) for name, rows in chosen.items()}


def worth_looking_at(evaluation: Evaluation) -> dict[str, list[int]]:
    """Return the indices of the worst misses, the worst false alarms and a median-scored image per kind of defect."""
    order = evaluation.scores.argsort().tolist()
    bad = [i for i in order if evaluation.labels[i]]
    good = [i for i in order if not evaluation.labels[i]]
    kinds = sorted({evaluation.samples[i].kind for i in bad})
    by_kind = [[i for i in bad if evaluation.samples[i].kind == kind] for kind in kinds]
    middle = [same[len(same) // 2] for same in by_kind]
    chosen = {"misses": bad[:ROWS], "false_alarms": good[::-1][:ROWS], "defects": middle}
    return {name: rows for name, rows in chosen.items() if rows}


def overlays(
    evaluation: Evaluation, images: Dataset[dict[str, Tensor]], rows: Sequence[int], threshold: float
) -> Figure:
    """Draw one row per test image in ``rows``, with all maps on the same colour scale."""
    assert evaluation.maps is not None
    maps = evaluation.maps[list(rows)].numpy()
    top = max(float(maps.max()), threshold)
    figure = Figure(figsize=(7.2, 2.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for line, index, anomaly_map in zip(panels, rows, maps, strict=True):
        sample, side = evaluation.samples[index], anomaly_map.shape[0]
        image = images[index]["image"].permute(1, 2, 0).numpy()
        extent = (0, side, side, 0)
        for panel in line:
            panel.set_axis_off()
            panel.imshow(image, extent=extent)
        line[1].imshow(anomaly_map, cmap="inferno", vmin=0, vmax=top, alpha=0.6, extent=extent)
        if anomaly_map.min() < threshold < anomaly_map.max():
            line[1].contour(anomaly_map, levels=[threshold], colors="#4fe3ff", linewidths=1.2)
        true = evaluation.masks[index].numpy()
        if true.any():
            line[2].imshow(np.where(true, 1.0, np.nan), cmap="autumn", vmin=0, vmax=1, alpha=0.6, extent=extent)
        # file names may hold invalid UTF-8, and dollar signs that are not mathematics
        name = f"{sample.kind}/{sample.path.name}".encode("utf-8", "replace").decode()
        line[0].set_title(name, fontsize=8, parse_math=False)
        line[1].set_title(f"score {evaluation.scores[index]:.2f}", fontsize=8)
        line[2].set_title("true mask" if true.any() else "no mask", fontsize=8)
    return figure
