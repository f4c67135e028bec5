"""Files of a run folder, read with suspicion: half-written, damaged, of older versions, or not ours at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

LARGEST = 64 * 2**20  # bytes; what runs leave is a thousandth of it
LONGEST = 400  # characters of an error
FAR = 1e100  # beyond it a number is damaged, and could not be drawn
# what damaged content raises while it is taken apart
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; NaN and Infinity, which older versions wrote, are read as such.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no object, too large, or no regular file.
        RecursionError: it is nested too deeply.
    """
    require_readable(path)
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} and no object")
    return found


def load_yaml(path: Path) -> Any:
    """The content of a YAML file without resolving interpolations, None where there is none to be read."""
    try:
        require_readable(path)
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # any error of yaml, omegaconf or the file system means the same: half-written, or not ours
        return None


def require_readable(path: Path) -> None:
    """Refuse what would block or fill the memory.

    Raises:
        OSError: there is no such file.
        ValueError: it is too large, or no regular file.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is no regular file")
    if size > LARGEST:
        raise ValueError(f"it has {size / 2**20:.0f} MB")


def last_line(path: Path) -> str:
    """The last line of a text file that says anything, shortened; empty where there is none."""
    try:
        require_readable(path)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    return shortened(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def shortened(line: str) -> str:
    """A line with at most `LONGEST` characters."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted name.

    >>> flatten({"a": {"b": 1}})
    {'a.b': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def string(value: Any) -> str:
    """A value as text that can be written in UTF-8."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def shares(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The metrics ``names`` that are finite numbers.

    Raises:
        ValueError: one of them is outside of [0, 1].
    """
    kept = {str(key): value for key, value in found.items() if key in names and _is_number(value)}
    for key, value in kept.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value}, outside of 0 to 1")
    return {key: float(value) for key, value in kept.items()}


def real(value: Any) -> float:
    """A number that can be drawn; NaN for null and for one that is not finite or absurdly large.

    Raises:
        TypeError: it is neither a number nor null.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{value!r:.50} is no number")
    return float(value) if value is not None and abs(value) < FAR else math.nan


def moment(value: Any, path: Path) -> float:
    """Seconds since 1970 of an ISO 8601 time; where there is none, of the last change of the file ``path``."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return path.stat().st_mtime


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
