"""Gaussians of patches: the feature maps of an image cut into a grid, and a Gaussian for every cell of a partition.

A partition says which patches share a Gaussian: those at one position of the grid (aligned objects, as PaDiM), those
nearest to one of several centres (textures, objects that turn), or all. Cells may hold fewer patches than there are
features, so each covariance is blended with the one of all cells together: a conjugate prior worth as many
observations as there are features. One centre gives the plain Gaussian.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.density.gaussian import mahalanobis, shrink, whitening
from gaussad_pl.distributed import add, world
from gaussad_pl.errors import NumericalError

RIDGE = 0.1  # shrinkage of the covariance of all cells towards the identity: it, too, comes from a sample


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

    def _fit(self, mean: Tensor, scatter: Tensor, counts: Tensor, cells: slice = slice(None)) -> None:
        """Estimate the Gaussians of the cells of one partition, all of them unless told otherwise."""
        degrees = (counts.sum() - (counts > 0).sum()).clamp(min=1)
        pooled = scatter.sum(0) / degrees
        if not pooled.diagonal().mean() > 0:
            raise NumericalError("the patches of the training images are all the same: give different images")
        self.mean[cells] = mean.to(self.mean)
        parts = zip(self.whitener[cells].split(64), scatter.split(64), counts.split(64), strict=True)
        for whitener, part, count in parts:  # all at once would need several times the memory
            whitener.copy_(whitening(blend(part.double(), count, pooled)))


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
