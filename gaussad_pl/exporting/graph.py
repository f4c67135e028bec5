"""A detector as one graph for other runtimes, from pixels to scores, p-values and maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import cell_weights
from gaussad_pl.backbones.folding import folded
from gaussad_pl.density.onnx import GaussianInOnnx
from gaussad_pl.inference.detector import Detector
from gaussad_pl.model.anomaly_maps import MapHead, amplified, upsample_matrix
from gaussad_pl.model.combination import combine

OUTPUTS = ("score", "p_value", "distances", "map")


class Graph(nn.Module):
    """Computes the same as `Detector` with ONNX operations; batch normalisation is folded into the convolutions."""

    scale: Tensor
    offset: Tensor
    level_weights: Tensor
    calibration: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        model = detector.model
        self.backbone = folded(model.backbone)
        self.register_buffer("scale", model.backbone.scale)
        self.register_buffer("offset", model.backbone.offset)
        self.register_buffer("level_weights", model.level_weights)
        self.register_buffer("calibration", detector.calibration.scores.float())
        self.gaussians = nn.ModuleList(GaussianInOnnx(gaussian.mean, gaussian.whitener) for gaussian in model.gaussians)
        roi, levels = model.backbone.roi, model.backbone.levels
        self.cells = [None if roi is None else cell_weights(roi, (level.height, level.width)) for level in levels]
        self.segmenter = model.segmenter
        self.maps = None if model.segmenter is None else Maps(model.segmenter.head)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the `OUTPUTS` for RGB images ``(N, height, width, 3)`` uint8, without a map if the model has none."""
        x = images.permute(0, 3, 1, 2).float() * self.scale + self.offset
        x = x if self.backbone.roi is None else x * self.backbone.roi
        features = self.backbone.join(self.backbone.maps(self.backbone.tiling.split(x)))
        pooled = [average(level, weights) for level, weights in zip(features, self.cells, strict=True)]
        distances = torch.stack([g(level) for g, level in zip(self.gaussians, pooled, strict=True)], dim=1)
        score = distances @ self.level_weights
        if self.maps is None or self.segmenter is None:
            return score, self.p_values(score), distances
        maps = self.maps(features)
        units = self.segmenter.centre, self.segmenter.spread
        score = combine(score, self.segmenter.map_score(maps), *units, self.segmenter.weights)
        return score, self.p_values(score), distances, maps

    def p_values(self, scores: Tensor) -> Tensor:
        """Return conformal p-values ``(N,)`` float32; see `gaussad_pl.calibration.conformal.p_values`."""
        count = len(self.calibration)
        larger = (self.calibration >= scores[:, None]).sum(1) if count else torch.zeros_like(scores)
        return (1 + larger).float() / (1 + count)


def average(level: Tensor, weights: Tensor | None) -> Tensor:
    """Return the average ``(N, C)`` of a feature map ``(N, C, h, w)``, plain or with weights ``(h, w)``."""
    if weights is not None:
        return (level * weights).sum((-2, -1))
    if torch.onnx.is_in_onnx_export():  # a mean over axes would not run in the memory layout of the convolutions
        shape = (*level.shape[:2], 1, 1)
        pooled: Tensor = torch.onnx.ops.symbolic("GlobalAveragePool", (level,), dtype=level.dtype, shape=shape)
        return pooled.flatten(1)
    return level.mean((-2, -1))


class Maps(nn.Module):
    """Computes the anomaly maps of a `MapHead` with ONNX operations."""

    rows: Tensor
    columns: Tensor

    def __init__(self, head: MapHead) -> None:
        super().__init__()
        self.head = copy.deepcopy(head)
        self.head.gaussians = head.gaussians.for_onnx()  # type: ignore[assignment]
        for name, cells in zip(("rows", "columns"), head.shape, strict=True):
            self.register_buffer(name, upsample_matrix(cells, torch.zeros(())))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return anomaly maps ``(N, 256, 256)`` from the feature maps of the backbone."""
        return amplified(self.rows @ self.head.grid(maps) @ self.columns.T, self.head.gain)
