"""The pictures of scored test images: ROC curves, histogram and galleries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.inference.heat import HeatScale
from gaussad_pl.results import figures
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.results.gallery import galleries, picture_threshold


def heat_scale(evaluation: Evaluation, median: float, limit: float) -> HeatScale | None:
    """Return the colour scale of all maps of an evaluation; None if there are no maps.

    Args:
        evaluation: of N test images.
        median, limit: of the detector, see `gaussad_pl.inference.prediction.BaseDetector`.
    """
    return None if evaluation.maps is None else HeatScale.of(median, limit, evaluation.maps.numpy())


def draw(
    evaluations: Mapping[str, Evaluation],
    images: Dataset[dict[str, Tensor]],
    scale: HeatScale | None,
    calibration: Calibration,
) -> dict[str, Figure]:
    """Draw the figures of a test set, by name.

    Args:
        evaluations: one per state of the model, the final state last.
        images: the test set; the item ``image`` is ``(3, H, W)`` uint8.
        scale: of the maps; None without maps.
        calibration: that of the final state.
    """
    final = list(evaluations.values())[-1]
    found: dict[str, Figure] = {}
    if final.has_both_classes:
        found["roc"] = figures.roc_curves({state: each.scores for state, each in evaluations.items()}, final.labels)
    found["histogram"] = figures.histogram(
        final.scores, final.labels, calibration.scores, picture_threshold(calibration)
    )
    if scale is not None:
        found |= galleries(final, images, scale, calibration)
    return found


def draw_calibration(calibration: Calibration) -> dict[str, Figure]:
    """Draw the figures of a run without a test set, by name; there are none without calibration images."""
    none = torch.zeros(0)
    if not len(calibration):
        return {}
    return {"histogram": figures.histogram(none, none, calibration.scores, picture_threshold(calibration))}
