"""Whether new images look like the calibration ones, though some of them, even half, may be of bad parts.

Bad parts have large distances, so they say nothing about the *near half*: the images nearer to the Gaussian than the
median calibration image. Two things are compared there, for the score and for the distance of each level:

- Within the near half, good images like the calibration ones are distributed as those are, however many bad parts
  there are beside them. Where the new ones crowd towards the median instead, all images have moved away: a one-sided
  two-sample Kolmogorov-Smirnov test.
- Of the good parts, half are in the near half. Where light or camera have changed so much that hardly any image is
  near, the first test has nothing to look at, and this one speaks: it asks whether there are fewer near ones than half
  of the images, those that are not bad, would give. It is exact (see `few_below`).

Both are tests against moving *away*: images nearer than the calibration ones (those of the training) raise no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration

FEWEST = 20  # images without which nothing is said
LEVEL = 0.01  # of all tests together
SIZE = 0.15  # of the difference, below which it is too small to care about however many images show it


@dataclass(frozen=True)
class Drift:
    """What is to be said about N new images.

    Attributes:
        images: N.
        p_values: by what is compared ("score", "level 3"), of the hypothesis that nothing has moved away.
        moved: names of what has moved.
    """

    images: int
    p_values: dict[str, float]
    moved: list[str]

    @property
    def line(self) -> str:
        """What to tell the user; empty where there is nothing to tell."""
        if not self.moved:
            return ""
        worst = min(self.p_values[name] for name in self.moved)
        kept = "" if "score" in self.moved else "; the scores themselves still look the same"
        return (
            f"the images do not look like the calibration images (other light, camera or pose, or most parts bad): "
            f"{', '.join(self.moved)} moved away (p = {worst:.1g}){kept}; the false-alarm "
            "rate may not be the one wished: train on images like these"
        )


class DriftMonitor:
    """Takes in new images one batch after the other; keeps counts alone, whatever their number.

    Args:
        calibration: n images with scores and distances of each level.
        levels: names of the levels.
    """

    def __init__(self, calibration: Calibration, levels: Sequence[int]) -> None:
        self.names = ["score", *(f"level {level}" for level in levels)]
        columns = torch.cat([calibration.scores[:, None], calibration.distances.double()], dim=1)
        self.sorted = columns.T.sort().values.contiguous()  # (columns, n)
        self.counts = torch.zeros(len(self.sorted), len(calibration) + 1, dtype=torch.int64)

    def observe(self, scores: Tensor, distances: Tensor) -> None:
        """Take in the scores ``(N,)`` and distances ``(N, levels)`` of new images."""
        columns = torch.cat([scores[:, None].double(), distances.double()], dim=1).T.contiguous()
        below = torch.searchsorted(self.sorted, columns)
        self.counts.scatter_add_(1, below, torch.ones_like(below))

    def drift(self) -> Drift:
        """What is to be said about all images so far."""
        images = int(self.counts[0].sum())
        if images < FEWEST or self.counts.shape[1] <= FEWEST:
            return Drift(images, {}, [])
        found = {name: moved_away(counts) for name, counts in zip(self.names, self.counts, strict=True)}
        p_values = {name: min(1.0, p * len(found)) for name, (p, _) in found.items()}
        moved = [name for name, (_, size) in found.items() if p_values[name] < LEVEL and size > SIZE]
        return Drift(images, p_values, moved)


def moved_away(counts: Tensor) -> tuple[float, float]:
    """p-value that new images have not moved away from n calibration images, and by how much they have.

    Args:
        counts: number of new images with 0, 1, ... n calibration values below their own, ``(n + 1,)``.

    Returns:
        The p-value of both tests together (the smaller one, twice), and the larger of the differences they are about:
        of the distribution functions within the near half, and between the share in it and a quarter.
    """
    n, images = len(counts) - 1, int(counts.sum())
    half = n // 2
    near = counts[:half]
    inside = int(near.sum())
    too_few = few_below(inside, (images + 1) // 2, half, n)
    crowded, difference = 1.0, 0.0
    if inside:
        expected = torch.arange(1, half + 1, dtype=torch.float64) / half
        difference = max(0.0, float((expected - near.cumsum(0) / inside).max()))
        crowded = math.exp(-2 * difference**2 * inside * half / (inside + half))
    return min(1.0, 2 * min(too_few, crowded)), max(difference, 0.25 - inside / images)


def few_below(count: int, images: int, rank: int, n: int) -> float:
    """Probability that at most ``count`` of ``images`` are below the ``rank``-th of n calibration values.

    All being exchangeable, the number is beta-binomial: the share of values below an order statistic follows
    Beta(rank, n + 1 - rank).
    """
    if count >= images:
        return 1.0
    a, b = float(rank), float(n + 1 - rank)
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(images + 1) - torch.lgamma(k + 1) - torch.lgamma(images - k + 1)
    beta = torch.lgamma(k + a) + torch.lgamma(images - k + b) - math.lgamma(images + a + b)
    return min(1.0, float((ways + beta + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)).exp().sum()))
