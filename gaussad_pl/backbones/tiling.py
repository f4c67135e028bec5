"""Large images in overlapping tiles, whose feature maps are joined to those of the whole image."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 32  # pixels: in most networks a multiple of the reduction of every level, so that the cells of tiles coincide


@dataclass(frozen=True)
class Tiling:
    """Square tiles that cover an image in rows and columns.

    Neighbours overlap by about a quarter of their side. Where they do, each cell of a feature map comes from the tile
    in which it is further from the edge, as the edge of a tile distorts the features near it.

    Attributes:
        rows, columns: number of tiles.
        size: side of a tile in pixels.
    """

    rows: int
    columns: int
    size: int

    @property
    def overlap(self) -> int:
        """Overlap of neighbours in pixels: the multiple of `STEP` nearest to a quarter of a tile, at most half."""
        return min(STEP * max(1, round(self.size / (4 * STEP))), self.size // 2)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image.

        >>> Tiling(2, 1, 224).shape
        (384, 224)
        """
        return self._joined(self.rows, self.size, self.overlap), self._joined(self.columns, self.size, self.overlap)

    def cells(self, side: int) -> tuple[int, int]:
        """Rows and columns of a joined feature map, for maps of tiles with ``side`` cells."""
        shared = self._shared(side)
        return self._joined(self.rows, side, shared), self._joined(self.columns, side, shared)

    def split(self, images: Tensor) -> Tensor:
        """Cut images ``(N, C, H, W)`` into tiles ``(N * rows * columns, C, size, size)``, image by image."""
        if self.rows * self.columns == 1:
            return images
        step = self.size - self.overlap
        tops, lefts = (range(0, count * step, step) for count in (self.rows, self.columns))
        tiles = [images[..., y : y + self.size, x : x + self.size] for y in tops for x in lefts]
        return torch.stack(tiles, dim=1).flatten(0, 1)

    def join(self, maps: Tensor) -> Tensor:
        """Join the feature maps of tiles ``(N * rows * columns, C, h, h)`` to those of images, see `cells`."""
        if self.rows * self.columns == 1:
            return maps
        side = maps.shape[-1]
        tiles = maps.unflatten(0, (-1, self.rows, self.columns))
        bands = [
            torch.cat([tiles[:, i, j, :, :, self._kept(j, self.columns, side)] for j in range(self.columns)], dim=-1)
            for i in range(self.rows)
        ]
        return torch.cat([band[:, :, self._kept(i, self.rows, side)] for i, band in enumerate(bands)], dim=-2)

    def _shared(self, side: int) -> int:
        return round(self.overlap * side / self.size)

    def _kept(self, number: int, count: int, side: int) -> slice:
        """The cells of a tile that are kept along one side: half of each overlap."""
        shared = self._shared(side)
        first = 0 if number == 0 else shared // 2
        return slice(first, side if number == count - 1 else side - (shared - shared // 2))

    @staticmethod
    def _joined(count: int, side: int, overlap: int) -> int:
        return count * side - (count - 1) * overlap


def tile_counts(tiles: int | str) -> tuple[int, int]:
    """Rows and columns of a setting such as "2x3", or one number for both.

    >>> tile_counts(2), tile_counts("2x3")
    ((2, 2), (2, 3))

    Raises:
        ValueError: it is neither, or a number is 0.
    """
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(tiles))
    if found is None:
        raise ValueError(f"tiles={tiles}: expected rows x columns, as in 2x3, or one number for both")
    return int(found[1]), int(found[2] or found[1])
