"""Tables of benchmarks.fine_tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console


def report(results: list[dict[str, Any]], out: Path, console: Console) -> None:
    for r in results:
        console.print(r["dataset"], r["setting"], r["seed"], [round(100 * a, 1) for a in r["test_auroc"]])
