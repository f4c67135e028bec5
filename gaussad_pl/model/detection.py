"""The output of a model for a batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RARE = 0.001  # target share of the pixels of good images beyond the contour of the maps


@dataclass(frozen=True)
class Detection:
    """Scores, distances and maps of N images.

    Attributes:
        distances: to the Gaussian of each level, ``(N, levels)``.
        scores: of the images, float64 ``(N,)``.
        maps: anomaly maps ``(N, 256, 256)``, None where the model makes none.
    """

    distances: Tensor
    scores: Tensor
    maps: Tensor | None

    def cpu(self) -> Detection:
        return Detection(self.distances.cpu(), self.scores.cpu(), None if self.maps is None else self.maps.cpu())

    @staticmethod
    def join(parts: Sequence[Detection]) -> Detection:
        """Concatenate detections along the images."""
        maps = [part.maps for part in parts if part.maps is not None]
        return Detection(
            torch.cat([part.distances for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat(maps) if maps else None,
        )
