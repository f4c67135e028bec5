"""Whether an exported graph says the same as PyTorch, on real images, in each runtime there is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.data.loading import decoded
from gaussad_pl.errors import UserError
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import open_session
from gaussad_pl.inference.prediction import BATCH
from gaussad_pl.inference.sources import image_paths
from gaussad_pl.model.detection import Detection

TOLERANCE = 1e-3  # of scores, distances and maps, relative
RATES = (0.01, 0.05, 0.1)  # false-alarm rates whose verdicts are compared

Run = Callable[[np.ndarray], list[np.ndarray]]  # images to what the graph gives


def check_images(detector: Detector, source: str, count: int) -> tuple[Tensor, str]:
    """Up to ``count`` images ``(N, 3, size, size)``, evenly spread over a source, and in words where they are from.

    Without a source those of the training, where they are still there; else random ones.
    """
    wanted = source or _training_images(detector)
    if not wanted:
        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, 3, detector.size, detector.size), generator=random, dtype=torch.uint8)
        return pixels, "RANDOM images, as those of the training are not here: give source=<some real ones>"
    paths = [path for path in image_paths(wanted) if "ground_truth" not in path.parts]
    chosen = [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
    readable = [pixels for _, pixels in decoded(chosen, detector.size, ahead=BATCH) if isinstance(pixels, Tensor)]
    if not readable:
        raise UserError(f"source={wanted}: no readable image there to check the graph on")
    return torch.stack(readable), f"images of {wanted}"


def check(model: bytes, detector: Detector, pixels: Tensor) -> list[str]:
    """What each runtime makes of the graph, a line each.

    Raises:
        UserError: the graph disagrees with PyTorch.
    """
    expected = Detection.join([detector.detect(part) for part in pixels.split(BATCH)])
    lines = []
    for name, load in (("onnxruntime", _onnxruntime), ("openvino", _openvino)):
        if find_spec(name) is None:
            lines.append(f"{name} is not installed: not checked there")
            continue
        found = run_in_batches(load(model), pixels)
        lines.append(f"{name} {version(name)}: {compare(detector, expected, found)}")
    return lines


def run_in_batches(run: Run, pixels: Tensor) -> list[Tensor]:
    """Outputs for all images; the first one alone, the others together: the graph is for any number."""
    images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    batches = [images[:1], *(images[i : i + BATCH] for i in range(1, len(images), BATCH))]
    parts = [[np.array(output) for output in run(batch)] for batch in batches]
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]


def compare(detector: Detector, expected: Detection, found: list[Tensor]) -> str:
    """How well the outputs of a graph agree, in words.

    Scores are standardised and may be near zero, so they are compared in units of the spread of good images, where that
    is more than the score itself. A verdict or p-value may only differ where the score is that close to what it is
    compared with.

    Raises:
        UserError: they do not agree.
    """
    score, p_value, distances, *maps = found
    score, kept = score.double(), detector.calibration
    unit = float(kept.scores.std()) if len(kept) > 1 else 0.0
    scale = expected.scores.abs().clamp(min=max(unit, 1e-12))
    errors = {"scores": (score - expected.scores).abs() / scale, "distances": _relative(distances, expected.distances)}
    if expected.maps is not None:
        errors["maps"] = _relative(maps[0], expected.maps)
    for name, error in errors.items():
        if not bool((error <= TOLERANCE).all()):  # also where it is no number
            raise UserError(
                f"the graph disagrees with PyTorch: {name} differ by {float(error.max()):.2g} (relative), allowed are "
                f"{TOLERANCE:g}; nothing was written"
            )
    same, total = 0, 0
    for fpr in RATES:
        limit = detector.threshold(fpr).value
        differ = (score > limit) != (expected.scores > limit)
        if bool((differ & ((expected.scores - limit).abs() > TOLERANCE * scale)).any()):
            raise UserError(f"the graph disagrees with PyTorch: other verdicts at fpr={fpr:g}; nothing was written")
        same, total = same + int((~differ).sum()), total + len(differ)
    low, high = (kept.p_values(expected.scores + side * TOLERANCE * scale) for side in (1, -1))
    if not bool(((p_value >= low - 1e-6) & (p_value <= high + 1e-6)).all()):
        raise UserError("the graph disagrees with PyTorch: other p-values; nothing was written")
    largest = ", ".join(f"{name} within {float(error.max()):.1g}" for name, error in errors.items())
    rates = ", ".join(f"{fpr:g}" for fpr in RATES)
    ties = "" if same == total else ", the others within rounding of the threshold"
    return f"{largest} (relative); {same} of {total} verdicts the same (fpr {rates}){ties}"


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """Differences relative to the largest value of each image."""
    return (found - expected).abs() / expected.abs().amax(tuple(range(1, expected.ndim)), keepdim=True).clamp(min=1e-12)


def _onnxruntime(model: bytes) -> Run:
    session = open_session(model)
    return lambda images: session.run(None, {"images": images})


def _openvino(model: bytes) -> Run:
    import openvino

    core = openvino.Core()
    # where a processor has bfloat16, OpenVINO uses it if not told otherwise: three digits are too few for distances
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: list(compiled([images]).values())


def _training_images(detector: Detector) -> str:
    data = detector.provenance.get("config", {}).get("data", {})
    root = Path(data.get("root") or "")
    places = (root / str(detector.provenance.get("dataset")), root) if data.get("root") else ()
    return next((str(place) for place in places if place.is_dir()), "")
