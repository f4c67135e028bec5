"""Decoding of many image files: with prefetching, or all at once and, with a cache folder, only once."""

import hashlib
import io
import logging
import math
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.errors import UserError
from gaussad_pl.progress import tracked

CACHE_VERSION = 3  # increment it whenever the pixels returned by `read_image` or the file format change
CHECKSUM = 4  # bytes after the array in a cache file: the CRC-32 of everything before them
CHUNK = 1 << 24  # bytes read at once to verify the checksum
MEMORY = 4 * 2**30  # most bytes of decoded images kept in memory

log = logging.getLogger(__name__)


def decoded(paths: Iterable[Path], frame: Frame, ahead: int) -> Iterator[tuple[Path, Tensor | UserError]]:
    """Yield each path with its image, uint8 ``(3, height, width)``, or with the error, in the order of the paths.

    Threads, as many as torch uses, decode up to ``ahead`` images in advance.
    """
    waiting: deque[tuple[Path, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(torch.get_num_threads())  # decoding and resizing release the GIL
    try:
        for path in paths:
            waiting.append((path, pool.submit(read_image, path, frame)))
            if len(waiting) > ahead:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C would wait for all of them


def load_images(paths: Sequence[Path], frame: Frame, cache: Path | None, description: str) -> Tensor:
    """Decode all images, with a progress bar titled `description`.

    With the folder `cache`, the result is stored there in one file and memory-mapped: it is read as needed, and
    processes on one machine share the memory. The file name depends on the frame and on the images' paths, times and
    sizes, so that changed images are decoded again, as are those of a damaged file. Any number of processes may use the
    folder at once. Without a folder, images of more than 4 GiB in total are kept in a temporary file, with a warning.

    Returns:
        `(N, 3, height, width)` uint8, contiguous. Treat it as read-only: writing to a memory-mapped one does not
        change the file, but ends the sharing of memory.

    Raises:
        UserError: images cannot be read (names the first and their number), or the cache cannot be written.
    """
    shape = (len(paths), 3, frame.height, frame.width)
    if cache is None and math.prod(shape) > MEMORY:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the mapped file outlives its name
            log.warning(
                "%d images of %d x %d px take %.1f GB: kept in a file in %s instead of memory. Set data.cache=folder "
                "to keep them for later runs, too",
                *(len(paths), frame.width, frame.height, math.prod(shape) / 1e9, Path(folder).parent),
            )
            return load_images(paths, frame, Path(folder), description)
    if cache is None or not paths:
        images = torch.empty(shape, dtype=torch.uint8)
        for i, image in enumerate(_all(paths, frame, description)):
            images[i] = image
        return images
    file = cache / f"{_fingerprint(paths, frame)}.npy"
    if (cached := _open_cached(file, shape)) is None:
        _store(_all(paths, frame, description), shape, file)
        cached = _open_cached(file, shape)
    if cached is None:
        raise UserError(f"the image cache {file} changed while it was being written: try again or use another folder")
    return cached


def _all(paths: Sequence[Path], frame: Frame, description: str) -> Iterator[Tensor]:
    """Yield all images with a progress bar; unreadable ones are counted and raised at the end."""
    images = tracked(decoded(paths, frame, ahead=4 * torch.get_num_threads()), description, total=len(paths))
    errors = []
    for _, image in images:
        if isinstance(image, UserError):
            errors.append(image)
        elif not errors:
            yield image
    if errors:
        raise UserError(f"{errors[0]} ({len(errors)} of {len(paths)} images cannot be read)") from errors[0]


def _result(path: Path, future: Future[np.ndarray]) -> tuple[Path, Tensor | UserError]:
    try:
        return path, torch.from_numpy(future.result().copy()).permute(2, 0, 1)
    except UserError as error:
        return path, error


def _fingerprint(paths: Sequence[Path], frame: Frame) -> str:
    digest = hashlib.sha256(f"version {CACHE_VERSION}, {frame}".encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): restore it or remove it from the data") from error
        digest.update(os.fsencode(path.absolute()) + f"\0{stat.st_mtime_ns}\0{stat.st_size}\0".encode())
    return digest.hexdigest()[:32]


def _open_cached(file: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return the cached images, memory-mapped; None if the file is missing or not exactly what was written."""
    try:
        # Copy-on-write: PyTorch has no read-only tensors, and this way nothing can modify the file.
        array = np.lib.format.open_memmap(file, mode="c")
        expected = array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous
        intact = expected and file.stat().st_size == array.offset + array.nbytes + CHECKSUM and _has_its_checksum(file)
    except OSError:  # usually there is no such file
        return None
    except Exception:  # for any other problem with the file, decoding again is right
        intact = False
    if not intact:
        log.warning("the image cache %s is damaged: its images are decoded again", file)
    return torch.from_numpy(array) if intact else None


def _has_its_checksum(file: Path) -> bool:
    """Return True if the checksum of the whole file is correct: a flipped bit would silently change a pixel."""
    crc, remaining = 0, file.stat().st_size - CHECKSUM
    with file.open("rb") as stream:
        while remaining > 0 and (chunk := stream.read(min(CHUNK, remaining))):
            crc, remaining = zlib.crc32(chunk, crc), remaining - len(chunk)
        return stream.read() == crc.to_bytes(CHECKSUM, "little")


def _store(images: Iterable[Tensor], shape: tuple[int, ...], file: Path) -> None:
    """Write the cache file so that no process ever sees part of it, even after a power cut.

    Unlike with `gaussad_pl.files.replacing`, several processes may write the same file at once.
    """
    unfinished = file.with_name(f"{file.stem}-{uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as stream:  # not memory-mapped: a full disk would kill the process
                header = io.BytesIO()
                form = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(header, form)
                crc = 0
                for content in chain([header.getvalue()], (image.numpy().tobytes() for image in images)):
                    crc = zlib.crc32(content, crc)
                    stream.write(content)
                stream.write(crc.to_bytes(CHECKSUM, "little"))
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the image cache {file} ({error.strerror}): free some space, use another data.cache or null"
        ) from error
