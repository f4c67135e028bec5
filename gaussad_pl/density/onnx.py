"""Building blocks of densities in operations that ONNX has: whitening, and patches sorted into tiles.

Sorted by cell, the patches of each cell are padded to whole tiles. A tile belongs to one cell, so one batched product
whitens all of them, and one whitener is fetched for a tile rather than for a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gaussad_pl.density.rounding import codes

LARGEST = 127 * 256  # of 16-bit features
TILE = 4  # patches: larger tiles are faster for many images at once, smaller ones for one image


class GaussianInOnnx(nn.Module):
    """Mahalanobis distances to one Gaussian, its whitener transposed beforehand."""

    mean: Tensor
    transposed: Tensor

    def __init__(self, mean: Tensor, whitener: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("transposed", whitener.mT.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Distances ``(..., N)`` of ``x`` ``(..., N, D)``."""
        return torch.linalg.vector_norm((x - self.mean) @ self.transposed, dim=-1)


class CodedWhiteners(nn.Module):
    """`rounded` whiteners ``(K, R, D)`` as integers, which multiply 16-bit features as two bytes each.

    Of each whitener, the last R columns are lower triangular.

    ONNX Runtime multiplies bytes several times as fast as floats, of a quarter of the memory. The scale of a patch is
    its largest feature in these units, so that the error is a rounding error of 16 bits.
    """

    inverse: Tensor  # of the units
    near: Tensor  # the first rows, transposed, (K, D - R / 2, R / 2): they need the first features alone
    far: Tensor  # the other rows, transposed, (K, D, R / 2)
    unit: Tensor  # (K, 1, R)

    def __init__(self, whitener: Tensor, spread: Tensor) -> None:
        super().__init__()
        integers, exponents = codes(whitener, spread)
        self.register_buffer("inverse", 1 / spread)
        rows, features = integers.shape[1:]
        first = rows - rows // 2
        self.register_buffer("near", integers[:, :first, : features - rows // 2].mT.contiguous())
        self.register_buffer("far", integers[:, first:].mT.contiguous())
        self.register_buffer("unit", exponents.float().exp2().unsqueeze(1))

    def forward(self, y: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Lengths ``(B, T)`` of whitened ``y`` ``(B, T, D)``, by the whiteners ``chosen`` ``(B,)`` or all K = B."""
        near, far, unit = (w if chosen is None else w.index_select(0, chosen) for w in (self.near, self.far, self.unit))
        y = y * self.inverse
        step = y.abs().amax(-1, keepdim=True).clamp(min=1e-30) / LARGEST
        whole = (y / step).round()
        high = ((whole + 128) / 256).floor()
        both = (torch.cat([high, whole - 256 * high], dim=1) + 128).to(torch.uint8)  # bytes, whose zero is 128
        products = [integer_product(both[..., : near.shape[1]], near), integer_product(both, far)]
        whitened = torch.cat(products, dim=-1).float()
        whitened = (256 * whitened[:, : y.shape[1]] + whitened[:, y.shape[1] :]) * unit
        return torch.linalg.vector_norm(whitened, dim=-1) * step.squeeze(-1)


def integer_product(x: Tensor, integers: Tensor) -> Tensor:
    """(x - 128) @ integers, int32 ``(B, T, R)``, of bytes x ``(B, T, D)`` and int8 ``(B, D, R)``."""
    if torch.onnx.is_in_onnx_export():  # torch has no such product
        zero = torch.tensor(128, dtype=torch.uint8)
        shape = (*x.shape[:2], integers.shape[2])
        found: Tensor = torch.onnx.ops.symbolic("MatMulInteger", (x, integers, zero), dtype=torch.int32, shape=shape)
        return found
    return ((x.float() - 128) @ integers.float()).int()  # exact: sums stay below 2**24


def tiles(cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Assign patches to tiles such that each of ``count`` cells fills whole tiles.

    Args:
        cells: index of the cell of each patch, ascending, ``(M,)``.

    Returns:
        The slot of each patch ``(M,)``, counting from tile to tile, and the cell of each tile ``(B,)``.
    """
    sizes = cells.new_zeros(count).scatter_add(0, cells, torch.ones_like(cells))
    ends = ((sizes + (TILE - 1)) // TILE).cumsum(0)  # of the tiles of each cell
    firsts = (ends - (sizes + (TILE - 1)) // TILE) * TILE
    shift = firsts - (sizes.cumsum(0) - sizes)
    slot = torch.arange(cells.shape[0], device=cells.device) + shift.index_select(0, cells)
    passed = cells.new_zeros(cells.shape[0] // TILE + count + 1).scatter_add(0, ends, torch.ones_like(ends)).cumsum(0)
    used = (passed < count).nonzero().squeeze(1)  # beyond the last tile, the ends of all cells have been passed
    return slot, passed.index_select(0, used)
