"""Counts of lost and found parts at a target false-alarm rate, and the scores that this can be recomputed from."""

from __future__ import annotations

from typing import Any

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
