"""The images of the datamodules: groups of images, folds, the augmented validation and the test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset

from gaussad_pl.augment import Nuisance
from gaussad_pl.backbones.tiling import Tiling, tile_counts
from gaussad_pl.data import checks
from gaussad_pl.data.augmented_validation import augmented_validation
from gaussad_pl.data.batches import View
from gaussad_pl.data.frame import Fit, Frame
from gaussad_pl.data.grouping import AUTO, Grouping, Split, split_images
from gaussad_pl.data.images import read_roi
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.near_duplicates import in_order
from gaussad_pl.data.part_features import Features
from gaussad_pl.data.samples import Sample, Samples
from gaussad_pl.data.splitting import Groups, hold_out_count, partition
from gaussad_pl.data.symmetry import AUTO as AUTO_SYMMETRY
from gaussad_pl.data.symmetry import ORIENTATIONS
from gaussad_pl.errors import UserError

DAMAGES: Mapping[str, float] = {"cutpaste": 0.4, "scar": 0.9, "perlin": 0.3}
HELD_OUT = 500  # most images held out: they and all their copies stay in memory and are scored every epoch


class ImageSets(L.LightningDataModule, ABC):
    """Good images for the Gaussian and the loss, an augmented validation, and a test set with defects.

    Indices are positions among all good images of the training folder.

    Args:
        name: name of the dataset, for results and folders.
        image_size: side in pixels of a tile; images are resized once.
        folds: number of folds for the training images. Fold `fold` is held out for validation, up to 500 images of it.
            0: no validation, and the Gaussian is estimated from every training image.
        fold: the fold that is held out.
        seed: random seed of the folds, the batches and the augmented copies.
        augmentations: name -> strength of the copies in the augmented validation; see `gaussad_pl.augment`.
        nuisance: arguments of `gaussad_pl.augment.Nuisance`, the changes that keep a good part good.
        light_copies: number of copies of each image with changed lighting from which the Gaussian is also estimated.
            The loss sees the same mixture: pulling images towards a Gaussian that has never seen such images would
            train the wrong thing.
        moved_copies: the same, for copies with changed lighting and pose.
        symmetry: flipped and turned copies that go into the Gaussians and the loss like the images themselves: "none",
            "flips", "all" (also by quarter turns), or "auto", which the augmented validation decides for small sets;
            see `gaussad_pl.training.selection`.
        batch_size: images per training step, over all processes.
        eval_batch_size: images scored at once.
        steps_per_epoch: training steps between two validations; None for one pass over the images.
        cache: folder in which resized images are kept for later runs and other processes; None keeps them in memory.
        group: how to find images of the same part, which stay on the same side of every split; see
            `gaussad_pl.data.grouping.Grouping`.
        damages: name -> strength of the damaged copies that the loss and the damage weight use.
        pairs: train on pairs of a good image and a damaged copy of it, instead of on views of good images.
        fit: how images of other proportions become square; see `gaussad_pl.data.frame.Frame`.
        tiles: rows and columns of overlapping tiles that an image consists of, as in "2x3", or one number for both.
        roi: file of the region of interest, black where nothing is inspected; None to inspect whole images.

    Attributes:
        holdout: fraction of the good images that is kept for the test if all test images are bad; None for none.
        orientations: number of orientations of each image, see `gaussad_pl.data.symmetry`; 1 while "auto" is undecided.
        numbered_masks: the values of masks are numbers of kinds of defects.
    """

    name: str
    holdout: float | None = None
    numbered_masks: bool = False

    def __init__(
        self,
        name: str,
        image_size: int,
        folds: int,
        fold: int,
        seed: int,
        augmentations: Mapping[str, float],
        nuisance: Mapping[str, Any],
        light_copies: int,
        moved_copies: int,
        batch_size: int,
        eval_batch_size: int,
        steps_per_epoch: int | None,
        cache: str | None,
        group: str | None = "auto",
        damages: Mapping[str, float] = DAMAGES,
        pairs: bool = False,
        symmetry: str = "none",
        fit: Fit = "squash",
        roi: str | None = None,
        tiles: int | str = 1,
    ) -> None:
        super().__init__()
        if folds == 1 or folds < 0 or not 0 <= fold < max(folds, 1):
            raise UserError(f"fold={fold} of folds={folds}: expected folds=0 or at least 2, and fold from 0 to folds-1")
        if pairs and not set(augmentations) - set(damages):
            raise UserError(
                f"data.augmentations={', '.join(augmentations)}: all of them are in data.damages, which the loss uses: "
                "add one that is not"
            )
        if light_copies < 0 or moved_copies < 0:
            raise UserError(f"data.light_copies={light_copies}, data.moved_copies={moved_copies}: expected 0 or more")
        if symmetry not in (AUTO_SYMMETRY, *ORIENTATIONS):
            raise UserError(f"data.symmetry={symmetry}: expected auto, {', '.join(ORIENTATIONS)}")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed}: expected a number from 0 to 2**32 - 1")
        self.name = name
        self.roi = Path(roi) if roi else None
        self.tiles = tile_counts(tiles)
        self._whole = Frame(*Tiling(*self.tiles, image_size).shape, fit)
        self.folds = folds
        self.fold = fold
        self.seed = seed
        self.augmentations = dict(augmentations)
        self.damages = dict(damages)
        self.pairs = pairs
        light, moved = Nuisance(**{**nuisance, "shift": 0, "scale": 0, "rotate": 0}), Nuisance(**nuisance)
        self._nuisances = [*[light] * light_copies, *[moved] * moved_copies]
        self.symmetry = symmetry
        if symmetry != AUTO_SYMMETRY and ORIENTATIONS[symmetry] > self.possible_orientations:
            raise UserError(
                f"data.symmetry={symmetry} turns images, which neither a region of interest nor rows and columns of "
                "tiles that differ allow: set data.symmetry=none, or leave out data.roi and data.tiles"
            )
        self.orientations = ORIENTATIONS.get(symmetry, 1)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
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

    @property
    def views(self) -> list[View]:
        """Views of each training image that the Gaussian and the loss use, the `unchanged_views` first."""
        unchanged: list[View] = [(orientation, None) for orientation in self.unchanged_views]
        return unchanged + [(None, nuisance) for nuisance in self._nuisances]

    @property
    def possible_orientations(self) -> int:
        """Number of orientations that an image can have: a region of interest lies in one place only."""
        if self.roi is not None:
            return ORIENTATIONS["none"]
        return ORIENTATIONS["all" if self.tiles[0] == self.tiles[1] else "flips"]

    @property
    def unchanged_views(self) -> range:
        """Indices of the views without a nuisance: the only ones that the densities of patches use."""
        return range(self.orientations)

    @property
    def augmentation_names(self) -> list[str]:
        """Names of the validation groups 1, 2, ...; group 0 holds the good images themselves."""
        return list(self.augmentations)

    @property
    def unseen_augmentations(self) -> list[str]:
        """Names of the augmentations of the validation that the loss does not use."""
        return [name for name in self.augmentations if not (self.pairs and name in self.damages)]

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

    def check(self) -> None:
        """Find obvious mistakes in the data, such as masks that do not fit, within seconds and without decoding images.

        Raises:
            UserError: one line that names the first offending file and how many there are.
        """
        if self._grouping.setting != AUTO:
            _ = self.split
        paths = [sample.path for sample in [*self.samples.train, *self.samples.test]]
        checks.readable(paths)
        if self.roi is not None:
            checks.roi_fits(self.roi, paths)
        if self.tiles != (1, 1):
            checks.has_detail(self._whole, paths)
        _ = self._masks

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

    def setup(self, stage: str) -> None:
        """Split the images and decode the test images, so that errors in them surface before any training."""
        _ = self.split, self._test_images

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
        checks.not_all_the_same(images, [sample.path for sample in self.samples.train])
        return images

    @cached_property
    def validation(self) -> Dataset[dict[str, Tensor]]:
        """The `augmented_validation` of the held-out images, made once."""
        if not self.folds:
            raise UserError("no image is held out for validation: set folds=5 (or another number of at least 2)")
        if not self.augmentations:
            raise UserError("the augmented validation has no augmentations: choose augmentation=subtle")
        return augmented_validation(self.good_images[self.split[1]], self.augmentations, self.seed, self.frame.roi)

    @cached_property
    def halves(self) -> list[list[int]]:
        """Indices of the images of both halves of the training images; images of one group are in the same half."""
        used = self.split[0]
        groups = in_order(self.groups[used])
        parts = partition(groups, min(2, int(groups.max()) + 1), self.seed)
        return [[used[i] for i in part] for part in parts]

    @property
    def _good_test_indices(self) -> list[int]:
        """Indices of the good images in the test; without a test set, the held-out or else all good images."""
        return self._split.test if self.samples.test else self._split.held_out or self._split.used

    @property
    def test_samples(self) -> list[Sample]:
        """The test set; without one, the held-out or else all good images, so that every run has scores."""
        return [*(self.samples.train[i] for i in self._good_test_indices), *self.samples.test]

    @cached_property
    def test(self) -> Dataset[dict[str, Tensor]]:
        """Images and labels (0 good, 1 bad) of `test_samples`."""
        labels = torch.tensor([sample.label for sample in self.test_samples])
        good: Dataset[Tensor] = Subset(self.good_images, self._good_test_indices)  # type: ignore[arg-type]  # no copy
        images: Dataset[Tensor] = ConcatDataset([good, self._test_images])  # type: ignore[list-item]
        return StackDataset(image=images, label=labels)  # type: ignore[arg-type]  # accepts tensors, too

    @cached_property
    def _test_images(self) -> Tensor:
        """Images of the user's test set, uint8 ``(M, 3, H, W)``."""
        return self._load(self.samples.test, "test")

    @cached_property
    def _masks(self) -> list[NDArray[np.bool_] | None]:
        return checks.read_masks(self.samples.test, self.frame, self.numbered_masks)

    @cached_property
    def test_masks(self) -> Tensor:
        """Defect masks of the test images, bool ``(N, 256, 256)``: empty for good images and images without a mask."""
        return checks.stacked_masks([*(None for _ in self._good_test_indices), *self._masks])

    def _load(self, samples: Sequence[Sample], what: str) -> Tensor:
        paths = [sample.path for sample in samples]
        return load_images(paths, self.frame, self.cache, f"Decoding {len(paths)} {what} images")


def _only_bad(samples: Sequence[Sample]) -> bool:
    """Return True if there are test images but no good ones among them."""
    return bool(samples) and all(sample.label for sample in samples)
