"""Overlay of an anomaly map on its image, drawn with Pillow only."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gaussad_pl.inference.prediction import Prediction

SIDE = 384  # side of each panel in pixels
LINE = 16  # height of the caption in pixels
OPACITY = 0.6
CONTOUR = (79, 227, 255)
# dark to bright, similar to matplotlib's inferno
COLOURS = np.array(
    [(0, 0, 4), (60, 9, 101), (132, 32, 107), (203, 65, 73), (248, 125, 21), (249, 201, 50), (252, 255, 164)]
)


def overlay(pixels: Tensor, prediction: Prediction, limit: float, name: str) -> Image.Image:
    """Draw an image and, beside it, the image under its anomaly map with a contour where the map exceeds ``limit``.

    Args:
        pixels: ``(3, H, W)`` uint8.
        prediction: without a map, only the image is drawn.
        limit: value that hardly any pixel of a good image exceeds; the colour scale of all pictures ends at twice it.
        name: file name for the caption.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    panels = [image] if prediction.map is None else [image, _under_map(image, prediction.map, limit)]
    picture = Image.new("RGB", (SIDE * len(panels), SIDE + LINE), "white")
    for place, panel in enumerate(panels):
        picture.paste(panel, (place * SIDE, LINE))
    limits = f"score {prediction.score:.2f} (threshold {prediction.threshold:.2f})  p = {prediction.p_value:.3g}"
    caption = f"{prediction.verdict}  {limits}  {name}"
    caption = caption.encode("ascii", "replace").decode()  # the default font of Pillow lacks other letters
    ImageDraw.Draw(picture).text((4, 2), caption, fill="#c8443c" if prediction.verdict == "bad" else "#2a7f9e")
    return picture


def _under_map(image: Image.Image, anomaly_map: np.ndarray, limit: float) -> Image.Image:
    colours, _, outline = heat(anomaly_map, limit, image.size)
    mixed = (1 - OPACITY) * np.asarray(image) + OPACITY * colours
    mixed[outline] = CONTOUR
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat(anomaly_map: np.ndarray, limit: float, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert an anomaly map to colours, strengths and a contour.

    Args:
        anomaly_map: ``(256, 256)``.
        limit: as in `overlay`.
        size: width and height of the picture.

    Returns:
        Colours ``(height, width, 3)`` from 0 to 255, strengths ``(height, width)`` from 0 to 1, and the pixels of the
        contour, ``(height, width)`` bool.
    """
    values = np.asarray(Image.fromarray(anomaly_map).resize(size, Image.Resampling.BILINEAR))
    top = 2 * limit if np.isfinite(limit) and limit > 0 else max(float(values.max()), 1e-6)
    strength = np.clip(values / top, 0, 1)
    position = strength * (len(COLOURS) - 1)
    colours = np.stack([np.interp(position, range(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    return colours, strength, _outline(values > limit)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Return the pixels of a region ``(H, W)`` within two pixels of its border."""
    x = torch.from_numpy(inside).float()[None, None]
    eroded = -torch.nn.functional.max_pool2d(-x, 5, stride=1, padding=2)
    return inside & (eroded[0, 0] < 1).numpy()
