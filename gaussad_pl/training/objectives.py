"""Objectives of fine-tuning: pure functions of the distances of good images to the Gaussians of the levels.

Each takes distances ``(N, L)`` and the weights of the levels ``(L,)`` and returns a scalar. The ablations of the
induced Gaussian, center and diagonal, are the same objective on another covariance; see `Gaussian`.
"""

from torch import Tensor


def mahalanobis(distances: Tensor, weights: Tensor) -> Tensor:
    """Mean over images of the weighted sum over levels of their distances (Rippel et al. 2021)."""
    return (distances @ weights).mean()


def squared(distances: Tensor, weights: Tensor) -> Tensor:
    """The same with squared distances: up to constants, the negative log-likelihood of the Gaussians."""
    return (distances.square() @ weights).mean()
