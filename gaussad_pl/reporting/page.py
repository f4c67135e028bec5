"""Report as an HTML page that needs no network: all in one file, except the gallery, which is in the run folders."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gaussad_pl.reporting import content as wording
from gaussad_pl.reporting.content import Content
from gaussad_pl.reporting.curves import Cell
from gaussad_pl.reporting.gallery import Gallery, read_gallery
from gaussad_pl.reporting.images import data_uri
from gaussad_pl.reporting.result_sheets import NOT_USED, count_text, used_text
from gaussad_pl.reporting.runs import METRICS, Run
from gaussad_pl.reporting.sheets import NO_POINTS
from gaussad_pl.reporting.study import Study
from gaussad_pl.version import __version__

SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
GALLERIES = {"misses.png": "Bad parts with the lowest scores", "false_alarms.png": "Good parts with the highest scores"}
MOST_GALLERIES = 24  # with more runs, only the first seed and fold of each cell: the page must open on a phone
FILES = ("metrics.json", "config.yaml", "scores.csv", "frozen_scores.csv", "model.ckpt")


@dataclass(frozen=True)
class Shown:
    """Pictures of one run: the galleries of its wrong images as pairs of title and data URI, and every test image."""

    run: Run
    pictures: list[tuple[str, str]]
    gallery: Gallery | None


def html(content: Content, drawn: list[Cell], out: Path) -> str:
    """Return the page, with links relative to the folder ``out``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chosen = gallery_runs(content.study)
    shown = [Shown(run, pictures(run), read_gallery(run)) for run in chosen]

    def link(path: Path) -> str:
        return quote(os.fsencode(Path(os.path.relpath(path, out)).as_posix()))

    def files(run: Run) -> list[tuple[str, str]]:
        return [(name, link(run.folder / name)) for name in FILES if (run.folder / name).is_file()]

    return environment.get_template("page.html.j2").render(
        content=content,
        study=content.study,
        cells=drawn,
        anchors={(cell.category, cell.setting): f"cell-{i}" for i, cell in enumerate(drawn, start=1)},
        galleries=[each for each in shown if each.pictures or each.gallery],
        all_galleries=len(chosen) == len(content.study.runs),
        link=link,
        files=files,
        wording=wording,
        metrics=METRICS,
        no_points=NO_POINTS,
        not_used=NOT_USED,
        count_text=count_text,
        used_text=used_text,
        version=__version__,
        script=Markup(SCRIPT),
        script_sha256=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


def gallery_runs(study: Study) -> list[Run]:
    """Return all runs, or the first seed and fold of each cell if there are many; never a choice by result."""
    if len(study.runs) <= MOST_GALLERIES:
        return study.runs
    return [runs[0] for runs in study.cells.values() if runs]


def pictures(run: Run) -> list[tuple[str, str]]:
    """Return titles and data URIs of the galleries in a run folder; a run without anomaly maps has none."""
    uris = [(title, data_uri(run.folder / name)) for name, title in GALLERIES.items()]
    return [(title, uri) for title, uri in uris if uri is not None]
