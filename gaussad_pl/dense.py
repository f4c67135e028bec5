"""Gaussians of patches: the feature maps of an image cut into a grid, and a Gaussian for every cell of a partition.

A partition says which patches share a Gaussian: those at one position of the grid (aligned objects, as PaDiM), those
nearest to one of several centres (textures, objects that turn), or all. Cells may hold fewer patches than there are
features, so each covariance is blended with the one of all cells together: a conjugate prior worth as many
observations as there are features. One centre gives the plain Gaussian.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaussad_pl.backbone import Level
from gaussad_pl.distributed import add, gather, gather_rows, rank, world
from gaussad_pl.errors import UserError
from gaussad_pl.gaussian import mahalanobis, shrink, whitening

RIDGE = 0.1  # shrinkage of the covariance of all cells towards the identity: it, too, comes from a sample
DIRECTIONS = 32  # principal ones, in which patches are assigned to clusters: all of them tell no better, for more work
SAMPLE = 100_000  # patches that the clusters are found in, and the most that are ever held


def middle_levels(levels: Sequence[Level], image_size: int) -> list[int]:
    """Places in ``levels`` of the deepest ones at strides 8 and 16: fine enough to locate, deep enough to mean much.

    Where all levels are of one size, as in transformers, those at one and two thirds of the depth.
    """
    sides = {level.side for level in levels}
    if len(sides) == 1:
        return sorted({len(levels) // 3, 2 * len(levels) // 3})
    wanted = {min(sides, key=lambda side, stride=stride: abs(side - image_size / stride)) for stride in (8, 16)}  # type: ignore[misc]
    return [max(i for i, level in enumerate(levels) if level.side == side) for side in sorted(wanted, reverse=True)]


def embed(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps ``(N, C_i, h_i, w_i)`` on the grid of the finest, as patches ``(N, h * w, sum of C_i)``."""
    size = max((feature_map.shape[-2:] for feature_map in maps), key=lambda shape: shape[0] * shape[1])
    same = [m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="bilinear") for m in maps]
    return torch.cat(same, dim=1).flatten(2).mT.contiguous()


def blend(scatter: Tensor, counts: Tensor, pooled: Tensor) -> Tensor:
    """Covariances of K cells, each blended with a common one that counts as D observations.

    The mean of the posterior of a covariance under an inverse Wishart prior (Murphy, Machine Learning: a Probabilistic
    Perspective, 2012, section 4.6.3), up to a constant number of observations.

    Args:
        scatter: sum of (x - mean)(x - mean)^T over the observations of each cell, ``(K, D, D)``.
        counts: number of observations of each cell, ``(K,)``.
        pooled: covariance within all cells together, ``(D, D)``.

    Returns:
        ``(K, D, D)``.
    """
    d = pooled.shape[-1]
    prior = shrink(pooled, torch.tensor(RIDGE, dtype=pooled.dtype))
    return (scatter + d * prior) / (counts + d)[:, None, None]


