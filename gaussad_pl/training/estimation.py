"""The base of the LightningModule: a model whose Gaussians follow its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import track
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import pool
from gaussad_pl.backbones.frozen_stages import FrozenStages
from gaussad_pl.density.gaussian import RunningGaussian
from gaussad_pl.density.moments import all_reduce_moments, moments, update_moments
from gaussad_pl.density.patches import PatchDensity
from gaussad_pl.distributed import rank
from gaussad_pl.errors import UserError
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.model.segmenter import Segmenter
from gaussad_pl.training.map_choice import choose_map
from gaussad_pl.training.map_validation import MapValidationCollector

Batch = dict[str, Tensor]


class EstimatingModule(L.LightningModule):
    """Estimates the Gaussians of a model, again whenever the weights have changed, and makes its choices.

    Args:
        model: to estimate.
        running: see `gaussad_pl.training.module.GaussianAD`.
        refit: see there.
        level_rule: see there.
        train_on: see there.

    Attributes:
        model: the model that scores images.
        targets: one running Gaussian a level, to which the loss measures the distance.
        patch_target: the density of patches to which the loss measures the distance; None for pooled features.
        stale: the weights have changed since the Gaussians were estimated.
        collector: collects what the choice of the map needs while validating; None where nothing is to be chosen.
        frozen: remembers the output of frozen stages while fitting on pooled features.

    Raises:
        UserError: an unknown setting, or a loss on patches while the form of the map is open.
    """

    targets: Sequence[RunningGaussian]

    def __init__(
        self,
        model: GaussianModel,
        running: Literal["fixed", "epoch", "ema"],
        refit: bool,
        level_rule: Callable[[Tensor], Tensor],
        train_on: Literal["pooled", "patches"],
    ) -> None:
        super().__init__()
        if running not in ("fixed", "epoch", "ema"):
            raise UserError(f"model.running={running}: expected fixed, epoch or ema")
        self.model = model
        self.running = running
        self.refit = refit or running == "epoch"
        self.level_rule = level_rule
        settings = model.gaussians[0].shrinkage, model.gaussians[0].covariance
        widths = [level.channels for level in model.backbone.levels]
        self.targets = nn.ModuleList(RunningGaussian(width, *settings) for width in widths)  # type: ignore[assignment]
        self.patch_target: PatchDensity | None = None
        if train_on == "patches":
            if model.segmenter is None or len(model.segmenter.candidates) > 1:
                raise UserError(
                    "model.train_on=patches needs one kind of map: set model.segmentation.form=position, clusters or "
                    "shared, model.segmentation.map_levels=middle or a list of levels, and a number of clusters"
                )
            self.patch_target = deepcopy(model.segmenter.head.gaussians)
        elif train_on != "pooled":
            raise UserError(f"model.train_on={train_on}: expected pooled or patches")
        self.stale = True
        self.collector: MapValidationCollector | None = None
        self.frozen: FrozenStages | None = None

    @property
    def segmenter(self) -> Segmenter:
        """What makes the maps; only where there is one."""
        assert self.model.segmenter is not None
        return self.model.segmenter

    def forward(self, images: Tensor) -> Detection:
        """See `GaussianModel.forward`."""
        return self.model(images)

    def choose_levels(self, signals: Tensor) -> None:
        """Weigh the levels by their signals ``(augmentations, levels)`` on the augmented validation."""
        self.model.level_weights.copy_(self.level_rule(signals))

    @torch.no_grad()
    def estimate(self, batches: Collection[Batch], patches: bool = False) -> None:
        """Estimate the Gaussians for the current weights from one pass over batches of good images.

        Args:
            batches: with ``image`` ``(N, 3, H, W)`` and, for patches, ``view`` ``(N,)``.
            patches: whether the Gaussians of patches are estimated, too, from the images as they are (view 0).
        """
        features = self._features(batches, patches)
        if (first := next(features, None)) is not None:
            mine = [moments(level) for level in first]
        else:  # one of many processes, without an image
            mine = [moments(target.mean.new_zeros(0, len(target.mean)), target.mean) for target in self.targets]
        for levels in features:
            mine = update_moments(mine, levels)
        total = [all_reduce_moments(level) for level in mine]
        for gaussian, target, level in zip(self.model.gaussians, self.targets, total, strict=True):
            gaussian.fit(level)
            if self.running == "epoch" or not target.is_fitted:
                target.fit(level)
        if patches:
            self.segmenter.estimate()
        self.stale = False

    def _features(self, batches: Collection[Batch], patches: bool) -> Iterator[list[Tensor]]:
        """Pooled features of every batch; batches are not even made where all of them are remembered."""
        keys = [("reference", i) for i in range(len(batches))]
        if self.frozen is not None and all(key in self.frozen for key in keys):
            yield from map(self.frozen.features, keys)
            return
        shown = track(batches, description="Estimating the Gaussian", transient=True, disable=rank() > 0)
        for key, batch in zip(keys, shown, strict=True):
            images = batch["image"].to(self.device)
            maps = self.model.backbone(images)
            if self.frozen is not None:
                self.frozen.remember(key, images, maps)
            if patches:
                plain = (batch["view"] == 0).to(self.device)
                self.segmenter.observe([level[plain] for level in maps])
            yield pool(maps)

    @torch.no_grad()
    def estimate_patches(self, good: Iterable[Batch]) -> None:
        """Estimate the Gaussians of patches alone from batches of good images as they are."""
        for batch in good:
            self.segmenter.observe(self.model.backbone(batch["image"].to(self.device)))
        self.segmenter.estimate()

    @torch.no_grad()
    def choose_maps(self, validation: Iterable[Batch] | None = None) -> dict[str, Any]:
        """Choose by the augmented validation what the segmenter has left open.

        Args:
            validation: batches of it; None where `lightning.Trainer.validate` has just gone through them.

        Returns:
            See `gaussad_pl.training.map_choice.choose_map`.
        """
        collector, self.collector = self.collector, None
        if validation is not None:
            collector = MapValidationCollector(self.model)
            for batch in validation:
                maps = self.model.backbone(batch["image"].to(self.device))
                collector.add(batch, maps, self.model.distances(pool(maps)))
        assert collector is not None
        chosen = choose_map(self.segmenter, collector.validation())
        self.hparams["segmentation"] = {**self.hparams["segmentation"], **self.segmenter.chosen}  # for checkpoints
        return chosen

    def prepare_scores(self) -> None:
        """Bring the Gaussians that score up to date with the weights."""
        if not self.stale:
            return
        first = not self.model.gaussians[0].is_fitted
        patches = self.model.segmenter is not None and (first or (self.patch_target is not None and self.refit))
        if self.refit or first:
            loader = self.trainer.datamodule.reference_dataloader()  # type: ignore[attr-defined]
            self.estimate(loader, patches)
            if first and self.patch_target is not None:
                self.patch_target.load_state_dict(self.segmenter.head.gaussians.state_dict())
            return
        for gaussian, target in zip(self.model.gaussians, self.targets, strict=True):
            gaussian.load_state_dict(target.state_dict(), strict=False)
        self.stale = False

    def on_fit_start(self) -> None:
        if self.patch_target is None:
            self.frozen = FrozenStages(self.model.backbone)

    def on_train_batch_end(self, *args: Any) -> None:
        self.stale = True

    def on_validation_start(self) -> None:
        self.prepare_scores()
        choosing = self.model.segmenter is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        # the validations of training would add to it
        self.collector = MapValidationCollector(self.model) if choosing else None

    def snapshot(self, everything: bool = False) -> dict[str, Tensor]:
        """A copy on the CPU of the weights and the pooled Gaussians, or of the Gaussians of patches, too."""
        left_out = () if everything else ("segmenter.",)
        state = self.model.state_dict().items()
        return {key: value.detach().to("cpu", copy=True) for key, value in state if not key.startswith(left_out)}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put what is in a `snapshot` back."""
        self.model.load_state_dict(snapshot, strict=False)
        self.stale = False
        self.frozen = None  # gives its memory back, also where training ended in an error
