"""Plain mistakes in the data, found in seconds before minutes of work: each function raises one line that names them.

Headers of images are read here, not their pixels; masks are small and decoded, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussad_pl.data.images import MASK_SIZE, image_size, read_mask
from gaussad_pl.data.samples import Sample
from gaussad_pl.errors import UserError

LEAST = 3  # good images in training, at least: fewer do not show how good parts differ
THREADS = 8  # that read files: what they wait for is the disk or the network

T = TypeVar("T")


def enough_images(name: str, found: int, for_test: int, folds: int) -> None:
    """Raise a UserError where ``found`` good images, less those ``for_test``, are too few for Gaussian or folds."""
    least = max(folds, LEAST + (folds == 2))  # two folds of three images would leave one image for the Gaussian
    if found - for_test >= least:
        return
    kept = f" besides {for_test} for the test" if for_test else ""
    fewer = f", or set folds={found - for_test}" if LEAST <= found - for_test < folds else ""
    raise UserError(
        f"{name}: {found - for_test} good training images found{kept}, at least {least} are needed with folds={folds}: "
        f"add images{fewer}"
    )


def readable(paths: Sequence[Path]) -> None:
    """Raise a UserError where an image is missing or has no header that can be read."""
    _each(image_size, paths, "images")


def read_masks(samples: Sequence[Sample]) -> list[NDArray[np.bool_] | None]:
    """The mask of each sample ``(256, 256)``, None where it has none.

    Raises:
        UserError: a mask cannot be read, or has another aspect ratio than its image.
    """
    masked = [sample for sample in samples if sample.mask is not None]
    odd = [found for found in _each(_misfit, masked, "masks") if found]
    if odd:
        raise UserError(f"{odd[0]} ({len(odd)} of {len(masked)} masks): draw masks on the images as they are")
    paths = [sample.mask for sample in samples if sample.mask is not None]
    masks = iter(_each(lambda path: read_mask(path, MASK_SIZE), paths, "masks"))
    return [None if sample.mask is None else next(masks) for sample in samples]


def not_all_the_same(images: Tensor, paths: Sequence[Path]) -> None:
    """Raise a UserError where all images ``(N, 3, H, W)`` are the same; as soon as one differs nothing more is read."""
    if len(images) > 1 and all(torch.equal(images[0], image) for image in images[1:]):
        raise UserError(
            f"all {len(images)} good training images show the same, such as {paths[0]} and {paths[-1]}: give images of "
            "different parts"
        )


def _misfit(sample: Sample) -> str | None:
    """The words for a mask whose aspect ratio is not that of its image, by more than rounding."""
    assert sample.mask is not None
    for whole in (False, True):  # decoding has the last word: some files say their orientation after their pixels
        width, height = image_size(sample.path, whole)
        mask_width, mask_height = image_size(sample.mask, whole)
        if abs(mask_width * height - mask_height * width) <= width + height:
            return None
    return f"mask {sample.mask} has {mask_width} x {mask_height} pixels, its image {sample.path} {width} x {height}"


def _each(read: Callable[[T], object], items: Sequence[T], what: str) -> list:
    """Results in order; a UserError names the first item that fails, and the number of them."""

    def attempt(item: T) -> object:
        try:
            return read(item)
        except UserError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(attempt, items))
    errors = [result for result in results if isinstance(result, UserError)]
    if errors:
        raise UserError(f"{errors[0]} ({len(errors)} of {len(items)} {what} cannot be read)") from errors[0]
    return results
