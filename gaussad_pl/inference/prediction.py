"""Predictions for single images, and the base class of detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.threshold import Threshold, Verdict
from gaussad_pl.data.frame import Frame
from gaussad_pl.fingerprints import image_digest
from gaussad_pl.inference.pixels import Images, each_pixels
from gaussad_pl.model.detection import Detection

BATCH = 32  # images scored at once


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image.

    Attributes:
        score: anomaly score; larger is more anomalous.
        p_value: conformal p-value of the score, see `gaussad_pl.calibration.conformal.p_values`.
        verdict: "bad" if the score is above the threshold, else "good"; "undecided" if there is no threshold.
        threshold: for the target false-alarm rate; infinite if there is none.
        distances: Mahalanobis distance of each level, by the index of the level.
        map: anomaly map ``(256, 256)`` float32 of the image as it was fitted to the frame, see
            `gaussad_pl.data.frame.Frame.restored`; None if the model has no maps.
        reason: one sentence on why the image is undecided; empty otherwise.
    """

    score: float
    p_value: float
    verdict: Verdict
    threshold: float
    distances: dict[int, float]
    map: np.ndarray | None
    reason: str = ""


class BaseDetector(ABC):
    """Base class of `Detector` and, for other runtimes, `ExportedDetector`.

    Attributes:
        calibration: source of p-values and thresholds.
        provenance: data, seed, weights, versions and settings of the training.
        frame: that all images are fitted to.
        levels: index of each level that has a distance.
        median: median pixel of the maps of good images; 0 if unknown.
        limit: value that hardly any pixel of the map of a good image exceeds; infinite if there are no maps.
    """

    calibration: Calibration
    provenance: dict[str, Any]
    frame: Frame
    levels: list[int]
    median: float
    limit: float

    @abstractmethod
    def detect(self, pixels: Tensor) -> Detection:
        """Return scores, distances and maps of ``pixels`` ``(N, 3, height, width)`` uint8, on the CPU."""

    def trained_on(self, images: Tensor) -> list[int]:
        """Return the positions of those of N images that the detector was trained on.

        Args:
            images: ``(N, 3, height, width)`` uint8, fitted to `frame`.
        """
        return _positions(images, self.provenance.get("good_images", []))

    def recalibrated_on(self, images: Tensor) -> list[int]:
        """Return the positions of those of N images that have recalibrated the detector; see `trained_on`."""
        recalibrations = self.provenance.get("recalibrations", [])
        return _positions(images, [digest for each in recalibrations for digest in each.get("good_images", [])])

    def threshold(self, fpr: float | None = None) -> Threshold:
        """Return the threshold for a target false-alarm rate, without refitting; see `Calibration.threshold`.

        Without a rate, it is `gaussad_pl.calibration.threshold.default_rate`.
        """
        return self.calibration.threshold(fpr)

    def __call__(self, images: Images, fpr: float | None = None) -> list[Prediction]:
        """Score one image or several; the predictions are in the order of the images.

        Args:
            images: a path, a PIL image, an array ``(H, W)`` or ``(H, W, C)``, a tensor ``(C, H, W)``; or an array or
                tensor with a batch dimension, or an iterable of images; see `gaussad_pl.inference.pixels`.
            fpr: target false-alarm rate; None for the default, see `threshold`.

        Raises:
            UserError: a file cannot be read, an object is not an image, or ``fpr`` is not between 0 and 1.
        """
        threshold = self.threshold(fpr)
        predictions: list[Prediction] = []
        pixels = each_pixels(images, self.frame)
        while batch := list(islice(pixels, BATCH)):
            predictions += self.predictions(self.detect(torch.stack(batch)), threshold)
        return predictions

    def predictions(self, detection: Detection, threshold: Threshold) -> Iterator[Prediction]:
        """Yield the prediction for each of the N images of a detection."""
        p_values = self.calibration.p_values(detection.scores)
        for i, (score, p_value) in enumerate(zip(detection.scores.tolist(), p_values.tolist(), strict=True)):
            yield Prediction(
                score,
                p_value,
                threshold.verdict(score),
                threshold.value,
                dict(zip(self.levels, detection.distances[i].tolist(), strict=True)),
                None if detection.maps is None else detection.maps[i].numpy(),
                threshold.reason,
            )


def _positions(images: Tensor, digests: Iterable[str]) -> list[int]:
    known = set(digests)
    return [i for i, image in enumerate(images) if image_digest(image) in known]
