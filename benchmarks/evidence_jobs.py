"""One job of benchmarks.evidence: train a detector as the command does, or a peer's; test and calibrate it."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate

from benchmarks.jobs import build, compose_job, quiet_trainer
from benchmarks.judged import judged
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.train import every_image
from gaussad_pl.training.experiment import Outcome, frozen_state, tuned_state

LITE0 = ["backbone=efficientnet_lite0", "backbone.image_size=224"]
SETTINGS = {
    "default": [],
    "frozen": ["+experiment=frozen", *LITE0, "fold=0"],  # which has no folds
    "paper": ["+experiment=paper", *LITE0, "trainer.max_epochs=3"],
}


class TestClock(L.Callback):
    """Callback that measures the CPU seconds of each test, of the scores alone."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_test_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if args[1] == 0:  # the first batch
            self._start = time.process_time()

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seconds.append(time.process_time() - self._start)


def run_job(folder: Path, setting: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train, test and calibrate one detector; fitting includes all choices, but neither tests nor metrics."""
    config = compose_job(folder, seed, [*SETTINGS[setting], "trainer=cpu", *overrides])
    data, module = build(config)
    forgetting, tests = instantiate(config.callbacks.forgetting), TestClock()
    trainer = quiet_trainer(config, [instantiate(config.callbacks.averaging), forgetting, tests])
    every, outcome = every_image(module, data, {"cross_conformal": config.cross_conformal}), Outcome()
    images = data.every_image if every else None
    assert len(data.good_images) and len(data.test)  # type: ignore[arg-type]  # decode first
    start = time.process_time()
    frozen_state(trainer, module, data, forgetting, images, outcome)
    if config.fine_tune:
        with tempfile.TemporaryDirectory() as place:
            tuned_state(trainer, module, data, forgetting, images, Path(place), outcome)
    trained = time.process_time()
    metrics = outcome.final.metrics()  # of each state, they are in the time since the start, too
    measured = time.process_time()
    cross_fit = config.cross_conformal and (module.refit or not outcome.fine_tuned)
    calibration = calibrate(module.model, data, cross_fit, outcome.fine_tuned, every)
    states = 2 if config.fine_tune else 1
    return {
        "method": setting, "dataset": folder.name, "seed": seed, "train_images": len(data.every_image),
        "orientations": data.orientations, "fine_tuned": outcome.fine_tuned, "history": forgetting.history,
        "frozen": outcome.results["frozen"], **metrics,
        **judged(calibration, outcome.final.scores, outcome.final.labels),
        "fit_cpu_seconds": trained - start - sum(tests.seconds) - states * (measured - trained),
        "score_cpu_seconds": tests.seconds[-1],
        "calibrate_cpu_seconds": time.process_time() - measured,
    }  # fmt: skip


def run_peer(python: Path, folder: Path, method: str, seed: int) -> dict[str, Any]:
    """Train, test and calibrate a peer in its own environment."""
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-m", "benchmarks.peers", "--data", folder, "--methods", method, "--seeds", seed]
        command += ["--train", "all", "--calibrate", "--coreset", "fast", "--out", out]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(out).glob("*.json")
        record: dict[str, Any] = json.loads(path.read_text())
        return record
