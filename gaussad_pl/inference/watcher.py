"""The watcher of a folder: judges images as they arrive, each version of a file once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.calibration.threshold import Threshold
from gaussad_pl.errors import UserError
from gaussad_pl.files import UnwritableError
from gaussad_pl.inference.arrivals import Arrivals, Stamp, move, scan, stamp
from gaussad_pl.inference.prediction import BaseDetector
from gaussad_pl.inference.records import Records
from gaussad_pl.inference.rows import Row, mend, observe, outcome, record, score

SORTED = ("good", "bad", "undecided")  # folders of judged images
WINDOW = 100  # images that are tested for drift together


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
        ckpt: file of the detector, for messages.
        detector: that judges.
        threshold: of the detector.
        records: opened for appending.
        settle: seconds that a file must be unchanged before it is read.
        batch_size: images scored at once.

    Attributes:
        judged: files that have a row, with the counts of their outcomes in ``tally``.
    """

    def __init__(
        self,
        folder: Path,
        into: Path | None,
        out: Path,
        ckpt: Path,
        detector: BaseDetector,
        threshold: Threshold,
        records: Records,
        settle: float,
        batch_size: int,
    ) -> None:
        self.folder, self.into, self.ckpt = folder, into, ckpt
        self.left_out = {out, *(into / name for name in SORTED if into is not None)}
        self.batch_size = batch_size
        self.detector, self.threshold, self.records = detector, threshold, records
        self.monitor = DriftMonitor(detector.calibration, detector.levels)
        self.arrivals, self.complain = Arrivals(settle), Notices()
        self.judged: dict[Path, Judged] = {}
        self.tally: Counter[str] = Counter()
        for content in records.kept():
            self.remember(content)

    def round(self, now: float) -> None:
        """Judge the files that are complete at the time ``now`` in seconds; the others are left for later rounds."""
        self.complain.next_round()
        if missing := [path for path in self.records.paths if not path.exists()]:
            self.complain(f"{missing[0]} was removed: nothing is judged; restore it, or start again")
            return
        found = scan(self.folder, self.left_out, self.complain)
        for path in [path for path, now_there in found.items() if self.is_judged(path, now_there)]:
            del found[path]
            self.sort(path)  # does nothing unless a kill or a full disk has kept it here
        if not (ready := self.arrivals.ready(found, now)):
            return
        try:
            for row in score(self.detector, iter(ready), self.threshold, self.batch_size, 0):
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
            observe(self.monitor, [content], self.detector.levels)
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
                text = f"WARNING: the last {drift.images}: {drift.line}; if the parts are good, {mend(self.ckpt)}"
                say(text, sys.stderr)
            self.monitor = DriftMonitor(self.detector.calibration, self.detector.levels)


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
