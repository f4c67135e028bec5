"""Recalibration: units, contour and calibration scores of an existing model from good images of today.

The Gaussians have not seen these images. If their means are moved to them, calibration is cross-conformal: each image
is scored by means that were moved without its fold. Covariances are not changed. Their densities of patches do not
record how many observations they have, so they cannot be merged with others, and a few dozen images alone are too few
for a covariance of hundreds of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.folds import folds_for
from gaussad_pl.data.near_duplicates import near_duplicates
from gaussad_pl.data.part_features import middle, whitened
from gaussad_pl.data.splitting import partition
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel

BATCH = 32  # images scored at once


@dataclass(frozen=True)
class Deviations:
    """Features of N new images, relative to the Gaussians of a model.

    Attributes:
        levels: pooled features minus the mean of their Gaussian, ``(N, C)`` for each level.
        patches: mean deviation of the patches of each image, ``(N, D)``; None if the model has no maps.
    """

    levels: list[Tensor]
    patches: Tensor | None

    def of(self, images: Sequence[int]) -> Deviations:
        """Select some of the images."""
        patches = None if self.patches is None else self.patches[images]
        return Deviations([level[images] for level in self.levels], patches)


@torch.no_grad()
def recalibrate(model: GaussianModel, images: Tensor, move_means: bool) -> tuple[GaussianModel, Calibration]:
    """Calibrate a copy of a model on good images.

    The calibration is slightly approximate: the units of the score come from the same images, and the final means are
    moved by all of them, those of the calibration by most of them.

    Args:
        model: the model; it is not changed.
        images: ``(N, 3, height, width)`` uint8, at least two.
        move_means: also move the means of the Gaussians to the new images, see `moved`.

    Returns:
        The copy, which shares the weights and the covariances, and its calibration.
    """
    seen = deviations(model, images)
    features = [level + gaussian.mean for level, gaussian in zip(seen.levels, model.gaussians, strict=True)]
    groups = near_duplicates(whitened(middle(features), middle(model.gaussians)))
    different = int(groups.max()) + 1
    scheme = f"recalibrated: {len(images)} good images ({different} distinct), in no Gaussian and no training step"
    if move_means:
        folds = partition(groups, min(folds_for(len(images)), different), seed=0)
        rest = [[i for other in folds if other is not fold for i in other] for fold in folds]
        parts = [score(moved(model, seen.of(kept)), images[fold]) for kept, fold in zip(rest, folds, strict=True)]
        order = torch.tensor([i for fold in folds for i in fold]).argsort()
        joined = Detection.join(parts)
        maps = None if joined.maps is None else joined.maps[order]
        found = Detection(joined.distances[order], joined.scores[order], maps)
        result = moved(model, seen)
        scheme += f", each scored by means moved without its fold, one of {len(folds)}"
    else:
        found, result = score(model, images), _copy(model)
    scores = found.scores
    if result.segmenter is not None:
        assert found.maps is not None
        pooled, mapped = result.scores(found.distances.double()).cpu(), result.segmenter.map_score(found.maps)
        result.segmenter.set_contour(found.maps)
        result.segmenter.set_units(pooled, mapped)
        units = result.segmenter
        scores = units.score(pooled.to(units.centre), found.maps.to(units.centre)).cpu()
        scheme += "; the units of the score are theirs"
    return result, Calibration.of(scores, found.distances, scheme, different)


def deviations(model: GaussianModel, images: Tensor) -> Deviations:
    """Compute the deviations of images ``(N, 3, height, width)`` uint8 from the Gaussians of a model."""
    levels, patches = [], []
    for batch in images.split(BATCH):
        maps = model.backbone(batch.to(model.level_weights.device))
        levels.append(
            [level - gaussian.mean for level, gaussian in zip(model.backbone.pool(maps), model.gaussians, strict=True)]
        )
        if model.segmenter is not None:
            head = model.segmenter.head
            patches.append(head.gaussians.deviations(head.patches(maps)))
    return Deviations(
        [torch.cat(level) for level in zip(*levels, strict=True)], torch.cat(patches) if patches else None
    )


def moved(model: GaussianModel, seen: Deviations) -> GaussianModel:
    """Return a copy of a model whose means have moved to new images.

    Each level has its own `shift`. All patches have one in common, as the new images are too few for one per Gaussian.
    """
    result = _copy(model)
    for gaussian, level in zip(result.gaussians, seen.levels, strict=True):
        gaussian.mean += shift(level)
    if result.segmenter is not None and seen.patches is not None:
        result.segmenter.head.gaussians.shift(shift(seen.patches))
    return result


def shift(deviations: Tensor) -> Tensor:
    """Estimate how far a mean has moved, from the deviations of N new images from it, ``(N, D)``: ``(D,)``.

    The mean deviation is multiplied by the positive-part James-Stein factor 1 - D / sum(t^2), where t is its ratio to
    its standard error, by feature: a clear shift is followed completely, and one that chance explains not at all. So a
    mean of many training images is not replaced by one of a few new images without need. A single image has no standard
    error: nothing is followed.
    """
    n, d = deviations.shape
    if n < 2:
        return deviations.new_zeros(d)
    mean, variance = deviations.mean(0), deviations.var(0)
    tiny = torch.finfo(mean.dtype).tiny
    squares = float((n * mean.double().square() / variance.double().clamp(min=tiny)).sum())
    return max(0.0, 1 - d / squares) * mean if squares > 0 else mean


def score(model: GaussianModel, images: Tensor) -> Detection:
    """Score images ``(N, 3, height, width)`` uint8, on the CPU."""
    return Detection.join([model(batch.to(model.level_weights.device)).cpu() for batch in images.split(BATCH)])


def _copy(model: GaussianModel) -> GaussianModel:
    """Copy a model, but share its backbone and its whiteners, which take most of the memory and do not change."""
    whiteners = [tensor for name, tensor in model.named_buffers() if name.endswith("whitener")]
    return deepcopy(model, {id(part): part for part in (model.backbone, *whiteners)})
