"""Multivariate Gaussians from one pass over the data: moments, shrinkage, whitening, Mahalanobis distance.

Everything is a pure function on tensors of shape ``(..., N, D)`` (N observations of D features, any leading batch
shape); `Gaussian` and `RunningGaussian` only hold state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gaussad_pl.errors import NumericalError, UserError

Shrinkage = Literal["ledoit_wolf", "oas", "none"] | float
Covariance = Literal["full", "diagonal", "identity"]


class SingularCovarianceError(NumericalError):
    """The covariance has no inverse: too few observations for its width, or features that never change."""


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


def shift(m: Moments, pivot: Tensor) -> Moments:
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
        b = shift(b, a.pivot)
    return Moments(
        count=a.count + b.count,
        pivot=a.pivot,
        sum=a.sum + b.sum,
        outer=a.outer + b.outer,
        cubic=a.cubic + b.cubic,
        quartic=a.quartic + b.quartic,
    )


def take_in(levels: Sequence[Moments], features: Sequence[Tensor]) -> list[Moments]:
    """Moments of each level with those of more observations ``(N, D)``, about the same pivots."""
    return [merge(m, moments(x, m.pivot)) for m, x in zip(levels, features, strict=True)]


def forget(m: Moments, share: float) -> Moments:
    """Moments with every observation's weight reduced by ``share`` in [0, 1]; mean and covariance stay as they are."""
    kept = {name: getattr(m, name) * (1 - share) for name in ("count", "sum", "outer", "cubic", "quartic")}
    return Moments(pivot=m.pivot, **kept)


def ledoit_wolf(m: Moments) -> Tensor:
    """Shrinkage towards the scaled identity that minimises the expected squared error, ``(...)`` in [0, 1].

    Source: Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004, section 3.
    Needs no second pass: the sum of |x - mean|^4 is the quartic moment about the mean.
    """
    d = m.pivot.shape[-1]
    covariance = m.covariance
    norm2 = covariance.square().sum((-2, -1))
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    dispersion = norm2 - trace.square() / d  # d times the paper's d_n^2
    error = (shift(m, m.mean).quartic / m.count - norm2) / m.count  # d times the paper's b_n^2 before its bound
    error = torch.minimum(error.clamp(min=0), dispersion)
    if d == 1:  # the target is the covariance itself
        return torch.zeros_like(error)
    return torch.where(error > 0, error / dispersion.clamp(min=torch.finfo(torch.float64).tiny), error)


def oas(m: Moments) -> Tensor:
    """Oracle approximating shrinkage, ``(...)`` in [0, 1].

    Source: Chen, Wiesel, Eldar & Hero, "Shrinkage algorithms for MMSE covariance estimation", 2010, in the form of
    scikit-learn's `oas`.
    """
    d = m.pivot.shape[-1]
    covariance = m.covariance
    alpha = covariance.square().mean((-2, -1))
    mu2 = (covariance.diagonal(dim1=-2, dim2=-1).sum(-1) / d).square()
    if d == 1:
        return torch.zeros_like(alpha)
    denominator = (m.count + 1) * (alpha - mu2 / d)
    return torch.where(denominator > 0, (alpha + mu2) / denominator, 1.0).clamp(max=1)


def shrinkage(m: Moments, method: Shrinkage) -> Tensor:
    """Shrinkage in [0, 1] by name ("ledoit_wolf", "oas", "none") or as a fixed number, ``(...)``."""
    if method == "ledoit_wolf":
        return ledoit_wolf(m)
    if method == "oas":
        return oas(m)
    value = 0.0 if method == "none" else method
    if isinstance(value, str) or not 0 <= value <= 1:
        raise UserError(f"shrinkage={method}: expected ledoit_wolf, oas, none or a number from 0 to 1")
    return torch.full_like(m.quartic, value)


def shrink(covariance: Tensor, amount: Tensor) -> Tensor:
    """(1 - amount) covariance + amount * mean variance * identity, ``(..., D, D)``."""
    mean_variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    shrunk = covariance * (1 - amount)[..., None, None]
    shrunk.diagonal(dim1=-2, dim2=-1).add_((amount * mean_variance).unsqueeze(-1))
    return shrunk


def restrict(covariance: Tensor, structure: Covariance) -> Tensor:
    """The covariance ``(..., D, D)`` without its correlations ("diagonal"), or only its mean variance ("identity").

    Raises:
        UserError: unknown structure.
    """
    if structure == "full":
        return covariance
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    if structure == "diagonal":
        return variances.diag_embed()
    if structure == "identity":
        return variances.mean(-1, keepdim=True).expand_as(variances).diag_embed()
    raise UserError(f"model.covariance={structure}: expected full, diagonal or identity")


