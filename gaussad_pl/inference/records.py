"""The rows of a prediction on disk: one per image, the same in predictions.jsonl and predictions.csv.

However a prediction ends, the JSON lines hold complete rows only, or can be truncated to them. Each row is in both
files, so each validates the other, and the table can be completed from the JSON lines.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Self

from gaussad_pl.errors import UserError
from gaussad_pl.files import unwritable, write_json

ORIGIN = "predictions.json"  # the settings that all rows share
LINES = "predictions.jsonl"
TABLE = "predictions.csv"
COLUMNS = ("path", "score", "p_value", "verdict", "threshold")
OTHERWISE = "give another out=, or overwrite=true"


def open_out(out: Path, origin: Mapping[str, Any], overwrite: bool, resume: bool) -> None:
    """Create the folder of a prediction and save the settings that its rows share.

    Args:
        out: the folder; ``overwrite`` removes an earlier prediction in it, ``resume`` keeps it.
        origin: the settings; those of an earlier prediction that is kept must be the same.

    Raises:
        UserError: the folder has a prediction already, it was made with other settings, or the folder cannot be
            created.
    """
    if overwrite and resume:
        raise UserError("resume=true keeps the predictions and overwrite=true replaces them: give only one")
    overlays = out / "overlays"
    try:
        old = [*overlays.glob("[0-9][0-9][0-9][0-9][0-9][0-9]*_*.png")]
        old = [path for path in (out / LINES, out / TABLE, *old, out / ORIGIN) if path.exists()]
        if old and resume:
            _require_same(out / ORIGIN, origin)
        elif old and not overwrite:
            raise UserError(f"{old[0]} already exists: give another out=, resume=true or overwrite=true")
        else:
            for path in old:
                path.unlink()
        (overlays if origin["overlays"] else out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot write there ({error.strerror}): give another folder") from error
    if not (out / ORIGIN).exists():
        write_json(out / ORIGIN, origin)


def stored_rate(out: Path) -> float | None:
    """Return the target false-alarm rate of the prediction in a folder; None if it has none that can be read."""
    try:
        return float(json.loads((out / ORIGIN).read_bytes())["fpr"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # `open_out` reports a damaged file


class Records:
    """The two files of a prediction, opened to read the rows that they have and to append new ones.

    Args:
        out: folder of the files.
        levels: index of each level that has a distance.

    Raises:
        UnwritableError: the files cannot be opened.
    """

    def __init__(self, out: Path, levels: Sequence[int]) -> None:
        self.levels = levels
        self.paths = (out / LINES, out / TABLE)
        self._header = _csv_line([*COLUMNS, *(f"level_{level}" for level in levels), "error"])
        self._ends = [0, 0]  # end of the last complete row of each file, in bytes
        try:
            self._files = [path.open("ab", buffering=0) for path in self.paths]  # no half-written buffers
        except OSError as error:
            raise unwritable(out, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def kept(self, images: Iterator[Path] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the complete rows of the JSON lines, then truncate both files after them.

        What the table lacks of these rows is appended to it. Rows that an older version decided without a threshold do
        not count as complete.

        Call it once, before `append`.

        Args:
            images: all images in their order; one is consumed for each row. None if they have no order.

        Raises:
            UserError: a row is damaged, belongs to another image, or the table has rows and the JSON lines are empty.
            UnwritableError: the table cannot be completed.
        """
        lines, table = self.paths
        if not lines.stat().st_size and table.stat().st_size > len(self._header):
            raise UserError(f"{lines} is missing or empty, but {TABLE} has rows: restore it, {OTHERWISE}")
        with lines.open("rb") as stream, table.open("rb") as sheet:
            self._complete(sheet, self._header, 0)
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break  # the last row is incomplete
                content, row = self._parsed(number, line)
                if content["verdict"] in ("good", "bad") and content["threshold"] is None:
                    break  # an older version decided without a threshold: score these images again
                image = Path(content["path"]) if images is None else next(images, None)
                if image is None or image.as_posix() != content["path"]:
                    raise UserError(
                        f"{lines} has {content['path']} in row {number}, source= has {image or 'fewer images'}: "
                        f"the images have changed since the prediction was started; {OTHERWISE}"
                    )
                self._complete(sheet, row, number)
                self._ends[0] += len(line)
                yield content
        self._cut()

    def append(self, content: Mapping[str, Any]) -> None:
        """Append a row to both files or to neither.

        Raises:
            UnwritableError: the files cannot be written, for example because the disk is full.
        """
        self._write((_json_line(content), self._table_row(content)))

    def sync(self) -> None:
        """Make all rows survive a power cut.

        Raises:
            UnwritableError: the disk fails.
        """
        try:
            for file in self._files:
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.paths[0], error) from error

    def _write(self, parts: tuple[bytes, bytes]) -> None:
        before, self._ends = self._ends, [end + len(part) for end, part in zip(self._ends, parts, strict=True)]
        written = False
        try:
            for file, part in zip(self._files, parts, strict=True):
                _write_all(file, part)
            written = True
        except OSError as error:
            raise unwritable(self.paths[0], error) from error
        finally:
            if not written:  # a signal may also have interrupted the writing
                self._ends = before
                self._cut()

    def _complete(self, sheet: BinaryIO, row: bytes, number: int) -> None:
        """Read a row of the table, and write it if it is missing or cut short; a failure leaves the JSON lines whole.

        Raises:
            UserError: the table has another row.
            UnwritableError: the row cannot be written.
        """
        stored = sheet.read(len(row))
        if stored != row:
            if len(stored) == len(row):
                raise self._damaged(number)
            try:
                self._files[1].truncate(self._ends[1])
                _write_all(self._files[1], row)
            except OSError as error:
                raise unwritable(self.paths[1], error) from error
        self._ends[1] += len(row)
        sheet.seek(self._ends[1])

    def _cut(self) -> None:
        for file, end in zip(self._files, self._ends, strict=True):
            file.truncate(end)

    def _parsed(self, number: int, line: bytes) -> tuple[dict[str, Any], bytes]:
        """Parse a line, and return its content and the row that the table must have for it."""
        try:
            content: dict[str, Any] = json.loads(line)
            return content, self._table_row(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(number) from error

    def _table_row(self, content: Mapping[str, Any]) -> bytes:
        distances = content["distances"] or {}
        return _csv_line([
            *(content[name] for name in COLUMNS), *(distances.get(str(level)) for level in self.levels),
            content["error"],
        ])  # fmt: skip

    def _damaged(self, number: int) -> UserError:
        place = f"row {number}" if number else "the header"
        return UserError(f"{self.paths[0]} and {TABLE} are damaged ({place} does not match): {OTHERWISE}")


def _write_all(file: FileIO, rest: bytes) -> None:
    while rest:  # a nearly full disk may accept only a part
        rest = rest[file.write(rest) :]


def _json_line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _csv_line(values: Sequence[Any]) -> bytes:
    """Encode a line of a CSV file; what UTF-8 cannot encode, such as a stray byte in a file name, becomes "?"."""
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().encode("utf-8", "replace")


def _require_same(path: Path, origin: Mapping[str, Any]) -> None:
    if not path.exists():
        raise UserError(f"{path} is missing, so the detector that made the rows is unknown: {OTHERWISE}")
    try:
        before = json.loads(path.read_bytes())
        differing = [key for key in ("detector", "fpr", "overlays") if before[key] != origin[key]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r:.200}): {OTHERWISE}") from error
    if "detector" in differing:
        raise UserError(f"{path.parent} was started with another detector: give its ckpt=, or {OTHERWISE}")
    if differing:
        key = differing[0]
        earlier = json.dumps(before[key])
        raise UserError(f"{path.parent} was started with {key}={earlier}, not {json.dumps(origin[key])}: {OTHERWISE}")
