"""Files that are written whole or not at all: a kill, a full disk or a power cut leaves the old file or none."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gaussad_pl.errors import UserError

# reasons of the operating system that the user can mend: a full or broken disk, missing permissions, a file where a
# folder should be
UNWRITABLE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip


class UnwritableError(UserError):
    """A file that cannot be written: the disk is full, or the folder is not to be written to."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it replaces ``path`` when the block ends without an error.

    It is on the same filesystem, so the replacement is atomic, and has the same suffix.

    Raises:
        UnwritableError: the disk is full, or nothing can be written there; no half-written file is left.
    """
    partial = path.with_name(".partial-" + os.fsencode(path.name)[-200:].decode("utf-8", "ignore"))
    try:
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave a whole name and half a content
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path | str, error: OSError) -> UnwritableError:
    """The one line for a file that cannot be written."""
    return UnwritableError(f"cannot write {path} ({error.strerror or error}): free some space or use another folder")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; what has no UTF-8, such as a stray byte in a file name, becomes a question mark."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode("utf-8", "replace"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON: a number that is not finite becomes null, and ``not_finite`` says which ones were what."""
    clean, found = finite(content)
    if found:
        clean["not_finite"] = found
    write_text(path, json.dumps(clean, indent=2, allow_nan=False) + "\n")


def finite(content: Any, name: str = "") -> tuple[Any, dict[str, str]]:
    """``content`` with None for each number that is not finite, and those numbers by their place.

    >>> finite({"a": [1.0, float("nan")]})
    ({'a': [1.0, None]}, {'a.1': 'nan'})
    """
    if isinstance(content, float) and not math.isfinite(content):
        return None, {name: str(content)}
    found: dict[str, str] = {}
    if isinstance(content, Mapping):
        items = {key: finite(value, f"{name}.{key}" if name else str(key)) for key, value in content.items()}
        for _, inside in items.values():
            found |= inside
        return {key: value for key, (value, _) in items.items()}, found
    if isinstance(content, list | tuple):
        rows = [finite(value, f"{name}.{i}" if name else str(i)) for i, value in enumerate(content)]
        for _, inside in rows:
            found |= inside
        return [value for value, _ in rows], found
    return content, found
