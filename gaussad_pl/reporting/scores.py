"""The scores of single test images, read back from a run folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaussad_pl.reporting.runs import Run
from gaussad_pl.reporting.stored import FAR, require_readable


@dataclass(frozen=True)
class Scores:
    """Labels (1 is bad) and scores of N test images, both ``(N,)``."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def both_classes(self) -> bool:
        return len(np.unique(self.labels)) == 2


def final_scores(run: Run) -> Scores | None:
    return read_scores(run.folder / "scores.csv")


def frozen_scores(run: Run) -> Scores | None:
    """Of the frozen network; a run without fine-tuning has them in scores.csv."""
    return read_scores(run.folder / ("scores.csv" if run.finetuned is None else "frozen_scores.csv"))


def read_scores(path: Path) -> Scores | None:
    """None where the file is missing, half-written, or holds what is no label or no number."""
    try:
        require_readable(path)
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [(int(row["label"]), float(row["score"])) for row in csv.DictReader(file)]
        labels = np.array([label for label, _ in rows], dtype=np.int64)
        scores = np.array([score for _, score in rows], dtype=np.float64)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, csv.Error):
        return None
    sound = len(rows) > 0 and np.isin(labels, (0, 1)).all() and (np.abs(scores) < FAR).all()  # NaN is not
    return Scores(labels, scores) if sound else None
