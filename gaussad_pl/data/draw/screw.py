"""A countersunk wood screw on a light table, at any angle: a shaded solid of revolution with a helical thread."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from gaussad_pl.data.draw.canvas import SIZE, Array, Random, cast_shadow, grid, lit, shrink, smooth_noise, smoothstep

KINDS: tuple[str, ...] = ("manipulated_front", "scratch_head", "scratch_neck", "thread_side")

# The screw along its axis, px from the face of the head.
LENGTH, HEAD_END, THREAD_START, TIP = 205.0, 25.0, 92.0, 30.0
HEAD_RADIUS, NECK_RADIUS, CORE_RADIUS = 31.0, 9.8, 7.6
PITCH, RIDGE = 13.5, 4.6
SUPERSAMPLING = 2

# Size and strength of the defects: ranges in px unless noted.
CUT = (16.0, 34.0)  # length of the missing tip
SLANT = (-0.5, 0.5)  # of the cut
BEND = (9.0, 18.0)  # how far the tip is pushed aside
HEAD_SCRATCHES, NECK_SCRATCHES = (5, 9), (4, 8)
SCRATCH_LENGTH, SCRATCH_WIDTH = (9.0, 20.0), (1.0, 2.0)
SCRATCH_GLEAM = (0.30, 0.50)  # added brightness, fraction of white
WORN_LENGTH = (24.0, 50.0)  # length of the worn part of the thread
WORN_SHARE = (0.8, 1.0)  # fraction of the ridge height that is gone


class Flaw(NamedTuple):
    """A defect in the screw's own coordinates: along the axis, and across it from -1 to 1 of the radius."""

    cut: float = 0.0
    slant: float = 0.0
    bend: float = 0.0
    strokes: tuple[tuple[float, float, float, float, float, float], ...] = ()  # t, r, angle, length, width, gleam
    worn: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 0.0)  # t, across, half length, share


def make_flaw(kind: str | None, rng: Random) -> Flaw:
    """Draw a random place and strength for the defect; no defect for None."""
    if kind is None:
        return Flaw()
    if kind == "manipulated_front":
        if rng.random() < 0.5:
            return Flaw(cut=rng.uniform(*CUT), slant=rng.uniform(*SLANT))
        return Flaw(bend=rng.choice((-1.0, 1.0)).item() * rng.uniform(*BEND))
    if kind == "thread_side":
        place = rng.uniform(THREAD_START + 15.0, LENGTH - TIP - 15.0)
        return Flaw(worn=(place, rng.uniform(-0.9, 0.9), rng.uniform(*WORN_LENGTH) / 2.0, rng.uniform(*WORN_SHARE)))
    head = kind == "scratch_head"
    count = rng.integers(*(HEAD_SCRATCHES if head else NECK_SCRATCHES), endpoint=True)
    at = rng.uniform(10.0, 17.0) if head else rng.uniform(HEAD_END + 12.0, THREAD_START - 14.0)
    across = rng.uniform(-10.0, 10.0) if head else rng.uniform(-4.0, 4.0)
    heading = rng.uniform(0.0, math.pi)
    return Flaw(
        strokes=tuple(
            (
                at + rng.normal(0.0, 3.0),
                across + rng.normal(0.0, 3.0),
                heading + rng.normal(0.0, 0.35),
                rng.uniform(*SCRATCH_LENGTH),
                rng.uniform(*SCRATCH_WIDTH),
                rng.uniform(*SCRATCH_GLEAM),
            )
            for _ in range(count)
        )
    )


