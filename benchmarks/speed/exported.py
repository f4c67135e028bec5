"""Speed of the exported graph relative to the exported bare backbone, in ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.speed.scoring import FORMS, SIZE, images, models
from benchmarks.speed.timing import Row, interleaved
from gaussad_pl.backbones.folding import folded
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.data.loading import decoded
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import open_session

BATCHES = (1, 16)  # single images on a production line, batches for a folder
PHOTO = 1024  # side of the JPEGs on disk in pixels
RUNTIMES = ("onnxruntime", "openvino")

Run = Callable[[np.ndarray], list[np.ndarray]]


class Bare(nn.Module):
    """Normalisation and backbone up to the last level of the detector; returns only the map of that level."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone = folded(detector.model.backbone)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.backbone.maps(pixels.permute(0, 3, 1, 2).float() * self.backbone.scale + self.backbone.offset)[-1]


def exported(folder: Path, repeats: int) -> list[Row]:
    """Part 2: whole graphs relative to the bare backbone, both on one thread; writes JPEGs to ``folder``."""
    missing = [name for name in ("onnx", "onnxscript", *RUNTIMES) if find_spec(name) is None]
    if missing:
        note = f"no {', '.join(missing)}: pip install 'gaussad_pl[export]'"
        return [Row(2, "exported graph", None, "exported bare backbone", note=note)]
    paths = _jpegs(folder, max(BATCHES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for form, detector in detectors() for row in _rows(form, detector, paths, repeats)]
    finally:
        torch.set_num_threads(threads)


def detectors(forms: Sequence[str | None] = FORMS) -> Iterator[tuple[str, Detector]]:
    """Yield the models of part 1 as detectors."""
    for form, model in models("cpu", forms):
        with torch.inference_mode():
            detection = model(images(32, 7))
        yield form, Detector.of(model, Calibration.of(detection.scores, detection.distances, "random images"), {})


def _rows(form: str, detector: Detector, paths: list[Path], repeats: int) -> list[Row]:
    from gaussad_pl.export import onnx_model, to_onnx

    files = onnx_model(detector), to_onnx(Bare(detector).eval(), detector.frame, ["level"]).SerializeToString()
    threshold = detector.threshold(0.1).value
    rows = []
    for runtime in RUNTIMES:
        whole, bare = (load(runtime, file) for file in files)

        def verdict(pixels: np.ndarray, whole: Run = whole) -> bool:
            return bool(whole(pixels[None])[0][0] <= threshold)

        backbone = "exported bare backbone"
        for batch in BATCHES:
            pixels = images(batch, 9)
            x = pixels.permute(0, 2, 3, 1).contiguous().numpy()
            candidates: dict[str, Callable[[], object]] = {
                "whole": partial(whole, x),
                "bare": partial(bare, x),
                "eager": partial(detector.detect, pixels),
            }
            times = interleaved(candidates, repeats)
            what = f"exported graph, {runtime}, {batch} at a time"
            rows.append(Row(2, what, times["whole"] / times["bare"], backbone, 1.05, form=form))
            rows.append(Row(2, what, times["whole"] / times["eager"], "eager torch", form=form))
        candidates = {
            "bare": lambda bare=bare, x=x: [bare(x[i : i + 1]) for i in range(len(paths))],  # type: ignore[misc]
            "in turns": lambda: [verdict(read_image(path, Frame(SIZE, SIZE))) for path in paths],
            "ahead": lambda: [
                verdict(pixels.permute(1, 2, 0).contiguous().numpy())
                for _, pixels in decoded(paths, Frame(SIZE, SIZE), ahead=4)
                if isinstance(pixels, Tensor)
            ],
        }
        times = interleaved(candidates, repeats)
        what = f"JPEG of {PHOTO} px to verdict, {runtime}"
        rows.append(Row(2, what, times["in turns"] / times["bare"], backbone, 1.2, form=form))
        what += ", decoding on another core"
        rows.append(Row(2, what, times["ahead"] / times["bare"], backbone, 1.2, form=form))
    return rows


def load(runtime: str, model: bytes) -> Run:
    """Load a model in a runtime on one thread, as a function of images ``(N, size, size, 3)``."""
    if runtime == "onnxruntime":
        session = open_session(model)
        return lambda x: session.run(None, {"images": x})
    import openvino

    return compiled(openvino.Core().read_model(model))


def compiled(model: Any) -> Run:
    """Compile an OpenVINO model for one thread, as a function of its only input."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    run = openvino.Core().compile_model(model, "CPU", settings)
    return lambda x: list(run([x]).values())


def _jpegs(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path, pixels in zip(paths, images(count, 9), strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((PHOTO, PHOTO)).save(path, quality=90)
    return paths
