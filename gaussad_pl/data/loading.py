"""Many image files decoded: ahead of who needs them, or all of them and, with a cache folder, only once."""

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
from rich.console import Console
from rich.progress import track
from torch import Tensor

from gaussad_pl.data.images import read_image
from gaussad_pl.distributed import rank
from gaussad_pl.errors import UserError

CACHE_VERSION = 3  # raise it whenever the pixels that `read_image` returns change, or the form of the file
CHECKSUM = 4  # bytes behind the array in a cache file: the CRC-32 of all before them
CHUNK = 1 << 24  # bytes that are checked at once
MEMORY = 4 * 2**30  # bytes of decoded images that are kept in memory, at most

log = logging.getLogger(__name__)


def decoded(paths: Iterable[Path], size: int, ahead: int) -> Iterator[tuple[Path, Tensor | UserError]]:
    """Each image as ``(3, size, size)`` uint8, or what is wrong with it, in the order of the paths.

    As many threads as torch has decode ``ahead`` images at most before they are asked for.
    """
    waiting: deque[tuple[Path, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(torch.get_num_threads())  # decoding and resizing do without the GIL
    try:
        for path in paths:
            waiting.append((path, pool.submit(read_image, path, size)))
            if len(waiting) > ahead:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all of them


def load_images(paths: Sequence[Path], size: int, cache: Path | None, description: str) -> Tensor:
    """Decode all images, with a progress bar titled `description`.

    With the folder `cache`, the result is kept there in one file and memory-mapped from then on: it is read as needed,
    and processes on one machine share the memory. The file is found by the images' paths, times and sizes, so changed
    images are decoded anew, and so are those of a damaged file. Any number of processes may use the folder at once.
    Without a folder, images of more than 4 GiB together are kept in a file, too, and a warning says so; it is gone with
    the process.

    Returns:
        `(N, 3, size, size)` uint8, contiguous. Treat it as read-only: writing to a memory-mapped one changes nothing
        on disk but gives up the sharing.

    Raises:
        UserError: images cannot be read (names the first and says how many), or the cache cannot be written.
    """
    shape = (len(paths), 3, size, size)
    if cache is None and math.prod(shape) > MEMORY:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # what is mapped outlives its name
            log.warning(
                "%d images of %d px take %.1f GB: kept in a file in %s, not in memory. With data.cache=folder they are "
                "kept there, for later runs, too",
                *(len(paths), size, math.prod(shape) / 1e9, Path(folder).parent),
            )
            return load_images(paths, size, Path(folder), description)
    if cache is None or not paths:
        images = torch.empty(shape, dtype=torch.uint8)
        for i, image in enumerate(_all(paths, size, description)):
            images[i] = image
        return images
    file = cache / f"{_fingerprint(paths, size)}.npy"
    if (cached := _open_cached(file, shape)) is None:
        _store(_all(paths, size, description), shape, file)
        cached = _open_cached(file, shape)
    if cached is None:
        raise UserError(f"the image cache {file} was changed while it was written: start again, or use another folder")
    return cached


def _all(paths: Sequence[Path], size: int, description: str) -> Iterator[Tensor]:
    """The images, behind a progress bar; broken ones are counted up to the end."""
    console = Console(stderr=True)
    images = track(
        decoded(paths, size, ahead=4 * torch.get_num_threads()),
        description,
        total=len(paths),
        console=console,
        transient=True,
        disable=not console.is_terminal or rank() > 0,  # rich would leave an empty line
    )
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


def _fingerprint(paths: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"version {CACHE_VERSION}, size {size}".encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): restore it or remove it from the data") from error
        digest.update(os.fsencode(path.absolute()) + f"\0{stat.st_mtime_ns}\0{stat.st_size}\0".encode())
    return digest.hexdigest()[:32]


def _open_cached(file: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The cached images, memory-mapped, or None where the file is missing or not exactly what was written."""
    try:
        # Copy-on-write: PyTorch has no read-only tensors, and this way nothing can alter the file.
        array = np.lib.format.open_memmap(file, mode="c")
        expected = array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous
        sound = expected and file.stat().st_size == array.offset + array.nbytes + CHECKSUM and _has_its_checksum(file)
    except OSError:  # most often there is no such file
        return None
    except Exception:  # whatever is wrong with the file, decoding again is right
        sound = False
    if not sound:
        log.warning("the image cache %s is damaged: its images are decoded again", file)
    return torch.from_numpy(array) if sound else None


def _has_its_checksum(file: Path) -> bool:
    """Read the whole file, once: a flipped bit would silently be another pixel."""
    crc, rest = 0, file.stat().st_size - CHECKSUM
    with file.open("rb") as stream:
        while rest > 0 and (chunk := stream.read(min(CHUNK, rest))):
            crc, rest = zlib.crc32(chunk, crc), rest - len(chunk)
        return stream.read() == crc.to_bytes(CHECKSUM, "little")


def _store(images: Iterable[Tensor], shape: tuple[int, ...], file: Path) -> None:
    """Write the cache file such that no process ever sees a part of it, even after a power cut.

    Other than with `gaussad_pl.files.replacing`, several processes may write the same file at once.
    """
    unfinished = file.with_name(f"{file.stem}-{uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as stream:  # not mapped: a full disk would kill the process
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
            f"cannot write the image cache {file} ({error.strerror}): free some space, use another folder or none"
        ) from error
