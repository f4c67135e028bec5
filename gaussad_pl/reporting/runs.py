"""Run folders read back: finished runs with their metrics, unfinished ones with the information available."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaussad_pl.reporting.operating import Point, read_points
from gaussad_pl.reporting.stored import (
    DAMAGE,
    flatten,
    last_line,
    load_json,
    load_yaml,
    moment,
    real,
    shares,
    shortened,
    string,
)

log = logging.getLogger(__name__)

# subfolders of a run folder: those of loggers may hold another config.yaml, the gallery has a file per test image
INSIDE = {"wandb", "csv", "tensorboard", "checkpoints", "gallery"}
METRICS = {
    "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "image_ap": "image AP",
    "image_f1max": "image F1max", "pixel_ap": "pixel AP", "pixel_f1max": "pixel F1max",
}  # fmt: skip

UNUSED_EPOCH = re.compile("^(fine-tuning not used): epoch .*", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A run, finished or not.

    Attributes:
        name: the folder relative to the one reported on, for display.
        config: the resolved configuration, flat: ``{"model.segmentation.form": "auto"}``.
        choices: the option of each group of conf/: ``{"backbone": "efficientnet_lite0"}``; empty if unknown.
        overrides: command-line overrides of this job.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    overrides: tuple[str, ...]
    category: str
    seed: int
    fold: int


@dataclass(frozen=True)
class Unfinished(Job):
    """A run without results; ``category`` is empty if its configuration is missing, too."""

    reason: str


@dataclass(frozen=True)
class Forgetting:
    """Forgetting signal over the epochs; epoch 0 is the frozen network."""

    signal: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    chosen: int
    used: bool

    @property
    def moved(self) -> bool:
        """True if the signal differs between epochs."""
        finite = [value for value in self.values if math.isfinite(value)]
        return len(finite) > 1 and max(finite) - min(finite) > 1e-6 * max(abs(value) for value in finite)


@dataclass(frozen=True)
class Run(Job):
    """A finished run. Metrics are in [0, 1]; those that are absent or not finite numbers are left out.

    Attributes:
        points: operating points by rate: ``{"0.05": Point(...)}``.
        weights: source of the pretrained weights.
        weights_sha256: hash of the loaded weights; empty for random weights and for runs of older versions.
        data_sha256: hash of the names and sizes of all images; empty for runs of older versions.
        commit: of the code, with a note if it was modified; empty outside a git checkout and in older versions.
        fit_seconds: wall time of the fit; NaN in older versions.
        peak_memory: largest resident memory of the process, in bytes; NaN in older versions.
        finished: seconds since 1970.
    """

    frozen: Mapping[str, float]
    finetuned: Mapping[str, float] | None
    forgetting: Forgetting | None
    points: Mapping[str, Point]
    selections: Mapping[str, str]
    backbone: str
    weights: str
    weights_sha256: str
    data_sha256: str
    images: Mapping[str, int]
    masks_missing: int
    versions: Mapping[str, str]
    command: str
    commit: str
    fit_seconds: float
    peak_memory: float
    finished: float

    @property
    def final(self) -> Mapping[str, float]:
        """Metrics of the final model: the fine-tuned one if there is one, else the frozen one."""
        return self.frozen if self.finetuned is None else self.finetuned

    @property
    def threshold(self) -> float:
        """Threshold of the scores for a false-alarm rate of 5 %; NaN if there is none."""
        return self.points["0.05"].threshold if "0.05" in self.points else math.nan


def gather(top: Path) -> tuple[list[Run], list[Unfinished]]:
    """Return the finished and unfinished runs in ``top`` and below, in the order of their folder names."""
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for place, folders, files in os.walk(top):
        folder = Path(place)
        if "metrics.json" in files:
            try:
                if (run := read_run(folder, top)) is not None:
                    runs.append(run)
            except DAMAGE as error:
                reason = shortened(" ".join(string(f"{type(error).__name__}: {error}").split()))
                log.warning("%s is unreadable (%s): the run counts as unfinished", folder / "metrics.json", reason)
                unfinished.append(read_unfinished(folder, top, f"metrics.json is unreadable ({reason})"))
        elif "config.yaml" in files or ".hydra" in folders:
            unfinished.append(read_unfinished(folder, top, last_line(folder / "error.txt")))
        folders[:] = sorted(name for name in folders if name not in INSIDE and not name.startswith("."))
    return runs, unfinished


def read_run(folder: Path, top: Path) -> Run | None:
    """Read a finished run; None for the results of `gaussad_pl.evaluate`, which are not a run.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError: metrics.json is
            damaged, or was not written by gaussad_pl.
    """
    path = folder / "metrics.json"
    found = load_json(path)
    if "evaluation" in found:
        return None
    finetuned = found.get("finetuned")
    history = found.get("forgetting")
    parts = ("levels", "segmentation", "frozen", "finetuned")
    if not found["dataset"]:
        raise ValueError("its dataset has no name")
    choices, overrides = hydra_choices(folder)
    return Run(
        folder=folder,
        name=display_name(folder, top),
        config=flatten(found["config"]),
        choices=choices,
        overrides=overrides,
        category=string(found["dataset"]),
        seed=int(found["seed"]),
        fold=int(found["fold"]),
        frozen=shares(found["frozen"], METRICS),
        finetuned=None if finetuned is None else shares(finetuned, METRICS),
        forgetting=None if history is None else read_forgetting(history),
        points=read_points(found),
        selections={
            part: UNUSED_EPOCH.sub(r"\1", string(found[part]["selection"]))
            for part in parts
            if "selection" in (found.get(part) or {})
        },
        backbone=string(found["backbone"]["name"]),
        weights=string(found["backbone"]["weights"]),
        weights_sha256=string(found["backbone"].get("weights_sha256") or ""),
        data_sha256=string(found.get("data_sha256") or ""),
        images={string(key): int(value) for key, value in found["images"].items()},
        masks_missing=int(found["frozen"].get("masks_missing") or 0),
        versions={string(key): string(value) for key, value in found["versions"].items()},
        command=string(found["command"]),
        commit=commit_text(found.get("git") or {}),
        fit_seconds=real((found.get("cost") or {}).get("fit_seconds")),
        peak_memory=real((found.get("cost") or {}).get("peak_memory_bytes")),
        finished=moment(found.get("finished"), path),
    )


def commit_text(git: Mapping[str, Any]) -> str:
    """Return the commit of the code that made a run, and whether the code was modified; empty if it is not known.

    >>> commit_text({"commit": "4e0c2f7aa", "clean": False})
    '4e0c2f7aa, modified'
    """
    commit = string(git.get("commit") or "")
    return f"{commit}, modified" if commit and git.get("clean") is False else commit


def read_forgetting(found: Mapping[str, Any]) -> Forgetting:
    """Read the forgetting history of a run; epochs without a signal get NaN.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError: the record is damaged.
    """
    history, signal = found["history"], found["signal"]
    epochs = tuple(int(record["epoch"]) for record in history)
    if epochs != tuple(range(len(epochs))):
        raise ValueError("the epochs of its history do not count up from 0")
    return Forgetting(
        signal=string(signal),
        epochs=epochs,
        values=tuple(real(record.get(signal)) for record in history),
        chosen=int(found["epoch_chosen"]),
        used=bool(found["fine_tuning_used"]),
    )


def read_unfinished(folder: Path, top: Path, reason: str) -> Unfinished:
    """Read a run without results, as far as its config.yaml allows."""
    stored = load_yaml(folder / "config.yaml")
    config = flatten(stored) if isinstance(stored, dict) else {}
    choices, overrides = hydra_choices(folder)
    return Unfinished(
        folder=folder,
        name=display_name(folder, top),
        config=config,
        choices=choices,
        overrides=overrides,
        category=string(config.get("data.name") or ""),
        seed=_whole(config.get("seed")),
        fold=_whole(config.get("fold")),
        reason=reason,
    )


def hydra_choices(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the group choices and overrides that Hydra recorded in the run folder; both empty if it did not."""
    record = load_yaml(folder / ".hydra" / "hydra.yaml")
    try:
        choices = record["hydra"]["runtime"]["choices"].items()
        overrides = tuple(map(string, record["hydra"]["overrides"]["task"]))
    except (LookupError, TypeError, AttributeError):
        return {}, ()
    return {str(key): string(value) for key, value in choices if "/" not in str(key)}, overrides


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def display_name(folder: Path, top: Path) -> str:
    """Return the folder relative to ``top``, with bytes that are not valid UTF-8 replaced."""
    relative = folder.relative_to(top).as_posix()
    return os.fsencode(top.resolve().name if relative == "." else relative).decode("utf-8", "replace")
