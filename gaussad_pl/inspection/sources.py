"""What `source=` means: one image, a folder, a pattern or a list; and its images decoded ahead of the model.

Nothing here grows with the number of images.
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.data.images import read_image
from gaussad_pl.data.samples import IMAGE_SUFFIXES
from gaussad_pl.errors import UserError

LIST_SUFFIX = ".txt"
THREADS = min(8, os.cpu_count() or 1)


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
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
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


def decoded(paths: Iterable[Path], size: int, ahead: int) -> Iterator[tuple[Path, Tensor | UserError]]:
    """Each image as ``(3, size, size)`` uint8, or what is wrong with it, in the order of the paths.

    Threads decode ``ahead`` images at most before they are asked for.
    """
    waiting: deque[tuple[Path, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(THREADS)  # Pillow decodes and resizes without the GIL
    try:
        for path in paths:
            waiting.append((path, pool.submit(read_image, path, size)))
            if len(waiting) > ahead:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all of them


def _result(path: Path, future: Future[np.ndarray]) -> tuple[Path, Tensor | UserError]:
    try:
        return path, torch.from_numpy(future.result().copy()).permute(2, 0, 1)
    except UserError as error:
        return path, error


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(files) if _is_image(path := Path(where, name)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
