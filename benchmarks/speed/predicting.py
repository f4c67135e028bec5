"""Speed and memory of `predict` on a folder of many images: all cores against one, many images against few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.exported import detectors
from benchmarks.speed.growth import repeated
from benchmarks.speed.timing import Row

# a process of its own, as its cores are chosen before torch is imported and its peak memory is measured
SCRIPT = """
import json, os, resource, sys, time
cores, ckpt, source, out = int(sys.argv[1]), *sys.argv[2:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
from gaussad_pl.predict import Options, predict
start = time.perf_counter()
predict(Options(ckpt, source, out, overwrite=True))
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def predicting(folder: Path, scratch: Path, count: int) -> list[Row]:
    """Part 9: `predict` with the default map on ``count`` images, the good training images of a dataset repeated."""
    ((form, detector),) = detectors(["union"])
    ckpt, cores = scratch / "detector.safetensors", len(os.sched_getaffinity(0))
    detector.save(ckpt)
    few, many = (repeated(folder, scratch / "predict", n) for n in (count // 5, count))
    all_cores, one, short = (_run(*how, ckpt, scratch) for how in ((cores, many), (1, many), (cores, few)))
    rates = f"{count / all_cores['seconds']:.1f} and {count / one['seconds']:.1f} images per second"
    peaks = f"{short['peak']:.0f} to {all_cores['peak']:.0f} MB"
    what = f"predict, {form}"
    return [
        Row(9, f"{what}, {count} images, {cores} cores", all_cores["seconds"] / one["seconds"], "one core", note=rates),
        Row(9, f"{what}: peak memory, {count} images", all_cores["peak"] / short["peak"], f"{count // 5}", 1.1, peaks),
    ]


def _run(cores: int, source: str, ckpt: Path, scratch: Path) -> dict[str, float]:
    command = [sys.executable, "-c", SCRIPT, str(cores), str(ckpt), source, str(scratch / "predictions")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return result
