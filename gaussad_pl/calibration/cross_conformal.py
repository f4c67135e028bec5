"""K-fold cross-conformal calibration: each image is scored by Gaussians estimated without its fold.

Source: Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.backbones.folding import folding
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.folds import folds_for
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.near_duplicates import in_order, near_duplicates
from gaussad_pl.data.part_features import middle, whitened
from gaussad_pl.data.splitting import Groups, partition
from gaussad_pl.density.gaussian import SingularCovarianceError
from gaussad_pl.density.moments import Moments, merge, moments, update_moments
from gaussad_pl.model.anomaly_maps import smooth
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel, level_distances
from gaussad_pl.progress import tracked

CACHE = 2 * 2**30  # bytes of patches to keep at most; if there are more, the backbone runs again for each fold


def calibrate(
    model: GaussianModel, data: ImageDataModule, cross_fit: bool, fine_tuned: bool, every_image: bool = False
) -> Calibration:
    """Calibrate a model on good images that it has not seen.

    Args:
        model: the final model.
        data: the data it was trained on.
        cross_fit: use `cross_conformal`, and `held_out` only if its folds are too small for a covariance.
        fine_tuned: whether the backbone was fine-tuned on the training images.
        every_image: whether the Gaussians were estimated from the held-out images, too.
    """
    with folding(model):
        if cross_fit:
            try:
                return cross_conformal(model, data, fine_tuned, every_image)
            except SingularCovarianceError:  # all images are enough for a covariance, three quarters of them are not
                if every_image:  # the held-out ones are in the Gaussians, too
                    return _uncalibrated(model, "the folds are too small for a covariance")
        return held_out(model, data)


@torch.no_grad()
def held_out(model: GaussianModel, data: ImageDataModule) -> Calibration:
    """Calibrate on the held-out images: they are in no Gaussian and no loss, but were used for model selection."""
    images = data.split[1]
    if not images:
        return _uncalibrated(model, "no image was held out")
    device = model.level_weights.device
    detection = Detection.join([model(batch["image"].to(device)).cpu() for batch in data.good_dataloader(images)])
    scheme = (
        f"{len(detection.scores)} held-out images: in no Gaussian and no training step, but used for model "
        "selection, so the false-alarm rate may be slightly above its target"
    )
    different = len(set(data.groups[images].tolist()))
    return Calibration.of(detection.scores, detection.distances, scheme, different, images)


@torch.no_grad()
def cross_conformal(
    model: GaussianModel, data: ImageDataModule, fine_tuned: bool, every_image: bool = False
) -> Calibration:
    """Calibrate on good images, each scored by Gaussians estimated without its fold of the training images.

    Images of the same part, which are near-duplicates or share a `data.group`, are in the same fold.

    With a pretrained backbone, every training image is scored. Levels, form of the map, combination and units were
    chosen on the held-out images, so the scores of an image are independent of it. If the final Gaussians were
    estimated from every image, the held-out ones are scored like the others, although they took part in those choices.
    With a fine-tuned backbone, the training images have shaped the features. If the final Gaussians were estimated from
    every image, they are scored all the same: distillation and short training leave their scores comparable with those
    of new images (docs/pages/good-images.md), and the few held-out images of a small set would decide nothing.
    Otherwise the held-out images alone are scored, which were used for model selection.

    The final Gaussians are estimated from all training images, those of the calibration from three quarters of them
    (nine tenths of few), so its distances are slightly larger, and false alarms slightly rarer than the target. With a
    fine-tuned backbone, images that it was trained on have slightly smaller distances than new ones, which acts the
    other way (docs/pages/good-images.md).

    Raises:
        SingularCovarianceError: three quarters of the images are too few for a covariance without shrinkage.
    """
    used, unused = data.split
    images = used + (unused if fine_tuned or every_image else [])  # the training images come first
    unchanged = _Patches(model, data)
    oriented = [torch.cat(level) for level in zip(*unchanged.features(images), strict=True)]  # (N, orientations, C)
    pooled = [level[:, 0] for level in oriented]
    groups = _groups(model, data, images, pooled)
    apart = groups if groups.max() else np.arange(len(images))  # of one part, images are all that can be kept apart
    count = min(folds_for(len(images)), int(apart.max()) + 1)
    folds = partition(apart, count, data.seed)
    trained = folds if every_image else [[i for i in fold if i < len(used)] for fold in folds]
    held_out_alone = fine_tuned and not every_image
    scored = [[i for i in fold if i >= len(used)] for fold in folds] if held_out_alone else trained
    sums: list[list[Moments]] = [
        _moments(model, data, [images[i] for i in fold], [level[fold].flatten(0, 1) for level in oriented])
        for fold in trained
    ]
    detections = []
    for k, fold in tracked(list(enumerate(scored)), "Calibrating: scores"):
        if not fold:
            continue
        others = [j for j in range(len(folds)) if j != k]
        gaussians = deepcopy(model.gaussians)
        total: list[Moments] = reduce(_merge_levels, [sums[j] for j in others])
        for gaussian, level in zip(gaussians, total, strict=True):
            gaussian.fit(level)
        distances = level_distances([level[fold] for level in pooled], gaussians)
        scores = model.scores(distances.double())
        if model.segmenter is not None:
            rest = sorted(i for j in others for i in trained[j])
            estimate, score = unchanged.patches(images, rest, copies=True), unchanged.patches(images, fold)
            scores = _with_maps(model, scores, estimate, score)
        detections.append(Detection(distances, scores, None).cpu())
    detection = Detection.join(detections)
    order = [i for fold in scored for i in fold]
    different = len(set(groups[order].tolist()))
    scheme = _scheme(len(detection.scores), different, count, fine_tuned, every_image, bool(unused))
    return Calibration.of(detection.scores, detection.distances, scheme, different, [images[i] for i in order])


def _uncalibrated(model: GaussianModel, why: str) -> Calibration:
    return Calibration.of(torch.zeros(0), torch.zeros(0, len(model.gaussians)), f"none: {why}")


def _groups(model: GaussianModel, data: ImageDataModule, images: list[int], pooled: list[Tensor]) -> Groups:
    """Return the group of each image, ``(N,)``: as given by the user, or near-duplicates by ``pooled`` features."""
    if not data.groups_are_given:
        return near_duplicates(whitened(middle(pooled), middle(model.gaussians)))
    return in_order(data.groups[images])


def _scheme(images: int, different: int, folds: int, fine_tuned: bool, every_image: bool, held_out: bool) -> str:
    """Describe the calibration: how many images, of how many parts, and what else they were used for."""
    if every_image:
        which, caveat = "good", "levels and units were chosen on some of them"
        caveat += ", and the network was fine-tuned on the others" if fine_tuned else ""
    elif fine_tuned:
        which, caveat = "held-out", "in no training step, but used to choose the epoch, the levels and the map"
    else:
        which = "training"
        caveat = "levels, map and units were chosen on other images" if held_out else "none took part in a choice"
    return (
        f"cross-conformal: {images} {which} images ({different} distinct), each scored by Gaussians estimated without "
        f"its fold, one of {folds}; {caveat}"
    )


def _moments(model: GaussianModel, data: ImageDataModule, images: list[int], pooled: list[Tensor]) -> list[Moments]:
    """Moments of each level over all views of some training images; ``pooled`` are the features of unchanged ones."""
    total = [moments(level, gaussian.mean) for level, gaussian in zip(pooled, model.gaussians, strict=True)]
    augmented = range(data.orientations, len(data.views))
    if not augmented:
        return total
    for batch in data.reference_dataloader(images, augmented):
        total = update_moments(total, model.backbone.pooled(batch["image"].to(model.level_weights.device)))
    return total


def _merge_levels(one: list[Moments], other: list[Moments]) -> list[Moments]:
    return [merge(a, b) for a, b in zip(one, other, strict=True)]


def _with_maps(model: GaussianModel, pooled: Tensor, estimate: Iterable[Tensor], score: Iterable[Tensor]) -> Tensor:
    """Combine scores with those of anomaly maps, whose Gaussians are estimated from other images.

    Args:
        pooled: scores without maps, ``(M,)``.
        estimate: batches of patches ``(N, P, D)`` to estimate the Gaussians from.
        score: batches of patches ``(N, P, D)`` of the M images.

    Returns:
        ``(M,)``.
    """
    assert model.segmenter is not None
    head = model.segmenter.head
    gaussians = head.unfitted_gaussians().to(head.border.device)  # a copy would keep the clusters of other images
    gaussians.damage = head.gaussians.damage
    for batch in estimate:
        gaussians.observe(batch)
    gaussians.estimate()
    scores, first = [], 0
    for batch in score:
        maps = smooth(head.place(gaussians(batch)), head.gain)
        scores.append(model.segmenter.score(pooled[first : first + len(batch)], maps))
        first += len(batch)
    return torch.cat(scores)


class _Patches:
    """Pooled features and patches of unchanged images; patches are cached if all of them fit in `CACHE`."""

    def __init__(self, model: GaussianModel, data: ImageDataModule) -> None:
        self.model = model
        self.data = data
        self.cached: list[Tensor] | None = None
        self.device = model.level_weights.device

    def features(self, images: list[int]) -> Iterator[list[Tensor]]:
        """Yield pooled features, ``(N, orientations, C)`` per level, of some images at a time; cache the patches."""
        cached: list[Tensor] = []
        for maps in self._maps(images, copies=True):
            if self.model.segmenter is not None:
                batch = self._by_image(self.model.segmenter.head.patches(maps))
                if len(images) * batch[0].nbytes <= CACHE:
                    cached.append(batch.cpu())
            yield [self._by_image(level) for level in self.model.backbone.pool(maps)]
        self.cached = [patches for batch in cached for patches in batch] or None

    def patches(self, images: list[int], chosen: list[int], copies: bool = False) -> Iterator[Tensor]:
        """Yield the patches of the images at the positions ``chosen``, in batches ``(N, P, D)``.

        With ``copies``, also those of the images in other orientations.
        """
        if self.cached is not None:
            orientations = self.data.orientations if copies else 1
            size = max(1, self.data.eval_batch_size // orientations)
            for first in range(0, len(chosen), size):
                some = [self.cached[i][:orientations] for i in chosen[first : first + size]]
                yield torch.cat(some).to(self.device)
            return
        assert self.model.segmenter is not None
        for maps in self._maps([images[i] for i in chosen], copies):
            yield self.model.segmenter.head.patches(maps)

    def _maps(self, images: list[int], copies: bool) -> Iterator[list[Tensor]]:
        for batch in self.data.good_dataloader(images, copies):
            yield self.model.backbone(batch["image"].to(self.device))

    def _by_image(self, features: Tensor) -> Tensor:
        return features.unflatten(0, (-1, self.data.orientations))
