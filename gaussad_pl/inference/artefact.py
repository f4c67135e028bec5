"""The file of a detector: tensors and a JSON header in the safetensors format, no code."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gaussad_pl.density.rounding import codes, decoded, is_rounded
from gaussad_pl.errors import UserError
from gaussad_pl.files import finite, replacing

# increase it if older versions cannot read the files; 2 had no checksum of the header, 3 other names, 4 no median, 5 no
# weights at the border and no integers, 6 no fit, region or tiles
FORMAT = 7
OLDEST = 2
NAME = "detector.safetensors"
EXPORTED = ".onnx"  # suffix of the files of gaussad_pl.export
_KEY = "gaussad_pl"  # metadata entry with the header; other safetensors files do not have it
_SEAL = "sha256"  # metadata entry with the checksum of the header, which itself holds that of the tensors
_TRIANGLE = ".triangle"  # suffix of triangular matrices that are stored without their zeros
_CODES = ".codes"  # suffix of rounded matrices that are stored as integers
_EXPONENTS = ".exponents"  # suffix of the powers of two that the integers are multiplied with


def write_artefact(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write header and tensors atomically: a killed run leaves the old file or none.

    Whiteners, which make up most of a detector, are stored as integers where they are rounded, and without the zeros
    of lower triangular matrices.
    """
    own = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    whole = dict(part for name, tensor in own.items() for part in _encoded(name, tensor, own.get(_spread(name))))
    stored = dict(_packed(name, tensor) for name, tensor in whole.items())
    clean, _ = finite({**header, "format": FORMAT, "checksum": _checksum(stored)})
    text = json.dumps(clean, allow_nan=False)
    with replacing(path) as partial:  # save_file would make it readable by its owner only
        partial.write_bytes(save(stored, metadata={_KEY: text, _SEAL: _sealed(text)}))


def read_artefact(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors of a file.

    Raises:
        UserError: the file is missing, is damaged, is not a detector, or has an unsupported format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise UserError(f"{path} is a safetensors file but not a detector: give the {NAME} of a run")
            header: dict[str, Any] = json.loads(metadata[_KEY])
            _check_version(path, header)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or not a detector ({reason}): give the {NAME} of a run") from error
    sealed = header["format"] > OLDEST or len(metadata) > 1  # a flipped bit must not turn it into an older format
    intact = not sealed or metadata.get(_SEAL) == _sealed(metadata[_KEY])
    if not intact or header.get("checksum") != _checksum(stored):
        raise UserError(f"{path} is damaged (checksum mismatch): copy it again")
    if (broken := next((name for name, tensor in stored.items() if tensor.isnan().any()), None)) is not None:
        raise UserError(f"{path} cannot be used ({broken} contains NaN): train it again")
    return header, _decoded(dict(_unpacked(name, tensor) for name, tensor in stored.items()))


def _check_version(path: Path, header: Mapping[str, Any]) -> None:
    if header["format"] > FORMAT:
        raise UserError(
            f"{path} was written by a newer gaussad_pl ({header.get('version', 'unknown version')}, format "
            f"{header['format']}; this version reads up to {FORMAT}): update with pip install --upgrade gaussad_pl"
        )
    if header["format"] < OLDEST:
        raise UserError(
            f"{path} was written by an older gaussad_pl ({header.get('version')}, format {header['format']}; this "
            f"version reads {OLDEST} and later): train it again"
        )


def _sealed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _encoded(name: str, tensor: Tensor, spread: Tensor | None) -> list[tuple[str, Tensor]]:
    if spread is None or not is_rounded(tensor, spread):
        return [(name, tensor)]
    integers, exponents = codes(tensor, spread)
    rows, features = integers.shape[-2:]
    if torch.equal(integers, integers.tril(features - rows)):
        i, j = torch.tril_indices(rows, features, features - rows)
        return [(name + _CODES + _TRIANGLE, integers[..., i, j]), (name + _EXPONENTS, exponents)]
    return [(name + _CODES, integers), (name + _EXPONENTS, exponents)]


def _spread(name: str) -> str:
    """Name of the units that a whitener is rounded for; of no tensor for other names."""
    return name.removesuffix("whitener") + "spread" if name.endswith("whitener") else ""


def _decoded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in [name.removesuffix(_EXPONENTS) for name in tensors if name.endswith(_EXPONENTS)]:
        exponents = tensors.pop(name + _EXPONENTS)
        if (integers := tensors.pop(name + _CODES, None)) is None:
            packed, rows = tensors.pop(name + _CODES + _TRIANGLE), exponents.shape[-1]
            features = packed.shape[-1] // rows + rows // 2  # they hold rows * (features - (rows - 1) / 2) numbers
            integers = packed.new_zeros(*exponents.shape, features)
            i, j = torch.tril_indices(rows, features, features - rows)
            integers[..., i, j] = packed
        tensors[name] = decoded(integers, exponents, tensors[_spread(name)])
    return tensors


def _packed(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    side = tensor.shape[-1] if tensor.ndim >= 2 else 0
    if side < 2 or tensor.shape[-2] != side or not name.endswith("whitener") or not torch.equal(tensor, tensor.tril()):
        return name, tensor.contiguous().clone()
    rows, columns = torch.tril_indices(side, side)
    return name + _TRIANGLE, tensor[..., rows, columns].contiguous()


def _unpacked(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if not name.endswith(_TRIANGLE) or name.endswith(_CODES + _TRIANGLE):
        return name, tensor
    side = round((2 * tensor.shape[-1] + 0.25) ** 0.5 - 0.5)
    full = tensor.new_zeros(*tensor.shape[:-1], side, side)
    rows, columns = torch.tril_indices(side, side)
    full[..., rows, columns] = tensor
    return name.removesuffix(_TRIANGLE), full


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names, types, shapes and values, as a flipped bit would silently change the scores."""
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, total)
    return total
