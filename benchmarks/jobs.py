"""Shared by the benchmarks: configuration, data, module and trainer of a run on one dataset, without a run folder."""

from __future__ import annotations

import argparse
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import nn

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.cli.hydra_command import CONF
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.part_features import pooled_middle
from gaussad_pl.files import write_json
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.training.module import GaussianAD


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a benchmark, silence its libraries, and make the folder ``--out`` of its results."""
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def result(path: Path, job: Callable[[], dict[str, Any]], finished: bool = False) -> list[dict[str, Any]]:
    """Return the record of a job in a list, from the file ``path`` if there is one.

    Otherwise, run the job and write the file; with ``finished``, run nothing and return an empty list.
    """
    if not path.is_file():
        if finished:
            return []
        print(path.stem, flush=True)
        write_json(path, job())
    return [json.loads(path.read_text())]


def compose_job(folder: Path, seed: int, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of a run on ``folder``; the seed also determines the held-out fold."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train",
            ["data=folder", f"data.root={folder.resolve()}", f"seed={seed}", f"fold={seed % 5}", *overrides],
        )


def build(config: DictConfig) -> tuple[ImageDataModule, GaussianAD]:
    """Build datamodule and module after seeding all random number generators."""
    L.seed_everything(config.seed, verbose=False)
    data: ImageDataModule = instantiate(config.data)
    module: GaussianAD = instantiate(config.model, backbone={"tiles": data.tiles}, roi=data.region)
    return grouped(data, config), module


def grouped(data: ImageDataModule, config: DictConfig) -> ImageDataModule:
    """Give a datamodule the splits of a run; a separate backbone on the CPU finds near-duplicates."""
    backbone = Backbone(**config.model.backbone, tiles=data.tiles, roi=data.region)
    data.group_images(partial(pooled_middle, backbone, torch.device("cpu")))
    _ = data.split
    return data


def quiet_trainer(config: DictConfig, callbacks: Sequence[Callback]) -> L.Trainer:
    """Build a trainer that writes nothing."""
    trainer: L.Trainer = instantiate(
        config.trainer, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=None,
    )  # fmt: skip
    return trainer


def clocks() -> tuple[float, float]:
    """Return wall time and CPU time of this process in seconds; CPU time is less affected by other processes."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], what: str) -> dict[str, float]:
    """Return the seconds since ``start`` as ``<what>_seconds`` and ``<what>_cpu_seconds``."""
    wall, cpu = (now - then for now, then in zip(clocks(), start, strict=True))
    return {f"{what}_seconds": wall, f"{what}_cpu_seconds": cpu}


def state_bytes(module: nn.Module) -> int:
    """Return the size of the saved state of a module in bytes."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.tell()
