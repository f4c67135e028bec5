"""All runs of a report in order: which are counted, in which cell of the table category x setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gaussad_pl.reporting.datasets import tell_apart
from gaussad_pl.reporting.runs import Job, Run, Unfinished
from gaussad_pl.reporting.settings import differing_keys, setting_names, value_text


@dataclass(frozen=True)
class Study:
    """What a report is about.

    Attributes:
        runs: the finished runs that count, sorted by category, setting, seed and fold.
        repeated: finished runs of a combination that another one counts for, which finished later.
        keys: what differs between settings.
        values: of each setting, the values of ``keys``.
        cells: the runs of each category and setting, empty where there are none.
        setting_of: the setting of each run folder whose configuration is known.
        labels: a short name for each finished run.
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
    """Sort runs into cells. An unfinished run whose configuration is known has a cell, too: an empty one is missing.

    Datasets of one name that are not the same are different categories: see `tell_apart`. Of runs of one category,
    setting, seed and fold the one that finished last counts.
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

    last = {place(run): run for run in sorted(everything, key=lambda run: run.finished)}  # of equals the last name
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
