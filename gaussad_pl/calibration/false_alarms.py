"""Target and observed false-alarm rates of a run, for metrics.json."""

from __future__ import annotations

from typing import Any

import torch

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.calibration.threshold import RATES
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.model.detection import Detection


def compare(calibration: Calibration, detection: Detection, data: ImageDataModule) -> dict[str, Any]:
    """Compare target and observed false-alarm rates on the good test images.

    Args:
        calibration: that of the model.
        detection: scores of all test images; they must not have been used for any choice.
        data: the data of the run.

    Returns:
        For each of `RATES`, the threshold (None if there is none), its rule, the quantile of the fitted gamma and the
        share of good test images above the threshold; and the result of the drift tests on these images.
    """
    good = torch.tensor([bool(data.samples.test) and not sample.label for sample in data.test_samples])
    scores = detection.scores[good]
    thresholds = {}
    for fpr in RATES:
        threshold = calibration.threshold(fpr)
        thresholds[f"{fpr:g}"] = {
            "value": threshold.value if threshold.rule != "none" else None,
            "rule": threshold.rule,
            "gamma": calibration.gamma.quantile(fpr) if calibration.gamma is not None else None,
            "observed": float((scores > threshold.value).double().mean()) if len(scores) else None,
        }
    monitor = DriftMonitor(calibration, range(detection.distances.shape[1]))
    monitor.observe(scores, detection.distances[good])
    drift = monitor.drift()
    return {
        "scheme": calibration.scheme,
        "images": len(calibration),
        "images_that_look_different": calibration.different,
        "thresholds": thresholds,
        "gamma_misfit_p": calibration.misfit,
        "test_good": len(scores),
        "test_good_moved_away": drift.moved,
        "drift_p_values": drift.p_values,
    }


def lines(compared: dict[str, Any]) -> list[str]:
    """Summarise the result of `compare` in lines, for the end of a run."""
    messages = []
    if compared["test_good"]:
        rates = compared["thresholds"].items()
        observed = ", ".join(f"{float(target):.0%} → {entry['observed']:.1%}" for target, entry in rates)
        messages.append(f"false alarms on {compared['test_good']} good test images, target → observed: {observed}")
    if compared["test_good_moved_away"]:
        moved = ", ".join(compared["test_good_moved_away"])
        messages.append(f"the good test images do not look like the calibration images: {moved} moved away")
    return messages
