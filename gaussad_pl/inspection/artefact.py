"""One file that holds a detector: tensors and a JSON header in the safetensors format, no code."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gaussad_pl.errors import UserError
from gaussad_pl.files import replacing

FORMAT = 2  # raise it when files of one version cannot be read by another
NAME = "detector.safetensors"
_KEY = "gaussad_pl"  # of the header among the metadata: it tells our files from others
_TRIANGLE = ".triangle"  # ends the names of triangular matrices that are stored without their zeros


def write_artefact(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write header and tensors, atomically: a killed run leaves the old file or none.

    Lower triangular matrices, most of a detector, are stored without their zeros.
    """
    stored = dict(_packed(name, tensor.detach().cpu()) for name, tensor in tensors.items())
    full = {"format": FORMAT, "checksum": _checksum(stored), **header}
    with replacing(path) as partial:
        partial.write_bytes(save(stored, metadata={_KEY: json.dumps(full)}))  # save_file leaves it to its owner alone


def read_artefact(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file.

    Raises:
        UserError: there is no such file, it is damaged, of something else, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise UserError(f"{path} is a safetensors file, but no detector: give the {NAME} of a run")
            header: dict[str, Any] = json.loads(text)
            if header["format"] > FORMAT:
                raise UserError(
                    f"{path} was written by a newer gaussad_pl ({header.get('version', 'unknown version')}, format "
                    f"{header['format']}, this one reads {FORMAT}): update with pip install --upgrade gaussad_pl"
                )
            if header["format"] < FORMAT:
                raise UserError(f"{path} was written by an older gaussad_pl, {header.get('version')}: train it again")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged or no detector ({reason}): give the {NAME} of a run") from error
    if header.get("checksum") != _checksum(stored):
        raise UserError(f"{path} is damaged (its checksum does not fit): copy it again")
    return header, dict(_unpacked(name, tensor) for name, tensor in stored.items())


def _packed(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    side = tensor.shape[-1] if tensor.ndim >= 2 else 0
    if side < 2 or tensor.shape[-2] != side or not name.endswith("whitener") or not torch.equal(tensor, tensor.tril()):
        return name, tensor.contiguous().clone()
    rows, columns = torch.tril_indices(side, side)
    return name + _TRIANGLE, tensor[..., rows, columns].contiguous()


def _unpacked(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if not name.endswith(_TRIANGLE):
        return name, tensor
    side = round((2 * tensor.shape[-1] + 0.25) ** 0.5 - 0.5)
    full = tensor.new_zeros(*tensor.shape[:-1], side, side)
    rows, columns = torch.tril_indices(side, side)
    full[..., rows, columns] = tensor
    return name.removesuffix(_TRIANGLE), full


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Of names, types, shapes and values: a flipped bit would change scores without a word."""
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, total)
    return total
