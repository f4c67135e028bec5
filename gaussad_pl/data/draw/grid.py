"""A woven wire mesh in front of a pale board."""

from __future__ import annotations

import math

import numpy as np

from gaussad_pl.data.draw.canvas import (
    SIZE,
    Array,
    Random,
    cast_shadow,
    distance_to_path,
    grid,
    lit,
    mix,
    random_walk,
    shrink,
    smooth_noise,
    smoothstep,
)

KINDS: tuple[str, ...] = ("bent", "broken", "metal_contamination", "thread")

PITCH, WIRE = (24.0, 27.0), (3.2, 3.7)  # spacing and radius of the wires, px
TILT, WANDER = 0.03, 0.8  # spread of the mesh angle, radians, and of the wires around straight lines, px
SHINE = (0.35, 0.50)  # strength of the highlights, fraction of white
SUPERSAMPLING = 2

# Size and strength of the defects, px unless noted.
BEND, BEND_REACH = (10.0, 18.0), (16.0, 26.0)
GAP = (24.0, 60.0)
CRUMB_RADIUS = (6.0, 12.0)
THREAD_LENGTH, THREAD_WIDTH, THREAD_OPACITY = (35.0, 80.0), (0.6, 1.0), (0.5, 0.9)  # opacity as a fraction
THREAD_COLOUR = (0.42, 0.30, 0.27)


def enlarge(field: Array) -> Array:
    """Upsample (SIZE, SIZE) for the supersampled drawing by repeating pixels."""
    return field.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1)


def family(u: Array, v: Array, pitch: float, wire: float, side: float) -> tuple[Array, Array, Array, Array]:
    """Weave wires along ``v``, ``pitch`` px apart, alternately over and under the other family.

    Returns the offset from the centre of the nearest wire in units of its radius, the height of its surface (-inf off
    the wire), the slope along the wire, and the wire's number. ``side`` is 1 if this family is on top at crossing
    (0, 0), otherwise -1.
    """
    number = np.round(u / pitch)
    offset = (u - number * pitch) / wire
    phase = math.pi * (v / pitch + number)
    height = np.where(np.abs(offset) < 1.0, np.sqrt(np.clip(1.0 - offset**2, 0.0, 1.0)) + side * np.cos(phase), -np.inf)
    return offset, height, -side * np.sin(phase) * (0.8 * math.pi * wire / pitch), number


def steel(across: Array, slope: Array, along_x: Array, along_y: Array, shine: float) -> Array:
    """Return the brightness of a round wire at offset ``across`` (-1 to 1) that rises with ``slope`` along its axis."""
    up = np.sqrt(np.clip(1.0 - across**2, 0.0, 1.0))
    x, y = across * along_y - slope * along_x, -across * along_x - slope * along_y
    key = np.clip((-0.40 * x - 0.50 * y + 0.77 * up) / np.sqrt(1.0 + slope**2), 0.0, 1.0)
    return 0.12 + 0.20 * key + shine * key**10


