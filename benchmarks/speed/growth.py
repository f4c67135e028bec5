"""Growth of time and memory with the number of training images and the number of features."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.speed.timing import Row
from gaussad_pl.data.samples import IMAGE_SUFFIXES

# one process per point, as its peak memory is measured
SCRIPT = """
import json, resource, sys, time
import torch
kind, count, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.position import PositionGaussians
from gaussad_pl.density.gaussian import Gaussian
from gaussad_pl.density.moments import moments, update_moments
keep_freed_memory()
batch = 32
x = torch.randn(batch, 196, width) if kind != "pooled" else torch.randn(batch, width)
start = time.process_time()
if kind == "pooled":
    total = [moments(x)]
    for _ in range(count // batch - 1):
        total = update_moments(total, [x])
    Gaussian(width).fit(total[0])
else:
    gaussians = PositionGaussians(196, width) if kind == "position" else ClusterGaussians(64, width, 0, 2)
    for _ in range(count // batch):
        gaussians.observe(x)
    observed = time.process_time()
    gaussians.estimate()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.process_time() - start, "peak": peak}))
"""

# the same for a whole frozen run without testing: decoding, Gaussians, validation, choice of the map
WHOLE = """
import json, resource, sys, time, warnings
import torch
from pathlib import Path
from benchmarks.jobs import build, compose_job, quiet_trainer
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.training.forgetting import ForgettingStop
warnings.filterwarnings("ignore")
keep_freed_memory()
torch.set_num_threads(1)
start = time.process_time()
config = compose_job(Path(sys.argv[1]), 0, ["trainer=cpu"])
data, module = build(config)
quiet_trainer(config, [ForgettingStop()]).validate(module, data, verbose=False)
module.choose_maps()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": time.process_time() - start, "peak": peak - data.good_images.nbytes / 2**20}))
"""

ESTIMATORS = ("pooled", "position", "clusters")
RUN = "a frozen run"


def growth(folder: Path, out: Path, scratch: Path, counts: list[int], widths: list[int]) -> list[Row]:
    """Part 7: exponents of time in images and features, and growth of peak memory; saves a plot of both.

    Args:
        folder: dataset whose good training images are repeated for the frozen run.
        out: folder for the plot.
        scratch: folder for links to the images.
        counts: numbers of training images.
        widths: numbers of features.
    """
    by_count = {kind: [_run(SCRIPT, kind, count, 128) for count in counts] for kind in ESTIMATORS}
    by_count[RUN] = [_run(WHOLE, repeated(folder, scratch, count)) for count in counts]
    by_width = {kind: [_run(SCRIPT, kind, 320, width) for width in widths] for kind in ESTIMATORS}
    _plot(out / "growth.png", counts, by_count, widths, by_width)
    rows = []
    for kind, found in by_count.items():
        seconds, peaks = ([point[key] for point in found] for key in ("seconds", "peak"))
        rows.append(Row(7, f"{kind}: exponent of time in images", slope(counts, seconds), "1 is linear", 1.15))
        if kind in by_width:
            wide = [point["seconds"] for point in by_width[kind]]
            rows.append(Row(7, f"{kind}: exponent of time in features", slope(widths, wide), "3 is cubic", 3.15))
        what = f"{kind}: peak memory{' without the images' if kind == RUN else ''}, most vs. fewest images"
        note = f"{peaks[0]:.0f} to {peaks[-1]:.0f} MB"
        rows.append(Row(7, what, peaks[-1] / peaks[0], "1 is flat", 1.1, note))
    return rows


Points = dict[str, list[dict[str, float]]]


def _plot(file: Path, counts: list[int], by_count: Points, widths: list[int], by_width: Points) -> None:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    plots = [
        (panels[0], counts, by_count, "seconds", "training images"),
        (panels[1], counts, by_count, "peak", "training images"),
        (panels[2], widths, by_width, "seconds", "features"),
    ]
    for panel, x, found, key, label in plots:
        for kind, points in found.items():
            panel.plot(x, [point[key] for point in points], marker="o", label=kind)
        panel.set(xscale="log", yscale="log", xlabel=label, ylabel={"seconds": "seconds", "peak": "peak MB"}[key])
        panel.set_xticks(x, [str(value) for value in x])
        panel.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=150)


def slope(x: list[int], seconds: list[float]) -> float:
    """Return the exponent of growth between the last two points.

    >>> slope([10, 20], [1.0, 4.0])
    2.0
    """
    return math.log(seconds[-1] / seconds[-2]) / math.log(x[-1] / x[-2])


def repeated(folder: Path, scratch: Path, count: int) -> str:
    """Create a folder of ``count`` links to the good training images, repeated in order."""
    images = sorted(path for path in (folder / "train" / "good").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    made = scratch / str(count)
    made.mkdir(parents=True)
    for i in range(count):
        image = images[i % len(images)].resolve()
        (made / f"{i:05d}{image.suffix}").symlink_to(image)
    return str(made)


def _run(script: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return result
