"""Patches: the features of some levels at each position of the finest of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gaussad_pl.backbones.backbone import Level


def middle_levels(levels: Sequence[Level]) -> list[int]:
    """Positions in ``levels`` of the deepest ones at reductions 8 and 16, which both locate and mean something.

    Where all levels have the same reduction, as in transformers, those at one and two thirds of the depth.
    """
    reductions = {level.reduction for level in levels}
    if len(reductions) == 1:
        return sorted({len(levels) // 3, 2 * len(levels) // 3})
    wanted = sorted({min(reductions, key=lambda r: abs(1 / r - 1 / target)) for target in (8, 16)})
    return [max(i for i, level in enumerate(levels) if level.reduction == reduction) for reduction in wanted]


def embed(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps ``(N, C_i, h_i, w_i)`` on the grid of the finest, as patches ``(N, h * w, sum of C_i)``."""
    size = max((feature_map.shape[-2:] for feature_map in maps), key=lambda shape: shape[0] * shape[1])
    same = [m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="bilinear") for m in maps]
    return torch.cat(same, dim=1).flatten(2).mT.contiguous()


def deeper_than_map(levels: Sequence[Level]) -> list[int]:
    """Indices (`Level.index`) of the levels deeper than the last of `middle_levels`."""
    return [level.index for level in levels[middle_levels(levels)[-1] + 1 :]]
