"""An exported detector in ONNX Runtime: the same predictions, without timm or the PyTorch model."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.errors import UserError
from gaussad_pl.inference import seal
from gaussad_pl.inference.artefact import EXPORTED
from gaussad_pl.inference.prediction import BaseDetector
from gaussad_pl.inference.seal import is_sealed
from gaussad_pl.model.detection import Detection

FORMAT = 2  # increase it if older versions cannot read the files; 1 had one size for both sides, and no fit
KEYS = ("gaussad_pl", "calibration", "provenance")  # metadata entries, each in JSON
INPUT = "images"


def load_detector(path: str | Path, device: str | torch.device = "cpu") -> BaseDetector:
    """Load a detector from an exported .onnx file, or from anything that `Detector.load` takes."""
    if Path(path).suffix == EXPORTED:
        return ExportedDetector.load(path, device)
    from gaussad_pl.inference.detector import Detector  # here: an exported detector is to do without timm

    return Detector.load(path, device)


class ExportedDetector(BaseDetector):
    """A detector that scores images with ONNX Runtime; its interface is that of `BaseDetector`."""

    def __init__(self, session: Any, metadata: Mapping[str, str]) -> None:
        """Create a detector from an ONNX Runtime session and the metadata of its model.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the metadata were not written by gaussad_pl.export.
        """
        header, calibration, provenance = (json.loads(metadata[key]) for key in KEYS)
        if header["format"] == 1:
            header |= {"height": header["size"], "width": header["size"], "fit": "squash", "roi": None}
        shape = int(header["height"]), int(header["width"])
        self.frame = Frame(*shape, header["fit"], None if header["roi"] is None else _region(header["roi"], shape))
        self.levels = [int(level) for level in header["levels"]]
        scores = torch.tensor(calibration["scores"], dtype=torch.float64)
        distances = torch.tensor(calibration["distances"], dtype=torch.float32).reshape(len(scores), len(self.levels))
        if not bool(scores.isfinite().all() and distances.isfinite().all() and (scores.diff() >= 0).all()):
            raise ValueError("the calibration scores are not finite and ascending")
        scheme, different = str(calibration["scheme"]), int(calibration["different"])
        self.calibration = Calibration(scores, distances, scheme, different)
        self.provenance = dict(provenance)
        self.median = float(header.get("median", 0))  # files of older versions have none
        self.limit = float("inf") if header["limit"] is None else float(header["limit"])
        (images,) = session.get_inputs()
        if images.name != INPUT or images.shape[1:] != [self.frame.height, self.frame.width, 3]:
            raise ValueError(f"the input of the graph is {images.name} {images.shape}")
        self._session = session

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a detector from an exported file.

        Raises:
            UserError: the file is missing, is damaged, is not a detector or was written by a newer version; or ONNX
                Runtime is missing.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist: write it with python -m gaussad_pl.export ckpt=<run folder>")
        intact = is_sealed(path)  # checked first, as ONNX Runtime may crash on a damaged file
        session = open_session(path, torch.device(device))
        metadata = session.get_modelmeta().custom_metadata_map
        if not set(KEYS) <= set(metadata):
            raise UserError(f"{path} is an ONNX file but not a detector: give one from gaussad_pl.export")
        if seal.KEY in metadata and not intact:
            raise UserError(f"{path} was modified after its export, so it cannot be trusted: export it again")
        try:
            header = json.loads(metadata[KEYS[0]])
            if header["format"] > FORMAT:
                raise UserError(
                    f"{path} was written by a newer gaussad_pl ({header['versions']['gaussad_pl']}, format "
                    f"{header['format']}; this version reads up to {FORMAT}): update with pip install --upgrade "
                    "gaussad_pl"
                )
            return cls(session, metadata)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise UserError(
                f"{path} is not a detector that this gaussad_pl can read ({reason}): export it again"
            ) from error

    def detect(self, pixels: Tensor) -> Detection:
        """Return scores, distances and maps of ``pixels`` ``(N, 3, height, width)`` uint8."""
        images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        score, _, distances, *maps = (torch.from_numpy(output) for output in self._session.run(None, {INPUT: images}))
        return Detection(distances, score.double(), maps[0] if maps else None)


def _region(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode the region of interest, whose pixels are packed into bits."""
    bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def open_session(model: Path | bytes, device: torch.device = torch.device("cpu")) -> Any:  # noqa: B008  # a constant
    """Open an ONNX Runtime session for a file or its bytes, with as many threads as PyTorch uses.

    Raises:
        UserError: the file is not a valid model, or ONNX Runtime is missing or does not support the device.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "ONNX Runtime is not installed: pip install onnxruntime, or give detector.safetensors"
        ) from error
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(
                "device=cuda: this ONNX Runtime has no GPU support: pip install onnxruntime-gpu, or give device=cpu"
            )
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers)
    except Exception as error:  # its exceptions have no other common base class
        name = "the model" if isinstance(model, bytes) else model
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name} is damaged or not an ONNX model ({reason}): export it again") from error
