"""The SHA-256 of an exported file, as the last entry of its own metadata: no ONNX package is needed to check it.

A message of protobuf is the sum of its parts, so an entry can be appended to the bytes of a model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from gaussad_pl.errors import UserError

KEY = "sha256"  # of the metadata
_DIGITS = 64


def _entry(digest: str) -> bytes:
    """``metadata_props { key: "sha256" value: digest }`` in protobuf's encoding, of the same length for any digest."""
    content = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([_DIGITS]) + digest.encode()
    return b"\x72" + bytes([len(content)]) + content  # field 14 of ModelProto


_LENGTH = len(_entry("0" * _DIGITS))


def sealed(model: bytes) -> bytes:
    """A model with the checksum of all its bytes behind them."""
    return model + _entry(hashlib.sha256(model).hexdigest())


def is_sealed(path: Path) -> bool:
    """Check the seal of a file; False where there is none, as in files of older versions.

    Raises:
        UserError: a byte is another one than when the file was exported.
    """
    digest, rest = hashlib.sha256(), max(0, path.stat().st_size - _LENGTH)
    with path.open("rb") as file:
        while rest and (chunk := file.read(min(rest, 1 << 24))):
            digest.update(chunk)
            rest -= len(chunk)
        end = file.read()
    if end == _entry(digest.hexdigest()):
        return True
    if end[:-_DIGITS] == _entry("0" * _DIGITS)[:-_DIGITS]:
        raise UserError(f"{path} is damaged or was changed (its checksum does not fit): export it again")
    return False
