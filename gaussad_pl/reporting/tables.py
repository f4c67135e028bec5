"""Statistics of a report: means with standard errors, and the paired test."""

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
    """Mean of n values and its standard error.

    Attributes:
        sem: standard error over runs, not between categories; None for a single run.
        n: number of runs, over all seeds, folds and categories.
        categories: number of categories that the mean is over.
    """

    mean: float
    sem: float | None
    n: int
    categories: int = 1

    @property
    def falls(self) -> bool:
        """True if the mean is negative as displayed; a zero that rounding leaves is not."""
        return round(100 * self.mean, 1) < 0

    def text(self, sign: bool = False) -> str:
        """Format in percent, or with ``sign`` as a difference in percentage points.

        >>> Estimate(0.948, 0.004, 3).text()
        '94.8 ± 0.4'
        """
        mean = difference_text(self.mean) if sign else f"{round(100 * self.mean, 1) + 0.0:.1f}".replace("-", "−")
        return mean if self.sem is None else f"{mean} ± {100 * self.sem:.1f}"


def difference_text(difference: float) -> str:
    """Format a difference in percentage points.

    >>> difference_text(0.0123), difference_text(-0.05), difference_text(-0.0001)
    ('+1.2', '−5.0', '0.0')
    """
    points = round(100 * difference, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and SEM (sample standard deviation divided by the square root of n), or None without values."""
    if not values:
        return None
    sem = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), sem, len(values))


def mean_of(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the mean of K categories, with SEM ``sqrt(sum of SEM²) / K``, or no SEM if one category has none."""
    if not estimates:
        return None
    sems = [found.sem for found in estimates if found.sem is not None]
    sem = math.hypot(*sems) / len(estimates) if len(sems) == len(estimates) else None
    mean = float(np.mean([found.mean for found in estimates]))
    return Estimate(mean, sem, sum(found.n for found in estimates), len(estimates))


@dataclass(frozen=True)
class ResultTable:
    """One metric of the final models.

    Attributes:
        cells: estimate for each category and setting.
        common: categories for which every setting has results, ignoring settings without any. Means are taken over
            these categories, so that settings are comparable.
        means: mean over the common categories for each setting.
    """

    metric: str
    title: str
    cells: dict[tuple[str, str], Estimate | None]
    common: list[str]
    means: dict[str, Estimate | None]

    def best(self, row: Mapping[str, Estimate | None]) -> set[str]:
        """Return the settings with the highest displayed mean of a row; none if all are equal."""
        shown = {name: round(100 * found.mean, 1) for name, found in row.items() if found is not None}
        top = {name for name, mean in shown.items() if mean == max(shown.values())}
        return top if len(top) < len(shown) else set()

    def row(self, category: str) -> dict[str, Estimate | None]:
        """Return the estimates of one category by setting."""
        return {setting: found for (name, setting), found in self.cells.items() if name == category}


def result_tables(study: Study) -> list[ResultTable]:
    """Return one table per metric that at least one run has."""
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
    """Two-sided Wilcoxon signed-rank test of paired differences between categories.

    Attributes:
        n: number of categories.
        zeros: number of categories without a difference, which the test excludes.
        p: p-value; None if no difference is left, or for a single category.
    """

    n: int
    zeros: int
    p: float | None

    @property
    def smallest_p(self) -> float:
        """Smallest attainable p-value, reached if all differences have the same sign."""
        return min(1.0, 2.0 * 0.5 ** (self.n - self.zeros))

    @property
    def p_text(self) -> str:
        """The p-value, or a dash where no data could be significant."""
        return "–" if self.p is None or self.smallest_p >= SIGNIFICANT else f"{self.p:.2g}"

    @property
    def verdict(self) -> str:
        """Outcome of the test in words."""
        if self.n == 1:
            return "no test: seeds and folds of a single category are not independent samples"
        if self.p is None:
            return "all differences are zero"
        if self.smallest_p >= SIGNIFICANT:
            left = f", of which {self.n - self.zeros} differ" if self.zeros else ""
            least = f" (p ≥ {self.smallest_p:.2g} whatever the data)" if self.smallest_p < 1 else ""
            return f"n = {self.n} categories{left}: too few for significance{least}"
        return f"{'significant' if self.p < SIGNIFICANT else 'not significant'} at {SIGNIFICANT}"


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Test whether the differences of n categories are centred at zero; values within rounding of zero are zeros."""
    left = [value for value in differences if abs(value) > 1e-9]
    p = float(wilcoxon(left).pvalue) if left and len(differences) > 1 else None
    return PairedTest(len(differences), len(differences) - len(left), p)


@dataclass(frozen=True)
class Comparison:
    """Frozen and fine-tuned results of the runs of one category and setting, or of the mean of several categories.

    Attributes:
        test: paired test over categories. The difference of a category is the mean over its seeds and folds, which
            share test images and most training images and so are not independent samples.
    """

    runs: list[Run]
    frozen: Estimate
    finetuned: Estimate
    gain: Estimate
    test: PairedTest

    @property
    def used(self) -> int:
        """Number of runs in which the validation preferred a fine-tuned epoch to the frozen network."""
        return sum(run.forgetting is not None and run.forgetting.used for run in self.runs)


def compare(runs: Sequence[Run], metric: str) -> Comparison | None:
    """Compare frozen and fine-tuned runs by a metric; None if no run has it for both."""
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
    """Return the comparison for each category and setting, and over all categories as ``("", setting)``."""
    groups = dict(study.cells)
    for setting in study.settings:
        groups["", setting] = [run for (_, name), runs in study.cells.items() if name == setting for run in runs]
    found = {place: compare(runs, metric) for place, runs in groups.items()}
    return {place: comparison for place, comparison in found.items() if comparison is not None}
