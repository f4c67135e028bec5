"""Building blocks of the drawings: noise, coordinates, strokes, light and the camera."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIZE = 256  # height and width of every image, px

Array = NDArray[np.floating]  # float32 in practice
Random = np.random.Generator

SENSOR_NOISE = 0.012  # standard deviation of the camera noise, fraction of white
EXPOSURE_SPREAD = 0.035  # relative standard deviation of the exposure between images
GRADIENT = (0.02, 0.09)  # relative fall-off of the light from the centre to one side
VIGNETTE = (0.02, 0.06)  # relative fall-off of the light towards the corners


def grid(supersampling: int = 1) -> tuple[Array, Array]:
    """Return coordinates (x, y) of the pixel centres in px, each (SIZE * supersampling, SIZE * supersampling)."""
    axis = (np.arange(SIZE * supersampling, dtype=np.float32) + 0.5) / supersampling
    x, y = np.meshgrid(axis, axis)
    return x, y


def shrink(image: Array, factor: int) -> Array:
    """Average blocks of ``factor`` x ``factor`` pixels: (H * factor, W * factor) to (H, W)."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    total = np.zeros((rows, columns), image.dtype)
    for i in range(factor):  # adding slices is much faster than the mean of a reshaped array
        for j in range(factor):
            total += image[i::factor, j::factor]
    return total / factor**2


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Return 0 below ``low``, 1 above ``high`` (reversed if ``low > high``), and a smooth ramp in between.

    >>> smoothstep(0.0, 1.0, np.array([-1.0, 0.5, 2.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    u = np.clip((value - low) / (high - low), 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def smooth_noise(rng: Random, sigma: float, size: int = SIZE) -> Array:
    """Stationary Gaussian noise (size, size), mean 0, variance 1, smoothed with a Gaussian of ``sigma`` px."""
    step = max(1, int(sigma / 2))  # smooth noise needs few samples: filter a coarse grid, then upsample it
    n = math.ceil(size / step) + 2
    width = sigma / step
    noise = ndimage.gaussian_filter(rng.standard_normal((n, n), dtype=np.float32), width, mode="wrap", truncate=3.0)
    noise *= 2.0 * width * math.sqrt(math.pi)
    if step > 1:
        noise = np.asarray(Image.fromarray(noise).resize((n * step, n * step), Image.Resampling.BICUBIC))
    return noise[step : step + size, step : step + size] if step > 1 else noise[:size, :size]


def cast_shadow(coverage: Array, blur: float, reach: tuple[float, float]) -> Array:
    """Draw the soft shadow of ``coverage`` (H, W), shifted by ``reach`` = (down, right) px: depth (H, W) in [0, 1]."""
    factor = 2  # half the resolution is enough, as it is smooth
    coarse = ndimage.gaussian_filter(shrink(coverage, factor), blur / factor, truncate=3.0)
    coarse = ndimage.shift(coarse, (reach[0] / factor, reach[1] / factor), order=1, mode="nearest")
    h, w = coverage.shape
    return np.clip(np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BILINEAR)), 0.0, 1.0)


def random_walk(rng: Random, start: tuple[float, float], length: float, wobble: float, heading: float) -> Array:
    """Draw a randomly turning path as points (n, 2), 2 px apart; ``wobble`` is the spread of the turns in radians."""
    n = max(2, int(length / 2.0))
    turns = heading + np.cumsum(rng.normal(0.0, wobble, n))
    steps = 2.0 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return (np.asarray(start) + np.cumsum(steps, axis=0)).astype(np.float32)


def distance_to_path(points: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return distances in px from (x, y) to the polyline ``points`` (n, 2), and the nearest places on it in [0, 1]."""
    best = np.full(x.shape, np.inf, np.float32)
    place = np.zeros(x.shape, np.float32)
    last = max(1, len(points) - 1)
    for i, (a, b) in enumerate(pairwise(points)):
        d = b - a
        u = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-6), 0.0, 1.0)
        squared = (x - a[0] - u * d[0]) ** 2 + (y - a[1] - u * d[1]) ** 2
        closer = squared < best
        best = np.where(closer, squared, best)
        place = np.where(closer, (i + u) / last, place)
    return np.sqrt(best), place


def mix(image: Array, colour: tuple[float, float, float] | Array, alpha: Array) -> Array:
    """Paint ``colour`` (3,) or (H, W, 3) over ``image`` (H, W, 3) with the opacity ``alpha`` (H, W)."""
    return image + alpha[..., None] * (np.asarray(colour, np.float32) - image)


def lit(image: Array, rng: Random) -> Array:
    """Light ``image`` (H, W, 3) with a lamp that varies from image to image: exposure, gradient and vignette."""
    x, y = grid()
    u, v = (x - SIZE / 2) / (SIZE / 2), (y - SIZE / 2) / (SIZE / 2)
    angle = rng.uniform(0.0, 2.0 * math.pi)
    light = 1.0 + rng.uniform(*GRADIENT) * (u * math.cos(angle) + v * math.sin(angle))
    light -= rng.uniform(*VIGNETTE) * (u * u + v * v)
    return image * (light * math.exp(rng.normal(0.0, EXPOSURE_SPREAD)))[..., None]


def photograph(image: Array, rng: Random) -> NDArray[np.uint8]:
    """Simulate the camera: ``image`` (H, W, 3) in [0, 1] becomes uint8, with slight blur and sensor noise."""
    blurred = ndimage.gaussian_filter(image, (0.45, 0.45, 0.0), truncate=3.0)
    grain = rng.standard_normal(image.shape[:2], dtype=np.float32)[..., None]
    colour = rng.standard_normal(image.shape, dtype=np.float32)
    noisy = blurred + SENSOR_NOISE * (0.9 * grain + 0.3 * colour)
    return np.rint(255.0 * np.clip(noisy, 0.0, 1.0)).astype(np.uint8)
