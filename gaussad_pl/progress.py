"""Progress bars, for terminals only: log files would get a line for each update, and notebooks a warning.

Instead, log files get a line at the start of each step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, track

from gaussad_pl.distributed import rank

T = TypeVar("T")

log = logging.getLogger(__name__)


def tracked(items: Sequence[T] | Iterable[T], description: str, total: float | None = None) -> Iterable[T]:
    """Iterate with a bar on standard error that vanishes at the end; one process of a run shows it.

    Args:
        total: number of items, where they have no length.
    """
    console = Console(stderr=True)
    hidden = not console.is_terminal or rank() > 0
    if total != 0:
        note(description)
    return track(items, description, total=total, console=console, transient=True, disable=hidden)


def note(step: str) -> None:
    """Log the start of a step where no bar shows it: a run without a terminal would be silent for minutes."""
    if not Console(stderr=True).is_terminal:
        log.info(step)


def bar(*columns: ProgressColumn) -> Progress:
    """Return a bar of these columns on standard error; it vanishes at the end."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
