"""Speed of a default frozen fit relative to bare forward passes of the same number of images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.jobs import build, clocks, compose_job, quiet_trainer, since
from benchmarks.speed.scoring import bare_forward
from benchmarks.speed.timing import Row, Setting
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.selection import choose

BATCH = 32


def fitting(folder: Path) -> list[Row]:
    """Part 4: all estimates and choices of a frozen run on decoded images, in CPU time; calibration is not included."""
    config = compose_job(folder, 0, ["trainer=cpu"])
    data, module = build(config)
    images = data.good_images
    assert len(data.validation)  # type: ignore[arg-type]  # makes the copies
    backbone, passed = module.model.backbone, 0

    def count(_: Any, given: tuple[Any, ...]) -> None:
        nonlocal passed
        passed += len(given[0])

    hook = backbone.register_forward_pre_hook(count)
    forgetting = ForgettingStop()
    trainer = quiet_trainer(config, [forgetting])
    start = clocks()
    choose(trainer, module, data, forgetting)
    module.estimate_everything(data, data.every_image)
    fit = since(start, "fit")["fit_cpu_seconds"]
    hook.remove()
    forward = bare_forward(backbone, images[:BATCH], Setting())
    forward()  # warms up
    start = clocks()
    for _ in range(math.ceil(passed / BATCH)):
        forward()
    bare = since(start, "bare")["bare_cpu_seconds"] * passed / (BATCH * math.ceil(passed / BATCH))
    of_good = bare * len(images) / passed
    note = f"{len(images)} good images, {passed} passed; {fit / of_good:.1f} passes over the good images"
    return [Row(4, "fitting the frozen default, without calibration", fit / bare, "bare forwards", 1.5, note)]
