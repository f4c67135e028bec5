"""Inventory of the files used by a run: recorded with its results, and compared when it is resumed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from gaussad_pl.data.samples import Samples
from gaussad_pl.errors import UserError


def inventory(samples: Samples, roi: Path | None = None) -> dict[str, int]:
    """Return the size in bytes of every image and mask, and of the region of interest, by absolute POSIX path, sorted.

    Raises:
        UserError: a file is missing.
    """
    both = [*samples.train, *samples.test]
    paths = {sample.path for sample in both} | {sample.mask for sample in both if sample.mask is not None}
    paths |= {roi} if roi is not None else set()
    return dict(sorted((path.absolute().as_posix(), _size(path)) for path in paths))


def difference(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Describe the differences between two inventories in one line; empty if there are none.

    >>> difference({"a.png": 1, "b.png": 2, "c.png": 3}, {"b.png": 2, "c.png": 4, "d.png": 5})
    '1 file is gone (a.png), 1 is new (d.png), 1 has another size (c.png)'
    """
    gone = sorted(before.keys() - now.keys())
    new = sorted(now.keys() - before.keys())
    resized = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    changes = [(gone, "is gone", "are gone"), (new, "is new", "are new")]
    changes.append((resized, "has another size", "have another size"))
    present = [(names, one, several) for names, one, several in changes if names]
    return ", ".join(_phrase(*change, first=i == 0) for i, change in enumerate(present))


def digest(files: Mapping[str, int]) -> str:
    """Return the SHA-256, in hexadecimal, of sizes and of names relative to the folder common to all files.

    It does not depend on where that folder is.
    """
    root = Path(os.path.commonpath([PurePosixPath(name).parent for name in files])) if files else Path()
    rows = sorted((PurePosixPath(name).relative_to(root.as_posix()).as_posix(), size) for name, size in files.items())
    text = "".join(f"{name}\0{size}\0" for name, size in rows)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def images_sha256(samples: Samples) -> str | None:
    """Return the SHA-256 of kind, relative path and size of all images and masks; None if a file is missing.

    Paths are relative to the folder common to all files, so copies of a dataset in other folders are equal.
    """
    both = [*samples.train, *samples.test]
    files = [(each.kind, path.absolute()) for each in both for path in (each.path, each.mask) if path is not None]
    root = os.path.commonpath([path.parent for _, path in files])
    digest = hashlib.sha256()
    try:
        for kind, path in files:
            entry = f"{kind} {path.relative_to(root)} {path.stat().st_size}\n"
            digest.update(entry.encode("utf-8", "surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()


def _phrase(names: Sequence[str], one: str, several: str, first: bool) -> str:
    noun = ("file " if len(names) == 1 else "files ") if first else ""
    if len(names) == 1:
        return f"1 {noun}{one} ({names[0]})"
    return f"{len(names)} {noun}{several} (first: {names[0]})"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): restore it or remove it from the data") from error