class PatchGaussians(nn.Module, ABC):
    """Gaussians over patches; `observe` every batch of good images once, then `estimate`."""

    @abstractmethod
    def observe(self, patches: Tensor) -> None:
        """Take in the patches ``(N, P, D)`` of good images."""

    @abstractmethod
    def estimate(self) -> None:
        """Estimate the Gaussians from all that was observed, and forget it."""

    @abstractmethod
    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to its Gaussian: ``(N, P)``."""


class CellGaussians(PatchGaussians):
    """One Gaussian for each of K cells of a partition of patches of D features.

    Buffers: mean ``(K, D)`` and whitener ``(K, D, D)``.
    """

    mean: Tensor
    whitener: Tensor

    def __init__(self, cells: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(cells, features))
        self.register_buffer("whitener", torch.eye(features).repeat(cells, 1, 1))

    def _fit(self, mean: Tensor, scatter: Tensor, counts: Tensor) -> None:
        degrees = (counts.sum() - (counts > 0).sum()).clamp(min=1)
        pooled = scatter.sum(0) / degrees
        if not pooled.diagonal().mean() > 0:
            raise UserError("the patches of the training images are all the same: give different images")
        self.mean.copy_(mean)
        for first in range(0, len(mean), 64):  # in parts: all at once would need several times the memory
            part = slice(first, first + 64)
            self.whitener[part] = whitening(blend(scatter[part].double(), counts[part], pooled)).to(self.whitener)


class PositionGaussians(CellGaussians):
    """One Gaussian for each position of the grid."""

    def __init__(self, positions: int, features: int) -> None:
        super().__init__(positions, features)
        self._count = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None  # pivot, sum, outer

    def observe(self, patches: Tensor) -> None:
        x = patches.transpose(0, 1).double()
        if self._sums is None:
            d = x.shape[-1]
            self._sums = (
                x.mean(1),
                torch.zeros_like(x[:, 0]),
                torch.zeros(len(x), d, d, dtype=x.dtype, device=x.device),
            )
        pivot, total, outer = self._sums
        y = x - pivot.unsqueeze(1)
        total += y.sum(1)
        outer.baddbmm_(y.mT, y)
        self._count += len(patches)

    def estimate(self) -> None:
        if world() > 1:
            self._join()
        assert self._sums is not None
        pivot, total, outer = self._sums
        mean = total / self._count
        counts = torch.full((len(mean),), float(self._count), dtype=mean.dtype, device=mean.device)
        scatter = outer.baddbmm_(total.unsqueeze(-1), mean.unsqueeze(-2), alpha=-1)
        self._fit(pivot + mean, scatter, counts)
        self._sums, self._count = None, 0

    def _join(self) -> None:
        """Put the sums of all processes, about their mean, in place of those of this one, which may have none."""
        if self._sums is None:
            none = self.mean.new_zeros(self.mean.shape, dtype=torch.float64)
            self._sums = none, none.clone(), self.mean.new_zeros(self.whitener.shape, dtype=torch.float64)
        pivot, total, outer = self._sums
        count = int(add(torch.tensor(self._count)))
        mean = add(pivot * self._count + total) / count
        moved = (pivot - mean).unsqueeze(-1)
        # in place: there may be gigabytes of it
        outer.baddbmm_(moved, total.unsqueeze(-2)).baddbmm_(total.unsqueeze(-1) + self._count * moved, moved.mT)
        self._sums = mean, add(total + self._count * moved.squeeze(-1)), add(outer)
        self._count = count

    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to the Gaussian of its position: ``(N, P)``."""
        return mahalanobis(patches.transpose(0, 1), self.mean, self.whitener).T


