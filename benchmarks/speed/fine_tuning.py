"""Speed of an epoch of fine-tuning relative to a bare training loop on tensors in memory."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.jobs import build, compose_job, quiet_trainer
from benchmarks.speed.timing import Row, Setting
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.training.averaging import AverageWeights
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.module import GaussianAD
from gaussad_pl.training.ranking import Ranking


class Epochs(Callback):
    """Callback that times the steps of each epoch, and the epoch including its validation, in seconds."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.whole: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.training or trainer.state.fn == "fit":
            self.steps.append(time.perf_counter() - self._start)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.training or trainer.state.fn == "fit":
            self.whole.append(time.perf_counter() - self._start)


def epoch(folder: Path, setting: Setting, epochs: int) -> list[Row]:
    """Part 3: an epoch relative to the bare forward, backward and optimizer steps; the first epoch does not count."""
    rows = []
    for name, settings in (("all levels train", ["model.train_levels=null"]), ("default", [])):
        precision = {"32": "32-true"}.get(setting.precision, f"{setting.precision}-mixed")
        kind = "gpu" if setting.device.startswith("cuda") else "cpu"
        overrides = ["model.segmentation=null", f"trainer.max_epochs={epochs}", f"trainer.accelerator={kind}"]
        overrides.append(f"trainer.precision={precision}")
        config = compose_job(folder, 0, [*overrides, "logger=csv", *settings])
        data, module = build(config)
        timed = Epochs()
        callbacks = [AverageWeights(0.95), ForgettingStop("paired", patience=10**6), timed]
        trainer = quiet_trainer(config, callbacks)
        trainer.validate(module, data, verbose=False)
        module.prepare_objective(data)
        trainer.fit(module, data)
        steps = [_bare_steps(module, data, setting) for _ in range(3)]
        passes = [_bare_passes(module, data, setting.device) for _ in range(3)]
        bare_step, bare = sorted(steps)[1], sorted(steps)[1] + sorted(passes)[1]
        inner, whole = (sorted(times[1:])[len(times[1:]) // 2] for times in (timed.steps, timed.whole))
        rows += [
            Row(3, f"training steps of an epoch, {name}", inner / bare_step, "bare loop on tensors", 1.15),
            Row(3, f"epoch with validation, {name}", whole / bare, "bare loop and bare forward passes", 1.15),
        ]
    return rows


def _bare_steps(module: GaussianAD, data: ImageDataModule, setting: Setting) -> float:
    """Return the seconds of the steps of an epoch with as many images, in memory, and a plain loss."""
    backbone = module.model.backbone.to(setting.device)
    steps, size = data.steps_per_epoch or 1, data.batch_size * (2 if isinstance(module.objective, Ranking) else 1)
    x = data.good_images[: steps * size].to(setting.device)
    optimizer = torch.optim.Adam([p for p in backbone.parameters() if p.requires_grad], lr=0.0)
    start = time.perf_counter()
    for i in range(steps):
        first = i * size % max(1, len(x) - size + 1)
        with setting.autocast():
            loss = sum(level.square().mean() for level in backbone.pooled(x[first : first + size]))
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


@torch.inference_mode()
def _bare_passes(module: GaussianAD, data: ImageDataModule, device: str) -> float:
    """Return the seconds of the forward passes needed to re-estimate and validate: every view of every image once."""
    backbone = module.model.backbone.to(device)
    count = len(data.views) * len(data.split[0]) + (len(data.augmentations) + 1) * len(data.split[1])
    x = data.good_images[: data.eval_batch_size].to(device)
    start = time.perf_counter()
    for _ in range(-(-count // len(x))):
        backbone.pooled(x)
    return time.perf_counter() - start
