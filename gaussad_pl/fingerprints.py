"""SHA-256 of what a result depends on: files, weights, images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gaussad_pl.data.samples import Samples


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


def images_sha256(samples: Samples) -> str | None:
    """Of kind, place and size in bytes of all images and masks: equal for copies of a dataset in different folders.

    Places are relative to the folder that all of them are in. None where a file is gone.
    """
    everything = [*samples.train, *samples.test]
    found = [(each.kind, path.absolute()) for each in everything for path in (each.path, each.mask) if path is not None]
    top = os.path.commonpath([path.parent for _, path in found])
    digest = hashlib.sha256()
    try:
        for kind, path in found:
            entry = f"{kind} {path.relative_to(top)} {path.stat().st_size}\n"
            digest.update(entry.encode("utf-8", "surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()
