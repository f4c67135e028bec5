"""Fit a peer, score images with it, and calibrate it as gaussad_pl calibrates its own detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks.jobs import clocks, since
from benchmarks.peer_models import BATCH, PEERS, build, normalised
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.folds import folds_for
from gaussad_pl.data.near_duplicates import in_order
from gaussad_pl.data.splitting import Groups, partition


def fitted(method: str, coreset: str | None, seed: int, images: Tensor) -> tuple[Any, dict[str, float]]:
    """Build a model, fit it to uint8 ``images``, and return it with the seconds of the fit."""
    L.seed_everything(seed, verbose=False)
    model = build(method, coreset)
    start = clocks()
    PEERS[method].fit(model, images)
    model.eval()
    return model, since(start, "fit")


@torch.inference_mode()
def score(model: Any, images: Tensor) -> tuple[Tensor, Tensor | None, dict[str, float]]:
    """Return the scores ``(N,)`` and maps ``(N, H, W)``, if there are any, and the seconds it took."""
    start = clocks()
    results = [model(normalised(batch)) for batch in images.split(BATCH)]
    seconds = since(start, "score")
    scores = torch.cat([result.pred_score for result in results]).flatten()
    maps = [result.anomaly_map for result in results]
    return scores, None if maps[0] is None else torch.cat(maps).squeeze(1), seconds


def cross_conformal(score_others: Callable[[list[int], list[int]], Tensor], groups: Groups, seed: int) -> Calibration:
    """Calibrate on good images, each scored by a model that was fitted without its fold.

    Number and division of the folds are those of `gaussad_pl.calibration.cross_conformal`.

    Args:
        score_others: fits a model to the images of the first list and returns its scores of those of the second.
        groups: group of each image, ``(N,)``; images of one group are in the same fold.
        seed: of the division into folds.
    """
    groups = in_order(groups)
    folds = partition(groups, min(folds_for(len(groups)), int(groups.max()) + 1), seed)
    scores = torch.cat([score_others(sorted(set(range(len(groups))) - set(fold)), fold) for fold in folds])
    scheme = f"cross-conformal: {len(groups)} good images, each scored by a model without its fold, one of {len(folds)}"
    return Calibration.of(scores, torch.zeros(len(groups), 0), scheme, int(groups.max()) + 1)
