"""Files that arrive in a watched folder: find them, wait until they are complete, and move them away.

A file counts as complete if its size and its modification time have not changed for a while. If it cannot be read even
so, the writer may have stalled: it is waited for ten times as long.
"""

from __future__ import annotations

import errno
import filecmp
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from gaussad_pl.files import replacing, unwritable
from gaussad_pl.inference.sources import walk

PATIENCE = 10  # times as long as usual, for a file that cannot be read


class Stamp(NamedTuple):
    """Identifies one version of a file: its size in bytes and its modification time in nanoseconds."""

    bytes: int
    modified: int


def stamp(path: Path) -> Stamp | None:
    """Return the stamp of a file; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns)


def scan(folder: Path, left_out: Iterable[Path], complain: Callable[[str], None]) -> dict[Path, Stamp]:
    """Return the images in a folder and its subfolders, as `walk` finds them, with their stamps.

    Args:
        folder: the watched folder.
        left_out: subfolders that are not entered, whatever leads to them.
        complain: called with one line for each folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        complain(f"cannot read {error.filename} ({error.strerror}): waiting for it")

    paths = walk(folder, unreadable, left_out)
    return {path: version for path in paths if (version := stamp(path)) is not None}


@dataclass
class _Arrival:
    stamp: Stamp
    since: float  # when this stamp was first seen
    wait: float  # seconds that it must not change


class Arrivals:
    """Waits for files to be complete.

    Args:
        settle: seconds that a file must be unchanged.
    """

    def __init__(self, settle: float) -> None:
        self.settle = settle
        self._waiting: dict[Path, _Arrival] = {}

    def ready(self, found: Mapping[Path, Stamp], now: float) -> list[Path]:
        """Return the complete ones of the files that were found at the time ``now``, the oldest first."""
        unchanged = {path: old for path, old in self._waiting.items() if found.get(path) == old.stamp}
        self._waiting = {path: _Arrival(found[path], now, self.settle) for path in found} | unchanged
        ready = [path for path, arrival in self._waiting.items() if now - arrival.since >= arrival.wait]
        return sorted(ready, key=lambda path: (found[path].modified, path))

    def is_same(self, path: Path) -> bool:
        """Return True if a file is still the one that was `ready`."""
        return stamp(path) == self._waiting[path].stamp

    def may_be_incomplete(self, path: Path) -> bool:
        """Return True if an unreadable file may still be half-written, and wait longer for it; only once per file."""
        arrival = self._waiting[path]
        first, arrival.wait = arrival.wait == self.settle, PATIENCE * self.settle
        return first


def move(path: Path, target: Path) -> None:
    """Move a file, never over another one: if the name is taken, a number is appended to it.

    After a kill, the file is in one place or, whole, in both; moving it again then removes the first.

    Raises:
        UnwritableError: the file cannot be moved.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        names = (target.with_stem(f"{target.stem}-{number}") if number else target for number in count())
        for place in names:
            if not place.exists():
                break
            if place.samefile(path):
                return
            if filecmp.cmp(path, place, shallow=False):  # killed between copy and removal
                _remove_copied(path, place)
                return
        try:
            path.rename(place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with replacing(place) as partial:  # on another file system
                shutil.copyfile(path, partial)
            _remove_copied(path, place)
    except OSError as error:
        raise unwritable(target, error) from error


def _remove_copied(path: Path, copy: Path) -> None:
    """Give a copy the times and permissions of its file, and remove the file."""
    shutil.copystat(path, copy)  # not before the copy is complete: a read-only file cannot be opened for `os.fsync`
    path.unlink()
