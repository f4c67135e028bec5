"""Feature maps in, anomaly maps out: Gaussians of patches, their distances enlarged and smoothed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.data.images import MASK_SIZE
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.model.patches import embed

SIZE = MASK_SIZE  # side of the anomaly maps in pixels
BLUR = SIZE / 64  # standard deviation of the Gaussian blur of the maps in pixels
FEATURES = 256  # of a patch, at most: hundreds of covariances of wide ones would not fit into memory
TOP = 0.01  # share of the map whose mean is the map's image score


class MapHead(nn.Module):
    """Anomaly maps from some levels of the backbone by one form of the Gaussians of patches.

    Args:
        levels: all that the backbone gives.
        places: which of them the patches are made of.
        form: which patches share a Gaussian, a key of `gaussad_pl.density.registry.DENSITIES`.
        clusters: number of clusters, for the forms that have them.
        seed: of the clusters, and of the directions that wide patches are projected to.
    """

    projection: Tensor | None
    border: Tensor  # weight of each patch in the map, (side, side)

    def __init__(self, levels: Sequence[Level], places: Sequence[int], form: str, clusters: int, seed: int) -> None:
        super().__init__()
        self.places = list(places)
        self.form = form
        self.clusters = clusters
        self.levels = [levels[i].index for i in places]
        self.side = max(levels[i].side for i in places)
        width = sum(levels[i].channels for i in places)
        self.features = features = min(width, FEATURES)
        self.register_buffer("projection", None)
        if width > FEATURES:
            random = torch.Generator().manual_seed(seed)
            self.projection = torch.linalg.qr(torch.randn(width, features, generator=random)).Q
        self.register_buffer("border", torch.ones(self.side, self.side))
        self.gaussians = DENSITIES[form].build(self.side, features, clusters, seed)

    def patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Patches ``(N, P, D)`` of the backbone's feature maps; wide ones projected at random to D = 256 directions."""
        patches = embed([maps[i] for i in self.places])
        return patches if self.projection is None else patches @ self.projection

    def grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Mahalanobis distances of the patches where they lie, weighted near the border: ``(N, side, side)``."""
        return self.place(self.gaussians(self.patches(maps)))

    def place(self, distances: Tensor) -> Tensor:
        """Distances of patches ``(N, P)`` on the grid ``(N, side, side)``, weighted near the border."""
        return distances.unflatten(1, (self.side, self.side)) * self.border

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Anomaly maps ``(N, 256, 256)`` of the backbone's feature maps."""
        return smooth(self.grid(maps))


def smooth(grid: Tensor) -> Tensor:
    """Distances on a grid ``(N, h, w)`` as maps ``(N, 256, 256)``: bilinear, then a Gaussian blur."""
    return upsample_matrix(grid.shape[1], grid) @ grid @ upsample_matrix(grid.shape[2], grid).T


def upsample_matrix(cells: int, like: Tensor) -> Tensor:
    """The matrix ``(256, cells)`` that enlarges and blurs along one side: both are linear, and separable."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device)[:, None]
    lines = F.interpolate(unit, size=SIZE, mode="linear")
    reach = math.ceil(3 * BLUR)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype) / BLUR) ** 2) / 2)
    return F.conv1d(F.pad(lines, (reach, reach), mode="reflect"), (kernel / kernel.sum())[None, None])[:, 0].T


def map_score(maps: Tensor) -> Tensor:
    """Mean of the highest percent of each map ``(N, H, W)``: ``(N,)``."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP * flat.shape[1]))).values.mean(1)
