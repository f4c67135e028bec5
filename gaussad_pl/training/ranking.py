"""The ranking objective: damaged copies above good images, while good images stay as they are.

The objective of the paper pulls good images towards their Gaussian and has nothing that holds damaged ones away; this
one ranks. It is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gaussad_pl.backbones.backbone import Backbone, pool
from gaussad_pl.backbones.frozen_stages import FrozenStages
from gaussad_pl.density.cluster import SharedGaussian
from gaussad_pl.density.damage import covered
from gaussad_pl.density.gaussian import Gaussian
from gaussad_pl.density.moments import moments
from gaussad_pl.errors import UserError
from gaussad_pl.model.model import GaussianModel

WORST = 8  # patches whose mean log distance scores an image
EDGE = 0.95  # quantile of the log distances of good patches, beyond which undamaged patches are pulled back
PULL = 0.1  # weight of that


@dataclass(frozen=True)
class Reference:
    """The Gaussians of one half of the training images, on the frozen features.

    Attributes:
        patches: of all patches, None where there is no map.
        levels: of the pooled features of each level that counts, by its position.
    """

    patches: SharedGaussian | None
    levels: dict[int, Gaussian]


class Ranking:
    """Ranks damaged copies above good images, by their worst patches and by their pooled features.

    The training images are cut in two halves, with Gaussians of the frozen features each, which stay fixed. Every batch
    comes from one half and is measured by the Gaussians of the other: on its own half a training image is too near, and
    the loss would have nothing to do. With s the score of an image, the loss is

        mean of softplus(-(s_damaged - s_good) / T) over all pairs, T the standard deviation of s over good images,

    for the score by patches (mean of the largest log distances) and for the log pooled distance, plus a pull on
    undamaged patches that are far out, plus the mean squared change of undamaged patches in whitened coordinates
    (distillation from the frozen network, which holds forgetting back).

    Args:
        pooled: weight of the ranking by pooled features.
        distillation: weight of the distillation.
        cross_fit: measure each half by the Gaussians of the other one, not by its own.
    """

    def __init__(self, pooled: float = 1.0, distillation: float = 0.3, cross_fit: bool = True) -> None:
        self.pooled = pooled
        self.distillation = distillation
        self.cross_fit = cross_fit
        self._references: list[Reference] = []

    @torch.no_grad()
    def prepare(self, model: GaussianModel, halves: Sequence[Iterable[Mapping[str, Tensor]]]) -> None:
        """Estimate the Gaussians of both halves with the network as it is, which is also the teacher from here on.

        Args:
            model: with the level weights that were chosen.
            halves: batches of the good images of each half, with ``image`` ``(N, 3, H, W)``.

        Raises:
            UserError: all training images show the same part, so that there are no two halves.
        """
        if len(halves) < 2:
            raise UserError("objective=ranking needs training images of at least two parts: set objective=mahalanobis")
        self._head = None if model.segmenter is None else model.segmenter.head
        self._weights = model.level_weights.detach().clone()
        counted = self._counted(model)
        self._stages = FrozenStages(model.backbone)
        places = [] if self._head is None else self._head.places
        self._student = _up_to(self._stages.rest, max(self.positions(model)))
        self._teacher = deepcopy(_up_to(self._stages.rest, max(places))).requires_grad_(False) if places else None
        features = [self._features(model.backbone, batches) for batches in halves]
        self._references = [self._reference(*half, counted) for half in features]
        patch_scores, pooled_scores, logs = [], [], []
        for number, (patches, levels) in enumerate(features):
            reference = self._references[self._measured_by(number)]
            if patches is not None:
                logs.append(self._log_distances(reference, patches))
                patch_scores.append(_worst(logs[-1]))
            if counted:
                pooled_scores.append(self._pooled_score(reference, levels))
        self._patch_unit = torch.cat(patch_scores).std() if patch_scores else torch.ones(())
        self._pooled_unit = torch.cat(pooled_scores).std() if pooled_scores else torch.ones(())
        if logs:
            flat = torch.cat([part.flatten() for part in logs])
            self._edge, self._width = flat.sort().values[int(EDGE * (len(flat) - 1))], flat.std()

    def positions(self, model: GaussianModel) -> list[int]:
        """Positions of the levels that the loss depends on."""
        return sorted({*self._counted(model), *([] if model.segmenter is None else model.segmenter.head.places)})

    def _counted(self, model: GaussianModel) -> list[int]:
        """Positions of the levels whose pooled features are ranked."""
        return model.level_weights.nonzero().flatten().tolist() if self.pooled else []

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch of pairs, see `gaussad_pl.data.pairs.Pairs`; all of them are from one half."""
        reference = self._references[self._measured_by(int(batch["half"][0]))]
        images = torch.cat([batch["image"], batch["copy"]])
        with torch.no_grad():
            before = self._stages.before(images)
            frozen = None if self._teacher is None else self._stages.behind(self._teacher, images, before)
        maps = [level.float() for level in self._stages.behind(self._student, images, before)]
        with torch.autocast(images.device.type, enabled=False):
            loss = maps[-1].new_zeros(())
            if reference.levels:
                score = self._pooled_score(reference, pool(maps))
                loss = loss + self.pooled * ranking_loss(*_halved(score), self._pooled_unit)
            if self._head is None or frozen is None:
                return loss
            patches, unchanged = self._head.patches(maps), self._head.patches([level.float() for level in frozen])
            return loss + self._patch_loss(reference, patches, unchanged, batch["mask"])

    def _patch_loss(self, reference: Reference, patches: Tensor, frozen: Tensor, mask: Tensor) -> Tensor:
        assert reference.patches is not None and self._head is not None
        logs = self._log_distances(reference, patches)
        touched = covered(mask, self._head.side, least=0)
        undamaged = torch.cat([torch.ones_like(touched), ~touched])
        pull = F.softplus((logs[undamaged] - self._edge) / self._width).mean()
        change = (patches - frozen)[undamaged] @ reference.patches.whitener[0].mT
        rank = ranking_loss(*_halved(_worst(logs)), self._patch_unit)
        return rank + PULL * pull + self.distillation * change.square().mean()

    def _measured_by(self, half: int) -> int:
        return 1 - half if self.cross_fit else half

    def _features(
        self, backbone: Backbone, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Patches ``(N, P, D)``, where there is a map, and pooled features ``(N, C)`` of each level."""
        device = self._weights.device
        patches, pooled = [], []
        for batch in batches:
            maps = backbone(batch["image"].to(device))
            pooled.append(pool(maps))
            if self._head is not None:
                patches.append(self._head.patches(maps))
        levels = [torch.cat(level) for level in zip(*pooled, strict=True)]
        return torch.cat(patches) if patches else None, levels

    def _reference(self, patches: Tensor | None, levels: list[Tensor], counted: list[int]) -> Reference:
        gaussians = {i: Gaussian(levels[i].shape[1]).to(levels[i].device) for i in counted}
        for i, gaussian in gaussians.items():
            gaussian.fit(moments(levels[i]))
        if patches is None:
            return Reference(None, gaussians)
        density = SharedGaussian.build(0, patches.shape[-1], 1, 0).to(patches.device)
        density.observe(patches)
        density.estimate()
        return Reference(density, gaussians)

    def _log_distances(self, reference: Reference, patches: Tensor) -> Tensor:
        assert reference.patches is not None
        return reference.patches(patches).clamp(min=1e-6).log()

    def _pooled_score(self, reference: Reference, levels: Sequence[Tensor]) -> Tensor:
        parts = [self._weights[i] * gaussian(levels[i]) for i, gaussian in reference.levels.items()]
        return torch.stack(parts).sum(0).clamp(min=1e-6).log()


def ranking_loss(good: Tensor, damaged: Tensor, unit: Tensor) -> Tensor:
    """softplus(-(damaged - good) / unit), mean over all pairs of good ``(N,)`` and damaged ``(M,)`` scores.

    A smooth stand-in for the share of pairs in the wrong order, which is one minus the AUROC (Burges et al., "Learning
    to rank using gradient descent", 2005).
    """
    return F.softplus((good - damaged[:, None]) / unit).mean()


def _worst(log_distances: Tensor) -> Tensor:
    """Mean of the largest log distances of each image ``(N, P)``: ``(N,)``."""
    return log_distances.topk(min(WORST, log_distances.shape[1]), 1).values.mean(1)


def _halved(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``(2 N,)`` of good images and of their copies, apart."""
    half = len(scores) // 2
    return scores[:half], scores[half:]


def _up_to(backbone: Backbone, last: int) -> Backbone:
    """The same backbone without the levels behind position ``last``."""
    part = copy(backbone)
    part.indices = backbone.indices[: last + 1]
    return part
