"""One Gaussian for each position of the grid of patches: for parts that are always in the same place."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from gaussad_pl.density.gaussian import mahalanobis
from gaussad_pl.density.onnx import CodedWhiteners
from gaussad_pl.density.patches import CellGaussians
from gaussad_pl.distributed import all_reduce_sum, world


class PositionGaussians(CellGaussians):
    """One Gaussian for each position of the grid."""

    def __init__(self, positions: int, features: int) -> None:
        super().__init__(positions, features)
        self._count = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None  # pivot, sum, outer

    @classmethod
    def build(cls, places: Tensor, features: int, clusters: int, seed: int) -> Self:
        return cls(len(places), features)

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
            self._sums = none, none.clone(), none.new_zeros(*none.shape, none.shape[-1])
        pivot, total, outer = self._sums
        count = int(all_reduce_sum(torch.tensor(self._count)))
        mean = all_reduce_sum(pivot * self._count + total) / count
        moved = (pivot - mean).unsqueeze(-1)
        # in place: there may be gigabytes of it
        outer.baddbmm_(moved, total.unsqueeze(-2)).baddbmm_(total.unsqueeze(-1) + self._count * moved, moved.mT)
        self._sums = mean, all_reduce_sum(total + self._count * moved.squeeze(-1)), all_reduce_sum(outer)
        self._count = count

    def forward(self, patches: Tensor) -> Tensor:
        """Mahalanobis distance of each patch ``(N, P, D)`` to the Gaussian of its position: ``(N, P)``."""
        return mahalanobis(patches.transpose(0, 1), self.mean, self.whitener).T

    def deviations(self, patches: Tensor) -> Tensor:
        return (patches - self.mean).mean(1)

    def for_onnx(self) -> nn.Module:
        return _PositionsInOnnx(self)


class _PositionsInOnnx(nn.Module):
    """The distances of `PositionGaussians` by one batched product."""

    mean: Tensor

    def __init__(self, gaussians: PositionGaussians) -> None:
        super().__init__()
        self.register_buffer("mean", gaussians.mean[:, None])
        self.whitened = CodedWhiteners(gaussians.whitener, gaussians.spread)

    def forward(self, patches: Tensor) -> Tensor:
        distances: Tensor = self.whitened(patches.transpose(0, 1) - self.mean)
        return distances.T
