"""Gaussians of clusters of patches, anywhere in the image: for textures, and for parts that rotate."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from gaussad_pl.density.gaussian import mahalanobis
from gaussad_pl.density.onnx import TILE, CodedWhiteners, GaussianInOnnx, tiles
from gaussad_pl.density.patches import CellGaussians
from gaussad_pl.distributed import gather, gather_rows, rank, world
from gaussad_pl.errors import NumericalError

DIRECTIONS = 32  # principal ones, in which patches are assigned to clusters: all of them tell no better, for more work
PARTITIONS = 2  # into clusters, from different random starts: the nearest Gaussian of all partitions counts
SAMPLE = 100_000  # patches that the clusters are found in, and the most that are ever held
MAX_CLUSTERS = 2048  # of a partition: 50 patches of the sample for each, and 2 GB of Gaussians of 256 features


class ClusterGaussians(CellGaussians):
    """One Gaussian for each of several clusters of patches, or several partitions of them into clusters.

    Centres are those of k-means on the first principal components of standardised features, in a random sample of
    bounded size, which the covariances are estimated from, too. In each partition a patch belongs to its nearest
    centre; of these Gaussians the one that it is nearest to counts, measured with all of its features. A patch at the
    border of two clusters of one partition may then be in the middle of one of another.

    Args:
        clusters: the most there will be in a partition; fewer where there are fewer than two sampled patches for each.
        seed: of the sample and the clusters.
        partitions: S; they differ in the random start of k-means.
    """

    has_clusters: ClassVar[bool] = True
    centre: Tensor  # of the clusters of all partitions, (S * clusters, directions)
    directions: Tensor  # features to the space of the centres

    def __init__(self, clusters: int, features: int, seed: int, partitions: int = 1) -> None:
        super().__init__(partitions * clusters, features)
        self.clusters = clusters
        self.partitions = partitions
        self.register_buffer("centre", torch.zeros(partitions * clusters, min(features, DIRECTIONS)))
        self.register_buffer("directions", torch.eye(features)[:, :DIRECTIONS].contiguous())
        self.seed = seed
        self._sample: tuple[Tensor, Tensor] | None = None  # random keys, patches
        self._assigned: dict[int, Tensor] = {}  # cells (M, S) of each sample that was ever clustered, by its keys
        self._per_image = 1
        self._random = torch.Generator().manual_seed(seed)

    @classmethod
    def build(cls, places: Tensor, features: int, clusters: int, seed: int) -> Self:
        return cls(clusters, features, seed, PARTITIONS)

    def observe(self, patches: Tensor) -> None:
        """Keep the patches with the smallest of random keys: a uniform sample of all, however they are batched.

        Each process draws the keys of all images and uses those of its `shard`: together they keep what one would.
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
        keys, x = self._sample
        self.directions.copy_(principal_directions(x, self.directions.shape[1]))
        projected = x @ self.directions
        self.centre.fill_(1e15)  # what is left over is nobody's nearest
        sample = hash(keys.numpy().tobytes())
        kept = self._assigned.get(sample)  # the same images under other weights
        for place, centre in enumerate(self.centre.split(self.clusters)):
            if kept is None:
                found = _centres(projected, self.clusters, self.seed + place)
                centre[: len(found)] = found
            else:
                _move_centres(centre, projected, kept[:, place] - place * self.clusters)
        wide, cells = x.double(), self.cells(x)
        self._assigned[sample] = cells
        for place, members in enumerate(cells.unbind(1)):
            first = place * self.clusters
            scatters = _scatters(wide, members - first, self.clusters)
            self._fit(*scatters, slice(first, first + self.clusters))
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
        """Index of the nearest centre of patches ``(M, D)`` in each partition: ``(M, S)``."""
        offset = self.centre.square().sum(-1) / -2
        nearness = (torch.addmm(offset, part @ self.directions, self.centre.T) for part in x.split(2048))
        found = [part.unflatten(1, (self.partitions, self.clusters)).argmax(-1) for part in nearness]
        return torch.cat(found) + self.clusters * torch.arange(self.partitions, device=x.device)

    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to the nearest Gaussian of its clusters: ``(N, P)``."""
        if len(self.mean) == 1:
            return mahalanobis(patches, self.mean[0], self.whitener[0])
        x = patches.flatten(0, 1)
        cells, order = self.cells(x.detach()).flatten().sort()
        runs = zip(*_runs(cells, x[order // self.partitions]), strict=True)  # one product a cell
        distances = torch.cat([mahalanobis(part, self.mean[cell], self.whitener[cell]) for cell, part in runs])
        each = torch.empty_like(distances).index_copy(0, order, distances)
        return each.unflatten(0, (-1, self.partitions)).amin(1).reshape(patches.shape[:2])

    def deviations(self, patches: Tensor) -> Tensor:
        x = patches.flatten(0, 1)
        each = [x - self.mean[members] for members in self.cells(x).unbind(1)]
        return (sum(each[1:], each[0]) / self.partitions).view_as(patches).mean(1)

    def shift(self, by: Tensor) -> None:
        super().shift(by)
        self.centre += by @ self.directions

    def for_onnx(self) -> nn.Module:
        if len(self.mean) == 1:
            return GaussianInOnnx(self.mean[0], self.whitener[0])
        return _TiledClusters(self)


class SharedGaussian(ClusterGaussians):
    """One Gaussian for all patches, wherever they are: for textures, and for few images."""

    has_clusters: ClassVar[bool] = False

    @classmethod
    def build(cls, places: Tensor, features: int, clusters: int, seed: int) -> Self:
        return cls(1, features, seed)


class _TiledClusters(nn.Module):
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
        self.whitened = CodedWhiteners(gaussians.whitener, gaussians.spread)
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


def _centres(x: Tensor, count: int, seed: int) -> Tensor:
    """Centres of at most ``count`` clusters of ``x`` ``(M, D)``: ``(K, D)``."""
    count = max(1, min(count, len(x) // 2))
    if count == 1:
        return x.mean(0, keepdim=True)
    from sklearn.cluster import MiniBatchKMeans  # here: scoring alone is to do without scikit-learn

    kmeans = MiniBatchKMeans(count, batch_size=4096, init_size=3 * count, n_init=1, random_state=seed)
    return torch.from_numpy(kmeans.fit(x.cpu().numpy()).cluster_centers_).to(x)


def _move_centres(centre: Tensor, x: Tensor, cells: Tensor) -> None:
    """Move the centres ``(K, D)`` to the means of their cells' ``x`` ``(M, D)``; an empty cell stays nobody's nearest.

    So that the same patches under other weights keep their clusters: k-means anew would move the scores by luck alone.
    """
    counts = torch.bincount(cells, minlength=len(centre))
    means = torch.zeros_like(centre).index_add_(0, cells, x) / counts.clamp(min=1)[:, None]
    centre[counts > 0] = means[counts > 0]


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
    """Principal directions of standardised ``x`` ``(M, D)``, as a matrix ``(D, count)`` to multiply ``x`` with.

    Features that are constant up to rounding do not take part.

    Raises:
        NumericalError: features are not finite.
    """
    if not torch.isfinite(x).all():
        raise NumericalError("the features of patches are not finite: they have overflowed")
    deviation = x.std(0)
    scale = torch.where(deviation > 1e-4 * x.abs().amax(0), 1 / deviation, 0)
    covariance = torch.cov((x * scale).double().T)
    return scale[:, None] * torch.linalg.eigh(covariance.reshape(len(scale), -1)).eigenvectors[:, -count:].to(x)


def _runs(cells: Tensor, x: Tensor) -> tuple[list[int], list[Tensor]]:
    """Cut ``x`` ``(M, D)``, sorted by cell, into the part of each cell that occurs."""
    values, counts = cells.unique_consecutive(return_counts=True)
    return values.tolist(), list(x.split(counts.tolist()))
