"""Benchmark of fine-tuning: its gain over the frozen network, and the quality of the forgetting signals.

    python -m benchmarks.fine_tuning --data /data/mvtec_ad/screw /data/magnetic_tile/tile --preset small --out results

Trains every setting of the preset on every dataset (a folder in the layout of MVTec AD) with every seed, without early
stopping, and scores the test set after every epoch. The epoch that each signal would have chosen is determined
afterwards, so test images evaluate the signals but take no part in any choice. Each job writes one JSON file; jobs
whose file exists are skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from rich.console import Console
from torch import Tensor

from benchmarks.analysis import report
from benchmarks.jobs import build, compose_job, quiet_trainer
from gaussad_pl.cli.hydra_command import keep_freed_memory
from gaussad_pl.files import write_json
from gaussad_pl.metrics.image import auroc
from gaussad_pl.model.detection import Detection
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.module import GaussianAD

FROZEN = ["fine_tune=false"]
PAPER = ["levels=all", "data.light_copies=0", "data.moved_copies=0"]
FORGET = ["callbacks.averaging.decay=0", "trainer.max_epochs=12"]  # provokes forgetting
ABLATION = {name: [f"objective={name}"] for name in ("diagonal", "center")}

PRESETS: dict[str, dict[str, list[str]]] = {
    "default": {"default": []},
    "small": {"default": [], "paper frozen": [*PAPER, *FROZEN], "forgetting": FORGET},
    "frozen": {
        f"{levels}, {light} light, {moved} moved": [
            f"levels={levels}",
            f"data.light_copies={light}",
            f"data.moved_copies={moved}",
            *FROZEN,
        ]
        for levels in ("all", "top3", "excess")
        for light, moved in ((0, 0), (2, 0), (1, 1))
    },
    "ablation": {"default": [], **ABLATION},
    "objectives": {"default": [], "squared": ["objective=squared"], "all levels": ["levels=all"]},
    "recipes": {
        "default": [],
        "no averaging": ["callbacks.averaging.decay=0"],
        "learning rate 1e-4": ["model.optimizer.lr=1e-4"],
        "all levels trained": ["model.train_levels=null"],
        "Gaussian of each epoch": ["model.running=epoch"],
    },
    "inputs": {
        "lite0 224": [],
        "lite0 320": ["backbone.image_size=320"],
        "lite0 384": ["backbone.image_size=384"],
        "lite1 240": ["backbone=efficientnet_lite1"],
        "lite2 260": ["backbone=efficientnet_lite2"],
    },
}


class TestEachEpoch(L.Callback):
    """Callback that scores the test set after every validation, for evaluation only: no choice depends on it."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.distances: list[Tensor] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, GaussianAD)
        loader = trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
        detection = Detection.join([module(batch["image"].to(module.device)).cpu() for batch in loader])
        self.distances.append(detection.distances)
        self.scores.append(detection.scores)


def run_job(folder: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train once, and return the forgetting record and the test metrics of every epoch."""
    config = compose_job(folder, seed, ["model.segmentation=null", *overrides])
    data, module = build(config)
    forgetting = ForgettingStop(config.callbacks.forgetting.signal, patience=10**6)  # never stops
    tests = TestEachEpoch()
    trainer = quiet_trainer(config, [instantiate(config.callbacks.averaging), forgetting, tests])
    start = time.perf_counter()
    trainer.validate(module, data, verbose=False)
    if config.fine_tune:
        module.prepare_objective(data)
        trainer.fit(module, data)
    labels = torch.tensor([sample.label for sample in data.test_samples])
    return {
        "dataset": folder.name,
        "seed": seed,
        "overrides": overrides,
        "history": forgetting.history,
        "test_auroc": [auroc(scores, labels) for scores in tests.scores],
        "test_auroc_per_level": [[auroc(column, labels) for column in d.T] for d in tests.distances],
        "level_weights": module.model.level_weights.tolist(),
        "level_signals": forgetting.level_signals.tolist() if forgetting.level_signals is not None else None,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Run all jobs that have no result yet, and report all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="set of settings to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds; one job per seed")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"), help="folder for results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every job")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    console = Console()
    jobs = [
        (folder, seed, name, [*overrides, *arguments.set])
        for seed in arguments.seeds  # outermost, so that an interrupted benchmark is still balanced
        for name, overrides in PRESETS[arguments.preset].items()
        for folder in arguments.data
    ]
    results = []
    for number, (folder, seed, name, overrides) in enumerate(jobs, start=1):
        path = arguments.out / f"{folder.name}-{name.replace(' ', '_').replace(',', '')}-seed{seed}.json"
        if not path.is_file():
            console.print(f"[{number}/{len(jobs)}] {folder.name}, {name}, seed {seed}", highlight=False)
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_json(path, {"setting": name, **run_job(folder.resolve(), seed, overrides)})
        results.append(json.loads(path.read_text()))
    report(results, arguments.out, console)


if __name__ == "__main__":
    main()
