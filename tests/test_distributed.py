"""Two real processes that share a run do what one does, with each image once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TINY
from forked import FORK
from test_datamodules import mvtec
from test_train import arguments, run
from torch import Tensor
from torch.multiprocessing import start_processes  # type: ignore[attr-defined]

from gaussad_pl import distributed as d
from gaussad_pl.data.mvtec import MVTec
from gaussad_pl.density import cluster as clusters
from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.patches import PatchDensity
from gaussad_pl.density.position import PositionGaussians
from gaussad_pl.errors import UserError
from gaussad_pl.training.averaging import AverageWeights
from gaussad_pl.training.experiment import experiment
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.module import GaussianAD

pytestmark = pytest.mark.slow

SEGMENTATION = {"form": "auto", "map_levels": "middle", "clusters": 4, "combine": "both", "seed": 0}
MODELS: dict[str, dict[str, Any]] = {
    "pooled": {"segmentation": SEGMENTATION},
    "ema": {"running": "ema"},
    "patches": {"train_on": "patches", "segmentation": SEGMENTATION | {"form": "clusters"}},
}
IMAGES = torch.randint(256, (11, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
PATCHES = torch.randn(11, 6, 5, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 6) + 3


def fine_tune(model: dict[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """A whole experiment on this process's part of the work; what it leaves in memory."""
    # the last level is not used: the loss does not reach the parameters that follow the others
    L.seed_everything(0, verbose=False)
    module = GaussianAD({**TINY, "levels": [0, 1, 2, 3]}, **model, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    data = mvtec(root, image_size=64, folds=5, batch_size=4, steps_per_epoch=2, augmentations={"cutpaste": 0.5})
    forgetting = ForgettingStop("distance", patience=5)
    trainer = L.Trainer(
        accelerator="cpu", devices=d.world(), strategy="ddp" if d.world() > 1 else "auto", max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_checkpointing=False, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[AverageWeights(0.5), forgetting],
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    results = experiment(trainer, module, data, forgetting, folder, True).results
    return {
        "results": results,
        "state": module.state_dict(),
        "scores": module.detected.scores,
        "files": sorted(path.name for path in folder.iterdir()),
        "seen": seen(data),
    }


def seen(data: MVTec) -> dict[str, list[int]]:
    """A fingerprint of each image that the loaders of this process give."""
    names = ("reference", "good", "train", "val", "test")
    loaders = {name: getattr(data, f"{name}_dataloader")() for name in names}
    return {
        name: [zlib.crc32(image.numpy().tobytes()) for batch in loader for image in batch["image"]]
        for name, loader in loaders.items()
    }


def estimates(case: str) -> dict[str, Tensor]:
    """Every kind of Gaussian from this process's part of some images: 6 and 5 of them, or all and none."""
    mine = slice(d.rank(), None, d.world()) if case == "uneven" else slice(0 if d.rank() else None)
    torch.manual_seed(0)
    module = GaussianAD(TINY, shrinkage=0.5).eval()
    module.estimate([{"image": part} for part in IMAGES[mine].split(2) if len(part)])
    level = module.targets[3]
    found = {
        "pooled/mean": level.mean,
        "pooled/whitener": level.whitener,
        "pooled/covariance": level.moments.covariance,
    }
    count = len(PATCHES) if case == "uneven" else 1  # of a sample, each process has to have its share
    kinds: dict[str, tuple[PatchDensity, Tensor]] = {
        "position": (PositionGaussians(6, 5), PATCHES[mine]),
        "clusters": (ClusterGaussians(2, 5, seed=0), PATCHES[:count][d.rank() :: d.world()]),
        "shared": (ClusterGaussians(1, 5, seed=1), PATCHES[:count][d.rank() :: d.world()]),
    }
    for name, (gaussians, patches) in kinds.items():
        for part in patches.split(2):
            if len(part):
                gaussians.observe(part)
        gaussians.estimate()
        found |= {f"{name}/{key}": value for key, value in gaussians.state_dict().items()}
    return found


def together(root: Path, folder: Path) -> dict[str, Any]:
    """Return the findings of a process, alone or as one of two."""
    found: dict[str, Any] = {case: estimates(case) for case in ("uneven", "empty")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(clusters, "SAMPLE", 40)  # of 66 patches
        found["sampled"] = estimates("uneven")
    found["rows"] = d.gather_rows(torch.arange(7)[d.rank() :: d.world()])
    return found | {name: fine_tune(model, root, folder / name) for name, model in MODELS.items()}


def process(rank: int, port: int, root: Path, folder: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = together(root, folder / str(rank))
    for name, settings in {"odd": {"batch_size": 5}, "few": {"folds": 0}}.items():
        data = mvtec(root, **settings)
        try:
            data.train_dataloader() if name == "odd" else data._eval_loader(torch.utils.data.TensorDataset(IMAGES[:1]))
        except UserError as error:
            found[name] = str(error)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the findings of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(process, (port, parts, folder), nprocs=2, start_method=FORK.get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same from one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = together(parts, tmp_path_factory.mktemp("one"))
    torch.set_num_threads(threads)
    return found


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest between two dicts of tensors, relative to the largest number of the tensor."""
    assert a.keys() == b.keys()
    pairs = [(a[key].double(), b[key].double()) for key in a if a[key].numel()]
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1)) for x, y in pairs)


@pytest.mark.parametrize("case", ["uneven", "empty", "sampled"])
def test_the_gaussians_of_two_processes_are_those_of_one(
    case: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    assert difference(two[0][case], two[1][case]) == 0
    assert difference(one[case], two[0][case]) < 1e-6


def test_rows_come_back_in_order(two: list[dict[str, Any]]) -> None:
    assert all(found["rows"].tolist() == list(range(7)) for found in two)


@pytest.mark.parametrize("loader", ["reference", "good", "train", "val", "test"])
def test_every_image_is_seen_by_exactly_one_process(
    loader: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    alone, (first, second) = one["pooled"]["seen"][loader], (found["pooled"]["seen"][loader] for found in two)
    assert sorted(first + second) == sorted(alone)
    assert min(len(first), len(second)) >= len(alone) // 2 - 1  # half of the work each, in whole images


@pytest.mark.parametrize("model", MODELS)
def test_fine_tuning_follows_the_same_losses(model: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    alone, first, second = (found[model] for found in (one, *two))
    assert first["results"] == second["results"]  # metrics and history
    assert all(torch.equal(first["state"][key], second["state"][key]) for key in first["state"])
    assert torch.equal(first["scores"], second["scores"])
    history = [record["loss"] for record in alone["results"]["forgetting"]["history"][1:]]
    assert len(set(history)) == 2
    for a, b in zip(alone["results"]["forgetting"]["history"], first["results"]["forgetting"]["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)
    assert alone["results"]["forgetting"]["epoch_chosen"] == first["results"]["forgetting"]["epoch_chosen"]
    torch.testing.assert_close(first["scores"], alone["scores"], rtol=1e-3, atol=1e-3)


def test_one_process_writes(two: list[dict[str, Any]]) -> None:
    assert two[0]["pooled"]["files"] and not two[1]["pooled"]["files"]


def test_what_cannot_be_shared_is_a_clear_error(two: list[dict[str, Any]]) -> None:
    assert "batches of 5 images evenly: set data.batch_size=4" in two[0]["odd"]
    assert "2 processes and 1 images to score: set trainer.devices=1" in two[0]["few"]


def test_a_killed_run_on_two_processes_resumes_to_what_one_process_finds(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["trainer.max_epochs=5", "callbacks.forgetting.patience=5", "levels=all", "model.segmentation=null"]
    more += ["objective=mahalanobis"]  # ranking compares the pairs of one process
    run(monkeypatch, *arguments(parts, tmp_path / "one", *more))
    shared = [
        each for each in arguments(parts, tmp_path / "two", *more, "resume=true") if not each.startswith("trainer=")
    ]
    line = [sys.executable, "-m", "gaussad_pl.train", *shared]
    line += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    checkpoint = tmp_path / "two" / "checkpoints" / "last.ckpt"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert checkpoint.exists() and not (tmp_path / "two" / "metrics.json").exists(), (tmp_path / "log").read_text()
    again = subprocess.run(line, check=True, capture_output=True, text=True)
    assert again.stdout.count("results: ") == 1
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for a, b in zip(one["forgetting"]["history"], two["forgetting"]["history"], strict=True):
        assert a["distance"] == pytest.approx(b["distance"], rel=1e-3)
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-3)
    assert two["images"] == one["images"] and two["frozen"]["image_auroc"] == one["frozen"]["image_auroc"]
    assert (tmp_path / "two" / "scores.csv").read_text().count("\n") == 1 + 12
