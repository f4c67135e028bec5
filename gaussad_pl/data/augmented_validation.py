"""The augmented validation: held-out good images, and a copy of each by every augmentation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset, StackDataset

from gaussad_pl.augment import vicinal_copies
from gaussad_pl.augment.drawing import Mask

COPIED = 60  # least images of each group of the validation: fewer held-out images are copied several times
MOST_COPIES = 10


def augmented_validation(
    held_out: Tensor, augmentations: Mapping[str, float], seed: int, roi: Mask | None = None
) -> Dataset[dict[str, Tensor]]:
    """Combine held-out good images (group 0) with one copy of each by every augmentation (groups 1, 2, ...).

    A few held-out images are repeated, with different copies of each.

    Args:
        held_out: ``(N, 3, H, W)`` uint8.
        augmentations: name -> strength.
        seed: of the copies.
        roi: region of interest, ``(H, W)``, outside of which copies are unchanged.

    Returns:
        Items with ``image``; ``group``; ``mask``, the pixels that the augmentation changed; and ``source``, the number
        of the held-out image.
    """
    repeats = min(MOST_COPIES, -(-COPIED // len(held_out)))
    normal = held_out.repeat(repeats, 1, 1, 1)
    augmented = [vicinal_copies(held_out, *kind, seed, roi, repeats) for kind in augmentations.items()]
    copies, masks = zip(*augmented, strict=True)
    return StackDataset(
        image=torch.cat([normal, *copies]),  # type: ignore[arg-type]  # accepts tensors, contrary to its annotations
        group=torch.arange(len(copies) + 1).repeat_interleave(len(normal)),  # type: ignore[arg-type]
        mask=torch.cat([torch.zeros_like(masks[0]), *masks]),  # type: ignore[arg-type]
        source=torch.arange(len(held_out)).repeat(repeats * (len(copies) + 1)),  # type: ignore[arg-type]
    )
