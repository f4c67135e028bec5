"""Speed of a sweep of four jobs, two at once relative to one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.speed.timing import Row

JOBS = ["data=demo", "+category=screw,tile", "seed=0,1", "fine_tune=false", "logger=csv"]


def sweeping(folder: Path) -> list[Row]:
    """Part 8: wall time of the same sweep with each launcher; the demo data is drawn beforehand."""
    root = [f"data.root={folder / 'demo'}", "hydra/job_logging=disabled"]
    _sweep([*JOBS, *root, "seed=0"], folder / "first")
    serial = _sweep([*JOBS, *root], folder / "serial")
    rows = []
    for launcher in ("submitit_local", "ray"):
        try:
            seconds = _sweep([*JOBS, *root, f"hydra/launcher={launcher}"], folder / launcher)
        except subprocess.CalledProcessError as error:
            rows.append(
                Row(8, f"four jobs by {launcher}", None, "serial", note=error.stderr.strip().splitlines()[-1][:60])
            )
        else:
            rows.append(Row(8, f"four jobs by {launcher}, two at once", seconds / serial, "serial"))
    return rows


def _sweep(arguments: list[str], folder: Path) -> float:
    command = [sys.executable, "-m", "gaussad_pl.train", "-m", *arguments, f"hydra.sweep.dir={folder}"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "disabled"})
    return time.perf_counter() - start