def profile(t: Array) -> tuple[Array, Array, Array]:
    """Return radius and slope of the body and height of the thread's ridge at ``t`` px from the face of the head."""
    table = np.linspace(-2.0, LENGTH + 2.0, 820, dtype=np.float32)
    cone = np.clip((HEAD_END - table) / (HEAD_END - 4.0), 0.0, 1.0) ** 1.25
    radius = NECK_RADIUS + (HEAD_RADIUS - NECK_RADIUS) * cone
    radius -= (NECK_RADIUS - CORE_RADIUS) * smoothstep(THREAD_START - 1.0, THREAD_START + 2.0, table)
    left = np.clip((LENGTH - table) / TIP, 0.0, 1.0)
    radius *= 0.06 + 0.94 * left**0.8
    ridge = RIDGE * smoothstep(THREAD_START - 2.0, THREAD_START + 5.0, table) * np.minimum(1.0, 0.15 + left * 1.1)
    slope = np.gradient(radius, table)
    at_radius, at_slope, at_ridge = (np.interp(t, table, v).astype(np.float32) for v in (radius, slope, ridge))
    return at_radius, at_slope, at_ridge


def metal(along: Array, across: Array, up: Array, angle: float, shine: float) -> Array:
    """Return the brightness of dull steel with unit normal (along, across, up); the lamps are fixed to the table."""
    x = along * math.cos(angle) - across * math.sin(angle)
    y = along * math.sin(angle) + across * math.cos(angle)
    key = np.clip(-0.45 * x - 0.55 * y + 0.70 * up, 0.0, 1.0)
    fill = np.clip(0.70 * x + 0.30 * y + 0.60 * up, 0.0, 1.0)
    # A long lamp directly above gives the bright line along the shank that is typical of metal.
    return 0.13 + 0.26 * key + 0.14 * fill + shine * (key**12 + 0.6 * fill**24) + 0.20 * up**24


def thread(t: Array, r: Array, core: Array, ridge: Array, roll: float, flaw: Flaw) -> tuple[Array, Array, Array]:
    """Return radius, axial tilt of the normal and relative height at each point of the thread seen from above.

    The ridge is a stack of rings from its foot to its crest, each narrower than the one below; the highest ring that
    covers a point is the visible one.
    """
    radius, tilt, crest = core.copy(), np.zeros_like(t), np.zeros_like(t)
    place, aside, half, share = flaw.worn
    for level in np.linspace(0.1, 1.0, 7).tolist():
        ring = core + level * ridge
        across = np.clip(r / np.maximum(ring, 1e-3), -1.0, 1.0)
        turn = t / PITCH - np.arcsin(across) / (2.0 * math.pi) - roll
        offset = turn - np.round(turn)
        wear = share * np.exp(-(((t - place) / half) ** 4) - ((across - aside) / 1.4) ** 4) if share else 0.0
        on = (np.abs(r) < ring) & (np.abs(offset) < 0.20 * (1.12 - level)) & (level <= 1.0 - wear) & (ridge > 0.2)
        radius = np.where(on, ring, radius)
        tilt = np.where(on, 0.85 * np.tanh(offset / 0.03), tilt)
        crest = np.where(on, np.float32(level), crest)
    return radius, tilt, crest


