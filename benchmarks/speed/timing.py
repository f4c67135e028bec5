"""Alternating timing of candidates, and the rows of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        part: part of the benchmark.
        what: the timed operation.
        ratio: its time divided by that of ``against``; None if it could not be measured.
        against: the reference.
        limit: upper limit of the ratio, if there is one.
        note: further measurements.
        form: of the map, or "pooled" without one, if the row is one of several that differ in it.
    """

    part: int
    what: str
    ratio: float | None
    against: str
    limit: float | None = None
    note: str = ""
    form: str = ""


@dataclass(frozen=True)
class Setting:
    """Device, precision ("32", "bf16" or "16") and compilation, for our code and the references."""

    device: str = "cpu"
    precision: str = "32"
    compile: bool = False

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the precision."""
        kind = {"16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        return torch.autocast(torch.device(self.device).type, dtype=kind, enabled=kind is not None)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function, if the setting asks for it."""
        return torch.compile(function) if self.compile else function

    def __str__(self) -> str:
        return f"{self.precision} bits{', compiled' if self.compile else ''}"


def interleaved(candidates: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Return the median seconds of each candidate, run alternately so that load on the machine affects all equally."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
