"""The gallery of every test image of a run, read back from its folder, with the verdicts at each rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaussad_pl.reporting.runs import Run
from gaussad_pl.reporting.stored import DAMAGE, load_json, real, string

SHOWN = 0.05  # rate of the verdicts that the page shows at first, and without scripts


@dataclass(frozen=True)
class Shot:
    """A test image: its picture beside the same under its map, and its score.

    Attributes:
        name: kind and file name.
        bad: True if the image has a defect.
    """

    file: Path
    name: str
    bad: bool
    score: float
    p_value: float

    def verdict(self, threshold: float | None) -> str:
        """Return the verdict at a threshold; undecided if there is none."""
        return "undecided" if threshold is None else "bad" if self.score > threshold else "good"

    def is_wrong(self, threshold: float | None) -> bool:
        """Return True for a bad image that is called good, and for a good one that is called bad."""
        return self.verdict(threshold) == ("good" if self.bad else "bad")


@dataclass(frozen=True)
class Decision:
    """The threshold at one false-alarm rate, None if every image is undecided, and what it does in one line."""

    rate: float
    threshold: float | None
    line: str


@dataclass(frozen=True)
class Gallery:
    """Every test image of a run.

    Attributes:
        shots: bad images with the lowest scores first, then good ones with the highest first.
        decisions: by ascending rate.
        scale: distance at which the colours of the maps begin, their threshold, which may be unknown, and their end;
            empty without maps.
    """

    shots: list[Shot]
    decisions: list[Decision]
    scale: list[str]

    @property
    def shown(self) -> Decision:
        """The decision that the page shows at first."""
        return min(self.decisions, key=lambda each: abs(each.rate - SHOWN))

    @property
    def for_script(self) -> str:
        """The rates in percent, thresholds and lines of all decisions as JSON."""
        return json.dumps([[round(100 * each.rate), each.threshold, each.line] for each in self.decisions])

    def of(self, bad: bool) -> list[Shot]:
        """Return the bad or the good images."""
        return [shot for shot in self.shots if shot.bad == bad]


def read_gallery(run: Run) -> Gallery | None:
    """Read the gallery of a run; None if it has none, as in older versions, or if its record is damaged."""
    folder = run.folder / "gallery"
    try:
        found = load_json(folder / "images.json")
        shots = [_shot(folder / f"{index:04}.webp", each) for index, each in enumerate(found["images"])]
        shots.sort(key=lambda shot: (not shot.bad, shot.score if shot.bad else -shot.score))
        decisions = [_decision(each, shots) for each in found["thresholds"]]
        scale = ["" if math.isnan(value) else f"{value:.3g}" for value in map(real, found["scale"] or ())]
    except DAMAGE:
        return None
    numbers = [shot.score for shot in shots] + [each.rate + (each.threshold or 0) for each in decisions]
    sound = decisions and all(map(math.isfinite, numbers)) and len(scale) in (0, 3)
    return Gallery(shots, sorted(decisions, key=lambda each: each.rate), scale) if sound else None


def _shot(file: Path, stored: Mapping[str, Any]) -> Shot:
    name = f"{string(stored['kind'])}/{string(stored['path']).rpartition('/')[2]}"
    return Shot(file, name, stored["label"] == 1, real(stored["score"]), real(stored["p_value"]))


def _decision(stored: Mapping[str, Any], shots: Sequence[Shot]) -> Decision:
    threshold = None if stored["value"] is None else real(stored["value"])
    if threshold is None:
        line = "undecided: too few calibration images"
    else:
        counts = [[shot.score > threshold for shot in shots if shot.bad == bad] for bad in (True, False)]
        found, lost = (f"{sum(above)} of {len(above)}" for above in counts)
        line = f"{found} bad found, {lost} good lost" + (" (fitted gamma)" if stored["rule"] == "gamma" else "")
    return Decision(real(stored["rate"]), threshold, line)
