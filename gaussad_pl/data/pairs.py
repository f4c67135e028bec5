"""Pairs of a good image and a damaged copy of it: drawn anew for each step, or a fixed set to learn directions from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gaussad_pl.augment import damaged_copy
from gaussad_pl.augment.drawing import Mask
from gaussad_pl.data.symmetry import oriented
from gaussad_pl.distributed import shard

PairDraw = tuple[int, int, int, int, int]  # image, partner, family of the damage, seed, and orientation of both images


class Pairs(Dataset[dict[str, Tensor]]):
    """Batches of good images and damaged copies of them, by lists of draws.

    A batch has ``image`` and ``copy`` ``(N, 3, H, W)`` uint8, ``mask`` ``(N, H, W)`` bool, the damaged pixels, and
    ``half`` ``(N,)``, the half of the training images each of them belongs to.

    Args:
        images: all good images, ``(M, 3, H, W)`` uint8.
        families: augmentation -> its mean severity.
        half: of each image that may be drawn, by its index.
        roi: region of interest, ``(H, W)``, outside of which copies are unchanged.
    """

    def __init__(
        self, images: Tensor, families: Mapping[str, float], half: Mapping[int, int], roi: Mask | None = None
    ) -> None:
        self.images = images
        self.families = list(families.items())
        self.half = half
        self.roi = roi

    def __getitem__(self, draws: Sequence[PairDraw]) -> dict[str, Tensor]:
        images, copies, masks = map(torch.stack, zip(*(self._pair(*draw) for draw in draws), strict=True))
        half = torch.tensor([self.half[draw[0]] for draw in draws])
        return {"image": images, "copy": copies, "mask": masks, "half": half}

    def _pair(
        self, index: int, partner: int, family: int, seed: int, orientation: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        pair = [oriented(self.images[i], orientation) for i in (index, partner)]
        image, other = (each.permute(1, 2, 0).contiguous().numpy() for each in pair)
        name, strength = self.families[family]
        rng = np.random.default_rng(seed)
        copy, mask = damaged_copy(name, image, other, rng, strength, self.roi)
        return pair[0], torch.from_numpy(copy).permute(2, 0, 1), torch.from_numpy(mask)


class PairSampler(Sampler[list[PairDraw]]):
    """Random batches of pairs, each from one half of the images, the halves by turns.

    They depend on seed and epoch alone, so a resumed run sees the same batches. Each process has its `shard` of each.

    Args:
        halves: indices of the images of both halves.
        families: number of families of damage.
        batch_size: pairs in a batch, of all processes together.
        steps: batches in an epoch.
        seed: non-negative.
        orientations: number of orientations that are drawn from.
    """

    def __init__(
        self,
        halves: Sequence[Sequence[int]],
        families: int,
        batch_size: int,
        steps: int,
        seed: int,
        orientations: int = 1,
    ) -> None:
        self.halves = [half for half in halves if half]
        self.families = families
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.orientations = orientations
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[PairDraw]]:
        rng = np.random.default_rng([self.seed, self.epoch, 1])
        for step in range(self.steps):
            half = np.asarray(self.halves[step % len(self.halves)])
            chosen = rng.permutation(half)[: self.batch_size]
            partners = rng.choice(half, len(chosen))
            families = rng.integers(self.families, size=len(chosen))
            seeds = rng.integers(2**31, size=len(chosen))
            orientations = rng.integers(self.orientations, size=len(chosen))
            columns = (each.tolist() for each in (chosen, partners, families, seeds, orientations))
            yield list(shard(list(zip(*columns, strict=True))))


def fixed_batches(
    images: Sequence[int], orientations: Sequence[int], families: int, size: int, seed: int
) -> list[list[PairDraw]]:
    """Batches of one pair for each image and family, the same for the same seed; of them this process's `shard`.

    Args:
        images: indices of images; one may occur several times.
        orientations: of each of them.
        families: number of families of damage.
        size: pairs in a batch.
        seed: of the partners and the damage.
    """
    rng = np.random.default_rng([seed, 2])
    draws = [
        (index, int(rng.choice(images)), family, int(rng.integers(2**31)), orientation)
        for family in range(families)
        for index, orientation in zip(images, orientations, strict=True)
    ]
    return list(shard([draws[first : first + size] for first in range(0, len(draws), size)]))
