"""Orientations of an image: flips and quarter turns, in which a part without an upright position is as good as before.

A few images of a part that can lie in any way do not show every way; their flipped and rotated copies do.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ORIENTATIONS: Mapping[str, int] = {"none": 1, "flips": 4, "all": 8}  # setting -> number of orientations
AUTO = "auto"
FEW = 80  # most images for which `AUTO` tries copies: 160 screws had no use for them, and they took twice the time


def oriented(images: Tensor, orientation: int) -> Tensor:
    """Return images ``(..., H, W)`` in one of the eight orientations of a square.

    Args:
        orientation: sum of 1 (flip horizontally), 2 (flip vertically) and 4 (transpose); 0 changes nothing.

    >>> import torch
    >>> oriented(torch.arange(4).view(2, 2), 3).tolist()
    [[3, 2], [1, 0]]
    """
    axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if orientation & bit]
    flipped = images.flip(axes) if axes else images
    return flipped.mT if orientation & 4 else flipped
