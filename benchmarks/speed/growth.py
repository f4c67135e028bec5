"""How time and memory grow with the number of training images and the width of the features."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.speed.timing import Row

# a process for each point: the peak of its memory is what counts
SCRIPT = """
import json, resource, sys, time
import torch
kind, count, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
from gaussad_pl.cli import keep_freed_memory
from gaussad_pl.clusters import ClusterGaussians
from gaussad_pl.dense import PositionGaussians
from gaussad_pl.gaussian import Gaussian, moments, take_in
keep_freed_memory()
batch = 32
x = torch.randn(batch, 196, width) if kind != "pooled" else torch.randn(batch, width)
start = time.process_time()
if kind == "pooled":
    total = [moments(x)]
    for _ in range(count // batch - 1):
        total = take_in(total, [x])
    Gaussian(width).fit(total[0])
else:
    gaussians = PositionGaussians(196, width) if kind == "position" else ClusterGaussians((64, 16), width, 0)
    for _ in range(count // batch):
        gaussians.observe(x)
    observed = time.process_time()
    gaussians.estimate()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.process_time() - start, "peak": peak}))
"""

KINDS = ("pooled", "position", "clusters")


def growth(out: Path, counts: list[int], widths: list[int]) -> list[Row]:
    """Part 7: exponents of time in images and in width, peaks of memory, and a plot of both."""
    by_count = {kind: [_run(kind, count, 128) for count in counts] for kind in KINDS}
    by_width = {kind: [_run(kind, 320, width) for width in widths] for kind in KINDS}
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    plots = [
        (panels[0], counts, by_count, "seconds", "training images"),
        (panels[1], counts, by_count, "peak", "training images"),
        (panels[2], widths, by_width, "seconds", "features"),
    ]
    for panel, x, found, key, label in plots:
        for kind in KINDS:
            panel.plot(x, [point[key] for point in found[kind]], marker="o", label=kind)
        panel.set(xscale="log", yscale="log", xlabel=label, ylabel={"seconds": "seconds", "peak": "peak MB"}[key])
        panel.legend(frameon=False)
    figure.savefig(out / "growth.png", dpi=150)
    rows = []
    for kind in KINDS:
        images = [point["seconds"] for point in by_count[kind]]
        wide = [point["seconds"] for point in by_width[kind]]
        peaks = [point["peak"] for point in by_count[kind]]
        rows += [
            Row(7, f"{kind}: exponent of time in images", slope(counts, images), "1 is linear", 1.15),
            Row(7, f"{kind}: exponent of time in features", slope(widths, wide), "3 is cubic", 3.15),
            Row(
                7,
                f"{kind}: peak memory, most over fewest images",
                peaks[-1] / peaks[0],
                "1 is flat",
                1.1,
                note=f"{peaks[-1]:.0f} MB",
            ),
        ]
    return rows


def slope(x: list[int], seconds: list[float]) -> float:
    """Exponent of growth between the last two points."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(x[-1] / x[-2])


def _run(kind: str, count: int, width: int) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(count), str(width)], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result