def whitening(covariance: Tensor) -> Tensor:
    """W, lower triangular, ``(..., D, D)``, with W^T W the inverse of the covariance.

    Raises:
        SingularCovarianceError: the covariance is singular to working precision, or not finite.
    """
    if not torch.isfinite(covariance).all():
        raise SingularCovarianceError(
            f"the covariance of {covariance.shape[-1]} features is not finite: the features have overflowed"
        )
    factor, info = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    scale = covariance.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    tolerance = covariance.shape[-1] * torch.finfo(covariance.dtype).eps * scale
    if info.any() or not (pivots > tolerance).all():
        raise SingularCovarianceError(
            f"the covariance of {covariance.shape[-1]} features is singular: give more images than features or "
            "set model.shrinkage=ledoit_wolf; if that is set already, the images are all the same"
        )
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(covariance), upper=False)


def mahalanobis(x: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """Mahalanobis distance (not squared) of ``x`` ``(..., N, D)`` to the Gaussian ``(..., D)``: ``(..., N)``.

    Differentiable in ``x``; the gradient at the mean itself is zero.
    """
    return torch.linalg.vector_norm((x - mean.unsqueeze(-2)) @ whitener.mT, dim=-1)


class Gaussian(nn.Module):
    """One Gaussian of ``features`` dimensions, or a batch of them; estimated in float64, applied in float32.

    The covariance is shrunk as `shrinkage` says and then brought to a structure as `restrict` says.

    Buffers have a fixed shape, so that a state dict always loads: mean ``(*batch, D)``, whitener ``(*batch, D, D)``,
    amount (of shrinkage) ``(*batch)`` and count ``()``, which is 0 until the first `fit`.
    """

    mean: Tensor
    whitener: Tensor
    amount: Tensor
    count: Tensor

    def __init__(
        self,
        features: int,
        shrinkage: Shrinkage = "ledoit_wolf",
        covariance: Covariance = "full",
        batch: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.covariance = covariance
        self.register_buffer("mean", torch.zeros(*batch, features))
        self.register_buffer("whitener", torch.eye(features).repeat(*batch, 1, 1))
        self.register_buffer("amount", torch.zeros(batch))
        self.register_buffer("count", torch.zeros(()))

    @property
    def is_fitted(self) -> bool:
        return bool(self.count > 0)

    def fit(self, m: Moments) -> None:
        """Take mean and shrunk covariance from the moments.

        Raises:
            SingularCovarianceError: see `whitening`.
        """
        amount = shrinkage(m, self.shrinkage)
        singular = m.count <= m.pivot.shape[-1] and self.covariance == "full"  # rank N - 1 < D, whatever rounding says
        if singular and bool((amount == 0).all()):
            raise SingularCovarianceError(
                f"a covariance of {m.pivot.shape[-1]} features from {int(m.count)} images is singular without "
                "shrinkage: set model.shrinkage=ledoit_wolf or give more images"
            )
        self.whitener.copy_(whitening(restrict(shrink(m.covariance, amount), self.covariance)))
        self.mean.copy_(m.mean)
        self.amount.copy_(amount)
        self.count.copy_(m.count)

    def forward(self, x: Tensor) -> Tensor:
        """Mahalanobis distance of ``x`` ``(*batch, N, D)``: ``(*batch, N)``."""
        return mahalanobis(x, self.mean, self.whitener)


class RunningGaussian(Gaussian):
    """A Gaussian that remembers its moments and so can follow a drifting representation."""

    moment_count: Tensor

    def __init__(self, features: int, *settings: Any, **named_settings: Any) -> None:
        super().__init__(features, *settings, **named_settings)
        wide, batch = tuple(self.mean.shape), tuple(self.amount.shape)
        shapes = {"count": (), "pivot": wide, "sum": wide, "outer": (*wide, features), "cubic": wide, "quartic": batch}
        for field in fields(Moments):
            self.register_buffer(f"moment_{field.name}", torch.zeros(shapes[field.name], dtype=torch.float64))

    @property
    def moments(self) -> Moments:
        return Moments(**{field.name: getattr(self, f"moment_{field.name}") for field in fields(Moments)})

    def fit(self, m: Moments) -> None:
        super().fit(m)
        for field in fields(Moments):
            getattr(self, f"moment_{field.name}").copy_(getattr(m, field.name))

    def update(self, new: Moments) -> None:
        """Take in new observations and forget as many older ones: an exponential moving average.

        The memory is as long as the number of observations of the first `fit`, so the effective count stays.
        """
        share = min(1.0, float(new.count / self.moment_count))
        self.fit(merge(forget(self.moments, share), new))
