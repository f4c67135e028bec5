"""The choice of the anomaly map, and of what the score of an image is made of.

Both are chosen on held-out good images and augmented copies of them, whose masks are known: no defect takes part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gaussad_pl.model.combination import COMBINATIONS, combine
from gaussad_pl.model.segmenter import Segmenter
from gaussad_pl.training.map_validation import MapValidation

MARGIN = 0.02  # in AUROC and AUPRO, by which less must beat more: the noise of some 60 held-out images


def choose_map(segmenter: Segmenter, validation: MapValidation) -> dict[str, Any]:
    """Keep the candidate and the combination that tell good images and pixels from augmented ones best.

    Candidates are compared by image AUROC plus AUPRO, combinations by image AUROC, both means over augmentations. It is
    not known beforehand what one level sees and the other does not, or the map and not the pooled features, so both
    count unless one alone is clearly better. The same holds for fine clusters against broad ones.

    Returns:
        The choice, and the signals it was made by.
    """
    signals = {name: _signals(segmenter, validation, name) for name in segmenter.candidates}
    best = max(signals, key=lambda name: selection_score(signals[name], complexity_penalty(segmenter, name)))
    segmenter.keep(best)
    maps = validation.maps[best]
    segmenter.set_contour(maps[validation.groups == 0])
    pooled, mapped = validation.pooled.double(), segmenter.map_score(maps).double()
    set_units(segmenter, validation, maps)
    centre, spread = segmenter.centre.cpu(), segmenter.spread.cpu()
    combined = {
        name: validation.image_auroc(combine(pooled, mapped, centre, spread, torch.tensor(weights)))
        for name, weights in COMBINATIONS.items()
    }
    if segmenter.combine == "auto":
        best_alone = max(COMBINATIONS, key=lambda name: combined[name])
        segmenter.combine = best_alone if combined[best_alone] > combined["both"] + MARGIN else "both"
    segmenter.weights.copy_(torch.tensor(COMBINATIONS[segmenter.combine]))
    return {
        **segmenter.chosen,
        "candidates": signals,
        "combinations": combined,
        "worth": combined[segmenter.combine] + signals[best]["aupro"],
        "selection": "form, levels and combination chosen on held-out good images and augmented copies of them",
    }


def rescore(segmenter: Segmenter, validation: MapValidation) -> float:
    """Set the units of the score by other pooled scores of the same maps; image AUROC, mean over augmentations."""
    maps = next(iter(validation.maps.values()))
    set_units(segmenter, validation, maps)
    return validation.image_auroc(segmenter.score(validation.pooled.to(segmenter.centre.device), maps).cpu())


def set_units(segmenter: Segmenter, validation: MapValidation, maps: Tensor) -> None:
    """Set the units of pooled and map score by their means and deviations on held-out good images."""
    good = validation.groups == 0
    segmenter.set_units(validation.pooled[good], segmenter.map_score(maps[good]))


def selection_score(signals: Mapping[str, float], penalty: float) -> float:
    """Image AUROC plus AUPRO, less a penalty."""
    return signals["image_auroc"] + signals["aupro"] - penalty


def complexity_penalty(segmenter: Segmenter, name: str) -> float:
    """The head start of candidates that use more: all levels, and as many clusters as there can be."""
    heads = segmenter.candidates
    levels, clusters = max(len(head.levels) for head in heads.values()), max(head.clusters for head in heads.values())
    return 2 * MARGIN * ((len(heads[name].levels) < levels) + (heads[name].clusters < clusters))


def _signals(segmenter: Segmenter, validation: MapValidation, name: str) -> dict[str, float]:
    maps = validation.maps[name]
    return validation.signals(segmenter.map_score(maps), maps)
