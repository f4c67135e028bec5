"""Content for the loggers of a run: its settings, its final numbers and figures, and an end.

W&B takes long to import, so it is imported only where it logs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.inference import artefact
from gaussad_pl.inference.heat import HeatScale
from gaussad_pl.training.experiment import Outcome


def begin(loggers: list[Logger], settings: dict[str, Any]) -> None:
    """Log the settings; with this W&B begins its run.

    Raises:
        UserError: W&B has no key, cannot be reached, or has a setting that it does not know.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from gaussad_pl.results import dashboard

            dashboard.begin(logger, settings)
        else:
            logger.log_hyperparams(settings)


def report(
    loggers: list[Logger],
    figures: list[Path],
    outcome: Outcome,
    data: ImageDataModule,
    scale: HeatScale | None,
    calibration: Calibration,
) -> None:
    """Log the final numbers; W&B also gets the figures and a table of the test images."""
    results = outcome.results
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
            from gaussad_pl.results import dashboard

            table = dashboard.image_table(outcome.final, data.test, scale, calibration)
            dashboard.show(logger.experiment, numbers, results, outcome.evaluations, table, figures)


def keep_detector(loggers: list[Logger], folder: Path, results: dict[str, Any]) -> None:
    """Store the detector of a run as an artifact of W&B, where its logger is asked to."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and getattr(logger, "detector", False):  # of the DashboardLogger
            from gaussad_pl.results import dashboard

            dashboard.keep_detector(logger.experiment, folder / artefact.NAME, results)


def finish(loggers: list[Logger], completed: bool) -> None:
    """End the run of W&B, or the next job of a sweep would write into it."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        from gaussad_pl.results import dashboard

        dashboard.finish(completed)
