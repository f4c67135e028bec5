"""Covariance shrinkage from moments alone, and the structures a covariance can be restricted to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gaussad_pl.density.moments import Moments, recenter
from gaussad_pl.errors import UserError

Shrinkage = Literal["ledoit_wolf", "oas", "none"] | float
Covariance = Literal["full", "diagonal", "identity"]


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
    error = (recenter(m, m.mean).quartic / m.count - norm2) / m.count  # d times the paper's b_n^2 before its bound
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
