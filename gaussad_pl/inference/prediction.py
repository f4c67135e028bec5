"""Predictions for single images, and the interface of everything that makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration, Threshold
from gaussad_pl.inference.pixels import Images, each_pixels
from gaussad_pl.model.detection import Detection

BATCH = 32  # images scored at once


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector says about one image.

    Attributes:
        score: anomaly score; larger is worse.
        p_value: share of good images that score at least as high, see `gaussad_pl.calibration`.
        verdict: "bad" where the score is above the threshold.
        threshold: for the false-alarm rate wished.
        distances: Mahalanobis distance of each level, by the index of the level.
        map: anomaly map ``(256, 256)`` float32 over the whole image; None where the model makes none.
    """

    score: float
    p_value: float
    verdict: Literal["good", "bad"]
    threshold: float
    distances: dict[int, float]
    map: np.ndarray | None


class BaseDetector(ABC):
    """Whatever scores images: `Detector`, or an exported one in another runtime (`gaussad_pl.inference.exported`).

    Attributes:
        calibration: what p-values and thresholds come from.
        provenance: where everything came from: data, seed, weights, versions, settings.
        size: side of the images in pixels, to which all are resized.
        levels: index of each level whose distance is given.
        limit: what hardly any pixel of the map of a good image exceeds; infinite where there is no map.
    """

    calibration: Calibration
    provenance: dict[str, Any]
    size: int
    levels: list[int]
    limit: float

    @abstractmethod
    def detect(self, pixels: Tensor) -> Detection:
        """Scores, distances and maps of ``pixels`` ``(N, 3, size, size)`` uint8, on the CPU."""

    def threshold(self, fpr: float = 0.01) -> Threshold:
        """The threshold for a wished false-alarm rate; nothing is refitted. See `Calibration.threshold`."""
        return self.calibration.threshold(fpr)

    def __call__(self, images: Images, fpr: float = 0.01) -> list[Prediction]:
        """What there is to say about one image or several, in their order.

        Args:
            images: a path, a PIL image, an array ``(H, W)`` or ``(H, W, C)``, a tensor ``(C, H, W)``; or an array or a
                tensor of N of them, or a list; see `gaussad_pl.inference.pixels`.
            fpr: the false-alarm rate wished.

        Raises:
            UserError: a file that cannot be read, something that is no image, or an impossible ``fpr``.
        """
        threshold = self.threshold(fpr)
        predictions: list[Prediction] = []
        pixels = each_pixels(images, self.size)
        while batch := list(islice(pixels, BATCH)):
            predictions += self.predictions(self.detect(torch.stack(batch)), threshold)
        return predictions

    def predictions(self, detection: Detection, threshold: Threshold) -> Iterator[Prediction]:
        """One prediction for each of the N images of a detection."""
        p_values = self.calibration.p_values(detection.scores)
        for i, (score, p_value) in enumerate(zip(detection.scores.tolist(), p_values.tolist(), strict=True)):
            yield Prediction(
                score,
                p_value,
                "good" if score <= threshold.value else "bad",  # so that a score that is no number is bad
                threshold.value,
                dict(zip(self.levels, detection.distances[i].tolist(), strict=True)),
                None if detection.maps is None else detection.maps[i].numpy(),
            )
