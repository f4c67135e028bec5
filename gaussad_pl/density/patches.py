"""Densities of patches: the feature vectors at the positions of feature maps.

Wherever patches share a Gaussian, each Gaussian is the blend of its own covariance with a common one, as it seldom has
as many observations as there are features. A density is one file: the class, its counterpart for ONNX, and its line in
`gaussad_pl.density.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gaussad_pl.density.damage import Damage, damage_factor, damage_whitening
from gaussad_pl.density.rounding import rounded
from gaussad_pl.density.shrinkage import shrink
from gaussad_pl.density.whitening import whitening
from gaussad_pl.errors import NumericalError, UserError

RIDGE = 0.1  # shrinkage of the covariance of all cells towards the identity: it, too, comes from a sample


class PatchDensity(nn.Module, ABC):
    """A density of patches of D features; call `observe` with every batch of good images once, then `estimate`.

    Attributes:
        has_clusters: the density has a number of clusters, which the validation may choose.
    """

    has_clusters: ClassVar[bool] = False
    damage: Damage | None = None  # set it before `estimate` for damage-weighted distances

    @classmethod
    @abstractmethod
    def build(cls, places: Tensor, features: int, clusters: int, seed: int) -> Self:
        """Make an unfitted density.

        Args:
            places: row and column of each of the P patches of an image, ``(P, 2)``.
            features: D.
            clusters: number of clusters, for densities that have them.
            seed: of whatever the density draws at random.
        """

    @abstractmethod
    def observe(self, patches: Tensor) -> None:
        """Add the patches ``(N, P, D)`` of good images to what `estimate` uses."""

    @abstractmethod
    def estimate(self) -> None:
        """Fit the density to everything observed, and drop the observations.

        Raises:
            NumericalError: the patches have no density, for example because they are all the same.
        """

    @abstractmethod
    def forward(self, patches: Tensor) -> Tensor:
        """Distances ``(N, P)`` of patches ``(N, P, D)`` to the density."""

    def deviations(self, patches: Tensor) -> Tensor:
        """Mean deviation ``(N, D)`` of the patches ``(N, P, D)`` of each image from the means of their Gaussians.

        Raises:
            UserError: the density has no means that recalibration could move.
        """
        raise UserError(f"gaussians=true: {type(self).__name__} has no means to move: give gaussians=false")

    def shift(self, by: Tensor) -> None:
        """Move all means by one vector ``(D,)``; see `deviations`."""
        raise UserError(f"gaussians=true: {type(self).__name__} has no means to move: give gaussians=false")

    def for_onnx(self) -> nn.Module:
        """A module with the same `forward`, made of operations that ONNX has; by default the density itself."""
        return self


class CellGaussians(PatchDensity):
    """One Gaussian for each of K cells of a partition of patches.

    Buffers: mean ``(K, D)``; whitener ``(K, R, D)`` with as many rows as damage has directions, or R = D, `rounded` for
    features in units of spread ``(D,)``: powers of two near their standard deviations.
    """

    mean: Tensor
    whitener: Tensor
    spread: Tensor

    def __init__(self, cells: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(cells, features))
        self.register_buffer("whitener", torch.eye(features).repeat(cells, 1, 1))
        self.register_buffer("spread", torch.ones(features))

    def shift(self, by: Tensor) -> None:
        self.mean += by

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if (stored := state_dict.get(f"{prefix}whitener")) is not None:
            self._set_rows(stored.shape[-2])
            state_dict.setdefault(f"{prefix}spread", torch.ones_like(self.spread))  # older versions have none
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _set_rows(self, count: int) -> None:
        """Make room for whiteners with another number of rows."""
        cells, rows, features = self.whitener.shape
        if rows != count:
            with torch.inference_mode(False):  # or it could not be estimated again outside of a validation
                self.whitener = self.whitener.new_zeros(cells, count, features)

    def _fit(self, mean: Tensor, scatter: Tensor, counts: Tensor, cells: slice = slice(None)) -> None:
        """Fit the Gaussians of the cells of one partition, by default all of them."""
        degrees = (counts.sum() - (counts > 0).sum()).clamp(min=1)
        pooled = scatter.sum(0) / degrees
        if not pooled.diagonal().mean() > 0:
            raise NumericalError("the patches of the training images are all the same: give different images")
        common = shrink(pooled.double(), torch.tensor(RIDGE, dtype=torch.float64))
        if not cells.start:  # one for all partitions
            self.spread.copy_(common.diagonal().sqrt().log2().round().exp2())
        rows, whiten = len(pooled), whitening
        if self.damage is not None:
            factor = damage_factor(self.damage, common)
            rows, whiten = factor.shape[1], partial(damage_whitening, factor=factor, weight=self.damage.weight)
        self._set_rows(rows)
        self.mean[cells] = mean.to(self.mean)
        parts = zip(self.whitener[cells].split(64), scatter.split(64), counts.split(64), strict=True)
        for whitener, part, count in parts:  # all at once would need several times the memory
            covariance = blend(part.double(), count, pooled)
            exact = whiten(covariance).to(whitener)
            whitener.copy_(exact if len(self.mean) == 1 else rounded(exact, self.spread))  # one alone costs nothing


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
