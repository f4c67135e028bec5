"""Image files and masks decoded to arrays of one size."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gaussad_pl.errors import UserError

# Only these decoders are tried, whatever a file is called: Pillow knows formats that start external programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

MASK_SIZE = 256  # side in pixels at which masks and anomaly maps are compared
PIXELS = 2**27  # that all threads together decode at once, four bytes each; a larger image is decoded alone
STRIP = 2**22  # pixels that are converted at once


def read_image(path: Path, size: int) -> np.ndarray:
    """Decode an image to RGB and resize it to a square, whatever its aspect ratio.

    EXIF orientation is applied and alpha is dropped. 16-bit images are scaled by their full range (65535 becomes 255),
    also where a camera used 12 bits of it; floating-point images by the smallest of 1, 255, 65535 that holds them.

    Returns:
        `(size, size, 3)` uint8.

    Raises:
        UserError: the file cannot be read, or its values have no obvious scale.
    """
    with _open(path, whole=True) as file:
        # Decodes JPEG at 1/2, 1/4 or 1/8 of its size; twice the target is kept so that the resize still antialiases.
        file.draft(None, (2 * size, 2 * size))
        with _decoding.room(math.prod(file.size)):
            try:
                return square(file, size)
            finally:
                file.close()  # or its pixels would outlive the room


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
    """An image with its EXIF orientation applied, as RGB, RGBA or greyscale of 8 bits.

    An image that is that already is returned itself: a copy of 100 megapixels takes 400 MB.

    Raises:
        ValueError: its values have no obvious scale.
    """
    image.load()  # the orientation of a PNG file may be behind its pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        image = _shallow_image(image)
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in ("L", "RGB", "RGBA"):
        return image
    if "transparency" in image.info:  # dropped like any alpha; Pillow would warn about it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """What `upright` returns, as RGB of a width and a height; alpha is dropped."""
    if image.mode == "RGBA":  # by bands: a conversion would need the memory of another whole image
        bands = [image.getchannel(name).resize(size, Image.Resampling.BILINEAR) for name in "RGB"]
        return Image.merge("RGB", bands)
    return image.resize(size, Image.Resampling.BILINEAR).convert("RGB")  # greyscale last: a third of the work


def shallow(values: np.ndarray) -> np.ndarray:
    """Values of more than 8 bits as uint8: integers by their full range, floating-point ones as `read_image` says.

    Raises:
        ValueError: values that are negative, too large or not numbers.
    """
    return _shallow(values, _full_scale(values.min(), values.max(), _scales(values)))


def _shallow(values: np.ndarray, scale: int) -> np.ndarray:
    return np.rint(values * np.float32(255 / scale)).astype(np.uint8)


def _shallow_image(image: Image.Image) -> Image.Image:
    """`shallow` of a whole image, strip by strip: float32 copies of a large one would not fit into memory."""
    rows = max(1, STRIP // image.width)
    places = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    extremes = np.array([(part.min(), part.max()) for part in (np.asarray(image.crop(place)) for place in places)])
    scale = _full_scale(extremes.min(), extremes.max(), _scales(extremes))
    grey = Image.new("L", image.size)
    for place in places:
        grey.paste(Image.fromarray(_shallow(np.asarray(image.crop(place)), scale)), place)
    return grey


def _scales(values: np.ndarray) -> Sequence[int]:
    return (1, 255, 65535) if values.dtype.kind == "f" else (65535,)


def read_mask(path: Path, size: int) -> np.ndarray:
    """Decode a defect mask: True where the brightest channel is above half of the full scale.

    Full scale is the smallest of 1, 255, 65535 that holds the values: masks of 0/1 and of 0/255 both work at any depth.

    Returns:
        `(size, size)` bool, resized to a square without interpolation.

    Raises:
        UserError: the file cannot be read, or all of its non-zero values are too small to be a mask's.
    """
    with _open(path, whole=True) as file:
        image = ImageOps.exif_transpose(file)
        if not (image.mode == "L" or _is_deep(image)):
            image.info.pop("transparency", None)
            image = image.convert("RGB")
        values = np.asarray(image)
        if values.ndim == 3:
            values = values.max(axis=2)
        mask = values > _full_scale(values.min(), values.max(), (1, 255, 65535)) / 2
        if values.any() and not mask.any():
            raise UserError(f"mask {path} has values up to {values.max()}: expected 0 and 1, or 0 and 255; convert it")
        return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


class _Decoding:
    """Keeps threads from decoding more pixels at once than memory has room for."""

    def __init__(self, most: int) -> None:
        self._most, self._used, self._changed = most, 0, Condition()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Wait for room for ``pixels``; where they are more than there ever is, until there is nothing else."""
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
    """The image file, with whatever its decoder raises turned into a UserError that names it.

    With ``whole`` the checksums of a PNG file are verified first: Pillow decodes without a look at them.
    """
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): replace it or remove it")
        # not by its path: Pillow would map an uncompressed TIFF and mix up the pixels of one that is turned
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if whole and image.format == "PNG":
                with Image.open(path, formats=FORMATS) as twin:
                    twin.verify()
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


def _full_scale(low: float, high: float, scales: Sequence[int]) -> int:
    """The smallest of `scales` that no value from ``low`` to ``high`` exceeds."""
    for scale in scales:
        if low >= 0 and high <= scale:  # both false for NaN
            return scale
    raise ValueError(f"values from {low} to {high}, expected 0 to {scales[-1]}: convert it to 8 bits")
