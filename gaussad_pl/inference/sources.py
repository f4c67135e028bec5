"""What `source=` means: one image, a folder, a pattern or a list.

Nothing here grows with the number of images.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gaussad_pl.data.samples import IMAGE_SUFFIXES
from gaussad_pl.errors import UserError

LIST_SUFFIX = ".txt"


def image_paths(source: str) -> Iterator[Path]:
    """The images of a source, in a fixed order.

    - a folder: all images in it and below, but hidden ones;
    - a pattern with ``*``, ``?`` or ``[``, ``**`` for any folders: the images among what it matches;
    - a file ``.txt``: one path a line, relative to the working directory, whether they exist or not;
    - any other file.

    Raises:
        UserError: there is no such file or folder.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _walk(path)
    elif path.suffix.lower() == LIST_SUFFIX and path.is_file():
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            yield from (Path(text) for line in lines if (text := line.strip()))
    elif path.exists():
        yield path
    elif glob.has_magic(source):
        found = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207  # any pattern
        yield from (each for each in found if _is_image(each))
    else:
        raise UserError(
            f"source={source} does not exist: give an image, a folder, a pattern or a list (.txt) of images"
        )


def count_images(source: str) -> int:
    """How many images a source has.

    Raises:
        UserError: there is no such file or folder, or no image in it.
    """
    count = sum(1 for _ in image_paths(source))
    if not count:
        raise UserError(f"source={source}: no images there: expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
    return count


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, onerror=_stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(files) if _is_image(path := Path(where, name)))


def _stop(error: OSError) -> None:
    """Without it, the images below a folder that cannot be read would be left out without a word."""
    raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
