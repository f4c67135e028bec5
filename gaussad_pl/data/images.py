"""Decoding of image files and masks into arrays that fill a frame."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gaussad_pl.data.frame import Frame, resized
from gaussad_pl.errors import UserError

# Only these decoders are tried, regardless of the suffix: some of Pillow's formats start external programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

MASK_SIZE = 256  # side in pixels at which masks and anomaly maps are compared
PIXELS = 2**27  # limit for all images being decoded at once, four bytes each; a larger image is decoded alone
STRIP = 2**22  # pixels that are converted at once


def read_image(path: Path, frame: Frame) -> np.ndarray:
    """Decode an image to RGB and fit it to a frame.

    EXIF orientation is applied and alpha is dropped. 16-bit images are scaled by their full range (65535 becomes 255),
    even if the camera used only 12 bits; floating-point images by the smallest of 1, 255, 65535 that no value exceeds.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        UserError: the file cannot be read, or its values have no obvious scale.
    """
    with _open(path, whole=True) as file:
        draft(file, frame)
        with _decoding.room(math.prod(file.size)):
            try:
                return frame.pixels(upright(file))
            finally:
                file.close()  # otherwise its pixels would outlive the reservation


def read_picture(path: Path, side: int) -> Image.Image:
    """Decode an image to RGB in its own proportions, with a longer side of ``side`` pixels, to be looked at.

    Raises:
        UserError: the file cannot be read, or its values have no obvious scale.
    """
    with _open(path) as file:
        file.draft(None, (2 * side, 2 * side))
        with _decoding.room(math.prod(file.size)):
            try:
                return fitted(upright(file), side)
            finally:
                file.close()


def image_size(path: Path, whole: bool = False) -> tuple[int, int]:
    """Return width and height in pixels, with EXIF orientation applied, from the header alone.

    Args:
        path: an image or a mask.
        whole: also decode the file, as a PNG file may store its orientation after the pixels.

    Raises:
        UserError: the file cannot be read.
    """
    with _open(path) as file:
        if whole:
            file.load()
        width, height = file.size  # for a TIFF, Pillow has already applied the orientation
        known = whole or "exif" in file.info or file.format not in ("PNG", "TIFF")  # getexif would decode a PNG
        turned = known and file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (height, width) if turned else (width, height)


def draft(file: Image.Image, frame: Frame) -> None:
    """Have a JPEG file decoded at 1/2, 1/4 or 1/8 of its size, but at least twice the frame: the resize antialiases."""
    side = 2 * max(frame.height, frame.width)  # of both, as the image may be turned
    file.draft(None, (side, side))


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert an image to 8-bit RGB, RGBA or greyscale.

    An image that needs no conversion is returned itself, as a copy of 100 megapixels takes 400 MB.

    Raises:
        ValueError: its values have no obvious scale.
    """
    image.load()  # a PNG file may store its orientation after the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        image = _shallow_image(image)
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in ("L", "RGB", "RGBA"):
        return image
    if "transparency" in image.info:  # dropped like any alpha; otherwise Pillow warns about it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Resize an image from `upright` to a longer side of ``side`` pixels, keep its proportions, convert it to RGB."""
    width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
    return resized(image, (width, height))


def shallow(values: np.ndarray) -> np.ndarray:
    """Convert values of more than 8 bits to uint8: integers by their full range, floats as in `read_image`.

    >>> shallow(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 128, 255]

    Raises:
        ValueError: values are negative, too large or NaN.
    """
    return _shallow(values, _full_scale(values.min(), values.max(), _scales(values)))


def _shallow(values: np.ndarray, scale: int) -> np.ndarray:
    return np.rint(values * np.float32(255 / scale)).astype(np.uint8)


