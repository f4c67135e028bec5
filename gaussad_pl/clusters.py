"""Gaussians of clusters of patches, wherever they are in the image: for textures, and for objects that turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gaussad_pl.dense import CellGaussians
from gaussad_pl.distributed import gather, gather_rows, rank, world
from gaussad_pl.gaussian import mahalanobis

DIRECTIONS = 32  # principal ones, in which patches are assigned to clusters: all of them tell no better, for more work
SAMPLE = 100_000  # patches that the clusters are found in, and the most that are ever held


class ClusterGaussians(CellGaussians):
    """One Gaussian for each of several clusters of patches, in partitions of different fineness.

    Centres are those of k-means on the first principal components of standardised features, in a random sample of
    bounded size, which the covariances are estimated from, too. In each partition a patch belongs to its nearest
    centre; of these Gaussians the one that it is nearest to counts, measured with all of its features. A patch at the
    border of two clusters is then as normal as one in the middle, and a rare one may belong to a broad cluster.

    Args:
        sizes: the most clusters there will be in each partition; fewer where there are fewer than two sampled patches
            for each.
        seed: of the sample and the clusters.
    """

    centre: Tensor  # of the clusters of all partitions, one partition after the other
    directions: Tensor  # features to the space of the centres

    def __init__(self, sizes: Sequence[int], features: int, seed: int) -> None:
        super().__init__(sum(sizes), features)
        self.sizes = list(sizes)
        self.register_buffer("centre", torch.zeros(sum(sizes), min(features, DIRECTIONS)))
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
        self.centre.fill_(1e15)  # what is left over is nobody's nearest
        for place, centre in enumerate(self.centre.split(self.sizes)):
            found = _centres(projected, len(centre), self.seed + place)
            centre[: len(found)] = found
        wide, cells = x.double(), self.cells(x)
        for partition, members in zip(self.partitions, cells.unbind(1), strict=True):
            self._fit(*_scatters(wide, members - partition.start, partition.stop - partition.start), partition)
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

    @property
    def partitions(self) -> list[slice]:
        """The clusters of each partition."""
        ends = list(accumulate(self.sizes))
        return [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    def cells(self, x: Tensor) -> Tensor:
        """Index of the nearest centre of patches ``(M, D)`` in each of S partitions: ``(M, S)``."""
        offset = self.centre.square().sum(-1) / -2
        parts = []
        for part in x.split(2048):
            nearness = torch.addmm(offset, part @ self.directions, self.centre.T)
            parts.append(torch.stack([nearness[:, each].argmax(-1) + each.start for each in self.partitions], dim=1))
        return torch.cat(parts)

    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to the nearest Gaussian of its clusters: ``(N, P)``."""
        if len(self.mean) == 1:
            return mahalanobis(patches, self.mean[0], self.whitener[0])
        x = patches.flatten(0, 1)
        cells, order = self.cells(x.detach()).flatten().sort()
        runs = zip(*_runs(cells, x[order // len(self.sizes)]), strict=True)  # one product a cell
        distances = torch.cat([mahalanobis(part, self.mean[cell], self.whitener[cell]) for cell, part in runs])
        each = torch.empty_like(distances).index_copy(0, order, distances)
        return each.unflatten(0, (-1, len(self.sizes))).amin(1).reshape(patches.shape[:2])


def _centres(x: Tensor, count: int, seed: int) -> Tensor:
    """Centres of at most ``count`` clusters of ``x`` ``(M, D)``: ``(K, D)``."""
    count = max(1, min(count, len(x) // 2))
    if count == 1:
        return x.mean(0, keepdim=True)
    from sklearn.cluster import MiniBatchKMeans  # here: scoring alone is to do without scikit-learn

    kmeans = MiniBatchKMeans(count, batch_size=4096, init_size=3 * count, n_init=1, random_state=seed)
    return torch.from_numpy(kmeans.fit(x.cpu().numpy()).cluster_centers_).to(x)


def _scatters(x: Tensor, cells: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``(K, D)``, scatter ``(K, D, D)`` and number ``(K,)`` of the ``x`` ``(M, D)`` in each of K cells."""
    d = x.shape[1]
    counts = torch.bincount(cells, minlength=count).double()
    mean = x.new_zeros(count, d).index_add_(0, cells, x) / counts.clamp(min=1)[:, None]
    order, scatter = cells.argsort(), x.new_zeros(count, d, d)
    for cell, part in zip(*_runs(cells[order], x[order]), strict=True):
        y = part - mean[cell]
        scatter[cell] = y.mT @ y
    return mean, scatter, counts


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
