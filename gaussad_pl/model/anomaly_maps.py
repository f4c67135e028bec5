"""Feature maps in, anomaly maps out: Gaussians of patches, their distances enlarged and smoothed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.data.images import MASK_SIZE
from gaussad_pl.density.damage import covered
from gaussad_pl.density.patches import PatchDensity
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.model.patches import embed

SIZE = MASK_SIZE  # side of the anomaly maps in pixels
BLUR = SIZE / 64  # standard deviation of the Gaussian blur of the maps in pixels
FEATURES = 256  # of a patch, at most: hundreds of covariances of wide ones would not fit into memory
LEAST = 0.1  # weight of the patches of the region at one of its pixels, at least: thin parts of it have none near
TOP = 0.01  # share of the map whose mean is the map's image score


class MapHead(nn.Module):
    """Anomaly maps from some levels of the backbone by one form of the Gaussians of patches.

    Args:
        levels: all that the backbone gives.
        places: which of them the patches are made of.
        form: which patches share a Gaussian, a key of `gaussad_pl.density.registry.DENSITIES`.
        clusters: number of clusters, for the forms that have them.
        seed: of the clusters, and of the directions that wide patches are projected to.
        roi: region of interest, ``(H, W)`` bool; patches that it covers less than half do not exist. None for all.
    """

    projection: Tensor | None
    border: Tensor  # weight of each patch in the map, (rows, columns); 0 outside of the region of interest
    chosen: Tensor | None  # positions in the grid of the P patches in the region, (P,); None for all
    source: Tensor | None  # number of the patch of each position, P for none, (rows * columns,)
    gain: Tensor | None  # makes up for patches that do not exist; 0 for pixels outside of the region, (256, 256)

    def __init__(
        self,
        levels: Sequence[Level],
        places: Sequence[int],
        form: str,
        clusters: int,
        seed: int,
        roi: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.places = list(places)
        self.form = form
        self.clusters = clusters
        self.levels = [levels[i].index for i in places]
        self.shape = max((levels[i].height, levels[i].width) for i in places)
        width = sum(levels[i].channels for i in places)
        self.features = features = min(width, FEATURES)
        self.register_buffer("projection", None)
        if width > FEATURES:
            random = torch.Generator().manual_seed(seed)
            self.projection = torch.linalg.qr(torch.randn(width, features, generator=random)).Q
        self.register_buffer("border", torch.ones(self.shape))
        for name in ("chosen", "source", "gain"):
            self.register_buffer(name, None, persistent=False)
        if roi is not None:
            self._inspect_only(roi)
        self._places, self._seed = self.border.nonzero(), seed
        self.gaussians = self.unfitted_gaussians()

    def unfitted_gaussians(self) -> PatchDensity:
        """An unfitted density of the form, by the same seed: nothing is left in it of images that were seen before."""
        return DENSITIES[self.form].build(self._places, self.features, self.clusters, self._seed)

    def _inspect_only(self, roi: Tensor) -> None:
        inside = covered(roi[None], self.shape)[0]
        self.border = inside.float().view(self.shape)
        self.chosen = inside.nonzero().squeeze(1)
        self.source = torch.where(inside, inside.cumsum(0) - 1, len(self.chosen))
        self.gain = map_region(roi) / smooth(self.border[None])[0].clamp(min=LEAST)

    def inside(self, patches: Tensor) -> Tensor:
        """Those of all positions ``(N, rows * columns, ...)`` that are in the region of interest: ``(N, P, ...)``."""
        return patches if self.chosen is None else patches.index_select(1, self.chosen)

    def patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Patches ``(N, P, D)`` of the backbone's feature maps; wide ones projected at random to D = 256 directions."""
        patches = self.inside(embed([maps[i] for i in self.places]))
        return patches if self.projection is None else patches @ self.projection

    def grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Mahalanobis distances of the patches where they lie, weighted near the border: ``(N, rows, columns)``."""
        return self.place(self.gaussians(self.patches(maps)))

    def place(self, distances: Tensor) -> Tensor:
        """Distances of patches ``(N, P)`` on the grid ``(N, rows, columns)``, weighted near the border."""
        if self.source is not None:
            distances = F.pad(distances, (0, 1)).index_select(1, self.source)
        return distances.unflatten(1, self.shape) * self.border

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Anomaly maps ``(N, 256, 256)`` of the backbone's feature maps."""
        return smooth(self.grid(maps), self.gain)


def smooth(grid: Tensor, gain: Tensor | None = None) -> Tensor:
    """Distances on a grid ``(N, h, w)`` as maps ``(N, 256, 256)``: bilinear, then a Gaussian blur, then the gain."""
    return amplified(upsample_matrix(grid.shape[1], grid) @ grid @ upsample_matrix(grid.shape[2], grid).T, gain)


def amplified(maps: Tensor, gain: Tensor | None) -> Tensor:
    """Multiply maps ``(N, 256, 256)`` by the gain of a `MapHead`, if it has one."""
    return maps if gain is None else maps * gain.to(maps.device)


def upsample_matrix(cells: int, like: Tensor) -> Tensor:
    """The matrix ``(256, cells)`` that enlarges and blurs along one side: both are linear, and separable."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device)[:, None]
    lines = F.interpolate(unit, size=SIZE, mode="linear")
    reach = math.ceil(3 * BLUR)
    kernel = torch.exp(-((torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype) / BLUR) ** 2) / 2)
    return F.conv1d(F.pad(lines, (reach, reach), mode="reflect"), (kernel / kernel.sum())[None, None])[:, 0].T


def map_region(roi: Tensor) -> Tensor:
    """Region of interest ``(H, W)`` bool at the size of the maps, ``(256, 256)`` bool."""
    return F.interpolate(roi[None, None].byte(), size=SIZE, mode="nearest-exact")[0, 0].bool()


def map_score(maps: Tensor, share: float = 1) -> Tensor:
    """Mean of the highest percent of each map ``(N, H, W)``, or of the share of it that is inspected: ``(N,)``."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP * share * flat.shape[1]))).values.mean(1)
