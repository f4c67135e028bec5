"""Report as Markdown, for a repository or a pull request, and its numbers as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from gaussad_pl.reporting.content import Content, cost_text, result_text, sheets
from gaussad_pl.reporting.operating import RATES
from gaussad_pl.reporting.result_sheets import GAIN
from gaussad_pl.reporting.runs import METRICS, Run
from gaussad_pl.reporting.sheets import NO_POINTS, Sheet

SPREAD = (
    "Final result of each run in percent, mean ± SEM over n runs. The runs of a category share the same images and "
    "differ in seed and fold: the SEM describes their spread, not the spread over other categories or new images."
)
# columns of results.csv for each rate
POINT = {
    "threshold": "threshold", "bad_found": "found", "bad": "bad", "good_lost": "lost", "good": "good",
    "contradicted": "contradicted",
}  # fmt: skip


def markdown(content: Content) -> str:
    """Return the report as Markdown."""
    study, everything = content.study, sheets(content)
    parts = [f"# Report on {text(content.title)}"]
    parts += [f"{len(study.runs)} finished runs, {len(study.unfinished)} unfinished. Written {content.written}."]
    parts += [text(line) for line in content.headlines]
    parts += ["## Points to check"]
    if not content.flags:
        parts += ["None."]
    for flag in content.flags:
        parts += [f"**{flag.kind}.** {flag.meaning}\n\n" + "\n".join(f"- {text(item)}" for item in flag.items)]
    parts += ["## Results", SPREAD]
    parts += [part(sheet) for sheet in everything if sheet.title in {found.title for found in content.tables}]
    parts += ["## Operating points"]
    parts += [part(sheet) for sheet in content.decisions]
    if not content.decisions:
        parts += [NO_POINTS]
    parts += ["## Frozen vs. fine-tuned"]
    if not content.compared:
        parts += ["No run was fine-tuned."]
    parts += [part(sheet) for sheet in everything if sheet.title.startswith(GAIN)]
    if content.tests.rows:
        parts += [part(content.tests)]
    if content.pairs.rows:
        parts += ["## Settings compared", part(content.pairs)]
    if study.keys:
        settings = [[name, *study.values[name]] for name in study.settings]
        parts += ["## Settings", table(["setting", *study.keys], settings)]
    parts += ["## Selection", table(["part", "rule", "runs"], content.selections)]
    parts += ["## Versions", table(["runs", "versions"], content.versions)]
    head = ["run", "category", "setting", "seed", "fold", "image AUROC", "fit, s", "peak memory, GiB"]
    head += ["backbone", "weights", "folder"]
    rows = [
        [study.labels[run.folder], run.category, study.setting_of[run.folder], str(run.seed), str(run.fold),
         result_text(run), *cost_text(run), run.backbone, run.weights, run.name]
        for run in [*study.runs, *study.repeated]
    ]  # fmt: skip
    parts += ["## Runs", table(head, rows)]
    parts += [f"{study.labels[run.folder]}:\n\n{code(_commands(run))}" for run in [*study.runs, *study.repeated]]
    return "\n\n".join(parts) + "\n"


def part(sheet: Sheet) -> str:
    """Return a table with its title and note."""
    return "\n\n".join(each for each in (f"### {text(sheet.title)}", sheet.note, table(sheet.head, sheet.rows)) if each)


def results_csv(content: Content) -> str:
    """Return results.csv, one row per run, finished or not, with metrics in [0, 1]."""
    study = content.study
    columns = [
        "run", "status", "category", "setting", "seed", "fold", "backbone", "weights", "weights_sha256", "data_sha256",
        "commit", "finished", "fit_seconds", "peak_memory_bytes", "test_good", "test_bad",
        *(f"{state}/{metric}" for state in ("frozen", "finetuned") for metric in METRICS),
        *(f"{name}@{rate}" for rate in RATES for name in POINT),
        "fine_tuning_used", "epoch_chosen", *(f"selection/{part}" for part in ("frozen", "finetuned", "segmentation")),
        "versions", "command", "overrides", "folder",
    ]  # fmt: skip
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for run in [*study.runs, *study.repeated]:
        row = {
            "run": study.labels[run.folder], "status": "repeated" if run in study.repeated else "finished",
            "category": run.category, "setting": study.setting_of[run.folder], "seed": run.seed, "fold": run.fold,
            "backbone": run.backbone, "weights": run.weights, "weights_sha256": run.weights_sha256,
            "data_sha256": run.data_sha256, "finished": _time(run.finished),
            "test_good": run.images.get("test_good", ""), "test_bad": run.images.get("test_bad", ""),
            "command": run.command, "commit": run.commit, "fit_seconds": _number(run.fit_seconds),
            "peak_memory_bytes": _number(run.peak_memory), "overrides": " ".join(run.overrides),
            "versions": " ".join(f"{name}=={version}" for name, version in run.versions.items()), "folder": run.name,
        }  # fmt: skip
        for state, metrics in (("frozen", run.frozen), ("finetuned", run.finetuned or {})):
            row |= {f"{state}/{metric}": repr(metrics[metric]) for metric in METRICS if metric in metrics}
        for rate in RATES:
            stored = vars(run.points[rate]) if rate in run.points else {}
            row |= {f"{name}@{rate}": value for name in POINT if (value := stored.get(POINT[name])) is not None}
        row |= {f"selection/{part}": rule for part, rule in run.selections.items() if f"selection/{part}" in columns}
        if run.forgetting is not None:
            row |= {"fine_tuning_used": run.forgetting.used}
            row |= {"epoch_chosen": run.forgetting.chosen} if run.forgetting.used else {}
        writer.writerow(row)
    for job in study.unfinished:
        row = {"status": "unfinished", "folder": job.name, "overrides": " ".join(job.overrides)}
        if job.folder in study.setting_of:
            row |= {"category": job.category, "setting": study.setting_of[job.folder]}
            row |= {"seed": job.seed, "fold": job.fold}
        writer.writerow(row)
    return file.getvalue()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [[text(value) for value in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(value: str) -> str:
    r"""Escape text for Markdown.

    >>> print(text("a_b | c"))
    a\_b \| c
    """
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(value.split()))


def code(value: str) -> str:
    """Return a fenced code block, with a fence longer than any run of backticks inside."""
    fence = "`" * max([2, *(len(run) for run in re.findall("`+", value))]) + "`"
    return f"{fence}\n{value}\n{fence}"


def _commands(run: Run) -> str:
    return f"{run.command}\n# overrides of this job: {' '.join(run.overrides)}" if run.overrides else run.command


def _time(seconds: float) -> str:
    """Format seconds since 1970 as an ISO 8601 time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.10g}"
