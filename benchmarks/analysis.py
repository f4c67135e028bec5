"""Tables and figures of benchmarks.fine_tuning, from the records of its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr, wilcoxon

from gaussad_pl.training.signals import DISTANCE, SIGNALS, judge, oriented

DEFAULT_SIGNAL, PATIENCE = "log_ratio", 10**6
FORGOT = 1.0  # a run counts as forgetting if its last epoch is at least this many AUROC points below its best one

Job = dict[str, Any]


def chosen_epoch(job: Job, signal: str = DEFAULT_SIGNAL) -> int:
    """Return the epoch whose weights `ForgettingStop` would have restored in this run."""
    return judge(job["history"], signal, PATIENCE)[0]


def signal_values(job: Job, name: str) -> list[float]:
    """Return the signal of every epoch, with its sign such that larger is better."""
    return [oriented(record, name) for record in job["history"]]


def test_curve(job: Job) -> np.ndarray:
    """Return the test AUROC of every epoch in percent, ``(epochs + 1,)``."""
    return 100 * np.array(job["test_auroc"])


def gain(job: Job) -> float:
    """Return the gain in test AUROC of the state that was used over the frozen network, in points."""
    return 100 * float(job["tuned"] - job["frozen"])


def regret(job: Job) -> float:
    """Return the test AUROC lost against the best of all epochs and the state that was used, in points."""
    return max(0.0, float(test_curve(job).max()) - 100 * float(job["chosen"]))


def mean_sem(values: Sequence[float]) -> str:
    """Format the mean and its standard error.

    >>> mean_sem([94.0, 96.0])
    '95.00 ± 1.00'
    """
    array = np.asarray(values)
    sem = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return f"{array.mean():.2f} ± {sem:.2f}"


def paired_test(differences: Sequence[float]) -> str:
    """Format the two-sided Wilcoxon signed-rank test of the differences against zero."""
    if not np.any(differences):
        return f"all zero, n = {len(differences)}"
    return f"p = {wilcoxon(differences).pvalue:.3f}, n = {len(differences)}"


def settings_of(jobs: list[Job]) -> list[str]:
    """Return the settings of the jobs, in order of appearance."""
    return list(dict.fromkeys(job["setting"] for job in jobs))


def datasets_of(jobs: list[Job]) -> list[str]:
    """Return the datasets of the jobs, in order of appearance."""
    return list(dict.fromkeys(job["dataset"] for job in jobs))


def gains_table(jobs: list[Job]) -> Table:
    """Return a table of frozen and fine-tuned test AUROC, mean ± SEM over seeds."""
    table = Table(title="Image AUROC in percent (map and pooled features)", title_justify="left")
    for column in ("setting", "dataset", "frozen", "fine-tuned", "gain", "used", "regret", "AUPRO", "seconds"):
        table.add_column(column, justify="left" if column in ("setting", "dataset") else "right")
    for setting in settings_of(jobs):
        rows = [job for job in jobs if job["setting"] == setting]
        for dataset in [*datasets_of(rows), "all"]:
            some = [job for job in rows if dataset in ("all", job["dataset"])]
            aupro = [100 * job["aupro"] for job in some if job["aupro"] is not None]
            table.add_row(
                setting, dataset, mean_sem([100 * job["frozen"] for job in some]),
                mean_sem([100 * job["tuned"] for job in some]), mean_sem([gain(job) for job in some]),
                f"{sum(job['used'] for job in some)} of {len(some)}", mean_sem([regret(job) for job in some]),
                mean_sem(aupro) if aupro else "", f"{np.median([job['seconds'] for job in some]):.0f}",
                end_section=dataset == "all",
            )  # fmt: skip
    return table


def signals_table(jobs: list[Job], names: Sequence[str], title: str) -> Table:
    """Return a table of each signal's rank correlation with the test AUROC, and its gain and regret as stopping rule.

    The regret is the test AUROC lost against the best epoch of the run, in points.
    """
    table = Table(title=f"{title} ({len(jobs)} runs)", title_justify="left")
    for column in ("signal", "Spearman", "gain over frozen", "regret vs. best epoch", "lost without stopping"):
        table.add_column(column, justify="left" if column == "signal" else "right")
    curves = [test_curve(job) for job in jobs]
    lost = [curve.max() - curve[-1] for curve in curves]
    for name in names:
        values = [signal_values(job, name) for job in jobs]
        chosen = [chosen_epoch(job, name) for job in jobs]
        follows = [spearmanr(value, curve).statistic for value, curve in zip(values, curves, strict=True)]
        gains = [curve[epoch] - curve[0] for epoch, curve in zip(chosen, curves, strict=True)]
        regrets = [curve.max() - curve[epoch] for epoch, curve in zip(chosen, curves, strict=True)]
        table.add_row(name, mean_sem(follows), mean_sem(gains), mean_sem(regrets), mean_sem(lost))
    return table


def forgetting_figure(job: Job) -> Figure:
    """Plot training loss, signals and test AUROC over the epochs of one run, and mark the chosen epoch."""
    figure = Figure(figsize=(6, 9), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    signal = signal_values(job, DEFAULT_SIGNAL)
    epochs = range(len(signal))
    losses = [record.get("loss", float("nan")) for record in job["history"]]
    rows = (
        ("training loss", losses),
        (DEFAULT_SIGNAL, signal),
        ("AUROC, augmented copies", signal_values(job, "auroc")),
        ("test AUROC in percent", test_curve(job)),
    )
    for panel, (label, values) in zip(panels, rows, strict=True):
        panel.plot(epochs, values, marker="o", color="#2a7f9e")
        panel.set_ylabel(label)
        panel.axvline(chosen_epoch(job), color="#c8443c", linestyle="--")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(f"{job['dataset']}, {job['setting']}, seed {job['seed']}; dashed: chosen epoch", fontsize=10)
    panels[-1].set_xlabel("epoch (0 is the frozen network)")
    return figure


def report(jobs: list[Job], out: Path, console: Console) -> None:
    """Print all tables, save them as text in ``out``, and save a figure of every run that forgot."""
    recorder = Console(record=True, width=140, file=(out / "tables.txt").open("w"))
    tables = [gains_table(jobs)]
    console.print(f"gain over frozen, all runs: {paired_test([gain(job) for job in jobs])}", highlight=False)
    trained = [job for job in jobs if len(job["history"]) > 1]
    forgot = [job for job in trained if test_curve(job).max() - test_curve(job)[-1] >= FORGOT]
    for title, some in (("Signals, all runs", trained), ("Signals, runs that forget", forgot)):
        if some:
            augmentations = [name.removeprefix("auroc/") for name in some[0]["history"][0] if name.startswith("auroc/")]
            tables.append(signals_table(some, [*SIGNALS, DISTANCE], title))
            alone = [f"paired/{name}" for name in augmentations]
            tables.append(signals_table(some, alone, f"{title}: single augmentations"))
    for table in tables:
        console.print(table)
        recorder.print(table)
    for job in forgot:
        forgetting_figure(job).savefig(out / f"{job['dataset']}-{job['setting']}-seed{job['seed']}.png", dpi=120)
