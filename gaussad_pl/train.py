"""The main job: frozen baseline, fine-tuning that stops when forgetting begins, one test, one run folder.

python -m gaussad_pl.train +category=screw
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.accelerators.mps import MPSAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from gaussad_pl import dashboard, pictures, run_folder
from gaussad_pl.calibration import false_alarms
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.checkpoints import AtomicCheckpointIO, last_checkpoint, resumable
from gaussad_pl.cli import entry_point
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.inventory import inventory
from gaussad_pl.data.part_features import pooled_middle
from gaussad_pl.detector import Detector
from gaussad_pl.distributed import disband
from gaussad_pl.errors import NumericalError, UserError
from gaussad_pl.files import write_json
from gaussad_pl.forgetting import ForgettingStop
from gaussad_pl.gallery import galleries
from gaussad_pl.inspection import artefact
from gaussad_pl.levels import all_levels
from gaussad_pl.module import GaussianAD
from gaussad_pl.precision import forbid_tf32
from gaussad_pl.results import Evaluation, provenance, table
from gaussad_pl.settings import check_settings

log = logging.getLogger(__name__)


def run(config: DictConfig) -> float | None:
    """One run, from the configuration to a folder full of results; returns what a search maximises."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    check_settings(config)
    with run_folder.locked(folder), run_folder.starting(folder):
        settings = run_folder.open_folder(folder, config)
        if (done := run_folder.finished(folder)) is not None:
            log.info("%s is finished: nothing to resume", folder)
            signal: float | None = done["validation_signal"]
            return signal
        forbid_tf32()
        L.seed_everything(config.seed, workers=True, verbose=False)
        data: ImageDataModule = instantiate(config.data)
        data.prepare_data()
        data.check()
        run_folder.same_images(folder, inventory(data.samples))
        module: GaussianAD = instantiate(config.model)
        callbacks = instantiate(config.callbacks)
        loggers: list[Logger] = list(instantiate(config.get("logger") or {}).values())
        trainer = make_trainer(config.trainer, list(callbacks.values()), loggers)
        data.group_images(partial(pooled_middle, module.model.backbone, trainer.strategy.root_device))
        completed = False
        try:
            begin(loggers, settings)
            results = conduct(trainer, module, data, callbacks["forgetting"], loggers, folder, settings)
            completed = True
        finally:
            if any(isinstance(logger, WandbLogger) for logger in loggers):
                wandb.finish(exit_code=0 if completed else 1)  # or the next job of a sweep would write into this run
    if trainer.is_global_zero:
        show(folder, results)
    best: float | None = results["validation_signal"]
    return best


def begin(loggers: list[Logger], settings: dict[str, Any]) -> None:
    """Log the settings; with this W&B begins its run.

    Raises:
        UserError: W&B has no key, cannot be reached, or has a setting that it does not know.
    """
    for logger in loggers:
        try:
            logger.log_hyperparams(settings)
        except (wandb.Error, ValueError) as error:
            if not isinstance(logger, WandbLogger):
                raise
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"logger=wandb: {reason}: log in with wandb login, or set WANDB_MODE=offline") from error


