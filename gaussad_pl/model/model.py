"""The model that scores images: a backbone, one Gaussian per level, and a density of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.density.gaussian import Gaussian
from gaussad_pl.density.shrinkage import Covariance, Shrinkage
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.segmenter import Segmenter


class GaussianModel(nn.Module):
    """Gaussian anomaly detection with one Gaussian per level of the backbone, on globally average-pooled features.

    The pooled score of an image is the weighted sum over levels of its Mahalanobis distances. With a segmenter, the
    score of an image also includes that of its anomaly map.

    Source: Rippel et al., "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
    Detection", 2020.

    Args:
        backbone: arguments of `gaussad_pl.backbones.backbone.Backbone`.
        shrinkage: of the covariances; see `gaussad_pl.density.gaussian.shrinkage`.
        covariance: structure of the covariances; see `gaussad_pl.density.gaussian.restrict`.
        segmentation: arguments of `gaussad_pl.model.segmenter.Segmenter`; None for no anomaly maps.
        roi: region of interest, ``(H, W)`` bool; None for the whole image.
    """

    gaussians: Sequence[Gaussian]  # one a level
    level_weights: Tensor  # of the distances in the pooled score, (levels,)

    def __init__(
        self,
        backbone: Mapping[str, Any],
        shrinkage: Shrinkage = "ledoit_wolf",
        covariance: Covariance = "full",
        segmentation: Mapping[str, Any] | None = None,
        roi: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(**backbone, roi=roi)
        widths = [level.channels for level in self.backbone.levels]
        self.gaussians = nn.ModuleList(Gaussian(width, shrinkage, covariance) for width in widths)  # type: ignore[assignment]
        self.register_buffer("level_weights", torch.ones(len(widths)))
        self.segmenter: Segmenter | None = None
        if segmentation is not None:
            self.segmenter = Segmenter(self.backbone.levels, roi, **segmentation)

    def forward(self, images: Tensor) -> Detection:
        """Score a batch of images ``(N, 3, H, W)``, uint8: distances, scores and anomaly maps."""
        maps = self.backbone(images)
        distances = self.distances(self.backbone.pool(maps))
        pooled = self.scores(distances.double())
        if self.segmenter is None:
            return Detection(distances, pooled, None)
        anomaly_maps = self.segmenter(maps)
        return Detection(distances, self.segmenter.score(pooled, anomaly_maps), anomaly_maps)

    def distances(self, features: Sequence[Tensor]) -> Tensor:
        """Distance of the pooled features of each level ``(N, C)`` to its Gaussian: ``(N, levels)``."""
        return level_distances(features, self.gaussians)

    def scores(self, distances: Tensor) -> Tensor:
        """Pooled anomaly scores ``(N,)``: the weighted sum of the distances ``(N, levels)``."""
        return distances @ self.level_weights.to(distances)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the backbone, whose BatchNorm statistics and drop-path stay as pretrained."""
        super().train(mode)
        self.backbone.eval()
        return self


def level_distances(features: Sequence[Tensor], gaussians: Sequence[Gaussian]) -> Tensor:
    """Distance of the features of each level ``(N, C)`` to its Gaussian: ``(N, levels)``."""
    return torch.stack([gaussian(level) for gaussian, level in zip(gaussians, features, strict=True)], dim=1)
