"""Convert paths, PIL images, arrays and tensors to the pixels that a detector takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussad_pl.data.images import read_image, shallow, square
from gaussad_pl.errors import UserError

# one image: a path, a PIL image, an array (H, W) or (H, W, C), a tensor (C, H, W); or several: a batch or an iterable
Images = Any


def each_pixels(images: Images, size: int) -> Iterator[Tensor]:
    """Yield each image as ``(3, size, size)`` uint8, resized as `gaussad_pl.data.images.read_image` does.

    Arrays have their channels last, tensors first: grey, grey with alpha, RGB or RGBA; alpha is dropped. Values of more
    than 8 bits are scaled like those of files. A PIL image is decoded at full size, but a JPEG given by its path may be
    decoded at half its size, so a very large one can differ by rounding.

    Raises:
        UserError: a file cannot be read, or an object is not an image.

    >>> [pixels.shape for pixels in each_pixels(np.zeros((2, 8, 6, 3), dtype=np.uint8), size=4)]
    [torch.Size([3, 4, 4]), torch.Size([3, 4, 4])]
    """
    for image in _each(images):
        yield torch.from_numpy(_pixels(image, size)).permute(2, 0, 1)


def _each(images: Images) -> Iterable[Any]:
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    if isinstance(images, Iterable):
        return images
    return [images]


def _pixels(image: Any, size: int) -> np.ndarray:
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image), size).copy()  # PyTorch does not support read-only arrays
    try:
        if isinstance(image, Tensor):
            values = image.detach().cpu().numpy()
            image = values.transpose(1, 2, 0) if values.ndim == 3 else values
        if isinstance(image, np.ndarray):
            image = _picture(image)
        if isinstance(image, Image.Image):
            return square(image.copy(), size).copy()  # the caller's image must not change
    except (ValueError, OSError) as error:
        raise UserError(f"not an image: {error}") from error
    raise UserError(f"not an image: {type(image).__name__}; give a path, a PIL image, an array or a tensor")


def _picture(values: np.ndarray) -> Image.Image:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)) or not values.size:
        raise ValueError(f"shape {values.shape}, expected (H, W) or (H, W, C), tensors (C, H, W), C from 1 to 4")
    if values.dtype == np.bool_ or values.dtype.kind not in "uif":
        raise ValueError(f"type {values.dtype}, expected uint8, uint16 or floating point")
    values = values if values.dtype == np.uint8 else shallow(values)
    return Image.fromarray(
        values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else np.ascontiguousarray(values)
    )
