"""Multivariate Gaussians: whitening, Mahalanobis distance, and the modules that hold an estimate.

Everything works on tensors of shape ``(..., N, D)``: N observations of D features, any leading batch shape.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from gaussad_pl.density.moments import Moments, decay, merge
from gaussad_pl.density.shrinkage import Covariance, Shrinkage, restrict, shrink, shrinkage
from gaussad_pl.density.whitening import SingularCovarianceError, whitening


def mahalanobis(x: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
    """Mahalanobis distance (not squared) of ``x`` ``(..., N, D)`` to the Gaussian ``(..., D)``: ``(..., N)``.

    Differentiable in ``x``; the gradient at the mean itself is zero.
    """
    return torch.linalg.vector_norm((x - mean.unsqueeze(-2)) @ whitener.mT, dim=-1)


class Gaussian(nn.Module):
    """One Gaussian of ``features`` dimensions, or a batch of them; estimated in float64, applied in float32.

    The covariance is shrunk as `shrinkage` says and then brought to a structure as `restrict` says.

    Buffers have a fixed shape, so that a state dict always loads: mean ``(*batch, D)``, whitener ``(*batch, D, D)``,
    shrinkage_ (the amount estimated) ``(*batch)`` and count ``()``, which is 0 until the first `fit`.
    """

    mean: Tensor
    whitener: Tensor
    shrinkage_: Tensor
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
        self.register_buffer("shrinkage_", torch.zeros(batch))
        self.register_buffer("count", torch.zeros(()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}amount" in state_dict:  # its name in files of format 3 and older
            state_dict[f"{prefix}shrinkage_"] = state_dict.pop(f"{prefix}amount")
        super()._load_from_state_dict(state_dict, prefix, *args)

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
        self.shrinkage_.copy_(amount)
        self.count.copy_(m.count)

    def forward(self, x: Tensor) -> Tensor:
        """Mahalanobis distance of ``x`` ``(*batch, N, D)``: ``(*batch, N)``."""
        return mahalanobis(x, self.mean, self.whitener)


class RunningGaussian(Gaussian):
    """A Gaussian that remembers its moments and so can follow a drifting representation."""

    moment_count: Tensor

    def __init__(self, features: int, *settings: Any, **named_settings: Any) -> None:
        super().__init__(features, *settings, **named_settings)
        wide, batch = tuple(self.mean.shape), tuple(self.shrinkage_.shape)
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
        self.fit(merge(decay(self.moments, share), new))
