"""The tables of benchmarks.evidence in Markdown, one row per dataset and detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import markdown
from benchmarks.judged import recorded, shares
from benchmarks.markdown import percent, rate_names, verdict_cell
from gaussad_pl.calibration.operating_points import LEVEL
from gaussad_pl.calibration.threshold import RATES

COLUMNS = ("dataset", "detector", "image AUROC", "AUPRO", "bad found", "good lost", "fit s", "score s", "seeds")
NAMES = {
    "default": "gaussad_pl, default",
    "frozen": "`+experiment=frozen`",
    "paper": "`+experiment=paper`, 3 epochs",
    "padim": "PaDiM",
    "patchcore": "PatchCore",
    "mh_patchcore": "MH-PatchCore",
    "dfm": "DFM",
    "dfkde": "DFKDE",
    "stfpm": "STFPM",
    "patchflow": "PatchFlow",
}

Record = dict[str, Any]


def table(records: list[Record]) -> str:
    """Return metrics and verdicts in percent, mean ± SEM over seeds, and the medians of CPU seconds."""
    return _table(COLUMNS, records, cells)


def targets(records: list[Record]) -> str:
    """Return good parts lost / bad parts found in percent at each target, mean ± SEM over seeds."""
    return _table(("dataset", "detector", *rate_names(RATES)), records, lost_and_found)


def _table(columns: Sequence[str], records: list[Record], cells: Callable[[list[Record]], list[str]]) -> str:
    rows = []
    for dataset in dict.fromkeys(record["dataset"] for record in records):
        of = [record for record in records if record["dataset"] == dataset]
        for method in dict.fromkeys(record["method"] for record in of):
            rows.append([dataset, NAMES[method], *cells([record for record in of if record["method"] == method])])
    return markdown.table(columns, rows, keys=1)


def lost_and_found(rows: list[Record]) -> list[str]:
    """Return the cells of `targets` of one detector on one dataset, of which ``rows`` are the seeds."""
    points = [shares(*recorded(row), RATES) for row in rows]
    return [verdict_cell([point[rate] for point in points]) for rate in RATES]


def cells(rows: list[Record]) -> list[str]:
    """Return the cells of one detector on one dataset, of which ``rows`` are the seeds.

    A dash: no map, no masks or no threshold. An exclamation mark: in at least one run, significantly more good parts
    are lost than the target allows.
    """
    contradicted = any(row["p_value"] is not None and row["p_value"] < LEVEL for row in rows)
    return [
        percent([row["image_auroc"] for row in rows]),
        percent([row.get("aupro") for row in rows]),
        percent([_share(row["bad_found"], row["bad"]) for row in rows]),
        percent([_share(row["good_lost"], row["good"]) for row in rows]) + (" !" if contradicted else ""),
        _seconds(median(row["fit_cpu_seconds"] for row in rows)),
        _seconds(median(row["score_cpu_seconds"] for row in rows)),
        str(len(rows)),
    ]


def _share(count: int | None, total: int) -> float | None:
    return None if count is None else count / total


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
