"""Counts of lost and found parts at a target false-alarm rate, and the scores that this can be recomputed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.operating_points import operating_points

RATE = 0.05


def judged(calibration: Calibration, scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the counts at `RATE`, None without a conformal threshold, and all scores.

    Args:
        scores: of the test images, ``(N,)``.
        labels: 0 good, 1 bad, ``(N,)``.
    """
    scores = scores.double().cpu()
    point = operating_points(calibration, scores[labels == 0], scores[labels == 1], [RATE])[RATE]
    decided = point.rule == "conformal"
    return {
        "rate": RATE,
        "rule": point.rule,
        "threshold": point.threshold if decided else None,
        "good": point.good,
        "good_lost": point.good_lost if decided else None,
        "bad": point.bad,
        "bad_found": point.bad_found if decided else None,
        "p_value": point.p_value if decided else None,
        "calibration": calibration.scheme,
        "calibration_scores": calibration.scores.tolist(),
        "test_scores": scores.tolist(),
        "test_labels": labels.tolist(),
    }


def recorded(record: Mapping[str, Any]) -> tuple[Calibration, Tensor, Tensor]:
    """Return calibration, scores and labels of the test images from a record of `judged`."""
    known, scores = (torch.tensor(record[key], dtype=torch.float64) for key in ("calibration_scores", "test_scores"))
    return Calibration.of(known, known[:, None], "as recorded"), scores, torch.tensor(record["test_labels"])


def shares(
    calibration: Calibration, scores: Tensor, labels: Tensor, rates: Sequence[float]
) -> dict[float, dict[str, float | None]]:
    """Shares of good test parts lost and of bad ones found at each target, None without a conformal threshold."""
    points = operating_points(calibration, scores[labels == 0], scores[labels == 1], rates)
    return {
        rate: {
            name: None if count is None or point.rule != "conformal" else count / total
            for name, count, total in (("lost", point.good_lost, point.good), ("found", point.bad_found, point.bad))
        }
        for rate, point in points.items()
    }
