"""Whiteners of few bits: each row is a row of small integers times a power of two, for features in their own units.

A whitener for every cell makes up most of a detector and of the time of a map. Rounded to 7 bits they move a distance
by about 1 %, more where features are strongly correlated, but take a quarter of the file, and ONNX Runtime multiplies
integers several times as fast. They are rounded when estimated, so that all later distances and verdicts agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaussad_pl.errors import UserError

BITS = 7  # with the sign: products of pairs with bytes then fit into 16 bits, in which some processors add them


def rounded(whitener: Tensor, spread: Tensor) -> Tensor:
    """Round each row of ``(..., R, D)`` to integers of `BITS` bits times a power of two; what is rounded stays.

    Args:
        whitener: to round.
        spread: units of the features, in which the whitener is rounded, powers of two ``(D,)``.
    """
    standard = whitener * spread
    unit, most = _unit(standard), 2 ** (BITS - 1) - 1
    return (standard / unit).round().clamp(-most, most) * unit / spread


def is_rounded(whitener: Tensor, spread: Tensor) -> bool:
    """Return True if rounding would leave it as it is."""
    return torch.equal(whitener, rounded(whitener, spread))


def codes(whitener: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Integers ``(..., R, D)`` and exponents of two ``(..., R)``, both int8, of a `rounded` whitener.

    Raises:
        UserError: it is not rounded.
    """
    if not is_rounded(whitener, spread):
        raise UserError("the detector was made by an older gaussad_pl, and its maps cannot be exported: train it again")
    unit = _unit(whitener * spread)
    return (whitener * spread / unit).to(torch.int8), unit.log2().squeeze(-1).to(torch.int8)


def decoded(integers: Tensor, exponents: Tensor, spread: Tensor) -> Tensor:
    """The rounded whitener ``(..., R, D)``, float32, of its `codes`."""
    return integers.float() * exponents.float().exp2().unsqueeze(-1) / spread


def _unit(whitener: Tensor) -> Tensor:
    """The power of two that the last bit of each row stands for, ``(..., R, 1)``."""
    largest = whitener.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    _, exponent = torch.frexp(largest)  # largest < 2 ** exponent, exactly
    return torch.ldexp(torch.ones_like(largest), exponent - (BITS - 1))
