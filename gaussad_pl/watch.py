"""Judge images as they arrive in a folder, until the command is stopped.

python -m gaussad_pl.watch ckpt=<folder of runs, or a file of a detector> folder=<folder of a camera>

  ckpt        folder of a run, its detector.safetensors, or a file written by gaussad_pl.export; a folder of runs or a
              pattern like 'runs/parts/*' stands for the run in it that finished last
  folder      folder to watch, with its subfolders; the images that are in it already are judged first
  out         folder for predictions.jsonl and predictions.csv                (watched)
  into        folder to move each judged image to, below good, bad or undecided; it may be the watched one   (stays)
  fpr         target false-alarm rate: share of good parts that may be called bad; auto: the smallest of 0.01, 0.05,
              0.1 and 0.2 that the calibration images guarantee               (auto)
  settle      seconds that a file must be unchanged before it is read; ten times as long if it cannot be read   (1)
  overwrite   true: forget what was judged before, and judge all images again (false)
  batch_size  images scored at once                                           (32)
  device      cpu, cuda or auto                                               (auto)

Each image is a row as of gaussad_pl.predict, with the size and the modification time of the file besides. The same
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
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from filelock import FileLock, Timeout
from PIL import Image

from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.calibration.threshold import Threshold
from gaussad_pl.cli.options import command
from gaussad_pl.errors import UserError
from gaussad_pl.files import UnwritableError
from gaussad_pl.inference.arrivals import Arrivals, Stamp, move, scan, stamp
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.prediction import BaseDetector
from gaussad_pl.inference.records import TABLE, Records, open_out
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.predict import Row, chosen_device, counts, mend, origin_of, outcome, record, score

SORTED = ("good", "bad", "undecided")  # folders of judged images
WINDOW = 100  # images that are tested for drift together


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


class Judged(NamedTuple):
    """The version of a file that has a row, and its verdict."""

    stamp: Stamp
    verdict: str


class Notices:
    """Prints problems on stderr; one that persists from round to round is printed once."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._now: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._before | self._now:
            say(text, sys.stderr)
        self._now.add(text)

    def next_round(self) -> None:
        """Begin a round: problems that the last one did not have are printed again when they return."""
        self._before, self._now = self._now, set()


class Watcher:
    """Judges the files of a folder, round by round.

    Args:
        folder: absolute path of the watched folder.
        into: absolute path of the folder to move files to; None if they stay.
        out: absolute path of the folder of the results, which is not watched.
        records: opened for appending.
        judged: files that have a row, with the counts of their outcomes in ``tally``.
    """

    def __init__(
        self,
        options: Options,
        folder: Path,
        into: Path | None,
        out: Path,
        ckpt: Path,
        detector: BaseDetector,
        threshold: Threshold,
        records: Records,
    ) -> None:
        self.folder, self.into, self.ckpt = folder, into, ckpt
        self.left_out = {out, *(into / name for name in SORTED if into is not None)}
        self.batch_size = options.batch_size
        self.detector, self.threshold, self.records = detector, threshold, records
        self.monitor = DriftMonitor(detector.calibration, detector.levels)
        self.arrivals, self.complain = Arrivals(options.settle), Notices()
        self.judged: dict[Path, Judged] = {}
        self.tally: Counter[str] = Counter()
        for content in records.kept():
            self.remember(content)

    def round(self, now: float) -> None:
        """Judge the files that are complete at the time ``now`` in seconds; the others are left for later rounds."""
        self.complain.next_round()
        if not self.records.paths[0].exists():
            self.complain(f"{self.records.paths[0]} was removed: nothing is judged; restore it, or start again")
            return
        found = scan(self.folder, self.left_out, self.complain)
        for path in [path for path, now_there in found.items() if self.is_judged(path, now_there)]:
            del found[path]
            self.sort(path)  # does nothing unless a kill or a full disk has kept it here
        if not (ready := self.arrivals.ready(found, now)):
            return
        try:
            for row in score(self.detector, iter(ready), self.threshold, self.monitor, self.batch_size, 0):
                self.keep(row)
        except UnwritableError as error:  # the images without a row are judged in the next round
            self.complain(f"{error}; nothing is lost: trying again")
        self.test_drift()

    def is_judged(self, path: Path, version: Stamp) -> bool:
        """Return True if this version of a file has a row."""
        return path in self.judged and self.judged[path].stamp == version

    def keep(self, row: Row) -> None:
        """Write the row of an image and move the image, unless the file has changed or may be half-written."""
        version = stamp(row.path)
        if version is None:
            self.complain(f"{row.path} was removed before it was judged")
        elif not self.arrivals.is_same(row.path):
            self.complain(f"{row.path} was replaced while it was read: waiting for the new file")
        elif not row.error or not self.arrivals.may_be_incomplete(row.path):
            content = {**record(row, self.detector.levels), **version._asdict()}
            self.records.append(content)
            self.remember(content)
            say(line(content), sys.stdout)
            self.sort(row.path)

    def remember(self, content: Mapping[str, Any]) -> None:
        """Note that an image has a row."""
        try:
            version = Stamp(content["bytes"], content["modified"])
        except KeyError as error:
            raise UserError(
                f"{self.records.paths[0]} was written by gaussad_pl.predict: give another out=, or overwrite=true"
            ) from error
        self.judged[Path(content["path"])] = Judged(version, content["verdict"])
        self.tally[outcome(content)] += 1

    def sort(self, path: Path) -> None:
        """Move a judged image into the folder of its verdict."""
        verdict = self.judged[path].verdict
        if self.into is None or verdict not in SORTED:
            return
        try:
            self.records.sync()  # after a power cut, no image may have been moved without its row
            move(path, self.into / verdict / path.relative_to(self.folder))
        except UnwritableError as error:
            self.complain(f"{path} stays for now: {error}")

    def test_drift(self) -> None:
        """Warn if the last images do not look like the calibration images."""
        drift = self.monitor.drift()
        if drift.images >= WINDOW:
            if drift.line:
                say(f"WARNING: the last {drift.images}: {drift.line}; if they are good, {mend(self.ckpt)}", sys.stderr)
            self.monitor = DriftMonitor(self.detector.calibration, self.detector.levels)


