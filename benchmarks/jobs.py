"""What the benchmarks' jobs share: one dataset, one seed, the parts of a run without its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.cli.hydra_command import CONF
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.part_features import pooled_middle
from gaussad_pl.training.module import GaussianAD


def compose_job(folder: Path, seed: int, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run on ``folder``; the seed says which fold is held out, too."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train",
            ["data=folder", f"data.root={folder.resolve()}", f"seed={seed}", f"fold={seed % 5}", *overrides],
        )


def build(config: DictConfig) -> tuple[ImageDataModule, GaussianAD]:
    """Data and module, with every random number seeded."""
    L.seed_everything(config.seed, verbose=False)
    module: GaussianAD = instantiate(config.model)
    return grouped_data(config), module


def grouped_data(config: DictConfig) -> ImageDataModule:
    """Data that are split as in a run: near-duplicates are told by a backbone of their own, on the CPU."""
    data: ImageDataModule = instantiate(config.data)
    data.group_images(partial(pooled_middle, Backbone(**config.model.backbone), torch.device("cpu")))
    _ = data.split
    return data


def quiet_trainer(config: DictConfig, callbacks: Sequence[Callback]) -> L.Trainer:
    """A trainer that writes nothing."""
    trainer: L.Trainer = instantiate(
        config.trainer, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=None,
    )  # fmt: skip
    return trainer


def clocks() -> tuple[float, float]:
    """Wall time, and the time of this process on the processor: the one to trust where others use it, too."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], what: str) -> dict[str, float]:
    """Seconds since ``start``, as ``<what>_seconds`` and ``<what>_cpu_seconds``."""
    wall, cpu = (now - then for now, then in zip(clocks(), start, strict=True))
    return {f"{what}_seconds": wall, f"{what}_cpu_seconds": cpu}
