"""Export a trained detector as one ONNX graph, for ONNX Runtime, OpenVINO and other runtimes.

python -m gaussad_pl.export ckpt=<folder of runs or detector.safetensors>

  ckpt       folder of a run, or its detector.safetensors; a folder of runs or a pattern like 'runs/parts/*' stands for
             the run in it that finished last
  out        file to write                                              (detector.onnx beside detector.safetensors)
  source     images for the check: image, folder, pattern or list.txt   (training data if available, else random)
  images     number of images for the check                             (32)
  overwrite  true: replace an existing file                             (false)

The graph takes RGB images (N, height, width, 3) uint8, for any N, and returns score (N), p_value (N), distances
(N, levels) and, if the detector has maps, map (N, 256, 256). The caller fits images to height and width of the model,
squashed, padded or cropped as its fit says, with Pillow's bilinear filter; other filters give other scores.
docs/examples/onnx_client.py shows how. All else is inside the graph: normalisation, backbone, Gaussians, calibration.
The metadata hold the calibration as JSON, from which thresholds are computed, and the threshold of the default
false-alarm rate. It is null if the calibration images are too few for a threshold: then no image is good or bad, but
all are undecided.

The file is written only if its results on these images agree with PyTorch, in ONNX Runtime and, if installed, in
OpenVINO. On processors with bfloat16, set INFERENCE_PRECISION_HINT=f32 in OpenVINO: three digits are too few here.
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import base64
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaussad_pl.cli.options import command
from gaussad_pl.data.frame import Frame
from gaussad_pl.errors import UserError
from gaussad_pl.exporting.agreement import check, check_images
from gaussad_pl.exporting.graph import OUTPUTS, Graph
from gaussad_pl.files import replacing, unwritable
from gaussad_pl.inference.artefact import EXPORTED
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import FORMAT, INPUT, KEYS
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.inference.seal import sealed
from gaussad_pl.version import __version__

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OLDEST = "2.10"  # torch: 2.6 to 2.9 fail on a batch of any size, or write graphs that ONNX Runtime refuses
MOST = 2**31 - 2**20  # bytes of weights: an ONNX file is limited to 2 GiB, less a margin for all else


@dataclass(frozen=True)
class Options:
    """Settings of the command; see the module docstring."""

    ckpt: str
    out: str = ""
    source: str = ""
    images: int = 32
    overwrite: bool = False


def export(options: Options) -> str:
    """Build the graph, check it and write it; return a summary."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"missing packages ({', '.join(missing)}): pip install 'gaussad_pl[export]'")
    if torch.__version__ < OLDEST:
        raise UserError(
            f"torch {torch.__version__} is too old to export (expected {OLDEST}): pip install 'gaussad_pl[export]'"
        )
    if options.images < 1:
        raise UserError(f"images={options.images}: expected 1 or more")
    ckpt = find_detector(options.ckpt)
    out = Path(options.out) if options.out else ckpt.parent / f"detector{EXPORTED}"
    if out.suffix != EXPORTED:
        raise UserError(f"out={out}: expected a name that ends in {EXPORTED}")
    if out.exists() and not options.overwrite:
        raise UserError(f"{out} already exists: give another out=, or overwrite=true")
    detector = Detector.load(ckpt)
    pixels, origin = check_images(detector, options.source, options.images)
    model = onnx_model(detector)
    lines = check(model, detector, pixels)
    _write(model, out)
    first = f"{out}: {len(model) / 1e6:.0f} MB, checked on {len(pixels)} {origin}"
    return "\n".join([first, f"detector: {ckpt}", *lines, detector.threshold().line])


def onnx_model(detector: Detector) -> bytes:
    """Return the content of the file: graph, weights and metadata.

    Raises:
        UserError: the weights are too large for one ONNX file.
    """
    graph = Graph(detector).eval()
    total = sum(tensor.nbytes for tensor in graph.state_dict().values())
    if total > MOST:
        raise UserError(
            f"the detector is {total / 1e9:.1f} GB, ONNX is limited to 2: train with fewer map_levels or clusters"
        )
    proto = to_onnx(graph, detector.frame, OUTPUTS if graph.maps is not None else OUTPUTS[:-1])
    for key, content in zip(KEYS, metadata(detector), strict=True):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(content)
    proto.producer_name, proto.producer_version = "gaussad_pl", __version__
    return sealed(proto.SerializeToString())


def to_onnx(graph: torch.nn.Module, frame: Frame, outputs: Sequence[str]) -> Any:
    """Convert a module that takes ``(N, height, width, 3)`` uint8 to an ONNX model for any N."""
    example = torch.zeros(2, frame.height, frame.width, 3, dtype=torch.uint8)
    level = logging.getLogger("onnxscript").level
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # about torch's own internals
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        shapes = ({0: torch.export.Dim("N", min=1)},)
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[INPUT],
                output_names=list(outputs),
                verbose=False,
            )
        finally:
            logging.getLogger("onnxscript").setLevel(level)
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    return proto


def metadata(detector: Detector) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the metadata of the file, in the order of `KEYS`."""
    known, threshold, roi = detector.calibration, detector.threshold(), detector.frame.roi
    header = {
        "format": FORMAT,
        "height": detector.frame.height,
        "width": detector.frame.width,
        "fit": detector.frame.fit,
        "roi": None if roi is None else base64.b64encode(np.packbits(roi).tobytes()).decode(),
        "levels": detector.levels,
        "median": detector.median,
        "limit": detector.limit if np.isfinite(detector.limit) else None,
        "input": "images: uint8 (N, height, width, 3), RGB, fitted by Pillow's bilinear filter",
        "verdict": "bad if the score is above the threshold, else good; undecided if the threshold is null",
        "threshold": None if threshold.rule == "none" else threshold.value,
        "fpr": threshold.fpr,
        "undecided": threshold.reason,
        "p_value": "(1 + number of calibration scores at least as large) / (1 + number of calibration scores)",
        "versions": {"gaussad_pl": __version__, **{name: version(name) for name in ("torch", "timm", *PACKAGES)}},
    }
    calibration = {
        "scores": known.scores.tolist(),
        "distances": [[float(str(value)) for value in row] for row in known.distances.numpy()],  # short decimals
        "scheme": known.scheme,
        "different": known.different,
    }
    return header, calibration, detector.provenance


def _write(model: bytes, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    with replacing(out) as partial:
        partial.write_bytes(model)


def show(options: Options) -> None:
    """Export a detector and print the summary."""
    print(export(options))


main = command(show, Options, __doc__)

if __name__ == "__main__":
    main()
