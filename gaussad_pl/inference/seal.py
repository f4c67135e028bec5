"""SHA-256 of an exported file, stored as the last entry of its own metadata.

Serialised protobuf messages can be concatenated, so the entry is appended to the bytes of the model, and no ONNX
package is needed to check it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from gaussad_pl.errors import UserError

KEY = "sha256"  # of the entry in the metadata
_DIGITS = 64


def _entry(digest: str) -> bytes:
    """Encode ``metadata_props { key: "sha256" value: digest }`` in protobuf; the length is the same for all digests."""
    content = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([_DIGITS]) + digest.encode()
    return b"\x72" + bytes([len(content)]) + content  # field 14 of ModelProto


_LENGTH = len(_entry("0" * _DIGITS))


def sealed(model: bytes) -> bytes:
    """Return the bytes of a model with the checksum of all of them appended."""
    return model + _entry(hashlib.sha256(model).hexdigest())


def is_sealed(path: Path) -> bool:
    """Check the seal of a file; False if it has none, as files of older versions.

    Raises:
        UserError: the file does not match its seal.
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
        raise UserError(f"{path} is damaged or was modified (checksum mismatch): export it again")
    return False
