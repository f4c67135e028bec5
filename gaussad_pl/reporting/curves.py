"""Curves of every cell of a report, and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gaussad_pl.files import replacing, unwritable, write_text
from gaussad_pl.reporting.figures import Drawing, forgetting_figure, histogram_figure, roc_figure
from gaussad_pl.reporting.runs import Run
from gaussad_pl.reporting.scores import final_scores, frozen_scores
from gaussad_pl.reporting.study import Study

LONGEST = 80  # characters of a file name, without number and kind


@dataclass(frozen=True)
class Cell:
    """Curves of one category and setting; a drawing is None if its data are missing."""

    category: str
    setting: str
    runs: list[Run]
    roc: Drawing | None
    histogram: Drawing | None
    forgetting: Drawing | None
    unreadable: list[Run]


def cells(study: Study) -> list[Cell]:
    """Draw the curves of every cell that has runs."""
    return [cell(study, category, setting) for (category, setting), runs in study.cells.items() if runs]


def cell(study: Study, category: str, setting: str) -> Cell:
    """Draw the curves of the runs of one cell."""
    name, runs = f"{category} × {setting}", study.cells[category, setting]
    final = {run.folder: final_scores(run) for run in runs}
    changed = [run for run in runs if run.forgetting is not None and run.forgetting.used]
    label = study.labels
    read = {label[folder]: one for folder, one in final.items() if one is not None}
    frozen = {label[run.folder]: one for run in changed if (one := frozen_scores(run)) is not None}
    forgetting = {label[run.folder]: run.forgetting for run in runs if run.forgetting is not None}
    return Cell(
        category=category,
        setting=setting,
        runs=runs,
        roc=roc_figure(read, frozen, name),
        histogram=histogram_figure(read, {label[run.folder]: run.threshold for run in runs}, name),
        forgetting=forgetting_figure(forgetting, name),
        unreadable=[run for run in runs if final[run.folder] is None],
    )


def save_curves(drawn: Iterable[Cell], folder: Path) -> None:
    """Write each curve as SVG and PDF, named after the number of its cell, the category and the setting.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    for number, each in enumerate(drawn, start=1):
        slug = re.sub(r"[^A-Za-z0-9.=]+", "-", f"{each.category}-{each.setting}").strip("-.")[:LONGEST]
        for kind in ("roc", "histogram", "forgetting"):
            drawing: Drawing | None = getattr(each, kind)
            if drawing is not None:
                path = folder / f"{number:02}-{slug}-{kind}"
                write_text(path.with_name(f"{path.name}.svg"), drawing.svg)
                with replacing(path.with_name(f"{path.name}.pdf")) as partial:
                    partial.write_bytes(drawing.pdf)
