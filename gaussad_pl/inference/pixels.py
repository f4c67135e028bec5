"""Convert paths, PIL images, arrays and tensors to the pixels that a detector takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import image_size, read_image, shallow, upright
from gaussad_pl.data.samples import IMAGE_SUFFIXES
from gaussad_pl.errors import UserError

# one image: a path, a PIL image, an array (H, W) or (H, W, C), a tensor (C, H, W); or several: a batch or an iterable
Images = Any


def each_pixels(images: Images, frame: Frame) -> Iterator[Tensor]:
    """Yield each image as ``(3, height, width)`` uint8, fitted as `gaussad_pl.data.images.read_image` does.

    Arrays have their channels last, tensors first: grey, grey with alpha, RGB or RGBA; alpha is dropped. Values are
    uint8, or uint16 or floating point, which are scaled like those of files. A PIL image is decoded at full size, but a
    JPEG given by its path may be decoded at half its size, so a very large one can differ by rounding.

    Raises:
        UserError: a file cannot be read, or an object is not an image.

    >>> [pixels.shape for pixels in each_pixels(np.zeros((2, 8, 6, 3), dtype=np.uint8), Frame(4, 4))]
    [torch.Size([3, 4, 4]), torch.Size([3, 4, 4])]
    """
    for image in _each(images):
        yield torch.from_numpy(_pixels(image, frame)).permute(2, 0, 1)


def write_images(images: Images, folder: Path) -> None:
    """Write images to a new folder in their order, without loss; files given by their paths are copied.

    Raises:
        UserError: a file cannot be read, or an object is not an image.
    """
    folder.mkdir(parents=True)
    for number, image in enumerate(_each(images)):
        try:
            if isinstance(image, (str, os.PathLike)):
                _copy(Path(image), folder, number)
            else:
                upright(_image(image)).save(folder / f"{number:06}.png", compress_level=1)
        except ValueError as error:
            raise UserError(f"image {number} is not an image: {error}") from error


def _copy(path: Path, folder: Path, number: int) -> None:
    image_size(path)  # names the caller's file, not the copy, if it cannot be read
    name = path.name if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.name}.png"  # decoders go by the content
    shutil.copyfile(path, folder / f"{number:06}_{name}")


def _each(images: Images) -> Iterable[Any]:
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    if isinstance(images, Iterable):
        return images
    return [images]


def _pixels(image: Any, frame: Frame) -> np.ndarray:
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image), frame).copy()  # PyTorch does not support read-only arrays
    try:
        return frame.pixels(upright(_image(image))).copy()
    except (ValueError, OSError) as error:
        raise UserError(f"not an image: {error}") from error


def _image(image: Any) -> Image.Image:
    """Convert a PIL image, an array or a tensor to a new PIL image, as the caller's must not change."""
    if isinstance(image, Tensor):
        small = image.is_floating_point() and image.element_size() < 4  # NumPy has no bfloat16
        values = (image.float() if small else image).detach().cpu().numpy()
        image = values.transpose(1, 2, 0) if values.ndim == 3 else values
    if isinstance(image, np.ndarray):
        return _picture(image)
    if isinstance(image, Image.Image):
        return image.copy()
    raise ValueError(f"{type(image).__name__}; give a path, a PIL image, an array or a tensor")


def _picture(values: np.ndarray) -> Image.Image:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)) or not values.size:
        raise ValueError(f"shape {values.shape}, expected (H, W) or (H, W, C), tensors (C, H, W), C from 1 to 4")
    if values.dtype not in (np.uint8, np.uint16) and values.dtype.kind != "f":  # how bright is 255 of an int64?
        raise ValueError(f"type {values.dtype}, expected uint8, uint16 or floating point")
    values = values if values.dtype == np.uint8 else shallow(values)
    return Image.fromarray(
        values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else np.ascontiguousarray(values)
    )
