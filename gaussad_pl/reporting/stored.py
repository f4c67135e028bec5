"""Defensive reading of run folders, whose files may be incomplete, damaged, outdated or foreign."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

LARGEST = 64 * 2**20  # bytes; files of a run are a thousand times smaller
LONGEST = 400  # characters of an error message
FAR = 1e100  # larger numbers are damage, and cannot be plotted
# exceptions that damaged content raises while it is parsed
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def load_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, accepting NaN and Infinity, which older versions wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: the content is not an object, or the file is too large or not a regular file.
        RecursionError: the content is nested too deeply.
    """
    require_readable(path)
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")
    return content


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file without resolving interpolations, or None if it cannot be read."""
    try:
        require_readable(path)
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # any error of yaml, omegaconf or the file system means that the file is incomplete or foreign
        return None


def require_readable(path: Path) -> None:
    """Refuse files whose reading could block or exhaust memory.

    Raises:
        OSError: the file does not exist.
        ValueError: the file is too large or not a regular file.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a regular file")
    if size > LARGEST:
        raise ValueError(f"it has {size / 2**20:.0f} MB, more than {LARGEST / 2**20:.0f}")


def last_line(path: Path) -> str:
    """Return the last non-blank line of a text file, shortened; empty if there is none."""
    try:
        require_readable(path)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    return shortened(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def shortened(line: str) -> str:
    """Cut a line to `LONGEST` characters."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys.

    >>> flatten({"a": {"b": 1}})
    {'a.b': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def string(value: Any) -> str:
    """Return a value as text that can be encoded in UTF-8."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def shares(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics among ``names`` that are finite numbers.

    Raises:
        ValueError: a metric is outside [0, 1].
    """
    kept = {str(key): value for key, value in found.items() if key in names and _is_number(value)}
    for key, value in kept.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value}, outside 0 to 1")
    return {key: float(value) for key, value in kept.items()}


def real(value: Any) -> float:
    """Return a number that can be plotted; NaN for null and for values that are not finite or absurdly large.

    Raises:
        TypeError: the value is neither a number nor null.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{value!r:.50} is not a number")
    return float(value) if value is not None and abs(value) < FAR else math.nan


def count(value: Any) -> int | None:
    """Read a number of images; None for null.

    Raises:
        TypeError, ValueError: the value is neither a whole number of 0 or more nor null.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.50} is not a whole number")
    if value < 0:
        raise ValueError(f"{value!r:.50} is negative")
    return value


def moment(value: Any, path: Path) -> float:
    """Convert an ISO 8601 time to seconds since 1970; if it is invalid, return when ``path`` was last modified."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return path.stat().st_mtime


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