@contextmanager
def opened(options: Options) -> Iterator[Watcher]:
    """Load the detector, open the results and yield the watcher; print the counts at the end.

    Raises:
        UserError: a setting is wrong, or the results are those of another detector, or in use by another watcher.
    """
    if options.batch_size < 1:
        raise UserError(f"batch_size={options.batch_size}: expected 1 or more")
    if not 0 < options.settle <= 3600:
        raise UserError(f"settle={options.settle:g}: expected a number of seconds above 0, at most 3600")
    folder, out = Path(options.folder).expanduser().resolve(), Path(options.out).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"folder={options.folder} is no folder: give the one that the images arrive in")
    into = Path(options.into).expanduser().resolve() if options.into else None
    if into is not None and any(folder.is_relative_to((into / name).resolve()) for name in SORTED):
        raise UserError(f"into={options.into}: the watched folder is one that images would be moved to: give another")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are decoded one by one
    ckpt = find_detector(options.ckpt)
    detector = load_detector(ckpt, chosen_device(options.device))
    threshold = detector.threshold(options.fpr)
    with _locked(out):
        open_out(
            out,
            origin_of(ckpt, threshold, str(folder), overlays=False),
            options.overwrite,
            resume=not options.overwrite,
        )
        with Records(out, detector.levels) as records:
            watcher = Watcher(options, folder, into, out, ckpt, detector, threshold, records)
            for text in (f"detector: {ckpt}", threshold.line, f"watching {folder}: {counts(watcher.tally)} so far"):
                say(text, sys.stdout)
            try:
                yield watcher
            finally:
                say(f"{counts(watcher.tally)}: {out / TABLE}", sys.stdout)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other watchers from the same results; the lock of a killed one is free."""
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"out={out} is in use by another watcher: stop it, or give another out=") from error
    except OSError as error:
        raise UserError(f"out={out}: cannot write there ({error.strerror}): give another folder") from error
    try:
        yield
    finally:
        lock.release()


def line(content: Mapping[str, Any]) -> str:
    """Return the line that is printed for a judged image."""
    if content["p_value"] is None:
        return f"error      {content['error']}"
    return f"{content['verdict']:9}  p={content['p_value']:<7.3g}  {content['path']}"


def say(text: str, stream: TextIO) -> None:
    """Print one line at once, unless the stream is closed or its disk full: printing must not end the watching."""
    encoding = stream.encoding or "utf-8"
    with suppress(OSError, ValueError):
        print(text.replace("\n", "\\n").encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def watch(options: Options) -> None:
    """Watch a folder until a signal ends it."""
    with opened(options) as watcher:
        while True:
            watcher.round(time.monotonic())
            time.sleep(options.settle / 2)


main = command(watch, Options, __doc__)

if __name__ == "__main__":
    main()
