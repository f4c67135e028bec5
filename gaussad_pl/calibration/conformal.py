"""Conformal p-values and thresholds for a target false-alarm rate, from the scores of good images.

The distribution of the scores may be arbitrary; calibration images and new good images must be exchangeable.

The Beta quantiles of `rate_range` are not taken from `scipy.stats.beta`, whose import would slow down the start of
every prediction. tests/test_properties.py compares the two.

Sources: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; Laxhammar & Falkman, "Inductive
conformal anomaly detection for sequential detection of anomalous sub-trajectories", 2015; Bates, Candès, Lei, Romano &
Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real

import torch
from torch import Tensor

from gaussad_pl.calibration.gamma import Gamma, fit_gamma, misfit
from gaussad_pl.calibration.threshold import Threshold, default_line, default_rate, images_needed, undecided
from gaussad_pl.errors import UserError
from gaussad_pl.metrics.image import require_finite

MISFIT = 0.05  # significance level at which the fit of a gamma is rejected
FEWEST = 10  # scores needed to fit a gamma


def p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """Return conformal p-values: (1 + number of calibration scores at least as large) / (n + 1).

    For a good image that is exchangeable with the calibration images, P(p <= a) <= a for every a. Without ties, this is
    an equality at the multiples of 1 / (n + 1).

    >>> p_values(torch.tensor([0.5, 2.0]), torch.tensor([0.0, 1.0, 2.0])).tolist()
    [0.75, 0.5]

    Args:
        scores: ``(N,)``.
        calibration: scores of good images, in ascending order, ``(n,)``.

    Returns:
        ``(N,)`` float64.
    """
    below = torch.searchsorted(calibration, scores.to(calibration).contiguous())
    return (1 + len(calibration) - below).double() / (len(calibration) + 1)


def conformal_threshold(calibration: Tensor, fpr: float) -> float:
    """Return the threshold that a good image exceeds with a probability of at most ``fpr``.

    It is the k-th largest of the n calibration scores, k = floor(fpr (n + 1)). A score exceeds it if and only if its
    conformal p-value is at most ``fpr``. If k = 0, that is n < 1 / fpr - 1, the threshold is infinite.

    The guarantee holds for any distribution and any n, over the draw of the calibration images *and* of a new good
    image, if all are exchangeable: P(score > threshold) <= k / (n + 1) <= fpr. Without ties, the first is an equality.
    The rate of a single detector, whose calibration images are drawn once, varies about this value: see `rate_range`.

    Args:
        calibration: scores of good images, in ascending order, ``(n,)``.
    """
    k = threshold_rank(len(calibration), fpr)
    return float(calibration[-k]) if k else math.inf


def rate_range(n: int, fpr: float, coverage: float = 0.9) -> tuple[float, float]:
    """Return the interval that contains the false-alarm rate of a single detector with probability ``coverage``.

    The probability is over the draw of its n calibration images. Without ties, the rate follows Beta(k, n + 1 - k),
    k = max(1, floor(fpr (n + 1))), and the interval is bounded by its quantiles (1 - coverage) / 2 and
    (1 + coverage) / 2 (Vovk, "Conditional validity of inductive conformal predictors", 2012).
    """
    k = max(1, threshold_rank(n, fpr))
    hits = torch.arange(k, n + 1, dtype=torch.float64)
    log_binomial = math.lgamma(n + 1) - torch.lgamma(hits + 1) - torch.lgamma(n - hits + 1)

    def cdf(x: float) -> float:  # P(Beta(k, n + 1 - k) <= x) = P(Binomial(n, x) >= k)
        return float((log_binomial + hits * math.log(x) + (n - hits) * math.log1p(-x)).exp().sum())

    def quantile(probability: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cdf(middle) < probability else (low, middle)
        return high

    return quantile((1 - coverage) / 2), quantile((1 + coverage) / 2)


def threshold_rank(n: int, fpr: float) -> int:
    """Return k, the rank of the threshold among the calibration scores, from the largest; 0 if there is none."""
    if not isinstance(fpr, Real) or not 0 < fpr < 1:
        raise UserError(f"fpr={fpr!r}: expected a false-alarm rate between 0 and 1, for example 0.01")
    return min(n, math.floor(fpr * (n + 1) + 1e-9))  # 0.29 * 100 is less than 29 in floating point


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores and distances of n good images, from a detector that has not seen them.

    Attributes:
        scores: ``(n,)`` float64, ascending.
        distances: Mahalanobis distance of each level, ``(n, levels)`` float32.
        scheme: which images these are, and what else they were used for.
        different: number of visually distinct images; less than n if a part was photographed several times.
        images: positions of the images among the good ones of the training data; empty where they are not known.
    """

    scores: Tensor
    distances: Tensor
    scheme: str
    different: int
    images: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        scores: Tensor,
        distances: Tensor,
        scheme: str,
        different: int | None = None,
        images: Sequence[int] = (),
    ) -> Calibration:
        """Create a calibration from scores ``(n,)`` and distances ``(n, levels)`` in any order, that of ``images``.

        Raises:
            UserError: a score or distance is not finite.
        """
        names = [f"calibration image {i}" for i in range(len(scores))]
        require_finite(scores, names)
        require_finite(distances, names, "distance to a Gaussian")
        order = scores.argsort()
        different = len(scores) if different is None else different
        images = tuple(images[i] for i in order.tolist()) if images else ()
        return cls(scores[order].double().cpu(), distances[order].float().cpu(), scheme, different, images)

    def first_levels(self, count: int) -> Calibration:
        """Return a copy that keeps the distances of the first ``count`` levels only."""
        return replace(self, distances=self.distances[:, :count])

    def __len__(self) -> int:
        return len(self.scores)

    def p_values(self, scores: Tensor) -> Tensor:
        """Return conformal p-values ``(N,)`` of ``scores`` ``(N,)``; see `p_values`."""
        return p_values(scores, self.scores)

    @cached_property
    def gamma(self) -> Gamma | None:
        """Gamma distribution fitted to the scores, or None if there are fewer than ten or the fit is degenerate.

        The fit is degenerate if all scores are equal, or if their moments vanish or overflow in float64.
        """
        if len(self) < FEWEST or self.scores[0] == self.scores[-1]:
            return None
        fitted = fit_gamma(self.scores)
        usable = all(map(math.isfinite, (fitted.shape, fitted.scale, fitted.shift))) and fitted.scale > 0
        return fitted if usable else None

    @cached_property
    def misfit(self) -> float | None:
        """p-value of the hypothesis that the scores follow `gamma`; see `gaussad_pl.calibration.gamma.misfit`."""
        return None if self.gamma is None else misfit(self.scores, self.gamma)

    def threshold(self, fpr: float | None = None) -> Threshold:
        """Return the threshold for a target false-alarm rate: conformal, or from the gamma tail if n is too small.

        The gamma threshold is at least the largest calibration score, which is the conformal threshold of the smallest
        rate that n images allow. The threshold therefore never decreases as the rate decreases.

        Args:
            fpr: the rate; None for the `default_rate` of n images.

        Raises:
            UserError: ``fpr`` is not between 0 and 1.
        """
        n, origin = len(self), ""
        if fpr is None:
            fpr = default_rate(n)
            origin = f"{default_line(n, fpr)}; "
        value = conformal_threshold(self.scores, fpr)
        if value < math.inf:
            low, high = rate_range(self.different, fpr)
            promise, many = f"of at most {fpr:g}", "this many images"
            if self.different < n:  # images of one part are not exchangeable with those of a new one
                promise = f"near {fpr:g}, which is not guaranteed, as several of them may show the same part"
                many = f"{self.different} different parts"
            line = (
                f"{origin}conformal threshold {value:.4g} from {n} calibration images: a good image like these exceeds "
                f"it with a probability {promise}; with {many}, the actual rate of this detector lies between "
                f"{low:.2g} and {high:.2g} (90 % interval)"
            )
            return Threshold(value, fpr, "conformal", line)
        if self.gamma is None or self.misfit is None:
            return undecided(n, fpr)
        value = max(self.gamma.quantile(fpr), float(self.scores.max()))
        verdict = "the fit is not rejected" if self.misfit >= MISFIT else "THE FIT IS REJECTED"
        line = (
            f"fpr={fpr:g} needs {images_needed(fpr)} calibration images for a guarantee, but there are {n} (the "
            f"smallest rate that they can guarantee is {1 / (n + 1):.2g}); threshold {value:.4g} is the larger of the "
            f"quantile of a fitted gamma and the largest score; {verdict} (p = {self.misfit:.2g})"
        )
        return Threshold(value, fpr, "gamma", line)