class ClusterGaussians(CellGaussians):
    """One Gaussian for each of several clusters of patches, wherever they are in the image.

    Centres are those of k-means on the first principal components of standardised features, in a random sample of
    bounded size, which the covariances are estimated from, too. A patch is measured by the Gaussian of its nearest
    centre, with all of its features.

    Args:
        clusters: the most there will be; fewer where there are fewer than two sampled patches for each.
        seed: of the sample and the clusters.
    """

    centre: Tensor
    directions: Tensor  # features to the space of the centres

    def __init__(self, clusters: int, features: int, seed: int) -> None:
        super().__init__(clusters, features)
        self.register_buffer("centre", torch.zeros(clusters, min(features, DIRECTIONS)))
        self.register_buffer("directions", torch.eye(features)[:, :DIRECTIONS].contiguous())
        self.seed = seed
        self._sample: tuple[Tensor, Tensor] | None = None  # random keys, patches
        self._per_image = 1
        self._random = torch.Generator().manual_seed(seed)

    def observe(self, patches: Tensor) -> None:
        """Keep the patches with the smallest of random keys: a uniform sample of all, however they are batched.

        Each process draws the keys of all images and uses those of its `share`: together they keep what one would.
        """
        x = patches.flatten(0, 1)
        self._per_image = patches.shape[1]
        drawn = torch.rand(len(patches) * world(), self._per_image, generator=self._random, dtype=torch.float64)
        keys = drawn[rank() :: world()].flatten()
        if self._sample is not None:
            if len(self._sample[0]) == SAMPLE:
                chosen = (keys < self._sample[0].max()).nonzero().squeeze(1)
                keys, x = keys[chosen], x[chosen.to(x.device)]
            keys, x = torch.cat([self._sample[0], keys]), torch.cat([self._sample[1], x])
        if len(keys) > SAMPLE:
            kept = keys.topk(SAMPLE, largest=False).indices
            keys, x = keys[kept], x[kept.to(x.device)]
        self._sample = (keys, x)

    def estimate(self) -> None:
        if world() > 1:
            self._join()
        assert self._sample is not None
        x = self._sample[1]
        self.directions.copy_(principal_directions(x, self.directions.shape[1]))
        projected = x @ self.directions
        clusters = max(1, min(len(self.mean), len(x) // 2))
        if clusters == 1:
            centre = projected.mean(0, keepdim=True)
        else:
            from sklearn.cluster import MiniBatchKMeans  # here: scoring alone is to do without scikit-learn

            kmeans = MiniBatchKMeans(
                clusters, batch_size=4096, init_size=3 * clusters, n_init=1, random_state=self.seed
            )
            fitted = kmeans.fit(projected.cpu().numpy()).cluster_centers_
            centre = torch.from_numpy(fitted).to(x)
        self.centre.fill_(1e15)[:clusters] = centre  # what is left over is nobody's nearest
        cells = self.cells(x)
        k, d = self.mean.shape
        counts = torch.bincount(cells, minlength=k).double()
        mean = torch.zeros(k, d, dtype=torch.float64, device=x.device).index_add_(0, cells, x.double())
        mean /= counts.clamp(min=1)[:, None]
        order, scatter = cells.argsort(), torch.zeros(k, d, d, dtype=torch.float64, device=x.device)
        for cell, part in zip(*_runs(cells[order], x[order]), strict=True):
            y = part.double() - mean[cell]
            scatter[cell] = y.mT @ y
        self._fit(mean, scatter, counts)
        self._sample = None
        self._random.manual_seed(self.seed)

    def _join(self) -> None:
        """Put the sample of all processes, as one would have drawn it, in place of that of this one."""
        keys, x = self._sample or (torch.zeros(0, dtype=torch.float64), self.mean[:0])
        every = torch.cat(gather(keys))
        if len(every) > SAMPLE:
            kept = keys <= every.kthvalue(SAMPLE).values
            keys, joined = (torch.cat(gather(c[kept.to(c.device)].cpu())) for c in (keys, x))
            order = keys.argsort()
            keys, joined = keys[order], joined[order]
        else:
            keys, joined = (
                gather_rows(column.unflatten(0, (len(column) // self._per_image, self._per_image))).flatten(0, 1)
                for column in (keys, x)
            )
        self._sample = keys, joined.to(self.mean.device)

    def cells(self, x: Tensor) -> Tensor:
        """Index of the nearest centre of patches ``(M, D)``: ``(M,)``."""
        offset = self.centre.square().sum(-1) / -2
        nearness = (torch.addmm(offset, part @ self.directions, self.centre.T) for part in x.split(8192))
        return torch.cat([part.argmax(-1) for part in nearness])

    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to the Gaussian of its cluster: ``(N, P)``."""
        x = patches.flatten(0, 1)
        cells, order = self.cells(x.detach()).sort()
        y, whiteners = x[order] - self.mean[cells], self.whitener.mT.unbind()
        parts = [part @ whiteners[cell] for cell, part in zip(*_runs(cells, y), strict=True)]  # one product a cell
        return torch.linalg.vector_norm(torch.cat(parts), dim=-1)[order.argsort()].reshape(patches.shape[:2])


class Clusterings(PatchGaussians):
    """Mean distance over several `ClusterGaussians` that differ in their random sample and centres.

    One clustering alone moves the image AUROC by whole points from seed to seed; the mean is better than most.
    """

    def __init__(self, count: int, clusters: int, features: int, seed: int) -> None:
        super().__init__()
        seeds = np.random.SeedSequence(seed).generate_state(count)
        self.members = nn.ModuleList(ClusterGaussians(clusters, features, int(each)) for each in seeds)

    def observe(self, patches: Tensor) -> None:
        for member in self.members:
            member.observe(patches)  # type: ignore[operator]

    def estimate(self) -> None:
        for member in self.members:
            member.estimate()  # type: ignore[operator]

    def forward(self, patches: Tensor) -> Tensor:
        """Mean over the clusterings of the distance of each patch ``(N, P, D)``: ``(N, P)``."""
        return torch.stack([member(patches) for member in self.members]).mean(0)


def principal_directions(x: Tensor, count: int) -> Tensor:
    """Where standardised ``x`` ``(M, D)`` varies most: what to multiply ``x`` with, ``(D, count)``.

    Features that never change, but for rounding, have no part in them.
    """
    deviation = x.std(0)
    scale = torch.where(deviation > 1e-4 * x.abs().amax(0), 1 / deviation, 0)
    covariance = torch.cov((x * scale).double().T)
    return scale[:, None] * torch.linalg.eigh(covariance.reshape(len(scale), -1)).eigenvectors[:, -count:].to(x)


def _runs(cells: Tensor, x: Tensor) -> tuple[list[int], list[Tensor]]:
    """Cut ``x`` ``(M, D)``, sorted by cell, into the part of each cell that occurs."""
    values, counts = cells.unique_consecutive(return_counts=True)
    return values.tolist(), list(x.split(counts.tolist()))
