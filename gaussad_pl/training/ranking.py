"""The ranking objective: damaged copies above good images, while good images stay as they are.

The objective of the paper pulls good images towards their Gaussian and has nothing that holds damaged ones away; this
one ranks. It is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.frozen_stages import FrozenStages
from gaussad_pl.density.gaussian import Gaussian
from gaussad_pl.density.moments import moments
from gaussad_pl.model.model import GaussianModel

Reference = dict[int, Gaussian]  # of the pooled features of half of the training images, by position of the level


class Ranking:
    """Ranks damaged copies above good images by their pooled features.

    The training images are cut in two halves, with Gaussians of the frozen features each, which stay fixed. Every batch
    comes from one half and is measured by the Gaussians of the other: on its own half a training image is too near, and
    the loss would have nothing to do. With s the log of the pooled score of an image, the loss is

        mean of softplus(-(s_damaged - s_good) / T) over all pairs, T the standard deviation of s over good images,

    plus the mean squared change of the features of good images in whitened coordinates (distillation from the frozen
    network, which holds forgetting back). Of the levels that count in the pooled score, those that are trained take
    part.

    Args:
        distillation: weight of the distillation.
        cross_fit: measure each half by the Gaussians of the other one, not by its own.

    Attributes:
        levels: positions of the levels that take part.
    """

    def __init__(self, distillation: float = 0.3, cross_fit: bool = True) -> None:
        self.distillation = distillation
        self.cross_fit = cross_fit
        self.levels: list[int] = []
        self._references: list[Reference] = []

    @torch.no_grad()
    def prepare(self, model: GaussianModel, halves: Sequence[Iterable[Mapping[str, Tensor]]]) -> None:
        """Estimate the Gaussians of both halves with the network as it is, which is also the teacher from here on.

        Args:
            model: with the level weights that were chosen.
            halves: batches of the good images of both halves, with ``image`` ``(N, 3, H, W)``.
        """
        self._weights = model.level_weights.detach().clone()
        self.levels = ranked_levels(model)
        self._stages = FrozenStages(model.backbone)
        self._student = _up_to(self._stages.rest, max(self.levels))
        self._teacher = deepcopy(self._student).requires_grad_(False)
        features = [self._features(model.backbone, batches) for batches in halves]
        self._references = [self._reference(levels) for levels in features]
        scores = [self._score(self._measured_by(number), levels) for number, levels in enumerate(features)]
        self._unit = torch.cat(scores).std()

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch of pairs, see `gaussad_pl.data.pairs.Pairs`; all of them are from one half."""
        pool = self._student.pool
        number, count = self._measured_by(int(batch["half"][0])), len(batch["image"])
        images = torch.cat([batch["image"], batch["copy"]])
        with torch.no_grad():
            before = self._stages.before(images)
            good = [level[:count] for level in before]
            unchanged = pool(self._stages.behind(self._teacher, batch["image"], good))
        features = [level.float() for level in pool(self._stages.behind(self._student, images, before))]
        with torch.autocast(images.device.type, enabled=False):
            scores = self._score(number, features)
            loss = ranking_loss(scores[:count], scores[count:], self._unit)
            for i, gaussian in self._references[number].items():
                change = (features[i][:count] - unchanged[i].float()) @ gaussian.whitener.mT
                loss = loss + self.distillation * change.square().mean()
        return loss

    def _measured_by(self, half: int) -> int:
        return 1 - half if self.cross_fit else half

    def _features(self, backbone: Backbone, batches: Iterable[Mapping[str, Tensor]]) -> list[Tensor]:
        """Pooled features ``(N, C)`` of each level."""
        batched = [backbone.pooled(batch["image"].to(self._weights.device)) for batch in batches]
        return [torch.cat(level) for level in zip(*batched, strict=True)]

    def _reference(self, levels: Sequence[Tensor]) -> Reference:
        gaussians = {i: Gaussian(levels[i].shape[1]).to(levels[i].device) for i in self.levels}
        for i, gaussian in gaussians.items():
            gaussian.fit(moments(levels[i]))
        return gaussians

    def _score(self, number: int, levels: Sequence[Tensor]) -> Tensor:
        reference = self._references[number]
        parts = [self._weights[i] * gaussian(levels[i]) for i, gaussian in reference.items()]
        return torch.stack(parts).sum(0).clamp(min=1e-6).log()


def ranked_levels(model: GaussianModel) -> list[int]:
    """Positions of the levels that are trained and count in the pooled score."""
    first = model.backbone.frozen_levels
    return [i for i in model.level_weights.nonzero().flatten().tolist() if i >= first]


def ranking_loss(good: Tensor, damaged: Tensor, unit: Tensor) -> Tensor:
    """softplus(-(damaged - good) / unit), mean over all pairs of good ``(N,)`` and damaged ``(M,)`` scores.

    A smooth stand-in for the share of pairs in the wrong order, which is one minus the AUROC (Burges et al., "Learning
    to rank using gradient descent", 2005).
    """
    return F.softplus((good - damaged[:, None]) / unit).mean()


def _up_to(backbone: Backbone, last: int) -> Backbone:
    """The same backbone without the levels behind position ``last``."""
    part = copy(backbone)
    part.indices = backbone.indices[: last + 1]
    return part
