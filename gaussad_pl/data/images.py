"""Image files and masks decoded to arrays of one size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gaussad_pl.errors import UserError

# Only these decoders are tried, whatever a file is called: Pillow knows formats that start external programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

MASK_SIZE = 256  # side in pixels at which masks and anomaly maps are compared
ROWS = 256  # of an image that are converted at once


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


def image_size(path: Path, whole: bool = False) -> tuple[int, int]:
    """Width and height in pixels, the EXIF orientation applied, from the header alone.

    Args:
        path: of an image or a mask.
        whole: decode the file, too, for the orientation that a PNG file may have behind its pixels.

    Raises:
        UserError: the file cannot be read.
    """
    with _open(path) as file:
        if whole:
            file.load()
        width, height = file.size  # of a TIFF as it is shown, from the header on
        known = whole or "exif" in file.info or file.format not in ("PNG", "TIFF")  # a PNG would be decoded
        turned = known and file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (height, width) if turned else (width, height)


def square(image: Image.Image, size: int) -> np.ndarray:
    """An image as RGB, resized to a square: what `read_image` does with a file.

    Returns:
        `(size, size, 3)` uint8.

    Raises:
        ValueError: its values have no obvious scale.
    """
    return np.asarray(resized(upright(image), (size, size)))


def upright(image: Image.Image) -> Image.Image:
    """An image with its EXIF orientation applied, as RGB or greyscale of 8 bits; alpha is dropped.

    An image that is that already is returned itself: a copy of 100 megapixels takes 400 MB.

    Raises:
        ValueError: its values have no obvious scale.
    """
    image.load()  # the orientation of a PNG file may be behind its pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        image = Image.fromarray(shallow(np.asarray(image)))
    if image.mode in ("L", "RGB"):  # greyscale is resized first: a third of the work
        return image
    if "transparency" in image.info:  # dropped like any alpha; Pillow would warn about it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """What `upright` returns, as RGB of a width and a height."""
    return image.resize(size, Image.Resampling.BILINEAR).convert("RGB")


def shallow(values: np.ndarray) -> np.ndarray:
    """Values of more than 8 bits as uint8: integers by their full range, floating-point ones as `read_image` says.

    Raises:
        ValueError: values that are negative, too large or not numbers.
    """
    scale = _full_scale(values, (1, 255, 65535) if values.dtype.kind == "f" else (65535,))
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):  # not all at once: as floating-point numbers they take four times as much
        scaled[start : start + ROWS] = np.rint(values[start : start + ROWS] * np.float32(255 / scale))
    return scaled


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


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """The image file, with whatever its decoder raises turned into a UserError that names it."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): replace it or remove it")
        # not by its path: Pillow would map an uncompressed TIFF and mix up the pixels of one that is turned
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(f"cannot read {path} (cannot identify it as {known}): replace it or remove it") from error
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
