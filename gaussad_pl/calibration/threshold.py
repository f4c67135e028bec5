"""The decision threshold for a target false-alarm rate, the verdict on a score, and the rate used by default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

RATES = (0.01, 0.05, 0.1, 0.2)  # the default is one of them

Verdict = Literal["good", "bad", "undecided"]


def images_needed(fpr: float) -> int:
    """Return the number of calibration images that guarantee a false-alarm rate, ceil(1 / fpr - 1).

    >>> [images_needed(fpr) for fpr in RATES]
    [99, 19, 9, 4]
    """
    return math.ceil(1 / fpr - 1 - 1e-9)


def images_trusted(fpr: float) -> int:
    """Return the number of calibration images whose largest score is not the threshold, ceil(2 / fpr - 1).

    With fewer, it is: one odd image among the good ones would hide most bad parts.

    >>> [images_trusted(fpr) for fpr in RATES]
    [199, 39, 19, 9]
    """
    return images_needed(fpr / 2)


def default_rate(n: int) -> float:
    """Return the smallest of `RATES` whose threshold is not the largest of n calibration scores.

    If there is none, it is the largest of them. No rate is left to a fitted tail.

    >>> [default_rate(n) for n in (20, 40, 199, 1000)]
    [0.1, 0.05, 0.01, 0.01]
    """
    return next((fpr for fpr in RATES if n >= images_trusted(fpr)), RATES[-1])


@dataclass(frozen=True)
class Threshold:
    """A decision threshold: a score above ``value`` is bad.

    Attributes:
        value: in the units of the scores; infinite if there are too few scores for a threshold.
        fpr: target false-alarm rate.
        rule: "conformal" (guaranteed), "gamma" (tail of a fitted distribution, if n is too small) or "none".
        line: one line that explains the threshold to the user.
    """

    value: float
    fpr: float
    rule: Literal["conformal", "gamma", "none"]
    line: str

    @property
    def reason(self) -> str:
        """One sentence on why every image is undecided; empty if there is a threshold."""
        return self.line if self.rule == "none" else ""

    def verdict(self, score: float) -> Verdict:
        """Return the verdict on a score; a score that is NaN is bad."""
        if self.rule == "none":  # no score could be bad, so none is good
            return "undecided"
        return "good" if score <= self.value else "bad"


def undecided(n: int, fpr: float) -> Threshold:
    """Return the infinite threshold of a rate that n calibration images cannot decide; its line names the remedy."""
    larger = default_rate(n)
    remedy = f"give fpr={larger:g} or " if n >= images_needed(larger) else ""
    line = (
        f"fpr={fpr:g} needs {images_needed(fpr)} calibration images, but the detector has {n}: {remedy}train with more "
        "good images"
    )
    return Threshold(math.inf, fpr, "none", line)


def default_line(n: int, fpr: float) -> str:
    """Explain the default rate ``fpr`` of n calibration images, and what more images would allow."""
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    if n < images_trusted(fpr):
        return f"fpr={fpr:g}, the largest of {rates}: the threshold is the largest of {n} calibration scores"
    why = f"the smallest of {rates} whose threshold is not the largest of {n} calibration scores"
    smaller = [rate for rate in reversed(RATES) if rate < fpr]
    return f"fpr={fpr:g}, {why}" + "".join(f"; {rate:g} needs {images_trusted(rate)} images" for rate in smaller)
