"""The folders that runs left behind, read back: finished ones with their numbers, the others with what is known."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

log = logging.getLogger(__name__)

# folders inside a run folder, of loggers and checkpoints, that may hold a config.yaml of their own
INSIDE = {"wandb", "csv", "tensorboard", "checkpoints"}
LONGEST = 400  # characters of an error


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
    """A finished run. Metrics are shares of 1; those that a run does not have, or that are no number, are missing."""

    frozen: Mapping[str, float]
    finetuned: Mapping[str, float] | None
    forgetting: Forgetting | None
    selections: Mapping[str, str]
    backbone: str
    weights: str
    images: Mapping[str, int]
    masks_missing: int
    versions: Mapping[str, str]
    command: str

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
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s is not readable (%s): the run counts as unfinished", folder / "metrics.json", error)
                unfinished.append(read_unfinished(folder, top, "metrics.json is not readable"))
        elif "config.yaml" in files or ".hydra" in folders:
            unfinished.append(read_unfinished(folder, top, last_line(folder / "error.txt")))
        folders[:] = sorted(name for name in folders if name not in INSIDE and not name.startswith("."))
    return runs, unfinished


def read_run(folder: Path, top: Path) -> Run:
    """A finished run; ValueError, KeyError, TypeError or AttributeError where its metrics.json is not one."""
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    finetuned = found.get("finetuned")
    history = found.get("forgetting")
    parts = ("levels", "segmentation", "frozen", "finetuned")
    choices, overrides = hydra_choices(folder)
    return Run(
        folder=folder,
        name=display_name(folder, top),
        config=flatten(found["config"]),
        choices=choices,
        overrides=overrides,
        category=str(found["dataset"]),
        seed=int(found["seed"]),
        fold=int(found["fold"]),
        frozen=numbers(found["frozen"]),
        finetuned=None if finetuned is None else numbers(finetuned),
        forgetting=None if history is None else read_forgetting(history),
        selections={part: found[part]["selection"] for part in parts if "selection" in (found.get(part) or {})},
        backbone=str(found["backbone"]["name"]),
        weights=str(found["backbone"]["weights"]),
        images={str(key): int(value) for key, value in found["images"].items()},
        masks_missing=int(found["frozen"].get("masks_missing") or 0),
        versions={str(key): str(value) for key, value in found["versions"].items()},
        command=str(found["command"]),
    )


def read_forgetting(found: Mapping[str, Any]) -> Forgetting:
    history = found["history"]
    return Forgetting(
        signal=found["signal"],
        epochs=tuple(int(record["epoch"]) for record in history),
        values=tuple(float(record.get(found["signal"], math.nan)) for record in history),
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
        category=str(config.get("data.name", "")),
        seed=_whole(config.get("seed")),
        fold=_whole(config.get("fold")),
        reason=reason,
    )


def hydra_choices(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The choices and the overrides that Hydra noted in the run folder; nothing where it did not."""
    noted = load_yaml(folder / ".hydra" / "hydra.yaml")
    try:
        choices = noted["hydra"]["runtime"]["choices"].items()
        overrides = tuple(map(str, noted["hydra"]["overrides"]["task"]))
    except (KeyError, TypeError, AttributeError):
        return {}, ()
    return {key: str(value) for key, value in choices if "/" not in key}, overrides


def load_yaml(path: Path) -> Any:
    """Its content without resolving interpolations, None where there is none to be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # any error of yaml, omegaconf or the file system means the same: half-written, or not ours
        return None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    kept = {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in kept.items() if math.isfinite(value)}


def last_line(path: Path) -> str:
    """The last line of a text file that says anything, shortened; empty where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def display_name(folder: Path, top: Path) -> str:
    """The folder relative to ``top``; bytes that are no text are replaced, so that it can be written anywhere."""
    relative = folder.relative_to(top).as_posix()
    return os.fsencode(top.resolve().name if relative == "." else relative).decode("utf-8", "replace")
