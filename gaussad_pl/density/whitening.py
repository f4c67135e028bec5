"""Whitening: matrices that turn a Mahalanobis distance into a Euclidean one."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussad_pl.errors import NumericalError


class SingularCovarianceError(NumericalError):
    """The covariance has no inverse: too few observations for its width, or features that never change."""


def whitening(covariance: Tensor) -> Tensor:
    """W, lower triangular, ``(..., D, D)``, with W^T W the inverse of the covariance.

    Raises:
        SingularCovarianceError: see `cholesky`.
    """
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(cholesky(covariance), identity.expand_as(covariance), upper=False)


def cholesky(covariance: Tensor) -> Tensor:
    """L, lower triangular, ``(..., D, D)``, with L L^T the covariance.

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
    return factor
