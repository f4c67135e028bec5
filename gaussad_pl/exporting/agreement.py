"""Check that an exported graph agrees with PyTorch on real images, in each installed runtime."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.calibration.threshold import RATES
from gaussad_pl.data.loading import decoded
from gaussad_pl.errors import UserError
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import open_session
from gaussad_pl.inference.prediction import BATCH
from gaussad_pl.inference.sources import image_paths
from gaussad_pl.model.detection import Detection

TOLERANCE = 1e-3  # relative error of scores, distances and maps
TIES = 1e-3  # share of the pixels of all maps that may differ by more: a patch between two clusters may go to either

Run = Callable[[np.ndarray], list[np.ndarray]]  # from images to the outputs of the graph


def check_images(detector: Detector, source: str, count: int) -> tuple[Tensor, str]:
    """Return up to ``count`` images ``(N, 3, height, width)``, evenly spread over a source, and a description of them.

    Without a source, these are images of the training data, or random ones if those are no longer available.

    Raises:
        UserError: the source does not exist, or has no readable image.
    """
    source = source or _training_images(detector)
    if not source:
        random = torch.Generator().manual_seed(0)
        shape = (count, 3, detector.frame.height, detector.frame.width)
        pixels = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        return pixels, "RANDOM images, as the training data are not available: give source=<real images>"
    paths = [path for path in image_paths(source) if "ground_truth" not in path.parts]
    chosen = [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
    readable = [pixels for _, pixels in decoded(chosen, detector.frame, ahead=BATCH) if isinstance(pixels, Tensor)]
    if not readable:
        raise UserError(f"source={source} has no readable images to check the graph on: give other ones")
    return torch.stack(readable), f"images of {source}"


def check(model: bytes, detector: Detector, pixels: Tensor) -> list[str]:
    """Compare the graph with PyTorch in each runtime, and return one line per runtime.

    Raises:
        UserError: the graph disagrees with PyTorch.
    """
    expected = Detection.join([detector.detect(part) for part in pixels.split(BATCH)])
    lines = []
    for name, load in (("onnxruntime", _onnxruntime), ("openvino", _openvino)):
        if find_spec(name) is None:
            lines.append(f"{name} is not installed: not checked")
            continue
        outputs = run_in_batches(load(model), pixels)
        lines.append(f"{name} {version(name)}: {compare(detector, expected, outputs)}")
    return lines


def run_in_batches(run: Run, pixels: Tensor) -> list[Tensor]:
    """Return the outputs for all images; the first is a batch of its own, to test that N is dynamic."""
    images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    batches = [images[:1], *(images[i : i + BATCH] for i in range(1, len(images), BATCH))]
    parts = [[np.array(output) for output in run(batch)] for batch in batches]
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]


def compare(detector: Detector, expected: Detection, outputs: list[Tensor]) -> str:
    """Compare the outputs of a graph with those of PyTorch, and return a summary.

    Scores are standardised and may be near zero, so their errors are relative to the score or to the standard deviation
    of good images, whichever is larger. Verdicts and p-values may differ only if the score is within this tolerance of
    the value that it is compared with.

    Raises:
        UserError: they disagree.
    """
    score, p_value, distances, *maps = outputs
    score, calibration = score.double(), detector.calibration
    unit = float(calibration.scores.std()) if len(calibration) > 1 else 0.0
    scale = expected.scores.abs().clamp(min=max(unit, 1e-12))
    errors = {"scores": (score - expected.scores).abs() / scale, "distances": _relative(distances, expected.distances)}
    if expected.maps is not None:
        errors["maps"] = _relative(maps[0], expected.maps)
    for name, error in errors.items():
        differ = (~(error <= TOLERANCE)).double().mean()  # also if it is NaN
        if differ > (TIES if name == "maps" else 0):
            raise UserError(
                f"the graph disagrees with PyTorch: {name} differ by {float(error.max()):.2g} (relative), at most "
                f"{TOLERANCE:g} is allowed; nothing was written"
            )
    same, total = 0, 0
    thresholds = [threshold for fpr in RATES if (threshold := detector.threshold(fpr)).rule != "none"]
    for threshold in thresholds:
        limit = threshold.value
        differ = (score > limit) != (expected.scores > limit)
        if bool((differ & ((expected.scores - limit).abs() > TOLERANCE * scale)).any()):
            raise UserError(
                f"the graph disagrees with PyTorch: verdicts differ at fpr={threshold.fpr:g}; nothing was written"
            )
        same, total = same + int((~differ).sum()), total + len(differ)
    low, high = (calibration.p_values(expected.scores + side * TOLERANCE * scale) for side in (1, -1))
    if not bool(((p_value >= low - 1e-6) & (p_value <= high + 1e-6)).all()):
        raise UserError("the graph disagrees with PyTorch: p-values differ; nothing was written")
    largest = ", ".join(f"{name} within {float(error.max()):.1g}" for name, error in errors.items())
    if not thresholds:
        return f"{largest} (relative); all images are undecided, so there are no verdicts to compare"
    rates = ", ".join(f"{threshold.fpr:g}" for threshold in thresholds)
    ties = "" if same == total else ", the others within rounding of the threshold"
    return f"{largest} (relative); {same} of {total} verdicts the same (fpr {rates}){ties}"


def _relative(actual: Tensor, expected: Tensor) -> Tensor:
    """Return differences relative to the largest value of each image."""
    largest = expected.abs().amax(tuple(range(1, expected.ndim)), keepdim=True)
    return (actual - expected).abs() / largest.clamp(min=1e-12)


def _onnxruntime(model: bytes) -> Run:
    session = open_session(model)
    return lambda images: session.run(None, {"images": images})


def _openvino(model: bytes) -> Run:
    import openvino

    core = openvino.Core()
    # by default, OpenVINO computes in bfloat16 if the processor has it: three digits are too few for distances
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: list(compiled([images]).values())


def _training_images(detector: Detector) -> str:
    """Return the folder of the training data; empty if it no longer exists."""
    data = detector.provenance.get("config", {}).get("data", {})
    root = Path(data.get("root") or "")
    places = (root / str(detector.provenance.get("dataset")), root) if data.get("root") else ()
    return next((str(place) for place in places if place.is_dir()), "")
