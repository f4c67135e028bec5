"""Operating points of runs: bad images found and good images lost at each target false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gaussad_pl.calibration import threshold
from gaussad_pl.reporting.stored import count, real

RATES = tuple(f"{rate:g}" for rate in threshold.RATES)  # keys of the operating points in metrics.json


@dataclass(frozen=True)
class Point:
    """The decisions of one run at one target rate, as in `gaussad_pl.calibration.operating_points`.

    Attributes:
        threshold: of the scores; NaN if there is none.
        lost: number of good test images above the threshold, of ``good``; None if that is unknown.
        found: number of bad test images above the threshold, of ``bad``; None if that is unknown.
        p_value: of the test of the target; NaN without one.
        contradicted: True if there are significantly more false alarms than the target allows; None if that was not
            tested.
    """

    threshold: float
    lost: int | None = None
    good: int = 0
    found: int | None = None
    bad: int = 0
    p_value: float = math.nan
    contradicted: bool | None = None

    @property
    def lost_share(self) -> float | None:
        return None if self.lost is None or not self.good else self.lost / self.good

    @property
    def found_share(self) -> float | None:
        return None if self.found is None or not self.bad else self.found / self.bad


def read_points(found: Mapping[str, Any]) -> dict[str, Point]:
    """Read the operating points in the content of metrics.json, by the text of their rate.

    Of runs of older versions, only thresholds are known. Good images of the calibration are not counted: the thresholds
    come from their scores.

    Raises:
        ValueError, TypeError, AttributeError: the record is damaged.
    """
    if not (points := found.get("operating_points")):
        thresholds = (found.get("calibration") or {}).get("thresholds") or {}
        return {str(rate): Point(real((each or {}).get("value"))) for rate, each in thresholds.items()}
    return {str(rate): _point(each or {}) for rate, each in points.items()}


def _point(stored: Mapping[str, Any]) -> Point:
    tested, contradicted = stored.get("good_from") == "test", stored.get("contradicted")
    return Point(
        threshold=real(stored.get("threshold")),
        lost=count(stored.get("good_lost")) if tested else None,
        good=(count(stored.get("good")) or 0) if tested else 0,
        found=count(stored.get("bad_found")),
        bad=count(stored.get("bad")) or 0,
        p_value=real(stored.get("p_value")),
        contradicted=None if contradicted is None else bool(contradicted),
    )


def rate_text(rate: str) -> str:
    """Format a rate in percent.

    >>> rate_text("0.05")
    '5 %'
    """
    return f"{100 * float(rate):g} %"


def contradictions(points: Sequence[Mapping[str, Point]]) -> str:
    """Describe at which rates the observed false alarms of the runs of a cell contradict the target."""
    tested = {rate: [each[rate] for each in points if _tested(each, rate)] for rate in RATES}
    broken = {rate: sum(bool(point.contradicted) for point in found) for rate, found in tested.items()}
    if not any(tested.values()):
        return "not tested"
    texts = [f"{rate_text(rate)}: {broken[rate]} of {len(tested[rate])}" for rate in RATES if broken[rate]]
    return ", ".join(texts) or "no"


def shares(points: Sequence[Mapping[str, Point]], rate: str, share: Callable[[Point], float | None]) -> list[float]:
    """Return a share of each run in which it is known."""
    found = [share(each[rate]) for each in points if rate in each]
    return [value for value in found if value is not None]


def _tested(points: Mapping[str, Point], rate: str) -> bool:
    return rate in points and points[rate].contradicted is not None
