"""Shifted gamma distribution fitted to scores, to extrapolate their tail from few images.

Squared distances of Gaussian features are sums of squares, whose distribution is close to a gamma. The score of an
image is a standardised sum of distances and may be negative, hence the shift (Pearson type III). Scores need not follow
this distribution; `misfit` tests whether they do.

`Gamma.quantile` is not taken from `scipy.stats.gamma`, whose import would slow down the start of every prediction.
tests/test_properties.py compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_SKEWNESS = 0.1  # a gamma is right-skewed; with less skewness it is practically a normal distribution
DRAWS = 400  # bootstrap samples


@dataclass(frozen=True)
class Gamma:
    """shift + scale * Gamma(shape)."""

    shape: float
    scale: float
    shift: float

    def below(self, x: Tensor) -> Tensor:
        """Cumulative distribution function at ``x``, any shape, float64."""
        return torch.special.gammainc(torch.tensor(self.shape, dtype=torch.float64), self._standard(x))

    def above(self, x: Tensor) -> Tensor:
        """Survival function at ``x``, any shape, float64; accurate far into the tail."""
        return torch.special.gammaincc(torch.tensor(self.shape, dtype=torch.float64), self._standard(x))

    def quantile(self, tail: float) -> float:
        """Return the value that is exceeded with probability ``tail``, by bisection."""
        low, high = 0.0, 1.0
        while self._tail(high) > tail:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self._tail(middle) > tail else (low, middle)
        return self.shift + self.scale * high

    def _standard(self, x: Tensor) -> Tensor:
        return ((x.double() - self.shift) / self.scale).clamp(min=0)

    def _tail(self, z: float) -> float:
        shape, at = torch.tensor([self.shape, z], dtype=torch.float64)
        return float(torch.special.gammaincc(shape, at))


def fit_gamma(x: Tensor) -> Gamma:
    """Fit a gamma to the observations ``x`` ``(n,)`` by their mean, standard deviation and skewness."""
    shape, scale, shift = (float(each) for each in _matched(x.double()))
    return Gamma(shape, scale, shift)


def misfit(x: Tensor, fitted: Gamma) -> float:
    """Return the p-value of a Kolmogorov-Smirnov test of ``x`` ``(n,)`` against the gamma fitted to it.

    The distance to a distribution fitted to the same observations is smaller than the standard tables assume, so it is
    compared with the distances of samples that are drawn from the fitted distribution and refitted: a parametric
    bootstrap (Lilliefors; Stute et al., "Bootstrap based goodness-of-fit tests", 1993).
    """
    draws = np.random.default_rng(0).standard_gamma(fitted.shape, size=(DRAWS, len(x)))
    larger = _distance(torch.from_numpy(draws)) >= _distance(x.double())
    return (1 + int(larger.sum())) / (1 + DRAWS)


def _matched(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, scale and shift ``(...)`` of the gammas that match the moments of the observations ``(..., n)``."""
    mean, deviation = x.mean(-1), x.std(-1, correction=0)
    skewness = ((x - mean[..., None]) / deviation[..., None]).pow(3).mean(-1)
    shape = 4 / skewness.clamp(min=LEAST_SKEWNESS).square()
    scale = deviation / shape.sqrt()
    return shape, scale, mean - shape * scale


def _distance(x: Tensor) -> Tensor:
    """Kolmogorov-Smirnov distance ``(...)`` between ``x`` ``(..., n)`` and the gamma fitted to it."""
    shape, scale, shift = (each[..., None] for each in _matched(x))
    expected = torch.special.gammainc(shape, ((x.sort(-1).values - shift) / scale).clamp(min=0))
    steps = torch.arange(x.shape[-1] + 1, dtype=torch.float64) / x.shape[-1]
    return torch.maximum(expected - steps[:-1], steps[1:] - expected).amax(-1)
