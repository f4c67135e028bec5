"""Train a detector on good images, test it, and write a folder of results: metrics, figures, the detector.

python -m gaussad_pl.train data=<choice> [setting=value ...]

Gaussians are fitted to the features of the pretrained network, and tested; then the network is fine-tuned until it
begins to forget. Fine-tuning is used unless the probability of a gain over the frozen network is below 10 %. Last come
the thresholds of the detector and the results.

Examples:

  python -m gaussad_pl.train data=demo                                   drawn parts; minutes without a GPU
  python -m gaussad_pl.train data=folder data.root=/my/parts             a folder of images of good parts
  python -m gaussad_pl.train +category=screw data.root=/data/mvtec_ad    a category of MVTec AD
  python -m gaussad_pl.train data=demo backbone=efficientnet_lite1 fine_tune=false
                                                                         another network, not fine-tuned
  python -m gaussad_pl.train -m +category=screw,pill seed=0,1,2          a sweep: a job for each combination, here six

Settings:

  seed             of every random choice                                                             (0)
  folds, fold      the training images are split into folds; this one is held out for the choices    (5, 0)
  fine_tune        false: the frozen network only                                                    (true)
  cross_conformal  false: thresholds from the held-out images only, which is faster                  (true)
  resume           true: continue the last run or sweep of the same command                          (false)

and one choice from each group of conf/, as in data=folder. The default is named first; groups with a plus have none:

{groups}

Each choice is a file of settings, which can be changed one by one, as in backbone.image_size=320 or
trainer.max_epochs=5. The command prints all of them and stops with --cfg job; the rest of the command stays as it is:

  python -m gaussad_pl.train data=demo backbone=efficientnet_lite1 --cfg job
  python -m gaussad_pl.train data=demo --cfg job --package trainer       one group only
"""

from __future__ import annotations

from gaussad_pl.cli.groups import listing
from gaussad_pl.cli.start import start

if __name__ == "__main__":  # before the imports below, which take seconds
    start((__doc__ or "").format(groups=listing()), "albumentations", "hydra", "lightning", "matplotlib", "sklearn")

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.accelerators.mps import MPSAccelerator
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from torch import cuda
from torch.backends import mps

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.calibration.far_out import far_out
from gaussad_pl.cli.hydra_command import entry_point
from gaussad_pl.cli.settings import check_settings
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.inventory import inventory
from gaussad_pl.data.part_features import pooled_middle
from gaussad_pl.distributed import destroy_group
from gaussad_pl.errors import UserError
from gaussad_pl.files import write_json
from gaussad_pl.inference import artefact
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.heat import HeatScale
from gaussad_pl.inference.runs import METRICS, next_command
from gaussad_pl.model.precision import forbid_tf32
from gaussad_pl.results import figures, pictures, run_folder, thumbnails
from gaussad_pl.results.cost import cost
from gaussad_pl.results.decisions import decisions
from gaussad_pl.results.decisions import show as show_decisions
from gaussad_pl.results.evaluation import table
from gaussad_pl.results.provenance import provenance
from gaussad_pl.training import tracking
from gaussad_pl.training.acceptance import DOUBT
from gaussad_pl.training.checkpoints import AtomicCheckpointIO, last_checkpoint
from gaussad_pl.training.experiment import Outcome, experiment
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.module import GaussianAD

log = logging.getLogger(__name__)


def run(config: DictConfig) -> float | None:
    """Train as the command does, print the results and return what a search maximises."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    earlier = (folder / METRICS).is_file()
    results = train(config, folder)
    if not (earlier or rank_zero_only.rank):  # type: ignore[attr-defined]
        show(folder, results)
    best: float | None = results["validation_signal"]
    return best


def train(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Train from a composed configuration into a folder, and return the content of its metrics.json.

    A run that is finished is not repeated.

    Raises:
        UserError: a mistake in the settings or the data; nothing new is left in the folder.
    """
    check_settings(config)
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.locked(folder), run_folder.starting(folder):
        settings = run_folder.open_folder(folder, config)
        if (done := run_folder.finished(folder)) is not None:
            log.info("%s is finished: nothing to resume", folder)
            return done
        forbid_tf32()
        L.seed_everything(config.seed, workers=True, verbose=False)
        data: ImageDataModule = instantiate(config.data)
        data.prepare_data()
        data.check()
        run_folder.same_images(folder, inventory(data.samples, data.roi))
        module: GaussianAD = instantiate(config.model, backbone={"tiles": data.tiles}, roi=data.region)
        callbacks = instantiate(config.callbacks)
        loggers: list[Logger] = list(instantiate(config.get("logger") or {}).values())
        trainer = make_trainer(config.trainer, list(callbacks.values()), loggers)
        data.group_images(partial(pooled_middle, module.model.backbone, trainer.strategy.root_device))
        completed = False
        try:
            tracking.begin(loggers, settings)
            results = conduct(trainer, module, data, callbacks["forgetting"], loggers, folder, settings)
            completed = True
        finally:
            tracking.finish(loggers, completed)
    return results


