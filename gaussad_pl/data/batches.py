"""Batches of randomly changed images, reproducible from the seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gaussad_pl.augment import Nuisance
from gaussad_pl.data.symmetry import oriented
from gaussad_pl.distributed import shard

View = tuple[int | None, Nuisance | None]  # orientation, None for a random one, and nuisance of a copy
Draw = tuple[int, int, int]  # index of an image, index of its view, seed of the view


def view_seed(seed: int, view: int, index: int) -> int:
    """Return the seed of one view of one image for the Gaussian: an independent stream for each combination.

    >>> len({view_seed(seed, view, index) for seed in range(3) for view in range(3) for index in range(3)})
    27
    """
    return int(np.random.SeedSequence([seed, view, index]).generate_state(1, np.uint64)[0])


class Views(Dataset[dict[str, Tensor]]):
    """Good images, uint8 ``(N, 3, H, W)``, each in several views that keep a good part good.

    A view is an orientation (see `gaussad_pl.data.symmetry.oriented`), None to draw one of the first ``orientations``,
    and a nuisance, or None for no nuisance: such an image is ``unchanged``.
    """

    def __init__(self, images: Tensor, views: Sequence[View], orientations: int = 1) -> None:
        self.images = images
        self.views = views
        self.orientations = orientations

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, view, seed = draw
        orientation, nuisance = self.views[view]
        image = oriented(self.images[index], seed % self.orientations if orientation is None else orientation)
        if nuisance is not None:
            image = torch.from_numpy(nuisance(image.permute(1, 2, 0).numpy(), seed)).permute(2, 0, 1)
        return {"image": image, "unchanged": nuisance is None}


class DrawSampler(Sampler[Draw]):
    """Random views of ``images`` (indices) that depend only on seed and epoch: a resumed run sees the same batches.

    The images come in random order, and repeatedly if an epoch has more draws than images.
    """

    def __init__(self, images: Sequence[int], views: int, draws: int, seed: int) -> None:
        self.images = images
        self.views = views
        self.draws = draws
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order. Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(shard(range(self.draws)))

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rounds = math.ceil(self.draws / len(self.images))
        indices = np.concatenate([rng.permutation(self.images) for _ in range(rounds)])[: self.draws]
        views = rng.integers(self.views, size=self.draws)
        seeds = rng.integers(2**31, size=self.draws)
        yield from shard(list(zip(indices.tolist(), views.tolist(), seeds.tolist(), strict=True)))
