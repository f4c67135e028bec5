"""Moments of observations from one pass over the data: they merge by addition, so also across batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussad_pl.distributed import all_reduce_sum, world


@dataclass(frozen=True)
class Moments:
    """Sums over observations y = x - pivot, float64: all that mean, covariance and Ledoit-Wolf shrinkage need.

    Attributes:
        count: number of observations, ``()``.
        pivot: a point near the mean, ``(..., D)``; it keeps the sums small and so their rounding errors.
        sum: sum of y, ``(..., D)``.
        outer: sum of y y^T, ``(..., D, D)``.
        cubic: sum of |y|^2 y, ``(..., D)``.
        quartic: sum of |y|^4, ``(...)``.
    """

    count: Tensor
    pivot: Tensor
    sum: Tensor
    outer: Tensor
    cubic: Tensor
    quartic: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of x, ``(..., D)``."""
        return self.pivot + self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Maximum-likelihood covariance (divided by N) of x, ``(..., D, D)``."""
        m = self.sum / self.count
        return self.outer / self.count - m.unsqueeze(-1) * m.unsqueeze(-2)


def moments(x: Tensor, pivot: Tensor | None = None) -> Moments:
    """Moments of ``x`` ``(..., N, D)`` about ``pivot`` ``(..., D)``, by default the mean of ``x``."""
    x = x.detach().double()
    pivot = x.mean(-2) if pivot is None else pivot.to(x)
    y = x - pivot.unsqueeze(-2)
    norm2 = y.square().sum(-1)
    return Moments(
        count=torch.tensor(float(x.shape[-2]), dtype=torch.float64, device=x.device),
        pivot=pivot,
        sum=y.sum(-2),
        outer=y.mT @ y,
        cubic=(norm2.unsqueeze(-2) @ y).squeeze(-2),
        quartic=norm2.square().sum(-1),
    )


def recenter(m: Moments, pivot: Tensor) -> Moments:
    """The same observations about another pivot ``(..., D)``: with y' = y + d, expand every sum in d."""
    d = m.pivot - pivot
    d2 = d.square().sum(-1)
    ds = (d * m.sum).sum(-1)
    norm2 = m.outer.diagonal(dim1=-2, dim2=-1).sum(-1)  # sum of |y|^2
    outer_d = (m.outer @ d.unsqueeze(-1)).squeeze(-1)
    sum_d = m.sum.unsqueeze(-1) * d.unsqueeze(-2)
    return Moments(
        count=m.count,
        pivot=pivot,
        sum=m.sum + m.count * d,
        outer=m.outer + sum_d + sum_d.mT + m.count * d.unsqueeze(-1) * d.unsqueeze(-2),
        cubic=m.cubic + 2 * outer_d + d2.unsqueeze(-1) * m.sum + (norm2 + 2 * ds + m.count * d2).unsqueeze(-1) * d,
        quartic=m.quartic
        + 4 * (d * outer_d).sum(-1)
        + m.count * d2.square()
        + 4 * (m.cubic * d).sum(-1)
        + 2 * norm2 * d2
        + 4 * d2 * ds,
    )


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of both sets of observations together, about the pivot of ``a``."""
    if b.pivot is not a.pivot:
        b = recenter(b, a.pivot)
    return Moments(
        count=a.count + b.count,
        pivot=a.pivot,
        sum=a.sum + b.sum,
        outer=a.outer + b.outer,
        cubic=a.cubic + b.cubic,
        quartic=a.quartic + b.quartic,
    )


def update_moments(levels: Sequence[Moments], features: Sequence[Tensor]) -> list[Moments]:
    """Moments of each level with those of more observations ``(N, D)``, about the same pivots."""
    return [merge(m, moments(x, m.pivot)) for m, x in zip(levels, features, strict=True)]


def decay(m: Moments, share: float) -> Moments:
    """Moments with every observation's weight reduced by ``share`` in [0, 1]; mean and covariance stay as they are."""
    kept = {name: getattr(m, name) * (1 - share) for name in ("count", "sum", "outer", "cubic", "quartic")}
    return Moments(pivot=m.pivot, **kept)


def all_reduce_moments(m: Moments) -> Moments:
    """Moments of the observations of all processes, about their mean; some processes may have none."""
    if world() == 1:
        return m
    count = all_reduce_sum(m.count.clone())
    m = recenter(m, all_reduce_sum(m.count * m.pivot + m.sum) / count)
    parts = (m.sum, m.outer, m.cubic, m.quartic)
    return Moments(count, m.pivot, *(all_reduce_sum(part) for part in parts))
