"""A gamma distribution with a shift, fitted to scores: what a tail looks like beyond the images there are.

Squared distances of Gaussian features are sums of squares, whose distribution is close to a gamma; the score of an
image is a standardised sum of distances, which may be negative, so the gamma may begin anywhere (Pearson's type III).
Nothing guarantees that scores follow it: `misfit` says whether the scores at hand contradict it.

The quantile here, and the Beta and beta-binomial probabilities beside it, are not scipy's: a detector scores, finds
thresholds and watches for drift where scipy is not installed. tests/test_properties.py compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_SKEWNESS = 0.1  # a gamma leans to the right; with less than this it cannot be told from a normal distribution
DRAWS = 400  # samples that the fit is compared with


@dataclass(frozen=True)
class Gamma:
    """shift + scale * Gamma(shape)."""

    shape: float
    scale: float
    shift: float

    def below(self, x: Tensor) -> Tensor:
        """Probability of a value of at most ``x``, any shape, float64."""
        return torch.special.gammainc(torch.tensor(self.shape, dtype=torch.float64), self._standard(x))

    def above(self, x: Tensor) -> Tensor:
        """Probability of a value above ``x``, any shape, float64; exact far into the tail, too."""
        return torch.special.gammaincc(torch.tensor(self.shape, dtype=torch.float64), self._standard(x))

    def quantile(self, tail: float) -> float:
        """The value that is exceeded with probability ``tail``, found by bisection."""
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
    """The gamma with the mean, the standard deviation and the skewness of the observations ``x`` ``(n,)``."""
    shape, scale, shift = (float(each) for each in _matched(x.double()))
    return Gamma(shape, scale, shift)


def misfit(x: Tensor, fitted: Gamma) -> float:
    """p-value of the hypothesis that ``x`` ``(n,)`` follows the gamma fitted to it, by the Kolmogorov-Smirnov distance.

    The distance to a distribution that was fitted to the same observations is smaller than tables say, so it is
    compared with those of samples drawn from the fitted distribution and fitted again (Lilliefors; Stute et al.,
    "Bootstrap based goodness-of-fit tests", 1993).
    """
    draws = np.random.default_rng(0).standard_gamma(fitted.shape, size=(DRAWS, len(x)))
    larger = _distance(torch.from_numpy(draws)) >= _distance(x.double())
    return (1 + int(larger.sum())) / (1 + DRAWS)


def _matched(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, scale and shift ``(...)`` by the moments of the observations ``(..., n)``."""
    mean, deviation = x.mean(-1), x.std(-1, correction=0)
    skewness = ((x - mean[..., None]) / deviation[..., None]).pow(3).mean(-1)
    shape = 4 / skewness.clamp(min=LEAST_SKEWNESS).square()
    scale = deviation / shape.sqrt()
    return shape, scale, mean - shape * scale


def _distance(x: Tensor) -> Tensor:
    """Largest difference ``(...)`` of the distribution functions of ``x`` ``(..., n)`` and the gamma fitted to it."""
    shape, scale, shift = (each[..., None] for each in _matched(x))
    expected = torch.special.gammainc(shape, ((x.sort(-1).values - shift) / scale).clamp(min=0))
    steps = torch.arange(x.shape[-1] + 1, dtype=torch.float64) / x.shape[-1]
    return torch.maximum(expected - steps[:-1], steps[1:] - expected).amax(-1)
