"""Benchmark of recalibration where the images have changed: good parts lost and bad parts found, before and after.

    python -m benchmarks.drift --ckpt runs/screw --data /data/mvtec_ad/screw

Half of the good test images of a folder in the layout of MVTec AD recalibrate a detector, which then judges the other
half and the bad ones: as photographed, and all of them darker. Mean ± SEM over random halves; the halves of two splits
overlap, so that the SEM is too small.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import markdown
from benchmarks.markdown import percent, rate_names, verdict_cell
from benchmarks.verdicts import verdicts
from gaussad_pl.calibration.recalibration import recalibrate, score
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.samples import scan_mvtec
from gaussad_pl.inference.detector import Detector
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.metrics.image import auroc

RATES = (0.05, 0.1)
MOVED = {"recalibrated": False, "recalibrated, `gaussians=true`": True}  # whether the means of the Gaussians move


def halves(images: Tensor, split: int) -> tuple[Tensor, Tensor]:
    """Split images ``(N, 3, H, W)`` at random: N // 2 of them, and the others."""
    order = torch.from_numpy(np.random.default_rng(split).permutation(len(images)))
    return images[order[: len(images) // 2]], images[order[len(images) // 2 :]]


def before_and_after(detector: Detector, good: Tensor, bad: Tensor, split: int) -> dict[str, dict[str, Any]]:
    """Return AUROC and verdicts of a detector and of its recalibrations with half of the good images."""
    today, others = halves(good, split)
    candidates = {"before": (detector.model, detector.calibration)}
    candidates |= {name: recalibrate(detector.model, today, move) for name, move in MOVED.items()}
    labels = torch.cat([torch.zeros(len(others)), torch.ones(len(bad))]).long()
    found = {}
    for name, (model, calibration) in candidates.items():
        scores = score(model, torch.cat([others, bad])).scores
        found[name] = {"auroc": auroc(scores, labels), **verdicts(calibration, scores, labels)}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a detector, as for gaussad_pl.predict")
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout of MVTec AD")
    parser.add_argument("--splits", type=int, default=5, help="random halves of the good test images")
    parser.add_argument("--darker", type=float, default=0.2, help="share by which the pixels are darkened")
    given = parser.parse_args()
    keep_freed_memory()
    detector = Detector.load(given.ckpt)
    samples = scan_mvtec(given.data).test
    images = load_images([sample.path for sample in samples], detector.frame, None, "Decoding test images")
    is_bad = torch.tensor([bool(sample.label) for sample in samples])
    rows = []
    for light, factor in (("as photographed", 1.0), (f"{100 * given.darker:g} % darker", 1 - given.darker)):
        changed = (factor * images).round().to(torch.uint8)
        runs = [before_and_after(detector, changed[~is_bad], changed[is_bad], split) for split in range(given.splits)]
        for name in runs[0]:
            rates = [verdict_cell([run[name][str(rate)] for run in runs]) for rate in RATES]
            rows.append([light, name, *rates, percent([run[name]["auroc"] for run in runs])])
    print(markdown.table(["", "", *rate_names(RATES), "AUROC"], rows, keys=1))


if __name__ == "__main__":
    main()