def make_trainer(config: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> L.Trainer:
    """The trainer of the configuration, with checkpoints that a kill or a full disk cannot break.

    Raises:
        UserError: an accelerator that the Gaussian cannot do with.
    """
    plugins = [*instantiate(config.get("plugins") or []), AtomicCheckpointIO()]
    trainer: L.Trainer = instantiate(config, callbacks=callbacks, logger=loggers, plugins=plugins)
    if isinstance(trainer.accelerator, MPSAccelerator):
        raise UserError("the MPS accelerator has no float64, which the Gaussian needs: set trainer.accelerator=cpu")
    return trainer


def conduct(
    trainer: L.Trainer,
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    loggers: list[Logger],
    folder: Path,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Everything that is computed and written; returns what metrics.json says."""
    results, figures, evaluations = experiment(trainer, module, data, forgetting, folder, settings["fine_tune"])
    results["validation_signal"] = validation_signal(results, forgetting.history)
    trainer.save_checkpoint(folder / "model.ckpt", weights_only=True)
    disband()
    if not trainer.is_global_zero:  # the other processes, if any, are done
        return results
    tuned = results.get("forgetting", {}).get("fine_tuning_used", False)
    module.to(trainer.strategy.root_device)
    by_turns = settings["cross_conformal"] and (module.refit or not tuned)  # by turns Gaussians are estimated anew
    calibration = calibrate(module.model, data, by_turns, fine_tuned=tuned)
    results["calibration"] = false_alarms.compare(calibration, module.detected, data)
    report(pictures.save(figures, folder), results, evaluations, data, loggers)
    origin = provenance(settings, data, module.model)
    Detector.of(module.model, calibration, origin).save(folder / artefact.NAME)
    results |= origin
    write_json(folder / "metrics.json", results)  # marks completion
    last_checkpoint(folder).unlink(missing_ok=True)  # was for resuming
    return results


def experiment(
    trainer: L.Trainer,
    module: GaussianAD,
    data: ImageDataModule,
    forgetting: ForgettingStop,
    folder: Path,
    fine_tune: bool,
) -> tuple[dict[str, Any], dict[str, Figure], dict[str, Evaluation]]:
    """Frozen baseline, fine-tuning, test: results, the pictures of them, and the test of each state in its order."""
    results: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    if data.folds:
        trainer.validate(module, datamodule=data, verbose=False)  # chooses the levels; epoch 0 of the forgetting curve
        results["levels"] = level_results(forgetting, module, data)
        figures["levels"] = pictures.level_bars(results["levels"])
    module.to(trainer.strategy.root_device)  # Lightning has put it back on the CPU
    if module.model.segmenter is not None:
        results["segmentation"] = module.choose_maps()
    frozen = final = test(trainer, module, data)
    frozen.write_scores(folder / ("frozen_scores.csv" if fine_tune else "scores.csv"), data.defect_areas)
    results["frozen"] = {**frozen.metrics(), "selection": level_selection(module)}
    evaluations = {"frozen": frozen}
    if fine_tune:
        before = module.snapshot(everything=True)
        tune(trainer, module, data, forgetting, resumable(folder))
        used = tuned_is_better(trainer, module, data, forgetting, results)
        if used:
            final = evaluations["fine-tuned"] = test(trainer, module, data)
        else:
            module.restore(before)
        final.write_scores(folder / "scores.csv", data.defect_areas)
        results |= fine_tuning_results(forgetting, final, used)
        figures["forgetting"] = pictures.forgetting_curve(forgetting.history, forgetting.signal, forgetting.best_epoch)
    if final.has_both_classes:
        figures["roc"] = pictures.roc_curves({k: each.scores for k, each in evaluations.items()}, final.labels)
    figures["histogram"] = pictures.histogram(final.scores, final.labels)
    if module.model.segmenter is not None:
        figures |= galleries(final, data.test, float(module.segmenter.threshold))
    return results, figures, evaluations


def tune(
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
    """Decide on the augmented validation, and with the map where there is one, which state the run ends with."""
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
    """How the weights of the levels came about."""
    rule = level_rule(module)
    if rule is all_levels:
        return "every level counts the same"
    return f"levels weighted by {rule.__name__} on held-out good images and augmented copies of them"


def level_rule(module: GaussianAD) -> Callable[..., Tensor]:
    return getattr(module.level_rule, "func", module.level_rule)  # Hydra wraps it in a partial


def fine_tuning_results(forgetting: ForgettingStop, final: Evaluation, used: bool) -> dict[str, Any]:
    """What fine-tuning brought, and how its epoch was chosen."""
    selection = (
        f"epoch {forgetting.best_epoch} of {forgetting.history[-1]['epoch']} by the signal {forgetting.signal} "
        "on held-out good images and augmented copies of them"
    )
    return {
        "finetuned": {**final.metrics(), "selection": selection if used else f"fine-tuning not used: {selection}"},
        "forgetting": {
            "signal": forgetting.signal,
            "epoch_chosen": forgetting.best_epoch,
            "fine_tuning_used": used,
            **({"collapse": forgetting.collapse} if forgetting.collapse else {}),
            "history": forgetting.history,
        },
    }


def validation_signal(results: dict[str, Any], history: list[dict[str, float]]) -> float | None:
    """How well held-out good images are told from augmented copies of them; None without a validation.

    With a map the image AUROC plus the AUPRO, without one the AUROC of the pooled features; means over augmentations.
    """
    forgetting = results.get("forgetting", {"fine_tuning_used": False, "epoch_chosen": 0})
    if "segmentation" in results:
        signal: float = results["segmentation"]["worth_finetuned" if forgetting["fine_tuning_used"] else "worth"]
        return signal
    return history[forgetting["epoch_chosen"]]["auroc"] if history else None


def report(
    figures: list[Path],
    results: dict[str, Any],
    evaluations: dict[str, Evaluation],
    data: ImageDataModule,
    loggers: list[Logger],
) -> None:
    """Send the final numbers and pictures to the loggers."""
    numbers = {
        f"{state}/{name}": value
        for state in ("frozen", "finetuned")
        for name, value in results.get(state, {}).items()
        if isinstance(value, float)
    }
    if "forgetting" in results:
        numbers["forgetting/epoch_chosen"] = results["forgetting"]["epoch_chosen"]
    if results["validation_signal"] is not None:
        numbers["validation_signal"] = results["validation_signal"]
    for logger in loggers:
        logger.log_metrics(numbers)
        if isinstance(logger, WandbLogger):
            dashboard.show(logger.experiment, numbers, results, evaluations, data.test, figures)


def show(folder: Path, results: dict[str, Any]) -> None:
    """Print the table at the end."""
    rows = [("frozen", results["frozen"])]
    if "finetuned" in results:
        rows.append(("fine-tuned", results["finetuned"]))
    console = Console(markup=False, emoji=False)  # a folder may be called [a]
    console.print(table(results["dataset"], rows))
    forgetting = results.get("forgetting")
    if forgetting and "collapse" in forgetting:
        console.print(f"fine-tuning collapsed: {forgetting['collapse']}", highlight=False, soft_wrap=True)
    if forgetting and not forgetting["fine_tuning_used"]:
        console.print("fine-tuning not used: the augmented validation saw no gain over the frozen network")
    elif forgetting:
        console.print(f"epoch {forgetting['epoch_chosen']} of {forgetting['history'][-1]['epoch']} chosen")
    if results["frozen"]["image_auroc"] is None:
        console.print("no metrics: the test needs good and bad images, and there are only images of one of the two")
    for line in false_alarms.lines(results["calibration"]):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"results: {folder}", soft_wrap=True)


main = entry_point(run, resumes=True)

if __name__ == "__main__":
    main()
