"""Settings that vary between runs, and a short name for each combination of them."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from gaussad_pl.reporting.runs import Job
from gaussad_pl.reporting.stored import string

# keys that make no setting: seeds and folds, paths, logging, hardware
IGNORED = (
    "seed", "fold", "resume", "data.name", "data.root", "data.category", "data._target_", "data.url", "data.sha256",
    "data.download", "data.cache", "data.bad", "data.masks", "data.eval_batch_size", "hydra", "logger",
    "callbacks.checkpoint", "callbacks.progress", "callbacks.wandb", "trainer._target_", "trainer.default_root_dir",
    "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.num_nodes", "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps", "trainer.enable_model_summary", "trainer.enable_progress_bar",
    "trainer.use_distributed_sampler",
)  # fmt: skip
# keys that repeat another one by interpolation in conf/
COPIES = (
    "data.seed", "data.fold", "data.folds", "data.image_size", "data.augmentations", "model.backbone",
    "model.segmentation.seed",
)  # fmt: skip
OF_THE_CATEGORY = ("data.nuisance.hflip", "data.nuisance.vflip")  # set by conf/category/, unless overridden
# groups of conf/ and the keys that their choice may replace in a name
GROUPS: dict[str, tuple[str, ...]] = {
    "experiment": ("",),
    "backbone": ("backbone.",),
    "augmentation": ("augmentation.",),
    "levels": ("model.level_rule.",),
    "objective": ("model.objective.", "model.covariance", "model.train_on", "model.segmentation."),
}
ABSENT = "(absent)"


def differing_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the keys that count as settings and differ between jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.config)
    kept = [key for key in keys if not _below(key, IGNORED) and not _below(key, COPIES)]
    return [key for key in kept if len(set(_column(jobs, key))) > 1 and not _category_decides(jobs, key)]


def setting_names(jobs: Sequence[Job]) -> list[str]:
    """Return a name for the settings of each job; equal if and only if no setting differs between two jobs."""
    keys = differing_keys(jobs)
    columns: dict[str, list[Hashable]] = {key: _column(jobs, key) for key in keys}
    # a key that is merely absent in some jobs is usually redundant with another key
    varying = {key: column for key, column in columns.items() if len(set(column) - {ABSENT}) > 1}
    for key in sorted(columns, key=len):
        if _classes(varying) != _classes(columns):
            varying.setdefault(key, columns[key])
    named = _by_groups(jobs, varying)
    present = [[f"{_short(key)}={_shown(key, column[i])}" for key, column in named.items() if column[i] != ABSENT]
               for i in range(len(jobs))]  # fmt: skip
    return [", ".join(parts) or "default" for parts in present]


def value_text(job: Job, key: str) -> str:
    """Return the value of ``key`` in a job's configuration, as written in YAML."""
    if any(other.startswith(f"{key}.") for other in job.config):
        return "set"
    return _json(job.config[key], (",", ":")).strip('"') if key in job.config else "–"


def _by_groups(jobs: Sequence[Job], columns: Mapping[str, list[Hashable]]) -> dict[str, list[Hashable]]:
    """Replace keys by their group of conf/ where its choice determines their values and vice versa."""
    left = dict(columns)
    groups: dict[str, list[Hashable]] = {}
    for group, prefixes in GROUPS.items():
        if not any(job.choices for job in jobs) or (
            group != "experiment" and any(group not in j.choices for j in jobs)
        ):
            continue
        choice: list[Hashable] = [job.choices.get(group, "none") for job in jobs]
        explained = {
            key: column
            for key, column in left.items()
            if key.startswith(prefixes) and len(set(zip(choice, column, strict=True))) == len(set(choice))
        }
        if explained and len(set(choice)) > 1 and _classes(explained) == _classes({group: choice}):
            groups[group] = choice
            left = {key: column for key, column in left.items() if key not in explained}
    return groups | left


def _classes(columns: Mapping[str, Sequence[Hashable]]) -> list[int]:
    """Return for each job the first job with the same values in all columns; equal lists mean equal partitions.

    >>> _classes({"seed": [0, 1, 0]})
    [0, 1, 0]
    """
    rows = list(zip(*columns.values(), strict=True))
    return [rows.index(row) for row in rows]


def _column(jobs: Sequence[Job], key: str) -> list[Hashable]:
    return [_json(job.config[key]) if key in job.config else ABSENT for job in jobs]


def _json(value: Any, separators: tuple[str, str] = (", ", ": ")) -> str:
    """Return a value of a YAML file as canonical JSON; values that JSON lacks are spelled as in YAML."""
    return string(json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=separators))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}".replace("inf", ".inf").replace("nan", ".nan")
    return value if isinstance(value, str | int | float | None) else str(value)


def _category_decides(jobs: Sequence[Job], key: str) -> bool:
    """True if the category alone determines the value of a key: one of its kind of dataset, or of conf/category/."""
    column = _column(jobs, key)
    of_the_dataset = key.startswith("data.") and (key in OF_THE_CATEGORY or ABSENT in column)
    pairs = set(zip((job.category for job in jobs), column, strict=True))
    return of_the_dataset and len(pairs) == len({job.category for job in jobs})


def _below(key: str, tops: Sequence[str]) -> bool:
    return any(key == top or key.startswith(f"{top}.") for top in tops)


def _short(key: str) -> str:
    return key.removesuffix(".name").removesuffix("._target_")


def _shown(key: str, value: Any) -> str:
    """Return a value of a column without JSON quotes and, for a target, without its module."""
    text = str(value)
    if text.startswith('"'):
        text = str(json.loads(text))
        return text.rpartition(".")[2] if key.endswith("_target_") else text
    return text.replace(", ", ",")
