"""The experiment: test the frozen network, fine-tune it until forgetting begins, and keep the better of the two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gaussad_pl.backbones.folding import folding
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.density.gaussian import SingularCovarianceError
from gaussad_pl.errors import NumericalError
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.training.acceptance import SHARES, Gain, Judgement, gain
from gaussad_pl.training.checkpoints import resumable
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.module import GaussianAD
from gaussad_pl.training.selection import choose, judge, level_selection

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The result of an experiment; the module is left in its final state.

    Attributes:
        results: what metrics.json says of it.
        evaluations: the test set as each state scores it, by the name of the state; the last one is final.
        fine_tuned: the final state is the fine-tuned one.
        chosen: the share of the tuned weights that was accepted, and its gain; None without an acceptance.
    """

    results: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    fine_tuned: bool = False
    chosen: Gain | None = None

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
    every_image: bool = False,
) -> Outcome:
    """Run the experiment; the scores of the test images go into ``folder`` as soon as there are any.

    Args:
        every_image: estimate the Gaussians that score from every good image, the held-out ones included, once
            everything is chosen.
    """
    outcome = Outcome()
    images = data.every_image if every_image else None
    frozen_state(trainer, module, data, forgetting, images, outcome)
    if trainer.is_global_zero:
        outcome.final.write_scores(folder / ("frozen_scores.csv" if fine_tune else "scores.csv"))
    if fine_tune:
        tuned_state(trainer, module, data, forgetting, images, folder, outcome)
        if trainer.is_global_zero:
            outcome.final.write_scores(folder / "scores.csv")
    outcome.results["validation_signal"] = validation_signal(outcome, forgetting.history)
    return outcome


def frozen_state(
    trainer: L.Trainer,
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    images: Sequence[int] | None,
    outcome: Outcome,
) -> None:
    """Estimate the Gaussians of the pretrained network, choose levels and map on the validation, and test."""
    outcome.results |= choose(trainer, module, data, forgetting)
    if images is not None:
        module.estimate_everything(data, images)
    outcome.evaluations["frozen"] = test(trainer, module, data)
    outcome.results["frozen"] = {**outcome.final.metrics(), "selection": level_selection(module)}


def tuned_state(
    trainer: L.Trainer,
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    images: Sequence[int] | None,
    folder: Path,
    outcome: Outcome,
) -> None:
    """Fine-tune and test, where the validation prefers the outcome; otherwise put the frozen state back."""
    reason = module.obstacle(data)
    if not reason:
        try:
            module.prepare_objective(data)
        except SingularCovarianceError:
            reason = "half of the training images are too few for a covariance"
    if reason:
        log.warning("no fine-tuning: %s", reason)
        outcome.results |= fine_tuning_results(forgetting, outcome, reason)
        return
    frozen = module.snapshot(everything=True)
    reference = judge(module, data)
    fine_tune_module(trainer, module, data, forgetting, resumable(folder))
    outcome.fine_tuned = accept(module, data, forgetting, frozen, reference, outcome)
    if outcome.fine_tuned:
        if images is not None:
            module.estimate_again(data, images)
        outcome.evaluations["fine-tuned"] = test(trainer, module, data)
    else:
        module.restore(frozen)
    module.frozen = None  # gives its memory back
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


def accept(
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    frozen: dict[str, Tensor],
    reference: Judgement,
    outcome: Outcome,
) -> bool:
    """Leave the module in the tuned state that is used, and return False if there is none.

    Of the best epoch, all of its weights are tried first, and then their mean with the frozen ones. Without ``refit``
    the Gaussians are those of the loss, and the best epoch decides, as in the paper.

    Args:
        frozen: `GaussianAD.snapshot` of the frozen state.
        reference: of the frozen state.
    """
    if forgetting.best_epoch == 0:
        return False
    if not module.refit:
        note_selection_score(outcome, module.validate_again(data))
        return True
    tuned = module.trained_weights()
    gains = outcome.results["acceptance"] = []
    for share in SHARES:
        module.load_weights({name: torch.lerp(frozen[f"backbone.{name}"], tuned[name], share) for name in tuned})
        try:
            module.estimate_again(data)
            selection_score = module.validate_again(data)
        except NumericalError as error:
            log.warning("the network with %d %% tuned weights: %s", 100 * share, error)
            forgetting.collapse = forgetting.collapse or f"no Gaussians of the fine-tuned network: {error}"
            continue
        assert module.validation is not None
        found = gain(reference, judge(module, data), module.validation.sources, share)
        gains.append(asdict(found))
        if not found.is_doubtful:
            outcome.chosen = found
            note_selection_score(outcome, selection_score)
            return True
    return False


def note_selection_score(outcome: Outcome, score: float | None) -> None:
    """Add the score of the tuned map on the validation, None without a map, to that of the frozen one."""
    if score is not None:
        outcome.results["segmentation"]["worth_finetuned"] = score


def test(trainer: L.Trainer, module: GaussianAD, data: ImageDataModule) -> Evaluation:
    """Score the test set with the module as it is."""
    with folding(module.model):
        trainer.test(module, datamodule=data, verbose=False)
    found = module.detected
    levels = [level.index for level in module.model.backbone.levels]
    return Evaluation(data.test_samples, found.distances, found.scores, levels, found.maps, data.test_masks, data.frame)


def fine_tuning_results(forgetting: ForgettingStop, outcome: Outcome, reason: str = "") -> dict[str, Any]:
    """The metrics after fine-tuning, and how its epoch was chosen, or the reason why there was no training."""
    used, chosen = outcome.fine_tuned, outcome.chosen
    epoch, how = forgetting.best_epoch, f"by the signal {forgetting.signal}"
    if chosen is not None:
        how += f", weights {chosen.share:.0%} tuned and {1 - chosen.share:.0%} frozen, probability of a gain "
        how += f"{chosen.probability:.2f} (bootstrap over {chosen.images} held-out images)"
    selection = reason or (
        f"epoch {epoch} of {forgetting.history[-1]['epoch']} {how} on held-out good images and augmented copies of them"
    )
    return {
        "finetuned": {
            **outcome.final.metrics(),
            "selection": selection if used else f"fine-tuning not used: {selection}",
        },
        "forgetting": {
            "signal": forgetting.signal,
            "epoch_chosen": epoch,
            "fine_tuning_used": used,
            **({"skipped": reason} if reason else {}),
            **({"collapse": forgetting.collapse} if forgetting.collapse else {}),
            "history": forgetting.history,
        },
    }


def validation_signal(outcome: Outcome, history: list[dict[str, float]]) -> float | None:
    """Return how well the final state separates held-out good images from augmented copies; None without a validation.

    With a map, this is image AUROC plus AUPRO, otherwise the AUROC of the pooled features; means over augmentations.
    """
    if "segmentation" in outcome.results:
        signal: float = outcome.results["segmentation"]["worth_finetuned" if outcome.fine_tuned else "worth"]
        return signal
    epoch = outcome.results["forgetting"]["epoch_chosen"] if outcome.fine_tuned else 0
    return history[epoch]["auroc"] if history else None
