"""Run folders that are made up, for the tests of the report: nothing is trained."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gaussad_pl import report
from gaussad_pl.reporting.flags import find_flags
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.study import Study, arrange

BACKBONES = {"efficientnet_lite0": "tf_efficientnet_lite0.in1k", "resnet18": "resnet18.a1_in1k"}
VERSIONS = {"python": "3.11.7", "torch": "2.14.1"}


def make_run(
    folder: Path,
    category: str = "screw",
    seed: int = 0,
    fold: int = 0,
    frozen: float | None = 0.9,
    finetuned: float | None = None,
    backbone: str = "efficientnet_lite0",
    signal: tuple[float, ...] = (0.5, 0.6, 0.55),
    aupro: float | None = 0.8,
    config: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    **changes: Any,
) -> Path:
    """A finished run as gaussad_pl.train leaves it; ``finetuned=None`` without fine-tuning."""
    (folder / ".hydra").mkdir(parents=True)
    settings: dict[str, Any] = {
        "seed": seed, "fold": fold, "folds": 5,
        "data": {"name": category, "seed": seed, "root": "data/mvtec_ad", "image_size": 224},
        "backbone": {"name": BACKBONES[backbone], "image_size": 224},
        "model": {"backbone": {"name": BACKBONES[backbone], "image_size": 224}, "segmentation": {"seed": seed}},
        "trainer": {"max_epochs": 8, "default_root_dir": str(folder)},
        **(config or {}),
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(settings))
    noted = {"overrides": {"task": [f"seed={seed}"]}, "runtime": {"choices": choices or {"backbone": backbone}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": noted}))

    def state(auroc: float | None, selection: str) -> dict[str, Any]:
        pixels = {} if aupro is None else {"aupro": aupro, "pixel_auroc": 0.95, "pixel_size": [256, 256]}
        return {"image_auroc": auroc, "image_ap": auroc, **pixels, "selection": selection}

    found: dict[str, Any] = {"frozen": state(frozen, "levels weighted by top_k")}
    rng = np.random.default_rng(seed)
    write_scores(folder / "scores.csv", rng)
    if finetuned is not None:
        write_scores(folder / "frozen_scores.csv", rng)
        used = finetuned != frozen
        found["finetuned"] = state(finetuned, f"{'' if used else 'fine-tuning not used: '}epoch 1 of 2")
        found["forgetting"] = {
            "signal": "paired/elastic", "epoch_chosen": int(used), "fine_tuning_used": used,
            "history": [{"epoch": epoch, "paired/elastic": value} for epoch, value in enumerate(signal)],
        }  # fmt: skip
    found |= {
        "dataset": category, "seed": seed, "fold": fold, "folds": 5,
        "images": {"train": 19, "validation": 5, "test_good": 20, "test_bad": 30},
        "backbone": {"name": BACKBONES[backbone], "weights": "bundled"},
        "command": f"python -m gaussad_pl.train +category={category} seed={seed}",
        "config": settings, "versions": VERSIONS,
    }  # fmt: skip
    if aupro is not None:
        for name in ("misses.png", "false_alarms.png"):
            Image.fromarray(rng.integers(256, size=(300, 900, 3), dtype=np.uint8)).save(folder / name)
    (folder / "metrics.json").write_text(json.dumps(found | changes))
    return folder


def write_scores(path: Path, rng: np.random.Generator, good: int = 20, bad: int = 30) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "kind", "label", "score"])
        for i, label in enumerate([0] * good + [1] * bad):
            writer.writerow([f"/data/{i}.png", "spot" if label else "good", label, rng.normal(2 * label)])


def study(top: Path) -> Study:
    return arrange(*gather(top))


def flags(top: Path) -> dict[str, list[str]]:
    return {flag.kind: flag.items for flag in find_flags(study(top))}


def make_report(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *overrides])
    report.main()


def points(lost: int = 1, found: int = 20, contradicted: bool = False, threshold: float = 1.0) -> dict[str, Any]:
    """Operating points as a run stores them; nothing is decided at 1 %."""
    none = {"threshold": None, "rule": "none", "good_lost": None, "bad_found": None, "p_value": None}
    some = {"threshold": threshold, "rule": "conformal", "good_lost": lost, "bad_found": found, "p_value": 0.01}
    of = {"good_from": "test", "good": 20, "bad": 30}
    undecided, decided = {**of, **none, "contradicted": None}, {**of, **some, "contradicted": contradicted}
    return {"0.01": undecided, "0.05": decided, "0.1": decided, "0.2": decided}


FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browser_path() -> str | None:
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)
