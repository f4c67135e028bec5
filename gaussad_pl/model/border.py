"""Weights of patches near the border of an image, for parts photographed on a plain background.

A part in the middle of a plain background has its defects on the part, while shadows, dust and uneven light show at the
border. There, patches are weighted by the share of their neighbourhood that lies within the image. Textures fill the
image and have defects at its border, too, so their patches all count the same. Local contrast distinguishes the two
cases without a bad image.

An average over neighbours with zero padding, as in PatchCore (Roth et al., "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022), weights the border in the same way, for textures as well.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = 28  # along each side of the grid on which contrast is measured
BORDER = 3  # width of the border in cells
CENTRE = 14  # side of the central square in cells
PLAIN = 2 / 3  # largest contrast of a plain border, in units of the contrast of the centre
REACH = 2 / 28  # of the neighbourhood to each side, in units of the image: two patches of the default grid


def border_contrast(images: Tensor) -> Tensor:
    """Contrast at the border of each image in units of its contrast in the centre.

    Contrast is the standard deviation of grey values within a cell, averaged over cells.

    Args:
        images: ``(N, 3, H, W)`` uint8, with cells of at least two pixels, or all of them count as plain.

    Returns:
        ``(N,)``; 1 where the whole image is plain.
    """
    grey = images.float().mean(1, keepdim=True) / 255
    size = [max(1, side // CELLS) for side in images.shape[-2:]]
    mean, square = (F.avg_pool2d(x, size)[..., :CELLS, :CELLS] for x in (grey, grey.square()))
    contrast = (square - mean.square()).clamp(min=0).sqrt()[:, 0]
    border = torch.ones(contrast.shape[1:], dtype=torch.bool, device=images.device)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    top, left = ((side - CENTRE) // 2 for side in border.shape)
    centre = contrast[:, top : top + CENTRE, left : left + CENTRE].mean((1, 2))
    return torch.where(centre > 1e-6, contrast[:, border].mean(1) / centre.clamp(min=1e-6), 1.0)


def is_plain(contrast: Tensor) -> bool:
    """True if the border of most good images is plain, by their `border_contrast` ``(N,)``."""
    return len(contrast) > 0 and contrast.median().item() < PLAIN


def border_weights(shape: tuple[int, int]) -> Tensor:
    """Share of the neighbourhood of each patch that lies within the image, ``shape``; 1 away from the border."""
    reach = [max(1, round(REACH * side)) for side in shape]
    size = [2 * each + 1 for each in reach]
    return F.avg_pool2d(torch.ones(1, 1, *shape), size, stride=1, padding=reach)[0, 0]
