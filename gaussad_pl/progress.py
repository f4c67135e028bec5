"""Progress bars, for terminals only: log files would get a line for each update, and notebooks a warning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, track

from gaussad_pl.distributed import rank

T = TypeVar("T")


def tracked(items: Sequence[T] | Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """Iterate with a bar on standard error that vanishes at the end; one process of a run shows it.

    Args:
        total: number of items, where they have no length.
    """
    console = Console(stderr=True)
    hidden = not console.is_terminal or rank() > 0
    return track(items, description, total=total, console=console, transient=True, disable=hidden)


def bar(*columns: ProgressColumn) -> Progress:
    """Return a bar of these columns on standard error; it vanishes at the end."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
