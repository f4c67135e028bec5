"""Labels for different datasets that share a name."""

from __future__ import annotations

import posixpath
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath

from gaussad_pl.reporting.runs import Job, Run
from gaussad_pl.reporting.stored import string

PLACES = ("data.root", "data.category", "data.bad", "data.masks")  # settings that locate the images of a dataset
Place = tuple[str, ...]


def tell_apart(jobs: Sequence[Job]) -> list[str]:
    """Return the category of each job, extended by the location of its dataset if several datasets share the name.

    Two datasets are the same if they have the same location, or the same fingerprint of all image names and sizes.
    """
    categories: dict[Path, str] = {}
    for name in {job.category for job in jobs}:
        groups = _datasets([job for job in jobs if job.category == name])
        labels = [name] if len(groups) == 1 else _labels(name, [_place(group[0]) for group in groups])
        categories |= {job.folder: label for label, group in zip(labels, groups, strict=True) for job in group}
    return [categories[job.folder] for job in jobs]


def _datasets(jobs: Sequence[Job]) -> list[list[Job]]:
    """Group jobs by dataset, in the order of the first job of each group."""
    groups: list[tuple[set[Hashable], list[Job]]] = []
    for job in jobs:
        marks: set[Hashable] = {_place(job)}
        if isinstance(job, Run) and job.data_sha256:
            marks.add(job.data_sha256)
        same = [group for group in groups if group[0] & marks]
        place = groups.index(same[0]) if same else len(groups)
        groups = [group for group in groups if not group[0] & marks]
        members = [member for _, group in same for member in group]
        groups.insert(place, (marks.union(*(known for known, _ in same)), [*members, job]))
    return [members for _, members in groups]


def _place(job: Job) -> Place:
    values = (job.config.get(key) for key in PLACES)
    return tuple("" if value is None else posixpath.normpath(string(value)) for value in values)


def _labels(name: str, places: Sequence[Place]) -> list[str]:
    """Return labels such as ``name (a/screw)``, with the shortest path endings that distinguish the places."""
    columns = [_tails(column) for column in zip(*places, strict=True) if len(set(column)) > 1]
    return [f"{name} ({', '.join(part or '–' for part in row)})" for row in zip(*columns, strict=True)]


def _tails(paths: Sequence[str]) -> list[str]:
    """Return the shortest endings that keep different paths different.

    >>> _tails(["data/a/screw", "data/b/screw"])
    ['a/screw', 'b/screw']
    """
    parts = [PurePosixPath(path).parts for path in paths]
    for count in range(1, max(map(len, parts))):
        tails = ["/".join(part[-count:]) for part in parts]
        if len(set(tails)) == len(set(paths)):
            return tails
    return list(paths)
