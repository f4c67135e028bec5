"""Content of a report, independent of its format: HTML, Markdown or CSV."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gaussad_pl.reporting.flags import Flag, find_flags
from gaussad_pl.reporting.pairs import pairs_sheet
from gaussad_pl.reporting.result_sheets import NOT_USED, gain_sheet, result_sheet, tests_sheet
from gaussad_pl.reporting.runs import Run, display_name
from gaussad_pl.reporting.sheets import Sheet, kinds_sheet, operating_sheet
from gaussad_pl.reporting.study import Study
from gaussad_pl.reporting.tables import Comparison, Estimate, ResultTable, comparisons, result_tables

COMPARED = ("image_auroc", "pixel_auroc", "aupro")  # metrics compared between the frozen and fine-tuned model
PARTS = {
    "levels": "levels", "segmentation": "anomaly map", "frozen": "frozen result", "finetuned": "fine-tuned result"
}  # fmt: skip


@dataclass(frozen=True)
class Content:
    """Content of a report, except for figures and galleries.

    Attributes:
        compared: for each metric, the comparison of frozen and fine-tuned in each cell ``(category, setting)``, and
            over all categories as ``("", setting)``.
        selections: part of the result, selection rule, runs.
        versions: runs and the versions they share.
        decisions: tables of operating points.
        pairs: comparison of any two settings.
        tests: paired tests of frozen and fine-tuned.
    """

    title: str
    top: Path
    written: str
    command: str
    study: Study
    flags: list[Flag]
    tables: list[ResultTable]
    compared: dict[str, dict[tuple[str, str], Comparison]]
    selections: list[tuple[str, str, str]]
    versions: list[tuple[str, str]]
    headlines: list[str]
    decisions: list[Sheet]
    pairs: Sheet
    tests: Sheet


def compose(top: Path, study: Study) -> Content:
    """Return the content of the report on the runs in ``top``."""
    tables = result_tables(study)
    compared = {metric: found for metric in COMPARED if (found := comparisons(study, metric))}
    rules = [(PARTS[part], _rule(text), run) for part in PARTS for run in study.runs
             if (text := run.selections.get(part))]  # fmt: skip
    versions = [(name, version, run) for run in study.runs for name, version in run.versions.items()]
    return Content(
        title=display_name(top, top),
        top=top,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        command=shlex.join(sys.orig_argv),
        study=study,
        flags=find_flags(study),
        tables=tables,
        compared=compared,
        selections=_by_runs(study, rules),
        versions=_same_runs(_by_runs(study, versions)),
        headlines=headlines(study, tables, compared.get("image_auroc", {})),
        decisions=[sheet for sheet in (operating_sheet(study), kinds_sheet(study)) if sheet.rows],
        pairs=pairs_sheet(study),
        tests=tests_sheet(study, compared),
    )


def headlines(study: Study, tables: list[ResultTable], compared: dict[tuple[str, str], Comparison]) -> list[str]:
    """Summarise the result in one to three sentences."""
    sentences = []
    for table in tables[:1]:
        title = table.title[0].upper() + table.title[1:]
        means = {setting: found for setting, found in table.means.items() if found is not None}
        over = f"mean of {len(table.common)} categories" if len(table.common) > 1 else "".join(table.common)
        if len(means) == 1:
            sentences.append(f"{title}, {over}: {spread(*means.values())}.")
        elif means:
            ordered = sorted(means, key=lambda setting: means[setting].mean)
            high, low = ordered[-1], ordered[0]
            sentences.append(f"{title}, {over}: from {spread(means[low])} ({low}) to {spread(means[high])} ({high}).")
    tuned = [run for run in study.runs if run.forgetting is not None]
    if tuned:
        used = sum(run.forgetting.used for run in tuned if run.forgetting is not None)
        sentences.append(f"{NOT_USED} in any of {len(tuned)} runs: the validation showed no gain.".capitalize()
                         if not used else f"Fine-tuning was used in {used} of {len(tuned)} runs.")  # fmt: skip
        for (category, setting), found in compared.items() if used and len(study.settings) <= 3 else ():
            if not category:
                name = f" ({setting})" if len(study.settings) > 1 else ""
                test = f"; {test_text(found)}" if found.test.p_text != "–" or not name else ""
                sentences.append(f"Gain over the frozen network{name}: {points(found.gain)}{test}.")
    elif study.runs:
        sentences.append("No run was fine-tuned.")
    return sentences


def sheets(content: Content) -> list[Sheet]:
    """Return all numbers of a report as tables of text."""
    results = [result_sheet(content.study, found) for found in content.tables]
    gains = [gain_sheet(metric, places) for metric, places in content.compared.items()]
    rest = [sheet for sheet in (content.tests, content.pairs) if sheet.rows]
    return [*results, *content.decisions, *gains, *rest]


def seeds_and_folds(study: Study) -> tuple[str, str]:
    """Return how many seeds and folds were run, as a product only if each seed ran on each fold, and which ones."""
    pairs = sorted({(run.seed, run.fold) for run in study.runs})
    seeds, folds = (sorted(set(column)) for column in zip(*pairs, strict=True)) if pairs else ([], [])
    if len(pairs) == len(seeds) * len(folds):
        names = [", ".join(map(str, column)) or "–" for column in (seeds, folds)]
        return f"{len(seeds)} × {len(folds)}", f"seed {names[0]}; fold {names[1]}"
    listed = [f"seed {seed} fold {fold}" for seed, fold in pairs]
    return f"{len(pairs)} pairs", ", ".join(listed[:6]) + (", …" if len(listed) > 6 else "")


def epoch_text(run: Run) -> str:
    """Return the epoch of the final model, or a dash for the frozen network."""
    return str(run.forgetting.chosen) if run.forgetting is not None and run.forgetting.used else "–"


def cost_text(run: Run) -> tuple[str, str]:
    """Format the wall time of the fit in seconds and the peak memory in GiB."""
    seconds = "–" if math.isnan(run.fit_seconds) else f"{run.fit_seconds:.0f}"
    return seconds, "–" if math.isnan(run.peak_memory) else f"{run.peak_memory / 2**30:.1f}"


def spread(found: Estimate) -> str:
    """Format an estimate in percent."""
    return f"{found.text()} %"


def points(found: Estimate) -> str:
    """Format a difference in percentage points."""
    return f"{found.text(sign=True)} points"


def test_text(found: Comparison) -> str:
    """Format the verdict of the test over categories, with its p-value where it means something."""
    if found.test.p is None or found.test.smallest_p >= 0.05:
        return f"Wilcoxon: {found.test.verdict}"
    return f"Wilcoxon over n = {found.test.n} categories: p = {found.test.p:.2g}, {found.test.verdict}"


def result_text(run: Run, metric: str = "image_auroc") -> str:
    """Format a final metric of a run in percent, or a dash if the run does not have it."""
    value = run.final.get(metric)
    return "–" if value is None else f"{100 * value:.1f}"


def _rule(text: str) -> str:
    """Return a selection rule without its epoch numbers, which differ between runs."""
    return re.sub(r"epoch \d+ of \d+", "an epoch", text)


def _by_runs(study: Study, entries: Iterable[tuple[str, str, Run]]) -> list[tuple[str, str, str]]:
    """Merge equal ``(name, text)`` entries and list the labels of their runs."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, text, run in entries:
        groups.setdefault((name, text), []).append(study.labels[run.folder])
    every = len(study.runs)
    return [(*key, "all runs" if len(set(labels)) == every else ", ".join(labels)) for key, labels in groups.items()]


def _same_runs(entries: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Merge the entries of the same runs into one text."""
    groups: dict[str, list[str]] = {}
    for name, text, runs in entries:
        groups.setdefault(runs, []).append(f"{name} {text}")
    return [(runs, ", ".join(same)) for runs, same in groups.items()]
