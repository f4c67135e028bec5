"""Good images whose scores are far from all others: a bad part among them, perhaps, or another light or camera."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration

FEWEST = 10  # scores whose quartiles mean something


def outer_fence(scores: Tensor) -> float:
    """Return the third quartile of ``scores`` ``(N,)`` plus three interquartile ranges.

    Scores beyond it are "far out" (Tukey, "Exploratory Data Analysis", 1977, section 2D). Of a normal distribution,
    that is one in 850 000; of an exponential one, one in 108.
    """
    first, third = torch.quantile(scores, scores.new_tensor([0.25, 0.75])).tolist()
    return float(third + 3 * (third - first))


def far_out(calibration: Calibration) -> list[tuple[int, float]]:
    """Return position and score of the calibration images that are far out, the largest score first.

    Each score is from Gaussians that have not seen its image, so that a bad part cannot make itself normal.
    """
    if len(calibration.images) < FEWEST:
        return []
    fence = outer_fence(calibration.scores)
    ascending = list(zip(calibration.images, calibration.scores.tolist(), strict=True))
    return [(image, score) for image, score in reversed(ascending) if score > fence]