def render(scene: Random, kind: str | None, flaw_rng: Random) -> Array:
    """Draw one screw, (SIZE, SIZE, 3) in [0, 1]; the same ``scene`` gives the same screw with any defect."""
    angle, roll = scene.uniform(0.0, 2.0 * math.pi), scene.random()
    scale, tilt = scene.uniform(0.985, 1.015), scene.uniform(0.22, 0.28)
    centre_x, centre_y = (128.0 + scene.uniform(-5.0, 5.0) for _ in range(2))
    shine, tone = scene.uniform(0.22, 0.30), scene.normal(1.0, 0.04)
    flaw = make_flaw(kind, flaw_rng)

    x, y = grid(SUPERSAMPLING)
    t = ((x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)) / scale + LENGTH / 2.0 - 4.0
    r = ((y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)) / scale
    near = (t > -9.0) & (t < LENGTH + 1.0) & (np.abs(r) < np.where(t < HEAD_END + 9.0, HEAD_RADIUS + 1.0, 25.0))
    t, r = t[near], r[near]
    r = r - flaw.bend * np.clip((t - LENGTH + 1.3 * TIP) / (1.3 * TIP), 0.0, 1.0) ** 2

    # The head leans towards the camera: a circle around the axis appears as an ellipse.
    station = t
    for _ in range(2):
        radius, slope, ridge = profile(station)
        station = t - math.sin(tilt) * np.sqrt(np.maximum(radius**2 - r**2, 0.0)) * (station < HEAD_END + 5.0)
    seen, along, crest = thread(station, r, radius, ridge, roll, flaw)
    end = LENGTH - flaw.cut + flaw.slant * r
    solid = (np.abs(r) < seen) & (station > 0.0) & (station < end)

    across = np.clip(r / np.maximum(seen, 1e-3), -1.0, 1.0)
    up = np.sqrt(1.0 - across**2)
    along = along - slope * (crest == 0.0)
    size = np.sqrt(1.0 + along**2)
    value = metal(along / size, across / size, up / size, angle, shine) * (0.80 + 0.35 * crest)
    # Valleys between the turns are dark; turning marks run around the axis, and grain is everywhere.
    value *= 1.0 - 0.18 * ((ridge > 0.3) & (crest == 0.0))
    marks, noise = scene.standard_normal(SIZE, dtype=np.float32), smooth_noise(scene, 0.8)
    row, column = (2.0 * station).astype(np.int64) % SIZE, (2.0 * r).astype(np.int64) % SIZE
    grain = noise[row, column]
    value *= 1.0 + 0.03 * marks[row] + 0.06 * grain

    # The face of the head with its cross recess.
    depth = math.sin(tilt) * HEAD_RADIUS
    u, v = r / HEAD_RADIUS, t / depth
    face = u * u + v * v < 1.0
    turn = 2.0 * math.pi * roll
    p, q = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn)
    recess = np.minimum(np.maximum(np.abs(p) / 0.46, np.abs(q) / 0.13), np.maximum(np.abs(q) / 0.46, np.abs(p) / 0.13))
    flat = metal(np.full_like(t, -math.cos(tilt)), np.zeros_like(t), np.full_like(t, math.sin(tilt)), angle, shine)
    flat = (flat + 0.12) * (1.0 + 0.05 * grain) * (1.0 - 0.62 * smoothstep(1.25, 0.85, recess))
    flat += 0.10 * smoothstep(0.86, 0.97, u * u + v * v)
    value = np.where(face, flat, value)
    solid |= face

    scratches = np.zeros_like(t)
    for at, aside, heading, length, width, gleam in flaw.strokes:
        a = (station - at) * math.cos(heading) + (r - aside) * math.sin(heading)
        b = (r - aside) * math.cos(heading) - (station - at) * math.sin(heading)
        stroke = smoothstep(1.0, 0.6, np.abs(a) / (length / 2.0)) * np.exp(-((b / width) ** 2)) * ~face
        scratches = np.maximum(scratches, gleam * stroke)

    value += scratches * (1.0 + 0.3 * grain)

    coverage, body = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    coverage[near] = solid
    body[near] = solid * np.clip(tone * value, 0.02, 1.0)
    alpha, body = shrink(coverage, SUPERSAMPLING), shrink(body, SUPERSAMPLING)

    shadow = cast_shadow(alpha, 6.0, (5.0, 4.0))
    contact = ndimage.gaussian_filter(alpha, 1.6, truncate=3.0)
    dust = smoothstep(3.1, 3.6, smooth_noise(scene, 0.9))
    table = 0.80 + 0.006 * smooth_noise(scene, 12.0) + 0.008 * smooth_noise(scene, 1.2) - 0.12 * dust
    table *= (1.0 - 0.24 * shadow) * (1.0 - 0.22 * contact)
    grey = table * (1.0 - alpha) + body
    warmth = 0.006 * scene.standard_normal()
    return lit(np.stack([grey * (1.0 + warmth), grey, grey * (1.0 - warmth)], axis=-1), scene)
