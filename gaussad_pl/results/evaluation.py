"""Evaluation on the test set: the contents of metrics.json and scores.csv, and the table at the end of a run."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import image_size
from gaussad_pl.data.samples import Sample
from gaussad_pl.files import replacing
from gaussad_pl.metrics.image import auroc, image_metrics, require_finite
from gaussad_pl.metrics.pixel import pixel_metrics


@dataclass(frozen=True)
class Evaluation:
    """Scores of the test set by one state of the model.

    Attributes:
        samples: the N test images.
        distances: Mahalanobis distance at each level, ``(N, L)``.
        scores: image scores, ``(N,)`` float64.
        levels: index of each of the L levels in the backbone.
        maps: anomaly maps ``(N, H, W)``, or None if the model computes none.
        masks: true defects ``(N, H, W)`` bool, empty for good images and for images without a mask.
        frame: that the images were fitted to, with their maps and masks.

    Raises:
        UserError: a score, distance or map is not finite; the message names the image.
    """

    samples: list[Sample]
    distances: Tensor
    scores: Tensor
    levels: list[int]
    maps: Tensor | None
    masks: Tensor
    frame: Frame

    def __post_init__(self) -> None:
        paths = [sample.path for sample in self.samples]
        require_finite(self.scores, paths)
        require_finite(self.distances, paths, "distance to a Gaussian")
        if self.maps is not None:
            require_finite(self.maps, paths, "anomaly map")

    def restored(self, index: int, size: tuple[int, int]) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """Take map, if any, and mask of a test image back to its ``size`` (width, height), as ``(height, width)``."""
        values = None if self.maps is None else self.frame.restored(self.maps[index].numpy(), size)
        return values, self.frame.restored(self.masks[index].float().numpy(), size) > 0.5

    @cached_property
    def inside(self) -> Tensor | None:
        """Pixels of maps and masks that show the image, in the region of interest, ``(N, H, W)`` bool; None for all."""
        if self.frame.fit != "pad" and self.frame.roi is None:
            return None
        shape = self.masks.shape[1], self.masks.shape[2]
        whole = (np.ones(image_size(sample.path)[::-1], dtype=bool) for sample in self.samples)
        return torch.from_numpy(np.stack([self.frame.mask(each, shape) for each in whole]))

    @property
    def labels(self) -> Tensor:
        return torch.tensor([sample.label for sample in self.samples])

    @property
    def has_both_classes(self) -> bool:
        return len(self.labels.unique()) == 2

    def metrics(self) -> dict[str, Any]:
        """Return image and pixel metrics, and the image AUROC of each kind of defect and of each level on its own."""
        metrics: dict[str, Any] = image_metrics(self.scores, self.labels)
        if self.maps is not None:
            metrics |= pixel_metrics(self.maps, self.masks, self.labels, self.inside)
        if not self.has_both_classes:
            return metrics
        good = self.labels == 0
        kinds = sorted({sample.kind for sample in self.samples if sample.label})
        metrics["per_defect"] = {}
        for kind in kinds:
            chosen = good | torch.tensor([sample.kind == kind for sample in self.samples])
            metrics["per_defect"][kind] = auroc(self.scores[chosen], self.labels[chosen])
        columns = zip(self.levels, self.distances.T, strict=True)
        metrics["per_level"] = {str(level): auroc(column, self.labels) for level, column in columns}
        return metrics

    @property
    def defect_areas(self) -> list[float | None]:
        """Share of each image that its mask marks as defective; None for a bad image without a mask."""
        pixels = self.masks.shape[1:].numel() if self.inside is None else self.inside.sum((1, 2))
        areas = (self.masks.sum((1, 2)) / pixels).tolist()
        return [None if s.label and s.mask is None else a for s, a in zip(self.samples, areas, strict=True)]

    def write_scores(self, path: Path) -> None:
        """Write scores.csv, one row per image, with its `defect_areas`.

        Raises:
            UserError: the file cannot be written; no partial file is left behind.
        """
        # keep the bytes of names that are not valid UTF-8, so that the path still identifies the image
        with (
            replacing(path) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["path", "kind", "label", "score", "defect_area", *(f"level_{i}" for i in self.levels)])
            rows = zip(self.samples, self.scores.tolist(), self.defect_areas, self.distances.tolist(), strict=True)
            for sample, score, area, distances in rows:
                writer.writerow([sample.path.as_posix(), sample.kind, sample.label, score, area, *distances])


COLUMNS = {
    "image AUROC": "image_auroc", "AP": "image_ap", "F1max": "image_f1max",
    "pixel AUROC": "pixel_auroc", "AUPRO": "aupro",
}  # fmt: skip


def table(title: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    """Return a table of metrics in percent, one row per ``(name, metrics)`` pair.

    A column is left out if no row has its metric.
    """
    rows = list(rows)
    columns = {name: key for name, key in COLUMNS.items() if any(key in metrics for _, metrics in rows)}
    result = Table(title=title, title_justify="left")
    for column in ("", *columns):
        result.add_column(column, justify="right" if column else "left")
    for name, metrics in rows:
        values = (metrics.get(key) for key in columns.values())
        result.add_row(name, *("-" if value is None else f"{100 * value:.1f} %" for value in values))
    return result
