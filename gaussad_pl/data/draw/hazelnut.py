"""A hazelnut on a dark table: a shaded shell with meridian stripes and a rough pale base."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from gaussad_pl.data.draw.canvas import (
    Array,
    Random,
    cast_shadow,
    distance_to_path,
    grid,
    lit,
    mix,
    random_walk,
    smooth_noise,
    smoothstep,
)

KINDS: tuple[str, ...] = ("crack", "cut", "hole", "print")

SHELL_DARK, SHELL_LIGHT, BASE = (0.30, 0.155, 0.075), (0.60, 0.355, 0.185), (0.66, 0.52, 0.36)
TABLE = (0.085, 0.085, 0.095)
WIDTH, HEIGHT = (74.0, 84.0), (82.0, 94.0)  # semi-axes of the nut, px
STRIPES = 34  # around the nut

# Size and strength of the defects: sizes in px, opacities as fractions.
CRACK_LENGTH, CRACK_WIDTH = (45.0, 100.0), (0.8, 1.8)
CUT_LENGTH, CUT_WIDTH, CUT_OPACITY = (24.0, 48.0), (1.2, 2.4), (0.40, 0.80)
HOLE_RADIUS = (3.0, 5.5)
PRINT_HEIGHT, PRINT_OPACITY = (14.0, 20.0), (0.30, 0.60)

GLYPHS = ("11011 10101 10101 10001 10001", "01110 10001 10001 10001 01110", "11110 10001 11110 10000 10000")


def place_on_shell(rng: Random, reach: float) -> tuple[float, float]:
    """Draw a random point (x, y) in px within ``reach`` px of the image centre."""
    angle, radius = rng.uniform(0.0, 2.0 * math.pi), reach * math.sqrt(rng.random())
    return 128.0 + radius * math.cos(angle), 128.0 + radius * math.sin(angle)


def line_through(rng: Random, reach: float, length: float, wobble: float) -> Array:
    """Draw a random path (n, 2) of ``length`` px whose middle is within ``reach`` px of the image centre."""
    x, y = place_on_shell(rng, reach)
    heading = rng.uniform(0.0, 2.0 * math.pi)
    return random_walk(
        rng, (x - length / 2.0 * math.cos(heading), y - length / 2.0 * math.sin(heading)), length, wobble, heading
    )


def crack(shell: Array, rng: Random) -> Array:
    """Split the shell open: a dark jagged line with a bright edge."""
    x, y = grid()
    path = line_through(rng, 25.0, rng.uniform(*CRACK_LENGTH), 0.30)
    width = rng.uniform(*CRACK_WIDTH)
    distance, place = distance_to_path(path, x, y)
    lit_edge, _ = distance_to_path(path + np.float32(1.6), x, y)
    width = width * np.sqrt(np.clip(4.0 * place * (1.0 - place), 0.0, 1.0)) + 0.2
    shell = mix(shell, (0.78, 0.58, 0.38), 0.45 * smoothstep(1.6, 0.6, lit_edge / width))
    return mix(shell, (0.05, 0.03, 0.02), 0.9 * smoothstep(1.6, 0.6, distance / width))


def cut(shell: Array, rng: Random) -> Array:
    """Scratch the shell: a shallow straight line that shows the pale wood under the skin."""
    x, y = grid()
    path = line_through(rng, 45.0, rng.uniform(*CUT_LENGTH), 0.03)
    distance, place = distance_to_path(path, x, y)
    width = rng.uniform(*CUT_WIDTH) * np.clip(4.0 * place * (1.0 - place), 0.0, 1.0) + 0.1
    return mix(shell, (0.72, 0.54, 0.36), rng.uniform(*CUT_OPACITY) * smoothstep(1.5, 0.4, distance / width))


def hole(shell: Array, rng: Random) -> Array:
    """Bore the round hole of a nut weevil, with a paler rim."""
    x, y = grid()
    centre_x, centre_y = place_on_shell(rng, 50.0)
    radius = rng.uniform(*HOLE_RADIUS)
    distance = np.hypot(x - centre_x, y - centre_y) + 0.5 * smooth_noise(rng, 3.0)
    shell = mix(shell, (0.62, 0.45, 0.28), 0.55 * smoothstep(radius + 2.2, radius + 0.6, distance))
    return mix(shell, (0.045, 0.03, 0.02), 0.95 * smoothstep(radius + 0.6, radius - 0.8, distance))


def ink(shell: Array, rng: Random) -> Array:
    """Print a pale letter."""
    x, y = grid()
    centre_x, centre_y = place_on_shell(rng, 35.0)
    height, angle = rng.uniform(*PRINT_HEIGHT), rng.uniform(0.0, 2.0 * math.pi)
    rows = GLYPHS[rng.integers(len(GLYPHS))].split()
    glyph = np.zeros((7, 7), np.float32)
    glyph[1:6, 1:6] = [[float(cell) for cell in row] for row in rows]
    u = ((x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)) * 5.0 / height + 3.0
    v = ((y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)) * 5.0 / height + 3.0
    letter = ndimage.map_coordinates(glyph, [v, u], order=1, mode="constant")
    return mix(shell, (0.80, 0.78, 0.74), rng.uniform(*PRINT_OPACITY) * smoothstep(0.30, 0.70, letter))


FLAWS = {"crack": crack, "cut": cut, "hole": hole, "print": ink}


def render(scene: Random, kind: str | None, flaw_rng: Random) -> Array:
    """Draw one nut, (SIZE, SIZE, 3) in [0, 1]; the same ``scene`` gives the same nut with any defect."""
    angle = scene.uniform(0.0, 2.0 * math.pi)
    half_width, half_height = scene.uniform(*WIDTH), scene.uniform(*HEIGHT)
    centre_x, centre_y = (128.0 + scene.uniform(-6.0, 6.0) for _ in range(2))
    lean = scene.uniform(0.35, 0.75)  # how far the tip leans towards the camera, radians
    pointed, ripeness = scene.uniform(0.06, 0.16), scene.normal(0.0, 0.12)
    base_size = scene.uniform(0.80, 0.87)

    x, y = grid()
    u = (x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)
    v = (y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)
    p, q = u / half_width, v / half_height
    p = p / (1.0 - pointed * np.clip(-q, 0.0, 1.5) ** 2)  # narrower towards the tip
    radius = np.sqrt(p * p + q * q) + 0.006 * smooth_noise(scene, 14.0)
    height = np.sqrt(np.clip(1.0 - radius**2, 0.0, 1.0))

    # Longitude and latitude on the shell, from the visible point (p, q, height) rotated by the lean.
    axis = -q * math.cos(lean) + height * math.sin(lean)
    depth = height * math.cos(lean) + q * math.sin(lean)
    longitude = np.arctan2(p, depth)
    wander = 0.10 * smooth_noise(scene, 12.0) + 0.03 * smooth_noise(scene, 3.0)
    phase = scene.uniform(0.0, 2.0 * math.pi)
    stripe = np.sin(STRIPES * (longitude + wander) + phase) + 0.6 * np.sin(13.0 * (longitude - wander) + 2.0 * phase)
    stripe *= smoothstep(1.0, 0.75, np.abs(axis))  # they merge at the poles
    patches, grain = smooth_noise(scene, 9.0), smooth_noise(scene, 1.2)
    tone = 0.45 + ripeness + 0.16 * stripe + 0.13 * patches + 0.10 * grain
    shell = np.asarray(SHELL_DARK, np.float32) + np.clip(tone, 0.0, 1.0)[..., None] * (
        np.asarray(SHELL_LIGHT, np.float32) - np.asarray(SHELL_DARK, np.float32)
    )
    tip = smoothstep(0.90, 0.98, axis + 0.02 * patches)
    shell = mix(shell, BASE, 0.7 * tip)
    bottom = smoothstep(base_size - 0.95, base_size - 1.05, axis + 0.10 * math.sin(lean) + 0.03 * patches)
    shell = mix(shell, np.asarray(BASE, np.float32) * (1.0 + 0.14 * grain[..., None]), 0.85 * bottom)
    if kind is not None:
        shell = FLAWS[kind](shell, flaw_rng)

    # The light is fixed to the table: a large lamp at the upper left, and the sky.
    nx = (p * math.cos(angle) - q * math.sin(angle)) + 0.03 * smooth_noise(scene, 1.6)
    ny = (p * math.sin(angle) + q * math.cos(angle)) + 0.03 * smooth_noise(scene, 1.6)
    key = np.clip(-0.40 * nx - 0.50 * ny + 0.77 * height, 0.0, 1.0)
    gloss = np.clip(-0.22 * nx - 0.28 * ny + 0.93 * height, 0.0, 1.0) ** 60
    shaded = shell * (0.22 + 0.95 * key)[..., None] + (0.10 * gloss)[..., None]

    alpha = smoothstep(1.008, 0.992, radius)
    shadow = cast_shadow(alpha, 7.0, (7.0, 6.0))
    table = np.asarray(TABLE, np.float32) * (1.0 + 0.05 * smooth_noise(scene, 1.5))[..., None]
    table = table * (1.0 - 0.55 * shadow)[..., None]
    return lit(mix(table, shaded, alpha), scene)
