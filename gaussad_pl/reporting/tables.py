"""The statistics of a report: means with their standard error, and the paired test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from gaussad_pl.reporting.runs import METRICS, Run
from gaussad_pl.reporting.study import Study

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and its standard error, which a single value does not have.

    Attributes:
        n: runs: seeds and folds of one category, whose images are the same; all runs of all categories together.
        categories: that the mean is over; the standard error is that of the runs, not one between categories.
    """

    mean: float
    sem: float | None
    n: int
    categories: int = 1

    def text(self, sign: bool = False) -> str:
        """In percent; with ``sign``, a difference in points."""
        mean = f"{round(100 * self.mean, 1) + 0.0:{'+' if sign else ''}.1f}".replace("-", "−").replace("+0.0", "0.0")
        return mean if self.sem is None else f"{mean} ± {100 * self.sem:.1f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and SEM (sample standard deviation over the root of n)."""
    if not values:
        return None
    sem = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), sem, len(values))


def mean_of(estimates: Sequence[Estimate]) -> Estimate | None:
    """Mean of K categories; its SEM is that of their runs, ``sqrt(sum of SEM²) / K``: none if a category has none."""
    if not estimates:
        return None
    sems = [found.sem for found in estimates if found.sem is not None]
    sem = math.hypot(*sems) / len(estimates) if len(sems) == len(estimates) else None
    mean = float(np.mean([found.mean for found in estimates]))
    return Estimate(mean, sem, sum(found.n for found in estimates), len(estimates))


@dataclass(frozen=True)
class ResultTable:
    """One metric of what the runs ended with.

    Attributes:
        cells: of each category and setting.
        common: the categories that every setting has, of those settings that have any; the means are over these, or
            settings could not be compared.
        means: of each setting.
    """

    metric: str
    title: str
    cells: dict[tuple[str, str], Estimate | None]
    common: list[str]
    means: dict[str, Estimate | None]

    def best(self, row: Mapping[str, Estimate | None]) -> set[str]:
        """The settings with the highest mean of a row, as it is shown; none where there is nothing to compare."""
        shown = {name: round(100 * found.mean, 1) for name, found in row.items() if found is not None}
        top = {name for name, mean in shown.items() if mean == max(shown.values())}
        return top if len(top) < len(shown) else set()

    def row(self, category: str) -> dict[str, Estimate | None]:
        return {setting: found for (name, setting), found in self.cells.items() if name == category}


def result_tables(study: Study) -> list[ResultTable]:
    """A table for each metric that any run has."""
    tables = []
    for metric, title in METRICS.items():
        cells = {
            place: estimate([run.final[metric] for run in runs if metric in run.final])
            for place, runs in study.cells.items()
        }
        if not any(cells.values()):
            continue
        present = [s for s in study.settings if any(cells[c, s] for c in study.categories)]
        common = [c for c in study.categories if all(cells[c, s] for s in present)]
        means = {s: mean_of([found for c in common if (found := cells[c, s]) is not None]) for s in study.settings}
        tables.append(ResultTable(metric, title, cells, common, means))
    return tables


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of paired differences of categories, two-sided.

    Attributes:
        n: categories.
        zeros: categories without any difference; the test leaves them out.
        p: None where no difference is left, or for one category alone.
    """

    n: int
    zeros: int
    p: float | None

    @property
    def smallest_p(self) -> float:
        """The p that the test would give if all differences had the same sign."""
        return min(1.0, 2.0 * 0.5 ** (self.n - self.zeros))

    @property
    def verdict(self) -> str:
        if self.n == 1:
            return "no test: one category alone, and seeds and folds of it are no independent samples"
        if self.p is None:
            return "all differences are zero"
        if self.smallest_p >= SIGNIFICANT:
            left = f", of which {self.n - self.zeros} differ" if self.zeros else ""
            few = f"too few for any significance (p ≥ {self.smallest_p:.2g} whatever the data)"
            return f"n = {self.n} categories{left}: {few}"
        return f"{'significant' if self.p < SIGNIFICANT else 'not significant'} at {SIGNIFICANT}"


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Test that the median difference of n categories is zero; one within rounding of zero counts as zero."""
    left = [value for value in differences if abs(value) > 1e-9]
    p = float(wilcoxon(left).pvalue) if left and len(differences) > 1 else None
    return PairedTest(len(differences), len(differences) - len(left), p)


@dataclass(frozen=True)
class Comparison:
    """Frozen against fine-tuned, of the runs of one category and setting, or the mean of several categories.

    Attributes:
        test: of the differences of the categories, each the mean over its seeds and folds. Those share their test
            images and most of their training images, so they are no samples of a test.
    """

    runs: list[Run]
    frozen: Estimate
    finetuned: Estimate
    gain: Estimate
    test: PairedTest

    @property
    def used(self) -> int:
        """In how many of the runs the validation preferred a fine-tuned epoch to the frozen network."""
        return sum(run.forgetting is not None and run.forgetting.used for run in self.runs)


def compare(runs: Sequence[Run], metric: str) -> Comparison | None:
    """None where no run has the metric both frozen and fine-tuned."""
    pairs = [run for run in runs if run.finetuned is not None and metric in run.frozen and metric in run.finetuned]
    categories = dict.fromkeys(run.category for run in pairs)

    def by_category(value: Callable[[Run], float]) -> list[Estimate]:
        groups = [[value(run) for run in pairs if run.category == category] for category in categories]
        return [found for group in groups if (found := estimate(group)) is not None]

    gains = by_category(lambda run: run.final[metric] - run.frozen[metric])
    frozen = mean_of(by_category(lambda run: run.frozen[metric]))
    finetuned = mean_of(by_category(lambda run: run.final[metric]))
    gain = mean_of(gains)
    if frozen is None or finetuned is None or gain is None:
        return None
    return Comparison(pairs, frozen, finetuned, gain, paired_test([found.mean for found in gains]))


def comparisons(study: Study, metric: str) -> dict[tuple[str, str], Comparison]:
    """Of each category and setting; of each setting over all categories as ``("", setting)``."""
    groups = dict(study.cells)
    for setting in study.settings:
        groups["", setting] = [run for (_, name), runs in study.cells.items() if name == setting for run in runs]
    found = {place: compare(runs, metric) for place, runs in groups.items()}
    return {place: comparison for place, comparison in found.items() if comparison is not None}
