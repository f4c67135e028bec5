"""Vicinal copies: synthetic, anomalous-looking versions of good images, with masks.

Distinguishing held-out good images from their copies is a validation task that needs no real anomalies (vicinal risk
minimisation). The augmentations themselves are in `gaussad_pl.augment.functions`.
"""

import zlib
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from gaussad_pl.augment.drawing import Image, Mask
from gaussad_pl.errors import UserError

ATTEMPTS = 50  # to change something within a region of interest: a twentieth of the image is missed by one in 13


class VicinalFunction(Protocol):
    """Interface of a vicinal augmentation: a pure function that does not modify its arguments.

    Args:
        image: good image, uint8 (H, W, 3).
        partner: another good image of the same size, uint8 (H, W, 3).
        rng: the only source of randomness.
        strength: in (0, 1]. 1 is the form usual in the literature; towards 0 the copy approaches the image.

    Returns:
        The augmented copy, uint8 (H, W, 3), and the region that was changed, bool (H, W).
    """

    __name__: str

    def __call__(self, image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]: ...


VICINAL: dict[str, VicinalFunction] = {}


def register(function: VicinalFunction) -> VicinalFunction:
    """Register an augmentation under its function name in `VICINAL`."""
    VICINAL[function.__name__] = function
    return function


def vicinal_copies(
    images: Tensor, name: str, strength: float, seed: int, roi: Mask | None = None, repeats: int = 1
) -> tuple[Tensor, Tensor]:
    """Return augmented copies of every image, reproducible from the seed alone.

    The random numbers of a copy depend only on ``(seed, name, index)``. They determine its severity (`damaged_copy`)
    and its partner among the other images; a single image is paired with its own mirror image.

    Args:
        images: good images, uint8 (N, 3, H, W).
        name: a key of `VICINAL`.
        strength: mean severity of the copies, in (0, 1].
        seed: non-negative.
        roi: region of interest, ``(H, W)``, outside of which copies are unchanged.
        repeats: R, copies of each image: all images once, then all of them again.

    Returns:
        The copies, uint8 (R N, 3, H, W), and the regions that were changed, bool (R N, H, W).
    """
    if name not in VICINAL:
        raise UserError(f"unknown augmentation '{name}': expected one of {', '.join(sorted(VICINAL))}")
    if not 0 < strength <= 1:
        raise UserError(f"strength of augmentation '{name}' is {strength}: set it to a number in (0, 1]")
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    n = len(arrays)
    copies = np.empty((repeats * n, *arrays.shape[1:]), dtype=arrays.dtype)
    masks = np.empty(copies.shape[:3], dtype=bool)
    for i in range(repeats * n):
        image = arrays[i % n]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), i])
        partner = arrays[(i + rng.integers(1, n)) % n] if n > 1 else np.ascontiguousarray(image[:, ::-1])
        copies[i], masks[i] = damaged_copy(name, image, partner, rng, strength, roi)
    return torch.from_numpy(copies).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks)


def damaged_copy(
    name: str, image: Image, partner: Image, rng: Generator, strength: float, roi: Mask | None
) -> tuple[Image, Mask]:
    """Draw the severity of a copy, and make it; with a region of interest ``(H, W)``, it is changed there alone.

    Copies that are changed outside of the region only are drawn again.
    """
    severity = draw_severity(strength, rng)
    if roi is None:
        return VICINAL[name](image, partner, rng, severity)
    for _ in range(ATTEMPTS):
        copy, mask = VICINAL[name](image, partner, rng, severity)
        if (mask & roi).any():
            break
    return np.where(roi[..., None], copy, image), mask & roi


def draw_severity(strength: float, rng: Generator) -> float:
    """Draw the severity of one copy: Beta distributed with mean ``strength``, and at least a tenth of it.

    It is always 1 for strength 1, and uniform in [0, 1] for strength 1/2. A single severity for all copies would
    saturate: a change that is invisible on one kind of part is detected without error on another, and an AUROC of 50 or
    100 carries no information.
    """
    if strength == 1:
        return 1.0
    return max(rng.beta(2 * strength, 2 * (1 - strength)), strength / 10)
