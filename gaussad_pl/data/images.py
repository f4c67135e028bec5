"""Image files decoded to arrays, all of them at once and, with a cache folder, only once."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from gaussad_pl.distributed import rank
from gaussad_pl.errors import UserError

CACHE_VERSION = 1  # raise it whenever the pixels that `read_image` returns change

# Only these decoders are tried, whatever a file is called: Pillow knows formats that start external programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

MASK_SIZE = 256  # side in pixels at which masks and anomaly maps are compared


def read_image(path: Path, size: int) -> np.ndarray:
    """Decode an image to RGB and resize it to a square, whatever its aspect ratio.

    EXIF orientation is applied and alpha is dropped. 16-bit images are scaled by their full range (65535 becomes 255),
    also where a camera used 12 bits of it; floating-point images by the smallest of 1, 255, 65535 that holds them.

    Returns:
        `(size, size, 3)` uint8.

    Raises:
        UserError: the file cannot be read, or its values have no obvious scale.
    """
    with _open(path) as file:
        # Decodes JPEG at 1/2, 1/4 or 1/8 of its size; twice the target is kept so that the resize still antialiases.
        file.draft(None, (2 * size, 2 * size))
        return square(file, size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """An image as RGB, resized to a square: what `read_image` does with a file.

    Returns:
        `(size, size, 3)` uint8.

    Raises:
        ValueError: its values have no obvious scale.
    """
    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        image = Image.fromarray(shallow(np.asarray(image)))
    if image.mode != "L":  # greyscale is resized first: a third of the work
        image.info.pop("transparency", None)  # dropped like any alpha; Pillow would warn about it
        image = image.convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR).convert("RGB"))


def shallow(values: np.ndarray) -> np.ndarray:
    """Values of more than 8 bits as uint8: integers by their full range, floating-point ones as `read_image` says.

    Raises:
        ValueError: values that are negative, too large or not numbers.
    """
    scale = _full_scale(values, (1, 255, 65535) if values.dtype.kind == "f" else (65535,))
    return np.rint(values * np.float32(255 / scale)).astype(np.uint8)


def read_mask(path: Path, size: int) -> np.ndarray:
    """Decode a defect mask: True where the brightest channel is above half of the full scale.

    Full scale is the smallest of 1, 255, 65535 that holds the values: masks of 0/1 and of 0/255 both work at any depth.

    Returns:
        `(size, size)` bool, resized to a square without interpolation.

    Raises:
        UserError: the file cannot be read, or all of its non-zero values are too small to be a mask's.
    """
    with _open(path) as file:
        image = ImageOps.exif_transpose(file)
        if not (image.mode == "L" or _is_deep(image)):
            image.info.pop("transparency", None)
            image = image.convert("RGB")
        values = np.asarray(image)
        if values.ndim == 3:
            values = values.max(axis=2)
        mask = values > _full_scale(values, (1, 255, 65535)) / 2
        if values.any() and not mask.any():
            raise UserError(f"mask {path} has values up to {values.max()}: expected 0 and 1, or 0 and 255; convert it")
        return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def load_images(paths: Sequence[Path], size: int, cache: Path | None, description: str) -> Tensor:
    """Decode all images, with a progress bar titled `description`.

    With the folder `cache`, the result is kept there in one file and memory-mapped from then on: it is read as needed,
    and processes on one machine share the memory. The file is found by the images' paths, times and sizes, so changed
    images are decoded anew. Any number of processes may use the folder at once.

    Returns:
        `(N, 3, size, size)` uint8, contiguous. Treat it as read-only: writing to a memory-mapped one changes nothing
        on disk but gives up the sharing.

    Raises:
        UserError: images cannot be read (names the first and says how many), or the cache cannot be written.
    """
    if cache is None or not paths:
        return _decode_all(paths, size, description)
    file, shape = cache / f"{_fingerprint(paths, size)}.npy", (len(paths), 3, size, size)
    if (cached := _open_cached(file, shape)) is not None:
        return cached
    decoded = _decode_all(paths, size, description)
    _store(decoded, file)
    cached = _open_cached(file, shape)  # lets go of the memory that `decoded` takes
    return decoded if cached is None else cached


def _decode_all(paths: Sequence[Path], size: int, description: str) -> Tensor:
    images = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def decode(index: int) -> UserError | None:
        try:
            images[index] = read_image(paths[index], size).transpose(2, 0, 1)
        except UserError as error:
            return error
        return None

    console = Console(stderr=True)
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes and resizes without the GIL
    try:
        results = track(
            pool.map(decode, range(len(paths))),
            description,
            total=len(paths),
            console=console,
            transient=True,
            disable=not console.is_terminal or rank() > 0,  # rich would leave an empty line
        )
        errors = [error for error in results if error is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # or Ctrl-C would wait for all images
    if errors:
        raise UserError(f"{errors[0]} ({len(errors)} of {len(paths)} images cannot be read)") from errors[0]
    return torch.from_numpy(images)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The image file, with whatever its decoder raises turned into a UserError that names it."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): replace it or remove it")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # decoders fed with garbage raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}): replace it or remove it") from error


def _is_deep(image: Image.Image) -> bool:
    """More than 8 bits per pixel, which Pillow's own conversion would clip."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _full_scale(values: np.ndarray, scales: Sequence[int]) -> int:
    """The smallest of `scales` that no value exceeds."""
    low, high = values.min(), values.max()
    for scale in scales:
        if low >= 0 and high <= scale:  # both false for NaN
            return scale
    raise ValueError(f"values from {low} to {high}, expected 0 to {scales[-1]}: convert it to 8 bits")


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
    """The cached images, memory-mapped, or None where the file is missing or not exactly what is expected."""
    try:
        # Copy-on-write: PyTorch has no read-only tensors, and this way nothing can alter the file.
        array = np.lib.format.open_memmap(file, mode="c")
        expected = array.shape == shape and array.dtype == np.uint8 and array.flags.c_contiguous
        complete = file.stat().st_size == array.offset + array.nbytes
    except Exception:  # whatever is wrong with the file, decoding again is right
        return None
    return torch.from_numpy(array) if expected and complete else None


def _store(images: Tensor, file: Path) -> None:
    """Write the cache file such that no process ever sees a part of it, even after a power cut."""
    unfinished = file.with_name(f"{file.stem}-{uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as stream:
                np.save(stream, images.numpy())
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write the image cache {file} ({error.strerror}): free some space, use another folder or none"
        ) from error
