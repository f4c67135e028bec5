"""Scores of individual test images, read back from a run folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaussad_pl.reporting.runs import Run
from gaussad_pl.reporting.stored import FAR, require_readable, string


@dataclass(frozen=True)
class Scores:
    """Labels (1 is bad) and scores of N test images, both ``(N,)``, and the N kinds of defect."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    kinds: tuple[str, ...] = ()

    @property
    def both_classes(self) -> bool:
        return len(np.unique(self.labels)) == 2


def final_scores(run: Run) -> Scores | None:
    """Return the scores of the final model."""
    return read_scores(run.folder / "scores.csv")


def frozen_scores(run: Run) -> Scores | None:
    """Return the scores of the frozen network, which a run without fine-tuning keeps in scores.csv."""
    return read_scores(run.folder / ("scores.csv" if run.finetuned is None else "frozen_scores.csv"))


def read_scores(path: Path) -> Scores | None:
    """Read the scores in a CSV file; None if it is missing, incomplete, or holds invalid labels or scores."""
    try:
        require_readable(path)
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [
                (int(row["label"]), float(row["score"]), string(row.get("kind") or "")) for row in csv.DictReader(file)
            ]
        labels = np.array([row[0] for row in rows], dtype=np.int64)
        scores = np.array([row[1] for row in rows], dtype=np.float64)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, csv.Error):
        return None
    sound = len(rows) > 0 and np.isin(labels, (0, 1)).all() and (np.abs(scores) < FAR).all()  # false for NaN
    return Scores(labels, scores, tuple(row[2] for row in rows)) if sound else None


def found_by_kind(scores: Scores, threshold: float) -> dict[str, tuple[int, int]]:
    """Return how many images of each kind of defect are above a threshold, and how many there are."""
    images = zip(scores.kinds, scores.scores, scores.labels, strict=True)
    bad = [(kind, score > threshold) for kind, score, label in images if label]
    kinds = sorted({kind for kind, _ in bad})
    return {
        kind: (sum(hit for name, hit in bad if name == kind), sum(name == kind for name, _ in bad)) for kind in kinds
    }
