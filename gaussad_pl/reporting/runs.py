"""The folders that runs left behind, read back: finished ones with their numbers, the others with what is known."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

# folders inside a run folder, of loggers and checkpoints, that may hold a config.yaml of their own
INSIDE = {"wandb", "csv", "tensorboard", "checkpoints"}
METRICS = {
    "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "image_ap": "image AP",
    "image_f1max": "image F1max", "pixel_ap": "pixel AP", "pixel_f1max": "pixel F1max",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A folder in which a run was started.

    Attributes:
        name: the folder below the one reported on, as it is shown.
        config: the resolved configuration, flat: ``{"model.segmentation.form": "auto"}``.
        choices: what was chosen from each group of conf/: ``{"backbone": "efficientnet_lite0"}``; empty if not known.
        overrides: of the command line, those of this job.
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
    """A run without results. Where even its configuration is missing, ``category`` is empty."""

    reason: str


@dataclass(frozen=True)
class Forgetting:
    """The validation signal over the epochs; epoch 0 is the frozen network."""

    signal: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    chosen: int
    used: bool

    @property
    def moved(self) -> bool:
        known = [value for value in self.values if math.isfinite(value)]
        return len(known) > 1 and max(known) - min(known) > 1e-6 * max(abs(value) for value in known)


@dataclass(frozen=True)
class Run(Job):
    """A finished run. Metrics are shares of 1; those that a run does not have, or that are no number, are missing.

    Attributes:
        finished: seconds since 1970.
        weights: their source.
        weights_sha256: of the weights as loaded; empty for random ones and runs of older versions.
        data_sha256: of names and sizes of all images; empty for runs of older versions.
    """

    frozen: Mapping[str, float]
    finetuned: Mapping[str, float] | None
    forgetting: Forgetting | None
    selections: Mapping[str, str]
    backbone: str
    weights: str
    weights_sha256: str
    data_sha256: str
    images: Mapping[str, int]
    masks_missing: int
    versions: Mapping[str, str]
    command: str
    finished: float

    @property
    def final(self) -> Mapping[str, float]:
        """What the run ended with: fine-tuned if it was, else frozen."""
        return self.frozen if self.finetuned is None else self.finetuned


def gather(top: Path) -> tuple[list[Run], list[Unfinished]]:
    """Every run in ``top`` and below, in the order of the folders' names."""
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for place, folders, files in os.walk(top):
        folder = Path(place)
        if "metrics.json" in files:
            try:
                runs.append(read_run(folder, top))
            except DAMAGE as error:
                reason = shortened(" ".join(string(f"{type(error).__name__}: {error}").split()))
                log.warning("%s is not readable (%s): the run counts as unfinished", folder / "metrics.json", reason)
                unfinished.append(read_unfinished(folder, top, f"metrics.json is not readable ({reason})"))
        elif "config.yaml" in files or ".hydra" in folders:
            unfinished.append(read_unfinished(folder, top, last_line(folder / "error.txt")))
        folders[:] = sorted(name for name in folders if name not in INSIDE and not name.startswith("."))
    return runs, unfinished


def read_run(folder: Path, top: Path) -> Run:
    """A finished run.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError: its metrics.json
            is damaged, or not ours.
    """
    path = folder / "metrics.json"
    found = load_json(path)
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
        selections={part: string(found[part]["selection"]) for part in parts if "selection" in (found.get(part) or {})},
        backbone=string(found["backbone"]["name"]),
        weights=string(found["backbone"]["weights"]),
        weights_sha256=string(found["backbone"].get("weights_sha256") or ""),
        data_sha256=string(found.get("data_sha256") or ""),
        images={string(key): int(value) for key, value in found["images"].items()},
        masks_missing=int(found["frozen"].get("masks_missing") or 0),
        versions={string(key): string(value) for key, value in found["versions"].items()},
        command=string(found["command"]),
        finished=moment(found.get("finished"), path),
    )


def read_forgetting(found: Mapping[str, Any]) -> Forgetting:
    """The history of a run; epochs without a signal have NaN.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError: it is damaged.
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
    """A run without results, with as much as its config.yaml tells."""
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
    """The choices and the overrides that Hydra noted in the run folder; nothing where it did not."""
    noted = load_yaml(folder / ".hydra" / "hydra.yaml")
    try:
        choices = noted["hydra"]["runtime"]["choices"].items()
        overrides = tuple(map(string, noted["hydra"]["overrides"]["task"]))
    except (LookupError, TypeError, AttributeError):
        return {}, ()
    return {str(key): string(value) for key, value in choices if "/" not in str(key)}, overrides


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def display_name(folder: Path, top: Path) -> str:
    """The folder relative to ``top``; bytes that are no text are replaced, so that it can be written anywhere."""
    relative = folder.relative_to(top).as_posix()
    return os.fsencode(top.resolve().name if relative == "." else relative).decode("utf-8", "replace")
