"""Building blocks of the vicinal augmentations: shapes, noise and blending, as pure functions on numpy arrays."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


def blend(image: Image, layer: Image | Floats, alpha: Floats, opacity: float) -> tuple[Image, Mask]:
    """Blend a layer over an image.

    Args:
        image: uint8 (H, W, 3).
        layer: (H, W, 3) in grey levels; values outside [0, 255] are clipped.
        alpha: opacity of each pixel, (H, W) in [0, 1].
        opacity: opacity of the layer as a whole, in [0, 1]; multiplies alpha.

    Returns:
        The blended image, uint8 (H, W, 3), and a mask of the pixels that the layer covers, bool (H, W).
    """
    layer = np.clip(layer, 0, 255, dtype=np.float32)
    return np.rint(image + opacity * alpha[..., None] * (layer - image)).astype(np.uint8), alpha > 0


def random_box(
    shape: tuple[int, ...], area: float, aspect: float, rng: Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a random box inside an image: its centre (y, x) and size (height, width), both (2,) in pixels.

    Args:
        shape: (H, W, ...) of the image.
        area: area of the box as a fraction of the image.
        aspect: height / width, relative to that of the image.
        rng: draws the centre.
    """
    sides = np.array(shape[:2], dtype=np.float64)
    size = np.clip(sides * np.sqrt([area * aspect, area / aspect]), 2, sides)
    return rng.uniform(size / 2, sides - size / 2), size


def rectangle(
    shape: tuple[int, ...], centre: NDArray[np.float64], size: NDArray[np.float64], angle: float, feather: float
) -> Floats:
    """Opacity (H, W) of a rectangle: 0 outside, rising to 1 towards its centre.

    Args:
        shape: (H, W, ...) of the image.
        centre: (y, x) in pixels.
        size: (height, width) in pixels.
        angle: counter-clockwise rotation in degrees.
        feather: width of the soft border as a fraction of the distance to the centre; 0 gives hard edges.
    """
    y = np.arange(shape[0])[:, None] + 0.5 - centre[0]
    x = np.arange(shape[1])[None, :] + 0.5 - centre[1]
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    offsets = np.abs(cos * y + sin * x), np.abs(cos * x - sin * y)
    border = max(feather * min(size) / 2, 1e-6)
    rise = [np.clip((side / 2 - offset) / border, 0, 1) for side, offset in zip(size, offsets, strict=True)]
    return (rise[0] * rise[1]).astype(np.float32)


def perlin_noise(shape: tuple[int, ...], cells: tuple[int, int], rng: Generator) -> Floats:
    """Perlin noise (H, W), approximately in [-1, 1] (Perlin, An Image Synthesizer, SIGGRAPH 1985).

    Args:
        shape: (H, W, ...) of the image.
        cells: number of lattice cells along (y, x); every lattice point has a random gradient.
        rng: draws the gradients.
    """
    angles = rng.uniform(0, 2 * np.pi, size=(cells[0] + 1, cells[1] + 1)).astype(np.float32)
    y = np.linspace(0, cells[0], shape[0], endpoint=False, dtype=np.float32)[:, None]
    x = np.linspace(0, cells[1], shape[1], endpoint=False, dtype=np.float32)[None, :]
    row, column = y.astype(int), x.astype(int)
    dy, dx = y - row, x - column

    def ramp(i: int, j: int) -> Floats:
        angle = angles[row + i, column + j]
        return np.sin(angle) * (dy - i) + np.cos(angle) * (dx - j)

    v, u = (t**3 * (t * (6 * t - 15) + 10) for t in (dy, dx))
    upper = ramp(0, 0) + u * (ramp(0, 1) - ramp(0, 0))
    lower = ramp(1, 0) + u * (ramp(1, 1) - ramp(1, 0))
    return np.float32(np.sqrt(2)) * (upper + v * (lower - upper))


def jitter(image: Image, amount: float, rng: Generator) -> Floats:
    """Change contrast and colour by up to ``amount`` (1: the full range); returns unclipped float32 (H, W, 3)."""
    mean = image.mean(axis=(0, 1), dtype=np.float32)
    contrast = np.float32(rng.uniform(1 - amount, 1 + amount))
    return mean + contrast * (image - mean) + random_tint(image, amount, rng)


def random_tint(image: Image, amount: float, rng: Generator) -> Floats:
    """Draw a random offset for the channels, (3,) in grey levels, up to ``amount`` of their range.

    Grey images get the same offset in all channels, as colour would give the copy away immediately.
    """
    grey = bool((image == image[..., :1]).all())
    return np.broadcast_to(255 * rng.uniform(-amount, amount, size=1 if grey else 3), 3).astype(np.float32)


def warp(image: Image, matrix: NDArray) -> Image:
    """Apply an affine map (2, 3) to pixel positions (x, y): bilinear, with the image mirrored at its borders."""
    warped = cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(warped, dtype=np.uint8)
