"""Operating points: what a detector loses and finds at each target false-alarm rate, and whether the target holds.

Sources: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 1934; Vovk, "Conditional validity of inductive conformal predictors", ACML 2012; Marques F., "Universal
distribution of the empirical coverage in split conformal prediction", arXiv:2303.02770, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import betabinom, binomtest
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration, rate_range, threshold_rank
from gaussad_pl.calibration.threshold import RATES

CONFIDENCE = 0.95  # of the intervals
LEVEL = 0.05  # significance level at which observed false alarms contradict their target
FEWEST = 5  # good test images from which on they may contradict it

Interval = tuple[float, float]


@dataclass(frozen=True)
class OperatingPoint:
    """The decisions of a detector at one target false-alarm rate.

    Attributes:
        threshold: None if there is none, and every image is undecided.
        rule: that of `Threshold`: "conformal", "gamma" or "none".
        good_from: the good images that are counted: those of the "test" set or, without any, those of the
            "calibration", from which the threshold comes.
        good_lost: number of good images above the threshold, of ``good``; None if they are undecided.
        good_interval: 95 % interval of the share of good images that is lost; None if it is not known.
        bad_found: number of bad images above the threshold, of ``bad``; None if they are undecided.
        bad_interval: 95 % interval of the share of bad images that is found; None if it is not known.
        p_value: of the hypothesis that good test images exceed the threshold as rarely as calibration images do, see
            `excess_p_value`; None with fewer than five of them, or without a threshold.
    """

    threshold: float | None
    rule: str
    good_from: Literal["test", "calibration"]
    good_lost: int | None
    good: int
    good_interval: Interval | None
    bad_found: int | None
    bad: int
    bad_interval: Interval | None
    p_value: float | None

    @property
    def contradicted(self) -> bool | None:
        """True if there are significantly more false alarms than the target allows; None if that was not tested."""
        return None if self.p_value is None else self.p_value < LEVEL


def operating_points(
    calibration: Calibration, good: Tensor, bad: Tensor, rates: Sequence[float] = RATES
) -> dict[float, OperatingPoint]:
    """Return the operating point of each target false-alarm rate.

    Args:
        calibration: that of the detector.
        good: scores of good test images, ``(M,)``; they must not have been used for any choice.
        bad: scores of bad test images, ``(B,)``.
        rates: target false-alarm rates.
    """
    return {fpr: _operating_point(calibration, good, bad, fpr) for fpr in rates}


def _operating_point(calibration: Calibration, good: Tensor, bad: Tensor, fpr: float) -> OperatingPoint:
    threshold = calibration.threshold(fpr)
    source: Literal["test", "calibration"] = "test" if len(good) else "calibration"
    counted = good if len(good) else calibration.scores
    if threshold.reason:
        return OperatingPoint(None, "none", source, None, len(counted), None, None, len(bad), None, None)
    lost, found = (int((scores > threshold.value).sum()) for scores in (counted, bad))
    return OperatingPoint(
        threshold.value,
        threshold.rule,
        source,
        lost,
        len(counted),
        share_interval(lost, len(good)) if len(good) else promised_interval(calibration, fpr),
        found,
        len(bad),
        share_interval(found, len(bad)) if len(bad) else None,
        excess_p_value(lost, len(good), calibration.different, fpr) if len(good) >= FEWEST else None,
    )


def share_interval(count: int, total: int) -> Interval:
    """Return the exact 95 % interval (Clopper-Pearson) of a share of which ``count`` of ``total`` were observed.

    >>> [round(limit, 3) for limit in share_interval(0, 10)]
    [0.0, 0.308]
    """
    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def promised_interval(calibration: Calibration, fpr: float) -> Interval:
    """Return the 95 % interval of the false-alarm rate that the calibration alone implies.

    The counts of the calibration images above a threshold that comes from their own scores are no evidence, but the
    rate at that threshold has a known distribution, see `gaussad_pl.calibration.conformal.rate_range`. A gamma
    threshold may be any distance above the largest score, so its rate has no lower limit.
    """
    low, high = rate_range(calibration.different, fpr, CONFIDENCE)
    return (low if calibration.threshold(fpr).rule == "conformal" else 0.0), high


def excess_p_value(alarms: int, images: int, n: int, fpr: float) -> float:
    """Return the probability of at least ``alarms`` false alarms among ``images`` good images under the guarantee.

    The threshold is the k-th largest of n calibration scores, k = max(1, floor(fpr (n + 1))). If calibration and test
    images are exchangeable, the share of good images above it is not k / (n + 1): it depends on the draw of the
    calibration images and follows Beta(k, n + 1 - k) (Vovk 2012). Given this share, the number of false alarms is
    binomial. Mixed over the shares, it is BetaBinomial(images, k, n + 1 - k) (Marques 2023), whatever the distribution
    of the scores; with ties, false alarms are rarer. A binomial test with the target itself would take an unlucky draw
    of the calibration images for a broken promise. A gamma threshold is at least the largest score, so that k = 1
    bounds its false alarms.

    The images must be independent: several photographs of one part exceed the threshold together, and the test rejects
    too often.

    >>> excess_p_value(0, 10, 99, 0.01)
    1.0
    >>> round(excess_p_value(1, 1, 99, 0.01), 6)  # of a single image, this is the target itself
    0.01

    Args:
        alarms: number of good test images above the threshold.
        images: number of good test images.
        n: number of different calibration images.
        fpr: target false-alarm rate.
    """
    k = max(1, threshold_rank(n, fpr))
    return float(betabinom(images, k, n + 1 - k).sf(alarms - 1))
