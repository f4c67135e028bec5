"""The images of a `source=`: one image, a folder, a pattern or a list.

Paths are yielded one by one; at most the names of one folder or the matches of a pattern are in memory.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gaussad_pl.data.samples import IMAGE_SUFFIXES
from gaussad_pl.errors import UserError

LIST_SUFFIX = ".txt"


def image_paths(source: str, setting: str = "source") -> Iterator[Path]:
    """Yield the images of a source in a fixed order.

    - a folder: all images in it and its subfolders, except hidden ones;
    - a pattern with ``*``, ``?`` or ``[``, and ``**`` for any number of folders: all images that match;
    - a ``.txt`` file: one path per line, relative to the working directory, whether the files exist or not;
    - any other file: the file itself.

    Args:
        source: the image, folder, pattern or list.
        setting: its name on the command line, for error messages.

    Raises:
        UserError: the file or folder does not exist, or a folder cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        yield from walk(path, _stop)
    elif path.suffix.lower() == LIST_SUFFIX and path.is_file():
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            yield from (Path(text) for line in lines if (text := line.strip()))
    elif path.exists():
        yield path
    elif glob.has_magic(source):
        matches = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207  # any pattern
        yield from (match for match in matches if is_image(match))
    else:
        raise UserError(
            f"{setting}={source} does not exist: give an image, a folder, a pattern or a list (.txt) of images"
        )


def count_images(source: str, setting: str = "source") -> int:
    """Count the images of a source.

    Raises:
        UserError: the source does not exist, cannot be read, or has no images.
    """
    count = sum(1 for _ in image_paths(source, setting))
    if not count:
        raise UserError(f"{setting}={source} has no images: expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
    return count


def walk(folder: Path, onerror: Callable[[OSError], None], left_out: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, linked ones included, except hidden ones.

    Args:
        folder: the folder.
        onerror: called with the error of each folder that cannot be read.
        left_out: subfolders that are not entered, whatever leads to them.
    """
    seen = {path.resolve() for path in (folder, *left_out)}  # a link may lead to a folder that has been read, or around
    for where, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(folders, key=lambda name: Path(where, name).is_symlink()):  # links last
            if (place := Path(where, name).resolve()) in seen:
                folders.remove(name)
            seen.add(place)
        yield from (path for name in sorted(files) if is_image(path := Path(where, name)))


def _stop(error: OSError) -> None:
    """Raise on a folder that cannot be read; by default, `os.walk` would silently skip its images."""
    raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from error


def is_image(path: Path) -> bool:
    """Return True for a file that is not hidden and has the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
