"""The distances of `ClusterGaussians` by tensor operations of fixed number, for graphs without loops.

Sorted by cell, the patches of each cell are padded to whole tiles. A tile belongs to one cell, so one batched product
whitens all of them, and what is fetched is a whitener a tile, not one a patch. In ONNX Runtime, 784 patches of an image
take 4.4 ms a clustering, those of eight images 2.3 ms an image; with a whitener a patch both take 7.8 ms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gaussad_pl.density.cluster import ClusterGaussians

TILE = 8  # patches: larger ones are faster for many images at once, smaller ones for one


class Halves(nn.Module):
    """Lower triangular whiteners ``(K, D, D)`` by halves: the first rows need the first half of the features alone."""

    near: Tensor
    far: Tensor

    def __init__(self, whitener: Tensor) -> None:
        super().__init__()
        half = -(-whitener.shape[-1] // 2)
        self.register_buffer("near", whitener[:, :half, :half].mT.contiguous())
        self.register_buffer("far", whitener[:, half:].mT.contiguous())

    def forward(self, y: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Lengths ``(B, T)`` of whitened ``y`` ``(B, T, D)``, by the whiteners ``chosen`` ``(B,)`` or all K = B."""
        near, far = (w if chosen is None else w.index_select(0, chosen) for w in (self.near, self.far))
        return ((y[..., : near.shape[1]] @ near).square().sum(-1) + (y @ far).square().sum(-1)).sqrt()


class TiledClusters(nn.Module):
    """The same distances as the `ClusterGaussians` it is made of, whatever the number of images."""

    mean: Tensor
    directions: Tensor
    centre: Tensor
    offset: Tensor
    first: Tensor  # cluster of each partition

    def __init__(self, gaussians: ClusterGaussians) -> None:
        super().__init__()
        self.partitions = gaussians.partitions
        self.register_buffer("first", gaussians.clusters * torch.arange(gaussians.partitions))
        self.whitened = Halves(gaussians.whitener)
        self.register_buffer("mean", gaussians.mean)
        self.register_buffer("directions", gaussians.directions)
        self.register_buffer("centre", gaussians.centre.T.contiguous())
        self.register_buffer("offset", gaussians.centre.square().sum(-1) / -2)

    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to the nearest Gaussian of its clusters: ``(N, P)``."""
        x, count = patches.flatten(0, 1), self.partitions
        nearness = x @ self.directions @ self.centre + self.offset
        nearest = nearness.unflatten(1, (count, -1)).argmax(-1) + self.first
        cells, order = nearest.flatten().sort()
        slot, cell_of_tile = tiles(cells, self.mean.shape[0])
        patch_in_slot = order.new_zeros(cell_of_tile.shape[0] * TILE).scatter(0, slot, order // count)  # padding: 0
        y = x.index_select(0, patch_in_slot).unflatten(0, (-1, TILE)) - self.mean.index_select(0, cell_of_tile)[:, None]
        distances = self.whitened(y, cell_of_tile).flatten().index_select(0, slot)
        each = torch.zeros_like(distances).scatter(0, order, distances).unflatten(0, (-1, count))
        return each.amin(1).reshape(patches.shape[:2])


def tiles(cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where patches go when each of ``count`` cells fills whole tiles.

    Args:
        cells: index of the cell of each patch, ascending, ``(M,)``.

    Returns:
        The slot of each patch ``(M,)``, counting from tile to tile, and the cell of each tile ``(B,)``.
    """
    sizes = cells.new_zeros(count).scatter_add(0, cells, torch.ones_like(cells))
    ends = ((sizes + (TILE - 1)) // TILE).cumsum(0)  # of the tiles of each cell
    firsts = (ends - (sizes + (TILE - 1)) // TILE) * TILE
    shift = firsts - (sizes.cumsum(0) - sizes)
    slot = torch.arange(cells.shape[0], device=cells.device) + shift.index_select(0, cells)
    passed = cells.new_zeros(cells.shape[0] // TILE + count + 1).scatter_add(0, ends, torch.ones_like(ends)).cumsum(0)
    used = (passed < count).nonzero().squeeze(1)  # beyond the last tile, the ends of all cells have been passed
    return slot, passed.index_select(0, used)
