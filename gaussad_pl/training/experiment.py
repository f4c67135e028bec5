"""The experiment: test the frozen network, fine-tune it until forgetting begins, and keep the better of the two."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.errors import NumericalError
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.training.checkpoints import resumable
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.levels import all_levels
from gaussad_pl.training.module import GaussianAD

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The result of an experiment; the module is left in its final state.

    Attributes:
        results: what metrics.json says of it.
        evaluations: the test set as each state scores it, by the name of the state; the last one is final.
        fine_tuned: the final state is the fine-tuned one.
    """

    results: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    fine_tuned: bool = False

    @property
    def final(self) -> Evaluation:
        """The test set as the final state scores it."""
        return list(self.evaluations.values())[-1]


def experiment(
    trainer: L.Trainer,
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    folder: Path,
    fine_tune: bool,
) -> Outcome:
    """Run the experiment; the scores of the test images go into ``folder`` as soon as there are any."""
    outcome = Outcome()
    frozen_state(trainer, module, data, forgetting, outcome)
    outcome.final.write_scores(folder / ("frozen_scores.csv" if fine_tune else "scores.csv"), data.defect_areas)
    if fine_tune:
        tuned_state(trainer, module, data, forgetting, folder, outcome)
        outcome.final.write_scores(folder / "scores.csv", data.defect_areas)
    outcome.results["validation_signal"] = validation_signal(outcome, forgetting.history)
    return outcome


def frozen_state(
    trainer: L.Trainer, module: GaussianAD, data: ImageDataModule, forgetting: ForgettingStop, outcome: Outcome
) -> None:
    """Estimate the Gaussians of the pretrained network, choose levels and map on the validation, and test."""
    if data.folds:
        trainer.validate(module, datamodule=data, verbose=False)  # chooses the levels; epoch 0 of the forgetting curve
        outcome.results["levels"] = level_results(forgetting, module, data)
    module.to(trainer.strategy.root_device)  # Lightning has put it back on the CPU
    if module.model.segmenter is not None:
        outcome.results["segmentation"] = module.choose_maps()
    outcome.evaluations["frozen"] = test(trainer, module, data)
    outcome.results["frozen"] = {**outcome.final.metrics(), "selection": level_selection(module)}


def tuned_state(
    trainer: L.Trainer,
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    folder: Path,
    outcome: Outcome,
) -> None:
    """Fine-tune and test, where the validation prefers the outcome; otherwise put the frozen state back."""
    frozen = module.snapshot(everything=True)
    fine_tune_module(trainer, module, data, forgetting, resumable(folder))
    outcome.fine_tuned = tuned_is_better(trainer, module, data, forgetting, outcome.results)
    if outcome.fine_tuned:
        outcome.evaluations["fine-tuned"] = test(trainer, module, data)
    else:
        module.restore(frozen)
    outcome.results |= fine_tuning_results(forgetting, outcome)


def fine_tune_module(
    trainer: L.Trainer, module: GaussianAD, data: ImageDataModule, forgetting: ForgettingStop, checkpoint: Path | None
) -> None:
    """Fine-tune until forgetting begins, or until the numbers collapse; either way the best state is put back."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except NumericalError:
        if not forgetting.collapse:  # before the first step: nothing to go on with
            raise
        log.warning("%s; the run goes on with epoch %d", forgetting.collapse, forgetting.best_epoch)
    module.to(trainer.strategy.root_device)


def tuned_is_better(
    trainer: L.Trainer, module: GaussianAD, data: ImageDataModule, forgetting: ForgettingStop, results: dict[str, Any]
) -> bool:
    """Decide on the augmented validation, with the map where there is one, which state the run ends with."""
    if forgetting.best_epoch == 0:
        return False
    if module.model.segmenter is None:
        return True
    try:
        if module.refit:
            module.estimate_patches(data.good_dataloader())
        tuned = module.choose_maps(data.val_dataloader())
    except NumericalError as error:
        forgetting.collapse = f"the patches of the fine-tuned network have no Gaussian: {error}"
        return False
    results["segmentation"]["worth_finetuned"] = tuned["worth"]
    better: bool = tuned["worth"] > results["segmentation"]["worth"]
    return better


def test(trainer: L.Trainer, module: GaussianAD, data: ImageDataModule) -> Evaluation:
    """Score the test set with the module as it is."""
    trainer.test(module, datamodule=data, verbose=False)
    found = module.detected
    levels = [level.index for level in module.model.backbone.levels]
    return Evaluation(data.test_samples, found.distances, found.scores, levels, found.maps, data.test_masks)


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


def fine_tuning_results(forgetting: ForgettingStop, outcome: Outcome) -> dict[str, Any]:
    """The metrics after fine-tuning, and how its epoch was chosen."""
    used = outcome.fine_tuned
    selection = (
        f"epoch {forgetting.best_epoch} of {forgetting.history[-1]['epoch']} by the signal {forgetting.signal} "
        "on held-out good images and augmented copies of them"
    )
    return {
        "finetuned": {
            **outcome.final.metrics(),
            "selection": selection if used else f"fine-tuning not used: {selection}",
        },
        "forgetting": {
            "signal": forgetting.signal,
            "epoch_chosen": forgetting.best_epoch,
            "fine_tuning_used": used,
            **({"collapse": forgetting.collapse} if forgetting.collapse else {}),
            "history": forgetting.history,
        },
    }


def validation_signal(outcome: Outcome, history: list[dict[str, float]]) -> float | None:
    """How well the final state tells held-out good images from augmented copies; None without a validation.

    With a map the image AUROC plus the AUPRO, without one the AUROC of the pooled features; means over augmentations.
    """
    if "segmentation" in outcome.results:
        signal: float = outcome.results["segmentation"]["worth_finetuned" if outcome.fine_tuned else "worth"]
        return signal
    epoch = outcome.results["forgetting"]["epoch_chosen"] if outcome.fine_tuned else 0
    return history[epoch]["auroc"] if history else None
