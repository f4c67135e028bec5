"""The middle of the LightningModule: choices made on the augmented validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.training.estimation import Batch, EstimatingModule
from gaussad_pl.training.map_choice import choose_map, rescore
from gaussad_pl.training.map_validation import MapValidation, MapValidationCollector


class ChoosingModule(EstimatingModule):
    """Chooses the levels, the map and the units of the score of a model on the augmented validation.

    Args:
        level_rule: see `gaussad_pl.training.module.GaussianAD`.
        settings: see `gaussad_pl.training.estimation.EstimatingModule`.

    Attributes:
        collector: collects what the choice of the map needs while validating; None where nothing is chosen.
        validation: the augmented validation as it was last scored for a choice.
        aupro: of the map in it, mean over augmentations.
    """

    def __init__(self, level_rule: Callable[[Tensor], Tensor], **settings: Any) -> None:
        super().__init__(**settings)
        self.level_rule = level_rule
        self.collector: MapValidationCollector | None = None
        self.validation: MapValidation | None = None
        self.aupro = math.nan

    def choose_levels(self, signals: Tensor) -> None:
        """Set the weights of the levels by their signals ``(augmentations, levels)`` on the augmented validation."""
        self.model.level_weights.copy_(self.level_rule(signals))

    @torch.no_grad()
    def choose_maps(self, validation: Iterable[Batch] | None = None) -> dict[str, Any]:
        """Choose by the augmented validation what the segmenter has left open.

        Args:
            validation: batches of it; None where `lightning.Trainer.validate` has just gone through them.

        Returns:
            See `gaussad_pl.training.map_choice.choose_map`.
        """
        if validation is None:
            collector, self.collector = self.collector, None
            assert collector is not None
            self.validation = collector.validation()
        else:
            self.validation = self.collect(validation)
        chosen = choose_map(self.segmenter, self.validation)
        self.aupro = chosen["worth"] - chosen["combinations"][self.segmenter.combine]
        self.hparams["segmentation"] = {**self.hparams["segmentation"], **self.segmenter.chosen}  # for checkpoints
        return chosen

    @torch.no_grad()
    def collect(self, validation: Iterable[Batch]) -> MapValidation:
        """Score batches of the augmented validation with the Gaussians as they are."""
        collector = MapValidationCollector(self.model)
        for batch in validation:
            maps = self.model.backbone(batch["image"].to(self.device))
            collector.add(batch, maps, self.model.distances(self.model.backbone.pool(maps)))
        return collector.validation()

    @torch.no_grad()
    def validate_again(self, data: ImageDataModule) -> float | None:
        """Score the augmented validation with other weights, and set the units of the score by it.

        Returns:
            Image AUROC plus AUPRO, means over augmentations; None without a map.
        """
        if not self.map_is_frozen:
            selection_score: float = self.choose_maps(data.val_dataloader())["worth"]
            return selection_score
        assert self.validation is not None
        collector = MapValidationCollector(self.model)
        for number, batch in enumerate(data.val_dataloader()):
            features = self.pooled_features(("validation", number), batch["image"])
            collector.add(batch, None, self.model.distances(features))
        self.validation = collector.validation(self.validation.maps)
        if self.model.segmenter is None:
            return None
        return rescore(self.segmenter, self.validation) + self.aupro

    def on_validation_start(self) -> None:
        self.prepare_scores()
        choosing = self.model.segmenter is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        # not in the validations of training, which would add to it
        self.collector = MapValidationCollector(self.model) if choosing else None
