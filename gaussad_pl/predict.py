"""Score images with a trained detector; where nothing was ever trained, too.

python -m gaussad_pl.predict ckpt=<run folder, or a file of a detector> source=<image, folder, pattern or list.txt>

  ckpt        folder of a finished run, its detector.safetensors, or what gaussad_pl.export made of it
  source      an image, a folder with all below it, a pattern like 'parts/*.png', or a .txt with a path a line
  out         folder for predictions.jsonl and predictions.csv               (predictions)
  fpr         false-alarm rate wished: what share of good parts may be lost   (0.01)
  overlays    true: a picture of each image with its anomaly map, in out/overlays  (false)
  overwrite   true: predictions that are there already are replaced           (false)
  resume      true: a prediction that was interrupted goes on after its last row  (false)
  batch_size  images scored at once                                           (32)
  device      cpu, cuda or auto                                               (auto)

Ends with exit code 1 if an image cannot be read; it is a row with its error, and all others are scored.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from gaussad_pl.calibration.conformal import Threshold
from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.cli.options import command
from gaussad_pl.data.loading import decoded
from gaussad_pl.errors import UserError
from gaussad_pl.files import UNWRITABLE, UnwritableError, replacing
from gaussad_pl.fingerprints import file_sha256
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.overlay import overlay
from gaussad_pl.inference.prediction import BATCH, BaseDetector, Prediction
from gaussad_pl.inference.records import TABLE, Records, open_out
from gaussad_pl.inference.sources import count_images, image_paths

NAME_LENGTH = 200  # bytes of an image's name in that of its overlay; file systems take 255


@dataclass(frozen=True)
class Options:
    """See the text at the top of this file."""

    ckpt: str
    source: str
    out: str = "predictions"
    fpr: float = 0.01
    overlays: bool = False
    overwrite: bool = False
    resume: bool = False
    batch_size: int = 32
    device: str = "auto"


@dataclass(frozen=True)
class Row:
    """One image: what was found, or what is wrong with it."""

    index: int
    path: Path
    pixels: Tensor | None
    prediction: Prediction | None
    error: str = ""


def predict(options: Options) -> int:
    """Score everything, write everything, and say how it went; the exit code."""
    if options.batch_size < 1:
        raise UserError(f"batch_size={options.batch_size}: expected 1 or more")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are decoded one by one
    ckpt = Path(options.ckpt)
    ckpt = ckpt / NAME if ckpt.is_dir() else ckpt
    detector = load_detector(ckpt, _device(options.device))
    threshold = detector.threshold(options.fpr)
    count = count_images(options.source)
    out = Path(options.out)
    if options.overlays and Path(options.source).resolve() in (out / "overlays").resolve().parents:
        raise UserError(
            f"out={out} is inside of source={options.source}, which would have overlays for images: move it"
        )
    origin = {"detector": file_sha256(ckpt), "fpr": options.fpr, "overlays": options.overlays, "source": options.source}
    open_out(out, origin, options.overwrite, options.resume)
    monitor = DriftMonitor(detector.calibration, detector.levels)
    images = islice(image_paths(options.source), count)  # one that came since is left for the next time
    with Records(out, detector.levels) as records, _progress() as show:
        tally = recall(records.kept(images), monitor, detector.levels)
        done = tally.total()
        rows = score(detector, images, threshold, monitor, options.batch_size, done)
        for row in show.track(rows, total=count, completed=done):
            if options.overlays:
                row = draw(row, detector.limit, out / "overlays")
            content = record(row, detector.levels)
            records.append(content)
            tally[outcome(content)] += 1
    print(summary(tally, threshold, detector, monitor, out))
    return 1 if tally["errors"] else 0


def recall(kept: Iterator[Mapping[str, Any]], monitor: DriftMonitor, levels: Sequence[int]) -> Counter[str]:
    """Count the outcomes of the rows that are there already, and show them to the monitor."""
    tally: Counter[str] = Counter()
    while batch := list(islice(kept, BATCH)):
        tally.update(outcome(content) for content in batch)
        scored = [content for content in batch if content["score"] is not None]
        scores = torch.tensor([content["score"] for content in scored], dtype=torch.float64)
        distances = torch.tensor([[content["distances"][str(level)] for level in levels] for content in scored])
        monitor.observe(scores, distances.reshape(-1, len(levels)))
    return tally


def score(
    detector: BaseDetector,
    images: Iterator[Path],
    threshold: Threshold,
    monitor: DriftMonitor,
    batch_size: int,
    start: int,
) -> Iterator[Row]:
    """One row an image, in their order, numbered from ``start``; never more than some batches are in memory."""
    numbered = enumerate(decoded(images, detector.size, ahead=2 * batch_size), start)
    while batch := list(islice(numbered, batch_size)):
        readable = [pixels for _, (_, pixels) in batch if isinstance(pixels, Tensor)]
        found: Iterator[Prediction] = iter(())
        if readable:
            detection = detector.detect(torch.stack(readable))
            monitor.observe(detection.scores, detection.distances)
            found = detector.predictions(detection, threshold)
        for index, (path, pixels) in batch:
            if isinstance(pixels, Tensor):
                yield Row(index, path, pixels, next(found))
            else:
                yield Row(index, path, None, None, str(pixels))


def draw(row: Row, limit: float, folder: Path) -> Row:
    """Save the overlay of an image; the row, with the reason where that fails: all other images go on."""
    if row.prediction is None or row.pixels is None:
        return row
    stem = row.path.stem.encode("utf-8", "replace")[:NAME_LENGTH].decode("utf-8", "ignore")
    path = folder / f"{row.index:06}_{stem}.png"
    try:
        with replacing(path) as partial:
            overlay(row.pixels, row.prediction, limit, row.path.name).save(partial, "PNG")
    except Exception as error:  # whatever it is, it is about this one picture
        cause = error.__cause__
        if isinstance(error, UnwritableError) and isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            raise  # a full disk or a read-only folder is not
        return replace(row, error=f"no overlay: {error}")
    return row


def record(row: Row, levels: Sequence[int]) -> dict[str, Any]:
    """What is written about an image: the same keys for every image."""
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


def outcome(content: Mapping[str, Any]) -> str:
    """What a row counts as: good, bad or errors."""
    return "errors" if content["error"] else content["verdict"]


def summary(tally: Counter[str], threshold: Threshold, detector: BaseDetector, monitor: DriftMonitor, out: Path) -> str:
    """What is printed at the end."""
    lines = [
        f"{tally['good']} good, {tally['bad']} bad, {tally['errors']} unreadable: {out / TABLE}",
        f"calibration: {detector.calibration.scheme}",
        ("" if threshold.rule == "conformal" else "WARNING: ") + threshold.line,
    ]
    drift = monitor.drift().line
    return "\n".join([*lines, *([f"WARNING: {drift}"] if drift else [])])


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name}: expected cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: there is no GPU that PyTorch can use: give device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _progress() -> Progress:
    columns = TextColumn("Scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


main = command(predict, Options, __doc__)

if __name__ == "__main__":
    main()
