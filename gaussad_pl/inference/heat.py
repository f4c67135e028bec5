"""The colour scale of anomaly maps, the same in every picture of a detector; without matplotlib."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gaussad_pl.model.detection import RARE

OPACITY = 0.6
CONTOUR = (79, 227, 255)  # of the region above the threshold; like OUTLINE, a colour that no value of a map has
OUTLINE = (40, 255, 80)  # of the true mask
# dark to bright, similar to matplotlib's inferno
COLOURS = np.array(
    [(0, 0, 4), (60, 9, 101), (132, 32, 107), (203, 65, 73), (248, 125, 21), (249, 201, 50), (252, 255, 164)]
)
STEEPNESS = 2  # the scale ends this many times as far above its zero as the threshold


@dataclass(frozen=True)
class HeatScale:
    """Assigns colours to the values of anomaly maps.

    Attributes:
        zero: median pixel of good calibration images, 0 if unknown; the lower end of the scale.
        threshold: value above which the map is outlined, see `gaussad_pl.model.segmenter.Segmenter.threshold`; infinite
            if there is none.
        top: upper end of the scale; values above it have its colour.
    """

    zero: float
    threshold: float
    top: float

    @classmethod
    def of(cls, zero: float, threshold: float, maps: NDArray[np.float32]) -> HeatScale:
        """Return the scale of a detector; without a threshold, it spans ``maps``, of any shape, from their median."""
        if math.isfinite(threshold) and threshold > zero:
            return cls(zero, threshold, zero + STEEPNESS * (threshold - zero))
        low = float(np.median(maps))
        return cls(low, math.inf, max(float(maps.max()), low + 1e-6))

    @property
    def half(self) -> float:
        """Value up to which the map is transparent: half way to the threshold, or to the top if there is none."""
        return (self.zero + min(self.threshold, self.top)) / 2

    @property
    def legend(self) -> str:
        """One line that explains the colour bar."""
        if math.isinf(self.threshold):
            return "distance, from the median to the highest value shown (no threshold is known)"
        start = "the median of good pixels" if self.zero else "0"
        return f"distance, from {start}; line and contour: threshold, exceeded by {100 * RARE:g} % of good pixels"

    def rgba(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return colours and opacities ``(..., 4)``, all from 0 to 1, of values ``(...)``.

        The opacity rises from 0 at `half` to its maximum at the threshold, so that no edge appears where there is none.
        """
        position = np.clip((values - self.zero) / (self.top - self.zero), 0, 1) * (len(COLOURS) - 1)
        colours = [np.interp(position, range(len(COLOURS)), channel / 255) for channel in COLOURS.T]
        full = min(self.threshold, self.top)
        return np.stack([*colours, OPACITY * np.clip((values - self.half) / (full - self.half), 0, 1)], axis=-1)

    def blended(self, image: NDArray[np.uint8], values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Lay a map ``(H, W)`` over an image ``(H, W, 3)``."""
        layer = self.rgba(values)
        opacity = layer[..., 3:]
        return ((1 - opacity) * image + opacity * 255 * layer[..., :3]).round().astype(np.uint8)


def border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a region ``(H, W)`` within two pixels of its border."""
    x = torch.from_numpy(inside).float()[None, None]
    eroded = -torch.nn.functional.max_pool2d(-x, 5, stride=1, padding=2)
    return inside & (eroded[0, 0] < 1).numpy()
