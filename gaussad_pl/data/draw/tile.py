"""A speckled stone tile that fills the image: chips of two minerals in a pale ground."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from gaussad_pl.data.draw.canvas import (
    SIZE,
    Array,
    Random,
    distance_to_path,
    grid,
    lit,
    mix,
    random_walk,
    smooth_noise,
    smoothstep,
)

KINDS: tuple[str, ...] = ("crack", "glue_strip", "gray_stroke", "oil")

GROUND, CHARCOAL, RUST = (0.74, 0.73, 0.71), (0.20, 0.20, 0.22), (0.52, 0.47, 0.42)
CHIPS = (0.95, 1.25)  # threshold of the dark chips in standard deviations: lower gives more chips
CHIP_SIZE = (2.2, 2.7)  # smoothing of the noise the chips are cut from, px

# Size and strength of the defects: sizes in px, opacities as fractions.
CRACK_LENGTH, CRACK_WIDTH, CRACK_DEPTH = (110.0, 210.0), (1.0, 2.0), (0.65, 0.95)
GLUE_LENGTH, GLUE_WIDTH, GLUE_OPACITY = (80.0, 150.0), (15.0, 26.0), (0.45, 0.75)
STROKE_LENGTH, STROKE_WIDTH, STROKE_OPACITY = (60.0, 120.0), (10.0, 18.0), (0.50, 0.85)
OIL_RADIUS, OIL_DARKENING = (24.0, 42.0), (0.14, 0.28)


def stone(scene: Random) -> Array:
    """Draw the tile before lighting, (SIZE, SIZE, 3)."""
    size, threshold = scene.uniform(*CHIP_SIZE), scene.uniform(*CHIPS)
    fine = smooth_noise(scene, 0.8)
    chips = smooth_noise(scene, size) + 0.35 * smooth_noise(scene, 1.1)
    pebbles = smooth_noise(scene, 1.5 * size) + 0.25 * fine
    dots = smooth_noise(scene, 1.0)
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = GROUND
    image += (0.018 * smooth_noise(scene, 5.0) + 0.022 * fine)[..., None]
    image = mix(image, RUST, 0.75 * smoothstep(threshold + 0.05, threshold + 0.30, pebbles))
    image = mix(image, CHARCOAL, 0.92 * smoothstep(threshold, threshold + 0.22, chips))
    image = mix(image, CHARCOAL, 0.70 * smoothstep(2.1, 2.5, dots))
    warmth = scene.normal(0.0, 0.010)
    return image * np.array([1.0 + warmth, 1.0, 1.0 - warmth], np.float32)


def start_inside(rng: Random, length: float) -> tuple[tuple[float, float], float]:
    """Draw random start and heading of a stroke of ``length`` px whose middle is well inside the image."""
    x, y = (rng.uniform(0.3 * SIZE, 0.7 * SIZE) for _ in range(2))
    heading = rng.uniform(0.0, 2.0 * math.pi)
    return (x - length / 2.0 * math.cos(heading), y - length / 2.0 * math.sin(heading)), heading


def crack(image: Array, rng: Random) -> Array:
    """Crack the tile: a dark jagged line that tapers at both ends, with bright chipped edges."""
    x, y = grid()
    length, width = rng.uniform(*CRACK_LENGTH), rng.uniform(*CRACK_WIDTH)
    start, heading = start_inside(rng, length)
    distance, place = distance_to_path(random_walk(rng, start, length, 0.35, heading), x, y)
    width = width * np.sqrt(np.clip(4.0 * place * (1.0 - place), 0.0, 1.0)) + 0.15
    line = rng.uniform(*CRACK_DEPTH) * smoothstep(1.6, 0.5, distance / width)
    chipped = 0.10 * smoothstep(3.2, 1.6, distance / width)
    return mix(image + (chipped - 0.10 * line)[..., None], (0.12, 0.11, 0.11), line)


def glue_strip(image: Array, rng: Random) -> Array:
    """Add a translucent strip with straight sides and a bright rim, which veils the speckles."""
    x, y = grid()
    length, half = rng.uniform(*GLUE_LENGTH), rng.uniform(*GLUE_WIDTH) / 2.0
    start, heading = start_inside(rng, length)
    along = (x - start[0]) * math.cos(heading) + (y - start[1]) * math.sin(heading)
    aside = (y - start[1]) * math.cos(heading) - (x - start[0]) * math.sin(heading)
    edge = np.minimum(half - np.abs(aside), np.minimum(along, length - along)) + 0.7 * smooth_noise(rng, 5.0)
    veil = rng.uniform(*GLUE_OPACITY) * smoothstep(-0.5, 0.7, edge)
    rim = 0.35 * smoothstep(2.2, 0.6, np.abs(edge - 0.6))
    return mix(mix(image, (0.78, 0.77, 0.72), veil), (0.90, 0.90, 0.87), rim)


def gray_stroke(image: Array, rng: Random) -> Array:
    """Add a dry brush stroke of grey paint."""
    x, y = grid()
    length, width = rng.uniform(*STROKE_LENGTH), rng.uniform(*STROKE_WIDTH)
    start, heading = start_inside(rng, length)
    distance, place = distance_to_path(random_walk(rng, start, length, 0.05, heading), x, y)
    paint = smoothstep(width / 2.0 + 1.0, width / 2.0 - 1.5, distance + 0.6 * smooth_noise(rng, 1.5))
    paint *= rng.uniform(*STROKE_OPACITY) * smoothstep(1.05, 0.6, place + 0.15 * smooth_noise(rng, 2.0))
    return mix(image, (0.50, 0.50, 0.51), paint)


def oil(image: Array, rng: Random) -> Array:
    """Add an oil stain: the stone is darker and warmer where oil has soaked in, most of all at the rim."""
    x, y = grid()
    centre_x, centre_y = (rng.uniform(0.25 * SIZE, 0.75 * SIZE) for _ in range(2))
    radius, ratio = rng.uniform(*OIL_RADIUS), rng.uniform(0.75, 1.0)
    shape = np.hypot((x - centre_x) * ratio, (y - centre_y) / ratio) / radius + 0.13 * smooth_noise(rng, 10.0)
    soaked = smoothstep(1.04, 0.94, shape) * (0.75 + 0.25 * smoothstep(0.5, 1.0, shape))
    soft = ndimage.gaussian_filter(soaked, 0.7) * rng.uniform(*OIL_DARKENING)
    return image * (1.0 - soft[..., None] * np.array([0.85, 1.0, 1.35], np.float32))


FLAWS = {"crack": crack, "glue_strip": glue_strip, "gray_stroke": gray_stroke, "oil": oil}


def render(scene: Random, kind: str | None, flaw_rng: Random) -> Array:
    """Draw one tile, (SIZE, SIZE, 3) in [0, 1]; the same ``scene`` gives the same tile with any defect."""
    image = stone(scene)
    if kind is not None:
        image = FLAWS[kind](image, flaw_rng)
    return lit(image, scene)
