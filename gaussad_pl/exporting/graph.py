"""A detector as one graph for other runtimes: from the pixels of images to scores, p-values and maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gaussad_pl.anomaly_maps import MapHead, enlarging, map_score
from gaussad_pl.clusters import ClusterGaussians
from gaussad_pl.dense import PatchGaussians, PositionGaussians
from gaussad_pl.detector import Detector
from gaussad_pl.exporting.tiles import Halves, TiledClusters
from gaussad_pl.folding import folded

OUTPUTS = ("score", "p_value", "distances", "map")


class Graph(nn.Module):
    """What `Detector` computes, in the operations that ONNX has; batch normalisation is folded into convolutions."""

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
        self.gaussians = nn.ModuleList(Distance(gaussian.mean, gaussian.whitener) for gaussian in model.gaussians)
        self.segmenter = model.segmenter
        self.maps = None if model.segmenter is None else Maps(model.segmenter.head)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores, p-values, distances and maps, as `OUTPUTS` says, of RGB ``images`` ``(N, size, size, 3)`` uint8."""
        features = self.backbone.maps(images.permute(0, 3, 1, 2).float() * self.scale + self.offset)
        pooled = [average(level) for level in features]
        distances = torch.stack([g(level) for g, level in zip(self.gaussians, pooled, strict=True)], dim=1)
        score = distances @ self.level_weights
        if self.maps is None or self.segmenter is None:
            return score, self.p_values(score), distances
        maps = self.maps(features)
        parts = (torch.stack([score, map_score(maps)], dim=1) - self.segmenter.centre) / self.segmenter.spread
        score = parts @ self.segmenter.weights.float()
        return score, self.p_values(score), distances, maps

    def p_values(self, scores: Tensor) -> Tensor:
        """See `gaussad_pl.calibration.conformal.p_values`; float32."""
        count = len(self.calibration)
        larger = (self.calibration >= scores[:, None]).sum(1) if count else torch.zeros_like(scores)
        return (1 + larger).float() / (1 + count)


def average(level: Tensor) -> Tensor:
    """Global average of a feature map ``(N, C, h, w)``: ``(N, C)``."""
    if torch.onnx.is_in_onnx_export():  # a mean over axes would not be computed in the layout of the convolutions
        shape = (*level.shape[:2], 1, 1)
        pooled: Tensor = torch.onnx.ops.symbolic("GlobalAveragePool", (level,), dtype=level.dtype, shape=shape)
        return pooled.flatten(1)
    return level.mean((-2, -1))


class Distance(nn.Module):
    """Mahalanobis distances to one Gaussian: `gaussad_pl.gaussian.mahalanobis` with its whitener turned beforehand."""

    mean: Tensor
    turned: Tensor

    def __init__(self, mean: Tensor, whitener: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("turned", whitener.mT.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Distances ``(..., N)`` of ``x`` ``(..., N, D)``."""
        return torch.linalg.vector_norm((x - self.mean) @ self.turned, dim=-1)


class Maps(nn.Module):
    """The maps of a `MapHead`."""

    enlarging: Tensor

    def __init__(self, head: MapHead) -> None:
        super().__init__()
        self.head = copy.deepcopy(head)
        self.head.gaussians = _distances(head.gaussians)  # type: ignore[assignment]
        self.register_buffer("enlarging", enlarging(head.side, torch.zeros(())))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Anomaly maps ``(N, 256, 256)`` of the backbone's feature maps."""
        return self.enlarging @ self.head.grid(maps) @ self.enlarging.T


class Positions(nn.Module):
    """The distances of `gaussad_pl.dense.PositionGaussians`."""

    mean: Tensor

    def __init__(self, gaussians: PositionGaussians) -> None:
        super().__init__()
        self.register_buffer("mean", gaussians.mean[:, None])
        self.whitened = Halves(gaussians.whitener)

    def forward(self, patches: Tensor) -> Tensor:
        distances: Tensor = self.whitened(patches.transpose(0, 1) - self.mean)
        return distances.T


def _distances(gaussians: PatchGaussians) -> nn.Module:
    """The same distances in operations that ONNX has."""
    assert isinstance(gaussians, (ClusterGaussians, PositionGaussians))
    if isinstance(gaussians, PositionGaussians):
        return Positions(gaussians)
    if len(gaussians.mean) == 1:
        return Distance(gaussians.mean[0], gaussians.whitener[0])
    return TiledClusters(gaussians)
