"""The LightningModule: the running Gaussian estimate and the Mahalanobis loss that fine-tunes the representation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.density.moments import all_reduce_moments, moments
from gaussad_pl.density.shrinkage import Covariance, Shrinkage
from gaussad_pl.distributed import all_reduce_sum, gather_rows
from gaussad_pl.errors import NumericalError, UserError
from gaussad_pl.metrics.image import image_metrics
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel, level_distances
from gaussad_pl.model.patches import deeper_than_map
from gaussad_pl.training.checkpoints import damage
from gaussad_pl.training.choices import ChoosingModule
from gaussad_pl.training.estimation import Batch
from gaussad_pl.training.levels import all_levels
from gaussad_pl.training.objectives import mahalanobis
from gaussad_pl.training.ranking import Ranking, ranked_levels


class GaussianAD(ChoosingModule):
    """Gaussian anomaly detection with a representation that can be fine-tuned.

    Fine-tuning minimises the Mahalanobis distances of good images to the Gaussians that the model itself induces.

    Source: Rippel et al., "Transfer Learning Gaussian Anomaly Detection by Fine-tuning Representations", 2021.

    Args:
        backbone, shrinkage, covariance, segmentation, roi: see `gaussad_pl.model.model.GaussianModel`.
        running: the Gaussian of the loss: "fixed" (that of the pretrained features), "epoch" (re-estimated after each
            epoch) or "ema" (follows the features of the training batches).
        refit: score with Gaussians re-estimated on the clean training images for the current weights; otherwise with
            those of the loss.
        level_rule: maps the signals of the levels on the augmented validation to weights; see
            `gaussad_pl.training.levels`.
        objective: loss of fine-tuning; see `gaussad_pl.training.objectives` and `gaussad_pl.training.ranking`.
        train_levels: levels whose parameters are fine-tuned, None for all, "auto" for those deeper than the map's,
            which then stays as it is.
        optimizer: makes the optimizer from the parameters.
        warmup_steps: steps over which the learning rate rises linearly.
        schedule: course of the learning rate after that, "constant" or "cosine", which ends at 0.
        damage_weight: k of `gaussad_pl.density.damage`, None for plain Mahalanobis distances.
        train_on: what the loss and the forgetting signal are computed from: "pooled" features, or "patches", whose
            distances are averaged over the image.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        shrinkage: Shrinkage = "ledoit_wolf",
        running: Literal["fixed", "epoch", "ema"] = "fixed",
        refit: bool = True,
        covariance: Covariance = "full",
        level_rule: Callable[[Tensor], Tensor] = all_levels,
        objective: Callable[[Tensor, Tensor], Tensor] | Ranking = mahalanobis,
        train_levels: Sequence[int] | Literal["auto"] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = Adam,
        warmup_steps: int = 0,
        schedule: Literal["constant", "cosine"] = "constant",
        damage_weight: float | None = None,
        segmentation: dict[str, Any] | None = None,
        train_on: Literal["pooled", "patches"] = "pooled",
        roi: Tensor | None = None,
    ) -> None:
        model = GaussianModel(backbone, shrinkage, covariance, segmentation, roi)
        super().__init__(
            level_rule, model=model, running=running, refit=refit, train_on=train_on, damage_weight=damage_weight
        )
        self.save_hyperparameters(ignore=["optimizer", "level_rule", "objective", "roi"])
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        if train_levels == "auto":
            train_levels = deeper_than_map(self.model.backbone.levels)
        if train_levels is not None:
            trained = {id(p) for p in self.model.backbone.parameters_of(train_levels)}
            for parameter in self.model.backbone.parameters():
                parameter.requires_grad = id(parameter) in trained

    def obstacle(self, data: ImageDataModule) -> str:
        """Return the reason why fine-tuning cannot change the score; empty if it can."""
        segmenter = self.model.segmenter
        if segmenter is not None and self.map_is_frozen and not segmenter.weights[0]:
            return "only levels deeper than those of the map are trained, and the score is that of the map alone"
        if not isinstance(self.objective, Ranking):
            return ""
        if not ranked_levels(self.model):
            return "no level of the pooled score is trained"
        return "" if len(data.halves) == 2 else "all training images show the same part, and ranking needs two"

    def prepare_objective(self, data: ImageDataModule) -> None:
        """Give an objective that needs the frozen network the chance to look at it; call it before fitting."""
        if isinstance(self.objective, Ranking):
            self.objective.prepare(self.model, [data.good_dataloader(half, copies=True) for half in data.halves])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if isinstance(self.objective, Ranking):
            loss = self.objective(batch)
        else:
            maps = [level.float() for level in self.model.backbone(batch["image"])]
            if self.running == "ema" and self.patch_target is None:
                for target, level in zip(self.targets, self.model.backbone.pool(maps), strict=True):
                    target.update(all_reduce_moments(moments(level)))
            with self._full_precision():
                loss = self._loss(maps)
        if all_reduce_sum(1 - torch.isfinite(loss.detach()).double()):  # on any process
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
        assert not isinstance(self.objective, Ranking)
        if self.patch_target is None:
            return self.objective(
                level_distances(self.model.backbone.pool(maps), self.targets), self.model.level_weights
            )
        distances = self.patch_target(self.segmenter.head.patches(maps)).mean(1, keepdim=True)
        return self.objective(distances, distances.new_ones(1))

    def setup(self, stage: str) -> None:
        """Freeze what the loss does not reach, such as what follows the deepest level: DDP would wait for it."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if stage == "fit":
            maps = self.model.backbone(torch.zeros(1, 3, *self.model.backbone.tiling.shape, device=self.device))
            if isinstance(self.objective, Ranking):
                loss = torch.stack([maps[i].mean() for i in self.objective.levels]).sum()
            else:
                loss = self._loss(maps)
            if not loss.requires_grad:
                raise UserError(
                    f"model.train_levels={self.hparams['train_levels']}: nothing to train, these levels are not used"
                )
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad = gradient is not None

    def validation_step(self, batch: Batch, batch_index: int) -> Batch:
        """Distances ``(N, levels)`` of good images and their augmented copies; the forgetting callback judges them.

        With train_on="patches" also ``patches`` ``(N,)``, the mean distance of the patches of each image.
        """
        key = ("validation", batch_index)
        with self._full_precision():
            if self.frozen is not None and key in self.frozen:
                return {"distances": self.model.distances(self.frozen.features(key)), "group": batch["group"]}
            maps = self.maps(key, batch["image"])
            found = {"distances": self.model.distances(self.model.backbone.pool(maps)), "group": batch["group"]}
            if self.collector is not None:
                self.collector.add(batch, maps, found["distances"])
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
        factor = partial(rate_factor, warmup=self.warmup_steps, steps=self._steps_to_decay())
        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _steps_to_decay(self) -> int | None:
        return int(self.trainer.estimated_stepping_batches) if self.schedule == "cosine" else None

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the backbone, whose BatchNorm statistics and drop-path stay as pretrained."""
        super().train(mode)
        self.model.train(mode)
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The module of a checkpoint on the CPU, ready to score; nothing is downloaded.

        Raises:
            UserError: the file is missing, damaged, or not a checkpoint of this version.
        """
        if reason := damage(Path(path)):  # torch.load checks no checksums
            raise UserError(f"{path} is damaged or not a checkpoint ({reason}): train it again")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        try:
            settings, state = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY], checkpoint["state_dict"]
            backbone, roi = {**settings["backbone"], "weights": "random"}, state.get("model.backbone.roi")
            module = cls(**{**settings, "backbone": backbone}, roi=roi)
            module.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise UserError(
                f"{path} is not a checkpoint of this version of gaussad_pl ({reason}): give the model.ckpt of a run"
            ) from error
        module.stale = False
        return module.eval()


def rate_factor(step: int, warmup: int, steps: int | None) -> float:
    """Factor of the learning rate at a step: a linear rise over ``warmup`` steps, then constant or a half cosine to 0.

    Args:
        step: from 0 on.
        warmup: number of steps of the rise.
        steps: at which the cosine ends; None for a constant rate.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    return rise if steps is None else min(rise, (1 + math.cos(math.pi * min(1.0, step / steps))) / 2)
