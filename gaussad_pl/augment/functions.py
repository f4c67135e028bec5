"""The vicinal augmentations, one function each, with the interface of `gaussad_pl.augment.vicinal.VicinalFunction`.

At strength 1 each takes the form usual in the literature. A lower strength changes a smaller area (proportional to the
strength), more faintly (proportional to its square root) and with softer edges.

To add an augmentation, write a function here, decorate it with ``@register`` and set its strength in a file of
``conf/augmentation/``.
"""

import cv2
import numpy as np
from numpy.random import Generator

from gaussad_pl.augment.drawing import (
    Floats,
    Image,
    Mask,
    blend,
    jitter,
    perlin_noise,
    random_box,
    random_tint,
    rectangle,
    warp,
)
from gaussad_pl.augment.vicinal import register


@register
def mixup(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Blend the whole image with its partner (Zhang et al., mixup, ICLR 2018)."""
    return blend(image, partner, _everywhere(image), strength * _partner_share(rng))


@register
def cutmix(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Replace a rectangle of the image by the same region of the partner (Yun et al., CutMix, ICCV 2019)."""
    centre, size = random_box(image.shape, strength * _partner_share(rng), 1.0, rng)
    return blend(image, partner, rectangle(image.shape, centre, size, 0.0, (1 - strength) / 2), strength**0.5)


@register
def cutout(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Cover a square with the mean colour (DeVries and Taylor, Cutout, 2017).

    At strength 1 its side is half that of the image.
    """
    centre, size = random_box(image.shape, strength / 4, 1.0, rng)
    mean = np.broadcast_to(image.mean(axis=(0, 1), dtype=np.float32), image.shape)
    return blend(image, mean, rectangle(image.shape, centre, size, 0.0, (1 - strength) / 2), strength**0.5)


@register
def cutpaste(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Paste a colour-jittered patch of the image elsewhere in it (Li et al., CutPaste, CVPR 2021).

    At strength 1 the area is 2 to 15 % of the image and the aspect ratio 0.3 to 3.3, as in the paper.
    """
    area, aspect = strength * rng.uniform(0.02, 0.15), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    source, _ = random_box(image.shape, area, aspect, rng)
    target, size = random_box(image.shape, area, aspect, rng)
    patch = jitter(np.roll(image, np.rint(target - source).astype(int), axis=(0, 1)), 0.1, rng)
    return blend(image, patch, rectangle(image.shape, target, size, 0.0, (1 - strength) / 2), strength**0.5)


@register
def scar(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Paste a thin, rotated, colour-jittered strip of the image elsewhere in it (CutPaste-Scar, Li et al., CVPR 2021).

    At strength 1 it is 2 to 16 pixels wide and 10 to 25 long in an image of side 256, and rotated by up to 45 degrees,
    as in the paper.
    """
    sides = np.array(image.shape[:2])
    size = strength**0.5 * np.sqrt(sides.prod()) / 256 * rng.uniform([10, 2], [25, 16])
    size = np.maximum(size, 2)
    source, target = rng.uniform(0.1 * sides, 0.9 * sides, size=(2, 2))
    angle = rng.uniform(-45, 45)
    # Rotate the strip in place, then move it to the target.
    motion = np.asarray(cv2.getRotationMatrix2D(source[::-1], angle, 1.0))
    motion[:, 2] += (target - source)[::-1]
    strip = jitter(warp(image, motion), 0.1, rng)
    return blend(image, strip, rectangle(image.shape, target, size, angle, (1 - strength) / 2), strength**0.5)


@register
def confetti(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Shift the colours of one to four rotated squares: confetti noise (Liznerski et al., FCDD, ICLR 2021).

    At strength 1 their sides are 8 to 54 pixels in an image of side 256.
    """
    sides = np.array(image.shape[:2])
    shift, alpha = np.zeros(image.shape, np.float32), np.zeros(image.shape[:2], np.float32)
    for _ in range(rng.integers(1, 5)):
        side = max(strength**0.5 * min(sides) / 256 * rng.uniform(8, 54), 2.0)
        centre = rng.uniform(0.05 * sides, 0.95 * sides)
        square = rectangle(image.shape, centre, np.array([side, side]), rng.uniform(0, 90), (1 - strength) / 2)
        shift[square > 0] += random_tint(image, 1.0, rng)
        alpha = np.maximum(alpha, square)
    return blend(image, image + shift, alpha, strength**0.5)


@register
def perlin(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Blend in the jittered image or partner through thresholded Perlin noise (Zavrtanik et al., DRAEM, ICCV 2021).

    At strength 1 the patches are spread over the image; the lower the strength, the more they cluster in one place.
    DRAEM blends in textures from another dataset; good images need no second dataset and give fainter defects.
    """
    sides = np.array(image.shape[:2])
    cells = np.minimum(2 ** rng.integers(0, 6, size=2), sides // 4)
    noise = perlin_noise(image.shape, (int(cells[0]), int(cells[1])), rng)
    y, x = (np.linspace(0, 1, side, dtype=np.float32) - rng.uniform(0.1, 0.9) for side in sides)
    noise -= np.float32(10 * (1 - strength)) * (y[:, None] ** 2 + x[None, :] ** 2)
    threshold = np.quantile(noise, 1 - strength * rng.uniform(0.02, 0.2))
    border = max((1 - strength) * (noise.max() - threshold), 1e-6)
    alpha = np.clip((noise - threshold) / border, 0, 1)
    layer = jitter(image if rng.random() < 0.5 else partner, 0.3, rng)
    return blend(image, layer, alpha, strength**0.5 * rng.uniform(0.2, 0.9))


@register
def elastic(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Displace the pixels of a round region: a local elastic deformation (after Simard et al., ICDAR 2003).

    The part looks bent, stretched or out of place, without new texture or edges. At strength 1 the region's radius is
    10 to 35 % of the image's side, and the displacement 12 to 50 % of the radius, too little to fold the image.
    """
    sides = np.array(image.shape[:2])
    radius = max(np.sqrt(strength * sides.prod()) * rng.uniform(0.1, 0.35), 3.0)
    push = max(strength**0.5 * radius * rng.uniform(0.12, 0.5), 1.0)
    direction = rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(0.1 * sides, 0.9 * sides)
    y, x = np.indices(image.shape[:2], dtype=np.float32)
    nearness = np.float32(1) - ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).astype(np.float32) / np.float32(radius**2)
    offset = np.float32(push) * np.clip(nearness, 0, None) ** 2
    moved = cv2.remap(  # Lanczos: a blur would give the copy away
        image, x + np.float32(np.cos(direction)) * offset, y + np.float32(np.sin(direction)) * offset,
        cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    return np.where(offset[..., None] > 0, moved, image).astype(np.uint8), offset > 0


@register
def augmix(image: Image, partner: Image, rng: Generator, strength: float) -> tuple[Image, Mask]:
    """Blend the image with a mixture of three randomly augmented versions (Hendrycks et al., AugMix, ICLR 2020).

    Each version goes through one to three operations; strength 1 is severity 3 of 10 in the paper.
    """
    shares = rng.dirichlet(np.ones(3))
    mixture = np.zeros(image.shape, np.float32)
    for share in shares:
        version = image
        for _ in range(rng.integers(1, 4)):
            version = _augmix_operation(version, strength * rng.uniform(0.01, 0.3), rng)
        mixture += np.float32(share) * version
    return blend(image, mixture, _everywhere(image), strength * rng.uniform())


def _augmix_operation(image: Image, level: float, rng: Generator) -> Image:
    """Apply a random one of AugMix's nine operations to an image, uint8 (H, W, 3); ``level`` is its severity / 10."""
    height, width = image.shape[:2]
    signed = float(rng.choice([-level, level]))
    match rng.integers(9):
        case 0:  # autocontrast
            low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
            stretched = (image - low.astype(np.float32)) * (255 / np.maximum(high - low, 1))
            return np.where(high > low, np.rint(stretched), image).astype(np.uint8)
        case 1:  # equalize
            return np.stack([np.asarray(cv2.equalizeHist(c), np.uint8) for c in np.moveaxis(image, -1, 0)], axis=-1)
        case 2:  # posterize
            return image & np.uint8(256 - 2 ** (4 + round(4 * level)))
        case 3:  # solarize
            return np.where(image < 256 * (1 - level), image, 255 - image)
        case 4:  # rotate
            return warp(image, np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), 30 * signed, 1.0)))
        case 5:  # shear x
            return warp(image, np.array([[1, signed, -signed * height / 2], [0, 1, 0]]))
        case 6:  # shear y
            return warp(image, np.array([[1, 0, 0], [signed, 1, -signed * width / 2]]))
        case 7:  # translate x
            return warp(image, np.array([[1, 0, signed * width / 3], [0, 1, 0]]))
        case _:  # translate y
            return warp(image, np.array([[1, 0, 0], [0, 1, signed * height / 3]]))


def _everywhere(image: Image) -> Floats:
    return np.ones(image.shape[:2], dtype=np.float32)


def _partner_share(rng: Generator) -> float:
    """Draw the partner's share, uniform in [0, 1/2].

    This is the papers' Beta(1, 1), folded: a share near 1 would give the partner, which is good, not an anomaly.
    """
    return rng.uniform(0, 0.5)
