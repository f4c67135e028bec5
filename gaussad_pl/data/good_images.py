"""The good images of the datamodules: where they are, which of them show the same part, and how they are split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gaussad_pl.backbones.tiling import Tiling, tile_counts
from gaussad_pl.data import checks
from gaussad_pl.data.frame import Fit, Frame
from gaussad_pl.data.grouping import AUTO, Grouping, Split, split_images
from gaussad_pl.data.images import read_roi
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.part_features import Features
from gaussad_pl.data.samples import Sample, Samples
from gaussad_pl.data.splitting import Groups, hold_out_count
from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import image_digest

HELD_OUT = 500  # most images held out: they and all their copies stay in memory and are scored every epoch


class GoodImages(L.LightningDataModule, ABC):
    """Good images, fitted to a frame, in groups that stay together, split for training, validation and test.

    Indices are positions among all good images of the training folder.

    Args:
        name: name of the dataset, for results and folders.
        image_size: side in pixels of a tile; images are resized once.
        folds: number of folds for the training images. Fold `fold` is held out for validation, up to 500 images of it.
            0: no validation, and the Gaussian is estimated from every training image.
        fold: the fold that is held out.
        seed: random seed of the folds, the batches and the augmented copies.
        eval_batch_size: images scored at once.
        cache: folder in which resized images are kept for later runs and other processes; None keeps them in memory.
        group: how to find images of the same part, which stay on the same side of every split; see
            `gaussad_pl.data.grouping.Grouping`.
        fit: how images of other proportions become square; see `gaussad_pl.data.frame.Frame`.
        roi: file of the region of interest, black where nothing is inspected; None to inspect whole images.
        tiles: rows and columns of overlapping tiles that an image consists of, as in "2x3", or one number for both.

    Attributes:
        holdout: fraction of the good images that is kept for the test if all test images are bad; None for none.
    """

    name: str
    holdout: float | None = None

    def __init__(
        self,
        name: str,
        image_size: int,
        folds: int,
        fold: int,
        seed: int,
        eval_batch_size: int,
        cache: str | None,
        group: str | None = AUTO,
        fit: Fit = "squash",
        roi: str | None = None,
        tiles: int | str = 1,
    ) -> None:
        super().__init__()
        if folds == 1 or folds < 0 or not 0 <= fold < max(folds, 1):
            raise UserError(f"fold={fold} of folds={folds}: expected folds=0 or at least 2, and fold from 0 to folds-1")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed}: expected a number from 0 to 2**32 - 1")
        self.name = name
        self.roi = Path(roi) if roi else None
        self.tiles = tile_counts(tiles)
        self._whole = Frame(*Tiling(*self.tiles, image_size).shape, fit)
        self.folds = folds
        self.fold = fold
        self.seed = seed
        self.eval_batch_size = eval_batch_size
        self.cache = Path(cache) if cache else None
        self._grouping = Grouping(group)

    @abstractmethod
    def scan(self) -> Samples:
        """Find the images. Called once."""

    @cached_property
    def frame(self) -> Frame:
        """The frame that images are fitted to, with the region of interest.

        Raises:
            UserError: the file of the region cannot be read, or the region is empty.
        """
        return self._whole if self.roi is None else replace(self._whole, roi=read_roi(self.roi, self._whole))

    @property
    def region(self) -> Tensor | None:
        """The region of interest, ``(H, W)`` bool; None for whole images."""
        return None if self.frame.roi is None else torch.from_numpy(self.frame.roi.copy())

    @cached_property
    def samples(self) -> Samples:
        """Training and test images, as found by `scan`.

        Raises:
            UserError: a folder cannot be read, or there are too few good images.
        """
        try:
            samples = self.scan()
        except OSError as error:
            raise UserError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from error
        n = len(samples.train)
        for_test = hold_out_count(n, self.holdout) if self.holdout and _only_bad(samples.test) else 0
        checks.enough_images(self.name, n, for_test, self.folds)
        return samples

    def group_images(self, features: Features) -> None:
        """Set the features by which near-duplicates are found if `group` is "auto". Call this before the split.

        They are computed when the split is first needed, at the latest in `setup`: one forward pass over the good
        images.

        Raises:
            RuntimeError: the images have already been split.
        """
        if "groups" in self.__dict__ and self._grouping.setting == AUTO:
            raise RuntimeError("the images have already been split: call group_images first")
        self._grouping.features = features

    @cached_property
    def groups(self) -> Groups:
        """Group of each good image, 0, 1, ..., ``(N,)``; a group stays on the same side of every split."""
        if not self.folds and self._share_for_test is None:  # nothing is split: no need to look for near-duplicates
            self._grouping.features = None
        names = [sample.path.name for sample in self.samples.train]
        return self._grouping.groups(names, lambda: self.good_images, self.eval_batch_size)

    @property
    def grouping(self) -> str:
        """One-line description of the groups of images, with their number."""
        return self._grouping.describe(self.groups)

    @property
    def kept_for_test(self) -> int:
        """Number of good images that `holdout` keeps from the training for the test."""
        return 0 if self._share_for_test is None else len(self.samples.train) - len(self.every_image)

    @property
    def groups_are_given(self) -> bool:
        """True if the user has specified which images show the same part."""
        return self._grouping.setting != AUTO

    @property
    def _share_for_test(self) -> float | None:
        return self.holdout if _only_bad(self.samples.test) else None

    @cached_property
    def _split(self) -> Split:
        return split_images(
            self.name, self.groups, self.grouping, self._share_for_test, self.folds, self.fold, self.seed, HELD_OUT
        )

    @cached_property
    def split(self) -> tuple[list[int], list[int]]:
        """Indices of the images used for the Gaussian and the loss, and of those held out for validation."""
        return self._split.used, self._split.held_out

    @property
    def every_image(self) -> list[int]:
        """Indices of all images of the `split`."""
        return self._split.used + self._split.held_out

    def state_dict(self) -> dict[str, Any]:
        """Return the groups of near-duplicates for checkpoints, as they depend on rounding errors in the features."""
        return {"groups": self.groups.tolist()} if self._grouping.by_features else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check on resuming that the groups are still the same.

        Raises:
            UserError: the run started with other groups, and therefore with another split.
        """
        if state.get("groups", self.groups.tolist()) != self.groups.tolist():
            raise UserError(
                f"{self.name}: the training images are split differently than when the run started (on another "
                "machine or with other images): start a new run"
            )

    @cached_property
    def good_images(self) -> Tensor:
        """All good images, uint8 ``(N, 3, H, W)``, decoded and cached once for all folds."""
        images = self._load(self.samples.train, "training")
        paths = [sample.path for sample in self.samples.train]
        checks.not_all_the_same(images, paths)
        checks.bright_enough(images, paths)
        return images

    @cached_property
    def good_digests(self) -> list[str]:
        """Digest of the pixels of each good image, see `gaussad_pl.fingerprints.image_digest`."""
        return [image_digest(image) for image in self.good_images]

    def _load(self, samples: Sequence[Sample], what: str) -> Tensor:
        paths = [sample.path for sample in samples]
        return load_images(paths, self.frame, self.cache, f"Decoding {len(paths)} {what} images")


def _only_bad(samples: Sequence[Sample]) -> bool:
    """Return True if there are test images but no good ones among them."""
    return bool(samples) and all(sample.label for sample in samples)
