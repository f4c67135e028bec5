"""Benchmark of fine-tuning: its gain over the frozen network, and the quality of the forgetting signals.

    python -m benchmarks.fine_tuning --data /data/mvtec_ad/screw /data/magnetic_tile/tile --preset default --out results

Fine-tunes by every setting of the preset on every dataset (a folder in the layout of MVTec AD) with every seed. The
anomaly map comes before the levels that are trained, so that it is made once for each dataset and seed and its scores
are joined with those of each setting, as in a run. The test set is also scored after every epoch, without early
stopping: what each signal would have chosen is determined afterwards, so test images evaluate the choices but take no
part in any. Each job writes one JSON file; jobs whose file exists are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from rich.console import Console
from torch import Tensor

from benchmarks.analysis import PATIENCE, report
from benchmarks.jobs import begin, build, compose_job, quiet_trainer, result
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.metrics.image import auroc
from gaussad_pl.training.experiment import Outcome, accept, fine_tune_module, frozen_state
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.module import GaussianAD
from gaussad_pl.training.selection import judge

ABLATION = {name: [f"objective={name}"] for name in ("mahalanobis", "center", "diagonal")}
HOT = ["model.optimizer.lr=1.5e-3", "data.steps_per_epoch=45"]  # three times the rate and steps provoke forgetting

PRESETS: dict[str, dict[str, list[str]]] = {
    "default": {"ranking": [], "mahalanobis": ABLATION["mahalanobis"]},
    "objectives": {"ranking": [], **ABLATION},
    "ablation": {
        "ranking": [],
        "no distillation": ["model.objective.distillation=0"],
        "no cross-fitting": ["model.objective.cross_fit=false"],
        "plain distances": ["model.damage_weight=null"],
    },
    "forgetting": {"hot": HOT, "hot, no distillation": [*HOT, "model.objective.distillation=0"]},
    "recipes": {
        "ranking": [],
        "learning rate 1e-3": ["model.optimizer.lr=1e-3"],
        "240 steps": ["data.steps_per_epoch=30"],
        "all levels count": ["levels=all"],
    },
    "inputs": {
        "lite0 224": [],
        "lite0 320": ["backbone.image_size=320"],
        "lite1 240": ["backbone=efficientnet_lite1"],
        "lite2 260": ["backbone=efficientnet_lite2"],
    },
}


ONE_VALIDATION = ["data.symmetry=none"]  # of the frozen state: a choice between two would differ with and without map


class TestEachEpoch(L.Callback):
    """Callback that scores the test set after every validation, for evaluation only: no choice depends on it.

    Attributes:
        good: pooled scores of the held-out good images of each epoch, ``(n,)``.
        test: pooled scores of the test images of each epoch, ``(N,)``.
        distances: of each level, of the test images of each epoch, ``(N, levels)``.
    """

    def __init__(self) -> None:
        self.good: list[Tensor] = []
        self.test: list[Tensor] = []
        self.distances: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int, *args: Any
    ) -> None:
        self._outputs.append(outputs["distances"][outputs["group"] == 0])

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, GaussianAD)
        self.good.append(module.model.scores(torch.cat(self._outputs).double()))
        self._outputs = []
        self.distances.append(test_distances(module, trainer.datamodule))  # type: ignore[attr-defined]
        self.test.append(module.model.scores(self.distances[-1].double()))


@torch.no_grad()
def test_distances(module: GaussianAD, data: ImageDataModule) -> Tensor:
    """Distances of the pooled features of the test images, ``(N, levels)``; frozen stages are remembered."""
    batches = enumerate(data.test_dataloader())
    features = (module.pooled_features(("test", number), batch["image"]) for number, batch in batches)
    return torch.cat([module.model.distances(levels) for levels in features])


def frozen_map(folder: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Scores by the map of the test images, in units of held-out good images; no part of it is fine-tuned."""
    config = compose_job(folder, seed, [*ONE_VALIDATION, *overrides])
    data, module = build(config)
    forgetting = ForgettingStop(config.callbacks.forgetting.signal)
    outcome = Outcome()
    every = data.every_image
    frozen_state(quiet_trainer(config, [forgetting]), module, data, forgetting, every, outcome)
    maps, segmenter = outcome.final.maps, module.segmenter
    assert maps is not None
    scores = (segmenter.map_score(maps).double() - segmenter.centre[1]) / segmenter.spread[1]
    return {
        "scores": scores.tolist(),
        "weights": segmenter.weights.tolist(),
        "metrics": outcome.final.metrics(),
    }


