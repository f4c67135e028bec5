"""Features that distinguish parts: pooled and whitened features of the middle levels.

Shallow levels respond to the lighting, deep ones to the kind of part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.data.near_duplicates import near_duplicates
from gaussad_pl.density.gaussian import Gaussian
from gaussad_pl.density.moments import moments
from gaussad_pl.density.whitening import SingularCovarianceError
from gaussad_pl.progress import tracked

T = TypeVar("T")
Features = Callable[[Tensor], Sequence[Tensor]]  # uint8 images (N, 3, H, W) -> (N, C) for each middle level


def middle(levels: Sequence[T]) -> Sequence[T]:
    """Return the middle levels, at least one.

    >>> middle(range(9))
    range(3, 7)
    """
    count = len(levels)
    return levels[count // 3 : max(count // 3 + 1, count - count // 4)]


def whitened(levels: Sequence[Tensor], gaussians: Sequence[Gaussian]) -> Tensor:
    """Whiten levels ``(N, C)`` and concatenate them, equally weighted, to ``(N, D)``: images of one part are close."""
    parts = [(x - g.mean) @ g.whitener.mT / x.shape[1] ** 0.5 for x, g in zip(levels, gaussians, strict=True)]
    return torch.cat(parts, dim=1)


def estimated(levels: Sequence[Tensor]) -> list[Gaussian]:
    """Estimate a Gaussian for each level ``(N, C)``, with Ledoit-Wolf shrinkage; ignores constant levels."""
    gaussians = [Gaussian(level.shape[1]) for level in levels]
    for gaussian, level in zip(gaussians, levels, strict=True):
        level_moments = moments(level)
        gaussian.mean.copy_(level_moments.mean)
        try:
            gaussian.fit(level_moments)
        except SingularCovarianceError:
            continue
    return gaussians


@torch.no_grad()
def pooled_middle(backbone: Backbone, device: torch.device, images: Tensor) -> list[Tensor]:
    """Return pooled features ``(N, C)`` of the middle levels, on the CPU. Moves the backbone to ``device``."""
    backbone.to(device)
    return [level.cpu() for level in middle(backbone.pooled(images.to(device)))]


def alike(images: Tensor, features: Features, batch_size: int) -> NDArray[np.int64]:
    """Group near-duplicates among uint8 images ``(N, 3, H, W)`` in one pass; returns the group of each, ``(N,)``."""
    batches = tracked(images.split(batch_size), "Looking for near-duplicates")
    levels = [torch.cat(level) for level in zip(*map(features, batches), strict=True)]
    return near_duplicates(whitened(levels, estimated(levels)))
