"""SHA-256 of files and of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def file_sha256(path: Path) -> str:
    """Of the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values of a state dict, whatever its order and device.

    BatchNorm's counters of training batches, which no output depends on and not every source has, are left out.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if "num_batches_tracked" not in name):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
