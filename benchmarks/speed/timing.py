"""Pairs of things timed side by side, and the rows of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: number of the question it answers.
        what: what was timed.
        ratio: its time over that of ``against``, None where it could not be measured.
        against: what it is compared with.
        limit: the most it may be, if there is one.
        note: what else was measured.
    """

    part: int
    what: str
    ratio: float | None
    against: str
    limit: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """Where and how everything runs, bare or ours: device, "32", "bf16" or "16" bits, compiled or not."""

    device: str = "cpu"
    precision: str = "32"
    compile: bool = False

    def autocast(self) -> torch.autocast:
        kind = {"16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        return torch.autocast(torch.device(self.device).type, dtype=kind, enabled=kind is not None)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if self.compile else function

    def __str__(self) -> str:
        return f"{self.precision} bits{', compiled' if self.compile else ''}"


def interleaved(candidates: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each of several things, run in turns so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
