"""The choices that come before fine-tuning, all on the augmented validation: levels, map, and symmetric copies."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from torch import Tensor, nn

from gaussad_pl.backbones.folding import folding
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.symmetry import AUTO, FEW, ORIENTATIONS
from gaussad_pl.training.acceptance import Gain, Judgement, gain, judge_network
from gaussad_pl.training.forgetting import ForgettingStop, logged
from gaussad_pl.training.levels import all_levels
from gaussad_pl.training.map_validation import MapValidation
from gaussad_pl.training.module import GaussianAD


@dataclass(frozen=True)
class Trial:
    """The frozen network with one kind of symmetric copies, everything else chosen for it."""

    orientations: int
    children: dict[str, nn.Module]  # of the module
    validation: MapValidation
    aupro: float
    forgetting: dict[str, Any]
    results: dict[str, Any]
    judgement: Judgement

    def put(self, module: GaussianAD, data: ImageDataModule, forgetting: ForgettingStop) -> None:
        """Put everything in place again."""
        data.orientations = self.orientations
        put_children(module, self.children)
        module.validation, module.aupro, module.stale = self.validation, self.aupro, False
        if "segmentation" in self.results:
            module.hparams["segmentation"] |= module.segmenter.chosen
        forgetting.load_state_dict(self.forgetting)


def choose(trainer: L.Trainer, module: GaussianAD, data: ImageDataModule, forgetting: ForgettingStop) -> dict[str, Any]:
    """Choose levels and map, and whether flipped and rotated copies of the images go into the Gaussians.

    With few images, both are tried (see `orientations_to_try`): copies show the ways in which a part can lie that the
    images do not, but if it lies in one way only, they widen the Gaussians for nothing. The augmented validation, which
    has no such copies, decides.

    Returns:
        What metrics.json says of the choices.
    """
    if not data.folds:  # nothing to choose by
        module.to(trainer.strategy.root_device)
        return {"segmentation": module.choose_maps()} if module.model.segmenter is not None else {}
    tried = orientations_to_try(data)
    if len(tried) == 1:
        data.orientations = tried[0]
        return try_frozen(trainer, module, data, forgetting).results
    start = {name: deepcopy(child) for name, child in module.named_children()}
    loggers, trainer.loggers = trainer.loggers, []  # one state is epoch 0, the other is no epoch
    trials: list[Trial] = []
    for orientations in tried:
        data.orientations = orientations
        if trials:
            put_children(module, start)
            module.stale = True
            forgetting.history = []
        trials.append(try_frozen(trainer, module, data, forgetting))
    trainer.loggers = loggers
    found = gain(trials[0].judgement, trials[1].judgement, trials[0].validation.sources, share=1)
    chosen = trials[int(symmetric_copies_help(found))]
    chosen.put(module, data, forgetting)
    for logger in loggers:
        logger.log_metrics(logged(forgetting.history[0]), step=0)
    return chosen.results | {"symmetry": {"orientations": chosen.orientations, **asdict(found)}}


def orientations_to_try(data: ImageDataModule) -> list[int]:
    """Numbers of orientations of each image to compare: the one that is set; for "auto", one and all of them.

    Copies multiply the time of every estimate, and many images have no use for them, so only few are tried with copies.
    """
    if data.symmetry != AUTO:
        return [ORIENTATIONS[data.symmetry]]
    most = data.possible_orientations if len(data.every_image) <= FEW else 1
    return sorted({1, most})


def symmetric_copies_help(found: Gain) -> bool:
    """Return True if copies are more likely to help than not."""
    return found.mean > 0 and found.probability > 0.5


def try_frozen(trainer: L.Trainer, module: GaussianAD, data: ImageDataModule, forgetting: ForgettingStop) -> Trial:
    """Estimate the Gaussians, and choose levels and map."""
    with folding(module.model):
        trainer.validate(module, datamodule=data, verbose=False)  # chooses the levels; epoch 0 of the forgetting curve
        results = {"levels": level_results(forgetting, module, data)}
        module.to(trainer.strategy.root_device)  # Lightning has put it back on the CPU
        if module.model.segmenter is not None:
            results["segmentation"] = module.choose_maps()
        else:
            module.validation = module.collect(data.val_dataloader())
    assert module.validation is not None
    groups = range(1, len(data.augmentation_names) + 1)
    return Trial(
        data.orientations,
        dict(module.named_children()),
        module.validation,
        module.aupro,
        forgetting.state_dict(),
        results,
        judge_network(module.model, module.validation, groups),
    )


def put_children(module: nn.Module, children: dict[str, nn.Module]) -> None:
    """Put other modules in the place of those of the same names."""
    for name, child in children.items():
        setattr(module, name, child)


def judge(module: GaussianAD, data: ImageDataModule) -> Judgement:
    """Judge the network by the last validation, on the augmentations that the loss has not used."""
    assert module.validation is not None
    groups = [i for i, name in enumerate(data.augmentation_names, start=1) if name in data.unseen_augmentations]
    return judge_network(module.model, module.validation, groups, module.map_is_frozen)


def level_results(forgetting: ForgettingStop, module: GaussianAD, data: ImageDataModule) -> dict[str, Any]:
    """The weight of each level in the score, and the signals it was chosen by."""
    assert forgetting.level_signals is not None
    levels = [str(level.index) for level in module.model.backbone.levels]
    signals = zip(data.augmentation_names, forgetting.level_signals.tolist(), strict=True)
    return {
        "weights": dict(zip(levels, module.model.level_weights.tolist(), strict=True)),
        "signals": {name: dict(zip(levels, row, strict=True)) for name, row in signals},
        "selection": level_selection(module),
    }


def level_selection(module: GaussianAD) -> str:
    """Say how the weights of the levels were chosen."""
    rule = level_rule(module)
    if rule is all_levels:
        return "every level counts the same"
    return f"levels weighted by {rule.__name__} on held-out good images and augmented copies of them"


def level_rule(module: GaussianAD) -> Callable[..., Tensor]:
    """The function that weighs the levels, without its settings."""
    return getattr(module.level_rule, "func", module.level_rule)  # Hydra wraps it in a partial