def render(scene: Random, kind: str | None, flaw_rng: Random) -> Array:
    """Draw one mesh, (SIZE, SIZE, 3) in [0, 1]; the same ``scene`` gives the same mesh with any defect."""
    pitch, wire = scene.uniform(*PITCH), scene.uniform(*WIRE)
    angle = math.pi / 4.0 + scene.normal(0.0, TILT)
    shift_u, shift_v = (scene.uniform(0.0, 2.0 * pitch) for _ in range(2))
    tone, shine = scene.normal(1.0, 0.05), scene.uniform(*SHINE)
    x, y = grid(SUPERSAMPLING)
    cosine, sine = math.cos(angle), math.sin(angle)
    u = (x - SIZE / 2) * cosine + (y - SIZE / 2) * sine + shift_u + WANDER * enlarge(smooth_noise(scene, 40.0))
    v = (y - SIZE / 2) * cosine - (x - SIZE / 2) * sine + shift_v + WANDER * enlarge(smooth_noise(scene, 40.0))

    # The defect lies on a wire of the first family in the inner part of the image.
    dx, dy = (flaw_rng.uniform(-0.25 * SIZE, 0.25 * SIZE) for _ in range(2))
    at_u = round((dx * cosine + dy * sine + shift_u) / pitch) * pitch
    at_v = dy * cosine - dx * sine + shift_v
    bent = u
    if kind == "bent":
        push, reach = flaw_rng.choice((-1.0, 1.0)).item() * flaw_rng.uniform(*BEND), flaw_rng.uniform(*BEND_REACH)
        bent = u + push * np.exp(-((u - at_u) ** 2 + (v - at_v) ** 2) / (2.0 * reach**2))
    across_a, height_a, slope_a, number_a = family(bent, v, pitch, wire, 1.0)
    across_b, height_b, slope_b, _ = family(v, u, pitch, wire, -1.0)
    if kind == "broken":
        half = flaw_rng.uniform(*GAP) / 2.0
        ragged = half + 0.6 * np.sin(2.0 * across_a + flaw_rng.uniform(0.0, 6.0))
        gone = (np.abs(v - at_v) < ragged) & (number_a == round(at_u / pitch))
        height_a = np.where(gone, -np.inf, height_a)

    first = height_a > height_b
    height = np.maximum(height_a, height_b)
    solid = np.isfinite(height)
    across, slope = np.where(first, across_a, across_b)[solid], np.where(first, slope_a, slope_b)[solid]
    along_x, along_y = np.where(first[solid], -sine, -cosine), np.where(first[solid], cosine, -sine)
    # Where a wire passes under another, it is in its shadow.
    value = np.zeros(x.shape, np.float32)
    value[solid] = steel(across, slope, along_x, along_y, shine) * (1.0 - 0.45 * smoothstep(0.6, -1.2, height[solid]))
    alpha = shrink(solid.astype(np.float32), SUPERSAMPLING)
    metal = shrink(value, SUPERSAMPLING) * tone * (1.0 + 0.07 * smooth_noise(scene, 0.9))

    if kind == "metal_contamination":
        alpha, metal = contaminate(alpha, metal, dx, dy, flaw_rng)
    shadow = cast_shadow(alpha, 2.2, (5.0, 4.0))
    board = (0.74 + 0.012 * smooth_noise(scene, 14.0) + 0.012 * smooth_noise(scene, 1.2)) * (1.0 - 0.42 * shadow)
    tint = 1.0 + scene.normal(0.0, 0.004, 3).astype(np.float32)
    image = (board * (1.0 - alpha) + metal)[..., None] * tint
    if kind == "thread":
        image = lay_thread(image, dx, dy, flaw_rng)
    return lit(image, scene)


def contaminate(alpha: Array, metal: Array, dx: float, dy: float, rng: Random) -> tuple[Array, Array]:
    """Stick a crumb of metal to the mesh (dx, dy) px from the image centre; returns new coverage and brightness."""
    x, y = grid()
    radius = rng.uniform(*CRUMB_RADIUS)
    outline = np.hypot(x - SIZE / 2 - dx, y - SIZE / 2 - dy) / radius + 0.25 * smooth_noise(rng, 2.5)
    crumb = smoothstep(1.0 + 0.7 / radius, 1.0 - 0.7 / radius, outline)
    facets = np.clip(0.42 + 0.15 * smooth_noise(rng, 2.2), 0.05, 0.9)
    return alpha + crumb * (1.0 - alpha), metal * (1.0 - crumb) + crumb * facets


def lay_thread(image: Array, dx: float, dy: float, rng: Random) -> Array:
    """Lay a loose textile fibre across the mesh, centred about (dx, dy) px from the image centre."""
    x, y = grid()
    length, width = rng.uniform(*THREAD_LENGTH), rng.uniform(*THREAD_WIDTH)
    heading = rng.uniform(0.0, 2.0 * math.pi)
    start = (
        SIZE / 2 + dx - length / 2.0 * math.cos(heading),
        SIZE / 2 + dy - length / 2.0 * math.sin(heading),
    )
    distance, _ = distance_to_path(random_walk(rng, start, length, 0.13, heading), x, y)
    strand = rng.uniform(*THREAD_OPACITY) * smoothstep(width + 0.7, width - 0.5, distance)
    return mix(image, THREAD_COLOUR, strand)
