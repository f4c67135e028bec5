"""Calibration scores from images that took no part in what scores them: by turns, as few images must suffice.

Source: Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import reduce

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from gaussad_pl.backbones.backbone import pool
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.near_duplicates import in_order, near_duplicates
from gaussad_pl.data.part_features import middle, whitened
from gaussad_pl.data.splitting import partition
from gaussad_pl.density.moments import Moments, merge, moments, update_moments
from gaussad_pl.density.whitening import SingularCovarianceError
from gaussad_pl.model.anomaly_maps import smooth
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel, level_distances

PARTS = 4
CACHE = 2 * 2**30  # bytes of patches that are kept at most; beyond, the backbone runs anew for each part


def calibrate(
    model: GaussianModel, data: ImageDataModule, cross_fit: bool, fine_tuned: bool, every_image: bool = False
) -> Calibration:
    """Good images as a model scores them that has not seen them.

    Args:
        model: the final one.
        data: that it was trained on.
        cross_fit: see `cross_conformal`; otherwise `held_out`.
        fine_tuned: whether training images shaped the features.
        every_image: the Gaussians were estimated from the held-out images, too.
    """
    if cross_fit:
        try:
            return cross_conformal(model, data, fine_tuned, every_image)
        except SingularCovarianceError:  # all images were enough for the Gaussian, a part of them is not
            pass
    return held_out(model, data)


@torch.no_grad()
def held_out(model: GaussianModel, data: ImageDataModule) -> Calibration:
    """The held-out images as the model scores them: in no Gaussian and no loss, but the choices looked at them."""
    images = data.split[1]
    if not images:
        none = torch.zeros(0)
        return Calibration.of(none, torch.zeros(0, len(model.gaussians)), "none: no image was held out")
    device = model.level_weights.device
    found = Detection.join([model(batch["image"].to(device)).cpu() for batch in data.good_dataloader(images)])
    scheme = (
        f"{len(found.scores)} held-out images: in no Gaussian and no training step, but they chose the epoch, the "
        "levels and the map, so the false-alarm rate may be a little above the one wished"
    )
    return Calibration.of(found.scores, found.distances, scheme)


@torch.no_grad()
def cross_conformal(
    model: GaussianModel, data: ImageDataModule, fine_tuned: bool, every_image: bool = False
) -> Calibration:
    """Good images, each scored by Gaussians estimated without the part of the training images it belongs to.

    Images that show the same part are in one part of the images: near-duplicates, or what `data.group` says. Where the
    network is the pretrained one, every training image is scored: levels, form of the map, combination and units were
    chosen on the held-out images, so that all that scores an image is independent of it. Where it was fine-tuned, the
    training images shaped the features, and the held-out ones are scored; they took part in the choices, and images
    that look like them in the training.

    What is not exact, either way: the final Gaussians come from all training images, those of the calibration from
    three quarters of them, which puts its images a little farther out. The p-values are too large by that, so the error
    is towards fewer false alarms.

    Raises:
        SingularCovarianceError: three quarters of the images are too few for a covariance without shrinkage.
    """
    used, unused = data.split
    images = used + (unused if fine_tuned or every_image else [])  # the training images come first
    plain = _Patches(model, data)
    pooled = [torch.cat(level) for level in zip(*plain.features(images), strict=True)]
    if data.groups_are_given:
        groups = in_order(data.groups[images])
    else:
        groups = near_duplicates(whitened(middle(pooled), middle(model.gaussians)))
    if groups.max() == 0:  # they all show the same
        groups = np.arange(len(images))
    count = min(PARTS, int(groups.max()) + 1)
    parts = partition(groups, count, data.seed)
    trained = parts if every_image else [[i for i in part if i < len(used)] for part in parts]
    scored = [[i for i in part if i >= len(used)] for part in parts] if fine_tuned else trained
    sums: list[list[Moments]] = [
        _moments(model, data, [images[i] for i in part], [level[part] for level in pooled]) for part in trained
    ]
    found = []
    for k, part in track(list(enumerate(scored)), "Calibrating: scores", transient=True):
        if not part:
            continue
        others = [j for j in range(len(parts)) if j != k]
        gaussians = deepcopy(model.gaussians)
        total: list[Moments] = reduce(_merge_levels, [sums[j] for j in others])
        for gaussian, level in zip(gaussians, total, strict=True):
            gaussian.fit(level)
        distances = level_distances([level[part] for level in pooled], gaussians)
        scores = model.scores(distances.double())
        if model.segmenter is not None:
            rest = sorted(i for j in others for i in trained[j])
            scores = _with_maps(model, scores, plain.patches(images, rest), plain.patches(images, part))
        found.append(Detection(distances, scores, None).cpu())
    everything = Detection.join(found)
    different = len(set(groups[[i for part in scored for i in part]].tolist()))
    which, flaw = "training", "levels, map and units were chosen on other images"
    if fine_tuned:
        which, flaw = "held-out", "in no training step, but they chose the epoch, the levels and the map"
    scheme = (
        f"cross-conformal: {len(everything.scores)} {which} images ({different} that look different), each scored by "
        f"Gaussians estimated without its part, one of {count}; {flaw}"
    )
    return Calibration.of(everything.scores, everything.distances, scheme, different)


def _moments(model: GaussianModel, data: ImageDataModule, images: list[int], plain: list[Tensor]) -> list[Moments]:
    """Moments of each level over some training images, as they are and changed."""
    total = [moments(level, gaussian.mean) for level, gaussian in zip(plain, model.gaussians, strict=True)]
    changed = range(1, len(data.views))
    if not changed:
        return total
    for batch in data.reference_dataloader(images, changed):
        total = update_moments(total, pool(model.backbone(batch["image"].to(model.level_weights.device))))
    return total


def _merge_levels(one: list[Moments], other: list[Moments]) -> list[Moments]:
    return [merge(a, b) for a, b in zip(one, other, strict=True)]


def _with_maps(model: GaussianModel, pooled: Tensor, estimate: Iterable[Tensor], score: Iterable[Tensor]) -> Tensor:
    """Scores of images by Gaussians of patches from other images: both as batches ``(N, P, D)``; pooled ``(M,)``."""
    assert model.segmenter is not None
    head = model.segmenter.head
    gaussians = deepcopy(head.gaussians)
    for batch in estimate:
        gaussians.observe(batch)
    gaussians.estimate()
    found, first = [], 0
    for batch in score:
        maps = smooth(gaussians(batch).unflatten(1, (head.side, head.side)))
        found.append(model.segmenter.score(pooled[first : first + len(batch)], maps))
        first += len(batch)
    return torch.cat(found)


class _Patches:
    """Pooled features and patches of training images as they are; patches are kept where all fit into the memory."""

    def __init__(self, model: GaussianModel, data: ImageDataModule) -> None:
        self.model = model
        self.data = data
        self.kept: list[Tensor] | None = None
        self.device = model.level_weights.device

    def features(self, images: list[int]) -> Iterator[list[Tensor]]:
        """Pooled features of each batch, a list of ``(N, C)``; on the way patches are kept."""
        kept: list[Tensor] = []
        for maps in self._maps(images):
            if self.model.segmenter is not None:
                batch = self.model.segmenter.head.patches(maps)
                if len(images) * batch[0].nbytes <= CACHE:
                    kept.append(batch.cpu())
            yield pool(maps)
        self.kept = [one for batch in kept for one in batch] or None

    def patches(self, images: list[int], chosen: list[int]) -> Iterator[Tensor]:
        """Patches of the images at the places ``chosen``, in batches ``(N, P, D)``."""
        size = self.data.eval_batch_size
        if self.kept is not None:
            for first in range(0, len(chosen), size):
                yield torch.stack([self.kept[i] for i in chosen[first : first + size]]).to(self.device)
            return
        assert self.model.segmenter is not None
        for maps in self._maps([images[i] for i in chosen]):
            yield self.model.segmenter.head.patches(maps)

    def _maps(self, images: list[int]) -> Iterator[list[Tensor]]:
        for batch in self.data.good_dataloader(images):
            yield self.model.backbone(batch["image"].to(self.device))
