"""Drift detection: test whether new images still look like the calibration images, even if up to half show bad parts.

Bad parts have large distances, so they hardly ever appear in the *near half*: the images nearer to the Gaussian than
the median calibration image. Two kinds of tests compare new and calibration images, for the score and for the distance
of each level, whether it has a weight in the score or not:

- Distribution: within the near half, good images are distributed like the calibration images, whatever the number of
  bad parts. If they crowd towards the median instead, all images have moved away. This is a one-sided two-sample
  Kolmogorov-Smirnov test.
- Size: half of the good parts are in the near half. If light or camera have changed so much that hardly any image is
  near, the first test has no data. This one tests whether fewer images are near than expected if half of all images are
  good. It is exact, see `few_below`. It is repeated with the nearest nine tenths of the calibration images, and with
  all of them: where the new images lie outside the calibration, five are enough to see it.

All tests are one-sided: images nearer than the calibration images, such as the training images, raise no alarm. If at
least half of the images are good and exchangeable with the calibration images, the probability of a false alarm is at
most `LEVEL`, whatever the number of tests (Bonferroni).

The beta-binomial probabilities of `few_below` are not taken from `scipy.stats.betabinom`, whose import would slow down
the start of every prediction. tests/test_properties.py compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration

FEWEST = 5  # images needed for the tests: half of fewer is one image
NEAR = (0.5, 0.9, 1.0)  # shares of the calibration images, from the nearest, below which new images are counted
LEVEL = 0.01  # significance level of all tests together
SIZE = 0.15  # smallest effect that is reported, however significant it is


@dataclass(frozen=True)
class Drift:
    """Result of the drift tests on N new images.

    Attributes:
        images: N.
        p_values: by quantity ("score", "level 3"), of the hypothesis that it has not moved away; Bonferroni-corrected.
        moved: the quantities that have moved away.
    """

    images: int
    p_values: dict[str, float]
    moved: list[str]

    @property
    def line(self) -> str:
        """Warning for the user; empty if nothing has moved away."""
        if not self.moved:
            return ""
        worst = min(self.p_values[name] for name in self.moved)
        unchanged = "" if "score" in self.moved else "; the scores alone could also be explained by bad parts"
        return (
            f"the images do not look like the calibration images (different light, camera or pose, or mostly bad "
            f"parts): {', '.join(self.moved)} increased (p = {worst:.1g}; false-alarm rate of this test: {LEVEL:g})"
            f"{unchanged}; the false-alarm rate may differ from its target"
        )


class DriftMonitor:
    """Tests new images for drift, batch by batch; keeps only counts, so its memory does not grow.

    Args:
        calibration: scores and distances of n calibration images.
        levels: indices of the levels.
    """

    def __init__(self, calibration: Calibration, levels: Sequence[int]) -> None:
        self.names = ["score", *(f"level {level}" for level in levels)]
        columns = torch.cat([calibration.scores[:, None], calibration.distances.double()], dim=1)
        self.sorted = columns.T.sort().values.contiguous()  # (columns, n)
        self.counts = torch.zeros(len(self.sorted), len(calibration) + 1, dtype=torch.int64)

    def observe(self, scores: Tensor, distances: Tensor) -> None:
        """Count the scores ``(N,)`` and distances ``(N, levels)`` of new images."""
        columns = torch.cat([scores[:, None].double(), distances.double()], dim=1).T.contiguous()
        below = torch.searchsorted(self.sorted, columns)
        self.counts.scatter_add_(1, below, torch.ones_like(below))

    def drift(self) -> Drift:
        """Test all images observed so far."""
        images = int(self.counts[0].sum())
        if images < FEWEST or self.counts.shape[1] <= FEWEST:  # the latter has a column more than calibration images
            return Drift(images, {}, [])
        tests = {name: moved_away(counts) for name, counts in zip(self.names, self.counts, strict=True)}
        p_values = {name: min(1.0, p * len(tests)) for name, (p, _) in tests.items()}
        moved = [name for name, (_, size) in tests.items() if p_values[name] < LEVEL and size > SIZE]
        return Drift(images, p_values, moved)


def moved_away(counts: Tensor) -> tuple[float, float]:
    """Test whether new images have moved away from n calibration images.

    Args:
        counts: number of new images with 0, 1, ... n calibration values below their own, ``(n + 1,)``.

    Returns:
        The p-value of all tests (the smallest, times their number), and the largest of their effect sizes: the
        difference of the distribution functions within the near half, and the shortfall of the share of near images
        from half of what is expected.
    """
    n, images = len(counts) - 1, int(counts.sum())
    half = n // 2
    near = counts[:half]
    inside = int(near.sum())
    crowded, difference = 1.0, 0.0
    if inside:
        expected = torch.arange(1, half + 1, dtype=torch.float64) / half
        difference = max(0.0, float((expected - near.cumsum(0) / inside).max()))
        crowded = math.exp(-2 * difference**2 * inside * half / (inside + half))
    p_values, effects = [crowded], [difference]
    for rank in (int(share * n) for share in NEAR):
        below = int(counts[:rank].sum())
        p_values.append(few_below(below, (images + 1) // 2, rank, n))
        effects.append(rank / n / 2 - below / images)
    return min(1.0, len(p_values) * min(p_values)), max(effects)


def few_below(count: int, images: int, rank: int, n: int) -> float:
    """Return the probability that at most ``count`` of ``images`` are below the ``rank``-th of n calibration values.

    If all are exchangeable, the number is beta-binomial, as the share of values below an order statistic follows
    Beta(rank, n + 1 - rank).
    """
    if count >= images:
        return 1.0
    a, b = float(rank), float(n + 1 - rank)
    k = torch.arange(count + 1, dtype=torch.float64)
    log_binomial = math.lgamma(images + 1) - torch.lgamma(k + 1) - torch.lgamma(images - k + 1)
    log_beta = torch.lgamma(k + a) + torch.lgamma(images - k + b) - math.lgamma(images + a + b)
    log_mass = log_binomial + log_beta + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return min(1.0, float(log_mass.exp().sum()))