def joint_auroc(good: Tensor, test: Tensor, maps: dict[str, Any], labels: Tensor) -> float:
    """Image AUROC of pooled scores ``test`` ``(N,)``, in units of held-out ``good`` images, joined with the map's."""
    pooled, mapped = maps["weights"]
    score = pooled * (test - good.mean()) / good.std() + mapped * torch.tensor(maps["scores"], dtype=torch.float64)
    return auroc(score, labels)


def run_job(folder: Path, seed: int, overrides: list[str], maps: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune once, and return the forgetting record and the test metrics of every epoch and of what was chosen."""
    config = compose_job(folder, seed, ["model.segmentation=null", *ONE_VALIDATION, *overrides])
    data, module = build(config)
    forgetting = ForgettingStop(config.callbacks.forgetting.signal, patience=PATIENCE)  # never stops
    tests = TestEachEpoch()
    trainer = quiet_trainer(config, [instantiate(config.callbacks.averaging), forgetting, tests])
    labels = torch.tensor([sample.label for sample in data.test_samples])
    every = data.every_image

    def auroc_now() -> float:
        """With the Gaussians as they are, and the units of the last validation."""
        assert module.validation is not None
        good = module.validation.pooled[module.validation.groups == 0].double()
        return joint_auroc(good, module.model.scores(test_distances(module, data).double()), maps, labels)

    start = time.perf_counter()
    outcome = Outcome()
    frozen_state(trainer, module, data, forgetting, every, outcome)
    frozen = final = auroc_now()
    used, chosen = False, None
    if not module.obstacle(data):
        module.prepare_objective(data)
        before, reference = module.snapshot(everything=True), judge(module, data)
        fine_tune_module(trainer, module, data, forgetting, None)
        if used := accept(module, data, forgetting, before, reference, outcome):
            chosen = auroc_now()  # with the Gaussians of the curve: those of the images that are not held out
            module.estimate_again(data, every)
            final = auroc_now()
    curve = [joint_auroc(good, test, maps, labels) for good, test in zip(tests.good, tests.test, strict=True)]
    return {
        "dataset": folder.name,
        "seed": seed,
        "overrides": overrides,
        "history": forgetting.history,
        "frozen": frozen,
        "tuned": final,
        "aupro": maps["metrics"].get("aupro"),
        "used": used,
        "share": outcome.chosen.share if outcome.chosen else 0.0,
        "epoch": forgetting.best_epoch,
        "acceptance": outcome.results.get("acceptance", []),
        "chosen": curve[0] if chosen is None else chosen,
        "test_auroc": curve,
        "test_auroc_per_level": [[auroc(column, labels) for column in d.T] for d in tests.distances],
        "seconds": time.perf_counter() - start,
    }


def map_of(folder: Path, seed: int, overrides: list[str], out: Path) -> dict[str, Any]:
    """`frozen_map`, made once for all settings that share it."""
    of_map = sorted(each for each in overrides if each.startswith(("backbone", "model.damage_weight", "data.")))
    of_map = [each for each in of_map if not each.startswith("data.steps_per_epoch")]
    digest = hashlib.sha256(" ".join(of_map).encode()).hexdigest()[:8]
    path = out / "maps" / f"{folder.name}-{digest}-seed{seed}.json"
    path.parent.mkdir(exist_ok=True)
    [found] = result(path, partial(frozen_map, folder, seed, of_map))
    return found


def run_setting(name: str, folder: Path, seed: int, overrides: list[str], out: Path) -> dict[str, Any]:
    """Run a job of a setting; returns its record, with the name of the setting."""
    return {"setting": name, **run_job(folder, seed, overrides, map_of(folder, seed, overrides, out))}


def main() -> None:
    """Run all jobs that have no result yet, and report all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the layout of MVTec AD")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="set of settings to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="random seeds; one job per seed")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"), help="folder for results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every job")
    arguments = begin(parser)
    jobs = [
        (folder, seed, name, [*overrides, *arguments.set])
        for seed in arguments.seeds  # outermost, so that an interrupted benchmark is still balanced
        for name, overrides in PRESETS[arguments.preset].items()
        for folder in arguments.data
    ]
    results = []
    for folder, seed, name, overrides in jobs:
        path = arguments.out / f"{folder.name}-{name.replace(' ', '_').replace(',', '')}-seed{seed}.json"
        results += result(path, partial(run_setting, name, folder.resolve(), seed, overrides, arguments.out))
    report(results, arguments.out, Console())


if __name__ == "__main__":
    main()
