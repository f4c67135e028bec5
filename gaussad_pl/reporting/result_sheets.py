"""Results, gains of fine-tuning and their tests as tables of text."""

from __future__ import annotations

from collections.abc import Mapping

from gaussad_pl.reporting.runs import METRICS
from gaussad_pl.reporting.sheets import Sheet
from gaussad_pl.reporting.study import Study
from gaussad_pl.reporting.tables import Comparison, Estimate, ResultTable

NOTE = "Final results in percent, mean ± standard error over n runs."
NOT_USED = "fine-tuning not used"
GAIN = "Frozen vs. fine-tuned"  # beginning of the titles of `gain_sheet`
TEXTS = ("setting", "verdict")  # columns of `tests_sheet`
GAIN_NOTE = "The same n runs before and after fine-tuning, in percent; the gain in percentage points."


def result_sheet(study: Study, found: ResultTable) -> Sheet:
    """Return the results of one metric, by category and setting."""
    rows = [[c, *(cell_text(found.cells[c, s]) for s in study.settings)] for c in study.categories]
    rows += [[f"mean of {len(found.common)}", *(cell_text(found.means[s]) for s in study.settings)]]
    return Sheet(found.title, NOTE, ["category", *study.settings], rows)


def gain_sheet(metric: str, places: Mapping[tuple[str, str], Comparison]) -> Sheet:
    """Return the comparison of frozen and fine-tuned by one metric."""
    head = ["category", "setting", "n", "frozen", "fine-tuned", "gain", "fine-tuning"]
    rows = [
        [category or f"mean of {found.gain.categories}", setting, str(found.gain.n), found.frozen.text(),
         found.finetuned.text(), found.gain.text(sign=True), used_text(found)]
        for (category, setting), found in places.items()
    ]  # fmt: skip
    return Sheet(f"{GAIN}, {METRICS[metric]}", GAIN_NOTE, head, rows, ("category", "setting", "fine-tuning"))


def tests_sheet(study: Study, compared: Mapping[str, Mapping[tuple[str, str], Comparison]]) -> Sheet:
    """Return the paired tests of frozen and fine-tuned over all categories; equal ones share a row."""
    metrics: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for metric, places in compared.items():
        for (category, setting), found in places.items():
            if not category:
                test = found.test
                outcome = (str(test.n), str(test.n - test.zeros), test.p_text, test.verdict)
                metrics.setdefault((setting, outcome), []).append(METRICS[metric])
    settings: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (setting, row), names in metrics.items():
        settings.setdefault((", ".join(names), row), []).append(setting)
    lines = [
        [names, "all" if len(same) == len(study.settings) else "; ".join(same), *row]
        for (names, row), same in settings.items()
    ]
    head = ["metric", "setting", "categories", "differ", "p", "verdict"]
    return Sheet("Paired tests", "Frozen and fine-tuned, Wilcoxon over categories.", head, lines, TEXTS)


def cell_text(found: Estimate | None) -> str:
    """Format the result of a cell with its number of runs."""
    return "–" if found is None else f"{found.text()} ({count_text(found)})"


def count_text(found: Estimate) -> str:
    """Format the number of runs behind a mean, and the number of categories if there are several.

    >>> count_text(Estimate(mean=0.9, sem=0.01, n=6, categories=2))
    'n = 6 in 2'
    """
    return f"n = {found.n}" + (f" in {found.categories}" if found.categories > 1 else "")


def used_text(found: Comparison) -> str:
    """Format in how many runs the validation preferred a fine-tuned epoch."""
    if not found.used:
        return NOT_USED
    return "used" if found.used == len(found.runs) else f"used in {found.used} of {len(found.runs)}"
