"""Features by which shots of one part are told from shots of another: pooled, of the middle levels, whitened.

Shallow levels see the light, and deep ones the kind of part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.data.near_duplicates import near_duplicates
from gaussad_pl.density.gaussian import Gaussian
from gaussad_pl.density.moments import moments
from gaussad_pl.density.whitening import SingularCovarianceError

T = TypeVar("T")
Features = Callable[[Tensor], Sequence[Tensor]]  # of images (N, 3, H, W), uint8: (N, C) of each middle level


def middle(levels: Sequence[T]) -> Sequence[T]:
    """Those of the middle levels, at least one."""
    count = len(levels)
    return levels[count // 3 : max(count // 3 + 1, count - count // 4)]


def whitened(levels: Sequence[Tensor], gaussians: Sequence[Gaussian]) -> Tensor:
    """Features ``(N, D)`` in which images of one part are near, each level ``(N, C)`` of the same weight."""
    parts = [(x - g.mean) @ g.whitener.mT / x.shape[1] ** 0.5 for x, g in zip(levels, gaussians, strict=True)]
    return torch.cat(parts, dim=1)


def estimated(levels: Sequence[Tensor]) -> list[Gaussian]:
    """The Gaussian of each level ``(N, C)``, shrunk after Ledoit and Wolf; a level that never changes says nothing."""
    gaussians = [Gaussian(level.shape[1]) for level in levels]
    for gaussian, level in zip(gaussians, levels, strict=True):
        found = moments(level)
        gaussian.mean.copy_(found.mean)
        try:
            gaussian.fit(found)
        except SingularCovarianceError:
            continue
    return gaussians


@torch.no_grad()
def pooled_middle(backbone: Backbone, device: torch.device, images: Tensor) -> list[Tensor]:
    """Pooled features of the middle levels ``(N, C)``, on the CPU; the backbone goes to ``device``."""
    backbone.to(device)
    return [level.cpu() for level in middle(backbone.pooled(images.to(device)))]


def alike(images: Tensor, features: Features, batch_size: int) -> NDArray[np.int64]:
    """Group of each image ``(N, 3, H, W)``, uint8, ``(N,)``: near-duplicates by features, from one pass over all."""
    batches = track(images.split(batch_size), "Looking for near-duplicates", transient=True)
    levels = [torch.cat(level) for level in zip(*map(features, batches), strict=True)]
    return near_duplicates(whitened(levels, estimated(levels)))
