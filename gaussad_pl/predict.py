"""Score images with a trained detector, without the dependencies of training.

python -m gaussad_pl.predict ckpt=<folder of runs, or a file of a detector> source=<image, folder, pattern or list.txt>

  ckpt        folder of a run, its detector.safetensors, or a file written by gaussad_pl.export; a folder of runs or a
              pattern like 'runs/parts/*' stands for the run in it that finished last
  source      an image, a folder (with subfolders), a pattern like 'parts/*.png', or a .txt with one path per line
  out         folder for predictions.jsonl and predictions.csv                (predictions)
  fpr         target false-alarm rate: share of good parts that may be called bad; auto: the smallest from 0.01 to
              0.2 that the number of calibration images supports                  (auto)
  overlays    true: save each image with its anomaly map in out/overlays      (false)
  overwrite   true: replace existing predictions                              (false)
  resume      true: continue an interrupted prediction after its last row     (false)
  batch_size  images scored at once                                           (32)
  device      cpu, cuda or auto                                               (auto)

Images are good or bad. If there are too few calibration images for a threshold, all are undecided.

The exit code is 1 if an image cannot be read: its row has the error, and all other images are scored. Otherwise it is 3
if the images are undecided, and 0 if each is good or bad.
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.calibration.threshold import Threshold
from gaussad_pl.cli.options import command
from gaussad_pl.data.images import read_picture
from gaussad_pl.errors import UserError
from gaussad_pl.files import UNWRITABLE, UnwritableError, replacing
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.lock import locked
from gaussad_pl.inference.overlay import SIDE, overlay
from gaussad_pl.inference.prediction import BATCH, BaseDetector
from gaussad_pl.inference.records import TABLE, Records, open_out, stored_rate
from gaussad_pl.inference.rows import Row, chosen_device, counts, mend, observe, origin_of, outcome, record, score
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.inference.sources import count_images, image_paths
from gaussad_pl.progress import bar

UNREADABLE, UNDECIDED = 1, 3  # exit codes; 2 is wrong usage by convention
NAME_LENGTH = 200  # bytes of the image's name in the name of its overlay; file systems allow 255


@dataclass(frozen=True)
class Options:
    """Settings of the command; see the module docstring."""

    ckpt: str
    source: str
    out: str = "predictions"
    fpr: float | None = None
    overlays: bool = False
    overwrite: bool = False
    resume: bool = False
    batch_size: int = 32
    device: str = "auto"


def predict(options: Options) -> int:
    """Score all images, write the results, print a summary and return the exit code."""
    if options.batch_size < 1:
        raise UserError(f"batch_size={options.batch_size}: expected 1 or more")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are decoded one by one
    ckpt = find_detector(options.ckpt)
    detector = load_detector(ckpt, chosen_device(options.device))
    out = Path(options.out)
    threshold = detector.threshold(options.fpr)
    if options.resume and options.fpr is None and (earlier := stored_rate(out)) not in (None, threshold.fpr):
        threshold = detector.threshold(earlier)  # of an older version, whose default was another one
    count = count_images(options.source)
    if options.overlays and Path(options.source).resolve() in (out / "overlays").resolve().parents:
        raise UserError(
            f"out={out} is inside source={options.source}, so overlays would be scored as images: give another out="
        )
    origin = origin_of(ckpt, threshold, options.source, options.overlays)
    monitor = DriftMonitor(detector.calibration, detector.levels)
    images = islice(image_paths(options.source), count)  # images added in the meantime are left out
    columns = TextColumn("Scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with locked(out):
        open_out(out, origin, options.overwrite, options.resume)
        with Records(out, detector.levels) as records, bar(*columns) as show:
            tally = recall(records.kept(images), monitor, detector.levels)
            done = tally.total()
            rows = score(detector, images, threshold, options.batch_size, done)
            trained_on = 0
            for row in show.track(rows, total=count, completed=done):
                if options.overlays:
                    row = draw(row, detector, out / "overlays")
                content = record(row, detector.levels)
                records.append(content)
                observe(monitor, [content], detector.levels)
                tally[outcome(content)] += 1
                trained_on += row.trained_on
    print(f"detector: {ckpt}")
    print(summary(tally, threshold, detector, monitor, ckpt, out))
    if trained_on:
        print(f"WARNING: the detector was trained on {trained_on} of these images: they score lower than new ones")
    return UNREADABLE if tally["errors"] else UNDECIDED if threshold.rule == "none" else 0


def recall(rows: Iterator[Mapping[str, Any]], monitor: DriftMonitor, levels: Sequence[int]) -> Counter[str]:
    """Count the outcomes of the existing rows, and pass their scores to the monitor."""
    tally: Counter[str] = Counter()
    while batch := list(islice(rows, BATCH)):
        tally.update(outcome(content) for content in batch)
        observe(monitor, batch, levels)
    return tally


def draw(row: Row, detector: BaseDetector, folder: Path) -> Row:
    """Save the overlay of an image, and return its row; an error is noted in the row and does not stop the command."""
    if row.prediction is None:
        return row
    stem = row.path.stem.encode("utf-8", "replace")[:NAME_LENGTH].decode("utf-8", "ignore")
    path = folder / f"{row.index:06}_{stem}.png"
    try:
        with replacing(path) as partial:
            image = read_picture(row.path, SIDE)
            drawn = overlay(image, row.prediction, detector.frame, detector.median, detector.limit, row.path.name)
            drawn.save(partial, "PNG")
    except Exception as error:  # concerns only this picture
        cause = error.__cause__
        if isinstance(error, UnwritableError) and isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            raise  # a full disk or a read-only folder concerns all of them
        return replace(row, error=f"no overlay: {error}")
    return row


def summary(
    tally: Counter[str], threshold: Threshold, detector: BaseDetector, monitor: DriftMonitor, ckpt: Path, out: Path
) -> str:
    """Return the text that is printed at the end."""
    prefix = {"conformal": "", "gamma": "WARNING: ", "none": "UNDECIDED: "}[threshold.rule]
    lines = [
        f"{counts(tally)}: {out / TABLE}",
        f"calibration: {detector.calibration.scheme}",
        prefix + threshold.line,
    ]
    if drift := monitor.drift().line:
        lines.append(f"WARNING: {drift}; if the parts are good, {mend(ckpt)}")
    return "\n".join(lines)


main = command(predict, Options, __doc__)

if __name__ == "__main__":
    main()
