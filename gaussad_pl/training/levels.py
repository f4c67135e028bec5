"""Which levels of the backbone count, and how much: chosen on good images and augmented copies, never on defects.

A rule maps the AUROC of each level at telling good images from the copies of each augmentation ``(A, L)`` to the weight
of each level's distance in the score ``(L,)``. On faint local copies that AUROC goes along with the level's worth on
real defects; on strong ones it does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaussad_pl.errors import UserError
from gaussad_pl.metrics.image import auroc


def level_signals(distances: Tensor, groups: Tensor, count: int) -> Tensor:
    """AUROC of every level at telling good images from the copies of each augmentation.

    Args:
        distances: of good images and copies, ``(N, L)``.
        groups: 0 for good images, a for the copies of augmentation a = 1 ... count, ``(N,)``.
        count: number of augmentations A.

    Returns:
        ``(A, L)``.
    """
    rows = []
    for group in range(1, count + 1):
        chosen = (groups == 0) | (groups == group)
        rows.append([auroc(column, groups[chosen] > 0) for column in distances[chosen].T])
    return torch.tensor(rows)


def all_levels(signals: Tensor) -> Tensor:
    """Every level counts the same, as in the paper."""
    return torch.ones(signals.shape[-1])


def top_k(signals: Tensor, k: int) -> Tensor:
    """The k levels with the largest mean signal over the augmentations count, all the same.

    Raises:
        UserError: there are fewer than k levels, or k is less than 1.
    """
    if not 1 <= k <= signals.shape[-1]:
        raise UserError(
            f"model.level_rule.k={k}: expected a number from 1 to {signals.shape[-1]}, the levels there are"
        )
    best = signals.mean(0).topk(k).indices
    return torch.zeros(signals.shape[-1]).index_fill(0, best, 1.0)


def excess(signals: Tensor) -> Tensor:
    """A level counts as much as its mean signal exceeds chance; where none does, all count the same."""
    weights = (signals.mean(0) - 0.5).clamp(min=0)
    return weights / weights.max() if weights.max() > 0 else torch.ones_like(weights)
