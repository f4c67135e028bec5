"""SHA-256 digests of files, of weights and of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_digest(image: Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the pixels of an image, ``(3, H, W)`` uint8."""
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict: its names, dtypes, shapes and values, regardless of order and device.

    BatchNorm's ``num_batches_tracked`` is ignored: no output depends on it, and not every checkpoint has it.

    >>> a, b = torch.zeros(2), torch.ones(3)
    >>> tensors_sha256({"a": a, "b": b}) == tensors_sha256({"b": b, "a": a})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if "num_batches_tracked" not in name):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
