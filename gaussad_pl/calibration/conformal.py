"""From the scores of good images to p-values, and to a threshold for a wished false-alarm rate.

Nothing is assumed about the distribution of the scores, only that calibration images and new good ones are
exchangeable.

Sources: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; Laxhammar & Falkman, "Inductive
conformal anomaly detection for sequential detection of anomalous sub-trajectories", 2015; Bates, Candès, Lei, Romano &
Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from gaussad_pl.calibration.gamma import Gamma, fit_gamma, misfit
from gaussad_pl.errors import UserError
from gaussad_pl.metrics.image import require_finite

MISFIT = 0.05  # p-value below which a fitted gamma is said not to fit
FEWEST = 10  # scores that a gamma is fitted to


def p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """Conformal p-values: (1 + number of calibration scores at least as large) / (n + 1).

    For a good image that is exchangeable with the calibration images, P(p <= a) <= a for every a, exactly a at the
    multiples of 1 / (n + 1) where scores have no ties.

    Args:
        scores: ``(N,)``.
        calibration: scores of good images, in ascending order, ``(n,)``.

    Returns:
        ``(N,)`` float64.
    """
    below = torch.searchsorted(calibration, scores.to(calibration).contiguous())
    return (1 + len(calibration) - below).double() / (len(calibration) + 1)


def conformal_threshold(calibration: Tensor, fpr: float) -> float:
    """The threshold that a good image exceeds with a probability of at most ``fpr``.

    It is the k-th largest of the n calibration scores, k = floor(fpr (n + 1)), and a score above it is one whose
    conformal p-value is at most ``fpr``. Where k = 0, that is n < 1 / fpr - 1, it is infinite.

    Guarantee, for any distribution and any n: over the draw of calibration images *and* a new good image, all of them
    exchangeable, P(score > threshold) <= k / (n + 1) <= fpr, with equality in the first where scores have no ties.
    The rate of one calibrated detector, whose calibration images are drawn once, scatters about that: see `rate_range`.

    Args:
        calibration: scores of good images, in ascending order, ``(n,)``.
    """
    k = _rank(len(calibration), fpr)
    return float(calibration[-k]) if k else math.inf


def rate_range(n: int, fpr: float, coverage: float = 0.9) -> tuple[float, float]:
    """Where the false-alarm rate of one detector lies with a probability of ``coverage`` over its n calibration images.

    The rate follows Beta(k, n + 1 - k), k = floor(fpr (n + 1)) or 1 (Vovk, "Conditional validity of inductive conformal
    predictors", 2012; scores without ties); these are its quantiles (1 - coverage) / 2 and (1 + coverage) / 2.
    """
    k = max(1, _rank(n, fpr))
    hits = torch.arange(k, n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(hits + 1) - torch.lgamma(n - hits + 1)

    def below(x: float) -> float:  # P(Beta(k, n + 1 - k) <= x) = P(Binomial(n, x) >= k)
        return float((ways + hits * math.log(x) + (n - hits) * math.log1p(-x)).exp().sum())

    def quantile(share: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) < share else (low, middle)
        return high

    return quantile((1 - coverage) / 2), quantile((1 + coverage) / 2)


def _rank(n: int, fpr: float) -> int:
    if not 0 < fpr < 1:
        raise UserError(f"fpr={fpr}: expected a false-alarm rate between 0 and 1, for example 0.01")
    return min(n, math.floor(fpr * (n + 1) + 1e-9))  # 0.29 * 100 is less than 29 in floating point


@dataclass(frozen=True)
class Threshold:
    """What separates good from bad: a score above ``value`` is bad.

    Attributes:
        value: in the units of the scores; infinite where nothing gives one.
        fpr: the false-alarm rate wished.
        rule: "conformal" is guaranteed; "gamma" is the tail of a fitted distribution, for too few images; or "none".
        line: what to tell the user about it.
    """

    value: float
    fpr: float
    rule: Literal["conformal", "gamma", "none"]
    line: str


@dataclass(frozen=True, eq=False)
class Calibration:
    """Good images as a detector scores them that has not seen them.

    Attributes:
        scores: ``(n,)`` float64, ascending.
        distances: to the Gaussian of each level, ``(n, levels)``, of the same images.
        scheme: where the images come from, and what took part in nothing.
        different: number of images that look different: n, or fewer where one part was shot several times.
    """

    scores: Tensor
    distances: Tensor
    scheme: str
    different: int

    @classmethod
    def of(cls, scores: Tensor, distances: Tensor, scheme: str, different: int | None = None) -> Calibration:
        """From scores ``(n,)`` and distances ``(n, levels)`` in any order.

        Raises:
            UserError: a score or distance is not finite.
        """
        names = [f"calibration image {i}" for i in range(len(scores))]
        require_finite(scores, names)
        require_finite(distances, names, "distance to a Gaussian")
        order = scores.argsort()
        different = len(scores) if different is None else different
        return cls(scores[order].double().cpu(), distances[order].float().cpu(), scheme, different)

    def first_levels(self, count: int) -> Calibration:
        """The same without the distances of later levels."""
        return replace(self, distances=self.distances[:, :count])

    def __len__(self) -> int:
        return len(self.scores)

    def p_values(self, scores: Tensor) -> Tensor:
        """Conformal p-values of ``scores`` ``(N,)``: see `p_values`."""
        return p_values(scores, self.scores)

    @cached_property
    def gamma(self) -> Gamma | None:
        """The gamma distribution fitted to the scores; None for fewer than ten, or scores that are all the same.

        Those that differ by less than rounding of their moments, or too much for float64, are none either.
        """
        if len(self) < FEWEST or self.scores[0] == self.scores[-1]:
            return None
        fitted = fit_gamma(self.scores)
        usable = all(map(math.isfinite, (fitted.shape, fitted.scale, fitted.shift))) and fitted.scale > 0
        return fitted if usable else None

    @cached_property
    def misfit(self) -> float:
        """p-value of the hypothesis that the scores follow the fitted `gamma`; see `.gamma.misfit`."""
        return misfit(self.scores, self.gamma) if self.gamma is not None else 0.0

    def threshold(self, fpr: float = 0.01) -> Threshold:
        """The threshold for a false-alarm rate: `conformal_threshold`, or where n is too small for it, the gamma's.

        The gamma's is never below the largest calibration score, which is the conformal threshold of the smallest rate
        that there is one for: a smaller rate has no smaller threshold.

        Raises:
            UserError: ``fpr`` is not between 0 and 1.
        """
        n, value = len(self), conformal_threshold(self.scores, fpr)
        if value < math.inf:
            low, high = rate_range(self.different, fpr)
            line = (
                f"conformal threshold {value:.4g} from {n} calibration images: a good image like these is above it "
                f"with a probability of at most {fpr:g}; as there are no more of them, the true rate of this detector "
                f"lies somewhere in {low:.2g} to {high:.2g} (nine times of ten)"
            )
            return Threshold(value, fpr, "conformal", line)
        few = f"fpr={fpr:g} needs {math.ceil(1 / fpr - 1 - 1e-9)} calibration images for a guarantee and there are {n}"
        few += f" (the smallest rate they can promise is {1 / (n + 1):.2g})"
        if self.gamma is None:
            return Threshold(
                math.inf, fpr, "none", f"{few}; too few or too equal to fit a gamma: nothing is called bad"
            )
        value = max(self.gamma.quantile(fpr), float(self.scores.max()))
        fits = "which these scores do not contradict" if self.misfit >= MISFIT else "WHICH THESE SCORES CONTRADICT"
        source = f"that of a gamma fitted to the scores, or their largest, {fits} (p = {self.misfit:.2g})"
        line = f"{few}; threshold {value:.4g} is {source}"
        return Threshold(value, fpr, "gamma", line)
