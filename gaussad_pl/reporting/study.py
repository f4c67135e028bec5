"""Runs of a report, arranged in a table of category x setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gaussad_pl.reporting.datasets import tell_apart
from gaussad_pl.reporting.runs import Job, Run, Unfinished
from gaussad_pl.reporting.settings import differing_keys, setting_names, value_text


@dataclass(frozen=True)
class Study:
    """Runs of a report, arranged by category and setting.

    Attributes:
        runs: finished runs that count, sorted by category, setting, seed and fold.
        repeated: finished runs that do not count, because a later run has the same combination.
        keys: configuration keys that differ between settings.
        values: values of ``keys`` for each setting.
        cells: runs of each category and setting; empty lists where there are none.
        setting_of: setting of each run folder whose configuration is known.
        labels: short name of each finished run.
    """

    runs: list[Run]
    repeated: list[Run]
    unfinished: list[Unfinished]
    categories: list[str]
    settings: list[str]
    keys: list[str]
    values: dict[str, list[str]]
    cells: dict[tuple[str, str], list[Run]]
    setting_of: dict[Path, str]
    labels: dict[Path, str]


def arrange(found: Sequence[Run], unfinished: Sequence[Unfinished]) -> Study:
    """Arrange runs in cells of category and setting.

    An unfinished run with a known configuration gets a cell, too, so that missing results show as empty cells.
    Different datasets of the same name are different categories, see `tell_apart`. If several runs share category,
    setting, seed and fold, the one that finished last counts.
    """
    named = [job for job in (*found, *unfinished) if job.category]
    category = dict(zip((job.folder for job in named), tell_apart(named), strict=True))
    everything = [replace(run, category=category.get(run.folder, run.category)) for run in found]
    stopped = [replace(job, category=category.get(job.folder, "")) for job in unfinished]
    known: list[Job] = [*everything, *(job for job in stopped if job.category)]
    setting_of = dict(zip((job.folder for job in known), setting_names(known), strict=True))
    names = sorted(set(setting_of.values()))
    categories = sorted({job.category for job in known})

    def place(run: Run) -> tuple[str, str, int, int]:
        return run.category, setting_of[run.folder], run.seed, run.fold

    last = {place(run): run for run in sorted(everything, key=lambda run: run.finished)}  # ties: the last folder wins
    runs = [last[key] for key in sorted(last)]
    repeated = [run for run in everything if last[place(run)] is not run]
    keys = differing_keys(known)
    example = {setting_of[job.folder]: job for job in reversed(known)}
    return Study(
        runs=runs,
        repeated=repeated,
        unfinished=stopped,
        categories=categories,
        settings=names,
        keys=keys,
        values={name: [value_text(example[name], key) for key in keys] for name in names},
        cells={(c, s): [run for run in runs if place(run)[:2] == (c, s)] for c in categories for s in names},
        setting_of=setting_of,
        labels={run.folder: f"r{number:02}" for number, run in enumerate([*runs, *repeated], start=1)},
    )
