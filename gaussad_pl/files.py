"""Atomic file writes: a kill, a full disk or a power cut leaves the old file or none, never half of the new one."""

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

# errors of the operating system that the user can fix: a full or failing disk, missing permissions, a file where a
# folder is expected
UNWRITABLE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class UnwritableError(UserError):
    """A file cannot be written: the disk is full, or the folder is not writable."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; it replaces ``path`` if the block ends without an error.

    It has the same suffix, and is on the same filesystem, so that the replacement is atomic.

    Raises:
        UnwritableError: the disk is full, or the folder is not writable; no half-written file is left behind.
    """
    partial = path.with_name(".partial-" + os.fsencode(path.name)[-200:].decode("utf-8", "ignore"))
    try:
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # otherwise a power cut could leave a complete name with half the content
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path | str, error: OSError) -> UnwritableError:
    """Return the one-line error for a file that cannot be written."""
    remedy = "free some space or use another folder" if error.errno in FULL else "use another folder"
    return UnwritableError(f"cannot write {path} ({error.strerror or error}): {remedy}")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8. Anything that cannot be encoded, such as a stray byte in a file name, becomes ``?``."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode("utf-8", "replace"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON: non-finite numbers become null, and their values are listed under ``not_finite``."""
    clean, removed = finite(content)
    if removed:
        clean["not_finite"] = removed
    write_text(path, json.dumps(clean, indent=2, allow_nan=False) + "\n")


def finite(content: Any, name: str = "") -> tuple[Any, dict[str, str]]:
    """Return ``content`` with non-finite numbers replaced by None, and a dict of those numbers by their path.

    >>> finite({"a": [1.0, float("nan")]})
    ({'a': [1.0, None]}, {'a.1': 'nan'})
    """
    if isinstance(content, float) and not math.isfinite(content):
        return None, {name: str(content)}
    removed: dict[str, str] = {}
    if isinstance(content, Mapping):
        items = {key: finite(value, f"{name}.{key}" if name else str(key)) for key, value in content.items()}
        for _, inside in items.values():
            removed |= inside
        return {key: value for key, (value, _) in items.items()}, removed
    if isinstance(content, list | tuple):
        rows = [finite(value, f"{name}.{i}" if name else str(i)) for i, value in enumerate(content)]
        for _, inside in rows:
            removed |= inside
        return [value for value, _ in rows], removed
    return content, removed
