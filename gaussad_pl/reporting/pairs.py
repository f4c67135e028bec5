"""Any two settings compared, paired over categories."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import t

from gaussad_pl.reporting.runs import METRICS, Run
from gaussad_pl.reporting.sheets import Sheet
from gaussad_pl.reporting.study import Study
from gaussad_pl.reporting.tables import PairedTest, difference_text, paired_test

CONFIDENCE = 0.95
FOUND = "bad found at 5 %"
NOTE = (
    "Any two settings, paired over categories, in percentage points. Of each category, the mean over the seeds and "
    "folds that both settings have is one sample: runs of a category share images and are not independent. The "
    "interval is that of Student's t for the mean difference (95 %), p that of the two-sided Wilcoxon signed-rank test "
    "of n categories, not corrected for the number of comparisons; a dash where n is too small for significance."
)


@dataclass(frozen=True)
class SettingComparison:
    """Two settings compared by one measure over their common categories.

    Attributes:
        means: of both settings over the categories.
        differences: second minus first setting for each category, from means over common seeds and folds.
        interval: 95 % interval of the mean difference; None for a single category.
    """

    measure: str
    settings: tuple[str, str]
    means: tuple[float, float]
    differences: dict[str, float]
    interval: tuple[float, float] | None
    test: PairedTest

    @property
    def difference(self) -> float:
        """Mean difference over the categories."""
        return float(np.mean(list(self.differences.values())))


def compare_settings(study: Study) -> list[SettingComparison]:
    """Compare any two settings by each of the main measures that they have."""
    measures: dict[str, Callable[[Run], float | None]] = {
        METRICS["image_auroc"]: lambda run: run.final.get("image_auroc"),
        METRICS["aupro"]: lambda run: run.final.get("aupro"),
        FOUND: lambda run: run.points["0.05"].found_share if "0.05" in run.points else None,
    }
    pairs = [(name, pair) for name in measures for pair in combinations(study.settings, 2)]
    found = [compare_pair(study, name, measures[name], pair) for name, pair in pairs]
    return [each for each in found if each is not None]


def compare_pair(
    study: Study, name: str, measure: Callable[[Run], float | None], settings: tuple[str, str]
) -> SettingComparison | None:
    """Compare two settings by a measure; None without a category in which both have it for a common seed and fold."""
    means: dict[str, tuple[float, float]] = {}
    for category in study.categories:
        first, second = (_by_repetition(study.cells[category, setting], measure) for setting in settings)
        if common := sorted(first.keys() & second.keys()):
            means[category] = (
                float(np.mean([first[key] for key in common])),
                float(np.mean([second[key] for key in common])),
            )
    if not means:
        return None
    differences = {category: after - before for category, (before, after) in means.items()}
    values = list(differences.values())
    before, after = (float(np.mean(column)) for column in zip(*means.values(), strict=True))
    return SettingComparison(name, settings, (before, after), differences, mean_interval(values), paired_test(values))


def mean_interval(values: list[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of n independent values after Student; None for a single value.

    >>> low, high = mean_interval([0.0, 1.0])
    >>> round(low, 2), round(high, 2)
    (-5.85, 6.85)
    """
    if len(values) < 2:
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def pairs_sheet(study: Study) -> Sheet:
    """Return the comparisons of any two settings; without rows if there is one setting."""
    rows = [
        [
            each.measure,
            *each.settings,
            str(each.test.n),
            *(f"{100 * mean:.1f}" for mean in each.means),
            difference_text(each.difference),
            "–" if each.interval is None else " to ".join(map(difference_text, each.interval)),
            each.test.p_text,
        ]
        for each in compare_settings(study)
    ]
    head = ["measure", "setting A", "setting B", "n", "A", "B", "B − A", "95 % interval", "p"]
    return Sheet("Comparison of settings", NOTE, head, rows, ("measure", "setting A", "setting B"))


def _by_repetition(runs: list[Run], measure: Callable[[Run], float | None]) -> dict[tuple[int, int], float]:
    """Return the measure of each run that has it, by seed and fold."""
    return {(run.seed, run.fold): value for run in runs if (value := measure(run)) is not None}
