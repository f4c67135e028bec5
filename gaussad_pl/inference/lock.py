"""The lock on a folder of results: one process at a time appends rows to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gaussad_pl.errors import UserError


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Create the folder and keep other processes from it; the lock of a killed one is free.

    Raises:
        UserError: another process holds the lock, or the folder cannot be created.
    """
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"out={out} is in use by another process: stop it, or give another out=") from error
    except OSError as error:
        raise UserError(f"out={out}: cannot write there ({error.strerror}): give another folder") from error
    try:
        yield
    finally:
        lock.release()
