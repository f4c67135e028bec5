"""Judge images as they arrive in a folder, until the command is stopped.

python -m gaussad_pl.watch ckpt=<folder of runs, or a file of a detector> folder=<folder of a camera>

  ckpt        folder of a run, its detector.safetensors, or a file written by gaussad_pl.export; a folder of runs or a
              pattern like 'runs/parts/*' stands for the run in it that finished last
  folder      folder to watch, with its subfolders; the images that are in it already are judged first
  out         folder for predictions.jsonl and predictions.csv                (watched)
  into        folder to move each judged image to, below good, bad or undecided; it may be the watched one
                                                                              (none)
  fpr         target false-alarm rate: share of good parts that may be called bad; auto: the smallest from 0.01 to
              0.2 that the number of calibration images supports                  (auto)
  settle      seconds that a file must be unchanged before it is read; ten times as long if it cannot be read   (1)
  overwrite   true: forget what was judged before, and judge all images again (false)
  batch_size  images scored at once                                           (32)
  device      cpu, cuda or auto                                               (auto)

Each image becomes a row like those of gaussad_pl.predict, with the size and the modification time of the file. The same
command continues after a stop, a kill or a power cut: images with a row are not judged again, all others are. A file
that is replaced by a new one is a new image. An image that cannot be read stays where it is; its row has the error.

If the folder vanishes, the disk is full or a file cannot be moved, the command says so once and tries again.
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gaussad_pl.cli.options import command
from gaussad_pl.errors import UserError
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.lock import locked
from gaussad_pl.inference.records import TABLE, Records, open_out
from gaussad_pl.inference.rows import chosen_device, counts, origin_of
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.inference.watcher import SORTED, Watcher, say


@dataclass(frozen=True)
class Options:
    """Settings of the command; see the module docstring."""

    ckpt: str
    folder: str
    out: str = "watched"
    into: str = ""
    fpr: float | None = None
    settle: float = 1.0
    overwrite: bool = False
    batch_size: int = 32
    device: str = "auto"


@contextmanager
def opened(options: Options) -> Iterator[Watcher]:
    """Load the detector, open the results and yield the watcher; print the counts at the end.

    Raises:
        UserError: a setting is wrong, or the results are those of another detector, or in use by another process.
    """
    if options.batch_size < 1:
        raise UserError(f"batch_size={options.batch_size}: expected 1 or more")
    if not 0 < options.settle <= 3600:
        raise UserError(f"settle={options.settle:g}: expected a number of seconds above 0, at most 3600")
    folder, out = Path(options.folder).expanduser().resolve(), Path(options.out).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"folder={options.folder} is not a folder: give the one that the images arrive in")
    into = Path(options.into).expanduser().resolve() if options.into else None
    if into is not None and any(folder.is_relative_to((into / name).resolve()) for name in SORTED):
        raise UserError(
            f"into={options.into}: the watched folder is one that judged images would be moved to: give another into="
        )
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are decoded one by one
    ckpt = find_detector(options.ckpt)
    detector = load_detector(ckpt, chosen_device(options.device))
    threshold = detector.threshold(options.fpr)
    with locked(out):
        open_out(
            out,
            origin_of(ckpt, threshold, str(folder), overlays=False),
            options.overwrite,
            resume=not options.overwrite,
        )
        with Records(out, detector.levels) as records:
            watcher = Watcher(folder, into, out, ckpt, detector, threshold, records, options.settle, options.batch_size)
            for text in (f"detector: {ckpt}", threshold.line, f"watching {folder}: {counts(watcher.tally)} so far"):
                say(text, sys.stdout)
            try:
                yield watcher
            finally:
                say(f"{counts(watcher.tally)}: {out / TABLE}", sys.stdout)


def watch(options: Options) -> None:
    """Watch a folder until a signal ends it."""
    with opened(options) as watcher:
        while True:
            watcher.round(time.monotonic())
            time.sleep(options.settle / 2)


main = command(watch, Options, __doc__)

if __name__ == "__main__":
    main()
