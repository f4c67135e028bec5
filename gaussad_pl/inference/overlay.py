"""Picture of a prediction: the image, and the image under its anomaly map with a colour bar; drawn with Pillow only."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gaussad_pl.data.frame import Frame
from gaussad_pl.inference.heat import CONTOUR, HeatScale, border
from gaussad_pl.inference.prediction import Prediction

SIDE = 384  # longer side of each panel in pixels
TITLE = 44  # height of the two lines above the panels in pixels
BAR = 58  # height of the colour bar and its labels in pixels
GAP = 4  # between the panels in pixels
WIDTH = 480  # of the picture in pixels, at least: the title and the labels of the bar must fit
INK, MUTED = "#1d2329", "#5b6670"
VERDICTS = {"bad": "#c8443c", "good": "#2a7f9e", "undecided": MUTED}


def overlay(
    image: Image.Image, prediction: Prediction, frame: Frame, zero: float, limit: float, name: str
) -> Image.Image:
    """Draw an image and, beside it, the image under its anomaly map with a contour where the map exceeds ``limit``.

    Args:
        image: in its own proportions, at most `SIDE` pixels wide and high.
        prediction: without a map, only the image is drawn.
        frame: that the image was fitted to.
        zero: median pixel of the maps of good images, where the colour scale begins.
        limit: value that hardly any pixel of the map of a good image exceeds.
        name: file name for the title.
    """
    panels, scale = [image], None
    if prediction.map is not None:
        scale = HeatScale.of(zero, limit, prediction.map)
        panels.append(under_map(image, frame.restored(prediction.map, image.size), scale))
    content = sum(panel.width + GAP for panel in panels) - GAP
    width = max(content, WIDTH)
    picture = Image.new("RGB", (width, TITLE + image.height + (BAR if scale else 0)), "white")
    left = (width - content) // 2
    for panel in panels:
        picture.paste(panel, (left, TITLE))
        left += panel.width + GAP
    _title(picture, prediction, name)
    if scale is not None:
        _bar(picture, scale)
    return picture


def under_map(image: Image.Image, values: np.ndarray, scale: HeatScale) -> Image.Image:
    """Lay a map ``(height, width)`` over an image of its size, and outline where it exceeds its threshold."""
    mixed = scale.blended(np.asarray(image), values)
    mixed[border(values > scale.threshold)] = CONTOUR
    return Image.fromarray(mixed)


def _title(picture: Image.Image, prediction: Prediction, name: str) -> None:
    """Write verdict, p-value, score and threshold, and below them the name, shortened to the width of the picture."""
    draw, large, small = ImageDraw.Draw(picture), ImageFont.load_default(16), ImageFont.load_default(12)
    draw.text((6, 4), prediction.verdict, VERDICTS[prediction.verdict], large)
    threshold = "no threshold" if prediction.reason else f"threshold {prediction.threshold:.2f}"
    facts = f"p = {prediction.p_value:.3g}    score {prediction.score:.2f} ({threshold})"
    draw.text((6 + draw.textlength(prediction.verdict, large) + 12, 7), facts, INK, small)
    name = " ".join(name.encode("ascii", "replace").decode().split())  # the default font of Pillow lacks other letters
    while len(name) > 4 and draw.textlength(name, small) > picture.width - 12:
        name = f"{name.rstrip('.')[:-1]}..."
    draw.text((6, 25), name, MUTED, small)


def _bar(picture: Image.Image, scale: HeatScale) -> None:
    """Draw the colour bar at the bottom, as opaque as the map, with its ends and the threshold marked."""
    left, right, top, height = 24, picture.width - 24, picture.height - BAR + 8, 12
    values = np.tile(np.linspace(scale.zero, scale.top, right - left), (height, 1))
    row = Image.fromarray(scale.blended(np.full((*values.shape, 3), 255, np.uint8), values))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    picture.paste(row, (left, top))
    draw.rectangle((left - 1, top - 1, right, top + height), outline=MUTED)
    below = top + height + 4
    draw.text((left, below), f"{scale.zero:.3g}", MUTED, font)
    draw.text((right, below), f"{scale.top:.3g}", MUTED, font, anchor="ra")
    if math.isfinite(scale.threshold):
        x = left + round((right - left) * (scale.threshold - scale.zero) / (scale.top - scale.zero))
        draw.line((x, top - 4, x, top + height + 3), fill=INK, width=2)
        draw.text((x, below), f"{scale.threshold:.3g}", INK, font, anchor="ma")
    draw.text((picture.width // 2, below + 14), scale.legend, MUTED, font, anchor="ma")
