"""Wished against observed false-alarm rates: what metrics.json says about the calibration of a run."""

from __future__ import annotations

from typing import Any

import torch

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.model.detection import Detection

RATES = (0.01, 0.05, 0.1, 0.2)


def compare(calibration: Calibration, found: Detection, data: ImageDataModule) -> dict[str, Any]:
    """What metrics.json says: thresholds, and wished against observed false-alarm rates on good test images.

    Args:
        calibration: of the model.
        found: in the test images; looked at here for the first time, after everything is chosen.
        data: of the run.

    Returns:
        For each of `RATES` the threshold (None: there is none), its rule, what a gamma tail gives, and the share of
        good test images above; and whether those look like the calibration images.
    """
    good = torch.tensor([bool(data.samples.test) and not sample.label for sample in data.test_samples])
    scores = found.scores[good]
    thresholds = {}
    for fpr in RATES:
        threshold = calibration.threshold(fpr)
        thresholds[f"{fpr:g}"] = {
            "value": threshold.value if threshold.rule != "none" else None,
            "rule": threshold.rule,
            "gamma": calibration.gamma.quantile(fpr) if calibration.gamma is not None else None,
            "observed": float((scores > threshold.value).double().mean()) if len(scores) else None,
        }
    monitor = DriftMonitor(calibration, range(found.distances.shape[1]))
    monitor.observe(scores, found.distances[good])
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


def lines(found: dict[str, Any]) -> list[str]:
    """What `compare` found, for the end of a run."""
    said = []
    if found["test_good"]:
        rates = found["thresholds"].items()
        compared = ", ".join(f"{float(wished):.0%} → {entry['observed']:.1%}" for wished, entry in rates)
        said.append(f"false alarms on {found['test_good']} good test images, wished → observed: {compared}")
    if found["test_good_moved_away"]:
        moved = ", ".join(found["test_good_moved_away"])
        said.append(f"the good test images do not look like the calibration images: {moved} moved away")
    return said