def make_trainer(config: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> L.Trainer:
    """The trainer of the configuration, with checkpoints that a kill or a full disk cannot break.

    Raises:
        UserError: there is no such accelerator, or the Gaussian cannot do with it.
    """
    if config.accelerator in ("gpu", "cuda") and not (cuda.is_available() or mps.is_available()):
        raise UserError(f"trainer.accelerator={config.accelerator}: no GPU is available to PyTorch: set it to cpu")
    if not Console().is_terminal:  # log files and notebooks would get a line for each update
        for callback in callbacks:
            if isinstance(callback, ProgressBar):
                callback.disable()
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
    """Run the experiment, calibrate the final state and write everything; returns the content of metrics.json."""
    start = time.perf_counter()
    everything = every_image(module, data, settings)
    outcome = experiment(trainer, module, data, forgetting, folder, settings["fine_tune"], everything)
    fit_seconds = time.perf_counter() - start
    trainer.save_checkpoint(folder / "model.ckpt", weights_only=True)
    destroy_group()
    results = outcome.results
    if not trainer.is_global_zero:  # the other processes, if any, are done
        return results
    module.to(trainer.strategy.root_device)
    re_estimates = module.refit or not outcome.fine_tuned  # cross-fitting estimates the Gaussians again
    cross_fit = settings["cross_conformal"] and re_estimates
    calibration = calibrate(module.model, data, cross_fit, outcome.fine_tuned, everything)
    origin = provenance(settings, data, module.model)
    seen = {"good_images": [data.good_digests[i] for i in data.every_image]}
    detector = Detector.of(module.model, calibration, origin | seen, data.frame.fit)
    results |= decisions(calibration, outcome.final, detector.limit, data.has_test)
    results["calibration"]["far_out"] = [
        {"path": str(data.samples.train[i].path), "score": score} for i, score in far_out(calibration)
    ]
    detector.save(folder / artefact.NAME)  # before the pictures: whatever becomes of them, it is there
    results |= origin | {"cost": cost(fit_seconds, time.perf_counter() - start)}
    scale = pictures.heat_scale(outcome.final, detector.median, detector.limit)
    drawn = draw(outcome, data, scale, calibration)
    if data.has_test:
        thumbnails.save(folder, outcome.final, data.test, scale, calibration)
    saved = figures.save(drawn, folder)
    write_json(folder / METRICS, results)  # marks completion
    last_checkpoint(folder).unlink(missing_ok=True)  # was for resuming
    try:
        tracking.report(loggers, saved, outcome, data, scale, calibration)
        tracking.keep_detector(loggers, folder, results)
    except Exception as error:  # whatever a logger raises: the results are complete
        log.warning("the results are complete, but a logger failed: %s", " ".join(repr(error).split()))
    return results


def every_image(module: GaussianAD, data: ImageDataModule, settings: dict[str, Any]) -> bool:
    """The held-out images go into the last Gaussians, too, unless the calibration needs images that are in none."""
    cross_fitted = (
        settings["cross_conformal"] and module.refit and module.hparams["shrinkage"] in ("ledoit_wolf", "oas")
    )
    return bool(data.folds and cross_fitted)


def draw(
    outcome: Outcome, data: ImageDataModule, scale: HeatScale | None, calibration: Calibration
) -> dict[str, Figure]:
    """The figures of a run, by name."""
    results = outcome.results
    found: dict[str, Figure] = {}
    if "levels" in results:
        found["levels"] = figures.level_bars(results["levels"])
    if "forgetting" in results:
        found["forgetting"] = figures.forgetting_curve(results["forgetting"], results.get("acceptance", []), DOUBT)
    if not data.has_test:
        return found | pictures.draw_calibration(calibration)
    return found | pictures.draw(outcome.evaluations, data.test, scale, calibration)


def show(folder: Path, results: dict[str, Any]) -> None:
    """Print the tables of metrics and of decisions at the end, and the next command to type."""
    rows = [("frozen", results["frozen"])]
    if "finetuned" in results:
        rows.append(("fine-tuned", results["finetuned"]))
    console = Console(markup=False, emoji=False)  # a folder may be called [a]
    console.print(table(results["dataset"], rows))
    images = results["images"]
    kept = results["good_images_kept_for_test"]
    console.print(
        f"images: {images['train'] + images['validation']} good ones to train on, {images['test_good']} good and "
        f"{images['test_bad']} bad ones to test on"
        + (f"; data.holdout keeps {kept} good ones for the test, as there are bad ones" if kept else ""),
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"grouping: {results['grouping']}", highlight=False, soft_wrap=True)
    forgetting = results.get("forgetting")
    if forgetting and "collapse" in forgetting:
        console.print(f"fine-tuning collapsed: {forgetting['collapse']}", highlight=False, soft_wrap=True)
    if forgetting and not forgetting["fine_tuning_used"]:
        reason = forgetting.get("skipped", "the augmented validation saw no gain over the frozen network")
        console.print(f"fine-tuning not used: {reason}", highlight=False, soft_wrap=True)
    elif forgetting:
        console.print(f"epoch {forgetting['epoch_chosen']} of {forgetting['history'][-1]['epoch']} chosen")
    if symmetry := results.get("symmetry"):
        count = symmetry["orientations"]
        used = f"used, each image in {count} orientations" if count > 1 else "not used"
        console.print(
            f"flipped and rotated copies: {used}, as chosen by the augmented validation",
            highlight=False,
            soft_wrap=True,
        )
    if results["frozen"]["image_auroc"] is None:
        some = images["test_good"] or images["test_bad"]
        why = "there are only images of one of the two" if some else "there are none"
        console.print(f"no metrics: the test needs good and bad images, and {why}", soft_wrap=True)
    show_decisions(console, results)
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"results: {here}", soft_wrap=True)
    console.print(f"next: {next_command(here)}", highlight=False, soft_wrap=True)


main = entry_point(run, resumes=True)

if __name__ == "__main__":
    main()