def _shallow_image(image: Image.Image) -> Image.Image:
    """Apply `shallow` to an image strip by strip, as float32 copies of a large image may not fit into memory."""
    rows = max(1, STRIP // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    extremes = np.array([(strip.min(), strip.max()) for strip in (np.asarray(image.crop(box)) for box in boxes)])
    scale = _full_scale(extremes.min(), extremes.max(), _scales(extremes))
    grey = Image.new("L", image.size)
    for box in boxes:
        grey.paste(Image.fromarray(_shallow(np.asarray(image.crop(box)), scale)), box)
    return grey


def _scales(values: np.ndarray) -> Sequence[int]:
    return (1, 255, 65535) if values.dtype.kind == "f" else (65535,)


def read_mask(path: Path, frame: Frame, side: int, numbered: bool = False) -> np.ndarray:
    """Decode a defect mask and fit it to a frame: True where the brightest channel exceeds half of the full scale.

    Full scale is the smallest of 1, 255, 65535 that no value exceeds, so masks of 0/1 and of 0/255 work at any depth.
    The values of ``numbered`` masks are numbers of kinds of defects: True where they are not 0.

    Returns:
        `(side, side)` bool, the whole frame, resized without interpolation.

    Raises:
        UserError: the file cannot be read, or all non-zero values are too small for a mask.
    """
    with _open(path, whole=True) as file:
        values = _brightest(file, numbered)
        mask = values > 0 if numbered else values > _full_scale(values.min(), values.max(), (1, 255, 65535)) / 2
        if values.any() and not mask.any():
            raise UserError(f"mask {path} has values up to {values.max()}: expected 0 and 1, or 0 and 255; convert it")
        return frame.mask(mask, (side, side))


def read_roi(path: Path, frame: Frame) -> np.ndarray:
    """Decode a region of interest, all pixels that are not black, and fit it to a frame.

    Returns:
        `(height, width)` bool.

    Raises:
        UserError: the file cannot be read, or the region is empty.
    """
    with _open(path, whole=True) as file:
        values = _brightest(file)
        if not values.any():
            raise UserError(f"data.roi={path} is all black: paint white what is to be inspected")
        region = frame.mask(values > 0, (frame.height, frame.width))
        if not region.any():
            raise UserError(f"data.roi={path} lies entirely in what data.fit={frame.fit} cuts off: set data.fit=pad")
        return region


def _brightest(file: Image.Image, numbered: bool = False) -> np.ndarray:
    """Return the brightest channel of an upright image, ``(H, W)``; of a ``numbered`` palette image, the numbers."""
    image = ImageOps.exif_transpose(file)
    if not (numbered or image.mode == "L" or _is_deep(image)):
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    values = np.asarray(image)
    return values.max(axis=2) if values.ndim == 3 else values


class _Decoding:
    """Limits the number of pixels that threads decode at once, to bound memory."""

    def __init__(self, most: int) -> None:
        self._most, self._used, self._changed = most, 0, Condition()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Reserve ``pixels``, waiting until they fit or, above the limit, until nothing else is being decoded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_decoding = _Decoding(PIXELS)


@contextmanager
def _open(path: Path, whole: bool = False) -> Iterator[Image.Image]:
    """Open an image file; anything its decoder raises becomes a UserError that names the file.

    With ``whole``, the checksums of a PNG file are verified first, as Pillow ignores them when decoding.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): replace it or remove it")
        # not by path: Pillow would memory-map an uncompressed TIFF and garble the pixels of a rotated one
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if whole and image.format == "PNG":
                with Image.open(path, formats=FORMATS) as copy:
                    copy.verify()
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(f"cannot read {path} (cannot identify it as {known}): replace it or remove it") from error
    except Exception as error:  # decoders raise almost anything when given garbage
        text = getattr(error, "strerror", None) or str(error)  # an OSError's text names the file again
        reason = " ".join(text.split()) or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}): replace it or remove it") from error


def _is_deep(image: Image.Image) -> bool:
    """Return True for more than 8 bits per channel, which Pillow's own conversion would clip."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _full_scale(low: float, high: float, scales: Sequence[int]) -> int:
    """Return the smallest of ``scales`` that no value from ``low`` to ``high`` exceeds."""
    for scale in scales:
        if low >= 0 and high <= scale:  # both false for NaN
            return scale
    raise ValueError(f"values from {low} to {high}, expected 0 to {scales[-1]}: convert it to 8 bits")
