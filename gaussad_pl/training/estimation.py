"""The base of the LightningModule: a model whose Gaussians follow its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gaussad_pl.backbones.folding import folding
from gaussad_pl.backbones.frozen_stages import FrozenStages
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.density.damage import Damage, DamageMoment, covered
from gaussad_pl.density.gaussian import RunningGaussian
from gaussad_pl.density.moments import all_reduce_moments, moments, update_moments
from gaussad_pl.density.patches import PatchDensity
from gaussad_pl.errors import UserError
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.model.segmenter import Segmenter
from gaussad_pl.progress import tracked

Batch = dict[str, Tensor]

_DAMAGE = "damage"  # its moment in a snapshot: it is no buffer, as detectors do without it


class EstimatingModule(L.LightningModule):
    """Estimates the Gaussians of a model, again whenever the weights have changed.

    Args:
        model: to estimate.
        running: see `gaussad_pl.training.module.GaussianAD`.
        refit: see there.
        train_on: see there.
        damage_weight: see there.

    Attributes:
        model: the model that scores images.
        targets: one running Gaussian a level, to which the loss measures the distance.
        patch_target: the density of patches to which the loss measures the distance; None for pooled features.
        stale: the weights have changed since the Gaussians were estimated.
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
        train_on: Literal["pooled", "patches"],
        damage_weight: float | None = None,
    ) -> None:
        super().__init__()
        if running not in ("fixed", "epoch", "ema"):
            raise UserError(f"model.running={running}: expected fixed, epoch or ema")
        self.model = model
        self.running = running
        self.refit = refit or running == "epoch"
        self.damage_weight = damage_weight
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
        self.frozen: FrozenStages | None = None

    @property
    def segmenter(self) -> Segmenter:
        """The segmenter of the model, which must have one."""
        assert self.model.segmenter is not None
        return self.model.segmenter

    def forward(self, images: Tensor) -> Detection:
        """See `GaussianModel.forward`."""
        return self.model(images)

    @torch.no_grad()
    def estimate(self, batches: Collection[Batch] | DataLoader[Batch], patches: bool = False) -> None:
        """Estimate the Gaussians for the current weights from one pass over batches of good images.

        Args:
            batches: with ``image`` ``(N, 3, H, W)`` and, for patches, ``unchanged`` ``(N,)`` bool.
            patches: estimate the densities of patches, too, from the ``unchanged`` images.
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

    def _features(self, batches: Collection[Batch] | DataLoader[Batch], patches: bool) -> Iterator[list[Tensor]]:
        """Pooled features of every batch; no batch is even made if all of them are cached."""
        keys = [("reference", i) for i in range(len(batches))]
        if self.frozen is not None and all(key in self.frozen for key in keys):
            yield from map(self.frozen.features, keys)
            return
        shown = tracked(batches, "Estimating the Gaussian")
        for key, batch in zip(keys, shown, strict=True):
            images = batch["image"].to(self.device)
            maps = self.maps(key, images)
            if patches:
                unchanged = batch["unchanged"].to(self.device)
                self.segmenter.observe([level[unchanged] for level in maps])
                self.segmenter.observe_border(images[unchanged])
            yield self.model.backbone.pool(maps)

    def pooled_features(self, key: tuple[str, int], images: Tensor) -> list[Tensor]:
        """Pooled features of a recurring batch for the current weights, behind the frozen stages if they remember it.

        Args:
            key: name of the batches and number of this one.
            images: ``(N, 3, H, W)`` uint8.

        Returns:
            ``(N, C)`` for each level.
        """
        if self.frozen is not None and key in self.frozen:
            return self.frozen.features(key)
        return self.model.backbone.pool(self.maps(key, images.to(self.device)))

    def maps(self, key: tuple[str, int], images: Tensor) -> list[Tensor]:
        """Feature maps of a recurring batch ``(N, 3, H, W)``, whose frozen part is remembered while fitting."""
        return self.model.backbone(images) if self.frozen is None else self.frozen.maps(key, images)

    @torch.no_grad()
    def estimate_damage(self, pairs: Iterable[Batch]) -> None:
        """Estimate the damage that the next estimate of patches weighs their distances by, from batches of pairs.

        Args:
            pairs: see `gaussad_pl.data.pairs.Pairs`.
        """
        if self.damage_weight is None or self.model.segmenter is None:
            return
        heads = self.model.segmenter.candidates
        moments_of = {name: DamageMoment(head.features) for name, head in heads.items()}
        for pair in pairs:
            maps = self.model.backbone(torch.cat([pair["image"], pair["copy"]]).to(self.device))
            for name, head in heads.items():
                good, damaged = head.patches(maps).chunk(2)
                moments_of[name].update(
                    (damaged - good)[head.inside(covered(pair["mask"].to(self.device), head.shape))]
                )
        for name, head in heads.items():
            head.gaussians.damage = Damage(moments_of[name].moment(), self.damage_weight)

    def estimate_everything(self, data: ImageDataModule, images: Sequence[int] | None = None) -> None:
        """Estimate damage and Gaussians, pooled ones and those of patches, for the current weights.

        The damage stays if nothing is stale: it does not depend on ``images``.

        Args:
            data: of the run.
            images: indices of the good images; None for those that are not held out.
        """
        self.frozen = None  # it remembers batches of other images
        with folding(self.model):
            if self.stale:
                self.estimate_damage(data.damage_dataloader())
            self.estimate(data.reference_dataloader(images), patches=self.model.segmenter is not None)

    @property
    def map_is_frozen(self) -> bool:
        """True if the levels of the map come before everything that is trained."""
        return self.model.segmenter is None or max(self.segmenter.head.places) < self.model.backbone.frozen_levels

    def estimate_again(self, data: ImageDataModule, images: Sequence[int] | None = None) -> None:
        """Estimate what other weights have changed; see `estimate_everything`."""
        if not self.map_is_frozen:
            self.estimate_everything(data, images)
            return
        if images is not None:
            self.frozen = None  # it remembers batches of other images
        self.estimate(data.reference_dataloader(images))

    def trained_weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of the parameters of the backbone that are fine-tuned, by name."""
        parameters = self.model.backbone.named_parameters()
        return {name: p.detach().to("cpu", copy=True) for name, p in parameters if p.requires_grad}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put parameters of the backbone in place, by name; the Gaussians are stale then."""
        for name, value in weights.items():
            self.model.backbone.get_parameter(name).copy_(value)
        self.stale = True

    def prepare_scores(self) -> None:
        """Estimate the Gaussians again if the weights have changed since."""
        if not self.stale:
            return
        first = not self.model.gaussians[0].is_fitted
        patches = self.model.segmenter is not None and (first or (self.patch_target is not None and self.refit))
        if self.refit or first:
            data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
            if patches:
                self.estimate_damage(data.damage_dataloader())
            self.estimate(data.reference_dataloader(), patches)
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

    def snapshot(self, everything: bool = False) -> dict[str, Tensor]:
        """Copy the weights and the pooled Gaussians to the CPU; with ``everything``, the densities of patches, too."""
        state = self.model.state_dict()
        if not everything:
            state = {key: value for key, value in state.items() if not key.startswith("segmenter.")}
        elif self.model.segmenter is not None and (damage := self.segmenter.head.gaussians.damage) is not None:
            state[_DAMAGE] = damage.moment
        return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Restore a `snapshot`."""
        self.model.load_state_dict(snapshot, strict=False)
        if _DAMAGE in snapshot and self.damage_weight is not None:
            self.segmenter.head.gaussians.damage = Damage(snapshot[_DAMAGE], self.damage_weight)
        self.stale = False
