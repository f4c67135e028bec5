"""The score of an image from its pooled score and its map: one formula, for the model and for the exported graph."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Combination = Literal["auto", "pooled", "map", "both"]
COMBINATIONS: dict[Combination, tuple[float, float]] = {  # weights of the pooled score and of the map's
    "pooled": (1, 0),
    "map": (0, 1),
    "both": (0.5, 1),
}


def combine(pooled: Tensor, maps: Tensor, centre: Tensor, spread: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of both scores, each in units of held-out good images.

    Args:
        pooled: pooled scores, ``(N,)``.
        maps: scores of the maps, ``(N,)``, of the same type.
        centre, spread: mean and standard deviation of both scores on held-out good images, ``(2,)`` each.
        weights: of both scores, ``(2,)``.

    Returns:
        ``(N,)``.
    """
    parts = (torch.stack([pooled, maps], dim=1) - centre) / spread
    return parts @ weights.to(parts)
