"""The rows of results: one for each image, scored as its file is read."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.calibration.threshold import Threshold
from gaussad_pl.data.loading import decoded
from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import file_sha256
from gaussad_pl.inference.artefact import EXPORTED
from gaussad_pl.inference.prediction import BaseDetector, Prediction


@dataclass(frozen=True)
class Row:
    """The result for one image: its prediction, or the error, and whether the detector was trained on it."""

    index: int
    path: Path
    prediction: Prediction | None
    error: str = ""
    trained_on: bool = False


def score(
    detector: BaseDetector,
    images: Iterator[Path],
    threshold: Threshold,
    batch_size: int,
    start: int,
) -> Iterator[Row]:
    """Yield one row per image, in order and numbered from ``start``; only a few batches are in memory at once."""
    numbered = enumerate(decoded(images, detector.frame, ahead=2 * batch_size), start)
    while batch := list(islice(numbered, batch_size)):
        readable = [pixels for _, (_, pixels) in batch if isinstance(pixels, Tensor)]
        results: Iterator[tuple[Prediction, bool]] = iter(())
        if readable:
            stacked = torch.stack(readable)
            seen = set(detector.trained_on(stacked))
            predictions = detector.predictions(detector.detect(stacked), threshold)
            results = ((prediction, i in seen) for i, prediction in enumerate(predictions))
        for index, (path, pixels) in batch:
            if isinstance(pixels, Tensor):
                prediction, trained_on = next(results)
                yield Row(index, path, prediction, trained_on=trained_on)
            else:
                yield Row(index, path, None, str(pixels))


def record(row: Row, levels: Sequence[int]) -> dict[str, Any]:
    """Return the content of a row for JSON and CSV; all images have the same keys."""
    prediction = row.prediction
    return {
        "path": row.path.as_posix(),
        "score": prediction and prediction.score,
        "p_value": prediction and prediction.p_value,
        "verdict": prediction.verdict if prediction is not None else "error",
        "threshold": prediction and (prediction.threshold if math.isfinite(prediction.threshold) else None),
        "distances": prediction and {str(level): prediction.distances.get(level) for level in levels},
        "error": row.error or None,
    }


def observe(monitor: DriftMonitor, contents: Iterable[Mapping[str, Any]], levels: Sequence[int]) -> None:
    """Pass the scores and distances of rows that are kept to the monitor; those of unreadable images have none."""
    scored = [content for content in contents if content["score"] is not None]
    scores = torch.tensor([content["score"] for content in scored], dtype=torch.float64)
    distances = torch.tensor([[content["distances"][str(level)] for level in levels] for content in scored])
    monitor.observe(scores, distances.reshape(-1, len(levels)))


def outcome(content: Mapping[str, Any]) -> str:
    """Return the category in which a row is counted: good, bad, undecided or errors."""
    return "errors" if content["error"] else content["verdict"]


def counts(tally: Counter[str]) -> str:
    """Return the number of images of each outcome."""
    return f"{tally['good']} good, {tally['bad']} bad, {tally['undecided']} undecided, {tally['errors']} unreadable"


def origin_of(ckpt: Path, threshold: Threshold, source: str, overlays: bool) -> dict[str, Any]:
    """Return what rows must share to be in the same results, for `open_out`."""
    return {
        "detector": file_sha256(ckpt),
        "fpr": threshold.fpr,
        "overlays": overlays,
        "source": source,
        "undecided": threshold.reason,
    }


def mend(ckpt: Path) -> str:
    """Return what to do about drift, with the command to type."""
    given = "<the detector.safetensors it was exported from>" if ckpt.suffix == EXPORTED else shlex.quote(str(ckpt))
    again = ", and export the new detector" if ckpt.suffix == EXPORTED else ""
    return f"recalibrate: python -m gaussad_pl.recalibrate ckpt={given} good=<folder of good images like these>{again}"


def chosen_device(name: str) -> torch.device:
    """Return the device of a ``device=``: a GPU if one is wanted and available, else the CPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name}: expected cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no GPU is available to PyTorch: give device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
