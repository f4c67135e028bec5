"""Base class of the datamodules: the loaders of their images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from gaussad_pl.data.batches import Draw, DrawSampler, Views, view_seed
from gaussad_pl.data.image_sets import ImageSets
from gaussad_pl.data.pairs import PairDraw, Pairs, PairSampler, fixed_batches
from gaussad_pl.distributed import shard, world
from gaussad_pl.errors import UserError

DAMAGED = 64  # most images from whose damaged copies the damage of patches is estimated


class ImageDataModule(ImageSets):
    """Good images for the Gaussian and the loss, an augmented validation, and a test set with defects, in batches.

    In a distributed run the loaders of each process yield its `shard`: together, every image exactly once. See
    `gaussad_pl.data.image_sets.ImageSets` and `gaussad_pl.data.good_images.GoodImages` for the settings.
    """

    def damage_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return fixed pairs of training images and damaged copies, from which damage is estimated."""
        used = np.asarray(self.split[0])
        drawn = np.random.default_rng([self.seed, 3]).permutation(len(used) * self.orientations)[:DAMAGED]
        images, orientations = used[drawn % len(used)].tolist(), (drawn // len(used)).tolist()
        size = max(1, self.eval_batch_size // 2)
        return self._pair_loader(fixed_batches(images, orientations, len(self.damages), size, self.seed))

    def _pair_loader(self, batches: Iterable[list[PairDraw]]) -> DataLoader[dict[str, Tensor]]:
        half = {index: number for number, part in enumerate(self.halves) for index in part}
        return DataLoader(Pairs(self.good_images, self.damages, half, self.frame.roi), batch_size=None, sampler=batches)

    def reference_dataloader(
        self, images: Sequence[int] | None = None, views: Sequence[int] | None = None
    ) -> DataLoader[dict[str, Tensor]]:
        """Load all views of all training images, always the same ones, to estimate the Gaussian from.

        ``images`` and ``views`` are indices that restrict it to some of them.
        """
        indices = shard(self.split[0] if images is None else images)
        views = range(len(self.views)) if views is None else views
        draws = [(index, view, view_seed(self.seed, view, index)) for index in indices for view in views]
        return self._view_loader(draws, self.eval_batch_size)

    def good_dataloader(
        self, images: Sequence[int] | None = None, copies: bool = False
    ) -> DataLoader[dict[str, Tensor]]:
        """Load the unchanged training images, or those with the indices ``images``.

        With ``copies``, each in every orientation of the `unchanged_views`, in a row and in one batch.
        """
        views = self.unchanged_views if copies else range(1)
        size = max(1, self.eval_batch_size // len(views)) * len(views)
        indices = shard(self.split[0] if images is None else images)
        draws = [(index, view, 0) for index in indices for view in views]
        return self._view_loader(draws, size)

    def _view_loader(self, draws: Iterable[Draw], batch_size: int) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Views(self.good_images, self.views, self.orientations), batch_size, sampler=draws)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        used = self.split[0]
        size = min(self.batch_size, len(used))
        if not self.pairs:
            _require_even([size], "images", images=1)
            steps = self.steps_per_epoch or len(used) // size
            return self._view_loader(DrawSampler(used, len(self.views), steps * size, self.seed), size // world())
        size = max(1, size // 2)  # the other half of a batch are copies
        _require_even([min(size, len(half)) for half in self.halves if half], "pairs", images=2)
        steps = self.steps_per_epoch or len(used) // size
        return self._pair_loader(PairSampler(self.halves, len(self.damages), size, steps, self.seed, self.orientations))

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._eval_loader(self.validation)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._eval_loader(self.test)

    def _eval_loader(self, dataset: Dataset[dict[str, Tensor]]) -> DataLoader[dict[str, Tensor]]:
        rows = range(len(dataset))  # type: ignore[arg-type]  # all our datasets have a length
        if len(rows) < world():
            raise UserError(f"{world()} processes and {len(rows)} images to score: set trainer.devices={len(rows)}")
        return DataLoader(Subset(dataset, shard(rows)), self.eval_batch_size)


def _require_even(counts: Sequence[int], unit: str, images: int) -> None:
    """Check that batches of some numbers of ``unit``, each of so many images, can be shared evenly by all processes.

    Raises:
        UserError: they cannot.
    """
    for count in counts:
        if count % world():
            shared = min(counts) - min(counts) % world()
            remedy = f"data.batch_size={images * shared}" if shared else f"trainer.devices={min(counts)}"
            raise UserError(f"{world()} processes cannot share batches of {count} {unit} evenly: set {remedy}")
