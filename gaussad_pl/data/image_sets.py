"""The sets that datamodules make of their images: training views, the augmented validation and the test set."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset

from gaussad_pl.augment import Nuisance
from gaussad_pl.data import checks
from gaussad_pl.data.augmented_validation import augmented_validation
from gaussad_pl.data.batches import View
from gaussad_pl.data.good_images import GoodImages
from gaussad_pl.data.near_duplicates import in_order
from gaussad_pl.data.samples import Sample
from gaussad_pl.data.splitting import partition
from gaussad_pl.data.symmetry import AUTO, ORIENTATIONS
from gaussad_pl.errors import UserError

DAMAGES: Mapping[str, float] = {"cutpaste": 0.4, "scar": 0.9, "perlin": 0.3}


class ImageSets(GoodImages, ABC):
    """Good images for the Gaussian and the loss, an augmented validation, and a test set with defects.

    Args:
        augmentations: name -> strength of the copies in the augmented validation; see `gaussad_pl.augment`.
        nuisance: arguments of `gaussad_pl.augment.Nuisance`, the changes that keep a good part good.
        light_copies: number of copies of each image with changed lighting from which the Gaussian is also estimated.
            The loss sees the same mixture: pulling images towards a Gaussian that has never seen such images would
            train the wrong thing.
        moved_copies: the same, for copies with changed lighting and pose.
        batch_size: images per training step, over all processes.
        steps_per_epoch: training steps between two validations; None for one pass over the images.
        damages: name -> strength of the damaged copies that the loss and the damage weight use.
        pairs: train on pairs of a good image and a damaged copy of it, instead of on views of good images.
        symmetry: flipped and rotated copies that go into the Gaussians and the loss like the images themselves: "none",
            "flips", "all" (also by quarter turns), or "auto", which the augmented validation decides for small sets;
            see `gaussad_pl.training.selection`.
        images: see `gaussad_pl.data.good_images.GoodImages`.

    Attributes:
        orientations: number of orientations of each image, see `gaussad_pl.data.symmetry`; 1 while "auto" is undecided.
        numbered_masks: the values of masks are numbers of kinds of defects.
    """

    numbered_masks: bool = False

    def __init__(
        self,
        augmentations: Mapping[str, float],
        nuisance: Mapping[str, Any],
        light_copies: int,
        moved_copies: int,
        batch_size: int,
        steps_per_epoch: int | None,
        damages: Mapping[str, float] = DAMAGES,
        pairs: bool = False,
        symmetry: str = "none",
        **images: Any,
    ) -> None:
        super().__init__(**images)
        if pairs and not set(augmentations) - set(damages):
            raise UserError(
                f"data.augmentations={', '.join(augmentations)}: all of them are in data.damages, which the loss uses: "
                "add one that is not"
            )
        if light_copies < 0 or moved_copies < 0:
            raise UserError(f"data.light_copies={light_copies}, data.moved_copies={moved_copies}: expected 0 or more")
        if symmetry not in (AUTO, *ORIENTATIONS):
            raise UserError(f"data.symmetry={symmetry}: expected auto, {', '.join(ORIENTATIONS)}")
        if symmetry != AUTO and ORIENTATIONS[symmetry] > self.possible_orientations:
            raise UserError(
                f"data.symmetry={symmetry} flips or rotates images, which is impossible with a region of interest, and "
                "for quarter turns with unequal rows and columns of tiles: set data.symmetry=none, or leave out "
                "data.roi and data.tiles"
            )
        self.augmentations = dict(augmentations)
        light, moved = Nuisance(**{**nuisance, "shift": 0, "scale": 0, "rotate": 0}), Nuisance(**nuisance)
        self._nuisances = [*[light] * light_copies, *[moved] * moved_copies]
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.damages = dict(damages)
        self.pairs = pairs
        self.symmetry = symmetry
        self.orientations = ORIENTATIONS.get(symmetry, 1)

    def check(self) -> None:
        """Find obvious mistakes in the data, such as masks that do not fit, within seconds and without decoding images.

        Raises:
            UserError: one line that names the first offending file and how many there are.
        """
        if self.groups_are_given:
            _ = self.split
        paths = [sample.path for sample in [*self.samples.train, *self.samples.test]]
        checks.readable(paths)
        if self.roi is not None:
            checks.roi_fits(self.roi, paths)
        if self.tiles != (1, 1):
            checks.has_detail(self._whole, paths)
        _ = self._masks

    def setup(self, stage: str) -> None:
        """Split the images and decode the test images, so that errors in them surface before any training."""
        _ = self.split, self._test_images

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
    def has_test(self) -> bool:
        """False if the user has no test set: `test_samples` are images of training then."""
        return bool(self.samples.test)

    @property
    def _good_test_indices(self) -> list[int]:
        """Indices of the good images in the test; without a test set, the held-out or else all good images."""
        return self._split.test if self.has_test else self._split.held_out or self._split.used

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
        """Images of the user's test set, uint8 ``(M, 3, H, W)``; with warnings of images that are in the data twice."""
        images = self._load(self.samples.test, "test")
        checks.name_copies([sample.path for sample in self.samples.train], self.good_digests)
        checks.bad_are_not_good(self.samples, images, self.good_digests)
        return images

    @cached_property
    def _masks(self) -> list[NDArray[np.bool_] | None]:
        return checks.read_masks(self.samples.test, self.frame, self.numbered_masks)

    @cached_property
    def test_masks(self) -> Tensor:
        """Defect masks of the test images, bool ``(N, 256, 256)``: empty for good images and images without a mask."""
        return checks.stacked_masks([*(None for _ in self._good_test_indices), *self._masks])
