"""The LightningModule: what fine-tunes a model, with the running Gaussian estimate and the Mahalanobis loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.progress import track
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LinearLR

from gaussad_pl.backbone import pool
from gaussad_pl.checkpoints import damage
from gaussad_pl.dense import PatchGaussians
from gaussad_pl.detection import Detection
from gaussad_pl.distributed import add, add_moments, gather_rows, rank
from gaussad_pl.errors import NumericalError, UserError
from gaussad_pl.frozen import FrozenStages
from gaussad_pl.gaussian import Covariance, RunningGaussian, Shrinkage, moments, take_in
from gaussad_pl.levels import all_levels
from gaussad_pl.map_validation import Seen
from gaussad_pl.metrics import image_metrics
from gaussad_pl.model import GaussianModel, level_distances
from gaussad_pl.objectives import mahalanobis
from gaussad_pl.segmentation import Segmenter

Batch = dict[str, Tensor]


class GaussianAD(L.LightningModule):
    """Gaussian anomaly detection with a representation that can be fine-tuned.

    Fine-tuning minimises the Mahalanobis distances of good images to the Gaussians that the model itself induces.

    Source: Rippel et al., "Transfer Learning Gaussian Anomaly Detection by Fine-tuning Representations", 2021.

    Args:
        backbone, shrinkage, covariance, segmentation: see `gaussad_pl.model.GaussianModel`.
        running: the Gaussian of the loss: "fixed" (that of the pretrained features), "epoch" (re-estimated after each
            epoch) or "ema" (follows the features of the training batches).
        refit: score with Gaussians re-estimated on the clean training images for the current weights; otherwise with
            those of the loss.
        level_rule: maps the signals of the levels on the augmented validation to weights; see `gaussad_pl.levels`.
        objective: what fine-tuning minimises; see `gaussad_pl.objectives`.
        train_levels: levels whose parameters are fine-tuned, None for all.
        optimizer: makes the optimizer from the parameters.
        warmup_steps: steps over which the learning rate rises linearly.
        train_on: what the loss and the forgetting signal are computed from: "pooled" features, or "patches", whose
            distances are averaged over the image.

    Attributes:
        model: what scores images.
        targets: one running Gaussian a level: what the loss measures the distance to.
    """

    targets: Sequence[RunningGaussian]

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
        self.model = GaussianModel(backbone, shrinkage, covariance, segmentation)
        widths = [level.channels for level in self.model.backbone.levels]
        self.targets = nn.ModuleList(RunningGaussian(width, shrinkage, covariance) for width in widths)  # type: ignore[assignment]
        self.patch_target: PatchGaussians | None = None  # what the loss measures the distance of patches to
        if train_on == "patches":
            if self.model.segmenter is None or len(self.model.segmenter.candidates) > 1:
                raise UserError(
                    "model.train_on=patches needs one kind of map: set model.segmentation.form=position, clusters or "
                    "shared, model.segmentation.map_levels=middle or a list of levels, and a number of clusters"
                )
            self.patch_target = deepcopy(self.model.segmenter.head.gaussians)
        elif train_on != "pooled":
            raise UserError(f"model.train_on={train_on}: expected pooled or patches")
        self.stale = True  # whether the weights have changed since the Gaussians were estimated
        self.seen: Seen | None = None  # what the choice of the map needs, from validating to choosing
        self.frozen: FrozenStages | None = None  # while fitting, where pooled features are all that is needed
        if train_levels is not None:
            trained = {id(p) for p in self.model.backbone.parameters_of(train_levels)}
            for parameter in self.model.backbone.parameters():
                parameter.requires_grad = id(parameter) in trained

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
            mine = take_in(mine, levels)
        total = [add_moments(level) for level in mine]
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
            See `Segmenter.choose`.
        """
        seen, self.seen = self.seen, None
        if validation is not None:
            seen = Seen(self.model)
            for batch in validation:
                maps = self.model.backbone(batch["image"].to(self.device))
                seen.add(batch, maps, self.model.distances(pool(maps)))
        assert seen is not None
        chosen = self.segmenter.choose(seen.validation())
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

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        maps = [level.float() for level in self.model.backbone(batch["image"])]
        if self.running == "ema" and self.patch_target is None:
            for target, level in zip(self.targets, pool(maps), strict=True):
                target.update(add_moments(moments(level)))
        with self._full_precision():
            loss = self._loss(maps)
        if add(1 - torch.isfinite(loss.detach()).double()):  # on any process
            raise NumericalError(f"the loss of step {self.trainer.global_step + 1} is {float(loss)}")
        self.log(
            "train/loss",
            loss,
            prog_bar=True,
            on_step=True,
            on_epoch=False,
            batch_size=len(batch["image"]),
            sync_dist=True,
        )
        return loss

    def _full_precision(self) -> torch.autocast:
        """Mixed precision is for the backbone in the steps of training: half of it would spoil distances."""
        return torch.autocast(self.device.type, enabled=False)

    def _loss(self, maps: Sequence[Tensor]) -> Tensor:
        if self.patch_target is None:
            return self.objective(level_distances(pool(maps), self.targets), self.model.level_weights)
        distances = self.patch_target(self.segmenter.head.patches(maps)).mean(1, keepdim=True)
        return self.objective(distances, distances.new_ones(1))

    def setup(self, stage: str) -> None:
        """Freeze what the loss does not reach, such as what follows the deepest level: DDP would wait for it."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if stage == "fit":
            size = self.model.backbone.image_size
            loss = self._loss(self.model.backbone(torch.zeros(1, 3, size, size, device=self.device)))
            if not loss.requires_grad:
                raise UserError(
                    f"model.train_levels={self.hparams['train_levels']}: nothing to train, these levels are not used"
                )
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad = gradient is not None

    def on_fit_start(self) -> None:
        if self.patch_target is None:
            self.frozen = FrozenStages(self.model.backbone)

    def on_train_batch_end(self, *args: Any) -> None:
        self.stale = True

    def on_validation_start(self) -> None:
        self.prepare_scores()
        choosing = self.model.segmenter is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        self.seen = Seen(self.model) if choosing else None  # validations of training would add to it

    def validation_step(self, batch: Batch, batch_index: int) -> Batch:
        """Distances ``(N, levels)`` of good images and their augmented copies; the forgetting callback judges them.

        With train_on="patches" also ``patches`` ``(N,)``, the mean distance of the patches of each image.
        """
        key = ("validation", batch_index)
        with self._full_precision():
            if self.frozen is not None and key in self.frozen:
                return {"distances": self.model.distances(self.frozen.features(key)), "group": batch["group"]}
            maps = self.model.backbone(batch["image"])
            found = {"distances": self.model.distances(pool(maps)), "group": batch["group"]}
            if self.seen is not None:
                self.seen.add(batch, maps, found["distances"])
            if self.frozen is not None:
                self.frozen.remember(key, batch["image"], maps)
            if self.patch_target is not None:
                found["patches"] = self.segmenter.head.grid(maps).mean((1, 2))
            return found

    def on_test_start(self) -> None:
        self.prepare_scores()
        self._tested: list[tuple[Detection, Tensor]] = []

    def test_step(self, batch: Batch, batch_index: int) -> None:
        with self._full_precision():
            self._tested.append((self.model(batch["image"]).cpu(), batch["label"].cpu()))

    def on_test_epoch_end(self) -> None:
        """Log the image metrics and keep what was ``detected`` in the order of the test set."""
        parts, labels = zip(*self._tested, strict=True)
        mine = Detection.join(parts)
        maps = None if mine.maps is None else gather_rows(mine.maps)
        self.detected = Detection(gather_rows(mine.distances), gather_rows(mine.scores), maps)
        self._tested = []
        for name, value in image_metrics(self.detected.scores, gather_rows(torch.cat(labels))).items():
            if value is not None:
                self.log(f"test/{name}", value, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        start = 1 / (self.warmup_steps + 1)
        warmup = LinearLR(optimizer, start_factor=start, total_iters=self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the backbone, whose BatchNorm statistics and drop-path stay as pretrained."""
        super().train(mode)
        self.model.train(mode)
        return self

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

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The module of a checkpoint on the CPU, ready to score; nothing is downloaded.

        Raises:
            UserError: the file is missing, damaged, or no checkpoint of this version.
        """
        if reason := damage(Path(path)):  # torch.load checks no checksums
            raise UserError(f"{path} is damaged or no checkpoint ({reason}): train it again")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        try:
            settings = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY]
            module = cls(**{**settings, "backbone": {**settings["backbone"], "weights": "random"}})
            module.load_state_dict(checkpoint["state_dict"])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise UserError(
                f"{path} is no checkpoint of this gaussad_pl ({reason}): give the model.ckpt of a run"
            ) from error
        module.stale = False
        return module.eval()
