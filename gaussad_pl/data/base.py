"""What all datamodules share: folds, cached images, the augmented validation and the loaders."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, StackDataset, Subset

from gaussad_pl.augment import Nuisance, vicinal_copies
from gaussad_pl.data.images import MASK_SIZE, read_mask
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.samples import Sample, Samples
from gaussad_pl.distributed import share, world
from gaussad_pl.errors import UserError

HELD_OUT = 500  # images for the validation, at most: they and all copies of them are in memory, and scored each epoch
Draw = tuple[int, int, int]  # index of an image, the view of it, the seed of the view


class Views(Dataset[dict[str, Tensor]]):
    """Good images ``(N, 3, H, W)`` uint8 as they are (view None) and changed in ways that keep a good part good."""

    def __init__(self, images: Tensor, views: Sequence[Nuisance | None]) -> None:
        self.images = images
        self.views = views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, view, seed = draw
        image, change = self.images[index], self.views[view]
        if change is not None:
            image = torch.from_numpy(change(image.permute(1, 2, 0).numpy(), seed)).permute(2, 0, 1)
        return {"image": image, "view": view}


class DrawSampler(Sampler[Draw]):
    """Random views of ``images`` (indices) that depend on seed and epoch alone: a resumed run sees the same batches.

    Goes through the images in random order, again and again where an epoch has more draws than images.
    """

    def __init__(self, images: Sequence[int], views: int, draws: int, seed: int) -> None:
        self.images = images
        self.views = views
        self.draws = draws
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(share(range(self.draws)))

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rounds = math.ceil(self.draws / len(self.images))
        indices = np.concatenate([rng.permutation(self.images) for _ in range(rounds)])[: self.draws]
        views = rng.integers(self.views, size=self.draws)
        seeds = rng.integers(2**31, size=self.draws)
        yield from share(list(zip(indices.tolist(), views.tolist(), seeds.tolist(), strict=True)))


class ImageDataModule(L.LightningDataModule, ABC):
    """Good images for the Gaussian and the loss, an augmented validation, and a test set with defects.

    Where processes share a run, the loaders of each give its `share`: together all images, and each of them once.

    Args:
        name: of the dataset, for results and folders.
        image_size: side in pixels to which images are resized, once.
        folds: number of parts the training images are split into by `seed`; part `fold` is held out for validation,
            or 500 images of it. 0: no validation, every training image is in the Gaussian.
        fold: which part is held out.
        seed: of the folds, the batches and the augmented copies.
        augmentations: name -> strength of the copies in the validation; see `gaussad_pl.augment`.
        nuisance: arguments of `gaussad_pl.augment.Nuisance`, the changes that keep a good part good.
        light_copies: copies of each image in other light that the Gaussian is estimated from, too. The loss sees the
            same mixture: images pulled towards a Gaussian that has never seen their like teach the wrong thing.
        moved_copies: the same, for copies in other light and pose.
        batch_size: images in a training step, of all processes together.
        eval_batch_size: images scored at once.
        steps_per_epoch: training steps between two validations; None for one pass over the images.
        cache: folder for resized images that later runs and other processes share; None keeps them in memory only.
    """

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
    ) -> None:
        super().__init__()
        if folds == 1 or folds < 0 or not 0 <= fold < max(folds, 1):
            raise UserError(f"fold={fold} of folds={folds}: expected folds=0 or at least 2, and fold from 0 to folds-1")
        if light_copies < 0 or moved_copies < 0:
            raise UserError(f"data.light_copies={light_copies}, data.moved_copies={moved_copies}: expected 0 or more")
        self.name = name
        self.image_size = image_size
        self.folds = folds
        self.fold = fold
        self.seed = seed
        self.augmentations = dict(augmentations)
        light, moved = Nuisance(**{**nuisance, "shift": 0, "scale": 0, "rotate": 0}), Nuisance(**nuisance)
        self.views: list[Nuisance | None] = [None, *[light] * light_copies, *[moved] * moved_copies]
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.cache = Path(cache) if cache else None

    @abstractmethod
    def scan(self) -> Samples:
        """Find the images; called once."""

    @property
    def augmentation_names(self) -> list[str]:
        """Names of the groups 1, 2, ... of the validation; group 0 are the good images themselves."""
        return list(self.augmentations)

    @cached_property
    def samples(self) -> Samples:
        samples = self.scan()
        least = max(self.folds, 2)
        if len(samples.train) < least:
            raise UserError(
                f"{self.name}: {len(samples.train)} good training images found, at least {least} are needed"
            )
        return samples

    @cached_property
    def split(self) -> tuple[list[int], list[int]]:
        """Indices of the training images that are used for the Gaussian and the loss, and of those held out."""
        everything = np.arange(len(self.samples.train))
        if not self.folds:
            return everything.tolist(), []
        folds = KFold(self.folds, shuffle=True, random_state=self.seed).split(everything)
        used, held_out = list(folds)[self.fold]
        if len(held_out) > HELD_OUT:
            held_out = np.sort(np.random.default_rng(self.seed).choice(held_out, HELD_OUT, replace=False))
            used = np.setdiff1d(everything, held_out)
        return used.tolist(), held_out.tolist()

    @cached_property
    def good_images(self) -> Tensor:
        """All training images ``(N, 3, H, W)`` uint8, held out or not: decoded, and cached, once for all folds."""
        return self._load(self.samples.train, "training")

    @cached_property
    def validation(self) -> Dataset[dict[str, Tensor]]:
        """Held-out good images (group 0) and a copy of each by each augmentation (groups 1, 2, ...), made once.

        ``mask`` says which pixels of a copy the augmentation changed.
        """
        if not self.folds:
            raise UserError("no image is held out for validation: set folds=5 (or another number of at least 2)")
        if not self.augmentations:
            raise UserError("the augmented validation has no augmentation: choose augmentation=subtle")
        normal = self.good_images[self.split[1]]
        made = [vicinal_copies(normal, name, strength, self.seed) for name, strength in self.augmentations.items()]
        copies, masks = zip(*made, strict=True)
        groups = torch.arange(len(copies) + 1).repeat_interleave(len(normal))
        unchanged = torch.zeros_like(masks[0])
        return _stacked(image=torch.cat([normal, *copies]), group=groups, mask=torch.cat([unchanged, *masks]))

    @property
    def test_samples(self) -> list[Sample]:
        """The test set; where there is none, held-out or else all good images, so that every run has scores."""
        held_out = [self.samples.train[i] for i in self.split[1]]
        return self.samples.test or held_out or self.samples.train

    @cached_property
    def test(self) -> Dataset[dict[str, Tensor]]:
        labels = torch.tensor([sample.label for sample in self.test_samples])
        return _stacked(image=self._load(self.test_samples, "test"), label=labels)

    @cached_property
    def test_masks(self) -> Tensor:
        """Defects of the test images ``(N, 256, 256)`` bool: empty for good images and where there is no mask."""
        empty = np.zeros((MASK_SIZE, MASK_SIZE), dtype=bool)
        masks = [read_mask(s.mask, MASK_SIZE) if s.mask is not None and s.label else empty for s in self.test_samples]
        return torch.from_numpy(np.stack(masks))

    @property
    def defect_areas(self) -> list[float | None]:
        """Share of each test image that its mask marks as defective; None without a mask, 0 for good images."""
        areas = self.test_masks.double().mean((1, 2)).tolist()
        return [None if s.label and s.mask is None else a for s, a in zip(self.test_samples, areas, strict=True)]

    def _load(self, samples: Sequence[Sample], what: str) -> Tensor:
        paths = [sample.path for sample in samples]
        return load_images(paths, self.image_size, self.cache, f"Decoding {len(paths)} {what} images")

    def reference_dataloader(
        self, images: Sequence[int] | None = None, views: Sequence[int] | None = None
    ) -> DataLoader[dict[str, Tensor]]:
        """Every view of every training image, always the same ones: what the Gaussian is estimated from.

        ``images`` and ``views``: indices, where only some of them are wanted.
        """
        chosen = share(self.split[0] if images is None else images)
        views = range(len(self.views)) if views is None else views
        draws = [(index, view, view * len(self.good_images) + index) for index in chosen for view in views]
        return DataLoader(Views(self.good_images, self.views), self.eval_batch_size, sampler=draws)

    def good_dataloader(self, images: Sequence[int] | None = None) -> DataLoader[dict[str, Tensor]]:
        """Every training image as it is, or those of the indices ``images``: what patches are estimated from."""
        chosen = share(self.split[0] if images is None else images)
        return DataLoader(Views(self.good_images, [None]), self.eval_batch_size, sampler=[(i, 0, 0) for i in chosen])

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        used = self.split[0]
        batch_size = min(self.batch_size, len(used))
        if batch_size % world():
            raise UserError(
                f"{world()} processes cannot share batches of {batch_size} images evenly: set data.batch_size="
                f"{batch_size - batch_size % world() or world()}"
            )
        steps = self.steps_per_epoch or len(used) // batch_size
        sampler = DrawSampler(used, len(self.views), steps * batch_size, self.seed)
        return DataLoader(Views(self.good_images, self.views), batch_size // world(), sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._eval_loader(self.validation)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._eval_loader(self.test)

    def _eval_loader(self, dataset: Dataset[dict[str, Tensor]]) -> DataLoader[dict[str, Tensor]]:
        rows = range(len(dataset))  # type: ignore[arg-type]  # all of ours have a length
        if len(rows) < world():
            raise UserError(f"{world()} processes and {len(rows)} images to score: set trainer.devices={len(rows)}")
        return DataLoader(Subset(dataset, share(rows)), self.eval_batch_size)


def _stacked(**columns: Tensor) -> Dataset[dict[str, Tensor]]:
    """Items are dicts of one row of each column ``(N, ...)``."""
    return StackDataset(**columns)  # type: ignore[arg-type]  # takes tensors, its annotations do not
