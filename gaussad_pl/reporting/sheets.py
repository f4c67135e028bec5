"""Tables of a report as text, for every format: the operating points of each cell, and of each kind of defect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from gaussad_pl.reporting.operating import RATES, contradictions, rate_text, shares
from gaussad_pl.reporting.runs import Run
from gaussad_pl.reporting.scores import final_scores, found_by_kind
from gaussad_pl.reporting.study import Study
from gaussad_pl.reporting.tables import Estimate, estimate, mean_of

NO_POINTS = "No finished run has operating points."
OPERATING = (
    "Bad images found and good test images lost, in percent, at target false-alarm rates of 1, 5, 10 and 20 %: mean ± "
    "standard error over n runs. A dash: the calibration images cannot decide at this rate, or there are no images. "
    "Contradicted: in how many runs the good test images raise significantly more false alarms than the target allows. "
    "The mean is over the categories for which every setting has the number."
)
KINDS = "Bad images found in percent, mean ± standard error over runs; images: of this kind in the test set."


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes:
        texts: names of the columns that are not numbers; the first column never is.
        means: number of rows at the end that summarise the rows above.
    """

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    texts: tuple[str, ...] = ("category", "setting")
    means: int = 0

    @property
    def body(self) -> list[list[str]]:
        return self.rows[: len(self.rows) - self.means]

    @property
    def foot(self) -> list[list[str]]:
        return self.rows[len(self.rows) - self.means :]

    def is_text(self, column: int) -> bool:
        """Return True if a column holds no numbers."""
        return column == 0 or self.head[column] in self.texts


def operating_sheet(study: Study) -> Sheet:
    """Return the shares found and lost of each category and setting, and their means over categories."""
    head = ["category", "setting", "n", "contradicted"]
    head += [f"{what} at {rate_text(r)}" for r in RATES for what in ("found", "lost")]
    columns = [(rate, share) for rate in RATES for share in (attrgetter("found_share"), attrgetter("lost_share"))]
    cells = {place: runs for place, runs in study.cells.items() if any(run.points for run in runs)}
    known = {
        place: [estimate(shares([run.points for run in runs], *column)) for column in columns]
        for place, runs in cells.items()
    }
    rows = [
        [*place, str(len(runs)), contradictions([run.points for run in runs]), *map(_text, known[place])]
        for place, runs in cells.items()
    ]
    settings = [setting for setting in study.settings if any(name == setting for _, name in cells)]
    categories = [category for category in study.categories if any(name == category for name, _ in cells)]
    means = [["mean", s, *_means(known, categories, settings, s)] for s in settings] if len(categories) > 1 else []
    texts = ("category", "setting", "contradicted")
    return Sheet("Bad found and good lost", OPERATING, head, [*rows, *means], texts, len(means))


def kinds_sheet(study: Study) -> Sheet:
    """Return the share found of each kind of defect, from the scores and thresholds of the runs."""
    rows = []
    for (category, setting), runs in study.cells.items():
        found = [_by_kind(run) for run in runs]
        for kind in sorted({kind for each in found for kinds in each.values() for kind in kinds}):
            counts = {rate: [each[rate][kind] for each in found if kind in each.get(rate, {})] for rate in RATES}
            images = max(total for each in counts.values() for _, total in each)
            means = [_text(estimate([hits / total for hits, total in counts[rate]])) for rate in RATES]
            rows.append([category, setting, kind, str(images), *means])
    head = ["category", "setting", "kind", "images", *(f"found at {rate_text(rate)}" for rate in RATES)]
    return Sheet("Bad found by kind of defect", KINDS, head, rows, ("category", "setting", "kind"))


def _means(
    known: dict[tuple[str, str], list[Estimate | None]],
    categories: Sequence[str],
    settings: Sequence[str],
    setting: str,
) -> list[str]:
    """Return the number of runs, an empty cell, and each mean over the categories that every setting has."""
    means = []
    for column in range(2 * len(RATES)):
        present = [s for s in settings if any((c, s) in known and known[c, s][column] for c in categories)]
        common = [c for c in categories if all((c, s) in known and known[c, s][column] for s in present)]
        means.append(mean_of([found for c in common if (c, setting) in known and (found := known[c, setting][column])]))
    return [str(max((mean.n for mean in means if mean), default=0)), "", *map(_text, means)]


def _by_kind(run: Run) -> dict[str, dict[str, tuple[int, int]]]:
    """Return counts by rate and kind, for the rates that have a threshold."""
    scores = final_scores(run) if run.points else None
    if scores is None:
        return {}
    thresholds = {rate: run.points[rate].threshold for rate in RATES if rate in run.points}
    return {rate: found_by_kind(scores, value) for rate, value in thresholds.items() if not math.isnan(value)}


def _text(found: Estimate | None) -> str:
    return "–" if found is None else found.text()
