"""The frame that images are fitted to, and the way back: which part of an image goes where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Fit = Literal["squash", "pad", "crop"]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Frame:
    """Size of the images that a model takes, and how images of other proportions are fitted to it.

    Attributes:
        height, width: in pixels.
        fit: "squash" changes the proportions of an image. "pad" keeps them, and repeats the pixels at the edge of the
            image on the sides that stay empty: a constant colour would put a line where the image ends. "crop" keeps
            them, and cuts off both ends of the side that is too long.
        roi: region of interest, ``(height, width)``: True for the pixels that are inspected; None for all.
    """

    height: int
    width: int
    fit: Fit = "squash"
    roi: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    def boxes(self, size: tuple[int, int]) -> tuple[Box, Box]:
        """Return the part of an image of ``size`` (width, height) that is taken, and the part of the frame it fills.

        >>> Frame(4, 4, "pad").boxes((20, 10))
        ((0, 0, 20, 10), (0, 1, 4, 3))
        >>> Frame(4, 4, "crop").boxes((20, 10))
        ((5, 0, 15, 10), (0, 0, 4, 4))
        """
        taken, filled = size, (self.width, self.height)
        if self.fit == "pad":
            filled = _largest(size, within=filled)
        elif self.fit == "crop":
            taken = _largest(filled, within=size)
        return _centred(taken, size), _centred(filled, (self.width, self.height))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Fit an 8-bit image, see `gaussad_pl.data.images.upright`: RGB ``(height, width, 3)`` uint8."""
        taken, (left, top, right, bottom) = self.boxes(image.size)
        content = np.asarray(resized(image, (right - left, bottom - top), taken))
        margins = (top, self.height - bottom), (left, self.width - right), (0, 0)
        return np.pad(content, margins, "edge") if self.fit == "pad" else content

    def mask(self, mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Fit the mask of an image, in any resolution ``(H, W)``, to a frame of another ``shape`` (rows, columns).

        There is no interpolation, but a mask that would vanish keeps its nearest pixels. False is what the image does
        not fill, or is outside the region of interest.
        """
        taken, filled = self.boxes(mask.shape[::-1])
        left, top, right, bottom = (round(edge) for edge in self._scaled(filled, shape))
        result = np.zeros(shape, dtype=bool)
        size = max(1, right - left), max(1, bottom - top)
        part = Image.fromarray(mask).crop(taken)
        content = np.array(part.resize(size, Image.Resampling.NEAREST))
        if not content.any():
            y, x = np.nonzero(np.asarray(part))
            content[y * size[1] // part.height, x * size[0] // part.width] = True
        result[top : top + size[1], left : left + size[0]] = content
        return result & self.region(shape)

    def region(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the region of interest of a frame of another ``shape`` (rows, columns)."""
        if self.roi is None:
            return np.ones(shape, dtype=bool)
        return np.asarray(Image.fromarray(self.roi).resize(shape[::-1], Image.Resampling.NEAREST))

    def restored(self, values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Take a map of the frame back to an image of ``size`` (width, height), as ``(height, width)``.

        What a crop has cut off is 0.
        """
        (left, top, right, bottom), filled = self.boxes(size)
        part = Image.fromarray(values).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR, self._scaled(filled, values.shape)
        )
        result = np.zeros(size[::-1], dtype=np.float32)
        result[top:bottom, left:right] = part
        return result

    def _scaled(self, box: Box, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
        """Convert a box in the frame to one in a map of it with another ``shape`` (rows, columns)."""
        x, y = shape[1] / self.width, shape[0] / self.height
        return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def resized(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Resize an 8-bit image, or a box of it, to (width, height) and convert it to RGB, dropping alpha."""
    if image.mode == "RGBA":  # by band: converting would need the memory of a second full image
        bands = [image.getchannel(name).resize(size, Image.Resampling.BILINEAR, box) for name in "RGB"]
        return Image.merge("RGB", bands)
    return image.resize(size, Image.Resampling.BILINEAR, box).convert("RGB")  # greyscale: a third of the work


def _largest(proportions: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size (width, height) of these proportions within another one, at least one pixel each."""
    (width, height), (most_wide, most_high) = proportions, within
    if width * most_high >= height * most_wide:
        return most_wide, max(1, (2 * height * most_wide + width) // (2 * width))  # rounded
    return max(1, (2 * width * most_high + height) // (2 * height)), most_high


def _centred(size: tuple[int, int], within: tuple[int, int]) -> Box:
    left, top = (within[0] - size[0]) // 2, (within[1] - size[1]) // 2
    return left, top, left + size[0], top + size[1]
