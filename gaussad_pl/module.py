"""The LightningModule: a backbone, the running Gaussian estimate of the normal class, the Mahalanobis loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.progress import track
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LinearLR

from gaussad_pl.backbone import Backbone, pool
from gaussad_pl.dense import PatchGaussians
from gaussad_pl.detection import Detection
from gaussad_pl.errors import UserError
from gaussad_pl.gaussian import Covariance, Gaussian, Moments, RunningGaussian, Shrinkage, merge, moments
from gaussad_pl.levels import all_levels
from gaussad_pl.metrics import image_metrics
from gaussad_pl.objectives import mahalanobis
from gaussad_pl.segmentation import Segmenter, Validation

Batch = dict[str, Tensor]


class GaussianAD(L.LightningModule):
    """Gaussian anomaly detection with a representation that can be fine-tuned.

    One Gaussian a level of the backbone, on globally average-pooled features of good images. The anomaly score of an
    image is the weighted sum over levels of its Mahalanobis distances. Fine-tuning minimises that sum over good images.

    Source: Rippel et al., "Transfer Learning Gaussian Anomaly Detection by Fine-tuning Representations", 2021; the
    frozen detector is Rippel et al., "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
    Anomaly Detection", 2020.

    Args:
        backbone: arguments of `gaussad_pl.backbone.Backbone`.
        shrinkage: of the covariances; see `gaussad_pl.gaussian.shrinkage`.
        running: the Gaussian of the loss: "fixed" (that of the pretrained features), "epoch" (re-estimated after each
            epoch) or "ema" (follows the features of the training batches).
        refit: score with Gaussians re-estimated on the clean training images for the current weights; otherwise with
            those of the loss.
        covariance: structure of the covariances; see `gaussad_pl.gaussian.restrict`.
        level_rule: maps the signals of the levels on the augmented validation to weights; see `gaussad_pl.levels`.
        objective: what fine-tuning minimises; see `gaussad_pl.objectives`.
        train_levels: levels whose parameters are fine-tuned, None for all.
        optimizer: makes the optimizer from the parameters.
        warmup_steps: steps over which the learning rate rises linearly.
        segmentation: arguments of `gaussad_pl.segmentation.Segmenter`; None for no anomaly maps.
        train_on: what the loss and the forgetting signal are computed from: "pooled" features, or "patches", whose
            distances are averaged over the image.
    """

    gaussians: Sequence[Gaussian]  # one a level: what scores
    targets: Sequence[RunningGaussian]  # one a level: what the loss measures the distance to
    level_weights: Tensor  # of the distances in the score, (levels,)

    def __init__(
        self,
        backbone: dict[str, Any],
        shrinkage: Shrinkage = "ledoit_wolf",
        running: Literal["fixed", "epoch", "ema"] = "fixed",
        refit: bool = True,
        covariance: Covariance = "full",
        level_rule: Callable[[Tensor], Tensor] = all_levels,
        objective: Callable[[Tensor, Tensor], Tensor] = mahalanobis,
        train_levels: Sequence[int] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = Adam,
        warmup_steps: int = 0,
        segmentation: dict[str, Any] | None = None,
        train_on: Literal["pooled", "patches"] = "pooled",
    ) -> None:
        super().__init__()
        if running not in ("fixed", "epoch", "ema"):
            raise UserError(f"model.running={running}: expected fixed, epoch or ema")
        self.save_hyperparameters(ignore=["optimizer", "level_rule", "objective"])
        self.running = running
        self.refit = refit or running == "epoch"
        self.level_rule = level_rule
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.backbone = Backbone(**backbone)
        widths = [level.channels for level in self.backbone.levels]
        self.gaussians = nn.ModuleList(Gaussian(width, shrinkage, covariance) for width in widths)  # type: ignore[assignment]
        self.targets = nn.ModuleList(RunningGaussian(width, shrinkage, covariance) for width in widths)  # type: ignore[assignment]
        self.register_buffer("level_weights", torch.ones(len(widths)))
        self.segmenter: Segmenter | None = None
        if segmentation is not None:
            self.segmenter = Segmenter(self.backbone.levels, self.backbone.image_size, **segmentation)
        self.patch_target: PatchGaussians | None = None  # what the loss measures the distance of patches to
        if train_on == "patches":
            if self.segmenter is None or len(self.segmenter.forms) > 1:
                raise UserError(
                    "model.train_on=patches needs one form: set model.segmentation.form=position, clusters or shared"
                )
            self.patch_target = deepcopy(self.segmenter.gaussians)
        elif train_on != "pooled":
            raise UserError(f"model.train_on={train_on}: expected pooled or patches")
        self.stale = True  # whether the weights have changed since the Gaussians were estimated
        if train_levels is not None:
            trained = {id(p) for p in self.backbone.parameters_of(train_levels)}
            for parameter in self.backbone.parameters():
                parameter.requires_grad = id(parameter) in trained

    def forward(self, images: Tensor) -> Tensor:
        """Mahalanobis distance of each image to the Gaussian of each level.

        Args:
            images: ``(N, 3, H, W)`` uint8.

        Returns:
            ``(N, levels)``; see `scores`.
        """
        return _distances(self.backbone.pooled(images), self.gaussians)

    def detect(self, images: Tensor) -> Detection:
        """Everything there is to say about ``images`` ``(N, 3, H, W)``, uint8."""
        maps = self.backbone(images)
        distances = _distances(pool(maps), self.gaussians)
        pooled = self.scores(distances.double())
        if self.segmenter is None:
            return Detection(distances, pooled, None)
        anomaly_maps = self.segmenter(self.segmenter.patches(maps))
        return Detection(distances, self.segmenter.score(pooled, anomaly_maps), anomaly_maps)

    def scores(self, distances: Tensor) -> Tensor:
        """Pooled anomaly scores ``(N,)``: the weighted sum of the distances ``(N, levels)``."""
        return distances @ self.level_weights.to(distances)

    def choose_levels(self, signals: Tensor) -> None:
        """Weigh the levels by their signals ``(augmentations, levels)`` on the augmented validation."""
        self.level_weights.copy_(self.level_rule(signals))

    @torch.no_grad()
    def estimate(self, batches: Iterable[Batch]) -> None:
        """Estimate the Gaussians from one pass over batches of good images, for the current weights."""
        parts = ([moments(f) for f in self.backbone.pooled(batch["image"].to(self.device))] for batch in batches)
        total: list[Moments] = reduce(lambda a, b: [merge(x, y) for x, y in zip(a, b, strict=True)], parts)
        for gaussian, target, level in zip(self.gaussians, self.targets, total, strict=True):
            gaussian.fit(level)
            if self.running == "epoch" or not target.is_fitted:
                target.fit(level)
        self.stale = False

    @torch.no_grad()
    def estimate_maps(self, good: Iterable[Batch], validation: Iterable[Batch]) -> dict[str, Any]:
        """Estimate the Gaussians of patches from good images; choose by the augmented validation what is still open.

        Returns:
            See `Segmenter.choose`.
        """
        assert self.segmenter is not None
        self._estimate_patches(good)
        found: dict[str, list[Tensor]] = {name: [] for name in ("groups", "masks", "pooled", *self.segmenter.forms)}
        for batch in validation:
            maps = self.backbone(batch["image"].to(self.device))
            patches = self.segmenter.patches(maps)
            pooled = self.scores(_distances(pool(maps), self.gaussians).double())
            row = {"groups": batch["group"], "masks": batch["mask"], "pooled": pooled}
            row |= {name: self.segmenter(patches, name) for name in self.segmenter.forms}
            for name, value in row.items():
                found[name].append(value.cpu())
        columns = {name: torch.cat(parts) for name, parts in found.items()}
        given = {name: columns.pop(name) for name in ("groups", "masks", "pooled")}
        chosen = self.segmenter.choose(Validation(**given, maps=columns))
        decided = {key: chosen[key] for key in ("form", "combine")}
        self.hparams["segmentation"] = {**self.hparams["segmentation"], **decided}  # what a checkpoint holds
        return chosen

    @torch.no_grad()
    def _estimate_patches(self, good: Iterable[Batch]) -> None:
        assert self.segmenter is not None
        for batch in good:
            self.segmenter.observe(self.segmenter.patches(self.backbone(batch["image"].to(self.device))))
        self.segmenter.estimate()

    def prepare_scores(self) -> None:
        """Bring the Gaussians that score up to date with the weights."""
        if not self.stale:
            return
        first = not self.gaussians[0].is_fitted
        if self.patch_target is not None and (self.refit or first):
            assert self.segmenter is not None
            self._estimate_patches(self.trainer.datamodule.good_dataloader())  # type: ignore[attr-defined]
            if first:
                self.patch_target.load_state_dict(self.segmenter.gaussians.state_dict())
        if self.refit or first:
            loader = self.trainer.datamodule.reference_dataloader()  # type: ignore[attr-defined]
            self.estimate(track(loader, description="Estimating the Gaussian", transient=True))
            return
        for gaussian, target in zip(self.gaussians, self.targets, strict=True):
            gaussian.load_state_dict(target.state_dict(), strict=False)
        self.stale = False

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        maps = self.backbone(batch["image"])
        if self.patch_target is not None:
            assert self.segmenter is not None
            distances = self.patch_target(self.segmenter.patches(maps)).mean(1, keepdim=True)
            loss = self.objective(distances, distances.new_ones(1))
        else:
            features = pool(maps)
            if self.running == "ema":
                for target, level in zip(self.targets, features, strict=True):
                    target.update(level)
            loss = self.objective(_distances(features, self.targets), self.level_weights)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=len(batch["image"]))
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.stale = True

    def on_validation_start(self) -> None:
        self.prepare_scores()

    def validation_step(self, batch: Batch, batch_index: int) -> Batch:
        """Distances ``(N, levels)`` of good images and their augmented copies; the forgetting callback judges them.

        With train_on="patches" also ``patches`` ``(N,)``, the mean distance of the patches of each image.
        """
        maps = self.backbone(batch["image"])
        found = {"distances": _distances(pool(maps), self.gaussians)}
        if self.patch_target is not None:
            assert self.segmenter is not None
            found["patches"] = self.segmenter.gaussians(self.segmenter.patches(maps)).mean(1)
        return {**found, "group": batch["group"]}

    def on_test_start(self) -> None:
        self.prepare_scores()
        self._tested: list[tuple[Detection, Tensor]] = []

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self._tested.append((self.detect(batch["image"]).cpu(), batch["label"].cpu()))

    def on_test_epoch_end(self) -> None:
        """Log the image metrics and keep what was ``detected`` in the order of the test set."""
        parts, labels = zip(*self._tested, strict=True)
        self.detected = Detection.join(parts)
        self._tested = []
        for name, value in image_metrics(self.detected.scores, torch.cat(labels)).items():
            if value is not None:
                self.log(f"test/{name}", value)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([p for p in self.backbone.parameters() if p.requires_grad])
        start = 1 / (self.warmup_steps + 1)
        warmup = LinearLR(optimizer, start_factor=start, total_iters=self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the backbone, whose BatchNorm statistics and drop-path stay as pretrained."""
        super().train(mode)
        self.backbone.eval()
        return self

    def snapshot(self, everything: bool = False) -> dict[str, Tensor]:
        """A copy on the CPU of the weights and the pooled Gaussians, or of the Gaussians of patches, too."""
        left_out = ("targets.", "patch_target.") + (() if everything else ("segmenter.",))
        return {
            key: value.detach().to("cpu", copy=True)
            for key, value in self.state_dict().items()
            if not key.startswith(left_out)
        }

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put what is in a `snapshot` back."""
        self.load_state_dict(snapshot, strict=False)
        self.stale = False

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model of a checkpoint on the CPU, ready to score; nothing is downloaded."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY]
        model = cls(**{**settings, "backbone": {**settings["backbone"], "weights": "random"}})
        model.load_state_dict(checkpoint["state_dict"])
        model.stale = False
        return model.eval()


def _distances(features: list[Tensor], gaussians: Sequence[Gaussian]) -> Tensor:
    """Distance of the features of each level ``(N, C)`` to its Gaussian: ``(N, levels)``."""
    return torch.stack([gaussian(level) for gaussian, level in zip(gaussians, features, strict=True)], dim=1)
