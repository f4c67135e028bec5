"""Quick checks of the data before minutes of work: each raises a one-line error that names the problem.

Only the headers of images are read; masks are small and decoded once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import MASK_SIZE, image_size, read_mask
from gaussad_pl.data.samples import Sample, Samples, unused_images
from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import image_digest

log = logging.getLogger(__name__)

LEAST = 3  # smallest number of good training images: fewer do not show how good parts vary
DARK = 16  # the largest value of 12 bits, in 16, is 4095 / 257
THREADS = 8  # for reading files, which is limited by the disk or the network

T = TypeVar("T")


def enough_images(name: str, found: int, for_test: int, folds: int) -> None:
    """Raise a UserError if ``found`` good images, minus ``for_test``, are too few for the Gaussian or the folds."""
    least = max(folds, LEAST + (folds == 2))  # with two folds of three images, one image would be left for the Gaussian
    if found - for_test >= least:
        return
    kept = f" besides {for_test} for the test" if for_test else ""
    remedy = f", or set folds={found - for_test}" if LEAST <= found - for_test < folds else ""
    raise UserError(
        f"{name}: {found - for_test} good training images found{kept}, at least {least} are needed with folds={folds}: "
        f"add images{remedy}"
    )


def readable(paths: Sequence[Path]) -> None:
    """Raise a UserError if an image is missing or its header cannot be read."""
    _each(image_size, paths, "images")


def read_masks(samples: Sequence[Sample], frame: Frame, numbered: bool = False) -> list[NDArray[np.bool_] | None]:
    """Read the mask of each sample, fitted to the frame, bool ``(256, 256)``; None for samples without one.

    ``numbered`` masks have values other than 0 and the maximum, see `gaussad_pl.data.images.read_mask`.

    Raises:
        UserError: a mask cannot be read, or its aspect ratio differs from that of its image.
    """
    masked = [sample for sample in samples if sample.mask is not None]
    paths = [sample.mask for sample in masked if sample.mask is not None]
    pairs = zip(paths, (sample.path for sample in masked), strict=True)
    wrong = [f"mask {mismatch}" for mismatch in _each(_mismatch, list(pairs), "masks") if mismatch]
    if wrong:
        raise UserError(f"{wrong[0]} ({len(wrong)} of {len(masked)} masks): draw masks on the original images")
    masks = iter(_each(lambda path: read_mask(path, frame, MASK_SIZE, numbered), paths, "masks"))
    return [None if sample.mask is None else next(masks) for sample in samples]


def stacked_masks(masks: Sequence[NDArray[np.bool_] | None]) -> Tensor:
    """Stack the masks of N images, bool ``(N, 256, 256)``; that of an image without one is empty."""
    empty = np.zeros((MASK_SIZE, MASK_SIZE), dtype=bool)
    return torch.from_numpy(np.stack([empty if mask is None else mask for mask in masks]))


def name_unused(roots: Sequence[Path | None], samples: Samples, masks: Path | None) -> None:
    """Warn of images below the folders of good and of bad images that are not used, see `unused_images`."""
    given = [root for root in roots if root is not None]
    if unused := unused_images(given, samples, masks):
        log.warning(
            "%d images below %s are not used, such as %s: put them directly into the folder of good images, or of a "
            "kind of defect", len(unused), " and ".join(map(str, given)), unused[0],
        )  # fmt: skip


def not_all_the_same(images: Tensor, paths: Sequence[Path]) -> None:
    """Raise a UserError if all images ``(N, 3, H, W)`` are identical; stops at the first one that differs."""
    if len(images) > 1 and all(torch.equal(images[0], image) for image in images[1:]):
        raise UserError(
            f"all {len(images)} good images are identical, such as {paths[0]} and {paths[-1]}: use images of "
            "different parts"
        )


def bright_enough(images: Tensor, paths: Sequence[Path]) -> None:
    """Warn if all images ``(N, 3, H, W)`` uint8 are nearly black, as files of 16 bits are if they hold 12 or fewer."""
    if (brightest := int(images.max())) <= DARK:
        log.warning(
            "no pixel of the %d good images is brighter than %d of 255 (%s, ...): if these are files of 16 bits that "
            "hold 12 or fewer, scale their values to 16 bits first", len(images), brightest, paths[0],
        )  # fmt: skip


def name_copies(paths: Sequence[Path], digests: Sequence[str]) -> None:
    """Warn of good images whose pixels are those of an earlier one.

    Args:
        paths: of the N good images.
        digests: `image_digest` of each.
    """
    first = dict(zip(reversed(digests), reversed(paths), strict=True))
    copies = [(path, first[digest]) for path, digest in zip(paths, digests, strict=True) if first[digest] != path]
    if copies:
        log.warning(
            "%d of %d good images are copies of others (for example, %s of %s): remove them, as the thresholds count "
            "each image", len(copies), len(paths), *copies[0],
        )  # fmt: skip


def bad_are_not_good(samples: Samples, test: Tensor, good: Sequence[str]) -> None:
    """Warn if the pixels of a bad test image are those of a good training image.

    Args:
        samples: of the data.
        test: images of the test, ``(M, 3, H, W)`` uint8.
        good: `image_digest` of each training image.
    """
    known = dict(zip(good, samples.train, strict=True))
    both = [
        (bad.path, known[digest].path)
        for bad, image in zip(samples.test, test, strict=True)
        if bad.label and (digest := image_digest(image)) in known
    ]
    if both:
        log.warning("%d bad images are also among the good ones: %s has the pixels of %s", len(both), *both[0])


def roi_fits(roi: Path, images: Sequence[Path]) -> None:
    """Raise a UserError if the aspect ratio of the region of interest differs from that of an image."""
    wrong = [mismatch for mismatch in _each(_mismatch, [(roi, image) for image in images], "images") if mismatch]
    if wrong:
        raise UserError(f"data.roi={wrong[0]} ({len(wrong)} of {len(images)} images): draw it on one of the images")


def has_detail(frame: Frame, paths: Sequence[Path]) -> None:
    """Raise a UserError if tiles would enlarge every image: there would be nothing more to see in them."""
    sizes = _each(image_size, paths, "images")
    if all(width < frame.width and height < frame.height for width, height in sizes):
        path, (width, height) = max(zip(paths, sizes, strict=True), key=lambda each: math.prod(each[1]))
        raise UserError(
            f"data.tiles need images of {frame.width} x {frame.height} pixels, the largest, {path}, has only {width} x "
            f"{height}: set fewer data.tiles, or a smaller backbone.image_size"
        )


def _mismatch(pair: tuple[Path, Path]) -> str | None:
    """Describe a mask whose aspect ratio differs from that of its image by more than rounding; None if it fits."""
    mask, image = pair
    for whole in (False, True):  # decode before complaining: some files store their orientation after the pixels
        width, height = image_size(image, whole)
        mask_width, mask_height = image_size(mask, whole)
        if abs(mask_width * height - mask_height * width) <= width + height:
            return None
    return f"{mask} has {mask_width} x {mask_height} pixels, its image {image} {width} x {height}"


def _each(read: Callable[[T], object], items: Sequence[T], what: str) -> list:
    """Read all items in threads, in order; a UserError names the first that fails and the number of failures."""

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
