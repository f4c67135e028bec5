"""Time from the command to the first training step, by stage, and speed of decoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_image, read_file

from benchmarks.speed.timing import Row, interleaved
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.loading import load_images

COUNT = 64  # PNGs
SIDE = 1024  # of each, in pixels

# run in a separate process, as modules already imported would not be counted
SCRIPT = """
import json, sys, time
start, folder = float(sys.argv[1]), sys.argv[2]
marks = {}
def mark(name):
    marks[name] = time.time() - start - sum(marks.values())
mark("interpreter")
import gaussad_pl.train
mark("imports")
import warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from benchmarks.jobs import build, compose_job, quiet_trainer
from gaussad_pl.memory import keep_freed_memory
from gaussad_pl.training.forgetting import ForgettingStop
keep_freed_memory()
config = compose_job(Path(folder), 0, ["trainer=cpu"])
mark("configuration")
data, module = build(config)
mark("backbone and weights")
data.good_images, data.test
mark("decoding")
data.validation
mark("augmented copies")
trainer = quiet_trainer(config, [ForgettingStop()])
trainer.validate(module, data, verbose=False)
mark("Gaussians and validation")
module.choose_maps()
mark("choosing the map")
class First(__import__("lightning").Callback):
    def on_train_batch_end(self, *args):
        mark("first training step")
        print("MARKS" + json.dumps(marks), flush=True)
        __import__("os")._exit(0)
module.prepare_objective(data)
quiet_trainer(config, [First()]).fit(module, data)
"""


def cold_start(folder: Path) -> list[Row]:
    """Part 5: share of each stage in the time to the first training step."""
    command = [sys.executable, "-c", SCRIPT, str(time.time()), str(folder.resolve())]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "WANDB_MODE": "disabled"}
    )
    marks = json.loads(done.stdout.split("MARKS")[1])
    total = sum(marks.values())
    return [Row(5, f"cold start: {name}", seconds / total, "command to first step") for name, seconds in marks.items()]


def decoding(folder: Path, repeats: int) -> list[Row]:
    """Part 5: decoding PNGs of 1024 px on all cores, relative to the fastest of three decoders."""
    paths = [folder / f"{i}.png" for i in range(COUNT)]
    rng = np.random.default_rng(0)
    for path in paths:
        smooth = cv2.GaussianBlur(rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8), (0, 0), 3)
        Image.fromarray(smooth).save(path)
    readers: dict[str, Callable[[Path], object]] = {
        "OpenCV": lambda path: cv2.imread(str(path), cv2.IMREAD_UNCHANGED),
        "Pillow": lambda path: np.asarray(Image.open(path)),
        "torchvision": lambda path: decode_image(read_file(str(path))),
    }
    cv2.setNumThreads(1)

    def on_all_cores(read: Callable[[Path], object]) -> Callable[[], None]:
        from concurrent.futures import ThreadPoolExecutor

        def run() -> None:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(read, paths))

        return run

    ours = {"ours": lambda: load_images(paths, Frame(224, 224), None, "")}
    times = interleaved({**ours, **{name: on_all_cores(read) for name, read in readers.items()}}, repeats)
    fastest = min(readers, key=lambda name: times[name])
    rows = [
        Row(5, f"decoding {SIDE} px PNGs by {name}{why}", times[name] / times[fastest], fastest, limit)
        for name, why, limit in (("Pillow", ", our decoder", 1.0), ("OpenCV", "", None), ("torchvision", "", None))
    ]
    return [*rows, Row(5, "decoding and resizing to 224 px, ours", times["ours"] / times[fastest], f"{fastest} alone")]
